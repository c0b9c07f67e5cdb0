"""Every example keeps the contract: values, products on both sides, transposes, copies, pytrees, true claims."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from structmat.lazy import Prepared
from structmat.testing import conformance, conformance_verbs
from structmat.testing.conformance import CHECKS, Case
from structmat.testing.examples import EXAMPLES, examples_of
from tests.cases import CI, build, over_examples

# Derivatives, transforms and compilation have files of their own, which choose other settings.
_ELSEWHERE = (conformance.check_gradients, conformance.check_transforms, conformance.check_compiled_gradient)
# Every verb has a file of its own too: in profile dev these look at every fourth example.
DEEP = [
    conformance_verbs.check_indexing,
    conformance_verbs.check_verbs,
    conformance_verbs.check_solves,
    conformance_verbs.check_verb_gradients,
]
HERE = [check for check in CHECKS if check not in (*_ELSEWHERE, *DEEP)]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


@pytest.mark.parametrize("check", HERE, ids=lambda check: check.__name__)
@over_examples()
def test_contract(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.parametrize("check", DEEP, ids=lambda check: check.__name__)
@over_examples(lambda e: CI or EXAMPLES.index(e) % 4 == 0)
def test_every_verb(case: Case, check: Callable[[Case], None]) -> None:
    """What is prepared holds its numbers twice, so its derivatives by one copy are not those by the other."""
    kept = isinstance(case.matrix, Prepared) or getattr(case.matrix, "factorisation", None) is not None
    if not (kept and check is conformance_verbs.check_verb_gradients):
        check(case)


def test_each_public_type_has_examples() -> None:
    import structmat as sm

    kinds = [getattr(sm, name) for name in sm.__all__]
    types = [k for k in kinds if isinstance(k, type) and issubclass(k, sm.Matrix) and k is not sm.Matrix]
    assert len(types) >= 8
    assert not [t.__name__ for t in types if not examples_of(t)]


def test_example_names_are_unique_and_repeatable() -> None:
    names = [e.name for e in EXAMPLES]
    assert len(set(names)) == len(names)
    for example in EXAMPLES:
        first, again = example.build(), example.build()
        assert all((a == b).all() for a, b in zip(first.tensors(), again.tensors(), strict=True)), example.name


def test_the_sizes_asked_for_are_there() -> None:
    """n = 1, odd, prime, rectangular both ways, rank 0 and rank above the order."""
    shapes = {tuple(e.build().shape) for e in EXAMPLES}
    assert {(1, 1), (5, 5), (7, 7), (13, 13), (5, 3), (3, 7), (1, 6), (6, 1)} <= shapes
    ranks = [(e.build().left.shape[-1], min(e.build().shape)) for e in EXAMPLES if e.name.startswith("low-rank")]
    assert any(r == 0 for r, _ in ranks) and any(r > n for r, n in ranks)
