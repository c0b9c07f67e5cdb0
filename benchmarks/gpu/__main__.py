"""``python -m benchmarks.gpu``: see the package. 0: all right; 1: an error or a must missed; 2: cannot run here."""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import lanes, report

__all__ = ["main"]

_CORRECTNESS, _ROW = 210.0, 90.0  # seconds at most: of the tests, of a row
_BUDGET = 460.0  # of the whole run


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(f"signal {number}")


class Rows:
    """Rows measured by child processes: one that dies, hangs or spoils the device costs its row alone."""

    def __init__(self, options: list[str], limit: float) -> None:
        self.options, self.limit = options, limit
        self.found: list[dict[str, Any]] = []
        self.copy_rate: float | None = None

    def measure(self, count: int, deadline: float) -> Iterator[dict[str, Any]]:
        """The rows as they come, until all are done or the time is over."""
        first = 0
        while first < count and time.monotonic() < deadline:
            first = yield from self._child(first, deadline)

    def _child(self, first: int, deadline: float) -> Iterator[dict[str, Any]]:
        command = [sys.executable, "-m", "benchmarks.gpu.worker", "--first", str(first), *self.options]
        command += [] if self.copy_rate is None else ["--copy-rate", repr(self.copy_rate)]
        child = subprocess.Popen(command, cwd=lanes.ROOT, env=lanes.environment(), stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        assert child.stdout is not None
        threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True).start()
        running: dict[str, Any] | None = None
        since = time.monotonic()
        try:
            while True:
                until = min(deadline, since + self.limit)
                try:
                    line = lines.get(timeout=max(0.05, until - time.monotonic()))
                except queue.Empty:
                    why = "the time of the run was over" if time.monotonic() >= deadline else f"over {self.limit:.0f} s"
                    return (yield from self._lost(running, first, why))
                if line is None:
                    break
                with contextlib.suppress(json.JSONDecodeError):
                    said = json.loads(line)
                    since = time.monotonic()
                    if "start" in said:
                        running = said
                    elif "end" in said:
                        running, first = None, said["end"] + 1
                        self.copy_rate = said.get("copy_rate") or self.copy_rate
                        yield said
            code = child.wait()
            if running is not None or code not in (0, 3):
                return (yield from self._lost(running, first, f"the process ended with {code}"))
            return first if code == 3 else sys.maxsize
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def _lost(self, running: dict[str, Any] | None, first: int, why: str) -> Iterator[dict[str, Any]]:
        if running is None:  # before its first row: the next process would end the same way
            return sys.maxsize
        yield {"row": running["row"], "end": running["start"], "results": [], "error": why}
        return int(running["start"]) + 1


def _forward(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)


def _unfit(dry: bool) -> str:
    """Why this cannot run here, or nothing."""
    lacking = lanes.missing()
    if lacking:
        return f"these packages are missing: {', '.join(lacking)}; install them (nothing is installed here)"
    import torch

    if not dry and not torch.cuda.is_available():
        return "no CUDA device is there; --dry-run runs the code of every row on the CPU at tiny sizes"
    return ""


def _stages(chosen: argparse.Namespace, record: dict[str, Any], path: Path) -> None:
    """Correctness, smoke, rows; the record grows, and is on disk after each."""
    deadline = time.monotonic() + chosen.budget
    device = "cpu" if chosen.dry_run else "cuda"
    if not chosen.timings_only:
        only = "test_operators_on_the_device" if chosen.dry_run else ""
        print("correctness: tests/kernels, and a smoke test of the library and the adapters", flush=True)
        limit = min(_CORRECTNESS, chosen.budget)
        record |= lanes.checks(limit, device=device, shards=1 if chosen.dry_run else None, only=only)
        _write(path, record)
    from benchmarks.gpu.worker import ROWS

    record["promised"] = {row.name: row.promised for row in ROWS if row.promised and chosen.only in row.name}
    options = [*(["--dry-run"] if chosen.dry_run else []), *(["--only", chosen.only] if chosen.only else [])]
    for row in Rows(options, chosen.row_limit).measure(len(ROWS), deadline):
        record["rows"].append(row)
        _write(path, record)
        print(report.table([row], chosen.dry_run).split("\n", 1)[-1], flush=True)


def _faults(record: dict[str, Any], dry: bool) -> list[str]:
    said = []
    for stage in ("correctness", "smoke"):
        found = record.get(stage)
        if found is not None:
            said += [f"{stage}: {name}" for name in found["failed"]]
            if not found["complete"]:
                said.append(f"{stage}: not complete after {found['seconds']} s")
            if not found["passed"]:
                said.append(f"{stage}: no test passed")
    if dry:  # numbers of a dry run say nothing, but every row must have some
        said += [f"{row['row']}: {row['error']}" for row in record["rows"] if row.get("error")]
        said += [f"{v['name']}: {k}: {why}" for row in record["rows"] for v in row["results"]
                 for k, why in v["errors"].items() if k != "kernels"]  # fmt: skip
        said += [
            f"{name}: not measured" for name in record["promised"] if name not in {r["row"] for r in record["rows"]}
        ]
        return said
    return said + report.missed(record["rows"], record["promised"])


def main(given: list[str] | None = None) -> int:
    """Run, write, print; see the module for what it returns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="every row's code on the CPU, at tiny sizes")
    parser.add_argument("--timings-only", action="store_true", help="leave out correctness and smoke test")
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--budget", type=float, default=_BUDGET, help="seconds of the whole run")
    parser.add_argument("--row-limit", type=float, default=_ROW, help="seconds of one row")
    parser.add_argument("--out", type=Path, default=None, help="a folder; benchmarks/results unless given")
    chosen = parser.parse_args(given)
    why = _unfit(chosen.dry_run)
    if why:
        print(f"make gpu: {why}")
        return 2
    start = time.monotonic()
    path = report.name_of(chosen.out or report.RESULTS)
    record: dict[str, Any] = {"setting": report.setting(), "dry": chosen.dry_run, "rows": [], "promised": {}}
    stopped = ""
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        _stages(chosen, record, path)
    except KeyboardInterrupt as error:
        stopped = str(error) or "interrupted"
    finally:
        signal.signal(signal.SIGTERM, before)
    faults = _faults(record, chosen.dry_run)
    record |= {"seconds": round(time.monotonic() - start, 1), "stopped": stopped, "faults": faults}
    _write(path, record)
    print("\n" + report.table(record["rows"], chosen.dry_run))
    for stage in ("correctness", "smoke"):
        if record.get(stage):
            found = record[stage]
            print(f"{stage}: {found['passed']} passed, {len(found['failed'])} failed, {found['seconds']} s")
            print(found.get("details", ""), end="")
    fine = "every row ran; the numbers of a dry run say nothing" if chosen.dry_run else "every must is met"
    print("\n".join(f"NOT MET: {fault}" for fault in faults) or fine)
    print(f"written to {path.name} after {record['seconds']} s" + (f"; stopped: {stopped}" if stopped else ""))
    return 130 if stopped else 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
