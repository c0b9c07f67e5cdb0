"""The Python blocks of the README and of the documentation run, page by page; so do the examples of docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import structmat

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts and BLOCK.search(path.read_text())
)


def program_of(text: str) -> str:
    """Return the blocks of a page as one program in which each line stands where it stands on the page."""
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        start = text.count("\n", 0, match.start(1))
        block = match[1].splitlines()
        lines[start : start + len(block)] = block
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "structmat.adapters.peft" in page.read_text():
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)  # a page may save files
    exec(compile(program_of(page.read_text()), str(page), "exec", dont_inherit=True), {"__name__": "__page__"})


class Parser(doctest.DocTestParser):
    """Ends an example where the next section of a docstring of this house begins, blank line or not."""

    def parse(self, string: str, name: str = "<string>") -> list[str | doctest.Example]:
        return super().parse(re.sub(r"(?m)^( *)(?=[A-Z][a-z]+:(?: |$))", r"\n\1", string), name)


MODULES = sorted(found.name for found in pkgutil.walk_packages(structmat.__path__, "structmat."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("structmat.adapters.peft"):
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(parser=Parser(), exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(importlib.import_module(name), extraglobs={"sm": structmat, "torch": torch}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_pages_have_been_found() -> None:
    assert len(PAGES) >= 6


def test_a_wrong_block_fails_on_its_own_line() -> None:
    with pytest.raises(AssertionError) as caught:
        exec(
            compile(program_of("words\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"), "page.md", "exec"),
            {},
        )
    assert caught.traceback[-1].lineno == 7  # pytest counts from 0: line 8 of the page
