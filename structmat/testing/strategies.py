"""Hypothesis strategies: ``matrices()`` draws any type of the library, and there is one strategy a type.

Sizes, ranks and batches are drawn and shrink; entries come from a drawn seed and a drawn kind of number (normal, small
integers, zeros among them, widely spread), because single entries say little and shrinking them takes long.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from structmat import backend
from structmat.matrix import Matrix
from structmat.testing.strategies_butterfly import butterflies, orthogonal_butterflies
from structmat.testing.strategies_tucker import tucker_matrices
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.butterfly import Butterfly
from structmat.types.circulant import Circulant
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.displacement import LowDisplacementRank
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank
from structmat.types.orthogonal_butterfly import OrthogonalButterfly
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.reflected_convolution import ReflectedConvolution
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = [
    "block_toeplitz",
    "butterflies",
    "circulants",
    "dense",
    "diagonals",
    "dtypes",
    "hankel",
    "hermitian_toeplitz",
    "householder_products",
    "identities",
    "low_displacement_rank",
    "low_rank",
    "matrices",
    "multilevel",
    "orthogonal_butterflies",
    "orthogonal_circulants",
    "submatrices",
    "symmetric_toeplitz",
    "tensors",
    "toeplitz",
    "tucker_matrices",
]

KINDS = ("normal", "integers", "some zeros", "spread")
Strategy = st.SearchStrategy[Any]


def dtypes(half: bool = False) -> Strategy:
    """The dtypes that everything accepts; half and bfloat16 on request."""
    wide = [torch.float64, torch.complex128, torch.float32, torch.complex64]
    return st.sampled_from(wide + ([torch.bfloat16, torch.float16] if half else []))


def _numbers(seed: int, kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    drawn = torch.randn(shape, generator=generator, dtype=wide)
    if kind == "integers":
        drawn = torch.round(2 * drawn.real).to(wide)
    elif kind == "some zeros":
        drawn = drawn * (torch.rand(shape, generator=generator) < 0.6)
    elif kind == "spread":
        most = 1 if dtype == torch.float16 else 3  # products of larger numbers overflow half precision
        drawn = drawn * 10.0 ** torch.randint(-most, most + 1, shape, generator=generator)
    return drawn.to(dtype)


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Strategy:
    """A tensor of this shape and dtype."""
    return st.builds(
        lambda seed, kind: _numbers(seed, kind, dtype, shape), st.integers(0, 2**31 - 1), st.sampled_from(KINDS)
    )


def _sizes(most: int) -> Strategy:
    return st.integers(1, most)


def _batches(batch: tuple[int, ...] | None) -> Strategy:
    return st.just(batch) if batch is not None else st.sampled_from([(), (), (2,), (2, 1)])


def dense(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``Dense`` of any shape, or of the shape given."""
    sizes = st.just(shape) if shape else st.tuples(_sizes(most), _sizes(most))
    return st.tuples(_batches(batch), sizes).flatmap(lambda bs: tensors((*bs[0], *bs[1]), dtype)).map(Dense)


