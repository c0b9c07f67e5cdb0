"""Products of plane rotations: orientation, layers, conversions, exactness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import givens as fg
from structmat.testing import assert_gradients, assert_orthogonal
from structmat.testing.reference import dense_of
from structmat.types.givens import round_robin

F64 = torch.float64


def _angles(k: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=F64)


@st.composite
def products(draw: st.DrawFn) -> sm.GivensProduct:
    n = draw(st.integers(2, 7))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
    planes = tuple(draw(st.lists(pairs, max_size=12)))
    return sm.GivensProduct(_angles(len(planes), draw(st.integers(0, 99))), planes, n)


@given(products())
def test_any_planes_in_any_order(q: sm.GivensProduct) -> None:
    torch.testing.assert_close(q.to_dense(), dense_of(q), rtol=0, atol=1e-14)
    torch.testing.assert_close(q.to_householder().to_dense(), dense_of(q), rtol=0, atol=1e-13)
    torch.testing.assert_close(q.inv().to_dense(), dense_of(q).mT, rtol=0, atol=1e-14)


@given(products())
def test_layers_hold_disjoint_planes_and_keep_the_order(q: sm.GivensProduct) -> None:
    found = fg.layers(q.planes)
    assert sorted(k for layer in found for k in layer) == list(range(len(q.planes)))
    for layer in found:
        touched = [index for k in layer for index in q.planes[k]]
        assert len(touched) == len(set(touched))
    level = {k: depth for depth, layer in enumerate(found) for k in layer}
    for a in range(len(q.planes)):
        for b in range(a + 1, len(q.planes)):
            if set(q.planes[a]) & set(q.planes[b]):
                assert level[b] < level[a], "the later factor is applied first"


def test_one_rotation_is_the_convention() -> None:
    g = sm.GivensProduct(torch.tensor([0.3], dtype=F64), ((2, 0),), 3).to_dense()
    assert g[2, 2] == g[0, 0] == math.cos(0.3)
    assert g[2, 0] == -math.sin(0.3)
    assert g[0, 2] == math.sin(0.3)
    assert g[1, 1] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_a_tournament_meets_every_pair_in_full_layers(n: int) -> None:
    planes = round_robin(n)
    assert sorted(planes) == [(i, j) for i in range(n) for j in range(i + 1, n)]
    assert len(fg.layers(planes)) == (0 if n < 2 else n - 1 + n % 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 2, 3, 16, 40])
def test_every_rotation_is_reached(n: int, dtype: torch.dtype) -> None:
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=dtype))[0]
    q[:, 0] *= torch.linalg.det(q).sign()
    product = sm.GivensProduct.from_dense(q)
    assert len(product.planes) <= n * (n - 1) // 2
    assert float((product.to_dense() - q).norm()) <= 40 * torch.finfo(dtype).eps * n
    assert_orthogonal(product)


def test_zeros_need_no_rotation() -> None:
    assert sm.GivensProduct.from_dense(torch.eye(5)).planes == ()
    block = torch.block_diag(*(sm.GivensProduct.random(2).double().to_dense() for _ in range(3)))
    assert sm.GivensProduct.from_dense(block).planes == ((0, 1), (2, 3), (4, 5))
    minus = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=F64))
    torch.testing.assert_close(sm.GivensProduct.from_dense(minus).to_dense(), minus, rtol=0, atol=1e-15)


def test_a_full_turn_of_householder_and_back() -> None:
    q = sm.HouseholderProduct.random(6, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    there = sm.GivensProduct.from_dense(q.to_dense())
    torch.testing.assert_close(there.to_householder().to_dense(), q.to_dense(), rtol=0, atol=1e-13)
    assert isinstance(there @ q, sm.HouseholderProduct)
    torch.testing.assert_close((there @ q).to_dense(), q.to_dense() @ q.to_dense(), rtol=0, atol=1e-13)
    torch.testing.assert_close((q @ there).to_dense(), q.to_dense() @ q.to_dense(), rtol=0, atol=1e-13)
    assert isinstance(there @ there, sm.GivensProduct)


def test_what_is_no_rotation_says_why() -> None:
    with pytest.raises(sm.NotStructuredError, match="not orthogonal"):
        sm.GivensProduct.from_dense(torch.ones(3, 3))
    with pytest.raises(sm.NotStructuredError, match="determinant is -1"):
        sm.GivensProduct.from_dense(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(sm.ShapeError, match=r"plane \(1, 1\)"):
        sm.GivensProduct(torch.zeros(1), ((1, 1),), 3)
    with pytest.raises(sm.ShapeError, match="2 planes for 1 angles"):
        sm.GivensProduct(torch.zeros(1), ((0, 1), (1, 2)), 3)
    with pytest.raises(sm.DtypeError, match="angles are real"):
        sm.GivensProduct(torch.zeros(1, dtype=torch.complex64), ((0, 1),), 3)


def test_derivatives_of_every_mode() -> None:
    planes = ((0, 1), (1, 2), (0, 2), (0, 1))
    assert_gradients(lambda x, a: fg.rotate_rows(x, a, planes), (torch.randn(2, 3, dtype=F64), _angles(4)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_orthogonal_at_every_size_of_angle(scale: float, dtype: torch.dtype) -> None:
    q = sm.GivensProduct((scale * _angles(28)).to(dtype), round_robin(8), 8)
    assert_orthogonal(q)
    assert_orthogonal(sm.GivensProduct((scale * _angles(28)).bfloat16(), round_robin(8), 8))
