"""The factors of a butterfly of rotations merged into one block a span, and the gradient, in float32.

Factor f of m acts on bit f: on pairs of groups of h = b / 2 entries whose numbers differ in that bit (m = 1: on h = b
entries each); its blocks stand in ascending order of the lower group. On a span of g = b 2^(m-1) entries

    C = F_{m-1} ... F_1 F_0   (reverse: F_0 F_1 ... F_{m-1}),
    F_f' = (the factors after f)^T C' (the factors before f)^T,  of which only the entries of its blocks are formed.

``compose_walk`` multiplies the factors from the left, one after the other, on some columns of one span: an entry needs
only b entries of the product before, which pass through memory (the cache) between two factors. It gives C from the
identity, and the first half of every F_f' from C' with the factors transposed in the opposite order;
``compose_pairs`` sums the products of the two halves. The rotations themselves come from ``cayley``. One program for a
span, with all inverses and g x g products of tiles, needed a stack for g = 64 (docs/kernels.md).
"""

from typing import Any

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config
from structmat.kernels.launch import allocate, configured

__all__ = ["backward", "forward"]


@triton.jit
def _place(i, bit, h):  # type: ignore[no-untyped-def]
    """The block of factor ``bit`` that entry i of a span belongs to, its place there, and where its block begins."""
    group = i // h
    low = group & ((1 << bit) - 1)
    block = ((group >> (bit + 1)) << bit) | low
    return block, ((group >> bit) & 1) * h + i % h, (((group >> (bit + 1)) << (bit + 1)) | low) * h


@triton.jit
def compose_walk(  # type: ignore[no-untyped-def]
    r, start, slots, c, n, h, g, many, spans, factors, reverse, steps, given, r_out, r_in, s_span, s_row, s_col,
    G: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``slots (factors, spans, g, g)``: first the start (``given``: that matrix, else I), then after each of ``steps``
    factors; the last of ``factors`` goes to c. BN columns of one span; r, slots and c are contiguous, and ``r_out,
    r_in`` exchanged transpose the blocks."""
    across = tl.cdiv(g, BN)
    span = (tl.program_id(0) // across).to(tl.int64)
    row = tl.arange(0, G)[:, None]
    col = (tl.program_id(0) % across) * BN + tl.arange(0, BN)[None, :]
    inside = (row < g) & (col < g)
    begin = tl.load(start + span * s_span + row * s_row + col * s_col, mask=inside & (given > 0), other=0).to(ACC)
    begin += tl.where((row == col) & (given == 0), 1.0, 0.0).to(ACC)
    tl.store(slots + span * g * g + row * g + col, begin.to(slots.dtype.element_ty), mask=inside)
    for step in range(0, steps):
        bit = step + reverse * (factors - 1 - 2 * step)
        block, place, first = _place(row, bit, h)
        weights = r + (span + bit * spans) * many * n * n + block * n * n + place * r_out
        before = slots + (span + step * spans) * g * g
        tl.debug_barrier()  # what one thread stored another reads
        total = tl.zeros((G, BN), ACC)
        for e in range(0, n):
            source = first + (e // h) * (h << bit) + e % h
            weight = tl.load(weights + e * r_in, mask=row < g, other=0).to(ACC)
            total += weight * tl.load(before + source * g + col, mask=inside, other=0).to(ACC)
        after = total.to(c.dtype.element_ty)
        following = slots + (span + (step + 1) * spans) * g * g
        tl.store(following + row * g + col, after, mask=inside & (step + 1 < factors))
        tl.store(c + span * g * g + row * g + col, after, mask=inside & (step + 1 == factors))


@triton.jit
def compose_pairs(  # type: ignore[no-untyped-def]
    slots, halves, out, n, h, g, many, spans, factors, reverse, G: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The cotangent of one factor's blocks on one span: ``sum_w halves[(j, p), w] slots[(j, q), w]`` for the entries
    p, q of its block j; ``halves`` begins with the last factor; all are contiguous."""
    span = (tl.program_id(0) % spans).to(tl.int64)
    step = tl.program_id(0) // spans
    bit = step + reverse * (factors - 1 - 2 * step)
    row = tl.arange(0, G)[:, None]
    block, place, first = _place(row, bit, h)
    left = halves + (span + (factors - 1 - step) * spans) * g * g
    right = slots + (span + step * spans) * g * g
    for e in range(0, n):
        source = first + (e // h) * (h << bit) + e % h
        total = tl.zeros((G, BN), ACC)
        for begin in range(0, g, BN):
            col = begin + tl.arange(0, BN)[None, :]
            inside = (row < g) & (col < g)
            a = tl.load(left + row * g + col, mask=inside, other=0).to(ACC)
            total += a * tl.load(right + source * g + col, mask=inside, other=0).to(ACC)
        where = out + (span + bit * spans) * many * n * n + block * n * n + place * n + e
        tl.store(where, tl.sum(total, 1)[:, None].to(out.dtype.element_ty), mask=row < g)


def _options(kernel: str, r: torch.Tensor, config: Config | str | None) -> dict[str, Any]:
    m, _, b, _ = r.shape
    size, options = configured(kernel, r.dtype, b << (m - 1), config)
    return {"G": size, **{key: options[key] for key in ("BN", "ACC", "num_warps", "num_stages")}}


def _sizes(r: torch.Tensor, reverse: bool) -> tuple[int, ...]:
    """n, h, g, many, spans, factors, reverse."""
    m, blocks, b, _ = r.shape
    many = 1 << (m - 1)
    return b, b if m == 1 else b // 2, b * many, many, blocks // many, m, int(reverse)


def _walk(
    r: torch.Tensor, start: torch.Tensor | None, c: torch.Tensor | None, reverse: bool, config: Config | str | None
) -> torch.Tensor:
    """The slots; with c all factors, else all but the last one walked, their blocks transposed."""
    n, h, g, many, spans, m, turn = _sizes(r, reverse)
    slots = allocate(m, spans, g, g, dtype=r.dtype, device=r.device)
    options = _options("compose_walk", r, config)
    grid = (spans * triton.cdiv(g, options["BN"]),)
    within = (n, 1) if c is not None else (1, n)
    strides = (0, 0, 0) if start is None else start.stride()
    with torch.cuda.device_of(r):
        compose_walk[grid](
            r, slots if start is None else start, slots, slots if c is None else c, n, h, g, many, spans, m, turn,
            m if c is not None else m - 1, int(start is not None), *within, *strides, **options,
        )  # fmt: skip
    return slots


def forward(r: torch.Tensor, reverse: bool, config: Config | str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """C ``(spans, g, g)`` of blocks R ``(m, d / b, b, b)``, contiguous, and what the gradient needs of the way there,
    ``(m, spans, g, g)``."""
    _, _, g, _, spans, _, _ = _sizes(r, reverse)
    c = allocate(spans, g, g, dtype=r.dtype, device=r.device)
    return c, _walk(r, None, c, reverse, config)


def backward(
    gc: torch.Tensor, r: torch.Tensor, slots: torch.Tensor, reverse: bool, config: Config | str | None = None,
    pairs: Config | str | None = None,
) -> torch.Tensor:  # fmt: skip
    """The cotangent of R from that of C, of any strides."""
    sizes = _sizes(r, reverse)
    halves = _walk(r, gc, None, not reverse, config)
    out = allocate(*r.shape, dtype=r.dtype, device=r.device)
    with torch.cuda.device_of(r):
        compose_pairs[(sizes[4] * sizes[5],)](slots, halves, out, *sizes, **_options("compose_pairs", r, pairs))
    return out
