"""Rules between different types, a verb a section. Rules within one family stay in the file of the type."""

from typing import Any

import torch

from structmat.dispatch import lookup, rule
from structmat.functional import toeplitz as ft
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, scaled
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.householder import HouseholderProduct, identity_minus
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.toeplitz_family import ToeplitzFamily

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _as(matrix: Matrix, other: Identity) -> Matrix:
    """The matrix, in the dtype the product with this identity promotes to."""
    return matrix if other.dtype is None or other.dtype == matrix.dtype else matrix.to(other.dtype)


# -- conversions --------------------------------------------------------------------------------------------------


@rule("toeplitz", Circulant)
def _circulant_as_toeplitz(a: Circulant) -> Matrix:
    """The same entries, each wrapped diagonal stored on its own."""
    return Toeplitz(ft.fold(a.column, a.f), a.column.shape[-1])


# -- products -----------------------------------------------------------------------------------------------------


def _identity_products(kind: type[Matrix]) -> None:
    @rule("matmul", Identity, kind)
    def left(a: Identity, b: Matrix) -> Matrix:
        """The other factor."""
        return _as(b, a)

    @rule("matmul", kind, Identity)
    def right(a: Matrix, b: Identity) -> Matrix:
        """The other factor."""
        return _as(a, b)


for _each in (Matrix, Dense, LowRank):  # Dense and LowRank have rules with every matrix, so they need one of their own
    _identity_products(_each)


@rule("matmul", Identity, Identity)
def _identities(a: Identity, b: Identity) -> Matrix:
    """Identity."""
    return b if a.dtype is None else a


@rule("matmul", LowRank, Dense)
def _low_rank_dense(a: LowRank, b: Dense) -> Matrix:
    """LowRank: the dense factor goes into the right one."""
    nearest: Any = lookup("matmul", LowRank, Matrix)
    result: Matrix = nearest(a, b)
    return result


@rule("matmul", Dense, LowRank)
def _dense_low_rank(a: Dense, b: LowRank) -> Matrix:
    """LowRank: the dense factor goes into the left one."""
    nearest: Any = lookup("matmul", Matrix, LowRank)
    result: Matrix = nearest(a, b)
    return result


@rule("matmul", Diagonal, Diagonal)
def _diagonals(a: Diagonal, b: Diagonal) -> Matrix:
    """Diagonal: the entries multiply."""
    return Diagonal(a.entries * b.entries)


# -- sums ---------------------------------------------------------------------------------------------------------


@rule("add", Diagonal, Diagonal)
def _diagonal_sum(a: Diagonal, b: Diagonal) -> Matrix:
    """Diagonal: the entries add."""
    return Diagonal(a.entries + b.entries)


@rule("add", Diagonal, Identity)
def _diagonal_plus_identity(a: Diagonal, b: Identity) -> Matrix:
    """Diagonal."""
    shifted = Diagonal(a.entries + 1)
    return _as(shifted, b)


@rule("add", Identity, Diagonal)
def _identity_plus_diagonal(a: Identity, b: Diagonal) -> Matrix:
    """Diagonal."""
    return _diagonal_plus_identity(b, a)


@rule("add", ToeplitzFamily, Circulant)
def _toeplitz_plus_circulant(a: ToeplitzFamily, b: Circulant) -> Matrix:
    """Toeplitz: the diagonals add."""
    return add(a, _circulant_as_toeplitz(b))


@rule("add", Circulant, ToeplitzFamily)
def _circulant_plus_toeplitz(a: Circulant, b: ToeplitzFamily) -> Matrix:
    """Toeplitz: the diagonals add."""
    return add(_circulant_as_toeplitz(a), b)


