"""Strategies of Tucker tensors, and of Tucker tensors as matrices: modes and ranks are drawn."""

import math
from typing import Any

import torch
from hypothesis import strategies as st

from structmat.testing.strategies_entries import Batch, Draw, Entries, Strategy, legal_kinds, strategy
from structmat.types.tucker import Tucker
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = ["tucker_matrices", "tucker_tensors"]


def _parts(d: Draw, dims: list[int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """A core and factors, of ranks 1 to 3 cut to what is legal."""
    lead, ranks = d.lead(), [min(d.integer(1, 3), size) for size in dims]
    few = [min(r, math.prod(ranks[:k]) * math.prod(ranks[k + 1 :])) for k, r in enumerate(ranks)]
    count = len(dims) + 1
    core = d.tensor(*lead, *few, factors=count)
    return core, tuple(d.tensor(*lead, size, r, factors=count) for size, r in zip(dims, few, strict=True))


@strategy()
def tucker_matrices(d: Draw) -> TuckerMatrix:
    """``TuckerMatrix``: one or two modes on each side, in any order of modes."""
    m, n = d.sizes()
    rows, columns = d.split(m, d.integer(1, 2)), d.split(n, d.integer(1, 2))
    places = d.permutation(len(rows) + len(columns))
    dims = [1] * len(places)
    for place, size in zip(places, (*rows, *columns), strict=True):
        dims[place] = size
    return TuckerMatrix(*_parts(d, dims), tuple(places[: len(rows)]), tuple(places[len(rows) :]))


def tucker_tensors(
    dtype: torch.dtype = torch.float64,
    most: int = 4,
    batch: Batch = None,
    shape: tuple[int, ...] | None = None,
    entries: Entries = None,
) -> Strategy:
    """``Tucker`` tensors of 1 to 4 modes of sizes up to ``most``, or of the shape given; they are no matrices."""
    return _tensors(dtype, most, batch, shape, legal_kinds(entries))


@st.composite
def _tensors(draw: Any, dtype: torch.dtype, most: int, batch: Batch, shape: Any, kinds: tuple[str, ...]) -> Tucker:
    d = Draw(draw, dtype, most, batch, None, kinds)
    dims = list(shape) if shape else [d.integer(1, most) for _ in range(d.integer(1, 4))]
    return Tucker(*_parts(d, dims))
