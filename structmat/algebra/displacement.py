"""Rules of low displacement rank: generators of other types, products and sums that close, inverses of Toeplitz
matrices."""

from typing import Any

import torch

from structmat import backend
from structmat import claims as survive
from structmat.algebra.toeplitz import constant_of
from structmat.dispatch import call, lookup, rule
from structmat.functional import displacement_algebra as fa
from structmat.lazy import Product, Scaled
from structmat.matrix import Matrix, add, scaled
from structmat.types.circulant_family import CirculantFamily
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.displacement import LowDisplacementRank
from structmat.types.displacement_family import generators_of
from structmat.types.permutation import Permutation
from structmat.types.toeplitz_family import ToeplitzFamily

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


# -- generators ---------------------------------------------------------------------------------------------------


@rule("displacement", ToeplitzFamily)
def _of_toeplitz(a: ToeplitzFamily, e: complex, f: complex) -> fa.Pair:
    """Two columns, for every e and f."""
    return fa.toeplitz(a._diagonals(), e, f)


@rule("displacement", CirculantFamily)
def _of_circulant(a: CirculantFamily, e: complex, f: complex) -> fa.Pair:
    """None for its own number twice, and one more for each that differs."""
    column = _column(a)
    first = column[..., None]
    none = first[..., :0]
    number: complex = a.f  # type: ignore[attr-defined]
    return fa.changed(none, none, (number, number), (e, f), first, first.flip(-2))


def _column(a: CirculantFamily) -> torch.Tensor:
    """The first column of a circulant of any type."""
    n = int(a.shape[-1])
    diagonals: torch.Tensor = call("toeplitz", a)._diagonals()
    return diagonals[..., n - 1 :]


@rule("displacement", LowDisplacementRank)
def _of_itself(a: LowDisplacementRank, e: complex, f: complex) -> fa.Pair:
    """Its own, or with one more column for each number that differs."""
    return a._generators(e, f)


@rule("flipped", LowDisplacementRank)
def _flipped(a: LowDisplacementRank) -> Matrix:
    """``A J``, lazily: J is the permutation that reverses."""
    return Product((a, Permutation(torch.arange(int(a.shape[-1]) - 1, -1, -1, device=a.device), a.dtype)))


# -- inverses -----------------------------------------------------------------------------------------------------


@rule("inverse", ToeplitzFamily)
def _inverse(a: ToeplitzFamily) -> Matrix:
    """LowDisplacementRank of rank 2 by two solves, for every nonsingular T; half and bfloat16 stay lazy.

    With ``x = T^-1 e_0`` and ``z = T^-1 c``, ``c_i = t_{i-n} + t_i``: ``Z_-1 B - B Z_1 = G H^T`` for ``B = T^-1``,
    ``G = [-x, -z]``, ``H = [J (2 e_0 - z), J x]``. Heinig and Rost, Algebraic Methods for Toeplitz-like Matrices and
    Operators, 1984; G. Labahn and T. Shalom, 1992.
    """
    t = a._diagonals()
    if backend.compute_dtype(t.dtype) != t.dtype:
        lazy: Matrix = lookup("inverse", Matrix)(a)  # type: ignore[misc]
        return lazy
    left, _ = fa.toeplitz(t, 1, -1)  # [e_0, c]
    pair = a.solve(left)
    first = fa.unit(pair, 0)
    x, z = pair[..., :1], pair[..., 1:]
    right = torch.cat(((2 * first - z).flip(-2), x.flip(-2)), -1)
    result = LowDisplacementRank(-pair, right, -1, 1)
    return result._vouched(survive.inverse(a.claims).properties)


# -- products -----------------------------------------------------------------------------------------------------


def _square(*matrices: Matrix) -> bool:
    return all(m.shape[-1] == m.shape[-2] for m in matrices)


@rule("matmul", ToeplitzFamily, ToeplitzFamily)
def _toeplitz_product(a: ToeplitzFamily, b: ToeplitzFamily) -> Matrix:
    """LowDisplacementRank, at most 4, for square ones; else lazy."""
    if not _square(a, b):
        return _lazily("matmul", a, b)
    (g, h), (p, q) = fa.toeplitz(a._diagonals(), 1, -1), fa.toeplitz(b._diagonals(), -1, -1)
    applied, pulled = a.linear(p.mT).mT, b.transpose().linear(h.mT).mT
    return LowDisplacementRank(*fa.product((g, h), (p, q), 0, applied, pulled))


