"""What Toeplitz matrices share: everything follows from the diagonals."""

import dataclasses
import math
from typing import ClassVar

import torch

from structmat import backend, dispatch
from structmat._iterative import given_rows
from structmat._least_squares import lstsq_rows
from structmat._shell import Place
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, SolveError, StructureError
from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.functional import toeplitz_det as fd
from structmat.functional import toeplitz_solve as fs
from structmat.functional.implicit import Solver
from structmat.functional.launched_toeplitz import operation_of
from structmat.functional.preconditioners import normal_equations
from structmat.functional.toeplitz_policy import side_by_side, superfast_pays
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo, judge, limit
from structmat.types.toeplitz_factor_family import ToeplitzFactorisation

__all__ = ["ToeplitzFamily"]

_KEPT = frozenset({Claim.SYMMETRIC, Claim.HERMITIAN, Claim.POSITIVE_DEFINITE})  # by principal submatrices


class ToeplitzFamily(Matrix):
    """Products, solves, determinants and slices out of the vector of diagonals."""

    solve_methods: ClassVar[tuple[str, ...]] = (
        "auto", "dense", "levinson", "superfast", "cg", "gko", "gmres", "minres",
    )  # fmt: skip

    def _diagonals(self) -> torch.Tensor:
        """``(*batch, m + n - 1)``, from the upper right corner to the lower left."""
        raise TypeError(f"{type(self).__name__} must define _diagonals")

    def _embedding(self) -> tuple[torch.Tensor, fourier.Geometry]:
        """The numbers of the matrix and the cyclic convolution in which they stand, each number once."""
        return self._diagonals(), ft.toeplitz_geometry(*self._size())

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(self._diagonals(), x, int(self.shape[-1]))

    def to_dense(self) -> torch.Tensor:
        return ft.toeplitz_entries(self._diagonals(), int(self.shape[-1]))

    # -- solve ----------------------------------------------------------------------------------------------------

    def _symmetric(self) -> bool:
        return Claim.SYMMETRIC in self.claims

    def _definite(self) -> bool:
        return Claim.POSITIVE_DEFINITE in self.claims

    def _mirror(self) -> str | None:
        """What is known of the diagonals on both sides: "hermitian", "symmetric" or nothing."""
        return _mirror_of(self.claims)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """auto: dense LU up to the dense limit, many small systems as one vectorised recursion; above it conjugate
        gradients where definite, else Levinson (from order 16,384 on superfast) with the two-solve inverse, refined;
        then elimination, then Krylov. The backward error of each right-hand side decides."""
        tensors = (y, *self.tensors())
        if options.method == "dense" or (options.method == "auto" and self._goes_dense(tensors)):
            return super()._solve_rows(y, options)
        self._refuse_tracing("solve")
        for name in ("preconditioner", "start", "max_steps", "callback"):
            if getattr(options, name) is not None and options.method in ("levinson", "superfast", "gko"):
                raise ValueError(f"{self!r}.solve: {name} has no meaning for the direct method {options.method!r}")
        record = self._record(options, y)
        x = fs.solve_rows(self._diagonals(), y, record)
        if options.check and record.backward_error is not None and backend.eager(*tensors):
            judge(self, record.backward_error, record.used, record.accepted)
        return x, SolveInfo(record.used, record.steps, record.backward_error, tuple(record.reasons))

    def _goes_dense(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        n, device = int(self.shape[-1]), tensors[0].device
        if n > backend.dense_limit(device):
            return False
        return not (device.type == "cpu" and side_by_side(math.prod(self.batch_shape), n) and backend.eager(*tensors))

    def _lstsq_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """Above the dense limit "auto" is LSMR with a circulant near ``(A^H A)^-1`` where that is safely definite (then
        A is taken to have full rank), else, and where that fails, LSMR alone, for the solution of least norm."""
        large = max(self._size()) > backend.dense_limit(y.device)
        if options.method == "auto" and large and options.preconditioner is None and options.start is None:
            near = self._normal_circulant()
            if near is not None:
                try:
                    return lstsq_rows(self, y, dataclasses.replace(options, preconditioner=near))
                except SolveError as error:
                    x, info = lstsq_rows(self, y, options)
                    return x, dataclasses.replace(info, reasons=(f"with a circulant: {error}", *info.reasons))
        return super()._lstsq_rows(y, options)

    def _normal_circulant(self) -> Matrix | None:
        """A circulant near ``(A^H A)^-1`` (of a wide A ``(A A^H)^-1``) as a Toeplitz matrix with its spectrum kept;
        None where its condition number exceeds 1e8, or values may not be read."""
        if not backend.eager(*self.tensors()):
            return None
        with torch.no_grad():
            (m, n), t = self._size(), self._diagonals()
            wide = t.to(backend.compute_dtype(t.dtype))
            lam = normal_equations(wide if m >= n else wide.flip(-1).conj(), min(m, n))
            if not bool((lam.amin(-1) > 1e-8 * lam.amax(-1)).all()):
                return None
            column = torch.fft.ifft(1 / lam)
            column = (column if wide.is_complex() else column.real).to(t.dtype)
            near: Matrix = dispatch.call("toeplitz", ft.fold(column, 1), min(m, n))
            prepared: Matrix = near.prepare()
            return prepared

    def _refuse_tracing(self, verb: str) -> None:
        """The structured methods look at values on the way, which a traced graph cannot."""
        if torch.compiler.is_compiling():
            raise StructureError(
                f"{self!r}.{verb} under torch.compile: above the dense limit "
                f"{backend.dense_limit(self.device or 'cpu')} the structured methods look at values and do not trace; "
                "call it outside the compiled region, or spend "
                'n^2 memory on solve(method="dense") or torch.linalg on A.to_dense()'
            )

    def _record(self, options: Options, y: torch.Tensor) -> fs.Record:
        target, dtype = fs.Record().target, y.dtype
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
        solution = y if self.dtype is None else y.to(torch.promote_types(y.dtype, self.dtype))
        start = given_rows(options.start, Place(self, ".solve"), solution, int(self.shape[-1]))
        claims = self.claims
        return fs.Record(
            options.method,
            Claim.POSITIVE_DEFINITE in claims,
            _mirror_of(claims),
            target,
            limit(dtype, options.tol),
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
        if method in ("cg", "gmres", "minres"):
            raise ValueError(
                f"{self!r}.factor: the iterative method {method!r} keeps no factorisation; legal methods are "
                "'auto', 'dense', 'levinson', 'superfast', 'gko'"
            )
        return ToeplitzFactorisation.of(self, method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense LU up to the dense limit; above it from Levinson's pivots where they can be trusted, else from those of
        elimination (16 n^2 bytes, up to n = 8192); the gradient in O(n log n) after three solves."""
        m, n = self._size()
        if m != n or n <= backend.dense_limit(self.device or "cpu"):
            return super().slogdet()
        return self._slogdet(None)

    def _slogdet(self, known: Solver | None) -> tuple[torch.Tensor, torch.Tensor]:
        self._refuse_tracing("slogdet")
        t = self._diagonals()
        sign, logabs = fd.slogdet(t, self._mirror(), known)
        if backend.eager(logabs) and bool((torch.isnan(logabs) & torch.isfinite(t).all(-1)).any()):
            raise SolveError(
                f"{self!r}.slogdet: leading minors are nearly singular, so neither Levinson's pivots nor those of the "
                "superfast factorisation confirm the determinant, and the order is too large for elimination; "
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
        """Contiguous slices, and slices of one common step, are Toeplitz again; principal ones keep the mirror symmetry
        and positive definiteness."""
        m, n = self._size()
        r, c = range(*rows.indices(m)), range(*columns.indices(n))
        if r.step != c.step or not r or not c:
            lazy: Matrix = dispatch.lookup("slice", Matrix)(self, rows, columns)  # type: ignore[misc]
            return lazy
        t = self._diagonals()
        first = (r[0] - c[-1]) + n - 1  # the diagonal of the new upper right corner
        index = torch.arange(len(r) + len(c) - 1, device=t.device) * r.step + first
        if r != c:
            cut: Matrix = dispatch.call("toeplitz", t[..., index], len(c))
            return cut
        block = self._principal(t[..., index], len(c))
        return block._vouched((_KEPT & self.claims.properties) - block.claims.properties)

    def _principal(self, diagonals: torch.Tensor, n: int) -> Matrix:
        """The n x n block of these diagonals, of the type that holds no more than it must."""
        block: Matrix = dispatch.call("toeplitz", diagonals, n)
        return block

    def prepare(self) -> Matrix:
        return Prepared(self, (fourier.spectrum(*self._embedding()),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        hat = kept[0] if kept[0].ndim == 1 or x.ndim == 1 else kept[0][..., None, :]
        dtype, geometry = self._diagonals().dtype, self._embedding()[1]
        y = fourier.apply_spectrum(hat, x, geometry, not dtype.is_complex)
        return y.to(torch.promote_types(dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = self._size()
        length = self._embedding()[1].length
        size = self._diagonals().element_size()
        asked = (operation_of(columns, n, m + n - 1),)
        if verb == "linear" and ft.forming_is_cheaper(m, n, columns, self._diagonals().device):
            reason = f"{columns} rows of at most 192 numbers: forming the entries is cheaper than FFTs"
            moved = float(size * (m * n + (m + n) * columns))
            return backend.Plan("dense", reason, 2.0 * m * n * columns, moved, operations=asked)
        if verb == "linear":
            reason = f"embedded in a circulant of length {length}"
            return backend.Plan("fft", reason, *ft.work(length, columns, size), operations=asked)
        if verb != "solve" or n <= backend.dense_limit(self.device or "cpu"):
            count = math.prod(self.batch_shape)
            if verb != "solve" or self._diagonals().device.type != "cpu" or not side_by_side(count, n):
                return super().plan(verb, columns)
            reason = f"{count} systems of order {n}: one vectorised recursion costs less than LU of each"
            return backend.Plan("levinson", reason, count * (8.0 * n * n), count * 8.0 * 6 * n)
        if self._definite():
            steps = 10  # what Strang's circulant needs for a well-behaved symbol
            flops, moved = ft.work(length, columns * steps, size, transforms=4)
            return backend.Plan(
                "cg", "claimed positive definite: conjugate gradients with Strang's circulant", flops, moved
            )
        flops, moved = ft.work(length, columns, 8, transforms=9)
        if superfast_pays(n):
            most = 35.0 * n * math.log2(n) ** 2
            return backend.Plan(
                "superfast", "divide and conquer over the roots of unity, the two-solve inverse, refinement",
                flops + most, moved + 8 * most,
            )  # fmt: skip
        return backend.Plan(
            "levinson",
            "two Levinson solves, the two-solve inverse, refinement",
            flops + 14.0 * n * n,
            moved + 48.0 * n * n,
        )


def _mirror_of(claims: Claims) -> str | None:
    return "hermitian" if Claim.HERMITIAN in claims else "symmetric" if Claim.SYMMETRIC in claims else None
