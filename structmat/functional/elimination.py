"""LU factorisation with partial pivoting of Cauchy-like matrices, in panels, for a whole batch at once.

``C_ij = g_i . h_j / (x_i - y_j)``: rows may be exchanged without loss of structure, so elimination pivots. The columns
of a panel are formed from the generators and factored densely; the Schur complement of what lies behind the panel is
Cauchy-like again, with the generators

    G_2 <- G_2 - L_21 L_11^-1 G_1,      H_2 <- H_2 - U_12^T U_11^-T H_1

(the step of Gohberg, Kailath and Olshevsky, applied to a panel). Before each panel ``G = Q R`` is replaced by Q, and H
by ``H R^T`` (Gu's step): the generators are then never larger than the displacement they stand for.

Cost: ``2 n^2 (b / 2 + r)`` multiply-adds and ``n^2`` quotients for panels of b columns; storage of ``n^2`` entries. A
pivot that is exactly zero gives inf or NaN in solutions. No gradients here.

Sources: I. Gohberg, T. Kailath, V. Olshevsky, Fast Gaussian elimination with partial pivoting for matrices with
displacement structure, Math. Comp. 64, 1995, section 3; M. Gu, Stable and efficient algorithms for structured systems
of linear equations, SIAM J. Matrix Anal. Appl. 19, 1998, section 3.
"""

import dataclasses
from typing import Any, Protocol

import numpy
import torch

__all__ = ["Entries", "Factors", "eliminate"]


class Entries(Protocol):
    """The quotients of a Cauchy-like matrix."""

    def block(self, left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, start: int) -> torch.Tensor:
        """``g_i . h_j / (x_i - y_j)`` as ``(B, p, q)``: left ``(B, p, r)`` are the generators of the rows numbered in
        rows ``(B, p)``, right ``(B, q, r)`` those of the columns from ``start`` on."""


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One panel: the order it puts the remaining rows in, its part of L (and of U on top), and U to its right."""

    order: torch.Tensor  # (B, m)
    lower: torch.Tensor  # (B, m, w), the triangle of U on top of it
    upper: torch.Tensor  # (B, w, m - w)


class Factors:
    """``P C = L U`` by panels: solves, the determinant, and how much the generators grew.

    ``growth (B,)``: the largest ``||G||_F ||H||_F`` of any Schur complement over ``sqrt(r) ||G H^T||_F`` of C.
    """

    def __init__(self, panels: list[_Panel], pivots: torch.Tensor, odd: torch.Tensor, growth: torch.Tensor) -> None:
        self._panels, self._pivots, self._odd, self.growth = panels, pivots, odd, growth

    def solve(self, b: torch.Tensor) -> torch.Tensor:
        """``C^-1 b`` for b ``(B, n, k)``."""
        rest, done = b, []
        for panel in self._panels:
            rest = _rows(rest, panel.order)
            w = panel.lower.shape[-1]
            corner = panel.lower[:, :w]
            top = torch.linalg.solve_triangular(corner, rest[:, :w], upper=False, unitriangular=True)
            rest = torch.baddbmm(rest[:, w:], panel.lower[:, w:], top, alpha=-1)
            done.append(top)
        x = rest  # empty
        for panel, top in zip(reversed(self._panels), reversed(done), strict=True):
            w = panel.lower.shape[-1]
            right = torch.baddbmm(top, panel.upper, x, alpha=-1)
            x = torch.cat((torch.linalg.solve_triangular(panel.lower[:, :w], right, upper=True), x), 1)
        return x

    def solve_adjoint(self, b: torch.Tensor) -> torch.Tensor:
        """``C^-H b`` for b ``(B, n, k)``: ``U^H`` from the top, ``L^H`` from the bottom, then the rows go back."""
        rest, done = b, []
        for panel in self._panels:
            w = panel.lower.shape[-1]
            top = torch.linalg.solve_triangular(panel.lower[:, :w].mH, rest[:, :w], upper=False)
            rest = torch.baddbmm(rest[:, w:], panel.upper.mH, top, alpha=-1)
            done.append(top)
        x = rest
        for panel, top in zip(reversed(self._panels), reversed(done), strict=True):
            w = panel.lower.shape[-1]
            right = torch.baddbmm(top, panel.lower[:, w:].mH, x, alpha=-1)
            corner = panel.lower[:, :w].mH
            ordered = torch.cat((torch.linalg.solve_triangular(corner, right, upper=True, unitriangular=True), x), 1)
            x = torch.empty_like(ordered).scatter_(1, panel.order[..., None].expand(ordered.shape), ordered)
        return x

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign (phase) and log modulus of ``det C``, each ``(B,)``; an exactly zero pivot gives 0 and -inf."""
        size = self._pivots.abs()
        phase = torch.sgn(self._pivots).prod(1)
        sign, logabs = torch.where(self._odd, -phase, phase), torch.log(size).sum(1)
        singular = (size == 0).any(1)
        return torch.where(singular, torch.zeros_like(sign), sign), torch.where(singular, -torch.inf, logabs)


