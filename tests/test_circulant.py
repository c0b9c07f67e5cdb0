"""f-circulants: eigenvalues, solves, inverses, determinants, pseudo-inverses, roots and functions, for every f."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import circulant as fc
from structmat.testing.reference import dense_of

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
NUMBERS: list[complex] = [1, -1, 2.0, -0.5, 1e-3, 1e3, 1e-6, 1e6, 0.6 + 0.8j, 1j, 2 - 1j, 0, 1e-9, -1e-12, 1e9]
SIZES = [1, 2, 3, 4, 7, 16, 31]


def column(n: int, seed: int = 0, dtype: torch.dtype = F64, shift: float = 0.0) -> torch.Tensor:
    """Standard normal numbers over sqrt(n), the first one raised."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed + 31 * n), dtype=dtype) / n**0.5
    v[0] += shift
    return v


def wide(matrix: sm.Circulant) -> torch.Tensor:
    return dense_of(matrix).to(C128)


def spread(f: complex) -> float:
    """The condition number of D, by which the closed forms lose accuracy."""
    return max(abs(f), 1 / abs(f))


@pytest.mark.parametrize("f", NUMBERS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_solve_is_backward_stable_for_every_f(f: complex, n: int, dtype: torch.dtype) -> None:
    """eta at most 100 eps, and the error at most ``30 eps kappa max(|f|, 1/|f|)`` (the tiers beyond: 200 eps kappa)."""
    matrix = sm.Circulant(column(n, 1, dtype, shift=0.3), f)
    dense = wide(matrix)
    b = dense @ column(n, 2, C128)
    b = b if dtype.is_complex or isinstance(f, complex) else b.real
    x, info = sm.linalg.solve(matrix, b, return_info=True)
    eta = (dense @ x.to(C128) - b).norm() / (dense.norm() * x.norm() + b.norm())
    assert float(eta) <= 100 * EPS
    assert info.backward_error is not None and float(info.backward_error.max()) <= 100 * EPS
    kappa = float(torch.linalg.cond(dense))
    gap = float((x.to(C128) - torch.linalg.solve(dense, b.to(C128))).norm() / x.norm())
    assert gap <= 200 * EPS * kappa + 100 * EPS


@pytest.mark.parametrize(("f", "method"), [(1, "closed form"), (3.0, "closed form"), (0, "triangular"), (1e9, "dense")])
def test_how_it_was_solved_is_said(f: complex, method: str) -> None:
    matrix = sm.Circulant(column(9, shift=3.0), f)
    _, info = sm.linalg.solve(matrix, torch.ones(9, dtype=F64), return_info=True)
    assert info.method == method
    if abs(f) > 1e8:
        assert "> 1e8" in info.reasons[0]
    if f == 0:
        assert "power series" in info.reasons[0]


@pytest.mark.parametrize("f", [0, 1e-10])
def test_a_growing_power_series_goes_on_to_the_next_tier(f: complex) -> None:
    """The inverse of 1, 3, 3, 3, ... grows like 2^n: the series loses all digits, and the solution has them anyway."""
    n = 90
    v = torch.full((n,), 3.0, dtype=F64)
    v[0] = 1
    matrix = sm.Circulant(v, f)
    dense = dense_of(matrix)
    b = dense @ column(n, 3)
    x, info = sm.linalg.solve(matrix, b, return_info=True)
    assert float((dense @ x - b).norm() / (dense.norm() * x.norm() + b.norm())) <= 100 * EPS
    assert info.method != "triangular" and "only" in info.reasons[1]


@pytest.mark.parametrize("f", [f for f in NUMBERS if 1e-8 <= abs(f) <= 1e8])
@pytest.mark.parametrize("n", SIZES)
def test_inverse_eigenvalues_and_determinant(f: complex, n: int) -> None:
    matrix = sm.Circulant(column(n, 4, shift=0.5), f)
    dense = wide(matrix)
    kappa = float(torch.linalg.cond(dense))
    bound = 30 * EPS * kappa * spread(f)
    inverse = matrix.inv()
    assert type(inverse) is sm.Circulant and inverse.f == f
    exact = torch.linalg.inv(dense)
    assert float((wide(inverse) - exact).norm() / exact.norm()) <= bound
    lam = matrix.eigvals()
    left = fc.twist(n, f, C128, lam.device)
    modes = torch.fft.ifft(torch.eye(n, dtype=C128), dim=0) / (left[:, None] if left is not None else 1)
    residual = (dense @ modes - modes * lam).norm() / (dense.norm() * modes.norm())
    assert float(residual) <= 30 * EPS * (1 + math.log2(n))
    sign, logabs = matrix.slogdet()
    right = torch.linalg.slogdet(dense)
    assert abs(float(logabs) - float(right.logabsdet)) <= 100 * n * EPS * kappa * spread(f)
    if n * EPS * kappa * spread(f) < 1e-3:
        assert abs(complex(sign) - complex(right.sign)) <= 100 * n * EPS * kappa * spread(f)


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("f", [1, -1, 0.5, -2.0])
def test_the_sign_of_a_real_determinant_is_exact(n: int, f: float) -> None:
    """That of the eigenvalues that stand alone, and +-1 to the bit."""
    for seed in range(12):
        matrix = sm.Circulant(column(n, seed), f)
        sign, _ = matrix.slogdet()
        assert float(sign) == float(torch.linalg.slogdet(dense_of(matrix)).sign)


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("f", [1, -1, 3.0, -0.2])
def test_conjugate_pairs_of_a_real_spectrum(n: int, f: float) -> None:
    lam = sm.Circulant(column(n, 5), f).eigvals()
    alone, (first, second) = fc.alone(n, f), fc.pairs(n, f)
    assert sorted((*alone, *first, *second)) == list(range(n))
    scale = float(lam.abs().max())
    assert float(lam[list(alone)].imag.abs().max() if alone else 0) <= 20 * n * EPS * scale * spread(f)
    single, one_of_each = fc.separated(lam, f)
    assert torch.equal(single, lam[list(alone)]) and torch.equal(one_of_each, lam[list(first)])
    gap = lam[list(first)] - lam[list(second)].conj()
    assert float(gap.abs().max() if first else 0) <= 20 * n * EPS * scale * spread(f)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("f", [1, -1, 0.6 - 0.8j])
def test_pinv_and_least_squares_of_normal_circulants(n: int, f: complex) -> None:
    """Eigenvalues put to zero; the pseudo-inverse and the least-squares solution are those of the dense matrix."""
    lam = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=C128)
    lam[:: max(2, n // 2)] = 0
    matrix = sm.Circulant(fc.from_eigenvalues(lam, f, real=False), f)
    dense = wide(matrix)
    exact = torch.linalg.pinv(dense, rtol=1e-10)
    found = matrix.pinv()
    assert type(found) is sm.Circulant
    assert float((wide(found) - exact).norm()) <= 100 * n * EPS * max(1.0, float(exact.norm()) ** 2)
    b = column(n, 6, C128)
    gap = float((matrix.lstsq(b) - exact @ b).norm())
    assert gap <= 100 * n * EPS * max(1.0, float(exact.norm()) ** 2) * float(b.norm())


def test_least_squares_away_from_the_circle() -> None:
    """|f| != 1 is not normal: dense up to the limit, LSMR above it, and svdvals names the way out."""
    small = sm.Circulant(column(12, shift=2.0), 3.0)
    b = column(12, 1)
    exact = torch.linalg.solve(dense_of(small), b)
    assert float((small.lstsq(b) - exact).norm()) <= 1e3 * EPS * float(exact.norm())
    large = sm.Circulant(column(300, shift=4.0), 1.5)
    b = column(300, 1)
    x = large.lstsq(b)
    assert float((large @ x - b).norm()) <= 1e4 * EPS * float(b.norm())
    with pytest.raises(sm.StructureError, match=r"only \|f\| = 1 is normal"):
        large.svdvals()
    with pytest.raises(sm.StructureError, match=r"pinv.*dense limit"):
        large.pinv()


def test_a_singular_circulant_is_refused_and_has_a_pseudo_inverse() -> None:
    matrix = sm.Circulant(torch.tensor([1.0, -1.0, 0, 0], dtype=F64))
    with pytest.raises(sm.SolveError, match=r"smallest eigenvalue .* see pinv"):
        matrix.solve(torch.ones(4, dtype=F64))
    assert torch.allclose(matrix.pinv().to_dense(), torch.linalg.pinv(matrix.to_dense()))


# -- roots and functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("f", [1, -1, 2.0, -0.3, 1j])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_square_root_squares_to_the_matrix(n: int, f: complex, dtype: torch.dtype) -> None:
    matrix = sm.Circulant(column(n, 7, dtype, shift=3.0 * spread(f)), f)
    root = matrix.sqrt()
    assert root.f == f and root.dtype == matrix.dtype
    square = wide(root) @ wide(root)
    assert float((square - wide(matrix)).norm()) <= 100 * EPS * spread(f) * float(wide(root).norm()) ** 2
    assert bool((root.eigvals().real >= -100 * EPS * spread(f)).all())  # the principal one


def test_the_square_root_stays_real_where_it_can() -> None:
    """Skew-circulants of even order have no eigenvalue that stands alone: minus the identity has a real root."""
    minus = sm.Circulant(-torch.eye(6, dtype=F64)[0], -1)
    root = minus.sqrt()
    assert root.dtype == F64
    assert torch.allclose(root.to_dense() @ root.to_dense(), minus.to_dense(), atol=100 * EPS)
    negative = sm.Circulant(-torch.eye(6, dtype=F64)[0], 1)
    with pytest.raises(sm.StructureError, match=r"no real root is an f-circulant; use A\.to\(torch\.complex128\)"):
        negative.sqrt()
    complex_root = negative.to(C128).sqrt().to_dense()
    assert torch.allclose(complex_root @ complex_root, negative.to_dense().to(C128), atol=100 * EPS)
    flat = sm.Circulant(torch.ones(4, dtype=F64))  # eigenvalues 4, 0, 0, 0, up to rounding on both sides of 0
    assert torch.allclose(flat.sqrt().to_dense(), flat.to_dense() / 2, atol=1e-7)


@pytest.mark.parametrize("f", [1, -1, 2.0, 0.6 + 0.8j])
def test_functions_of_a_circulant(f: complex) -> None:
    matrix = sm.Circulant(column(7, 8), f)
    exact = torch.linalg.matrix_exp(wide(matrix))
    found = matrix.matrix_function(torch.exp)
    assert float((wide(found) - exact).norm()) <= 1e3 * EPS * spread(f) * float(exact.norm())
    with pytest.raises(sm.StructureError, match="matrix_function: only f-circulants"):
        sm.Circulant(column(7), 0).matrix_function(torch.exp)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("f", [1, -1])
def test_samples_have_the_covariance(f: int, dtype: torch.dtype) -> None:
    """40,000 draws: each entry of the sample covariance is within 6 standard errors, ``sqrt(2) c_0 / 200`` at most."""
    n, count = 5, 40_000
    angle = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=F64)
    lam = angle.to(dtype)
    if dtype == F64:
        for k, mirror in zip(*fc.pairs(n, f), strict=True):
            lam[mirror] = lam[k]
    matrix = sm.Circulant(fc.from_eigenvalues(lam.to(C128), f, real=dtype == F64), f)
    draws = matrix.sample(count, generator=torch.Generator().manual_seed(4))
    assert draws.dtype == dtype and tuple(draws.shape) == (count, n)
    found = draws.mT @ draws.conj() / count
    limit = 6 * 2**0.5 * float(matrix.diagonal()[0].abs()) / count**0.5
    assert float((found - dense_of(matrix)).abs().max()) <= limit
    batch = sm.Circulant(torch.stack([matrix.column, 2 * matrix.column]), f).sample(3)
    assert tuple(batch.shape) == (2, 3, n)


def test_a_matrix_that_is_no_covariance_is_not_sampled() -> None:
    for matrix in (
        sm.Circulant(torch.tensor([1.0, 2.0])),
        sm.Circulant(torch.tensor([3.0, 1.0, 0.0])),
        sm.Circulant(torch.ones(2), 2.0),
    ):
        with pytest.raises(sm.StructureError, match="no covariance"):
            matrix.sample(2)


# -- closure, projection, index logic -----------------------------------------------------------------------------


@given(n=st.integers(1, 9), f=st.sampled_from([1, -1, 2, 0]), seed=st.integers(0, 99))
def test_products_over_a_prime_field_are_exact(n: int, f: int, seed: int) -> None:
    """The column of a product is A times B's column: over Z_p, with the definition of ``Z_f`` and integers alone."""
    p = 10007
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(0, p, (n,), generator=generator) for _ in range(2))
    shift = torch.zeros(n, n, dtype=torch.int64)
    for i in range(n - 1):
        shift[i + 1, i] = 1
    shift[0, n - 1] = f if n > 1 else 0
    if n == 1:
        shift[0, 0] = f

    def dense(v: torch.Tensor) -> torch.Tensor:
        total, power = torch.zeros(n, n, dtype=torch.int64), torch.eye(n, dtype=torch.int64)
        for k in range(n):
            total, power = (total + v[k] * power) % p, (power @ shift) % p
        return total

    entries = sm.Circulant(a.to(F64), f).to_dense() % p
    assert torch.equal(entries.to(torch.int64), dense(a))
    product = (dense(a) @ dense(b)) % p
    found = sm.Circulant(a.to(F64), f) @ sm.Circulant(b.to(F64), f)  # sums below 2^34: rounding finds the integers
    assert torch.equal(dense(found.column.round().to(torch.int64) % p), product)


