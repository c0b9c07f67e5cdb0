"""What a benchmark is: contenders that compute the same tensors, a float64 reference, and a figure with its limits.

A *contender* is called without arguments and returns the tensors that it computed (an output and gradients); the very
call that is verified is the call that is timed. A *case* builds its contenders, says which figure it reports (peer over
ours, ours over base, seconds, a difference) and which limits the figure must and should meet.
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch

__all__ = [
    "Aligned",
    "Case",
    "Contender",
    "Figure",
    "Limit",
    "Problem",
    "Tensors",
    "Times",
    "fewest",
    "overhead",
    "speed",
]

Tensors = tuple[torch.Tensor, ...]
Times = Mapping[str, float]  # seconds of one call, by contender
Limit = Callable[[Times], float]
Aligned = Callable[[Tensors], tuple[torch.Tensor | None, ...]]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to the result.

    ``package`` is None for ours, for a base (a lower bound that computes less) and for plain torch. ``read`` brings
    what the call returns into the layout of the reference, None for an output that cannot be compared; without ``read``
    nothing is compared.
    """

    call: Callable[[], Tensors]
    package: str | None = None
    read: Aligned | None = dataclasses.field(default=lambda tensors: tensors)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A case with its data drawn: contenders by name (``"ours"`` among them), and what is right.

    ``limits`` bound ``||out - reference|| / ||reference||`` of our outputs, one for each; a peer may err ten times as
    much before it counts as computing something else. ``facts`` are further measured numbers, computed once.
    """

    contenders: Mapping[str, Contender]
    names: tuple[str, ...]
    reference: Callable[[], Tensors]
    limits: tuple[float, ...]
    facts: Callable[[], Mapping[str, float]] = dict


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number out of the times of one round, and its limits, which may depend on the same times (a cap does)."""

    unit: str
    value: Callable[[Times], float]
    must: Limit | None = None
    aim: Limit | None = None
    at_least: bool = True

    def meets(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table. ``peers`` are the packages without which it cannot run; ``heavy`` cases have a call that
    takes seconds, and get as few rounds as medians allow."""

    name: str
    what: str
    build: Callable[[], Problem]
    figure: Figure
    peers: tuple[str, ...] = ()
    versus: str = "peer"
    heavy: bool = False
    child: Callable[[bool], Mapping[str, float]] | None = None  # measured in processes of its own (memory)
    plain_malloc: bool = False  # timed with the allocator as any program has it: what the peer spends there is its cost


def constant(limit: float | None) -> Limit | None:
    return None if limit is None else lambda times: limit


def speed(must: float | None = None, aim: float | None = None, versus: str = "peer") -> Figure:
    """``peer / ours``, to be at least the limits."""
    return Figure("x", lambda t: t[versus] / t["ours"], constant(must), constant(aim))


def overhead(must: float | None = None, aim: float | None = None) -> Figure:
    """``ours / base``, to be at most the limits."""
    return Figure("x of base", lambda t: t["ours"] / t["base"], constant(must), constant(aim), at_least=False)


def fewest(*limits: Limit) -> Limit:
    """The least of several limits."""
    return lambda times: min(limit(times) for limit in limits)
