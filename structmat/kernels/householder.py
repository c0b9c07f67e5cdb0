"""Products of real reflections in compact WY form: T from the vectors as rounded, rows through them, their gradients.

    T = (I + D U)^-1 D,  D = diag(2 / v_i^T v_i),  U the strictly upper triangle of V V^T,
    y = x - (x V^T) T^T V,        x' = g - (g V^T) T V:  one kernel for both, T with its strides exchanged,
    V' = -P'^T x - W^T g (+ the part through T),  W = x V^T T^T,  P' = (g V^T) T.

``wy_gram`` sums V V^T over parts of the columns, ``wy_inverse`` solves for T by rows from the last, as accurate as back
substitution, and ends with one step of Newton. ``householder_apply`` reads a tile of rows twice, the second time from
the cache; ``householder_vectors`` sums over parts of the rows. All sums are float32 at least.
"""

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured, product, splits

__all__ = ["apply", "factor", "vectors_gradient"]

_CHUNK = 512  # columns of V that one program of wy_gram sums over


@triton.jit
def wy_gram(  # type: ignore[no-untyped-def]
    v, parts, n, r, per, v_row, v_col, BD: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``V V^T`` over ``per`` columns, into its part ``(R, R)``."""
    which = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, R)
    total = tl.zeros((R, R), ACC)
    for start in range(0, per, BD):
        d = which * per + start + tl.arange(0, BD)
        inside = (k[:, None] < r) & (d[None, :] < n)
        a = tl.load(v + k[:, None] * v_row + d[None, :] * v_col, mask=inside, other=0)
        total = product(a, tl.trans(a), total, UP, ACC, PRECISION)
    tl.store(parts + which * R * R + k[:, None] * R + k[None, :], total)


@triton.jit
def wy_inverse(parts, t, count, r, R: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """T ``(r, r)`` from the parts of the Gram matrix; one program."""
    i = tl.arange(0, R)[:, None]
    j = tl.arange(0, R)[None, :]
    gram = tl.zeros((R, R), ACC)
    for part in range(0, count):
        gram += tl.load(parts + part * R * R + i * R + j)
    eye = tl.where(i == j, 1.0, 0.0).to(ACC)
    column = tl.sum(tl.where(i == j, gram, 0.0), 1)[:, None]
    row = tl.sum(tl.where(i == j, gram, 0.0), 0)[None, :]
    tau_column = 2.0 / tl.where(column == 0, 1.0, column)
    tau_row = 2.0 / tl.where(row == 0, 1.0, row)
    inverse = eye
    for back in range(1, R):
        at = R - 1 - back
        below = tl.sum(tl.where((j == at) & (i > at), gram, 0.0), 1)[:, None]  # row `at` of U, by symmetry
        scale = tl.sum(tl.where(i == at, tau_column, 0.0))
        inverse = tl.where(i == at, inverse - scale * tl.sum(below * inverse, 0)[None, :], inverse)
    unit = eye + tl.where(i < j, tau_column * gram, 0.0)
    exact: tl.constexpr = "ieee" if R < 64 else "tf32x3"  # float32 arithmetic of order 64 does not fit the registers
    defect = eye - tl.dot(unit, inverse, input_precision=exact, out_dtype=ACC)
    inverse += tl.dot(inverse, defect, input_precision=exact, out_dtype=ACC)
    tl.store(t + i * r + j, inverse * tau_row, mask=(i < r) & (j < r))


@triton.jit
def householder_apply(  # type: ignore[no-untyped-def]
    x, v, t, y, w, rows, n, r, x_row, x_col, v_row, v_col, t_out, t_in, y_row, BM: tl.constexpr, BD: tl.constexpr,
    R: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x - w V`` and ``w = x V^T T^T`` for a tile of rows; y and w are contiguous."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    k = tl.arange(0, R)
    c = tl.arange(0, BD)
    p = tl.zeros((BM, R), ACC)
    for start in range(0, n, BD):
        d = start + c
        x_at = x + m * x_row + d[None, :].to(tl.int64) * x_col  # stored by columns these pass 2^31 too
        a = tl.load(x_at, mask=(m < rows) & (d[None, :] < n), other=0)
        b = tl.load(v + k[None, :] * v_row + d[:, None] * v_col, mask=(k[None, :] < r) & (d[:, None] < n), other=0)
        p = product(a, b, p, UP, ACC, PRECISION)
    inside = (k[:, None] < r) & (k[None, :] < r)
    turned = tl.load(t + k[:, None] * t_in + k[None, :] * t_out, mask=inside, other=0)
    weights = tl.dot(p, turned, input_precision="tf32x3", out_dtype=ACC)
    tl.store(w + m * r + k[None, :], weights, mask=(m < rows) & (k[None, :] < r))
    weights = weights.to(x.dtype.element_ty)
    for start in range(0, n, BD):
        d = start + c
        x_at = x + m * x_row + d[None, :].to(tl.int64) * x_col
        a = tl.load(x_at, mask=(m < rows) & (d[None, :] < n), other=0)
        b = tl.load(v + k[:, None] * v_row + d[None, :] * v_col, mask=(k[:, None] < r) & (d[None, :] < n), other=0)
        e = a.to(ACC) - product(weights, b, tl.zeros((BM, BD), ACC), UP, ACC, PRECISION)
        tl.store(y + m * y_row + d[None, :], e.to(y.dtype.element_ty), mask=(m < rows) & (d[None, :] < n))


@triton.jit
def householder_vectors(  # type: ignore[no-untyped-def]
    x, g, w, s, parts, rows, per, n, r, x_row, x_col, g_row, g_col, BM: tl.constexpr, BD: tl.constexpr,
    R: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``-s^T x - w^T g`` over the rows of one part, BD of its columns; w and s ``(rows, r)`` contiguous."""
    d = (tl.program_id(0) * BD + tl.arange(0, BD)).to(tl.int64)[None, :]
    part = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, R)
    total = tl.zeros((R, BD), ACC)
    for start in range(0, per, BM):
        m = part * per + start + tl.arange(0, BM)
        inside = (m[:, None] < rows) & (d < n)
        a = tl.load(x + m[:, None] * x_row + d * x_col, mask=inside, other=0)
        b = tl.load(g + m[:, None] * g_row + d * g_col, mask=inside, other=0)
        among = (k[:, None] < r) & (m[None, :] < rows)
        among_at = m[None, :] * r + k[:, None]
        total = product(tl.load(s + among_at, mask=among, other=0).to(a.dtype), a, total, UP, ACC, PRECISION)
        total = product(tl.load(w + among_at, mask=among, other=0).to(a.dtype), b, total, UP, ACC, PRECISION)
    parts_at = parts + (part * r + k[:, None]) * n + d
    tl.store(parts_at, -total, mask=(k[:, None] < r) & (d < n))


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def factor(v: torch.Tensor, config: Config | str | None = None, inverse: Config | str | None = None) -> torch.Tensor:
    """T ``(r, r)`` of vectors ``(r, n)`` of any strides, in float32 (float64 for float64)."""
    r, n = v.shape
    size, options = configured("wy_gram", v.dtype, r, config)
    count = triton.cdiv(n, _CHUNK)
    parts = allocate(count, size, size, dtype=_sums(v.dtype), device=v.device)
    t = allocate(r, r, dtype=parts.dtype, device=v.device)
    _, solve = configured("wy_inverse", parts.dtype, size, inverse)
    solve = {key: solve[key] for key in ("ACC", "num_warps", "num_stages")}
    with torch.cuda.device_of(v):
        wy_gram[(count,)](v, parts, n, r, _CHUNK, *v.stride(), R=size, **options)
        wy_inverse[(1,)](parts, t, count, r, R=size, **solve)
    return t