def diagonals(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``Diagonal``."""
    return _vectors(dtype, most, batch, n).map(Diagonal)


def _vectors(dtype: torch.dtype, most: int, batch: tuple[int, ...] | None, n: int | None) -> Strategy:
    sizes = _sizes(most) if n is None else st.just(n)
    return st.tuples(_batches(batch), sizes).flatmap(lambda bn: tensors((*bn[0], bn[1]), dtype))


def identities(dtype: torch.dtype = torch.float64, most: int = 9, n: int | None = None) -> Strategy:
    """``Identity`` with the dtype, or without one."""
    return st.builds(Identity, _sizes(most) if n is None else st.just(n), st.sampled_from([dtype, None]))


def circulants(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``Circulant`` of several f, zero among them (f is complex only where the dtype is)."""
    numbers = [1, -1, 0, 2, -0.5] + ([1j, 0.6 - 0.8j] if dtype.is_complex else [])
    return st.builds(Circulant, _vectors(dtype, most, batch, n), st.sampled_from(numbers))


def toeplitz(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``Toeplitz`` of any shape, or of the shape given."""
    sizes = st.just(shape) if shape else st.tuples(_sizes(most), _sizes(most))
    return st.tuples(_batches(batch), sizes).flatmap(
        lambda bs: st.builds(Toeplitz, tensors((*bs[0], sum(bs[1]) - 1), dtype), st.just(bs[1][1]))
    )


def symmetric_toeplitz(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``SymmetricToeplitz``."""
    return _vectors(dtype, most, batch, n).map(SymmetricToeplitz)


def hankel(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``Hankel`` of any shape, or of the shape given."""
    return toeplitz(dtype, most, batch, shape).map(lambda t: Hankel(t.diagonals, t.columns))


def hermitian_toeplitz(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``HermitianToeplitz``."""
    return _vectors(dtype, most, batch, n).map(HermitianToeplitz)


def orthogonal_circulants(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``OrthogonalCirculant`` of f = 1 and -1, any signs; real also for a complex dtype, in its precision."""

    def build(drawn: Any) -> Strategy:
        lead, order, f = drawn
        count = 1 + (order % 2 == 0) if f == 1 else order % 2
        angles = tensors((*lead, (order - count) // 2), backend.real_of(dtype))
        return st.builds(OrthogonalCirculant, angles, st.tuples(*[st.sampled_from([1, -1])] * count), st.just(f))

    orders = _sizes(most) if n is None else st.just(n)
    return st.tuples(_batches(batch), orders, st.sampled_from([1, -1])).flatmap(build)


def low_rank(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``LowRank`` of rank 0 to two above the order."""
    sizes = st.just(shape) if shape else st.tuples(_sizes(most), _sizes(most))

    def build(drawn: Any) -> Strategy:
        lead, (m, n), r = drawn
        return st.builds(LowRank, tensors((*lead, m, r), dtype), tensors((*lead, n, r), dtype))

    return st.tuples(_batches(batch), sizes, st.integers(0, most + 2)).flatmap(build)


def householder_products(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``HouseholderProduct`` of 0 to two reflectors above the order; with phases where the dtype is complex."""

    def build(drawn: Any) -> Strategy:
        lead, order, r = drawn
        phases = tensors((*lead, r), backend.real_of(dtype)) if dtype.is_complex else st.none()
        return st.builds(HouseholderProduct, tensors((*lead, r, order), dtype), st.none() | phases)

    return st.tuples(_batches(batch), _sizes(most) if n is None else st.just(n), st.integers(0, most + 2)).flatmap(
        build
    )


def low_displacement_rank(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``LowDisplacementRank`` of rank 0 to 4 under several operators (complex ones only where the dtype is)."""
    pairs: list[tuple[complex, complex]] = [(1, -1), (-1, 1), (2, -1), (1, 0.5)]

    def build(drawn: Any) -> Strategy:
        lead, order, r, (e, f) = drawn
        shape = (*lead, order, r)
        return st.builds(LowDisplacementRank, tensors(shape, dtype), tensors(shape, dtype), st.just(e), st.just(f))

    some = st.sampled_from(pairs + ([(1j, -1)] if dtype.is_complex else []))
    return st.tuples(_batches(batch), _sizes(most) if n is None else st.just(n), st.integers(0, 4), some).flatmap(build)


def submatrices(
    dtype: torch.dtype = torch.float64, most: int = 9, batch: tuple[int, ...] | None = None, n: int | None = None
) -> Strategy:
    """``Submatrix`` of a ``Toeplitz``: up to three indices more than are kept, in any order."""

    def build(drawn: Any) -> Strategy:
        lead, kept, more = drawn
        whole = toeplitz(dtype, most, lead, (kept + more, kept + more))
        keep = st.permutations(range(kept + more)).map(lambda p: torch.tensor(p[:kept]))
        return st.builds(Submatrix, whole, keep)

    return st.tuples(_batches(batch), _sizes(most) if n is None else st.just(n), st.integers(0, 3)).flatmap(build)


def _factors(n: int) -> Strategy:
    """One or two level sizes whose product is n."""
    return st.sampled_from([(n,), *((p, n // p) for p in range(1, n + 1) if n % p == 0)])


def multilevel(
    kind: Any,
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    n: int | None = None,
) -> Strategy:
    """``BlockCirculant``, ``CosineDiagonal`` or ``ReflectedConvolution`` (kernels of 1 to 4 entries a level) of one or
    two levels."""

    def build(drawn: Any) -> Strategy:
        lead, sizes, ends = drawn
        if kind is ReflectedConvolution:
            return st.builds(kind, tensors((*lead, *ends[: len(sizes)]), dtype), st.just(sizes), st.booleans())
        return st.builds(kind, tensors((*lead, *sizes), dtype), st.just(len(sizes)))

    levels = (_sizes(most) if n is None else st.just(n)).flatmap(_factors)
    return st.tuples(_batches(batch), levels, st.tuples(_sizes(4), _sizes(4))).flatmap(build)


def block_toeplitz(
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """``BlockToeplitz`` of one or two levels, of any shape, or of the shape given."""
    sizes = st.just(shape) if shape else st.tuples(_sizes(most), _sizes(most))

    def build(drawn: Any) -> Strategy:
        lead, rows, columns = drawn
        rows, columns = (v if len(rows) == len(columns) else (*v, 1)[:2] for v in (rows, columns))
        ends = tuple(p + q - 1 for p, q in zip(rows, columns, strict=True))
        return st.builds(BlockToeplitz, tensors((*lead, *ends), dtype), st.just(columns))

    levels = sizes.flatmap(lambda mn: st.tuples(_factors(mn[0]), _factors(mn[1])))
    return st.tuples(_batches(batch), levels).map(lambda drawn: (drawn[0], *drawn[1])).flatmap(build)


_SQUARE: dict[type[Matrix], Callable[..., Strategy]] = {
    Diagonal: diagonals,
    Circulant: circulants,
    SymmetricToeplitz: symmetric_toeplitz,
    HermitianToeplitz: hermitian_toeplitz,
    HouseholderProduct: householder_products,
    OrthogonalButterfly: orthogonal_butterflies,
    OrthogonalCirculant: orthogonal_circulants,
    LowDisplacementRank: low_displacement_rank,
    Submatrix: submatrices,
    BlockCirculant: functools.partial(multilevel, BlockCirculant),
    CosineDiagonal: functools.partial(multilevel, CosineDiagonal),
    ReflectedConvolution: functools.partial(multilevel, ReflectedConvolution),
}
_ANY: dict[type[Matrix], Callable[..., Strategy]] = {
    Dense: dense,
    Hankel: hankel,
    Toeplitz: toeplitz,
    LowRank: low_rank,
    BlockToeplitz: block_toeplitz,
    Butterfly: butterflies,
    TuckerMatrix: tucker_matrices,
}


def matrices(
    type: type[Matrix] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: tuple[int, ...] | None = None,
    shape: tuple[int, int] | None = None,
) -> Strategy:
    """A matrix of the given type, or of any: rows and columns 1 to ``most``, or ``shape``; a batch drawn, or ``batch``.

    ValueError for a type without a strategy, or a shape that it does not have.
    """
    legal: list[Any] = [*_SQUARE, *_ANY, Identity]
    if type is not None and type not in legal:
        names = ", ".join(sorted(t.__name__ for t in legal))
        raise ValueError(f"matrices({type.__name__}): no strategy for this type; legal are {names}")
    square = shape is None or shape[0] == shape[1]
    if not square and type is not None and type not in _ANY:
        raise ValueError(f"matrices({type.__name__}, shape={shape}): {type.__name__} is square")
    n = None if shape is None else shape[0]
    choices: list[Strategy] = []
    for kind, strategy in _ANY.items():
        if type in (None, kind):
            choices.append(strategy(dtype, most, batch, shape))
    for kind, strategy in _SQUARE.items():
        if type in (None, kind) and square:
            choices.append(strategy(dtype, most, batch, n))
    if type in (None, Identity) and square and not batch:
        choices.append(identities(dtype, most, n))
    return st.one_of(choices)
