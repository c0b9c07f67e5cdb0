"""``make gpu`` without a GPU: every row's code runs, and failures, hangs and interruptions are recorded, not fatal."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import lanes, report, worker
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.row import Context, Result, Row, at_least, at_most
from benchmarks.gpu.toeplitz import crossing

ROOT = Path(__file__).resolve().parents[1]


def read(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("gpu-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_dry_run_measures_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("triton")
    assert program.main(["--dry-run", "--out", str(tmp_path), "--budget", "900", "--row-limit", "300"]) == 0
    record = read(tmp_path)
    assert [row["row"] for row in record["rows"]] == [row.name for row in worker.ROWS]
    assert all(v["value"] is not None for row in record["rows"] for v in row["results"] if "copy" in v["name"])
    assert record["correctness"]["passed"] > 20 and record["smoke"]["passed"] > 20
    assert record["setting"]["versions"]["torch"] == torch.__version__
    assert "every row ran" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "REQUIRED", ("torch",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lanes, "REQUIRED", ("torch", "no_such_package"))
    assert program.main([]) == 2
    assert "missing: no_such_package" in capsys.readouterr().out


def broken(c: Context) -> list[Result]:
    raise RuntimeError("this row fails")


def fatal(c: Context) -> list[Result]:
    return [Result("poisoned", None, "x", errors={"kernel": "RuntimeError: CUDA error: an illegal memory access"})]


def fine(c: Context) -> list[Result]:
    return [Result("fine", 2.0, "x", at_least(1), at_least(3))]


def test_a_row_that_fails_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        worker, "ROWS", (Row("broken", broken), Row("fine", fine), Row("fatal", fatal), Row("never", fine))
    )
    assert worker.main(["--dry-run"]) == 3  # another process goes on from the row after the fatal one
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ends = {line["row"]: line for line in said if "end" in line}
    assert ends["broken"]["error"] == "RuntimeError: this row fails" and not ends["broken"]["results"]
    assert ends["fine"]["results"][0]["verdict"] == "aim missed" and "never" not in ends
    assert worker.main(["--dry-run", "--first", "3"]) == 0


CHILD = """
import json, sys, time
first = int(sys.argv[1])
def say(**line): print(json.dumps(line), flush=True)
for k, what in enumerate(["good", "dies", "hangs", "spoils", "good"]):
    if k < first: continue
    say(start=k, row=f"{k} {what}")
    if what == "dies": sys.exit(11)
    if what == "hangs": time.sleep(600)
    say(end=k, row=f"{k} {what}", results=[], copy_rate=1.0)
    if what == "spoils": sys.exit(3)
"""


def rows_of(monkeypatch: pytest.MonkeyPatch, limit: float, deadline: float) -> list[dict[str, Any]]:
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", CHILD, command[command.index("--first") + 1]], **options)

    monkeypatch.setattr(program.subprocess, "Popen", start)
    return list(program.Rows([], limit).measure(5, time.monotonic() + deadline))


def test_processes_that_die_hang_or_spoil_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of(monkeypatch, 3.0, 600.0)
    assert [row["row"] for row in found] == ["0 good", "1 dies", "2 hangs", "3 spoils", "4 good"]
    assert [row.get("error", "") for row in found] == ["", "the process ended with 11", "over 3 s", "", ""]


def test_the_budget_ends_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    found = rows_of(monkeypatch, 500.0, 4.0)
    assert time.monotonic() - start < 30
    assert found[-1] == {"row": "2 hangs", "end": 2, "results": [], "error": "the time of the run was over"}


def test_an_interrupted_run_leaves_its_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--timings-only", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("bf16 GEMM rate"):
            break
    child.send_signal(signal.SIGTERM)
    rest = child.stdout.read()
    assert child.wait(120) == 130, rest
    record = read(tmp_path)
    assert record["stopped"].startswith("signal") and len(record["rows"]) >= 2 and "written to" in rest


def test_verdicts_and_what_a_run_comes_to() -> None:
    assert at_least(8).met(8.0) and not at_least(8).met(7.9) and not at_least(8).met(None)
    assert at_most(15).met(15.0) and not at_most(15).met(math.nan) and str(at_most(15)) == "<= 15"
    rows = [
        {"row": "a", "results": [Result("a", 3.0, "x", at_least(8)).record(), Result("a2", 9.0, "x").record()]},
        {"row": "b", "results": [], "error": "RuntimeError: out of memory"},
        {"row": "c", "results": [Result("c", 9.0, "x", at_least(8), at_least(10)).record()]},
    ]
    said = report.missed(rows, {"a": ("8x",), "b": ("15 us",), "c": ("8x",), "d": ("4x",)})
    assert said == [
        "b: not measured, RuntimeError: out of memory (15 us)",
        "d: not measured, the time was over (4x)",
        "a: 3 x, must >= 8",
    ]
    text = report.table(rows)
    assert "must missed" in text and "aim missed" in text and "out of memory" in text


def test_outcomes_of_the_tests_are_read() -> None:
    good = "tests/kernels/test_device.py::test_a[x-bfloat16] PASSED [ 50%]\n"
    bad = "tests/kernels/test_device.py::test_b[y] FAILED [100%]\n"
    found = lanes.read_tests([(good, 0), (good + bad, 1), ("", 5)])
    assert (found["passed"], found["failed"], found["complete"]) == (
        2,
        ["tests/kernels/test_device.py::test_b[y]"],
        True,
    )
    assert lanes.read_tests([(good, None)])["complete"] is False
    (crashed,) = lanes.read_tests([(good, 0), ("Fatal Python error", -11)])["failed"]
    assert crashed.startswith("process 1 ended with -11")
    assert lanes.read_smoke("ok: a\nFAILED: b: why\n", 1) == {"passed": 1, "failed": ["b: why"], "complete": True}
    assert lanes.read_smoke("ok: a\n", -11)["failed"] and lanes.read_smoke("", None)["complete"] is False


def test_the_crossing_of_two_curves() -> None:
    sizes = [1024, 2048, 4096]
    assert crossing(sizes, [4.0, 2.0, 1.5]) is None
    found = crossing(sizes, [2.0, 1.25, 0.8])
    assert found is not None and abs(found - math.sqrt(2048 * 4096)) < 1


def test_a_clock_keeps_what_worked() -> None:
    def fails(k: int) -> None:
        raise ValueError("no\nsecond line")

    seconds, errors = Clock(torch.device("cpu"), 3).times({"a": lambda k: time.sleep(0.01), "b": fails})
    assert seconds.keys() == {"a"} and 0.005 < seconds["a"] < 1 and errors == {"b": "ValueError: no"}
