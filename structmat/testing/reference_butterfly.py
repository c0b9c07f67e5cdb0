"""Textbook entries of butterflies: every factor as a dense matrix, entry by entry from the digits of its indices."""

import itertools
import math
from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, largest, magnitude, reference
from structmat.types.butterfly import Butterfly
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__: list[str] = []


def _number(digits: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    """The index with these digits, the most significant first."""
    value = 0
    for digit, size in zip(digits, sizes, strict=True):
        value = value * size + digit
    return value


def _factor(block: Array, before: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """One factor as a dense matrix, and the sizes of the digits after it."""
    others = [k for k in range(len(before)) if k not in axes]
    trailing = math.prod(before[a] for a in axes[1:])
    after = tuple(block.shape[1] // trailing if k == axes[0] else size for k, size in enumerate(before))
    out = numpy.zeros((math.prod(after), math.prod(before)), dtype=block.dtype)
    for column in itertools.product(*(range(size) for size in before)):
        rest = _number(tuple(column[k] for k in others), tuple(before[k] for k in others))
        inside = _number(tuple(column[a] for a in axes), tuple(before[a] for a in axes))
        for changed in itertools.product(*(range(after[a]) for a in axes)):
            row = list(column)
            for a, digit in zip(axes, changed, strict=True):
                row[a] = digit
            entry = block[rest if len(block) > 1 else 0, _number(changed, tuple(after[a] for a in axes)), inside]
            out[_number(tuple(row), after), _number(column, before)] = entry
    return out, after


def _chain(matrix: Any, blocks: tuple[Array, ...]) -> list[Array]:
    sizes, factors = matrix.digits, []
    for block, axes in zip(blocks, matrix.axes, strict=True):
        dense, sizes = _factor(block, sizes, axes)
        factors.append(dense)
    if matrix.order is not None:
        written = numpy.zeros((len(factors[-1]),) * 2)
        for row in itertools.product(*(range(size) for size in sizes)):
            place = _number(tuple(row[k] for k in matrix.order), tuple(sizes[k] for k in matrix.order))
            written[place, _number(row, sizes)] = 1
        factors.append(written)
    if matrix.tail:
        extra = numpy.eye(matrix.tail)
        factors = [
            numpy.block([[f, numpy.zeros((len(f), matrix.tail))], [numpy.zeros((matrix.tail, f.shape[1])), extra]])
            for f in factors
        ]
    return factors


def _multiplied(factors: list[Array]) -> Array:
    out = factors[0]
    for factor in factors[1:]:
        out = factor @ out
    return out


@reference(Butterfly)
def _butterfly(matrix: Any) -> Array:
    return each(lambda *blocks: _multiplied(_chain(matrix, blocks)), *((as_wide(w), 3) for w in matrix.blocks))


@magnitude(Butterfly)
def _size(matrix: Any) -> float:
    """The factors multiply before terms cancel: the norm of one times the largest row sums of the others."""
    blocks = [as_wide(w) for w in matrix.blocks]
    spread = math.prod(max(1.0, float(numpy.abs(w).sum(-1).max())) for w in blocks)
    return max(largest(_butterfly(matrix)), spread)


@reference(OrthogonalButterfly)
def _rotations(matrix: Any) -> Array:
    """``F_i = P_i diag(R_1, R_2, ...) P_i^T``: the groups of b / 2 entries a and a XOR 2^(i-1), in ascending order."""
    b = matrix.block
    lower = numpy.tril_indices(b, -1)

    def form(skew: Array) -> Array:
        count = skew.shape[1]
        d, half = count * b, b // 2
        out = numpy.eye(d, dtype=skew.dtype)
        for i, triangles in enumerate(skew):
            factor = numpy.zeros((d, d), dtype=skew.dtype)
            if i == 0:
                places = [list(range(k * b, (k + 1) * b)) for k in range(count)]
            else:
                lows = [a for a in range(2 * count) if not a & 1 << i]
                places = [[g * half + h for g in (a, a ^ 1 << i) for h in range(half)] for a in lows]
            for where, entries in zip(places, triangles, strict=True):
                k = numpy.zeros((b, b), dtype=skew.dtype)
                k[lower] = entries
                k = k - k.conj().T
                rotation = numpy.linalg.solve((numpy.eye(b) + k).T, (numpy.eye(b) - k).T).T
                factor[numpy.ix_(where, where)] = rotation
            out = out @ factor if matrix.reverse else factor @ out
        return out

    return each(form, (as_wide(matrix.skew), 3))
