"""Where matrices of low displacement rank come from: fewer generators, other structures, dense matrices, chance."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import LowDisplacementRank as LDR
from structmat.functional import displacement_measures as fm
from structmat.functional import displacement_rank as fr

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
PAIRS = [(1, -1), (-1, 1), (2.0, -0.5), (1j, -1)]


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _ldr(n: int, r: int, e: complex = 1, f: complex = -1, dtype: torch.dtype = F64, seed: int = 0) -> LDR:
    left, right = (_numbers(n, r, dtype=dtype, seed=seed + k) for k in range(2))
    return LDR(left, right, e, f)


def _size(a: LDR) -> float:
    """How large the numbers are that the entries are summed from: ``||G|| ||H||`` through the inverse displacement."""
    kinds = torch.linalg.matrix_norm(a.left) * torch.linalg.matrix_norm(a.right)
    return float(kinds.max()) * fm.distance_factor(int(a.shape[-1]), a.e, a.f)


def _close(got: torch.Tensor, wanted: torch.Tensor, size: float, steps: float = 1.0) -> None:
    """``100 eps`` of the size of the generators, for each of ``steps`` operations."""
    gap = float(torch.linalg.vector_norm(got.to(C128) - wanted.to(C128)))
    assert gap <= 100 * EPS * steps * size, f"{gap:.2e} exceeds {100 * EPS * steps * size:.1e}"


def _assert_closed(result: Any, wanted: torch.Tensor, rank: int, size: float, steps: float = 1.0) -> None:
    """A LowDisplacementRank of at most this rank, equal to the dense result, its generators true of it."""
    assert isinstance(result, LDR), repr(result)
    assert result.left.shape[-1] <= rank
    n = result.shape[-1]
    _close(result.to_dense(), wanted, size, steps * n**0.5)


# -- fewer generators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
def test_recompress_finds_the_rank_and_balances(dtype: torch.dtype) -> None:
    n = 24
    t = sm.Toeplitz(_numbers(2 * n - 1, dtype=dtype), n)
    a = t @ t + t - t @ t @ sm.Identity(n)  # ten generators of a matrix of displacement rank 2
    assert isinstance(a, LDR) and a.left.shape[-1] > 2
    small = a.recompress()
    assert small.left.shape[-1] == 2
    _close(small.to_dense(), t.to_dense(), 4 * _size(a))
    sizes = [torch.linalg.vector_norm(v, dim=-2) for v in (small.left, small.right)]
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-8)
    assert float(fr.generator_condition(small.left, small.right)) <= 2**0.5 + 1e-8
    assert float(fr.generator_condition(a.left, a.right)) > 2
    zero = (a - a).recompress()
    assert zero.left.shape[-1] == 0 and not zero.to_dense().any()


@pytest.mark.parametrize(("e", "f"), PAIRS)
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_recompress_keeps_its_error_bound(tol: float, e: complex, f: complex) -> None:
    n, r = 20, 8
    for dtype in (F64, C128):
        decay = 10.0 ** -torch.arange(r, dtype=F64).to(dtype)
        a = LDR(_numbers(2, n, r, dtype=dtype) * decay, _numbers(2, n, r, dtype=dtype, seed=1), e, f)
        small = a.recompress(tol)
        gap = torch.linalg.matrix_norm(small.to_dense() - a.to_dense())
        size = torch.linalg.matrix_norm(a.to_dense())
        assert bool((gap <= tol * size * (1 + 1e-9)).all())
        values = fr.singular_values(a.left, a.right)
        tail = values[..., small.left.shape[-1] :].square().sum(-1).sqrt()
        assert bool((gap <= fm.distance_factor(n, e, f) * tail * (1 + 1e-6) + 1e-12 * size).all())
        assert small.left.shape[-1] < r or tol < 1e-5


def test_recompress_is_differentiable_where_only_rounding_is_dropped() -> None:
    """Against the matrix itself: the gradient of its entries in four generators of which two are redundant."""
    g, h = _numbers(6, 2), _numbers(6, 2, seed=1)
    left, right = torch.cat((g, g), -1), torch.cat((h, 2 * h), -1)
    weights = _numbers(6, 6, seed=3)
    plain = [t.clone().requires_grad_() for t in (left, right)]
    wanted = torch.autograd.grad((LDR(*plain).to_dense() * weights).sum(), plain)
    found = torch.autograd.grad((LDR(*plain).recompress().to_dense() * weights).sum(), plain)
    # along directions that keep the rank: those of the two generators themselves
    d_left = torch.cat((_numbers(6, 2, seed=5), torch.zeros(6, 2, dtype=F64)), -1)
    d_left[:, 2:] = d_left[:, :2]
    for w, got in zip(wanted, found, strict=True):
        assert float(((w - got) * d_left).sum().abs()) <= 1e-11 * float(w.norm() * d_left.norm())


def test_distance_factor_is_attained() -> None:
    """``1 / (2 sin(pi / 2n))`` for (1, -1), from the dense displacement operator."""
    for n, (e, f) in itertools.product((1, 2, 5), PAIRS):
        z = torch.zeros(2, n, n, dtype=C128)
        for shift, number in zip(z, (e, f), strict=True):
            shift += torch.diag(torch.ones(n - 1, dtype=C128), -1)
            shift[0, -1] += number
        eye = torch.eye(n, dtype=C128)
        operator = torch.kron(z[0], eye) - torch.kron(eye, z[1].mT.contiguous())
        exact = 1 / float(torch.linalg.svdvals(operator)[-1])
        bound = fm.distance_factor(n, e, f)
        assert exact <= bound * (1 + 1e-12)
        if abs(e) == abs(f) == 1:
            assert exact == pytest.approx(bound, rel=1e-10)


# -- conversions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_conversions(n: int, e: complex, f: complex, dtype: torch.dtype) -> None:
    t = sm.Toeplitz(_numbers(2 * n - 1, dtype=dtype), n)
    size = 100.0 * n * float(t.norm())
    _assert_closed(LDR.from_toeplitz(t, e, f), t.to_dense(), 2, size)
    for number in (1, -1, 0, 0.5):
        c = sm.Circulant(_numbers(n, dtype=dtype), number)
        _assert_closed(LDR.from_circulant(c, e, f), c.to_dense(), 2 - (number in (e, f)), size)
    h = sm.Hankel(_numbers(2 * n - 1, dtype=dtype), n)
    _close(LDR.from_hankel(h, e, f).to_dense(), h.to_dense(), size)
    a = _ldr(n, 2, e, f, dtype=dtype)
    found = LDR.from_dense(a.to_dense(), tol=1e-12, e=e, f=f)
    assert found.left.shape[-1] <= min(2, n)
    _close(found.to_dense(), a.to_dense(), 10 * n * _size(a))
    _close(LDR.identity(n, e, f, dtype=dtype).to_dense(), torch.eye(n, dtype=dtype), 100 * n)


def test_stein_and_kailath_forms() -> None:
    n = 6
    g, h = _numbers(n, 2), _numbers(n, 2, seed=1)
    shift = torch.diag(torch.ones(n - 1, dtype=F64), -1)
    for e, f in ((0, 0), (1, -1), (2.0, 0.25)):
        a = LDR.from_stein(g, h, e, f).to_dense()
        left, right = shift.clone(), shift.clone()
        left[0, -1] += e
        right[0, -1] += f
        assert torch.allclose(a - left @ a @ right.mT, g @ h.mT, atol=1e-12)
    for e, f in ((1, 1), (2.0, 0.5), (0, 1)):
        with pytest.raises(ValueError, match=r"legal are nonzero e and f with e f != 1"):
            LDR.from_stein(g, h, e, f)


def test_nearest_keeps_its_bound_and_from_dense_refuses() -> None:
    n = 16
    a = _ldr(n, 2)
    noise = 1e-3 * _numbers(n, n, seed=3)
    dense = a.to_dense() + noise
    near = LDR.nearest(dense, 2)
    gap, best = float((near.to_dense() - dense).norm()), float(noise.norm())  # the best one is at most this far
    assert gap <= 2 * fm.distance_factor(n, 1, -1) * best
    with pytest.raises(sm.NotStructuredError, match=r"LowDisplacementRank.from_dense"):
        LDR.from_dense(dense, rank=2)
    assert LDR.from_dense(dense, tol=0.5).left.shape[-1] < n
    with pytest.raises(ValueError, match="legal ranks"):
        LDR.nearest(dense, -1)
    with pytest.raises(sm.ShapeError, match="square"):
        LDR.nearest(dense[:, :3], 1)


def test_random_keeps_the_size_of_x() -> None:
    generator = torch.Generator().manual_seed(0)
    for r, (e, f) in itertools.product((1, 8), ((1, -1), (2.0, -0.5))):
        a = LDR.random(256, r, e, f, generator=generator, dtype=F64)
        x = torch.randn(64, 256, generator=generator, dtype=F64)
        ratio = float(a.linear(x).norm() / x.norm())
        assert 0.25 < ratio < 4
