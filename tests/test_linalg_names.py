"""The names of torch.linalg over every kind of argument: eigvalsh, polar, norms, conditions, ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

import structmat as sm
from structmat.testing import assert_gradients

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
HERMITIAN = sm.Claim.HERMITIAN


def draw(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found: Any, wanted: Any, factor: float = 1e3) -> None:
    """``factor`` eps of the largest number: a few dozen operations on matrices of order below 30."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= factor * EPS * (1 + float(wanted.abs().max()))


def even(n: int, dtype: torch.dtype = F64) -> torch.Tensor:
    """The column of a Hermitian circulant."""
    v = draw(n, dtype=dtype)
    return (v + v.conj()[-torch.arange(n) % n]) / 2


S = sm.toeplitz(draw(5))
HERMITIANS: dict[str, Callable[[], sm.Matrix]] = {
    "dense": lambda: sm.Dense(draw(6, 6) + draw(6, 6).mT).assume(HERMITIAN),
    "complex dense": lambda: sm.Dense(draw(2, 6, 6, dtype=C128) + draw(2, 6, 6, dtype=C128).mH).assume(HERMITIAN),
    "kron": lambda: sm.kron(S, sm.Dense(draw(3, 3) @ draw(3, 3).mT).assume(HERMITIAN)),
    "kron of two others": lambda: sm.kron(sm.Dense(skew(3)), sm.Dense(skew(4))).assume(HERMITIAN),
    "kron sum": lambda: sm.kron_sum(S, sm.Diagonal(draw(3))),
    "circulant": lambda: sm.Circulant(even(8)).assume(HERMITIAN),
    "complex circulant": lambda: sm.Circulant(even(7, C128)).assume(HERMITIAN),
    "blocks": lambda: sm.BlockDiagonal(draw(3, 4, 4) + draw(3, 4, 4).mT).assume(HERMITIAN),
    "diagonal": lambda: sm.Diagonal(draw(2, 9)),
    "identity": lambda: sm.Identity(4, F64),
    "toeplitz": lambda: sm.HermitianToeplitz(draw(9, dtype=C128)),
    "inverse": lambda: (sm.Diagonal(torch.full((5,), 20.0, dtype=F64)) + S).inv(),
    "scaled": lambda: sm.lazy.Scaled(S, -2.5),
    "prepared": lambda: S.prepare(),
}


def skew(n: int) -> torch.Tensor:
    return draw(n, n) - draw(n, n).mT


@pytest.mark.parametrize("name", HERMITIANS)
def test_eigvalsh(name: str) -> None:
    a = HERMITIANS[name]()
    dense = a.to_dense()
    found = sm.linalg.eigvalsh(a)
    assert not found.is_complex() and bool((found.diff(dim=-1) >= 0).all())
    close(found, torch.linalg.eigvalsh((dense + dense.mH) / 2))


def test_eigvalsh_uses_structure_above_the_dense_limit() -> None:
    big = sm.kron(sm.toeplitz(draw(60)), sm.Circulant(even(50)).assume(HERMITIAN), sm.Diagonal(draw(2)))
    found = sm.linalg.eigvalsh(big)
    close(found.sum(), big.trace(), 1e5)
    close(torch.linalg.vector_norm(found), big.norm(), 1e5)
    close(sm.linalg.eigvalsh(sm.Circulant(even(4000)).assume(HERMITIAN)).sum(), 4000 * even(4000)[0], 1e5)


def test_eigvalsh_asks_for_the_claim_and_names_the_way_out() -> None:
    with pytest.raises(sm.StructureError, match=r"does not claim to be Hermitian.*assume.*eigvals"):
        sm.linalg.eigvalsh(sm.Dense(torch.eye(3)))
    with pytest.raises(sm.ShapeError, match="2 x 3"):
        sm.linalg.eigvalsh(torch.ones(2, 3))
    with pytest.raises(sm.StructureError, match=r"eigsh\(structmat.linalg.as_linear_operator"):
        sm.linalg.eigvalsh(sm.toeplitz(draw(300)))
    close(sm.linalg.eigvalsh(np.array([[2, 9], [1, 2]])), torch.tensor([1.0, 3.0], dtype=F64))  # the lower triangle


def test_eigvalsh_is_differentiable() -> None:
    assert_gradients(lambda c: sm.linalg.eigvalsh(sm.kron(sm.toeplitz(c), sm.Diagonal(c[:2]))), (draw(3),))
    assert_gradients(lambda b: sm.linalg.eigvalsh(sm.BlockDiagonal(b + b.mT).assume(HERMITIAN)), (draw(2, 3, 3),))


# -- polar --------------------------------------------------------------------------------------------------------

