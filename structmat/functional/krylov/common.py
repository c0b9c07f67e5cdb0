"""What every Krylov method shares: its result, the sizes its stopping rule compares, and safe scalars a row.

A method works on rows: b ``(..., k, n)``, each row with its own scalars ``(..., k, 1)``. It stops a row when the
residual r meets ``||r|| <= target (sigma ||x|| + ||b||)``, sigma a bound of ``||A||_2``, and freezes it from then on.
"""

import dataclasses
from collections.abc import Callable

import torch

__all__ = ["Apply", "Callback", "Outcome", "begin", "lift", "nonzero", "quotient", "sizes", "tell"]

Apply = Callable[[torch.Tensor], torch.Tensor]
Callback = Callable[[int, float], None]
CONFIRMED = 1.5  # a recursive residual that met the target may be this factor off when measured


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Rows x, steps taken, whether every row met its target (False also when the matrix showed itself not definite),
    and the backward error of each row, measured on the true residual (None where that was not reached)."""

    x: torch.Tensor
    steps: int
    converged: bool
    eta: torch.Tensor | None = None


def lift(sigma: torch.Tensor) -> torch.Tensor:
    """A number a matrix ``(*batch)`` as one that multiplies scalars of rows ``(*batch, k, 1)``."""
    return sigma[..., None, None] if sigma.ndim else sigma


def sizes(size: torch.Tensor, bound: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``sigma ||x|| + ||b||`` per row ``(..., k, 1)``."""
    return torch.addcmul(size, bound, torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def begin(multiply: Apply, b: torch.Tensor, start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The first x and its residual: zero and b, or ``start`` and ``b - A start``."""
    if start is None:
        return torch.zeros_like(b), b
    x = start.to(b.dtype).expand(b.shape).clone()
    return x, b - multiply(x)


def nonzero(value: torch.Tensor) -> torch.Tensor:
    """A denominator that is never zero: 0 over it is 0."""
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def quotient(length: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The backward error per row ``(..., k)`` out of ``(..., k, 1)``; 0 for 0 / 0."""
    return (length / nonzero(scale))[..., 0]


def tell(callback: Callback | None, step: int, length: torch.Tensor, scale: torch.Tensor) -> None:
    """``callback(step, worst backward error of all rows)``, if there is one to be called."""
    if callback is not None and step:
        callback(step, float(quotient(length, scale).max()))