def _shift(a: Matrix, s: Any) -> Matrix:
    """A + s I for types that contain the identity: one entry grows."""
    if isinstance(a, Circulant):
        grown = torch.nn.functional.pad(_flat(s, a.column)[..., None], (0, a.column.shape[-1] - 1))
        return Circulant(a.column + grown, a.f)
    if isinstance(a, SymmetricToeplitz):
        return SymmetricToeplitz(
            a.column + torch.nn.functional.pad(_flat(s, a.column)[..., None], (0, a.column.shape[-1] - 1))
        )
    n = a.shape[-1]
    assert isinstance(a, Toeplitz)
    return Toeplitz(a.diagonals + torch.nn.functional.pad(_flat(s, a.diagonals)[..., None], (n - 1, n - 1)), n)


def _flat(s: Any, like: torch.Tensor) -> torch.Tensor:
    if isinstance(s, torch.Tensor):
        return s[..., 0, 0] if s.ndim else s
    dtype = torch.promote_types(like.dtype, torch.complex64) if isinstance(s, complex) else like.dtype
    return torch.as_tensor(s, dtype=dtype, device=like.device)


def _shifted_rules(kind: type[Matrix]) -> None:
    @rule("add", kind, Identity)
    def plus_identity(a: Matrix, b: Identity) -> Matrix:
        """The same type: the main diagonal grows by one."""
        return _as(_shift(a, 1), b)

    @rule("add", Identity, kind)
    def identity_plus(a: Identity, b: Matrix) -> Matrix:
        """The same type: the main diagonal grows by one."""
        return _as(_shift(b, 1), a)

    @rule("add", kind, Scaled)
    def plus_scaled(a: Matrix, b: Scaled) -> Matrix:
        """The same type for s I; else lazy."""
        inner = b.matrix
        return _as(_shift(a, b.scale), inner) if isinstance(inner, Identity) else _lazily("add", a, b)

    @rule("add", Scaled, kind)
    def scaled_plus(a: Scaled, b: Matrix) -> Matrix:
        """The same type for s I; else lazy."""
        return plus_scaled(b, a) if isinstance(a.matrix, Identity) else _lazily("add", a, b)


for _kind in (Circulant, Toeplitz, SymmetricToeplitz):
    _shifted_rules(_kind)


@rule("add", Identity, Scaled)
def _identity_plus_scaled(a: Identity, b: Scaled) -> Matrix:
    """``I - Q`` for a product of reflections Q is LowRank, exactly; else lazy."""
    q = b.matrix
    if isinstance(q, HouseholderProduct) and not isinstance(b.scale, torch.Tensor) and b.scale == -1:
        return LowRank(*identity_minus(q))
    return _lazily("add", a, b)


@rule("add", HouseholderProduct, Scaled)
def _rotation_plus_scaled(a: HouseholderProduct, b: Scaled) -> Matrix:
    """``Q - I`` is LowRank, exactly; else lazy."""
    if isinstance(b.matrix, Identity) and not isinstance(b.scale, torch.Tensor) and b.scale == -1:
        return scaled(LowRank(*identity_minus(a)), -1)
    return _lazily("add", a, b)


# -- entrywise products -------------------------------------------------------------------------------------------


@rule("hadamard", Diagonal, Matrix)
def _diagonal_entrywise(a: Diagonal, b: Matrix) -> Matrix:
    """Diagonal: only the diagonal of the other survives."""
    return Diagonal(a.entries * b.diagonal())


@rule("hadamard", Matrix, Diagonal)
def _entrywise_diagonal(a: Matrix, b: Diagonal) -> Matrix:
    """Diagonal: only the diagonal of the other survives."""
    return Diagonal(a.diagonal() * b.entries)


@rule("hadamard", Diagonal, Diagonal)
def _diagonals_entrywise(a: Diagonal, b: Diagonal) -> Matrix:
    """Diagonal."""
    return Diagonal(a.entries * b.entries)


@rule("hadamard", Diagonal, Dense)
def _diagonal_dense_entrywise(a: Diagonal, b: Dense) -> Matrix:
    """Diagonal."""
    return Diagonal(a.entries * b.diagonal())


@rule("hadamard", Dense, Diagonal)
def _dense_diagonal_entrywise(a: Dense, b: Diagonal) -> Matrix:
    """Diagonal."""
    return Diagonal(a.diagonal() * b.entries)
