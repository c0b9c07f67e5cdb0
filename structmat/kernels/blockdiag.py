"""Rows times a block-diagonal matrix whose blocks act on neighbouring entries, and both gradients in one pass.

    y[:, k q + o] = sum_i W[k, o, i] x[:, k p + i],      x' = y' W,      W'[k] = y'_k^T x_k.

A program takes a tile of rows through BN outputs (backward: inputs) of one block: all of them, unless the block is too
large for the registers. Neighbouring programs take neighbouring blocks of the same rows. The gradient of the blocks is
summed over parts of the rows, and the parts are added in order.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured, product, splits

__all__ = ["backward", "cut", "forward"]


@triton.jit
def blockdiag_forward(  # type: ignore[no-untyped-def]
    x, w, y, rows, blocks, p, q, x_row, x_col, y_row, w_block, w_out, w_in, BM: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows through BN outputs of one block; y is contiguous."""
    across = tl.cdiv(q, BN)
    which = tl.program_id(0)
    block = (which // across % blocks).to(tl.int64)
    r = (which // across // blocks).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    i, o = tl.arange(0, P), (which % across) * BN + tl.arange(0, BN)
    a = tl.load(x + r * x_row + (block * p + i[None, :]) * x_col, mask=(r < rows) & (i[None, :] < p), other=0)
    inside = (i[:, None] < p) & (o[None, :] < q)
    b = tl.load(w + block * w_block + i[:, None] * w_in + o[None, :] * w_out, mask=inside, other=0)
    c = product(a, b, tl.zeros((BM, BN), ACC), UP, ACC, PRECISION)
    where = y + r * y_row + block * q + o[None, :]
    tl.store(where, c.to(y.dtype.element_ty), mask=(r < rows) & (o[None, :] < q))


@triton.jit
def blockdiag_backward(  # type: ignore[no-untyped-def]
    x, g, w, gx, parts, rows, per, blocks, p, q, x_row, x_col, g_row, g_col, gx_row, w_block, w_out, w_in,
    BM: tl.constexpr, BN: tl.constexpr, Q: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows of one part and BN inputs of one block: their gradient, and their share of the block's; gx and parts
    contiguous."""
    across = tl.cdiv(p, BN)
    block = (tl.program_id(0) // across).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    i, o = (tl.program_id(0) % across) * BN + tl.arange(0, BN), tl.arange(0, Q)
    inside = (o[:, None] < q) & (i[None, :] < p)
    b = tl.load(w + block * w_block + o[:, None] * w_out + i[None, :] * w_in, mask=inside, other=0)
    total = tl.zeros((Q, BN), ACC)
    for start in range(0, per, BM):
        r = part * per + start + tl.arange(0, BM)[:, None]
        a = tl.load(x + r * x_row + (block * p + i[None, :]) * x_col, mask=(r < rows) & (i[None, :] < p), other=0)
        d = tl.load(g + r * g_row + (block * q + o[None, :]) * g_col, mask=(r < rows) & (o[None, :] < q), other=0)
        c = product(d, b, tl.zeros((BM, BN), ACC), UP, ACC, PRECISION)
        gx_at = gx + r * gx_row + block * p + i[None, :]
        tl.store(gx_at, c.to(gx.dtype.element_ty), mask=(r < rows) & (i[None, :] < p))
        total = product(tl.trans(d), a, total, UP, ACC, PRECISION)
    parts_at = parts + ((part * blocks + block) * q + o[:, None]) * p + i[None, :]
    tl.store(parts_at, total, mask=inside)


def cut(whole: int, shared: int, size: int, options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The tile of the side of a block that every program takes whole, and the options with that of the side that they
    share."""
    smallest = min(16, size)
    most = max(smallest, triton.next_power_of_2(shared))
    tiles = {**options, "BN": min(options.get("BN", size), most)}
    return max(smallest, triton.next_power_of_2(whole)), tiles


def forward(x: torch.Tensor, w: torch.Tensor, config: Config | str | None = None) -> torch.Tensor:
    """Rows ``(rows, k p)`` through blocks ``(k, q, p)``, both of any strides and one dtype: ``(rows, k q)``."""
    (rows, _), (k, q, p) = x.shape, w.shape
    y = allocate(rows, k * q, dtype=x.dtype, device=x.device)
    padded, options = cut(p, q, *configured("blockdiag_forward", x.dtype, max(p, q), config))
    grid = (triton.cdiv(rows, options["BM"]) * k * triton.cdiv(q, options["BN"]),)
    strides = (*x.stride(), k * q, *w.stride())
    with torch.cuda.device_of(x):
        blockdiag_forward[grid](x, w, y, rows, k, p, q, *strides, P=padded, **options)
    return y


def backward(
    x: torch.Tensor, g: torch.Tensor, w: torch.Tensor, config: Config | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cotangents of the rows (in their dtype) and of the blocks (in the dtype of the sums)."""
    (rows, _), (k, q, p) = x.shape, w.shape
    padded, options = cut(q, p, *configured("blockdiag_backward", x.dtype, max(p, q), config))
    across = k * triton.cdiv(p, options["BN"])
    count, per = splits(rows, options["BM"], across)
    gx = allocate(rows, k * p, dtype=x.dtype, device=x.device)
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    parts = allocate(count, k, q, p, dtype=sums, device=x.device)
    strides = (*x.stride(), *g.stride(), k * p, *w.stride())
    with torch.cuda.device_of(x):
        blockdiag_backward[(across, count)](x, g, w, gx, parts, rows, per, k, p, q, *strides, Q=padded, **options)
    return gx, parts.sum(0)
