"""Cayley's map of many small skew-symmetric matrices, one program a matrix, in float32.

    R = 2 M - I,  M = (I + K)^-1,        K' = -2 M^T R' M^T.

The inverse is Gauss and Jordan's, in registers, with rows exchanged for the largest pivot: without that, entries of
size 1e3 and an odd order left an error of 0.03. One step of Newton and Schulz ends it, as in ``functional.orthogonal``.
M is kept for the backward pass: ``(R + I) / 2`` would lose the digits that R cannot hold where K is large.
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
    """``a b`` of two P x P tiles; orders below 16 by sums, order 64 on tensor cores (in float32
    arithmetic it does not fit the registers)."""
    if P < 16:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        return tl.dot(a, b, input_precision="ieee" if P < 64 else "tf32x3", out_dtype=ACC)


@triton.jit
def cayley_forward(k, r, kept, n, k_matrix, k_row, k_col, P: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """R and M of the matrix ``program_id(0)``; both are contiguous, k has any strides."""
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
    inverse = _multiply(a, tl.where(order == j, 1.0, 0.0).to(ACC), P, ACC)  # columns back in their places
    rotation = 2.0 * inverse - eye
    defect = _multiply(tl.trans(rotation), rotation, P, ACC) - eye
    rotation = rotation - 0.5 * _multiply(rotation, defect, P, ACC)
    where = which * n * n + i * n + j
    tl.store(r + where, rotation.to(r.dtype.element_ty), mask=inside)
    tl.store(kept + where, inverse.to(r.dtype.element_ty), mask=inside)


@triton.jit
def cayley_backward(kept, g, out, n, g_matrix, g_row, g_col, P: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """``-2 M^T G M^T``; M and out are contiguous, g has any strides."""
    which = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, P)[:, None]
    j = tl.arange(0, P)[None, :]
    inside = (i < n) & (j < n)
    turned = tl.load(kept + which * n * n + j * n + i, mask=inside, other=0).to(ACC)
    grad = tl.load(g + which * g_matrix + i * g_row + j * g_col, mask=inside, other=0).to(ACC)
    result = -2.0 * _multiply(turned, _multiply(grad, turned, P, ACC), P, ACC)
    tl.store(out + which * n * n + i * n + j, result.to(out.dtype.element_ty), mask=inside)


def _options(kernel: str, like: torch.Tensor, config: Config | str | None) -> dict[str, Any]:
    size, options = configured(kernel, like.dtype, like.shape[-1], config)
    return {"P": size, **{key: options[key] for key in ("ACC", "num_warps", "num_stages")}}


def forward(k: torch.Tensor, config: Config | str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """R and M ``(m, n, n)`` for skew-symmetric K ``(m, n, n)`` of any strides, n from 2 to 64."""
    r = allocate(*k.shape, dtype=k.dtype, device=k.device)
    kept = allocate(*k.shape, dtype=k.dtype, device=k.device)
    with torch.cuda.device_of(k):
        cayley_forward[(k.shape[0],)](k, r, kept, k.shape[1], *k.stride(), **_options("cayley_forward", k, config))
    return r, kept


def backward(kept: torch.Tensor, g: torch.Tensor, config: Config | str | None = None) -> torch.Tensor:
    """The cotangent of K from M and the cotangent of R."""
    out = allocate(*kept.shape, dtype=kept.dtype, device=kept.device)
    with torch.cuda.device_of(kept):
        options = _options("cayley_backward", kept, config)
        cayley_backward[(kept.shape[0],)](kept, g, out, kept.shape[1], *g.stride(), **options)
    return out
