"""Banded matrices: few diagonals, solved by LU with partial pivoting in time linear in n."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.functional import banded as fb
from structmat.functional.banded_lapack import BandedSolver
from structmat.functional.implicit import implicit_solve
from structmat.lazy import Inverse
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.solver_family import SolverFactorisation, double, is_half

__all__ = ["Banded"]


class Banded(Matrix):
    """``A[i, j] = bands[upper + i - j, j]`` near the diagonal, zero elsewhere: u superdiagonals, l subdiagonals.

    Stores:   bands (*batch, l + u + 1, n), LAPACK's band storage and the ``ab`` of ``scipy.linalg.solve_banded``, the
              main diagonal in row ``upper`` = u (static); the corners outside the matrix are never read.
    Shape:    (*batch, n, n).      Claims: upper (l = 0) and lower (u = 0) triangular.
    Cost:     linear 2 n (l + u + 1) flops a row; solve, factor 2 n l (l + u) on the host by LAPACK, block windows in
              torch on other devices and in graphs; slogdet the same; n (l + u + 1) memory throughout.
    Closed:   X @ X (bandwidths add), X + X, X * X, with Diagonal and multiples of Identity, s X, transpose, principal
              slices; X * Toeplitz and X * LowRank -> X.
    Raises:   ShapeError if upper does not fit the bands; SolveError (with the backward error) for a singular matrix.
    Example:
        >>> A = sm.Banded(torch.tensor([[0.0, 1.0, 1.0], [4.0, 4.0, 4.0], [2.0, 2.0, 0.0]]), upper=1)
        >>> A.solve(torch.tensor([5.0, 7.0, 6.0]))
        tensor([1., 1., 1.])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 4.3.
    """

    core: ClassVar[Mapping[str, int]] = {"bands": 2}
    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "banded")
    bands: torch.Tensor
    upper: int

    def _validate(self) -> None:
        rows = self.bands.shape[-2]
        if isinstance(self.upper, bool) or not isinstance(self.upper, int) or not 0 <= self.upper < rows:
            raise ShapeError(
                f"Banded: {rows} diagonals do not allow upper={self.upper!r}; legal are 0 to {rows - 1}, and the "
                "subdiagonals are the rows that follow row upper"
            )

    @property
    def shape(self) -> torch.Size:
        *batch, _, n = self.bands.shape
        return torch.Size((*batch, n, n))

    @property
    def lower(self) -> int:
        """The number of subdiagonals."""
        return int(self.bands.shape[-2]) - 1 - self.upper

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fb.linear(self.bands, x, self.upper)

    def transpose(self) -> Matrix:
        return Banded(fb.turned(self.bands, self.upper), self.lower)

    def to_dense(self) -> torch.Tensor:
        return fb.entries(self.bands, self.upper)

    # -- solve ----------------------------------------------------------------------------------------------------

    def _wide(self) -> "Banded":
        return self.to(torch.float64)

    def _solver(self) -> BandedSolver:
        return BandedSolver(self.bands, self.upper)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "banded")
        if is_half(self.bands.dtype):
            wide = backend.compute_dtype(self.bands.dtype)
            return self.to(wide)._solve_rows(y.to(torch.promote_types(wide, y.dtype)), options)
        if torch.compiler.is_compiling() or self.bands.device.type != "cpu":
            common = torch.promote_types(self.bands.dtype, y.dtype)
            x = fb.block_lu(self.bands.to(common), self.upper, y.to(common).mT)[2].mT
            path = "LU with partial pivoting, window after window"
        else:
            x = implicit_solve(self._wide(), double(y), Banded._solver)
            path = "LAPACK's LU with partial pivoting"
        x = x.to(torch.promote_types(y.dtype, self.bands.dtype))
        return x, self._checked(x, y, "banded", 1, options, (path,))

    def _factor(self, method: str) -> Factorisation:
        if method == "dense" or not backend.eager(self.bands):
            return super()._factor("dense")
        return SolverFactorisation(self, "banded", self._wide().detach()._solver())

    def inv(self) -> Matrix:
        """Lazily, factorised at once where values may be read: the inverse of a banded matrix is full."""
        return Inverse(self, self.factor()) if backend.eager(self.bands) else Inverse(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """From the pivots: LAPACK's, or where a derivative may be asked for those of ``block_lu``."""
        bands = self.bands.to(backend.compute_dtype(self.bands.dtype))
        if not bands.shape[-1]:  # the determinant of nothing
            one = 1 + bands.sum((-2, -1))
            return self._cast(one), self._cast(0 * one.abs(), real=True)
        plain = backend.eager(bands) and not backend.transforming() and bands.device.type == "cpu"
        if plain and not (bands.requires_grad and torch.is_grad_enabled()) and bands.numel():
            sign, logabs = self._wide().detach()._solver().slogdet()
            return self._cast(sign), self._cast(logabs, real=True)
        pivots, sign, _ = fb.block_lu(bands, self.upper, None)
        sign = sign * torch.sgn(pivots).prod(-1)
        return self._cast(sign), self._cast(pivots.abs().log().sum(-1), real=True)

    # -- entries --------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        return self.bands[..., self.upper, :]

    def norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(fb.clean(self.bands, self.upper), dim=(-2, -1))

    def _norm_bound(self) -> torch.Tensor:
        """``(||A||_1 ||A||_inf)^(1/2)``."""
        size = fb.clean(self.bands, self.upper).abs()
        columns, rows = size.sum(-2), fb.turned(size, self.upper).sum(-2)
        if not size.shape[-1]:
            return columns.sum(-1)
        return columns.amax(-1).sqrt() * rows.amax(-1).sqrt()

    def _properties(self) -> Claims:
        found = {Claim.UPPER_TRIANGULAR} if self.lower == 0 else set()
        found |= {Claim.LOWER_TRIANGULAR} if self.upper == 0 else set()
        return Claims(frozenset(found | ({Claim.SYMMETRIC} if self.lower == self.upper == 0 else set())))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Banded(self.bands * factor, self.upper)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        """A principal slice of step one is Banded."""
        n = int(self.shape[-1])
        start, stop, step = rows.indices(n)
        if rows.indices(n) == columns.indices(n) and step == 1 and start < stop:
            return Banded(self.bands[..., start:stop], self.upper)
        lazy: Matrix = dispatch.lookup("slice", Matrix)(self, rows, columns)  # type: ignore[misc]
        return lazy

    def _statics(self) -> list[str]:
        return [f"lower={self.lower}", f"upper={self.upper}"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        w, n = (int(s) for s in self.bands.shape[-2:])
        moved = float((w * n + 2 * n * columns) * self.bands.element_size())
        if verb == "linear":
            return backend.Plan("diagonals", f"{w} products of vectors", 2.0 * w * n * columns, moved)
        if verb == "solve":
            flops = 2.0 * n * self.lower * w + 2.0 * n * (w + self.lower) * columns
            return backend.Plan("banded", "LU with partial pivoting, linear in n", flops, moved)
        return super().plan(verb, columns)

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls, dense: torch.Tensor, lower: int | None = None, upper: int | None = None, tol: float | None = None
    ) -> Matrix:
        """Equal within ``tol ||dense||_F`` (default 8 eps); bandwidths not given are the smallest that hold every
        nonzero entry."""
        n = require_square_entries(dense, "Banded.from_dense")
        if lower is None or upper is None:
            i, j = torch.nonzero(
                dense.detach().reshape(-1, n, n).abs().amax(0) if dense.numel() else dense, as_tuple=True
            )
            spans = [int((a - b).max().clamp_min(0)) if len(i) else 0 for a, b in ((i, j), (j, i))]
            lower, upper = spans[0] if lower is None else lower, spans[1] if upper is None else upper
        return distance_check(cls, dense, cls.nearest(dense, lower, upper), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, lower: int, upper: int) -> "Banded":
        """The diagonals of the matrix: the best in the Frobenius norm."""
        require_square_entries(dense, "Banded.nearest")
        _check_widths("nearest", lower, upper)
        return cls(fb.nearest(dense, lower, upper), upper)

    @classmethod
    def random(cls, n: int, lower: int = 1, upper: int = 1, *, generator: Any = None, **options: Any) -> "Banded":
        """Standard normal entries over the root of the number of diagonals."""
        _check_widths("random", lower, upper)
        w = lower + upper + 1
        return cls(torch.randn(w, n, generator=generator, **options) / w**0.5, upper)

    @classmethod
    def identity(cls, n: int, **options: Any) -> "Banded":
        return cls(torch.ones(1, n, **options), 0)


