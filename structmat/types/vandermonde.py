"""Vandermonde matrices: the powers of given nodes."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch, solving
from structmat._indexing import positions
from structmat._shell import require_square
from structmat.errors import NotStructuredError, ShapeError, SolveError, StructureError
from structmat.functional import vandermonde as fv
from structmat.functional.determinants import LogDeterminant, slogdet
from structmat.functional.implicit import implicit_solve
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo
from structmat.types.circulant_family import refined
from structmat.types.solver_family import SolverFactorisation, double, is_half

__all__ = ["Vandermonde"]


class Vandermonde(Matrix):
    """``A[i, j] = nodes_i^j``, j = 0..columns-1: ``numpy.vander(nodes, columns, increasing=True)``.

    Stores:   nodes (*batch, m), real or complex; columns = n (static); transposed (static): the transpose, n x m.
              ``A @ c`` are the values of the polynomial with coefficients c. Nodes ``exp(-2 pi i k / n)`` give the
              discrete Fourier transform, which an FFT multiplies far faster.
    Shape:    (*batch, m, n).      Claims: none.
    Cost:     linear 2 m n flops a row in blocks (m sqrt(n) memory); solve n^2 a row and n memory after n^2 to order
              the nodes; slogdet n^2. Where nodes overflow their powers, so does the matrix.
    Closed:   transpose, slices of rows and of leading columns, X * X.
    Raises:   ShapeError if columns < 0; SolveError from solve where two nodes are equal, or the error is too large.
    Example:
        >>> sm.Vandermonde(torch.tensor([2.0, 3.0]), columns=3).to_dense()
        tensor([[1., 2., 4.],
                [1., 3., 9.]])
    References: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, chapter 22.
    """

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "bjorck-pereyra")
    core: ClassVar[Mapping[str, int]] = {"nodes": 1}
    nodes: torch.Tensor
    columns: int
    transposed: bool = False

    def _validate(self) -> None:
        known = isinstance(self.columns, (int, torch.SymInt)) and not isinstance(self.columns, bool)
        if not known or self.columns < 0:
            raise ShapeError(f"Vandermonde: columns={self.columns!r}; legal are 0, 1, 2, ...")

    @property
    def shape(self) -> torch.Size:
        *batch, m = self.nodes.shape
        return torch.Size((*batch, self.columns, m) if self.transposed else (*batch, m, self.columns))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fv.moments(self.nodes, x, self.columns) if self.transposed else fv.evaluate(self.nodes, x)

    def transpose(self) -> Matrix:
        return Vandermonde(self.nodes, self.columns, not self.transposed)

    def to_dense(self) -> torch.Tensor:
        wide = self.nodes.to(backend.compute_dtype(self.nodes.dtype))
        dense = fv.powers(wide, self.columns).to(self.nodes.dtype)
        return dense.mT if self.transposed else dense

    def diagonal(self) -> torch.Tensor:
        return fv.diagonal(self.nodes, min(self.shape[-2:]))

    # -- solve ----------------------------------------------------------------------------------------------------

    def _wide(self) -> "Vandermonde":
        """In float64 or complex128, where solves and determinants are computed."""
        return self.to(torch.float64)

    def _solver(self) -> fv.BjorckPereyra:
        return fv.BjorckPereyra.of(self.nodes, self.transposed)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """auto: Bjorck and Pereyra; dense LU up to the dense limit where their error is too large, or values may not
        be read."""
        if is_half(self.nodes.dtype):
            wide = backend.compute_dtype(self.nodes.dtype)
            return self.to(wide)._solve_rows(y.to(torch.promote_types(wide, y.dtype)), options)
        if options.method == "dense" or (options.method == "auto" and self._is_small() and not backend.eager(y)):
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "bjorck-pereyra")
        x, steps = self._divided(double(y), options)
        x = x.to(torch.promote_types(y.dtype, self.nodes.dtype))
        reasons = ("divided differences in Leja's order",)
        try:
            return x, self._checked(x, y, "bjorck-pereyra", steps, options, reasons)
        except SolveError as error:
            if options.method == "auto" and self._is_small():
                x, info = super()._solve_rows(y, options)
                return x, SolveInfo(info.method, info.steps, info.backward_error, (*reasons, str(error), *info.reasons))
            raise

    def _divided(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, int]:
        """By divided differences, refined where values may be read and the backward error is large; the steps."""
        wide = self._wide()
        kept = wide.detach()._solver() if backend.eager(y, self.nodes) else None

        def once(rows: torch.Tensor) -> torch.Tensor:
            return implicit_solve(wide, rows, Vandermonde._solver, kept)

        x = once(y)
        if kept is None or not options.check:
            return x, 1
        x, _, more = refined(wide, x, y, once, solving.limit(torch.float64, options.tol) / 4)
        return x, 1 + more

    def _factor(self, method: str) -> Factorisation:
        if method == "dense" or not backend.eager(self.nodes):
            return DenseFactorisation.of(self)
        return SolverFactorisation(self, "bjorck-pereyra", self._wide().detach()._solver())

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``det A = prod_{i > j} (nodes_i - nodes_j)``."""
        require_square(self, "slogdet")
        sign, logabs = slogdet(LogDeterminant(fv.log_value, fv.log_slopes), self._wide().nodes)
        return self._cast(sign), self._cast(logabs, real=True)

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _statics(self) -> list[str]:
        return ["transposed=True"] if self.transposed else []

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        """Any rows, the leading columns."""
        nodes, count = (columns, rows) if self.transposed else (rows, columns)
        kept = range(*count.indices(self.columns))
        size = int(self.nodes.shape[-1])
        if not kept or kept.start != 0 or kept.step != 1 or not range(*nodes.indices(size)):
            lazy: Matrix = dispatch.lookup("slice", Matrix)(self, rows, columns)  # type: ignore[misc]
            return lazy
        return Vandermonde(self.nodes[..., positions(nodes, size)], len(kept), self.transposed)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = int(self.nodes.shape[-1]), self.columns
        size = self.nodes.element_size()
        if verb == "linear":
            moved = float(size * (m * 64 + (m + n) * columns))
            return backend.Plan("blocks", "Horner's rule over blocks of powers", 2.0 * m * n * columns, moved)
        if verb == "solve":
            reason = "divided differences in Leja's order"
            return backend.Plan("bjorck-pereyra", reason, 5.0 * n * n * (columns + 1) / 2, 8.0 * n * (columns + 2))
        return super().plan(verb, columns)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> "Vandermonde":
        """The nodes are the second column; equal within ``tol ||dense||_F`` (default 8 eps), else
        NotStructuredError. One column of ones alone does not tell its nodes: StructureError."""
        if dense.shape[-1] < 2:
            raise StructureError(
                f"Vandermonde.from_dense: {dense.shape[-1]} columns do not determine the nodes; two or more do"
            )
        found = cls(dense[..., 1], int(dense.shape[-1]))
        wide = dense.to(backend.compute_dtype(dense.dtype))
        size = torch.linalg.matrix_norm(wide.detach())
        distance = torch.linalg.matrix_norm((found.to_dense().to(wide.dtype) - wide).detach()) / size
        allowed = 8 * torch.finfo(dense.dtype).eps if tol is None else tol
        if not bool((distance <= allowed).all()):
            raise NotStructuredError(
                f"Vandermonde.from_dense: the matrix of shape {tuple(dense.shape)} is at relative distance "
                f"{float(distance.max()):.2e} from the powers of its second column, more than tol {allowed:.1e}",
                float(distance.max()),
            )
        return found

    @classmethod
    def random(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Vandermonde":
        """Real nodes uniform in (-1, 1), complex ones on the unit circle: powers that do not grow."""
        drawn = torch.randn(m, generator=generator, **options)
        nodes = torch.sgn(drawn) if drawn.is_complex() else torch.erf(drawn / 2**0.5)
        return cls(nodes, m if n is None else n)


@dispatch.rule("hadamard", Vandermonde, Vandermonde)
def _entrywise(a: Vandermonde, b: Vandermonde) -> Matrix:
    """Vandermonde: the nodes multiply; of a matrix and a transpose there is no structured form."""
    if a.transposed != b.transposed:
        raise StructureError(
            f"{a!r} * {b!r}: one is transposed, so the entrywise product has no structured form; "
            "use Dense(A.to_dense()) * B"
        )
    return Vandermonde(a.nodes * b.nodes, a.columns, a.transposed)
