"""The program that breaks the library on purpose: its mutants are programs, drawn by seed, and tests do kill them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutants import sites
from tools.mutants.reach import Map, Reach, named_like

ROOT = Path(__file__).resolve().parents[1]

EVERY_OPERATOR = '''
"""A module with a place for each operator."""
LIMIT = 8

def product(a, b, n):
    """n - 1 in a docstring is left alone."""
    if n < 1:
        raise ValueError(f"n is {n - 1}")
    total = -a + b  # β: bytes and characters differ from here on
    total += a[..., : n - 1].conj()
    return total.mT @ (
        a * b
    ).mH - subtract(a, b)

def known(a, b):
    keep = a.properties & (ORTHOGONAL | TRIANGULAR)
    if n <= LIMIT and Claim.SYMMETRIC in a:
        keep = keep - TRIANGULAR
    return Claims(keep, rank + 1)

def flops(n: "n - 1") -> "n + 1":
    return 2 * n - 1
'''


@pytest.fixture(scope="module")
def mutants() -> list[sites.Mutant]:
    return sites.mutants_of(EVERY_OPERATOR, "structmat/claims.py")


@pytest.mark.parametrize("operator", sites.OPERATORS)
def test_every_operator_makes_other_programs(mutants: list[sites.Mutant], operator: str) -> None:
    made = [m for m in mutants if m.operator == operator and sites.is_program(m, EVERY_OPERATOR)]
    assert made
    before = ast.dump(ast.parse(EVERY_OPERATOR))
    for mutant in made:
        text = mutant.apply(EVERY_OPERATOR)
        assert ast.dump(ast.parse(text)) != before
        head, tail = EVERY_OPERATOR.encode()[: mutant.start], EVERY_OPERATOR.encode()[mutant.end :]
        assert text.encode() == head + mutant.new.encode() + tail, "the rest keeps its layout"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-a + b", "(-a) - b"),
        ("-a", "a"),
        (" += ", " -= "),
        ("a[..., : n - 1].conj()", "a[..., : n - 1]"),
        ("total.mT", "total.mH"),
        ("n - 1", "n"),
        ("n < 1", "n <= 1"),
        ("a, b", "b, a"),
        ("a * b", "a"),
        ("a.properties & (ORTHOGONAL | TRIANGULAR)", "a.properties"),
        ("keep - TRIANGULAR", "keep"),
        ("Claim.SYMMETRIC in a", "True"),
        ("rank + 1", "(rank + 1) - 1"),
    ],
)
def test_these_changes_are_among_them(mutants: list[sites.Mutant], old: str, new: str) -> None:
    assert any((m.old, m.new) == (old, new) for m in mutants)


def test_text_messages_annotations_and_costs_are_left_alone(mutants: list[sites.Mutant]) -> None:
    lines = {EVERY_OPERATOR.split("\n")[m.line - 1].strip() for m in mutants}
    assert not any("docstring" in line or "raise" in line or "def " in line or "2 * n" in line for line in lines)
    assert not any("LIMIT" in m.old and m.operator == "index" for m in mutants), "thresholds between equal algorithms"


def test_the_seed_and_the_text_decide_what_is_drawn(tmp_path: Path) -> None:
    files = [f"structmat/{name}.py" for name in ("claims", "types/circulant", "algebra/basic", "functional/givens")]
    every = [m for file in files for m in sites.mutants_of((ROOT / file).read_text(), file)]
    first, again, other = (sites.drawn(ROOT, every, 40, seed) for seed in (3, 3, 4))
    assert [m.id for m in first] == [m.id for m in again] != [m.id for m in other]
    assert len(first) == len({m.id for m in first}) == 40
    longer = [*every, *sites.mutants_of(EVERY_OPERATOR, "structmat/types/new.py")]
    (tmp_path / "structmat" / "types").mkdir(parents=True)
    (tmp_path / "structmat" / "types" / "new.py").write_text(EVERY_OPERATOR)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    stay = {m.key for m in first} & {m.key for m in sites.drawn(tmp_path, longer, 40, 3)}
    new = [m for m in sites.drawn(tmp_path, longer, 40, 3) if m.file.endswith("new.py")]
    assert len(stay) == 40 - len(new) >= 20, "new code displaces as many as are drawn from it, and moves no other"
    assert {m.operator for m in first} >= {"sign", "conj", "index", "swap", "term"}


def test_tests_named_like_the_module_run_first_and_the_cheapest_of_each_file_next() -> None:
    name = "structmat/types/givens.py GivensProduct.linear"
    records = [
        Reach("tests/test_givens.py", "", 1.0, [], {"tests/test_givens.py::slow": (9.0, [name])}),
        Reach("tests/test_all.py", "", 1.0, [], {f"tests/test_all.py::{k}": (k, [name]) for k in (3.0, 2.0)}),
        Reach("tests/test_more.py", "", 1.0, [], {f"tests/test_more.py::{k}": (4.0, k * [name]) for k in (0, 1)}),
    ]
    mutant = sites.Mutant("structmat/types/givens.py", "GivensProduct.linear", "sign", 1, 0, 0, 1, "+", "-")
    order = [test.split("test_")[1] for test in Map(records).select(mutant, budget=24)]
    assert order == ["givens.py::slow", "all.py::2.0", "more.py::1", "all.py::3.0"]
    assert len(Map(records).select(mutant, budget=9)) == 2
    assert named_like("tests/test_krylov_solve.py", "structmat/functional/krylov/definite.py")
    assert named_like("tests/test_toeplitz.py", "structmat/types/toeplitz_family.py")
    assert not named_like("tests/test_givens.py", "structmat/functional/cauchy.py")


TOY = {
    "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\n',
    "structmat/__init__.py": "",
    "structmat/functional/__init__.py": "",
    "structmat/functional/toy.py": (
        "def difference(a, b):\n    return a - b\n\n\n"
        "def magnitude(x):\n    if x >= 0:\n        return x\n    return -x\n\n\n"
        "def unused(a):\n    return a[0]\n"
    ),
    "tests/test_toy.py": (
        "from structmat.functional import toy\n\n\n"
        "def test_difference():\n    assert toy.difference(3, 1) == 2\n\n\n"
        "def test_magnitude():\n    assert [toy.magnitude(x) for x in (-2, 0, 2)] == [2, 0, 2]\n\n\n"
        "def test_that_fails_anyway():\n    assert toy.magnitude(1) == 5\n"
    ),
}


def test_a_planted_fault_is_killed_and_an_equal_program_survives(tmp_path: Path) -> None:
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    identity = ["-c", "user.name=toy", "-c", "user.email=toy@example.org", "-c", "commit.gpgsign=false"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTEST"))} | {"PYTHONPATH": ""}
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "a toy"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=environment)
    command = [
        sys.executable,
        str(ROOT / "tests" / "mutants.py"),
        "--root",
        str(tmp_path),
        "--count",
        "40",
        "--jobs",
        "1",
    ]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 1, f"fewer than 90 % are killed here\n{run.stdout}{run.stderr}"
    rows = json.loads((tmp_path / "out" / "mutants" / "results.json").read_text())
    ends = {row["key"].removeprefix("structmat/functional/toy.py "): (row["verdict"], row["by"]) for row in rows}
    assert ends["difference: sign: a - b -> a + b"] == ("killed", "tests/test_toy.py::test_difference")
    assert ends["difference: swap: a - b -> b - a"][0] == "killed"
    assert ends["magnitude: sign: -x -> x"] == ("killed", "tests/test_toy.py::test_magnitude")
    assert ends["magnitude: index: x >= 0 -> x > 0"][0] == "survived"
    assert {ends[key] for key in ends if key.startswith("unused")} == {("survived", "2 of 2 tests ran")}
    assert (tmp_path / "structmat/functional/toy.py").read_text() == TOY["structmat/functional/toy.py"]
    assert "seed 2026" in run.stdout
