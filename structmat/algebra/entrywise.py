"""Entrywise products, where they have a structured form: of zeros, diagonals, dense and scaled matrices with every
type, and between types of one family."""

from collections.abc import Callable

from structmat.algebra.placement import joint
from structmat.dispatch import call, lookup, rule
from structmat.errors import StructureError
from structmat.lazy import Scaled
from structmat.matrix import Matrix, hadamard, scaled
from structmat.types.circulant import Circulant
from structmat.types.circulant_family import CirculantFamily
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.kronecker import Kronecker
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.toeplitz import SymmetricToeplitz
from structmat.types.toeplitz_family import ToeplitzFamily
from structmat.types.zero import Zero

__all__: list[str] = []


# -- types that meet every matrix ---------------------------------------------------------------------------------


def _zero(a: Zero, b: Matrix) -> Matrix:
    """Zero."""
    return joint(a, b, a.m, a.n)


def _identity(a: Identity, b: Matrix) -> Matrix:
    """Diagonal: only the diagonal of the other survives."""
    if isinstance(b, Identity):
        return b if a.dtype is None else a
    return _diagonal(a, b)


def _diagonal(a: Matrix, b: Matrix) -> Matrix:
    """Diagonal: only the diagonal of the other survives."""
    return Diagonal(a.diagonal() * b.diagonal())


def _scaled(a: Scaled, b: Matrix) -> Matrix:
    """``(s A) * B = s (A * B)``, where A * B is closed; else StructureError."""
    return scaled(hadamard(a.matrix, b), a.scale)


def _dense(a: Dense, b: Matrix) -> Matrix:
    """Dense: the entries of the other, and their products."""
    result: Matrix = lookup("hadamard", Dense, Matrix)(a, b)  # type: ignore[misc]
    return result


# Each has a rule with every matrix, so two of them need one of their own: the one named first decides.
_PRECEDENCE: tuple[tuple[type[Matrix], Callable[..., Matrix]], ...] = (
    (Zero, _zero),
    (Scaled, _scaled),
    (Identity, _identity),
    (Diagonal, _diagonal),
    (Dense, _dense),
)


def _both_ways(first: type[Matrix], second: type[Matrix], how: Callable[..., Matrix]) -> None:
    """``how(a, b)`` with a of the first type, in both orders."""
    rule("hadamard", first, second)(how)
    if first is not second:

        def turned(a: Matrix, b: Matrix) -> Matrix:
            return how(b, a)

        turned.__doc__ = how.__doc__
        rule("hadamard", second, first)(turned)


for _position, (_kind, _how) in enumerate(_PRECEDENCE):
    if _kind is not Dense:  # the type has these itself
        _both_ways(_kind, Matrix, _how)
        _both_ways(_kind, _kind, _how)
    for _other, _ in _PRECEDENCE[_position + 1 :]:
        _both_ways(_kind, _other, _how)


# -- the Toeplitz family --------------------------------------------------------------------------------------------


def _toeplitz_circulant(a: ToeplitzFamily, b: CirculantFamily) -> Matrix:
    """Toeplitz: the diagonals multiply."""
    return hadamard(a, call("toeplitz", b))


def _circulants(a: OrthogonalCirculant, b: OrthogonalCirculant | Circulant) -> Matrix:
    """Circulant of the product of the numbers f."""
    return hadamard(call("circulant", a), b if isinstance(b, Circulant) else call("circulant", b))


def _hermitian_symmetric(a: HermitianToeplitz, b: SymmetricToeplitz) -> Matrix:
    """HermitianToeplitz with a real symmetric one; SymmetricToeplitz if the Hermitian one is real; else Toeplitz."""
    if not b.column.is_complex():
        return HermitianToeplitz(a.column * b.column)
    if not a.column.is_complex():
        return SymmetricToeplitz(a.column * b.column)
    result: Matrix = lookup("hadamard", ToeplitzFamily, ToeplitzFamily)(a, b)  # type: ignore[misc]
    return result


_both_ways(ToeplitzFamily, CirculantFamily, _toeplitz_circulant)
rule("hadamard", OrthogonalCirculant, OrthogonalCirculant)(_circulants)
_both_ways(OrthogonalCirculant, Circulant, _circulants)
_both_ways(HermitianToeplitz, SymmetricToeplitz, _hermitian_symmetric)


# -- Kronecker products -------------------------------------------------------------------------------------------


@rule("hadamard", Kronecker, Kronecker)
def _factorwise(a: Kronecker, b: Kronecker) -> Matrix:
    """Kronecker: ``(A kron B) * (C kron D) = (A * C) kron (B * D)`` for factors of equal sizes; else StructureError."""
    if [f.shape[-2:] for f in a.factors] != [f.shape[-2:] for f in b.factors]:
        raise StructureError(
            f"{a!r} * {b!r}: the factors differ in size, so the entrywise product has no structured form; "
            "use Dense(A.to_dense()) * B"
        )
    return Kronecker(tuple(hadamard(f, g) for f, g in zip(a.factors, b.factors, strict=True)))
