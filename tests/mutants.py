"""Break the library in one place, 200 times, and see whether the tests of that place notice: ``make mutants``.

Each mutant is written into a private copy of a commit (HEAD) and the tests that call the changed function are run on it
until the first fails: those in a file named like the module first, the cheapest first, for at most 24 recorded seconds,
under a limit of 60 s of processor time. Since the same tests end in time without the change, running into the limit
counts as noticed. At the end every test that noticed something is run once more without any change.

Which tests call which function is recorded on the first run (some minutes; again for each test file that changes) below
out/mutants/. A survivor that no test can notice (equal results by another way) has its reason in
tests/mutants_survivors.json, under its key; the rate counts it as survived all the same.

    python tests/mutants.py --seed 5 --count 200 --jobs 2
    python tests/mutants.py --only functional/givens --count 20
    python tests/mutants.py --mutant ID         one again, with its diff and what pytest says
    python tests/mutants.py --survivors         those that survived the last run, after a new test
    python tests/mutants.py --list              which would be made
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: no thread may run before a fork
os.environ["HYPOTHESIS_PROFILE"] = "dev"

from tools.mutants import server, sites  # noqa: E402
from tools.mutants.reach import Map, Recorder, missing, record_path  # noqa: E402
from tools.mutants.sites import Mutant  # noqa: E402
from tools.mutants.warm import warm_task  # noqa: E402

SEED = 2026
Row = dict[str, Any]
RESULTS = Path("out", "mutants", "results.json")
GOAL = 0.9


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="only files or operators whose name contains this")
    parser.add_argument("--mutant", default="", metavar="ID", help="an id or a key, shown and tried again")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last run")
    parser.add_argument("--stale", action="store_true", help="take the records there are, also of an earlier text")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to break")
    parser.add_argument("--revision", default="HEAD", help="the commit to break")
    return parser.parse_args(arguments)


def record(pool: server.Pool, tree: Path, out: Path, files: list[str]) -> None:
    """Run each of these test files once, noting what each test calls."""
    if files:
        print(f"recording what {len(files)} test files call", flush=True)

    def task_of(file: str) -> server.Task:
        def task(tree: Path, answer: Path) -> int:
            recorder = Recorder(tree, file)
            code = server.pytest_run(tree, [file], recorder)
            recorder.write(answer)
            return code

        return task

    for file, _, ended in pool.all((file, task_of(file), None) for file in files):
        if ended.code not in (0, 1) or not ended.answer:
            raise SystemExit(f"{file} does not run: exit code {ended.code}\n{ended.log[-3000:]}")
        record_path(out, file).write_text(json.dumps(ended.answer))
        note = "" if ended.code == 0 else ", some fail: they are not used"
        print(f"  {file}: {len(ended.answer['tests'])} tests, {ended.seconds:.0f} s{note}", flush=True)


def chosen_mutants(tree: Path, wanted: argparse.Namespace) -> list[Mutant]:
    every = list(sites.all_mutants(tree))
    if wanted.mutant:
        found = [m for m in every if wanted.mutant in (m.id, m.key)]
        return found or sys.exit(f"no mutant {wanted.mutant!r} at this commit; --list shows some")
    if wanted.survivors:
        rows = json.loads((wanted.root / RESULTS).read_text())
        alive = {row["key"] for row in rows if row["verdict"] != "killed"}
        return [m for m in every if m.key in alive]
    every = [m for m in every if wanted.only in m.file or wanted.only == m.operator]
    return sites.drawn(tree, every, wanted.count, wanted.seed)


def diff(tree: Path, mutant: Mutant) -> str:
    before = (tree / mutant.file).read_text()
    lines = difflib.unified_diff(
        before.splitlines(), mutant.apply(before).splitlines(), mutant.file, mutant.file, lineterm="", n=2
    )
    return "\n".join(lines)


def verdict(ended: server.Ended, selected: list[str]) -> tuple[str, str]:
    """``(killed | survived | unreached | broken, by what)``; broken is a fault of this program, not of a mutant."""
    if ended.code < 0 or ended.code in (2, 3, 4):
        how = "60 s of processor time" if ended.code == -24 else "the package does not import" if ended.code > 0 else ""
        return "killed", how or f"signal {-ended.code}"
    failures = ended.answer.get("failures", [])
    if ended.code == 1 and failures:
        return "killed", failures[0][0]
    if ended.code == 0:
        return "survived", f"{ended.answer['ran']} of {len(selected)} tests ran"
    return ("unreached", "no test calls it") if ended.code == 5 or not selected else ("broken", ended.log[-2000:])


def cold(pool: server.Pool, base: Path, mutants: list[Mutant], selected: dict[Mutant, list[str]]) -> Iterator[Row]:
    """Each mutant written into a tree of its own and everything imported anew."""
    originals = {mutant.file: (base / mutant.file).read_text() for mutant in mutants}

    def restore(tree: Path) -> None:
        for file, text in originals.items():
            if (tree / file).read_text() != text:
                (tree / file).write_text(text)

    def writer(mutant: Mutant) -> Any:
        def prepare(tree: Path) -> None:
            restore(tree)
            (tree / mutant.file).write_text(mutant.apply(originals[mutant.file]))

        return prepare

    for mutant, tree, ended in pool.all((m, server.task_of(selected[m]), writer(m)) for m in mutants):
        restore(tree)
        yield row_of(mutant, ended, selected[mutant])


def row_of(mutant: Mutant, ended: server.Ended, tests: list[str]) -> Row:
    how, by = verdict(ended, tests)
    return {"mutant": mutant, "verdict": how, "by": by, "seconds": round(ended.seconds, 1), "log": ended.log}


def run(pool: server.Pool, base: Path, mutants: list[Mutant], reach: Map) -> Iterator[Row]:
    """Each mutant tried: first the quick way; from a fresh import what cannot be, or may have survived only thereby."""
    selected = {mutant: reach.select(mutant) for mutant in mutants}
    for mutant in (m for m in mutants if not selected[m]):
        yield {"mutant": mutant, "verdict": "unreached", "by": "no test calls it", "seconds": 0.0, "log": ""}
    left = {mutant: tests for mutant, tests in selected.items() if tests}
    if left:
        pool.start(warm_task(left, len(pool.free), os.dup(1)), "warm")
        _, _, ended = pool.wait()
        if not ended.answer:
            raise SystemExit(f"the tests cannot be collected: exit code {ended.code}\n{ended.log[-3000:]}")
        by_key = {mutant.key: mutant for mutant in left}
        for found in ended.answer["rows"]:
            mutant = by_key[found.pop("key")]
            row = row_of(mutant, server.Ended(**found), left[mutant])
            if row["verdict"] == "killed" or (row["verdict"] == "survived" and not reach.early(mutant)):
                del left[mutant]
                yield row
    yield from cold(pool, base, list(left), selected)


def confirm(pool: server.Pool, results: list[Row]) -> list[str]:
    """The tests that killed something, run on the tree as it is: those that fail there are returned."""
    killers = sorted({row["by"] for row in results if row["verdict"] == "killed" and "::" in row["by"]})
    if not killers:
        return []
    pool.start(server.task_of(killers, stop=False, seconds=3600), "confirm")
    _, _, ended = pool.wait()
    if ended.code not in (0, 1) or ended.answer["ran"] < len(killers):
        raise SystemExit(f"the tests that killed mutants do not run without one:\n{ended.log[-3000:]}")
    return [test for test, _ in ended.answer["failures"]]


def report(results: list[Row], reasons: dict[str, str]) -> bool:
    """Print the survivors and the rates; whether enough were killed."""
    total, killed = len(results), [row for row in results if row["verdict"] == "killed"]
    alive = [row for row in results if row["verdict"] != "killed"]
    for row in sorted(alive, key=lambda row: row["mutant"].id):
        mutant = row["mutant"]
        print(f"\n{row['verdict']}: {mutant.id}\n  key: {mutant.key}\n  {row['by']}")
        print(f"  reason: {reasons.get(mutant.key, 'NONE: write a test, or say why none can notice')}")
    for what in ("operator", "part"):
        made, dead = Counter[str](), Counter[str]()
        for row in results:
            mutant = row["mutant"]
            name = mutant.operator if what == "operator" else mutant.file.split("/")[1].removesuffix(".py")
            made[name] += 1
            dead[name] += row["verdict"] == "killed"
        print(f"\nby {what}: " + ", ".join(f"{name} {dead[name]} of {made[name]}" for name in sorted(made)))
    explained = sum(row["mutant"].key in reasons for row in alive)
    rate = len(killed) / total if total else 1.0
    print(f"killed {len(killed)} of {total}: {rate:.1%}; survivors {len(alive)}, of them {explained} with a reason")
    if total > explained:
        print(f"without those that no test can notice: {len(killed) / (total - explained):.1%}")
    return rate >= GOAL


def main(arguments: list[str] | None = None) -> int:
    wanted = options(arguments)
    out, told = wanted.root / "out" / "mutants", wanted.root / "tests" / "mutants_survivors.json"
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        base = Path(folder).resolve() / "tree"
        server.unpack(wanted.root, wanted.revision, base)
        mutants = chosen_mutants(base, wanted)
        print(f"seed {wanted.seed}: {len(mutants)} mutants of {len({m.file for m in mutants})} files", flush=True)
        if wanted.list:
            print("\n".join(m.id for m in mutants))
            return 0
        server.load_packages(base)
        pool = server.Pool(server.copies(base, max(1, wanted.jobs)), Path(folder))
        record(pool, base, out, missing(base, out, wanted.stale))
        results = []
        for row in run(pool, base, mutants, Map.read(base, out)):
            results.append(row)
            print(f"{len(results)} {row['verdict']} {row['seconds']} s {row['mutant'].id} | {row['by']}", flush=True)
            if row["verdict"] == "broken" or wanted.mutant:
                print(diff(base, row["mutant"]), row["log"], sep="\n")
        failing = confirm(pool, results)
    results = [row | {"verdict": "broken"} if row["by"] in failing else row for row in results]
    reasons = json.loads(told.read_text()) if told.is_file() else {}
    rows = [{**row, "mutant": row["mutant"].id, "key": row["mutant"].key} for row in results]
    kept = [{key: value for key, value in row.items() if key != "log"} for row in rows]
    if not wanted.mutant:
        (wanted.root / RESULTS).write_text(json.dumps(kept, indent=1))
    good = report(results, reasons)
    if failing:
        print("these tests fail without any change, what they killed does not count:", *failing, sep="\n  ")
    print(f"seed {wanted.seed}, {time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
