"""The pair (x, z) that defines the inverse of a Toeplitz matrix, and what is kept of a solve.

Levinson's recursion gives the pair; refinement with the inverse that the pair itself defines makes it accurate. Where a
leading minor is singular to working precision the diagonal is shifted by ``1e-5 max|t|`` (then ``1e-7``) for the
recursion only, and refinement removes the shift; where that fails the pair comes from Gaussian elimination. The formula
that applies the pair holds for every nonsingular matrix, so O(n) numbers are all that has to be kept.
"""

import dataclasses

import torch

from structmat import backend
from structmat.functional import gko
from structmat.functional.implicit import Solver
from structmat.functional.levinson import pairs
from structmat.functional.toeplitz import toeplitz_entries
from structmat.functional.toeplitz_system import ACCEPTED, TARGET, System, generators, right_sides
from structmat.functional.two_solve import TwoSolve

__all__ = [
    "Kept",
    "Lu",
    "best_pair",
    "eliminated",
    "eliminated_pair",
    "groups",
    "improved",
    "levinson_pair",
    "shifted_pair",
]

_SHIFTS = (1e-5, 1e-7)
_MEMORY = 2**30


def levinson_pair(system: System, mirror: str | None, shift: float = 0.0) -> tuple[TwoSolve, torch.Tensor]:
    """The unrefined pair and Levinson's pivots ``(B, n)``; NaN where a leading minor is singular."""
    t = system.t
    if shift:
        t = t.clone()
        t[:, system.n - 1] += shift * t.abs().amax(-1)
    found = pairs(t.detach().cpu().resolve_conj().numpy(), mirror)
    x, z, pivots = (torch.from_numpy(v).to(t.device) for v in found)
    return TwoSolve(x, z), pivots


def shifted_pair(system: System, mirror: str | None) -> TwoSolve:
    """The pair of the matrix with a shifted diagonal, refined to that of the matrix.

    The first shift is the larger one: its recursion is the more accurate, and refinement, which uses the refined pair
    itself, converges quadratically while the shift is small against the least singular value.
    """
    best, eta = improved(system, levinson_pair(system, mirror, _SHIFTS[0])[0], rounds=6)
    bad = torch.nonzero(~(eta <= ACCEPTED))[:, 0]
    if len(bad):
        part = system.take(bad)
        other, found = improved(part, levinson_pair(part, mirror, _SHIFTS[1])[0], rounds=6)
        better = (found < eta[bad]) | eta[bad].isnan()
        x, z = best.x.clone(), best.z.clone()
        x[bad[better]], z[bad[better]] = other.x[better], other.z[better]
        best = TwoSolve(x, z)
    return best


def improved(system: System, pair: TwoSolve, rounds: int = 3) -> tuple[TwoSolve, torch.Tensor]:
    """Refine the pair with the inverse it defines, each matrix keeping the better of two; and the larger of both
    backward errors, ``(B,)``."""
    right = right_sides(system.t)
    rows = torch.stack((pair.x, pair.z), -2)
    residual = right - system.multiply(rows)
    eta = system.eta(rows, right, residual).amax(-1)
    for _ in range(rounds):
        if bool((eta <= TARGET).all()):
            break
        new = rows + pair.solve_rows(residual)
        fresh = right - system.multiply(new)
        other = system.eta(new, right, fresh).amax(-1)
        better = other < eta  # both or neither: the pair belongs together
        if not bool(better.any()):
            break
        keep = better[:, None, None]
        rows, residual, eta = (
            torch.where(keep, new, rows),
            torch.where(keep, fresh, residual),
            torch.where(better, other, eta),
        )
        pair = TwoSolve(rows[..., 0, :].contiguous(), rows[..., 1, :].contiguous())
    return pair, eta


class Lu:
    """Dense LU with partial pivoting, for small orders; a singular matrix gives inf or NaN."""

    def __init__(self, dense: torch.Tensor) -> None:
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(dense)
        self.adjointed = False

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.lu_solve(self.factors, self.pivots, y.mT, adjoint=self.adjointed)
        return x.mT

    def adjoint(self) -> "Lu":
        new = Lu.__new__(Lu)
        new.factors, new.pivots, new.adjointed = self.factors, self.pivots, not self.adjointed
        return new


def eliminated(system: System, dense: bool = True) -> Solver:
    """Gaussian elimination with partial pivoting: dense (if allowed) up to the dense limit, of the Cauchy-like form
    (16 n^2 bytes a matrix) above it."""
    if dense and system.n <= backend.dense_limit(system.t.device):
        return Lu(toeplitz_entries(system.t, system.n))
    return gko.factor(*generators(system.t), 1, -1)


def groups(index: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
    """The numbers of matrices cut up so that eliminating one group takes at most 1 GiB (or is a single matrix)."""
    return index.split(max(1, _MEMORY // (16 * n * n)))


def eliminated_pair(system: System, solver: Solver) -> TwoSolve:
    """The pair by elimination, refined."""
    rows, _, _ = system.refined(right_sides(system.t), solver, TARGET)
    return TwoSolve(rows[..., 0, :].contiguous(), rows[..., 1, :].contiguous())


def best_pair(
    system: System, mirror: str | None, most: int, first: TwoSolve | None = None
) -> tuple[TwoSolve, torch.Tensor, list[str]]:
    """The refined pair by Levinson, then shifted, then (up to order ``most``) by elimination, each matrix keeping the
    first that is accurate; with its backward error ``(B,)`` and notes. ``first``: Levinson's, if it is there."""
    notes: list[str] = []
    pair, eta = improved(system, levinson_pair(system, mirror)[0] if first is None else first)
    for name in ("shifted", "eliminated"):
        bad = torch.nonzero(~(eta <= ACCEPTED))[:, 0]
        if not len(bad) or (name == "eliminated" and system.n > most):
            break
        part = system.take(bad)
        if name == "shifted":
            notes.append("a leading minor is nearly singular: shifted diagonal, then refined")
            other = shifted_pair(part, mirror)
        else:
            notes.append("Levinson's recursion fails: the pair by elimination with pivoting")
            found = [(s := system.take(some), eliminated_pair(s, eliminated(s)))[1] for some in groups(bad, system.n)]
            other = TwoSolve(torch.cat([p.x for p in found]), torch.cat([p.z for p in found]))
        other, reached = improved(part, other)
        better = (reached < eta[bad]) | eta[bad].isnan()
        x, z, eta = pair.x.clone(), pair.z.clone(), eta.clone()
        x[bad[better]], z[bad[better]], eta[bad[better]] = other.x[better], other.z[better], reached[better]
        pair = TwoSolve(x, z)
    return pair, eta, notes


@dataclasses.dataclass(frozen=True)
class Kept:
    """Solvers of the matrices of one batch axis: each part serves the matrices of its numbers (all for None), a later
    part in place of an earlier one."""

    parts: tuple[tuple[torch.Tensor | None, Solver], ...]

    def solve_rows(self, b: torch.Tensor) -> torch.Tensor:
        """y with ``T y = b``; b ``(B, K, n)``."""
        if len(self.parts) == 1 and self.parts[0][0] is None:
            return self.parts[0][1].solve_rows(b)
        y = torch.full_like(b, torch.nan)
        for index, solver in self.parts:
            if index is None:
                y = solver.solve_rows(b)
            else:
                y[index] = solver.solve_rows(b[index])
        return y

    def adjoint(self) -> "Kept":
        """The same for ``T^H``."""
        return Kept(tuple((index, solver.adjoint()) for index, solver in self.parts))
