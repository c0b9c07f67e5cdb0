"""The families of Toeplitz matrices that every solver is judged on, as diagonals in float64 or complex128."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy

Array = numpy.ndarray[Any, numpy.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Family:
    """``diagonals(n)`` gives ``t_{-(n-1)} .. t_{n-1}``; ``mirror`` is what they are known to be, ``definite`` whether
    positive definite."""

    diagonals: Callable[[int], Array]
    mirror: str | None = None
    definite: bool = False


def _even(column: Array) -> Array:
    """Symmetric, or Hermitian with a real first entry, from the first column."""
    return numpy.concatenate((column[:0:-1].conj(), column))


def _kernel(function: Callable[[Array], Array], noise: float = 0.0) -> Callable[[int], Array]:
    def make(n: int) -> Array:
        column = function(numpy.arange(n, dtype=float))
        column[0] += noise
        return _even(column)

    return make


def _random(n: int, seed: int = 0) -> Array:
    return numpy.random.default_rng(seed).standard_normal(2 * n - 1)


def _complex(n: int, seed: int = 0) -> Array:
    parts = numpy.random.default_rng(seed).standard_normal((2, 2 * n - 1))
    return parts[0] + 1j * parts[1]


def _diagonal(value: float) -> Callable[[int], Array]:
    def make(n: int) -> Array:
        t = _random(n, 1)
        if n > 1:
            t[n - 1] = value
        return t

    return make


def _symmetric_zero_diagonal(n: int) -> Array:
    column = numpy.random.default_rng(2).standard_normal(n)
    if n > 1:
        column[0] = 0.0
    return _even(column)


def singular_minor(k: int, gap: float = 0.0) -> Callable[[int], Array]:
    """Random, shifted by a real eigenvalue of its k x k leading minor."""

    def make(n: int) -> Array:
        order = k if n > k else max(1, n - 1)
        for seed in range(3, 40):
            t = _random(n, seed)
            minor = numpy.array([[t[i - j + n - 1] for j in range(order)] for i in range(order)])
            eigenvalues = numpy.linalg.eigvals(minor)
            real = eigenvalues[abs(eigenvalues.imag) < 1e-12].real
            if n > 1 and len(real):
                t[n - 1] -= real[0] - gap
                break
        return t

    return make


def _shift(n: int) -> Array:
    t = numpy.zeros(2 * n - 1)
    t[min(n, 2 * n - 2)] = 1.0
    t[0] = 1.0
    return t


def _graded(n: int) -> Array:
    """Random, falling by 12 decades from the diagonal to both corners."""
    return _random(n, 5) * 10.0 ** (-12 * abs(numpy.arange(2 * n - 1) - (n - 1)) / max(1, n - 1))


def _hermitian(n: int) -> Array:
    """Positive definite and complex: ``0.9^k exp(i k)``."""
    k = numpy.arange(n)
    return _even(0.9**k * numpy.exp(1j * k))


FAMILIES: dict[str, Family] = {
    "KMS 0.5": Family(_kernel(lambda k: 0.5**k), "symmetric", True),
    "KMS 0.99": Family(_kernel(lambda k: 0.99**k), "symmetric", True),
    "Gaussian": Family(_kernel(lambda k: numpy.exp(-((k / 3) ** 2) / 2), 1e-6), "symmetric", True),
    "0.9^(k^2)": Family(_kernel(lambda k: 0.9 ** (k**2)), "symmetric", True),
    "algebraic": Family(_kernel(lambda k: (1 + k) ** -1.1), "symmetric", True),
    "second difference": Family(_kernel(lambda k: 2.0 * (k == 0) - (k == 1)), "symmetric", True),
    "Hermitian KMS": Family(_hermitian, "hermitian", True),
    "random": Family(_random),
    "complex": Family(_complex),
    "zero diagonal": Family(_diagonal(0.0)),
    "tiny diagonal": Family(_diagonal(1e-13)),
    "symmetric zero diagonal": Family(_symmetric_zero_diagonal, "symmetric"),
    "singular minor 1": Family(singular_minor(1)),
    "singular minor 2": Family(singular_minor(2)),
    "singular minor 51": Family(singular_minor(51)),
    "nearly singular minor 51": Family(singular_minor(51, 1e-9)),
    "cyclic shift": Family(_shift),
    "graded": Family(_graded),
}
