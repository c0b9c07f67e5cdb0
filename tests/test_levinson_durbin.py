"""The Levinson-Durbin recursion: the Yule-Walker equations, every order at once, gradients, and where it must stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def autocovariance(p: int, seed: int = 0, dtype: torch.dtype = F64, batch: tuple[int, ...] = ()) -> torch.Tensor:
    """Sample autocovariances of noise, divided by the number of samples: positive definite for certain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, p + 6, generator=generator, dtype=dtype)
    n = x.shape[-1]
    return torch.stack([(x[..., k:] * x[..., : n - k].conj()).sum(-1) / n for k in range(p + 1)], -1)


def yule_walker(r: torch.Tensor, order: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Coefficients, variance and condition number by a dense solve of ``sum_j a_j r_{k-j} = r_k``."""
    index = torch.arange(order)[:, None] - torch.arange(order)
    t = torch.where(index >= 0, r[..., index.abs()], r[..., index.abs()].conj())
    a = torch.linalg.solve(t, r[..., 1 : order + 1])
    variance = r[..., 0] - (a * r[..., 1 : order + 1].conj()).sum(-1)
    return a, variance.real if variance.is_complex() else variance, float(torch.linalg.cond(t).max()) if order else 1.0


@given(
    p=st.integers(1, 20), seed=st.integers(0, 999), complex_=st.booleans(), batch=st.sampled_from([(), (3,), (2, 1)])
)
def test_it_solves_the_yule_walker_equations(p: int, seed: int, complex_: bool, batch: tuple[int, ...]) -> None:
    r = autocovariance(p, seed, C128 if complex_ else F64, batch)
    for order in {1, p // 2, p} - {0}:
        found = sm.linalg.levinson_durbin(r, order)
        a, variance, kappa = yule_walker(r, order)
        assert tuple(found.coefficients.shape) == (*batch, order) == tuple(found.reflection.shape)
        assert tuple(found.variance.shape) == batch and not found.variance.is_complex()
        assert float((found.coefficients - a).norm()) <= 100 * order * EPS * kappa * (1 + float(a.norm()))
        assert float((found.variance - variance).abs().max()) <= 100 * order * EPS * kappa * float(r.abs().max())


@pytest.mark.parametrize("dtype", [F64, C128])
def test_one_call_holds_every_order(dtype: torch.dtype) -> None:
    """The last coefficient of each order is its reflection; the variances are products of ``1 - |k|^2``."""
    r = autocovariance(8, 3, dtype)
    full = sm.linalg.levinson_durbin(r)
    assert bool((full.reflection.abs() < 1).all())
    for order in range(9):
        part = sm.linalg.levinson_durbin(r, order)
        assert torch.equal(part.reflection, full.reflection[:order])
        assert order == 0 or torch.equal(part.coefficients[-1], full.reflection[order - 1])
        product = r[0].real * torch.prod(1 - full.reflection[:order].abs().square())
        assert float(part.variance) == pytest.approx(float(product), rel=100 * EPS)


@pytest.mark.parametrize(
    "reflection", [[0.5], [0.9, -0.3], [-0.99, 0.5, 0.2, -0.7], [0.3 + 0.4j, -0.2j, 0.5], [0.0, 0.0, 0.8]]
)
def test_a_process_of_known_reflections_is_found_again(reflection: list[complex]) -> None:
    """The autocovariances out of the reflections (the recursion backwards), then the recursion."""
    k = torch.tensor(reflection, dtype=C128 if any(isinstance(z, complex) for z in reflection) else F64)
    r, a, variance = [torch.ones((), dtype=k.dtype)], k[:0], 1.0
    for m, z in enumerate(k, 1):
        r.append(z * variance + sum((a[j] * r[m - 1 - j] for j in range(m - 1)), torch.zeros((), dtype=k.dtype)))
        a = torch.cat((a - z * a.flip(0).conj(), z[None]))
        variance *= 1 - float(abs(z)) ** 2
    found = sm.linalg.levinson_durbin(torch.stack(r))
    assert torch.allclose(found.reflection, k, atol=1e-12)
    assert torch.allclose(found.coefficients, a, atol=1e-12)
    assert float(found.variance) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_gradients_to_second_order_and_batches(dtype: torch.dtype) -> None:
    r = autocovariance(4, 5, dtype, (2,)).requires_grad_()

    def call(r: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(sm.linalg.levinson_durbin(r, 3))

    assert torch.autograd.gradcheck(call, (r,))
    assert torch.autograd.gradgradcheck(call, (r,))
    assert torch.autograd.gradcheck(call, (r,), check_forward_ad=True)


def test_it_works_under_the_transforms_of_torch() -> None:
    r = autocovariance(4, 6, F64, (3,))
    found = torch.func.vmap(lambda v: sm.linalg.levinson_durbin(v).coefficients)(r)
    assert torch.allclose(found, sm.linalg.levinson_durbin(r).coefficients)
    gradient = torch.func.grad(lambda v: sm.linalg.levinson_durbin(v).variance)(r[0])
    # the variance is 1 over the corner of the inverse: its gradient is that of a ratio of determinants
    v = r[0].clone().requires_grad_()
    index = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    ratio = torch.logdet(v[index]) - torch.logdet(v[index][:4, :4])
    (wanted,) = torch.autograd.grad(torch.exp(ratio), v)
    assert torch.allclose(gradient, wanted, rtol=1e-8)


@pytest.mark.parametrize(
    ("r", "order"),
    [
        ([1.0, 2.0], 1),
        ([1.0, 0.0, 1.5, 0.0], 2),
        ([1.0, 0.5, 0.25, -3.0], 3),
        ([0.0, 0.0], 0),
        ([-1.0, 0.5], 0),
        ([1.0, float("nan")], 1),
        ([2.0, 2.0, 2.0], 1),
    ],
)
def test_a_sequence_that_is_not_positive_definite_names_its_order(r: list[float], order: int) -> None:
    with pytest.raises(sm.SolveError, match=f"not positive definite: the variance .* at order {order} is"):
        sm.linalg.levinson_durbin(torch.tensor(r, dtype=F64))
    if order > 1:
        assert sm.linalg.levinson_durbin(torch.tensor(r, dtype=F64), order - 1).variance > 0
    with pytest.raises(np.linalg.LinAlgError):
        sm.linalg.levinson_durbin(r)


def test_what_goes_in_and_comes_out() -> None:
    r = [2, 1, 0]
    for given_ in (r, np.array(r), np.array(r, dtype=np.float32)):
        found = sm.linalg.levinson_durbin(given_)
        assert all(isinstance(v, np.ndarray) for v in found) and found.coefficients.dtype == np.float64
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        found = sm.linalg.levinson_durbin(torch.tensor(r, dtype=dtype))
        assert found.coefficients.dtype == dtype and found.variance.dtype in (dtype, torch.float32)
        assert torch.allclose(found.coefficients.real.double(), torch.tensor([2 / 3, -1 / 3], dtype=F64), atol=1e-2)
    empty = sm.linalg.levinson_durbin(torch.tensor([3.0]))
    assert tuple(empty.coefficients.shape) == (0,) and float(empty.variance) == 3
    for wrong in (3, -1, True, 1.0):
        with pytest.raises(ValueError, match="allow orders from 0 to 2"):
            sm.linalg.levinson_durbin(r, wrong)  # type: ignore[arg-type]
    with pytest.raises(sm.ShapeError, match="needs r_0"):
        sm.linalg.levinson_durbin(torch.zeros(2, 0))
    with pytest.raises(sm.DtypeError, match="integer tensor"):
        sm.linalg.levinson_durbin(torch.tensor(r))


def test_a_long_recursion_agrees_with_a_structured_solve() -> None:
    p = 400
    r = 0.95 ** torch.arange(p + 1, dtype=F64) + 0.1 * (torch.arange(p + 1) == 0)
    found = sm.linalg.levinson_durbin(r)
    x = sm.toeplitz(r[:p]).solve(r[1:])
    kappa = (1.95 / 0.05 + 0.1) / 0.1  # the extremes of the symbol
    assert float((found.coefficients - x).norm()) <= 100 * math.sqrt(p) * EPS * kappa * float(x.norm())
