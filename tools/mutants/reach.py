"""Which tests run which functions: recorded once a test file, and the choice of tests for a mutant made from it."""

from __future__ import annotations

import contextlib
import cProfile
import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tools.mutants.sites import Mutant

# Tests that say nothing about values (names, sizes of files, the documentation), compile, or need another program.
LEFT_OUT = (
    "test_mutants.py",
    "test_public_api.py",
    "test_floors.py",
    "test_workshop.py",
    "test_docs.py",
    "test_docs_examples.py",
    "test_demo_data.py",
    "test_demo_run.py",
    "test_benchmarks.py",
    "test_compile.py",
    "test_peers.py",
)
BUDGET = 24.0  # recorded seconds of tests and of collecting their files, a mutant


@dataclass
class Reach:
    """What one test file runs: the functions called while it is collected, and by each test that passed."""

    file: str
    digest: str
    seconds: float = 0.0  # to collect it
    collected: list[str] = field(default_factory=list)
    tests: dict[str, tuple[float, list[str]]] = field(default_factory=dict)


class Recorder:
    """A pytest plugin that notes the functions of the package called by each test, by way of the C profiler."""

    def __init__(self, tree: Path, file: str) -> None:
        self.root = f"{tree}/"
        self.reach = Reach(file, digest_of(tree / file))
        self.failed: set[str] = set()

    @contextlib.contextmanager
    def watch(self) -> Iterator[tuple[list[float], list[str]]]:
        """What runs inside: ``([seconds], names)``, filled in at the end."""
        seconds: list[float] = []
        names: list[str] = []
        profiler, start = cProfile.Profile(builtins=False, subcalls=False), time.process_time()
        profiler.enable()
        yield seconds, names
        profiler.disable()
        seconds.append(round(time.process_time() - start, 4))
        found = set()
        for entry in profiler.getstats():
            file = getattr(entry.code, "co_filename", "")
            if file.startswith(self.root + "structmat/"):
                parts = [part for part in entry.code.co_qualname.split(".") if not part.startswith("<")]  # type: ignore[union-attr]
                found.add(f"{file[len(self.root) :]} {'.'.join(parts) or '<module>'}")
        names.extend(sorted(found))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with self.watch() as (seconds, names):
            yield
        self.reach.seconds, self.reach.collected = seconds[0], names

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with self.watch() as (seconds, names):
            yield
        if item.nodeid not in self.failed and names:
            self.reach.tests[item.nodeid] = (seconds[0], names)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:  # a skipped or failing test kills nothing
            self.failed.add(report.nodeid)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self.reach)))


def digest_of(path: Path) -> str:
    """What changes when a file does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_files(tree: Path) -> list[str]:
    """The test files that count, those of the library itself: not the adapters'."""
    return [f"tests/{path.name}" for path in sorted((tree / "tests").glob("test_*.py")) if path.name not in LEFT_OUT]


def record_path(folder: Path, file: str) -> Path:
    """Where the record of a test file lies."""
    return folder / f"reach_{Path(file).stem}.json"


def missing(tree: Path, folder: Path, stale: bool = False) -> list[str]:
    """The test files whose record is not there, or of another text unless a ``stale`` one will do."""
    found = []
    for file in test_files(tree):
        path = record_path(folder, file)
        if not path.is_file() or (not stale and json.loads(path.read_text())["digest"] != digest_of(tree / file)):
            found.append(file)
    return found


class Map:
    """From functions to the tests that call them."""

    def __init__(self, records: list[Reach]) -> None:
        self.cost = {record.file: record.seconds for record in records}
        self.collected = {name for record in records for name in record.collected}
        self.seconds: dict[str, float] = {}
        self.by_function: dict[str, list[str]] = defaultdict(list)
        self.by_module: dict[str, list[str]] = defaultdict(list)
        for record in records:
            for test, (seconds, called) in record.tests.items():
                self.seconds[test] = seconds
                for name in called:
                    self.by_function[name].append(test)
                for module in {name.split(" ")[0] for name in called}:
                    self.by_module[module].append(test)

    @classmethod
    def read(cls, tree: Path, folder: Path) -> Map:
        records = []
        for file in test_files(tree):
            path = record_path(folder, file)
            if path.is_file():
                records.append(Reach(**json.loads(path.read_text())))
        return cls(records)

    def candidates(self, file: str, function: str) -> list[str]:
        """The tests that call the function; where none is known, those of what it is defined in, at last the file."""
        name = function
        while name:
            if tests := self.by_function.get(f"{file} {name}"):
                return tests
            name = name.rpartition(".")[0]
        return self.by_module.get(file, [])

    def early(self, mutant: Mutant) -> bool:
        """Whether the function runs while tests are collected."""
        return f"{mutant.file} {mutant.function}" in self.collected

    def select(self, mutant: Mutant, budget: float = BUDGET) -> list[str]:
        """Tests in the order in which to run them: those in a file named like the module, cheapest first, for half of
        the budget, then one of each other file in turn, cheapest first."""
        tests = sorted(self.candidates(mutant.file, mutant.function), key=lambda test: (self.seconds[test], test))
        own = [test for test in tests if named_like(test.split("::")[0], mutant.file)]
        others: dict[str, list[str]] = defaultdict(list)
        for test in tests:
            if test not in set(own):
                others[test.split("::")[0]].append(test)
        turns = [test for row in itertools.zip_longest(*others.values()) for test in row if test is not None]
        chosen: list[str] = []
        opened: set[str] = set()
        spent = 0.0
        for limit, queue in ((budget / 2, own), (budget, turns), (budget, own)):
            for test in queue:
                file = test.split("::")[0]
                price = self.seconds[test] + (0.0 if file in opened else self.cost[file])
                if test not in chosen and spent + price <= limit:
                    chosen.append(test)
                    opened.add(file)
                    spent += price
        return chosen or tests[:1]


def named_like(test_file: str, module: str) -> bool:
    """Whether the names say that the tests are those of the module: test_krylov_solve.py and krylov/definite.py."""
    test, parts = Path(test_file).stem.removeprefix("test_"), Path(module).with_suffix("").parts[2:]
    names = [name.removesuffix("_family").removeprefix("_") for name in parts] or ["claims"]
    return any(name in test or test in name for name in names)
