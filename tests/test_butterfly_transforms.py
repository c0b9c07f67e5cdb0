"""Known butterflies: the DFT of every order, Hadamard's matrix, mixed radix of any size."""

from __future__ import annotations

import math
import os

import numpy
import pytest
import scipy.fft
import scipy.linalg
import torch

import structmat as sm
from structmat.functional import butterfly_peel as fp
from structmat.testing import assert_orthogonal

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
CI = os.environ.get("HYPOTHESIS_PROFILE") == "ci"


def _fourier_error(n: int, probes: int | None = None) -> float:
    """Relative Frobenius error against a transform in extended precision; of some columns for large n."""
    columns = numpy.eye(n)
    if probes is not None:
        columns = numpy.eye(n, probes)
        columns = columns[numpy.random.default_rng(n).permutation(n)]
    exact = scipy.fft.fft(columns.astype(numpy.longdouble), axis=0)
    found = (sm.dft(n) @ torch.from_numpy(columns).to(C128)).numpy()
    return float(numpy.linalg.norm((found - exact).astype(complex)) / numpy.linalg.norm(exact.astype(complex)))


def test_dft_of_every_small_order_and_of_large_ones() -> None:
    """``4 eps sqrt(L)``, L the number of prime factors; primes are one dense factor."""
    for n in range(1, 4097 if CI else 130):
        if n > 600 and n % 50 != 1 and len(fp.prime_factors(n)) == 1:
            continue  # a dense matrix of seconds: some of the large primes will do
        assert _fourier_error(n, 1 if n >= 130 else None) <= 4 * EPS * math.sqrt(max(1, len(fp.prime_factors(n)))), n
    for n in (243, 509, 720, 1000, 1021, 1024, 2310, 3125, 4095, 4096):
        assert _fourier_error(n, 3) <= 4 * EPS * math.sqrt(len(fp.prime_factors(n))), n


@pytest.mark.parametrize("n", [1, 2, 7, 12, 60, 64])
def test_dft_as_scipy_with_inverse_transpose_and_determinant(n: int) -> None:
    a = sm.dft(n)
    dense = a.to_dense()
    for scale in (None, "sqrtn", "n"):
        wanted = torch.from_numpy(scipy.linalg.dft(n, scale))
        assert float((sm.dft(n, scale).to_dense() - wanted).norm()) <= 8 * n * EPS * float(wanted.norm())
    assert float((a.mT.to_dense() - dense).norm()) <= 8 * EPS * n
    assert float((a.inv().to_dense() - dense.conj() / n).norm()) <= 16 * EPS
    assert isinstance(a.inv(), sm.Butterfly) and sm.Claim.SYMMETRIC in a.claims
    sign, logabs = a.slogdet()
    wanted_sign, wanted_log = torch.linalg.slogdet(dense)
    assert float((sign - wanted_sign).abs()) <= 1e-11 and float((logabs - wanted_log).abs()) <= 1e-10
    assert sm.Claim.ORTHOGONAL in sm.dft(n, "sqrtn").claims
    assert_orthogonal(sm.dft(n, "sqrtn"), ops=sm.dft(n).layers)
    with pytest.raises(ValueError, match="scale"):
        sm.dft(n, "half")


def test_hadamard_is_exact() -> None:
    for levels in range(8):
        n = 2**levels
        wanted = torch.from_numpy(scipy.linalg.hadamard(n)).double()
        assert torch.equal(sm.hadamard(n).to_dense(), wanted)
        assert torch.equal(sm.hadamard(n, dtype=torch.bfloat16).to_dense().double(), wanted)
    assert sm.hadamard(2**20).numel_stored == 80, "one block a digit"
    assert torch.equal(
        sm.hadamard(2**12).linear(torch.ones(2**12, dtype=F64))[:2], torch.tensor([4096.0, 0.0]).double()
    )
    with pytest.raises(ValueError, match="the nearest are 8, 16"):
        sm.hadamard(12)


@pytest.mark.parametrize(("m", "n"), [(12, 12), (10, 10), (21, 21), (768, 768), (12, 10), (1, 6), (7, 1), (48, 192)])
def test_random_of_any_size_is_dense(m: int, n: int) -> None:
    a = sm.Butterfly.random(m, n, dtype=F64, generator=torch.Generator().manual_seed(0))
    dense = a.to_dense()
    assert tuple(a.shape) == (m, n) and bool((dense != 0).all())
    assert a.numel_stored <= 4 * (m + n) * max(1.0, sum(fp.prime_factors(max(m, n))))
    assert tuple(sm.Butterfly.monarch(m, n).shape) == (m, n)
    eye = sm.Butterfly.identity(m, n, dtype=F64).to_dense()
    if m == n:
        assert torch.equal(eye, torch.eye(n, dtype=F64))


def test_a_large_rectangle_and_a_large_prime() -> None:
    a = sm.Butterfly.random(3072, 768)
    assert tuple(a.linear(torch.ones(2, 768)).shape) == (2, 3072)
    assert a.numel_stored < 3072 * 768 / 20
    prime = sm.Butterfly.random(131, dtype=F64)
    assert prime.tail == 1 and tuple(prime.shape) == (131, 131)
    assert torch.equal(prime.to_dense()[-1], torch.eye(131, dtype=F64)[-1])