@pytest.mark.parametrize("f", [1, -1, 0.5, 2j])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_nearest_is_the_least_squares_fit(f: complex, n: int) -> None:
    """Against a dense least-squares problem in the n columns that span the f-circulants."""
    dtype = C128 if isinstance(f, complex) else F64
    target = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    basis = torch.stack([dense_of(sm.Circulant(e, f)).to(dtype).flatten() for e in torch.eye(n, dtype=F64)], -1)
    wanted = torch.linalg.lstsq(basis, target.flatten()[:, None]).solution[:, 0]
    assert float((sm.Circulant.nearest(target, f).column - wanted).norm()) <= 100 * n * EPS * float(target.norm())


CALLS: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "solve": lambda a, b: a.solve(b),
    "inv": lambda a, b: a.inv() @ b,
    "sqrt": lambda a, b: a.sqrt() @ b,
}


@pytest.mark.parametrize(
    ("call", "f"),
    [(c, f) for c in CALLS for f in (1, -1, 5.0, 0.0, 1e-9) if c != "sqrt" or abs(f) > 1e-8],
)
def test_gradients_to_second_order(call: str, f: float) -> None:
    v, b = column(5, 9, shift=4.0 * max(1.0, abs(f))).requires_grad_(), column(5, 10).requires_grad_()

    def compute(v: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return CALLS[call](sm.Circulant(v, f), b)

    assert torch.autograd.gradcheck(compute, (v, b))
    assert torch.autograd.gradgradcheck(compute, (v, b), atol=1e-4)


def test_no_dense_matrix_and_no_loop_at_65536() -> None:
    """Solve, inverse, determinant, root and pseudo-inverse of one large circulant, and of a triangular one."""
    n = 65_536
    for f in (1, 0):
        v = column(n, 11, shift=2.0) * (0.999 ** torch.arange(n, dtype=F64) if f == 0 else 1)
        matrix = sm.Circulant(v, f)
        x = column(n, 12)
        b = matrix @ x
        for found in (matrix.solve(b), matrix.inv() @ b):
            assert float((found - x).norm()) <= 1e6 * EPS * float(x.norm())
        assert math.isfinite(float(matrix.logabsdet()))
