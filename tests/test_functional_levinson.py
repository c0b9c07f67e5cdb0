"""Levinson's recursion, the two-solve inverse, diagonal sums of an inverse, circulant preconditioners."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch

from structmat.functional import levinson
from structmat.functional import toeplitz as ft
from structmat.functional.krylov import conjugate_gradients
from structmat.functional.levinson import pairs, second_right_side
from structmat.functional.preconditioners import chan, strang
from structmat.functional.toeplitz_det import diagonal_sums_of_inverse
from structmat.functional.toeplitz_pair import best_pair, shifted_pair
from structmat.functional.toeplitz_system import ACCEPTED, System, flatten, generators, right_sides
from structmat.functional.two_solve import TwoSolve
from tests.families import FAMILIES

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _dominant(n: int, dtype: torch.dtype = F64, batch: tuple[int, ...] = (), seed: int = 0) -> torch.Tensor:
    """Diagonals whose matrix has condition number below 5."""
    t = torch.randn(*batch, 2 * n - 1, generator=torch.Generator().manual_seed(seed), dtype=dtype) / (2 * n)
    return t + 2 * torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(dtype)


def _dense(t: torch.Tensor) -> Any:
    """Independent: scipy's constructor."""
    n = (t.shape[-1] + 1) // 2
    v = t.numpy()
    return scipy.linalg.toeplitz(v[n - 1 :], v[:n][::-1])


def _mirrored(t: torch.Tensor, mirror: str | None) -> torch.Tensor:
    if mirror is None:
        return t
    return (t + (t.flip(-1) if mirror == "symmetric" else t.flip(-1).conj())).resolve_conj() / 2


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 31])
@pytest.mark.parametrize("batch", [1, 3, levinson.FEW + 1])
@pytest.mark.parametrize("mirror", [None, "symmetric", "hermitian"])
def test_pairs(n: int, batch: int, dtype: torch.dtype, mirror: str | None) -> None:
    """One system by BLAS, many side by side, half the work where symmetric: the numbers of dense solves."""
    t = _mirrored(_dominant(n, dtype, (batch,)), mirror)
    x, z, pivots = pairs(t.numpy(), mirror)
    assert x.shape == z.shape == pivots.shape == (batch, n)
    right = second_right_side(t).numpy()
    for k in range(batch):
        dense = _dense(t[k])
        assert numpy.abs(x[k] - numpy.linalg.solve(dense, numpy.eye(n)[0])).max() <= 1e3 * n * EPS
        assert numpy.abs(z[k] - numpy.linalg.solve(dense, right[k])).max() <= 1e3 * n * EPS
        wanted = numpy.linalg.det(dense)
        assert abs(numpy.prod(pivots[k]) - wanted) <= 1e3 * n * EPS * abs(wanted)


def test_more_systems_than_a_chunk() -> None:
    t = _dominant(3, batch=(levinson._CHUNK + 5,))
    x, z, _ = pairs(t.numpy())
    for found, row in ((x, 0), (z, 1)):
        gap = System(t).multiply(torch.from_numpy(found)[:, None])[:, 0] - right_sides(t)[:, row]
        assert float(gap.abs().max()) <= 1e3 * EPS


