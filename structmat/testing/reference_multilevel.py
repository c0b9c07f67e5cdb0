"""Textbook entries of the types of several levels: loops over multi-indices, one number at a time."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy

from structmat.testing.reference import Array, as_wide, each, magnitude, reference
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.reflected_convolution import ReflectedConvolution

__all__ = ["reflected"]

Sizes = tuple[int, ...]


def _places(sizes: Iterable[int]) -> list[Sizes]:
    """All multi-indices, in C order."""
    return list(itertools.product(*(range(n) for n in sizes)))


@reference(BlockCirculant)
def _block_circulant(matrix: Any) -> Array:
    def form(g: Array) -> Array:
        places = _places(g.shape)
        return numpy.array(
            [[g[tuple((a - b) % n for a, b, n in zip(i, j, g.shape, strict=True))] for j in places] for i in places]
        )

    return each(form, (as_wide(matrix.generators), matrix.levels))


@reference(BlockToeplitz)
def _block_toeplitz(matrix: Any) -> Array:
    columns = matrix.columns

    def form(t: Array) -> Array:
        rows = tuple(s - n + 1 for s, n in zip(t.shape, columns, strict=True))
        return numpy.array(
            [
                [t[tuple(a - b + n - 1 for a, b, n in zip(i, j, columns, strict=True))] for j in _places(columns)]
                for i in _places(rows)
            ]
        )

    return each(form, (as_wide(matrix.generators), len(columns)))


def reflected(position: int, n: int) -> int:
    """Walk from outside into ``0 .. n - 1``, one mirror at a time: -1 shows 0, n shows n - 1."""
    while not 0 <= position < n:
        position = -1 - position if position < 0 else 2 * n - 1 - position
    return position


@reference(ReflectedConvolution)
def _reflected_convolution(matrix: Any) -> Array:
    sizes = matrix.sizes

    def form(kernel: Array) -> Array:
        places = _places(sizes)
        number = {place: k for k, place in enumerate(places)}
        out = numpy.zeros((len(places), len(places)), dtype=kernel.dtype)
        for i in places:
            for k in _places(kernel.shape):
                seen = (reflected(a - b + p // 2, n) for a, b, p, n in zip(i, k, kernel.shape, sizes, strict=True))
                out[number[i], number[tuple(seen)]] += kernel[k]
        return out.T if matrix.transposed else out

    return each(form, (as_wide(matrix.kernel), len(sizes)))


@magnitude(ReflectedConvolution)
def _magnitude(matrix: Any) -> float:
    """What cancels when a long kernel is folded into a short image counts."""
    kernel = as_wide(matrix.kernel)
    axes = tuple(range(-len(matrix.sizes), 0))
    return float(numpy.abs(kernel).sum(axis=axes).max()) * float(2 * numpy.prod(matrix.sizes)) ** 0.5


@reference(CosineDiagonal)
def _cosine_diagonal(matrix: Any) -> Array:
    def form(lam: Array) -> Array:
        transform = numpy.ones((1, 1))
        for n in lam.shape:
            c = numpy.array([[numpy.cos(numpy.pi * k * (2 * j + 1) / (2 * n)) for j in range(n)] for k in range(n)])
            c *= numpy.sqrt(numpy.where(numpy.arange(n) == 0, 1, 2) / n)[:, None]
            transform = numpy.kron(transform, c)
        return transform.T @ numpy.diag(lam.ravel()) @ transform

    return each(form, (as_wide(matrix.eigenvalues), matrix.levels))
