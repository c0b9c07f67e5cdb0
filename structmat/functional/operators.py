"""The operators ``torch.ops.structmat.*``: what a kernel computes, as torch.compile and torch.export see it.

    cayley(K) -> (R, M)                              cayley_gradient(K, M, R') -> K'
    block_diagonal(x, W, lanes) -> y                 block_diagonal_gradient(x, y', W, lanes) -> (x', W')
    householder(x, V) -> (y, W, T)                   householder_gradient(x, V, T, W, y', both) -> (x', V')

Each launches its kernels on a CUDA device (and under Triton's interpreter), and computes the formula in plain torch
elsewhere, so that an exported program runs anywhere. Outputs are contiguous, as the fakes say, and in the dtype of the
rows; sums over rows and what belongs to the weights are float32. Autocast does not reach inside. The configuration of
a launch is the one measured for the sizes at hand, or the first of the table. Derivatives are registered by
``launched``, next to the ``autograd.Function`` that serves eager mode.
"""

from collections.abc import Callable
from typing import Any

import torch

from structmat import backend

__all__ = [
    "batched",
    "block_product",
    "define",
    "differentiable",
    "either",
    "skew_inverse",
    "wy_matrix",
    "zeros_if_none",
]

_LIBRARY = torch.library.Library("structmat", "FRAGMENT")


