"""Examples of low displacement rank, and what they mean: the defining equation, solved entry by entry."""

from typing import Any

import numpy
import torch

from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.testing.example import WIDE, Batch, Example, Factory, numbers
from structmat.testing.reference import Array, as_wide, each, magnitude, reference
from structmat.types.displacement import LowDisplacementRank

__all__ = ["DISPLACEMENT"]

_COMPLEX = (torch.complex128, torch.complex64)


def _entries(left: Array, right: Array, e: complex, f: complex) -> Array:
    """Walk along each wrapped diagonal from (0, j): ``A[i, j + 1] = A[i - 1, j] - N[i, j]``, where row -1 is e times
    the last and column n is f times the first. After n steps the walk is back, which determines where it started."""
    n = left.shape[0]
    kind = numpy.result_type(left, complex) if isinstance(e, complex) or isinstance(f, complex) else left.dtype
    out = numpy.zeros((n, n), dtype=kind)
    for start in range(n):
        # A[i, j] = scale * A[0, start] + offset at each step of the walk
        scale, offset, i, j = 1.0 + 0 * e, 0.0 + 0 * e, 0, start
        steps = []
        for _ in range(n):
            steps.append((i, j, scale, offset))
            i, j = i + 1, j + 1
            if i == n:  # row n is read as row 0: A[0, .] = e A[n - 1, .] - N
                i, scale, offset = 0, scale * e, offset * e
            offset = offset - sum(left[i, k] * right[j - 1, k] for k in range(left.shape[1]))
            if j == n:  # f A[., 0] stands in column n
                j, scale, offset = 0, scale / f, offset / f
        first = offset / (1 - scale)
        for row, column, by, plus in steps:
            out[row, column] = by * first + plus
    return out


@reference(LowDisplacementRank)
def _reference(a: Any) -> Array:
    return each(lambda g, h: _entries(g, h, a.e, a.f), (as_wide(a.left), 2), (as_wide(a.right), 2))


@magnitude(LowDisplacementRank)
def _magnitude(a: Any) -> float:
    """``sum_j ||Z_e(g_j)|| ||Z_f(h_j)|| / |e - f|``, with the scalings between which the transforms run."""
    twist = max(abs(a.e), 1 / abs(a.e)) * max(abs(a.f), 1 / abs(a.f)) / abs(a.e - a.f)
    sizes = numpy.linalg.norm(as_wide(a.left), axis=-2) * numpy.linalg.norm(as_wide(a.right), axis=-2)
    return float(max(1, a.left.shape[-2]) * twist * sizes.sum(-1).max(initial=0.0))


def _ldr(n: int, r: int, e: complex = 1, f: complex = -1, shift: float = 0.0) -> Factory:
    """Random generators; a multiple of the identity beside them makes systems well conditioned."""

    def make(g: torch.Generator, d: torch.dtype, b: Batch) -> Matrix:
        left, right = (numbers(g, d, *b, n, r) / max(1, n * r) ** 0.5 for _ in range(2))
        if shift:
            first, last = (torch.nn.functional.one_hot(torch.tensor(k), n).to(d)[:, None] for k in (0, n - 1))
            left = torch.cat((left, (shift * (e - f) * first).expand(*b, n, 1)), -1)
            right = torch.cat((right, last.expand(*b, n, 1)), -1)
        return LowDisplacementRank(left, right, e, f)

    return make


def _prepared(part: Factory) -> Factory:
    return lambda g, d, b: part(g, d, b).prepare()


_kind = LowDisplacementRank
DISPLACEMENT: tuple[Example, ...] = (
    Example("ldr-1-r1", _kind, _ldr(1, 1, shift=2.0), solvable=True),
    Example("ldr-2-r1", _kind, _ldr(2, 1)),
    Example("ldr-6-r3", _kind, _ldr(6, 2, shift=3.0), batches=((), (2,), (3, 1)), solvable=True),
    Example("ldr-5-r0", _kind, _ldr(5, 0)),
    Example("ldr-3-r5", _kind, _ldr(3, 5)),
    Example("ldr-17-folded", _kind, _ldr(17, 1, shift=3.0), solvable=True),
    Example("ldr-6-r2-reversed", _kind, _ldr(6, 1, -1, 1, shift=3.0), solvable=True),
    Example("ldr-5-r2-other", _kind, _ldr(5, 2, 2.0, -0.5), dtypes=WIDE),
    Example("ldr-4-r1-far", _kind, _ldr(4, 1, 1, 1e-3), dtypes=WIDE),
    Example("ldr-6-r2-complex-numbers", _kind, _ldr(6, 2, 1j, 0.6 - 0.8j), dtypes=_COMPLEX),
    Example("prepared-ldr", Prepared, _prepared(_ldr(6, 2, shift=3.0)), solvable=True),
)
