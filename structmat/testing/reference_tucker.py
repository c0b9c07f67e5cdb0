"""Textbook entries of Tucker tensors: every entry as its sum over the entries of the core."""

import itertools
import math
from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, magnitude, reference
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = ["tucker_entries"]


def tucker_entries(core: Array, factors: tuple[Array, ...]) -> Array:
    """``T[i, j, ...] = sum_{a, b, ...} core[a, b, ...] U_1[i, a] U_2[j, b] ...``, by loops."""
    out = numpy.zeros([len(u) for u in factors], dtype=core.dtype)
    for place in itertools.product(*(range(len(u)) for u in factors)):
        for inside in itertools.product(*(range(r) for r in core.shape)):
            weight = core[inside]
            for u, i, a in zip(factors, place, inside, strict=True):
                weight = weight * u[i, a]
            out[place] += weight
    return out


@reference(TuckerMatrix)
def _matricised(matrix: Any) -> Array:
    def form(core: Array, *factors: Array) -> Array:
        tensor = tucker_entries(core, factors)
        m, n = (math.prod(tensor.shape[k] for k in modes) for modes in (matrix.rows, matrix.columns))
        out = numpy.zeros((m, n), dtype=tensor.dtype)
        for place in numpy.ndindex(*tensor.shape):
            row = column = 0
            for k in matrix.rows:
                row = row * tensor.shape[k] + place[k]
            for k in matrix.columns:
                column = column * tensor.shape[k] + place[k]
            out[row, column] = tensor[place]
        return out

    order = len(matrix.factors)
    return each(form, (as_wide(matrix.kernel), order), *((as_wide(u), 2) for u in matrix.factors))


@magnitude(TuckerMatrix)
def _size(matrix: Any) -> float:
    """The norms of core and factors multiply before terms cancel."""
    order = len(matrix.factors)
    size = float(
        numpy.linalg.norm(as_wide(matrix.kernel).reshape(-1, math.prod(matrix.kernel.shape[-order:])), axis=-1).max()
    )
    return size * math.prod(float(numpy.linalg.norm(as_wide(u), axis=(-2, -1)).max()) for u in matrix.factors)
