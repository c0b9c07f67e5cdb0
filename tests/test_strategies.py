"""The strategies: one a type, legal, repeatable, hard where asked, and readable when they shrink."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.vendor import pretty

import structmat as sm
from structmat import lazy
from structmat.testing import assert_matches_dense, strategies
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.examples import EXAMPLES
from structmat.testing.reference import dense_of, magnitude_of
from structmat.testing.strategies_entries import GENTLE, numbers

F64, C128 = torch.float64, torch.complex128
TYPES = sorted({e.type for e in EXAMPLES}, key=lambda t: t.__name__)
EVERY = [HealthCheck.too_slow, HealthCheck.filter_too_much]
SEARCH = settings(max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=EVERY)


def smallest(strategy: Any, fails: Callable[[Any], bool]) -> Any:
    """What hypothesis shrinks a fault to."""
    return find(strategy, fails, settings=SEARCH)


# -- completeness -------------------------------------------------------------------------------------------------


def test_each_public_type_has_a_strategy() -> None:
    public = [getattr(sm, name) for name in sm.__all__]
    types = [t for t in public if isinstance(t, type) and issubclass(t, sm.Matrix) and t is not sm.Matrix]
    types += [lazy.Slice, lazy.Prepared, *TYPES]
    missing = []
    for kind in dict.fromkeys(types):
        try:
            strategies.of_type(kind)
        except ValueError:
            missing.append(kind.__name__)
    assert len(types) > 30 and not missing, f"types without a strategy: {missing}"


def test_each_strategy_is_reached_by_its_name() -> None:
    names = {strategies.of_type(kind).__name__ for kind in TYPES}
    assert names <= set(strategies.__all__) and all(getattr(strategies, name) for name in strategies.__all__)


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.__name__)
@settings(max_examples=settings.default.max_examples // 3 + 2)
@given(data=st.data())
def test_each_draws_its_type_as_asked_and_it_means_what_it_says(kind: type[sm.Matrix], data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes(half=True))
    a = data.draw(strategies.matrices(kind, dtype=dtype))
    assert type(a) is kind and max(a.shape[-2:]) <= 9 and min(a.shape[-2:]) >= 1
    assert_matches_dense(a, dense_of(a), size=magnitude_of(a) + torch.finfo(dtype).tiny)
    n, batch = data.draw(st.integers(1, 6)), () if kind is sm.Identity else data.draw(strategies.batch_shapes())
    b = data.draw(strategies.matrices(kind, shape=(n, n), batch=batch))
    assert tuple(b.shape) == (*batch, n, n) and b.dtype in (None, F64)


@given(st.data())
def test_matrices_without_a_type(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    a = data.draw(strategies.matrices(shape=shape, batch=(2,), dtype=C128))
    assert tuple(a.shape) == (2, *shape)


@given(st.data())
def test_tucker_tensors(data: st.DataObject) -> None:
    t = data.draw(strategies.tucker_tensors(shape=(2, 3, 2), batch=(2,)))
    assert isinstance(t, sm.Tucker) and tuple(t.shape) == (2, 2, 3, 2)
    assert data.draw(strategies.tucker_tensors(batch=())).order <= 4


@given(st.data())
def test_batch_shapes(data: st.DataObject) -> None:
    assert len(data.draw(strategies.batch_shapes(most=3))) <= 3
    assert all(0 <= b <= 3 for b in data.draw(strategies.batch_shapes(empty=True)))


# -- pairs --------------------------------------------------------------------------------------------------------


@given(st.data())
def test_pairs_that_are_multiplied_and_added(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(["matmul", "add"]))
    a, b = data.draw(strategies.conformable_pairs(verb, most=4, entries=GENTLE))
    got = a @ b if verb == "matmul" else a + b
    dense = dense_of(a) @ dense_of(b) if verb == "matmul" else dense_of(a) + dense_of(b)
    m, n = (magnitude_of(x) + 1e-300 for x in (a, b))
    dtype = F64 if got.dtype is not None else torch.get_default_dtype()
    tol = 4 * rounding(dtype, sum(got.shape[-2:]) + a.shape[-1], m * n if verb == "matmul" else m + n, 4)
    assert_close(got.to_dense(), dense.to(F64), tol, f"{a!r} {verb} {b!r}")


@given(st.data())
def test_pairs_of_given_types(data: st.DataObject) -> None:
    a, b = data.draw(strategies.conformable_pairs("matmul", left=sm.Circulant, right=sm.Hankel))
    assert type(a) is sm.Circulant and type(b) is sm.Hankel and a.shape[-1] == b.shape[-2]
    a, b = data.draw(strategies.conformable_pairs("add", left=sm.LowRank, right=sm.Identity, batch=()))
    assert a.shape == b.shape and type(b) is sm.Identity


@given(st.data())
def test_pairs_that_are_solved_are_well_conditioned(data: st.DataObject) -> None:
    a, b = data.draw(strategies.conformable_pairs("solve", dtype=data.draw(strategies.dtypes())))
    values = torch.linalg.svdvals(dense_of(a))
    assert float((values[..., 0] / values[..., -1]).max()) <= 3.001
    wanted = torch.linalg.solve(dense_of(a).to(C128), (b[:, None] if b.ndim == 1 else b).to(C128))
    x = a.solve(b)
    eps = torch.finfo(b.dtype).eps
    error = torch.linalg.vector_norm(
        (x[:, None] if b.ndim == 1 and x.ndim == 1 else x) - (wanted[..., 0] if x.ndim > 1 and b.ndim == 1 else wanted)
    )
    assert float(error) <= 1000 * eps * (1 + float(torch.linalg.vector_norm(wanted)))


# -- what is hard -------------------------------------------------------------------------------------------------


def test_each_kind_of_number_is_what_it_says() -> None:
    def draw(kind: str, dtype: torch.dtype = F64) -> torch.Tensor:
        return numbers(kind, 7, (4, 5), dtype)

    assert set(strategies.KINDS) & set(strategies.HARD) == set()
    assert not draw("zero").any()
    assert len(draw("equal").unique()) == 1
    assert set(draw("small").unique().tolist()) <= {0, 1, -1, 2} and set(draw("integers").unique().tolist()) <= {
        0,
        1,
        -1,
        2,
    }
    assert int(torch.linalg.matrix_rank(draw("parallel"))) == 1
    values = torch.linalg.svdvals(draw("near parallel"))
    assert 0 < float(values[1] / values[0]) < 1e-6
    for dtype in (torch.float32, F64, torch.bfloat16):
        info = torch.finfo(dtype)
        denormal = draw("denormal", dtype).double().abs()
        assert float(denormal.max()) < info.tiny and bool(denormal.any())
        wide = [draw(kind, dtype).double() for kind in ("huge", "tiny")]
        assert float((wide[0] ** 2).sum()) < info.max and float(wide[0].abs().max()) > info.max**0.3
        assert float((wide[1] ** 2).abs().max()) > info.tiny and float(wide[1].abs().max()) < info.max**-0.3
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        assert all(
            torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all()
            for t in [draw(k, dtype) for k in strategies.KINDS]
        )


@given(st.data())
def test_extreme_entries_are_multiplied_without_overflow(data: st.DataObject) -> None:
    kind = data.draw(
        st.sampled_from([sm.Dense, sm.Toeplitz, sm.Circulant, sm.LowRank, sm.HouseholderProduct, sm.Hankel])
    )
    a = data.draw(strategies.matrices(kind, entries=("huge", "tiny", "denormal", "near parallel", "zero")))
    assert_matches_dense(a, dense_of(a), size=magnitude_of(a) + torch.finfo(F64).tiny)


@given(st.data())
def test_ill_conditioned_matrices_are(data: st.DataObject) -> None:
    a = data.draw(strategies.ill_conditioned(shape=(6, 6)))
    values = torch.linalg.svdvals(dense_of(a))
    assert bool((values[..., 0] >= 30 * values[..., -1]).all()), repr(a)
    assert_matches_dense(a, dense_of(a), size=magnitude_of(a))


def test_near_singular_ones_are_found_by_a_search() -> None:
    a = smallest(
        strategies.ill_conditioned(), lambda a: a.shape[-1] > 1 and float(torch.linalg.cond(a.to_dense()).max()) > 1e12
    )
    assert tuple(a.shape) == (2, 2)


# -- repeatable ---------------------------------------------------------------------------------------------------


def test_draws_leave_the_global_seed_alone_and_repeat() -> None:
    def once() -> list[Any]:
        found: list[Any] = []

        @settings(max_examples=20, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
        @given(strategies.matrices())
        def run(a: sm.Matrix) -> None:
            found.append(a)

        run()
        return found

    torch.manual_seed(1)
    first = once()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    again = once()
    assert [repr(a) for a in first] == [repr(a) for a in again]
    assert all(
        torch.equal(s, t)
        for a, b in zip(first, again, strict=True)
        for s, t in zip(a.tensors(), b.tensors(), strict=True)
    )


# -- what a fault shrinks to --------------------------------------------------------------------------------------


def test_a_missing_conjugate_shrinks_to_i() -> None:
    a = smallest(strategies.toeplitz(C128), lambda a: not torch.equal(a.mH.to_dense(), a.mT.to_dense()))
    assert tuple(a.shape) == (1, 1) and a.diagonals.tolist() == [1j]


def test_a_forgotten_transpose_shrinks_to_order_two() -> None:
    a = smallest(strategies.circulants(most=9), lambda a: not torch.equal(a.mT.to_dense(), a.to_dense()))
    assert a.shape[-1] in (2, 3) and set(a.column.tolist()) <= {0.0, 1.0, -1.0, 2.0}


def test_a_wrong_sign_of_f_shrinks_to_a_single_one() -> None:
    a = smallest(
        strategies.circulants(), lambda a: not torch.equal(a.to_dense(), sm.Circulant(a.column, -a.f).to_dense())
    )
    assert tuple(a.shape) == (2, 2) and a.column.tolist() == [0.0, 1.0] and a.f == 1


def test_swapped_factors_shrink_to_two_rows() -> None:
    def swapped(a: sm.Kronecker) -> bool:
        return len(a.factors) == 2 and not torch.equal(a.to_dense(), sm.Kronecker(a.factors[::-1]).to_dense())

    a = smallest(strategies.kronecker(), swapped)
    assert a.shape.numel() <= 4 and all(set(t.unique().tolist()) <= {0.0, 1.0, -1.0, 2.0} for t in a.tensors())


def test_a_fault_of_batches_shrinks_to_the_smallest_batch() -> None:
    a = smallest(strategies.matrices(), lambda a: len(a.batch_shape) > 0 and bool(a.to_dense().any()))
    assert tuple(a.shape) == (2, 1, 1) and a.numel_stored <= 4


def test_a_pair_shrinks_to_numbers() -> None:
    a, b = smallest(strategies.conformable_pairs(), lambda p: float((p[0] @ p[1]).to_dense().sum()) < 0)
    assert tuple(a.shape) == tuple(b.shape) == (1, 1) and {float(a.to_dense()), float(b.to_dense())} <= {1.0, -1.0, 2.0}


def test_what_is_printed_can_be_pasted() -> None:
    printed = pretty.pretty(sm.Toeplitz(torch.tensor([0.0, 1.0, 2.0], dtype=F64), 2))
    assert (
        " ".join(printed.split()) == "Toeplitz(diagonals=torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), columns=2)"
    )
    again = eval(printed, {"Toeplitz": sm.Toeplitz, "torch": torch})
    assert torch.equal(again.to_dense(), torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=F64))
    composed = pretty.pretty(sm.Product((sm.Diagonal(torch.ones(2)), sm.Butterfly.identity(2))))
    assert composed.startswith("Product(factors=(Diagonal(entries=torch.tensor([1.0, 1.0], dtype=torch.float32))")
    assert "torch.tensor" not in pretty.pretty(sm.Dense(torch.ones(9, 9))) and "torch" not in repr(
        sm.Dense(torch.ones(1, 1))
    )


def test_the_guide_finds_its_planted_bug() -> None:
    path = Path(__file__).resolve().parents[1] / "docs" / "guides" / "write_your_own_type.py"
    spec = importlib.util.spec_from_file_location("write_your_own_type", path)
    assert spec is not None and spec.loader is not None
    guide = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guide)
    good = guide.HadamardDiagonal(torch.tensor([1.0, 2.0], dtype=F64))
    assert torch.allclose(good.to_dense(), guide.dense(good))
    bad = smallest(guide.draw(guide.Forgetful), lambda a: not torch.allclose(a.to_dense(), guide.dense(a)))
    assert tuple(bad.shape) == (4, 4) and sorted(bad.weights.tolist()) == [0.0, 0.0, 0.0, 1.0]
    with pytest.raises(AssertionError, match=r"to_dense\(\): differs"):
        guide.check_matrix_type(guide.Forgetful, guide.examples(guide.Forgetful))


# -- wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: strategies.tensors((2,), entries="enormous"), r"entries='enormous': legal are 'small', .*'denormal'"),
        (lambda: strategies.matrices(entries=()), r"entries=\(\): legal are"),
        (lambda: strategies.matrices(shape=(2,)), r"matrices: shape=\(2,\); legal are \(rows, columns\)"),
        (lambda: strategies.dense(shape=(0, 2)), r"dense: shape=\(0, 2\); legal are \(rows, columns\)"),
        (lambda: strategies.circulants(shape=(2, 3)), r"circulants: shape=\(2, 3\) is not square"),
        (lambda: strategies.identities(batch=(2,)), r"identities: batch=\(2,\), but these matrices have no batch"),
        (lambda: strategies.inverses(entries="zero"), r"inverses: the entries of these matrices are not free"),
        (lambda: strategies.dense(most=0), r"dense: most=0; legal are 1, 2, 3"),
        (lambda: strategies.conformable_pairs("divide"), r"legal verbs are 'matmul', 'add', 'solve'"),
        (lambda: strategies.conformable_pairs("solve", left=sm.Dense), r"the types are those of well_conditioned"),
        (lambda: strategies.conformable_pairs("add", left=sm.Matrix), r"Matrix: there is no strategy for this type"),
    ],
)
def test_wrong_use_is_named(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
