"""Toeplitz systems in float64 against scipy's Levinson recursion and dense LU: one, many right-hand sides, a nearly
singular leading minor, many small systems."""

from collections.abc import Callable

import numpy
import scipy.fft
import scipy.linalg
import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, overhead, speed
from benchmarks.verify import Fault

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


def _product(column: numpy.ndarray, row: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray:
    """``T x`` by transforms of twice the length in extended precision (scipy's transforms know it), rounded once."""
    n = len(column)
    t = numpy.concatenate((column, numpy.zeros(1), row[:0:-1])).astype(numpy.longdouble)
    hat = scipy.fft.rfft(t)[:, None] * scipy.fft.rfft(x.astype(numpy.longdouble), 2 * n, axis=0)
    return scipy.fft.irfft(hat, 2 * n, axis=0)[:n].astype(numpy.float64)


def _family(name: str, n: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """First column and first row."""
    k = numpy.arange(n)
    if name == "KMS 0.99":
        column = 0.99**k
    elif name == "Gaussian":
        column = numpy.exp(-((k / 3) ** 2) / 2) + 1e-6 * (k == 0)
    else:
        column, row = numpy.random.default_rng(6).standard_normal((2, n))
        column[0] = row[0] = 1e-13 if name == "nearly singular minor" else column[0]
        return column, row
    return column, column


_LIMITS = {"KMS 0.99": 1e-9, "Gaussian": 3e-7, "random": 1e-9}  # 200 eps kappa; random: scipy's own error, 1e-9


def _many_columns(name: str, n: int) -> Problem:
    """64 right-hand sides, the factorisation included; ours must not have the larger backward error."""
    column, row = _family(name, n)
    right = numpy.random.default_rng(7).standard_normal((n, 64))
    host = _product(column, row, right)
    a, b = (sm.toeplitz(column) if row is column else sm.toeplitz(column, row)), torch.from_numpy(host)

    def etas() -> tuple[float, float]:
        """Of the first and the last column; a product in extended precision is slow."""
        mine, theirs = a.solve(b).numpy(), scipy.linalg.solve_toeplitz((column, row), host)
        first, second = (
            max(backward_error(column, row, x[:, j], host[:, j]) for j in (0, 63)) / _EPS for x in (mine, theirs)
        )
        return first, second

    def reference() -> tuple[torch.Tensor, ...]:
        ours, peer = etas()
        if not ours <= peer:
            raise Fault(f"ours: backward error {ours:.2e} eps, scipy's is {peer:.2e} eps")
        return (torch.from_numpy(right),)

    contenders = {
        "ours": Contender(lambda: (a.solve(b),)),
        "peer": Contender(lambda: (torch.from_numpy(scipy.linalg.solve_toeplitz((column, row), host)),), "scipy"),
    }
    facts: Callable[[], dict[str, float]] = lambda: dict(zip(("eta ours / eps", "eta peer / eps"), etas(), strict=True))  # noqa: E731
    return Problem(contenders, ("x",), reference, (_LIMITS[name],), facts)


def _singular_minor(n: int) -> Problem:
    """t_0 = 1e-13: Levinson's recursion alone returns errors of 1e-2 here."""
    column, row = _family("nearly singular minor", n)
    right = numpy.random.default_rng(7).standard_normal((n, 1))
    host = _product(column, row, right)
    a, b = sm.toeplitz(column, row), torch.from_numpy(host)
    contenders = {
        "ours": Contender(lambda: (a.solve(b),)),
        "base": Contender(lambda: (torch.linalg.solve(a.to_dense(), b),)),
    }

    def facts() -> dict[str, float]:
        return {"eta ours / eps": backward_error(column, row, a.solve(b).numpy()[:, 0], host[:, 0]) / _EPS}

    return Problem(contenders, ("x",), lambda: (torch.from_numpy(right),), (1e-11,), facts)


def _small_systems(n: int, peer: str) -> Problem:
    """1,000 positive definite systems ``rho^|i-j|``, each with its own rho and right-hand side."""
    generator = numpy.random.default_rng(8)
    rho = generator.uniform(0.1, 0.95, (1000, 1))
    column, host = rho ** numpy.arange(n), generator.standard_normal((1000, n, 1))
    right = numpy.stack([kms_solution(r, v) for r, v in zip(rho[:, 0], host[..., 0], strict=True)]).astype(float)
    a = sm.SymmetricToeplitz(torch.from_numpy(column)).assume(sm.Claim.POSITIVE_DEFINITE)
    b, c = torch.from_numpy(host), torch.from_numpy(column)
    index = (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs()
    theirs = {
        "scipy": Contender(lambda: (torch.from_numpy(scipy.linalg.solve_toeplitz(column, host)),), "scipy"),
        "torch": Contender(lambda: (torch.linalg.solve(c[:, index], b),)),  # forming included
    }
    contenders = {"ours": Contender(lambda: (a.solve(b),)), "peer": theirs[peer]}

    def facts() -> dict[str, float]:
        eta = sm.linalg.solve(a, b, return_info=True)[1].backward_error
        return {"largest eta ours / eps": float(eta.max()) / _EPS}

    return Problem(contenders, ("x",), lambda: (torch.from_numpy(right[..., None]),), (200 * _EPS * 39.0**2,), facts)


CASES: tuple[Case, ...] = (
    Case(
        "solve/spd KMS 0.99 n=4096",
        "positive definite Toeplitz solve (eta at most 100 eps), float64, against scipy.linalg.solve_toeplitz",
        lambda: _definite(4096, 0.99),
        speed(must=10, aim=45),
    ),
    Case(
        "solve/spd KMS 0.99 n=16384",
        "positive definite Toeplitz solve (eta at most 100 eps), float64, against scipy.linalg.solve_toeplitz",
        lambda: _definite(16384, 0.99),
        speed(must=50, aim=150),
        heavy=True,
    ),
    Case(
        "solve/general n=2048",
        "nonsymmetric Toeplitz solve with a measured backward error, float64, against scipy.linalg.solve_toeplitz",
        lambda: _general(2048),
        speed(),
    ),
    *(
        Case(
            f"solve/64 columns {name} n={n}",
            "Toeplitz solve of 64 right-hand sides, setup included, never a larger eta, against scipy's solve_toeplitz",
            lambda name=name, n=n: _many_columns(name, n),  # type: ignore[misc]
            speed(must=6.5 if n == 1024 else 11),
            heavy=n > 1024,
        )
        for n in (1024, 4096)
        for name in _LIMITS
    ),
    *(
        Case(
            f"solve/nearly singular minor n={n}",
            "random Toeplitz system with t_0 = 1e-13, error at most 1e-11, against dense LU of the formed matrix",
            lambda n=n: _singular_minor(n),  # type: ignore[misc]
            overhead(must=1.2 if n == 1024 else 0.5),
            versus="base",
            heavy=n > 1024,
        )
        for n in (1024, 4096)
    ),
    *(
        Case(
            f"solve/1000 systems n={n} {peer}",
            f"1,000 positive definite Toeplitz systems side by side, float64, against {call}",
            lambda n=n, peer=peer: _small_systems(n, peer),  # type: ignore[misc]
            speed(must=must if n > 8 else 1),
        )
        for n in (8, 32, 128)
        for peer, call, must in (
            ("scipy", "batched scipy.linalg.solve_toeplitz", 3),
            ("torch", "torch.linalg.solve, forming included", 2),
        )
    ),
)
