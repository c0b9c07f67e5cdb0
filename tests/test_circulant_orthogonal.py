"""Real orthogonal circulants: orthogonal at every angle, closed, the nearest one, trained without leaving the set."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import nn
from structmat.testing import assert_gradients, assert_orthogonal
from structmat.testing.reference import dense_of

F64, F32 = torch.float64, torch.float32
EPS = torch.finfo(F64).eps


def draw(n: int, f: int = 1, seed: int = 0, dtype: torch.dtype = F64) -> sm.OrthogonalCirculant:
    return sm.OrthogonalCirculant.random(n, f, generator=torch.Generator().manual_seed(seed + 7 * n), dtype=dtype)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 17, 64, 101, 1024, 4096])
@pytest.mark.parametrize("f", [1, -1])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_orthogonal_at_every_size(n: int, f: int, dtype: torch.dtype) -> None:
    """The column in double precision has eigenvalues of modulus 1 up to ``8 eps (1 + 1)``, and keeps lengths."""
    q = draw(n, f, dtype=dtype)
    assert tuple(q.shape) == (n, n)
    eps = torch.finfo(dtype).eps
    lam = sm.Circulant(q.circulant().column.double(), f).eigvals()
    assert float((lam.abs().square() - 1).square().mean().sqrt()) <= 16 * eps
    if n <= 128:
        assert_orthogonal(q, ops=1)
        # the powers of the reference's nodes are off by n eps of float64
        assert torch.allclose(q.to_dense().double(), dense_of(q), rtol=0, atol=16 * eps + n * EPS)
    x = torch.randn(2, n, dtype=dtype, generator=torch.Generator().manual_seed(1))
    ratio = q.linear(x).double().norm() / x.double().norm()
    assert abs(float(ratio) - 1) <= 8 * eps * (1 + math.log2(n))
    assert float((q.mT.linear(q.linear(x)) - x).norm()) <= 16 * eps * (1 + math.log2(n)) * float(x.norm())


@given(n=st.integers(1, 9), f=st.sampled_from([1, -1]), seed=st.integers(0, 99))
def test_closed_under_product_and_inverse(n: int, f: int, seed: int) -> None:
    a, b = draw(n, f, seed), draw(n, f, seed + 1)
    product = a @ b
    assert type(product) is sm.OrthogonalCirculant and type(a.inv()) is sm.OrthogonalCirculant
    assert torch.allclose(product.to_dense(), dense_of(a) @ dense_of(b), rtol=0, atol=100 * EPS)
    assert torch.allclose(a.inv().to_dense(), dense_of(a).mT, rtol=0, atol=100 * EPS)
    assert torch.equal(a.mT.angles, a.inv().angles)
    sign, logabs = a.slogdet()
    assert float(sign) == round(float(torch.linalg.det(dense_of(a)))) and float(logabs) == 0


@pytest.mark.parametrize("f", [1, -1])
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_with_other_circulants(n: int, f: int) -> None:
    """Products and sums with circulants of the same f are circulants; with another f a sum is a Toeplitz."""
    q, c = draw(n, f), sm.Circulant(torch.randn(n, dtype=F64), f)
    for found, wanted in (
        (q @ c, dense_of(q) @ dense_of(c)),
        (c @ q, dense_of(c) @ dense_of(q)),
        (q + c, dense_of(q) + dense_of(c)),
        (c + q, dense_of(q) + dense_of(c)),
        (q + q, 2 * dense_of(q)),
        (q + 0.5 * sm.Identity(n), dense_of(q) + 0.5 * torch.eye(n, dtype=F64)),
    ):
        assert type(found) is sm.Circulant and found.f == f
        assert torch.allclose(found.to_dense(), wanted, rtol=0, atol=200 * EPS * (1 + float(wanted.norm())))
    other = draw(n, -f)
    assert type(q + other) is sm.Toeplitz
    assert torch.allclose((q @ other).to_dense(), dense_of(q) @ dense_of(other), rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("f", [1, -1])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_nearest_beats_others_and_finds_itself(n: int, f: int) -> None:
    target = torch.randn(n, n, dtype=F64, generator=torch.Generator().manual_seed(n))
    best = sm.OrthogonalCirculant.nearest(target, f)
    distance = float((best.to_dense() - target).norm())
    for seed in range(20):
        other = draw(n, f, seed)
        assert distance <= float((other.to_dense() - target).norm()) + 1e-12
        near = sm.OrthogonalCirculant(best.angles + 0.01 * other.angles, best.signs, f)
        assert distance <= float((near.to_dense() - target).norm()) + 1e-12
        found = sm.OrthogonalCirculant.from_dense(other.to_dense(), f=f)
        assert found.signs == other.signs
        assert torch.allclose(found.angles, other.angles, rtol=0, atol=100 * EPS)


def test_a_batch_shares_its_signs() -> None:
    both = torch.stack([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
    with pytest.raises(sm.StructureError, match="need different signs"):
        sm.OrthogonalCirculant.nearest(both)
    same = sm.OrthogonalCirculant.nearest(torch.stack([both[0], both[0].roll(1, 0)]))
    assert tuple(same.shape) == (2, 3, 3) and same.signs == (1,)
    assert torch.allclose(same.to_dense()[1], both[0].roll(1, 0), atol=10 * EPS)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (((2,), ()), ValueError, "f = 1 has one sign .odd n. or two .even n., got 0"),
        (((2,), (1, 1), -1), ValueError, "f = -1 has no sign .even n. or one .odd n., got 2"),
        (((2,), (1, 2)), ValueError, "signs must be a tuple of"),
        (((2,), [1]), ValueError, "signs must be a tuple of"),
        (((2,), (1,), 2), ValueError, "f must be 1 or -1, got 2"),
    ],
)
def test_wrong_fields_are_refused(fields: tuple, error: type[Exception], message: str) -> None:
    shape, *rest = fields
    with pytest.raises(error, match=message):
        sm.OrthogonalCirculant(torch.zeros(shape), *rest)


def test_complex_angles_are_refused() -> None:
    with pytest.raises(sm.DtypeError, match="angles are real"):
        sm.OrthogonalCirculant(torch.zeros(2, dtype=torch.complex64), (1,))
    with pytest.raises(sm.DtypeError, match="a real matrix is needed"):
        sm.OrthogonalCirculant.nearest(torch.eye(3, dtype=torch.complex64))


def test_gradients_of_the_angles() -> None:
    for n, f in ((6, 1), (5, -1)):
        assert_gradients(draw(n, f))


def test_training_stays_orthogonal() -> None:
    """Steps of Adam towards a rotation of the set: it is found, and every step is orthogonal."""
    goal = draw(9, seed=3)
    start = sm.OrthogonalCirculant(goal.angles + 0.4 * torch.randn(4, dtype=F64), goal.signs)
    module = nn.Trainable(start)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    x = torch.randn(32, 9, dtype=F64)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (module(x) - goal.linear(x)).square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-6
    assert_orthogonal(module.matrix, ops=1)
