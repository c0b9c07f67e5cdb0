"""Turn the house's docstrings into reStructuredText: sections become bold, layout is kept, no character is markup.

The docstrings are written to be read in a terminal: `Stores:`, `Shape:`, `Cost:` ... start a section, an indented block
is an equation or code, and a star or an underscore is mathematics. Here everything that reStructuredText would misread
is escaped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

NAMES = (
    "Stores|Shapes?|Claims|Cost|Closed|Args|Arguments|Returns|Yields|Raises|Examples?|References?|Sources?|Dtypes?|Notes?"
    "|Memory|Gradients|Methods|Accuracy|Options"
)
SECTION = re.compile(rf"^({NAMES}):(?=\s|$)")
SECOND = re.compile(rf"(?<=[.\s])\s+(?=(?:{NAMES}):\s)")  # a further section on the same line
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)


def escape(text: str) -> str:
    """Escape emphasis, references and substitutions outside of code."""
    pieces = CODE.split(text)
    return "".join(piece if k % 2 else re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", piece) for k, piece in enumerate(pieces))


def first_sentence(thing: Any) -> str:
    """Return the first paragraph of a docstring, up to a section, in one line."""
    first = (thing.__doc__ or "").strip().split("\n\n")[0]
    return SECOND.split(" ".join(first.split()))[0]


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Split at blank lines, before each section, and where the text moves from no indentation to some."""
    current: list[str] = []
    for line in lines:
        starts = SECTION.match(line) or (
            current and line[:1] == " " and current[-1][:1] not in ("", " ") and not is_section(current)
        )
        if not line.strip() or (starts and current):
            if current:
                yield current
            current = []
        if line.strip():
            current.append(line)
    if current:
        yield current


def is_section(lines: list[str]) -> bool:
    """Whether the paragraph began with the name of a section."""
    return SECTION.match(lines[0]) is not None


def rest_of(paragraph: list[str]) -> list[str]:
    """Write one paragraph as reStructuredText."""
    match = SECTION.match(paragraph[0])
    if match:
        first = paragraph[0][match.end() :].strip()
        body = textwrap.dedent("\n".join(paragraph[1:])).splitlines()
        if any(line.lstrip().startswith((">>>", "...")) for line in [first, *body]):
            return [f"**{match[1]}**", "", "::", "", *(f"    {line}" for line in ([first] if first else []) + body), ""]
        # Line blocks keep the lines apart, as arguments and costs are written one a line.
        kept = [line for line in [first, *body] if line]
        joined = merge(kept)
        head = f"**{match[1]}:** " + escape(joined[0]) if joined else f"**{match[1]}**"
        return [head, "", *(line for text in joined[1:] for line in (f"* {escape(text)}", "")), ""]
    if paragraph[0].lstrip().startswith((">>>", "- ", "* ")) or paragraph[0][:1] == " ":
        dedented = textwrap.dedent("\n".join(paragraph)).splitlines()
        if paragraph[0].lstrip().startswith(("- ", "* ")):
            return [
                *(escape(line) if line[:2] not in ("- ", "* ") else line[:2] + escape(line[2:]) for line in dedented),
                "",
            ]
        return ["::", "", *(f"    {line}" for line in dedented), ""]
    return [*(escape(line) for line in paragraph), ""]


def merge(lines: list[str]) -> list[str]:
    """Join continuation lines (indented deeper, or running on) to the item before; an item is `name: text`."""
    items: list[str] = []
    for line in lines:
        if items and (line.startswith(" ") or not re.match(r"[\w`.*, ]{1,40}(\(.*?\))?:\s", line)):
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    return items


def rewrite(lines: list[str]) -> list[str]:
    """Write a whole docstring as reStructuredText."""
    apart = [part for line in lines for part in (SECOND.split(line) if SECTION.match(line) or ". " in line else [line])]
    return [line for paragraph in paragraphs(apart) for line in rest_of(paragraph)]


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite our docstrings in place; those inherited from torch or the standard library are dropped."""
    module = getattr(obj, "__module__", None) or getattr(getattr(obj, "fget", None), "__module__", None) or "structmat"
    lines[:] = rewrite(lines) if what == "module" or str(module).startswith("structmat") else []


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
