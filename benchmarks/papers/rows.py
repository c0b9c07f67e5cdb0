"""The rows of the table: a method, its budget of trained numbers relative to LoRA of rank 8, and the rates."""

import dataclasses
from collections.abc import Callable

from structmat import adapters

__all__ = ["CONTROL", "HEAD", "HEAD_RATE", "RATES", "ROWS", "SEEDS", "Row", "chosen"]

SEEDS = (2, 3, 4)
RATES = (1e-3, 2e-3, 4e-3)
HEAD_RATE = 5e-3  # of the head, in every row
HEAD, CONTROL = "head", "lora8"


@dataclasses.dataclass(frozen=True)
class Row:
    """``budget``: the most numbers it may train, over LoRA r=8's; None: no claim is made about the row.
    ``more_rates``: tried besides those of the grid."""

    name: str
    title: str
    make: Callable[[], adapters.Method] | None
    budget: float | None = None
    more_rates: tuple[float, ...] = ()


# No row trains scales of the outputs (scale=False): the budgets count rotations alone.
ROWS = (
    Row(HEAD, "head only", None, None, (HEAD_RATE, 2 * HEAD_RATE)),  # as good a head as there is
    Row(CONTROL, "LoRA r=8", lambda: adapters.LoRA(8)),
    Row("hra8", "HRA r=8", lambda: adapters.HRA(8), 0.50),
    Row("boft8x2", "BOFT b=8 m=2", lambda: adapters.BOFT(8, 2, scale=False), 0.44),
    Row("oft32", "OFT b=32", lambda: adapters.OFT(block=32, scale=False), 0.97),
    Row("toeplitz", "SURM Toeplitz", lambda: adapters.SURM("toeplitz"), 0.125),
    Row("circulant", "SURM circulant", lambda: adapters.SURM("circulant"), 0.0625),
    Row("kronecker", "SURM Kronecker", lambda: adapters.SURM("kronecker"), 0.135),
    Row("lora1", "LoRA r=1", lambda: adapters.LoRA(1)),
)


def chosen(names: list[str] | None) -> tuple[Row, ...]:
    """The rows called ``names``, in the table's order (None: all); ValueError names the legal ones."""
    legal = [row.name for row in ROWS]
    unknown = sorted(set(names or ()) - set(legal))
    if unknown:
        raise ValueError(f"no row {', '.join(unknown)}; there are: {', '.join(legal)}")
    return tuple(row for row in ROWS if names is None or row.name in names)
