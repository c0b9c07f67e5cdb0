"""Which method serves: per element of a batch, many small systems side by side, factorisations, least squares."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

import structmat as sm
from structmat import Claim
from structmat.functional import toeplitz_pair, toeplitz_policy
from structmat.functional.levinson_direct import solve_side_by_side
from structmat.functional.preconditioners import normal_equations
from structmat.functional.toeplitz_policy import side_by_side
from structmat.testing import assert_gradients
from structmat.testing.reference import dense_of
from tests.families import FAMILIES

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _error(a: sm.Matrix, x: torch.Tensor, b: torch.Tensor) -> float:
    """The largest backward error, by the dense matrix and its 2-norm."""
    dense = dense_of(a)
    kind = torch.promote_types(dense.dtype, x.dtype)
    dense, x, b = dense.to(kind), x.to(kind), b.to(kind)
    size = torch.linalg.matrix_norm(dense, 2)[..., None] * torch.linalg.vector_norm(x, dim=-2)
    return float((torch.linalg.vector_norm(b - dense @ x, dim=-2) / (size + torch.linalg.vector_norm(b, dim=-2))).max())


# -- many small systems -------------------------------------------------------------------------------------------


def _small(count: int, n: int, dtype: torch.dtype = F64, symmetric: bool = False) -> sm.Matrix:
    """Well conditioned ones, a cyclic shift, and one with a zero diagonal."""
    t = _numbers(count, 2 * n - 1, dtype=dtype) / n
    t[:, n - 1] += 3
    if symmetric:
        return sm.SymmetricToeplitz(t[:, n - 1 :].contiguous())
    t[1] = 0
    t[1, n], t[1, 0] = 1, 1
    t[2, n - 1] = 0
    return sm.Toeplitz(t, n)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [F64, C128, F32])
@pytest.mark.parametrize(("count", "n"), [(1100, 8), (160, 31), (70, 64), (6, 200)])
def test_many_small_systems_are_one_recursion(count: int, n: int, dtype: torch.dtype, symmetric: bool) -> None:
    """Those whose backward error is bad go on alone, the others keep what they have."""
    assert side_by_side(count, n)
    a = _small(count, n, dtype, symmetric)
    for columns in (1, 3):
        b = _numbers(count, n, columns, dtype=dtype, seed=1)
        x, info = sm.linalg.solve(a, b, return_info=True)
        assert x.dtype == dtype and _error(a, x, b) <= 100 * torch.finfo(dtype).eps
        assert info.method.startswith("levinson") and ("dense" in info.method) == (not symmetric)
    if symmetric and dtype == F64 and n <= 32:  # nothing to be kept: the recursion with the right-hand side in it
        assert sm.linalg.solve(a, _numbers(count, n, 1), return_info=True)[1].steps == 0
    shared = sm.linalg.solve(a, _numbers(n, dtype=dtype))
    assert shared.shape == (count, n)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 32])
def test_the_recursion_with_the_right_hand_side(n: int, mirrored: bool) -> None:
    """Solutions of dense solves; a backward error that is never understated; NaN where it cannot know."""
    t, b = _numbers(20, 2 * n - 1) / (2 * n), _numbers(20, n, seed=1)
    t[:, n - 1] += 2
    t = (t + t.flip(-1)) / 2 if mirrored else t
    y, eta = solve_side_by_side(t.numpy(), b.numpy(), mirrored)
    dense = sm.Toeplitz(t, n).to_dense()
    exact = torch.linalg.solve(dense, b[..., None])[..., 0]
    assert float((torch.from_numpy(y) - exact).abs().max()) <= 100 * EPS * float(exact.abs().max())
    residual = torch.linalg.vector_norm(b - (dense @ torch.from_numpy(y)[..., None])[..., 0], dim=-1)
    size = torch.linalg.matrix_norm(dense, 2) * torch.linalg.vector_norm(exact, dim=-1)
    true = residual / (size + torch.linalg.vector_norm(b, dim=-1))
    assert float(eta.max()) <= 100 * EPS and bool((torch.from_numpy(eta) >= true - EPS).all())
    t[0, n - 1], t[1], b[2], b[3] = 0, t[1] * 1e-160, b[2] * 1e160, 0
    eta = solve_side_by_side(t.numpy(), b.numpy(), mirrored)[1]
    assert numpy.isnan(eta[:4]).all() and numpy.isfinite(eta[4:]).all()


def test_few_small_systems_stay_dense() -> None:
    assert not side_by_side(1, 256) and not side_by_side(64, 8) and not side_by_side(3, 128)
    a = _small(3, 8)
    assert sm.linalg.solve(a, _numbers(3, 8, 1), return_info=True)[1].method == "dense"
    assert sm.backend.explain("solve", a).path == "dense"
    assert sm.backend.explain("solve", _small(1100, 8)).path == "levinson"


def test_gradients_of_many_small_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the dense path: the same loss, the same gradients, no second factorisation."""
    count, n = 140, 31
    t, b = _small(count, n)._diagonals().clone(), _numbers(count, n, 2)  # type: ignore[attr-defined]

    def gradients() -> list[torch.Tensor]:
        leaves = t.clone().requires_grad_(), b.clone().requires_grad_()
        x = sm.Toeplitz(leaves[0], n).solve(leaves[1])
        if monkeypatched:
            monkeypatch.setattr(toeplitz_pair, "pairs", None)  # the backward pass must not call it
        return [x.detach(), *torch.autograd.grad(x.sin().sum(), leaves)]

    monkeypatched = True
    found = gradients()
    monkeypatched = False
    monkeypatch.setattr("structmat.types.toeplitz_family.side_by_side", lambda count, n: False)
    for one, two in zip(found, gradients(), strict=True):
        assert float((one - two).abs().max()) <= 1e6 * EPS * float(two.abs().max())


