"""Rules between butterflies and other types, and between the two kinds of butterfly."""

import torch

from structmat.claims import Claim
from structmat.dispatch import lookup, rule
from structmat.functional import butterfly as fb
from structmat.matrix import Matrix
from structmat.types.butterfly import Butterfly
from structmat.types.diagonal import Diagonal
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__: list[str] = []


@rule("butterfly", OrthogonalButterfly)
def _rotations(a: OrthogonalButterfly) -> Matrix:
    """Butterfly: its rotations as blocks."""
    digits, axes = a._parts()
    blocks = tuple(w.to(a.skew.dtype) for w in a._blocks())
    return Butterfly(blocks, digits, axes).assume(Claim.ORTHOGONAL)


@rule("matmul", Butterfly, Diagonal)
def _scaled_columns(a: Butterfly, b: Diagonal) -> Matrix:
    """Butterfly: the entries go into the blocks of the first factor; lazy beside a tail."""
    if a.tail:
        return _lazily(a, b)
    step, (first, *others) = a._chain.steps[0], a.blocks
    return _with(a, (first * _spread(b.entries, step, step.before)[..., None, :], *others))


@rule("matmul", Diagonal, Butterfly)
def _scaled_rows(a: Diagonal, b: Butterfly) -> Matrix:
    """Butterfly: the entries go into the blocks of the last factor; lazy beside a tail."""
    if b.tail:
        return _lazily(a, b)
    step, (*others, last) = b._chain.steps[-1], b.blocks
    entries = a.entries
    if b.order is not None:  # entry by entry of the written digits; back to the order of the factors
        place = tuple(b.order.index(k) for k in range(len(b.order)))
        lead = entries.ndim - 1
        wide = entries.reshape(*entries.shape[:-1], *b.output_digits)
        entries = wide.permute(*range(lead), *(lead + k for k in place)).reshape(entries.shape)
    return _with(b, (*others, last * _spread(entries, step, step.after)[..., :, None]))


def _lazily(a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup("matmul", Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


def _spread(entries: torch.Tensor, step: fb.Step, digits: fb.Digits) -> torch.Tensor:
    """A vector ``(*b, n)`` as ``(*b, rest, p)`` of one factor."""
    lead = entries.ndim - 1
    wide = entries.reshape(*entries.shape[:-1], *digits)
    moved = wide.permute(*range(lead), *(lead + k for k in (*step.others, *step.axes)))
    return moved.reshape(*entries.shape[:-1], step.rest, -1)


def _with(a: Butterfly, blocks: tuple[torch.Tensor, ...]) -> Matrix:
    common = blocks[0].dtype
    for w in blocks[1:]:
        common = torch.promote_types(common, w.dtype)
    return Butterfly(tuple(w.to(common) for w in blocks), a.digits, a.axes, a.order)
