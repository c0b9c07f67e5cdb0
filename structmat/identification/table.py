"""What an identification found: one row a structure, the best first."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from structmat import _optional
from structmat._shell import name_of
from structmat.errors import NotStructuredError
from structmat.identification import picture

__all__ = ["Candidate", "Identification"]

_SHOWN = 12  # rows that print shows; the others are counted
_FAR = 0.5  # a relative error above which a structure is not called near


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One structure near the matrix.

    ``structure``, ``settings``: the type and what it was told; ``parameters``: how many numbers it stores; ``error``:
    ``||M - A||_F / ||M||_F``, in the precision computed in; ``exact``: the error is rounding; ``adjusted``:
    ``error / (1 - parameters / entries)``, by which rows are ordered; ``pareto``: no row is as small and nearer, or
    as near and smaller.
    """

    structure: str
    settings: Mapping[str, Any]
    parameters: int
    error: float
    exact: bool
    adjusted: float
    pareto: bool
    _make: Callable[[], Any] = dataclasses.field(repr=False, compare=False)

    def build(self) -> Any:
        """The matrix of this structure (for a tensor a ``Tucker``, or the matrix of its unfolding), in the dtype that
        was given; computed anew at each call."""
        return self._make()

    def record(self) -> dict[str, Any]:
        """The row as plain Python values, as ``to_pandas`` and ``--json`` give it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name[0] != "_"}
        plain["adjusted"] = self.adjusted if math.isfinite(self.adjusted) else None
        return plain | {"settings": dict(self.settings)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Views of dictionaries do not pickle: the dictionary itself goes."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _restored, (values | {"settings": dict(self.settings)},)

    def label(self) -> str:
        """``LowRank rank=4``."""
        return " ".join((self.structure, *_settings(self.settings)))


def _restored(values: dict[str, Any]) -> Candidate:
    return Candidate(**values | {"settings": MappingProxyType(values["settings"])})


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
    """The rows of ``sm.identify``, the best first: exact ones, the smallest first; the others by ``adjusted``; Zero
    and Dense last. Prints as a table; indexed and iterated as its rows. Keeps a copy of the matrix, of which it builds.

    ``shape``, ``dtype``: of what was given; ``budget``: the numbers allowed; ``singular_values``: of the matrix (of a
    tensor: of its unfolding along mode 0), descending; ``displacement_singular_values``: those of ``Z_1 M - M Z_-1``,
    None unless square.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    budget: int
    rows: tuple[Candidate, ...]
    singular_values: torch.Tensor
    displacement_singular_values: torch.Tensor | None

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> Candidate:
        return self.rows[k]

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front, the fewest parameters first."""
        return tuple(sorted((row for row in self.rows if row.pareto), key=lambda row: row.parameters))

    def best(self, tol: float | None = None, parameters: int | None = None) -> Candidate:
        """Of the rows: without arguments the first; with ``tol`` the smallest of an error up to it (or exact); with
        ``parameters`` the nearest that stores no more; with both, the smallest that keeps to both.

        Raises NotStructuredError, with the least error there is, where no row does; ValueError for a negative number.
        """
        for name, value in (("tol", tol), ("parameters", parameters)):
            if value is not None and not value >= 0:
                raise ValueError(f"best({name}={value!r}): a number that is not negative is needed")
        if tol is None and parameters is None:
            return self.rows[0]
        fit = [row for row in self.rows if parameters is None or row.parameters <= parameters]
        near = [row for row in fit if tol is None or row.exact or row.error <= tol]
        if near:
            by_size = tol is not None
            return min(near, key=lambda row: (row.parameters, row.error) if by_size else _nearness(row))
        wanted = f"best(tol={tol!r}, parameters={parameters!r}) of {self!r}"
        if not fit:
            least = min(self.rows, key=lambda row: row.parameters)
            raise NotStructuredError(f"{wanted}: the smallest row, {least.label()}, stores {least.parameters} numbers")
        nearest = min(fit, key=lambda row: row.error)
        raise NotStructuredError(
            f"{wanted}: the nearest row, {nearest.label()}, is at {nearest.error:.2e} with {nearest.parameters} "
            f"numbers; raise tol, parameters, or the budget of identify (now {self.budget})",
            nearest.error,
        )

    def __repr__(self) -> str:
        first = self.rows[0]
        return (
            f"Identification(shape={self.shape}, dtype={name_of(self.dtype)}, rows={len(self.rows)}, "
            f"first={first.label()!r}, parameters={first.parameters}, error={first.error:.1e})"
        )

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, rows: int | None = _SHOWN) -> str:
        """The table as text: the first rows (None: all), a star at those of the Pareto front."""
        shown = self.rows[:rows]
        dense = math.prod(self.shape)
        cells = [("structure", "parameters", "of dense", "error", "")]
        for row in shown:
            error = "exact" if row.exact else f"{row.error:.2e}"
            size = f"{100 * row.parameters / dense:.3g} %"
            cells.append((row.label(), f"{row.parameters}", size, error, "*" if row.pareto else ""))
        widths = [max(len(line[k]) for line in cells) for k in range(5)]
        sizes = " x ".join(str(s) for s in self.shape)
        text = [f"{sizes}, {name_of(self.dtype)}, {dense} entries: {self._verdict()}", ""]
        for line in cells:
            first = line[0].ljust(widths[0])
            others = "  ".join(line[k].rjust(widths[k]) for k in range(1, 4))
            text.append(f"{first}  {others}  {line[4]}".rstrip())
        left = len(self.rows) - len(shown)
        text.append("* nothing smaller is as near" + (f"; {left} rows more in .rows" if left else ""))
        return "\n".join(text)

    def _verdict(self) -> str:
        first = self.rows[0]
        if first.exact and first.structure != "Dense":
            return f"{first.label()}, exactly"
        if first.structure in ("Dense", "Zero") or first.error > _FAR:
            near = min((row for row in self.rows if row.structure != "Dense"), key=_nearness, default=first)
            return f"no small structure is near; the nearest is {near.label()}, at {near.error:.2g}"
        return f"near {first.label()}"

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain Python values."""
        return [row.record() for row in self.rows]

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``, settings as text. Needs pandas: ``pip install 'structmat[examples]'``."""
        pandas = _optional.need("pandas", "examples")
        lines = [record | {"settings": " ".join(_settings(record["settings"]))} for record in self.records()]
        return pandas.DataFrame(lines)

    def plot(self, path: str | Path | None = None) -> Any:
        """Error against parameters, singular values, displacement singular values: a ``matplotlib`` figure, also
        written to ``path``. Needs matplotlib: ``pip install 'structmat[examples]'``."""
        return picture.draw(self, path)


def _nearness(row: Candidate) -> tuple[float, int]:
    """Exact rows are equally near."""
    return (0.0 if row.exact else row.error), row.parameters


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    """``rank=4``; the name alone for what is true."""
    for key, value in settings.items():
        yield key if value is True else f"{key}={_shown(value)}"


def _shown(value: Any) -> str:
    """Sizes as 3x4, many equal ones as 2^10, and lists of sizes with commas."""
    if not isinstance(value, tuple):
        return f"{value}"
    if len(value) > 2 and len(set(value)) == 1 and isinstance(value[0], int):
        return f"{value[0]}^{len(value)}"
    return ("," if isinstance(value[0], tuple) else "x").join(_shown(v) for v in value)
