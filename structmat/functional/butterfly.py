"""Butterfly factors: what each one touches, and how consecutive ones are merged into one.

The index of a vector of length ``n = p_1 ... p_L`` is written in mixed radix, the most significant digit first. A
factor acts on the digits named by ``axes``: for every value of the remaining digits one small block,

    y[rest, o] = sum_i W[rest, o, i] x[rest, i],      W (*b, rest, q, p),  p the product of the digits acted on,

and a butterfly is a chain of factors, the first listed acting first. With one factor a digit there is exactly one path
from input i to output o, ``A[o, i] = prod_l W_l[o_<l, i_>l, o_l, i_l]``.

Two consecutive factors on digits S and T are one factor on the union of S and T. Merging is the main algorithm: it
trades many passes over the rows, each with blocks too small for a matrix product, for one or two passes with blocks
that suit one. Its own cost does not depend on the number of rows.

Source: T. Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations, 2019, section 3.1;
T. Dao et al., Monarch: expressive structured matrices for efficient and accurate training, 2022, section 3.1.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

__all__ = [
    "Chain",
    "Digits",
    "Group",
    "Step",
    "cached_chain",
    "chain",
    "constant",
    "equation",
    "group",
    "in_order",
    "merged",
    "plain",
    "relabelled",
    "relabelling",
    "relabelling_sign",
    "resized",
    "sorting",
    "step_of",
]

Digits = tuple[int, ...]
F = TypeVar("F", bound=Callable[..., Any])
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def constant(function: F) -> F:
    """torch.compile calls the function while it traces, in place of tracing it: its arguments are numbers."""
    marked: F = torch.compiler.assume_constant_result(function)
    return marked


def plain(value: Any) -> Any:
    """Numbers and tuples of them, as numbers also while torch.compile traces (which may hold them as symbols)."""
    if not torch.compiler.is_compiling() or value is None:
        return value
    return tuple([plain(v) for v in value]) if isinstance(value, tuple) else operator.index(value)


class Step(NamedTuple):
    """One factor: the digits it acts on, the sizes of all digits before and after it; and what follows from these:
    the other digits, and the sizes ``(rest, rows, columns)`` of its blocks."""

    axes: Digits
    before: Digits
    after: Digits
    others: Digits
    rest: int
    rows: int
    columns: int


@functools.lru_cache(maxsize=4096)
def step_of(axes: Digits, before: Digits, after: Digits) -> Step:
    """The step with all that follows from its digits."""
    others = tuple([k for k in range(len(before)) if k not in axes])
    rest, rows, columns = (
        math.prod([size[k] for k in w]) for size, w in ((before, others), (after, axes), (before, axes))
    )
    return Step(axes, before, after, others, rest, rows, columns)


class Chain:
    """The factors of a butterfly, in the order in which they act; compared by identity, so that plans are found
    fast."""

    def __init__(self, steps: tuple[Step, ...]):
        self.steps = steps
        self.columns = math.prod(steps[0].before)
        self.rows = math.prod(steps[-1].after)
        self.digits = steps[0].before
        self.outputs = steps[-1].after


def chain(digits: Digits, axes: tuple[Digits, ...], sizes: Digits) -> Chain:
    """The chain of factors with ``sizes[l]`` rows a block; a factor that changes the size of its digits changes the
    first one it lists."""
    return _constant_chain(plain(digits), plain(axes), plain(sizes))


@constant
def _constant_chain(digits: Digits, axes: tuple[Digits, ...], sizes: Digits) -> Chain:
    return cached_chain(digits, axes, sizes)


@functools.lru_cache(maxsize=4096)
def cached_chain(digits: Digits, axes: tuple[Digits, ...], sizes: Digits) -> Chain:
    """The same for functions that do not trace themselves."""
    steps = []
    for where, q in zip(axes, sizes, strict=True):
        after = resized(digits, where, q)
        steps.append(step_of(where, digits, after))
        digits = after
    return Chain(tuple(steps))


def resized(digits: Digits, where: Digits, rows: int) -> Digits:
    """The digits after a factor with ``rows`` rows a block. Raises ValueError if no integer size of the first digit
    it lists gives that number."""
    others = math.prod([digits[a] for a in where[1:]])
    if not where and rows != 1:
        raise ValueError(f"a factor on no digit has blocks 1 x 1, not {rows} rows")
    if rows % others:
        raise ValueError(f"{rows} rows a block are no multiple of {others}, the size of the digits after the first")
    return tuple([rows // others if where and k == where[0] else d for k, d in enumerate(digits)])


class Sorting(NamedTuple):
    """How the entries of a block are put in ascending order of its digits: its sizes digit by digit, and the order."""

    sizes: Digits
    places: Digits


def sorting(step: Step) -> tuple[Sorting | None, Step]:
    """The same factor with its axes ascending, and how its blocks change (None: not at all)."""
    k = len(step.axes)
    order = sorted(range(k), key=step.axes.__getitem__)
    if order == list(range(k)):
        return None, step
    sizes = tuple([s[a] for s in (step.after, step.before) for a in step.axes])
    places = (*order, *[k + a for a in order])
    return Sorting(sizes, places), step_of(tuple(sorted(step.axes)), step.before, step.after)


def in_order(block: torch.Tensor, how: Sorting | None, rest: int) -> torch.Tensor:
    """The block with its digits ascending; a shared one (``rest`` of size 1) expanded."""
    if block.shape[-3] != rest:
        block = block.expand(*block.shape[:-3], rest, *block.shape[-2:])
    if how is None:
        return block
    lead = block.ndim - 2
    wide = block.reshape(*block.shape[:-2], *how.sizes)
    return wide.permute(*range(lead), *[lead + k for k in how.places]).reshape(block.shape)


class Equation(NamedTuple):
    """How two factors multiply: their blocks seen by runs of digits, and the letters of ``torch.einsum``."""

    second: Digits
    first: Digits
    formula: str
    shape: Digits
    letters: int
    step: Step
    work: int


@functools.lru_cache(maxsize=4096)
def equation(first: Step, second: Step) -> Equation:
    """Neighbouring digits that play the same part are one index, so that the tensors have few dimensions.

    A digit that only ``first`` touches passes through ``second`` as part of its rest, by its output; a digit that only
    ``second`` touches passes through ``first`` by its input; a digit both touch is summed over.
    """
    letters = iter(_LETTERS)
    parts: dict[str, list[tuple[str, int]]] = {k: [] for k in ("r1", "o1", "i1", "r2", "o2", "i2", "r", "o", "i")}
    work = 1
    places = range(len(first.before))
    for (one, two), run in itertools.groupby(places, key=lambda k: (k in first.axes, k in second.axes)):
        digits = list(run)
        enter, middle, leave = (
            math.prod(sizes[k] for k in digits) for sizes in (first.before, first.after, second.after)
        )
        i, o, m = (next(letters), enter), (next(letters), leave), (next(letters), middle)
        work *= enter * leave * middle if one and two else enter * leave if one or two else enter
        if one and two:
            pieces = {"o1": m, "i1": i, "o2": o, "i2": m, "o": o, "i": i}
        elif one:
            pieces = {"o1": o, "i1": i, "r2": o, "o": o, "i": i}
        elif two:
            pieces = {"r1": i, "o2": o, "i2": i, "o": o, "i": i}
        else:
            pieces = {"r1": i, "r2": i, "r": i}
        for name, letter in pieces.items():
            parts[name].append(letter)

    def sizes(*names: str) -> Digits:
        return tuple(size for name in names for _, size in parts[name])

    def index(*names: str) -> str:
        return "..." + "".join(sign for name in names for sign, _ in parts[name])

    formula = f"{index('r2', 'o2', 'i2')},{index('r1', 'o1', 'i1')}->{index('r', 'o', 'i')}"
    step = step_of(tuple(sorted({*first.axes, *second.axes})), first.before, second.after)
    shape = (step.rest, step.rows, step.columns)
    count = len(formula.rpartition("...")[2])
    return Equation(sizes("r2", "o2", "i2"), sizes("r1", "o1", "i1"), formula, shape, count, step, work)


def merge(first: torch.Tensor, second: torch.Tensor, how: Equation) -> torch.Tensor:
    """One factor out of two, ``second`` acting after ``first``; axes ascending. Differentiable, with batches."""
    left = second.reshape(*second.shape[:-3], *how.second)
    right = first.reshape(*first.shape[:-3], *how.first)
    product = torch.einsum(how.formula, left, right)
    return product.reshape(*product.shape[: product.ndim - how.letters], *how.shape)


class Group(NamedTuple):
    """Consecutive factors from ``start`` on as one: how each is sorted, and how they merge."""

    start: int
    sorts: tuple[Sorting | None, ...]
    rests: Digits
    equations: tuple[Equation, ...]
    step: Step


@functools.lru_cache(maxsize=4096)
def group(links: Chain, start: int, end: int) -> Group:
    """The factors from ``start`` to ``end`` as one."""
    found = [sorting(step) for step in links.steps[start:end]]
    step, equations = found[0][1], []
    for _, after in found[1:]:
        equations.append(equation(step, after))
        step = equations[-1].step
    rests = tuple([after.rest for _, after in found])
    return Group(start, tuple([how for how, _ in found]), rests, tuple(equations), step)


def merged(blocks: tuple[torch.Tensor, ...], part: Group) -> torch.Tensor:
    """The blocks of a group as those of one factor, out of the blocks of all factors of the chain."""
    result = in_order(blocks[part.start], part.sorts[0], part.rests[0])
    for k, how in enumerate(part.equations):
        result = merge(result, in_order(blocks[part.start + k + 1], part.sorts[k + 1], part.rests[k + 1]), how)
    return result


class Relabelling(NamedTuple):
    """A chain with its digits at other positions: the digits, the axes, and for each factor the sizes of its remaining
    digits and their new order."""

    digits: Digits
    axes: tuple[Digits, ...]
    sizes: tuple[Digits, ...]
    orders: tuple[Digits, ...]


def relabelling(digits: Digits, axes: tuple[Digits, ...], rows: Digits, place: Digits) -> Relabelling:
    """The chain when digit k is written at position ``place[k]``; ``rows`` as in ``chain``."""
    return _constant_relabelling(plain(digits), plain(axes), plain(rows), plain(place))


@constant
def _constant_relabelling(digits: Digits, axes: tuple[Digits, ...], rows: Digits, place: Digits) -> Relabelling:
    steps = cached_chain(digits, axes, rows).steps
    back = sorted(range(len(place)), key=place.__getitem__)  # the digit written at each position
    moved = tuple([tuple([place[a] for a in where]) for where in axes])
    sizes, orders = [], []
    for step, where in zip(steps, moved, strict=True):
        sizes.append(tuple([step.before[k] for k in step.others]))
        orders.append(tuple([step.others.index(back[p]) for p in range(len(place)) if p not in where]))
    return Relabelling(tuple([digits[k] for k in back]), moved, tuple(sizes), tuple(orders))


def relabelled(blocks: tuple[torch.Tensor, ...], how: Relabelling) -> tuple[torch.Tensor, ...]:
    """The blocks of the relabelled chain: only the order of ``rest`` changes."""
    found = []
    for block, sizes, order in zip(blocks, how.sizes, how.orders, strict=True):
        if order != tuple(range(len(order))) and block.shape[-3] != 1:
            lead, count = block.ndim - 3, len(order)
            wide = block.reshape(*block.shape[:-3], *sizes, *block.shape[-2:])
            block = wide.permute(*range(lead), *[lead + k for k in (*order, count, count + 1)]).reshape(block.shape)
        found.append(block)
    return tuple(found)


def relabelling_sign(digits: Digits, order: Digits) -> int:
    """The determinant of the permutation that writes digit ``order[k]`` at position k.

    Exchanging two neighbouring digits of sizes p and q is n / (p q) copies of the transposition of a p x q array, each
    of sign ``(-1)^(p (p-1)/2 q (q-1)/2)``.
    """
    now, n, odd = list(order), math.prod(digits), 0
    for _ in range(len(now)):
        for k in range(len(now) - 1):
            if now[k] > now[k + 1]:
                p, q = digits[now[k]], digits[now[k + 1]]
                odd += n // (p * q) * (p * (p - 1) // 2) * (q * (q - 1) // 2) if n else 0
                now[k], now[k + 1] = now[k + 1], now[k]
    return -1 if odd % 2 else 1
