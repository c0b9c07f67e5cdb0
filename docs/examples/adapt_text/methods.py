"""The rows of the table: what is attached, and the learning rates that were tried and chosen.

One rate serves every row: the methods move a layer equally far in one step of Adam (structmat.adapters.pace). With
``--tune`` each row chooses from the same four rates on the dev side instead. Head only tunes the rate of its head; the
other rows tune the rate of the adapter, their head learns at ``HEAD_RATE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from structmat import adapters

__all__ = ["DIGITS", "GRID", "HEAD_RATE", "ROWS", "Row", "choose"]

GRID = (1e-3, 3e-3, 1e-2, 3e-2)
RATE = 3e-3
HEAD_RATE = 3e-3
DIGITS = "flora"  # stands for the second part of the demo, on pictures (digits.py)


@dataclass(frozen=True)
class Row:
    """A short name for commands and folders, a title for the table, the method (None: head only), the chosen rate."""

    name: str
    title: str
    make: Callable[[], Any] | None
    rate: float


ROWS = (
    Row("head", "head only", None, RATE),
    Row("lora", "LoRA r=8 (control)", lambda: adapters.LoRA(rank=8), RATE),
    Row("hra", "HRA r=8", lambda: adapters.HRA(rank=8), RATE),
    Row("boft", "BOFT b=8 m=2", lambda: adapters.BOFT(block=8, factors=2), RATE),
    Row("circulant", "SURM circulant", lambda: adapters.SURM("circulant"), RATE),
    Row("toeplitz", "SURM Toeplitz", lambda: adapters.SURM("toeplitz"), RATE),
    Row("ldr", "SURM LDR r=1", lambda: adapters.SURM("ldr"), RATE),
)


def choose(names: Sequence[str]) -> list[Row]:
    """The rows called ``names``, in the table's order (``DIGITS`` is none); ``ValueError`` names the legal ones."""
    legal = [*(row.name for row in ROWS), DIGITS]
    for name in names:
        if name not in legal:
            raise ValueError(f"--methods: {name!r} is none of {', '.join(legal)}")
    if not names:
        raise ValueError(f"--methods is empty; choose from {', '.join(legal)}")
    return [row for row in ROWS if row.name in names]
