"""Rules between the Toeplitz, Hankel and circulant types, the identity and its multiples, a verb a section."""

from typing import Any

import torch

from structmat.dispatch import lookup, rule
from structmat.functional import toeplitz as ft
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, matmul, scaled
from structmat.types.circulant import Circulant
from structmat.types.circulant_family import CirculantFamily
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.toeplitz_family import ToeplitzFamily

__all__: list[str] = []

WITH_IDENTITY: tuple[type[Matrix], ...] = (  # the sum with s I has a closed form
    Circulant,
    OrthogonalCirculant,
    Toeplitz,
    SymmetricToeplitz,
    HermitianToeplitz,
)


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _as(matrix: Matrix, other: Identity) -> Matrix:
    """The matrix, in the dtype the result with this identity promotes to."""
    return matrix if other.dtype is None or other.dtype == matrix.dtype else matrix.to(other.dtype)


def constant_of(a: Diagonal) -> torch.Tensor | None:
    """s, of shape ``(*batch, 1, 1)``, if the diagonal is s I by its layout: one number, or one number expanded.

    Read from strides, never from values: ``Diagonal(s.expand(n))``.
    """
    entries = a.entries
    constant = entries.shape[-1] == 1 or (entries.shape[-1] > 1 and entries.stride(-1) == 0)
    return entries[..., :1, None] if constant else None


# -- conversions --------------------------------------------------------------------------------------------------


@rule("toeplitz", CirculantFamily)
def _circulant_as_toeplitz(a: CirculantFamily) -> Matrix:
    """The same entries, each wrapped diagonal stored on its own."""
    return Toeplitz(ft.fold(a._column(), a._number()), a._n)


@rule("circulant", OrthogonalCirculant)
def _orthogonal_as_circulant(a: OrthogonalCirculant) -> Circulant:
    """The same entries by their first column."""
    return Circulant(a._column(), a.f)


# -- products -----------------------------------------------------------------------------------------------------


@rule("matmul", Hankel, Hankel)
def _hankel_product(a: Hankel, b: Hankel) -> Matrix:
    """The product of two Toeplitz matrices: ``T_a J T_b J``, and J T_b J reverses the diagonals of T_b."""
    return matmul(Toeplitz(a.antidiagonals, a.columns), Toeplitz(b.antidiagonals.flip(-1), b.columns))


def _multiple_rules(kind: type[Matrix]) -> None:
    """Products with a diagonal that is s I by its layout: they scale, which is closed in every type here."""

    @rule("matmul", kind, Diagonal)
    def times_diagonal(a: Matrix, b: Diagonal) -> Matrix:
        """The same type for a diagonal of one expanded number; else lazy."""
        s = constant_of(b)
        return _lazily("matmul", a, b) if s is None else scaled(a, s)

    @rule("matmul", Diagonal, kind)
    def diagonal_times(a: Diagonal, b: Matrix) -> Matrix:
        """The same type for a diagonal of one expanded number; else lazy."""
        s = constant_of(a)
        return _lazily("matmul", a, b) if s is None else scaled(b, s)


for _kind in (*WITH_IDENTITY, Hankel):
    _multiple_rules(_kind)


@rule("matmul", OrthogonalCirculant, Circulant)
def _orthogonal_times(a: OrthogonalCirculant, b: Circulant) -> Matrix:
    """Circulant for one f; else lazy."""
    return matmul(_orthogonal_as_circulant(a), b) if a.f == b.f else _lazily("matmul", a, b)


@rule("matmul", Circulant, OrthogonalCirculant)
def _times_orthogonal(a: Circulant, b: OrthogonalCirculant) -> Matrix:
    """Circulant for one f; else lazy."""
    return matmul(a, _orthogonal_as_circulant(b)) if a.f == b.f else _lazily("matmul", a, b)


# -- sums ---------------------------------------------------------------------------------------------------------


@rule("add", OrthogonalCirculant, OrthogonalCirculant)
def _orthogonal_sum(a: OrthogonalCirculant, b: OrthogonalCirculant) -> Matrix:
    """Circulant for one f; else Toeplitz."""
    return add(_orthogonal_as_circulant(a), _orthogonal_as_circulant(b))


@rule("add", OrthogonalCirculant, Circulant)
def _orthogonal_plus(a: OrthogonalCirculant, b: Circulant) -> Matrix:
    """Circulant for one f; else Toeplitz."""
    return add(_orthogonal_as_circulant(a), b)


@rule("add", Circulant, OrthogonalCirculant)
def _plus_orthogonal(a: Circulant, b: OrthogonalCirculant) -> Matrix:
    """Circulant for one f; else Toeplitz."""
    return add(a, _orthogonal_as_circulant(b))


