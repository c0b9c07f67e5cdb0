"""What types share that solve by an object of their own: the factorisation that keeps it."""

from typing import Any, Protocol

import torch

from structmat import backend
from structmat.functional.implicit import implicit_solve
from structmat.solving import Factorisation

__all__ = ["SolverFactorisation", "TransposedSolver", "double", "is_half"]


class _Kept(Protocol):
    """A solver that knows where its numbers are."""

    @property
    def device(self) -> torch.device: ...
    def solve_rows(self, y: torch.Tensor) -> torch.Tensor: ...
    def adjoint(self) -> Any: ...


class SolverFactorisation(Factorisation):
    """A solver, kept with its matrix: solves with A and with A^H come out of it, differentiable in the matrix.

    The matrix has ``_wide()``, itself in float64 or complex128, and ``_solver()``. On another device than the solver's
    (after ``to``) each solve factorises anew.
    """

    solver: Any = None

    def _known(self, device: torch.device) -> Any:
        kept: _Kept | None = self.solver
        return kept if kept is not None and kept.device == device else None

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        rows = y[None, :] if y.ndim == 1 else y
        x = implicit_solve(self.matrix._wide(), double(rows), type(self.matrix)._solver, self._known(y.device))
        x = x.to(torch.promote_types(y.dtype, self.matrix.dtype))
        return x[..., 0, :] if y.ndim == 1 else x

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        rows = b[None, :] if b.ndim == 1 else b.mT
        known = self._known(b.device)
        adjoint = None if known is None else known.adjoint()
        x = implicit_solve(self.matrix._wide().mH, double(rows), type(self.matrix)._solver, adjoint)
        x = x.to(torch.promote_types(b.dtype, self.matrix.dtype))
        return x[..., 0, :] if b.ndim == 1 else x.mT


class TransposedSolver:
    """Solves with A^T out of a solver of A: ``A^T = conj(A^H)``."""

    def __init__(self, solver: Any) -> None:
        self.solver = solver

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.solver.adjoint().solve_rows(y.conj().resolve_conj())
        return x.conj().resolve_conj()

    def adjoint(self) -> "TransposedSolver":
        return TransposedSolver(self.solver.adjoint())


def is_half(dtype: torch.dtype) -> bool:
    """Whether arithmetic in this dtype is carried out in a wider one: the entries of the matrix must then not be
    rounded to it before they are used."""
    return backend.compute_dtype(dtype) != dtype


def double(y: torch.Tensor) -> torch.Tensor:
    """In float64 or complex128."""
    return y.to(torch.promote_types(y.dtype, torch.float64))
