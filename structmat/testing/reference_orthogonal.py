"""Textbook entries of the orthogonal types: one dense rotation at a time."""

from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, reference
from structmat.types.givens import GivensProduct

__all__: list[str] = []


@reference(GivensProduct)
def _givens(matrix: Any) -> Array:
    def form(angles: Array) -> Array:
        q = numpy.eye(matrix.n)
        for (i, j), t in zip(matrix.planes, angles, strict=True):
            g = numpy.eye(matrix.n)
            g[i, i] = g[j, j] = numpy.cos(t)
            g[i, j], g[j, i] = -numpy.sin(t), numpy.sin(t)
            q = q @ g
        return q

    return each(form, (as_wide(matrix.angles), 1))
