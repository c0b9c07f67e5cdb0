"""What every check gives back: a number, what it is judged by, how it was found, and how sure that is."""

import dataclasses
import math
from typing import Any

__all__ = ["Report"]


@dataclasses.dataclass(frozen=True)
class Report:
    """One measurement: ``value`` is to be at most ``tolerance``, ``ok`` says whether it is.

    ``method`` says how it was found (from the entries, or from products with so many random vectors of this seed).
    ``failure_probability``: that of an ``ok`` given to a matrix whose value exceeds ``details["factor"] * tolerance``,
    over the draw of the random vectors; 0 where all entries were looked at. 1 where no certificate exists.
    ``details``: bounds, gaps, and ``"worst"``, the place in the batch of the worst matrix, which is the one reported.

    A report compares like its value, converts with ``float``, ``int`` and ``bool`` (ok), and prints one line.
    """

    name: str
    value: float
    tolerance: float
    ok: bool
    method: str = "from the entries"
    failure_probability: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return self.ok

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Report):
            mine = (self.name, self.value, self.tolerance, self.ok)
            return mine == (other.name, other.value, other.tolerance, other.ok)
        return isinstance(other, (int, float)) and self.value == other

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Any) -> bool:
        return self.value < float(other)

    def __le__(self, other: Any) -> bool:
        return self.value <= float(other)

    def __gt__(self, other: Any) -> bool:
        return self.value > float(other)

    def __ge__(self, other: Any) -> bool:
        return self.value >= float(other)

    def __str__(self) -> str:
        parts = [f"{'within' if self.ok else 'OUTSIDE'} {self.tolerance:.3g}", self.method]
        if self.ok and self.failure_probability:
            parts.append(f"wrong with probability at most {min(1.0, self.failure_probability):.2g}")
        parts += [text for key, value in self.details.items() if (text := _shown(key, value))]
        return f"{self.name}: {self.value:.6g} ({'; '.join(parts)})".replace("\n", " ")


def _shown(key: str, value: Any) -> str:
    """A detail as words; of other reports only those that are not ok."""
    if isinstance(value, Report):
        return "" if value.ok else f"{key}: {value}"
    if isinstance(value, bool):
        return key if value else ""
    if isinstance(value, float):
        return "" if math.isinf(value) else f"{key} {value:.3g}"
    return f"{key} {value}"
