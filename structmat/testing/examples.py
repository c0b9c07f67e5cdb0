"""The single list of types: for each, named examples with a factory and the independent dense reference of
``reference``.

Tests, strategies, benchmarks and the documentation read this list; a type that is not here is not tested.
"""

from collections.abc import Callable
from typing import Any

import torch

from structmat import backend
from structmat.claims import Claim
from structmat.lazy import Inverse, Prepared, Product, Scaled, Slice, Sum
from structmat.matrix import Matrix
from structmat.testing.example import HALF, WIDE, Batch, Example, Factory, numbers
from structmat.testing.examples_banded import BANDED
from structmat.testing.examples_butterfly import BUTTERFLIES
from structmat.testing.examples_cauchy import CAUCHY
from structmat.testing.examples_displacement import DISPLACEMENT
from structmat.testing.examples_kronecker import KRONECKER
from structmat.testing.examples_lazy import IMPLICIT
from structmat.testing.examples_multilevel import MULTILEVEL
from structmat.testing.examples_orthogonal import ORTHOGONAL
from structmat.testing.examples_toeplitz import TOEPLITZ
from structmat.testing.examples_tucker import TUCKER
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = ["EXAMPLES", "HALF", "WIDE", "Example", "examples_of"]


def _dense(m: int, n: int, shift: float = 0.0) -> Factory:
    """Random entries; a shift of the diagonal makes a square one well conditioned."""
    return lambda g, d, b: Dense(numbers(g, d, *b, m, n) + shift * torch.eye(m, n, dtype=d))


def _diagonal(n: int) -> Factory:
    """Entries of modulus between 1/2 and 3/2, of any sign or phase."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        entries = numbers(g, d, *b, n)
        return Diagonal((torch.sgn(entries) * (0.5 + torch.rand(*b, n, generator=g, dtype=torch.float64))).to(d))

    return make


def _circulant(n: int, f: complex = 1, shift: float = 3.0) -> Factory:
    """A first entry that dominates keeps the eigenvalues away from zero."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        column = numbers(g, d, *b, n) / n**0.5
        return Circulant(column + shift * torch.nn.functional.one_hot(torch.tensor(0), n).to(d), f)

    return make


def _toeplitz(m: int, n: int, shift: float = 0.0) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        diagonals = numbers(g, d, *b, m + n - 1) / n**0.5
        return Toeplitz(diagonals + shift * torch.nn.functional.one_hot(torch.tensor(n - 1), m + n - 1).to(d), n)

    return make


def _symmetric(n: int, shift: float = 4.0) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        column = numbers(g, d, *b, n) / n**0.5
        return SymmetricToeplitz(column + shift * torch.nn.functional.one_hot(torch.tensor(0), n).to(d))

    return make


def _kac_murdock_szego(n: int, rho: float, **_: Any) -> Factory:
    """``rho^|i-j|``, positive definite, claimed so."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        size = 0.5 + torch.rand(*b, 1, generator=g, dtype=torch.float64)
        column = (size * rho ** torch.arange(n, dtype=torch.float64)).to(d)
        matrix = SymmetricToeplitz(column)
        return matrix if d.is_complex else matrix.assume(Claim.POSITIVE_DEFINITE)

    return make


def _low_rank(m: int, n: int, r: int) -> Factory:
    return lambda g, d, b: LowRank(numbers(g, d, *b, m, r), numbers(g, d, *b, n, r))


def _householder(r: int, n: int, phases: bool = False, zero: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        vectors = numbers(g, d, *b, r, n)
        if zero:
            vectors = vectors * (torch.arange(r) % 2).to(d)[:, None]
        return HouseholderProduct(vectors, numbers(g, backend.real_of(d), *b, r) if phases else None)

    return make


def _of(build: Callable[..., Matrix], *parts: Factory) -> Factory:
    """A composed matrix: draw the parts, then build."""
    return lambda g, d, b: build(*(part(g, d, b) for part in parts))


def _tensor_scaled(part: Factory, lead: bool) -> Factory:
    """Scaled by a tensor of shape () or (*batch, 1, 1)."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        return Scaled(
            part(g, d, b), 1.5 + torch.rand((*b, 1, 1) if lead else (), generator=g, dtype=torch.float64).to(d)
        )

    return make