def _other_products(kind: type[Matrix]) -> None:
    @rule("matmul", LowDisplacementRank, kind)
    def times(a: LowDisplacementRank, b: Matrix) -> Matrix:
        """LowDisplacementRank under the operator of the left, at most two more columns; a rectangle: lazy."""
        if not _square(b):
            return _lazily("matmul", a, b)
        p, q = generators_of(b, a.f, a.f)
        pulled = b.transpose().linear(a.right.mT).mT
        return _from(fa.product((a.left, a.right), (p, q), 0, a.linear(p.mT).mT, pulled), a.e, a.f)

    @rule("matmul", kind, LowDisplacementRank)
    def of(a: Matrix, b: LowDisplacementRank) -> Matrix:
        """LowDisplacementRank under the operator of the right, at most two more columns; a rectangle: lazy."""
        if not _square(a):
            return _lazily("matmul", a, b)
        g, h = generators_of(a, b.e, b.e)
        pulled = b.transpose().linear(h.mT).mT
        return _from(fa.product((g, h), (b.left, b.right), 0, a.linear(b.left.mT).mT, pulled), b.e, b.f)

    @rule("add", LowDisplacementRank, kind)
    def plus(a: LowDisplacementRank, b: Matrix) -> Matrix:
        """LowDisplacementRank: at most two more columns."""
        return add(a, _from(generators_of(b, a.e, a.f), a.e, a.f))

    @rule("add", kind, LowDisplacementRank)
    def and_plus(a: Matrix, b: LowDisplacementRank) -> Matrix:
        """LowDisplacementRank: at most two more columns."""
        return plus(b, a)


def _from(pair: fa.Pair, e: complex, f: complex) -> LowDisplacementRank:
    common = torch.promote_types(pair[0].dtype, pair[1].dtype)
    return LowDisplacementRank(pair[0].to(common), pair[1].to(common), e, f)


for _kind in (ToeplitzFamily, CirculantFamily):
    _other_products(_kind)


# -- multiples of the identity ------------------------------------------------------------------------------------


def _multiple(a: LowDisplacementRank, s: Any) -> LowDisplacementRank:
    """``s I`` under the operator of A, in the dtype it promotes to."""
    g, h = fa.identity(a.left, a.e - a.f)
    return _from((g * s, h), a.e, a.f)


@rule("add", LowDisplacementRank, Identity)
def _plus_identity(a: LowDisplacementRank, b: Identity) -> Matrix:
    """LowDisplacementRank: one more column."""
    total = add(a, _multiple(a, 1))
    return total if b.dtype is None or b.dtype == total.dtype else total.to(b.dtype)


@rule("add", Identity, LowDisplacementRank)
def _identity_plus(a: Identity, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank: one more column."""
    return _plus_identity(b, a)


@rule("add", LowDisplacementRank, Scaled)
def _plus_scaled(a: LowDisplacementRank, b: Scaled) -> Matrix:
    """LowDisplacementRank for s I: one more column; else lazy."""
    return add(a, _multiple(a, b.scale)) if isinstance(b.matrix, Identity) else _lazily("add", a, b)


@rule("add", Scaled, LowDisplacementRank)
def _scaled_plus(a: Scaled, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank for s I: one more column; else lazy."""
    return add(b, _multiple(b, a.scale)) if isinstance(a.matrix, Identity) else _lazily("add", a, b)


@rule("add", LowDisplacementRank, Diagonal)
def _plus_diagonal(a: LowDisplacementRank, b: Diagonal) -> Matrix:
    """LowDisplacementRank for a diagonal of one expanded number: one more column; else lazy."""
    s = constant_of(b)
    return _lazily("add", a, b) if s is None else add(a, _multiple(a, s))


@rule("add", Diagonal, LowDisplacementRank)
def _diagonal_plus(a: Diagonal, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank for a diagonal of one expanded number: one more column; else lazy."""
    return _plus_diagonal(b, a) if constant_of(a) is not None else _lazily("add", a, b)


@rule("matmul", LowDisplacementRank, Diagonal)
def _times_diagonal(a: LowDisplacementRank, b: Diagonal) -> Matrix:
    """LowDisplacementRank for a diagonal of one expanded number; else lazy."""
    s = constant_of(b)
    return _lazily("matmul", a, b) if s is None else scaled(a, s)


@rule("matmul", Diagonal, LowDisplacementRank)
def _diagonal_times(a: Diagonal, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank for a diagonal of one expanded number; else lazy."""
    s = constant_of(a)
    return _lazily("matmul", a, b) if s is None else scaled(b, s)
