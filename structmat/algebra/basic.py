"""Rules between different types, a verb a section. Rules within one family stay in the file of the type."""

from typing import Any

import torch

from structmat.dispatch import lookup, rule
from structmat.lazy import Scaled
from structmat.matrix import Matrix, scaled
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.householder import HouseholderProduct, identity_minus
from structmat.types.low_rank import LowRank

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _as(matrix: Matrix, other: Identity) -> Matrix:
    """The matrix, in the dtype the product with this identity promotes to."""
    return matrix if other.dtype is None or other.dtype == matrix.dtype else matrix.to(other.dtype)


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
