"""Hermitian Toeplitz matrices: entries, closure, what stays Hermitian, definite solves, projection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.testing.reference import dense_of

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def column(n: int, seed: int = 0, dtype: torch.dtype = C128) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed + 50 * n), dtype=dtype) / n**0.5


def hermitian(n: int, seed: int = 0, dtype: torch.dtype = C128) -> sm.HermitianToeplitz:
    return sm.HermitianToeplitz(column(n, seed, dtype))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_matrix_is_hermitian_and_reads_a_real_diagonal(n: int, dtype: torch.dtype) -> None:
    a = hermitian(n, dtype=dtype)
    dense = a.to_dense()
    assert torch.equal(dense, dense.mH) and torch.equal(dense, dense_of(a))
    assert torch.equal(a.mH.to_dense(), dense) and torch.equal(a.mT.to_dense(), dense.mT)
    assert type(a.mT) is type(a.conj()) is sm.HermitianToeplitz
    assert sm.Claim.HERMITIAN in a.claims
    assert (sm.Claim.SYMMETRIC in a.claims) == (dtype == F64)
    assert torch.equal(a.diagonal(), torch.diagonal(dense))


@given(n=st.integers(1, 9), seed=st.integers(0, 99))
def test_what_stays_hermitian(n: int, seed: int) -> None:
    a, b = hermitian(n, seed), hermitian(n, seed + 1)
    real = sm.SymmetricToeplitz(column(n, seed, F64))
    eye = torch.eye(n, dtype=C128)
    stay = sm.HermitianToeplitz
    for found, kind, wanted in (
        (a + b, stay, dense_of(a) + dense_of(b)),
        (a - b, stay, dense_of(a) - dense_of(b)),
        (a * b, stay, dense_of(a) * dense_of(b)),
        (a * -2.5, stay, dense_of(a) * -2.5),
        (a * torch.tensor(1.5, dtype=F64), stay, dense_of(a) * 1.5),
        (a + 3 * sm.Identity(n), stay, dense_of(a) + 3 * eye),
        (sm.Identity(n) + a, stay, dense_of(a) + eye),
        (a + real, stay, dense_of(a) + dense_of(real)),
        (real + a, stay, dense_of(a) + dense_of(real)),
        (a * 2j, sm.Toeplitz, dense_of(a) * 2j),
        (a + 1j * sm.Identity(n), sm.Toeplitz, dense_of(a) + 1j * eye),
        (a + sm.Toeplitz(column(2 * n - 1), n), sm.Toeplitz, dense_of(a) + dense_of(sm.Toeplitz(column(2 * n - 1), n))),
        (a + sm.Circulant(column(n)), sm.Toeplitz, dense_of(a) + dense_of(sm.Circulant(column(n)))),
        (a + sm.SymmetricToeplitz(column(n)), sm.Toeplitz, dense_of(a) + dense_of(sm.SymmetricToeplitz(column(n)))),
    ):
        assert type(found) is kind, (type(found), kind)
        assert float((found.to_dense() - wanted).abs().max()) <= 10 * EPS * (1 + float(wanted.abs().max()))
        if kind is stay:
            assert torch.equal(found.to_dense(), found.to_dense().mH)


def test_a_real_one_is_symmetric_beside_a_complex_symmetric_one() -> None:
    a, b = hermitian(4, dtype=F64), sm.SymmetricToeplitz(column(4))
    assert type(a + b) is type(b + a) is sm.SymmetricToeplitz
    assert torch.allclose((a + b).to_dense(), dense_of(a) + dense_of(b))


def test_a_tensor_factor_keeps_the_type_only_if_it_is_real() -> None:
    a = hermitian(3)
    assert type(a * torch.tensor(2.0 + 0j, dtype=C128)) is sm.Toeplitz
    batch = a * torch.ones(2, 1, 1, dtype=F64)
    assert type(batch) is sm.HermitianToeplitz and tuple(batch.shape) == (2, 3, 3)


def test_constant_diagonals_count_as_multiples_of_the_identity() -> None:
    """A diagonal of one number expanded; one that stores its numbers singly stays lazy, whatever they are."""
    s = torch.tensor([2.0], dtype=F64)
    for a in (
        hermitian(4, dtype=F64),
        sm.Toeplitz(column(7, dtype=F64), 4),
        sm.SymmetricToeplitz(column(4, dtype=F64)),
        sm.Circulant(column(4, dtype=F64), -1),
    ):
        constant, stored = sm.Diagonal(s.expand(4)), sm.Diagonal(s.repeat(4))
        for found, wanted in (
            (a + constant, dense_of(a) + 2 * torch.eye(4, dtype=F64)),
            (constant + a, dense_of(a) + 2 * torch.eye(4, dtype=F64)),
            (a @ constant, 2 * dense_of(a)),
            (constant @ a, 2 * dense_of(a)),
            (a @ (2 * sm.Identity(4)), 2 * dense_of(a)),
            ((2 * sm.Identity(4)) @ a, 2 * dense_of(a)),
        ):
            assert type(found) is type(a)
            assert torch.allclose(found.to_dense(), wanted, atol=10 * EPS)
        assert type(a + stored) is sm.Sum and type(a @ stored) is sm.Product
        assert torch.allclose((stored @ a).to_dense(), 2 * dense_of(a), atol=10 * EPS)


@pytest.mark.parametrize("n", [1, 2, 9, 64, 300])
@pytest.mark.parametrize("claimed", [True, False])
def test_definite_systems(n: int, claimed: bool) -> None:
    """``c_k = 0.8^k exp(0.7 i k)``, a diagonal unitary similarity of a positive definite KMS matrix."""
    k = torch.arange(n, dtype=F64)
    a = sm.HermitianToeplitz(torch.polar(0.8**k, 0.7 * k))
    a = a.assume(sm.Claim.POSITIVE_DEFINITE) if claimed else a
    dense = dense_of(a)
    b = column(n, 3)
    x = a.solve(b)
    eta = (dense @ x - b).norm() / (torch.linalg.matrix_norm(dense, 2) * x.norm() + b.norm())
    assert float(eta) <= 100 * EPS
    sign, logabs = a.slogdet()
    exact = (n - 1) * torch.log(torch.tensor(1 - 0.8**2, dtype=F64))  # the KMS determinant (1 - rho^2)^(n - 1)
    assert abs(float(logabs) - float(exact)) <= 100 * n * EPS * 81
    assert abs(complex(sign) - 1) <= 100 * n * EPS * 81


def test_gradients_of_solve_and_determinant() -> None:
    c = (column(4, 4) + torch.tensor([4.0, 0, 0, 0])).requires_grad_()
    b = column(4, 5).requires_grad_()

    def solved(c: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sm.HermitianToeplitz(c).solve(b)

    assert torch.autograd.gradcheck(solved, (c, b)) and torch.autograd.gradgradcheck(solved, (c, b))
    assert torch.autograd.gradcheck(lambda c: sm.HermitianToeplitz(c).logabsdet(), (c,))


@pytest.mark.parametrize("n", [1, 3, 6])
def test_nearest_is_the_projection(n: int) -> None:
    target = torch.randn(n, n, dtype=C128, generator=torch.Generator().manual_seed(n))
    near = sm.HermitianToeplitz.nearest(target)
    p = near.to_dense()
    parts = float(p.norm() ** 2 + (target - p).norm() ** 2)
    assert parts == pytest.approx(float(target.norm() ** 2), rel=100 * n * EPS)
    again = sm.HermitianToeplitz.from_dense(p)
    assert torch.allclose(again.to_dense(), p, rtol=0, atol=100 * EPS)
    if n > 1:
        with pytest.raises(sm.NotStructuredError, match="HermitianToeplitz"):
            sm.HermitianToeplitz.from_dense(target)
