"""The factorisation of a Toeplitz matrix worth keeping: two vectors."""

from typing import Any

import torch

from structmat import backend
from structmat.functional import superfast
from structmat.functional import toeplitz_solve as fs
from structmat.functional.toeplitz_pair import Kept, best_pair, eliminated
from structmat.functional.toeplitz_policy import ELIMINATED, superfast_pays
from structmat.functional.toeplitz_system import ACCEPTED, TARGET, System, right_sides
from structmat.functional.two_solve import TwoSolve
from structmat.solving import Factorisation, judge, limit

__all__ = ["ToeplitzFactorisation"]


class ToeplitzFactorisation(Factorisation):
    """The two-solve pair ``x = T^-1 e_0, z = T^-1 c``, refined: O(n) memory, O(n log n) a solve, also for T^H, and
    the gradient of the determinant. A solve that the pair leaves above 100 eps goes on to elimination, as ``solve``
    does."""

    x: torch.Tensor | None = None
    z: torch.Tensor | None = None
    reached: float = 0.0

    @classmethod
    def of(cls, matrix: Any, method: str) -> Factorisation:
        """By Levinson's recursion (from order 16,384 on superfast), where that fails by elimination ("gko": by
        elimination at once). Inside a transform of torch.func there are no values to keep: each solve then finds its
        own pair."""
        if not backend.eager(*matrix.tensors()):
            return Factorisation(matrix, "levinson" if method == "auto" else method)
        with torch.no_grad():
            t = matrix._diagonals().detach()
            wide = t.to(torch.promote_types(t.dtype, torch.float64))
            system = System(wide.reshape(-1, wide.shape[-1]))
            if method == "gko":
                rows, eta, _ = system.refined(right_sides(system.t), eliminated(system, dense=False), TARGET)
                x, z, eta = rows[:, 0].contiguous(), rows[:, 1].contiguous(), eta.amax(-1)
                used = "gko"
            else:
                pair, eta, used = _pair(system, matrix._mirror(), method)
                x, z = pair.x, pair.z
        judge(matrix, eta, used, limit(torch.float64, None))
        shape = (*t.shape[:-1], system.n)
        return cls(matrix, used, x.reshape(shape), z.reshape(shape), float(eta.max()) if eta.numel() else 0.0)

    @property
    def backward_error(self) -> float:
        return self.reached

    def _known(self) -> Kept:
        assert self.x is not None and self.z is not None
        n = self.x.shape[-1]
        return Kept(((None, TwoSolve(self.x.detach().reshape(-1, n), self.z.detach().reshape(-1, n))),))

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        rows = y[None, :] if y.ndim == 1 else y
        record = fs.Record(known=self._known(), mirror=self.matrix._mirror())
        x = fs.solve_rows(self.matrix._diagonals(), rows, record)
        x = x.to(torch.promote_types(y.dtype, self.matrix.dtype))
        return x[..., 0, :] if y.ndim == 1 else x

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        """From the same pair: ``T^-H = conj(J T^-1 J)``."""
        flipped = b.conj().flip(-1 if b.ndim == 1 else -2)
        return self.solve(flipped).flip(-1 if b.ndim == 1 else -2).conj().resolve_conj()

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As the matrix gives it; the gradient comes from the pair."""
        return self.matrix._slogdet(self._known())


def _pair(system: System, mirror: str | None, method: str) -> tuple[TwoSolve, torch.Tensor, str]:
    """The pair, its backward error, and the method that found it."""
    if len(system.t) and (method == "superfast" or (method == "auto" and superfast_pays(system.n))):
        found = superfast.find(system)
        if method == "superfast" or bool((found.eta <= ACCEPTED).all()):
            return found.pair, found.eta, "superfast"
    pair, eta, notes = best_pair(system, mirror, ELIMINATED if method == "auto" else 0)
    return pair, eta, "gko" if len(notes) > 1 else "levinson"
