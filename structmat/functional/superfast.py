"""Toeplitz systems in O(n log^2 n): the two columns that define the inverse, and the determinant with its error.

``superfast_attempt`` finds the pair of the two-solve formula by divide and conquer over the roots of unity; the formula
refines the pair itself, and GMRES finishes where that stalls. Leading minors of T may be singular: the blocks met are
those of a transformed matrix, and where one of those is nearly singular another attempt turns the circle. Real
symmetric or Hermitian indefinite matrices without any smoothness (random ones) are the hardest, for their blocks have
real determinants up to a phase and so are nearly singular more often: all attempts may fail, which the backward error
shows, and their determinants are often not confirmed.

The determinant is the product of those of the leaves, which refinement does not reach; its error is measured as the
difference of two attempts, whose rounding errors have nothing in common.
Computed in float64 and complex128, the tree on the CPU. No gradients here.
"""

import dataclasses
import math

import torch

from structmat.functional.krylov import gmres
from structmat.functional.superfast_attempt import ATTEMPTS, attempt
from structmat.functional.toeplitz_pair import improved
from structmat.functional.toeplitz_system import ACCEPTED, TARGET, System, flatten, right_sides
from structmat.functional.two_solve import TwoSolve

__all__ = ["Found", "Superfast", "factor", "find"]

_EPS = torch.finfo(torch.float64).eps
_NEAR, _STEPS = 1e-5, 30  # backward error below which GMRES may finish a pair, and its steps
_CAUTION = 4.0  # two errors may differ by less than either


@dataclasses.dataclass(frozen=True)
class Found:
    """Of B matrices: the refined pairs, the larger backward error of each, phase and ``log|det|``, and the measured
    error of these two (inf where only one attempt was made); ``(B,)``."""

    pair: TwoSolve
    eta: torch.Tensor
    sign: torch.Tensor
    logabs: torch.Tensor
    error: torch.Tensor

    def trusted_determinant(self, system: System) -> tuple[torch.Tensor, torch.Tensor]:
        """Phase and log, NaN where the measured error is above ``100 n eps kappa``."""
        bad = ~(self.error <= _limit(system, self.pair))
        return self.sign.masked_fill(bad, torch.nan), self.logabs.masked_fill(bad, torch.nan)


def find(system: System, determinant: bool = False) -> Found:
    """Up to six attempts at each matrix of the system, O(n log^2 n) each; the best is kept, whatever its error.

    One attempt suffices for a pair in most cases; ``determinant`` asks for two that agree.
    """
    parts = [_one(system.take(torch.tensor([k])), determinant) for k in range(len(system.t))]
    if len(parts) == 1:
        return parts[0]
    pair = TwoSolve(torch.cat([p.pair.x for p in parts]), torch.cat([p.pair.z for p in parts]))
    columns = [torch.cat([getattr(p, name) for p in parts]) for name in ("eta", "sign", "logabs", "error")]
    return Found(pair, *columns)


def _one(system: System, determinant: bool) -> Found:
    t, best = system.t, None
    host = t[0].cpu().resolve_conj().numpy()
    seen: list[tuple[complex, float]] = []
    for number in range(len(ATTEMPTS)):
        rows, phase, logabs = attempt(host, number)
        x, z = torch.from_numpy(rows).to(t.device)[:, None].unbind(0)
        pair, eta = _finished(system, *improved(system, TwoSolve(x.contiguous(), z.contiguous())))
        gaps = [max(abs(logabs - log), abs(phase - other)) for other, log in seen]
        error = _CAUTION * min((g for g in gaps if g == g), default=math.inf)
        seen.append((phase, logabs))
        sign = phase if t.is_complex() else math.copysign(1.0, phase.real)
        new = Found(pair, eta, t.new_tensor([sign]), eta.new_tensor([logabs]), eta.new_tensor([error]))
        best = new if best is None else _better(best, new)
        if bool(best.eta <= ACCEPTED) and not (determinant and bool(best.error > _limit(system, best.pair))):
            return best
    assert best is not None
    return best


