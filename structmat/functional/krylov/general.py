"""Generalised minimum residuals for any square matrix, restarted, on rows, preconditioned from the right.

Right preconditioning solves ``(A M) u = b, x = M u``, so the residual that is minimised is the true one.
Source: Y. Saad and M. Schultz, GMRES, 1986; Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., 2003,
algorithm 9.5. Orthogonalisation is classical Gram-Schmidt, done twice (L. Giraud, J. Langou, M. Rozloznik, J. van den
Eshof, Rounding error analysis of the classical Gram-Schmidt orthogonalization process, 2005).
"""

import dataclasses

import torch

from structmat.functional.krylov.common import (
    CONFIRMED,
    Apply,
    Callback,
    Outcome,
    begin,
    lift,
    nonzero,
    quotient,
    sizes,
    tell,
)

__all__ = ["gmres", "restart_length"]

_NUMBERS, _MORE = 2**22, 2**25  # the basis: up to 400 vectors in so many numbers, up to 100 in so many, never below 20
_STALLED = 0.999  # a whole cycle that gains less than this factor ends the run


def restart_length(rows: int, n: int) -> int:
    """How many vectors a cycle keeps: 400 while they are 2^22 numbers or less, 100 while they are 2^25 or less, at
    least 20, never more than n."""
    each = max(1, rows * n)
    return max(1, min(n, max(20, min(100, _MORE // each), min(400, _NUMBERS // each))))


def gmres(
    multiply: Apply,
    precondition: Apply,
    b: torch.Tensor,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callback | None = None,
    restart: int | None = None,
) -> Outcome:
    """Rows x with ``A x = b``; b ``(..., k, n)``, sigma a bound of ``||A||_2``.

    Stops a row when ``||r|| <= target (sigma ||x|| + ||b||)``: within a cycle by the minimised residual and the x the
    cycle began with, after it by the measured residual. Ends, not converged, when a whole cycle gains nothing.
    ``restart``: vectors kept, see ``restart_length``. Cost: a product, a preconditioner and ``4 j n`` multiplications
    in step j of a cycle; ``restart + 1`` vectors a row.
    """
    norm = torch.linalg.vector_norm
    size = norm(b, dim=-1, keepdim=True)
    x, r = begin(multiply, b, start)
    bound = lift(sigma)
    width = restart or restart_length(b.numel() // max(1, b.shape[-1]), b.shape[-1])
    steps, stalled = 0, False
    while True:
        scale, length = sizes(size, bound, x), norm(r, dim=-1, keepdim=True)
        live = ~(length <= target * scale)
        if steps >= max_steps or stalled or not bool(live.any()):
            break
        cycle = _Cycle.of(r, length, live, min(width, max_steps - steps))
        while cycle.more():
            cycle.step(multiply, precondition, target * scale)
            tell(callback, steps + cycle.done, cycle.residual, scale)
        x_new = x + precondition(cycle.correction())
        r_new = b - multiply(x_new)
        length_new = norm(r_new, dim=-1, keepdim=True)
        better = live & (length_new < length)
        x, r = torch.where(better, x_new, x), torch.where(better, r_new, r)
        stalled = not bool((live & (length_new < _STALLED * length)).any())
        steps += cycle.done
    return Outcome(x, steps, bool((length <= CONFIRMED * target * scale).all()), quotient(length, scale))


@dataclasses.dataclass
class _Cycle:
    """One cycle: the basis, the triangular factor, and the accumulated rotations that made it triangular."""

    basis: torch.Tensor  # (..., k, width + 1, n), orthonormal
    upper: torch.Tensor  # (..., k, width, width)
    turned: torch.Tensor  # (..., k, width + 1, width + 1): all rotations so far, multiplied
    right: torch.Tensor  # (..., k, width): what the triangular factor is solved with
    residual: torch.Tensor  # (..., k, 1): the minimised residual
    last: torch.Tensor  # (..., k): the entry that becomes the residual, with its phase
    live: torch.Tensor  # (..., k): rows that are still extended
    done: int = 0

    @classmethod
    def of(cls, r: torch.Tensor, length: torch.Tensor, live: torch.Tensor, width: int) -> "_Cycle":
        lead = r.shape[:-1]
        basis = r.new_zeros(*lead, width + 1, r.shape[-1])
        basis[..., 0, :] = r / nonzero(length)
        turned = torch.eye(width + 1, dtype=r.dtype, device=r.device).expand(*lead, -1, -1).clone()
        upper, right = r.new_zeros(*lead, width, width), r.new_zeros(*lead, width)
        return cls(basis, upper, turned, right, length, length[..., 0].to(r.dtype), live[..., 0])

    def more(self) -> bool:
        return self.done < self.upper.shape[-1] and bool(self.live.any())

    def step(self, multiply: Apply, precondition: Apply, allowed: torch.Tensor) -> None:
        """One more vector of the basis, and one rotation. A row that is finished gets a column of the identity and a
        right side of zero, so that it adds nothing."""
        j = self.done
        w, h = _orthogonal(multiply(precondition(self.basis[..., j, :])), self.basis[..., : j + 1, :])
        below = h[..., j + 1].real
        column = (self.turned[..., : j + 1, : j + 1] @ h[..., : j + 1, None])[..., 0]
        pivot = column[..., j]
        radius = torch.hypot(pivot.abs(), below)
        live = self.live & (radius > 0)
        c, s = pivot.conj() / nonzero(radius), (below / nonzero(radius)).to(pivot.dtype)
        self.upper[..., :j, j] = torch.where(live[..., None], column[..., :j], 0)
        self.upper[..., j, j] = torch.where(live, radius, 1).to(pivot.dtype)
        self.right[..., j] = torch.where(live, c * self.last, 0)
        self.last = torch.where(live, -s * self.last, self.last)
        self.residual = self.last.abs()[..., None]
        row = self.turned[..., j, :].clone()
        self.turned[..., j, :] = c[..., None] * row
        self.turned[..., j, j + 1] += s
        self.turned[..., j + 1, :] = -s[..., None] * row
        self.turned[..., j + 1, j + 1] += c.conj()
        self.basis[..., j + 1, :] = w
        self.live = live & ~(self.residual <= allowed)[..., 0]
        self.done = j + 1

    def correction(self) -> torch.Tensor:
        """What the cycle adds to u, ``(..., k, n)``."""
        j = self.done
        y = torch.linalg.solve_triangular(self.upper[..., :j, :j], self.right[..., :j, None], upper=True)
        return (y.mT @ self.basis[..., :j, :])[..., 0, :]


def _orthogonal(w: torch.Tensor, have: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w made orthogonal to the rows ``have`` and normalised (zero where nothing is left), and its coefficients: those
    along ``have`` and the length of what remained."""
    whole = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    total = torch.zeros_like(have[..., 0])
    for _ in range(2):
        h = (have.conj() @ w[..., None])[..., 0]
        w = w - (h[..., None, :] @ have)[..., 0, :]
        total = total + h
    rest = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    rest = torch.where(rest > torch.finfo(rest.dtype).eps * whole, rest, 0)
    w = torch.where(rest > 0, w / nonzero(rest), 0)
    return w, torch.cat((total, rest.to(total.dtype)), -1)
