"""Solving with matrices of low displacement rank: elimination by GKO, refined, kept by ``factor``; inverses closed."""

from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._value import static
from structmat.errors import StructureError
from structmat.functional import displacement_det as fdet
from structmat.functional import gko
from structmat.functional.displacement_rank import balanced, generator_condition
from structmat.functional.implicit import Solver, implicit_solve
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo, judge, limit
from structmat.solving import backward_error as eta_of
from structmat.types.displacement_family import DisplacementFamily

__all__ = ["DisplacementFactorisation", "DisplacementSolves"]

_CANCELLING = 1e2  # above this generator condition solvers work with balanced generators


class Refined:
    """A solver out of GKO's factors: each solution is refined with residuals of the product, while that gains."""

    def __init__(self, matrix: Any, kernel: gko.GKO, sigma: torch.Tensor) -> None:
        self.matrix, self.kernel, self.sigma = matrix, kernel, sigma

    @classmethod
    def of(cls, matrix: Any, kernel: gko.GKO | None = None) -> "Refined":
        """Factorise a matrix of generators in float64 or complex128 (detached), unless the factors are given.

        Residuals are those of balanced generators too: products by generators that cancel are noise of eps times the
        generator condition, below which no refinement gets."""
        with torch.no_grad():
            matrix = _steady(matrix)
            if kernel is None:
                kernel = gko.factor(matrix.left, matrix.right, matrix.e, matrix.f)
            return cls(matrix, kernel, matrix._norm_bound())

    def eta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The backward error of rows x."""
        return eta_of(y - self.matrix.linear(x), x, y, self.sigma)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.kernel.solve_rows(y)
            eta = self.eta(x, y)
            for _ in range(3):
                if not bool((eta > 4 * torch.finfo(eta.dtype).eps).any()):
                    break
                new = x + self.kernel.solve_rows(y - self.matrix.linear(x))
                eta_new = self.eta(new, y)
                better = eta_new < eta
                if not bool(better.any()):
                    break
                x, eta = torch.where(better[..., None], new, x), torch.where(better, eta_new, eta)
            return x

    def adjoint(self) -> "Refined":
        return Refined(self.matrix.mH, self.kernel.adjoint(), self.sigma)


class _Transposed:
    """The solver of A^T out of that of A: ``A^-T y = conj(A^-H conj(y))``."""

    def __init__(self, inner: Solver) -> None:
        self.inner = inner

    @classmethod
    def of(cls, transposed: Any) -> "_Transposed":
        return cls(Refined.of(transposed.mT))

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        return self.inner.adjoint().solve_rows(y.conj().resolve_conj()).conj().resolve_conj()

    def adjoint(self) -> "_Transposed":
        return _Transposed(self.inner.adjoint())


def _steady(matrix: Any) -> Any:
    """The detached matrix itself; balanced, within eps times the generator condition of it, where its generators cancel
    each other."""
    left, right = matrix.left, matrix.right
    if left.shape[-1] and bool((generator_condition(left, right) > _CANCELLING).any()):
        return matrix._of(balanced(left, right), matrix.e, matrix.f)
    return matrix


class DisplacementSolves(DisplacementFamily):
    """Dense LU up to the dense limit, above it GKO in complex128, refined; Krylov's methods where that fails."""

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "gko")

    def _doubled(self) -> Any:
        return self.to(torch.float64)

    def _single(self) -> Any:
        """Itself, in float32 in place of half and bfloat16: entries are sums, and are not rounded to half."""
        wide = backend.compute_dtype(self.left.dtype)
        return self if wide == self.left.dtype else self.to(wide)

    def _wide_dense(self) -> torch.Tensor:
        entries: torch.Tensor = self._single().to_dense()
        return entries

    def _solved(self, y: torch.Tensor, known: Refined | None = None) -> torch.Tensor:
        """Rows x with ``A x = y`` in float64 (complex128), differentiable."""
        wide = self._doubled()
        return implicit_solve(wide, y.to(torch.promote_types(wide.dtype, y.dtype)), Refined.of, known)

    def _solved_transposed(self, y: torch.Tensor, known: Refined | None = None) -> torch.Tensor:
        """Rows x with ``A^T x = y``, from the same factors."""
        wide = self._doubled()
        solver = None if known is None else _Transposed(known)
        rows = y.to(torch.promote_types(wide.dtype, y.dtype))
        return implicit_solve(wide.mT, rows, _Transposed.of, solver)

    def _uses_gko(self, method: str) -> bool:
        return method == "gko" or (method == "auto" and not self._is_small())

    def _refuse_tracing(self, verb: str) -> None:
        """Pivots are chosen by their values, which a traced graph cannot."""
        if torch.compiler.is_compiling():
            raise StructureError(
                f"{self!r}.{verb} under torch.compile: above the dense limit "
                f"{backend.dense_limit(self.device or 'cpu')} the elimination looks at values and does not trace; "
                "call it outside the compiled region, or spend "
                'n^2 memory on solve(method="dense") or torch.linalg on A.to_dense()'
            )

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if not self._uses_gko(options.method):
            return super(DisplacementSolves, self._single())._solve_rows(y, options)
        self._refuse_tracing("solve")
        for name in ("preconditioner", "start", "max_steps", "callback"):
            if getattr(options, name) is not None and options.method == "auto":
                return super()._solve_rows(y, options)  # made for an iteration, so one it is
        options.refuse_iterative(f"{self!r}.solve", "gko")
        x = self._solved(y)
        out = torch.promote_types(self.dtype or y.dtype, y.dtype)
        reasons = ["Gaussian elimination with partial pivoting of the Cauchy-like form, refined"]
        if not options.check or not backend.eager(x, *self.tensors()):
            return x, SolveInfo("gko", 1, None, tuple(reasons))
        with torch.no_grad():
            wide = _steady(self.detach()._doubled())
            eta = eta_of(y.to(x.dtype) - wide.linear(x), x, y.to(x.dtype), wide._norm_bound())
        accepted = limit(out, options.tol)
        if options.method == "auto" and not bool((eta <= accepted).all()):
            return super()._solve_rows(y, options)
        judge(self, eta, "gko", accepted)
        return x, SolveInfo("gko", 1, eta, tuple(reasons))

    def _checked(
        self, x: torch.Tensor, y: torch.Tensor, method: str, steps: int, options: Options, reasons: Any
    ) -> SolveInfo:
        """Of dense LU by the entries that it solved with: products by generators that cancel each other are noise."""
        if method != "dense" or not options.check or not backend.eager(x, y, *self.tensors()):
            return super()._checked(x, y, method, steps, options, reasons)
        with torch.no_grad(), backend.full_precision(x.device):
            dense = self._wide_dense()
            wide = torch.promote_types(dense.dtype, backend.compute_dtype(x.dtype))
            x, y, dense = x.to(wide), y.to(wide), dense.to(wide)
            eta = eta_of(y - x @ dense.mT, x, y, torch.linalg.matrix_norm(dense))
        judge(self, eta, method, limit(x.dtype, options.tol))
        return SolveInfo(method, steps, eta, tuple(reasons))

    def _factor(self, method: str) -> Factorisation:
        if not self._uses_gko(method):
            dense = DenseFactorisation.of(self._single())
            return DenseFactorisation(self, "dense", dense.lu, dense.pivots)
        self._refuse_tracing("factor")
        return DisplacementFactorisation.of(self)

    def inv(self) -> Matrix:
        """``(-A^-1 G, A^-T H)`` under the operator (f, e): closed, rank r, by 2r solves with one factorisation.

        Half and bfloat16 stay lazy: rounding the generators of an inverse to 8 bits would lose it.
        """
        if backend.compute_dtype(self.left.dtype) != self.left.dtype:
            lazy: Matrix = dispatch.call("inverse", self)
            return lazy
        if self._is_small():
            left, right = self._dense_pair()
        else:
            self._refuse_tracing("inv")
            known = None
            if backend.eager(*self.tensors()):
                known = Refined.of(self.detach()._doubled())
            left, right = self._solved(self.left.mT, known), self._solved_transposed(self.right.mT, known)
        common = torch.promote_types(left.dtype, right.dtype)
        kept = backend.complex_of(self.left.dtype) if common.is_complex else self.left.dtype
        return self._of((-left.mT.to(kept), right.mT.to(kept)), self.f, self.e)

    def _dense_pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``A^-1 G`` and ``A^-T H`` as rows, by one dense LU in float64 that may be traced and transformed."""
        dense = self._doubled().to_dense()
        left, right = self.left.to(dense.dtype), self.right.to(dense.dtype)
        lead = dense.shape[:-2]
        with backend.full_precision(dense.device):
            inverse = torch.linalg.inv_ex(dense)[0]
            first = left.mT.expand(*lead, *left.mT.shape[-2:]) @ inverse.mT
            return first, right.mT.expand(*lead, *right.mT.shape[-2:]) @ inverse

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense LU up to the dense limit; above it GKO's pivots, with a gradient in O(r^2 n log n) after 2r solves."""
        if self._is_small():
            return super().slogdet()
        self._refuse_tracing("slogdet")
        return self._slogdet_by_gko(None)

    def _slogdet_by_gko(self, known: gko.GKO | None) -> tuple[torch.Tensor, torch.Tensor]:
        wide = self._doubled()
        lead = self.batch_shape
        left, right = (t.expand(*lead, *t.shape[-2:]) for t in (wide.left, wide.right))

        def solve(
            g: torch.Tensor, h: torch.Tensor, rows: torch.Tensor, transposed: bool, kernel: gko.GKO | None
        ) -> torch.Tensor:
            matrix = self._of((g, h), self.e, self.f)
            solver = Refined.of(matrix.detach(), kernel) if kernel is not None else None
            return matrix._solved_transposed(rows, solver) if transposed else matrix._solved(rows, solver)

        def factor(g: torch.Tensor, h: torch.Tensor) -> gko.GKO:
            steady = _steady(self._of((g.detach(), h.detach()), self.e, self.f))
            return gko.factor(steady.left, steady.right, self.e, self.f)

        job = fdet.Job(self.e, self.f, factor, solve, [] if known is None else [known])
        sign, logabs = fdet.slogdet(left, right, job)
        return self._cast(sign), self._cast(logabs, real=True)


