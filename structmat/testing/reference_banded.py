"""Textbook entries of banded, triangular and block matrices."""

from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, entries_of, magnitude, magnitude_of, reference
from structmat.types.banded import Banded
from structmat.types.block import Block
from structmat.types.triangular import Triangular

__all__: list[str] = []


@reference(Banded)
def _banded(matrix: Any) -> Array:
    def form(bands: Array) -> Array:
        w, n = bands.shape
        out = numpy.zeros((n, n), dtype=bands.dtype)
        for i in range(n):
            for j in range(n):
                if 0 <= matrix.upper + i - j < w:
                    out[i, j] = bands[matrix.upper + i - j, j]
        return out

    return each(form, (as_wide(matrix.bands), 2))


@reference(Triangular)
def _triangular(matrix: Any) -> Array:
    def form(entries: Array) -> Array:
        out = numpy.zeros_like(entries)
        for i in range(len(out)):
            for j in range(i, len(out)) if matrix.upper else range(i + 1):
                out[i, j] = 1 if matrix.unit and i == j else entries[i, j]
        return out

    return each(form, (as_wide(matrix.entries), 2))


@reference(Block)
def _block(matrix: Any) -> Array:
    """Entry by entry: in which block it falls."""
    grid = [[entries_of(part) for part in row] for row in matrix.blocks]
    lead = numpy.broadcast_shapes(*(part.shape[:-2] for row in grid for part in row))
    heights, widths = [row[0].shape[-2] for row in grid], [part.shape[-1] for part in grid[0]]
    kind = numpy.result_type(*(part for row in grid for part in row))
    out = numpy.zeros((*lead, sum(heights), sum(widths)), dtype=kind)
    for i, row in enumerate(grid):
        for j, part in enumerate(row):
            top, left = sum(heights[:i]), sum(widths[:j])
            out[..., top : top + heights[i], left : left + widths[j]] = part
    return out


@magnitude(Block)
def _size(matrix: Any) -> float:
    return float(sum(magnitude_of(part) for row in matrix.blocks for part in row))
