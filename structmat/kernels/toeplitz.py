"""Toeplitz matrices ``A[i, j] = t[i - j + n - 1]``: their entries, sums along diagonals, and products on the fly.

    y[r, o] = sum_k t[base + sign (o - k)] x[r, k]:     sign 1, base n - 1: y = x A^T;  sign -1: x = y A,
    t'[k] = sum_r sum_{i - j = k - n + 1} g[r, i] x[r, j].

``toeplitz_form`` writes the entries, ``toeplitz_diagsum`` is its transpose. ``toeplitz_product`` never holds A: a tile
of it is gathered from t, which stays in the cache; the sum over k is cut into parts, so that few rows fill the device.
The gradient t' never holds ``g^T x`` either: its tiles on one block diagonal are summed in registers
(``toeplitz_tiles``, a matrix product without waste), and the diagonals of these few tiles by ``toeplitz_diagsum``. No
atomics: every part has a place of its own, and the parts are added in order.
"""

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured, product, splits

__all__ = ["apply", "correlate", "diagsum", "form"]


@triton.jit
def toeplitz_form(t, out, m, n, t_batch, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tile of the entries of one matrix; the entries of t are neighbours, out ``(batch, m, n)`` is contiguous."""
    across, down = tl.cdiv(n, BN), tl.cdiv(m, BM)
    batch = (tl.program_id(0) // (across * down)).to(tl.int64)
    tile = tl.program_id(0) % (across * down)
    i = (tile // across) * BM + tl.arange(0, BM)[:, None]
    j = (tile % across) * BN + tl.arange(0, BN)[None, :]
    inside = (i < m) & (j < n)
    value = tl.load(t + batch * t_batch + (i - j + n - 1), mask=inside, other=0)
    tl.store(out + (batch * m + i) * n + j, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def toeplitz_diagsum(  # type: ignore[no-untyped-def]
    g, parts, length, shift, per, height, width, size, first, many, lead, g_batch, g_block, g_row, g_col,
    BM: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of the entries (a, b) with ``a - b + size D = k - shift`` over ``per`` values of a, BK diagonals k.

    D numbers ``many`` blocks from ``first`` on, each ``height x width``: a row a meets each diagonal in one of them.
    """
    across = tl.cdiv(length, BK)
    batch = (tl.program_id(0) // across).to(tl.int64)
    k = (tl.program_id(0) % across) * BK + tl.arange(0, BK)[None, :]
    part = tl.program_id(1)
    away = k - shift + lead * size  # not negative, so that the division rounds down
    block = away // size - lead
    rest = away % size
    total = tl.zeros((BM, BK), ACC)
    for start in range(0, per, BM):
        a = part * per + start + tl.arange(0, BM)[:, None]
        which = tl.where(a >= rest, block, block + 1) - first
        b = tl.where(a >= rest, a - rest, a - rest + size)
        inside = (a < height) & (b < width) & (which >= 0) & (which < many) & (k < length)
        where = batch * g_batch + which.to(tl.int64) * g_block + a.to(tl.int64) * g_row + b.to(tl.int64) * g_col
        total += tl.load(g + where, mask=inside, other=0).to(ACC)
    sums = tl.sum(total, 0)[None, :]
    where = (part * tl.num_programs(0) // across + batch) * length + k
    tl.store(parts + where, sums, mask=k < length)


@triton.jit
def toeplitz_product(  # type: ignore[no-untyped-def]
    x, t, parts, rows, per, ins, outs, base, sign, many, x_batch, x_row, x_col, t_batch, BM: tl.constexpr,
    BO: tl.constexpr, BK: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of ``per`` values of k in a tile of y; the entries of t are neighbours, parts ``(parts, many, rows,
    outs)`` is contiguous."""
    across, down = tl.cdiv(outs, BO), tl.cdiv(rows, BM)
    batch = (tl.program_id(0) // (across * down)).to(tl.int64)
    tile = tl.program_id(0) % (across * down)
    part = tl.program_id(1).to(tl.int64)
    r = (tile // across).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    o = (tile % across) * BO + tl.arange(0, BO)[None, :]
    x_at = x + batch * x_batch + r * x_row
    t_at = t + batch * t_batch + base
    total = tl.zeros((BM, BO), ACC)
    for start in range(0, per, BK):
        k = tl.program_id(1) * per + start + tl.arange(0, BK)
        a = tl.load(x_at + k[None, :].to(tl.int64) * x_col, mask=(r < rows) & (k[None, :] < ins), other=0)
        inside = (k[:, None] < ins) & (o < outs)
        b = tl.load(t_at + (o - k[:, None]) * sign, mask=inside, other=0)
        total = product(a, b, total, UP, ACC, PRECISION)
    where = parts + ((part * many + batch) * rows + r) * outs + o
    tl.store(where, total, mask=(r < rows) & (o < outs))


@triton.jit
def toeplitz_tiles(  # type: ignore[no-untyped-def]
    x, g, parts, rows, per, ins, outs, many, x_batch, x_row, x_col, g_batch, g_row, g_col, BM: tl.constexpr,
    BD: tl.constexpr, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum of the tiles ``(K + D, K)`` of ``g^T x``, for one block diagonal D: of its steps (each K, BM rows at a
    time) ``per``; parts ``(parts, many, diagonals, BD, BD)`` is contiguous."""
    wide, high = tl.cdiv(ins, BD), tl.cdiv(outs, BD)
    diagonals = wide + high - 1
    batch = (tl.program_id(0) // diagonals).to(tl.int64)
    which = tl.program_id(0) % diagonals
    d = which - (wide - 1)
    part = tl.program_id(1)
    low = tl.maximum(0, -d)
    strips = tl.cdiv(rows, BM)
    end = tl.minimum(part * per + per, (tl.minimum(wide, high - d) - low) * strips)
    c = tl.arange(0, BD)[None, :]
    total = tl.zeros((BD, BD), ACC)
    for step in range(part * per, end):
        block = low + step // strips
        r = (step % strips).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
        j, i = block * BD + c, (block + d) * BD + c
        a = tl.load(x + batch * x_batch + r * x_row + j.to(tl.int64) * x_col, mask=(r < rows) & (j < ins), other=0)
        b = tl.load(g + batch * g_batch + r * g_row + i.to(tl.int64) * g_col, mask=(r < rows) & (i < outs), other=0)
        total = product(tl.trans(b), a, total, UP, ACC, PRECISION)
    at = (part.to(tl.int64) * many + batch) * diagonals + which
    tl.store(parts + (at * BD + tl.arange(0, BD)[:, None]) * BD + c, total)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _neighbours(t: torch.Tensor) -> torch.Tensor:
    """Diagonals whose entries follow each other: so few numbers that a copy costs nothing."""
    return t if t.stride(-1) == 1 else t.contiguous()


def form(t: torch.Tensor, n: int, config: Config | str | None = None) -> torch.Tensor:
    """The entries ``(batch, m, n)`` from diagonals ``(batch, m + n - 1)`` of any strides, in their dtype."""
    many, m = t.shape[0], t.shape[1] - n + 1
    t = _neighbours(t)
    out = allocate(many, m, n, dtype=t.dtype, device=t.device)
    _, options = configured("toeplitz_form", t.dtype, max(m, n), config)
    options = {key: options[key] for key in ("BM", "BN", "num_warps", "num_stages")}
    grid = (many * triton.cdiv(m, options["BM"]) * triton.cdiv(n, options["BN"]),)
    with torch.cuda.device_of(t):
        toeplitz_form[grid](t, out, m, n, t.stride(0), **options)
    return out


def diagsum(g: torch.Tensor, config: Config | str | None = None) -> torch.Tensor:
    """The sums along the diagonals of ``(batch, m, n)``, of any strides: ``(batch, m + n - 1)`` in the dtype of the
    sums."""
    _, m, n = g.shape
    return _along(g[:, None], m + n, 0, m + n - 1, n - 1, config)


def _along(
    g: torch.Tensor, size: int, first: int, length: int, shift: int, config: Config | str | None
) -> torch.Tensor:
    """Diagonals of blocks ``(batch, D, height, width)``, block D beginning ``size D`` further down, D from ``first``
    on."""
    many, blocks, height, width = g.shape
    _, options = configured("toeplitz_diagsum", g.dtype, min(height, width), config)
    options = {key: options[key] for key in ("BM", "BK", "ACC", "num_warps", "num_stages")}
    across = triton.cdiv(length, options["BK"]) * many
    count, per = splits(height, options["BM"], across)
    parts = allocate(count, many, length, dtype=_sums(g.dtype), device=g.device)
    lead = 1 - first
    with torch.cuda.device_of(g):
        toeplitz_diagsum[(across, count)](
            g, parts, length, shift, per, height, width, size, first, blocks, lead, *g.stride(), **options
        )
    return parts.sum(0)


def apply(
    x: torch.Tensor, t: torch.Tensor, base: int, sign: int, outs: int, config: Config | str | None = None
) -> torch.Tensor:
    """``y[b, r, o] = sum_k t[b, base + sign (o - k)] x[b, r, k]``: x ``(batch, rows, k)``, t ``(batch, ...)`` of one
    dtype and any strides (an expanded batch of t is read in place) -> ``(batch, rows, outs)`` in that dtype."""
    many, rows, ins = x.shape
    _, options = configured("toeplitz_product", x.dtype, max(ins, outs), config)
    across = many * triton.cdiv(rows, options["BM"]) * triton.cdiv(outs, options["BO"])
    count, per = splits(ins, 4 * options["BK"], across)  # a part is four tiles at least
    parts = allocate(count, many, rows, outs, dtype=_sums(x.dtype), device=x.device)
    t = _neighbours(t)
    with torch.cuda.device_of(x):
        toeplitz_product[(across, count)](
            x, t, parts, rows, per, ins, outs, base, sign, many, *x.stride(), t.stride(0), **options
        )
    return parts.sum(0).to(x.dtype)


def correlate(
    x: torch.Tensor, g: torch.Tensor, config: Config | str | None = None, along: Config | str | None = None
) -> torch.Tensor:
    """``t'`` ``(batch, m + n - 1)`` in the dtype of the sums from x ``(batch, rows, n)`` and g ``(batch, rows, m)`` of
    one dtype and any strides."""
    (many, rows, n), m = x.shape, g.shape[2]
    _, options = configured("toeplitz_tiles", x.dtype, max(m, n), config)
    size = options["BD"]
    wide, high = triton.cdiv(n, size), triton.cdiv(m, size)
    diagonals = wide + high - 1
    steps = wide * triton.cdiv(rows, options["BM"])  # of the longest diagonal; half of the programs have none left
    count, per = splits(steps, 4, triton.cdiv(diagonals * many, 2))
    parts = allocate(count, many, diagonals, size, size, dtype=_sums(x.dtype), device=x.device)
    with torch.cuda.device_of(x):
        toeplitz_tiles[(diagonals * many, count)](
            x, g, parts, rows, per, n, m, many, *x.stride(), *g.stride(), **options
        )
    return _along(parts.sum(0), size, 1 - wide, m + n - 1, n - 1, along)
