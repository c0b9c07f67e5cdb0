"""What Toeplitz matrices share, and the factorisation worth keeping of one: everything follows from the diagonals."""

from typing import ClassVar

import torch

from structmat import backend, dispatch
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, SolveError, StructureError
from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.functional import toeplitz_det as fd
from structmat.functional import toeplitz_solve as fs
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo, judge, limit

__all__ = ["ToeplitzFactorisation", "ToeplitzFamily"]


class ToeplitzFamily(Matrix):
    """Products, solves, determinants and slices out of the vector of diagonals."""

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "levinson", "cg")

    def _diagonals(self) -> torch.Tensor:
        """``(*batch, m + n - 1)``, from the upper right corner to the lower left."""
        raise TypeError(f"{type(self).__name__} must define _diagonals")

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(self._diagonals(), x, int(self.shape[-1]))

    def to_dense(self) -> torch.Tensor:
        return ft.toeplitz_entries(self._diagonals(), int(self.shape[-1]))

    # -- solve ----------------------------------------------------------------------------------------------------

    def _symmetric(self) -> bool:
        return Claim.SYMMETRIC in self.claims

    def _definite(self) -> bool:
        return Claim.POSITIVE_DEFINITE in self.claims

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """auto: dense LU up to the dense limit; conjugate gradients where definite; else Levinson with the two-solve
        inverse."""
        tensors = (y, *self.tensors())
        small = self.shape[-1] <= backend.dense_limit(y.device)
        if options.method == "dense" or (options.method == "auto" and small):
            return super()._solve_rows(y, options)
        self._refuse_tracing("solve")
        for name in ("preconditioner", "start", "max_steps", "callback"):
            if getattr(options, name) is not None and options.method == "levinson":
                raise ValueError(f"{self!r}.solve: {name} has no meaning for the direct method 'levinson'")
        record = self._record(options, y.dtype)
        x = fs.solve_rows(self._diagonals(), y, record)
        accepted = limit(y.dtype, options.tol)
        if options.check and backend.eager(*tensors) and record.backward_error is not None:
            judge(self, record.backward_error, record.used, accepted)
        return x, SolveInfo(record.used, record.steps, record.backward_error, tuple(record.reasons))

    def _refuse_tracing(self, verb: str) -> None:
        """Levinson and conjugate gradients look at values on the way, which a traced graph cannot."""
        if torch.compiler.is_compiling():
            raise StructureError(
                f"{self!r}.{verb} under torch.compile: above the dense limit "
                f"{backend.dense_limit(self.device or 'cpu')} the structured methods look at values and do not trace; "
                "call it outside the compiled region, or spend "
                'n^2 memory on solve(method="dense") or torch.linalg on A.to_dense()'
            )

    def _record(self, options: Options, dtype: torch.dtype) -> fs.Record:
        target = fs.Record().target
        if options.tol is not None:
            target = min(target, options.tol / 2) if options.tol < 1e-12 else options.tol / 2
        elif torch.finfo(backend.compute_dtype(dtype)).eps > 1e-10:
            target = 10 * torch.finfo(torch.float32).eps
        given = options.preconditioner
        apply = None
        if given is not None:
            double = given.to(torch.float64) if isinstance(given, Matrix) else given
            if not isinstance(double, Matrix) or double.shape[-2:] != self.shape[-2:]:
                raise ShapeError(f"{self!r}.solve: the preconditioner must be a Matrix of the same size, got {given!r}")
            apply = double.linear
        start = options.start
        if start is not None:
            start = start[None, :] if start.ndim == 1 else start.mT
        claims = self.claims
        return fs.Record(
            options.method,
            Claim.POSITIVE_DEFINITE in claims,
            Claim.SYMMETRIC in claims,
            target,
            apply,
            start,
            options.max_steps,
            options.callback,
        )

    def _norm_bound(self) -> torch.Tensor:
        """The largest modulus of the spectrum of the embedding circulant."""
        hat = fourier.spectrum(self._diagonals(), ft.toeplitz_geometry(*self._size()))
        return hat.abs().amax(-1)

    def _size(self) -> tuple[int, int]:
        return int(self.shape[-2]), int(self.shape[-1])

    def _factor(self, method: str) -> Factorisation:
        if method == "dense" or (method == "auto" and self.shape[-1] <= backend.dense_limit(self.device or "cpu")):
            return DenseFactorisation.of(self)
        if method == "cg":
            raise ValueError(
                f"{self!r}.factor: conjugate gradients keep no factorisation; legal methods are "
                "'auto', 'dense', 'levinson'"
            )
        return ToeplitzFactorisation.of(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense LU up to the dense limit; above it from Levinson's pivots, with a gradient in O(n log n) after three
        solves.

        Raises SolveError where a leading minor is singular to working precision.
        """
        m, n = self._size()
        if m != n or n <= backend.dense_limit(self.device or "cpu"):
            return super().slogdet()
        self._refuse_tracing("slogdet")
        sign, logabs = fd.slogdet(self._diagonals(), self._symmetric())
        if backend.eager(logabs) and not bool(torch.isfinite(logabs).all()):
            raise SolveError(
                f"{self!r}.slogdet: a leading minor is singular to working precision, so Levinson's "
                "pivots give no determinant; "
                "use torch.linalg.slogdet(A.to_dense())"
            )
        return self._cast(sign), self._cast(logabs, real=True)

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        m, n = self._size()
        t = self._diagonals()
        return t[..., n - 1 : n].expand(*t.shape[:-1], min(m, n))

    def norm(self) -> torch.Tensor:
        """``sqrt(sum_k count_k |t_k|^2)``."""
        t = self._diagonals()
        wide = t.to(backend.compute_dtype(t.dtype))
        counts = ft.diagonal_counts(*self._size(), t.device)
        weight = torch.sqrt(counts.to(backend.real_of(wide.dtype)))
        return self._cast(torch.linalg.vector_norm(wide * weight, dim=-1), real=True)

    def _properties(self) -> Claims:
        m, n = self._size()
        pairs: dict[tuple[complex, complex], int] = {(1, -1): min(2, n), (-1, 1): min(2, n)} if m == n else {}
        return Claims(frozenset(), None, pairs)

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        """Contiguous slices, and slices of one common step, are Toeplitz again."""
        m, n = self._size()
        r, c = range(*rows.indices(m)), range(*columns.indices(n))
        if r.step != c.step or not r or not c:
            lazy: Matrix = dispatch.lookup("slice", Matrix)(self, rows, columns)  # type: ignore[misc]
            return lazy
        t = self._diagonals()
        first = (r[0] - c[-1]) + n - 1  # the diagonal of the new upper right corner
        index = torch.arange(len(r) + len(c) - 1, device=t.device) * r.step + first
        cut: Matrix = dispatch.call("toeplitz", t[..., index], len(c))
        return cut

    def prepare(self) -> Matrix:
        return Prepared(self, (fourier.spectrum(self._diagonals(), ft.toeplitz_geometry(*self._size())),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        hat = kept[0] if kept[0].ndim == 1 or x.ndim == 1 else kept[0][..., None, :]
        dtype = self._diagonals().dtype
        y = fourier.apply_spectrum(hat, x, ft.toeplitz_geometry(*self._size()), not dtype.is_complex)
        return y.to(torch.promote_types(dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = self._size()
        length = ft.toeplitz_geometry(m, n).length
        size = self._diagonals().element_size()
        if verb == "linear" and ft.forming_is_cheaper(m, n, columns, self._diagonals().device):
            reason = f"{columns} rows of at most 384 numbers: forming the entries is cheaper than FFTs"
            return backend.Plan("dense", reason, 2.0 * m * n * columns, float(size * (m * n + (m + n) * columns)))
        if verb == "linear":
            return backend.Plan("fft", f"embedded in a circulant of length {length}", *ft.work(length, columns, size))
        if verb != "solve" or n <= backend.dense_limit(self.device or "cpu"):
            return super().plan(verb, columns)
        if self._definite():
            steps = 10  # what Strang's circulant needs for a well-behaved symbol
            flops, moved = ft.work(length, columns * steps, size, transforms=4)
            return backend.Plan(
                "cg", "claimed positive definite: conjugate gradients with Strang's circulant", flops, moved
            )
        flops, moved = ft.work(length, columns, 8, transforms=9)
        return backend.Plan(
            "levinson",
            "two Levinson solves, the two-solve inverse, refinement",
            flops + 14.0 * n * n,
            moved + 48.0 * n * n,
        )


class ToeplitzFactorisation(Factorisation):
    """The two-solve pair ``x = T^-1 e_0, z = T^-1 c``, refined: O(n) memory, O(n log n) a solve, also for T^H."""

    x: torch.Tensor | None = None
    z: torch.Tensor | None = None
    reached: float = 0.0

    @classmethod
    def of(cls, matrix: ToeplitzFamily) -> "ToeplitzFactorisation":
        with torch.no_grad():
            t = matrix._diagonals().detach()
            wide = t.to(torch.promote_types(t.dtype, torch.float64))
            inverse, _, _, _ = fs.two_solve(wide, matrix._symmetric())
            eta = fs.pair_error(wide, inverse)
        judge(matrix, eta, "levinson", limit(torch.float64, None))
        return cls(matrix, "levinson", inverse.x, inverse.z, float(eta.max()))

    @property
    def backward_error(self) -> float:
        return self.reached

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        assert self.x is not None and self.z is not None
        rows = y[None, :] if y.ndim == 1 else y
        record = fs.Record(known=fs.TwoSolve(self.x, self.z), symmetric=self.matrix._symmetric())
        x = fs.solve_rows(self.matrix._diagonals(), rows, record)
        x = x.to(torch.promote_types(y.dtype, self.matrix.dtype))
        return x[..., 0, :] if y.ndim == 1 else x

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        """From the same pair: ``T^-H = conj(J T^-1 J)``."""
        flipped = b.conj().flip(-1 if b.ndim == 1 else -2)
        return self.solve(flipped).flip(-1 if b.ndim == 1 else -2).conj().resolve_conj()
