"""numpy and scipy beside structmat: what reaches our methods, what is refused, and the one way to a dense array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

import structmat as sm

F64 = torch.float64
A = sm.Toeplitz(torch.arange(1.0, 8.0, dtype=F64), 3)  # 5 x 3
DENSE = A.to_dense().numpy()
EPS = np.finfo(float).eps


def close(a: Any, b: Any, factor: float = 64.0) -> None:
    """A few dozen operations on numbers up to 10."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max(initial=0) <= factor * EPS * (1 + np.abs(b).max(initial=0))


def test_arrays_reach_our_products() -> None:
    x, y = np.array([1.0, -2.0, 0.5]), np.arange(10.0).reshape(2, 5)
    for found, wanted in ((A @ x, DENSE @ x), (y @ A, y @ DENSE), (A @ np.eye(3), DENSE)):
        assert isinstance(found, torch.Tensor), "a product with an array is a tensor, never an object array"
        close(found, wanted)


def test_arrays_and_numpy_numbers_in_arithmetic() -> None:
    for s in (np.float64(2), np.float32(2), np.int64(2), np.array(2.0)):
        for found in (s * A, A * s):
            assert type(found) is sm.Toeplitz
            close(found.to_dense(), 2 * DENSE)
    close((A / np.float64(4)).to_dense(), DENSE / 4)
    for found in (np.ones((5, 3)) + A, A + np.ones((5, 3))):
        assert type(found) is sm.Dense
        close(found.to_dense(), DENSE + 1)
    close((np.ones((5, 3)) - A).to_dense(), 1 - DENSE)


def test_asarray_is_the_way_to_a_dense_array() -> None:
    close(np.asarray(A), DENSE, 0.0)
    close(np.array(A.mT), DENSE.T, 0.0)
    assert np.asarray(A, dtype=np.float32).dtype == np.float32
    assert np.asarray(sm.Circulant(torch.ones(2, dtype=torch.complex128)).conj()).dtype == np.complex128
    tracked = sm.Circulant(torch.ones(2, dtype=F64, requires_grad=True))
    assert np.asarray(tracked).shape == (2, 2)
    close(np.asarray(sm.Identity(2)), np.eye(2), 0.0)


REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("inv", lambda: np.linalg.inv(A)),
    ("solve", lambda: np.linalg.solve(A, np.ones(5))),
    ("solve", lambda: np.linalg.solve(np.eye(5), A)),
    ("det", lambda: np.linalg.det(A)),
    ("norm", lambda: np.linalg.norm(A)),
    ("trace", lambda: np.trace(A)),
    ("dot", lambda: np.dot(A, np.ones(3))),
    ("mean", lambda: np.mean(A)),
    ("concatenate", lambda: np.concatenate([A, A])),
    ("svd", lambda: np.linalg.svd(A)),
]


@pytest.mark.parametrize(("name", "act"), REFUSED, ids=[f"{n}-{i}" for i, (n, _) in enumerate(REFUSED)])
def test_numpy_functions_are_refused_by_name(name: str, act: Callable[[], Any]) -> None:
    with pytest.raises(
        sm.StructureError,
        match=rf"numpy.{name} on a structured matrix would form it densely: use structmat.linalg.{name}",
    ):
        act()


def test_ufuncs_are_refused() -> None:
    for act in (lambda: np.exp(A), lambda: np.add(A, 1.0), lambda: np.matmul(np.ones(5), A)):
        with pytest.raises(TypeError):
            act()


def test_integer_arrays_are_refused() -> None:
    with pytest.raises(sm.DtypeError, match=r"x has integer dtype int64; convert it first"):
        A @ np.arange(3)
    with pytest.raises(sm.DtypeError, match="differ in precision"):
        A @ np.ones(3, dtype=np.float32)


# -- scipy's constructors and names -------------------------------------------------------------------------------


def test_constructors_take_what_scipy_takes() -> None:
    for c, r in (
        ([1, 2, 3], None),
        ([1.0, 2, 3], [1, 5.0]),
        (np.array([1, 2]), np.array([1, 7, 8])),
        ((1 + 2j, 3j), None),
    ):
        wanted = scipy.linalg.toeplitz(c, r)
        found = sm.toeplitz(c, r)
        close(found.to_dense(), wanted, 0.0)
        assert found.dtype in (torch.float64, torch.complex128)
    close(sm.circulant([1, 2, 3]).to_dense(), scipy.linalg.circulant([1, 2, 3]), 0.0)
    assert type(sm.toeplitz([1, 2])) is sm.SymmetricToeplitz and type(sm.toeplitz([1j, 2])) is sm.Toeplitz
    batch = sm.toeplitz(np.ones((2, 3)), np.ones((2, 4)))
    assert tuple(batch.shape) == (2, 3, 4)


def _system(n: int, dtype: Any = float) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    c, r, b = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    if dtype is complex:
        c, r, b = (v + 1j * rng.standard_normal(n) for v in (c, r, b))
    c[0] += 3 * n**0.5
    return c, r, b


