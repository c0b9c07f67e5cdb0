"""Rules around Woodbury's identity: which entries of a diagonal may not be divided by."""

import torch

from structmat.dispatch import rule
from structmat.functional import woodbury as fw
from structmat.matrix import Matrix
from structmat.types.diagonal import Diagonal

__all__: list[str] = []


@rule("lifted", Diagonal)
def _lifted(a: Diagonal, left: torch.Tensor, right: torch.Tensor) -> tuple[Matrix, torch.Tensor, torch.Tensor]:
    """``diag(d) + U V^T`` with entries near zero made as large as their row, and taken off again by more columns."""
    found = fw.lift(a.entries.detach(), left.detach(), right.detach())
    if found is None:
        return a, left, right
    chosen, shift = found
    n = int(a.entries.shape[-1])
    columns = fw.spread(chosen, shift, n).to(left.dtype)
    units = fw.spread(chosen, torch.ones_like(shift), n).to(left.dtype)
    base = Diagonal(a.entries + columns.sum(-1).to(a.entries.dtype))
    beside = [(left, -columns), (right, units)]
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2], columns.shape[:-2])
    both = [torch.cat([t.expand(*lead, *t.shape[-2:]) for t in pair], -1) for pair in beside]
    return base, both[0], both[1]
