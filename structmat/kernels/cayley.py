"""Cayley's map of many small skew-symmetric matrices, one program a matrix, in float32; orders up to 64.

    R = 2 M - I,  M = (I + K)^-1,        K' = -2 M^T R' M^T.

The inverse is Gauss and Jordan's, in registers, with rows exchanged for the largest pivot: without that, entries of
size 1e3 and an odd order left an error of 0.03. One step of Newton and Schulz ends it, as in ``functional.orthogonal``.
M is kept for the backward pass: ``(R + I) / 2`` would lose the digits that R cannot hold where K is large. At order 64
the elimination fits the registers, and the products after it do not: they are a launch of their own, for some columns
at a time.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured

__all__ = ["backward", "forward"]


@triton.jit
def _multiply(a, b, P: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """``a b`` of tiles P x P and P x BN; orders below 16 by sums."""
    if P < 16:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@triton.jit
def cayley_forward(k, r, kept, n, k_matrix, k_row, k_col, P: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """R and M of the matrix ``program_id(0)``, of order 64 only M; both are contiguous, k has any strides."""
    which = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, P)[:, None]
    j = tl.arange(0, P)[None, :]
    inside = (i < n) & (j < n)
    eye = tl.where(i == j, 1.0, 0.0).to(ACC)
    a = tl.load(k + which * k_matrix + i * k_row + j * k_col, mask=inside, other=0).to(ACC) + eye
    order = i
    for step in range(P):
        column = tl.sum(tl.where(j == step, a, 0.0), 1)[:, None]
        size = tl.where(i >= step, tl.abs(column), -1.0)
        best = tl.min(tl.where(size == tl.max(size), i, P))
        row = tl.sum(tl.where(i == best, a, 0.0), 0)[None, :]
        top = tl.sum(tl.where(i == step, a, 0.0), 0)[None, :]
        pivot = tl.sum(tl.where(i == best, column, 0.0))
        column = tl.where(i == best, tl.sum(tl.where(i == step, column, 0.0)), column)
        a = tl.where(i == best, top, a)
        first, second = tl.sum(tl.where(i == best, order, 0)), tl.sum(tl.where(i == step, order, 0))
        order = tl.where(i == best, second, order)
        order = tl.where(i == step, first, order)
        scaled = row / pivot
        others = tl.where(j == step, -column / pivot, a - column * scaled)
        a = tl.where(i == step, tl.where(j == step, 1.0 / pivot, scaled), others)
    if P < 64:
        inverse = _multiply(a, tl.where(order == j, 1.0, 0.0).to(ACC), P, ACC)  # columns back in their places
        rotation = 2.0 * inverse - eye
        defect = _multiply(tl.trans(rotation), rotation, P, ACC) - eye
        rotation = rotation - 0.5 * _multiply(rotation, defect, P, ACC)
        where = which * n * n + i * n + j
        tl.store(r + where, rotation.to(r.dtype.element_ty), mask=inside)
        tl.store(kept + where, inverse.to(r.dtype.element_ty), mask=inside)
    else:
        place = tl.sum(tl.where(i == j, order, 0), 0)[None, :]
        tl.store(kept + which * n * n + i * n + place, a.to(kept.dtype.element_ty), mask=(i < n) & (place < n))


@triton.jit
def cayley_polish(kept, r, n, P: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """BN columns of R from M, polished: ``R - R (R^T R - I) / 2`` for ``R = 2 M - I``."""
    which = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, P)[:, None]
    j = tl.arange(0, P)[None, :]
    c = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    inverse = kept + which * n * n
    whole = 2.0 * tl.load(inverse + i * n + j, mask=(i < n) & (j < n), other=0).to(ACC)
    whole -= tl.where((i == j) & (i < n), 1.0, 0.0).to(ACC)
    eye = tl.where((i == c) & (i < n), 1.0, 0.0).to(ACC)
    mine = 2.0 * tl.load(inverse + i * n + c, mask=(i < n) & (c < n), other=0).to(ACC) - eye
    defect = _multiply(tl.trans(whole), mine, P, ACC) - eye
    mine -= 0.5 * _multiply(whole, defect, P, ACC)
    tl.store(r + which * n * n + i * n + c, mine.to(r.dtype.element_ty), mask=(i < n) & (c < n))


@triton.jit
def cayley_backward(  # type: ignore[no-untyped-def]
    kept, g, out, n, g_matrix, g_row, g_col, P: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """BN columns of ``-2 M^T G M^T``; M and out are contiguous, g has any strides."""
    which = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, P)[:, None]
    j = tl.arange(0, P)[None, :]
    c = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    inside = (i < n) & (j < n)
    some = (i < n) & (c < n)
    turned = tl.load(kept + which * n * n + j * n + i, mask=inside, other=0).to(ACC)
    columns = tl.load(kept + which * n * n + c * n + i, mask=some, other=0).to(ACC)
    grad = tl.load(g + which * g_matrix + i * g_row + j * g_col, mask=inside, other=0).to(ACC)
    result = -2.0 * _multiply(turned, _multiply(grad, columns, P, ACC), P, ACC)
    tl.store(out + which * n * n + i * n + c, result.to(out.dtype.element_ty), mask=some)


def _options(kernel: str, like: torch.Tensor, config: Config | str | None) -> dict[str, Any]:
    size, options = configured(kernel, like.dtype, like.shape[-1], config)
    return {"P": size, **{key: options[key] for key in ("BN", "ACC", "num_warps", "num_stages") if key in options}}


def forward(k: torch.Tensor, config: Config | str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """R and M ``(m, n, n)`` for skew-symmetric K ``(m, n, n)`` of any strides, n from 2 to 64."""
    r = allocate(*k.shape, dtype=k.dtype, device=k.device)
    kept = allocate(*k.shape, dtype=k.dtype, device=k.device)
    m, n = k.shape[:2]
    with torch.cuda.device_of(k):
        options = _options("cayley_forward", k, config)
        cayley_forward[(m,)](k, r, kept, n, *k.stride(), **options)
        if options["P"] >= 64:
            options = _options("cayley_polish", k, None)
            cayley_polish[(m, triton.cdiv(n, options["BN"]))](kept, r, n, **options)
    return r, kept


def backward(kept: torch.Tensor, g: torch.Tensor, config: Config | str | None = None) -> torch.Tensor:
    """The cotangent of K from M, contiguous, and the cotangent of R."""
    out = allocate(*kept.shape, dtype=kept.dtype, device=kept.device)
    m, n = kept.shape[:2]
    with torch.cuda.device_of(kept):
        options = _options("cayley_backward", kept, config)
        cayley_backward[(m, triton.cdiv(n, options["BN"]))](kept, g, out, n, *g.stride(), **options)
    return out
