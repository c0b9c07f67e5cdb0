"""The stated failure probabilities against experiment, planted faults, and why the vectors are Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import checks
from structmat.checks import bounds
from structmat.checks.operands import Operator

F64 = torch.float64
TRIALS = 40_000


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _often(events: torch.Tensor) -> float:
    return float(events.double().mean())


def _at_most(share: float, probability: float) -> bool:
    """Five standard deviations of the experiment above the bound: a true bound fails here once in a million runs."""
    return share <= probability + 5 * math.sqrt(probability / TRIALS) + 5 / TRIALS


def _gaussian(*shape: int, complex_: bool) -> torch.Tensor:
    return torch.randn(*shape, generator=_seeded(), dtype=torch.complex128 if complex_ else F64)


SPECTRA = {"rank one": [1.0], "equal": [1.0] * 6, "decaying": [1.0, 0.5, 0.1, 0.01]}


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("probes", [1, 2, 5])
def test_norms_are_missed_no_more_often_than_stated(spectrum: str, probes: int, complex_: bool) -> None:
    """``||E z||^2 = sum s_i^2 |g_i|^2``: E enters through its singular values alone. Rank one is the worst case, and
    there the spectral bound is sharp."""
    s = torch.tensor(SPECTRA[spectrum], dtype=F64)
    squares = (_gaussian(TRIALS, probes, len(s), complex_=complex_).abs() * s).square().sum(-1)
    total, largest = float((s**2).sum()), float(s.max())
    for share in (0.5, 0.1, 0.01):
        missed = _often(squares.mean(-1) <= share * total)
        assert _at_most(missed, bounds.frobenius(probes, share)), (share, missed)
    for share in (2.0, 4.0, bounds.ABOVE):
        missed = _often(squares.mean(-1) >= share * total)
        assert _at_most(missed, bounds.frobenius(probes, share)), (share, missed)
    for alpha in (0.5, 0.1):
        missed, stated = _often(squares.amax(-1).sqrt() <= alpha * largest), (alpha * math.sqrt(2 / math.pi)) ** probes
        assert _at_most(missed, stated), (alpha, missed)
        if spectrum == "rank one" and not complex_ and alpha == 0.1 and probes <= 2:
            assert missed >= 0.8 * stated, "the bound is sharp there"


def test_the_numbers_of_the_specification() -> None:
    assert bounds.frobenius(10) == pytest.approx(1.4e-8, rel=0.02)
    assert bounds.frobenius(10) == pytest.approx((0.01 * math.exp(0.99)) ** 5)
    assert pytest.approx(10 * math.sqrt(2 / math.pi)) == bounds.SPECTRAL
    assert bounds.ratio_failure(10) < 1.5e-8


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("rank", "extra"), [(0, 1), (0, 3), (1, 2), (2, 3), (5, 4)])
def test_sketches_miss_a_singular_value_no_more_often_than_stated(rank: int, extra: int, complex_: bool) -> None:
    """Equal singular values, and a last one that is alone below the others."""
    trials = TRIALS // 4
    g = _gaussian(trials, rank + 1, rank + extra, complex_=complex_)
    for last in (1.0, 1e-3):
        scale = torch.ones(rank + 1, dtype=F64)
        scale[-1] = last
        least = torch.linalg.svdvals(scale[:, None] * g)[..., -1]
        for factor in (2.0, 4.0, 10.0):
            missed = _often(factor * least < last)
            stated = bounds.rank_failure(rank, extra, factor)
            assert missed <= stated + 5 * math.sqrt(stated / trials) + 5 / trials, (last, factor, missed, stated)


def test_lanczos_misses_the_least_eigenvalue_no_more_often_than_stated() -> None:
    """One eigenvalue far below many: few steps see it late."""
    n, steps, trials = 60, 6, 300
    values = torch.cat((torch.linspace(0.6, 1, n - 1, dtype=F64), torch.zeros(1, dtype=F64)))
    v = torch.randn(trials, n, generator=_seeded(), dtype=F64)
    basis = torch.stack([v * values**k for k in range(steps)], -1)  # the Krylov space
    q = torch.linalg.qr(basis)[0]
    least = torch.linalg.eigvalsh(q.mT @ (values[:, None] * q))[..., 0]
    for stated in (0.9, 0.3, 0.05):
        resolution = bounds.eigenvalue_resolution(n, steps, stated)
        assert _often(least > resolution) <= stated + 5 * math.sqrt(stated / trials)


def test_why_gaussian_random_signs_can_be_blind() -> None:
    """E with one row (1, -1): four vectors of signs all have ``E z = 0`` once in 2^4; four Gaussian ones never do, and
    the certificate of one is right as often as it says."""
    signs = torch.randint(0, 2, (TRIALS, 4, 2), generator=_seeded()) * 2.0 - 1
    blind = _often((signs[..., 0] - signs[..., 1] == 0).all(-1))
    assert blind == pytest.approx(2**-4, abs=5 * math.sqrt(2**-4 / TRIALS))
    gaussian = _gaussian(TRIALS, 4, 2, complex_=False)
    seen = (gaussian[..., 0] - gaussian[..., 1]).abs()
    assert not bool((seen == 0).any())
    assert _at_most(_often(seen.square().mean(-1) <= 0.01 * 2), bounds.frobenius(4))
    q = torch.eye(2, dtype=F64)
    q[0] += 1e-3 * torch.tensor([1.0, -1.0], dtype=F64)
    assert all(not checks.orthogonality_error(q, probes=4, generator=_seeded(seed)) for seed in range(200))


@given(
    n=st.integers(2, 30),
    k=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    size=st.floats(-12, -2),
    dtype=st.sampled_from([F64, torch.complex128]),
)
def test_planted_faults_of_an_orthogonal_matrix(n: int, k: int, seed: int, size: float, dtype: torch.dtype) -> None:
    """``Q (I + F)`` with a fault of rank one: just above the tolerance it is found from the entries; from products the
    bound holds."""
    g = _seeded(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=dtype))[0]
    u, v = (torch.randn(n, 1, generator=g, dtype=dtype) for _ in range(2))
    u, v = u / u.norm(), v / v.norm()
    fault = q @ (torch.eye(n, dtype=dtype) + 10**size * u @ v.mH)
    exact = float(checks.orthogonality_error(fault))
    tol = exact / 1.01
    assert not checks.is_orthogonal(fault, tol) and checks.is_orthogonal(fault, 1.01 * exact)
    found = checks.orthogonality_error(fault, probes=10 * k, generator=g)
    assert exact <= found.details["bound"] and float(found) <= 10 * exact
    spectral = float(torch.linalg.matrix_norm(fault.mH @ fault - torch.eye(n, dtype=dtype), 2))
    assert spectral <= found.details["spectral bound"] + 1e-14
    assert not checks.is_orthogonal(fault, exact / 10, probes=10 * k, generator=g)


def test_a_fault_passes_as_often_as_stated() -> None:
    """One probe and a fault of ten times the tolerance, of rank one: passes are counted against the probability."""
    n, trials = 6, 400
    fault = torch.eye(n, dtype=F64)
    fault[0, 0] = math.sqrt(1 + 1e-3)
    exact = float(checks.orthogonality_error(fault))
    g = _seeded()
    passed = sum(bool(checks.is_orthogonal(fault, exact / 10, probes=1, generator=g)) for _ in range(trials))
    stated = bounds.frobenius(1)
    assert 0 < passed / trials <= stated + 5 * math.sqrt(stated / trials)
    assert not any(checks.is_orthogonal(fault, exact / 10, generator=g, probes=10) for _ in range(trials))


@given(
    m=st.integers(3, 25),
    n=st.integers(3, 25),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-12, 1e-9, 1e-5, 1e-1]),
)
def test_planted_faults_of_structures(m: int, n: int, seed: int, size: float) -> None:
    """One entry moved: just above the tolerance it is found from the entries, 31.6 times above it from products."""
    g = _seeded(seed)
    t = sm.Toeplitz(torch.randn(m + n - 1, generator=g, dtype=F64), n).to_dense()
    t = t / t.norm()
    i, j = 1 + seed % (m - 2), 1 + seed // 7 % (n - 2)
    t[i, j] += size
    value = float(checks.is_toeplitz(t))
    assert not checks.is_toeplitz(t, tol=value / 1.01) and checks.is_toeplitz(t, tol=value * 1.01)
    assert not checks.is_toeplitz(t, tol=0), "bit by bit"
    assert 0.4 * size <= value <= size, "the mean of a diagonal moves with it"
    if size > 1e-10:
        found = checks.is_toeplitz(t, probes=10, generator=g)
        assert not found and size * 0.9 <= found.details["bound"]
        assert not checks.is_toeplitz(t, tol=size / 32, probes=10, generator=g)


def test_planted_faults_of_ranks() -> None:
    """A singular value below and above the tolerance; from the entries and from sketches."""
    g = _seeded()
    left, right = (torch.linalg.qr(torch.randn(s, 4, generator=g, dtype=F64))[0] for s in (40, 30))
    for last, rank in ((1e-12, 3), (1e-7, 4)):
        a = left @ torch.diag(torch.tensor([1, 0.5, 0.2, last], dtype=F64)) @ right.mT
        for options in ({}, {"probes": 10}):
            found = checks.numerical_rank(a, tol=1e-9, **options)
            assert found == rank and found.ok and checks.is_low_rank(a, rank, tol=1e-9, **options).ok
            assert not checks.is_low_rank(a, rank - 1, tol=1e-9, **options)
            assert checks.numerical_rank(a, tol=1e-9, most=rank - 1, **options).ok is False
    assert checks.numerical_rank(torch.diag(0.1 ** torch.arange(12.0, dtype=F64)), tol=1e-4, probes=5).details[
        "ambiguous"
    ]


def test_a_rank_beyond_the_sketch_is_bounded_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.rank, "_SKETCH", 40 * 90)
    monkeypatch.setattr(checks.rank, "_RANGE", 40 * 90)
    a = torch.randn(90, 90, generator=_seeded(), dtype=F64)
    found = checks.numerical_rank(a, probes=6)
    assert (int(found), found.details["at least"], found.details["at most"]) == (40, 40, 90) and found.ok
    assert "ambiguous" in str(found) and not checks.numerical_rank(a, probes=6, most=50)
    told = checks.check_claims(sm.LowRank(torch.ones(90, 60, dtype=F64), torch.ones(90, 60, dtype=F64)), probes=6)
    assert told.failure_probability == 1 and "not measured" in told.details["rank"].method


def test_the_worst_of_a_batch_is_reported_and_placed() -> None:
    q = torch.eye(4, dtype=F64).repeat(2, 3, 1, 1)
    q[1, 2] *= 1 + 1e-3
    for options in ({}, {"probes": 5}):
        found = checks.orthogonality_error(q, **options)
        assert not found and found.details["worst"] == (1, 2), found
    t = torch.zeros(2, 3, 4, 4, dtype=F64)
    t[0, 1, 0, 0] = 1
    assert checks.is_toeplitz(t, probes=5).details["worst"] == checks.is_toeplitz(t).details["worst"] == (0, 1)
    assert Operator.of(t).size.shape == (2, 3)
