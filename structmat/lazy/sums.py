"""Sums that are applied and never added up; with a low-rank term among them they are solved by Woodbury's formula."""

import itertools
from typing import Any, ClassVar

import torch

from structmat import claims as survive
from structmat import dispatch
from structmat.claims import Claims
from structmat.errors import ShapeError
from structmat.lazy.expressions import _check_parts, _common, tree
from structmat.matrix import Matrix

__all__ = ["Sum"]


class Sum(Matrix):
    """``A_1 + A_2 + ... + A_k``, applied term by term.

    Stores: terms, a tuple of matrices of one size. Claims: what survives a sum. Cost: the sum of the terms' costs.
    """

    terms: tuple[Matrix, ...]

    def _validate(self) -> None:
        _check_parts("Sum", self.terms)
        for a, b in itertools.pairwise(self.terms):
            if a.shape[-2:] != b.shape[-2:]:
                raise ShapeError(f"Sum: the sizes of {a!r} and {b!r} differ")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, *self.terms[0].shape[-2:]))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(t.batch_shape for t in self.terms))

    @property
    def dtype(self) -> torch.dtype | None:
        return _common(self.terms)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = self.terms[0].linear(x)
        for term in self.terms[1:]:
            y = y + term.linear(x)
        return y

    def transpose(self) -> Matrix:
        return Sum(tuple(t.transpose() for t in self.terms))

    def conj(self) -> Matrix:
        return Sum(tuple(t.conj() for t in self.terms))

    def diagonal(self) -> torch.Tensor:
        total = self.terms[0].diagonal()
        for term in self.terms[1:]:
            total = total + term.diagonal()
        return total

    def _properties(self) -> Claims:
        known = self.terms[0].claims
        for term in self.terms[1:]:
            known = survive.sum_of(known, term.claims)
        return known

    def _norm_bound(self) -> torch.Tensor:
        bound = self.terms[0]._norm_bound()
        for term in self.terms[1:]:
            bound = bound + term._norm_bound()
        return bound

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Sum(tuple(t._picked(batch, lead) for t in self.terms))

    def __repr__(self) -> str:
        return tree("Sum", self.terms)


@dispatch.rule("add", Matrix, Matrix)
def _sum(a: Matrix, b: Matrix) -> Matrix:
    """Lazy: the terms side by side."""
    left = a.terms if isinstance(a, Sum) and not a._assumed else (a,)
    right = b.terms if isinstance(b, Sum) and not b._assumed else (b,)
    return Sum((*left, *right))
