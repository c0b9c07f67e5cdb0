"""Levinson's recursion, the two-solve inverse, diagonal sums of an inverse, conjugate gradients, circulant
preconditioners."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import scipy.linalg
import torch

from structmat.functional import toeplitz as ft
from structmat.functional import toeplitz_solve as fs
from structmat.functional.krylov import conjugate_gradients
from structmat.functional.levinson import TwoSolve, compiled_pairs, recursion, second_right_side
from structmat.functional.preconditioners import chan, strang
from structmat.functional.toeplitz_det import diagonal_sums_of_inverse

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


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 31])
@pytest.mark.parametrize("batch", [1, 3])
def test_recursion(n: int, batch: int, dtype: torch.dtype) -> None:
    """One system by BLAS dots, several side by side: the same numbers, and those of a dense solve."""
    t = _dominant(n, dtype, (batch,))
    b = torch.randn(batch, n, generator=torch.Generator().manual_seed(1), dtype=dtype).numpy()
    f, y, sign, logabs = recursion(t.numpy(), b, symmetric=False)
    for k in range(batch):
        dense = _dense(t[k])
        unit = numpy.eye(n)[0]
        assert numpy.abs(f[k] - numpy.linalg.solve(dense, unit)).max() <= 1e3 * n * EPS
        assert numpy.abs(y[k] - numpy.linalg.solve(dense, b[k])).max() <= 1e3 * n * EPS * numpy.abs(b[k]).max()
        wanted = numpy.linalg.slogdet(dense)
        assert abs(sign[k] - wanted[0]) <= 1e3 * n * EPS and abs(logabs[k] - wanted[1]) <= 1e3 * n * EPS


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (1, 12), (3, 12), (9, 4)])
def test_the_compiled_recursion_gives_the_same_pairs(batch: int, n: int, dtype: torch.dtype) -> None:
    """scipy's for few systems, ours for many; a singular minor in one of them leaves the others alone."""
    t = _dominant(n, dtype, (batch,)).numpy()
    right = second_right_side(t)
    for one, two in zip(compiled_pairs(t, right, False)[:2], recursion(t, right, False)[:2], strict=True):
        assert numpy.abs(one - two).max() <= 1e3 * n * EPS
    if n > 1:
        t[0, n - 1] = 0.0
        f, y, _, logabs = compiled_pairs(t, right, False)
        assert (
            not numpy.isfinite(f[0]).all() and numpy.isfinite(y[1:]).all() and (batch > 8 or numpy.isnan(logabs).all())
        )


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_symmetric_recursion_gives_the_same(batch: int, dtype: torch.dtype) -> None:
    n = 9
    t = _dominant(n, dtype, (batch,))
    t = (t + t.flip(-1)) / 2
    b = numpy.ones((batch, n))
    for one, two in zip(recursion(t.numpy(), b, True), recursion(t.numpy(), b, False), strict=True):
        assert numpy.abs(one - two).max() <= 1e3 * n * EPS


def test_a_singular_leading_minor_gives_non_finite_numbers() -> None:
    t = numpy.array([[3.0, 2.0, 0.0, 1.0, 2.0]])  # t_0 = 0
    f, *_ = recursion(t, numpy.ones((1, 3)), False)
    assert not numpy.isfinite(f).all()


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16])
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
    found = diagonal_sums_of_inverse(t, symmetric=False)
    for k in range(2):
        wanted = ft.diagonal_sums(torch.from_numpy(numpy.linalg.inv(_dense(t[k]))))
        assert float((found[k] - wanted).abs().max()) <= 1e3 * n * EPS


def test_near_singular_minors_are_shifted_and_refined() -> None:
    """One matrix of the batch is served by the plain recursion, the other needs the shift, and each keeps its own
    pair."""
    n = 40
    t = torch.randn(2, 2 * n - 1, generator=torch.Generator().manual_seed(4), dtype=F64)
    t[0] = _dominant(n)
    t[1, n - 1] = 0.0  # the first minor
    assert float(fs.pair_error(t, fs.two_solve(t, symmetric=False)[0]).max()) <= 100 * EPS
    pair, sign, logabs, notes = fs.two_solve(t, symmetric=False, determinant=True)
    assert "shifted diagonal" in notes[0] and bool(torch.isnan(logabs[1])) and float(sign[0]) == 1.0
    assert float(logabs[0]) == pytest.approx(float(numpy.linalg.slogdet(_dense(t[0]))[1]), abs=1e3 * n * EPS)
    assert float(fs.pair_error(t, pair).max()) <= 100 * EPS
    pair, _, logabs, _ = fs.two_solve(t, symmetric=False)  # without the determinant: another recursion
    assert bool(torch.isnan(logabs).all()) and float(fs.pair_error(t, pair).max()) <= 100 * EPS


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
