"""Examples and references of the Hankel, Hermitian Toeplitz and orthogonal circulant types."""

import math
from typing import Any

import numpy
import torch

from structmat.claims import Claim
from structmat.lazy import Inverse, Prepared
from structmat.matrix import Matrix
from structmat.testing.example import WIDE, Batch, Example, Factory, numbers
from structmat.testing.reference import as_wide, each, reference
from structmat.types.circulant import Circulant
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.orthogonal_circulant import OrthogonalCirculant

__all__ = ["TOEPLITZ"]

Array = Any
_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


# -- what they mean -----------------------------------------------------------------------------------------------


def _hankel_entries(h: Array, columns: int) -> Array:
    rows = len(h) - columns + 1
    out = numpy.zeros((rows, columns), dtype=h.dtype)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = h[i + j]
    return out


@reference(Hankel)
def _hankel_reference(a: Any) -> Array:
    return each(lambda h: _hankel_entries(h, a.columns), (as_wide(a.antidiagonals), 1))


def _hermitian_entries(c: Array) -> Array:
    n = len(c)
    out = numpy.zeros((n, n), dtype=c.dtype)
    for i in range(n):
        out[i, i] = c[0].real
        for j in range(i):
            out[i, j] = c[i - j]
            out[j, i] = numpy.conj(c[i - j])
    return out


@reference(HermitianToeplitz)
def _hermitian_reference(a: Any) -> Array:
    return each(_hermitian_entries, (as_wide(a.column), 1))


def _phase_entries(angles: Array, signs: tuple[int, ...], f: int) -> Array:
    """``sum_k lam_k u_k u_k^H`` over the normalised eigenvectors ``u_k[j] = z_k^-j / sqrt(n)``.

    The nodes ``z_k = exp(i pi (phase - 2 k) / n)``, phase 0 for f = 1 and 1 for f = -1, solve ``z^n = f``.
    """
    p = len(angles)
    n = 2 * p + len(signs)
    phase = 0 if f == 1 else 1
    alone = [k for k in range(n) if (2 * k - phase) % n == 0]  # z_k is 1 or -1
    values: dict[int, complex] = {k: complex(s) for k, s in zip(alone, signs, strict=True)}
    for k in range(1, p + 1):
        values[k] = complex(math.cos(angles[k - 1]), math.sin(angles[k - 1]))
        values[(phase - k) % n] = values[k].conjugate()
    out = numpy.zeros((n, n), dtype=complex)
    for k, value in values.items():
        node = numpy.exp(1j * numpy.pi * (phase - 2 * k) / n)
        u = node ** -numpy.arange(n) / math.sqrt(n)
        out += value * numpy.outer(u, u.conj())
    return out.real


@reference(OrthogonalCirculant)
def _orthogonal_reference(a: Any) -> Array:
    return each(lambda t: _phase_entries(t, a.signs, a.f), (as_wide(a.angles), 1))


# -- examples -----------------------------------------------------------------------------------------------------


def _hankel(m: int, n: int, shift: float = 0.0) -> Factory:
    """A large middle antidiagonal makes a square one well conditioned."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        h = numbers(g, d, *b, m + n - 1) / n**0.5
        return Hankel(h + shift * torch.nn.functional.one_hot(torch.tensor(n - 1), m + n - 1).to(d), n)

    return make


def _hermitian(n: int, definite: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        column = numbers(g, d, *b, n) / n**0.5
        if definite:  # diagonally dominant: |c_k| sums to less than half of c_0
            column = column / (4 * n**0.5) / column.abs().clamp_min(1)
            matrix = HermitianToeplitz(column + torch.nn.functional.one_hot(torch.tensor(0), n).to(d))
            return matrix.assume(Claim.POSITIVE_DEFINITE)
        return HermitianToeplitz(column + 4 * torch.nn.functional.one_hot(torch.tensor(0), n).to(d))

    return make


def _phases(p: int, signs: tuple[int, ...], f: int = 1) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        angles = 2 * torch.randn(*b, p, generator=g, dtype=torch.float64)
        return OrthogonalCirculant(angles.to(d), signs, f)

    return make


def _of(part: Factory, build: Any) -> Factory:
    return lambda g, d, b: build(part(g, d, b))


def _triangular(n: int, f: complex) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        column = numbers(g, d, *b, n) * 0.5 ** torch.arange(n, dtype=torch.float64).to(d)
        return Circulant(column / 2 + 2 * torch.nn.functional.one_hot(torch.tensor(0), n).to(d), f)

    return make


TOEPLITZ: tuple[Example, ...] = (
    Example("hankel-1x1", Hankel, _hankel(1, 1, 3.0), solvable=True),
    Example("hankel-1x5", Hankel, _hankel(1, 5)),
    Example("hankel-6x1", Hankel, _hankel(6, 1)),
    Example("hankel-5x3", Hankel, _hankel(5, 3), batches=((), (2,), (2, 1))),
    Example("hankel-3x8", Hankel, _hankel(3, 8)),
    Example("hankel-7x7", Hankel, _hankel(7, 7, 4.0), batches=((), (2,), (3, 1)), solvable=True),
    Example("inverse-hankel-kept", Inverse, _of(_hankel(5, 5, 4.0), lambda a: a.inv()), dtypes=WIDE, solvable=True),
    Example("prepared-hankel", Prepared, _of(_hankel(4, 6), lambda a: a.prepare())),
    Example("hermitian-toeplitz-1", HermitianToeplitz, _hermitian(1), solvable=True),
    Example("hermitian-toeplitz-2", HermitianToeplitz, _hermitian(2), solvable=True),
    Example("hermitian-toeplitz-9", HermitianToeplitz, _hermitian(9), batches=((), (2,), (3, 1)), solvable=True),
    Example("hermitian-toeplitz-6-definite", HermitianToeplitz, _hermitian(6, definite=True), solvable=True),
    Example("circulant-6-f0-steep", Circulant, _triangular(6, 0), solvable=True),
    Example("circulant-6-tiny-f", Circulant, _triangular(6, -1e-10), solvable=True),
    Example("orthogonal-circulant-1", OrthogonalCirculant, _phases(0, (-1,)), dtypes=_REAL, solvable=True),
    Example("orthogonal-circulant-2", OrthogonalCirculant, _phases(0, (1, -1)), dtypes=_REAL, solvable=True),
    Example("orthogonal-circulant-7", OrthogonalCirculant, _phases(3, (-1,)), dtypes=_REAL, solvable=True),
    Example(
        "orthogonal-circulant-8",
        OrthogonalCirculant,
        _phases(3, (1, -1)),
        dtypes=_REAL,
        batches=((), (2,), (3, 1)),
        solvable=True,
    ),
    Example("orthogonal-skew-circulant-6", OrthogonalCirculant, _phases(3, (), -1), dtypes=_REAL, solvable=True),
    Example("orthogonal-skew-circulant-5", OrthogonalCirculant, _phases(2, (-1,), -1), dtypes=_REAL, solvable=True),
)
