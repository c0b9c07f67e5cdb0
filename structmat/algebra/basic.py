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


def _multiple_of(a: Matrix) -> Identity | None:
    """I, if the matrix is s I by its type."""
    return a.matrix if isinstance(a, Scaled) and isinstance(a.matrix, Identity) else None


def _one(a: Identity, b: Identity) -> Identity:
    """I in the dtype that both promote to."""
    return b if a.dtype is None else _as(a, b)  # type: ignore[return-value]


@rule("add", Identity, Identity)
def _two(a: Identity, b: Identity) -> Matrix:
    """A multiple of the identity."""
    return scaled(_one(a, b), 2)


@rule("add", Identity, Scaled)
def _identity_plus_scaled(a: Identity, b: Scaled) -> Matrix:
    """``I + s I`` is a multiple of I; ``I - Q`` for a product of reflections Q is LowRank, exactly; else lazy."""
    if (other := _multiple_of(b)) is not None:
        return scaled(_one(a, other), 1 + b.scale)
    q = b.matrix
    if isinstance(q, HouseholderProduct) and not isinstance(b.scale, torch.Tensor) and b.scale == -1:
        return _as(LowRank(*identity_minus(q)), a)
    return _lazily("add", a, b)


@rule("add", Scaled, Identity)
def _scaled_plus_identity(a: Scaled, b: Identity) -> Matrix:
    """As the other way round."""
    return _identity_plus_scaled(b, a)


@rule("add", Scaled, Scaled)
def _scaled_sum(a: Scaled, b: Scaled) -> Matrix:
    """``s I + t I`` is a multiple of I; else lazy."""
    one, other = _multiple_of(a), _multiple_of(b)
    if one is None or other is None:
        return _lazily("add", a, b)
    return scaled(_one(one, other), a.scale + b.scale)


@rule("add", HouseholderProduct, Scaled)
def _rotation_plus_scaled(a: HouseholderProduct, b: Scaled) -> Matrix:
    """``Q - I`` is LowRank, exactly; else lazy."""
    other = _multiple_of(b)
    if other is not None and not isinstance(b.scale, torch.Tensor) and b.scale == -1:
        return _as(scaled(LowRank(*identity_minus(a)), -1), other)
    return _lazily("add", a, b)


@rule("add", Scaled, HouseholderProduct)
def _scaled_plus_rotation(a: Scaled, b: HouseholderProduct) -> Matrix:
    """``-I + Q`` is LowRank, exactly; else lazy."""
    return _rotation_plus_scaled(b, a)


@rule("add", Diagonal, Scaled)
def _diagonal_plus_scaled(a: Diagonal, b: Scaled) -> Matrix:
    """Diagonal for s I; else lazy."""
    other = _multiple_of(b)
    if other is None:
        return _lazily("add", a, b)
    s = b.scale[..., 0] if isinstance(b.scale, torch.Tensor) and b.scale.ndim else b.scale
    return _as(Diagonal(a.entries + s), other)


@rule("add", Scaled, Diagonal)
def _scaled_plus_diagonal(a: Scaled, b: Diagonal) -> Matrix:
    """Diagonal for s I; else lazy."""
    return _diagonal_plus_scaled(b, a) if _multiple_of(a) is not None else _lazily("add", a, b)
