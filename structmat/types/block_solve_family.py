"""Square matrices of several levels that are solved by preconditioned iterations: the door, the options, the record."""

import dataclasses
from typing import Any, ClassVar

import torch

from structmat import backend
from structmat._iterative import given_rows
from structmat.claims import Claim
from structmat.errors import ShapeError, StructureError
from structmat.functional import multilevel_solve as fs
from structmat.functional.implicit import implicit_solve
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo, judge, limit
from structmat.types.block_family import MultilevelFamily

__all__ = ["IterativeFamily"]


class IterativeFamily(MultilevelFamily):
    """Dense LU up to the dense limit; above it conjugate gradients where claimed positive definite, else GMRES, else
    conjugate gradients of the normal equations, in float64, differentiated through the equation."""

    solve_methods: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys((*Matrix.solve_methods, *fs.METHODS)))

    def _operator(self, dtype: torch.dtype, definite: bool) -> fs.Operator:
        raise TypeError(f"{type(self).__name__} must define _operator")

    def _definite(self) -> bool:
        return Claim.POSITIVE_DEFINITE in self.claims

    def _iterates(self, method: str) -> bool:
        small = max(self.shape[-2:]) <= backend.dense_limit(self.device or "cpu")
        return method in fs.METHODS or (method == "auto" and not small)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if not self._iterates(options.method):
            dtype = self._stored().dtype
            whole = self if backend.compute_dtype(dtype) == dtype else self.to(backend.compute_dtype(dtype))
            return super(IterativeFamily, whole)._solve_rows(y, options)  # sums of entries are not rounded to half
        if torch.compiler.is_compiling():
            raise StructureError(
                f"{self!r}.solve under torch.compile: above the dense limit "
                f"{backend.dense_limit(self.device or 'cpu')} the iterations look at values and do not trace; call it "
                'outside the compiled region, or spend n^2 memory on solve(method="dense")'
            )
        record = self._record(options, y)
        wide = fs.wide_dtype(y.dtype, self._stored().dtype)
        matrix = self.to(torch.float64)

        def make(detached: Any) -> fs.LevelSolver:
            bound = detached._norm_bound()
            bound = torch.where(bound > 0, bound, torch.ones_like(bound))
            unit = detached._scale(1 / bound[..., None, None])
            return fs.LevelSolver(unit._operator(wide, record.definite), record, bound)

        x = implicit_solve(matrix, y.to(wide), make)
        if options.check and backend.eager(y, *self.tensors()) and record.backward_error is not None:
            judge(self, record.backward_error, record.used, limit(y.dtype, options.tol))
        return x, SolveInfo(record.used, record.steps, record.backward_error, tuple(record.reasons))

    def _record(self, options: Options, y: torch.Tensor) -> fs.Record:
        accepted = limit(y.dtype, options.tol)
        given = options.preconditioner
        apply = None
        if given is not None:
            if not isinstance(given, Matrix) or given.shape[-2:] != self.shape[-2:]:
                raise ShapeError(f"{self!r}.solve: the preconditioner must be a Matrix of the same size, got {given!r}")
            double = given.to(torch.float64)
            apply = (double.linear, double.mH.linear)
        solution = y.to(torch.promote_types(y.dtype, self._stored().dtype))
        start = given_rows(options.start, f"{self!r}.solve", solution, int(self.shape[-1]))
        return fs.Record(
            options.method,
            self._definite(),
            accepted / 5,
            accepted,
            apply,
            start,
            options.max_steps,
            options.callback,
        )

    def _factor(self, method: str) -> Factorisation:
        """Above the dense limit the matrix itself: the spectra are formed again, which is less than a step."""
        if self._iterates(method):
            return Factorisation(self, "iterative")
        dtype = self._stored().dtype
        if backend.compute_dtype(dtype) == dtype:
            return super()._factor(method)
        kept = super(IterativeFamily, self.to(backend.compute_dtype(dtype)))._factor(method)
        return dataclasses.replace(kept, matrix=self)

    def _wide_dense(self) -> torch.Tensor:
        return self.to(backend.compute_dtype(self._stored().dtype)).to_dense()
