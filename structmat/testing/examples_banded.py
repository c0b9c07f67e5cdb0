"""Examples of banded, triangular and block matrices, and of sums that are solved by Woodbury's identity."""

import torch

from structmat.lazy import Sum
from structmat.matrix import Matrix
from structmat.testing import reference_banded
from structmat.testing.example import Batch, Example, Factory, numbers
from structmat.types.banded import Banded
from structmat.types.block import Block
from structmat.types.circulant import Circulant
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank
from structmat.types.triangular import Triangular
from structmat.types.zero import Zero

__all__ = ["BANDED"]

del reference_banded  # imported so that its references are entered


def _banded(n: int, lower: int, upper: int) -> Factory:
    """A diagonal that dominates; the corners that are never read hold numbers, too."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        w = lower + upper + 1
        bands = numbers(g, d, *b, w, n)
        return Banded(bands + 2 * w * torch.nn.functional.one_hot(torch.tensor(upper), w)[:, None].to(d), upper)

    return make


def _triangular(n: int, upper: bool, unit: bool = False) -> Factory:
    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        return Triangular(numbers(g, d, *b, n, n) / n + 2 * torch.eye(n, dtype=d), upper, unit)

    return make


def _updated(n: int, r: int) -> Factory:
    """``D + U V^T`` with a diagonal that dominates."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        entries = (3 + torch.rand(*b, n, generator=g, dtype=torch.float64)).to(d)
        left, right = (numbers(g, d, *b, n, r) / n**0.5 for _ in range(2))
        return Sum((Diagonal(entries), LowRank(left, right)))

    return make


def _circulant(n: int) -> Factory:
    first = torch.nn.functional.one_hot(torch.tensor(0), n)
    return lambda g, d, b: Circulant(numbers(g, d, *b, n) / n**0.5 + 3 * first.to(d))


def _low_rank(m: int, n: int) -> Factory:
    return lambda g, d, b: LowRank(numbers(g, d, *b, m, 1), numbers(g, d, n, 1))


def _zero(m: int, n: int) -> Factory:
    return lambda g, d, b: Zero(m, n)


def _identity(n: int) -> Factory:
    return lambda g, d, b: Identity(n)


def _reflections(n: int) -> Factory:
    return lambda g, d, b: HouseholderProduct(numbers(g, d, *b, 2, n))


def _grid(*rows: tuple[Factory, ...]) -> Factory:
    return lambda g, d, b: Block(tuple(tuple(part(g, d, b) for part in row) for row in rows))


BANDED: tuple[Example, ...] = (
    Example("banded-1", Banded, _banded(1, 0, 0), solvable=True),
    Example("banded-6-tridiagonal", Banded, _banded(6, 1, 1), batches=((), (2,), (3, 1)), solvable=True),
    Example("banded-7-l2-u1", Banded, _banded(7, 2, 1), solvable=True),
    Example("banded-5-upper", Banded, _banded(5, 0, 2), solvable=True),
    Example("banded-3-wider-than-itself", Banded, _banded(3, 4, 3), solvable=True),
    Example("triangular-1", Triangular, _triangular(1, False), solvable=True),
    Example("triangular-5-lower", Triangular, _triangular(5, False), batches=((), (2,), (3, 1)), solvable=True),
    Example("triangular-4-upper", Triangular, _triangular(4, True), solvable=True),
    Example("triangular-5-unit", Triangular, _triangular(5, True, True), solvable=True),
    Example("block-3x5", Block, _grid((_low_rank(1, 4), _low_rank(1, 1)), (_low_rank(2, 4), _zero(2, 1)))),
    Example("block-6-full", Block, _grid((_circulant(4), _low_rank(4, 2)), (_low_rank(2, 4), _identity(2)))),
    Example(
        "block-7-upper",
        Block,
        _grid((_banded(3, 1, 1), _low_rank(3, 4)), (_zero(4, 3), _circulant(4))),
        batches=((), (2,), (2, 1)),
        solvable=True,
    ),
    Example(
        "block-5-lower", Block, _grid((_identity(2), _zero(2, 3)), (_low_rank(3, 2), _circulant(3))), solvable=True
    ),
    Example(
        "block-6-orthogonal", Block, _grid((_reflections(4), _zero(4, 2)), (_zero(2, 4), _identity(2))), solvable=True
    ),
    Example("block-1x1-of-3", Block, _grid((_circulant(3),)), solvable=True),
    Example("sum-diagonal-low-rank", Sum, _updated(7, 2), batches=((), (2,)), solvable=True),
)
