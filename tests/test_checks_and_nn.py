"""Measurements (``structmat.checks``), trainable modules (``structmat.nn``), and the strategies of
``structmat.testing``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, checks, nn
from structmat.testing import (
    assert_claims,
    assert_gradients,
    assert_matches_dense,
    assert_orthogonal,
    assert_rank_at_most,
    strategies,
)
from structmat.testing.examples import EXAMPLES
from structmat.testing.reference import dense_of, magnitude_of

F64, F32 = torch.float64, torch.float32
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- checks -------------------------------------------------------------------------------------------------------


def test_orthogonality_error_is_the_defect_of_the_gram_matrix() -> None:
    q = torch.linalg.qr(_numbers(8, 8))[0]
    assert checks.orthogonality_error(q).ok and bool(checks.is_orthogonal(q))
    for scale in (1 + 1e-3, 1 - 1e-3, 2.0):
        found = checks.orthogonality_error(scale * q)
        assert not found and float(found) == pytest.approx(abs(scale**2 - 1), rel=1e-9)
    assert checks.orthogonality_error(q[:, :3]).ok and checks.orthogonality_error(q[:3]).ok, "tall: columns, wide: rows"
    assert bool(checks.is_orthogonal(q * (1 + 1e-6), tol=1e-3)) and not checks.is_orthogonal(q * (1 + 1e-6))
    assert checks.orthogonality_error(sm.HouseholderProduct(_numbers(40, 8))).ok


def test_orthogonality_by_probes_estimates_and_bounds() -> None:
    """The true error lies below the bound; the estimate is of its size."""
    q = (1 + 1e-6) * torch.linalg.qr(_numbers(64, 64))[0]
    exact = float(checks.orthogonality_error(q))
    for a in (q, sm.Dense(q)):
        found = checks.orthogonality_error(a, probes=10, generator=torch.Generator().manual_seed(1))
        assert exact / 4 <= float(found) <= 4 * exact <= 4 * found.details["bound"]
        assert found.failure_probability == pytest.approx((0.01 * math.exp(0.99)) ** 5)
    large = sm.HouseholderProduct(_numbers(4, 3000, dtype=F32))
    assert checks.orthogonality_error(large).ok, "above 2^20 entries by products"
    with pytest.raises(ValueError, match=r"legal are the whole numbers from 1"):
        checks.orthogonality_error(q, probes=0)


def test_ranks() -> None:
    low = sm.LowRank(_numbers(30, 3), _numbers(20, 3))
    assert checks.numerical_rank(low) == 3 and int(checks.numerical_rank(low.to_dense())) == 3
    assert checks.numerical_rank(torch.zeros(4, 4)) == 0 and checks.numerical_rank(torch.zeros(0, 4)) == 0
    blurred = torch.diag(torch.tensor([1.0, 1e-2, 1e-4], dtype=F64))
    assert checks.numerical_rank(blurred, tol=1e-3).details["ambiguous"]
    assert not checks.numerical_rank(low).details["ambiguous"]


def test_displacement_ranks() -> None:
    t = sm.Toeplitz(_numbers(13), 7)
    assert checks.displacement_rank(t) == 2 and checks.displacement_rank(sm.Circulant(_numbers(7))) == 1
    assert checks.displacement_rank(sm.Circulant(_numbers(7), -1)) == 1
    assert checks.displacement_rank(torch.eye(7, dtype=F64)) == 1
    assert int(checks.displacement_rank(_numbers(7, 7))) == 7
    assert checks.displacement_rank(t, 2, 1j) == 2


def test_membership() -> None:
    t, c, s = sm.Toeplitz(_numbers(9), 5), sm.Circulant(_numbers(5)), sm.SymmetricToeplitz(_numbers(5))
    for a, wanted in (
        (t, "toeplitz"),
        (c, "toeplitz circulant"),
        (s, "toeplitz symmetric"),
        (sm.Identity(5), "toeplitz circulant symmetric diagonal"),
    ):
        for name in ("toeplitz", "circulant", "symmetric", "diagonal"):
            assert bool(getattr(checks, f"is_{name}")(a)) is (name in wanted), (a, name)
            assert bool(getattr(checks, f"is_{name}")(a.to_dense())) is (name in wanted)
    assert checks.is_circulant(sm.Circulant(_numbers(5), 0.5), f=0.5) and not checks.is_circulant(c, f=-1)
    assert checks.is_toeplitz(torch.zeros(3, 4))
    near = t.to_dense().clone()
    near[0, 0] += 1e-3
    assert not checks.is_toeplitz(near) and checks.is_toeplitz(near, tol=1e-2)
    assert not checks.is_toeplitz(near, tol=0) and checks.is_toeplitz(t, tol=0)


def test_nan_can_not_be_measured() -> None:
    for check in (checks.is_toeplitz, checks.orthogonality_error, checks.numerical_rank, checks.displacement_rank):
        with pytest.raises(ValueError, match=r"holds NaN: nothing can be measured"):
            check(torch.full((3, 3), torch.nan))
    with pytest.raises(sm.ShapeError, match=r"a matrix of shape \(\*batch, m, n\) is needed"):
        checks.is_toeplitz(torch.ones(3))


def test_reports_compare_and_convert() -> None:
    report = checks.numerical_rank(torch.eye(3))
    assert report == 3 and report <= 3 and report < 4 and report > 2 and report >= 3 and not report == 2  # noqa: SIM201
    assert int(report) == 3 and float(report) == 3.0 and bool(report) and "numerical rank: 3" in str(report)
    assert report == checks.numerical_rank(torch.eye(3)) and report != "3"
    assert "OUTSIDE" in str(checks.is_diagonal(torch.ones(2, 2)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_check_claims_agrees_that_examples_are_honest(example: Any) -> None:
    report = checks.check_claims(example.build())
    assert report.ok, "; ".join(str(r) for r in report.details.values() if not r)


def test_check_claims_finds_lies() -> None:
    lies = [Claim.SYMMETRIC, Claim.ORTHOGONAL, Claim.POSITIVE_DEFINITE, Claim.UPPER_TRIANGULAR, Claim.LOWER_TRIANGULAR]
    a = sm.Dense(_numbers(4, 4) - 5 * torch.eye(4, dtype=F64))
    for lie in lies:
        report = checks.check_claims(a.assume(lie))
        assert not report and report >= 1 and not report.details[lie.name]


# -- assertions ---------------------------------------------------------------------------------------------------


def test_assertions_accept_and_refuse() -> None:
    a = sm.Circulant(_numbers(5))
    assert_matches_dense(a, a.to_dense())
    with pytest.raises(AssertionError, match=r"to_dense\(\): differs from the dense reference"):
        assert_matches_dense(a, a.to_dense() + 1e-6)
    with pytest.raises(AssertionError, match=r"the dense reference has"):
        assert_matches_dense(a, torch.ones(4, 5))
    assert_orthogonal(sm.HouseholderProduct(_numbers(2, 5)))
    assert_orthogonal(torch.linalg.qr(_numbers(5, 5))[0])
    with pytest.raises(AssertionError, match=r"tensor of shape \(5, 5\): orthogonality error"):
        assert_orthogonal((1 + 1e-6) * torch.eye(5, dtype=F64))
    assert_orthogonal(sm.HouseholderProduct(_numbers(2, 5)), ops=2)
    with pytest.raises(AssertionError, match=r"orthogonality error .* exceeds 8 eps"):
        assert_orthogonal(sm.Dense((1 + 1e-6) * torch.eye(5, dtype=F64)))
    assert_rank_at_most(sm.LowRank(_numbers(5, 2), _numbers(4, 2)), 2)
    with pytest.raises(AssertionError, match=r"2 singular values lie above the noise, the rank was to be at most 1"):
        assert_rank_at_most(sm.LowRank(_numbers(5, 2), _numbers(4, 2)), 1)
    with pytest.raises(AssertionError, match=r"claims Claim.SYMMETRIC"):
        assert_claims(sm.Dense(torch.complex(_numbers(3, 3), _numbers(3, 3))).assume(Claim.SYMMETRIC))
    assert_gradients(a)
    assert_gradients(lambda m, x: m @ x, (a, _numbers(5)))
    with pytest.raises(ValueError, match=r"legal dtypes are torch.float64 and torch.complex128, got torch.float32"):
        assert_gradients(a.float())
    with pytest.raises(AssertionError, match=r"carries no gradient, but moves by"):
        assert_gradients(lambda t: t.detach() * 2, (_numbers(3),))
    assert_gradients(lambda t: t.detach() * 0, (_numbers(3),))


# -- nn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.build().tensors()], ids=lambda e: e.name)
def test_split_and_trainable_give_the_matrix_back(example: Any) -> None:
    a = example.build(F64)
    tensors, rebuild = nn.split(a)
    assert torch.equal(rebuild(tensors).to_dense(), a.to_dense()) and rebuild(tensors).claims == a.claims
    module = nn.Trainable(a)
    assert torch.equal(module.matrix.to_dense(), a.to_dense())
    floating = [t for t in a.tensors() if t.is_floating_point() or t.is_complex()]
    assert [p.shape for p in module.parameters()] == [t.shape for t in floating]
    again = nn.Trainable(example.build(F64, seed=1))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.matrix.to_dense(), a.to_dense())


def test_a_linear_layer_learns() -> None:
    """Gradients reach the parameters; the bias starts at zero; the repr says what it holds."""
    target = sm.Toeplitz(_numbers(11), 4)
    layer = nn.Linear(sm.Toeplitz(torch.zeros(11, dtype=F64), 4))
    assert (layer.in_features, layer.out_features) == (4, 8) and torch.equal(layer.bias, torch.zeros(8, dtype=F64))
    x = _numbers(64, 4)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (layer(x) - target.linear(x)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimiser.step(closure)
    assert float((layer.matrix.to_dense() - target.to_dense()).abs().max()) <= 1e-4
    assert "Toeplitz(shape=(8, 4)" in repr(layer)
    with pytest.raises(sm.ShapeError, match=r"x has 3 features, the layer takes 4"):
        layer(torch.ones(2, 3, dtype=F64))
    assert nn.Linear(target, bias=False).bias is None


def test_module_moves_and_casts() -> None:
    module = nn.Trainable(sm.Circulant(_numbers(4))).to(F32)
    assert module.matrix.dtype == F32 and module.half().matrix.dtype == torch.float16
    assert [
        n
        for n, _ in nn.Trainable(sm.Product((sm.Circulant(_numbers(4)), sm.Circulant(_numbers(4))))).named_parameters()
    ] == ["factors_0_column", "factors_1_column"]


# -- strategies ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_strategies_draw_legal_matrices_that_match_their_reference(data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes(half=True))
    a = data.draw(strategies.matrices(dtype=dtype))
    real = (dtype.to_real(),) if isinstance(a, sm.GivensProduct) else ()  # rotations are real for every dtype
    assert a.dtype in (None, dtype, *real, torch.complex64, torch.complex128)
    assert_matches_dense(a, dense_of(a), size=magnitude_of(a) + torch.finfo(dtype).tiny)


@given(st.data())
def test_strategies_keep_to_what_is_asked(data: st.DataObject) -> None:
    kind = data.draw(
        st.sampled_from(
            [
                sm.Dense,
                sm.Diagonal,
                sm.Identity,
                sm.Circulant,
                sm.Toeplitz,
                sm.SymmetricToeplitz,
                sm.LowRank,
                sm.HouseholderProduct,
            ]
        )
    )
    a = data.draw(strategies.matrices(kind, shape=(4, 4), batch=()))
    assert type(a) is kind and tuple(a.shape) == (4, 4)
    wide = data.draw(strategies.matrices(shape=(2, 5), batch=(3,)))
    assert tuple(wide.shape) == (3, 2, 5)
