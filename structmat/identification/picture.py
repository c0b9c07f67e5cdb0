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
    figure = figure_module.Figure(figsize=(4.6 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    _errors(axes[0], found)
    _spectrum(axes[1], found.singular_values, "singular values", "C0")
    if displaced is not None:
        _spectrum(axes[2], displaced, "displacement singular values", "C3")
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _errors(ax: Any, found: Any) -> None:
    """One mark a row, one colour a structure, the Pareto front as a step."""
    floor = torch.finfo(found.dtype).eps
    kinds = list(dict.fromkeys(row.structure for row in found.rows))
    for place, kind in enumerate(kinds):
        rows = sorted((row for row in found.rows if row.structure == kind), key=lambda row: row.parameters)
        x, y = [max(row.parameters, 0.5) for row in rows], [max(row.error, floor) for row in rows]
        mark = _MARKS[place // 10 % len(_MARKS)]
        ax.plot(x, y, mark, color=f"C{place % 10}", ms=4, label=kind)
    front = found.front
    x, y = [max(row.parameters, 0.5) for row in front], [max(row.error, floor) for row in front]
    ax.step(x, y, where="post", color="0.6", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="relative error", title="Error against parameters")
    ax.legend(fontsize=7, frameon=False, loc="lower left")


def _spectrum(ax: Any, values: torch.Tensor, title: str, color: str) -> None:
    """Relative to the largest; zeros are not drawn."""
    shown = values.double()
    shown = shown / shown[0] if shown.numel() and float(shown[0]) else shown
    place = torch.arange(1, len(shown) + 1)[shown > 0]
    ax.plot(place.tolist(), shown[shown > 0].tolist(), ".-", color=color, ms=3, lw=0.8)
    ax.set(yscale="log", xlabel="index", title=title)
    ax.set_ylim(bottom=max(1e-20, float(torch.finfo(values.dtype).eps) * 1e-2))