def _basic() -> list[Example]:
    single = ((),)
    return [
        Example("dense-1x1", Dense, _dense(1, 1, 3.0), solvable=True),
        Example("dense-5x3", Dense, _dense(5, 3)),
        Example("dense-3x7", Dense, _dense(3, 7), batches=((), (2,), (2, 1))),
        Example("dense-6x6", Dense, _dense(6, 6, 8.0), solvable=True),
        Example("diagonal-1", Diagonal, _diagonal(1), solvable=True),
        Example("diagonal-5", Diagonal, _diagonal(5), batches=((), (2,), (3, 1)), solvable=True),
        Example("identity-4", Identity, lambda g, d, b: Identity(4, d), batches=single, solvable=True),
        Example("identity-1-any-dtype", Identity, lambda g, d, b: Identity(1), batches=single, solvable=True),
        Example("identity-7-any-dtype", Identity, lambda g, d, b: Identity(7), batches=single, solvable=True),
        Example("low-rank-5x3-r2", LowRank, _low_rank(5, 3, 2)),
        Example("low-rank-3x7-r0", LowRank, _low_rank(3, 7, 0)),
        Example("low-rank-4x4-r6", LowRank, _low_rank(4, 4, 6)),
        Example(
            "low-rank-1x1-r1",
            LowRank,
            lambda g, d, b: LowRank(numbers(g, d, *b, 1, 1) + 3, numbers(g, d, *b, 1, 1) + 3),
        ),
    ]


def _toeplitz_like() -> list[Example]:
    whole = (torch.complex128, torch.complex64)
    return [
        Example("circulant-1", Circulant, _circulant(1), solvable=True),
        Example("circulant-2", Circulant, _circulant(2), solvable=True),
        Example("circulant-8", Circulant, _circulant(8), batches=((), (2,), (3, 1)), solvable=True),
        Example("circulant-17-folded", Circulant, _circulant(17), solvable=True),
        Example("skew-circulant-1", Circulant, _circulant(1, -1), solvable=True),
        Example("skew-circulant-6", Circulant, _circulant(6, -1), solvable=True),
        Example("skew-circulant-7", Circulant, _circulant(7, -1), solvable=True),
        Example("f-circulant-5-f2", Circulant, _circulant(5, 2.0), solvable=True),
        Example("f-circulant-4-f-half", Circulant, _circulant(4, -0.5), solvable=True),
        Example("f-circulant-5-f0", Circulant, _circulant(5, 0), solvable=True),
        Example("f-circulant-5-complex-f", Circulant, _circulant(5, 0.6 + 0.8j), dtypes=WIDE, solvable=True),
        Example("f-circulant-3-far-f", Circulant, _circulant(3, 1e-9), dtypes=(*whole, torch.float64), solvable=True),
        Example("toeplitz-1x1", Toeplitz, _toeplitz(1, 1, 3.0), solvable=True),
        Example("toeplitz-1x6", Toeplitz, _toeplitz(1, 6)),
        Example("toeplitz-6x1", Toeplitz, _toeplitz(6, 1)),
        Example("toeplitz-5x3", Toeplitz, _toeplitz(5, 3), batches=((), (2,), (2, 1))),
        Example("toeplitz-3x11", Toeplitz, _toeplitz(3, 11)),
        Example("toeplitz-7x7", Toeplitz, _toeplitz(7, 7, 4.0), solvable=True),
        Example("symmetric-toeplitz-1", SymmetricToeplitz, _symmetric(1), solvable=True),
        Example("symmetric-toeplitz-2", SymmetricToeplitz, _symmetric(2), solvable=True),
        Example("symmetric-toeplitz-13", SymmetricToeplitz, _symmetric(13), solvable=True),
        Example("kms-9", SymmetricToeplitz, _kac_murdock_szego(9, 0.5), batches=((), (2,)), solvable=True),
    ]


