"""Cayley's map and the exponential: unitary at every scale, exact derivatives, exact inverses."""

from __future__ import annotations

import pytest
import torch

from structmat.functional import orthogonal as fo

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
MAPS = {"cayley": fo.cayley, "expm": fo.expm}


def _skew(n: int, scale: float, dtype: torch.dtype, batch: tuple[int, ...] = (3,), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    lower = torch.randn(*batch, n * (n - 1) // 2, generator=generator, dtype=wide) * scale
    return fo.skew(lower.to(dtype), n)


def _error(r: torch.Tensor) -> float:
    wide = r.to(torch.complex128 if r.is_complex() else torch.float64)
    gap = wide.mH @ wide - torch.eye(r.shape[-1], dtype=wide.dtype)
    return float(torch.linalg.matrix_norm(gap).max()) / r.shape[-1] ** 0.5


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 32, 64])
def test_orthogonal_at_every_scale(name: str, dtype: torch.dtype, scale: float, n: int) -> None:
    """The limit of one operation, 8 eps (1 + sqrt(1))."""
    r = MAPS[name](_skew(n, scale, dtype))
    assert _error(r) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    k = _skew(8, 0.3, torch.float32).to(dtype)
    for name, function in MAPS.items():
        assert torch.equal(function(k), function(k.float()).to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_cayley_is_the_textbook_quotient_and_its_own_inverse(n: int, dtype: torch.dtype) -> None:
    k = _skew(n, 1.0, dtype)
    eye = torch.eye(n, dtype=dtype)
    r = fo.cayley(k)
    torch.testing.assert_close(r, torch.linalg.solve(eye + k, eye - k), rtol=0, atol=1e-13)
    distance = float((torch.linalg.eigvals(r) + 1).abs().min())
    torch.testing.assert_close(fo.cayley_inverse(r), k, rtol=0, atol=100 * 2.2e-16 * n / distance**2)
    torch.testing.assert_close(fo.cayley_inverse(fo.cayley(k, flip=True), flip=True), fo.cayley_inverse(r))


@pytest.mark.parametrize("name", MAPS)
def test_determinants(name: str) -> None:
    k = _skew(5, 1.0, torch.float64)
    torch.testing.assert_close(torch.linalg.det(MAPS[name](k)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(MAPS[name](k, flip=True)), -torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives_are_the_exact_maps(name: str, dtype: torch.dtype) -> None:
    lower = torch.randn(2, 6, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def function(lower: torch.Tensor) -> torch.Tensor:
        return MAPS[name](fo.skew(lower, 4))

    assert torch.autograd.gradcheck(function, (lower,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (lower,))
    plain = torch.autograd.functional.jacobian(
        lambda lower: (
            (
                torch.linalg.solve(
                    torch.eye(4, dtype=dtype) + fo.skew(lower, 4), torch.eye(4, dtype=dtype) - fo.skew(lower, 4)
                )
                if name == "cayley"
                else torch.linalg.matrix_exp(fo.skew(lower, 4))
            )
            .abs()
            .square()
            .cumsum(-1)
        ),
        lower.detach(),
    )
    mine = torch.autograd.functional.jacobian(lambda lower: function(lower).abs().square().cumsum(-1), lower.detach())
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_keep_their_digits_for_large_arguments(name: str) -> None:
    """At entries of 100 the Cayley image is within 1e-2 of -I: the gradient must not be formed from I + R."""
    k = _skew(6, 100.0 if name == "cayley" else 1.0, torch.float64, ())
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        lower = fo.skew_entries(k).to(dtype).requires_grad_()
        (MAPS[name](fo.skew(lower, 6)) * weight.to(dtype)).sum().backward()
        assert lower.grad is not None
        return lower.grad.double()

    exact = gradient(torch.float64)
    assert float((gradient(torch.float32) - exact).norm() / exact.norm()) < 1e-4


def test_transforms_and_compilation() -> None:
    lower = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(lower: torch.Tensor) -> torch.Tensor:
        return fo.cayley(fo.skew(lower, 4))[..., 0].sum()

    each = torch.stack([torch.func.grad(loss)(row) for row in lower])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(lower), each)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(lower), loss(lower))


def test_skew_and_its_entries_are_inverse() -> None:
    lower = torch.randn(3, 10, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    k = fo.skew(lower, 5)
    assert torch.equal(k, -k.mH)
    assert torch.equal(fo.skew_entries(k), lower)
    rows, columns = torch.tril_indices(5, 5, -1)
    assert torch.equal(k[:, rows, columns], lower)
