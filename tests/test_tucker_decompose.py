"""Tucker decompositions: the error is the error, the bounds hold, exact tensors come back exactly, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import tucker as ft
from structmat.functional import tucker_decompose as fd
from tests.test_tucker import C64, C128, F32, F64, dense, make, numbers, shapes

METHODS = fd.METHODS


def graded(*shape: int) -> torch.Tensor:
    """``1 / (1 + i + j + ...)``: singular values that fall fast, in every unfolding."""
    axes = torch.meshgrid(*(torch.arange(float(n), dtype=F64) for n in shape), indexing="ij")
    return 1 / (1 + sum(axes))


def distance(found: Any, tensor: torch.Tensor) -> torch.Tensor:
    modes = tuple(range(-found.tensor.order, 0))
    wide = C128 if tensor.is_complex() else F64
    return torch.linalg.vector_norm(found.tensor.to_dense().to(wide) - tensor.to(wide), dim=modes)


@given(shapes(), st.integers(0, 1000), st.sampled_from(METHODS), st.sampled_from([F64, C128, F32, C64]))
def test_a_tensor_of_these_ranks_comes_back(sizes: Any, seed: int, method: str, dtype: torch.dtype) -> None:
    """In float32 as exactly as in float64: Gram matrices in float32 would leave half the digits."""
    t = make(*sizes, dtype, seed=seed)
    tensor = dense(t).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    found = sm.Tucker.decompose(tensor, sizes[1], method=method, generator=generator)
    assert found.tensor.ranks == sizes[1]
    assert found.tensor.dtype == dtype
    size = float(torch.linalg.vector_norm(tensor))
    assert float(distance(found, tensor)) <= 60 * torch.finfo(dtype).eps * len(sizes[0]) * size
    for u in found.tensor.factors:
        eye = torch.eye(u.shape[-1], dtype=dtype)
        assert float((u.mH @ u - eye).norm()) <= 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tensor", [graded(20, 24, 16, 12), numbers(12, 9, 14, seed=3), numbers(7, 30, dtype=C128)])
def test_the_error_is_the_error_and_the_bounds_hold(method: str, tensor: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    found = sm.Tucker.decompose(tensor, 3, method=method, generator=generator)
    order, size = tensor.ndim, float(tensor.norm())
    error = float(found.error)
    assert abs(float(distance(found, tensor)) - error) <= 1e-12 * size
    assert abs(error - float((found.tails**2).sum().sqrt())) <= 1e-14 * size
    tails = [float(torch.linalg.vector_norm(s[3:])) for s in fd.singular_values(tensor, order)]
    best = max(tails)  # no tensor of these ranks is nearer
    assert error >= best * (1 - 1e-12)
    if method == "randomised":
        assert found.lower is None
        assert error <= 1.5 * math.hypot(*tails)
    else:
        assert float(found.lower) <= error * (1 + 1e-12)
        assert float(found.lower) <= best * (1 + 1e-10)
        assert error <= math.hypot(*tails) * (1 + 1e-12)


def test_hooi_never_does_worse_than_it_starts() -> None:
    tensor = numbers(10, 9, 8, seed=2)
    start, better = (sm.Tucker.decompose(tensor, (3, 3, 3), method=m) for m in ("st_hosvd", "hooi"))
    assert float(better.error) <= float(start.error)
    assert 1 <= better.sweeps <= 10
    once = sm.Tucker.decompose(tensor, (3, 3, 3), method="hooi", sweeps=1)
    assert once.sweeps == 1
    assert float(better.error) <= float(once.error) * (1 + 1e-12)


@given(st.floats(1e-10, 0.9), st.sampled_from(["st_hosvd", "hosvd", "hooi"]), st.integers(0, 100))
def test_the_tolerance_is_met(tol: float, method: str, seed: int) -> None:
    tensor = graded(9, 7, 8) if seed % 2 else numbers(6, 5, 7, seed=seed)
    found = sm.Tucker.decompose(tensor, tol=tol, method=method)
    assert float(distance(found, tensor)) <= tol * float(tensor.norm()) * (1 + 1e-10) + 1e-13 * float(tensor.norm())


def test_ranks_from_the_tolerance_are_those_of_the_tensor() -> None:
    tensor = dense(make((9, 8, 7), (2, 3, 2)))
    for method in ("st_hosvd", "hosvd", "hooi"):
        assert sm.Tucker.decompose(tensor, tol=1e-10, method=method).tensor.ranks == (2, 3, 2)
    assert sm.Tucker.decompose(torch.zeros(3, 4, dtype=F64), tol=0.1).tensor.ranks == (1, 1)


def test_batches_are_decomposed_one_by_one() -> None:
    tensor = numbers(2, 3, 6, 5, 4, seed=1)
    for method in ("st_hosvd", "hosvd", "hooi"):
        found = sm.Tucker.decompose(tensor, (2, 2, 2), method=method, sweeps=3)
        alone = sm.Tucker.decompose(tensor[1, 2], (2, 2, 2), method=method, sweeps=3)
        assert found.tensor.batch_shape == (2, 3)
        assert found.error.shape == (2, 3)
        assert torch.allclose(found.error, distance(found, tensor), rtol=1e-12)
        assert torch.allclose(found.error[1, 2], alone.error, rtol=1e-4)
    many = sm.Tucker.decompose(numbers(2, 40, 50, 6, seed=2), (3, 3, 3), method="randomised")
    assert torch.allclose(many.error, distance(many, numbers(2, 40, 50, 6, seed=2)), rtol=1e-12)


def test_a_generator_repeats_the_randomised_method() -> None:
    tensor = numbers(60, 50, 6)
    runs = [
        sm.Tucker.decompose(tensor, (4, 4, 4), method="randomised", generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].tensor.core, runs[1].tensor.core)


def test_the_core_is_differentiable_and_the_factors_are_values() -> None:
    tensor = graded(6, 5, 4).requires_grad_()
    found = sm.Tucker.decompose(tensor, (2, 2, 2))
    assert not any(u.requires_grad for u in found.tensor.factors)
    g = numbers(6, 5, 4, seed=3)
    got = torch.autograd.grad((found.tensor.to_dense() * g).sum(), tensor)[0]
    wanted = g
    for k, u in enumerate(found.tensor.factors):
        wanted = ft.mode_product(wanted, u @ u.mH, k, 3)
    assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-14)


def test_half_is_decomposed_in_float32() -> None:
    tensor = numbers(8, 6, 5, dtype=torch.bfloat16)
    found = sm.Tucker.decompose(tensor, (3, 3, 3))
    assert found.tensor.dtype == torch.bfloat16
    assert abs(float(distance(found, tensor)) - float(found.error)) <= 2 * 2**-8 * float(tensor.double().norm())


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "give either ranks or tol", {}),
        (ValueError, "give either ranks or tol", {"ranks": 2, "tol": 0.1}),
        (ValueError, "tol must be 0 or more", {"tol": -1.0}),
        (ValueError, "legal methods are 'st_hosvd', 'hosvd', 'hooi', 'randomised'", {"ranks": 2, "method": "als"}),
        (ValueError, "takes ranks", {"tol": 0.1, "method": "randomised"}),
        (sm.ShapeError, "rank 5 of mode 0 must be an int from 1 to 4", {"ranks": (5, 3, 2)}),
        (sm.ShapeError, "rank 4 of mode 0 must be an int from 1 to 2: .* product 2 of the other", {"ranks": (4, 2, 1)}),
        (sm.ShapeError, "rank 0 of mode 2", {"ranks": (1, 1, 0)}),
        (sm.ShapeError, "4 ranks for a tensor", {"ranks": (1, 1, 1, 1)}),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sm.Tucker.decompose(numbers(4, 3, 2), **options)


def test_integers_and_scalars_are_refused() -> None:
    with pytest.raises(sm.DtypeError, match="floating point or complex"):
        sm.Tucker.decompose(torch.ones(3, 3, dtype=torch.int64), 2)
    with pytest.raises(sm.ShapeError, match="scalar"):
        sm.Tucker.decompose(torch.ones(()), tol=0.1)
    assert "error=" in repr(sm.Tucker.decompose(numbers(4, 3), 2))
