"""Hankel matrices: constant along each antidiagonal. Every one is a Toeplitz matrix times the flip J."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.lazy import Inverse, Prepared, Slice
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.toeplitz_family import ToeplitzFamily

__all__ = ["Hankel", "HankelFactorisation"]


class Hankel(Matrix):
    """``A[i, j] = antidiagonals[i + j]``: ``A = T J``, T the Toeplitz matrix of the same numbers, J the flip.

    Stores:   antidiagonals (*batch, m + n - 1) from the upper left corner to the lower right, real or complex; columns
              = n (static).
    Shape:    (*batch, m, n).      Claims: symmetric (square).
    Cost:     as Toeplitz: linear three FFTs of length >= m + n - 1 a row; solve, slogdet and factor through T, with its
              methods for nonsymmetric matrices.
    Closed:   X + X, s X, X * X, transpose, slices of one step (of opposite steps: Toeplitz); X @ X is a product of two
              Toeplitz matrices. inv() keeps the factorisation of T: ``A^-1 = J T^-1``.
    Raises:   ShapeError if columns does not fit; SolveError (with the backward error) in place of an inaccurate
              solution.
    Example:
        >>> sm.Hankel(torch.tensor([1.0, 2.0, 3.0, 4.0]), columns=3).to_dense()
        tensor([[1., 2., 3.],
                [2., 3., 4.]])
    References: G. Heinig and K. Rost, Algebraic Methods for Toeplitz-like Matrices and Operators, 1984.
    """

    # T is neither symmetric nor definite, whatever A is: Krylov methods run on A itself, as for any matrix
    solve_methods: ClassVar[tuple[str, ...]] = tuple(
        m for m in ToeplitzFamily.solve_methods if m not in ("cg", "minres", "gmres")
    )
    core: ClassVar[Mapping[str, int]] = {"antidiagonals": 1}
    antidiagonals: torch.Tensor
    columns: int

    def _validate(self) -> None:
        length = self.antidiagonals.shape[-1]
        if (
            isinstance(self.columns, bool)
            or not isinstance(self.columns, (int, torch.SymInt))
            or not min(1, length) <= self.columns <= length
        ):
            raise ShapeError(
                f"Hankel: {length} antidiagonals (m + n - 1) do not allow columns={self.columns!r}; "
                f"legal are {min(1, length)} to {length}, and m = antidiagonals - columns + 1"
            )

    @property
    def shape(self) -> torch.Size:
        *batch, length = self.antidiagonals.shape
        return torch.Size((*batch, ft.toeplitz_rows(length, self.columns), self.columns))

    def _size(self) -> tuple[int, int]:
        return int(self.shape[-2]), int(self.shape[-1])

    def _toeplitz(self) -> Matrix:
        """T with ``A = T J``: its diagonals are the antidiagonals."""
        matrix: Matrix = dispatch.call("toeplitz", self.antidiagonals, self.columns)
        return matrix

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(self.antidiagonals, x.flip(-1), self.columns)

    def transpose(self) -> Matrix:
        return Hankel(self.antidiagonals, self._size()[0])

    def to_dense(self) -> torch.Tensor:
        m, n = self._size()
        device = self.antidiagonals.device
        return self.antidiagonals[..., torch.arange(m, device=device)[:, None] + torch.arange(n, device=device)]

    # -- solve ----------------------------------------------------------------------------------------------------

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """``x = J T^-1 y``; the backward error is that of T, which has the same singular values. A start x and a
        preconditioner P, which are given for A, are ``J x`` and ``J P`` for T."""
        if options.method == "dense":
            return super()._solve_rows(y, options)
        start, given, n = options.start, options.preconditioner, self.columns
        if isinstance(start, torch.Tensor) and start.ndim:
            start = start.flip(-1 if start.ndim == 1 else -2)
        if isinstance(given, Matrix) and given.shape[-2:] == self.shape[-2:]:
            given = Slice(given, (n - 1, -1, -1), (0, n, 1))
        x, info = self._toeplitz()._solve_rows(y, dataclasses.replace(options, start=start, preconditioner=given))
        return x.flip(-1), info

    def _lstsq_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """That of T, with its preconditioner; what was given for A itself (a start, a preconditioner) is used there."""
        if options.preconditioner is not None or options.start is not None:
            return super()._lstsq_rows(y, options)
        x, info = self._toeplitz()._lstsq_rows(y, options)
        return x.flip(-1), info

    def _factor(self, method: str) -> Factorisation:
        inner = self._toeplitz().factor(method)
        return HankelFactorisation(self, inner.method, inner)

    def inv(self) -> Matrix:
        """``J T^-1``, lazily, with T factorised at once where values may be read, so that each product costs a solve
        with the factors."""
        if self.shape[-1] != self.shape[-2] or not backend.eager(self.antidiagonals):
            return super().inv()
        return Inverse(self, self.factor())

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """That of T, with the sign of J: ``det J = (-1)^(n (n - 1) / 2)``."""
        sign, logabs = self._toeplitz().slogdet()
        return sign * _sign_of_flip(self.columns), logabs

    def svdvals(self) -> torch.Tensor:
        return self._toeplitz().svdvals()

    def _norm_bound(self) -> torch.Tensor:
        return self._toeplitz()._norm_bound()

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        return self.antidiagonals[..., : 2 * min(self._size()) - 1 : 2]

    def norm(self) -> torch.Tensor:
        """``sqrt(sum_k count_k |h_k|^2)``."""
        return self._toeplitz().norm()

    def _properties(self) -> Claims:
        m, n = self._size()
        return Claims(frozenset({Claim.SYMMETRIC}) if m == n else frozenset())

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        s = factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        return Hankel(self.antidiagonals * s, self.columns)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        """Slices of one common step are Hankel again, those of opposite steps Toeplitz."""
        m, n = self._size()
        r, c = range(*rows.indices(m)), range(*columns.indices(n))
        if not r or not c or abs(r.step) != abs(c.step):
            lazy: Matrix = dispatch.lookup("slice", Matrix)(self, rows, columns)  # type: ignore[misc]
            return lazy
        h = self.antidiagonals
        k = torch.arange(len(r) + len(c) - 1, device=h.device)
        if r.step == c.step:
            return Hankel(h[..., r[0] + c[0] + k * r.step], len(c))
        cut: Matrix = dispatch.call("toeplitz", h[..., r[0] + c[-1] + k * r.step], len(c))
        return cut

    def prepare(self) -> Matrix:
        return Prepared(self, (fourier.spectrum(self.antidiagonals, ft.toeplitz_geometry(*self._size())),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        return self._toeplitz()._linear_kept(kept, x.flip(-1))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        return self._toeplitz().plan(verb, columns)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The Hankel matrix equal to the dense one within ``tol ||dense||_F`` (default 8 eps); NotStructuredError
        otherwise."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Hankel":
        """The mean of each antidiagonal: the best in the Frobenius norm."""
        return cls(ft.diagonal_means(dense.flip(-1)), dense.shape[-1])

    @classmethod
    def random(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Hankel":
        """Standard normal antidiagonals over ``sqrt(n)``."""
        n = m if n is None else n
        return cls(torch.randn(max(0, m + n - 1), generator=generator, **options) / n**0.5, n)


def _sign_of_flip(n: int) -> int:
    """The determinant of the n x n flip: n (n - 1) / 2 exchanges."""
    return -1 if n * (n - 1) // 2 % 2 else 1


class HankelFactorisation(Factorisation):
    """A factorisation of T with ``A = T J``: ``A^-1 = J T^-1``, ``A^-H = T^-H J``."""

    inner: Factorisation | None = None

    @property
    def backward_error(self) -> float | None:
        assert self.inner is not None
        return self.inner.backward_error

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        assert self.inner is not None
        return self.inner.solve_rows(y).flip(-1)

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        assert self.inner is not None
        return self.inner.adjoint_solve(b.flip(-1 if b.ndim == 1 else -2))

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.inner is not None
        sign, logabs = self.inner.slogdet()
        return sign * _sign_of_flip(int(self.matrix.shape[-1])), logabs


@dispatch.rule("hankel", torch.Tensor, int)
def _of_antidiagonals(antidiagonals: torch.Tensor, columns: int) -> Matrix:
    """Hankel of these antidiagonals."""
    return Hankel(antidiagonals, columns)


@dispatch.rule("add", Hankel, Hankel)
def _plus(a: Hankel, b: Hankel) -> Matrix:
    """Hankel: the antidiagonals add."""
    return Hankel(a.antidiagonals + b.antidiagonals, a.columns)


@dispatch.rule("hadamard", Hankel, Hankel)
def _entrywise(a: Hankel, b: Hankel) -> Matrix:
    """Hankel: the antidiagonals multiply."""
    return Hankel(a.antidiagonals * b.antidiagonals, a.columns)
