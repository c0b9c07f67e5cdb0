"""The accuracy that is promised: spectral products for every n, orthogonality of reflections, exact index logic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import nn
from structmat.functional import toeplitz as ft
from structmat.testing import assert_orthogonal
from structmat.testing.assertions import orthogonality
from structmat.testing.reference import dense_of
from tests.cases import CI

F64, F32 = torch.float64, torch.float32


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


# -- spectral products --------------------------------------------------------------------------------------------


def _assert_spectral_bound(matrix: Any, x: torch.Tensor, exact: torch.Tensor, length: int, largest: float) -> None:
    """``||dy|| <= 4 eps (1 + log2 N) max|t_hat_N| ||x||`` for each row."""
    y = matrix.linear(x)
    wide = torch.complex128 if y.is_complex() else F64
    error = torch.linalg.vector_norm(y.to(wide) - exact.to(wide), dim=-1)
    size = torch.linalg.vector_norm(x.to(wide), dim=-1)
    eps = torch.finfo(y.dtype).eps
    bound = 4 * eps * (1 + math.log2(max(2, length))) * largest * size
    assert bool((error <= bound).all()), f"{matrix!r}: {float((error / (bound / 4)).max()):.2f} of 4 in the bound"


def _embedded(diagonals: torch.Tensor, m: int, n: int) -> tuple[int, float]:
    """N and the largest spectral modulus of the circulant in which the product is embedded, in float64 by torch."""
    geometry = ft.toeplitz_geometry(m, n)
    wide = diagonals.to(torch.complex128)
    gap = torch.zeros(geometry.length - wide.shape[-1], dtype=wide.dtype)
    wrapped = torch.cat((wide[n - 1 :], gap, wide[: n - 1]))
    return geometry.length, float(torch.fft.fft(wrapped).abs().max())


@pytest.mark.parametrize("n", range(1, 131))
def test_spectral_bound_for_every_n(n: int) -> None:
    """Circulant (cyclic or folded), skew-circulant, Toeplitz and symmetric Toeplitz, one dtype a size, real and
    complex."""
    for dtype in (
        (F32, F64, torch.complex64, torch.complex128) if CI else ((F32, F64, torch.complex64, torch.complex128)[n % 4],)
    ):
        v, x = _numbers(n, dtype=dtype, seed=n), _numbers(2, n, dtype=dtype, seed=n + 1)
        for f in (1, -1):
            matrix = sm.Circulant(v, f)
            exact = x.to(torch.complex128) @ dense_of(matrix).to(torch.complex128).mT
            if f == 1:
                length, largest = n, float(torch.fft.fft(v.to(torch.complex128)).abs().max())
                if ft.is_smooth(n):
                    _assert_spectral_bound(matrix, x, exact, length, largest)
                    continue
            length, largest = _embedded(ft.fold(v, f), n, n)
            _assert_spectral_bound(matrix, x, exact, length, largest)
        t = _numbers(2 * n - 1, dtype=dtype, seed=n + 2)
        for other in (sm.Toeplitz(t, n), sm.SymmetricToeplitz(v)):
            exact = x.to(torch.complex128) @ dense_of(other).to(torch.complex128).mT
            _assert_spectral_bound(other, x, exact, *_embedded(other._diagonals(), n, n))


@pytest.mark.parametrize(("m", "n"), [(1, 7), (7, 1), (5, 3), (3, 11), (97, 101), (2, 128), (130, 17), (64, 1)])
def test_spectral_bound_for_rectangles_and_primes(m: int, n: int) -> None:
    for dtype in (F32, F64):
        matrix = sm.Toeplitz(_numbers(m + n - 1, dtype=dtype, seed=m), n)
        x = _numbers(3, n, dtype=dtype, seed=n)
        exact = x.double() @ dense_of(matrix).mT
        _assert_spectral_bound(matrix, x, exact, *_embedded(matrix.diagonals, m, n))
        _assert_spectral_bound(matrix.prepare(), x, exact, *_embedded(matrix.diagonals, m, n))


@pytest.mark.parametrize("kind", ["circulant", "skew", "toeplitz", "symmetric"])
def test_spectral_bound_at_65536(kind: str) -> None:
    """Without a dense matrix: the exact product at scattered outputs, in float64, for float32 entries."""
    n = 65_536
    v, x = _numbers(n, dtype=F32), _numbers(n, dtype=F32, seed=1)
    t = _numbers(2 * n - 1, dtype=F32, seed=2)
    matrix = {
        "circulant": sm.Circulant(v),
        "skew": sm.Circulant(v, -1),
        "toeplitz": sm.Toeplitz(t, n),
        "symmetric": sm.SymmetricToeplitz(v),
    }[kind]
    diagonals = ft.fold(v, -1 if kind == "skew" else 1) if kind in ("circulant", "skew") else matrix._diagonals()
    length, largest = _embedded(diagonals, n, n)
    if kind == "circulant":
        length, largest = n, float(torch.fft.fft(v.double()).abs().max())
    y = matrix.linear(x).double()
    wide, ahead = x.double(), diagonals.double().flip(0)
    rows = [0, 1, 7, n // 2, n - 2, n - 1, *range(11, n, 4099)]
    exact = torch.stack(
        [ahead[n - 1 - i : 2 * n - 1 - i] @ wide for i in rows]
    )  # row i of a Toeplitz matrix is a window
    bound = 4 * torch.finfo(F32).eps * (1 + math.log2(length)) * largest * float(wide.norm())
    assert (
        float((y[rows] - exact).norm()) <= bound * (len(rows) / n) ** 0.5 * 8
    )  # errors are spread evenly over the outputs
    assert float((y[rows] - exact).norm()) <= bound


# -- reflections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize(
    ("r", "n"),
    [
        (0, 5),
        (1, 1),
        (1, 16),
        (8, 16),
        (15, 16),
        (16, 16),
        (32, 16),
        (64, 64),
        (127, 64),
        (128, 64),
        (129, 128),
        (256, 128),
    ],
)
def test_orthogonality_up_to_twice_the_order(r: int, n: int, dtype: torch.dtype) -> None:
    assert_orthogonal(sm.HouseholderProduct(_numbers(r, n, dtype=dtype)), ops=r)


AWKWARD: dict[str, Callable[[int, int], torch.Tensor]] = {
    "all equal": lambda r, n: _numbers(1, n).expand(r, n),
    "nearly equal": lambda r, n: _numbers(1, n) + 1e-9 * _numbers(r, n, seed=1),
    "pairs": lambda r, n: _numbers(r // 2, n).repeat_interleave(2, 0),
    "zeros among them": lambda r, n: _numbers(r, n) * (torch.arange(r) % 3 > 0)[:, None],
    "tiny": lambda r, n: _numbers(r, n) * 1e-150,
    "huge": lambda r, n: _numbers(r, n) * 1e150,
    "spread": lambda r, n: _numbers(r, n) * 10.0 ** torch.linspace(-12, 12, n, dtype=F64),
    "orthonormal": lambda r, n: torch.linalg.qr(_numbers(n, r))[0].mT,
}


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("dtype", [F64, F32])
def test_orthogonality_for_awkward_vectors(kind: str, dtype: torch.dtype) -> None:
    """Parallel vectors, no vectors, vectors whose squares over- and underflow: T comes from the vectors as stored."""
    vectors = AWKWARD[kind](24, 32)
    if dtype == F32 and kind in ("tiny", "huge"):
        vectors = vectors * (1e120 if kind == "tiny" else 1e-120)  # 1e-30 and 1e30: their squares leave float32
    matrix = sm.HouseholderProduct(vectors.to(dtype))
    assert_orthogonal(matrix, ops=24)
    assert_orthogonal(matrix.prepare(), ops=24)
    gap = float(torch.linalg.matrix_norm(matrix.to_dense().double() - dense_of(matrix)))
    # each of 24 reflections rounds a few times, on a matrix of norm sqrt(32)
    assert gap <= 8 * torch.finfo(dtype).eps * (1 + 24**0.5) * 32**0.5


def test_orthogonality_after_a_thousand_steps_of_adamw() -> None:
    """lr 1e-2, weight decay 0.1, float32: torch's own householder map fails this."""
    n, r = 32, 8
    module = nn.Trainable(sm.HouseholderProduct(_numbers(r, n, dtype=F32)))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    x, y = _numbers(16, n, dtype=F32, seed=1), _numbers(16, n, dtype=F32, seed=2)
    first = None
    for _ in range(1000):
        optimiser.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        first = float(loss) if first is None else first
    assert float(loss) < 0.9 * first, "the steps must have moved it"
    assert_orthogonal(module.matrix, ops=r)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_minimal_reflections_of_an_orthogonal_matrix(n: int) -> None:
    """from_dense finds rank(I - Q) reflectors: of random rotations, -I, a cyclic permutation, a small rotation, I."""
    q = torch.linalg.qr(_numbers(n, n))[0]
    small = torch.linalg.matrix_exp(1e-4 * (_numbers(n, n) - _numbers(n, n).mT))
    for dense in (q, -torch.eye(n, dtype=F64), torch.eye(n, dtype=F64).roll(1, 0), small, torch.eye(n, dtype=F64)):
        found = sm.HouseholderProduct.from_dense(dense)
        count = int(torch.linalg.matrix_rank(torch.eye(n, dtype=F64) - dense, rtol=1e-10))
        assert found.vectors.shape[-2] == count
        assert float(torch.linalg.matrix_norm(found.to_dense() - dense)) <= 200 * torch.finfo(F64).eps * n
    unitary = torch.linalg.qr(_numbers(n, n, dtype=torch.complex128))[0]
    found = sm.HouseholderProduct.from_dense(unitary)
    assert float(torch.linalg.matrix_norm(found.to_dense() - unitary)) <= 200 * torch.finfo(F64).eps * n
    assert orthogonality(found.to_dense()) <= 64 * torch.finfo(F64).eps * n**0.5


