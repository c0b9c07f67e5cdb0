"""``python -m benchmarks.run [--quick] [--only PATTERN] [--list]``: verify, time, print the table, write the JSON.

The exit code is 1 if a result is wrong or a must is missed, and 0 otherwise; an absent peer is reported by name.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.case import Case, Problem
from benchmarks.cases import select
from benchmarks.measure import Series, interleaved, medians
from benchmarks.report import Result
from benchmarks.verify import Fault, verify

__all__ = ["main", "measure_case"]

RESULTS = Path(__file__).resolve().parent / "results"


def measure_case(case: Case, quick: bool) -> Result:
    """Verify a case and, if it is right, time it."""
    result = Result(case.name, case.what, "measured", case.versus, case.figure.unit)
    absent = [name for name in case.peers if importlib.util.find_spec(name) is None]
    if absent:
        result.status = f"absent: {', '.join(absent)} (pip install 'structmat[bench]')"
        return result
    problem = case.build()
    try:
        result.errors = verify(problem).by_contender
    except Fault as fault:
        result.status = f"wrong: {fault}"
        return result
    result.facts = dict(problem.facts())
    if case.child is not None:
        peaks = dict(case.child(quick))
        return _judged(result, case, [peaks], [])
    return _judged(result, case, *_timed(problem, case, quick))


def _timed(problem: Problem, case: Case, quick: bool) -> tuple[Series, Series]:
    rounds, budget = (5, 10.0) if quick else (11, 90.0)
    if case.heavy:
        rounds, budget = (3, 10.0) if quick else (7, 600.0)
    return interleaved(problem.contenders, rounds, budget)


def _judged(result: Result, case: Case, wall: Series, cpu: Series) -> Result:
    figure = case.figure
    values = sorted(figure.value(row) for row in wall)
    result.rounds = len(wall)
    result.value = statistics.median(values)
    result.spread = (values[0], values[-1])
    result.wall = medians(wall)
    result.cpu = medians(cpu) if cpu else {}
    if figure.must is not None:
        result.must = statistics.median(figure.must(row) for row in wall)
        result.met = figure.meets(result.value, result.must)
    if figure.aim is not None:
        result.aim = statistics.median(figure.aim(row) for row in wall)
        result.aim_met = figure.meets(result.value, result.aim)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        cases = select(options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{case.name}: {case.what}" for case in cases))
        return 0
    machine.restart("benchmarks.run", given, options.threads, malloc=not options.plain_malloc)
    torch.set_num_threads(options.threads)
    about = machine.describe() | {"quick": options.quick}
    print(f"{about['cpu']}, {about['threads']} thread(s), torch {about['versions']['torch']}, load {about['load'][0]}")
    results = []
    for case in cases:
        start = time.perf_counter()
        print(f"{case.name} ...", end=" ", flush=True)
        apart = case.plain_malloc and about["malloc"] != "plain"
        results.append(_apart(case, options) if apart else measure_case(case, options.quick))
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    print("\n" + report.table(results))
    path = options.output or RESULTS / f"{about['date'].replace(':', '').split('+')[0]}{'-quick' * options.quick}.json"
    report.write(path, about, results)
    print(f"written to {path}")
    return int(any(result.failed for result in results))


def _apart(case: Case, options: argparse.Namespace) -> Result:
    """The case measured by a run of its own, whose allocator is left alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        words = ["--plain-malloc", "--only", case.name, "--threads", str(options.threads), "--output", str(path)]
        words += ["--quick"] * options.quick
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.run", *words],
            env=machine.fresh_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if not path.exists():
            raise RuntimeError(f"{case.name}: its own run failed\n{done.stdout}{done.stderr}")
        return report.read(path)[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="structmat next to its peers")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a record")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--plain-malloc", action="store_true", help="leave the allocator's settings alone")
    parser.add_argument("--output", type=Path, help="the JSON file (default: a dated one in benchmarks/results)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
