"""Rules of Cauchy-like matrices with diagonal ones."""

import torch

from structmat import dispatch
from structmat.matrix import Matrix
from structmat.types.cauchy import CauchyLike
from structmat.types.diagonal import Diagonal

__all__: list[str] = []


@dispatch.rule("matmul", Diagonal, CauchyLike)
def _diagonal_first(a: Diagonal, b: CauchyLike) -> Matrix:
    """Cauchy-like: the rows of left are scaled."""
    return _of(a.entries[..., :, None] * b.left, b.right, b)


@dispatch.rule("matmul", CauchyLike, Diagonal)
def _diagonal_last(a: CauchyLike, b: Diagonal) -> Matrix:
    """Cauchy-like: the rows of right are scaled."""
    return _of(a.left, b.entries[..., :, None] * a.right, a)


def _of(left: torch.Tensor, right: torch.Tensor, like: CauchyLike) -> Matrix:
    dtype = torch.promote_types(left.dtype, right.dtype)
    return CauchyLike(*(t.to(dtype) for t in (left, right, like.row_nodes, like.column_nodes)))
