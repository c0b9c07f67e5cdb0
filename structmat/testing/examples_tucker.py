"""Examples of matricised Tucker tensors: one to four modes, every kind of split, ranks from one to full."""

import torch

from structmat.matrix import Matrix
from structmat.testing import reference_tucker
from structmat.testing.example import Batch, Example, Factory, numbers
from structmat.types.tucker import Tucker
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = ["TUCKER"]

del reference_tucker  # imported so that its references are entered

Sizes = tuple[int, ...]


def _tucker(dims: Sizes, ranks: Sizes, rows: Sizes, shared: bool = False) -> Factory:
    """Factors over the root of their ranks; ``shared``: the batch is one of cores, the factors are the same."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        lead = () if shared else b
        core = numbers(g, d, *b, *ranks)
        factors = [numbers(g, d, *lead, size, r) / r**0.5 for size, r in zip(dims, ranks, strict=True)]
        return Tucker(core, tuple(factors)).matricize(rows)

    return make


TUCKER: tuple[Example, ...] = (
    Example("tucker-1x1", TuckerMatrix, _tucker((1, 1), (1, 1), (0,))),
    Example("tucker-5x4-two-modes", TuckerMatrix, _tucker((5, 4), (2, 2), (0,)), batches=((), (2,), (2, 1))),
    Example("tucker-4x6-conv-1d", TuckerMatrix, _tucker((4, 3, 2), (2, 3, 2), (0,))),
    Example("tucker-6x4-rows-swapped", TuckerMatrix, _tucker((3, 4, 2), (2, 3, 2), (2, 0))),
    Example("tucker-6x6-four-modes", TuckerMatrix, _tucker((3, 3, 2, 2), (2, 3, 1, 2), (1, 3))),
    Example("tucker-12x1-all-rows", TuckerMatrix, _tucker((4, 3), (2, 2), (1, 0))),
    Example("tucker-1x12-no-rows", TuckerMatrix, _tucker((4, 3), (2, 2), ())),
    Example("tucker-4x3-shared-factors", TuckerMatrix, _tucker((4, 3), (3, 3), (0,), shared=True)),
)
