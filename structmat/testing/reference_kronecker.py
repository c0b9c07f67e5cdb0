"""Textbook entries of Kronecker products and sums, block-diagonal matrices, permutations and zeros."""

from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, entries_of, magnitude, magnitude_of, reference
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.permutation import Permutation
from structmat.types.zero import Zero

__all__: list[str] = []


def _pair(a: Array, b: Array) -> Array:
    """``out[i_A m_B + i_B, j_A n_B + j_B] = a[i_A, j_A] b[i_B, j_B]``, entry by entry."""
    (ma, na), (mb, nb) = a.shape, b.shape
    out = numpy.zeros((ma * mb, na * nb), dtype=numpy.result_type(a, b))
    for i in range(ma * mb):
        for j in range(na * nb):
            out[i, j] = a[i // mb, j // nb] * b[i % mb, j % nb]
    return out


@reference(Kronecker)
def _kronecker(matrix: Any) -> Array:
    found = entries_of(matrix.factors[0])
    for factor in matrix.factors[1:]:
        found = each(_pair, (found, 2), (entries_of(factor), 2))
    return found


@magnitude(Kronecker)
def _product_size(matrix: Any) -> float:
    return float(numpy.prod([magnitude_of(f) for f in matrix.factors]))


@reference(KroneckerSum)
def _sum(matrix: Any) -> Array:
    def form(a: Array, b: Array) -> Array:
        return _pair(a, numpy.eye(len(b))) + _pair(numpy.eye(len(a)), b)

    return each(form, (entries_of(matrix.left), 2), (entries_of(matrix.right), 2))


@magnitude(KroneckerSum)
def _sum_size(matrix: Any) -> float:
    na, nb = matrix.left.shape[-1], matrix.right.shape[-1]
    return magnitude_of(matrix.left) * float(nb) ** 0.5 + magnitude_of(matrix.right) * float(na) ** 0.5


@reference(BlockDiagonal)
def _blocks(matrix: Any) -> Array:
    def form(blocks: Array) -> Array:
        k, p, q = blocks.shape
        out = numpy.zeros((k * p, k * q), dtype=blocks.dtype)
        for i in range(k * p):
            for j in range(k * q):
                if i // p == j // q:
                    out[i, j] = blocks[i // p, i % p, j % q]
        return out

    return each(form, (as_wide(matrix.blocks), 3))


@reference(Permutation)
def _permutation(matrix: Any) -> Array:
    wide = complex if matrix.dtype is not None and matrix.dtype.is_complex else float

    def form(indices: Array) -> Array:
        out = numpy.zeros((len(indices), len(indices)), dtype=wide)
        for i, j in enumerate(indices):
            out[i, j] = 1
        return out

    return each(form, (matrix.indices.cpu().numpy(), 1))


@reference(Zero)
def _zero(matrix: Any) -> Array:
    wide = complex if matrix.dtype is not None and matrix.dtype.is_complex else float
    return numpy.zeros((*matrix.batch, matrix.m, matrix.n), dtype=wide)