class DisplacementFactorisation(Factorisation):
    """GKO's factors, kept: n^2 complex numbers; a solve, also with A^H, costs 8 n^2 flops and its refinement."""

    solver: Refined | None = static(default=None)
    reached: float = 0.0

    @classmethod
    def of(cls, matrix: Any) -> "DisplacementFactorisation":
        with torch.no_grad():
            wide = matrix.detach()._doubled()
            solver = Refined.of(wide)
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(1, int(matrix.shape[-1]), generator=generator, dtype=torch.float64)
            rows = probe.to(device=wide.device, dtype=wide.dtype)
            eta = solver.eta(solver.solve_rows(rows), rows)
        judge(matrix, eta, "gko", limit(torch.float64, None))
        return cls(matrix, "gko", solver, float(eta.max()) if eta.numel() else 0.0)

    @property
    def backward_error(self) -> float:
        """The backward error of one random system solved at construction."""
        return self.reached

    def _rows(self, y: torch.Tensor, adjoint: bool) -> torch.Tensor:
        assert self.solver is not None
        rows = y[None, :] if y.ndim == 1 else y
        if adjoint:
            wide = self.matrix.mH._doubled()
            rows = rows.to(torch.promote_types(wide.dtype, rows.dtype))
            x = implicit_solve(wide, rows, Refined.of, self.solver.adjoint())
        else:
            x = self.matrix._solved(rows, self.solver)
        x = x.to(torch.promote_types(y.dtype, self.matrix.dtype))
        return x[..., 0, :] if y.ndim == 1 else x

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        return self._rows(y, adjoint=False)

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        return self._rows(b, True) if b.ndim == 1 else self._rows(b.mT, True).mT

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = self.solver.kernel if self.solver is not None and backend.eager(*self.matrix.tensors()) else None
        result: tuple[torch.Tensor, torch.Tensor] = self.matrix._slogdet_by_gko(kernel)
        return result
