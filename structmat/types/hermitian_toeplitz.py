"""Hermitian Toeplitz matrices, each number stored once: covariances of complex stationary processes."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import dispatch
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.functional import toeplitz as ft
from structmat.matrix import Matrix
from structmat.types.toeplitz_family import ToeplitzFamily

__all__ = ["HermitianToeplitz"]


class HermitianToeplitz(ToeplitzFamily):
    """``A[i, j] = column[i - j]`` for i > j, its conjugate above the diagonal, ``Re column[0]`` on it.

    Stores:   column (*batch, n), real or complex; the imaginary part of column[0] is not read.
    Shape:    (*batch, n, n).      Claims: Hermitian; displacement rank 2. ``assume(Claim.POSITIVE_DEFINITE)`` solves by
              preconditioned conjugate gradients.
    Cost:     as Toeplitz.
    Closed:   X + X, s X (s real; else Toeplitz), X * X, transpose, conj, X + s Identity (s real), X + SymmetricToeplitz
              (real); X + Toeplitz -> Toeplitz.
    Raises:   as Toeplitz.
    Example:
        >>> sm.HermitianToeplitz(torch.tensor([2.0 + 0j, 1 + 1j])).to_dense()
        tensor([[2.+0.j, 1.-1.j],
                [1.+1.j, 2.+0.j]])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 4.7.
    """

    core: ClassVar[Mapping[str, int]] = {"column": 1}
    column: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.column.shape, self.column.shape[-1]))

    def _column(self) -> torch.Tensor:
        """The first column as it stands in the matrix: its first entry real."""
        if not self.column.is_complex():
            return self.column
        head = self.column[..., :1]
        return torch.cat((torch.complex(head.real, torch.zeros_like(head.real)), self.column[..., 1:]), -1)

    def _diagonals(self) -> torch.Tensor:
        column = self._column()
        above = column[..., 1:].flip(-1)
        return torch.cat((above.conj() if above.is_complex() else above, column), -1).resolve_conj()

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if not self.column.is_complex():
            return ft.symmetric_product(self.column, x)
        return ft.toeplitz_product(self._diagonals(), x, int(self.column.shape[-1]))

    def transpose(self) -> Matrix:
        return HermitianToeplitz(self.column.conj().resolve_conj() if self.column.is_complex() else self.column)

    def _properties(self) -> Claims:
        return super()._properties().with_properties({Claim.HERMITIAN})

    def _principal(self, diagonals: torch.Tensor, n: int) -> Matrix:
        return HermitianToeplitz(diagonals[..., n - 1 :])

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        s = factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        if not s.is_complex() if isinstance(s, torch.Tensor) else complex(s).imag == 0:
            return HermitianToeplitz(self.column * s)
        general: Matrix = dispatch.call("toeplitz", self._diagonals() * s, int(self.shape[-1]))
        return general

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The Hermitian Toeplitz matrix equal to the dense one within ``tol ||dense||_F`` (default 8 eps);
        NotStructuredError otherwise."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "HermitianToeplitz":
        """The mean over diagonal k and the conjugated diagonal -k: the best in the Frobenius norm."""
        n = require_square_entries(dense, "HermitianToeplitz.nearest")
        means = ft.diagonal_means(dense)
        return cls((means[..., n - 1 :] + means[..., :n].flip(-1).conj().resolve_conj()) / 2)

    @classmethod
    def random(cls, n: int, *, generator: Any = None, **options: Any) -> "HermitianToeplitz":
        """A standard normal column over ``sqrt(n)``."""
        return cls(torch.randn(n, generator=generator, **options) / n**0.5)

    @classmethod
    def identity(cls, n: int, **options: Any) -> "HermitianToeplitz":
        column = torch.zeros(n, **options)
        column[:1] = 1
        return cls(column)


@dispatch.rule("add", HermitianToeplitz, HermitianToeplitz)
def _plus(a: HermitianToeplitz, b: HermitianToeplitz) -> Matrix:
    """HermitianToeplitz: the columns add."""
    return HermitianToeplitz(a.column + b.column)


@dispatch.rule("hadamard", HermitianToeplitz, HermitianToeplitz)
def _entrywise(a: HermitianToeplitz, b: HermitianToeplitz) -> Matrix:
    """HermitianToeplitz: the columns multiply."""
    return HermitianToeplitz(a._column() * b._column())
