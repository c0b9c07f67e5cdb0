"""What every search shares: the matrix in the dtype computed in, the budget, what counts as exact, how errors are
measured, and which ranks are worth a row."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from structmat import backend

__all__ = ["Trial", "Work", "divisors", "ladder", "splits", "times_power", "work_on"]

_FAR = 2.0**40  # entries beyond 2^(+-40) are scaled by a power of two, so that no square overflows


@dataclasses.dataclass(frozen=True)
class Trial:
    """One structure tried: its name and settings, how many numbers it takes, the relative error, and its maker."""

    structure: str
    settings: dict[str, Any]
    parameters: int
    error: float
    make: Callable[[torch.Tensor], Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """A matrix (or tensor) under examination.

    ``entries``: its numbers in the dtype computed in, times ``2^exponent`` where they are extreme (else 0);
    ``norm``: their Frobenius norm; ``most``: the parameters allowed; ``limit``: the relative error that counts as
    exact, ``eps(dtype) + 8 sqrt(max(m, n)) eps(computed in)``: the entries were rounded once, and every search rounds.
    """

    entries: torch.Tensor
    norm: float
    most: int
    limit: float
    exponent: int

    @property
    def sizes(self) -> tuple[int, int]:
        """m and n of a matrix."""
        return int(self.entries.shape[-2]), int(self.entries.shape[-1])

    @property
    def is_square(self) -> bool:
        """Whether m = n."""
        return self.entries.ndim == 2 and self.entries.shape[0] == self.entries.shape[1]

    @property
    def is_complex(self) -> bool:
        """Whether the entries are complex."""
        return self.entries.is_complex()

    def fits(self, parameters: int) -> bool:
        """Whether so many numbers are allowed, and fewer than the entries are."""
        return parameters <= self.most and parameters < self.entries.numel()

    def error_of(self, found: torch.Tensor) -> float:
        """``||M - found||_F / ||M||_F``; 0 / 0 counts as 0."""
        return self.relative(float(torch.linalg.vector_norm(self.entries - found)))

    def relative(self, distance: float) -> float:
        """A distance over the norm of M; of M = 0, infinite unless it is 0."""
        if self.norm:
            return distance / self.norm
        return math.inf if distance else 0.0

    def measured(
        self, structure: str, settings: dict[str, Any], make: Callable[[torch.Tensor], Any], parameters: int
    ) -> Iterator[Trial]:
        """The trial, if the parameters fit: made, formed, and compared entry by entry."""
        if self.fits(parameters):
            yield Trial(structure, settings, parameters, self.error_of(make(self.entries).to_dense()), make)


def work_on(entries: torch.Tensor, dtype: torch.dtype, most: int) -> Work:
    """The numbers, computed in the dtype that the library computes in; ``dtype`` is that of what was given."""
    wide = entries.to(backend.compute_dtype(dtype))
    largest = float(wide.abs().amax())
    extreme = largest > 0 and not 1 / _FAR <= largest <= _FAR
    exponent = -math.frexp(largest)[1] if extreme else 0
    wide = times_power(wide, exponent)
    long_side = max(int(s) for s in entries.shape)
    limit = torch.finfo(dtype).eps + 8 * math.sqrt(long_side) * torch.finfo(wide.dtype).eps
    return Work(wide, float(torch.linalg.vector_norm(wide)), most, limit, exponent)


def times_power(values: torch.Tensor, exponent: int) -> torch.Tensor:
    """``2^exponent values`` in two steps: the power itself may not be a number of this dtype."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half) if exponent else values


def ladder(tails: torch.Tensor, unit: int, work: Work) -> Iterator[tuple[int, float]]:
    """The ranks worth a row, with their errors ``tails[rank]`` (relative, descending): powers of two, those that first
    reach each power of ten, the largest that fits; and none above the first that is exact. A rank takes ``unit``
    numbers."""
    errors = tails.tolist()
    exact = next((k for k, e in enumerate(errors) if e <= work.limit), len(errors) - 1)
    largest = min(exact, work.most // unit if unit else exact)
    wanted = {2**j for j in range(largest.bit_length())} | {largest}
    level = 0.1
    for k, error in enumerate(errors[: largest + 1]):
        if error <= level:
            wanted.add(k)
            while error <= level:
                level /= 10
                if level < work.limit / 10:
                    break
    for rank in sorted(wanted):
        if 0 < rank <= largest and work.fits(rank * unit):
            yield rank, errors[rank]


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


def splits(n: int, most: int) -> Iterable[tuple[int, int]]:
    """Up to ``most`` pairs ``(a, n / a)`` without 1, the most balanced first."""
    found = [(a, n // a) for a in divisors(n) if 1 < a < n]
    return sorted(found, key=lambda pair: abs(math.log(pair[0] / pair[1])))[:most]
