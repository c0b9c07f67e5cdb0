"""Sums that are applied and never added up; with a low-rank term among them they are solved by Woodbury's formula."""

import itertools
import math
from typing import Any

import torch

from structmat import _iterative, backend, dispatch, solving
from structmat import claims as survive
from structmat.claims import Claims
from structmat.errors import ShapeError, SolveError
from structmat.functional.implicit import implicit_solve
from structmat.lazy import woodbury
from structmat.lazy.expressions import _check_parts, _common, tree
from structmat.lazy.implicit import Implicit
from structmat.lazy.woodbury import Split, WoodburyFactorisation, WoodburySolver
from structmat.lazy.wrappers import Inverse
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Sum"]


class Sum(Matrix):
    """``A_1 + A_2 + ... + A_k``, applied term by term.

    A sum of low-rank terms ``U V^T`` (rank r in all) and of one with a solve of its own (``Diagonal``, a multiple of
    ``Identity``, ``BlockDiagonal``, ``Circulant``, ``Toeplitz``, ...) is solved by Woodbury's identity:
    ``A^-1 = B^-1 - B^-1 U C^-1 V^T B^-1`` and ``det A = det B det C`` with ``C = I + V^T B^-1 U`` of order r.

    Stores: terms, a tuple of matrices of one size. Claims: what survives a sum. Cost: the sum of the terms' costs;
            with low-rank terms ``solve``, ``slogdet``, ``inv`` and ``factor`` cost r solves with B and
            2 n r^2 + 2/3 r^3 flops, and nothing of n^2 entries exists.
    Raises: SolveError, with the backward error reached, where refinement and, after it, gmres with Woodbury's formula
            as preconditioner (up to the dense limit LU) do not reach ``tol``.
    Example:
        >>> A = sm.Diagonal(torch.tensor([1.0, 2.0, 4.0])) + sm.LowRank(torch.ones(3, 1), torch.ones(3, 1))
        >>> A.solve(torch.tensor([4.0, 5.0, 7.0]), method="woodbury")
        tensor([1., 1., 1.])
        >>> A.det()
        tensor(22.0000)
    References: M. A. Woodbury, Inverting modified matrices, 1950; W. W. Hager, Updating the inverse of a matrix, 1989.
    """

    terms: tuple[Matrix, ...]

    @property
    def solve_methods(self) -> tuple[str, ...]:  # type: ignore[override]
        """With "woodbury" where a term is of low rank by its type."""
        thin = any(dispatch.lookup("thin_factors", type(t)) is not None for t in self.terms)
        return ("auto", "dense", "woodbury") if thin else ("auto", "dense")

    def _validate(self) -> None:
        _check_parts("Sum", self.terms)
        for a, b in itertools.pairwise(self.terms):
            if a.shape[-2:] != b.shape[-2:]:
                raise ShapeError(f"Sum: the sizes of {a!r} and {b!r} differ")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, *self.terms[0].shape[-2:]))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(t.batch_shape for t in self.terms))

    @property
    def dtype(self) -> torch.dtype | None:
        return _common(self.terms)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.terms) == 2:
            joined = dispatch.lookup("sum_product", *map(type, self.terms))
            if joined is not None:
                together: torch.Tensor = joined(*self.terms, x)
                return together
        y = self.terms[0].linear(x)
        for term in self.terms[1:]:
            y = y + term.linear(x)
        return y

    def transpose(self) -> Matrix:
        return Sum(tuple(t.transpose() for t in self.terms))

    def conj(self) -> Matrix:
        return Sum(tuple(t.conj() for t in self.terms))

    def diagonal(self) -> torch.Tensor:
        total = self.terms[0].diagonal()
        for term in self.terms[1:]:
            total = total + term.diagonal()
        return total

    def _properties(self) -> Claims:
        known = self.terms[0].claims
        for term in self.terms[1:]:
            known = survive.sum_of(known, term.claims)
        return known

    def _norm_bound(self) -> torch.Tensor:
        bound = self.terms[0]._norm_bound()
        for term in self.terms[1:]:
            bound = bound + term._norm_bound()
        return bound

    # -- with a low-rank term ---------------------------------------------------------------------------------------

    def _split(self, method: str) -> Split | None:
        """How "auto" and "woodbury" take the sum apart: None where there is nothing to gain (rank above n / 3 up to the
        dense limit, above n beyond it)."""
        if method == "dense":
            return None
        found = woodbury.split(self.terms)
        n = int(self.shape[-1])
        if method == "woodbury":
            if found is None:
                raise ValueError(
                    f"{self!r}: the method 'woodbury' needs a square sum of LowRank terms and one with a "
                    "solve of its own; legal methods are 'auto', 'dense', 'cg', 'minres', 'gmres'"
                )
            return found
        return found if found is not None and (3 * found.rank <= n if self._is_small() else found.rank < n) else None

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        found = self._split(options.method)
        if found is None:
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "woodbury")
        wide = woodbury._wide(self)
        assert wide.dtype is not None
        rows = y.to(torch.promote_types(backend.compute_dtype(y.dtype), wide.dtype))
        if torch.compiler.is_compiling():
            taken = woodbury.split(wide.terms)  # type: ignore[attr-defined]
            assert taken is not None
            with backend.full_precision(rows.device):
                x = taken.lifted().solve_rows(rows)
            return x, SolveInfo("woodbury", 0, None, ("traced: the formula alone",))
        kept: list[WoodburySolver] = []
        try:
            x = implicit_solve(wide, rows, lambda m: woodbury.built(m, options.check, kept))
        except SolveError as error:
            return self._otherwise(y, options, str(error), None)
        solver = kept[0]
        if not options.check or solver.eta is None or not backend.eager(x, y, *self.tensors()):
            return x, SolveInfo("woodbury", solver.steps, None, woodbury.reported(solver))
        accepted = solving.limit(y.dtype, options.tol)
        if not bool((solver.eta <= accepted).all()):
            return self._otherwise(y, options, f"woodbury reached {float(solver.eta.max()):.1e}", solver)
        return x, SolveInfo("woodbury", solver.steps, solver.eta, woodbury.reported(solver))

    def _otherwise(
        self, y: torch.Tensor, options: Options, reason: str, solver: WoodburySolver | None
    ) -> tuple[torch.Tensor, SolveInfo]:
        """What follows where the formula failed: LU up to the dense limit, else gmres with the formula as
        preconditioner; "woodbury" asked for by name fails."""
        if options.method == "woodbury":
            raise SolveError(
                f"{self!r}.solve(method='woodbury'): {reason}; try method=\"dense\", a larger tol, or check=False",
                float("inf") if solver is None or solver.eta is None else float(solver.eta.max()),
            )
        if self._is_small():
            x, info = super()._solve_rows(y, Options("dense", options.tol, check=options.check))
        else:
            near = None if solver is None or not math.isfinite(solver.condition) else _as_matrix(solver)
            given = Options("gmres", options.tol, preconditioner=near, check=options.check)
            x, info = _iterative.solve_rows(self, y, given)
        return x, SolveInfo(info.method, info.steps, info.backward_error, (reason, *info.reasons))

    def _factor(self, method: str) -> Factorisation:
        if self._split(method) is None:
            return super()._factor(method)
        try:
            return WoodburyFactorisation.of(self)
        except SolveError:
            if method == "woodbury" or not self._is_small():
                raise
            return super()._factor("dense")

    def inv(self) -> Matrix:
        """With a low-rank term the sum of the base's inverse and a low-rank matrix; where the capacitance matrix is too
        ill-conditioned for that, and where the base's inverse is lazy, a lazy inverse with its factors kept."""
        found = self._split("auto")
        if found is None:
            lazy: Matrix = super().inv()
            return lazy
        taken = found.lifted()
        closed = not isinstance(taken.base.inv(), Inverse)
        with backend.full_precision(taken.left.device):
            inverse = taken.inverse() if closed and self.dtype == backend.compute_dtype(taken.left.dtype) else None
        if inverse is not None:
            return inverse
        return Inverse(self, self.factor()) if backend.eager(*self.tensors()) else Inverse(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._split("auto")
        if found is None:
            value: tuple[torch.Tensor, torch.Tensor] = super().slogdet()
            return value
        taken = woodbury.split(woodbury._wide(self).terms)  # type: ignore[attr-defined]
        assert taken is not None
        with backend.full_precision(self.device or torch.device("cpu")):
            sign, logabs = taken.lifted().slogdet()
        return self._cast(sign), self._cast(logabs, real=True)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        found = self._split("auto") if verb == "solve" and self.shape[-1] == self.shape[-2] else None
        if found is None:
            return super().plan(verb, columns)
        n, r = int(self.shape[-1]), found.rank
        inner = found.base.plan(verb, columns + r)
        flops = 2.0 * n * r * r + 2 / 3 * r**3 + 4.0 * n * r * columns + (inner.flops or 0.0)
        moved = 8.0 * n * (2 * r + 2 * columns) + (inner.bytes or 0.0)
        return backend.Plan("woodbury", f"rank {r}; the base: {inner.path}", flops, moved)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Sum(tuple(t._picked(batch, lead) for t in self.terms))

    def __repr__(self) -> str:
        return tree("Sum", self.terms)


def _as_matrix(solver: WoodburySolver) -> Matrix:
    """The formula as a preconditioner, conjugated twice for its transpose."""
    adjoint, shape = solver.adjoint(), solver.matrix.shape

    def turned(y: torch.Tensor) -> torch.Tensor:
        rows = y[None, :] if y.ndim == 1 else y
        x = adjoint.once(rows.conj().resolve_conj()).conj().resolve_conj()
        return x[..., 0, :] if y.ndim == 1 else x

    def straight(y: torch.Tensor) -> torch.Tensor:
        return solver.once(y[None, :])[..., 0, :] if y.ndim == 1 else solver.once(y)

    return Implicit(tuple(shape), straight, turned, solver.left.dtype)


@dispatch.rule("add", Matrix, Matrix)
def _sum(a: Matrix, b: Matrix) -> Matrix:
    """Lazy: the terms side by side."""
    left = a.terms if isinstance(a, Sum) and not a._assumed else (a,)
    right = b.terms if isinstance(b, Sum) and not b._assumed else (b,)
    return Sum((*left, *right))
