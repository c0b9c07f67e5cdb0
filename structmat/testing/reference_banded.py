"""Textbook entries of banded, triangular and block matrices."""

from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, reference
from structmat.types.banded import Banded
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