# -- index logic, exactly -----------------------------------------------------------------------------------------


def _integers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small integers in float64: sums of their products are exact, so equality can be asked for bit by bit."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).to(F64)


@pytest.mark.parametrize("n", range(1, 9))
def test_gathers_sums_and_folds_are_exact(n: int) -> None:
    for f in (1, -1, 0, 2):
        v = _integers(n, seed=n)
        a = sm.Circulant(v, f)
        assert torch.equal(a.to_dense(), dense_of(a))
        assert torch.equal(a.mT.to_dense(), dense_of(a).mT)
        assert torch.equal(a.trace(), dense_of(a).diagonal().sum())
        assert torch.equal(a[n // 2 :, : n // 2 + 1].to_dense(), dense_of(a)[n // 2 :, : n // 2 + 1])
    for m in range(1, 6):
        t = sm.Toeplitz(_integers(m + n - 1, seed=m), n)
        assert torch.equal(t.to_dense(), dense_of(t)) and torch.equal(t.mT.to_dense(), dense_of(t).mT)
        assert torch.equal(t.diagonal(), dense_of(t).diagonal())
        b = _integers(m, n, seed=m + n)
        wanted = torch.stack([torch.diagonal(b, -k).sum() for k in range(-(n - 1), m)])
        assert torch.equal(ft.diagonal_sums(b), wanted)
        counts = torch.stack([torch.tensor(torch.diagonal(b, -k).numel()) for k in range(-(n - 1), m)])
        assert torch.equal(ft.diagonal_counts(m, n, b.device), counts)
    s = sm.SymmetricToeplitz(_integers(n, seed=3))
    assert torch.equal(s.to_dense(), dense_of(s))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_products_of_integers_round_to_the_exact_ones(n: int) -> None:
    """After rounding to the nearest integer the FFT products are exact: an index slip would be off by whole units."""
    for f in (1, -1, 0, 2):
        a, b = sm.Circulant(_integers(n), f), sm.Circulant(_integers(n, seed=1), f)
        x = _integers(3, n, seed=2)
        assert torch.equal(a.linear(x).round(), x @ dense_of(a).mT)
        assert torch.equal((a @ b).to_dense().round(), dense_of(a) @ dense_of(b))
        assert torch.equal((a + b).to_dense(), dense_of(a) + dense_of(b))
        assert torch.equal((a * b).to_dense().round(), dense_of(a) * dense_of(b))
    for m in (1, 2, 4, 7):
        t = sm.Toeplitz(_integers(m + n - 1), n)
        x = _integers(2, n, seed=3)
        assert torch.equal(t.linear(x).round(), x @ dense_of(t).mT)
        total = t + sm.Toeplitz(_integers(m + n - 1, seed=1), n)
        assert torch.equal(total.to_dense(), dense_of(total))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_nearest_is_the_orthogonal_projection(n: int) -> None:
    """``||A||^2 = ||P||^2 + ||A - P||^2``, and P of a structured matrix is itself."""
    dense = _numbers(n, n)
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (sm.Toeplitz, {}),
        (sm.SymmetricToeplitz, {}),
        (sm.Diagonal, {}),
        (sm.Circulant, {"f": 1}),
        (sm.Circulant, {"f": -1}),
        (sm.Circulant, {"f": 0.5}),
    ]
    for kind, options in kinds:
        p = kind.nearest(dense, **options).to_dense()
        parts = float(p.norm() ** 2 + (dense - p).norm() ** 2)
        assert parts == pytest.approx(float(dense.norm() ** 2), rel=100 * n * torch.finfo(F64).eps)
        assert torch.allclose(
            kind.nearest(p, **options).to_dense(), p, rtol=0, atol=100 * torch.finfo(F64).eps * float(p.norm())
        )
