"""Krylov methods as functions: each row by itself, backward errors, preconditioners, starts, limits, least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structmat.functional.krylov import Outcome, cgls, conjugate_gradients, gmres, lsmr, minres
from structmat.functional.krylov.general import restart_length
from structmat.testing.strategies import dtypes

F64, C128 = torch.float64, torch.complex128
METHODS: dict[str, Any] = {"cg": conjugate_gradients, "minres": minres, "gmres": gmres}
GOAL = 20


def numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def suited(name: str, n: int, dtype: torch.dtype, batch: tuple[int, ...] = (), seed: int = 0) -> torch.Tensor:
    """A matrix the method is for: condition number about ten; indefinite for minres, not symmetric for gmres."""
    a = numbers(*batch, n, n, dtype=dtype, seed=seed) / (3 * n**0.5)
    eye = torch.eye(n, dtype=dtype)
    if name == "gmres":
        return a + eye
    hermitian = (a + a.mH) / 2
    signs = (
        torch.where(torch.arange(n) % 3 == 0, -1.0, 1.0).to(dtype) if name == "minres" else torch.ones(n, dtype=dtype)
    )
    return hermitian + torch.diag(signs)


def same(v: torch.Tensor) -> torch.Tensor:
    return v


def by(a: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda v: v @ a.mT


def eta_of(a: torch.Tensor, x: torch.Tensor, b: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm
    size = sigma[..., None] * norm(x, dim=-1) + norm(b, dim=-1)
    return norm(b - x @ a.mT, dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)


def run(name: str, a: torch.Tensor, b: torch.Tensor, **options: Any) -> tuple[Outcome, torch.Tensor]:
    sigma = torch.linalg.matrix_norm(a, 2)
    goal = options.pop("goal", GOAL * torch.finfo(b.dtype).eps)
    most = options.pop("most", 20 * b.shape[-1] + 50)
    out = METHODS[name](by(a), options.pop("precondition", same), b, sigma, goal, most, **options)
    return out, eta_of(a, out.x, b, sigma)


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data(), dtype=dtypes(), n=st.integers(1, 40), batch=st.sampled_from([(), (2,), (2, 1)]))
def test_each_row_meets_its_target(name: str, data: Any, dtype: torch.dtype, n: int, batch: tuple[int, ...]) -> None:
    """Random well-conditioned systems, a zero row and rows of very different size among them: the measured backward
    error is that of the outcome and meets 1.5 times the target, the solution is the dense one."""
    k, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 99))
    a = suited(name, n, dtype, batch, seed)
    kappa = float(torch.linalg.cond(a).max())
    if kappa > 100:
        return
    b = numbers(*batch, k, n, dtype=dtype, seed=seed + 1) * 10.0 ** (4 * torch.arange(k)[:, None] - 4).to(dtype)
    b[..., -1, :] = 0 if k > 1 else b[..., -1, :]
    out, eta = run(name, a, b)
    eps = torch.finfo(dtype).eps
    assert out.converged and out.eta is not None and out.eta.shape == b.shape[:-1]
    assert float(eta.max()) <= 1.5 * GOAL * eps + 4 * eps * n**0.5  # the second term: the product measured anew
    assert float((out.eta - eta).abs().max()) <= 8 * eps * n**0.5
    wanted = torch.linalg.solve(a, b.mT).mT
    error = torch.linalg.vector_norm(out.x - wanted, dim=-1)
    assert bool((error <= 4 * GOAL * eps * kappa * torch.linalg.vector_norm(wanted, dim=-1)).all())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_a_row_does_not_depend_on_the_others(name: str, dtype: torch.dtype) -> None:
    """Solved beside a harder row, an easy one takes its own steps and is frozen; twice the same run, the same bits."""
    n = 60
    a = suited(name, n, dtype)
    easy = torch.linalg.eig(a).eigenvectors[:, 0].to(C128)
    easy = easy if dtype.is_complex else easy.real.to(dtype)
    b = torch.stack((easy, numbers(n, dtype=dtype, seed=5)))
    alone, _ = run(name, a, b[:1].clone())
    both, eta = run(name, a, b)
    again, _ = run(name, a, b)
    assert torch.equal(both.x, again.x) and both.steps == again.steps
    assert float(eta.max()) <= 2 * GOAL * torch.finfo(dtype).eps
    gap = float((both.x[0] - alone.x[0]).norm())
    assert gap <= 100 * GOAL * torch.finfo(dtype).eps * float(alone.x[0].norm())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_preconditioners_cut_the_steps(name: str, dtype: torch.dtype) -> None:
    """A graded diagonal that costs hundreds of steps costs few once its inverse is applied; the residual stays the
    true one."""
    n = 80
    scale = torch.logspace(0, 3, n, dtype=F64).to(dtype)
    root = torch.diag(scale.sqrt())
    a = root @ suited(name, n, dtype) @ root
    b = numbers(2, n, dtype=dtype)
    plain, _ = run(name, a, b, most=1000)
    helped, eta = run(name, a, b, precondition=lambda v: v / scale)
    assert helped.converged and float(eta.max()) <= 2 * GOAL * torch.finfo(dtype).eps
    assert helped.steps < 0.9 * min(plain.steps, n)


@pytest.mark.parametrize("name", METHODS)
def test_start_limit_and_callback(name: str) -> None:
    n = 40
    a, b = suited(name, n, F64), numbers(3, n)
    seen: list[tuple[int, float]] = []
    out, _ = run(name, a, b, callback=lambda k, eta: seen.append((k, eta)))
    assert [k for k, _ in seen] == list(range(1, out.steps + 1)) and seen[-1][1] < 1e-13 < seen[0][1]
    warm, _ = run(name, a, b, start=out.x, goal=2 * GOAL * torch.finfo(F64).eps)
    assert warm.converged and warm.steps <= 1
    short, eta = run(name, a, b, most=3)
    assert not short.converged and short.steps == 3 and float(eta.max()) > 1e-10
    loose, eta = run(name, a, b, goal=1e-3)
    assert loose.converged and loose.steps < out.steps and float(eta.max()) <= 1.5e-3


def test_gmres_restarts_and_ends_where_nothing_is_gained() -> None:
    n = 60
    a, b = suited("gmres", n, F64), numbers(2, n)
    out, eta = run("gmres", a, b, restart=7)
    assert out.converged and out.steps > 7 and float(eta.max()) <= 2 * GOAL * torch.finfo(F64).eps
    shift = torch.roll(torch.eye(n, dtype=F64), 1, 0)  # no restarted method moves before step n
    unit = torch.eye(n, dtype=F64)[:1]
    assert run("gmres", shift, unit, restart=10)[0].steps == 10
    whole, eta = run("gmres", shift, unit)
    assert whole.converged and whole.steps == n and float(eta.max()) <= 1e-15


def test_the_basis_of_gmres_stays_within_its_memory() -> None:
    for rows in (1, 3, 64, 1000):
        for n in (1, 5, 300, 4096, 10**5, 10**7):
            width = restart_length(rows, n)
            assert 1 <= width <= min(n, 400)
            assert width <= 20 or width * rows * n <= 2**25


def test_what_is_not_definite_is_noticed() -> None:
    n = 20
    indefinite = torch.diag(torch.linspace(-1, 1, n, dtype=F64))
    b = numbers(2, n)
    assert not run("cg", indefinite, b)[0].converged
    assert not run("cg", torch.eye(n, dtype=F64), b, precondition=lambda v: -v)[0].converged
    assert not run("minres", indefinite, b, precondition=lambda v: v * torch.linspace(-1, 1, n, dtype=F64))[0].converged


def test_minres_solves_what_a_singular_matrix_can_reach() -> None:
    """A consistent singular Hermitian system is solved; an inconsistent one ends with a finite x and an honest error
    (it may be small: a huge x solves a system near by)."""
    n = 30
    values = torch.linspace(-1, 1, n, dtype=F64)
    values[:4] = 0
    q = torch.linalg.qr(numbers(n, n)).Q
    a = (q * values) @ q.mT
    reach = numbers(2, n) @ a.mT
    out, eta = run("minres", a, reach)
    assert out.converged and float(eta.max()) <= 2 * GOAL * torch.finfo(F64).eps
    out, eta = run("minres", a, reach + q[:, 0])
    assert bool(torch.isfinite(out.x).all()) and out.eta is not None
    assert float((out.eta - eta).abs().max()) <= 1e-14


def test_nan_ends_at_once() -> None:
    b = numbers(2, 10)
    b[1, 3] = torch.nan
    for name in ("cg", "gmres"):
        out, _ = run(name, suited(name, 10, F64), b, most=10_000)
        assert not out.converged and out.steps <= 20


# -- least squares ------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (30, 12, 12), (12, 30, 12), (25, 20, 7), (15, 15, 15)]


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", [cgls, lsmr])
def test_least_squares_of_least_norm(method: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Tall, wide, square and of deficient rank, inconsistent right sides: the pseudo-inverse applied. Batches of two;
    the error allowed is the square of the condition number times the target."""
    m, n, rank = shape
    u = torch.linalg.qr(numbers(2, m, rank, dtype=dtype)).Q
    v = torch.linalg.qr(numbers(2, n, rank, dtype=dtype, seed=1)).Q
    a = (u * torch.linspace(1, 4, rank).to(dtype)) @ v.mH
    b = numbers(2, 3, m, dtype=dtype, seed=2)
    b[:, 1] = 0
    sigma = torch.full((2,), 4.0, dtype=a.real.dtype)
    eps = torch.finfo(dtype).eps
    seen: list[int] = []
    arguments = (by(a), lambda y: y @ a.conj(), same if method is cgls else None, b, n, sigma, GOAL * eps, 40 * n + 50)
    out = method(*arguments, callback=lambda k, _: seen.append(k))
    wanted = b @ torch.linalg.pinv(a, rtol=1e-3).mT
    assert out.converged and out.eta is not None and bool((out.eta <= 1.5 * GOAL * eps).all())
    assert float((out.x - wanted).norm()) <= 16 * 4 * GOAL * eps * float(wanted.norm() + b.norm())
    assert seen == list(range(1, out.steps + 1))
    warm = method(*arguments, start=out.x)
    assert warm.converged and warm.steps <= 2
    if rank > 1:
        assert not method(*arguments[:-1], 1).converged


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("method", [cgls, lsmr])
def test_preconditioned_least_squares(method: Any, dtype: torch.dtype) -> None:
    """Graded columns: the inverse of the diagonal of ``A^H A`` as preconditioner; the same minimiser in fewer steps."""
    m, n = 60, 30
    q = torch.linalg.qr(numbers(m, n, dtype=dtype)).Q + 0.1 * numbers(m, n, dtype=dtype, seed=1) / m**0.5
    grade = torch.logspace(0, 2, n, dtype=F64)
    a, b = q * grade.to(dtype), numbers(2, m, dtype=dtype, seed=2)
    sigma = torch.linalg.matrix_norm(a, 2)
    goal = GOAL * torch.finfo(dtype).eps
    plain = method(by(a), lambda y: y @ a.conj(), same if method is cgls else None, b, n, sigma, goal, 5000)
    weight = a.abs().square().sum(0)
    helped = method(by(a), lambda y: y @ a.conj(), lambda s: s / weight, b, n, sigma, goal, 5000)
    wanted = torch.linalg.lstsq(a, b.mT).solution.mT
    for out in (plain, helped):
        # condition number about 100 for the columns, whose square stands before the residual
        assert out.converged and float((out.x - wanted).norm()) <= 1e4 * 4 * goal * float(wanted.norm() + b.norm())
    assert helped.steps < plain.steps / 2
