"""Strategies of butterflies: sizes and the order of factors are drawn, and the seed of the entries."""

from typing import Any

import torch
from hypothesis import strategies as st

from structmat.functional import butterfly_peel as fp
from structmat.testing.example import numbers
from structmat.types.butterfly import Butterfly
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__ = ["butterflies", "orthogonal_butterflies"]

Strategy = st.SearchStrategy[Any]


def _batches(batch: tuple[int, ...] | None) -> Strategy:
    return st.just(batch) if batch is not None else st.sampled_from([(), (), (2,), (2, 1)])


def butterflies(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``Butterfly`` in mixed radix of any shape, or of the shape given; its factors in any order of digits."""
    sizes = st.just(shape) if shape else st.tuples(st.integers(1, most), st.integers(1, most))

    def build(drawn: Any) -> Strategy:
        lead, (m, n) = drawn
        rows, digits = fp.digit_pairs(m, n)

        def form(sequence: list[int], seed: int) -> Butterfly:
            generator, now, blocks = torch.Generator().manual_seed(seed), list(digits), []
            for k in sequence:
                rest = 1
                for other, size in enumerate(now):
                    rest *= size if other != k else 1
                blocks.append(numbers(generator, dtype, *lead, rest, rows[k], digits[k]) / digits[k] ** 0.5)
                now[k] = rows[k]
            return Butterfly(tuple(blocks), digits, tuple((k,) for k in sequence))

        return st.builds(form, st.permutations(range(len(digits))), st.integers(0, 2**31 - 1))

    return st.tuples(_batches(batch), sizes).flatmap(build)


def orthogonal_butterflies(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``OrthogonalButterfly`` of order n with the factors that are legal, in either order."""

    def build(drawn: Any) -> Strategy:
        lead, order = drawn
        b, m = OrthogonalButterfly.sizes(order)

        def form(seed: int, reverse: bool) -> OrthogonalButterfly:
            generator = torch.Generator().manual_seed(seed)
            skew = numbers(generator, dtype, *lead, m, order // b, b * (b - 1) // 2)
            return OrthogonalButterfly(skew, reverse)

        return st.builds(form, st.integers(0, 2**31 - 1), st.booleans())

    return st.tuples(_batches(batch), st.integers(1, most) if n is None else st.just(n)).flatmap(build)
