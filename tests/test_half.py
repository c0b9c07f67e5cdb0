"""Half and bfloat16: computed in float32 and rounded once, also under torch.autocast; small solves never run in
bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import Claim, backend, nn
from structmat.lazy import Prepared
from structmat.testing.examples import EXAMPLES, HALF, Example
from structmat.testing.reference import dense_of, magnitude_of

F32, F64 = torch.float32, torch.float64


def _numbers(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# Types whose products are one operation of ours; expressions round between their parts, dense follows torch.matmul.
ONCE = [
    e
    for e in EXAMPLES
    if e.type in (sm.Diagonal, sm.Circulant, sm.Toeplitz, sm.SymmetricToeplitz, sm.HouseholderProduct, sm.LowRank)
]
ONCE = [e for e in ONCE if torch.bfloat16 in e.dtypes]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("example", ONCE, ids=lambda e: e.name)
def test_products_are_rounded_once(example: Example, dtype: torch.dtype) -> None:
    """Within half an ulp of the exact product of the stored entries, plus what float32 loses."""
    a = example.build(dtype)
    x = _numbers(3, int(a.shape[-1]), dtype=dtype)
    y = a.linear(x)
    exact = x.double() @ dense_of(a).mT
    once = exact.abs() * torch.finfo(dtype).eps / 2
    inside = 64 * torch.finfo(F32).eps * magnitude_of(a) * float(x.double().norm())
    least = torch.finfo(dtype).tiny  # half numbers below it are spaced evenly
    assert y.dtype == dtype
    assert bool(((y.double() - exact).abs() <= once * (1 + 1e-3) + inside + least).all())


SOLVABLE = [e for e in EXAMPLES if e.solvable and torch.bfloat16 in e.dtypes]
VERBS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "solve": lambda a, b: a.solve(b),
    "rows": lambda a, b: a.solve_rows(b.mT).mT,
    "factor": lambda a, b: a.factor().solve(b),
}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("example", SOLVABLE, ids=lambda e: e.name)
def test_solves_run_in_single(example: Example, dtype: torch.dtype) -> None:
    """The answer is the float32 solution of the stored system, rounded to half; in half it would be off by kappa
    eps_half."""
    a = example.build(dtype)
    n = int(a.shape[-1])
    b = _numbers(n, 2, dtype=dtype)
    dense = dense_of(a)
    exact = torch.linalg.solve(dense, b.double())
    # an inverse of an inverse multiplies, a product rounds between its factors: their condition numbers come in once
    lazy = example.type in (sm.Product, sm.Scaled, sm.Inverse)
    roundings = 1 + (2 * float(torch.linalg.cond(dense)) if lazy else 0)
    tol = roundings * torch.finfo(dtype).eps * float(exact.norm()) + 1e3 * torch.finfo(F32).eps * float(
        torch.linalg.cond(dense)
    ) * float(exact.norm())
    for verb in VERBS.values():
        x = verb(a, b)
        assert x.dtype == dtype and float((x.double() - exact).norm()) <= tol


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("example", SOLVABLE[::2], ids=lambda e: e.name)
def test_measures_in_half(example: Example, dtype: torch.dtype) -> None:
    a = example.build(dtype)
    dense = dense_of(a)
    wide = 4 * torch.finfo(dtype).eps * (1 + magnitude_of(a))
    for got, wanted in (
        (a.norm(), torch.linalg.matrix_norm(dense)),
        (a.slogdet()[1], torch.linalg.slogdet(dense)[1]),
        (a.svdvals(), torch.linalg.svdvals(dense)),
        (a.trace(), dense.diagonal().sum()),
    ):
        size = wide * (1 + float(wanted.abs().max()))
        assert float((got.double() - wanted).abs().max()) <= 4 * max(1, len(dense)) * size


@pytest.mark.parametrize("example", ONCE, ids=lambda e: e.name)
def test_gradients_in_bfloat16(example: Example) -> None:
    """The gradient of the bfloat16 product is that of the float32 one, rounded."""
    a = example.build(torch.bfloat16)
    tensors, rebuild = nn.split(a)
    if not any(t.numel() for t in tensors) or not example.smooth:
        return
    x = _numbers(4, int(a.shape[-1]), dtype=torch.bfloat16)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        return torch.autograd.grad(rebuild(tuple(leaves)).linear(x.to(dtype)).float().square().sum(), leaves)

    for low, high in zip(gradients(torch.bfloat16), gradients(F64), strict=True):
        assert low.dtype == torch.bfloat16
        assert float((low.double() - high).norm()) <= 8 * torch.finfo(torch.bfloat16).eps * float(
            high.norm() + magnitude_of(a)
        )


def _autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


AUTOCAST = [e for e in EXAMPLES if F32 in e.dtypes and e.type is not sm.Inverse]


@pytest.mark.parametrize("example", AUTOCAST, ids=lambda e: e.name)
def test_products_under_autocast(example: Example) -> None:
    """Own arithmetic stays in float32 there; dense and low-rank factors follow torch.matmul into bfloat16."""
    a = example.build(F32)
    x = _numbers(3, int(a.shape[-1]))
    plain = a.linear(x)
    with _autocast():
        found = a.linear(x)
    own = example in ONCE or example.type is Prepared
    factor = 64 * torch.finfo(F32).eps if own else 8 * torch.finfo(torch.bfloat16).eps
    assert float((found.double() - plain.double()).abs().max() if plain.numel() else 0) <= factor * magnitude_of(
        a
    ) * float(x.norm())
    if own:
        assert found.dtype == F32


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.solvable and F32 in e.dtypes], ids=lambda e: e.name)
def test_small_solves_under_autocast_stay_in_single(example: Example) -> None:
    """Solve, inverse, determinant, factorisation: what bfloat16 would ruin."""
    a = example.build(F32)
    b = _numbers(int(a.shape[-1]), 2)
    plain = (a.solve(b), a.slogdet()[1], a.factor().solve(b))
    with _autocast():
        found = (a.solve(b), a.slogdet()[1], a.factor().solve(b))
    for f, p in zip(found, plain, strict=True):
        size = 1 + float(p.abs().max())
        assert f.dtype == p.dtype and float((f - p).abs().max()) <= 1e4 * torch.finfo(F32).eps * size


def test_a_bfloat16_operand_meets_a_float32_matrix_under_autocast_only() -> None:
    a, x = sm.Circulant(_numbers(6)), _numbers(6, dtype=torch.bfloat16)
    with pytest.raises(sm.DtypeError):
        a @ x
    exact = a.to_dense() @ x.float()
    with _autocast():
        found = a @ x
    assert float((found - exact).abs().max()) <= 64 * torch.finfo(F32).eps * float(a.norm() * x.float().norm())


def test_orthogonality_survives_bfloat16_storage_and_autocast() -> None:
    """T from the rounded vectors in float32: 1e-7, not the 1e-3 of unit norms assumed."""
    vectors = _numbers(32, 64, dtype=torch.bfloat16)
    q = sm.HouseholderProduct(vectors)
    eye = torch.eye(64)
    with _autocast():
        dense = q.linear(eye)
    error = float(torch.linalg.matrix_norm(dense.double().mT @ dense.double() - torch.eye(64))) / 8
    assert error <= 8 * torch.finfo(F32).eps * (1 + 32**0.5)


def test_toeplitz_solve_of_single_precision_is_factored_in_double() -> None:
    """KMS 0.999 has condition number 4e6: float32 arithmetic would return noise; the residual here is at rounding
    level."""
    a = sm.SymmetricToeplitz((0.999 ** torch.arange(300, dtype=F64)).float())
    b = _numbers(300)
    exact = torch.linalg.solve(dense_of(a), b.double())
    x = a.solve(b)
    assert x.dtype == F32 and float((x.double() - exact).norm() / exact.norm()) <= 1e-3
    x, info = sm.linalg.solve(a.assume(Claim.POSITIVE_DEFINITE), b, return_info=True)  # stops at what was promised
    assert x.dtype == F32 and float(info.backward_error.max()) <= 100 * torch.finfo(F32).eps
    bf = a.to(torch.bfloat16)
    assert (
        sm.Toeplitz.random(4, dtype=torch.bfloat16).solve(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    )
    assert bf.dtype == torch.bfloat16 and backend.compute_dtype(torch.bfloat16) == F32
