"""The directives `type-table`, `rule-table`, `pair-table`: read from the code when the page is built, never stale."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import rule_rows
from docutils import nodes
from docutils.statemachine import StringList
from readable_docstrings import escape, first_sentence
from sphinx.util.docutils import SphinxDirective

import structmat


def types() -> list[type]:
    """Return the public matrix types, in the order of ``structmat.__all__``."""
    found = [getattr(structmat, name) for name in structmat.__all__]
    return [t for t in found if isinstance(t, type) and issubclass(t, structmat.Matrix) and t is not structmat.Matrix]


class Table(SphinxDirective):
    """One row a type: name, fields, the first sentence of its docstring."""

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row as reStructuredText."""
        rows = []
        for t in types():
            fields = ", ".join(field.name for field in dataclasses.fields(t) if not field.name.startswith("_"))
            rows.append((f":class:`~structmat.{t.__name__}`", f"``{fields}``", escape(first_sentence(t))))
        return rows

    heads: ClassVar[tuple[str, ...]] = ("type", "fields", "what it is")

    def run(self) -> list[nodes.Node]:
        """Write a list-table and let docutils read it."""
        lines = [".. list-table::", "   :header-rows: 1", "   :class: wide", ""]
        for row in [self.heads, *self.rows()]:
            lines += [("   * - " if k == 0 else "     - ") + cell for k, cell in enumerate(row)]
        node = nodes.container()
        self.state.nested_parse(StringList([*lines, ""], source="type_table"), self.content_offset, node)
        return node.children


class Rules(Table):
    """One row a rule of the dispatch table: verb, types, what it does."""

    heads: ClassVar[tuple[str, ...]] = ("verb", "types", "rule")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row as reStructuredText."""
        return [(f"``{verb}``", f"``{types}``", escape(said)) for verb, types, said in rule_rows.rules()]


class Pairs(Table):
    """One row a left type: what the verb gives with each right type, where that is not plainly lazy."""

    required_arguments = 1
    heads: ClassVar[tuple[str, ...]] = ("left", "right → result")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row as reStructuredText."""
        self.env.note_dependency(str(rule_rows.PAIRS))
        return [(f"``{left}``", escape(line)) for left, line in rule_rows.pairs(self.arguments[0])]


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("type-table", Table)
    app.add_directive("rule-table", Rules)
    app.add_directive("pair-table", Pairs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