# -- a batch in which each goes its own way -------------------------------------------------------------------------


def test_only_failing_elements_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four large matrices: plain, shifted, eliminated; elimination sees one of them."""
    names = ["KMS 0.5", "random", "tiny diagonal", "cyclic shift"]
    n, seen = 300, []
    eliminated = toeplitz_policy.eliminated

    def watched(system: Any, dense: bool = True) -> Any:
        seen.append(len(system.t))
        return eliminated(system, dense)

    monkeypatch.setattr(toeplitz_policy, "eliminated", watched)
    a = sm.Toeplitz(torch.from_numpy(numpy.stack([FAMILIES[name].diagonals(n) for name in names])), n)
    b = _numbers(4, n, 2)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert _error(a, x, b) <= 100 * EPS and seen == [1]
    assert info.backward_error.shape == (4, 2) and "gko" in info.method and len(info.reasons) >= 2
    wide = sm.linalg.solve(a, _numbers(5, 4, n, 1), return_info=True)[1]
    assert wide.backward_error.shape == (5, 4, 1)


def test_elimination_in_groups_keeps_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one matrix at a time: the same solutions, and a backward pass that factorises nothing."""
    names, n = ["cyclic shift", "random", "cyclic shift"], 300
    t = torch.from_numpy(numpy.stack([FAMILIES[name].diagonals(n) for name in names])).requires_grad_()
    b = _numbers(3, n, 2)
    monkeypatch.setattr(toeplitz_pair, "_MEMORY", 16 * n * n)
    for method in ("auto", "gko"):
        x, info = sm.linalg.solve(sm.Toeplitz(t, n), b, method=method, return_info=True)
        assert _error(sm.Toeplitz(t.detach(), n), x.detach(), b) <= 100 * EPS and "gko" in info.method
    factor = sm.Toeplitz(t.detach(), n).factor()
    assert factor.backward_error <= 100 * EPS
    eliminated = toeplitz_policy.eliminated
    monkeypatch.setattr(toeplitz_policy, "eliminated", None)
    (found,) = torch.autograd.grad(x.sin().sum(), t)
    monkeypatch.setattr(toeplitz_policy, "eliminated", eliminated)
    monkeypatch.setattr(toeplitz_pair, "_MEMORY", 2**30)
    (wanted,) = torch.autograd.grad(sm.Toeplitz(t, n).solve(b).sin().sum(), t)
    assert float((found - wanted).abs().max()) <= 1e6 * EPS * float(wanted.abs().max())


