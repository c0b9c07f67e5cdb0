"""Examples of the orthogonal types that are not Householder products."""

import torch

from structmat.matrix import Matrix
from structmat.testing import reference_orthogonal
from structmat.testing.example import Batch, Example, Factory
from structmat.types.givens import GivensProduct, round_robin

__all__ = ["ORTHOGONAL"]

del reference_orthogonal  # imported so that its references are entered

_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CHAIN = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 1), (4, 0))


def _givens(planes: tuple[tuple[int, int], ...], n: int) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        angles = 2 * torch.randn(*b, len(planes), generator=g, dtype=torch.float64)
        return GivensProduct(angles.to(d), planes, n)

    return make


ORTHOGONAL: tuple[Example, ...] = (
    Example("givens-1-none", GivensProduct, _givens((), 1), dtypes=_REAL, solvable=True),
    Example("givens-4-none", GivensProduct, _givens((), 4), dtypes=_REAL, solvable=True),
    Example(
        "givens-5-chain", GivensProduct, _givens(_CHAIN, 5), dtypes=_REAL, solvable=True, batches=((), (2,), (3, 1))
    ),
    Example("givens-6-all-planes", GivensProduct, _givens(round_robin(6), 6), dtypes=_REAL, solvable=True),
)
