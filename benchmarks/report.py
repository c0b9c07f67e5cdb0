"""The results of a run as a table for the eye and as JSON for the record."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Result", "read", "table", "write"]

_HEADS = ("case", "ours ms", "peer ms", "figure", "must", "aim", "met", "error ours", "error peer")


@dataclasses.dataclass
class Result:
    """One row: times in seconds (bytes for memory), the figure with its limits, errors, facts; or why there is
    none."""

    name: str
    what: str
    status: str  # "measured", "absent: <package>", "wrong: <what>"
    versus: str = "peer"
    unit: str = ""
    value: float | None = None
    spread: tuple[float, float] | None = None
    must: float | None = None
    aim: float | None = None
    met: bool | None = None
    aim_met: bool | None = None
    rounds: int = 0
    wall: dict[str, float] = dataclasses.field(default_factory=dict)
    cpu: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    facts: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether another program took more than a tenth of the processor while this was timed."""
        return any(self.wall[name] > 1.1 * used for name, used in self.cpu.items())

    @property
    def failed(self) -> bool:
        return self.status.startswith("wrong") or self.met is False

    def cells(self) -> tuple[str, ...]:
        if self.value is None:
            return (self.name, self.status, *[""] * (len(_HEADS) - 2))
        scale = 1e-6 if "MB" in self.unit else 1e3
        met = {True: "yes", False: "NO", None: "-"}[self.met]
        if self.aim_met is not None:
            met += ", aim too" if self.aim_met else ", not the aim"
        times = [_number(scale * self.wall[name]) if name in self.wall else "" for name in ("ours", self.versus)]
        errors = [_error(self.errors.get(name)) for name in ("ours", "peer")]
        limits = [_number(v) if v is not None else "-" for v in (self.must, self.aim)]
        figure = f"{_number(self.value)} {self.unit}" + (" *" if self.busy else "")
        return (self.name, *times, figure, *limits, met, *errors)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _error(errors: dict[str, float] | None) -> str:
    return f"{max(errors.values()):.1e}" if errors else ""


def table(results: Sequence[Result]) -> str:
    """The rows, aligned, with the facts of each below; a star marks figures taken while the processor was shared."""
    rows = [_HEADS, *(result.cells() for result in results)]
    measured = [row for row in rows if row[3]]
    widths = [max(len(row[k]) for row in measured) for k in range(len(_HEADS))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells if row[3] else row[:2]).rstrip())
    facts = [
        f"{result.name}: " + ", ".join(f"{key} {_number(value)}" for key, value in result.facts.items())
        for result in results
        if result.facts
    ]
    notes = ["* another program shared the processor while this was timed"] if any(r.busy for r in results) else []
    return "\n".join([*lines, "", *facts, *notes])


def write(path: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """The JSON file of a run."""
    rows = [dataclasses.asdict(result) | {"busy": result.busy} for result in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "machine": machine, "results": rows}, indent=1) + "\n")


def read(path: Path) -> list[Result]:
    """The rows of a file that ``write`` wrote."""
    rows = json.loads(path.read_text())["results"]
    return [Result(**{key: value for key, value in row.items() if key != "busy"}) for row in rows]
