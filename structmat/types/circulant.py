"""f-circulant matrices: circulant for f = 1, skew-circulant for f = -1."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch, solving
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.errors import SolveError, StructureError
from structmat.functional import circulant as fc
from structmat.functional import toeplitz as ft
from structmat.functional.transforms import largest
from structmat.lazy import Product
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.circulant_family import CirculantFamily, refined

__all__ = ["Circulant"]

_FAR = 1e8  # beyond this |f|, or below its inverse, the scaling D costs half the digits of float64


class Circulant(CirculantFamily):
    """``A[i, j] = column[i - j]`` for i >= j, ``f column[n + i - j]`` above the diagonal: ``sum_k column_k Z_f^k``.

    Stores:   column (*batch, n), real or complex; f, a number (static): 1 circulant, -1 skew-circulant, 0 lower
              triangular.
    Shape:    (*batch, n, n).      Claims: displacement rank 1 where e or f of the pair is f, else 2.
    Cost:     linear three FFTs of length n a row (f = 1 and n smooth), else of 2n; solve, inv, det, eigvals n log n;
              n memory.
              Accuracy of inv, det, eigvals and functions falls with max(|f|, 1/|f|). solve divides by the eigenvalues
              for |f| in [1e-8, 1e8] and by a power series for smaller |f| (f = 0 is triangular), refines where
              |f| != 1, and goes on to the methods of a Toeplitz matrix (GKO among them) where the backward error stays
              above its limit, and for every |f| > 1e8; SolveInfo says which it was.
    Closed:   X @ X, X + X (one f), s X, inv, transpose (f != 0; f = 0 becomes a Toeplitz), X * X, sqrt, functions; |f|
              = 1: pinv.
    Raises:   SolveError if an eigenvalue is zero to working precision; StructureError for svdvals, pinv with |f| != 1
              above the dense limit.
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
        if self.f - self.f != 0:  # infinite or NaN, in a form that traces
            raise ValueError(f"Circulant: f must be finite, got {self.f!r}")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.column.shape, self.column.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        return backend.complex_of(self.column.dtype) if isinstance(self.f, complex) else self.column.dtype

    def _column(self) -> torch.Tensor:
        return self.column

    def _number(self) -> complex:
        return self.f

    @property
    def _divides(self) -> bool:
        """Whether the closed form by eigenvalues serves."""
        return self.f != 0 and 1 / _FAR <= abs(self.f) <= _FAR

    @property
    def _is_real(self) -> bool:
        return not (self.column.is_complex() or isinstance(self.f, complex))

    def transpose(self) -> Matrix:
        if self.f == 0:  # a Toeplitz does not know by its type that it is triangular
            return self._toeplitz().transpose()._vouched({Claim.UPPER_TRIANGULAR})
        head, tail = self.column[..., :1], self.column[..., 1:].flip(-1)
        column = torch.cat((head, tail if self.f == 1 else tail * self.f), -1)
        return Circulant(column, 1 if self.f == 1 else 1 / self.f)

    # -- solve ----------------------------------------------------------------------------------------------------

    def inv(self) -> Matrix:
        """The f-circulant of the reciprocal eigenvalues; f = 0: of the reciprocal power series, where that is accurate.

        Elsewhere the inverse of the same entries as a Toeplitz matrix.
        """
        if self._divides:
            return self._of_eigenvalues(lambda lam: 1 / lam)
        if self.f == 0 and backend.eager(self.column):
            w = fc.series_inverse(self.column)
            if bool((fc.series_error(self.column, w) <= solving.limit(self.dtype, None)).all()):
                return Circulant(w.to(self.dtype), 0)
        inverse: Matrix = self._toeplitz().inv()
        return inverse

    def _of_eigenvalues(self, g: Callable[[torch.Tensor], torch.Tensor]) -> "Circulant":
        """The f-circulant of ``g(lam)``, for g that commutes with conjugation."""
        lam = g(fc.eigenvalues(self.column, self.f))
        return Circulant(fc.from_eigenvalues(lam, self.f, self._is_real).to(self.dtype), self.f)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        looks = options.check and backend.eager(y, self.column)
        if self._normal:
            if looks:
                self._refuse_singular()
            x = fc.divide_rows(self.column, y, self.f)
            return x, self._checked(x, y, "closed form", 0, options, ("division by the eigenvalues",))
        return self._solve_skewed(y, options, looks)

    def _solve_skewed(self, y: torch.Tensor, options: Options, looks: bool) -> tuple[torch.Tensor, SolveInfo]:
        """|f| != 1: the closed form refined, then the methods of a Toeplitz matrix."""
        name, once = "closed form", None
        reasons: tuple[str, ...] = ("division by the eigenvalues",)
        if self._divides:
            once = lambda r: fc.divide_rows(self.column, r, self.f)  # noqa: E731
        elif abs(self.f) < 1:
            wide = self.column.to(torch.promote_types(self.column.dtype, torch.float64))
            w = fc.series_inverse(wide)
            once = lambda r: ft.circulant_product(w, r, 0)  # noqa: E731
            name, reasons = "triangular", (f"|f| = {abs(self.f):.0e} < 1e-8: division by a power series",)
        if once is not None:
            x = once(y)
            if not looks:
                return x, SolveInfo(name, 0, None, reasons)
            x, eta, steps = refined(self, x, y, once, solving.limit(y.dtype, options.tol) / 4)
            if bool((eta <= solving.limit(y.dtype, options.tol)).all()):
                return x, SolveInfo(name, steps, eta, reasons)
            reasons = (*reasons, f"which reached a backward error of {float(eta.max()):.1e} only")
        else:
            reasons = (f"|f| = {abs(self.f):.0e} > 1e8: the eigenvalues keep too few digits",)
        x, info = self._toeplitz()._solve_rows(y, options)
        return x, SolveInfo(info.method, info.steps, info.backward_error, (*reasons, *info.reasons))

    def _refuse_singular(self) -> None:
        size = fc.eigenvalues(self.column.detach(), self.f).abs()
        cut = self._n * torch.finfo(size.dtype).eps * size.amax(-1)
        if bool((size.amin(-1) <= cut).any()):
            raise SolveError(
                f"{self!r}.solve: singular to working precision, the smallest eigenvalue is {float(size.min()):.1e} "
                f"and the largest {float(size.max()):.1e}; see pinv, or check=False",
                float("inf"),
            )

    def _factor(self, method: str) -> Factorisation:
        if method == "dense":
            return super()._factor(method)
        return Factorisation(self) if abs(self.f) <= _FAR else self._toeplitz().factor(method)

    def pinv(self) -> Matrix:
        """|f| = 1 (normal): reciprocal eigenvalues, those below ``n eps max|lam|`` count as zero; else dense up to
        the limit."""
        if not self._normal:
            return super().pinv()

        def reciprocal(lam: torch.Tensor) -> torch.Tensor:
            size = lam.detach().abs()
            zero = size <= self._n * torch.finfo(size.dtype).eps * largest(size)[..., None]
            return torch.where(zero, torch.zeros_like(lam), 1 / torch.where(zero, torch.ones_like(lam), lam))

        return self._of_eigenvalues(reciprocal)

    def _has_pinv(self) -> bool:
        return self._normal

    # -- functions ------------------------------------------------------------------------------------------------

    def matrix_function(self, g: Callable[[torch.Tensor], torch.Tensor]) -> "Circulant":
        """``g(A)``, the f-circulant of ``g(lam)``; g maps a complex tensor of eigenvalues entrywise: ``torch.exp``.

        Real A: g is taken at one of each conjugate pair and at the real eigenvalues, and the result is real, as it is
        right for g with ``g(conj z) = conj g(z)``. Raises StructureError for f = 0 and |f| outside [1e-8, 1e8].
        """
        if not self._divides:
            raise StructureError(
                f"{self!r}.matrix_function: only f-circulants with |f| from 1e-8 to 1e8 are functions of their "
                "eigenvalues to working precision; use a function of A.to_dense()"
            )
        return Circulant(fc.function_of(self.column, self.f, g).to(self.dtype), self.f)

    def sqrt(self) -> "Circulant":
        """The principal square root ``S @ S = A``, of the same f: square roots of the eigenvalues.

        Real A keeps a real root, where one exists among f-circulants: always for f < 0 and even n, else if the
        eigenvalues that stand alone (of f > 0 the first, and the middle one of even n; of f < 0 and odd n number
        (n + 1) / 2) are not negative. Raises StructureError where they are; ``A.to(torch.complex128)`` has a complex
        root. A pair of negative eigenvalues gets conjugate roots. At an eigenvalue 0 there is no derivative.
        """
        root = self.matrix_function(torch.sqrt)
        if self._is_real and backend.eager(self.column):
            lam = fc.eigenvalues(self.column.detach(), self.f)
            cut = -self._n * torch.finfo(lam.dtype).eps * lam.abs().amax(-1)
            for k in fc.alone(self._n, self.f):
                if bool((lam[..., k].real < cut).any()):
                    raise StructureError(
                        f"{self!r}.sqrt: eigenvalue {k} is {float(lam[..., k].real.min()):.2g} and has no conjugate "
                        "beside it, so no real root is an f-circulant; use A.to(torch.complex128).sqrt()"
                    )
        return root

    def sample(self, count: int, *, generator: Any = None) -> torch.Tensor:
        """Draws of the normal distribution with mean 0 and covariance A: ``(*batch, count, n)``, ``A^(1/2) z``.

        A real symmetric (complex: Hermitian, with complex normal draws) and positive semidefinite, f = 1 or -1; the
        leading block of an embedding circulant is how a stationary process is sampled. Differentiable in the column.
        Raises StructureError where an eigenvalue is not real and nonnegative to working precision.
        Source: C. R. Dietrich and G. N. Newsam, Fast and exact simulation of stationary Gaussian processes, 1997.
        """
        lam = self.eigvals().detach()
        cut = 4 * self._n * torch.finfo(lam.dtype).eps * lam.abs().amax(-1, keepdim=True)
        if self.f not in (1, -1) or bool(((lam.real < -cut) | (lam.imag.abs() > cut)).any()):
            raise StructureError(
                f"{self!r}.sample: no covariance, for which f = 1 or -1 and all eigenvalues are real and nonnegative; "
                f"the least real part is {float(lam.real.min()):.2g}, the largest imaginary part "
                f"{float(lam.imag.abs().max()):.2g}"
            )
        root = self.matrix_function(lambda values: torch.sqrt(values.real.clamp_min(0)).to(values.dtype))
        dtype = backend.compute_dtype(self.dtype)
        shape = (*self.batch_shape, count, self._n)
        draws = torch.randn(shape, dtype=dtype, device=self.column.device, generator=generator)
        return root.linear(draws).to(self.dtype)

    # -- measures -------------------------------------------------------------------------------------------------

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.f == 0:  # lower triangular
            first = self.column[..., :1].to(backend.compute_dtype(self.dtype))
            sign, logabs = torch.sgn(first).prod(-1) ** self._n, self._n * torch.log(first.abs()).sum(-1)
            return self._cast(sign), self._cast(logabs, real=True)
        if not self._divides:
            sign, logabs = self._toeplitz().slogdet()
            return sign, logabs
        sign, logabs = fc.slogdet(self.column, self.f)
        return self._cast(sign), self._cast(logabs, real=True)

    def svdvals(self) -> torch.Tensor:
        """|f| = 1 (normal): the moduli of the eigenvalues, descending; else dense up to the limit."""
        if not self._normal:
            if self._n > backend.dense_limit(self.column.device):
                raise StructureError(
                    f"{self!r}.svdvals: only |f| = 1 is normal, so the moduli of the eigenvalues are no singular "
                    "values here; use structmat.Dense(A.to_dense()).svdvals()"
                )
            return super().svdvals()
        return self._cast(torch.sort(self.eigvals().abs(), -1, descending=True).values, real=True)

    def norm(self) -> torch.Tensor:
        """``sqrt(sum_k |v_k|^2 ((n - k) + k |f|^2))``."""
        k = torch.arange(self._n, device=self.column.device, dtype=torch.float64)
        weight = torch.sqrt((self._n - k) + k * abs(self.f) ** 2).to(backend.real_of(backend.compute_dtype(self.dtype)))
        wide = self.column.to(backend.compute_dtype(self.dtype)) * weight
        return self._cast(torch.linalg.vector_norm(wide, dim=-1), real=True)

    def _norm_bound(self) -> torch.Tensor:
        if self._normal:
            return largest(fc.eigenvalues(self.column, self.f).abs())
        return self._toeplitz()._norm_bound()

    def _properties(self) -> Claims:
        n = self._n
        pairs = {(1, -1): 1 if self.f in (1, -1) else 2, (-1, 1): 1 if self.f in (1, -1) else 2}
        lower = frozenset({Claim.LOWER_TRIANGULAR}) if self.f == 0 else frozenset()
        return Claims(lower if n > 1 else frozenset(), None, {k: min(v, n) for k, v in pairs.items()})

    def _statics(self) -> list[str]:
        return [] if self.f == 1 else [f"f={self.f}"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb == "solve" and self._divides:
            work = ft.work(self._n, columns, self.column.element_size(), transforms=2)
            return backend.Plan("closed form", "division by the eigenvalues", *work)
        return super().plan(verb, columns)

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        s = factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        return Circulant(self.column * s, self.f)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, f: complex = 1) -> Matrix:
        """The f-circulant equal to the matrix within ``tol ||dense||_F`` (default 8 eps); NotStructuredError
        otherwise."""
        return distance_check(cls, dense, cls.nearest(dense, f), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, f: complex = 1) -> "Circulant":
        """The f-circulant nearest in the Frobenius norm: ``v_k`` is the weighted mean of the diagonals k and k - n."""
        require_square_entries(dense, "Circulant.nearest")
        return cls(fc.nearest_column(dense, f), f)

    @classmethod
    def random(cls, n: int, f: complex = 1, *, generator: Any = None, **options: Any) -> "Circulant":
        """A standard normal column over ``sqrt(n)``, so that products keep the size of x."""
        return cls(torch.randn(n, generator=generator, **options) / n**0.5, f)

    @classmethod
    def identity(cls, n: int, f: complex = 1, **options: Any) -> "Circulant":
        column = torch.zeros(n, **options)
        column[:1] = 1
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
