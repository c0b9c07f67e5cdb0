"""Strategies of banded, triangular and block matrices."""

from structmat.testing.strategies_entries import Draw, strategy
from structmat.types.banded import Banded
from structmat.types.block import Block
from structmat.types.dense import Dense
from structmat.types.low_rank import LowRank
from structmat.types.triangular import Triangular
from structmat.types.zero import Zero

__all__ = ["banded", "blocks", "triangular"]


@strategy(square=True)
def banded(d: Draw) -> Banded:
    """``Banded`` of 0 to 3 superdiagonals and as many subdiagonals, wider than the matrix among them."""
    lead, n, upper, lower = d.lead(), d.order(), d.integer(0, 3), d.integer(0, 3)
    return Banded(d.tensor(*lead, lower + upper + 1, n), upper)


@strategy(square=True)
def triangular(d: Draw) -> Triangular:
    """``Triangular`` of either side, with or without a unit diagonal."""
    lead, n = d.lead(), d.order()
    return Triangular(d.tensor(*lead, n, n), d.choose(False, True), d.choose(False, True))


@strategy()
def blocks(d: Draw) -> Block:
    """``Block`` of one or two rows and columns of dense, low-rank and zero blocks."""
    lead, (m, n) = d.lead(), d.sizes()
    heights, widths = (_parts(d, size) for size in (m, n))

    def part(p: int, q: int) -> Dense | LowRank | Zero:
        kind = d.choose(Zero, Dense, LowRank)
        if kind is Zero:
            return Zero(p, q, d.dtype, batch=lead)
        if kind is Dense:
            return Dense(d.tensor(*lead, p, q))
        return LowRank(d.tensor(*lead, p, 1, factors=2), d.tensor(q, 1, factors=2))

    return Block(tuple(tuple(part(p, q) for q in widths) for p in heights))


def _parts(d: Draw, size: int) -> tuple[int, ...]:
    """One or two sizes of this sum."""
    first = d.integer(0, size - 1)
    return (first, size - first) if first else (size,)
