"""Examples of the types of several levels: one level, two and three, sizes that are folded, rectangles."""

import math

import torch

from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.testing import reference_multilevel
from structmat.testing.example import Batch, Example, Factory, numbers
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.reflected_convolution import ReflectedConvolution

__all__ = ["MULTILEVEL"]

del reference_multilevel  # imported so that its references are entered

Sizes = tuple[int, ...]


def _block_circulant(*sizes: int, shift: float = 3.0) -> Factory:
    """A first entry that dominates keeps the eigenvalues away from zero."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        generators = numbers(g, d, *b, *sizes) / math.prod(sizes) ** 0.5
        generators[(..., *(0,) * len(sizes))] += shift
        return BlockCirculant(generators, len(sizes))

    return make


def _block_toeplitz(columns: Sizes, rows: Sizes | None = None, shift: float = 0.0) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        sizes = tuple(m + n - 1 for m, n in zip(rows or columns, columns, strict=True))
        generators = numbers(g, d, *b, *sizes) / math.prod(columns) ** 0.5
        generators[(..., *(n - 1 for n in columns))] += shift
        return BlockToeplitz(generators, columns)

    return make


def _reflected(sizes: Sizes, kernel: Sizes, shift: float = 0.0, transposed: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        entries = numbers(g, d, *b, *kernel) / math.prod(kernel) ** 0.5
        entries[(..., *(p // 2 for p in kernel))] += shift
        return ReflectedConvolution(entries, sizes, transposed)

    return make


def _cosine(*sizes: int) -> Factory:
    """Eigenvalues of modulus between 1/2 and 3/2, of any sign or phase."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        drawn = numbers(g, d, *b, *sizes)
        size = 0.5 + torch.rand(*b, *sizes, generator=g, dtype=torch.float64)
        return CosineDiagonal((torch.sgn(drawn) * size).to(d), len(sizes))

    return make


def _prepared(part: Factory) -> Factory:
    return lambda g, d, b: part(g, d, b).prepare()


MULTILEVEL: tuple[Example, ...] = (
    Example("block-circulant-1x1", BlockCirculant, _block_circulant(1, 1), solvable=True),
    Example("block-circulant-3x4", BlockCirculant, _block_circulant(3, 4), solvable=True, batches=((), (2,), (2, 1))),
    Example("block-circulant-17-folded", BlockCirculant, _block_circulant(17), solvable=True),
    Example("block-circulant-2x3x2", BlockCirculant, _block_circulant(2, 3, 2), solvable=True),
    Example("block-toeplitz-3x2", BlockToeplitz, _block_toeplitz((3, 2), shift=4.0), solvable=True),
    Example("block-toeplitz-2x3-by-3x1", BlockToeplitz, _block_toeplitz((3, 1), (2, 3)), batches=((), (2,), (2, 1))),
    Example("block-toeplitz-2x2x2", BlockToeplitz, _block_toeplitz((2, 2, 2), shift=4.0), solvable=True),
    Example("block-toeplitz-1x5", BlockToeplitz, _block_toeplitz((5,), (1,))),
    Example("reflected-3x4", ReflectedConvolution, _reflected((3, 4), (3, 2), 4.0), solvable=True),
    Example(
        "reflected-4x2-transposed",
        ReflectedConvolution,
        _reflected((4, 2), (2, 5), 4.0, transposed=True),
        solvable=True,
    ),
    Example("reflected-2-long-kernel", ReflectedConvolution, _reflected((2,), (7,))),
    Example("prepared-block-toeplitz", Prepared, _prepared(_block_toeplitz((3, 2), shift=4.0)), solvable=True),
    Example("prepared-reflected", Prepared, _prepared(_reflected((3, 4), (3, 2), 4.0)), solvable=True),
    Example("cosine-diagonal-1", CosineDiagonal, _cosine(1), solvable=True),
    Example("cosine-diagonal-3x4", CosineDiagonal, _cosine(3, 4), solvable=True, batches=((), (2,), (2, 1))),
)
