"""What butterflies share: the fields checked, the verbs that follow from a chain of factors."""

import math

import torch

from structmat import backend
from structmat._shell import require_floating
from structmat.errors import DtypeError, ShapeError
from structmat.functional import butterfly as fb
from structmat.functional import butterfly_apply as fa
from structmat.functional import butterfly_peel as fp
from structmat.functional.launched import operation_of

__all__ = [
    "block_shapes",
    "check_axes",
    "check_blocks",
    "check_skew",
    "digits_of",
    "legal_blocks",
    "mixed",
    "most_factors",
    "plan_of",
    "require_positive",
    "why_illegal",
]

_LARGEST_PRIME = 64  # of mixed radix: a larger prime factor would need a block that is no longer small


def check_axes(name: str, digits: fb.Digits, axes: tuple[fb.Digits, ...], order: fb.Digits | None, tail: int) -> None:
    """ShapeError for digits that are no positive numbers, axes or an order that do not name digits, a negative tail."""
    if not digits or any(not isinstance(d, int) or d < 1 for d in digits):
        raise ShapeError(f"{name}: digits must be positive ints, at least one, got {digits!r}")
    if not axes:
        raise ShapeError(f"{name}: at least one factor is needed; the identity is one factor of identity blocks")
    places = range(len(digits))
    for where in axes:
        if not isinstance(where, tuple) or not where or len(set(where)) < len(where) or not set(where) <= set(places):
            raise ShapeError(
                f"{name}: each element of axes is a tuple of different positions of digits, 0 to {len(digits) - 1}, "
                f"got {where!r}"
            )
    if order is not None and sorted(order) != list(places):
        raise ShapeError(f"{name}: order must name each of the {len(digits)} digits once, got {order!r}")
    if not isinstance(tail, int) or tail < 0:
        raise ShapeError(f"{name}: tail must be an int, 0 or more, got {tail!r}")


def check_blocks(name: str, shapes: list[tuple[int, ...]], digits: fb.Digits, axes: tuple[fb.Digits, ...]) -> None:
    """ShapeError for blocks that do not fit the digits: each is ``(*b, rest, q, p)``, rest or 1."""
    if len(shapes) != len(axes):
        raise ShapeError(f"{name}: {len(shapes)} tensors of blocks for {len(axes)} axes; there is one a factor")
    now = digits
    for k, (shape, where) in enumerate(zip(shapes, axes, strict=True)):
        p = math.prod([now[a] for a in where])
        rest = math.prod([d for a, d in enumerate(now) if a not in where])
        if shape[-1] != p or shape[-3] not in (1, rest):
            raise ShapeError(
                f"{name}: blocks[{k}] has shape {tuple(shape)}; on digits {where} of {now} it must be "
                f"(*batch, {rest}, q, {p}), or (*batch, 1, q, {p}) for one block everywhere"
            )
        try:
            now = fb.resized(now, where, shape[-2])
        except ValueError as error:
            raise ShapeError(f"{name}: blocks[{k}] of shape {tuple(shape)}: {error}") from error


def check_skew(entries: tuple[torch.Tensor, ...], sizes: list[int]) -> None:
    """ShapeError for triangles of skew-symmetric blocks that do not fit: p (p - 1) / 2 entries for a block of size p,
    one tensor a factor; DtypeError for integers."""
    if len(entries) != len(sizes):
        raise ShapeError(f"Butterfly.from_skew: {len(entries)} tensors of entries for {len(sizes)} factors")
    for k, (tensor, p) in enumerate(zip(entries, sizes, strict=True)):
        require_floating("Butterfly.from_skew", skew=tensor)
        count = int(tensor.shape[-1])
        if count != p * (p - 1) // 2:
            raise ShapeError(
                f"Butterfly.from_skew: skew[{k}] has {count} entries a block, p = {p} needs "
                f"p (p - 1) / 2 = {p * (p - 1) // 2}"
            )


