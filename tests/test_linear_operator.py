"""Matrices as scipy's LinearOperator and back: every product, scipy's own algorithms, precisions, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as ssl
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.testing import assert_gradients

F64, C128 = torch.float64, torch.complex128
EPS = np.finfo(float).eps


def draw(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, F64, torch.complex64, C128, torch.bfloat16, torch.float16]),
    kind=st.sampled_from([np.float64, np.complex128, np.int64, np.float32]),
    k=st.integers(1, 3),
)
def test_every_product_is_that_of_the_dense_array(m: int, n: int, dtype: torch.dtype, kind: type, k: int) -> None:
    a = sm.Toeplitz(draw(m + n - 1, dtype=C128 if dtype.is_complex else F64).to(dtype), n)
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    dense = a.to_dense().to(wide).numpy()
    op = sm.linalg.as_linear_operator(a)
    assert isinstance(op, ssl.LinearOperator) and op.shape == (m, n) and op.dtype == dense.dtype
    rng = np.random.default_rng(0)
    x, y = ((10 * rng.standard_normal((size, k))).astype(kind) for size in (n, m))
    pairs = [
        (op.matmat(x), dense @ x),
        (op.matvec(x[:, 0]), dense @ x[:, 0]),
        (op.matvec(x[:, :1]), dense @ x[:, :1]),
        (op @ x, dense @ x),
        (op.rmatmat(y), dense.conj().T @ y),
        (op.rmatvec(y[:, 0]), dense.conj().T @ y[:, 0]),
        (op.H @ y, dense.conj().T @ y),
        (op.T @ y, dense.T @ y),
        (op.adjoint().adjoint().matvec(x[:, 0]), dense @ x[:, 0]),
    ]
    eps = float(torch.finfo(dtype).eps)
    for found, wanted in pairs:
        assert isinstance(found, np.ndarray) and found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 64 * eps * (1 + np.abs(dense).sum()) * (1 + np.abs(x).max())


def test_scipy_runs_on_it() -> None:
    """Singular values, eigenvalues, a solve and least squares, to the tolerance asked of each."""
    t = sm.Toeplitz(draw(399), 200)
    op, dense = sm.linalg.as_linear_operator(t), t.to_dense().numpy()
    wanted = np.linalg.svd(dense, compute_uv=False)
    start = np.ones(200)
    found = ssl.svds(op, k=3, return_singular_vectors=False, v0=start)
    assert np.allclose(np.sort(found)[::-1], wanted[:3], rtol=1e-8)
    symmetric = sm.toeplitz(0.8 ** torch.arange(200, dtype=F64))
    largest = ssl.eigsh(sm.linalg.as_linear_operator(symmetric), k=2, return_eigenvectors=False, v0=start)
    assert np.allclose(np.sort(largest), np.linalg.eigvalsh(symmetric.to_dense().numpy())[-2:], rtol=1e-8)
    general = ssl.eigs(op, k=1, which="LM", return_eigenvectors=False, v0=start)
    assert np.abs(general).max() == pytest.approx(np.abs(np.linalg.eigvals(dense)).max(), rel=1e-8)
    shifted = sm.Toeplitz(draw(399) / 40 + 4 * torch.nn.functional.one_hot(torch.tensor(199), 399), 200)
    b = np.ones(200)
    x, flag = ssl.gmres(sm.linalg.as_linear_operator(shifted), b, rtol=1e-10)
    assert flag == 0 and np.linalg.norm(shifted.to_dense().numpy() @ x - b) <= 1e-9 * np.linalg.norm(b)
    tall = sm.Toeplitz(draw(120), 40)
    x = ssl.lsqr(sm.linalg.as_linear_operator(tall), np.ones(81), atol=1e-12, btol=1e-12)[0]
    assert np.allclose(x, np.linalg.lstsq(tall.to_dense().numpy(), np.ones(81))[0], atol=1e-6)
    both = op @ sm.linalg.as_linear_operator(symmetric) + 2 * op
    assert np.allclose(both @ b, dense @ (symmetric.to_dense().numpy() @ b + 2 * b), atol=1e4 * EPS)


def test_what_is_refused() -> None:
    with pytest.raises(sm.ShapeError, match=r"as_linear_operator\(Toeplitz.*no batches.*A\[i\]"):
        sm.linalg.as_linear_operator(sm.Toeplitz(draw(2, 5), 3))
    with pytest.raises(TypeError, match="a Matrix is needed, got Tensor"):
        sm.linalg.as_linear_operator(torch.eye(3))
    with pytest.raises(sm.DtypeError, match="int64"):
        sm.linalg.from_linear_operator(ssl.aslinearoperator(np.eye(2, dtype=np.int64)))


def test_tracked_tensors_and_types_without_a_dtype_are_served() -> None:
    op = sm.linalg.as_linear_operator(sm.Circulant(draw(4).requires_grad_()))
    assert isinstance(op @ np.ones(4), np.ndarray)
    assert np.array_equal(sm.linalg.as_linear_operator(sm.Identity(3)) @ np.ones(3, np.float32), np.ones(3))


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_way_back(dtype: torch.dtype) -> None:
    """A sparse matrix of scipy as a matrix of ours: products, transposes, adjoints, solves, derivatives in x."""
    entries = draw(6, 6, dtype=dtype) + 6 * torch.eye(6, dtype=dtype)
    a = sm.linalg.from_linear_operator(ssl.aslinearoperator(scipy.sparse.csr_matrix(entries.numpy())))
    assert type(a) is sm.Implicit and a.dtype == dtype
    for found, wanted in ((a, entries), (a.mT, entries.mT), (a.mH, entries.mH), (a.conj(), entries.conj())):
        assert torch.allclose(found.to_dense(), wanted, atol=64 * EPS)
    batch = draw(2, 3, 6, dtype=C128)
    assert torch.allclose(a.linear(batch), batch @ entries.mT.to(C128), atol=1e3 * EPS)
    b = draw(6, 2, dtype=dtype)
    assert torch.allclose(a.solve(b), torch.linalg.solve(entries, b), atol=1e4 * EPS)
    assert_gradients(lambda x: a @ x, (draw(6, 2, dtype=dtype),))
    assert_gradients(lambda x: x @ a, (draw(2, 6, dtype=dtype),))
    assert_gradients(lambda x: torch.view_as_real(a @ x + 0j), (draw(6),))
    there_and_back = sm.linalg.as_linear_operator(a)
    assert np.allclose(there_and_back.rmatvec(np.ones(6)), entries.numpy().conj().T @ np.ones(6), atol=1e3 * EPS)
