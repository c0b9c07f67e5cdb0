"""What the readers of other libraries' files share: tensors from a file that is not trusted, and putting them on a
model as adapters, all of them or none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structmat.adapters.attach import Planned, check_name, check_update, commit
from structmat.adapters.checkpoint import opened
from structmat.adapters.kinds import check_layer
from structmat.adapters.layer import Slot
from structmat.adapters.method import Method, State, Target, draw, near
from structmat.adapters.report import Attached, table
from structmat.adapters.tree import Place, parameters_by_name, places, require_apart, require_unmerged, roster_of
from structmat.errors import CheckpointError

__all__ = ["Found", "Imported", "names_of", "put", "read_all", "target_of"]

HEADER_LIMIT = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Imported(Attached):
    """What was read from a file of another library. ``differences``: per layer, how far what was made is from what
    the file holds, ``||R_made - R_file||_F / sqrt(n)``; empty where nothing was changed.
    """

    differences: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.differences:
            rows = [(layer, f"{value:.2e}") for layer, value in self.differences.items()]
            lines.append(table(("layer", "difference"), rows))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """An adapter of a file on one layer: our method, its tensors under our names, and what was changed."""

    method: Method
    tensors: dict[str, torch.Tensor]
    difference: float | None = None


def names_of(model: nn.Module) -> dict[str, Place]:
    """The modules of a model by all of their names."""
    return {alias: place for place in places(model).values() for alias in place.names if alias}


def target_of(layer: str, known: Mapping[str, Place], source: Path) -> Target:
    """The target of a layer that a file names; CheckpointError if the model has none that can be adapted."""
    place = known.get(layer)
    if place is None:
        raise CheckpointError(f"{source} adapts {layer!r}, which the model does not have; {near(layer[:200], known)}")
    try:
        target = check_layer(place.name, place.layer)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source} adapts {layer!r}: {error}") from error
    if target.device.type == "meta":
        raise CheckpointError(
            f"layer {layer!r} is on the meta device, which would lose the file's numbers; load its weights first"
        )
    return target


def read_all(place: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, which must be of floating point and finite."""
    with opened(place, HEADER_LIMIT) as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise CheckpointError(f"{place}: {key!r} holds {tensor.dtype}, and adapters are numbers of floating point")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{place}: {key!r} holds numbers that are not finite")
    return tensors


def put(
    model: nn.Module,
    found: Mapping[str, Found],
    extras: Mapping[str, torch.Tensor],
    *,
    name: str,
    trainable: bool,
    source: Path,
    verb: str,
) -> Imported:
    """The adapters of a file on a model, active and last; CheckpointError before anything is changed."""
    roster = roster_of(model, needed=False)
    check_name(name, roster.order if roster else (), verb)
    if roster is not None:
        require_unmerged(roster, verb)
        if roster.rows is not None:
            raise RuntimeError(f"{verb}: leave the adapters.rows context first")
    if not found:
        raise CheckpointError(f"{source} adapts no layer")
    known = names_of(model)
    planned = [_planned(known[layer], one, target_of(layer, known, source), source) for layer, one in found.items()]
    twice = [plan.place.name for plan in planned]
    if len(set(twice)) != len(twice):
        raise CheckpointError(f"{source} adapts one layer under two names: {_first_repeated(twice)!r}")
    try:
        require_apart((plan.place for plan in planned), verb)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    own = parameters_by_name(model)
    for key, tensor in extras.items():
        if key not in own:
            raise CheckpointError(f"{source} holds {key!r}, which is no parameter of the model; {near(key[:200], own)}")
        if not own[key].is_floating_point():
            raise CheckpointError(
                f"{source}: {key!r} is of {own[key].dtype} in the model, which no file may write over"
            )
        if own[key].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {key!r} has shape {tuple(tensor.shape)}, the model's has {tuple(own[key].shape)}"
            )
    kept = tuple(key for key in own if key in extras)
    report = commit(model, {name: planned}, {name: kept}, trainable=(name,) if trainable else ())[0]
    with torch.no_grad():
        for key, tensor in extras.items():
            own[key].copy_(tensor)
    changed = {layer: one.difference for layer, one in found.items() if one.difference is not None}
    fields: dict[str, Any] = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return Imported(**fields, differences=changed)


def _planned(place: Place, one: Found, target: Target, source: Path) -> Planned:
    meta = dataclasses.replace(target, device=torch.device("meta"))
    try:
        like = draw(one.method, meta, None)
        parts: Sequence[dict[str, torch.Tensor]] = [
            {key: _fitted(one.tensors[key], tensor, key).to(target.device) for key, tensor in part.items()}
            for part in like
        ]
        state = State(*parts)
        check_update(one.method, state, target)
    except Exception as error:  # whatever hostile numbers lead to
        raise CheckpointError(f"{source}, layer {place.name!r}: {error}") from error
    return Planned(place, Slot(one.method, target, state))


def _fitted(tensor: torch.Tensor, like: torch.Tensor, key: str) -> torch.Tensor:
    if tensor.shape != like.shape:
        raise ValueError(f"{key} has shape {tuple(tensor.shape)}, the layer and its method need {tuple(like.shape)}")
    return tensor.detach().to(like.dtype).clone().contiguous()


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for k, name in enumerate(names) if name in names[:k])
