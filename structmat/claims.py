"""What is known about a matrix without looking at its entries, and what of it survives each verb.

A claim follows from the type and its static fields, or is vouched for by the user (``A.assume``). It is never read from
values. Each survival rule below is a theorem of exact arithmetic; ``tests/test_claims.py`` states each one as a
property.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "CARRIED",
    "NONE",
    "Claim",
    "Claims",
    "conj",
    "entrywise",
    "inverse",
    "kron",
    "product",
    "scale",
    "sum_of",
    "transpose",
]


class Claim(enum.Enum):
    """One property of a matrix; a batch has it if every matrix of the batch has it."""

    SYMMETRIC = "symmetric"  # A = A^T (plain transpose, also for complex entries)
    HERMITIAN = "Hermitian"  # A = A^H
    POSITIVE_DEFINITE = "positive definite"  # Hermitian, and x^H A x > 0 for x != 0
    ORTHOGONAL = "orthogonal"  # square, A^H A = A A^H = I (unitary for complex entries)
    ORTHONORMAL_COLUMNS = "orthonormal columns"  # A^H A = I
    ORTHONORMAL_ROWS = "orthonormal rows"  # A A^H = I
    UPPER_TRIANGULAR = "upper triangular"  # A[i, j] = 0 for i > j
    LOWER_TRIANGULAR = "lower triangular"  # A[i, j] = 0 for i < j

    def __repr__(self) -> str:
        return f"Claim.{self.name}"


_C = Claim
_ORTHOGONAL = frozenset({_C.ORTHOGONAL, _C.ORTHONORMAL_COLUMNS, _C.ORTHONORMAL_ROWS})
_TRIANGULAR = frozenset({_C.UPPER_TRIANGULAR, _C.LOWER_TRIANGULAR})
_SWAPPED = {
    _C.ORTHONORMAL_COLUMNS: _C.ORTHONORMAL_ROWS,
    _C.ORTHONORMAL_ROWS: _C.ORTHONORMAL_COLUMNS,
    _C.UPPER_TRIANGULAR: _C.LOWER_TRIANGULAR,
    _C.LOWER_TRIANGULAR: _C.UPPER_TRIANGULAR,
}
Pair = tuple[complex, complex]


@dataclasses.dataclass(frozen=True)
class Claims:
    """Properties, an upper bound of the rank, and upper bounds of displacement ranks.

    ``rank``: ``rank(A) <= rank``, or None where nothing better than ``min(m, n)`` is known.
    ``displacement``: ``{(e, f): r}`` with ``rank(Z_e A - A Z_f) <= r``.
    """

    properties: frozenset[Claim] = frozenset()
    rank: int | None = None
    displacement: Mapping[Pair, int] = dataclasses.field(default_factory=dict)

    def __contains__(self, claim: object) -> bool:
        return claim in self.properties

    def with_properties(self, extra: Iterable[Claim]) -> "Claims":
        return dataclasses.replace(self, properties=self.properties | frozenset(extra))

    def closed(self, *, square: bool, real: bool) -> "Claims":
        """Add what follows: orthogonal from orthonormal columns of a square matrix, Hermitian from symmetric and
        real, ..."""
        p = set(self.properties)
        if _C.POSITIVE_DEFINITE in p:
            p.add(_C.HERMITIAN)
        if real and p & {_C.SYMMETRIC, _C.HERMITIAN}:
            p |= {_C.SYMMETRIC, _C.HERMITIAN}
        if _C.ORTHOGONAL in p or (square and p & _ORTHOGONAL):
            p |= _ORTHOGONAL
        return dataclasses.replace(self, properties=frozenset(p)) if len(p) > len(self.properties) else self


NONE = Claims()


def transpose(a: Claims) -> Claims:
    """A^T: columns and rows, upper and lower change places; (e, f) becomes (1/f, 1/e) with the same bound."""
    pairs = {(1 / f, 1 / e): r for (e, f), r in a.displacement.items() if e != 0 and f != 0}
    return Claims(frozenset(_SWAPPED.get(c, c) for c in a.properties), a.rank, pairs)


def conj(a: Claims) -> Claims:
    """Entrywise conjugate: everything stays, the pair (e, f) is conjugated."""
    return Claims(a.properties, a.rank, {(_conj(e), _conj(f)): r for (e, f), r in a.displacement.items()})


def product(a: Claims, b: Claims) -> Claims:
    """A B: orthonormality and triangularity stay where both have them; ranks take the smaller; displacement ranks add.

    ``Z_e A B - A B Z_g = (Z_e A - A Z_f) B + A (Z_f B - B Z_g)``.
    """
    keep = a.properties & b.properties & (_ORTHOGONAL | _TRIANGULAR)
    ranks = [r for r in (a.rank, b.rank) if r is not None]
    pairs: dict[Pair, int] = {}
    for (e, f), r in a.displacement.items():
        for (f2, g), s in b.displacement.items():
            if f == f2 and e != g:
                pairs[e, g] = min(r + s, pairs.get((e, g), r + s))
    return Claims(keep, min(ranks) if ranks else None, pairs)


def sum_of(a: Claims, b: Claims) -> Claims:
    """A + B: symmetry, definiteness and triangularity stay where both have them; ranks and displacement ranks add."""
    keep = a.properties & b.properties & ({_C.SYMMETRIC, _C.HERMITIAN, _C.POSITIVE_DEFINITE} | _TRIANGULAR)
    rank = a.rank + b.rank if a.rank is not None and b.rank is not None else None
    pairs = {key: r + b.displacement[key] for key, r in a.displacement.items() if key in b.displacement}
    return Claims(keep, rank, pairs)


def scale(a: Claims, factor: complex | None, *, real: bool) -> Claims:
    """s A, for a Python number ``factor``, or None for a tensor whose values are not looked at (``real``: its dtype
    is).

    Symmetric and triangular always stay; Hermitian if s is real; definite if s > 0; orthonormal if |s| = 1 exactly.
    """
    keep = a.properties & ({_C.SYMMETRIC} | _TRIANGULAR)
    if factor is None:
        return Claims(keep | (a.properties & {_C.HERMITIAN} if real else frozenset()), a.rank, a.displacement)
    number = complex(factor)
    if number.imag == 0:
        keep |= a.properties & {_C.HERMITIAN}
        if number.real > 0 and number.real != float("inf"):
            keep |= a.properties & {_C.POSITIVE_DEFINITE}
    if number in (1, -1, 1j, -1j):  # |s| = 1 without rounding
        keep |= a.properties & _ORTHOGONAL
    return Claims(keep, 0 if number == 0 else a.rank, a.displacement)


def inverse(a: Claims) -> Claims:
    """A^-1: symmetry, definiteness, orthogonality and triangularity stay; (e, f) becomes (f, e)."""
    return Claims(a.properties, None, {(f, e): r for (e, f), r in a.displacement.items()})


def kron(a: Claims, b: Claims, *, square: bool) -> Claims:
    """A kron B: what both have stays (triangular only if both are ``square``); ranks multiply."""
    rank = a.rank * b.rank if a.rank is not None and b.rank is not None else None
    keep = a.properties & b.properties
    return Claims(keep if square else keep - _TRIANGULAR, rank, {})


def entrywise(a: Claims, b: Claims) -> Claims:
    """A * B: symmetry and definiteness stay where both have them (I. Schur, 1911), triangularity where one has it;
    ranks multiply, since A * B is a submatrix of A kron B."""
    both = a.properties & b.properties & {_C.SYMMETRIC, _C.HERMITIAN, _C.POSITIVE_DEFINITE}
    rank = a.rank * b.rank if a.rank is not None and b.rank is not None else None
    return Claims(both | ((a.properties | b.properties) & _TRIANGULAR), rank, {})


def _conj(z: complex) -> complex:
    return z.conjugate()


# Methods of one matrix, and what of the claims that were vouched for their results carry on.
CARRIED: dict[str, Callable[[Claims], Claims]] = {
    "transpose": transpose,
    "conj": conj,
    "inv": inverse,
    "prepare": lambda known: known,
}
