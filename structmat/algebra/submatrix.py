"""Rules of principal submatrices: a multiple of the identity goes into the whole matrix, whose solves then serve."""

from typing import Any

from structmat.dispatch import lookup, rule
from structmat.functional.preconditioners import chan
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, scaled
from structmat.types.circulant import Circulant
from structmat.types.diagonal import Identity
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz_family import ToeplitzFamily

__all__: list[str] = []


def _shifted(a: Submatrix, s: Any, like: Identity) -> Matrix:
    """``A[keep][:, keep] + s I`` is the submatrix of ``A + s I``."""
    whole = Identity(int(a.matrix.shape[-1]), like.dtype, like.device)
    return Submatrix(add(a.matrix, scaled(whole, s)), a.keep)


@rule("add", Submatrix, Identity)
def _plus_identity(a: Submatrix, b: Identity) -> Matrix:
    """Submatrix: the identity is added to the whole matrix."""
    return Submatrix(add(a.matrix, Identity(int(a.matrix.shape[-1]), b.dtype, b.device)), a.keep)


@rule("add", Identity, Submatrix)
def _identity_plus(a: Identity, b: Submatrix) -> Matrix:
    """Submatrix: the identity is added to the whole matrix."""
    return _plus_identity(b, a)


@rule("add", Submatrix, Scaled)
def _plus_scaled(a: Submatrix, b: Scaled) -> Matrix:
    """Submatrix for s I, added to the whole matrix; else lazy."""
    if isinstance(b.matrix, Identity):
        return _shifted(a, b.scale, b.matrix)
    lazy: Matrix = lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
    return lazy


@rule("add", Scaled, Submatrix)
def _scaled_plus(a: Scaled, b: Submatrix) -> Matrix:
    """Submatrix for s I, added to the whole matrix; else lazy."""
    if isinstance(a.matrix, Identity):
        return _plus_scaled(b, a)
    lazy: Matrix = lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
    return lazy


@rule("circulant_inverse", ToeplitzFamily)
def _near_inverse(a: ToeplitzFamily) -> Matrix:
    """Circulant: the inverse of T. Chan's, definite where the Toeplitz matrix is."""
    return Circulant(chan(a._diagonals())).inv()
