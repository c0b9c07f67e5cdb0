"""Examples of functions as matrices and of principal submatrices, with their textbook entries."""

from typing import Any

import numpy
import torch

from structmat.claims import Claim
from structmat.lazy import Implicit
from structmat.matrix import Matrix
from structmat.testing.example import Batch, Example, Factory, numbers
from structmat.testing.reference import Array, as_wide, entries_of, magnitude, magnitude_of, reference
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = ["IMPLICIT"]


def entries_product(x: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    return Dense(entries).linear(x)


def entries_transposed_product(y: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    return Dense(entries.mT).linear(y)


def _difference(x: torch.Tensor) -> torch.Tensor:
    """``3 x_i - x_(i+1)``: upper bidiagonal, no tensors."""
    return 3 * x - torch.nn.functional.pad(x[..., 1:], (0, 1))


def _transposed_difference(y: torch.Tensor) -> torch.Tensor:
    return 3 * y - torch.nn.functional.pad(y[..., :-1], (1, 0))


@reference(Implicit)
def _entries(matrix: Any) -> Array:
    """The functions of these examples multiply with the tensor they get, or are the difference above."""
    n = matrix.shape[-1]
    turned = matrix._linear in (entries_transposed_product, _transposed_difference)
    whole = as_wide(matrix.held[0]) if matrix.held else 3 * numpy.eye(n) - numpy.eye(n, k=1)
    whole = numpy.swapaxes(whole, -1, -2) if turned else whole
    return whole.conj() if matrix.conjugated else whole


@reference(Submatrix)
def _principal(matrix: Any) -> Array:
    keep = matrix.keep.tolist()
    whole = entries_of(matrix.matrix)
    return whole[..., keep, :][..., keep]


@magnitude(Submatrix)
def _size(matrix: Any) -> float:
    return magnitude_of(matrix.matrix)


def _function(m: int, n: int, shift: float = 0.0) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        entries = numbers(g, d, *b, m, n) + shift * torch.eye(m, n, dtype=d)
        return Implicit((*b, m, n), entries_product, entries_transposed_product, tensors=(entries,))

    return make


def _of_toeplitz(n: int, keep: list[int]) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        diagonals = numbers(g, d, *b, 2 * n - 1) / n**0.5
        middle = torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(d)
        return Submatrix(Toeplitz(diagonals + 4 * middle, n), torch.tensor(keep))

    return make


def _of_definite(n: int, keep: list[int]) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        size = 0.5 + torch.rand(*b, 1, generator=g, dtype=torch.float64)
        whole = SymmetricToeplitz((size * 0.5 ** torch.arange(n, dtype=torch.float64)).to(d))
        return Submatrix(whole if d.is_complex else whole.assume(Claim.POSITIVE_DEFINITE), torch.tensor(keep))

    return make


def _of_circulant(n: int, keep: list[int]) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        column = numbers(g, d, *b, n) / n**0.5 + 3 * torch.nn.functional.one_hot(torch.tensor(0), n).to(d)
        return Submatrix(Circulant(column), torch.tensor(keep))

    return make


IMPLICIT: tuple[Example, ...] = (
    Example("implicit-5x3", Implicit, _function(5, 3)),
    Example("implicit-4x4", Implicit, _function(4, 4, 6.0), batches=((), (2,), (2, 1)), solvable=True),
    Example(
        "implicit-6-no-tensors",
        Implicit,
        lambda g, d, b: Implicit((6, 6), _difference, _transposed_difference, d),
        batches=((),),
        solvable=True,
    ),
    Example("submatrix-1-of-1", Submatrix, _of_toeplitz(1, [0]), solvable=True),
    Example("submatrix-5-of-7", Submatrix, _of_toeplitz(7, [6, 0, 1, 4, 2]), batches=((), (2,)), solvable=True),
    Example("submatrix-definite", Submatrix, _of_definite(8, [0, 1, 3, 4, 5, 7]), solvable=True),
    Example("submatrix-circulant", Submatrix, _of_circulant(6, [5, 3, 2]), solvable=True),
)
