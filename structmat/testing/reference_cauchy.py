"""Textbook entries of Cauchy-like and Vandermonde matrices."""

from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, largest, magnitude, reference
from structmat.types.cauchy import CauchyLike
from structmat.types.vandermonde import Vandermonde

__all__: list[str] = []


@reference(CauchyLike)
def _cauchy(matrix: Any) -> Array:
    def form(g: Array, h: Array, x: Array, y: Array) -> Array:
        out = numpy.zeros((len(x), len(y)), dtype=g.dtype)
        for i in range(len(x)):
            for j in range(len(y)):
                for k in range(g.shape[1]):
                    out[i, j] += g[i, k] * h[j, k] / (x[i] - y[j])
        return out

    fields = (matrix.left, 2), (matrix.right, 2), (matrix.row_nodes, 1), (matrix.column_nodes, 1)
    return each(form, *((as_wide(t), core) for t, core in fields))


@magnitude(CauchyLike)
def _terms(matrix: Any) -> float:
    """The entries with their terms in absolute values: a sum over r may cancel."""

    def form(g: Array, h: Array, x: Array, y: Array) -> Array:
        return abs(g) @ abs(h).T / abs(x[:, None] - y)

    fields = (matrix.left, 2), (matrix.right, 2), (matrix.row_nodes, 1), (matrix.column_nodes, 1)
    return largest(each(form, *((as_wide(t), core) for t, core in fields)))


@reference(Vandermonde)
def _vandermonde(matrix: Any) -> Array:
    def form(x: Array) -> Array:
        dense = numpy.vander(x, matrix.columns, increasing=True)
        return dense.T if matrix.transposed else dense

    return each(form, (as_wide(matrix.nodes), 1))
