"""Strategies of circulants, Toeplitz and Hankel matrices, their relatives of several levels, and low displacement
rank."""

from structmat import backend
from structmat.testing.strategies_entries import Draw, strategy
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.circulant import Circulant
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.displacement import LowDisplacementRank
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.reflected_convolution import ReflectedConvolution
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = [
    "block_circulants",
    "block_toeplitz",
    "circulants",
    "cosine_diagonals",
    "hankel",
    "hermitian_toeplitz",
    "low_displacement_rank",
    "orthogonal_circulants",
    "reflected_convolutions",
    "symmetric_toeplitz",
    "toeplitz",
]


@strategy(square=True)
def circulants(d: Draw) -> Circulant:
    """``Circulant`` of several f, zero among them (f is complex only where the dtype is)."""
    some = (1, -1, 0, 2, -0.5, *((1j, 0.6 - 0.8j) if d.dtype.is_complex else ()))
    return Circulant(d.tensor(*d.lead(), d.order()), d.choose(*some))


@strategy()
def toeplitz(d: Draw) -> Toeplitz:
    """``Toeplitz``."""
    lead, (m, n) = d.lead(), d.sizes()
    return Toeplitz(d.tensor(*lead, m + n - 1), n)


@strategy()
def hankel(d: Draw) -> Hankel:
    """``Hankel``."""
    lead, (m, n) = d.lead(), d.sizes()
    return Hankel(d.tensor(*lead, m + n - 1), n)


@strategy(square=True)
def symmetric_toeplitz(d: Draw) -> SymmetricToeplitz:
    """``SymmetricToeplitz``."""
    return SymmetricToeplitz(d.tensor(*d.lead(), d.order()))


@strategy(square=True)
def hermitian_toeplitz(d: Draw) -> HermitianToeplitz:
    """``HermitianToeplitz``."""
    return HermitianToeplitz(d.tensor(*d.lead(), d.order()))


@strategy(square=True)
def orthogonal_circulants(d: Draw) -> OrthogonalCirculant:
    """``OrthogonalCirculant`` of f = 1 and -1, any signs; real also for a complex dtype, in its precision."""
    lead, order, f = d.lead(), d.order(), d.choose(1, -1)
    count = 1 + (order % 2 == 0) if f == 1 else order % 2
    signs = tuple(d.choose(1, -1) for _ in range(count))
    return OrthogonalCirculant(d.tensor(*lead, (order - count) // 2, dtype=backend.real_of(d.dtype)), signs, f)


@strategy(square=True)
def low_displacement_rank(d: Draw) -> LowDisplacementRank:
    """``LowDisplacementRank`` of rank 0 to 4 under several operators (complex ones only where the dtype is)."""
    lead, n, r = d.lead(), d.order(), d.integer(0, 4)
    e, f = d.choose((1, -1), (-1, 1), (2, -1), (1, 0.5), *(((1j, -1),) if d.dtype.is_complex else ()))
    return LowDisplacementRank(d.tensor(*lead, n, r, factors=2), d.tensor(*lead, n, r, factors=2), e, f)


def _levels(d: Draw, n: int) -> tuple[int, ...]:
    """One or two level sizes whose product is n."""
    return d.split(n, d.integer(1, 2))


@strategy(square=True)
def block_circulants(d: Draw) -> BlockCirculant:
    """``BlockCirculant`` of one or two levels."""
    lead, levels = d.lead(), _levels(d, d.order())
    return BlockCirculant(d.tensor(*lead, *levels), len(levels))


@strategy(square=True)
def cosine_diagonals(d: Draw) -> CosineDiagonal:
    """``CosineDiagonal`` of one or two levels."""
    lead, levels = d.lead(), _levels(d, d.order())
    return CosineDiagonal(d.tensor(*lead, *levels), len(levels))


@strategy(square=True)
def reflected_convolutions(d: Draw) -> ReflectedConvolution:
    """``ReflectedConvolution`` of one or two levels with kernels of 1 to 4 entries a level."""
    lead, levels = d.lead(), _levels(d, d.order())
    kernel = d.tensor(*lead, *(d.integer(1, 4) for _ in levels))
    return ReflectedConvolution(kernel, levels, d.choose(False, True))


@strategy()
def block_toeplitz(d: Draw) -> BlockToeplitz:
    """``BlockToeplitz`` of one or two levels."""
    lead, (m, n), count = d.lead(), d.sizes(), d.integer(1, 2)
    rows, columns = d.split(m, count), d.split(n, count)
    ends = (p + q - 1 for p, q in zip(rows, columns, strict=True))
    return BlockToeplitz(d.tensor(*lead, *ends), columns)
