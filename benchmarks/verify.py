"""Correct first: every contender against the float64 reference, before anything is timed.

A contender that computes something else (a reversed product, a transposed gradient) would make a ratio meaningless, so
a fault stops the case. The errors are written beside the times.
"""

import dataclasses

import torch

from benchmarks.case import Contender, Problem

__all__ = ["PEER_SLACK", "Errors", "Fault", "verify"]

PEER_SLACK = 10.0  # a peer may err this many times our limit and still count as computing the same


class Fault(AssertionError):
    """A contender's result is not the reference's."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """``||out - reference|| / ||reference||`` by contender and output."""

    by_contender: dict[str, dict[str, float]]

    def worst(self, name: str) -> float | None:
        found = self.by_contender.get(name)
        return max(found.values()) if found else None


def verify(problem: Problem) -> Errors:
    """The errors of all contenders that have something to compare. Raises Fault with the contender and the output."""
    reference = tuple(t.detach() for t in problem.reference())
    if not len(reference) == len(problem.names) == len(problem.limits):
        raise Fault(f"{len(reference)} references, {len(problem.names)} names, {len(problem.limits)} limits")
    return Errors(
        {
            name: _errors(name, contender, reference, problem)
            for name, contender in problem.contenders.items()
            if contender.read is not None
        }
    )


def _errors(name: str, contender: Contender, reference: tuple[torch.Tensor, ...], problem: Problem) -> dict[str, float]:
    assert contender.read is not None
    outputs = contender.read(contender.call())
    if len(outputs) != len(reference):
        raise Fault(f"{name}: {len(outputs)} outputs, the reference has {len(reference)}")
    errors: dict[str, float] = {}
    for label, out, right, limit in zip(problem.names, outputs, reference, problem.limits, strict=True):
        if out is None:
            continue
        if out.shape != right.shape:
            raise Fault(f"{name}: {label} has shape {tuple(out.shape)}, the reference {tuple(right.shape)}")
        size = torch.linalg.vector_norm(right)
        errors[label] = float(torch.linalg.vector_norm(out.detach().to(right.dtype) - right) / size)
        allowed = limit if name == "ours" else PEER_SLACK * limit
        if not errors[label] <= allowed:
            raise Fault(f"{name}: {label} is off by {errors[label]:.2e}, the limit is {allowed:.1e}")
    return errors
