"""Runs tests in processes forked from one that has torch and all other packages loaded, each on a copy of the tree."""

from __future__ import annotations

import compileall
import contextlib
import importlib
import io
import json
import os
import py_compile
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

SECONDS = 60  # of processor time, a mutant
WALL = 3600  # where something waits without working
MEMORY = 8 << 30

Prepare = Callable[[Path], None] | None
Task = Callable[[Path, Path], int]  # (tree, answer file) -> exit code, run in a forked process


@dataclass
class Ended:
    """How a process ended: its exit code or the negative number of a signal, what it wrote, and how long it worked."""

    code: int
    answer: dict[str, Any]
    log: str
    seconds: float


def unpack(root: Path, revision: str, place: Path) -> None:
    """A copy of a commit below ``place``, its bytecode checked by content, so that a changed file is never stale."""
    archive = subprocess.run(["git", "archive", revision], cwd=root, capture_output=True, check=True).stdout
    place.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(place, filter="data")
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(place / "structmat", quiet=2, invalidation_mode=mode)


def load_packages(tree: Path) -> None:
    """Import here what the package and its tests import from elsewhere, so that no fork has to; never the package."""
    program = "import sys, structmat{}; print(*(m for m in sys.modules if '__' not in m))"
    program = program.format(", structmat.testing" if (tree / "structmat" / "testing").is_dir() else "")
    run = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, check=True, text=True)
    for name in [*run.stdout.split(), "mpmath", "_hypothesis_pytestplugin"]:
        if name.split(".")[0] not in ("structmat", "tests"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    assert "structmat" not in sys.modules


class Pool:
    """Up to ``jobs`` forked processes at a time, each on a tree of its own."""

    def __init__(self, trees: list[Path], scratch: Path, fresh: bool = True) -> None:
        self.free, self.scratch, self.fresh = list(trees), scratch, fresh
        self.running: dict[int, tuple[Path, Path, float, Any]] = {}
        self.number = 0

    def start(self, task: Task, label: Any, prepare: Prepare = None) -> None:
        tree, self.number = self.free.pop(), self.number + 1
        if prepare is not None:
            prepare(tree)
        answer = self.scratch / f"answer_{self.number}.json"
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _inside(task, tree, answer, self.fresh)
        self.running[child] = (tree, answer, time.monotonic(), label)

    def wait(self) -> tuple[Any, Path, Ended]:
        """The next that ends; its tree is free again. One that takes `WALL` seconds is killed."""
        while True:
            for child, (tree, answer, start, label) in list(self.running.items()):
                pid, status, usage = os.wait4(child, os.WNOHANG)
                if not pid and time.monotonic() - start > WALL:
                    os.kill(child, signal.SIGKILL)
                if pid:
                    del self.running[child]
                    self.free.append(tree)
                    log = answer.with_suffix(".log")
                    text = log.read_text(errors="replace") if log.is_file() else ""
                    said = json.loads(answer.read_text()) if answer.is_file() else {}
                    log.unlink(missing_ok=True)
                    answer.unlink(missing_ok=True)
                    seconds = usage.ru_utime + usage.ru_stime
                    return label, tree, Ended(os.waitstatus_to_exitcode(status), said, text, seconds)
            time.sleep(0.02)

    def all(self, tasks: Iterable[tuple[Any, Task, Prepare]]) -> Iterator[tuple[Any, Path, Ended]]:
        """Run every task ``(label, task, prepare)``; yield ``(label, tree, how it ended)`` as they end."""
        for label, task, prepare in tasks:
            if not self.free:
                yield self.wait()
            self.start(task, label, prepare)
        while self.running:
            yield self.wait()


def _inside(task: Task, tree: Path, answer: Path, fresh: bool) -> None:
    """The forked process: output to a file, limits set, the copy first on the path; never returns."""
    code = 70
    try:
        log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(tree)
        sys.path[:] = [str(tree)] + [p for p in sys.path if p and not Path(p, "structmat").is_dir()]
        for name in [name for name in sys.modules if fresh and name.split(".")[0] in ("tools", "tests")]:
            del sys.modules[name]
        code = task(tree, answer)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def pytest_run(tree: Path, arguments: list[str], plugin: object) -> int:
    """Run pytest here and return its exit code."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", f"--rootdir={tree}"]
    return int(pytest.main([*options, "-c", str(tree / "pyproject.toml"), *arguments], plugins=[Quick(), plugin]))


class Quick:
    """A pytest plugin: the profile that is loaded, but a failure is neither shrunk nor explained."""

    def pytest_sessionstart(self) -> None:
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings(), phases=phases, report_multiple_bugs=False, print_blob=False)
        settings.load_profile("mutants")


class Chosen:
    """A pytest plugin: only these tests, in this order; says which failed first, and how."""

    def __init__(self, tests: list[str], tree: Path, answer: Path) -> None:
        self.order = {test: k for k, test in enumerate(tests)}
        self.tree, self.answer, self.ran = tree, answer, 0
        self.failures: list[tuple[str, str]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])
        place = sys.modules["structmat"].__file__ or ""
        assert place.startswith(str(self.tree)), f"the tests import structmat from {place}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failures.append((report.nodeid, str(crash.message if crash else report.longrepr).split("\n")[0]))
            self.say()

    def say(self) -> None:
        self.answer.write_text(json.dumps({"ran": self.ran, "failures": self.failures}))


def task_of(tests: list[str], stop: bool = True, seconds: int = SECONDS) -> Task:
    """Run these tests, up to the first failure unless not to ``stop``."""

    def task(tree: Path, answer: Path) -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        plugin = Chosen(tests, tree, answer)
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        code = pytest_run(tree, [*(["-x"] if stop else []), *files], plugin)
        plugin.say()
        return code

    return task


def copies(base: Path, count: int) -> list[Path]:
    """``count`` trees: the base itself is the first."""
    more = [base.with_name(f"{base.name}_{k}") for k in range(1, count)]
    for place in more:
        shutil.copytree(base, place, symlinks=True)
    return [base, *more]