POLAR: dict[str, tuple[Callable[[], Any], str | None]] = {
    "square": (lambda: draw(5, 5), "Dense"),
    "tall": (lambda: draw(6, 3), "Dense"),
    "wide batch": (lambda: draw(2, 3, 5), "Dense"),
    "complex": (lambda: draw(4, 4, dtype=C128), "Dense"),
    "array": (lambda: draw(4, 4).numpy(), "Dense"),
    "diagonal": (lambda: sm.Diagonal(draw(5, dtype=C128)), "Diagonal"),
    "circulant": (lambda: sm.Circulant(draw(6)), "Circulant"),
    "skew circulant": (lambda: sm.Circulant(draw(5), -1), "Circulant"),
    "unit circulant": (lambda: sm.Circulant(draw(5, dtype=C128), 1j), "Circulant"),
    "far circulant": (lambda: sm.Circulant(draw(5), 0.5), "Dense"),
    "kron": (lambda: sm.kron(sm.Circulant(draw(4)), sm.Dense(draw(3, 2))), "Kronecker"),
    "kron of tall and wide": (lambda: sm.kron(sm.Dense(draw(2, 3)), sm.Dense(draw(4, 2))), "Dense"),
    "blocks": (lambda: sm.BlockDiagonal(draw(3, 2, 4)), "BlockDiagonal"),
    "scaled": (lambda: sm.lazy.Scaled(sm.Diagonal(draw(4)), -2.0), None),
    "scaled by a tensor": (lambda: sm.lazy.Scaled(sm.Toeplitz(draw(7), 4), torch.tensor(-3.0, dtype=F64)), None),
    "householder": (lambda: sm.HouseholderProduct(draw(2, 6)), "HouseholderProduct"),
    "definite": (lambda: sm.toeplitz([3.0, 1.0, 0.5]).assume(sm.Claim.POSITIVE_DEFINITE), "Identity"),
    "toeplitz": (lambda: sm.Toeplitz(draw(9), 4), "Dense"),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", POLAR)
def test_polar_is_that_of_scipy(name: str, side: str) -> None:
    make, kind = POLAR[name]
    a = make()
    dense = a.to_dense() if isinstance(a, sm.Matrix) else torch.as_tensor(a)
    u, p = sm.linalg.polar(a, side)
    assert kind is None or type(u).__name__ == kind
    flat = dense.reshape(-1, *dense.shape[-2:])
    for i, each in enumerate(flat):
        for found, wanted in zip((u, p), scipy.linalg.polar(each.numpy(), side), strict=True):
            formed = found.to_dense().expand(*dense.shape[:-2], *found.shape[-2:]).reshape(-1, *found.shape[-2:])[i]
            if name != "kron of tall and wide" or found is p:
                close(formed, torch.as_tensor(wanted), 1e4)
    for part in (u, p):
        assert sm.checks.check_claims(part)
    close((u @ p if side == "right" else p @ u).to_dense(), dense)


def test_polar_of_many_kronecker_factors_is_never_formed() -> None:
    a = sm.kron(*(sm.Dense(draw(20, 20, seed=i)) for i in range(3)))
    u, p = sm.linalg.polar(a)
    x = draw(8000)
    close(u @ (p @ x), a @ x, 1e5)
    close(u.mT @ (u @ x), x, 1e4)


def test_polar_errors() -> None:
    with pytest.raises(sm.StructureError, match=r"polar.*no structured form.*dense limit 256.*A.to_dense"):
        sm.linalg.polar(sm.Toeplitz(draw(599), 300))
    with pytest.raises(ValueError, match="legal sides are 'right' and 'left'"):
        sm.linalg.polar(torch.eye(2), "both")
    with pytest.raises(sm.SolveError, match="no derivative"):
        sm.linalg.polar(torch.zeros(2, 2, requires_grad=True))
    u, p = sm.linalg.polar(torch.zeros(2, 2))  # without a derivative any U is right
    assert sm.checks.is_orthogonal(u) and float(p.norm()) == 0


@pytest.mark.parametrize(("shape", "dtype"), [((3, 3), F64), ((3, 2), C128), ((2, 3), F64)])
def test_polar_derivatives(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert_gradients(lambda a: sm.linalg.polar(a)[0].to_dense(), (draw(*shape, dtype=dtype),))
    a = draw(*shape, dtype=dtype).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: sm.linalg.polar(v, "left")[1].to_dense(), (a,), atol=1e-5)


def test_polar_derivatives_where_singular_values_coincide() -> None:
    """The derivative at 2 I in the direction E is skew: (E - E^T) / 4."""
    e = draw(4, 4)
    u = torch.func.jvp(lambda v: sm.linalg.polar(v)[0].to_dense(), (2 * torch.eye(4, dtype=F64),), (e,))[1]
    close(u, (e - e.mT) / 4)
    assert_gradients(lambda c: sm.linalg.polar(sm.Circulant(c))[1].column, (draw(5),))


# -- norms, conditions, ranks -------------------------------------------------------------------------------------

NORMED: dict[str, Callable[[], Any]] = {
    "dense": lambda: draw(5, 4),
    "batch": lambda: draw(2, 4, 4, dtype=C128),
    "toeplitz": lambda: sm.Toeplitz(draw(8), 4),
    "kron": lambda: sm.kron(sm.Toeplitz(draw(6), 3), sm.Dense(draw(2, 3))),
    "blocks": lambda: sm.BlockDiagonal(draw(2, 3, 3)),
    "diagonal": lambda: sm.Diagonal(draw(5)),
    "scaled": lambda: sm.lazy.Scaled(S, -2.5),
    "prepared": lambda: sm.Circulant(draw(6)).prepare(),
}


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("order", [None, "fro", "nuc", 2, -2, 1, -1, float("inf"), -float("inf")])
def test_norms_and_conditions(name: str, order: Any) -> None:
    a = NORMED[name]()
    dense = a.to_dense() if isinstance(a, sm.Matrix) else a
    wanted = torch.linalg.matrix_norm(dense, "fro" if order is None else order)
    close(sm.linalg.norm(a, order), wanted, 1e4)
    if dense.shape[-1] == dense.shape[-2] and order != -2:
        size = float(torch.linalg.cond(dense).max())
        close(sm.linalg.cond(a, order), torch.linalg.cond(dense, order), 1e4 * size)


def test_norms_of_order_4000_take_no_memory_and_are_differentiable() -> None:
    a = sm.kron(sm.Dense(draw(60, 60)), sm.Diagonal(draw(70)))
    assert float(sm.linalg.norm(a, 1)) == pytest.approx(float(draw(60, 60).abs().sum(0).max() * draw(70).abs().max()))
    assert_gradients(lambda v: sm.linalg.norm(sm.Toeplitz(v, 3), 1), (draw(7),))
    assert_gradients(lambda v: sm.linalg.cond(sm.Toeplitz(v, 4), float("inf")), (draw(7),))


def test_a_singular_matrix_has_an_infinite_condition() -> None:
    for order in (None, 1, "fro"):
        assert float(sm.linalg.cond(torch.zeros(2, 2, dtype=F64) + torch.tensor([1.0, 0.0], dtype=F64), order)) > 1e15
    with pytest.raises(ValueError, match="legal orders are"):
        sm.linalg.norm(S, 3)


def test_ranks_are_those_of_torch() -> None:
    a = draw(2, 5, 3) @ draw(2, 3, 6)
    a[1, :, :] = a[1, :, :1]
    for options in ({}, {"atol": 0.5}, {"rtol": 0.3}, {"atol": 0.1, "rtol": 0.4}):
        assert sm.linalg.matrix_rank(a, **options).tolist() == torch.linalg.matrix_rank(a, **options).tolist()
    s = a[0] @ a[0].mT
    assert int(sm.linalg.matrix_rank(s, hermitian=True)) == 3
    assert int(sm.linalg.matrix_rank(sm.LowRank(draw(900, 4), draw(800, 4)))) == 4
    assert int(sm.linalg.matrix_rank(sm.kron(sm.Dense(a[1]), sm.Dense(a[0])))) == 3
    assert sm.linalg.matrix_rank(torch.zeros(0, 3)).tolist() == 0


def test_solve_and_matmul_take_arrays_and_lists_and_give_tensors() -> None:
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    for b in (np.ones(2), [1, 1], torch.ones(2, dtype=F64)):
        for left in (a, a.tolist(), sm.Dense(torch.as_tensor(a))):
            close(sm.linalg.solve(left, b), np.linalg.solve(a, np.ones(2)))
            found = sm.linalg.matmul(left, b)
            assert isinstance(found, torch.Tensor)
            close(found, a @ np.ones(2))
    with pytest.raises(sm.DtypeError, match="b must hold numbers"):
        sm.linalg.solve(a, ["x", "y"])


UNARY = ("det", "slogdet", "eigvals", "svdvals", "norm", "trace", "diagonal", "logabsdet", "inv", "pinv")


@pytest.mark.parametrize("verb", UNARY)
def test_a_matrix_a_tensor_an_array_and_a_list_give_the_same_tensors(verb: str) -> None:
    a = sm.Toeplitz(draw(7), 4)
    given: list[Any] = [a, a.to_dense(), np.asarray(a), np.asarray(a).tolist()]
    results = []
    for each in given:
        found = getattr(sm.linalg, verb)(each)
        parts = found if isinstance(found, tuple) else (found,)
        results.append([p.to_dense() if isinstance(p, sm.Matrix) else p for p in parts])
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
            if verb == "eigvals":
                x, y = (torch.view_as_real(v)[v.real.argsort()] for v in (x, y))
            close(x, y, 1e4)
