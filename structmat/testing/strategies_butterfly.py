"""Strategies of reflections, rotations and butterflies."""

from structmat import backend
from structmat.functional import butterfly_peel as fp
from structmat.testing.strategies_entries import Draw, strategy
from structmat.types.butterfly import Butterfly
from structmat.types.givens import GivensProduct
from structmat.types.householder import HouseholderProduct
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__ = ["butterflies", "givens_products", "householder_products", "orthogonal_butterflies"]


@strategy(square=True)
def householder_products(d: Draw) -> HouseholderProduct:
    """``HouseholderProduct`` of 0 to two reflectors above the order; with phases where the dtype is complex."""
    lead, n, r = d.lead(), d.order(), d.integer(0, d.most + 2)
    vectors = d.tensor(*lead, r, n)
    phases = d.dtype.is_complex and d.choose(False, True)
    return HouseholderProduct(vectors, d.tensor(*lead, r, dtype=backend.real_of(d.dtype)) if phases else None)


@strategy(square=True)
def givens_products(d: Draw) -> GivensProduct:
    """``GivensProduct`` of 0 to two rotations above the order; real also for a complex dtype, in its precision."""
    lead, n = d.lead(), d.order()
    planes = []
    for _ in range(d.integer(0, d.most + 2) if n > 1 else 0):
        i, step = d.integer(0, n - 1), d.integer(1, n - 1)
        planes.append((i, (i + step) % n))
    return GivensProduct(d.tensor(*lead, len(planes), dtype=backend.real_of(d.dtype)), tuple(planes), n)


@strategy()
def butterflies(d: Draw) -> Butterfly:
    """``Butterfly`` in mixed radix; its factors in any order of digits."""
    lead, (m, n) = d.lead(), d.sizes()
    rows, digits = fp.digit_pairs(m, n)
    sequence, now, blocks = d.permutation(len(digits)), list(digits), []
    for k in sequence:
        rest = 1
        for other, size in enumerate(now):
            rest *= size if other != k else 1
        blocks.append(d.tensor(*lead, rest, rows[k], digits[k], factors=len(digits)))
        now[k] = rows[k]
    return Butterfly(tuple(blocks), digits, tuple((k,) for k in sequence))


@strategy(square=True)
def orthogonal_butterflies(d: Draw) -> OrthogonalButterfly:
    """``OrthogonalButterfly`` with the factors that are legal for the order, in either order; the entries are not large
    unless asked for, since a Cayley transform loses as many digits as they have."""
    lead, order = d.lead(), d.order()
    b, m = OrthogonalButterfly.sizes(order)
    return OrthogonalButterfly(d.tame().tensor(*lead, m, order // b, b * (b - 1) // 2), d.choose(False, True))
