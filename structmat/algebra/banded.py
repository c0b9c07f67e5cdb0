"""Rules of banded and triangular matrices with diagonals, multiples of the identity, and types whose diagonals are
known."""

from collections.abc import Callable

import torch

from structmat.dispatch import lookup, rule
from structmat.functional import banded as fb
from structmat.lazy import Scaled
from structmat.matrix import Matrix, add, matmul
from structmat.types.banded import Banded
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.hankel import Hankel
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz_family import ToeplitzFamily
from structmat.types.triangular import Triangular
from structmat.types.zero import Zero

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _as_diagonal(a: Matrix, like: Matrix) -> Matrix:
    """Identity, or a multiple of it, as a Diagonal of the same dtype."""
    known = a if a.dtype is not None else a.to(dtype=like.dtype, device=like.device)
    return Diagonal(known.diagonal())


# -- with diagonals -----------------------------------------------------------------------------------------------


@rule("matmul", Banded, Diagonal)
def _banded_diagonal(a: Banded, b: Diagonal) -> Matrix:
    """Banded: the columns are scaled."""
    return Banded(a.bands * b.entries[..., None, :], a.upper)


@rule("matmul", Diagonal, Banded)
def _diagonal_banded(a: Diagonal, b: Banded) -> Matrix:
    """Banded: the rows are scaled."""
    return matmul(b.transpose(), a).transpose()


@rule("matmul", Triangular, Diagonal)
def _triangular_diagonal(a: Triangular, b: Diagonal) -> Matrix:
    """Triangular: the columns are scaled."""
    return Triangular((a.to_dense() if a.unit else a.entries) * b.entries[..., None, :], a.upper)


@rule("matmul", Diagonal, Triangular)
def _diagonal_triangular(a: Diagonal, b: Triangular) -> Matrix:
    """Triangular: the rows are scaled."""
    return Triangular((b.to_dense() if b.unit else b.entries) * a.entries[..., :, None], b.upper)


def _plus_diagonal(a: Matrix, b: Matrix) -> Matrix:
    """The same type: the main diagonal grows."""
    assert isinstance(b, Diagonal)
    if isinstance(a, Banded):
        return add(a, Banded(b.entries[..., None, :], 0))
    assert isinstance(a, Triangular)
    return Triangular(a.to_dense() + torch.diag_embed(b.entries), a.upper)


def _plus_identity(a: Matrix, b: Matrix) -> Matrix:
    """The same type: the main diagonal grows by one."""
    return _plus_diagonal(a, _as_diagonal(b, a))


def _plus_scaled(a: Matrix, b: Matrix) -> Matrix:
    """The same type for a multiple of the identity; else lazy."""
    assert isinstance(b, Scaled)
    if isinstance(b.matrix, Identity):
        return _plus_diagonal(a, _as_diagonal(b, a))
    return _lazily("add", a, b)


def _both_ways(verb: str, kind: type[Matrix], other: type[Matrix], how: Callable[[Matrix, Matrix], Matrix]) -> None:
    def turned(a: Matrix, b: Matrix) -> Matrix:
        return how(b, a)

    turned.__doc__ = how.__doc__
    rule(verb, kind, other)(how)
    rule(verb, other, kind)(turned)


for _kind in (Banded, Triangular):
    _both_ways("add", _kind, Diagonal, _plus_diagonal)
    _both_ways("add", _kind, Identity, _plus_identity)
    _both_ways("add", _kind, Scaled, _plus_scaled)


# -- entrywise ----------------------------------------------------------------------------------------------------


def _banded_toeplitz(a: Matrix, b: Matrix) -> Matrix:
    """Banded: each diagonal is scaled by its number."""
    assert isinstance(a, Banded) and isinstance(b, ToeplitzFamily)
    n, t = int(a.shape[-1]), b._diagonals()
    lower, upper = min(a.lower, n - 1), min(a.upper, n - 1)
    weights = t[..., n - 1 - upper : n + lower]
    return Banded(fb.spread(a.bands, a.upper, lower, upper) * weights[..., :, None], upper)


def _banded_circulant(a: Matrix, b: Matrix) -> Matrix:
    """Banded: each diagonal is scaled by the two numbers that stand on it."""
    assert isinstance(b, Circulant)
    return _banded_toeplitz(a, b._toeplitz())


def _banded_hankel(a: Matrix, b: Matrix) -> Matrix:
    """Banded: the antidiagonals at the places of the band, (l + u + 1) n numbers."""
    assert isinstance(a, Banded) and isinstance(b, Hankel)
    w, n = (int(s) for s in a.bands.shape[-2:])
    places = torch.arange(w, device=a.bands.device)[:, None] + 2 * torch.arange(n, device=a.bands.device) - a.upper
    return Banded(a.bands * b.antidiagonals[..., places.clamp(0, b.antidiagonals.shape[-1] - 1)], a.upper)


def _banded_low_rank(a: Matrix, b: Matrix) -> Matrix:
    """Banded: the entries near the diagonal, (l + u + 1) n r flops."""
    assert isinstance(a, Banded) and isinstance(b, LowRank)
    w, n = (int(s) for s in a.bands.shape[-2:])
    padded = torch.nn.functional.pad(b.left.mT, (a.upper, a.lower))  # place j + r holds row i = j + r - u
    rows = [(padded[..., r : r + n] * b.right.mT).sum(-2) for r in range(w)]
    return Banded(a.bands * torch.stack(rows, -2), a.upper)


def _triangular_any(a: Matrix, b: Matrix) -> Matrix:
    """Triangular: entries multiply; the other is formed."""
    assert isinstance(a, Triangular)
    return Triangular(a.to_dense() * b.to_dense(), a.upper)


_both_ways("hadamard", Banded, ToeplitzFamily, _banded_toeplitz)
_both_ways("hadamard", Banded, Circulant, _banded_circulant)
_both_ways("hadamard", Banded, Hankel, _banded_hankel)
_both_ways("hadamard", Banded, LowRank, _banded_low_rank)
_both_ways("hadamard", Triangular, Matrix, _triangular_any)
_both_ways("hadamard", Triangular, Dense, _triangular_any)


def _nearer(kind: type[Matrix]) -> None:
    """A type that decides entrywise products with every matrix decides those with a Triangular, too."""

    def decided(a: Matrix, b: Matrix) -> Matrix:
        """As with every matrix."""
        result: Matrix = lookup("hadamard", Matrix, kind)(a, b)  # type: ignore[misc]
        return result

    _both_ways("hadamard", Triangular, kind, decided)


for _other in (Zero, Scaled, Identity, Diagonal):
    _nearer(_other)
