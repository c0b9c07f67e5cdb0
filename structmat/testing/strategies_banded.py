"""Strategies of banded and triangular matrices."""

from structmat.testing.strategies_entries import Draw, strategy
from structmat.types.banded import Banded
from structmat.types.triangular import Triangular

__all__ = ["banded", "triangular"]


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
