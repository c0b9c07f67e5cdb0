"""Rows times blocks that act on entries a stride apart: one pass of a merged butterfly on its leading or middle digits.

    y[:, (u q + o) s + l] = sum_i W[u s + l, o, i] x[:, (u p + i) s + l],        l < s the lane, u the outer index.

A tile is (rows, i, lanes) with neighbouring lanes in neighbouring places of memory; the product runs over a batch of
lanes. The gradients are those of ``blockdiag``, in one pass, with the sum over rows in parts; BN is the same as there.
"""

import torch
import triton
import triton.language as tl

from structmat.kernels.blockdiag import cut
from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured, product, splits

__all__ = ["backward", "forward"]


@triton.jit
def strided_forward(  # type: ignore[no-untyped-def]
    x, w, y, rows, lanes, outer, p, q, x_row, x_col, y_row, w_block, w_out, w_in, BM: tl.constexpr, BL: tl.constexpr,
    P: tl.constexpr, BN: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows through BN outputs of BL neighbouring blocks; y is contiguous."""
    across = tl.cdiv(q, BN)
    which = tl.program_id(0) // across
    groups = tl.cdiv(lanes, BL)
    lane = (which % groups) * BL + tl.arange(0, BL)
    u = ((which // groups) % outer).to(tl.int64)
    r = (which // groups // outer).to(tl.int64) * BM + tl.arange(0, BM)[:, None, None]
    i, o = tl.arange(0, P), (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    live = (r < rows) & (lane[None, None, :] < lanes)
    where = x + r * x_row + ((u * p + i[None, :, None]) * lanes + lane[None, None, :]) * x_col
    a = tl.permute(tl.load(where, mask=live & (i[None, :, None] < p), other=0), (2, 0, 1))
    inside = (lane[:, None, None] < lanes) & (i[None, :, None] < p) & (o[None, None, :] < q)
    where = w + (u * lanes + lane[:, None, None]) * w_block + i[None, :, None] * w_in + o[None, None, :] * w_out
    b = tl.load(where, mask=inside, other=0)
    c = tl.permute(product(a, b, tl.zeros((BL, BM, BN), ACC), UP, ACC, PRECISION), (1, 2, 0))
    where = y + r * y_row + (u * q + o[None, :, None]) * lanes + lane[None, None, :]
    tl.store(where, c.to(y.dtype.element_ty), mask=live & (o[None, :, None] < q))


@triton.jit
def strided_backward(  # type: ignore[no-untyped-def]
    x, g, w, gx, parts, rows, per, lanes, outer, p, q, x_row, x_col, g_row, g_col, gx_row, w_block, w_out, w_in,
    BM: tl.constexpr, BL: tl.constexpr, BN: tl.constexpr, Q: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows of one part and BN inputs of BL neighbouring blocks: their gradient, and their share of the blocks'."""
    groups, across = tl.cdiv(lanes, BL), tl.cdiv(p, BN)
    which = tl.program_id(0) // across
    lane = (which % groups) * BL + tl.arange(0, BL)
    u = (which // groups).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    i, o = (tl.program_id(0) % across) * BN + tl.arange(0, BN), tl.arange(0, Q)
    inside = (lane[:, None, None] < lanes) & (o[None, :, None] < q) & (i[None, None, :] < p)
    w_at = w + (u * lanes + lane[:, None, None]) * w_block + o[None, :, None] * w_out + i[None, None, :] * w_in
    b = tl.load(w_at, mask=inside, other=0)
    total = tl.zeros((BL, Q, BN), ACC)
    x_from, gx_from, g_from = x + u * p * lanes * x_col, gx + u * p * lanes, g + u * q * lanes * g_col
    enter = i[None, :, None] * lanes + lane[None, None, :]  # within one u these fit 32 bits
    leave = o[None, :, None] * lanes + lane[None, None, :]
    for start in range(0, per, BM):
        r = part * per + start + tl.arange(0, BM)[:, None, None]
        live = (r < rows) & (lane[None, None, :] < lanes)
        x_at = x_from + r * x_row + enter.to(tl.int64) * x_col
        a = tl.permute(tl.load(x_at, mask=live & (i[None, :, None] < p), other=0), (2, 0, 1))
        g_at = g_from + r * g_row + leave.to(tl.int64) * g_col
        d = tl.load(g_at, mask=live & (o[None, :, None] < q), other=0)
        c = product(tl.permute(d, (2, 0, 1)), b, tl.zeros((BL, BM, BN), ACC), UP, ACC, PRECISION)
        gx_at = gx_from + r * gx_row + enter
        tl.store(gx_at, tl.permute(c, (1, 2, 0)).to(gx.dtype.element_ty), mask=live & (i[None, :, None] < p))
        total = product(tl.permute(d, (2, 1, 0)), a, total, UP, ACC, PRECISION)
    parts_at = (
        parts + (((part * outer + u) * lanes + lane[:, None, None]) * q + o[None, :, None]) * p + i[None, None, :]
    )
    tl.store(parts_at, total, mask=inside)


def forward(x: torch.Tensor, w: torch.Tensor, lanes: int, config: Config | str | None = None) -> torch.Tensor:
    """Rows ``(rows, u p s)`` through blocks ``(u s, q, p)``, s = ``lanes``, of any strides and one dtype."""
    (rows, _), (k, q, p) = x.shape, w.shape
    outer = k // lanes
    y = allocate(rows, k * q, dtype=x.dtype, device=x.device)
    padded, options = cut(p, q, *configured("strided_forward", x.dtype, max(p, q), config))
    grid = (
        triton.cdiv(rows, options["BM"]) * outer * triton.cdiv(lanes, options["BL"]) * triton.cdiv(q, options["BN"]),
    )
    strides = (*x.stride(), k * q, *w.stride())
    with torch.cuda.device_of(x):
        strided_forward[grid](x, w, y, rows, lanes, outer, p, q, *strides, P=padded, **options)
    return y


def backward(
    x: torch.Tensor, g: torch.Tensor, w: torch.Tensor, lanes: int, config: Config | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cotangents of the rows (in their dtype) and of the blocks (in the dtype of the sums)."""
    (rows, _), (k, q, p) = x.shape, w.shape
    outer = k // lanes
    padded, options = cut(q, p, *configured("strided_backward", x.dtype, max(p, q), config))
    across = outer * triton.cdiv(lanes, options["BL"]) * triton.cdiv(p, options["BN"])
    count, per = splits(rows, options["BM"], across)
    gx = allocate(rows, k * p, dtype=x.dtype, device=x.device)
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    parts = allocate(count, k, q, p, dtype=sums, device=x.device)
    strides = (*x.stride(), *g.stride(), k * p, *w.stride())
    with torch.cuda.device_of(x):
        strided_backward[(across, count)](
            x, g, w, gx, parts, rows, per, lanes, outer, p, q, *strides, Q=padded, **options
        )
    return gx, parts.sum(0)
