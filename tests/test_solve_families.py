"""Solves and determinants of every family of the accuracy list, n from 1 to 4096: backward and forward errors."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy
import pytest
import scipy.linalg
import torch

import structmat as sm
from structmat import Claim
from structmat.functional import toeplitz_det, toeplitz_policy
from structmat.functional.toeplitz_policy import Record, run
from tests.families import FAMILIES, Family

EPS = float(numpy.finfo(float).eps)
ACCEPTED = 100 * EPS


def _dense(t: Any) -> Any:
    n = (len(t) + 1) // 2
    return scipy.linalg.toeplitz(t[n - 1 :], t[:n][::-1])


def _right(n: int, kind: Any, columns: int = 2) -> Any:
    return numpy.random.default_rng(9).standard_normal((n, columns)).astype(kind)


def _bound(dense: Any) -> float:
    """``||A||_2`` from below: the largest column."""
    return float(numpy.linalg.norm(dense, axis=0).max())


def _eta(dense: Any, x: Any, b: Any) -> float:
    """Stricter than what is promised: a norm of A from below, the product in extended precision where A is small."""
    wide = numpy.clongdouble if numpy.iscomplexobj(dense) or numpy.iscomplexobj(b) else numpy.longdouble
    kind = wide if len(dense) <= 64 else b.dtype
    residual = numpy.linalg.norm((b - (dense.astype(kind) @ x.astype(kind))).astype(b.dtype), axis=0)
    return float(
        (residual / (_bound(dense) * numpy.linalg.norm(x, axis=0) + numpy.linalg.norm(b, axis=0))).max(initial=0.0)
    )


def _matrix(family: Family, t: Any) -> sm.Matrix:
    n = (len(t) + 1) // 2
    if family.mirror == "symmetric":
        matrix: sm.Matrix = sm.SymmetricToeplitz(torch.from_numpy(t[n - 1 :].copy()))
    else:
        matrix = sm.Toeplitz(torch.from_numpy(t), n)
        if family.mirror == "hermitian":
            matrix = matrix.assume(Claim.HERMITIAN)
    return matrix.assume(Claim.POSITIVE_DEFINITE) if family.definite else matrix


def _solved(family: Family, t: Any, b: Any, method: str = "auto", claimed: bool = True) -> tuple[Any, Record]:
    """By the functional, which takes the structured path at every order."""
    record = Record(method, family.definite and claimed, family.mirror)
    return run(torch.from_numpy(t), torch.from_numpy(b.T.copy()), record).numpy().T, record


@pytest.mark.parametrize("n", [1, 2, 3, 12, 65])
@pytest.mark.parametrize("name", FAMILIES)
def test_structured_solves_of_small_orders(name: str, n: int) -> None:
    family = FAMILIES[name]
    t = family.diagonals(n)
    dense, b = _dense(t), _right(n, t.dtype)
    x, record = _solved(family, t, b)
    assert _eta(dense, x, b) <= ACCEPTED, record
    kappa = float(numpy.linalg.cond(dense))
    if n <= 12:
        with mpmath.workdps(60):
            columns = [mpmath.lu_solve(mpmath.matrix(dense.tolist()), mpmath.matrix(v.tolist())) for v in b.T]
            exact = numpy.array([[complex(v) for v in c] for c in columns]).T
    else:
        exact = numpy.linalg.solve(dense, b)
    gap = numpy.linalg.norm(x - exact, axis=0) / numpy.linalg.norm(exact, axis=0)
    assert gap.max() <= 200 * EPS * kappa


@pytest.mark.parametrize("n", [300, 1024])
@pytest.mark.parametrize("name", FAMILIES)
def test_solves_above_the_dense_limit(name: str, n: int) -> None:
    """Through the public verb; the error that it reports is the true one."""
    if n > 300 and name in ("0.9^(k^2)", "zero diagonal", "singular minor 1", "nearly singular minor 51"):
        n = 511  # an odd order, and one without small factors
    family = FAMILIES[name]
    t = family.diagonals(n)
    dense, b = _dense(t), _right(n, t.dtype)
    x, info = sm.linalg.solve(_matrix(family, t), torch.from_numpy(b), return_info=True)
    assert _eta(dense, x.numpy(), b) <= ACCEPTED, info
    assert float(info.backward_error.max()) <= ACCEPTED and info.method != "dense"


@pytest.mark.parametrize("name", FAMILIES)
def test_solves_of_order_4096(name: str) -> None:
    """True error against a known solution, the right-hand side formed in extended precision."""
    family, n = FAMILIES[name], 4096
    t = family.diagonals(n)
    x = _right(n, t.dtype, 1)[:, 0]
    wide = numpy.clongdouble if numpy.iscomplexobj(t) else numpy.longdouble
    windows = numpy.lib.stride_tricks.sliding_window_view(t, n)
    back = x[::-1].astype(wide)
    b = numpy.array([windows[k].astype(wide) @ back for k in range(n)]).astype(t.dtype)
    found, info = sm.linalg.solve(_matrix(family, t), torch.from_numpy(b), return_info=True)
    # from the symbols: the theta function of 0.9^(k^2) falls from 11 to 7e-10 or so; random ones have about 1e4
    kappa = {"KMS 0.99": 4e4, "Gaussian": 8e6, "second difference": 7e6, "0.9^(k^2)": 7e9}.get(name, 1e5)
    assert float(info.backward_error.max()) <= ACCEPTED
    assert numpy.linalg.norm(found.numpy() - x) <= 200 * EPS * kappa * numpy.linalg.norm(x)


@pytest.mark.parametrize("method", ["levinson", "gko", "gmres"])
@pytest.mark.parametrize("name", ["KMS 0.5", "graded", "complex", "Hermitian KMS"])
def test_methods_by_name(name: str, method: str) -> None:
    family = FAMILIES[name]
    t = family.diagonals(60)
    dense, b = _dense(t), _right(60, t.dtype)
    x, record = _solved(family, t, b, method)
    assert record.used == method and _eta(dense, x, b) <= ACCEPTED


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("name", ["KMS 0.99", "Hermitian KMS", "algebraic"])
def test_definite_or_not_the_same_solution(name: str, definite: bool) -> None:
    """Conjugate gradients for one and for many right-hand sides (those through the pair), or none."""
    family, n = FAMILIES[name], 400
    t = family.diagonals(n)
    dense = _dense(t)
    for columns in (1, 7):
        b = _right(n, t.dtype, columns)
        x, record = _solved(family, t, b, claimed=definite)
        assert _eta(dense, x, b) <= ACCEPTED
        assert record.used.startswith("cg" if definite and columns == 1 else ("cg", "levinson"))


def test_more_right_hand_sides_never_cost_accuracy() -> None:
    """One refinement in any case: 64 columns are at least as accurate as scipy's, column by column."""
    for name in ("KMS 0.99", "Gaussian", "random"):
        t = FAMILIES[name].diagonals(600)
        dense, b = _dense(t), _right(600, float, 64)
        x, _ = _solved(FAMILIES[name], t, b)
        theirs = scipy.linalg.solve_toeplitz((t[599:], t[:600][::-1]), b)
        assert _eta(dense, x, b) <= _eta(dense, theirs, b)