def eliminate(left: torch.Tensor, right: torch.Tensor, entries: Entries) -> Factors:
    """The factors of the matrix with generators left, right ``(B, n, r)``, by partial pivoting in its own order."""
    count, n = left.shape[:2]
    width = 64 if n <= 1024 else 32
    rows = torch.arange(n, device=left.device).expand(count, n)
    panels, pivots = [], [left.new_empty(count, 0)]
    odd = torch.zeros(count, dtype=torch.bool, device=left.device)
    growth = left.new_zeros(count, dtype=left.real.dtype)
    first = growth
    for start in range(0, n, width):
        size = torch.linalg.vector_norm(left, dim=(1, 2)) * torch.linalg.vector_norm(right, dim=(1, 2))
        scale = left.shape[-1] ** -0.5
        left, triangle = torch.linalg.qr(left)
        right = right @ triangle.mT
        first = torch.linalg.vector_norm(right, dim=(1, 2)) if start == 0 else first
        growth = torch.maximum(growth, size * scale / first)
        w = min(width, n - start)
        lower, swaps, _ = torch.linalg.lu_factor_ex(entries.block(left, right[:, :w], rows, start))
        order, moved = _order(swaps, n - start)
        odd = odd ^ moved
        rows, left = torch.gather(rows, 1, order), _rows(left, order)
        corner, behind = lower[:, :w], right[:, w:]
        pivots.append(torch.diagonal(corner, dim1=1, dim2=2))
        upper = entries.block(left[:, :w], behind, rows[:, :w], start + w)
        if w < n - start:
            upper = torch.linalg.solve_triangular(corner, upper, upper=False, unitriangular=True)
            over = torch.linalg.solve_triangular(corner.mT, right[:, :w], upper=False)
            right = torch.baddbmm(behind, upper.mT, over, alpha=-1)
            beside = torch.linalg.solve_triangular(corner, left[:, :w], upper=False, unitriangular=True)
            left = torch.baddbmm(left[:, w:], lower[:, w:], beside, alpha=-1)
            rows = rows[:, w:]
        panels.append(_Panel(order, lower, upper))
    return Factors(panels, torch.cat(pivots, 1), odd, growth)


def _rows(t: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The rows of t ``(B, n, k)`` in the given order ``(B, n)``."""
    if t.shape[0] == 1:
        return t.index_select(1, order[0])
    return torch.gather(t, 1, order[..., None].expand(t.shape))


def _order(swaps: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LAPACK's row exchanges (counted from 1) as an order of the rows ``(B, size)``, and whether they are odd."""
    host: Any = swaps.cpu().numpy() - 1
    count, steps = host.shape
    odd = (host != numpy.arange(steps)).sum(1) % 2 == 1
    order = numpy.tile(numpy.arange(size), (count, 1))
    if count == 1:
        line = order[0].tolist()
        for step, other in enumerate(host[0].tolist()):
            line[step], line[other] = line[other], line[step]
        order[0] = line
    else:
        every = numpy.arange(count)
        for step in range(steps):
            other = host[:, step]
            kept = order[every, other]
            order[every, other] = order[:, step]
            order[:, step] = kept
    return torch.from_numpy(order).to(swaps.device), torch.from_numpy(odd).to(swaps.device)
