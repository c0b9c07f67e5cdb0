"""The table of rules: nearest wins, ambiguity is refused, what is missing says the way out, everything can be
enumerated."""

from __future__ import annotations

import itertools

import pytest
import torch

import structmat as sm
from structmat import Matrix, dispatch
from structmat.testing.examples import EXAMPLES


class A: ...


class B(A): ...


class C(B): ...


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules entered by a test leave with it."""
    monkeypatch.setattr(dispatch, "_table", {verb: dict(rules) for verb, rules in dispatch._table.items()})
    monkeypatch.setattr(dispatch, "_found", {})


def _enter(verb: str, *types: type) -> object:
    marker = object()
    dispatch.rule(verb, *types)(lambda *_: marker)
    return marker


def test_the_nearest_rule_wins_in_every_argument() -> None:
    general, left, right, both = (_enter("v", x, y) for x, y in ((A, A), (B, A), (A, B), (B, B)))
    assert dispatch.call("v", A(), A()) is general
    assert dispatch.call("v", B(), A()) is left and dispatch.call("v", C(), A()) is left
    assert dispatch.call("v", A(), C()) is right
    assert dispatch.call("v", B(), B()) is both and dispatch.call("v", C(), C()) is both


def test_two_incomparable_rules_are_ambiguous() -> None:
    _enter("v", B, A)
    _enter("v", A, B)
    with pytest.raises(
        sm.AmbiguousRuleError,
        match=r"v\(B, B\): these rules fit equally well: v\(B, A\); v\(A, B\). Enter one for the pair itself",
    ):
        dispatch.call("v", B(), B())
    chosen = _enter("v", B, B)  # a rule entered later is found: the memory of look-ups was cleared
    assert dispatch.call("v", B(), B()) is chosen


def test_several_bases_are_walked_by_the_method_resolution_order() -> None:
    class Left: ...

    class Right: ...

    class Child(Left, Right): ...

    first = _enter("v", Left)
    _enter("v", Right)
    assert dispatch.call("v", Child()) is first


def test_a_missing_rule_names_the_arguments_and_the_way_out() -> None:
    _enter("v", B)
    with pytest.raises(
        sm.StructureError,
        match=r"v\(.*A object.*\): no rule; use .to_dense\(\), or enter one with structmat.dispatch.rule\('v'",
    ):
        dispatch.call("v", A())


def test_an_unknown_verb_lists_the_known_ones() -> None:
    with pytest.raises(sm.StructureError, match=r"convolve\(.*\): no rule; .* Verbs with rules: .*add.*matmul"):
        dispatch.call("convolve", sm.Identity(2), sm.Identity(2))


def test_kron_of_any_two_types_finds_a_rule() -> None:
    for a, b in itertools.product(_types(), repeat=2):
        assert dispatch.lookup("kron", a, b) is not None, f"kron({a.__name__}, {b.__name__})"


def test_a_second_rule_at_one_place_is_an_error() -> None:
    _enter("v", A, B)
    with pytest.raises(ValueError, match=r"a rule for v\(A, B\) is there already"):
        _enter("v", A, B)


def test_rules_are_enumerated_with_their_first_line() -> None:
    found = dispatch.rules("matmul")
    assert all(rule.verb == "matmul" and len(rule.types) == 2 for rule in found)
    assert any(str(rule).startswith("matmul(Circulant, Circulant): ") for rule in found)
    assert {rule.verb for rule in dispatch.rules()} >= {
        "matmul",
        "add",
        "hadamard",
        "inverse",
        "scaled",
        "slice",
        "wrap",
    }
    assert all(str(rule).count(": ") for rule in dispatch.rules()), "each rule says what its result is"


def _types() -> list[type[Matrix]]:
    return sorted({e.type for e in EXAMPLES}, key=lambda t: t.__name__)


@pytest.mark.parametrize("verb", ["matmul", "add", "hadamard"])
def test_no_pair_of_types_is_ambiguous(verb: str) -> None:
    """Every pair of concrete types finds one rule (hadamard: one or none)."""
    for a, b in itertools.product(_types(), repeat=2):
        found = dispatch.lookup(verb, a, b)
        assert found is not None or verb == "hadamard", f"{verb}({a.__name__}, {b.__name__})"


def test_a_subclass_written_outside_meets_every_type() -> None:
    """Of each type a user may derive another; no rule may become ambiguous by that."""
    outside = [type(f"My{t.__name__}", (t,), {"__annotations__": {}}) for t in _types()]
    for verb in ("matmul", "add"):
        for a, b in itertools.chain(itertools.product(outside, _types()), itertools.product(_types(), outside)):
            assert dispatch.lookup(verb, a, b) is not None


def test_a_rule_for_a_type_written_outside_is_used() -> None:
    class Own(sm.Circulant):
        pass

    marker = sm.Identity(2)
    dispatch.rule("matmul", Own, sm.Circulant)(lambda a, b: marker)
    own = Own(torch.ones(2))
    assert own @ sm.Circulant(torch.ones(2)) is marker
    assert own @ own is marker
    assert type(sm.Circulant(torch.ones(2)) @ own) is sm.Circulant
