"""The verb kron of any two matrices: their Kronecker product, flat; sums of Kronecker sums; and the entries of dense
factors."""

import torch

from structmat.dispatch import lookup, rule
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, kron, scaled
from structmat.types.dense import Dense
from structmat.types.diagonal import Identity
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum

__all__: list[str] = []


@rule("kron", Matrix, Matrix)
def _kron(a: Matrix, b: Matrix) -> Matrix:
    """Kronecker: the factors side by side; ``(s A) kron B = s (A kron B)`` where that is closed, as of permutations."""
    if (closed := _unscaled(a, b)) is not None:
        return closed
    left = a.factors if isinstance(a, Kronecker) and not a._assumed else (a,)
    right = b.factors if isinstance(b, Kronecker) and not b._assumed else (b,)
    return Kronecker((*left, *right))


def _unscaled(a: Matrix, b: Matrix) -> Matrix | None:
    for one, other, first in ((a, b, True), (b, a, False)):
        if isinstance(one, Scaled) and not one._assumed:
            inner = kron(one.matrix, other) if first else kron(other, one.matrix)
            if not isinstance(inner, Kronecker):
                return scaled(inner, one.scale)
    return None


@rule("add", KroneckerSum, KroneckerSum)
def _kronecker_sums(a: KroneckerSum, b: KroneckerSum) -> Matrix:
    """KroneckerSum: ``A + C`` beside ``B + D``, for equal orders; else lazy."""
    if a.left.shape[-1] != b.left.shape[-1]:
        lazy: Matrix = lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return KroneckerSum(add(a.left, b.left), add(a.right, b.right))


@rule("add", KroneckerSum, Identity)
def _kronecker_sum_plus_identity(a: KroneckerSum, b: Identity) -> Matrix:
    """KroneckerSum: the identity joins the left matrix."""
    return KroneckerSum(add(a.left, Identity(int(a.left.shape[-1]), b.dtype, b.device)), a.right)


@rule("add", Identity, KroneckerSum)
def _identity_plus_kronecker_sum(a: Identity, b: KroneckerSum) -> Matrix:
    """KroneckerSum: the identity joins the left matrix."""
    return _kronecker_sum_plus_identity(b, a)


@rule("add", KroneckerSum, Scaled)
def _kronecker_sum_plus_scaled(a: KroneckerSum, b: Scaled) -> Matrix:
    """KroneckerSum for s I, which joins the left matrix; else lazy."""
    if isinstance(b.matrix, Identity):
        one = Identity(int(a.left.shape[-1]), b.matrix.dtype, b.matrix.device)
        return KroneckerSum(add(a.left, scaled(one, b.scale)), a.right)
    lazy: Matrix = lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
    return lazy


@rule("add", Scaled, KroneckerSum)
def _scaled_plus_kronecker_sum(a: Scaled, b: KroneckerSum) -> Matrix:
    """KroneckerSum for s I, which joins the left matrix; else lazy."""
    return _kronecker_sum_plus_scaled(b, a)


@rule("entries", Dense)
def _dense_entries(a: Dense) -> torch.Tensor:
    """Tensor: the entries as they are stored."""
    return a.entries
