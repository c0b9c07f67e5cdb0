"""The questions ``is_toeplitz(A)`` and kin: what each structure is, and how few products determine a member of it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from structmat.checks.membership import Structure, _refuse_exact, member, quotient
from structmat.checks.operands import Operator, checked, from_entries
from structmat.checks.orthogonality import worst
from structmat.checks.readers import (
    band_products,
    block_products,
    circulant_products,
    diagonal_products,
    hankel_products,
    kronecker_products,
    permutation_products,
    toeplitz_products,
)
from structmat.checks.report import Report
from structmat.errors import ShapeError
from structmat.functional import circulant as fc
from structmat.functional import toeplitz as ft
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.butterfly import Butterfly
from structmat.types.kronecker import Kronecker

__all__ = [
    "is_banded",
    "is_block_diagonal",
    "is_butterfly",
    "is_circulant",
    "is_diagonal",
    "is_hankel",
    "is_hermitian",
    "is_kronecker",
    "is_permutation",
    "is_symmetric",
    "is_toeplitz",
    "is_triangular",
    "triangle",
]

Seed = torch.Generator | None


def is_toeplitz(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Distance from the nearest Toeplitz matrix over ``||A||_F``; within ``tol`` (default 8 eps). The zero matrix is
    Toeplitz. With ``tol=0`` entries are compared bit by bit.

    Up to 2^20 entries A is formed. Above, or with ``probes`` = k, its first column and row are read by two products,
    and the Toeplitz matrix of these is compared with A on k (10) Gaussian vectors, as ``distance`` does.
    """

    def entries(diagonals: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_entries(diagonals, like.shape[-1])

    def read(wide: torch.Tensor) -> torch.Tensor:
        return entries(torch.cat((wide[..., 0, 1:].flip(-1), wide[..., :, 0]), -1), wide)

    kind = Structure("Toeplitz", lambda w: entries(ft.diagonal_means(w), w), read, toeplitz_products)
    return member(a, kind, tol, probes, generator)


def is_hankel(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Distance from the nearest Hankel matrix over ``||A||_F``, that of A J from Toeplitz; as ``is_toeplitz``, from the
    first column and the last row."""

    def nearest(wide: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_entries(ft.diagonal_means(wide.flip(-1)), wide.shape[-1]).flip(-1)

    def read(wide: torch.Tensor) -> torch.Tensor:
        line = torch.cat((wide[..., 0, :], wide[..., 1:, -1]), -1)  # a_0 .. a_{m+n-2}
        return ft.toeplitz_entries(line, wide.shape[-1]).flip(-1)

    return member(a, Structure("Hankel", nearest, read, hankel_products), tol, probes, generator)


def is_circulant(
    a: Any, f: complex = 1, tol: float | None = None, *, probes: int | None = None, generator: Seed = None
) -> Report:
    """Distance from the nearest f-circulant over ``||A||_F``; as ``is_toeplitz``, from the first column."""
    kind = Structure(
        f"f-circulant, f = {f}",
        lambda w: ft.circulant_entries(fc.nearest_column(w, f), f),
        lambda w: ft.circulant_entries(w[..., 0], f),
        lambda op: circulant_products(op, f),
        square=True,
    )
    return member(a, kind, tol, probes, generator)


def is_symmetric(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Distance from the symmetric part ``(A + A^T) / 2`` over ``||A||_F``; from products with A and A^T for a large
    A."""
    kind = Structure(
        "symmetric",
        lambda w: (w + w.mT) / 2,
        lambda w: w.mT,
        lambda op: lambda z: (op.az + op.transposed(z)) / 2,
        square=True,
    )
    return member(a, kind, tol, probes, generator)


def is_hermitian(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Distance from the Hermitian part ``(A + A^H) / 2`` over ``||A||_F``; from products with A and A^H for a large
    A."""
    kind = Structure(
        "Hermitian",
        lambda w: (w + w.mH) / 2,
        lambda w: w.mH,
        lambda op: lambda z: (op.az + op.adjoint(z)) / 2,
        square=True,
    )
    return member(a, kind, tol, probes, generator)


def is_diagonal(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Size of the off-diagonal part over ``||A||_F``; of a large A the diagonal is read by one product with ones."""

    def diagonal(wide: torch.Tensor) -> torch.Tensor:
        return torch.tril(torch.triu(wide))

    return member(a, Structure("diagonal", diagonal, diagonal, diagonal_products), tol, probes, generator)


def is_banded(
    a: Any,
    lower: int,
    upper: int,
    tol: float | None = None,
    *,
    probes: int | None = None,
    generator: Seed = None,
) -> Report:
    """Size of what lies below the ``lower`` subdiagonals and above the ``upper`` superdiagonals, over ``||A||_F``; of a
    large A the band is read by ``lower + upper + 1`` products with sums of every so manieth unit vector."""
    if lower < 0 or upper < 0:
        raise ValueError(f"is_banded(lower={lower}, upper={upper}): both are counts of diagonals, 0 or more")

    def band(wide: torch.Tensor) -> torch.Tensor:
        return torch.tril(torch.triu(wide, -lower), upper)

    kind = Structure(f"banded ({lower}, {upper})", band, band, lambda op: band_products(op, lower, upper))
    return member(a, kind, tol, probes, generator)


def is_triangular(
    a: Any,
    lower: bool = True,
    tol: float | None = None,
    *,
    probes: int | None = None,
    generator: Seed = None,
) -> Report:
    """Size of what lies above (``lower=False``: below) the diagonal, over ``||A||_F``.

    Of a large A the blocks ``A[:s, s:]`` are measured for k random s, each with a vector of its own. An entry next to
    the diagonal lies in few of them, and nothing better is possible: row i of ``A Z`` tells an entry right of the
    diagonal from those left of it only through a combination of the vectors that vanishes up to i, and such
    combinations for all i need n vectors. So the failure probability is stated as 1; ``is_banded`` has certificates.
    """
    a = checked(a)
    name = "lower triangular" if lower else "upper triangular"
    part = torch.tril if lower else torch.triu
    if from_entries(a, probes):
        return member(a, Structure(name, part, part, None), tol, None, None)
    _refuse_exact(tol, name, a)
    return triangle(Operator.of(a, probes, generator), lower, f"distance from {name}", tol)


def triangle(op: Operator, lower: bool, name: str, tol: float | None) -> Report:
    """The largest of ``||A[:s, s:] z||`` over ``||A z||``, s random."""
    m, n = op.shape
    length = n if lower else m  # s runs over the columns, or rows, that have something beside the diagonal
    if length < 2:
        return Report(name, 0.0, 0.0 if tol is None else tol, True, "nothing lies beside the diagonal")
    place = op.generator.device
    splits = torch.randint(1, length, (op.probes, 1), generator=op.generator, device=place).to(op.device)
    rows, columns = torch.arange(m, device=op.device), torch.arange(n, device=op.device)
    y = op.forward(op.z * ((columns >= splits) if lower else (columns < splits)))
    beyond = y * ((rows < splits) if lower else (rows >= splits))
    values = quotient(beyond, op.az)
    rounding = torch.where(op.size > 0, 2 * op.noise / op.size, 0.0)
    value, details = worst(values)
    limit = worst(rounding)[0] if tol is None else tol
    ok = bool((values <= (rounding if tol is None else tol)).all())
    method = f"{op.probes} blocks beside the diagonal, seed {op.generator.initial_seed()}"
    return Report(name, value, limit, ok, method, 1.0, details)


def is_block_diagonal(
    a: Any, count: int, tol: float | None = None, *, probes: int | None = None, generator: Seed = None
) -> Report:
    """Size of what lies outside the ``count`` diagonal blocks of one size, over ``||A||_F``; of a large A the blocks
    ``(p, q)`` are read by q products."""
    m, n = checked(a).shape[-2:]
    if count < 1 or m % count or n % count:
        raise ShapeError(f"is_block_diagonal(count={count}): {m} x {n} has no {count} blocks of one size")

    def blocks(wide: torch.Tensor) -> torch.Tensor:
        return BlockDiagonal.nearest(wide, count).to_dense()

    kind = Structure(f"block diagonal, {count} blocks", blocks, blocks, lambda op: block_products(op, count))
    return member(a, kind, tol, probes, generator)


def is_kronecker(
    a: Any,
    shapes: Sequence[tuple[int, int]],
    tol: float | None = None,
    *,
    probes: int | None = None,
    generator: Seed = None,
) -> Report:
    """Distance from a Kronecker product of factors of these sizes, over ``||A||_F``: from the nearest for two factors,
    within ``sqrt(L - 1)`` of it for L. Of a large A the factors ``(p, q)`` are read by q products each."""
    m, n = math.prod(s[0] for s in shapes), math.prod(s[1] for s in shapes)
    if not shapes or tuple(checked(a).shape[-2:]) != (m, n):
        raise ShapeError(f"is_kronecker: factors of {tuple(shapes)} make {m} x {n}, got {tuple(checked(a).shape)}")
    named = " x ".join(f"({p}, {q})" for p, q in shapes)

    def nearest(wide: torch.Tensor) -> torch.Tensor:
        return Kronecker.nearest(wide, shapes).to_dense()

    kind = Structure(f"Kronecker {named}", nearest, nearest, lambda op: kronecker_products(op, shapes))
    return member(a, kind, tol, probes, generator)


def is_permutation(a: Any, tol: float | None = None, *, probes: int | None = None, generator: Seed = None) -> Report:
    """Distance from the permutation that the largest entry of each row names (the identity, if these name none), over
    ``||A||_F``. Of a large A the indices are read, digit by digit to the base 16, by ``log16 n`` products."""

    def named(wide: torch.Tensor) -> torch.Tensor:
        n = wide.shape[-1]
        if n == 0:
            return wide
        found = torch.nn.functional.one_hot(wide.real.argmax(-1), n).to(wide.dtype)
        whole = (found.real.sum(-2) == 1).all(-1)[..., None, None]
        return torch.where(whole, found, torch.eye(n, dtype=wide.dtype, device=wide.device))

    return member(a, Structure("permutation", named, named, permutation_products, True), tol, probes, generator)


def is_butterfly(
    a: Any,
    digits: tuple[int, ...] | None = None,
    rows: tuple[int, ...] | None = None,
    tol: float | None = None,
) -> Report:
    """Distance from a butterfly of one factor a digit (``Butterfly.nearest``, within ``sqrt(L - 1)`` of the nearest),
    over ``||A||_F``; default ``tol`` 8 eps sqrt(L), L roundings. Raises StructureError above 2^20 entries."""

    def nearest(wide: torch.Tensor) -> torch.Tensor:
        return Butterfly.nearest(wide, digits, rows).to_dense()

    return member(a, Structure("butterfly", nearest, nearest, None), tol, None, None)
