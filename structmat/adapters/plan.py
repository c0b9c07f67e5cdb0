"""What a file of adapters asks for, checked against the model before any tensor is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.attach import Planned, check_name, check_update
from structmat.adapters.kinds import check_layer
from structmat.adapters.layer import Slot
from structmat.adapters.method import Method, State, Target, draw, from_json, near
from structmat.adapters.tree import Place, parameters_by_name, places, require_apart, require_unmerged, roster_of
from structmat.errors import CheckpointError

__all__ = ["Plan", "plan_load"]

_LONGEST = 1000  # characters of a name
_LAYER_KEYS = {"kind", "out_features", "in_features", "kernel", "groups", "method", "parameters"}


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """One adapter on one layer: where, how, and the tensors (on the meta device) that the file must hold."""

    place: Place
    method: Method
    target: Target
    state: State


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that a file asks for. ``names`` maps an adapter's name in the model to its name in the file."""

    names: dict[str, str]
    wanted: dict[str, list[Wanted]]
    extras: dict[str, tuple[str, ...]]
    extra_tensors: dict[str, nn.Parameter]
    active: list[tuple[str, float]]

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of the file."""
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, written in self.names.items():
            for one in self.wanted[name]:
                for part in one.state:
                    for key, tensor in part.items():
                        found[f"{written}/layers/{one.place.name}/{key}"] = (tuple(tensor.shape), tensor.dtype)
            for key in self.extras[name]:
                own = self.extra_tensors[key]
                found[f"{written}/extras/{key}"] = (tuple(own.shape), own.dtype)
        return found

    def build(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Planned]]:
        """The adapters with the tensors of the file."""
        planned: dict[str, list[Planned]] = {}
        weights = dict(self.active)
        for name, written in self.names.items():
            planned[name] = []
            for one in self.wanted[name]:
                prefix = f"{written}/layers/{one.place.name}/"
                parts = [
                    {key: tensors[prefix + key].to(like.dtype).to(one.target.device) for key, like in part.items()}
                    for part in one.state
                ]
                state = State(*parts)
                try:
                    update = check_update(one.method, state, one.target)
                    folding.weighted(update, weights.get(name, 1.0), name)
                except Exception as error:
                    raise CheckpointError(f"adapter {written!r} on {one.place.name!r}: {error}") from error
                planned[name].append(Planned(one.place, Slot(one.method, one.target, state)))
        return planned


def plan_load(model: nn.Module, document: Mapping[str, Any], name: str | None) -> Plan:
    """Check a document against the model; CheckpointError says what does not fit."""
    roster = roster_of(model, needed=False)
    if roster is not None:
        require_unmerged(roster, "load")
    _keys(document, {"format", "version", "active", "adapters"}, "the file")
    adapters = _mapping(document["adapters"], "adapters")
    if not adapters:
        raise CheckpointError("the file holds no adapter")
    if name is not None and len(adapters) > 1:
        raise CheckpointError(
            f"load(name={name!r}): the folder holds {len(adapters)} adapters, and one name cannot serve them"
        )
    known, own = places(model), parameters_by_name(model)
    names: dict[str, str] = {}
    wanted: dict[str, list[Wanted]] = {}
    extras: dict[str, tuple[str, ...]] = {}
    for written, entry in adapters.items():
        _check_written(written)
        called = written if name is None else name
        check_name(called, roster.order if roster else (), "load")
        _keys(entry, {"layers", "extras"}, f"adapter {written!r}")
        names[called] = written
        layers = _mapping(entry["layers"], f"layers of adapter {written!r}")
        wanted[called] = [_wanted(layer, spec, known) for layer, spec in layers.items()]
        _apart([one.place for ones in wanted.values() for one in ones])
        if not wanted[called]:
            raise CheckpointError(f"adapter {written!r} of the file has no layers")
        extras[called] = _extras(_mapping(entry["extras"], f"extras of adapter {written!r}"), own)
    active = _active(document["active"], {written: called for called, written in names.items()})
    return Plan(names, wanted, extras, own, active)


def _check_written(name: str) -> None:
    """A name in the file is one that ``save`` could have written."""
    try:
        check_name(name, (), "load")
    except ValueError as error:
        raise CheckpointError(f"the file has an adapter of an illegal name: {error}") from None


def _wanted(layer: str, spec: Any, known: Mapping[str, Place]) -> Wanted:
    if len(layer) > _LONGEST:
        raise CheckpointError(f"the file adapts a layer whose name has {len(layer):,} characters")
    _keys(spec, _LAYER_KEYS, f"layer {layer!r}")
    place = known.get(layer)
    if place is None or not layer:
        raise CheckpointError(f"the model has no layer {layer!r}; {near(layer, (n for n in known if n))}")
    try:
        target = check_layer(layer, place.layer)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the file adapts {layer!r}: {error}") from error
    if target.device.type == "meta":
        raise CheckpointError(
            f"layer {layer!r} is on the meta device, which would lose the file's numbers; load its weights first"
        )
    here = {
        "kind": target.kind,
        "out_features": target.out_features,
        "in_features": target.in_features,
        "kernel": list(target.kernel),
        "groups": target.groups,
    }
    for key, value in here.items():
        if spec[key] != value or isinstance(spec[key], bool):
            raise CheckpointError(
                f"layer {layer!r}: the file was made for {key}={spec[key]!r}, the model has {value!r}"
            )
    parameters = _mapping(spec["parameters"], f"parameters of layer {layer!r}")
    meta = dataclasses.replace(target, device=torch.device("meta"))
    try:
        method = from_json(str(spec["method"]), parameters)
        state = draw(method, meta, None)
    except Exception as error:  # whatever a method makes of hostile hyper-parameters
        raise CheckpointError(f"layer {layer!r}: {error}") from error
    return Wanted(place, method, target, state)


def _apart(chosen: list[Place]) -> None:
    try:
        require_apart(chosen, "load")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _extras(written: Mapping[str, Any], own: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    for key, shape in written.items():
        if key not in own:
            key = key[:_LONGEST]
            raise CheckpointError(f"the model has no parameter {key!r}; {near(key, own)}")
        if not own[key].is_floating_point():
            raise CheckpointError(
                f"parameter {key!r} is of {own[key].dtype} in the model, and cannot have been trained"
            )
        if shape != list(own[key].shape):
            raise CheckpointError(
                f"parameter {key!r}: the file holds shape {shape!r}, the model has {list(own[key].shape)}"
            )
    return tuple(written)


def _active(written: Any, called: Mapping[str, str]) -> list[tuple[str, float]]:
    if not isinstance(written, list):
        raise CheckpointError("active must be a list of [name, weight]")
    found: list[tuple[str, float]] = []
    for pair in written:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] not in called:
            raise CheckpointError(f"active: {pair!r} is no [name, weight] of an adapter of the file")
        weight = pair[1]
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not abs(weight) < 1e300:  # a JSON integer may be larger than any float
            raise CheckpointError(f"active: the weight of {pair[0]!r} must be a finite number, got {weight!r}")
        found.append((called[pair[0]], float(weight)))
    if len({name for name, _ in found}) != len(found):
        raise CheckpointError("active names an adapter twice")
    return found


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _keys(value: Any, wanted: set[str], what: str) -> None:
    found = set(_mapping(value, what))
    if found != wanted:
        lacking, unknown = sorted(wanted - found), sorted(found - wanted)
        raise CheckpointError(f"{what}: missing keys {lacking}, unknown keys {unknown}")
