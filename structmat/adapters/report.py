"""What ``attach``, ``inspect`` and ``to_lora`` return: plain records that print as a table."""

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from structmat import backend
from structmat.adapters.folding import fold, split
from structmat.adapters.kinds import gathered
from structmat.adapters.layer import Adapted, Slot
from structmat.adapters.method import Compose, Parts, Residual, Update
from structmat.adapters.tree import adapted, roster_of
from structmat.checks import orthogonality_error
from structmat.claims import Claim
from structmat.matrix import Matrix

__all__ = ["Attached", "Converted", "Explained", "Inspection", "LayerInfo", "count", "explain", "inspect", "table"]


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
    """One adapter on one layer: how far its factors are from orthogonal (None without any that claim to be), and how
    far it alone moves the weight, ``||W_new - W||_F / ||W||_F``; both None if not measured.
    """

    layer: str
    kind: str
    shape: tuple[int, int]
    adapter: str
    method: Any
    parameters: int
    active: bool
    orthogonality: float | None = None
    distance: float | None = None


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
            (
                i.layer,
                i.kind,
                f"{i.shape[0]} x {i.shape[1]}",
                i.adapter,
                i.method,
                f"{i.parameters:,}",
                "-" if i.orthogonality is None else f"{i.orthogonality:.1e}",
                "-" if i.distance is None else f"{i.distance:.2e}",
            )
            for i in self.layers
        ]
        head = ("layer", "kind", "shape", "adapter", "method", "parameters", "orthogonality", "distance")
        active = ", ".join(name if weight == 1.0 else f"{weight:g} {name}" for name, weight in self.active) or "none"
        state = f"merged ({self.merged})" if self.merged else "not merged" if self.enabled else "disabled"
        end = f"active: {active}; {state}; {self.trainable:,} of {self.total:,} parameters train"
        return table(head, rows) + "\n" + end


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


def inspect(model: nn.Module, measure: bool = True) -> Inspection:
    """The adapters of a model; works on a model without any, and prints as a table.

    ``measure``: also the orthogonality error of each rotation, ``||Q^T Q - I||_F / sqrt(n)`` in float64, and how far
    each adapter by itself moves the weight; n^2 storage, a layer at a time.
    """
    roster = roster_of(model, needed=False)
    infos: list[LayerInfo] = []
    active = dict(roster.active) if roster else {}
    for name, layer in adapted(model).items():
        for adapter, slot in layer.adapters.items():
            assert isinstance(slot, Slot)
            numbers = sum(p.numel() for p in slot.parameters())
            shape = (slot.target.out_features, slot.target.columns)
            measured = _measured(layer, slot) if measure else (None, None)
            infos.append(
                LayerInfo(name, slot.target.kind, shape, adapter, slot.method, numbers, adapter in active, *measured)
            )
    trainable, total = count(model)
    if roster is None:
        return Inspection((), (), (), None, True, trainable, total)
    return Inspection(tuple(infos), roster.order, roster.active, roster.merged, roster.enabled, trainable, total)


@dataclasses.dataclass(frozen=True)
class Explained:
    """For each adapted layer how its active adapters would run, and why; prints as a table."""

    plans: dict[str, backend.Plan]

    def __str__(self) -> str:
        rows = [(name, plan.path, plan.reason) for name, plan in self.plans.items()]
        return table(("layer", "form", "because"), rows)


def explain(model: nn.Module, rows: int, dtype: torch.dtype | None = None) -> Explained:
    """How each adapted layer would run its active adapters on an input of so many rows (batch times tokens; of a
    convolution batch times pixels of the output): on activations, beside the product, or folded into the weight.

    ``dtype`` is that of the input, by default the layer's. Inside ``torch.no_grad`` a convolution in eval mode is asked
    what it does without a backward pass.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"explain: rows must be an integer of at least 1, got {rows!r}")
    plans: dict[str, backend.Plan] = {}
    for name, layer in adapted(model).items():
        with torch.no_grad():
            chain, residuals = split(layer.chain())
        if not chain and not residuals:
            plans[name] = backend.Plan("base", "no active adapter, or all are merged")
        else:
            weight = layer.base.weight if layer.kind.reads_weight else None
            given = dtype or (weight.dtype if isinstance(weight, torch.Tensor) else layer.dtype)
            plans[name] = layer.kind.plan(layer.base, chain, rows, given)
    return Explained(plans)


def _measured(layer: Adapted, slot: Slot) -> tuple[float | None, float | None]:
    with torch.no_grad():
        update = slot.method.update(slot.whole(), slot.target)
        errors = [float(orthogonality_error(q)) for q in _orthogonal(update)]
        distance: float | None = None
        if not isinstance(update, Residual):
            stored = gathered(layer.kept[0] if layer.kept else layer.folded([]))
            kind, base = layer.kind, layer.base
            weight = kind.matrix(base, stored.to(stored.device)).double() if not layer.kept_base else None
            if weight is not None:
                change = fold(weight.to(layer.dtype), [update]).double() - weight
                size = float(weight.norm())
                distance = float(change.norm()) / size if size else math.inf
    return (max(errors) if errors else None), distance


def _orthogonal(update: Update) -> list[Matrix]:
    if isinstance(update, Parts):
        return [q for _, _, one in update.updates for q in _orthogonal(one)]
    if not isinstance(update, Compose):
        return []
    return [q for q in (update.left, update.right) if q is not None and Claim.ORTHOGONAL in q.claims]


def count(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters, adapters included."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
