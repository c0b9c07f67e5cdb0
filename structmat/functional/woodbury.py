"""Systems with ``A = B + U V^T`` out of solves with B and a small dense matrix, the capacitance matrix.

With ``H = B^-1 U`` and ``C = I + V^T H`` of order r,

    A^-1 y   = x - H C^-1 V^T x,   x = B^-1 y
    A^-H y   = B^-H (y - conj(V) C^-H H^H y)
    det A    = det B det C

Accuracy is that of B and of C: a large ``cond(C)`` loses digits that steps of refinement get back. Rows in, rows out.
Source: M. A. Woodbury, Inverting modified matrices, 1950; E. L. Yip, A note on the stability of solving a rank-p
modification of a linear system by the Sherman-Morrison-Woodbury formula, 1986.
"""

import torch

from structmat import backend

__all__ = ["balanced", "capacitance", "lift", "remove", "spread"]


def balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product from columns of equal size, ``||u_j|| = ||v_j||``: C is then neither over- nor underflowing by
    a choice of units. The factors are constants: they carry no gradient."""
    sizes = [torch.linalg.vector_norm(t.detach(), dim=-2, keepdim=True) for t in (left, right)]
    if backend.eager(*sizes) and _level(*sizes):
        return left, right
    usable = (sizes[0] > 0) & (sizes[1] > 0) & torch.isfinite(sizes[0]) & torch.isfinite(sizes[1])
    ratio = torch.where(usable, (sizes[1].log() - sizes[0].log()).div(2).exp(), torch.ones_like(sizes[0]))
    return left * ratio, right / ratio


def _level(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether the columns are of comparable size as they are (a copy of the factors costs as much as a solve)."""
    tiny = torch.finfo(left.dtype).tiny
    ratio = (left + tiny) / (right + tiny)
    return not ratio.numel() or (float(ratio.max()) < 1e3 and float(ratio.min()) > 1e-3)


def capacitance(half: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``C = I + V^T H`` for H and V ``(*batch, n, r)``."""
    eye = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    return eye + right.mT @ half


def remove(x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """Rows ``x - outer small^-1 inner^T x``, small dense and factorised here; differentiable, no values read."""
    weights = (x @ inner).mT
    weights = weights[(None,) * max(0, small.ndim - weights.ndim)]  # (2, 2) beside a batch of two is no pair of vectors
    return x - torch.linalg.solve_ex(small, weights)[0].mT @ outer.mT


def lift(entries: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which entries of ``diag(d) + U V^T`` are too small to be divided by, and what to add to them: indices and shifts
    ``(*batch, k)``, or None. Reads values.

    An entry is small beside its row ``||u_i|| ||v_i||``. If there are more than r of them (noise that is small
    everywhere), no few additions help, and None is returned.
    """
    if left.numel() == 0 or entries.numel() == 0:
        return None
    root = torch.finfo(left.dtype).eps ** 0.5
    most = float(torch.linalg.vector_norm(left, torch.inf) * torch.linalg.vector_norm(right, torch.inf))
    if float(entries.abs().min()) > root * left.shape[-1] * most:
        return None
    weight = torch.linalg.vector_norm(left, dim=-1) * torch.linalg.vector_norm(right, dim=-1)
    size, weight = torch.broadcast_tensors(entries.abs(), weight)
    small = size <= weight.clamp_min(torch.finfo(weight.dtype).tiny) * root
    count = int(small.sum(-1).max()) if small.numel() else 0
    if count == 0 or count > left.shape[-1]:
        return None
    chosen = torch.topk(torch.where(small, -1.0, size / weight), count, dim=-1, largest=False).indices
    picked = torch.gather(entries.expand(size.shape), -1, chosen)
    phase = torch.where(picked == 0, torch.ones_like(picked), torch.sgn(picked))
    found = torch.gather(weight, -1, chosen)
    return chosen, phase * torch.where(found > 0, found, torch.ones_like(found))


def spread(chosen: torch.Tensor, values: torch.Tensor, n: int) -> torch.Tensor:
    """Columns ``values_j e_{chosen_j}``: ``(*batch, n, k)``."""
    zeros = torch.zeros(*chosen.shape, n, dtype=values.dtype, device=values.device)
    return zeros.scatter(-1, chosen[..., None], values[..., None]).mT
