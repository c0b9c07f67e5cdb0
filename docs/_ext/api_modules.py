"""The directive `api-modules structmat.a structmat.b`: the reference of these modules, and of public ones inside."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def inside(name: str) -> list[str]:
    """Return the module and, unless its `__all__` speaks for them, the public modules inside it, sorted."""
    module = importlib.import_module(name)
    found = [f"{name}.{m.name}" for m in pkgutil.iter_modules(getattr(module, "__path__", [])) if m.name[0] != "_"]
    return [name] if getattr(module, "__all__", None) else [name, *sorted(found)]


class ApiModules(SphinxDirective):
    """One section a module: its text, and its members with their signatures."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = False

    def run(self) -> list[nodes.Node]:
        """Write an automodule a module and let autodoc read it."""
        result: list[nodes.Node] = []
        for argument in self.arguments[0].split():
            for name in inside(argument):
                lines = [f".. automodule:: {name}", "   :members:", "   :show-inheritance:", ""]
                section = nodes.section(ids=[nodes.make_id(name)])
                section += nodes.title("", "", nodes.literal(text=name))
                self.state.nested_parse(StringList(lines, source="api_modules"), self.content_offset, section)
                result.append(section)
        return result


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("api-modules", ApiModules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
