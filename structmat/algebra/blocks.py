"""Entrywise products of a block-diagonal matrix with every type: only the diagonal blocks of the other survive."""

import torch

from structmat.dispatch import lookup, rule
from structmat.lazy import Scaled
from structmat.matrix import Matrix
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.triangular import Triangular
from structmat.types.zero import Zero

__all__: list[str] = []


def _cut(a: BlockDiagonal, b: Matrix) -> Matrix:
    """BlockDiagonal: the blocks of the other at these places are formed, p q numbers each."""
    k, p, q = (int(s) for s in a.blocks.shape[-3:])
    parts = [b[..., i * p : (i + 1) * p, i * q : (i + 1) * q].to_dense() for i in range(k)]
    return BlockDiagonal(a.blocks * torch.stack(parts, -3)) if parts else a


def _both_ways(kind: type[Matrix]) -> None:
    @rule("hadamard", BlockDiagonal, kind)
    def first(a: BlockDiagonal, b: Matrix) -> Matrix:
        return _cut(a, b)

    @rule("hadamard", kind, BlockDiagonal)
    def last(a: Matrix, b: BlockDiagonal) -> Matrix:
        return _cut(b, a)

    first.__doc__ = last.__doc__ = _cut.__doc__


for _kind in (Matrix, Dense, Triangular):  # the last two have rules with every matrix, so they need one of their own
    _both_ways(_kind)


def _decided(kind: type[Matrix]) -> None:
    """A type that decides entrywise products with every matrix decides these, too."""

    @rule("hadamard", BlockDiagonal, kind)
    def first(a: Matrix, b: Matrix) -> Matrix:
        """As with every matrix."""
        result: Matrix = lookup("hadamard", Matrix, kind)(a, b)  # type: ignore[misc]
        return result

    @rule("hadamard", kind, BlockDiagonal)
    def last(a: Matrix, b: Matrix) -> Matrix:
        """As with every matrix."""
        result: Matrix = lookup("hadamard", kind, Matrix)(a, b)  # type: ignore[misc]
        return result


for _decider in (Zero, Scaled, Identity, Diagonal):
    _decided(_decider)
