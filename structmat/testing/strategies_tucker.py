"""Strategies of Tucker tensors as matrices: the modes, their ranks and the seed of the entries are drawn."""

import math
from typing import Any

import torch
from hypothesis import strategies as st

from structmat.testing.example import numbers
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = ["tucker_matrices"]

Strategy = st.SearchStrategy[Any]


def _batches(batch: tuple[int, ...] | None) -> Strategy:
    return st.just(batch) if batch is not None else st.sampled_from([(), (), (2,), (2, 1)])


def _split(n: int) -> Strategy:
    """One or two sizes whose product is n."""
    return st.sampled_from([(n,), *((p, n // p) for p in range(2, n) if n % p == 0)])


def tucker_matrices(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``TuckerMatrix`` of any shape, or of the shape given: one or two modes on each side, in any order of modes."""
    sizes = st.just(shape) if shape else st.tuples(st.integers(1, most), st.integers(1, most))

    def build(drawn: Any) -> Strategy:
        lead, rows, columns = drawn
        order = len(rows) + len(columns)

        def form(places: list[int], ranks: list[int], seed: int) -> TuckerMatrix:
            generator, dims = torch.Generator().manual_seed(seed), [1] * order
            for place, size in zip(places, (*rows, *columns), strict=True):
                dims[place] = size
            few = [min(r, d) for r, d in zip(ranks, dims, strict=True)]
            few = [min(r, math.prod(few[:k]) * math.prod(few[k + 1 :])) for k, r in enumerate(few)]
            kernel = numbers(generator, dtype, *lead, *few)
            pairs = zip(dims, few, strict=True)
            factors = tuple(numbers(generator, dtype, *lead, d, r) / r**0.5 for d, r in pairs)
            return TuckerMatrix(kernel, factors, tuple(places[: len(rows)]), tuple(places[len(rows) :]))

        ranks = st.lists(st.integers(1, 3), min_size=order, max_size=order)
        return st.builds(form, st.permutations(range(order)), ranks, st.integers(0, 2**31 - 1))

    both = sizes.flatmap(lambda mn: st.tuples(_split(mn[0]), _split(mn[1])))
    return st.tuples(_batches(batch), both).map(lambda drawn: (drawn[0], *drawn[1])).flatmap(build)
