"""Examples of Kronecker products and sums, block-diagonal matrices, permutations and zeros."""

import torch

from structmat.claims import Claim
from structmat.matrix import Matrix
from structmat.testing import reference_kronecker
from structmat.testing.example import WIDE, Batch, Example, Factory, numbers
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.permutation import Permutation
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.zero import Zero

__all__ = ["KRONECKER"]

del reference_kronecker  # imported so that its references are entered


def _dense(m: int, n: int, shift: float = 0.0, shared: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        return Dense(numbers(g, d, *(() if shared else b), m, n) + shift * torch.eye(m, n, dtype=d))

    return make


def _toeplitz(n: int) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        middle = torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(d)
        return Toeplitz(numbers(g, d, *b, 2 * n - 1) / n**0.5 + 4 * middle, n)

    return make


def _circulant(n: int) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        first = torch.nn.functional.one_hot(torch.tensor(0), n).to(d)
        return Circulant(numbers(g, d, *b, n) / n**0.5 + 3 * first)

    return make


def _definite(n: int) -> Factory:
    """``0.5^|i-j|`` times a positive number: positive definite, claimed so where the entries are real."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        size = 0.5 + torch.rand(*b, 1, generator=g, dtype=torch.float64)
        matrix = SymmetricToeplitz((size * 0.5 ** torch.arange(n, dtype=torch.float64)).to(d))
        return matrix if d.is_complex else matrix.assume(Claim.POSITIVE_DEFINITE)

    return make


def _permutation(n: int, typed: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        drawn = torch.rand(*b, n, generator=g).argsort(-1)
        return Permutation(drawn, d if typed else None)

    return make


def _blocks(k: int, p: int, q: int, shift: float = 0.0) -> Factory:
    return lambda g, d, b: BlockDiagonal(numbers(g, d, *b, k, p, q) + shift * torch.eye(p, q, dtype=d))


def _kron(*parts: Factory) -> Factory:
    return lambda g, d, b: Kronecker(tuple(part(g, d, b) for part in parts))


def _sum(left: Factory, right: Factory) -> Factory:
    return lambda g, d, b: KroneckerSum(left(g, d, b), right(g, d, b))


def _diagonal(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
    return Diagonal((2 + torch.rand(*b, 3, generator=g, dtype=torch.float64)).to(d))


def _identity(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
    return Identity(3)


KRONECKER: tuple[Example, ...] = (
    Example("zero-3x5", Zero, lambda g, d, b: Zero(3, 5, d, batch=b), batches=((), (2,), (3, 1))),
    Example("zero-4-any-dtype", Zero, lambda g, d, b: Zero(4, 4, batch=b)),
    Example("permutation-1", Permutation, _permutation(1), solvable=True, smooth=False),
    Example("permutation-7", Permutation, _permutation(7), batches=((), (2,), (3, 1)), solvable=True, smooth=False),
    Example("permutation-6-typed", Permutation, _permutation(6, typed=True), solvable=True, smooth=False),
    Example("block-diagonal-1", BlockDiagonal, _blocks(1, 1, 1, 3.0), solvable=True),
    Example("block-diagonal-3-of-2", BlockDiagonal, _blocks(3, 2, 2, 4.0), batches=((), (2,), (3, 1)), solvable=True),
    Example("block-diagonal-2-of-3x2", BlockDiagonal, _blocks(2, 3, 2)),
    Example("block-diagonal-4-of-1x3", BlockDiagonal, _blocks(4, 1, 3)),
    Example("kronecker-1", Kronecker, _kron(_dense(1, 1, 3.0)), solvable=True),
    Example("kronecker-2x3-of-4x2", Kronecker, _kron(_dense(2, 3), _dense(4, 2)), batches=((), (2,), (3, 1))),
    Example("kronecker-three", Kronecker, _kron(_dense(3, 2), _toeplitz(2), _dense(2, 3, shared=True))),
    Example("kronecker-square", Kronecker, _kron(_dense(3, 3, 6.0), _toeplitz(4)), batches=((), (2,)), solvable=True),
    Example("kronecker-definite", Kronecker, _kron(_definite(2), _definite(3)), solvable=True),
    Example("kronecker-mixed", Kronecker, _kron(_identity, _circulant(4), _permutation(2)), solvable=True),
    Example("kronecker-shared", Kronecker, _kron(_dense(2, 2, 4.0, shared=True), _circulant(3)), solvable=True),
    Example("kronecker-singular-by-form", Kronecker, _kron(_dense(2, 3), _dense(3, 2))),
    Example("kronecker-sum-1", KroneckerSum, _sum(_dense(1, 1, 3.0), _dense(1, 1, 3.0)), solvable=True),
    Example("kronecker-sum-general", KroneckerSum, _sum(_dense(3, 3, 5.0), _toeplitz(2)), solvable=True),
    Example("kronecker-sum-definite", KroneckerSum, _sum(_definite(3), _definite(2)), solvable=True),
    Example("kronecker-sum-mixed", KroneckerSum, _sum(_diagonal, _identity), dtypes=WIDE, solvable=True),
)
