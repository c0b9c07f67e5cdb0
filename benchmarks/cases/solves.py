"""Toeplitz systems in float64 against scipy's Levinson recursion."""

import numpy
import scipy.linalg
import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, speed

__all__ = ["CASES", "backward_error", "kms_solution"]

_EPS = torch.finfo(torch.float64).eps


def kms_solution(rho: float, b: numpy.ndarray) -> numpy.ndarray:
    """The exact solution for ``A[i, j] = rho^|i - j|`` in extended precision: ``A^-1`` is tridiagonal,
    ``(1 - rho^2) A^-1 = tridiag(-rho, 1 + rho^2, -rho)`` with ones at both ends of the diagonal.

    Source: M. Kac, W. Murdock, G. Szego, On the eigenvalues of certain Hermitian forms, 1953.
    """
    r, v = numpy.longdouble(rho), b.astype(numpy.longdouble)
    x = (1 + r * r) * v
    x[[0, -1]] = v[[0, -1]]
    x[1:] -= r * v[:-1]
    x[:-1] -= r * v[1:]
    return x / (1 - r * r)


def backward_error(column: numpy.ndarray, row: numpy.ndarray, x: numpy.ndarray, b: numpy.ndarray) -> float:
    """``||b - A x|| / (sigma ||x|| + ||b||)``, the product in extended precision, sigma the largest spectral modulus
    of the circulant of length 2 n - 1 that A is embedded in."""
    n = len(b)
    t = numpy.concatenate((row[:0:-1], column)).astype(numpy.longdouble)
    windows = numpy.lib.stride_tricks.sliding_window_view(t, n)  # row i: t[i], ..., t[i + n - 1]
    back = x[::-1].astype(numpy.longdouble)
    product = numpy.concatenate([(windows[k : k + 256] * back).sum(-1) for k in range(0, n, 256)])
    sigma = numpy.abs(numpy.fft.fft(t.astype(numpy.float64))).max()
    norm = numpy.linalg.norm
    residual = norm((b - product).astype(numpy.float64))
    return float(residual / (sigma * norm(x) + norm(b)))


def _definite(n: int, rho: float) -> Problem:
    column = rho ** numpy.arange(n)
    torch.manual_seed(4)
    b = torch.randn(n, dtype=torch.float64)
    a = sm.toeplitz(column).assume(sm.Claim.POSITIVE_DEFINITE)
    host = b.numpy()
    right = torch.from_numpy(kms_solution(rho, host).astype(numpy.float64))
    condition = ((1 + rho) / (1 - rho)) ** 2

    def facts() -> dict[str, float]:
        mine, theirs = a.solve(b).numpy(), scipy.linalg.solve_toeplitz(column, host)
        return {
            "eta ours / eps": backward_error(column, column, mine, host) / _EPS,
            "eta peer / eps": backward_error(column, column, theirs, host) / _EPS,
        }

    contenders = {
        "ours": Contender(lambda: (a.solve(b),)),
        "peer": Contender(lambda: (torch.from_numpy(scipy.linalg.solve_toeplitz(column, host)),), "scipy"),
    }
    # forward error <= 2 cond eta to first order, and eta at most 100 eps
    return Problem(contenders, ("x",), lambda: (right,), (200 * _EPS * condition,), facts)


def _general(n: int) -> Problem:
    generator = numpy.random.default_rng(5)
    column, row = generator.standard_normal((2, n)) / n**0.5
    row[0] = column[0] = 2.0  # away from singular minors: the recursions are compared, not their safeguards
    dense = scipy.linalg.toeplitz(column, row)
    right = generator.standard_normal(n)
    b = dense @ right
    a, mine = sm.toeplitz(column, row), torch.from_numpy(b)

    def facts() -> dict[str, float]:
        x, y = a.solve(mine).numpy(), scipy.linalg.solve_toeplitz((column, row), b)
        return {
            "eta ours / eps": backward_error(column, row, x, b) / _EPS,
            "eta peer / eps": backward_error(column, row, y, b) / _EPS,
        }

    contenders = {
        "ours": Contender(lambda: (a.solve(mine),)),
        "peer": Contender(lambda: (torch.from_numpy(scipy.linalg.solve_toeplitz((column, row), b)),), "scipy"),
    }
    condition = float(numpy.linalg.cond(dense))
    # b itself carries n eps of its product, and eta is at most 100 eps
    limit = 200 * _EPS * condition + n * _EPS * condition
    return Problem(contenders, ("x",), lambda: (torch.from_numpy(right),), (limit,), facts)


CASES: tuple[Case, ...] = (
    Case(
        "solve/spd KMS 0.99 n=4096",
        "positive definite Toeplitz solve (eta at most 100 eps), float64, against scipy.linalg.solve_toeplitz",
        lambda: _definite(4096, 0.99),
        speed(must=10, aim=45),
    ),
    Case(
        "solve/general n=2048",
        "nonsymmetric Toeplitz solve with a measured backward error, float64, against scipy.linalg.solve_toeplitz",
        lambda: _general(2048),
        speed(),
    ),
)