# -- determinants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 12, 80, 300])
@pytest.mark.parametrize("name", FAMILIES)
def test_slogdet(name: str, n: int) -> None:
    family = FAMILIES[name]
    t = family.diagonals(n)
    dense = _dense(t)
    kappa = float(numpy.linalg.cond(dense))
    sign, logabs = (v.numpy() for v in toeplitz_det.slogdet(torch.from_numpy(t), family.mirror))
    if n <= 12:
        with mpmath.workdps(60):
            value = mpmath.det(mpmath.matrix(dense.tolist()))
            wanted = complex(value / abs(value)), float(mpmath.log(abs(value)))
    else:
        found = numpy.linalg.slogdet(dense)
        wanted = complex(found[0]), float(found[1])
    assert abs(float(logabs) - wanted[1]) <= 100 * n * EPS * kappa
    assert n * EPS * kappa < 1e-3
    assert abs(complex(sign) - wanted[0]) <= (100 * n * EPS * kappa if t.dtype.kind == "c" else 0.0)


def test_slogdet_of_a_batch_in_which_each_goes_its_own_way() -> None:
    names = ["KMS 0.5", "random", "cyclic shift", "graded"]
    t = numpy.stack([FAMILIES[name].diagonals(300) for name in names])
    sign, logabs = sm.Toeplitz(torch.from_numpy(t).reshape(2, 2, -1), 300).slogdet()
    assert sign.shape == logabs.shape == (2, 2)
    for k in range(4):
        wanted = numpy.linalg.slogdet(_dense(t[k]))
        assert float(sign.flatten()[k]) == wanted[0] and abs(float(logabs.flatten()[k]) - wanted[1]) <= 1e-8


def test_slogdet_raises_where_nothing_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the order that elimination is allowed; a doubtful value is never returned."""
    monkeypatch.setattr(toeplitz_det, "ELIMINATED", 299)
    with pytest.raises(sm.SolveError, match=r"slogdet.*torch.linalg.slogdet\(A.to_dense\(\)\)"):
        sm.Toeplitz(torch.from_numpy(FAMILIES["cyclic shift"].diagonals(300)), 300).slogdet()


def test_nan_passes_through_a_determinant_and_is_refused_by_a_solve() -> None:
    t = torch.from_numpy(FAMILIES["random"].diagonals(300))
    t[7] = torch.nan
    assert bool(sm.Toeplitz(t, 300).slogdet()[1].isnan())
    with pytest.raises(sm.SolveError, match="backward error nan"):
        sm.Toeplitz(t, 300).solve(torch.ones(300, dtype=torch.float64))


@pytest.mark.parametrize("name", ["zeros", "ones"])
def test_singular_matrices(name: str) -> None:
    """Zeros: an error, and a determinant of 0. All ones, and no right-hand side in its range: as LU does, a solution as
    large as 1 / eps whose backward error is small, or an error; never a wrong small one."""
    t = torch.zeros(599, dtype=torch.float64) if name == "zeros" else torch.ones(599, dtype=torch.float64)
    a, b = sm.Toeplitz(t, 300), torch.from_numpy(_right(300, float))
    if name == "zeros":
        assert float(a.slogdet()[0]) == 0.0 and float(a.logabsdet()) == -float("inf")
        with pytest.raises(sm.SolveError):
            a.solve(b)
        return
    try:
        assert float(a.solve(b).abs().max()) > 1e10
    except sm.SolveError as error:
        assert not error.backward_error <= ACCEPTED  # noqa: PT017


def test_krylov_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where elimination is not allowed, GMRES starts from the best rows so far."""
    monkeypatch.setattr(toeplitz_policy, "ELIMINATED", 10)
    t = numpy.zeros(2 * 30 - 1)
    t[29 + 1], t[29 - 29], t[29] = 1.0, 1.0, 1e-14  # a cyclic shift, whose own circulant preconditions it perfectly
    b = _right(30, float)
    x, record = _solved(Family(lambda n: t), t, b)
    assert "gmres" in record.used and _eta(_dense(t), x, b) <= ACCEPTED and "gmres" in record.reasons[-1]
