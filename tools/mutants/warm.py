"""The quick way to try a mutant: everything is imported and collected once, and a fork exchanges one function's code.

Only a change inside a function can be tried so. One that survives is tried again from a fresh import if its function
ran already while the tests were collected: what it returned then, unchanged, may still be in use.
"""

from __future__ import annotations

import gc
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tools.mutants.server import MEMORY, SECONDS, Chosen, Pool, Task, pytest_run
from tools.mutants.sites import Mutant

Place = tuple[str, int]  # qualified name and first line


def functions_in(code: CodeType) -> Iterator[CodeType]:
    """The code of every function below a module's, however deep."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from functions_in(constant)


def changed(before: str, after: str, path: str) -> dict[Place, CodeType]:
    """The functions whose code differs: where they stand, and their new code. Classes are no functions."""
    old, new = (
        {(code.co_qualname, code.co_firstlineno): code for code in functions_in(compile(text, path, "exec"))}
        for text in (before, after)
    )
    optimised = 2  # CO_NEWLOCALS: set for functions and class bodies; functions also have CO_OPTIMIZED = 1
    return {
        place: code
        for place, code in new.items()
        if place in old and code.co_flags & 1 and code.co_flags & optimised and code != old[place]
    }


class Warm:
    """A pytest plugin that, in place of running the collected tests once, tries every mutant on its own tests."""

    def __init__(self, tree: Path, chosen: dict[Mutant, list[str]], jobs: int, said: int) -> None:
        self.tree, self.chosen, self.jobs, self.said = tree, chosen, jobs, said
        self.rows: list[dict[str, Any]] = []

    def live(self) -> dict[str, dict[Place, list[FunctionType]]]:
        """The function objects of the package, by file and place; the others are left out of later collections."""
        found: dict[str, dict[Place, list[FunctionType]]] = {}
        root = f"{self.tree}/"
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(root + "structmat/"):
                code = thing.__code__
                here = found.setdefault(code.co_filename[len(root) :], {})
                here.setdefault((code.co_qualname, code.co_firstlineno), []).append(thing)
        gc.freeze()
        return found

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        live = self.live()
        scratch = self.tree.parent / "warm"
        scratch.mkdir()
        pool = Pool([self.tree] * self.jobs, scratch, fresh=False)

        def tasks() -> Iterator[tuple[Any, Task, None]]:
            for mutant, tests in self.chosen.items():
                text = (self.tree / mutant.file).read_text()
                new = changed(text, mutant.apply(text), str(self.tree / mutant.file))
                places = live.get(mutant.file, {})
                swaps = [(f, code) for place, code in new.items() for f in places.get(place, [])]
                if swaps and all(f.__code__.co_freevars == code.co_freevars for f, code in swaps):
                    yield mutant, self.task_of(swaps, [items[test] for test in tests if test in items]), None

        for mutant, _, ended in pool.all(tasks()):
            row = {"key": mutant.key, "code": ended.code, "answer": ended.answer, "seconds": ended.seconds}
            self.rows.append(row | {"log": ended.log[-3000:]})
            os.write(self.said, f"  {len(self.rows)} {ended.code} {ended.seconds:.1f} s {mutant.id}\n".encode())
        return True

    def task_of(self, swaps: list[tuple[FunctionType, CodeType]], items: list[pytest.Item]) -> Task:
        def task(tree: Path, answer: Path) -> int:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            for function, code in swaps:
                function.__code__ = code
            notes = Chosen([], tree, answer)
            items[0].config.pluginmanager.register(notes, "notes of one mutant")
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if notes.failures:
                    break
            notes.say()
            return int(bool(notes.failures))

        return task


def warm_task(chosen: dict[Mutant, list[str]], jobs: int, said: int) -> Task:
    """Try these mutants on these tests; the answer is a list of ``{key, code, answer, seconds, log}``."""

    def task(tree: Path, answer: Path) -> int:
        plugin = Warm(tree, chosen, jobs, said)
        files = sorted({test.split("::")[0] for tests in chosen.values() for test in tests})
        code = pytest_run(tree, ["-s", "--continue-on-collection-errors", *files], plugin)
        answer.write_text(json.dumps({"rows": plugin.rows}))
        return code

    return task
