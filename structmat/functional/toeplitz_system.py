"""Square Toeplitz systems side by side: products, residuals, the backward error, refinement. Float64 or complex128, no
gradients here.

The backward error of a row is ``eta = ||b - T y|| / (sigma ||y|| + ||b||)``, sigma the largest modulus of the spectrum
of the circulant that T is embedded in, an upper bound of ``||T||_2``.
Source: J. L. Rigal and J. Gaches, On the compatibility of a given solution with the data of a linear system, 1967 (the
backward error); N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 12 (refinement).
"""

import math
from collections.abc import Callable

import numpy
import torch

from structmat.functional import fourier
from structmat.functional.implicit import Solver
from structmat.functional.levinson import second_right_side
from structmat.functional.toeplitz import toeplitz_geometry

__all__ = ["ACCEPTED", "TARGET", "System", "flatten", "generators", "right_sides"]

TARGET = 20 * torch.finfo(torch.float64).eps  # refinement goes on above this backward error, if it still gains
ACCEPTED = 100 * torch.finfo(torch.float64).eps  # what a solve promises

Restore = Callable[[torch.Tensor], torch.Tensor]


def flatten(t: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Restore]:
    """One batch axis: t ``(*bt, 2n - 1)`` and rows b ``(*bb, k, n)`` as ``(B, 2n - 1)``, ``(B, K, n)``, and the way
    back for rows. Batch axes that t does not have become rows: no matrix is factorised twice."""
    batch = torch.broadcast_shapes(t.shape[:-1], b.shape[:-2])
    mine = (1,) * (len(batch) - t.ndim + 1) + tuple(t.shape[:-1])
    axes = sorted(range(len(batch)), key=lambda i: mine[i] == 1)  # T's own axes first
    places = [axes.index(i) for i in range(len(batch))]
    shape = (*(batch[i] for i in axes), *b.shape[-2:])
    count, n = math.prod(mine), b.shape[-1]

    def restore(rows: torch.Tensor) -> torch.Tensor:
        """``(B, K, ...)`` as ``(*batch, k, ...)``."""
        tail = range(len(batch), len(batch) + rows.ndim - 1)
        return rows.reshape(*shape[:-1], *rows.shape[2:]).permute(*places, *tail).contiguous()

    rows = b.expand(*batch, *b.shape[-2:]).permute(*axes, -2, -1).reshape(count, -1, n)
    return t.reshape(count, t.shape[-1]), rows, restore


def right_sides(t: torch.Tensor) -> torch.Tensor:
    """The two systems that define the inverse: rows ``e_0`` and ``c``."""
    n = (t.shape[-1] + 1) // 2
    unit = torch.zeros(*t.shape[:-1], n, dtype=t.dtype, device=t.device)
    unit[..., 0] = 1
    return torch.stack((unit, second_right_side(t)), -2)


def generators(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """G and H ``(*b, n, 2)`` with ``Z_1 T - T Z_{-1} = G H^T``: ``G = [e_0, c]``, ``H = [row, e_{n-1}]``,
    ``row_j = t_{n-1-j} - t_{-1-j}``, t_{-n} := 0."""
    n = (t.shape[-1] + 1) // 2
    first, c = right_sides(t).unbind(-2)
    row = t[..., n - 1 :].flip(-1) - torch.cat((t[..., : n - 1].flip(-1), torch.zeros_like(t[..., :1])), -1)
    return torch.stack((first, c), -1), torch.stack((row, first.flip(-1)), -1)


def _largest(hat: torch.Tensor) -> torch.Tensor:
    """The largest modulus of each ``(B, 1, N)``; numpy's complex modulus takes a tenth of torch's time."""
    if hat.device.type == "cpu":
        return torch.from_numpy(numpy.abs(hat.detach().resolve_conj().numpy()).max((-2, -1)))
    return hat.abs().amax((-2, -1))


class System:
    """The matrices of t ``(B, 2n - 1)``: their spectra, formed once for all products."""

    def __init__(self, t: torch.Tensor) -> None:
        self.t, self.n = t, (t.shape[-1] + 1) // 2
        self.geometry = toeplitz_geometry(self.n, self.n)
        self.hat = fourier.spectrum(t, self.geometry)[..., None, :]
        self.sigma = _largest(self.hat)
        self.multiply = fourier.Multiplier(self.hat, self.geometry, not t.is_complex())

    def take(self, index: torch.Tensor | None) -> "System":
        """The systems of these numbers; all for None."""
        return self if index is None or len(index) == len(self.t) else System(self.t[index])

    def eta(self, y: torch.Tensor, b: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The backward error of rows ``(B, K, n)``, ``(B, K)``."""
        norm = torch.linalg.vector_norm
        gap = norm(b - self.multiply(y) if residual is None else residual, dim=-1)
        size = torch.addcmul(norm(b, dim=-1), self.sigma[:, None], norm(y, dim=-1))
        return gap / size.clamp_min(torch.finfo(size.dtype).tiny)

    def refined(
        self, b: torch.Tensor, solver: Solver, target: float, polish: bool = False, rounds: int = 4
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Solve and refine: rows y, their backward errors, corrections made. ``polish``: one correction in any case;
        a row keeps the better of two iterates."""
        y = solver.solve_rows(b)
        residual = b - self.multiply(y)
        eta = self.eta(y, b, residual)
        for k in range(rounds):
            if bool((eta <= target).all()) and not (polish and k == 0):
                return y, eta, k
            new = y + solver.solve_rows(residual)
            fresh = b - self.multiply(new)
            other = self.eta(new, b, fresh)
            better = (other < eta) | eta.isnan()
            if not bool(better.any()):
                return y, eta, k
            if bool(better.all()):
                y, residual, eta = new, fresh, other
            else:
                y, residual = (torch.where(better[..., None], u, v) for u, v in ((new, y), (fresh, residual)))
                eta = torch.where(better, other, eta)
        return y, eta, rounds
