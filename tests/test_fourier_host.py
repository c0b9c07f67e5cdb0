"""The numpy form of the convolution, for few real rows on the CPU: the same numbers and gradients as the torch form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import fourier
from structmat.functional import toeplitz as ft

F64, F32 = torch.float64, torch.float32
GEOMETRIES = {
    "cyclic": ft.cyclic_geometry(600),
    "toeplitz": ft.toeplitz_geometry(280, 301),
    "wide": ft.toeplitz_geometry(40, 601),
    "even": fourier.Geometry(640, 0, 300, 300, 300, even=True),
}
SHAPES = [((), ()), ((), (1,)), ((), (3,)), ((2,), (2,)), ((2, 1), (2, 3)), ((2, 1), (3,)), ((3, 1), ()), ((1,), (4,))]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that calls ``compute`` once in numpy and once in torch alone."""

    def call(compute: Any) -> tuple[Any, Any]:
        seen: list[int] = []
        kept = fourier._on_host
        with monkeypatch.context() as patch:
            patch.setattr(fourier, "_on_host", lambda *a: (seen.append(1), kept(*a))[1])
            mine = compute()
        assert seen, "the numpy form has not been used"
        with monkeypatch.context() as patch:
            patch.setattr(fourier, "_host_serves", lambda *a: False)
            return mine, compute()

    return call


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32])
def test_products_and_gradients_are_those_of_the_torch_form(
    both: Any, name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype
) -> None:
    g = GEOMETRIES[name]
    a = numbers(*shapes[0], g.a, dtype=dtype).requires_grad_()
    x = numbers(*shapes[1], g.x, seed=1, dtype=dtype).requires_grad_()
    batch = torch.broadcast_shapes(*shapes)
    weight = numbers(*batch, g.y, seed=2, dtype=dtype)

    def compute() -> list[torch.Tensor]:
        y = fourier.convolve(a, x, g)
        only_a = torch.autograd.grad(fourier.convolve(a, x.detach(), g), a, weight)
        only_x = torch.autograd.grad(fourier.convolve(a.detach(), x, g), x, weight)
        return [
            y,
            *torch.autograd.grad(y, (a, x), weight),
            *only_a,
            *only_x,
            fourier.convolve(a.detach(), x.detach(), g),
        ]

    mine, theirs = both(compute)
    for found, wanted in zip(mine, theirs, strict=True):
        assert found.dtype == dtype and found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= 200 * torch.finfo(dtype).eps * float(wanted.abs().max())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_second_order(both: Any, name: str) -> None:
    g = GEOMETRIES[name]
    a, x = numbers(g.a).requires_grad_(), numbers(2, g.x, seed=1).requires_grad_()
    weight, second = numbers(2, g.y, seed=2).requires_grad_(), numbers(2, g.x, seed=3)

    def compute() -> Any:
        (by_x,) = torch.autograd.grad(fourier.convolve(a, x, g), x, weight, create_graph=True)
        return torch.autograd.grad(by_x, (a, weight), second)

    mine, theirs = both(compute)
    for found, wanted in zip(mine, theirs, strict=True):
        assert float((found - wanted).abs().max()) <= 1e3 * torch.finfo(F64).eps * float(wanted.abs().max())


@given(
    n=st.integers(1, 9), rows=st.sampled_from([(), (2,)]), f=st.sampled_from([1, -1, 0, 2.0]), complex_=st.booleans()
)
def test_the_transposed_product(n: int, rows: tuple[int, ...], f: float, complex_: bool) -> None:
    """``x @ A`` without forming A^T, real and complex, is the product with the transpose."""
    dtype = torch.complex128 if complex_ else F64
    v, x = numbers(n).to(dtype), numbers(*rows, n, seed=1).to(dtype)
    if complex_:
        v, x = v * 1j + numbers(n, seed=2), x * (1 + 2j)
    a = sm.Circulant(v, f)
    wanted = x @ a.to_dense()
    assert float((x @ a - wanted).abs().max()) <= 1e3 * torch.finfo(F64).eps * (1 + float(wanted.abs().max()))
    batch = sm.Circulant(torch.stack([v, 2 * v]), f)
    if rows:
        assert torch.allclose(x @ batch, x @ batch.to_dense(), atol=1e-12)


def test_the_transposed_product_has_gradients_of_every_kind() -> None:
    v, x = numbers(6).requires_grad_(), numbers(2, 6, seed=1).requires_grad_()

    def product(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x @ sm.Circulant(v)

    assert torch.autograd.gradcheck(product, (v, x), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, (v, x))
    found = torch.func.vmap(product, in_dims=(None, 0))(v, x.detach())
    assert torch.allclose(found, x @ sm.Circulant(v).to_dense())


def test_a_result_may_be_changed_in_place_and_its_inputs_stay() -> None:
    v, x = numbers(600), numbers(1, 600, seed=1)
    kept = v.clone(), x.clone()
    y = sm.Circulant(v).linear(x)
    y.zero_()
    assert torch.equal(v, kept[0]) and torch.equal(x, kept[1])
    doubled = fourier.convolve(torch._neg_view(v), x, ft.cyclic_geometry(600))
    assert torch.allclose(doubled, -sm.Circulant(v).linear(x))
