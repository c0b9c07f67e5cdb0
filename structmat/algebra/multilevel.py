"""Rules of matrices of several levels with each other and with multiples of the identity."""

from typing import Any

import torch

from structmat.dispatch import lookup, rule
from structmat.errors import StructureError
from structmat.functional import multilevel as fm
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, hadamard
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.diagonal import Identity

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _fits(a: BlockToeplitz, b: BlockCirculant) -> bool:
    return a._row_sizes() == b._row_sizes() == a.columns


# -- conversions --------------------------------------------------------------------------------------------------


@rule("block_toeplitz", BlockCirculant)
def _circulant_as_toeplitz(a: BlockCirculant) -> Matrix:
    """The same entries, each wrapped diagonal of each level stored on its own."""
    folded = a.generators
    for axis in range(-a.levels, 0):
        folded = fm.fold_axis(folded, axis)
    return BlockToeplitz(folded, a._row_sizes())


# -- sums and entrywise products ----------------------------------------------------------------------------------


@rule("add", BlockToeplitz, BlockCirculant)
def _toeplitz_plus_circulant(a: BlockToeplitz, b: BlockCirculant) -> Matrix:
    """Equal levels: BlockToeplitz; else lazy."""
    return add(a, _circulant_as_toeplitz(b)) if _fits(a, b) else _lazily("add", a, b)


@rule("add", BlockCirculant, BlockToeplitz)
def _circulant_plus_toeplitz(a: BlockCirculant, b: BlockToeplitz) -> Matrix:
    """Equal levels: BlockToeplitz; else lazy."""
    return add(_circulant_as_toeplitz(a), b) if _fits(b, a) else _lazily("add", a, b)


@rule("hadamard", BlockToeplitz, BlockCirculant)
def _toeplitz_times_circulant(a: BlockToeplitz, b: BlockCirculant) -> Matrix:
    """Equal levels: BlockToeplitz; else StructureError."""
    if not _fits(a, b):
        raise StructureError(f"{a!r} * {b!r}: the levels differ, so the entrywise product has no structured form")
    return hadamard(a, _circulant_as_toeplitz(b))


@rule("hadamard", BlockCirculant, BlockToeplitz)
def _circulant_times_toeplitz(a: BlockCirculant, b: BlockToeplitz) -> Matrix:
    """Equal levels: BlockToeplitz; else StructureError."""
    return _toeplitz_times_circulant(b, a)


# -- multiples of the identity ------------------------------------------------------------------------------------


def _level_value(s: Any, a: Any) -> torch.Tensor:
    """A number, or a tensor of shape () or (*b, 1, 1), with one axis of length 1 for each level."""
    like = a._stored()
    if not isinstance(s, torch.Tensor):
        dtype = torch.promote_types(like.dtype, torch.complex64) if isinstance(s, complex) else like.dtype
        s = torch.as_tensor(s, dtype=dtype, device=like.device)
    lead = s.shape[:-2] if s.ndim else ()
    return s.reshape(*lead, *(1,) * a._levels())


def _shift(a: Matrix, s: Any) -> Matrix:
    """A + s I: one generator grows, or every eigenvalue."""
    value = _level_value(s, a)
    if isinstance(a, CosineDiagonal):
        return CosineDiagonal(a.eigenvalues + value, a.levels)
    pads: list[int] = []
    if isinstance(a, BlockCirculant):
        for n in reversed(a._row_sizes()):
            pads += [0, n - 1]
        return BlockCirculant(a.generators + torch.nn.functional.pad(value, pads), a.levels)
    assert isinstance(a, BlockToeplitz)
    for n in reversed(a.columns):
        pads += [n - 1, n - 1]
    return BlockToeplitz(a.generators + torch.nn.functional.pad(value, pads), a.columns)


def _shiftable(a: Matrix) -> bool:
    """Whether the identity is of the type: a BlockToeplitz of 2 x 3 by 3 x 2 levels is square, and it is not."""
    return not isinstance(a, BlockToeplitz) or a._row_sizes() == a.columns


def _in(matrix: Matrix, other: Identity) -> Matrix:
    """The matrix, in the dtype the sum with this identity promotes to."""
    return matrix if other.dtype is None or other.dtype == matrix.dtype else matrix.to(other.dtype)


def _shifted_rules(kind: type[Matrix]) -> None:
    @rule("add", kind, Identity)
    def plus_identity(a: Matrix, b: Identity) -> Matrix:
        """The same type: the main diagonal grows by one."""
        return _in(_shift(a, 1), b) if _shiftable(a) else _lazily("add", a, b)

    @rule("add", Identity, kind)
    def identity_plus(a: Identity, b: Matrix) -> Matrix:
        """The same type: the main diagonal grows by one."""
        return _in(_shift(b, 1), a) if _shiftable(b) else _lazily("add", a, b)

    @rule("add", kind, Scaled)
    def plus_scaled(a: Matrix, b: Scaled) -> Matrix:
        """The same type for s I; else lazy."""
        inner = b.matrix
        closed = isinstance(inner, Identity) and _shiftable(a)
        return _in(_shift(a, b.scale), inner) if closed and isinstance(inner, Identity) else _lazily("add", a, b)

    @rule("add", Scaled, kind)
    def scaled_plus(a: Scaled, b: Matrix) -> Matrix:
        """The same type for s I; else lazy."""
        return plus_scaled(b, a) if isinstance(a.matrix, Identity) and _shiftable(b) else _lazily("add", a, b)


for _kind in (BlockCirculant, BlockToeplitz, CosineDiagonal):
    _shifted_rules(_kind)
