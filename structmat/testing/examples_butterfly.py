"""Examples of butterflies: one factor and many, joint digits, rectangular and shared blocks, a tail, an order."""

import math

import torch

from structmat import backend
from structmat.matrix import Matrix
from structmat.testing import reference_butterfly
from structmat.testing.example import WIDE, Batch, Example, Factory, numbers
from structmat.types.butterfly import Butterfly
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__ = ["BUTTERFLIES"]

del reference_butterfly  # imported so that its references are entered

Shapes = tuple[tuple[int, int, int], ...]
_Axes = tuple[tuple[int, ...], ...]


def _butterfly(
    shapes: Shapes, digits: tuple[int, ...], axes: _Axes, order: tuple[int, ...] | None = None, tail: int = 0
) -> Factory:
    """Blocks near multiples of the identity, so that square ones are well conditioned."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        blocks = []
        for rest, q, p in shapes:
            noise = numbers(g, d, *b, rest, q, p) / (3 * math.sqrt(p))
            blocks.append(noise + torch.eye(q, p, dtype=d))
        return Butterfly(tuple(blocks), digits, axes, order, tail)

    return make


def _skew(d: int, block: int, factors: int, reverse: bool = False) -> Factory:
    def make(g: torch.Generator, dtype: torch.dtype, b: Batch) -> Matrix:
        skew = numbers(g, dtype, *b, factors, d // block, block * (block - 1) // 2)
        return OrthogonalButterfly(skew, reverse)

    return make


def _mixed() -> tuple[Example, ...]:
    three = ((2, 2, 2),) * 3
    kind = Butterfly
    return (
        Example("butterfly-1", kind, _butterfly(((1, 1, 1),), (1,), ((0,),)), solvable=True),
        Example("butterfly-6-one-block", kind, _butterfly(((2, 3, 3),), (2, 3), ((1,),)), solvable=True),
        Example(
            "butterfly-8",
            kind,
            _butterfly(((4, 2, 2),) * 3, (2, 2, 2), ((2,), (1,), (0,))),
            solvable=True,
            batches=((), (2,), (3, 1)),
        ),
        Example("butterfly-8-there-and-back", kind, _butterfly(((4, 2, 2),) * 4, (2, 2, 2), ((2,), (0,), (0,), (1,)))),
        Example("butterfly-12-joint", kind, _butterfly(((3, 4, 4), (2, 6, 6)), (2, 2, 3), ((1, 0), (0, 2)))),
        Example("butterfly-monarch-6x12", kind, _butterfly(((2, 4, 3), (4, 3, 2)), (2, 3), ((1,), (0,)))),
        Example("butterfly-12x6-joint", kind, _butterfly(((3, 2, 4), (1, 6, 6)), (2, 2, 3), ((1, 0), (0, 2, 1)))),
        Example(
            "butterfly-12-reordered",
            kind,
            _butterfly(((6, 2, 2), (4, 3, 3), (6, 2, 2)), (2, 3, 2), ((0,), (1,), (2,)), (2, 0, 1)),
            solvable=True,
        ),
        Example(
            "butterfly-8-shared", kind, _butterfly(((1, 2, 2), (4, 2, 2), (1, 2, 2)), (2, 2, 2), ((0,), (1,), (2,)))
        ),
        Example("butterfly-9-tail", kind, _butterfly(three, (2, 2), ((0,), (1,), (0,)), None, 5), solvable=True),
        Example(
            "butterfly-dft-12",
            kind,
            lambda g, d, b: Butterfly.dft(12, backend.complex_of(d)),
            dtypes=(torch.complex128, torch.complex64),
            batches=((),),
            solvable=True,
            smooth=False,  # its singular values are equal
        ),
        Example(
            "butterfly-hadamard-8",
            kind,
            lambda g, d, b: Butterfly.hadamard(8, dtype=d),
            batches=((),),
            smooth=False,
        ),
    )


def _orthogonal() -> tuple[Example, ...]:
    kind = OrthogonalButterfly
    return (
        Example("orthogonal-butterfly-3-b1", kind, _skew(3, 1, 1), solvable=True),
        Example("orthogonal-butterfly-9-b3", kind, _skew(9, 3, 1), solvable=True),
        Example("orthogonal-butterfly-8-b2-m3", kind, _skew(8, 2, 3), solvable=True, batches=((), (2,), (3, 1))),
        Example("orthogonal-butterfly-16-b4-m2", kind, _skew(16, 4, 2), solvable=True),
        Example("orthogonal-butterfly-24-b6-m3", kind, _skew(24, 6, 3), dtypes=WIDE, solvable=True),
        Example("orthogonal-butterfly-8-b4-reverse", kind, _skew(8, 4, 2, reverse=True), solvable=True),
    )


BUTTERFLIES: tuple[Example, ...] = (*_mixed(), *_orthogonal())
