"""Every verb over every ordered pair of types: the entries are right, the claims true, the types as documented.

In profile dev one pair of examples for each type of result that ``pairs.txt`` lists, and the smallest pair of each
pair of types that it does not list, which must stay plainly lazy; in profile ci all pairs of examples, real and
complex. A rule that is lost, or added without the table being written anew, fails.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import structmat as sm
from structmat import dispatch
from tests import pairs
from tests.cases import CI

ROOT = Path(__file__).resolve().parents[1]
STRIDE = {
    "matmul": 29,
    "add": 19,
    "subtract": 23,
    "hadamard": 13,
    "kron": 199,
}  # prime: columns of pairs are not met again
ANEW = "if that is meant: python tests/pairs.py"


@pytest.mark.parametrize("verb", pairs.VERBS)
def test_one_pair_of_examples_for_each_pair_of_types(verb: str) -> None:
    table, measure = pairs.read(), pairs.Measure()
    by_name = {e.name: e for e in pairs.entries()}
    smallest: dict[pairs.Kinds, tuple[pairs.Entry, pairs.Entry]] = {}
    for a, b in pairs.conforming(verb):
        smallest.setdefault((verb, a.kind, b.kind), (a, b))
    wrong = []
    for kinds, first in smallest.items():
        listed = table.get(kinds)
        for wanted, names in (listed or {pairs.VERBS[verb].lazy: (first[0].name, first[1].name)}).items():
            if not set(names) <= set(by_name):
                wrong.append(f"{kinds}: no example is called {names}")
                continue
            a, b = (by_name[name] for name in names)
            result = pairs.result_of(verb, a, b)
            if pairs.type_of(result) != wanted:
                wrong.append(f"{verb}({a.name}, {b.name}) is {pairs.type_of(result)}, documented is {wanted}")
            if result is not None:
                pairs.take(measure, verb, a, b, result)
    measure.finish()
    assert not wrong, f"{len(wrong)} types differ ({ANEW}):\n" + "\n".join(wrong[:20])
    assert not {k for k in table if k[0] == verb} - set(smallest), (
        f"the table lists pairs that no examples form; {ANEW}"
    )
    assert measure.seen >= 200


@pytest.mark.parametrize("complex_", [False, True] if CI else [True], ids=lambda c: "complex" if c else "real")
@pytest.mark.parametrize("verb", pairs.VERBS)
def test_pairs_of_examples(verb: str, complex_: bool) -> None:
    """In profile ci all of them, real and complex (every seventh complex Kronecker product); in dev some of the complex
    ones, evenly."""
    measure = pairs.Measure()
    every = STRIDE[verb] if not CI else 7 if verb == "kron" and complex_ else 1
    found = pairs.walk(verb, measure, complex_, every)
    measure.finish()
    assert measure.seen >= 25
    if CI and not complex_:
        kept = "\n".join(line for line in pairs.TABLE.read_text().splitlines() if line.startswith(f"{verb} "))
        assert pairs.written([found]).strip() == kept, ANEW


def test_the_measure_finds_what_is_false() -> None:
    """A false value, claim, rank and displacement bound: each is a fault."""
    by_name = {e.name: e for e in pairs.entries()}
    a = by_name["dense-6x6"]
    for result in (
        2 * a.matrix,
        *(a.matrix.assume(claim) for claim in sm.Claim),
    ):
        measure = pairs.Measure()
        measure.take("planted", result, a.entries, a.size)
        with pytest.raises(AssertionError, match="planted"):
            measure.finish()
    low = by_name["low-rank-5x3-r2"]
    measure = pairs.Measure()
    measure.take("planted", sm.LowRank(low.matrix.left[:, :1], low.matrix.right[:, :1]), low.entries, low.size)
    with pytest.raises(AssertionError, match="rank"):
        measure.finish()


# -- the documentation ----------------------------------------------------------------------------------------------


def _extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rule_rows", ROOT / "docs" / "_ext" / "rule_rows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_rules_shows_every_rule_and_every_pair() -> None:
    """The page's tables are written when it is built, from ``rules()`` and from ``pairs.txt``: nothing is copied."""
    page, rows = (ROOT / "docs" / "api" / "rules.md").read_text(), _extension()
    shown = rows.rules()
    assert len(shown) == len(dispatch.rules()) == page.count("rule-table::") * len(shown)
    for rule in dispatch.rules():
        assert (rule.verb, ", ".join(t.__name__ for t in rule.types)) in {row[:2] for row in shown}
        assert (rule.function.__doc__ or "").strip(), f"{rule.verb}{rule.types}: the page shows the first line of this"
    listed = pairs.read()
    for verb in pairs.VERBS:
        assert f".. pair-table:: {verb}\n" in page
        cells = rows.pairs(verb)
        for (v, a, b), kinds in listed.items():
            if v == verb:
                line = next(text for name, text in cells if name == a)
                assert b in line and all(k in line for k in kinds)
    assert not set(dispatch.rules("sub")), "subtraction has no rules of its own; the page says so"
