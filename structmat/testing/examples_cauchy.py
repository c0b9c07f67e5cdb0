"""Examples of Cauchy-like and Vandermonde matrices."""

import math

import torch

from structmat.matrix import Matrix
from structmat.testing import reference_cauchy
from structmat.testing.example import Batch, Example, Factory, numbers
from structmat.types.cauchy import CauchyLike
from structmat.types.vandermonde import Vandermonde

__all__ = ["CAUCHY"]

del reference_cauchy  # imported so that its references are entered


def _nodes(g: torch.Generator, d: torch.dtype, *shape: int) -> torch.Tensor:
    """0, 1, 2, ... each moved by less than 1/8 (in a direction of the plane, if complex)."""
    moved = numbers(g, torch.complex128 if d.is_complex else torch.float64, *shape)
    return (torch.arange(shape[-1]) + moved / (8 * (1 + moved.abs()))).to(d)


def _cauchy(m: int, n: int, r: int, alike: bool = False, shared: bool = False) -> Factory:
    """Rows near the integers, columns near the halves between them; generators near 1 give a well-conditioned one."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        left, right = (numbers(g, d, *b, size, r) for size in (m, n))
        if alike:
            left, right = 1 + left / 8, 1 + right / 8
        lead = () if shared else b
        return CauchyLike(left, right, _nodes(g, d, *lead, m), _nodes(g, d, *lead, n) + 0.5)

    return make


def _chebyshev(n: int) -> Factory:
    """Near the extrema of a Chebyshev polynomial (real) or the roots of unity (complex): few nodes are well
    conditioned."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        k = torch.arange(n, dtype=torch.float64) + 0.1 * torch.rand(*b, n, generator=g, dtype=torch.float64)
        nodes = torch.polar(torch.ones_like(k), 2 * math.pi * k / n) if d.is_complex else torch.cos(math.pi * k / n)
        return Vandermonde(nodes.to(d), n)

    return make


def _vandermonde(m: int, n: int, transposed: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        drawn = numbers(g, torch.complex128 if d.is_complex else torch.float64, *b, m)
        return Vandermonde((drawn / (0.5 + drawn.abs())).to(d), n, transposed)

    return make


CAUCHY: tuple[Example, ...] = (
    Example("cauchy-1-rank1", CauchyLike, _cauchy(1, 1, 1, alike=True), solvable=True),
    Example("cauchy-5-rank1", CauchyLike, _cauchy(5, 5, 1, alike=True), solvable=True, batches=((), (2,), (3, 1))),
    Example("cauchy-6-rank2", CauchyLike, _cauchy(6, 6, 2, shared=True)),
    Example("cauchy-5x3-rank2", CauchyLike, _cauchy(5, 3, 2)),
    Example("cauchy-3x7-rank1", CauchyLike, _cauchy(3, 7, 1)),
    Example("vandermonde-1", Vandermonde, _vandermonde(1, 1), solvable=True),
    Example("vandermonde-5", Vandermonde, _chebyshev(5), solvable=True, batches=((), (2,), (3, 1))),
    Example("vandermonde-5x3", Vandermonde, _vandermonde(5, 3)),
    Example("vandermonde-3x70", Vandermonde, _vandermonde(3, 70)),
    Example("vandermonde-4x6-transposed", Vandermonde, _vandermonde(6, 4, transposed=True)),
)