def legal_blocks(d: int, factors: int) -> list[int]:
    """The block sizes with which ``factors`` factors of order d are legal, ascending."""
    divisors = {k for a in range(1, math.isqrt(max(d, 0)) + 1) if d % a == 0 for k in (a, d // a)}
    return sorted(b for b in divisors if 1 <= factors <= most_factors(d, b))


def most_factors(d: int, block: int) -> int:
    """The largest legal number of factors for a block that divides d: 1 for an odd block, else 1 + v_2(d / block)."""
    count = d // block
    return 1 if block % 2 else (count & -count).bit_length()


def why_illegal(d: int, block: int, factors: int) -> str | None:
    """None for a legal (d, block, factors), else what is wrong and the nearest legal values."""
    fits = legal_blocks(d, factors)
    if block in fits:
        return None
    rule = "block must divide d, and for more than one factor be even with d / block divisible by 2^(factors - 1)"
    ways = []
    if fits:
        near = sorted(sorted(fits, key=lambda b: abs(math.log(b / max(1, block))))[:2])
        ways.append(f"block = {' or '.join(map(str, near))} with factors = {factors}")
    if d >= 1 and block >= 1 and d % block == 0:
        ways.append(f"factors up to {most_factors(d, block)} with block = {block}")
    unit = block * 2 ** (factors - 1) if factors >= 1 and block >= 1 and (factors == 1 or block % 2 == 0) else 0
    if unit:
        near = sorted({max(unit, d // unit * unit), max(unit, -(-d // unit) * unit)})
        ways.append(f"d = {' or '.join(map(str, near))} with these")
    way = "; ".join(ways) if ways else "d, block and factors are at least 1"
    return (
        f"d = {d}, block = {block}, factors = {factors} is no legal butterfly: {rule}. Nearest legal values: {way}. "
        "Butterfly.from_skew takes any d in mixed radix"
    )


def plan_of(plan: fa.Program, columns: int, itemsize: int) -> backend.Plan:
    """How rows go through: factor by factor, merged, or as one dense block, and the estimate that decided it."""
    steps, links = plan.steps, plan.links
    flops = sum(2.0 * columns * s.rest * s.rows * s.columns for s in steps)
    stored = sum(s.rest * s.rows * s.columns for s in steps)
    moved = float((stored + columns * (links.rows + links.columns)) * itemsize)
    whole = len(steps) == 1 and steps[0].rest == 1
    path = "dense" if whole else "per factor" if len(steps) == len(links.steps) else "merged"
    reason = f"{fa.describe(plan)}: of all ways to cut the chain the least estimated time for {columns} rows"
    asked = tuple([operation_of(step, columns) for step in steps])
    return backend.Plan(path, reason, flops, moved, operations=asked)


def require_positive(m: int, n: int) -> None:
    """ValueError for sizes below 1."""
    if m < 1 or n < 1:
        raise ValueError(f"Butterfly: the sizes must be positive, got {m} x {n}")


def mixed(m: int, n: int) -> tuple[fb.Digits, fb.Digits, int]:
    """Digits of rows and columns in mixed radix, and the tail of a square matrix with a large prime factor."""
    require_positive(m, n)
    order = fp.smooth_below(n, _LARGEST_PRIME) if m == n else n
    rows, columns = fp.digit_pairs(m if m != n else order, order)
    return rows, columns, n - order


def block_shapes(digits: fb.Digits, rows: fb.Digits) -> list[tuple[int, int, int]]:
    """``(rest, q, p)`` of one factor a digit, the first first."""
    levels = range(len(digits))
    return [(math.prod(rows[:k]) * math.prod(digits[k + 1 :]), rows[k], digits[k]) for k in levels]


def digits_of(dense: torch.Tensor, digits: fb.Digits | None, rows: fb.Digits | None) -> tuple[fb.Digits, fb.Digits]:
    """The digits asked for, checked against the size, or every prime factor one."""
    if dense.ndim < 2:
        raise ShapeError(f"Butterfly: a matrix (*batch, m, n) is needed, got shape {tuple(dense.shape)}")
    if not (dense.is_floating_point() or dense.is_complex()):
        raise DtypeError(f"Butterfly: the matrix must be floating point or complex, got {dense.dtype}")
    m, n = (int(s) for s in dense.shape[-2:])
    if digits is None and rows is None:
        rows, digits = fp.digit_pairs(m, n)
        return digits, rows
    digits = rows if digits is None else digits
    rows = digits if rows is None else rows
    if digits is None or rows is None or len(digits) != len(rows) or math.prod(digits) != n or math.prod(rows) != m:
        raise ShapeError(
            f"Butterfly: digits {digits} and rows {rows} must be equally many and multiply to {n} columns and {m} rows"
        )
    return digits, rows
