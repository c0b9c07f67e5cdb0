"""Solving: every type against the dense solve, Toeplitz by each method, hard matrices, derivatives, factorisations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch

import structmat as sm
from structmat import Claim, Matrix, backend
from structmat.functional.preconditioners import strang
from structmat.testing import assert_gradients
from structmat.testing.examples import EXAMPLES, Example
from structmat.testing.reference import dense_of
from tests.cases import settings

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


@pytest.fixture
def structured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The structured path at every size: nothing is small enough for dense LU."""
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 0})


def backward_error(matrix: Any, x: torch.Tensor, b: torch.Tensor) -> float:
    """``||b - A x|| / (||A||_2 ||x|| + ||b||)`` per right-hand side, in float64 and with the true norm: stricter
    than ours."""
    a = dense_of(matrix)
    wide = torch.promote_types(a.dtype, torch.promote_types(x.dtype, F64))
    a, x, b = a.to(wide), x.to(wide), b.to(wide)
    columns = (x[..., None], b[:, None]) if b.ndim == 1 else (x, b)
    residual = torch.linalg.vector_norm(columns[1] - a @ columns[0], dim=-2)
    size = torch.linalg.matrix_norm(a, 2)[..., None] * torch.linalg.vector_norm(columns[0], dim=-2)
    return float((residual / (size + torch.linalg.vector_norm(columns[1], dim=-2))).max())


def limit(dtype: torch.dtype) -> float:
    """What is promised: 100 eps of the dtype computed in."""
    return 100 * torch.finfo(backend.compute_dtype(dtype)).eps


# -- every type ---------------------------------------------------------------------------------------------------

SOLVABLE = [
    pytest.param(e, s, id=f"{e.name}-{s[0]}-{s[1]}")
    for k, e in enumerate(EXAMPLES)
    if e.solvable
    for s in settings(e, k, (F64, C128, F32, torch.complex64))
]


@pytest.mark.parametrize(("example", "setting"), SOLVABLE)
def test_every_solvable_example(example: Example, setting: Any) -> None:
    """Vectors, columns, batches of right-hand sides, rows, the inverse, a factorisation, and the adjoint."""
    a = example.build(*setting)
    dtype = a.dtype or setting[0]
    n = int(a.shape[-1])
    for shape in ((n,), (n, 2), (*a.batch_shape, n, 1), (3, *a.batch_shape, n, 2), (n, 0)):
        b = _numbers(*shape, dtype=dtype)
        x = a.solve(b)
        wanted = torch.broadcast_shapes(a.batch_shape, shape[:-2]) if len(shape) > 1 else tuple(a.batch_shape)
        assert x.shape == (*wanted, *(shape if len(shape) == 1 else shape[-2:])) and x.dtype == dtype
        if b.numel():
            assert backward_error(a, x, b) <= limit(dtype)
    rows = _numbers(3, n, dtype=dtype)
    kappa = float(torch.linalg.cond(dense_of(a)).max())
    close = 1e3 * kappa * torch.finfo(dtype).eps * float(rows.abs().max()) * n
    assert float((a.linear(a.solve_rows(rows)) - rows).abs().max()) <= close
    assert float((a.linear(a.inv().linear(rows)) - rows).abs().max()) <= close * kappa
    factor = a.factor()
    assert float((a.linear(factor.solve_rows(rows)) - rows).abs().max()) <= close
    assert backward_error(a.mH, factor.adjoint_solve(rows[0]), rows[0]) <= limit(dtype)
    for found, wanted_log in zip(factor.slogdet(), torch.linalg.slogdet(dense_of(a)), strict=True):
        assert float((found.to(wanted_log.dtype) - wanted_log).abs().max()) <= 1e3 * kappa * torch.finfo(dtype).eps * n


# -- Toeplitz, each method ----------------------------------------------------------------------------------------


def _kms(n: int, rho: float, dtype: torch.dtype = F64) -> sm.SymmetricToeplitz:
    return sm.SymmetricToeplitz((rho ** torch.arange(n, dtype=F64)).to(dtype))


def _definite(column: torch.Tensor) -> sm.SymmetricToeplitz:
    return sm.SymmetricToeplitz(column).assume(Claim.POSITIVE_DEFINITE)


def _general(n: int, dtype: torch.dtype = F64, seed: int = 0, batch: tuple[int, ...] = ()) -> sm.Toeplitz:
    return sm.Toeplitz(_numbers(*batch, 2 * n - 1, dtype=dtype, seed=seed), n)


