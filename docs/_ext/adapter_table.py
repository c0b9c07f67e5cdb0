"""The directives `adapter-table` and `refused-table`: methods and refused combinations, read when the page is built."""

from __future__ import annotations

from typing import Any, ClassVar

import adapter_rows
from readable_docstrings import escape
from type_table import Table


class Methods(Table):
    """One row a method: what it does, its numbers, its layers, whether it merges, what it is for."""

    heads: ClassVar[tuple[str, ...]] = adapter_rows.HEADS

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row as reStructuredText."""
        return [tuple(escape(cell) for cell in row) for row in adapter_rows.rows()]


class Refused(Table):
    """One row a kind of change that some layers refuse, with the reason."""

    heads: ClassVar[tuple[str, ...]] = ("layers", "change", "why it is refused")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row as reStructuredText."""
        return [tuple(escape(cell) for cell in row) for row in adapter_rows.refused()]


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("adapter-table", Methods)
    app.add_directive("refused-table", Refused)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
