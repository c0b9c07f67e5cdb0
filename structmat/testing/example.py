"""What an example of a type is: a factory, the dense matrix it means, and what may be asked of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from structmat.matrix import Matrix
from structmat.testing.reference import dense_of

__all__ = ["HALF", "WIDE", "Batch", "Example", "Factory", "numbers"]

WIDE = (torch.float64, torch.complex128, torch.float32, torch.complex64)
HALF = (torch.bfloat16, torch.float16)
Batch = tuple[int, ...]
Factory = Callable[[torch.Generator, torch.dtype, Batch], Matrix]


@dataclasses.dataclass(frozen=True)
class Example:
    """One way to make a matrix of a type.

    ``make(generator, dtype, batch)`` draws it; ``dense(matrix)`` is its textbook meaning ``(*batch, m, n)`` in
    float64 or complex128. ``solvable`` says that systems are well conditioned (condition number below about 100).
    """

    name: str
    type: type[Matrix]
    make: Factory
    dense: Callable[[Any], torch.Tensor] = dense_of
    dtypes: tuple[torch.dtype, ...] = WIDE + HALF
    batches: tuple[Batch, ...] = ((), (2,))
    solvable: bool = False
    smooth: bool = True  # differentiable at this point (a reflection is not where its vector is zero)

    def build(self, dtype: torch.dtype = torch.float64, batch: Batch = (), seed: int = 0) -> Matrix:
        """The matrix of this seed; the same on every machine with the same torch."""
        return self.make(torch.Generator().manual_seed(seed), dtype, batch)


def numbers(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Standard normal numbers drawn in double precision and rounded, so that every dtype sees the same matrix."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, generator=generator, dtype=wide).to(dtype)
