"""Hypothesis strategies: ``matrices()`` draws any type of the library, and there is one strategy a type.

Each is a function of ``(dtype, most, batch, shape, entries)``: rows and columns from 1 to ``most``, or ``shape``; a
batch drawn, or ``batch``; ``entries`` chooses the kinds of numbers, as ``tensors`` lists them. A tensor costs two
choices however large it is, and shrinks to few small integers, so that what a failing test prints can be read.
"""

from typing import Any

import torch
from hypothesis import strategies as st

from structmat import lazy
from structmat.matrix import Matrix
from structmat.testing.strategies_banded import banded, blocks, triangular
from structmat.testing.strategies_basic import (
    block_diagonal,
    cauchy_like,
    dense,
    diagonals,
    identities,
    low_rank,
    permutations,
    vandermonde,
    zeros,
)
from structmat.testing.strategies_butterfly import (
    butterflies,
    givens_products,
    householder_products,
    orthogonal_butterflies,
)
from structmat.testing.strategies_composed import (
    implicit,
    inverses,
    kronecker,
    kronecker_sums,
    prepared,
    products,
    scaled,
    slices,
    submatrices,
    sums,
    well_conditioned,
)
from structmat.testing.strategies_entries import (
    HARD,
    KINDS,
    Batch,
    Draw,
    Entries,
    Function,
    Size,
    Strategy,
    batch_shapes,
    check_shape,
    dtypes,
    legal_kinds,
    tensors,
)
from structmat.testing.strategies_hard import ill_conditioned
from structmat.testing.strategies_toeplitz import (
    block_circulants,
    block_toeplitz,
    circulants,
    cosine_diagonals,
    hankel,
    hermitian_toeplitz,
    low_displacement_rank,
    orthogonal_circulants,
    reflected_convolutions,
    symmetric_toeplitz,
    toeplitz,
)
from structmat.testing.strategies_tucker import tucker_matrices, tucker_tensors
from structmat.types.banded import Banded
from structmat.types.block import Block
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.butterfly import Butterfly
from structmat.types.cauchy import CauchyLike
from structmat.types.circulant import Circulant
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.displacement import LowDisplacementRank
from structmat.types.givens import GivensProduct
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.householder import HouseholderProduct
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.low_rank import LowRank
from structmat.types.orthogonal_butterfly import OrthogonalButterfly
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.permutation import Permutation
from structmat.types.reflected_convolution import ReflectedConvolution
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.triangular import Triangular
from structmat.types.tucker_matrix_family import TuckerMatrix
from structmat.types.vandermonde import Vandermonde
from structmat.types.zero import Zero

__all__ = [
    "HARD",
    "KINDS",
    "banded",
    "batch_shapes",
    "block_circulants",
    "block_diagonal",
    "block_toeplitz",
    "blocks",
    "butterflies",
    "cauchy_like",
    "circulants",
    "conformable_pairs",
    "cosine_diagonals",
    "dense",
    "diagonals",
    "dtypes",
    "givens_products",
    "hankel",
    "hermitian_toeplitz",
    "householder_products",
    "identities",
    "ill_conditioned",
    "implicit",
    "inverses",
    "kronecker",
    "kronecker_sums",
    "low_displacement_rank",
    "low_rank",
    "matrices",
    "of_type",
    "orthogonal_butterflies",
    "orthogonal_circulants",
    "permutations",
    "prepared",
    "products",
    "reflected_convolutions",
    "scaled",
    "slices",
    "submatrices",
    "sums",
    "symmetric_toeplitz",
    "tensors",
    "toeplitz",
    "triangular",
    "tucker_matrices",
    "tucker_tensors",
    "vandermonde",
    "well_conditioned",
    "zeros",
]

_ANY: dict[type[Matrix], Function] = {
    Dense: dense,
    Hankel: hankel,
    Toeplitz: toeplitz,
    LowRank: low_rank,
    Block: blocks,
    BlockDiagonal: block_diagonal,
    BlockToeplitz: block_toeplitz,
    Butterfly: butterflies,
    TuckerMatrix: tucker_matrices,
    CauchyLike: cauchy_like,
    Vandermonde: vandermonde,
    Kronecker: kronecker,
    Zero: zeros,
    lazy.Product: products,
    lazy.Sum: sums,
    lazy.Scaled: scaled,
    lazy.Slice: slices,
    lazy.Prepared: prepared,
    lazy.Implicit: implicit,
}
_SQUARE: dict[type[Matrix], Function] = {
    Diagonal: diagonals,
    Banded: banded,
    Triangular: triangular,
    Identity: identities,
    Permutation: permutations,
    Circulant: circulants,
    SymmetricToeplitz: symmetric_toeplitz,
    HermitianToeplitz: hermitian_toeplitz,
    HouseholderProduct: householder_products,
    GivensProduct: givens_products,
    OrthogonalButterfly: orthogonal_butterflies,
    OrthogonalCirculant: orthogonal_circulants,
    LowDisplacementRank: low_displacement_rank,
    Submatrix: submatrices,
    BlockCirculant: block_circulants,
    CosineDiagonal: cosine_diagonals,
    ReflectedConvolution: reflected_convolutions,
    KroneckerSum: kronecker_sums,
    lazy.Inverse: inverses,
}