@pytest.mark.parametrize("dtype", [float, complex])
def test_solve_toeplitz_equals_scipy(dtype: Any) -> None:
    c, r, b = _system(9, dtype)
    for given in (c, (c, r)):
        found = sm.linalg.solve_toeplitz(given, b)
        assert isinstance(found, np.ndarray)
        close(found, scipy.linalg.solve_toeplitz(given, b), 1e3)  # condition numbers below 10
    many = np.stack([b, 2 * b, -b], axis=1)
    close(sm.linalg.solve_toeplitz((c, r), many), scipy.linalg.solve_toeplitz((c, r), many), 1e3)
    batch = np.stack([many, 2 * many])  # leading axes are batches, as in scipy from 1.17 on
    close(sm.linalg.solve_toeplitz((c, r), batch), scipy.linalg.solve_toeplitz((c, r), batch), 1e3)


@pytest.mark.parametrize("dtype", [float, complex])
def test_matmul_toeplitz_equals_scipy(dtype: Any) -> None:
    c, r, x = _system(7, dtype)
    for given in (c, (c, r), (np.append(c, 1.0), r)):
        close(sm.linalg.matmul_toeplitz(given, x), scipy.linalg.matmul_toeplitz(given, x), 1e3)
        assert isinstance(sm.linalg.matmul_toeplitz(given, torch.from_numpy(x)), torch.Tensor)


def test_solve_circulant_equals_scipy() -> None:
    c, _, b = _system(8)
    close(sm.linalg.solve_circulant(c, b), scipy.linalg.solve_circulant(c, b), 1e3)
    many = np.stack([b, 2 * b], axis=1)
    close(sm.linalg.solve_circulant(c, many), scipy.linalg.solve_circulant(c, many), 1e3)
    flat = np.ones(4)
    with pytest.raises(sm.SolveError, match=r"near singular matrix; singular='lstsq'"):
        sm.linalg.solve_circulant(flat, np.arange(4.0))
    close(
        sm.linalg.solve_circulant(flat, np.arange(4.0), singular="lstsq"),
        scipy.linalg.solve_circulant(flat, np.arange(4.0), singular="lstsq"),
        1e3,
    )


def test_scipy_names_refuse_infinities_and_ignore_the_second_corner() -> None:
    c, r, b = _system(5)
    other = r.copy()
    other[0] = 99.0
    close(sm.linalg.solve_toeplitz((c, other), b), sm.linalg.solve_toeplitz((c, r), b), 0.0)
    with pytest.raises(ValueError, match="must not contain infs or NaNs"):
        sm.linalg.solve_toeplitz((c, r), np.full(5, np.inf))
    with pytest.raises(sm.ShapeError, match=r"c has 5 entries along caxis -1, b has 4 along baxis 0"):
        sm.linalg.solve_circulant(c, np.ones(4))


# -- torch on the other side --------------------------------------------------------------------------------------


def test_tensors_on_the_left_reach_our_methods() -> None:
    x = torch.ones(2, 5, dtype=F64)
    close(x @ A, x.numpy() @ DENSE)
    half = torch.tensor(0.5, dtype=F64)
    assert type(half * A) is sm.Toeplitz
    close((half * A).to_dense(), DENSE / 2)
    close((torch.ones(5, 3, dtype=F64) + A).to_dense(), 1 + DENSE)
    close((torch.ones(5, 3, dtype=F64) - A).to_dense(), 1 - DENSE)


def test_linalg_takes_tensors_and_matrices_alike() -> None:
    square = sm.Circulant(torch.tensor([3.0, 1.0, 0.5], dtype=F64))
    dense = square.to_dense()
    b = torch.ones(3, dtype=F64)
    names = ("det", "norm", "trace", "diagonal", "svdvals", "cond", "matrix_rank")
    for name in names:
        close(getattr(sm.linalg, name)(square), getattr(sm.linalg, name)(dense), 1e3)
    close(sm.linalg.inv(square).to_dense(), torch.linalg.inv(dense), 1e3)
    close(sm.linalg.pinv(square).to_dense(), torch.linalg.pinv(dense), 1e3)
    close(sm.linalg.matmul(square, dense), dense @ dense, 1e3)
    close(sm.linalg.matmul(square, square).to_dense(), dense @ dense, 1e3)
    for ord_ in (None, "fro", 2, "nuc"):
        close(sm.linalg.norm(square, ord_), torch.linalg.matrix_norm(dense, ord_ or "fro"), 1e3)
    x, info = sm.linalg.solve(square, b, return_info=True)
    close(x, torch.linalg.solve(dense, b), 1e3)
    assert info.method == "closed form" and info.reasons
    order = lambda v: np.sort_complex(np.round(np.asarray(v), 10))  # noqa: E731
    close(order(sm.linalg.eigvals(square)), order(torch.linalg.eigvals(dense)), 1e6)
    assert all(torch.equal(u, v) for u, v in zip(sm.linalg.slogdet(square), square.slogdet(), strict=True))


def test_lstsq_is_the_solution_of_least_norm() -> None:
    for a in (
        A,
        A.mT,
        sm.LowRank(torch.ones(4, 1, dtype=F64), torch.ones(3, 1, dtype=F64)),
        sm.Circulant(torch.ones(4, dtype=F64)),
    ):
        b = torch.arange(1.0, int(a.shape[-2]) + 1, dtype=F64)
        wanted = np.linalg.lstsq(np.asarray(a), b.numpy(), rcond=None)[0]
        close(sm.linalg.lstsq(a, b), wanted, 1e3)
        close(sm.linalg.lstsq(a.to_dense(), torch.stack((b, -b), -1)), np.stack((wanted, -wanted), -1), 1e3)
