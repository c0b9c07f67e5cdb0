"""solve_toeplitz, matmul_toeplitz and solve_circulant beside the installed scipy: shapes, dtypes, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm

EPS = np.finfo(float).eps
KINDS = [np.float64, np.float32, np.float16, np.int64, np.complex128, np.complex64, bool]


def draw(rng: np.random.Generator, shape: tuple[int, ...], kind: Any) -> Any:
    """An array of this dtype."""
    if kind is bool:
        return rng.integers(0, 2, shape).astype(bool)
    if np.issubdtype(kind, np.integer):
        return rng.integers(-3, 4, shape).astype(kind)
    numbers = rng.standard_normal(shape)
    return (numbers + 1j * rng.standard_normal(shape) if np.issubdtype(kind, np.complexfloating) else numbers).astype(
        kind
    )


def alike(found: Any, wanted: Any, tolerance: float) -> None:
    """A numpy array of the same shape and dtype, and numbers within the tolerance of the largest."""
    assert isinstance(found, np.ndarray)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if wanted.size:
        assert np.abs(found - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


SHAPES = [((), (), "v"), ((), (), 0), ((), (), 1), ((), (), 3), ((2,), (), 2), ((), (2,), "v"), ((3, 1), (2,), 2)]


@given(
    n=st.integers(1, 9),
    shapes=st.sampled_from(SHAPES),
    lead=st.sampled_from([(), (2,), (4, 1, 1)]),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from(KINDS)),
    with_row=st.booleans(),
    seed=st.integers(0, 999),
)
def test_solve_toeplitz(n: int, shapes: Any, lead: tuple[int, ...], kinds: Any, with_row: bool, seed: int) -> None:
    """Any batches in front, any dtypes; the matrix is made diagonally dominant where its dtype holds that."""
    rng = np.random.default_rng(seed)
    c, r = draw(rng, (*shapes[0], n), kinds[0]), draw(rng, (*shapes[1], n), kinds[1])
    if kinds[0] is bool:
        c = c.astype(int)
    c[..., 0] = 6 * n
    b = draw(rng, (n,) if shapes[2] == "v" else (*(lead if shapes[2] else ()), n, shapes[2]), kinds[2])
    given_ = (c, r) if with_row else c
    try:
        wanted = scipy.linalg.solve_toeplitz(given_, b)
    except ValueError:  # batches that do not broadcast
        with pytest.raises(ValueError):
            sm.linalg.solve_toeplitz(given_, b)
        return
    alike(sm.linalg.solve_toeplitz(given_, b), wanted, 1e3 * EPS)


@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    shapes=st.sampled_from(SHAPES),
    lead=st.sampled_from([(), (2,), (4, 1, 1)]),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 999),
)
def test_matmul_toeplitz(m: int, n: int, shapes: Any, lead: tuple[int, ...], kinds: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, r = draw(rng, (*shapes[0], m), kinds[0]), draw(rng, (*shapes[1], n), kinds[1])
    x = draw(rng, (n,) if shapes[2] == "v" else (*(lead if shapes[2] else ()), n, shapes[2]), kinds[2])
    try:
        wanted = scipy.linalg.matmul_toeplitz((c, r), x)
    except ValueError:
        with pytest.raises(ValueError):
            sm.linalg.matmul_toeplitz((c, r), x)
        return
    alike(sm.linalg.matmul_toeplitz((c, r), x, workers=2), wanted, 1e3 * EPS)


@given(
    n=st.integers(1, 8),
    batches=st.sampled_from([((), ()), ((), (3,)), ((2, 1), (3,)), ((2,), (2,)), ((2,), (3,)), ((4, 1), ())]),
    axes=st.tuples(st.integers(-2, 1), st.integers(-2, 1), st.integers(-2, 1)),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 999),
)
def test_solve_circulant(n: int, batches: Any, axes: tuple[int, int, int], kinds: Any, seed: int) -> None:
    """Every axis of c, b and the result, broadcasting, dtypes; what scipy refuses is refused."""
    rng = np.random.default_rng(seed)
    c, b = draw(rng, (*batches[0], n), kinds[0]), draw(rng, (*batches[1], n), kinds[1])
    if kinds[0] is bool:
        c = c.astype(int)
    c[..., 0] = 6 * n

    def moved(array: Any, axis: int) -> Any:
        return np.moveaxis(array, -1, axis) if -array.ndim <= axis < array.ndim else array

    options = {"caxis": axes[0], "baxis": axes[1], "outaxis": axes[2]}
    c, b = moved(c, axes[0]), moved(b, axes[1])
    try:
        wanted = scipy.linalg.solve_circulant(c, b, **options)
    except ValueError:
        with pytest.raises(ValueError):
            sm.linalg.solve_circulant(c, b, **options)
        return
    single = {np.float16, np.float32, np.complex64} & set(
        kinds
    )  # numpy transforms each of the two in its own precision
    alike(sm.linalg.solve_circulant(c, b, **options), wanted, 1e3 * (np.finfo(np.float32).eps if single else EPS))


@pytest.mark.parametrize("singular", ["lstsq", "raise"])
@pytest.mark.parametrize("tol", [None, 1e-3, 10.0])
def test_singular_circulants(singular: str, tol: float | None) -> None:
    """Each circulant of a batch has its own threshold, and a large one beside it changes nothing."""
    c = np.array([[1.0, 1.0, 1.0, 1.0], [1e9, 1, 0, 0], [1.0, 0.5, 0, 0]])
    b = np.arange(12.0).reshape(3, 4)
    options: dict[str, Any] = {"singular": singular, "tol": tol, "baxis": -1, "outaxis": -1}
    try:
        wanted = scipy.linalg.solve_circulant(c, b, **options)
    except np.linalg.LinAlgError:
        with pytest.raises(np.linalg.LinAlgError, match="near singular"):
            sm.linalg.solve_circulant(c, b, **options)
        return
    alike(sm.linalg.solve_circulant(c, b, **options), wanted, 1e3 * EPS)


def test_a_well_conditioned_circulant_beside_a_large_one_is_no_singular_one() -> None:
    c = np.array([[1e20, 0, 0], [1.0, 0, 0]])
    found = sm.linalg.solve_circulant(c, np.ones((2, 3)), baxis=-1, outaxis=-1)
    assert np.allclose(found[1], 1)


@pytest.mark.parametrize(
    ("shape_c", "shape_b"), [((0,), (0,)), ((0,), (0, 3)), ((3,), (3, 0)), ((2, 3), (3, 0)), ((3,), (2, 3, 0))]
)
def test_nothing_to_solve(shape_c: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    c, b = np.ones(shape_c), np.ones(shape_b)
    for ours, theirs in (
        (sm.linalg.solve_toeplitz, scipy.linalg.solve_toeplitz),
        (sm.linalg.matmul_toeplitz, scipy.linalg.matmul_toeplitz),
    ):
        wanted = theirs((c, c), b)
        found = ours((c, c), b)
        square = shape_c != (0,) or len(shape_b) == 1  # of b (0, 3) scipy makes (0, 0); T x has the shape of b
        assert found.shape == (wanted.shape if square else shape_b) and found.dtype == wanted.dtype
    if len(shape_b) < 3 and len(shape_c) == 1:
        assert sm.linalg.solve_circulant(c, b).shape == scipy.linalg.solve_circulant(c, b).shape


@pytest.mark.parametrize(
    ("c_or_cr", "b"),
    [
        ((np.ones(3), np.ones(4)), np.ones(4)),
        (np.ones(3), np.ones(4)),
        (np.ones(3), np.ones((4, 3))),
        (np.array([1.0, np.nan]), np.ones(2)),
        (np.ones(2), np.array([np.inf, 0])),
        (np.ones(2), None),
    ],
)
def test_value_errors_are_those_of_scipy(c_or_cr: Any, b: Any) -> None:
    for solve in (scipy.linalg.solve_toeplitz, sm.linalg.solve_toeplitz):
        with pytest.raises((ValueError, AttributeError) if solve is scipy.linalg.solve_toeplitz else ValueError):
            solve(c_or_cr, b)


def test_axes_out_of_bounds_and_unknown_words_are_value_errors() -> None:
    for options in ({"caxis": 1}, {"baxis": 2}, {"outaxis": 3}, {"singular": "ignore"}):
        with pytest.raises(ValueError):
            sm.linalg.solve_circulant(np.ones(3), np.ones(3), **options)  # type: ignore[arg-type]


def test_a_singular_matrix_is_a_linalg_error_and_a_nonsingular_one_is_solved() -> None:
    """scipy's Levinson fails at every singular leading minor; the matrix [[0, 1], [1, 0]] is as good as any."""
    with pytest.raises(np.linalg.LinAlgError):
        sm.linalg.solve_toeplitz(np.ones(3), np.array([1.0, 2, 3]))
    for c, r in (([0.0, 1], [0.0, 1]), ([0.0, 1, 2], [0.0, 3, 4]), ([1.0, 1, 2], [1.0, 1, 5])):
        with pytest.raises(np.linalg.LinAlgError):
            scipy.linalg.solve_toeplitz((c, r), np.ones(len(c)))
        x = sm.linalg.solve_toeplitz((c, r), np.ones(len(c)))
        assert np.allclose(scipy.linalg.toeplitz(c, r) @ x, 1, atol=100 * EPS)


