"""How a lazy sum of a Toeplitz and a Hankel matrix is applied: both share the transforms of x."""

import torch

from structmat.dispatch import rule
from structmat.functional import toeplitz_hankel as fth
from structmat.types.hankel import Hankel
from structmat.types.toeplitz_family import ToeplitzFamily

__all__: list[str] = []


@rule("sum_product", ToeplitzFamily, Hankel)
def _toeplitz_hankel(a: ToeplitzFamily, b: Hankel, x: torch.Tensor) -> torch.Tensor:
    """Tensor: ``(A + B) x`` by one transform of x and one back, where that is faster than two products."""
    t, h, n = a._diagonals(), b.antidiagonals, int(a.shape[-1])
    if not fth.joined_pays(t, h, x, n):
        return a.linear(x) + b.linear(x)
    return fth.product(t, h, x, n)


@rule("sum_product", Hankel, ToeplitzFamily)
def _hankel_toeplitz(a: Hankel, b: ToeplitzFamily, x: torch.Tensor) -> torch.Tensor:
    """As the other way round."""
    return _toeplitz_hankel(b, a, x)
