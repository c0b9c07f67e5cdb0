"""Estimates of traces and log-determinants: error bars that hold as often as they say, unbiased derivatives, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch

import structmat as sm
from structmat.functional import stochastic as fs
from structmat.functional.stochastic_lanczos import log_forms

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128
DEFINITE = sm.Claim.POSITIVE_DEFINITE
N = 60


def draw(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned(spectrum: torch.Tensor, dtype: torch.dtype = F64) -> torch.Tensor:
    """A Hermitian matrix with these eigenvalues and eigenvectors without a pattern."""
    n = spectrum.shape[-1]
    q = torch.linalg.qr(draw(n, n, dtype=C128 if dtype.is_complex else F64))[0]
    return ((q * spectrum.to(q.dtype)) @ q.mH).to(dtype)


def rows(a: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x @ a.mT


K = torch.arange(N, dtype=F64)
SPECTRA = {
    "flat": 1 + torch.rand(N, generator=seeded(1), dtype=F64),
    "geometric": 0.9**K,
    "algebraic": 1 / (1 + K) ** 2,
    "indefinite": draw(N),
    "wide": 10 ** (-4 * K / N),
}
SEEDS = 150


def held(inside: int, seeds: int, confidence: float) -> bool:
    """Whether intervals of this confidence, or 4 % less, hold so seldom with a probability of at least 1e-4: Student's
    t is exact for normal samples, and quadratic forms of few eigenvalues are skewed."""
    return bool(scipy.stats.binom.cdf(inside, seeds, confidence - 0.04) >= 1e-4)


@pytest.mark.parametrize("method", fs.METHODS)
@pytest.mark.parametrize(("dtype", "confidence"), [(F64, 0.95), (C128, 0.7), (F32, 0.8)])
def test_error_bars_of_traces_hold_as_often_as_they_say(method: str, dtype: torch.dtype, confidence: float) -> None:
    for name, spectrum in SPECTRA.items():
        a = sm.Dense(turned(spectrum, dtype) + (1j * turned(spectrum.flip(0), dtype) if dtype.is_complex else 0))
        truth, inside = a.trace(), 0
        found = [
            sm.linalg.trace(a, method, probes=36, confidence=confidence, generator=seeded(s)) for s in range(SEEDS)
        ]
        inside = sum(bool((e.value - truth).abs() <= e.error) for e in found)
        assert held(inside, SEEDS, confidence), f"{name}: {inside} of {SEEDS} at {confidence}"
        values = torch.stack([e.value for e in found])
        spread = float(values.std() / SEEDS**0.5)
        assert float((values.mean() - truth).abs()) <= 4.5 * spread + 1e-5 * N, f"{name} is biased"
        # and the bars are no longer than they must be: of the length of the errors, times the quantile
        typical = float((values - truth).abs().square().mean().sqrt())
        mean = sum(float(e.error) for e in found) / SEEDS
        assert mean <= 2 * fs.quantile(confidence, 11, plane=dtype.is_complex) * typical + 1e-4


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize(("dtype", "confidence"), [(F64, 0.95), (C128, 0.7), (F32, 0.8)])
def test_error_bars_of_determinants_hold(definite: bool, dtype: torch.dtype, confidence: float) -> None:
    """Definite: A from its eigenvalues; else singular values, and eigenvectors on one side alone."""
    n, seeds = 24, 40
    other = torch.linalg.qr(draw(n, n, seed=3))[0].to(dtype)
    for name in ("flat", "geometric", "wide"):
        spectrum = SPECTRA[name][:: N // n][:n]
        dense = turned(spectrum, dtype) if definite else turned(spectrum, dtype) @ other
        a = sm.Dense(dense).assume(DEFINITE) if definite else sm.Dense(dense)
        truth = float(torch.log(spectrum).sum())
        inside, lengths = 0, []
        for s in range(seeds):
            e = sm.linalg.logabsdet(a, "lanczos", probes=12, confidence=confidence, generator=seeded(s))
            inside += abs(float(e) - truth) <= float(e.error)
            lengths.append(float(e.error))
            assert 0 < e.steps <= n and e.probes == 12 and e.confidence == confidence
        assert held(inside, seeds, confidence), f"{name}: {inside} of {seeds} at {confidence}"
        scatter = float((2 * torch.log(spectrum).var() * n / 12).sqrt())
        assert sum(lengths) / seeds <= 4 * scatter + 0.02 * n, f"{name}: bars of {lengths[0]:.2g}"


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 20])
def test_few_steps_are_paid_for_in_the_error(steps: int) -> None:
    """A spectrum that takes some forty steps: the rule is off, and says so."""
    dense = turned(10 ** (-4 * K / N))
    g = torch.eye(N, dtype=F64)
    truth = torch.log(torch.linalg.eigvalsh(dense)).sum()
    found = log_forms(rows(dense), None, g, 10**9, steps)
    assert found.steps == steps
    assert steps < 4 or float((found.values.sum() - truth).abs()) <= float(found.errors.sum())
    assert steps > 3 or bool(torch.isinf(found.errors).all())


def test_all_steps_are_exact() -> None:
    """n steps integrate exactly: the forms of the logarithm itself, for both kinds of steps, complex too."""
    spectrum = 10 ** (-3 * K[:12] / 12)
    for dtype in (F64, C128):
        dense, g = turned(spectrum, dtype), draw(2, 5, 12, dtype=dtype)
        values, vectors = torch.linalg.eigh(dense)
        log = (vectors * torch.log(values)) @ vectors.mH
        wanted = torch.linalg.vecdot(g, g @ log.mT).real
        other = torch.linalg.qr(draw(12, 12, dtype=dtype, seed=5))[0]
        for found in (
            log_forms(rows(dense), None, g, 10**9, 12),
            log_forms(rows(other @ dense), rows((other @ dense).mH), g, 10**9, 12),
        ):
            assert found.steps == 12 and found.values.shape == (2, 5)
            assert bool(((found.values - wanted).abs() <= found.errors).all())
            assert float(found.errors.max()) <= 1e-9


def test_invariant_spaces_end_the_steps() -> None:
    """Two eigenvalues take two steps; rows that are done wait for the others; a multiple of I is exact at once."""
    a = (sm.Identity(N, F64) * 1e-200).assume(DEFINITE)
    e = sm.linalg.logabsdet(sm.lazy.Product((a,)).assume(DEFINITE), "lanczos")
    assert e.steps == 1 and abs(float(e) - N * math.log(1e-200)) <= float(e.error) <= 1e-6
    two = turned(torch.where(K < 7, 3.0, 0.25))
    found = log_forms(rows(two), None, draw(9, N), 30, 50)
    assert found.steps == 2
    mixed = torch.block_diag(torch.eye(20, dtype=F64) * 7, turned(10 ** (-2 * K[:40] / 40)))
    g = torch.zeros(2, N, dtype=F64)
    g[0, 3], g[1, 30:40] = 2.0, 1.0
    found = log_forms(rows(mixed), None, g, 10**9, N)
    assert float(found.values[0]) == pytest.approx(4 * math.log(7))
    log = (lambda w, v: (v * w.log()) @ v.mT)(*torch.linalg.eigh(mixed))
    assert float(found.values[1]) == pytest.approx(float(g[1] @ log @ g[1]), abs=1e-8)


# -- what they are given ------------------------------------------------------------------------------------------


def positive(n: int = 400, dtype: torch.dtype = F64) -> sm.Matrix:
    decay = 0.5 ** torch.arange(n, dtype=F64)
    return (sm.SymmetricToeplitz(decay.to(dtype)) + sm.Diagonal((1 + K.repeat(n // N + 1)[:n] / N).to(dtype))).assume(
        DEFINITE
    )


COMPOSED: dict[str, Callable[[], sm.Matrix]] = {
    "sum": positive,
    "general": lambda: sm.Toeplitz(draw(2 * N - 1) / N, N) + sm.Diagonal(2 + draw(N).abs()),
    "symmetric": lambda: sm.SymmetricToeplitz(draw(N) / N) + sm.Diagonal(2 * draw(N).sign()),
    "inverse": lambda: positive(N).inv(),
    "scaled inverse of a product": lambda: -2.0 * (positive(N) @ sm.Circulant(draw(N)) @ positive(N).inv()).inv(),
    "scaled by a tensor": lambda: sm.lazy.Scaled(positive(N), torch.tensor(-0.3, dtype=F64)),
    "orthogonal times": lambda: sm.HouseholderProduct(draw(3, N)) @ positive(N),
    "batch": lambda: sm.Toeplitz(draw(2, 2 * N - 1) / N, N) + sm.Diagonal(2 + draw(3, 1, N).abs()),
    "function": lambda: sm.Implicit((N, N), rows(positive(N).to_dense()), rows(positive(N).to_dense()), F64),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_matrices(name: str) -> None:
    """At three times the error of 95 % the truth is all but certain."""
    a = COMPOSED[name]()
    dense = a.to_dense()
    e = sm.linalg.logabsdet(a, "lanczos", generator=seeded(0))
    assert e.value.shape == a.batch_shape and e.error.shape == a.batch_shape
    assert bool(((e.value - torch.linalg.slogdet(dense)[1]).abs() <= 3 * e.error).all())
    low, high = e.interval
    assert bool((high - low == 2 * e.error).all() | ((high - low - 2 * e.error).abs() <= 1e-9).all())
    t = sm.linalg.trace(a, "hutch++", generator=seeded(0))
    trace = torch.diagonal(dense, dim1=-2, dim2=-1).sum(-1)
    assert bool(((t.value - trace).abs() <= 3 * t.error).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32, C64, C128])
def test_every_dtype(dtype: torch.dtype) -> None:
    a = positive(N, torch.promote_types(dtype, F32) if not dtype.is_complex else dtype).to(dtype).assume(DEFINITE)
    wide = a.to(F64).to_dense()
    sign, e = sm.linalg.slogdet(a, "lanczos", generator=seeded(0))
    assert sign.dtype == dtype and complex(sign) == 1
    assert e.value.dtype == e.error.dtype.to_real() or e.value.dtype == torch.empty(0, dtype=dtype).real.dtype
    assert abs(float(e) - float(torch.linalg.slogdet(wide)[1])) <= 3 * float(e.error)
    t = sm.linalg.trace(a, "hutch++", generator=seeded(0))
    assert t.value.dtype == dtype
    assert abs(complex(t.value) - complex(torch.trace(wide))) <= 3 * float(t.error)


def test_enough_products_are_exact_and_a_million_rows_take_products_alone() -> None:
    a = sm.Toeplitz(draw(9), 5)
    e = sm.linalg.trace(a, "hutch++", probes=15)
    assert float((e.value - a.trace()).abs()) <= float(e.error) <= 1e-12
    n = 10**6
    big = sm.lazy.Sum((sm.Diagonal(torch.linspace(1, 2, n)), sm.Identity(n)))
    t = sm.linalg.trace(big, "hutchinson", probes=2, generator=seeded(0))
    assert float(t) == pytest.approx(2.5e6, rel=1e-5)
    truth = n * (3 * math.log(3) - 2 * math.log(2) - 1)  # the integral of log(1 + x) from 1 to 2
    _, e = sm.linalg.slogdet(big.assume(DEFINITE), "lanczos", probes=2, generator=seeded(0))
    assert abs(float(e) - truth) <= 3 * float(e.error) <= 0.1 * truth


def test_one_generator_one_result() -> None:
    a = positive()
    first, second, third = (sm.linalg.logabsdet(a, "lanczos", generator=seeded(s)) for s in (5, 5, 6))
    assert float(first) == float(second) != float(third)
    assert str(first).startswith(f"{float(first):.6g} +- ") and "95%, 30 probes, " in str(first)
    assert str(sm.linalg.trace(a, "hutchinson", probes=4)).endswith("(95%, 4 probes)")