def test_backward_takes_the_factorisation_of_each_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair and elimination are kept: the backward pass factorises nothing."""
    names, n = ["KMS 0.5", "cyclic shift"], 300
    t = torch.from_numpy(numpy.stack([FAMILIES[name].diagonals(n) for name in names])).requires_grad_()
    b = _numbers(2, n, 1)
    x = sm.Toeplitz(t, n).solve(b)
    for module, name in ((toeplitz_pair, "pairs"), (toeplitz_policy, "eliminated")):
        monkeypatch.setattr(module, name, None)
    (found,) = torch.autograd.grad(x.sin().sum(), t)
    other = t.detach().clone().requires_grad_()
    dense = torch.linalg.solve(sm.Toeplitz(other, n).to_dense(), b)
    (wanted,) = torch.autograd.grad(dense.sin().sum(), other)
    assert float((found - wanted).abs().max()) <= 1e4 * EPS * n


def test_slogdet_backward_takes_the_pair_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 300
    t = torch.from_numpy(FAMILIES["random"].diagonals(n)).requires_grad_()
    logabs = sm.Toeplitz(t, n).slogdet()[1]
    monkeypatch.setattr(toeplitz_pair, "pairs", None)
    (found,) = torch.autograd.grad(logabs, t)
    other = t.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(torch.linalg.slogdet(sm.Toeplitz(other, n).to_dense())[1], other)
    assert float((found - wanted).abs().max()) <= 1e6 * EPS * float(wanted.abs().max())


# -- methods ------------------------------------------------------------------------------------------------------


def test_options_that_a_direct_method_does_not_take() -> None:
    a = sm.Toeplitz(torch.from_numpy(FAMILIES["KMS 0.5"].diagonals(300)), 300)
    for method in ("levinson", "gko"):
        with pytest.raises(ValueError, match=rf"max_steps has no meaning for the direct method '{method}'"):
            a.solve(_numbers(300), method=method, max_steps=3)
    for method in ("cg", "gmres", "minres"):
        with pytest.raises(ValueError, match=rf"the iterative method '{method}' keeps no factorisation"):
            a.factor(method)


@pytest.mark.parametrize("name", ["Hermitian KMS", "complex", "cyclic shift", "tiny diagonal"])
@pytest.mark.parametrize("method", ["auto", "gko"])
def test_factorisations(name: str, method: str) -> None:
    """Two vectors, whoever found them; solves, adjoint solves and the determinant."""
    family, n = FAMILIES[name], 300
    a = sm.Toeplitz(torch.from_numpy(family.diagonals(n)), n)
    factor = a.factor(method)
    assert factor.backward_error <= 100 * EPS and len(factor.tensors()) == 3
    assert factor.method == ("gko" if method == "gko" or name == "cyclic shift" else "levinson")
    b = _numbers(n, 2, dtype=a.dtype)
    assert _error(a, factor.solve(b), b) <= 100 * EPS
    assert _error(a.mH, factor.adjoint_solve(b), b) <= 100 * EPS
    for found, wanted in zip(factor.slogdet(), torch.linalg.slogdet(dense_of(a)), strict=True):
        assert float((found - wanted).abs()) <= 1e-9


def test_a_factorisation_is_differentiable_through_solve_and_determinant() -> None:
    """What a Gaussian process maximises: ``b^T K^-1 b + log det K`` with one factorisation."""
    n = 300
    k = torch.arange(n, dtype=F64)
    b = _numbers(n)

    def loss(structured: bool, scale: torch.Tensor) -> torch.Tensor:
        column = torch.exp(-k / scale) + 0.1 * (k == 0)
        a = sm.SymmetricToeplitz(column).assume(Claim.POSITIVE_DEFINITE)
        if structured:
            factor = a.factor()
            return b @ factor.solve(b) + factor.logabsdet()
        return b @ torch.linalg.solve(a.to_dense(), b) + torch.linalg.slogdet(a.to_dense())[1]

    scale = torch.tensor(5.0, dtype=F64, requires_grad=True)
    plain, dense = (torch.autograd.grad(loss(how, scale), scale)[0] for how in (True, False))
    inside = torch.func.grad(lambda s: loss(True, s))(scale.detach())  # a transform keeps nothing, and gives the same
    for found in (plain, inside):
        assert float((found - dense).abs()) <= 1e-10 * float(dense.abs())


# -- least squares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("m", "n"), [(400, 260), (700, 260), (260, 400)])
def test_least_squares_with_a_circulant(m: int, n: int, dtype: torch.dtype) -> None:
    """Condition numbers of 1e3 to 1e4: far fewer steps than without, the same solution as by a dense SVD."""
    k = torch.arange(-(n - 1), m, dtype=F64)
    t = torch.exp(-k.abs() / 20) * (1 + 0.1 * _numbers(m + n - 1))
    t = t if dtype == F64 else torch.polar(t, 0.3 * k)
    a, b = sm.Toeplitz(t, n), _numbers(m, 2, dtype=dtype)
    x, info = sm.linalg.lstsq(a, b, return_info=True)
    wanted = torch.from_numpy(numpy.linalg.lstsq(dense_of(a).numpy(), b.numpy())[0])
    assert "given preconditioner" in info.method and info.steps <= 250
    # the residual is large, so the square of the condition number counts
    assert float((x - wanted).norm()) <= 1e-8 * float(wanted.norm())


def test_least_squares_without_one_where_it_would_be_singular() -> None:
    """A banded matrix with a zero in its symbol, rank deficient: the solution of least norm."""
    t = torch.zeros(700 + 300 - 1, dtype=F64)
    a = sm.Toeplitz(t, 300)
    x, info = sm.linalg.lstsq(a, _numbers(700), return_info=True)
    assert info.method == "lsmr" and float(x.norm()) == 0.0


@pytest.mark.parametrize(("m", "n"), [(7, 3), (6, 3), (3, 3), (10, 4)])
def test_the_circulant_of_the_normal_equations(m: int, n: int) -> None:
    """Sums of squared moduli of the eigenvalues of the nearest circulants of the blocks, by dense means."""
    t = _numbers(m + n - 1)
    dense = torch.zeros(-(-m // n) * n, n, dtype=F64)
    blocks = sm.Toeplitz(torch.nn.functional.pad(t, (0, len(dense) - m)), n).to_dense()
    total = torch.zeros(n, dtype=F64)
    for p in range(0, len(dense), n):
        column = sm.Circulant.nearest(blocks[p : p + n]).column
        total += torch.fft.fft(column).abs().square()
    assert float((normal_equations(t, n) - total).abs().max()) <= 100 * EPS * float(total.max())


def test_least_squares_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm.backend, "_DENSE_LIMIT", {"cpu": 0})
    t = _numbers(7 + 4 - 1) / 4
    t[3] += 3
    assert_gradients(lambda t, b: sm.Toeplitz(t, 4).lstsq(b), (t, _numbers(7, 1)))
