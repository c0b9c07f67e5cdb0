"""f-circulant matrices: circulant for f = 1, skew-circulant for f = -1."""

import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import SolveError, StructureError
from structmat.functional import circulant as fc
from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.lazy import Prepared, Product
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Circulant"]

_FAR = 1e8  # beyond this |f| (or below its inverse) the scaling D would cost all digits of float32


class Circulant(Matrix):
    """``A[i, j] = column[i - j]`` for i >= j, ``f column[n + i - j]`` above the diagonal: ``sum_k column_k Z_f^k``.

    Stores:   column (*batch, n), real or complex; f, a number (static): 1 circulant, -1 skew-circulant, 0 lower
              triangular.
    Shape:    (*batch, n, n).      Claims: displacement rank 1 where e or f of the pair is f, else 2.
    Cost:     linear three FFTs of length n a row (f = 1 and n smooth), else of 2n; solve, inv, det, eigvals n log n;
              n memory.
              Accuracy of solve, inv, det and eigvals falls with max(|f|, 1/|f|); f = 0 and |f| outside [1e-8, 1e8]
              solve as Toeplitz.
    Closed:   X @ X, X + X (one f), s X, inv, transpose (f != 0; f = 0 becomes a Toeplitz), X * X; |f| = 1: pinv.
    Raises:   SolveError if an eigenvalue is zero to working precision; StructureError for svdvals, pinv with |f| != 1
              above
              the dense limit.
    Example:
        >>> sm.Circulant(torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[1., 3., 2.],
                [2., 1., 3.],
                [3., 2., 1.]])
    References: P. J. Davis, Circulant Matrices, 1979, section 3.2.
    """

    core: ClassVar[Mapping[str, int]] = {"column": 1}
    column: torch.Tensor
    f: complex = 1

    def _validate(self) -> None:
        if isinstance(self.f, bool) or not isinstance(self.f, (numbers.Complex, torch.SymInt, torch.SymFloat)):
            raise ValueError(f"Circulant: f must be a Python number (1 circulant, -1 skew-circulant), got {self.f!r}")
        if self.column.shape[-1] == 0:
            raise ValueError("Circulant: column must have at least one entry")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.column.shape, self.column.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        return backend.complex_of(self.column.dtype) if isinstance(self.f, complex) else self.column.dtype

    @property
    def _n(self) -> int:
        return int(self.column.shape[-1])

    @property
    def _divides(self) -> bool:
        """Whether the closed form by eigenvalues serves."""
        return self.f != 0 and 1 / _FAR <= abs(self.f) <= _FAR

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.circulant_product(self.column, x, self.f)

    def transpose(self) -> Matrix:
        if self.f == 0:
            return self._toeplitz().transpose()
        head, tail = self.column[..., :1], self.column[..., 1:].flip(-1)
        return Circulant(
            torch.cat((head, tail if self.f == 1 else tail * self.f), -1), 1 if self.f == 1 else 1 / self.f
        )

    def _toeplitz(self) -> Matrix:
        """The same entries as a Toeplitz matrix, by the rule of ``algebra``."""
        matrix: Matrix = dispatch.call("toeplitz", self)
        return matrix

    def to_dense(self) -> torch.Tensor:
        return ft.circulant_entries(self.column, self.f)

    # -- solve ----------------------------------------------------------------------------------------------------

    def inv(self) -> Matrix:
        """The f-circulant of the reciprocal eigenvalues (f = 0 or extreme: lazy)."""
        if not self._divides:
            return dispatch.call("inverse", self)
        lam = fc.eigenvalues(self.column, self.f)
        return Circulant(fc.from_eigenvalues(1 / lam, self.f, self._is_real).to(self.dtype), self.f)

    @property
    def _is_real(self) -> bool:
        return not (self.column.is_complex() or isinstance(self.f, complex))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        if not self._divides:
            x, info = self._toeplitz()._solve_rows(y, options)
            return x, info
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        if options.check and backend.eager(y, self.column):
            size = fc.eigenvalues(self.column.detach(), self.f).abs()
            cut = self._n * torch.finfo(size.dtype).eps * size.amax(-1)
            if bool((size.amin(-1) <= cut).any()):
                raise SolveError(
                    f"{self!r}.solve: singular to working precision, the smallest eigenvalue is "
                    f"{float(size.min()):.1e} and the "
                    f"largest {float(size.max()):.1e}; see pinv, or check=False",
                    float("inf"),
                )
        x = fc.divide_rows(self.column, y, self.f)
        return x, self._checked(x, y, "closed form", 0, options, ("division by the eigenvalues",))

    def _factor(self, method: str) -> Factorisation:
        return super()._factor(method) if method == "dense" else Factorisation(self)

    def pinv(self) -> Matrix:
        """|f| = 1 (normal): reciprocal eigenvalues, those below ``n eps max|lam|`` count as zero; else dense up to
        the limit."""
        if abs(self.f) != 1:
            return super().pinv()
        lam = fc.eigenvalues(self.column, self.f)
        size = lam.detach().abs()
        zero = size <= self._n * torch.finfo(size.dtype).eps * size.amax(-1, keepdim=True)
        inverse = torch.where(zero, torch.zeros_like(lam), 1 / torch.where(zero, torch.ones_like(lam), lam))
        return Circulant(fc.from_eigenvalues(inverse, self.f, self._is_real).to(self.dtype), self.f)

    # -- measures -------------------------------------------------------------------------------------------------

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.f == 0:  # lower triangular
            first = self.column[..., 0].to(backend.compute_dtype(self.dtype))
            return self._cast(torch.sgn(first) ** self._n), self._cast(self._n * torch.log(first.abs()), real=True)
        if not self._divides:
            return self._toeplitz().slogdet()
        sign, logabs = fc.slogdet(self.column, self.f)
        return self._cast(sign), self._cast(logabs, real=True)

    def eigvals(self) -> torch.Tensor:
        """``fft(D column)`` in FFT order; f = 0: the diagonal entry n times."""
        if self.f == 0:
            wide = self.column[..., :1].to(backend.compute_dtype(self.column.dtype))
            return wide.to(backend.complex_of(wide.dtype)).expand(*wide.shape[:-1], self._n)
        return fc.eigenvalues(self.column, self.f)

    def svdvals(self) -> torch.Tensor:
        """|f| = 1 (normal): the moduli of the eigenvalues, descending; else dense up to the limit."""
        if abs(self.f) != 1:
            if self._n > backend.dense_limit(self.column.device):
                raise StructureError(
                    f"{self!r}.svdvals: only |f| = 1 is normal, so the moduli of the eigenvalues are "
                    "no singular values here; "
                    "use structmat.Dense(A.to_dense()).svdvals()"
                )
            return super().svdvals()
        return self._cast(torch.sort(self.eigvals().abs(), -1, descending=True).values, real=True)

    def diagonal(self) -> torch.Tensor:
        return self.column[..., :1].to(self.dtype).expand(*self.column.shape[:-1], self._n)

    def trace(self) -> torch.Tensor:
        return self._n * self.column[..., 0].to(self.dtype)

    def norm(self) -> torch.Tensor:
        """``sqrt(sum_k |v_k|^2 ((n - k) + k |f|^2))``."""
        k = torch.arange(self._n, device=self.column.device, dtype=torch.float64)
        weight = torch.sqrt((self._n - k) + k * abs(self.f) ** 2).to(backend.real_of(backend.compute_dtype(self.dtype)))
        return self._cast(
            torch.linalg.vector_norm(self.column.to(backend.compute_dtype(self.dtype)) * weight, dim=-1), real=True
        )

    def _norm_bound(self) -> torch.Tensor:
        if abs(self.f) == 1:
            return fc.eigenvalues(self.column, self.f).abs().amax(-1)
        return self._toeplitz()._norm_bound()

    def _properties(self) -> Claims:
        n = self._n
        pairs = {(1, -1): 1 if self.f in (1, -1) else 2, (-1, 1): 1 if self.f in (1, -1) else 2}
        lower = frozenset({Claim.LOWER_TRIANGULAR}) if self.f == 0 else frozenset()
        return Claims(lower if n > 1 else frozenset(), None, {k: min(v, n) for k, v in pairs.items()})

    def _statics(self) -> list[str]:
        return [] if self.f == 1 else [f"f={self.f}"]

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Circulant(
            self.column * (factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor), self.f
        )

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        return self._toeplitz()._slice(rows, columns)

    def prepare(self) -> Matrix:
        return Prepared(self, (fourier.spectrum(*self._embedding()),))

    def _embedding(self) -> tuple[torch.Tensor, fourier.Geometry]:
        if self.f == 1 and fourier.is_smooth(self._n):
            return self.column, ft.cyclic_geometry(self._n)
        return ft.fold(self.column, self.f), ft.toeplitz_geometry(self._n, self._n)

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        hat = kept[0] if kept[0].ndim == 1 or x.ndim == 1 else kept[0][..., None, :]
        y = fourier.apply_spectrum(hat, x, self._embedding()[1], self._is_real)
        return y.to(torch.promote_types(self.dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n, size = self._n, self.column.element_size()
        if verb == "solve" and self._divides:
            return backend.Plan("closed form", "division by the eigenvalues", *ft.work(n, columns, size, transforms=2))
        if verb != "linear":
            return super().plan(verb, columns)
        geometry = self._embedding()[1]
        if geometry.length == n:
            return backend.Plan("cyclic", f"f = 1 and {n} has no prime factor above 13", *ft.work(n, columns, size))
        reason = f"f = {self.f}" if self.f != 1 else f"{n} has a prime factor above 13"
        path = f"{reason}: zero-padded convolution of length {geometry.length}, folded"
        return backend.Plan("folded", path, *ft.work(geometry.length, columns, size))

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, f: complex = 1) -> Matrix:
        """The f-circulant equal to the matrix within ``tol ||dense||_F`` (default 8 eps); NotStructuredError
        otherwise."""
        return distance_check(cls, dense, cls.nearest(dense, f), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, f: complex = 1) -> "Circulant":
        """The f-circulant nearest in the Frobenius norm: ``v_k`` is the weighted mean of the diagonals k and k - n."""
        n = dense.shape[-1]
        sums = ft.diagonal_sums(dense)
        k = torch.arange(n, device=dense.device, dtype=backend.real_of(dense.dtype))
        wrapped = torch.cat((torch.zeros_like(sums[..., :1]), sums[..., : n - 1]), -1)
        weight = f.conjugate() if isinstance(f, complex) else f
        return cls((sums[..., n - 1 :] + weight * wrapped) / ((n - k) + k * abs(f) ** 2), f)

    @classmethod
    def random(cls, n: int, f: complex = 1, *, generator: Any = None, **options: Any) -> "Circulant":
        """A standard normal column over ``sqrt(n)``, so that products keep the size of x."""
        return cls(torch.randn(n, generator=generator, **options) / n**0.5, f)

    @classmethod
    def identity(cls, n: int, f: complex = 1, **options: Any) -> "Circulant":
        column = torch.zeros(n, **options)
        column[0] = 1
        return cls(column, f)


@dispatch.rule("matmul", Circulant, Circulant)
def _times(a: Circulant, b: Circulant) -> Matrix:
    """One f: the f-circulant of A times B's column; else lazy."""
    if a.f != b.f:
        return Product((a, b))
    column = a.linear(b.column) if b.column.ndim == 1 else a.linear(b.column[..., None, :])[..., 0, :]
    return Circulant(column, a.f)


@dispatch.rule("add", Circulant, Circulant)
def _plus(a: Circulant, b: Circulant) -> Matrix:
    """One f: the columns add; else a Toeplitz."""
    if a.f == b.f:
        return Circulant(a.column + b.column, a.f)
    mixed: Matrix = dispatch.call("add", a._toeplitz(), b._toeplitz())
    return mixed


@dispatch.rule("hadamard", Circulant, Circulant)
def _entrywise(a: Circulant, b: Circulant) -> Matrix:
    """The circulant of the product of f's and of columns."""
    return Circulant(a.column * b.column, a.f * b.f)