def _finished(system: System, pair: TwoSolve, eta: torch.Tensor) -> tuple[TwoSolve, torch.Tensor]:
    """Where refinement stops short, the error of the inverse is large in few directions: GMRES finds those."""
    if not ACCEPTED < float(eta) < _NEAR:
        return pair, eta
    start, right = torch.stack((pair.x, pair.z), -2), right_sides(system.t)
    outcome = gmres(system.multiply, pair.solve_rows, right, system.sigma, TARGET, _STEPS, start=start)
    x, z = outcome.x.unbind(-2)
    new, smaller = improved(system, TwoSolve(x.contiguous(), z.contiguous()))
    return (new, smaller) if bool(smaller < eta) else (pair, eta)


def _better(old: Found, new: Found) -> Found:
    """The pair of one and the determinant of one, each where its error is smaller (NaN is larger than all)."""
    pair = old if bool(old.eta <= new.eta) or bool(new.eta.isnan()) else new
    det = new if bool(new.error < old.error) else old
    return Found(pair.pair, pair.eta, det.sign, det.logabs, det.error)


def _limit(system: System, inverse: TwoSolve, steps: int = 4) -> torch.Tensor:
    """``100 n eps ||T|| ||T^-1||``, the last from below by power steps with ``T^-H T^-1`` from a fixed vector."""
    t, adjoint = system.t, inverse.adjoint()
    v = torch.cos(torch.arange(system.n, dtype=torch.float64, device=t.device) ** 2)  # no pattern that T shares
    v = v.to(t.dtype).expand(len(t), 1, system.n)
    norm = torch.ones(len(t), dtype=torch.float64, device=t.device)
    for _ in range(steps):
        w = inverse.solve_rows(v / torch.linalg.vector_norm(v, dim=-1, keepdim=True))
        norm = torch.linalg.vector_norm(w, dim=-1)[:, 0]
        v = adjoint.solve_rows(w)
    return 100 * system.n * _EPS * system.sigma * norm


@dataclasses.dataclass(frozen=True)
class Superfast:
    """The factorisation of one Toeplitz matrix or a batch: ``solve_rows``, ``adjoint``, ``slogdet``,
    ``backward_error``."""

    t: torch.Tensor
    found: Found
    adjointed: bool = False

    @property
    def backward_error(self) -> torch.Tensor:
        """The larger error of the two systems that define the inverse, ``(*batch)``."""
        return self.found.eta.reshape(self.t.shape[:-1])

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``T x = y`` (``T^H x = y`` for an adjoint) for each row; y ``(*batch, k, n)``. Refined while that
        gains."""
        if y.is_complex() and not self.t.is_complex():
            real, imag = self.solve_rows(torch.cat((y.real, y.imag), -2)).tensor_split(2, -2)
            return torch.complex(real, imag)
        t = self.t.flip(-1).conj().resolve_conj() if self.adjointed else self.t
        inverse = self.found.pair.adjoint() if self.adjointed else self.found.pair
        flat, rows, restore = flatten(t, y.to(torch.promote_types(y.dtype, t.dtype)))
        return restore(System(flat).refined(rows, inverse, TARGET)[0])

    def adjoint(self) -> "Superfast":
        """The solver of ``T^H``, out of the same pair."""
        return Superfast(self.t, self.found, not self.adjointed)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign (phase) and ``log|det|``, ``(*batch)``; NaN where two attempts differ by more than ``100 n eps kappa``.
        Where only one was made (``factor(t)``), more are made now."""
        flat = self.t.reshape(-1, self.t.shape[-1])
        system, found = System(flat), self.found
        if bool(found.error.isinf().any()):
            found = find(system, determinant=True)
        sign, logabs = (v.reshape(self.t.shape[:-1]) for v in found.trusted_determinant(system))
        return sign.conj().resolve_conj() if self.adjointed else sign, logabs


def factor(t: torch.Tensor, determinant: bool = False) -> Superfast:
    """The factorisation of the square Toeplitz matrices of t ``(*batch, 2n - 1)``, entry k at ``t[k + n - 1]``.

    The caller looks at ``backward_error``. ``determinant``: make the two attempts that ``slogdet`` needs at once.
    """
    wide = t.detach().to(torch.promote_types(t.dtype, torch.float64))
    return Superfast(wide, find(System(wide.reshape(-1, wide.shape[-1])), determinant))
