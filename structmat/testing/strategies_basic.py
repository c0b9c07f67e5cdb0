"""Strategies of dense, diagonal, zero, permutation, block diagonal and low-rank matrices, and of those by nodes."""

import math

import torch

from structmat.testing.strategies_entries import Draw, strategy
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.cauchy import CauchyLike
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.low_rank import LowRank
from structmat.types.permutation import Permutation
from structmat.types.vandermonde import Vandermonde
from structmat.types.zero import Zero

__all__ = [
    "block_diagonal",
    "cauchy_like",
    "dense",
    "diagonals",
    "identities",
    "low_rank",
    "permutations",
    "vandermonde",
    "zeros",
]


@strategy()
def dense(d: Draw) -> Dense:
    """``Dense``."""
    return Dense(d.tensor(*d.lead(), *d.sizes()))


@strategy(square=True)
def diagonals(d: Draw) -> Diagonal:
    """``Diagonal``."""
    return Diagonal(d.tensor(*d.lead(), d.order()))


@strategy(square=True, batched=False)
def identities(d: Draw) -> Identity:
    """``Identity`` with the dtype, or without one; it has no batch and no entries."""
    return Identity(d.order(), d.choose(d.dtype, None))


@strategy()
def zeros(d: Draw) -> Zero:
    """``Zero`` with the dtype, or without one; it has no entries."""
    return Zero(*d.sizes(), d.choose(d.dtype, None), batch=d.lead())


@strategy(square=True)
def permutations(d: Draw) -> Permutation:
    """``Permutation`` with the dtype, or without one; it has no entries."""
    lead, n = d.lead(), d.order()
    drawn = [d.permutation(n) for _ in range(math.prod(lead))]
    indices = torch.tensor(drawn, dtype=torch.int64).reshape(*lead, n)
    return Permutation(indices, d.choose(d.dtype, None))


@strategy()
def block_diagonal(d: Draw) -> BlockDiagonal:
    """``BlockDiagonal`` of any number of blocks."""
    if d.shape is None:  # two drawn sizes seldom have a common divisor
        k = d.integer(1, d.most)
        p, q = d.integer(1, d.most // k), d.integer(1, d.most // k)
    else:
        m, n = d.sizes()
        k = d.choose(*(k for k in range(1, max(1, min(m, n)) + 1) if m % k == 0 == n % k))
        p, q = m // k, n // k
    return BlockDiagonal(d.tensor(*d.lead(), k, p, q))


@strategy()
def low_rank(d: Draw) -> LowRank:
    """``LowRank`` of rank 0 to two above the order."""
    lead, (m, n), r = d.lead(), d.sizes(), d.integer(0, d.most + 2)
    return LowRank(d.tensor(*lead, m, r, factors=2), d.tensor(*lead, n, r, factors=2))


def _nodes(d: Draw, lead: tuple[int, ...], n: int, start: float) -> torch.Tensor:
    """start, start + 1, ... in any order, each moved by at most 3/16."""
    places = torch.tensor(d.permutation(n), dtype=torch.float64)
    moved = torch.tensor([d.integer(-3, 3) for _ in range(n)], dtype=torch.float64) / 16
    return (start + places + moved).to(d.dtype).expand(*lead, n).clone()


@strategy()
def cauchy_like(d: Draw) -> CauchyLike:
    """``CauchyLike`` of rank 0 to 3; row nodes near the integers and column nodes near the halves between them."""
    lead, (m, n), r = d.lead(), d.sizes(), d.integer(0, 3)
    left, right = (d.tensor(*lead, size, r, factors=2) for size in (m, n))
    return CauchyLike(left, right, _nodes(d, lead, m, 0.0), _nodes(d, lead, n, 0.5))


@strategy()
def vandermonde(d: Draw) -> Vandermonde:
    """``Vandermonde``, transposed or not, of nodes of modulus at most 1; nodes may coincide."""
    lead, (m, n), turned = d.lead(), d.sizes(), d.choose(False, True)
    count, columns = (n, m) if turned else (m, n)
    drawn = d.tensor(*lead, count, dtype=torch.complex128 if d.dtype.is_complex else torch.float64)
    return Vandermonde((drawn / max(1.0, float(drawn.abs().max()))).to(d.dtype), columns, turned)
