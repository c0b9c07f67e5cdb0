"""All cases, in the order of the table. ``CASES`` is the single list that the runner, the tests and the docs read."""

from benchmarks.case import Case
from benchmarks.cases import (
    adapter_convs,
    adapter_layers,
    adapter_model,
    adapter_stack,
    adapters,
    boft,
    butterfly,
    checks,
    dispatch,
    displacement,
    householder,
    kronecker,
    products,
    solves,
    tucker,
)

__all__ = ["CASES", "select"]

CASES: tuple[Case, ...] = (
    *adapters.CASES,
    *adapter_layers.CASES,
    *adapter_convs.CASES,
    *adapter_model.CASES,
    *adapter_stack.CASES,
    *products.CASES,
    *solves.CASES,
    *displacement.CASES,
    *dispatch.CASES,
    *householder.CASES,
    *butterfly.CASES,
    *boft.CASES,
    *tucker.CASES,
    *checks.CASES,
    *kronecker.CASES,
)


def select(pattern: str | None) -> tuple[Case, ...]:
    """The cases whose name contains the pattern (all without one). Raises ValueError naming the cases if none does."""
    chosen = tuple(case for case in CASES if pattern is None or pattern in case.name)
    if not chosen:
        names = "\n  ".join(case.name for case in CASES)
        raise ValueError(f"no case has {pattern!r} in its name; there are:\n  {names}")
    return chosen
