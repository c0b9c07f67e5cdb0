"""The convolution that all spectral products are: lengths, geometries, roles, dtypes, both autograd forms, both FFT
libraries."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.testing import assert_gradients
from tests.cases import CI

F64, C128 = torch.float64, torch.complex128


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _by_definition(a: torch.Tensor, x: torch.Tensor, g: fourier.Geometry) -> torch.Tensor:
    """``y_i = sum_j a[(i - j + shift) mod N] x_j`` for vectors, where a is zero outside its length."""
    y = torch.zeros(g.y, dtype=torch.promote_types(a.dtype, x.dtype))
    for i in range(g.y):
        for j in range(g.x):
            k = (i - j + g.shift) % g.length
            if k < g.a:
                y[i] += a[k] * x[j]
    return y


@given(st.integers(1, 10**7))
def test_good_lengths(n: int) -> None:
    """Even, at least n, no prime factor above 7, and no smaller one of that kind within 3 %."""
    length = fourier.good_length(n)
    assert length >= n and (length % 2 == 0 or n == 1)
    rest = length
    for p in (2, 3, 5, 7):
        while rest % p == 0:
            rest //= p
    assert rest == 1 and length <= 1.2 * n + 8


def test_good_lengths_are_the_least() -> None:
    good = sorted(
        {2**i * 3**j * 5**k * 7**m for i in range(1, 11) for j in range(7) for k in range(5) for m in range(4)}
    )
    for n in range(2, 1000):
        assert fourier.good_length(n) == next(g for g in good if g >= n)


def test_smooth_numbers() -> None:
    assert [n for n in range(1, 40) if not fourier.is_smooth(n)] == [17, 19, 23, 29, 31, 34, 37, 38]


GEOMETRIES = [
    ft.toeplitz_geometry(4, 3),
    ft.toeplitz_geometry(1, 5),
    ft.toeplitz_geometry(5, 1),
    ft.cyclic_geometry(6),
    ft.cyclic_geometry(1),
]


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtypes", [(F64, F64), (C128, C128), (F64, C128), (C128, F64)])
def test_three_roles_against_their_definition(g: fourier.Geometry, dtypes: Any) -> None:
    a, x = _numbers(g.a, dtype=dtypes[0]), _numbers(g.x, dtype=dtypes[1], seed=1)
    exact = _by_definition(a, x, g)
    tol = 64 * torch.finfo(F64).eps * g.length * float(1 + a.norm() * x.norm())
    assert float((fourier.convolve(a, x, g) - exact).abs().max()) <= tol
    y = _numbers(g.y, dtype=exact.dtype, seed=2)
    back = fourier.correlate(x.to(exact.dtype), y, g, ())
    by_grad = torch.stack(
        [torch.vdot(_by_definition(e, x, g).to(C128), y.to(C128)) for e in torch.eye(g.a, dtype=dtypes[0])]
    )
    assert float((back.to(C128) - by_grad).abs().max()) <= 64 * torch.finfo(F64).eps * g.length * float(
        1 + x.norm() * y.norm()
    )


BROADCASTS = [((), (3,)), ((2, 1), (3,)), ((2, 1), (2, 3)), ((2, 1), ()), ((4, 1, 1), (2, 3)), ((), ()), ((2,), (2,))]


@pytest.mark.parametrize("lead", BROADCASTS, ids=str)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_broadcasting_values_and_derivatives(lead: Any, dtype: torch.dtype) -> None:
    g = ft.toeplitz_geometry(3, 2)
    a, x = _numbers(*lead[0], g.a, dtype=dtype), _numbers(*lead[1], g.x, dtype=dtype, seed=1)
    y = fourier.convolve(a, x, g)
    shape = torch.broadcast_shapes(*lead)
    assert y.shape == (*shape, g.y)
    for index in numpy.ndindex(tuple(shape)):
        one = _by_definition(a.expand(*shape, g.a)[index], x.expand(*shape, g.x)[index], g)
        assert float((y[index] - one).abs().max()) <= 1e-13 * float(1 + a.norm() * x.norm())
    assert_gradients(lambda a, x: fourier.convolve(a, x, g), (a, x))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    g = ft.cyclic_geometry(5)
    assert fourier.convolve(_numbers(5), _numbers(*shape), g).shape == shape
    hat = fourier.spectrum(_numbers(5), g)
    assert fourier.apply_spectrum(hat, _numbers(*shape), g, True).shape == shape


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("n", [500, 700])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64])
def test_both_libraries_agree(rows: int, n: int, dtype: torch.dtype) -> None:
    """Above length 512 few rows go through scipy: values, gradients and inputs that are views, conjugated or require
    grad."""
    g = ft.toeplitz_geometry(n, n)
    a, x = _numbers(g.a, dtype=dtype), _numbers(rows, g.x, dtype=dtype, seed=1)
    wide = torch.complex128 if dtype.is_complex else F64
    exact = torch.fft.ifft(
        torch.fft.fft(torch.cat((a[g.shift :], torch.zeros(g.length - g.a), a[: g.shift])).to(C128))
        * torch.fft.fft(x.to(C128), g.length)
    )
    exact = (exact if dtype.is_complex else exact.real)[..., : g.y].to(wide)
    tol = 40 * torch.finfo(dtype).eps * float(a.abs().max()) * n**0.5 * float(x.norm())
    variants = (x, torch.cat((x, x), -1)[..., :n], x.clone().requires_grad_(), x.conj().conj())
    for other in variants:
        assert float((fourier.convolve(a, other, g).detach().to(wide) - exact).abs().max()) <= tol
    if dtype.is_complex:
        lazy = fourier.convolve(a, x.conj().resolve_conj().conj(), g)
        assert float((lazy.to(wide) - exact).abs().max()) <= tol
    leaf, double = a.clone().requires_grad_(), a.to(wide).requires_grad_()
    fourier.convolve(leaf, x, g).abs().square().sum().backward()
    fourier.convolve(double, x.to(wide), g).abs().square().sum().backward()
    assert float((leaf.grad.to(wide) - double.grad).abs().max()) <= 40 * torch.finfo(dtype).eps * n * float(
        double.grad.abs().max()
    )


def test_second_derivatives_do_not_use_kept_spectra_wrongly() -> None:
    """Backward with create_graph, twice through one graph, and with only one input requiring grad."""
    g = ft.cyclic_geometry(6)
    a, x = _numbers(6).requires_grad_(), _numbers(2, 6, seed=1)
    y = fourier.convolve(a, x, g).square().sum()
    (once,) = torch.autograd.grad(y, a, retain_graph=True)
    (again,) = torch.autograd.grad(y, a, create_graph=True)
    assert float((once - again).abs().max()) <= 1e-13 * float(once.abs().max())
    (second,) = torch.autograd.grad(again.sum(), a)
    hessian = torch.autograd.functional.hessian(lambda v: fourier.convolve(v, x, g).square().sum(), a.detach())
    assert float((second - hessian.sum(0)).abs().max()) <= 1e-12 * float(hessian.abs().max())


def test_an_unused_output_leaves_no_gradient_and_no_fault() -> None:
    g = ft.cyclic_geometry(4)
    a = _numbers(4).requires_grad_()
    fourier.convolve(a, _numbers(4), g)  # nothing depends on it
    (_grad,) = torch.autograd.grad((a * 2).sum(), a)
    assert torch.equal(_grad, torch.full((4,), 2.0, dtype=F64))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 17] if not CI else range(1, 40))
def test_spectra_bound_the_norm(n: int) -> None:
    t = _numbers(2 * n - 1)
    hat = fourier.spectrum(t, ft.toeplitz_geometry(n, n))
    assert float(torch.linalg.matrix_norm(ft.toeplitz_entries(t, n), 2)) <= float(hat.abs().max()) * (1 + 1e-13)