@pytest.mark.parametrize("mirror", [None, "symmetric"])
def test_the_recursion_is_exact_over_the_rationals(mirror: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index and sign logic without rounding: the steps of one system, in fractions."""

    class Exact:
        @staticmethod
        def ddot(a: Any, b: Any, n: int, offx: int = 0, incx: int = 1, offy: int = 0) -> Any:
            return sum((a[offx + j] * b[offy + j] for j in range(n)), Fraction(0))

        @staticmethod
        def daxpy(a: Any, b: Any, n: int, s: Any, offx: int = 0, incx: int = 1, offy: int = 0) -> None:
            for j in range(n):
                b[offy + j] += s * a[offx + j]

    monkeypatch.setattr(levinson, "blas", Exact)
    for n in (1, 2, 3, 6):
        numbers = numpy.random.default_rng(n).integers(-9, 10, 2 * n - 1)
        numbers[n - 1] = 40
        numbers = numbers + numbers[::-1] if mirror else numbers
        t = numpy.array([Fraction(int(v)) for v in numbers], dtype=object)
        # a Fraction has no item(); an array of objects gives its entries as they are
        x, z, pivots = levinson._steps(t, mirror, Fraction(0))
        dense = [[t[i - j + n - 1] for j in range(n)] for i in range(n)]
        unit = [Fraction(int(i == 0)) for i in range(n)]
        right = second_right_side(t)
        for vector, wanted in ((x, unit), (z, right)):
            assert [sum(dense[i][j] * vector[j] for j in range(n)) for i in range(n)] == list(wanted)
        assert float(numpy.prod(pivots)) == pytest.approx(numpy.linalg.det(_dense(torch.tensor(numbers * 1.0))))


@pytest.mark.parametrize("batch", [2, levinson.FEW + 1])
@pytest.mark.parametrize("mirror", [None, "symmetric"])
def test_a_singular_leading_minor_spoils_its_own_matrix_only(batch: int, mirror: str | None) -> None:
    t = _mirrored(_dominant(4, batch=(batch,)), mirror).numpy()
    t[0, 3] = 0.0
    x, z, pivots = pairs(t, mirror)
    assert numpy.isnan(x[0]).all() and numpy.isnan(pivots[0]).any()
    assert numpy.isfinite(x[1:]).all() and numpy.isfinite(z[1:]).all()


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 34])
def test_two_solve_inverse(n: int, dtype: torch.dtype) -> None:
    """The formula from x and z, for vectors and for the transpose, against the inverse."""
    t = _dominant(n, dtype)
    dense = _dense(t)
    inverse = numpy.linalg.inv(dense)
    c = second_right_side(t)
    assert torch.equal(c, torch.from_numpy(second_right_side(t.numpy()))), (
        "numpy and torch form the same right-hand side"
    )
    x, z = (torch.from_numpy(inverse @ v) for v in (numpy.eye(n)[0], c.numpy()))
    pair = TwoSolve(x.to(dtype), z)
    b = torch.randn(2, n, generator=torch.Generator().manual_seed(2), dtype=dtype)
    tol = 1e3 * n * EPS * float(b.norm())
    assert float((pair.solve_rows(b) - b @ torch.from_numpy(inverse).mT).abs().max()) <= tol
    assert float((pair.solve_transposed_rows(b) - b @ torch.from_numpy(inverse)).abs().max()) <= tol
    assert float((pair.adjoint().solve_rows(b) - b @ torch.from_numpy(inverse).conj()).abs().max()) <= tol
    other = b.to(C128) * (1 + 2j)
    assert float((pair.solve_rows(other) - other @ torch.from_numpy(inverse).mT.to(C128)).abs().max()) <= 3 * tol
    assert float((pair.solve_rows(b.real) - b.real.to(dtype) @ torch.from_numpy(inverse).mT).abs().max()) <= tol


def test_two_solve_needs_no_leading_entry() -> None:
    """x_0 = 0, where Gohberg-Semencul divides by zero: the last but one minor is singular and T is not."""
    t = torch.tensor([3.0, 1.0, 1.0, 1.0, 2.0], dtype=F64)  # the 2 x 2 minor of ones is singular
    dense = torch.from_numpy(_dense(t))
    inverse = torch.linalg.inv(dense)
    pair = TwoSolve(inverse[:, 0].contiguous(), inverse @ second_right_side(t))
    assert abs(float(pair.x[0])) <= 8 * EPS
    assert float((pair.solve_rows(torch.eye(3, dtype=F64)).mT - inverse).abs().max()) <= 1e3 * EPS * float(
        inverse.abs().max()
    )


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 13])
def test_diagonal_sums_of_the_inverse(n: int, dtype: torch.dtype) -> None:
    """What the gradient of log|det| is made of, against sums over the dense inverse."""
    t = _dominant(n, dtype, (2,))
    found = diagonal_sums_of_inverse(t, None)
    for k in range(2):
        wanted = ft.diagonal_sums(torch.from_numpy(numpy.linalg.inv(_dense(t[k]))))
        assert float((found[k] - wanted).abs().max()) <= 1e3 * n * EPS


def test_each_matrix_of_a_batch_keeps_the_pair_that_serves_it() -> None:
    """The plain recursion, a shifted diagonal, elimination: three matrices side by side."""
    n = 40
    t = torch.stack(
        [torch.from_numpy(FAMILIES[name].diagonals(n)) for name in ("KMS 0.5", "tiny diagonal", "cyclic shift")]
    )
    system = System(t)
    pair, eta, notes = best_pair(system, None, most=n)
    assert float(eta.max()) <= ACCEPTED and "shifted diagonal" in notes[0] and "elimination" in notes[1]
    for rows in (torch.stack((pair.x, pair.z), -2), pair.solve_rows(right_sides(t))):
        assert float(system.eta(rows, right_sides(t)).max()) <= ACCEPTED
    _, eta, _ = best_pair(system, None, most=n - 1)  # elimination is not allowed
    assert float(eta[:2].max()) <= ACCEPTED and not float(eta[2]) <= ACCEPTED


@pytest.mark.parametrize("name", ["zero diagonal", "tiny diagonal", "symmetric zero diagonal", "singular minor 2"])
def test_refinement_removes_the_shift(name: str) -> None:
    """Down to rounding, for matrices whose condition number is at most 2e4; with 1e-8 in place of 1e-5 it diverges."""
    for n in (100, 400):
        t = torch.from_numpy(FAMILIES[name].diagonals(n))[None]
        pair = shifted_pair(System(t), FAMILIES[name].mirror)
        assert float(System(t).eta(torch.stack((pair.x, pair.z), -2), right_sides(t)).max()) <= ACCEPTED


@pytest.mark.parametrize("n", [1, 2, 5])
def test_generators(n: int) -> None:
    """Exactly: ``Z_1 T - T Z_{-1} = G H^T``."""
    t = torch.arange(2.0 * n - 1, dtype=F64).square()
    left, right = generators(t)
    dense = torch.from_numpy(_dense(t))

    def shift(e: float) -> torch.Tensor:
        z = torch.diag(torch.ones(n - 1, dtype=F64), -1)
        z[0, n - 1] += e
        return z

    assert torch.equal(shift(1) @ dense - dense @ shift(-1), left @ right.mT)


def test_flatten_factorises_no_matrix_twice() -> None:
    """Batch axes that t does not have become rows, and come back."""
    t, b = torch.randn(3, 1, 9, dtype=F64), torch.randn(2, 3, 4, 5, 5, dtype=F64)
    flat, rows, restore = flatten(t, b)
    assert flat.shape == (3, 9) and rows.shape == (3, 2 * 4 * 5, 5) and torch.equal(restore(rows), b)
    assert restore(rows[..., 0]).shape == (2, 3, 4, 5)
    flat, rows, restore = flatten(torch.randn(2, 3, 9, dtype=F64), torch.randn(3, 2, 5, dtype=F64))
    assert flat.shape == (6, 9) and rows.shape == (6, 2, 5) and restore(rows).shape == (2, 3, 2, 5)


def _spd(n: int) -> torch.Tensor:
    return 0.5 ** (torch.arange(2 * n - 1, dtype=F64) - (n - 1)).abs()


def test_preconditioners_are_the_textbook_circulants() -> None:
    n = 8
    t = torch.randn(2 * n - 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    by_strang, by_chan = strang(t), chan(t)
    dense = torch.from_numpy(_dense(t))
    for k in range(n):
        assert by_strang[k] == (t[n - 1 + k] if k <= n // 2 else t[n - 1 + k - n])
        mean = torch.stack(
            [dense[i, (i - k) % n] for i in range(n)]
        ).mean()  # the nearest circulant: means of wrapped diagonals
        assert abs(float(by_chan[k] - mean)) <= 16 * EPS


def test_conjugate_gradients_by_rows() -> None:
    """Each row stops by itself; an indefinite matrix is noticed; a callback sees every step; zero rows stay zero."""
    n = 30
    a = torch.from_numpy(_dense(_spd(n)))
    b = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    b[1] = 0
    sigma = torch.linalg.matrix_norm(a, 2)
    seen: list[int] = []
    out = conjugate_gradients(lambda v: v @ a, lambda r: r, b, sigma, 10 * EPS, 200, None, lambda k, _: seen.append(k))
    assert out.converged and seen == list(range(1, out.steps + 1))
    assert torch.equal(out.x[1], torch.zeros(n, dtype=F64))
    assert float((out.x @ a - b).norm()) <= 100 * EPS * float(sigma * out.x.norm() + b.norm())
    warm = conjugate_gradients(lambda v: v @ a, lambda r: r, b, sigma, 20 * EPS, 200, out.x)
    assert warm.converged and warm.steps <= 2
    indefinite = torch.diag(torch.linspace(-1, 1, n, dtype=F64))
    assert not conjugate_gradients(lambda v: v @ indefinite, lambda r: r, b, sigma, 10 * EPS, 200).converged
    assert not conjugate_gradients(lambda v: v @ a, lambda r: r, b, sigma, 10 * EPS, 2).converged
