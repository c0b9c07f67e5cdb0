"""A method on some rows of a weight: the query and the value of a fused projection, for instance."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat.adapters.method import Method, State, Target, from_json, register, to_json
from structmat.adapters.method import Parts as PartsUpdate

__all__ = ["OnRows"]


@register
@dataclasses.dataclass(frozen=True)
class OnRows:
    """``method`` on each span of rows ``start:stop`` of the weight, by itself; the other rows stay as they are.

    A layer that computes queries, keys and values at once has a weight of 3 d rows: ``OnRows(HRA(8), ((0, d), (2 * d,
    3 * d)))`` adapts the queries and the values. Each span has its own tensors, and sizes: a square structure fits each
    third.

    Stores:   the tensors of the method, named ``rows<start>_<tensor>``.
    Args:
        method: any registered method that changes the weight.
        spans: pairs ``(start, stop)``, ascending, without overlap.
    Raises:   ValueError for illegal spans, or spans that end after the last row of a layer.
    """

    name: ClassVar[str] = "OnRows"
    method: Any
    spans: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if isinstance(self.method, Mapping):  # as a file has it
            inner = from_json(str(self.method.get("name")), dict(self.method.get("parameters", {})))
            object.__setattr__(self, "method", inner)
        if not isinstance(self.method, Method) or isinstance(self.method, (type, OnRows)):
            raise TypeError(f"OnRows: method must be an adapter method such as HRA(rank=8), got {self.method!r}")
        try:
            spans = tuple((start, stop) for start, stop in self.spans)
        except (TypeError, ValueError):
            raise ValueError(f"OnRows: spans are pairs (start, stop), got {self.spans!r}") from None
        object.__setattr__(self, "spans", spans)
        at = 0
        for start, stop in spans:
            legal = all(isinstance(k, int) and not isinstance(k, bool) for k in (start, stop))
            if not legal or start < at or stop <= start:
                raise ValueError(f"OnRows: spans must be ascending pairs start < stop without overlap, got {spans}")
            at = stop
        if not spans:
            raise ValueError("OnRows: at least one span is needed")

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters as a file holds them."""
        return {"method": to_json(self.method), "spans": [list(span) for span in self.spans]}

    def _inner(self, target: Target) -> list[tuple[int, int, Target]]:
        if self.spans[-1][1] > target.out_features:
            raise ValueError(
                f"OnRows on {target.name!r}: the spans {self.spans} end after the last of {target.out_features} rows"
            )
        return [(a, b, dataclasses.replace(target, out_features=b - a)) for a, b in self.spans]

    def _state(self, state: State, start: int) -> State:
        prefix = f"rows{start}_"
        parts = ({k.removeprefix(prefix): t for k, t in part.items() if k.startswith(prefix)} for part in state)
        return State(*parts)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """The method's own start on each span."""
        whole = State({}, {})
        for start, _, inner in self._inner(target):
            for part, found in zip(whole, self.method.init(inner, generator), strict=True):
                part.update({f"rows{start}_{key}": tensor for key, tensor in found.items()})
        return whole

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> PartsUpdate:
        """The method's update on each span."""
        updates = []
        for start, stop, inner in self._inner(target):
            one = self.method.update(self._state(state, start), inner, training=training, generator=generator)
            updates.append((start, stop, one))
        return PartsUpdate(tuple(updates), target.out_features)

    def penalty(self, state: State) -> torch.Tensor:
        """The sum of the method's regularisers."""
        if not hasattr(self.method, "penalty"):
            return next(iter(state.trained.values())).new_zeros(())
        terms = [self.method.penalty(self._state(state, start)) for start, _ in self.spans]
        return torch.stack(terms).sum()

    def project_(self, state: State) -> None:
        """The method's projection on each span."""
        if hasattr(self.method, "project_"):
            for start, _ in self.spans:
                self.method.project_(self._state(state, start))
