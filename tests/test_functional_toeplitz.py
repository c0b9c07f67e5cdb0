"""Toeplitz and circulant products on every path: formed, cyclic, folded, even; few rows and many."""

from __future__ import annotations

import pytest
import torch

from structmat.functional import circulant as fc
from structmat.functional import toeplitz as ft
from structmat.testing import assert_gradients
from structmat.testing.reference import dense_of
from structmat.types.circulant import Circulant
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (5, 3), (3, 5), (17, 17)])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_few_and_many_rows(m: int, n: int, rows: int, dtype: torch.dtype) -> None:
    """From as many rows as the order on, the entries are formed; values and both derivatives stay the same."""
    t, x = _numbers(m + n - 1, dtype=dtype), _numbers(rows, n, dtype=dtype, seed=1)
    exact = x @ dense_of(Toeplitz(t, n)).mT
    y = ft.toeplitz_product(t, x, n)
    tol = 64 * EPS * (m + n) * float(t.norm() * x.norm() + 1)
    assert float((y - exact).abs().max()) <= tol
    deep = ft.toeplitz_product(t, x[None].expand(2, rows, n), n)
    assert deep.shape == (2, rows, m) and float((deep - exact).abs().max()) <= tol
    if m * n * rows <= 700:
        assert_gradients(lambda t, x: ft.toeplitz_product(t, x, n), (t, x))


def test_where_entries_are_formed() -> None:
    cpu = torch.device("cpu")
    assert ft.forming_is_cheaper(4, 4, 4, cpu) and not ft.forming_is_cheaper(4, 4, 3, cpu)
    assert not ft.forming_is_cheaper(193, 4, 1000, cpu) and not ft.forming_is_cheaper(4, 4, 4, torch.device("cuda"))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_symmetric_products_read_each_number_once(n: int, dtype: torch.dtype) -> None:
    """Values and derivatives of the even geometry: both places of an entry add up in its gradient."""
    c, x = _numbers(n, dtype=dtype), _numbers(2, n, dtype=dtype, seed=1)
    exact = x @ dense_of(SymmetricToeplitz(c)).mT
    assert float((ft.symmetric_product(c, x) - exact).abs().max()) <= 64 * EPS * n * float(c.norm() * x.norm() + 1)
    assert_gradients(ft.symmetric_product, (c, x))
    batch = _numbers(2, 1, n, dtype=dtype)
    assert_gradients(ft.symmetric_product, (batch, _numbers(3, 2, n, dtype=dtype)))


@pytest.mark.parametrize("f", [1, -1, 0, 2, -0.5, 1e-6, 1e6, 0.6 + 0.8j])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 1021])
def test_circulant_products_for_any_f(n: int, f: complex) -> None:
    """No root of f is formed, so the error does not grow with |f| or 1/|f|."""
    v, x = _numbers(n), _numbers(n, seed=1)
    k = torch.arange(n)
    dense = v[(k[:, None] - k[None, :]) % n] * torch.where(
        k[:, None] >= k[None, :], torch.ones(()), torch.tensor(f, dtype=C128 if isinstance(f, complex) else F64)
    )
    y = ft.circulant_product(v, x, f)
    assert float((y - dense @ x.to(dense.dtype)).norm()) <= 64 * EPS * float(dense.norm() * x.norm())


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("f", [1, -1, 2.0, -0.25, 1j, 0.3 + 0.4j])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_eigenvalues_solves_and_determinants(n: int, f: complex, dtype: torch.dtype) -> None:
    v = _numbers(n, dtype=dtype) / n + 2 * torch.nn.functional.one_hot(torch.tensor(0), n).to(dtype)
    dense = dense_of(Circulant(v, f))
    growth = max(abs(f), 1 / abs(f))
    tol = 1e3 * n * EPS * growth
    lam = fc.eigenvalues(v, f)
    back = fc.from_eigenvalues(lam, f, real=not dense.is_complex())
    assert float((back - v).abs().max()) <= tol
    y = _numbers(3, n, dtype=dtype, seed=1)
    wanted = torch.linalg.solve(dense, y.to(dense.dtype).mT).mT
    assert float((fc.divide_rows(v, y, f) - wanted).abs().max()) <= tol * float(1 + wanted.abs().max())
    sign, logabs = fc.slogdet(v, f)
    exact = torch.linalg.slogdet(dense)
    assert float((sign - exact[0]).abs()) <= tol and float((logabs - exact[1]).abs()) <= tol


def test_gathers_and_windows_agree() -> None:
    t = _numbers(2, 3, 9)
    assert torch.equal(ft.toeplitz_windows(t, 4), ft.toeplitz_entries(t, 4))
    assert torch.equal(ft.diagonal_means(ft.toeplitz_entries(t, 4)).round(decimals=12), t.round(decimals=12))


@pytest.mark.parametrize("n", [4, 17])
def test_batched_cotangents(n: int) -> None:
    """Jacobians by one vectorised backward pass: kept spectra meet a batch of cotangents."""
    v, x = _numbers(n), _numbers(2, n, seed=1)
    exact = torch.autograd.functional.jacobian(lambda v, x: x @ ft.circulant_entries(v).mT, (v, x))
    for vectorize in (False, True):
        found = torch.autograd.functional.jacobian(ft.circulant_product, (v, x), vectorize=vectorize)
        for a, b in zip(found, exact, strict=True):
            assert float((a - b).abs().max()) <= 64 * n * EPS * (1 + float(b.abs().max()))
