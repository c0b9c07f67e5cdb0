"""Rows through a butterfly: the rule that says which factors to merge, and the passes over the rows.

A pass gathers the rows as ``(rest, p, rows)`` with the rows innermost and multiplies each block by its ``p x rows``
matrix. In this layout the trailing digits of x are a strided view of the rows, and the output of one pass the input of
the next, so a pair of passes (trailing digits, then leading digits) moves the data once, in one transposition at the
end. Rows go through in chunks that stay in the cache, and the backward pass computes the inputs of the later passes
again in place of storing them.

**The cost rule.** Consecutive factors are cut into groups, each merged into one pass; the cut of least estimated time
is found by dynamic programming over all cuts,

    time = sum over groups of  start + rest * (block + rows * (p q add + (p + q) move))  +  merging its factors,

with constants measured on one core (over 21 shapes and numbers of rows the cut chosen takes 2 % longer than the fastest
of all cuts on average, 21 % at worst). Few rows go factor by factor (nothing is merged for one row), many
rows in one or two passes, and a small matrix as one dense block. A merged factor is never larger than the input, the
output, or the dense limit squared, unless one of its factors is.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch

from structmat import backend
from structmat.functional import butterfly as fb
from structmat.functional.butterfly import Chain, Digits, Group, Step
from structmat.functional.launched import passes, passes_served

__all__ = [
    "Program",
    "butterfly_rows",
    "describe",
    "kept_rows",
    "merged_blocks",
    "program",
    "program_of",
    "rows_of",
    "solve_rows",
]

_CHUNK = 1 << 18  # numbers of a chunk of rows: what passes read and write stays in the cache
# Seconds, forward and backward together, on one core in float32: a pass, a block of it, one of its multiply-adds, a
# number it reads or writes; a merge, and one of its multiplications.
_START, _BLOCK, _ADD, _MOVE, _MERGE, _MULTIPLY = 3e-5, 1e-7, 8e-11, 5e-9, 1.4e-4, 4e-9
_COMPILED_ROWS = 256  # under torch.compile one graph serves all numbers of rows: merged as for these


def _pass_seconds(step: Step, rows: int) -> float:
    p, q, rest = step.columns, step.rows, step.rest
    return _START + rest * (_BLOCK + rows * (p * q * _ADD + (p + q) * _MOVE))


def _table(links: Chain, rows: int, most: int) -> tuple[float, Digits]:
    """Least seconds and the ends of the groups."""
    steps = [fb.sorting(step)[1] for step in links.steps]
    best: list[tuple[float, Digits]] = [(0.0, ())]
    found: list[list[float]] = []
    for start, first in enumerate(steps):
        step, merging, costs = first, 0.0, [_pass_seconds(first, rows)]
        numel = first.rest * first.rows * first.columns
        for after in steps[start + 1 :]:
            numel = max(numel, after.rest * after.rows * after.columns)
            how = fb.equation(step, after)
            step = how.step
            if step.rest * step.rows * step.columns > max(most, numel):
                break
            merging += _MERGE + how.work * _MULTIPLY
            costs.append(merging + _pass_seconds(step, rows))
        found.append(costs)
    for end in range(1, len(steps) + 1):
        options = [
            (best[start][0] + found[start][end - start - 1], (*best[start][1], end))
            for start in range(end)
            if end - start <= len(found[start])
        ]
        best.append(min(options))
    return best[-1]


class Program(NamedTuple):
    """What is fixed before any entry is known: the groups of factors that become one pass each."""

    links: Chain
    parts: tuple[Group, ...]
    steps: tuple[Step, ...]
    seconds: float


def program(digits: Digits, axes: tuple[Digits, ...], sizes: Digits, rows: int) -> Program:
    """The groups for this many rows (rounded up to a power of two), and the estimate behind them."""
    return _constant_program(fb.plain(digits), fb.plain(axes), fb.plain(sizes), rows)


@fb.constant
def _constant_program(digits: Digits, axes: tuple[Digits, ...], sizes: Digits, rows: int) -> Program:
    return _program(fb.cached_chain(digits, axes, sizes), 1 << max(0, min(rows, 1 << 14) - 1).bit_length())


@functools.lru_cache(maxsize=4096)
def _program(links: Chain, rows: int) -> Program:
    most = max(rows * max(links.columns, links.rows), backend.dense_limit() ** 2)
    seconds, ends = _table(links, rows, most)
    return program_of(links, ends, seconds)


def program_of(links: Chain, ends: Digits, seconds: float = 0.0) -> Program:
    """The program with these groups."""
    parts = tuple([fb.group(links, start, end) for start, end in itertools.pairwise((0, *ends))])
    return Program(links, parts, tuple([part.step for part in parts]), seconds)


def butterfly_rows(
    x: torch.Tensor,
    blocks: tuple[torch.Tensor, ...],
    digits: Digits,
    axes: tuple[Digits, ...],
    order: Digits | None = None,
) -> torch.Tensor:
    """``x A^T`` for rows x ``(*batch, rows, n)`` or one row, blocks ``(*b, rest, q, p)`` (``rest`` or 1: shared).

    ``order``: the output digits are written in this order at the end. Half and bfloat16 are carried out in float32.
    Cost: ``2 R n q`` flops a pass for R rows; see the module for how factors become passes.
    """
    out = torch.promote_types(x.dtype, blocks[0].dtype)
    lead = math.prod(blocks[0].shape[:-3]) if blocks[0].ndim > 3 else 1
    plan = program(digits, axes, tuple([w.shape[-2] for w in blocks]), rows_of(x, lead))
    return kept_rows(x, merged_blocks(blocks, plan), plan, fb.plain(order), out)


def rows_of(x: torch.Tensor, lead: int) -> int:
    """How many rows meet one of ``lead`` matrices, as the cost rule counts them."""
    return _COMPILED_ROWS if torch.compiler.is_compiling() else max(1, x.numel() // max(1, x.shape[-1] * lead))


def merged_blocks(blocks: tuple[torch.Tensor, ...], plan: Program) -> tuple[torch.Tensor, ...]:
    """The blocks of each group as one, in the dtype computed in."""
    with backend.full_precision(blocks[0].device):
        wide = tuple([w.to(backend.compute_dtype(w.dtype)) for w in blocks])
        return tuple([fb.merged(wide, part) for part in plan.parts])


def kept_rows(
    x: torch.Tensor, pieces: tuple[torch.Tensor, ...], plan: Program, order: Digits | None, out: torch.dtype
) -> torch.Tensor:
    """``butterfly_rows`` from the blocks that ``merged_blocks`` gave."""
    wide = backend.compute_dtype(out)
    with backend.full_precision(x.device):
        pieces, steps = tuple([w.to(wide) for w in pieces]), plan.steps
        batched = max([w.ndim for w in pieces]) > 3
        plain = batched or torch.compiler.is_compiling() or backend.transforming() or not backend.eager(x, *pieces)
        if not batched and 0 not in x.shape and passes_served(x, out, steps):
            flat = passes(x.to(out).reshape(-1, x.shape[-1]), steps, order, pieces)
        elif plain or x.numel() == 0:
            return _plain(x.to(wide), pieces, steps, order).to(out)
        else:
            flat = _Passes.apply(x.to(wide).reshape(-1, x.shape[-1]), steps, order, *pieces)
        return flat.reshape(*x.shape[:-1], flat.shape[-1]).to(out)


def _plain(
    x: torch.Tensor, pieces: tuple[torch.Tensor, ...], steps: tuple[Step, ...], order: Digits | None
) -> torch.Tensor:
    """The formula in recorded operations: any batch, every transform."""
    lone = x.ndim == 1
    y = x[None] if lone else x
    lead = torch.broadcast_shapes(y.shape[:-2], *(w.shape[:-3] for w in pieces))
    k, fixed = y.shape[-2], len(lead) + 1
    y = y.expand(*lead, k, y.shape[-1])
    for w, step in zip(pieces, steps, strict=True):
        order_in = (*step.others, *step.axes)
        y = y.reshape(*lead, k, *step.before).permute(*range(fixed), *(fixed + a for a in order_in))
        y = y.reshape(*lead, k, step.rest, step.columns).transpose(-3, -2) @ w.mT
        y = y.transpose(-3, -2).reshape(*lead, k, *(step.after[a] for a in order_in))
        y = y.permute(*range(fixed), *(fixed + order_in.index(a) for a in range(len(order_in))))
    if order is not None:
        y = y.reshape(*lead, k, *steps[-1].after).permute(*range(fixed), *(fixed + a for a in order))
    y = y.reshape(*lead, k, math.prod(steps[-1].after))
    return y[..., 0, :] if lone else y


# -- the passes, forward and backward, without recorded operations ---------------------------------------------------


def _columns(x: torch.Tensor, digits: Digits, axes: Digits) -> torch.Tensor:
    """Rows ``(r, n)`` as ``(digits..., r)``: a view where the first pass takes the trailing digits, else transposed."""
    trailing = axes == tuple(range(len(digits) - len(axes), len(digits)))
    return (x.t() if trailing else x.t().contiguous()).reshape(*digits, x.shape[0])


def _gathered(y: torch.Tensor, step: Step, digits: Digits) -> torch.Tensor:
    """``(digits..., r)`` as ``(rest, p, r)``; a copy only where the digits acted on are not next to each other."""
    r = y.shape[-1]
    return y.permute(*step.others, *step.axes, len(digits)).reshape(step.rest, -1, r)


def _multiplied(w: torch.Tensor, x: torch.Tensor, step: Step, digits: Digits) -> torch.Tensor:
    """Blocks times ``(rest, p, r)``, as ``(digits..., r)``; ``digits`` are the sizes after the product."""
    r, axes, others = x.shape[-1], step.axes, step.others
    if axes == tuple(range(len(axes))) and w.shape[0] <= max(64, w.shape[1]):  # leading digits: written in their places
        y = x.new_empty(w.shape[1], w.shape[0], r)
        torch.bmm(w, x, out=y.transpose(0, 1))
        return y.reshape(*digits, r)
    y = torch.bmm(w, x).reshape(*(digits[a] for a in (*others, *axes)), r)
    places = (*others, *axes)
    return y.permute(*(places.index(a) for a in range(len(digits))), len(digits))


class _Passes(torch.autograd.Function):
    """``x A^T`` from merged blocks without a batch. Saves its inputs; higher orders start from the formula again."""

    @staticmethod
    def forward(ctx: Any, x: Any, steps: Any, order: Any, *pieces: Any) -> Any:
        ctx.save_for_backward(x, *pieces)
        ctx.steps, ctx.order = steps, order
        y = x.new_empty(x.shape[0], math.prod(steps[-1].after))
        for c in _chunks(x, y.shape[1]):
            z = _columns(x[c], steps[0].before, steps[0].axes)
            for w, step in zip(pieces, steps, strict=True):
                z = _multiplied(w, _gathered(z, step, step.before), step, step.after)
            z = z if order is None else z.permute(*order, len(order))
            y[c].copy_(z.reshape(y.shape[1], -1).t())
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, *pieces = ctx.saved_tensors
        steps, order = ctx.steps, ctx.order
        if torch.is_grad_enabled() or not backend.eager(g):
            gx, *gw = _recorded_gradients(x, tuple(pieces), steps, order, g)
        else:
            with backend.full_precision(x.device):
                gx, gw = _chunked_gradients(x, pieces, steps, order, g, ctx.needs_input_grad)
        return gx, None, None, *gw


def _chunks(x: torch.Tensor, width: int) -> list[slice]:
    """Slices of rows; a GPU takes all at once."""
    rows, size = x.shape[0], max(64, _CHUNK // max(1, x.shape[1], width))
    if x.device.type != "cpu":
        return [slice(0, rows)]
    return [slice(k, k + size) for k in range(0, rows, size)] if rows > 2 * size else [slice(0, rows)]


def _chunked_gradients(x: Any, pieces: Any, steps: Any, order: Any, g: Any, needed: Any) -> tuple[Any, list[Any]]:
    """``W' = G X^H`` and ``X' = W^H G``, pass by pass from the last."""
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
    gw: list[Any] = [None] * len(pieces)
    first = next(k for k in range(len(steps) + 1) if needed[0] or k == len(steps) or needed[3 + k])
    last = steps[-1].after
    straight = order is None or order == tuple(range(len(last)))
    for c in _chunks(x, g.shape[1]):
        inputs, z = [], _columns(x[c], steps[0].before, steps[0].axes)
        for k, (w, step) in enumerate(zip(pieces, steps, strict=True)):
            inputs.append(_gathered(z, step, step.before))
            if k + 1 < len(steps):
                z = _multiplied(w, inputs[-1], step, step.after)
        if straight:
            z = _columns(g[c], last, steps[-1].axes)
        else:
            z = _columns(g[c], tuple(last[a] for a in order), ())
            z = z.permute(*(order.index(a) for a in range(len(last))), len(last))
        for k in range(len(steps) - 1, first - 1, -1):
            step = steps[k]
            of_y = _gathered(z, step, step.after)
            if needed[3 + k]:
                adjoint = inputs[k].mH
                gw[k] = torch.bmm(of_y, adjoint) if gw[k] is None else gw[k].baddbmm_(of_y, adjoint)
            if k > first or needed[0]:
                z = _multiplied(pieces[k].mH, of_y, step, step.before)
        if gx is not None:
            gx[c].copy_(z.reshape(x.shape[1], -1).t())
    return gx, gw


def _recorded_gradients(x: Any, pieces: Any, steps: Any, order: Any, g: Any) -> Any:
    """The same gradients as recorded operations: those of the plain formula."""
    with torch.enable_grad():
        return torch.func.vjp(lambda v, *ws: _plain(v, ws, steps, order), x, *pieces)[1](g)


def solve_rows(y: torch.Tensor, blocks: tuple[torch.Tensor, ...], links: Chain, order: Digits | None) -> torch.Tensor:
    """x with ``x A^T = y``: factor by factor from the last, each by LU of its blocks; every q = p."""
    lone = y.ndim == 1
    x = y[None] if lone else y
    lead = torch.broadcast_shapes(x.shape[:-2], *(w.shape[:-3] for w in blocks))
    k, fixed, count = x.shape[-2], len(lead) + 1, len(links.digits)
    x = x.expand(*lead, k, x.shape[-1])
    if order is not None:
        x = x.reshape(*lead, k, *(links.outputs[a] for a in order))
        x = x.permute(*range(fixed), *(fixed + order.index(a) for a in range(count)))
    for block, given in zip(reversed(blocks), reversed(links.steps), strict=True):
        how, step = fb.sorting(given)
        w = fb.in_order(block, how, step.rest)
        places = (*step.others, *step.axes)
        x = x.reshape(*lead, k, *step.after).permute(*range(fixed), *(fixed + a for a in places))
        x = x.reshape(*lead, k, step.rest, step.rows).movedim(-3, -1)  # (*lead, rest, q, rows)
        x = torch.linalg.solve_ex(w.expand(*lead, *w.shape[-3:]), x).result.movedim(-1, -3)
        x = x.reshape(*lead, k, *(step.before[a] for a in places))
        x = x.permute(*range(fixed), *(fixed + places.index(a) for a in range(count)))
    x = x.reshape(*lead, k, links.columns)
    return x[..., 0, :] if lone else x


def describe(plan: Program) -> str:
    """The groups in words: ``5 factors merged to 32 blocks 32 x 32; ...``."""
    shown = []
    for part in plan.parts:
        many = f"{len(part.sorts)} factors merged to " if part.equations else ""
        shown.append(f"{many}{part.step.rest} blocks {part.step.rows} x {part.step.columns}")
    return "; ".join(shown)