@rule("add", ToeplitzFamily, CirculantFamily)
def _toeplitz_plus_circulant(a: ToeplitzFamily, b: CirculantFamily) -> Matrix:
    """Toeplitz: the diagonals add."""
    return add(a, _circulant_as_toeplitz(b))


@rule("add", CirculantFamily, ToeplitzFamily)
def _circulant_plus_toeplitz(a: CirculantFamily, b: ToeplitzFamily) -> Matrix:
    """Toeplitz: the diagonals add."""
    return add(_circulant_as_toeplitz(a), b)


@rule("add", HermitianToeplitz, SymmetricToeplitz)
def _hermitian_plus_symmetric(a: HermitianToeplitz, b: SymmetricToeplitz) -> Matrix:
    """HermitianToeplitz with a real symmetric one; SymmetricToeplitz if the Hermitian one is real; else Toeplitz."""
    if not b.column.is_complex():
        return HermitianToeplitz(a.column + b.column)
    if not a.column.is_complex():
        return SymmetricToeplitz(a.column + b.column)
    return Toeplitz(a._diagonals() + b._diagonals(), int(a.shape[-1]))


@rule("add", SymmetricToeplitz, HermitianToeplitz)
def _symmetric_plus_hermitian(a: SymmetricToeplitz, b: HermitianToeplitz) -> Matrix:
    """As the other way round."""
    return _hermitian_plus_symmetric(b, a)


def _shift(a: Matrix, s: Any) -> Matrix:
    """A + s I for types that contain the identity: one entry grows."""
    if isinstance(a, HermitianToeplitz):
        if s.is_complex() if isinstance(s, torch.Tensor) else isinstance(s, complex):
            return _shift(Toeplitz(a._diagonals(), int(a.shape[-1])), s)
        return HermitianToeplitz(a.column + _padded(s, a.column, 0, a.column.shape[-1] - 1))
    if isinstance(a, OrthogonalCirculant):
        return _shift(_orthogonal_as_circulant(a), s)
    if isinstance(a, Circulant):
        return Circulant(a.column + _padded(s, a.column, 0, a.column.shape[-1] - 1), a.f)
    if isinstance(a, SymmetricToeplitz):
        return SymmetricToeplitz(a.column + _padded(s, a.column, 0, a.column.shape[-1] - 1))
    assert isinstance(a, Toeplitz)
    n = int(a.shape[-1])
    return Toeplitz(a.diagonals + _padded(s, a.diagonals, n - 1, n - 1), n)


def _padded(s: Any, like: torch.Tensor, before: int, behind: int) -> torch.Tensor:
    """s (a number, or a tensor of shape () or ``(*batch, 1, 1)``) with zeros around it."""
    if isinstance(s, torch.Tensor):
        flat = s[..., 0, 0] if s.ndim else s
    else:
        dtype = torch.promote_types(like.dtype, torch.complex64) if isinstance(s, complex) else like.dtype
        flat = torch.as_tensor(s, dtype=dtype, device=like.device)
    return torch.nn.functional.pad(flat[..., None], (before, behind))


def _shifted_rules(kind: type[Matrix]) -> None:
    @rule("add", kind, Identity)
    def plus_identity(a: Matrix, b: Identity) -> Matrix:
        """The same type (OrthogonalCirculant: Circulant): the main diagonal grows by one."""
        return _as(_shift(a, 1), b)

    @rule("add", Identity, kind)
    def identity_plus(a: Identity, b: Matrix) -> Matrix:
        """The same type (OrthogonalCirculant: Circulant): the main diagonal grows by one."""
        return _as(_shift(b, 1), a)

    @rule("add", kind, Scaled)
    def plus_scaled(a: Matrix, b: Scaled) -> Matrix:
        """The same type for s I (HermitianToeplitz: Toeplitz for a complex s); else lazy."""
        inner = b.matrix
        return _as(_shift(a, b.scale), inner) if isinstance(inner, Identity) else _lazily("add", a, b)

    @rule("add", Scaled, kind)
    def scaled_plus(a: Scaled, b: Matrix) -> Matrix:
        """The same type for s I (HermitianToeplitz: Toeplitz for a complex s); else lazy."""
        return plus_scaled(b, a) if isinstance(a.matrix, Identity) else _lazily("add", a, b)

    @rule("add", kind, Diagonal)
    def plus_diagonal(a: Matrix, b: Diagonal) -> Matrix:
        """The same type for a diagonal of one expanded number; else lazy."""
        s = constant_of(b)
        return _lazily("add", a, b) if s is None else _shift(a, s)

    @rule("add", Diagonal, kind)
    def diagonal_plus(a: Diagonal, b: Matrix) -> Matrix:
        """The same type for a diagonal of one expanded number; else lazy."""
        return plus_diagonal(b, a) if constant_of(a) is not None else _lazily("add", a, b)


for _kind in WITH_IDENTITY:
    _shifted_rules(_kind)
