"""The verb kron of any two matrices: their Kronecker product, flat; and how a dense factor is applied in one."""

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


@rule("left_product", Dense)
def _dense_left(a: Dense, z: torch.Tensor) -> torch.Tensor:
    """Tensor: ``A z`` for z ``(..., n, k)``, by the entries; a product that needs no rows, so nothing is transposed."""
    common = torch.promote_types(a.entries.dtype, z.dtype)
    return torch.matmul(a.entries.to(common), z.to(common))
