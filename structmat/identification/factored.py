"""Structures that are found by singular values: low rank, low displacement rank, Kronecker products, butterflies."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from structmat.functional import butterfly_peel as peel
from structmat.functional import displacement_algebra as fa
from structmat.functional import kronecker as fk
from structmat.identification.work import Trial, Work, divisors, ladder
from structmat.matrix import Matrix
from structmat.types.butterfly import Butterfly
from structmat.types.displacement import LowDisplacementRank
from structmat.types.kronecker import Kronecker
from structmat.types.low_rank import LowRank

__all__ = ["butterflies", "displaced", "kronecker_products", "low_displacement", "low_rank", "tails_of"]

_PASSES = 2**25  # entries visited by the search over Kronecker splits: fewer splits of a larger matrix
_PROBES = 6  # rows of a sketch that judges a split: sums of up to so many terms are seen
_CLOSE = 4  # splits whose singular values are computed, half as many of a matrix with more entries than
_SMALL = 2**18
_PRODUCT = 0.3  # relative error up to which a factor is split again
_FINER = 64  # splits of a factor that are tried
_BLIND = 1e-7  # errors that a sketch does not tell from zero

Shape = tuple[int, int]


def tails_of(values: torch.Tensor, work: Work) -> torch.Tensor:
    """Entry k: the relative error of keeping k singular values."""
    squares = torch.flip(torch.cumsum(torch.flip(values.double() ** 2, (-1,)), -1), (-1,))
    tails = torch.cat((squares.sqrt(), squares.new_zeros(1)))
    return tails / work.norm if work.norm else tails * 0


def low_rank(work: Work, values: torch.Tensor) -> Iterator[Trial]:
    """Truncated singular value decompositions; their errors are tails of ``values``, those of M."""
    for rank, error in ladder(tails_of(values, work), sum(work.sizes), work):
        make = partial(LowRank.nearest, rank=rank)
        yield Trial("LowRank", {"rank": rank}, rank * sum(work.sizes), error, make)


def displaced(dense: torch.Tensor) -> torch.Tensor:
    """``Z_1 M - M Z_-1``."""
    return fa.shift(dense, 1) - fa.shift_transposed(dense.mT, -1).mT


def low_displacement(work: Work, found: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Iterator[Trial]:
    """Truncated displacements for the operator (1, -1), ``found`` the decomposition of M's; each measured, because the
    truncation is best for the displacement and only near the best for M."""
    n, (u, s, vh) = work.sizes[0], found
    for rank, _ in ladder(tails_of(s, work), 2 * n, work):
        root = s[:rank].sqrt().to(u.dtype)
        near = LowDisplacementRank(u[:, :rank] * root, vh[:rank].mT * root).to_dense()
        make = partial(LowDisplacementRank.nearest, rank=rank)
        yield Trial("LowDisplacementRank", {"rank": rank}, 2 * n * rank, work.error_of(near), make)


# -- Kronecker products ----------------------------------------------------------------------------------------------


def kronecker_products(work: Work) -> Iterator[Trial]:
    """Sums of Kronecker products of two factors, at the splits that a sketch finds best; then more factors, where
    those of the best product are nearly products themselves."""
    sketched = [(_sketched(work.entries, left), _parameters(left, work.sizes), left) for left in _splits(work)]
    sketched.sort(key=lambda found: (round(_merit(*found[0]), 3), *found[1:]))  # of equally good ones the smallest
    for _, unit, left in sketched[: _CLOSE if work.entries.numel() <= _SMALL else _CLOSE // 2]:
        right = _other(left, work.sizes)
        values = torch.linalg.svdvals(fk.rearranged(work.entries, left, right))
        for terms, error in ladder(tails_of(values, work), unit, work):
            settings = {"shapes": (left, right)} | ({"terms": terms} if terms > 1 else {})
            make = partial(Kronecker.nearest, shapes=(left, right), terms=terms)
            yield Trial("Kronecker", settings, terms * unit, error, make)
    products = sorted((round(error, 9), unit, left) for (error, _), unit, left in sketched)
    if products and products[0][0] < _PRODUCT:
        yield from _finer(work, products[0][2])


def _other(left: Shape, whole: Shape) -> Shape:
    return whole[0] // left[0], whole[1] // left[1]


def _parameters(left: Shape, whole: Shape) -> int:
    return math.prod(left) + math.prod(_other(left, whole))


def _splits(work: Work) -> list[Shape]:
    """Sizes of the first factor: those shaped like M first, as many as the size of M leaves time for, and only where
    one product fits."""
    m, n = work.sizes
    found = [s for s in _factor_shapes((m, n)) if work.fits(_parameters(s, (m, n)))]
    found = [s for s in found if s not in ((m, 1), (1, n))]  # a column and a row: rank one, and so is their sum
    found.sort(key=lambda s: (abs(math.log(s[0] / s[1]) - math.log(m / n) / 2), abs(math.log(s[0] * s[0] / m))))
    if m == n:  # a product of square factors, the ordinary case, before all others
        found.sort(key=lambda s: s[0] != s[1])
    return found[: max(12, min(200, _PASSES // (m * n)))]


def _factor_shapes(whole: Shape) -> list[Shape]:
    """Sizes of the first of two factors, neither of which is 1 x 1."""
    return [(a, c) for a in divisors(whole[0]) for c in divisors(whole[1]) if (a, c) not in ((1, 1), whole)]


def _sketched(dense: torch.Tensor, left: Shape) -> tuple[float, float]:
    """About the relative errors of one product and of the best few of this split, by a Gaussian sketch with a fixed
    seed; exact for few terms, up to the root of eps."""
    grid = fk.rearranged(dense, left, _other(left, (int(dense.shape[-2]), int(dense.shape[-1]))))
    size = float(torch.linalg.vector_norm(grid)) ** 2
    if not size:
        return 0.0, 0.0
    width = min(_PROBES, *(int(s) for s in grid.shape))
    seeded = torch.Generator().manual_seed(0)
    probes = torch.randn(int(grid.shape[1]), width, generator=seeded, dtype=torch.float64).to(grid)
    inside = torch.linalg.qr(grid @ probes).Q.mH @ grid
    squares = torch.linalg.svdvals(inside).double().square() / size
    rest = max(0.0, 1 - float(squares.sum()))
    return math.sqrt(rest + float(squares[1:].sum())), math.sqrt(rest)


def _merit(one: float, few: float) -> float:
    """By the error of one product, and a little by that of a few; what is below the root of eps is zero."""
    return math.log10(max(one, _BLIND)) + 0.1 * math.log10(max(few, _BLIND))


def _finer(work: Work, left: Shape) -> Iterator[Trial]:
    """Products of three and more factors: the factor that is nearest to a product is split, while that is near."""
    shapes = [left, _other(left, work.sizes)]
    while True:
        pieces = [f.to_dense() for f in Kronecker.nearest(work.entries, shapes).factors]  # type: ignore[attr-defined]
        options = [
            (round(_sketched(piece, first)[0], 7), _parameters(first, shapes[k]), k, first)
            for k, piece in enumerate(pieces)
            for first in _factor_shapes(shapes[k])[:_FINER]
            if _parameters(first, shapes[k]) < math.prod(shapes[k])
        ]
        if not options or min(options)[0] > _PRODUCT:
            return
        _, _, k, first = min(options)
        shapes[k : k + 1] = [first, _other(first, shapes[k])]
        make = partial(Kronecker.nearest, shapes=tuple(shapes))
        count = sum(math.prod(s) for s in shapes)
        yield from work.measured("Kronecker", {"shapes": tuple(shapes)}, make, count)


# -- butterflies -----------------------------------------------------------------------------------------------------


def butterflies(work: Work) -> Iterator[Trial]:
    """Radix butterflies of every prime factor and Monarch matrices, digits taken from either end, rows in order or in
    reversed digits (as the Fourier transform's)."""
    m, n = work.sizes
    plans = [peel.digit_pairs(m, n)]
    if min(m, n) > 3:
        plans.append((peel.balanced(m), peel.balanced(n)))
    seen = []
    for rows, digits in plans:
        if len(digits) < 2 or (rows, digits) in seen:
            continue
        seen.append((rows, digits))
        for backwards in (False, True):
            if work.fits(_butterfly_parameters(digits, rows, backwards)):
                yield from _butterfly_trials(work, rows, digits, backwards)


def _butterfly_parameters(digits: tuple[int, ...], rows: tuple[int, ...], backwards: bool) -> int:
    """What the factors hold, one a digit in this order."""
    sizes, total = list(digits), 0
    for k in reversed(range(len(digits))) if backwards else range(len(digits)):
        total += math.prod(sizes) * rows[k]
        sizes[k] = rows[k]
    return total


def _butterfly_trials(work: Work, rows: tuple[int, ...], digits: tuple[int, ...], backwards: bool) -> Iterator[Trial]:
    count = _butterfly_parameters(digits, rows, backwards)
    for turned in (False, True):
        make = partial(near_butterfly, rows=rows, digits=digits, backwards=backwards, turned=turned)
        settings: dict[str, Any] = {"digits": digits}
        settings |= {"rows": rows} if rows != digits else {}
        settings |= {"backwards": True} if backwards else {}
        settings |= {"digit_reversed": True} if turned else {}
        yield from work.measured("Butterfly", settings, make, count)


def near_butterfly(
    dense: torch.Tensor, rows: tuple[int, ...], digits: tuple[int, ...], backwards: bool, turned: bool
) -> Matrix:
    """The peeled butterfly; with ``turned``, of the matrix with its rows in reversed digits, which it then undoes."""
    count = len(digits)
    sequence = tuple(reversed(range(count))) if backwards else None
    if not turned:
        return Butterfly.nearest(dense, digits, rows, sequence)
    grid = dense.reshape(*reversed(rows), dense.shape[-1])
    plain = grid.permute(*reversed(range(count)), count).reshape(dense.shape)
    found = Butterfly.nearest(plain, digits, rows, sequence)
    return Butterfly(found.blocks, found.digits, found.axes, tuple(reversed(range(count))))
