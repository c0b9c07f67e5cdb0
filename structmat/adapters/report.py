"""What ``attach``, ``inspect`` and ``to_lora`` return: plain records that print as a table."""

import dataclasses
from typing import Any

from torch import nn

from structmat.adapters.layer import Slot
from structmat.adapters.tree import adapted, roster_of

__all__ = ["Attached", "Converted", "Inspection", "LayerInfo", "count", "inspect", "table"]


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Columns padded to the widest entry."""
    lines = [head, *[tuple(str(entry) for entry in row) for row in rows]]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@dataclasses.dataclass(frozen=True)
class Attached:
    """What ``attach`` or ``load`` did: the layers, numbers of trainable and of all parameters, the model's own ones
    trained too.
    """

    name: str
    layers: tuple[str, ...]
    parameters: int
    trainable: int
    total: int
    extras: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        more = f" and {len(self.extras)} parameters of the model itself" if self.extras else ""
        return (
            f"adapter {self.name!r}: {self.parameters:,} parameters on {len(self.layers)} layers{more}; "
            f"{self.trainable:,} of {self.total:,} train ({share:.2f} %)"
        )


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One adapter on one layer."""

    layer: str
    kind: str
    shape: tuple[int, int]
    adapter: str
    method: Any
    parameters: int
    active: bool


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The state of a model: a row per layer and adapter, what is active in folding order, whether it is merged."""

    layers: tuple[LayerInfo, ...]
    names: tuple[str, ...]
    active: tuple[tuple[str, float], ...]
    merged: str | None
    enabled: bool
    trainable: int
    total: int

    def __str__(self) -> str:
        rows = [
            (i.layer, i.kind, f"{i.shape[0]} x {i.shape[1]}", i.adapter, i.method, f"{i.parameters:,}")
            for i in self.layers
        ]
        active = ", ".join(name if weight == 1.0 else f"{weight:g} {name}" for name, weight in self.active) or "none"
        state = f"merged ({self.merged})" if self.merged else "not merged" if self.enabled else "disabled"
        end = f"active: {active}; {state}; {self.trainable:,} of {self.total:,} parameters train"
        return table(("layer", "kind", "shape", "adapter", "method", "parameters"), rows) + "\n" + end


@dataclasses.dataclass(frozen=True)
class Converted:
    """What ``to_lora`` made: a rank per layer, and the error relative to the change, ``||D - L R^T||_F / ||D||_F``."""

    name: str
    ranks: dict[str, int]
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The largest error over the layers."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        rows = [(layer, rank, f"{self.errors[layer]:.2e}") for layer, rank in self.ranks.items()]
        return table(("layer", "rank", "relative error"), rows)


def inspect(model: nn.Module) -> Inspection:
    """The adapters of a model; works on a model without any, and prints as a table."""
    roster = roster_of(model, needed=False)
    infos: list[LayerInfo] = []
    active = dict(roster.active) if roster else {}
    for name, layer in adapted(model).items():
        for adapter, slot in layer.adapters.items():
            assert isinstance(slot, Slot)
            numbers = sum(p.numel() for p in slot.parameters())
            shape = (slot.target.out_features, slot.target.columns)
            infos.append(LayerInfo(name, slot.target.kind, shape, adapter, slot.method, numbers, adapter in active))
    trainable, total = count(model)
    if roster is None:
        return Inspection((), (), (), None, True, trainable, total)
    return Inspection(tuple(infos), roster.order, roster.active, roster.merged, roster.enabled, trainable, total)


def count(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters, adapters included."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