def apply(
    x: torch.Tensor, v: torch.Tensor, t: torch.Tensor, config: Config | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x - w V`` and ``w = x V^T T^T`` for rows ``(rows, n)``; x and v of one dtype, all of any strides."""
    (rows, n), r = x.shape, v.shape[0]
    size, options = configured("householder_apply", x.dtype, r, config)
    y = allocate(rows, n, dtype=x.dtype, device=x.device)
    w = allocate(rows, r, dtype=t.dtype, device=x.device)
    strides = (*x.stride(), *v.stride(), *t.stride(), n)
    with torch.cuda.device_of(x):
        householder_apply[(triton.cdiv(rows, options["BM"]),)](x, v, t, y, w, rows, n, r, *strides, R=size, **options)
    return y, w


def vectors_gradient(
    x: torch.Tensor, g: torch.Tensor, w: torch.Tensor, s: torch.Tensor, config: Config | str | None = None
) -> torch.Tensor:
    """``-s^T x - w^T g``, ``(r, n)`` in the dtype of the sums; w and s ``(rows, r)`` contiguous."""
    (rows, n), r = x.shape, w.shape[1]
    size, options = configured("householder_vectors", x.dtype, r, config)
    across = triton.cdiv(n, options["BD"])
    count, per = splits(rows, options["BM"], across)
    parts = allocate(count, r, n, dtype=w.dtype, device=x.device)
    with torch.cuda.device_of(x):
        householder_vectors[(across, count)](
            x, g, w, s, parts, rows, per, n, r, *x.stride(), *g.stride(), R=size, **options
        )
    return parts.sum(0)