def _check_widths(verb: str, lower: int, upper: int) -> None:
    if lower < 0 or upper < 0:
        raise ValueError(f"Banded.{verb}(lower={lower}, upper={upper}): legal bandwidths are 0, 1, 2, ...")


@dispatch.rule("matmul", Banded, Banded)
def _times(a: Banded, b: Banded) -> Matrix:
    """Banded: bandwidths add."""
    common = torch.promote_types(a.bands.dtype, b.bands.dtype)
    wide = backend.compute_dtype(common)
    bands, upper = fb.multiply(a.bands.to(wide), a.upper, b.bands.to(wide), b.upper)
    return Banded(bands.to(common), upper)


@dispatch.rule("add", Banded, Banded)
def _plus(a: Banded, b: Banded) -> Matrix:
    """Banded: the diagonals add, the wider band stays."""
    return Banded(*fb.add_bands(a.bands, a.upper, b.bands, b.upper))


@dispatch.rule("hadamard", Banded, Banded)
def _entrywise(a: Banded, b: Banded) -> Matrix:
    """Banded: the diagonals multiply, the narrower band stays."""
    lower, upper = min(a.lower, b.lower), min(a.upper, b.upper)
    return Banded(fb.spread(a.bands, a.upper, lower, upper) * fb.spread(b.bands, b.upper, lower, upper), upper)