def _reflectors() -> list[Example]:
    make = _householder
    return [
        Example("householder-5-r0", HouseholderProduct, make(0, 5), solvable=True),
        Example("householder-1-r1", HouseholderProduct, make(1, 1), solvable=True),
        Example("householder-5-r2", HouseholderProduct, make(2, 5), batches=((), (2,), (3, 1)), solvable=True),
        Example("householder-4-r9", HouseholderProduct, make(9, 4), solvable=True),
        Example("householder-5-r4-zeros", HouseholderProduct, make(4, 5, zero=True), solvable=True, smooth=False),
        Example("householder-5-r3-phases", HouseholderProduct, make(3, 5, phases=True), dtypes=WIDE, solvable=True),
    ]


def _lazy() -> list[Example]:
    toeplitz, circulant, reflections = _toeplitz(5, 5, 4.0), _circulant(5), _householder(2, 5)
    diagonal, wide = _diagonal(5), _toeplitz(3, 5)
    return [
        Example("product-3x5", Product, _of(lambda *p: Product(p), wide, circulant, diagonal)),
        Example("product-5", Product, _of(lambda *p: Product(p), toeplitz, reflections), solvable=True),
        Example("sum-5", Sum, _of(lambda *p: Sum(p), reflections, toeplitz, diagonal)),
        Example("sum-3x5", Sum, _of(lambda *p: Sum(p), wide, _low_rank(3, 5, 2))),
        Example("scaled-by-number", Scaled, _of(lambda p: Scaled(p, -2.5), reflections), solvable=True),
        Example(
            "scaled-by-complex", Scaled, _of(lambda p: Scaled(p, 0.6 + 0.8j), reflections), dtypes=WIDE, solvable=True
        ),
        Example("scaled-by-tensor", Scaled, _tensor_scaled(reflections, lead=False), solvable=True),
        Example("scaled-by-batch", Scaled, _tensor_scaled(wide, lead=True), batches=((), (2,))),
        Example("inverse-toeplitz", Inverse, _of(Inverse, toeplitz), solvable=True),
        Example(
            "inverse-toeplitz-prepared",
            Inverse,
            _of(lambda p: Inverse(p).prepare(), toeplitz),
            dtypes=WIDE,
            solvable=True,
        ),
        Example("slice-3x2", Slice, _of(lambda p: Slice(p, (1, 5, 2), (4, 0, -2)), reflections)),
        Example("slice-principal", Slice, _of(lambda p: Slice(p, (0, 3, 1), (0, 3, 1)), _kac_murdock_szego(5, 0.5))),
        Example("prepared-circulant", Prepared, _of(lambda p: p.prepare(), circulant), solvable=True),
        Example("prepared-skew", Prepared, _of(lambda p: p.prepare(), _circulant(6, -1)), solvable=True),
        Example("prepared-toeplitz", Prepared, _of(lambda p: p.prepare(), wide)),
        Example("prepared-reflections", Prepared, _of(lambda p: p.prepare(), reflections), solvable=True),
    ]


EXAMPLES: tuple[Example, ...] = (
    *_basic(),
    *_toeplitz_like(),
    *_reflectors(),
    *_lazy(),
    *TOEPLITZ,
    *IMPLICIT,
    *ORTHOGONAL,
    *BUTTERFLIES,
    *MULTILEVEL,
    *DISPLACEMENT,
    *CAUCHY,
    *KRONECKER,
    *TUCKER,
    *BANDED,
)


def examples_of(kind: type[Matrix]) -> tuple[Example, ...]:
    """The examples of one type; empty for a type that the library does not know."""
    return tuple(e for e in EXAMPLES if e.type is kind)
