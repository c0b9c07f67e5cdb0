"""The rows of the table: what is attached, and the learning rates that were tried and chosen.

One grid, the same four rates for every row. ``ROWS`` holds the defaults, ``--tune`` chooses on the dev side instead;
docs/guides/demo.md has the grid's accuracies and how the defaults follow from them. Head only tunes the rate of its
head over the grid; the other rows tune the rate of the adapter, their head learns at ``HEAD_RATE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from structmat import adapters

__all__ = ["GRID", "HEAD_RATE", "ROWS", "Row", "choose"]

GRID = (1e-3, 3e-3, 1e-2, 3e-2)
HEAD_RATE = 3e-3


@dataclass(frozen=True)
class Row:
    """A short name for commands and folders, a title for the table, the method (None: head only), the chosen rate."""

    name: str
    title: str
    make: Callable[[], Any] | None
    rate: float


ROWS = (
    Row("head", "head only", None, 3e-3),
    Row("lora", "LoRA r=8 (control)", lambda: adapters.LoRA(rank=8), 3e-3),
    Row("hra", "HRA r=8", lambda: adapters.HRA(rank=8), 1e-2),
    Row("circulant", "SURM circulant", lambda: adapters.SURM("circulant"), 1e-2),
    Row("toeplitz", "SURM Toeplitz", lambda: adapters.SURM("toeplitz"), 1e-2),
)


def choose(names: Sequence[str]) -> list[Row]:
    """The rows called ``names``, in the table's order; ``ValueError`` names the legal ones."""
    legal = [row.name for row in ROWS]
    for name in names:
        if name not in legal:
            raise ValueError(f"--methods: {name!r} is none of {', '.join(legal)}")
    if not names:
        raise ValueError(f"--methods is empty; choose from {', '.join(legal)}")
    return [row for row in ROWS if row.name in names]
