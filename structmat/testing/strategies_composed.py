"""Strategies of matrices that hold matrices: Kronecker products and sums, slices, and what has no closed form."""

import itertools
from typing import Any

import torch

from structmat.lazy import Implicit, Inverse, Product, Scaled, Slice, Sum
from structmat.matrix import Matrix
from structmat.testing.examples_lazy import entries_product, entries_transposed_product
from structmat.testing.strategies_basic import block_diagonal, dense, diagonals, low_rank, permutations
from structmat.testing.strategies_butterfly import givens_products, householder_products, orthogonal_butterflies
from structmat.testing.strategies_entries import Draw, strategy
from structmat.testing.strategies_toeplitz import circulants, symmetric_toeplitz, toeplitz
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = [
    "implicit",
    "inverses",
    "kronecker",
    "kronecker_sums",
    "prepared",
    "products",
    "scaled",
    "slices",
    "submatrices",
    "sums",
    "well_conditioned",
]

_ANY = (dense, toeplitz, low_rank, block_diagonal)
_SQUARE = (diagonals, circulants, symmetric_toeplitz, householder_products, permutations)


def _part(d: Draw, lead: tuple[int, ...], shape: tuple[int, int]) -> Matrix:
    """What matrices are composed of here: one of a few types."""
    chosen: Any = d.choose(*_ANY, *(_SQUARE if shape[0] == shape[1] else ()))
    found: Matrix = d.part(chosen.form, lead, shape)
    return found


@strategy()
def kronecker(d: Draw) -> Kronecker:
    """``Kronecker`` of one to three factors; the first may be shared by the batch."""
    lead, (m, n), count, shared = d.lead(), d.sizes(), d.choose(2, 1, 3), d.choose(False, True)
    shapes = list(zip(d.split(m, count), d.split(n, count), strict=True))
    leads = [() if shared and k == 0 and count > 1 else lead for k in range(count)]
    return Kronecker(tuple(_part(d, b, shape) for b, shape in zip(leads, shapes, strict=True)))


@strategy(square=True)
def kronecker_sums(d: Draw) -> KroneckerSum:
    """``KroneckerSum``."""
    lead, (p, q) = d.lead(), d.split(d.order(), 2)
    return KroneckerSum(_part(d, lead, (p, p)), _part(d, lead, (q, q)))


@strategy(square=True)
def submatrices(d: Draw) -> Submatrix:
    """``Submatrix``: up to three indices more than are kept, in any order."""
    lead, kept, more = d.lead(), d.order(), d.integer(0, 3)
    whole = d.part(d.choose(toeplitz, dense, circulants).form, lead, (kept + more, kept + more))
    return Submatrix(whole, torch.tensor(d.permutation(kept + more)[:kept], dtype=torch.int64))


@strategy()
def products(d: Draw) -> Product:
    """``Product`` of two or three matrices, not multiplied out."""
    lead, (m, n), count = d.lead(), d.sizes(), d.integer(1, 2)
    ends = (m, *(d.integer(1, d.most) for _ in range(count)), n)
    return Product(tuple(_part(d, lead, pair) for pair in itertools.pairwise(ends)))


@strategy()
def sums(d: Draw) -> Sum:
    """``Sum`` of two or three matrices, not added up."""
    lead, shape, count = d.lead(), d.sizes(), d.integer(2, 3)
    return Sum(tuple(_part(d, lead, shape) for _ in range(count)))


@strategy()
def scaled(d: Draw) -> Scaled:
    """``Scaled`` by a number, or by a tensor of shape () or (*batch, 1, 1)."""
    lead, shape, form = d.lead(), d.sizes(), d.choose("number", "scalar", "batch")
    if form == "number":
        number = d.choose(2, -1, 0, 0.5, *((1j,) if d.dtype.is_complex else ()))
        return Scaled(_part(d, lead, shape), number)
    return Scaled(_part(d, lead, shape), d.tensor(*((*lead, 1, 1) if form == "batch" else ())))


def _stepped(d: Draw, size: int) -> tuple[int, tuple[int, int, int]]:
    """So many rows of a longer axis: its length, and the bounds of the slice."""
    step, before, after = d.choose(1, 2, -1), d.integer(0, 2), d.integer(0, 2)
    last = before + (size - 1) * abs(step)
    return last + 1 + after, (before, last + 1, step) if step > 0 else (last, before - 1, step)


@strategy()
def slices(d: Draw) -> Slice:
    """``Slice``: every or every second row, forwards or backwards, of a matrix; columns likewise."""
    lead, sizes = d.lead(), d.sizes()
    (m, rows), (n, columns) = (_stepped(d, size) for size in sizes)
    return Slice(_part(d, lead, (m, n)), rows, columns)


@strategy()
def prepared(d: Draw) -> Matrix:
    """``Prepared``: what ``prepare()`` makes of a Toeplitz matrix."""
    found: Matrix = toeplitz.form(d).prepare()  # type: ignore[attr-defined]
    return found


@strategy()
def implicit(d: Draw) -> Implicit:
    """``Implicit``: functions that multiply by a tensor which the matrix holds."""
    shape = (*d.lead(), *d.sizes())
    return Implicit(shape, entries_product, entries_transposed_product, tensors=(d.tensor(*shape),))


def _well_conditioned(d: Draw) -> Matrix:
    lead, n = d.lead(), d.order()
    orthogonal: list[Any] = [permutations, householder_products, orthogonal_butterflies]
    orthogonal += [] if d.dtype.is_complex else [givens_products]
    chosen: Any = d.choose(Diagonal, Dense, Toeplitz, Circulant, SymmetricToeplitz, *orthogonal)
    if chosen is Diagonal:
        return Diagonal(_unit(d.tensor(*lead, n)))
    if chosen is Dense:
        drawn = d.bounded((*lead, n * n), 0).reshape(*lead, n, n)
        return Dense(drawn + torch.diag(torch.arange(n) > 0).to(d.dtype))
    if chosen is Toeplitz:
        return Toeplitz(d.bounded((*lead, 2 * n - 1), n - 1), n)
    if chosen is Circulant:
        return Circulant(d.bounded((*lead, n), 0), d.choose(1, -1))
    if chosen is SymmetricToeplitz:
        return SymmetricToeplitz(d.bounded((*lead, n), 0, room=0.25))  # it holds each entry twice
    found: Matrix = d.part(chosen.form, lead, (n, n))
    return found


def _unit(drawn: torch.Tensor) -> torch.Tensor:
    """Modulus between 1/2 and 3/2, sign or phase kept."""
    size = drawn.abs()
    direction = torch.where(size == 0, torch.ones_like(drawn), drawn.sgn())
    return direction * (0.5 + size / (1 + size)).to(drawn.dtype)


@strategy(square=True, plain=False)
def well_conditioned(d: Draw) -> Matrix:
    """A square matrix of several types and condition number at most 3: the left sides of
    ``conformable_pairs("solve")``."""
    return _well_conditioned(d)


@strategy(square=True, plain=False)
def inverses(d: Draw) -> Inverse:
    """``Inverse`` of a well-conditioned matrix, applied by solving."""
    return Inverse(_well_conditioned(d))