def test_check_finite_lets_them_pass() -> None:
    c = np.array([3.0, np.inf])
    assert not np.isfinite(sm.linalg.matmul_toeplitz(c, np.ones(2))).all()
    with pytest.raises(ValueError, match="c must not contain infs or NaNs"):
        sm.linalg.matmul_toeplitz(c, np.ones(2), check_finite=True)


def test_lists_give_arrays_and_tensors_give_tensors() -> None:
    """A tensor keeps its dtype and its graph; an array beside it does not change that."""
    assert isinstance(sm.linalg.solve_toeplitz([2, 1], [1, 1]), np.ndarray)
    assert isinstance(sm.linalg.solve_circulant([2, 1], [1, 1]), np.ndarray)
    c = torch.tensor([4.0, 1.0, 0.5], requires_grad=True)
    for call in (
        lambda v: sm.linalg.solve_toeplitz(v, torch.ones(3)),
        lambda v: sm.linalg.solve_toeplitz((v, torch.ones(3)), torch.ones(3)),
        lambda v: sm.linalg.matmul_toeplitz(v, torch.ones(3)),
        lambda v: sm.linalg.solve_circulant(v, torch.ones(3)),
        lambda v: sm.linalg.solve_circulant(v, torch.ones(3), singular="lstsq"),
    ):
        found = call(c)
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
        found.sum().backward()
        wide = c.detach().double().requires_grad_()

        assert torch.autograd.gradcheck(call, (wide,))
    assert bool(torch.isfinite(c.grad).all())
    with pytest.raises(sm.DtypeError, match="integer tensor"):
        sm.linalg.solve_toeplitz(torch.arange(3), np.ones(3))
