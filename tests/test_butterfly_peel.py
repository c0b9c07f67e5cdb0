"""Butterflies out of dense matrices: exact recovery, the error bound, the certificate of membership."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import structmat as sm
from structmat.functional import butterfly_peel as fp
from structmat.testing.reference import dense_of

F64, C128 = torch.float64, torch.complex128


def _random(digits: Any, rows: Any, dtype: torch.dtype, seed: int, lead: tuple[int, ...] = ()) -> sm.Butterfly:
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for k, (q, p) in enumerate(zip(rows, digits, strict=True)):
        rest = math.prod(rows[:k]) * math.prod(digits[k + 1 :])
        blocks.append(torch.randn(*lead, rest, q, p, generator=generator, dtype=dtype))
    return sm.Butterfly(tuple(blocks), digits, tuple((k,) for k in range(len(digits))))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(
    ("digits", "rows"),
    [
        ((2,) * 6, (2,) * 6),
        ((2,) * 8, (2,) * 8),
        ((3, 4, 5), (3, 4, 5)),
        ((8, 8), (8, 8)),
        ((2, 3, 2), (4, 1, 3)),
        ((1, 5), (3, 2)),
        ((7,), (4,)),
    ],
)
def test_butterflies_are_recovered(digits: Any, rows: Any, dtype: torch.dtype) -> None:
    for lead in ((), (2,)):
        dense = _random(digits, rows, dtype, 0, lead).to_dense()
        found = sm.Butterfly.from_dense(dense, 1e-14, digits=digits, rows=rows)
        gap = torch.linalg.matrix_norm(found.to_dense() - dense) / torch.linalg.matrix_norm(dense)
        assert float(gap.max()) <= 1e-14
        assert tuple(found.batch_shape) == lead
        assert float(sm.Butterfly.membership(dense, digits, rows).max()) <= 1e-14


def test_the_error_stays_within_its_bound() -> None:
    """``max_s tail_s <= err <= sqrt(sum_s tail_s^2) <= sqrt(L - 1) dist`` for graded, noisy and arbitrary matrices."""
    generator = torch.Generator().manual_seed(1)
    for trial in range(60):
        digits = [(2, 2, 2, 2), (3, 2, 4), (2, 5), (4, 4), (2, 2, 3, 2)][trial % 5]
        n = math.prod(digits)
        near = _random(digits, digits, F64, trial)
        noise = torch.randn(n, n, generator=generator, dtype=F64)
        grade = 10.0 ** (-6 * torch.rand(n, generator=generator, dtype=F64))
        dense = near.to_dense() * (trial % 3 > 0) + 10.0 ** -(trial % 7) * grade[:, None] * noise
        found = sm.Butterfly.nearest(dense, digits)
        error = float((found.to_dense() - dense).norm())
        tails = fp.tails(dense, digits, digits)
        rounding = 1e-14 * float(dense.norm())
        assert error <= float(tails.norm()) + rounding
        assert error >= float(tails.max()) - rounding
        distance = float((near.to_dense() - dense).norm())  # an upper bound of the distance to all butterflies
        assert float(tails.norm()) <= math.sqrt(len(digits) - 1) * distance + rounding


def test_the_certificate_tells_random_matrices_from_butterflies() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(64, 64, generator=generator, dtype=F64)
    assert 0.5 < float(sm.Butterfly.membership(dense)) < 1
    assert float(sm.Butterfly.membership(torch.zeros(8, 8))) == 0
    assert float(sm.Butterfly.membership(sm.hadamard(64).to_dense())) <= 1e-14
    fourier = sm.dft(64)
    assert float(sm.Butterfly.membership(fourier.to_dense())) > 0.5, "without its permutation it is far away"
    straight = sm.Butterfly(fourier.blocks, fourier.digits, fourier.axes).to_dense()
    assert float(sm.Butterfly.membership(straight)) <= 1e-14
    with pytest.raises(sm.NotStructuredError, match="relative distance"):
        sm.Butterfly.from_dense(dense)


@pytest.mark.parametrize("sequence", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_factors_in_another_order_are_recovered(sequence: tuple[int, int, int]) -> None:
    digits, rows, now, shapes = (2, 3, 4), (3, 2, 2), [2, 3, 4], []
    for k in sequence:
        shapes.append((math.prod(now) // now[k], rows[k], digits[k]))
        now[k] = rows[k]
    generator = torch.Generator().manual_seed(0)
    blocks = tuple(torch.randn(s, generator=generator, dtype=F64) for s in shapes)
    dense = sm.Butterfly(blocks, digits, tuple((k,) for k in sequence)).to_dense()
    found = sm.Butterfly.from_dense(dense, 1e-14, digits=digits, rows=rows, sequence=sequence)
    assert found.axes == tuple((k,) for k in sequence)
    monarch = sm.Butterfly.monarch(12, 30, dtype=F64, generator=generator)
    dense = monarch.to_dense()
    again = sm.Butterfly.from_dense(dense, 1e-14, digits=monarch.digits, rows=(3, 4), sequence=(1, 0))
    assert float((again.to_dense() - dense).norm()) <= 1e-13
    with pytest.raises(sm.ShapeError, match="each of the 2 digits"):
        sm.Butterfly.nearest(dense, monarch.digits, (3, 4), (1, 1))


def test_degenerate_blocks_give_the_zero_matrix() -> None:
    dense = torch.zeros(8, 8, dtype=F64)
    assert torch.equal(sm.Butterfly.nearest(dense).to_dense(), dense)
    dense[0, 5] = 2.0
    assert float((sm.Butterfly.nearest(dense).to_dense() - dense).norm()) <= 1e-15


def test_mixed_radix_is_the_default_and_matches_the_reference() -> None:
    dense = sm.Butterfly.random(12, 10, dtype=F64).to_dense()
    found = sm.Butterfly.nearest(dense)
    assert float((dense_of(found) - dense).norm()) <= 1e-13
    assert fp.digit_pairs(12, 10) == ((2, 2, 3), (2, 5, 1))
    assert fp.balanced(768) == (24, 32) and fp.smooth_below(131, 64) == 130
