"""Products of Householder reflections in compact WY form.

``Q = H_1 ... H_r`` with ``H_i = I - tau_i v_i v_i^H``, ``tau_i = (1 - exp(i phi_i)) / v_i^H v_i`` (phi = pi: a plain
reflection, tau = 2 / v^H v) equals ``Q = I - W T W^H`` where the columns of W are the v_i and

    T = (I + D U)^{-1} D,    D = diag(tau),    U = the strictly upper triangle of W^H W.

T comes from the vectors as stored, never from an assumed unit norm, so Q is orthogonal to rounding also for rounded
vectors. For unit vectors ``|T_ij| <= 4``: nearly parallel vectors are harmless. A zero vector gives H = I and the
gradient 0.

Source: R. Schreiber and C. Van Loan, A storage-efficient WY representation for products of Householder transformations,
1989, eq. 2.2; T by one triangular solve: X. Sun and C. Bischof, A basis-kernel representation of orthogonal matrices,
1995.
"""

import math
from typing import Any

import torch

from structmat import backend
from structmat.functional.launched_reflections import reflected_rows
from structmat.functional.transforms import largest, nothing

__all__ = ["block_of", "block_size", "blocks", "panel_of", "panel_sizes", "reflect", "rotate_rows", "wy_factor"]


def block_size(reflectors: int) -> int:
    """Reflectors applied at once: all up to 128, else 64 (longer blocks spend more on the r x r part, and round
    more)."""
    return reflectors if reflectors <= 128 else 64


def block_of(reflectors: int, n: int) -> int:
    """``block_size``, and the root of n where r is near n < 1024 or far above its root: T of a block of s nearly
    parallel vectors has a condition number of ``2 s^2``, and leaves Q wrong by about ``0.3 s / sqrt(n)`` of what r
    reflectors may."""
    size = max(1, block_size(reflectors))
    crowded = n < 1024 and (2 * reflectors >= n or reflectors**2 > 32 * n)
    return min(size, max(1, math.isqrt(n))) if crowded else size


def panel_of(reflectors: int, n: int) -> int:
    """Reflectors that a kernel applies at once, at most 64; more go panel by panel, the last first."""
    return min(64, block_of(reflectors, n))


def panel_sizes(reflectors: int, n: int) -> tuple[int, ...]:
    """The different sizes of the panels: that of all but the last, that of the last."""
    size = min(reflectors, panel_of(reflectors, n))
    return (size, reflectors % size) if size and reflectors % size else (size,)


def normalised(vectors: torch.Tensor) -> torch.Tensor:
    """Each vector divided by its largest modulus, which changes no reflection but keeps v^H v from over- and
    underflow."""
    return vectors / _scale_of(vectors)


def _scale_of(vectors: torch.Tensor) -> torch.Tensor:
    scale = largest(vectors.detach().abs())[..., None]
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def wy_factor(vectors: torch.Tensor, phases: torch.Tensor | None = None) -> torch.Tensor:
    """T of one block: vectors ``(*b, r, n)`` (rows v_i), phases ``(*b, r)`` or None -> ``(*b, r, r)`` upper
    triangular."""
    gram = vectors.conj() @ vectors.mT
    squares = (
        torch.diagonal(gram, dim1=-2, dim2=-1).real if gram.is_complex() else torch.diagonal(gram, dim1=-2, dim2=-1)
    )
    squares = torch.where(squares == 0, torch.ones_like(squares), squares)
    if phases is None:
        tau = (2 / squares).to(gram.dtype)
    else:
        half = phases / 2  # 1 - exp(i phi) = 2 sin(phi/2) (sin(phi/2) - i cos(phi/2)), accurate for small phi
        tau = torch.complex(2 * torch.sin(half) ** 2, -torch.sin(phases)) / squares
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    unit = tau[..., :, None] * torch.triu(gram, 1) + eye
    inverse = torch.linalg.solve_triangular(unit, eye, upper=True, unitriangular=True)
    # One step of Newton: for nearly parallel vectors the error of Q is that of this inverse, and shrinks fourfold.
    inverse = inverse + inverse @ (eye - unit @ inverse)
    return inverse * tau[..., None, :]