def of_type(type: type[Matrix]) -> Function:
    """The strategy of a type, a function of ``(dtype, most, batch, shape, entries)``; ValueError if there is none."""
    found = _ANY.get(type) or _SQUARE.get(type)
    if found is None:
        names = ", ".join(sorted(t.__name__ for t in (*_ANY, *_SQUARE)))
        raise ValueError(f"{type.__name__}: there is no strategy for this type; legal are {names}")
    return found


def matrices(
    type: type[Matrix] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    most: int = 9,
    batch: Batch = None,
    shape: Size = None,
    entries: Entries = None,
) -> Strategy:
    """A matrix of the given type, or of any: rows and columns 1 to ``most``, or ``shape``; a batch drawn, or ``batch``;
    ``entries`` one of the kinds that ``tensors`` lists, or several.

    ValueError for a type without a strategy, a shape that it does not have, or a kind that does not exist.
    """
    if type is not None:
        return of_type(type)(dtype, most, batch, shape, entries)
    legal_kinds(entries)
    check_shape("matrices", shape)
    square = shape is None or shape[0] == shape[1]
    kinds = [*_ANY, *(_SQUARE if square else ())]
    without: set[Any] = {Identity} if batch else set()
    without |= {lazy.Inverse} if entries is not None else set()
    return _matrices(tuple(kind for kind in kinds if kind not in without), dtype, most, batch, shape, entries)


@st.composite
def _matrices(draw: Any, kinds: Any, dtype: Any, most: int, batch: Batch, shape: Size, entries: Entries) -> Matrix:
    d = Draw(draw, dtype, most, batch, shape, legal_kinds(entries))
    return _drawn(d, kinds, batch, shape)


def _drawn(d: Draw, kinds: Any, batch: Batch, shape: Size) -> Matrix:
    chosen: Any = of_type(d.choose(*kinds))
    found: Matrix = d.part(chosen.form, batch, shape)
    return found


_BATCHES: tuple[tuple[Any, Any], ...] = (
    ((), ()),
    ((2,), ()),
    ((), (2,)),
    ((2,), (2,)),
    ((2, 1), (3,)),
    ((1,), (2,)),
)


def conformable_pairs(
    verb: str = "matmul",
    *,
    left: type[Matrix] | None = None,
    right: type[Matrix] | None = None,
    dtype: torch.dtype = torch.float64,
    most: int = 5,
    batch: Batch = None,
    entries: Entries = None,
) -> Strategy:
    """Pairs ``(A, B)`` for which ``A @ B`` ("matmul") or ``A + B`` ("add") is defined, or ``(A, b)`` for
    ``A.solve(b)`` ("solve": A well conditioned, b a vector or columns).

    ``left``, ``right``: the types of the two, any by default; batches differ and broadcast unless ``batch`` is given.
    ValueError for another verb, and for types that a solve does not choose.
    """
    if verb not in ("matmul", "add", "solve"):
        raise ValueError(f"conformable_pairs({verb!r}): legal verbs are 'matmul', 'add', 'solve'")
    if verb == "solve" and (left is not None or right is not None):
        raise ValueError("conformable_pairs('solve'): the types are those of well_conditioned; leave them None")
    for kind in (left, right):
        if kind is not None:
            of_type(kind)
    kinds = legal_kinds(entries)
    return _pair(verb, left, right, batch, dtype, most, kinds)


@st.composite
def _pair(
    draw: Any, verb: str, left: Any, right: Any, batch: Batch, dtype: torch.dtype, most: int, kinds: tuple[str, ...]
) -> tuple[Matrix, Any]:
    d = Draw(draw, dtype, most, batch, None, kinds)
    first, second = (batch, batch) if batch is not None else d.choose(*_BATCHES)
    n = d.integer(1, most)
    if verb == "solve":
        a = d.part(well_conditioned.form, first, (n, n))  # type: ignore[attr-defined]
        columns = d.integer(0, 3)
        return a, d.tensor(n) if not columns else d.tensor(*second, n, columns)
    if verb == "add":
        m = n if left in _SQUARE or right in _SQUARE else d.integer(1, most)
        shapes = (m, n), (m, n)
    else:
        m, k = (n if kind in _SQUARE else d.integer(1, most) for kind in (left, right))
        shapes = (m, n), (n, k)
    found = []
    for kind, lead, shape in zip((left, right), (first, second), shapes, strict=True):
        some = (*_ANY, *(_SQUARE if shape[0] == shape[1] else ()))
        legal = tuple(t for t in some if not (t is Identity and lead))
        found.append(_drawn(d, legal if kind is None else (kind,), () if kind is Identity else lead, shape))
    return found[0], found[1]
