"""Where matrices of low displacement rank come from: other structures, Stein's form, dense matrices, chance, and
themselves with fewer generators."""

from typing import Any, Self

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.errors import ShapeError, StructureError
from structmat.functional import displacement_algebra as fa
from structmat.functional import displacement_measures as fm
from structmat.functional import displacement_rank as fr
from structmat.functional.toeplitz import circulant_product
from structmat.matrix import Matrix

__all__ = ["DisplacementFamily", "generators_of"]


def generators_of(matrix: Matrix, e: complex, f: complex) -> fa.Pair:
    """The generators of a structured square matrix under (e, f), by the rule "displacement" of its type.

    Raises StructureError for a type without one, ShapeError for a rectangle.
    """
    found = dispatch.lookup("displacement", type(matrix))
    if found is None:
        raise StructureError(
            f"{matrix!r} has no known generators of low displacement rank; "
            "LowDisplacementRank.from_dense(A.to_dense()) finds them from n^2 entries"
        )
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"{matrix!r}: low displacement rank is for square matrices; a rectangle is a slice of one")
    pair: fa.Pair = found(matrix, e, f)
    return pair


class DisplacementFamily(Matrix):
    """Constructors, and ``recompress``."""

    left: torch.Tensor
    right: torch.Tensor
    e: complex
    f: complex

    @classmethod
    def _of(cls, pair: fa.Pair, e: complex, f: complex) -> Self:
        make: Any = cls  # the fields belong to the subclass
        result: Self = make(*pair, e, f)
        return result

    @classmethod
    def from_toeplitz(cls, matrix: Matrix, e: complex = 1, f: complex = -1) -> Self:
        """Of a square Toeplitz matrix: rank 2, linear in its diagonals. Also takes a Circulant."""
        return cls._of(generators_of(matrix, e, f), e, f)

    @classmethod
    def from_circulant(cls, matrix: Matrix, e: complex = 1, f: complex = -1) -> Self:
        """Of a circulant for the number f': rank 1 where e or f is f', else 2."""
        return cls._of(generators_of(matrix, e, f), e, f)

    @classmethod
    def from_hankel(cls, matrix: Matrix, e: complex = 1, f: complex = -1) -> Matrix:
        """``H = T J`` as a product: T of displacement rank 2, J the flip. A Hankel matrix itself has full displacement
        rank under two shifts of one direction."""
        m, n = (int(s) for s in matrix.shape[-2:])
        antidiagonals = getattr(matrix, "antidiagonals", None)
        if antidiagonals is None or m != n:
            raise ShapeError(f"LowDisplacementRank.from_hankel({matrix!r}): a square Hankel matrix is expected")
        product: Matrix = dispatch.call("flipped", cls._of(fa.toeplitz(antidiagonals, e, f), e, f))
        return product

    @classmethod
    def from_stein(cls, left: torch.Tensor, right: torch.Tensor, e: complex = 1, f: complex = -1) -> Self:
        """Of the A with ``A - Z_e A Z_f^T = left right^T``.

        f not zero, e not 1/f: operator (e, 1/f), rank r. ``e = f = 0``, where ``A = sum_j L(g_j) L(h_j)^T`` with lower
        triangular Toeplitz matrices (Kailath): operator (1, -1), rank r + 2. ValueError for other pairs.
        """
        if e == 0 and f == 0:
            last_column, last_row = (
                circulant_product(a.mT, b.flip(-2).mT[..., None, :], 0)[..., 0, :].sum(-2)[..., None]
                for a, b in ((left, right), (right, left))
            )
            return cls._of(fa.triangular(left, right, 1, -1, last_column, last_row), 1, -1)
        if e == 0 or f == 0 or e * f == 1:
            raise ValueError(
                f"LowDisplacementRank.from_stein(e={e!r}, f={f!r}): legal are nonzero e and f with e f != 1, where the "
                "equation has one solution, and e = f = 0"
            )
        return cls._of(fa.stein(left, right, over(f)), e, over(f))

    @classmethod
    def from_dense(
        cls, dense: torch.Tensor, tol: float | None = None, rank: int | None = None, e: complex = 1, f: complex = -1
    ) -> Self:
        """Equal within ``tol ||dense||_F`` (default ``8 eps (n + 2 c)``, c of ``nearest``: the rounding of the
        displacement, seen in the entries) at the given displacement rank, or at the smallest that the bound of
        ``nearest`` proves sufficient; NotStructuredError with the distance otherwise."""
        n, factor = _order(cls, dense), fm.distance_factor(dense.shape[-1], e, f)
        eps = torch.finfo(dense.dtype).eps
        allowed = 8 * eps * (n + 2 * factor) if tol is None else tol
        if rank is None:
            wide = _displaced(dense.to(backend.compute_dtype(dense.dtype)).detach(), e, f)
            s = torch.linalg.svdvals(wide)
            tails = torch.flip(torch.cumsum(torch.flip(s**2, (-1,)), -1), (-1,)).sqrt()
            size = torch.linalg.matrix_norm(dense.detach().to(wide.dtype))[..., None]
            noise = n * torch.finfo(s.dtype).eps * s[..., :1]
            enough = torch.maximum(allowed / 2 * size / factor, noise)
            rank = int((tails > enough).sum(-1).max()) if s.numel() else 0
        nearest = cls.nearest(dense, rank, e, f)
        found: Self = distance_check(cls, dense.to(nearest.dtype or dense.dtype), nearest, allowed)
        return found

    @classmethod
    def nearest(cls, dense: torch.Tensor, rank: int, e: complex = 1, f: complex = -1) -> Self:
        """Quasi-best of displacement rank ``rank``: the displacement is truncated by its singular values.

        ``||A - A_r||_F <= c (sum_{i >= r} s_i^2)^{1/2}``, ``c = 1 / (2 sin(pi / 2n)) < n / pi + 1`` for (1, -1), which
        is at most ``2 c`` times the distance of the best one. n^2 storage, n^3 work.
        """
        _order(cls, dense)
        if not rank >= 0:
            raise ValueError(f"LowDisplacementRank.nearest(rank={rank}): legal ranks are 0, 1, 2, ...")
        wide = _displaced(dense.to(backend.compute_dtype(dense.dtype)), e, f)
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
        root = s[..., None, :rank].sqrt().to(u.dtype)
        kept = backend.complex_of(dense.dtype) if wide.is_complex() else dense.dtype
        return cls._of(((u[..., :, :rank] * root).to(kept), (vh[..., :rank, :].mT * root).to(kept)), e, f)

    @classmethod
    def random(
        cls, n: int, rank: int = 1, e: complex = 1, f: complex = -1, *, generator: Any = None, **options: Any
    ) -> Self:
        """Standard normal generators, scaled so that products keep the size of x."""
        size = (abs(e - f) / max(1, rank) ** 0.5 / n) ** 0.5
        left, right = (torch.randn(n, rank, generator=generator, **options) * size for _ in range(2))
        return cls._of((left, right), e, f)

    @classmethod
    def identity(cls, n: int, e: complex = 1, f: complex = -1, **options: Any) -> Self:
        """``(e - f) e_0 e_{n-1}^T``: rank 1."""
        return cls._of(fa.identity(torch.zeros(n, 1, **options), e - f), e, f)

    def recompress(self, tol: float | None = None) -> Self:
        """The same matrix with as few generators as it needs, balanced (``||g_j|| = ||h_j||``).

        ``tol=None``: what lies at the rounding of the generators is dropped (singular values of ``left right^T`` up to
        ``n eps`` of the largest). A number: ``||A - A'||_F <= tol ||A||_F``, by ``||A - A'||_F <= c ||N - N'||_F``,
        ``c = 1 / (2 sin(pi / 2n)) < n / pi + 1`` for (1, -1). One rank for the whole batch. Reads values, so it does
        not trace; differentiable, exactly where nothing but rounding is dropped. n r^2 work.
        """
        if torch.compiler.is_compiling():
            raise StructureError(f"{self!r}.recompress under torch.compile: the rank is read from values")
        if tol is not None and not tol >= 0:
            raise ValueError(f"{self!r}.recompress: tol, a relative distance, must not be negative, got {tol!r}")
        if self.left.shape[-1] == 0:
            return self
        wide = backend.compute_dtype(self.left.dtype)
        left, right = self.left.to(wide), self.right.to(wide)
        allowed = None
        if tol is not None:
            n = int(self.left.shape[-2])
            size = self.detach()._norm_bound().to(backend.real_of(wide))
            allowed = tol * size / fm.distance_factor(n, self.e, self.f)
        with torch.no_grad():
            keep, u, v, _ = fr.truncated(left, right, allowed)
        if keep == 0:
            pair = left[..., :0], right[..., :0]
        else:
            pair = fr.skeleton(left, right, u, v)
        return self._of((pair[0].to(self.left.dtype), pair[1].to(self.left.dtype)), self.e, self.f)


def over(number: complex) -> complex:
    """``1 / number``; 1 and -1 stay the integers they are."""
    return number if number in (1, -1) else 1 / number


def _order(cls: type, dense: torch.Tensor) -> int:
    if dense.ndim < 2 or dense.shape[-1] != dense.shape[-2] or dense.shape[-1] == 0:
        raise ShapeError(f"{cls.__name__}: a square matrix (*batch, n, n) is needed, got shape {tuple(dense.shape)}")
    return int(dense.shape[-1])


def _displaced(dense: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``Z_e A - A Z_f``."""
    moved = fa.shift(dense, e)
    return moved - fa.shift_transposed(dense.mT, f).mT  # A Z_f: the columns move left, the first comes last times f
