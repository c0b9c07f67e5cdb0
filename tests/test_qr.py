"""QR that keeps its reflectors: LAPACK's result, exact orthogonality, gradients, and the subspace reflection."""

from __future__ import annotations

import pytest
import torch

import structmat as sm
from structmat.testing import assert_orthogonal

F64, C128 = torch.float64, torch.complex128
SHAPES = [(1, 1), (4, 4), (6, 3), (3, 6), (5, 1), (1, 5), (3, 0)]


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_it_is_lapacks_factorisation(shape: tuple[int, int], dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    a = _numbers(*batch, *shape, dtype=dtype)
    q, r = sm.linalg.qr(a)
    eps = torch.finfo(dtype).eps
    assert isinstance(q, sm.HouseholderProduct)
    assert_orthogonal(q)
    assert torch.equal(r, torch.triu(r))
    assert float((q @ r - a).abs().max() if a.numel() else 0) <= 40 * eps * (1 + float(a.norm()))
    theirs_q, theirs_r = torch.linalg.qr(a, mode="complete")
    torch.testing.assert_close(r, theirs_r, rtol=0, atol=60 * eps)
    k = min(shape)
    torch.testing.assert_close(q.to_dense()[..., :k], theirs_q[..., :k], rtol=0, atol=60 * eps)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_recorded_and_the_fast_way_agree(dtype: torch.dtype) -> None:
    a = _numbers(2, 5, 3, dtype=dtype)
    a[0, 1:, 0] = 0  # a column that needs no reflection
    fast, recorded = sm.linalg.qr(a), sm.linalg.qr(a.clone().requires_grad_())
    torch.testing.assert_close(fast[1], recorded[1].detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(fast[0].to_dense(), recorded[0].to_dense().detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_gradients_to_second_order(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = _numbers(*shape, dtype=dtype).requires_grad_()
    x = _numbers(shape[0], dtype=dtype, seed=1)

    def function(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, r = sm.linalg.qr(a)
        return q @ x, r

    assert torch.autograd.gradcheck(function, (a,))
    assert torch.autograd.gradgradcheck(function, (a,))


def test_under_vmap_and_grad() -> None:
    a = _numbers(3, 4, 3)
    each = torch.stack([sm.linalg.qr(m)[1] for m in a])
    torch.testing.assert_close(torch.func.vmap(lambda m: sm.linalg.qr(m)[1])(a), each)
    assert torch.func.grad(lambda m: sm.linalg.qr(m)[1].square().sum())(a[0]).shape == (4, 3)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_from_lapack_is_torchs_householder_product(dtype: torch.dtype) -> None:
    a = _numbers(2, 6, 4, dtype=dtype)
    a[1, :, 2] = 0
    packed, tau = torch.geqrf(a)
    q = sm.HouseholderProduct.from_lapack(packed, tau)
    torch.testing.assert_close(q.to_dense()[..., :4], torch.linalg.householder_product(packed, tau), rtol=0, atol=1e-13)
    with pytest.raises(sm.ShapeError, match="do not fit"):
        sm.HouseholderProduct.from_lapack(packed, torch.ones(2, 7))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("r", [0, 1, 3, 5])
def test_the_reflection_at_a_subspace(r: int, dtype: torch.dtype) -> None:
    vectors = _numbers(r, 5, dtype=dtype)
    q = sm.HouseholderProduct.orthonormal(vectors)
    dense, eye = q.to_dense(), torch.eye(5, dtype=dtype)
    torch.testing.assert_close(dense, dense.mH, rtol=0, atol=1e-14)
    torch.testing.assert_close(dense @ dense, eye, rtol=0, atol=1e-14)
    torch.testing.assert_close(vectors @ dense.mT, -vectors, rtol=0, atol=1e-13)
    if r < 5:
        with pytest.raises(sm.ShapeError, match="at most n vectors"):
            sm.HouseholderProduct.orthonormal(_numbers(6, 5))
    if r:
        assert torch.autograd.gradcheck(
            lambda v: sm.HouseholderProduct.orthonormal(v).to_dense(), (vectors.requires_grad_(),)
        )