def _singular_leading_minor(n: int, k: int, gap: float) -> sm.Toeplitz:
    """A random Toeplitz matrix whose k x k leading minor is singular up to ``gap``, itself well conditioned."""
    t = _numbers(2 * n - 1, seed=3).clone()
    shift = torch.linalg.eigvals(sm.Toeplitz(t[n - k : n + k - 1].clone(), k).to_dense())
    real = shift[shift.imag.abs() < 1e-12].real
    t[n - 1] -= real[0] - gap if len(real) else 0.0
    return sm.Toeplitz(t, n)


HARD: dict[str, Any] = {
    "KMS 0.9": lambda: _kms(300, 0.9),
    "KMS 0.999": lambda: _kms(300, 0.999),
    "KMS definite": lambda: _kms(300, 0.99).assume(Claim.POSITIVE_DEFINITE),
    "algebraic decay definite": lambda: _definite((1.0 + torch.arange(300, dtype=F64)) ** -1.1),
    "second difference definite": lambda: _definite(torch.tensor([2.0, -1.0] + 298 * [0.0], dtype=F64)),
    "random nonsymmetric": lambda: _general(301),
    "random symmetric": lambda: sm.SymmetricToeplitz(_numbers(300)),
    "random complex": lambda: _general(300, C128),
    "complex symmetric": lambda: sm.SymmetricToeplitz(_numbers(300, dtype=C128)),
    "float32": lambda: _general(300, F32),
    "complex64": lambda: _general(300, torch.complex64),
    "singular minor": lambda: _singular_leading_minor(301, 51, 0.0),
    "nearly singular minor": lambda: _singular_leading_minor(301, 51, 1e-9),
    "zero diagonal": lambda: sm.SymmetricToeplitz(torch.cat((torch.zeros(1, dtype=F64), _numbers(299)))),
    "graded": lambda: sm.Toeplitz(_numbers(599) * 10.0 ** -(torch.arange(599, dtype=F64) - 299).abs().div(30), 300),
    "tiny": lambda: _general(300).__mul__(1e-150),
    "huge": lambda: _general(300).__mul__(1e150),
    "batch": lambda: _general(260, batch=(3,)),
    "batch of two levels": lambda: _general(258, batch=(2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_backward_error_of_hard_systems(name: str) -> None:
    """Above the dense limit, by the path that "auto" takes; the reported error is the true one."""
    a = HARD[name]()
    b = _numbers(*a.batch_shape, int(a.shape[-1]), 2, dtype=a.dtype, seed=7)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert backward_error(a, x, b) <= limit(a.dtype), info
    assert info.method != "dense" and float(info.backward_error.max()) <= limit(a.dtype)
    if "definite" in name:
        assert info.method.startswith("cg") or "did not converge" in " ".join(info.reasons)


METHODS = ["dense", "levinson", "cg", "gko", "gmres", "minres"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 33])
def test_methods_agree(n: int, method: str) -> None:
    a = _kms(n, 0.5)
    b = _numbers(n, 3)
    exact = torch.linalg.solve(dense_of(a), b)
    x, info = sm.linalg.solve(a, b, method=method, return_info=True)
    # condition number 9, backward error 100 eps
    assert float((x - exact).norm()) <= 9 * limit(F64) * float(exact.norm() + b.norm())
    assert method in info.method


def test_start_preconditioner_callback_and_steps() -> None:
    a = _kms(300, 0.9).assume(Claim.POSITIVE_DEFINITE)
    b = _numbers(300)
    seen: list[tuple[int, float]] = []
    x, info = sm.linalg.solve(a, b, callback=lambda k, eta: seen.append((k, eta)), return_info=True)
    assert [k for k, _ in seen] == list(range(1, len(seen) + 1)) and len(seen) >= 2 and seen[-1][1] < seen[0][1]
    again = sm.linalg.solve(a, b, method="cg", start=x, return_info=True)[1]
    assert again.steps <= 1 < info.steps
    perfect = sm.Circulant(strang(a._diagonals())).inv()
    given = sm.linalg.solve(a, b, preconditioner=perfect, method="cg", return_info=True)[1]
    assert given.steps < 20 and "given" in given.method
    with pytest.raises(sm.SolveError, match=r"solve\(method='cg, given preconditioner'\): backward error"):
        sm.linalg.solve(a, b, method="cg", preconditioner=sm.Identity(300, F64), max_steps=3)


def test_a_false_claim_of_definiteness_falls_back_and_stays_right() -> None:
    """Conjugate gradients notice that the matrix is indefinite; Levinson then solves it."""
    a = sm.SymmetricToeplitz(_numbers(300)).assume(Claim.POSITIVE_DEFINITE)
    b = _numbers(300, seed=1)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method in ("levinson", "gko") and info.reasons and backward_error(a, x, b) <= limit(F64)


def test_what_a_method_by_name_does_not_solve_raises_with_the_error_reached() -> None:
    """A cyclic shift has zero pivots everywhere: Levinson alone must not return a wrong answer, and "auto" goes on."""
    t = torch.zeros(599, dtype=F64)
    t[300], t[0] = 1.0, 1.0
    a = sm.Toeplitz(t, 300)
    b = _numbers(300)
    with pytest.raises(sm.SolveError, match='try method="dense"') as caught:
        a.solve(b, method="levinson")
    assert not caught.value.backward_error <= limit(F64)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert backward_error(a, x, b) <= limit(F64) and info.method == "gko" and info.reasons


# -- derivatives --------------------------------------------------------------------------------------------------


def _dominant(n: int, dtype: torch.dtype, batch: tuple[int, ...] = ()) -> torch.Tensor:
    t = _numbers(*batch, 2 * n - 1, dtype=dtype) / n
    return t + 2 * torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(dtype)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.usefixtures("structured")
def test_structured_derivatives_to_second_order(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    """gradcheck and gradgradcheck of solve, slogdet and a factorisation, all without a dense matrix."""
    t, b = _dominant(5, dtype, batch), _numbers(5, 2, dtype=dtype)
    for verb in (
        lambda t, b: sm.Toeplitz(t, 5).solve(b),
        lambda t, b: sm.Toeplitz(t, 5).mH.solve(b),
        lambda t, b: sm.Toeplitz(t, 5).inv() @ b,
        lambda t, b: sm.Toeplitz(t, 5).factor().solve(b),
        lambda t, b: sm.Toeplitz(t, 5).factor().adjoint_solve(b),
    ):
        assert_gradients(verb, (t, b))
    assert_gradients(lambda t: sm.Toeplitz(t, 5).slogdet(), (t,))


@pytest.mark.usefixtures("structured")
def test_symmetric_and_definite_derivatives() -> None:
    column = _kms(6, 0.4).column
    for make in (sm.SymmetricToeplitz, lambda c: sm.SymmetricToeplitz(c).assume(Claim.POSITIVE_DEFINITE)):
        assert_gradients(lambda c, b, make=make: make(c).solve(b), (column, _numbers(6, 2)))
        assert_gradients(lambda c, make=make: make(c).slogdet()[1], (column,))


@pytest.mark.parametrize("dtype", [F64, C128])
def test_structured_equals_dense_derivatives(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solve and slogdet: value, gradient, Hessian-vector product, jvp, vmap; the path with n^2 numbers against the
    one without."""
    n = 7
    t, b = _dominant(n, dtype), _numbers(n, 2, dtype=dtype, seed=1)
    dt, db = _numbers(2 * n - 1, dtype=dtype, seed=2), _numbers(n, 2, dtype=dtype, seed=3)

    def loss(t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = sm.Toeplitz(t, n)
        x = a.solve(b)
        sign, logabs = a.slogdet()
        flat = torch.cat([torch.view_as_real(v).flatten() if v.is_complex() else v.flatten() for v in (x, sign)])
        return (flat * torch.arange(1.0, len(flat) + 1, dtype=F64)).sum() + 3 * logabs

    def everything() -> list[torch.Tensor]:
        grads = torch.func.grad(loss, argnums=(0, 1))(t, b)
        along = torch.func.jvp(lambda t, b: torch.func.grad(loss, argnums=(0, 1))(t, b), (t, b), (dt, db))[1]
        many = torch.func.vmap(loss)(torch.stack((t, t + 0.1 * dt)), torch.stack((b, db)))
        per = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(t, torch.stack((b, db)))
        return [loss(t, b), *grads, *along, many, per, torch.func.jvp(loss, (t, b), (dt, db))[1]]

    dense = everything()
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 0})
    for found, wanted in zip(everything(), dense, strict=True):
        # condition number below 4, cubed in second derivatives; weights up to 30
        assert float((found - wanted).abs().max()) <= 1e5 * EPS * (1 + float(wanted.abs().max()))


def test_gradient_above_the_dense_limit() -> None:
    """n = 300, where nothing is patched: gradients of solve and slogdet against autograd of the dense matrix."""
    n = 300
    t, b = _dominant(n, F64), _numbers(n, 2)
    leaf, other = t.clone().requires_grad_(), t.clone().requires_grad_()
    a = sm.Toeplitz(leaf, n)
    (a.solve(b).sin().sum() + a.slogdet()[1]).backward()
    dense = sm.Toeplitz(other, n).to_dense()
    (torch.linalg.solve(dense, b).sin().sum() + torch.linalg.slogdet(dense)[1]).backward()
    # n terms of size up to 1 a diagonal, condition number below 4
    assert float((leaf.grad - other.grad).abs().max()) <= 1e3 * n * EPS * float(other.grad.abs().max())


@pytest.mark.usefixtures("structured")
def test_vmapped_solves_equal_the_loop() -> None:
    t, b = _dominant(6, F64, (3,)), _numbers(3, 6, 2)
    found = torch.func.vmap(lambda t, b: sm.Toeplitz(t, 6).solve(b))(t, b)
    wanted = torch.stack([torch.linalg.solve(dense_of(sm.Toeplitz(u, 6)), v) for u, v in zip(t, b, strict=True)])
    assert float((found - wanted).abs().max()) <= 4 * limit(F64) * float(wanted.norm() + b.norm())
    shared = torch.func.vmap(lambda b: sm.Toeplitz(t[0], 6).solve(b))(b)
    assert float((shared[0] - wanted[0]).abs().max()) <= 4 * limit(F64) * float(wanted.norm() + b.norm())
    assert torch.func.vmap(lambda t: sm.Toeplitz(t, 6).solve(b[0, :, 0]))(t).shape == (3, 6)


# -- factorisations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["toeplitz", "circulant", "dense", "householder"])
def test_factorisations_are_values(kind: str) -> None:
    """Kept, copied, pickled, traced by pytrees; two solves with one factorisation."""
    n = 300 if kind == "toeplitz" else 6
    a: Matrix = {
        "toeplitz": lambda: sm.Toeplitz(_dominant(n, F64), n),
        "circulant": lambda: sm.Circulant(_dominant(n, F64)[n - 1 :]),
        "dense": lambda: sm.Dense(dense_of(sm.Toeplitz(_dominant(n, F64), n))),
        "householder": lambda: sm.HouseholderProduct(_numbers(3, n)),
    }[kind]()
    factor = a.factor()
    assert factor.method and (factor.backward_error is None or factor.backward_error <= limit(F64))
    b = _numbers(n, 2)
    for other in (factor, pickle.loads(pickle.dumps(factor)), copy.deepcopy(factor), factor.clone()):
        assert backward_error(a, other.solve(b), b) <= limit(F64)
        assert backward_error(a.mH, other.adjoint_solve(b), b) <= limit(F64)
        assert float((other.logabsdet() - torch.linalg.slogdet(dense_of(a))[1]).abs()) <= 1e4 * EPS * n


def test_solve_info_and_tolerances() -> None:
    a = _kms(300, 0.9)
    b = _numbers(300)
    loose = sm.linalg.solve(a.assume(Claim.POSITIVE_DEFINITE), b, tol=1e-3, return_info=True)[1]
    tight = sm.linalg.solve(a.assume(Claim.POSITIVE_DEFINITE), b, return_info=True)[1]
    assert loose.steps <= tight.steps and float(loose.backward_error.max()) <= 1e-3
    unchecked = sm.linalg.solve(sm.Dense(dense_of(a)), b, check=False, return_info=True)[1]
    assert unchecked.backward_error is None


def test_zero_right_hand_sides_give_zero() -> None:
    kms, circulant = _kms(300, 0.5), sm.Circulant(torch.tensor([3.0, 1.0]))
    for a in (kms, kms.assume(Claim.POSITIVE_DEFINITE), _general(5), circulant):
        x = a.solve(torch.zeros(int(a.shape[-1]), 2, dtype=a.dtype))
        assert torch.equal(x, torch.zeros_like(x))


def test_agreement_with_scipy_on_its_own_ground() -> None:
    c = numpy.r_[3.0, 0.5 ** numpy.arange(1, 300)]
    b = numpy.random.default_rng(0).standard_normal(300)
    ours, theirs = sm.linalg.solve_toeplitz(c, b), scipy.linalg.solve_toeplitz(c, b)
    assert numpy.abs(ours - theirs).max() <= 10 * limit(F64) * numpy.abs(theirs).max()
