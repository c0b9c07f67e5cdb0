"""Systems, inverses and determinants of low displacement rank through GKO: accuracy on all families, derivatives."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import LowDisplacementRank as LDR
from structmat import backend
from structmat.testing import assert_gradients
from tests.families import FAMILIES

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _regular(n: int, r: int, e: complex = 1, f: complex = -1, dtype: torch.dtype = F64, batch: int = 0) -> LDR:
    """Well conditioned: random generators beside those of 3 I."""
    lead = (batch,) if batch else ()
    left, right = (_numbers(*lead, n, r, dtype=dtype, seed=k) / (n * r) ** 0.5 for k in range(2))
    total = LDR(left, right, e, f) + 3 * sm.Identity(n, dtype)
    assert isinstance(total, LDR)
    return total


@pytest.fixture
def eliminating(monkeypatch: pytest.MonkeyPatch) -> None:
    """The structured path at every order."""
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 2})


def _eta(dense: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> float:
    """With the largest column in place of the norm of A: stricter than what is promised."""
    size = float(torch.linalg.vector_norm(dense, dim=0).max()) * torch.linalg.vector_norm(x, dim=0)
    gap = torch.linalg.vector_norm(b - dense @ x, dim=0)
    return float((gap / (size + torch.linalg.vector_norm(b, dim=0))).max())


@pytest.mark.usefixtures("eliminating")
@pytest.mark.parametrize("n", [3, 40, 300])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, n: int) -> None:
    """Of the Toeplitz matrix, and of its product with itself plus itself, whose generators cancel."""
    t = torch.from_numpy(FAMILIES[name].diagonals(n))
    toeplitz = sm.Toeplitz(t, n)
    a = LDR.from_toeplitz(toeplitz)
    dense, b = toeplitz.to_dense(), _numbers(n, 2, dtype=t.dtype, seed=5)
    x, info = sm.linalg.solve(a, b, method="gko", return_info=True)
    assert info.method == "gko" and float(info.backward_error.max()) <= 100 * EPS
    assert _eta(dense, x, b) <= 100 * EPS
    kappa = float(torch.linalg.cond(dense))
    if n * EPS * kappa < 1e-3:
        exact = torch.linalg.solve(dense, b)
        # both are solutions of systems near this one
        assert float((x - exact).norm() / exact.norm()) <= 300 * EPS * kappa
        sign, logabs = a.slogdet()
        right_sign, right = torch.linalg.slogdet(dense)
        assert float((logabs - right).abs()) <= 100 * n * EPS * kappa
        assert float((sign - right_sign).abs()) <= (0 if not t.is_complex() else 100 * n * EPS * kappa)


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
@pytest.mark.parametrize(("e", "f"), [(1, -1), (2.0, -1)])
def test_values_and_gradients_above_the_dense_limit(e: complex, f: complex, dtype: torch.dtype) -> None:
    """solve, inv, slogdet and factor against dense LU at order 270."""
    n = 270
    a = _regular(n, 2, e, f, dtype)
    a = LDR(a.left.clone().requires_grad_(), a.right.clone().requires_grad_(), e, f)
    dense = a.to_dense()
    kappa = float(torch.linalg.cond(dense.detach()))
    limit = 1e4 * torch.finfo(dtype).eps * kappa
    b = _numbers(n, 3, dtype=dtype, seed=4)
    weights = _numbers(n, 3, dtype=dtype, seed=5)

    def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
        assert float((got - wanted).detach().norm()) <= limit * (1 + float(wanted.detach().norm()))
        if not got.requires_grad:
            return
        pairs = zip(*(_grads(v, weights, a) for v in (got, wanted)), strict=True)
        for mine, right in pairs:
            assert float((mine - right).norm()) <= 100 * limit * (1 + float(right.norm()))

    same(a.solve(b), torch.linalg.solve(dense, b))
    same(a.inv().linear(b.mT).mT, torch.linalg.inv(dense) @ b)
    for mine, right in zip(a.slogdet(), torch.linalg.slogdet(dense), strict=True):
        same(mine, right)
    kept = a.factor("gko")
    assert kept.method == "gko" and kept.backward_error <= 100 * EPS
    same(kept.solve(b), torch.linalg.solve(dense, b))
    same(kept.adjoint_solve(b), torch.linalg.solve(dense.mH, b))
    same(kept.logabsdet(), torch.linalg.slogdet(dense)[1])
    again = pickle.loads(pickle.dumps(a.detach().factor()))
    same(again.solve(b[:, 0]), torch.linalg.solve(dense, b)[:, 0].detach())


def _grads(value: torch.Tensor, weights: torch.Tensor, a: LDR) -> tuple[torch.Tensor, ...]:
    scalar = (value * (weights if value.ndim else 1 + 0.5j if value.is_complex() else 1)).sum()
    scalar = scalar.real + 2 * scalar.imag if scalar.is_complex() else scalar
    if not scalar.requires_grad:
        return ()
    found = torch.autograd.grad(scalar, (a.left, a.right), retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(a.left) if g is None else g for g in found)


@pytest.mark.usefixtures("eliminating")
@pytest.mark.parametrize(("e", "f", "dtype"), [(1, -1, F64), (1, -1, C128), (0.5, 1j, C128)])
def test_derivatives_to_second_order(e: complex, f: complex, dtype: torch.dtype) -> None:
    a, b = _regular(4, 1, e, f, dtype), _numbers(4, 1, dtype=dtype, seed=4)
    assert_gradients(lambda m, v: m.solve(v, check=False), (a, b))
    assert_gradients(lambda m: (m.inv().left, m.inv().right), (a,))
    assert_gradients(lambda m: m.slogdet(), (a,))
    assert_gradients(lambda m: (m.norm(), m.diagonal_sums()), (a,))
    assert_gradients(lambda m, v: m.factor().adjoint_solve(v), (a.detach(), b), order=1)


@pytest.mark.usefixtures("eliminating")
def test_transforms_of_torch_func() -> None:
    """grad, jvp and vmap through the elimination, by value."""
    a, b = _regular(6, 1), _numbers(6, 2, seed=4)

    def loss(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        matrix = LDR(left, right)
        return matrix.solve(b).square().sum() + matrix.logabsdet() + matrix.inv().left.square().sum()

    left, right = a.left, a.right
    leaves = [left.clone().requires_grad_(), right.clone().requires_grad_()]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.func.grad(loss, argnums=(0, 1))(left, right)
    moved = _numbers(6, 2, seed=6), _numbers(6, 2, seed=7)
    rate = torch.func.jvp(loss, (left, right), moved)[1]
    for w, g in zip(wanted, found, strict=True):
        assert torch.allclose(w, g, rtol=1e-9, atol=1e-11)
    assert float(rate) == pytest.approx(sum(float((w * m).sum()) for w, m in zip(wanted, moved, strict=True)), rel=1e-8)
    both = torch.func.vmap(loss)(torch.stack((left, left)), torch.stack((right, 2 * right)))
    assert torch.allclose(both, torch.stack((loss(left, right), loss(left, 2 * right))), rtol=1e-9)


@pytest.mark.usefixtures("eliminating")
def test_batches_are_eliminated_together() -> None:
    a = _regular(9, 2, batch=3)
    dense, b = a.to_dense(), _numbers(4, 3, 9, 2, seed=5)
    assert torch.allclose(a.solve(b), torch.linalg.solve(dense, b), atol=1e-12)
    assert torch.allclose(a.solve(b[0, 0]), torch.linalg.solve(dense, b[0, 0].expand(3, 9, 2)), atol=1e-12)
    assert torch.allclose(a.inv().to_dense(), torch.linalg.inv(dense), atol=1e-12)
    for mine, right in zip(a.slogdet(), torch.linalg.slogdet(dense), strict=True):
        assert torch.allclose(mine, right, atol=1e-12)


@pytest.mark.usefixtures("eliminating")
def test_cancelling_generators_are_balanced_first() -> None:
    """Terms of size 1e6 that cancel: information below their rounding is lost, what is left is solved to it."""
    n = 40
    a, noise = _regular(n, 1), 1e6
    big = _numbers(n, 1, seed=8) * noise
    cancelling = LDR(
        torch.cat((a.left, big, big), -1), torch.cat((a.right, _numbers(n, 1, seed=9), -_numbers(n, 1, seed=9)), -1)
    )
    b = _numbers(n, 2, seed=4)
    x = cancelling.solve(b, method="gko", check=False)
    gap = float((x - a.solve(b)).norm() / a.solve(b).norm())
    assert gap <= 1e3 * EPS * noise * float(torch.linalg.cond(a.to_dense()))
    assert cancelling.recompress().left.shape[-1] == 2


@pytest.mark.usefixtures("eliminating")
def test_singular_systems_raise_and_name_the_way_out() -> None:
    a = LDR.from_circulant(sm.Circulant(torch.ones(8, dtype=F64)))  # rank 1
    with pytest.raises(sm.SolveError, match=r"backward error"):
        a.solve(_numbers(8), method="gko")
    with pytest.raises(sm.SolveError):
        a.solve(_numbers(8))
    with pytest.raises(sm.SolveError):
        a.factor("gko")
    with pytest.raises(ValueError, match=r"start has no meaning for the direct method 'gko'"):
        a.solve(_numbers(8), method="gko", start=_numbers(8))
    with pytest.raises(ValueError, match="legal methods"):
        a.solve(_numbers(8), method="levinson")


def test_traced_solves_refuse_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    a = _regular(260, 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for call in (lambda: a.solve(_numbers(260)), a.factor, a.inv, a.slogdet):
        with pytest.raises(sm.StructureError, match=r"call it outside the compiled region"):
            call()
    with pytest.raises(sm.StructureError, match=r"the rank is read from values"):
        a.recompress()


# -- inverses of Toeplitz matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 12, 100, 300])
@pytest.mark.parametrize("name", FAMILIES)
def test_inverse_of_every_family(name: str, n: int) -> None:
    """Rank 2 by two solves, also where a leading minor is singular: the residual of the product with T."""
    t = torch.from_numpy(FAMILIES[name].diagonals(n))
    a = sm.Toeplitz(t, n)
    inverse: Any = a.inv()
    assert isinstance(inverse, LDR) and inverse.left.shape[-1] == 2 and (inverse.e, inverse.f) == (-1, 1)
    dense = a.to_dense()
    kappa = float(torch.linalg.cond(dense))
    exact = torch.linalg.inv(dense)
    # numerics: 50 eps kappa after refinement; the displacement is inverted once more, n / pi at worst
    assert float((inverse.to_dense() - exact).norm() / exact.norm()) <= 50 * EPS * kappa * max(1, n / 3)
    x = _numbers(3, n, dtype=t.dtype, seed=6)
    kept = inverse.prepare()
    for product in (inverse, kept):
        gap = float((a.linear(product.linear(x)) - x).norm() / x.norm())
        assert gap <= 50 * EPS * kappa**2 * max(1, n / 3)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_gradients_of_the_toeplitz_inverse(dtype: torch.dtype) -> None:
    t = _numbers(2, 9, dtype=dtype) / 4 + 3 * torch.nn.functional.one_hot(torch.tensor(4), 9).to(dtype)
    x = _numbers(2, 5, dtype=dtype, seed=3)
    assert_gradients(lambda d, v: sm.Toeplitz(d, 5).inv().linear(v), (t, x))


def test_the_inverse_of_half_stays_exact_by_staying_lazy() -> None:
    a = sm.Toeplitz((_numbers(39) / 6 + 4 * torch.nn.functional.one_hot(torch.tensor(19), 39)).to(torch.bfloat16), 20)
    assert isinstance(a.inv(), sm.Inverse)
    assert isinstance(LDR.from_toeplitz(a).inv(), sm.Inverse)
