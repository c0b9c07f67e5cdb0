"""Toeplitz matrices: general rectangular ones, and square symmetric ones that store each number once."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import dispatch
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.functional import toeplitz as ft
from structmat.functional.fourier import Geometry
from structmat.matrix import Matrix
from structmat.types.toeplitz_family import ToeplitzFamily

__all__ = ["SymmetricToeplitz", "Toeplitz"]


class Toeplitz(ToeplitzFamily):
    """``A[i, j] = diagonals[i - j + columns - 1]``: constant along each diagonal, m x n.

    Stores:   diagonals (*batch, m + n - 1) from the upper right corner to the lower left, real or complex; columns =
              n (static).
    Shape:    (*batch, m, n).      Claims: displacement rank 2 (square).
    Cost:     linear three FFTs of length >= m + n - 1 a row; solve: dense LU up to n = 256 (many small systems: one
              vectorised recursion), conjugate gradients with a circulant preconditioner where claimed positive
              definite, else Levinson O(n^2) time, O(n) memory, refined (from n = 16,384 on superfast, O(n log^2 n)),
              else elimination (16 n^2 bytes, up to n = 8192), else Krylov; method by name: "dense" "levinson"
              "superfast" "cg" "gko" "gmres" "minres"; slogdet O(n^2), superfast as solve; lstsq: LSMR with a circulant
              preconditioner above n = 256.
    Closed:   X + X, s X, X * X, transpose, slices of one step, X + Circulant, X + s Identity -> Toeplitz.
    Raises:   ShapeError if columns does not fit; SolveError (with the backward error) in place of an inaccurate
              solution.
    Example:
        >>> sm.Toeplitz(torch.tensor([3.0, 2.0, 1.0, 4.0]), columns=3).to_dense()
        tensor([[1., 2., 3.],
                [4., 1., 2.]])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, sections 4.7, 4.8.
    """

    core: ClassVar[Mapping[str, int]] = {"diagonals": 1}
    diagonals: torch.Tensor
    columns: int

    def _validate(self) -> None:
        length = self.diagonals.shape[-1]
        if (
            isinstance(self.columns, bool)
            or not isinstance(self.columns, (int, torch.SymInt))
            or not min(1, length) <= self.columns <= length
        ):
            raise ShapeError(
                f"Toeplitz: {length} diagonals (m + n - 1) do not allow columns={self.columns!r}; "
                f"legal are {min(1, length)} to {length}, "
                "and m = diagonals - columns + 1"
            )

    @property
    def shape(self) -> torch.Size:
        *batch, length = self.diagonals.shape
        return torch.Size((*batch, ft.toeplitz_rows(length, self.columns), self.columns))

    def _diagonals(self) -> torch.Tensor:
        return self.diagonals

    def transpose(self) -> Matrix:
        return Toeplitz(self.diagonals.flip(-1), int(self.shape[-2]))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Toeplitz(
            self.diagonals * (factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor),
            self.columns,
        )

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The Toeplitz matrix equal to the dense one within ``tol ||dense||_F`` (default 8 eps); NotStructuredError
        otherwise."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Toeplitz":
        """The mean of each diagonal: the best in the Frobenius norm."""
        return cls(ft.diagonal_means(dense), dense.shape[-1])

    @classmethod
    def random(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Toeplitz":
        """Standard normal diagonals over ``sqrt(n)``."""
        n = m if n is None else n
        return cls(torch.randn(max(0, m + n - 1), generator=generator, **options) / n**0.5, n)

    @classmethod
    def identity(cls, n: int, **options: Any) -> "Toeplitz":
        diagonals = torch.zeros(max(0, 2 * n - 1), **options)
        diagonals[n - 1 : n] = 1
        return cls(diagonals, n)


class SymmetricToeplitz(ToeplitzFamily):
    """``A[i, j] = column[|i - j|]`` (also for complex entries: symmetric, not Hermitian).

    Stores:   column (*batch, n), each number once.
    Shape:    (*batch, n, n).      Claims: symmetric; displacement rank 2. ``assume(Claim.POSITIVE_DEFINITE)`` solves by
              preconditioned conjugate gradients.
    Cost:     as Toeplitz.         Closed: X + X, s X, X * X, transpose, principal slices; X + Toeplitz -> Toeplitz.
    Example:
        >>> sm.SymmetricToeplitz(torch.tensor([2.0, 1.0])).to_dense()
        tensor([[2., 1.],
                [1., 2.]])
    References: as Toeplitz.
    """

    core: ClassVar[Mapping[str, int]] = {"column": 1}
    column: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.column.shape, self.column.shape[-1]))

    def _diagonals(self) -> torch.Tensor:
        return torch.cat((self.column[..., 1:].flip(-1), self.column), -1)

    def _embedding(self) -> tuple[torch.Tensor, Geometry]:
        return self.column, ft.symmetric_geometry(self.column.shape[-1])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.symmetric_product(self.column, x)

    def transpose(self) -> Matrix:
        return SymmetricToeplitz(self.column)

    def _properties(self) -> Claims:
        return super()._properties().with_properties({Claim.SYMMETRIC})

    def _principal(self, diagonals: torch.Tensor, n: int) -> Matrix:
        return SymmetricToeplitz(diagonals[..., n - 1 :])

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return SymmetricToeplitz(
            self.column * (factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor)
        )

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The symmetric Toeplitz matrix equal to the dense one within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "SymmetricToeplitz":
        """The mean over both diagonals k and -k: the best in the Frobenius norm."""
        n = require_square_entries(dense, "SymmetricToeplitz.nearest")
        means = ft.diagonal_means(dense)
        return cls((means[..., n - 1 :] + means[..., :n].flip(-1)) / 2)

    @classmethod
    def random(cls, n: int, *, generator: Any = None, **options: Any) -> "SymmetricToeplitz":
        """A standard normal column over ``sqrt(n)``."""
        return cls(torch.randn(n, generator=generator, **options) / n**0.5)

    @classmethod
    def identity(cls, n: int, **options: Any) -> "SymmetricToeplitz":
        column = torch.zeros(n, **options)
        column[:1] = 1
        return cls(column)


@dispatch.rule("toeplitz", torch.Tensor, int)
def _of_diagonals(diagonals: torch.Tensor, columns: int) -> Matrix:
    """Toeplitz of these diagonals."""
    return Toeplitz(diagonals, columns)


@dispatch.rule("add", ToeplitzFamily, ToeplitzFamily)
def _plus(a: ToeplitzFamily, b: ToeplitzFamily) -> Matrix:
    """Toeplitz: the diagonals add."""
    return Toeplitz(a._diagonals() + b._diagonals(), int(a.shape[-1]))


@dispatch.rule("add", SymmetricToeplitz, SymmetricToeplitz)
def _plus_symmetric(a: SymmetricToeplitz, b: SymmetricToeplitz) -> Matrix:
    """SymmetricToeplitz: the columns add."""
    return SymmetricToeplitz(a.column + b.column)


@dispatch.rule("hadamard", ToeplitzFamily, ToeplitzFamily)
def _entrywise(a: ToeplitzFamily, b: ToeplitzFamily) -> Matrix:
    """Toeplitz: the diagonals multiply."""
    return Toeplitz(a._diagonals() * b._diagonals(), int(a.shape[-1]))


@dispatch.rule("hadamard", SymmetricToeplitz, SymmetricToeplitz)
def _entrywise_symmetric(a: SymmetricToeplitz, b: SymmetricToeplitz) -> Matrix:
    """SymmetricToeplitz: the columns multiply."""
    return SymmetricToeplitz(a.column * b.column)
