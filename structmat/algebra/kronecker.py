"""The verb kron of any two matrices: their Kronecker product, flat; and the entries of its dense factors."""

import torch

from structmat.dispatch import rule
from structmat.matrix import Matrix
from structmat.types.dense import Dense
from structmat.types.kronecker import Kronecker

__all__: list[str] = []


@rule("kron", Matrix, Matrix)
def _kron(a: Matrix, b: Matrix) -> Matrix:
    """Kronecker: the factors side by side."""
    left = a.factors if isinstance(a, Kronecker) and not a._assumed else (a,)
    right = b.factors if isinstance(b, Kronecker) and not b._assumed else (b,)
    return Kronecker((*left, *right))


@rule("entries", Dense)
def _dense_entries(a: Dense) -> torch.Tensor:
    """Tensor: the entries as they are stored."""
    return a.entries
