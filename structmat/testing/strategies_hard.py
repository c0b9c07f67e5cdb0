"""A strategy of matrices that are nearly singular."""

from collections.abc import Callable

import torch

from structmat import backend
from structmat.lazy import Product
from structmat.matrix import Matrix
from structmat.testing.strategies_entries import Draw, numbers, strategy
from structmat.types.cauchy import CauchyLike
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal
from structmat.types.householder import HouseholderProduct
from structmat.types.toeplitz import SymmetricToeplitz
from structmat.types.vandermonde import Vandermonde

__all__ = ["ill_conditioned"]

Lead = tuple[int, ...]


def _spread(values: torch.Tensor, lead: Lead, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers for each element of the batch."""
    return values.to(dtype).expand(*lead, *values.shape).clone()


def _spectrum(n: int, condition: float) -> torch.Tensor:
    """From 1 down to 1 / condition, in equal ratios."""
    return condition ** -(torch.arange(n, dtype=torch.float64) / max(1, n - 1))


def _circulant(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """All eigenvalues 1 but that of the constant vector, 1 / condition."""
    column = torch.full((n,), (1 / condition - 1) / n, dtype=torch.float64)
    column[0] += 1
    return Circulant(_spread(column, lead, dtype))


def _diagonal(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    return Diagonal(_spread(_spectrum(n, condition), lead, dtype))


def _product(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """Reflections, diagonal, reflections: a singular value decomposition, factored."""
    left, right = (HouseholderProduct(numbers("normal", seed + k, (*lead, 2, n), dtype)) for k in range(2))
    return Product((left, _diagonal(n, condition, seed, lead, dtype), right))


def _dense(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """``U diag(1 .. 1 / condition) V^H``."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    u, v = (torch.linalg.qr(numbers("normal", seed + k, (*lead, n, n), wide))[0] for k in range(2))
    return Dense(((u * _spectrum(n, condition).to(wide)) @ v.mH).to(dtype))


def _gaussian(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """``exp(-h (i - j)^2)``, h falling with the condition: positive definite in exact arithmetic."""
    steps = torch.arange(n, dtype=torch.float64)
    return SymmetricToeplitz(_spread(torch.exp(-(steps**2) / condition ** (1 / max(1, n - 1))), lead, dtype))


def _hilbert(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """``1 / (i + j + 1)``."""
    ones, steps = torch.ones(*lead, n, 1, dtype=dtype), torch.arange(n, dtype=torch.float64)
    return CauchyLike(ones, ones.clone(), _spread(steps, lead, dtype), _spread(-steps - 1, lead, dtype))


def _vandermonde(n: int, condition: float, seed: int, lead: Lead, dtype: torch.dtype) -> Matrix:
    """Nodes equally spaced in [0, 1]."""
    return Vandermonde(_spread(torch.arange(n, dtype=torch.float64) / max(1, n - 1), lead, dtype), n)


_FORMS: tuple[Callable[[int, float, int, Lead, torch.dtype], Matrix], ...] = (
    _diagonal,
    _circulant,
    _product,
    _dense,
    _gaussian,
    _hilbert,
    _vandermonde,
)


@strategy(square=True, plain=False)
def ill_conditioned(d: Draw) -> Matrix:
    """Square matrices of condition number 10^3 to 1 / eps (Diagonal, Circulant, Product, Dense), and the classical ones
    (Gaussian Toeplitz, Hilbert, Vandermonde), whose condition number grows with the order."""
    digits = int(-torch.tensor(torch.finfo(backend.compute_dtype(d.dtype)).eps).log10())
    lead, n, form = d.lead(), d.order(), d.choose(*_FORMS)
    return form(n, 10.0 ** d.integer(3, digits), d.integer(0, 2**31 - 1), lead, d.dtype)