def blocks(vectors: torch.Tensor, phases: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The blocks ``(vectors, T)`` of a product, first reflector first."""
    vectors = normalised(vectors)
    if phases is not None:  # which may be batched where the vectors are not
        lead = torch.broadcast_shapes(vectors.shape[:-2], phases.shape[:-1])
        vectors = vectors.to(backend.complex_of(vectors.dtype)).expand(*lead, *vectors.shape[-2:])
    size = block_of(vectors.shape[-2], vectors.shape[-1])
    full = vectors.shape[-2] // size * size
    pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
    if full:  # their T side by side: a batch costs little more than one
        v = vectors[..., :full, :].unflatten(-2, (-1, size))
        p = None if phases is None else phases[..., :full].unflatten(-1, (-1, size))
        pieces += zip(v.unbind(-3), wy_factor(v, p).unbind(-3), strict=True)
    if full < vectors.shape[-2]:
        v = vectors[..., full:, :]
        pieces.append((v, wy_factor(v, None if phases is None else phases[..., full:])))
    return pieces


def rotate_rows(x: torch.Tensor, vectors: torch.Tensor, phases: torch.Tensor | None = None) -> torch.Tensor:
    """``x Q^T`` for rows x ``(..., k, n)`` (or one row), vectors ``(*b, r, n)``, phases ``(*b, r)`` or None.

    Half and bfloat16 are carried out in float32. Cost: ``4 r n`` flops a row after ``r^2 n + r^3 / 3`` once (per
    block, see ``block_of``); memory for the backward pass: the inputs and ``r`` numbers a row.
    """
    out = torch.promote_types(x.dtype, vectors.dtype if phases is None else backend.complex_of(vectors.dtype))
    wide = backend.compute_dtype(out)
    if 0 in vectors.shape:
        lead = vectors.shape[:-2] if phases is None else torch.broadcast_shapes(vectors.shape[:-2], phases.shape[:-1])
        joined = nothing((), out, vectors, *(() if phases is None else (phases,)))
        return x.to(out).expand(*torch.broadcast_shapes(x.shape[:-2], lead), *x.shape[-2:]) + joined
    with backend.full_precision(x.device):
        v = vectors.to(wide if vectors.is_complex() else backend.real_of(wide))
        p = None if phases is None else phases.to(backend.real_of(wide))
        if p is None and v.ndim == 2 and not (v.is_complex() or x.is_complex()):
            rows, size = x.reshape(-1, x.shape[-1]), panel_of(*v.shape)
            if all(backend.kernel("householder_product", rows, w, dtype=out) for w in v.split(size)[-2:]):
                rows = rows.to(out)
                for w in normalised(v).split(size)[::-1]:
                    rows = reflected_rows(rows, w)
                return rows.reshape(x.shape)
        if p is None and _one_real_block(x, v) and not torch.compiler.is_compiling() and not backend.transforming():
            return _Rotate.apply(x.to(wide).reshape(-1, x.shape[-1]), v).reshape(x.shape).to(out)
        return apply_blocks(x.to(wide), blocks(v, p)).to(out)


def apply_blocks(x: torch.Tensor, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """``x Q^T`` from prepared blocks, the last block first."""
    lone = x.ndim == 1
    rows = x[None] if lone else x
    flat = rows.shape if pieces[0][0].ndim == 2 and rows.ndim > 2 else None
    rows = rows.flatten(0, -2) if flat else rows
    for v, t in reversed(pieces):
        rows = reflect(rows, v, t)
    rows = rows.unflatten(0, flat[:-1]) if flat else rows
    return rows[..., 0, :] if lone else rows


def reflect(x: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``x - (x v^H) T^T v``: rows x ``(*b, k, n)``, v ``(*b, r, n)``, T ``(*b, r, r)``; differentiable in all three."""
    if torch.is_complex(x) != torch.is_complex(v):
        common = torch.promote_types(x.dtype, v.dtype)
        x, v, t = x.to(common), v.to(common), t.to(common)
    if torch.compiler.is_compiling():
        return _plain(x, v, t)[0]
    backend.demand("householder_product", x, v, t)
    if backend.transforming():
        result: torch.Tensor = _Reflect.apply(x, v, t)
    else:
        result = _ReflectKeeping.apply(x, v, t)[0]
    return result


def _plain(x: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p = x @ v.mH
    w = p @ t.mT
    if x.ndim == 2 and v.ndim == 2:
        return torch.addmm(x, w, v, alpha=-1), p
    if x.ndim == w.ndim == v.ndim == 3 and x.shape[0] == w.shape[0] == v.shape[0]:
        return torch.baddbmm(x, w, v, alpha=-1), p
    return x - w @ v, p


def _gradients(x: Any, v: Any, t: Any, p: Any, g: Any, needed: Any) -> tuple[Any, Any, Any]:
    """Cotangents of x, v, T. With P = x v^H, W = P T^T, y = x - W v:

    W' = -g v^H,  P' = W' conj(T),  x' = g + P' v,  v' = -W^H g + P'^H x,  T' = W'^T conj(P).
    """
    with backend.full_precision(x.device):
        gw = -(g @ v.mH)
        gp = gw @ t.conj()
        gx = gv = gt = None
        if needed[0]:
            gx = torch.addmm(g, gp, v) if g.ndim == 2 and v.ndim == 2 else g + gp @ v
            gx = gx.sum_to_size(x.shape)
        if needed[1]:
            w = p @ t.mT
            gv = (gp.mH @ x - w.mH @ g).sum_to_size(v.shape)
        if needed[2]:
            gt = (gw.mT @ p.conj()).sum_to_size(t.shape)
    return gx, gv, gt


class _ReflectKeeping(torch.autograd.Function):
    """Plain reverse mode: keeps P = x v^H (r numbers a row) for the first backward pass."""

    @staticmethod
    def forward(x: Any, v: Any, t: Any) -> Any:
        with backend.full_precision(x.device):
            return _plain(x, v, t)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, g: Any, _: Any) -> Any:
        if g is None:
            return None, None, None
        x, v, t, p = ctx.saved_tensors
        return _gradients(x, v, t, x @ v.mH if torch.is_grad_enabled() else p, g, ctx.needs_input_grad)


class _Reflect(torch.autograd.Function):
    """The form for torch.func and forward-mode differentiation: saves its inputs only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any, v: Any, t: Any) -> Any:
        with backend.full_precision(x.device):
            return _plain(x, v, t)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, v, t = ctx.saved_tensors
        with backend.full_precision(x.device):
            p = x @ v.mH
        return _gradients(x, v, t, p, g, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dv: Any, dt: Any) -> Any:
        x, v, t = ctx.saved_tensors
        with backend.full_precision(x.device):
            p = x @ v.mH
            w = p @ t.mT
            dp = torch.zeros_like(p) if dx is None else dx @ v.mH
            dp = dp if dv is None else dp + x @ dv.mH
            dw = dp @ t.mT
            dw = dw if dt is None else dw + p @ dt.mT
            dy = -(dw @ v)
            dy = dy if dx is None else dy + dx
            return dy if dv is None else dy - w @ dv


# -- the common case: real reflections in one block, outside any transform -----------------------------------------

_CHUNK = 1 << 19  # numbers a pass over rows takes at once, so that they stay in the cache between its steps


def _one_real_block(x: torch.Tensor, v: torch.Tensor) -> bool:
    real = not v.is_complex() and not x.is_complex()
    return real and v.ndim == 2 and v.shape[0] <= block_of(v.shape[0], v.shape[1])


def _row_chunks(rows: int, n: int, device: torch.device) -> list[slice]:
    """Slices of rows; a GPU takes all at once: there each slice is launches of its own."""
    size = max(32, _CHUNK // max(1, n))
    if device.type != "cpu":
        return [slice(0, rows)]
    return [slice(k, k + size) for k in range(0, rows, size)] if rows * n > 2 * _CHUNK else [slice(0, rows)]


class _Rotate(torch.autograd.Function):
    """``x Q^T`` from rows x and vectors v together, with the gradient of v through T in closed form.

    ``T^-1 = M`` is the strictly upper triangle of ``v v^T`` plus half its diagonal, so with P, W, P' as above
    ``M' = -P'^T W`` and ``v' = P'^T x - W^T g + (K + K^T) v``, K the strictly upper triangle of M' plus half its
    diagonal: no operation on T is recorded. Rows go through in chunks; higher orders start from the inputs again.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, vectors: Any) -> Any:
        scale = _scale_of(vectors)
        v = vectors / scale
        t = wy_factor(v)
        p, y = x.new_empty(x.shape[0], v.shape[0]), torch.empty_like(x, memory_format=torch.contiguous_format)
        for c in _row_chunks(x.shape[0], x.shape[1], x.device):
            torch.mm(x[c], v.mT, out=p[c])
            torch.addmm(x[c], p[c] @ t.mT, v, alpha=-1, out=y[c])
        ctx.save_for_backward(x, vectors, scale, v, t, p)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, vectors, scale, v, t, p = ctx.saved_tensors
        with backend.full_precision(x.device):
            if torch.is_grad_enabled() or not backend.eager(g):
                return _rotate_gradients(x, vectors, g)
            gx = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
            gv, gm = torch.zeros_like(v), torch.zeros_like(t)
            for c in _row_chunks(x.shape[0], x.shape[1], x.device):
                gp = (g[c] @ v.mT) @ t  # -P'
                if gx is not None:
                    torch.addmm(g[c], gp, v, alpha=-1, out=gx[c])
                if ctx.needs_input_grad[1]:
                    w = p[c] @ t.mT
                    gv.addmm_(gp.mT, x[c], alpha=-1).addmm_(w.mT, g[c], alpha=-1)
                    gm.addmm_(gp.mT, w)
            return gx, gv.addmm_(_both_triangles(gm), v).div_(scale)


def _rotate_gradients(x: torch.Tensor, vectors: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same formulas as recorded operations."""
    v = normalised(vectors)
    t = wy_factor(v)
    w, gp = (x @ v.mT) @ t.mT, -((g @ v.mT) @ t)
    gv = gp.mT @ x - w.mT @ g + _both_triangles(-(gp.mT @ w)) @ v
    return g + gp @ v, gv / _scale_of(vectors)


def _both_triangles(gm: torch.Tensor) -> torch.Tensor:
    """``K + K^T`` for the strictly upper triangle plus half the diagonal of M'."""
    upper = torch.triu(gm)
    half = upper - torch.diag_embed(torch.diagonal(upper, dim1=-2, dim2=-1) / 2)
    return half + half.mT
