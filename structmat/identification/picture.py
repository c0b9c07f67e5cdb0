"""The picture of an identification: error against parameters, and the singular values that explain it."""

from pathlib import Path
from typing import Any

import torch

from structmat import _optional

__all__ = ["draw"]

_MARKS = "osD^v<>pPX*h"


def draw(found: Any, path: str | Path | None) -> Any:
    """A figure of two or three panels, without the global state of pyplot; also written to ``path``."""
    figure_module = _optional.need("matplotlib.figure", "examples")
    displaced = found.displacement_singular_values
    panels = 2 if displaced is None else 3
    figure = figure_module.Figure(figsize=(4.4 * panels + 1.6, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, width_ratios=(1.3, *[1] * (panels - 1)))
    _errors(axes[0], found)
    _spectrum(axes[1], found.singular_values, "singular values", "C0")
    if displaced is not None:
        _spectrum(axes[2], displaced, "displacement singular values", "C3")
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _errors(ax: Any, found: Any) -> None:
    """One mark a row, one colour a structure, the Pareto front as a step; without Zero and Dense, its known ends."""
    floor = float(torch.finfo(found.dtype).eps)
    shown = [row for row in found.rows if row.structure not in ("Zero", "Dense")]
    for place, kind in enumerate(dict.fromkeys(row.structure for row in shown)):
        x, y = _points([row for row in shown if row.structure == kind], floor)
        ax.plot(x, y, _MARKS[place // 10 % len(_MARKS)], color=f"C{place % 10}", ms=4, label=kind)
    ax.step(*_points([row for row in shown if row.pareto], floor), where="post", color="0.6", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="relative error", title="Error against parameters")
    if shown:
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _points(rows: list[Any], floor: float) -> tuple[list[float], list[float]]:
    """Parameters and errors, on axes that have no zero."""
    rows = sorted(rows, key=lambda row: (row.parameters, -row.error))
    return [max(row.parameters, 0.5) for row in rows], [max(row.error, floor) for row in rows]


def _spectrum(ax: Any, values: torch.Tensor, title: str, color: str) -> None:
    """Relative to the largest; what is far below its rounding is not drawn."""
    shown = values.double()
    shown = shown / shown[0] if shown.numel() and float(shown[0]) else shown
    seen = shown > 1e-3 * float(torch.finfo(values.dtype).eps)
    place = torch.arange(1, len(shown) + 1, device=shown.device)[seen]
    ax.plot(place.tolist(), shown[seen].tolist(), ".-", color=color, ms=3, lw=0.8)
    ax.set(yscale="log", xlabel="index", title=title)