def define(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make the decorated implementation the operator of this schema; ``fake`` gives its outputs without numbers."""
    name = schema.split("(", 1)[0]

    def made(run: Callable[..., Any]) -> Any:
        def alone(*given: Any) -> Any:
            with backend.full_precision(given[0].device):
                return run(*given)

        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, alone, "CompositeExplicitAutograd")
        torch.library.register_fake(f"structmat::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.structmat, name).default

    return made


def differentiable(name: str, function: Any) -> None:
    """Give the operator the derivative of an ``autograd.Function`` with ``setup_context``."""
    torch.library.register_autograd(
        f"structmat::{name}", function.backward, setup_context=function.setup_context, lib=_LIBRARY
    )


def either(function: Any, operator: Any) -> Callable[..., Any]:
    """The operator while a compiler traces, else the Function."""

    def called(*given: Any) -> Any:
        return operator(*given) if torch.compiler.is_compiling() else function.apply(*given)

    return called


def batched(value: Any, dim: int | None, count: int) -> Any:
    """The batch of vmap as the first dimension."""
    return value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)


def zeros_if_none(tangents: tuple[Any, ...], like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tangents, with zeros for what does not move."""
    return tuple(torch.zeros_like(v) if t is None else t for t, v in zip(tangents, like, strict=True))


def sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# -- the formulas in plain torch, also what derivatives of second order are made of -----------------------------------


def skew_inverse(k: torch.Tensor) -> torch.Tensor:
    """``(I + K)^-1``, never singular for skew-symmetric K."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    return torch.linalg.inv_ex(eye + k).inverse


def block_product(x: torch.Tensor, w: torch.Tensor, lanes: int) -> torch.Tensor:
    """``y[:, (u q + o) s + l] = sum_i W[u s + l, o, i] x[:, (u p + i) s + l]`` for s = lanes, in the dtype of x."""
    blocks = w.to(x.dtype).unflatten(0, (-1, lanes))
    outer, _, q, p = blocks.shape
    y = torch.einsum("rupl,ulqp->ruql", x.reshape(x.shape[0], outer, p, lanes), blocks)
    return y.reshape(x.shape[0], outer * q * lanes)


def wy_matrix(v: torch.Tensor) -> torch.Tensor:
    """``T^-1`` of reflections v ``(r, n)``: the strictly upper triangle of ``V V^T`` and half its diagonal (half of 1
    for a vector that is zero)."""
    gram = v @ v.mT
    squares = torch.diagonal(gram)
    squares = torch.where(squares == 0, torch.ones_like(squares), squares)
    return torch.triu(gram, 1) + torch.diag_embed(squares / 2)


# -- the operators ----------------------------------------------------------------------------------------------------


def _two_matrices(k: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return k.new_empty(k.shape), k.new_empty(k.shape)


@define("cayley(Tensor k) -> (Tensor, Tensor)", _two_matrices)
def cayley(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``R = (I - K)(I + K)^-1`` and ``M = (I + K)^-1`` of skew-symmetric K ``(m, n, n)``."""
    plan = backend.configurations("cayley", k, k.dtype, (tuple(k.shape),))
    if plan:
        found: tuple[torch.Tensor, torch.Tensor] = backend.launchers("cayley").forward(k, plan["cayley_forward"])
        return found
    inverse = skew_inverse(k).contiguous()
    rotation = 2 * inverse
    rotation.diagonal(dim1=-2, dim2=-1).sub_(1)
    return rotation + (rotation - rotation @ (rotation.mT @ rotation)) / 2, inverse


@define("cayley_gradient(Tensor k, Tensor m, Tensor g) -> Tensor", lambda k, m, g: k.new_empty(k.shape))
def cayley_gradient(k: torch.Tensor, m: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """``-2 M^T G M^T``; K is what derivatives of it are taken by."""
    plan = backend.configurations("cayley", k, k.dtype, (tuple(k.shape),))
    if plan:
        found: torch.Tensor = backend.launchers("cayley").backward(m.contiguous(), g, plan["cayley_backward"])
        return found
    return (-2 * (m.mT @ g @ m.mT)).contiguous()


def block_sizes(x: torch.Tensor, w: torch.Tensor, lanes: int) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """The name under which ``backend.choose`` knows the product, and the sizes it looks at."""
    name = "block_diagonal" if lanes == 1 else "block_diagonal_strided"
    return name, (tuple(x.shape), tuple(w.shape), (lanes,))


@define(
    "block_diagonal(Tensor x, Tensor w, int lanes) -> Tensor",
    lambda x, w, lanes: x.new_empty(x.shape[0], w.shape[0] * w.shape[1]),
)
def block_diagonal(x: torch.Tensor, w: torch.Tensor, lanes: int) -> torch.Tensor:
    """Rows ``(rows, k p)`` through blocks ``(k, q, p)``, rounded to the dtype of the rows: ``block_product``."""
    name, sizes = block_sizes(x, w, lanes)
    plan = backend.configurations(name, x, x.dtype, sizes)
    if plan:
        kind, more = ("blockdiag", ()) if lanes == 1 else ("strided", (lanes,))
        found: torch.Tensor = backend.launchers(kind).forward(x, w.to(x.dtype), *more, plan[f"{kind}_forward"])
        return found
    wide = backend.compute_dtype(x.dtype)
    return block_product(x.to(wide), w.to(x.dtype), lanes).to(x.dtype).contiguous()


@define(
    "block_diagonal_gradient(Tensor x, Tensor g, Tensor w, int lanes) -> (Tensor, Tensor)",
    lambda x, g, w, lanes: (x.new_empty(x.shape), w.new_empty(w.shape, dtype=sums(x.dtype))),
)
def block_diagonal_gradient(
    x: torch.Tensor, g: torch.Tensor, w: torch.Tensor, lanes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x' = y' W`` in the dtype of the rows, ``W'[k] = y'_k^T x_k`` in that of the sums."""
    name, sizes = block_sizes(x, w, lanes)
    plan = backend.configurations(name, x, x.dtype, sizes)
    if plan:
        kind, more = ("blockdiag", ()) if lanes == 1 else ("strided", (lanes,))
        found: tuple[torch.Tensor, torch.Tensor] = backend.launchers(kind).backward(
            x, g, w.to(x.dtype), *more, plan[f"{kind}_backward"]
        )
        return found
    a, d = x.to(sums(x.dtype)), g.to(sums(x.dtype))
    (k, q, p), rows = w.shape, x.shape[0]
    gx = block_product(d, w.to(x.dtype).mT, lanes)
    d, a = d.reshape(rows, k // lanes, q, lanes), a.reshape(rows, k // lanes, p, lanes)
    gw = torch.einsum("ruql,rupl->ulqp", d, a).reshape(w.shape)
    return gx.to(x.dtype).contiguous(), gw.contiguous()


def _rows_and_weights(x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r, dtype = v.shape[0], sums(x.dtype)
    return x.new_empty(x.shape), x.new_empty((x.shape[0], r), dtype=dtype), x.new_empty((r, r), dtype=dtype)


def _reflection_plan(x: torch.Tensor, v: torch.Tensor) -> Any:
    return backend.configurations("householder_product", x, x.dtype, (tuple(x.shape), tuple(v.shape)))


@define("householder(Tensor x, Tensor v) -> (Tensor, Tensor, Tensor)", _rows_and_weights)
def householder(x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y = x - W V``, ``W = x V^T T^T`` and T, for rows ``(rows, n)`` and the vectors ``(r, n)`` as rounded to the
    dtype of the rows."""
    plan, v = _reflection_plan(x, v), v.to(x.dtype)
    if plan:
        kernels = backend.launchers("householder")
        t = kernels.factor(v, plan["wy_gram"], plan["wy_inverse"])
        return (*kernels.apply(x, v, t, plan["householder_apply"]), t)
    v, a = v.to(sums(x.dtype)), x.to(sums(x.dtype))
    t = torch.linalg.solve_triangular(wy_matrix(v), torch.eye(v.shape[0], dtype=v.dtype, device=v.device), upper=True)
    w = (a @ v.mT) @ t.mT
    return (a - w @ v).to(x.dtype).contiguous(), w.contiguous(), t.contiguous()


def _two_gradients(x: Any, v: Any, t: Any, w: Any, g: Any, both: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), w.new_empty(v.shape[0] if both else 0, v.shape[1])


@define(
    "householder_gradient(Tensor x, Tensor v, Tensor t, Tensor w, Tensor g, bool both) -> (Tensor, Tensor)",
    _two_gradients,
)
def householder_gradient(
    x: torch.Tensor, v: torch.Tensor, t: torch.Tensor, w: torch.Tensor, g: torch.Tensor, both: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x' = y' - S V``, S = ``y' V^T T``, and, where ``both`` are asked for, ``V' = -S^T x - W^T y' + (K + K^T) V``
    with K the strictly upper triangle of ``S^T W`` and half its diagonal."""
    plan, v = _reflection_plan(x, v), v.to(x.dtype)
    if plan:
        kernels = backend.launchers("householder")
        gx, s = kernels.apply(g, v, t.mT, plan["householder_apply"])
        gv = kernels.vectors_gradient(x, g, w.contiguous(), s, plan["householder_vectors"]) if both else None
    else:
        a, d, wide = x.to(w.dtype), g.to(w.dtype), v.to(w.dtype)
        s = (d @ wide.mT) @ t
        gx = (d - s @ wide).to(x.dtype).contiguous()
        gv = -(s.mT @ a) - w.mT @ d if both else None
    if gv is None:
        return gx, w.new_empty(0, v.shape[1])
    upper = torch.triu(s.mT @ w)
    turned = upper + upper.mT
    turned.diagonal().mul_(0.5)
    return gx, gv.addmm_(turned, v.to(turned.dtype))
