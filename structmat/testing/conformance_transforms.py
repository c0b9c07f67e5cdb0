"""Conformance: derivatives, ``torch.func`` and ``torch.compile``, by value."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat.testing.assertions import assert_close, assert_gradients, rounding
from structmat.testing.conformance_case import DOUBLE, Case

__all__ = ["check_compiled", "check_compiled_gradient", "check_gradients", "check_transforms"]


def check_gradients(case: Case) -> None:
    """First and second derivatives in entries and x agree with finite differences (double precision only)."""
    if case.smooth and case.dtype in DOUBLE:
        try:
            assert_gradients(case.matrix)
        except AssertionError as error:
            raise AssertionError(f"{case.matrix!r}: {error}") from error


def _floating(leaves: list[torch.Tensor]) -> tuple[int, ...]:
    return tuple(k for k, t in enumerate(leaves) if (t.is_floating_point() or t.is_complex()) and t.numel())


def _real(y: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(y) if y.is_complex() else y).sin().sum()


def check_transforms(case: Case) -> None:
    """``torch.func``: grad equals autograd, jvp the transposed derivative, vmap the loop; by value."""
    a, (_, n) = case.matrix, case.sizes
    leaves, spec = pytree.tree_flatten(a.detach())
    if case.dtype not in DOUBLE or not leaves or not case.smooth:
        return
    chosen = _floating(leaves)
    if not chosen:
        return
    x = case.rows(*a.shape[:-2], 2, n, seed=3)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        return _real(pytree.tree_unflatten(tensors, spec).linear(x))

    plain = [t.clone().requires_grad_(k in chosen) for k, t in enumerate(leaves)]
    wanted = torch.autograd.grad(loss(*plain), [plain[k] for k in chosen], allow_unused=True, materialize_grads=True)
    got = torch.func.grad(loss, argnums=chosen)(*leaves)
    scale = 1.0 + max((float(torch.linalg.vector_norm(w)) for w in wanted), default=0.0) + case.size
    tol = rounding(case.dtype, sum(case.sizes), scale * float(torch.linalg.vector_norm(x)), 4)
    for w, g in zip(wanted, got, strict=True):
        assert_close(g, w, tol, f"{a!r}: torch.func.grad against autograd")

    def loss_of(*tensors: torch.Tensor) -> torch.Tensor:
        full = list(leaves)
        for k, tensor in zip(chosen, tensors, strict=True):
            full[k] = tensor
        return loss(*full)

    moved = tuple(torch.randn_like(leaves[k]) for k in chosen)
    rate = torch.func.jvp(loss_of, tuple(leaves[k] for k in chosen), moved)[1]
    by_grad = torch.stack(
        [(w.conj() * d).real.sum() if w.is_complex() else (w * d).sum() for w, d in zip(wanted, moved, strict=True)]
    )
    size = 1.0 + max(float(torch.linalg.vector_norm(t)) for t in moved)
    assert_close(rate, by_grad.sum(), tol * size * len(leaves), f"{a!r}: torch.func.jvp against the gradient")
    _check_vmap(case, leaves, lambda ts: pytree.tree_unflatten(ts, spec).linear, x, tol)


def _check_vmap(case: Case, leaves: list[torch.Tensor], product: Callable[..., Any], x: Any, tol: float) -> None:
    """Over different matrices, over different rows, and over both at once."""
    a, chosen = case.matrix, _floating(leaves)
    other = [t * (1 + 2**-6) if k in chosen else t for k, t in enumerate(leaves)]
    two = [torch.stack(pair) for pair in zip(leaves, other, strict=True)]
    rows = torch.stack((x, -2 * x))
    loops: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = {
        "over matrices": (lambda ts: product(ts)(x), (two,), ((leaves,), (other,))),
        "over x": (lambda v: product(leaves)(v), (rows,), ((x,), (-2 * x,))),
        "over both": (lambda ts, v: product(ts)(v), (two, rows), ((leaves, x), (other, -2 * x))),
    }
    for how, (function, stacked, single) in loops.items():
        both = torch.func.vmap(function)(*stacked)
        each = torch.stack([function(*arguments) for arguments in single])
        assert_close(both, each, 4 * tol, f"{a!r}: torch.func.vmap {how} against the loop")


def _compiled(case: Case, function: Callable[..., Any], *arguments: Any) -> Any:
    torch._dynamo.reset()
    try:
        return torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"{case.matrix!r}: linear does not trace under fullgraph: {error}") from error


def check_compiled(case: Case) -> None:
    """``torch.compile(fullgraph=True)`` takes the matrix as an argument and agrees with eager by value."""
    a, (m, n) = case.matrix, case.sizes
    x = case.rows(*a.shape[:-2], 2, n, seed=4)
    size = case.size * float(torch.linalg.vector_norm(x.to(backend.compute_dtype(x.dtype))))
    got = _compiled(case, lambda matrix, v: matrix.linear(v), a.detach(), x)
    assert_close(got, a.linear(x), rounding(case.dtype, m + n, size, 4), f"{a!r}: compiled against eager")


def check_compiled_gradient(case: Case) -> None:
    """As ``check_compiled``; and the derivatives of the compiled product, in matrix and x, are those of eager."""
    a, (m, n) = case.matrix, case.sizes
    leaves, spec = pytree.tree_flatten(a.detach())
    if case.dtype not in DOUBLE or not case.smooth:
        check_compiled(case)
        return
    x = case.rows(*a.shape[:-2], 2, n, seed=4)
    found, values = [], []
    for compiled in (False, True):
        chosen = _floating(leaves)
        fresh = [t.clone().requires_grad_(k in chosen) for k, t in enumerate(leaves)]
        inputs = [*(fresh[k] for k in chosen), x.clone().requires_grad_()]
        matrix = pytree.tree_unflatten(fresh, spec)
        y = _compiled(case, lambda a, v: a.linear(v), matrix, inputs[-1]) if compiled else matrix.linear(inputs[-1])
        values.append(y)
        if y.requires_grad:
            found.append(torch.autograd.grad(_real(y), inputs, allow_unused=True, materialize_grads=True))
        else:
            found.append(tuple(torch.zeros_like(t) for t in inputs))
    size = case.size * float(torch.linalg.vector_norm(x))
    assert_close(values[1], values[0], rounding(case.dtype, m + n, size, 4), f"{a!r}: compiled against eager")
    scale = 1.0 + max(float(torch.linalg.vector_norm(w)) for w in found[0]) + case.size
    tol = rounding(case.dtype, sum(case.sizes), scale * float(torch.linalg.vector_norm(x)), 4)
    for eager, traced in zip(*found, strict=True):
        assert_close(traced, eager, tol, f"{a!r}: gradient of the compiled product against eager")
