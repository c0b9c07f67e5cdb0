"""Putting adapters on a model, and taking them off.

``attach`` plans first and acts last: names, patterns, layers, the tensors of every layer and the extra parameters are
all found and checked before the first module is replaced, so a call that fails leaves the model as it was.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.choosing import bias_parameters, choose_layers, extra_parameters
from structmat.adapters.kinds import ParameterOf, check_layer, kind_named
from structmat.adapters.layer import Adapted, AdaptedParameter, Roster, Slot
from structmat.adapters.merge import unmerge
from structmat.adapters.method import (
    Add,
    Compose,
    Method,
    Parts,
    Residual,
    State,
    Target,
    Update,
    draw,
)
from structmat.adapters.mixed import BASE
from structmat.adapters.refused import require_legal
from structmat.adapters.report import Attached, count
from structmat.adapters.tree import (
    Pattern,
    Place,
    parameters_by_name,
    places,
    require_apart,
    require_unmerged,
    roster_of,
    selected_names,
)
from structmat.errors import DeviceError, DtypeError, ShapeError, StructureError
from structmat.matrix import Matrix
from structmat.types.tucker import Tucker

__all__ = ["Planned", "attach", "check_name", "check_update", "commit", "detach", "prepare_slot"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """One adapter on one layer, ready to be put there."""

    place: Place
    slot: Slot


def attach(
    model: nn.Module,
    method: Method | Mapping[str, Method],
    targets: Pattern | None = None,
    exclude: Pattern | None = None,
    name: str = "default",
    train: Pattern | None = None,
    train_bias: bool = False,
    generator: torch.Generator | None = None,
) -> Attached:
    """Put a new adapter on the layers that match, make it active after those already active, and freeze the rest.

    Args:
        method: a method, or ``{pattern: method}``: each layer takes the first pattern that matches its name.
        targets: a regular expression for whole module names, a list of full names, or "all-linear" (every supported
            layer but the output embedding, those inside a MultiheadAttention and those in ``train``). An expression,
            and "all-linear", pass over modules that are made of layers, whatever sizes they tell. May be left out if
            ``method`` is a mapping.
        exclude: module names to leave out, as ``targets``.
        name: letters, digits, ``_`` and ``-``.
        train: names of parameters or modules of the model (regular expression or list) that are trained with the
            adapter and saved with it, a new head for instance. They are the model's own: ``disabled`` and ``detach``
            leave them as trained. Buffers are not among them: a BatchNorm in training mode, frozen or not, moves its
            running statistics, which no adapter's file holds, so put such layers into ``eval()``.
        train_bias: also train the biases of the adapted layers, in the same sense.
        generator: where random starts are drawn from; one seed gives one start on every device.
    Returns: a report that prints as one line. (A model on the meta device gets adapters without numbers, good for
        counting them: attach after its weights are there.)
    Raises: ValueError, StructureError, DtypeError or ShapeError, before the model is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach: the model must be a torch.nn.Module, got {type(model).__name__}")
    roster = roster_of(model, needed=False)
    check_name(name, roster.order if roster else (), "attach")
    if roster is not None:
        require_unmerged(roster, "attach")
        if roster.rows is not None:
            raise RuntimeError("attach: leave the adapters.rows context first")
    known = places(model)
    extras = extra_parameters(model, known, train)
    chosen = choose_layers(model, known, method, targets, exclude, extras)
    planned = [prepare_slot(place, one, generator) for place, one in chosen]
    require_apart((plan.place for plan in planned), "attach")
    if train_bias:
        extras += bias_parameters(model, [plan.place for plan in planned])
    return commit(model, {name: planned}, {name: tuple(dict.fromkeys(extras))}, trainable=(name,))[0]


def commit(
    model: nn.Module,
    planned: Mapping[str, Sequence[Planned]],
    extras: Mapping[str, tuple[str, ...]],
    *,
    trainable: Sequence[str],
    active: Sequence[tuple[str, float]] | None = None,
) -> list[Attached]:
    """Put planned adapters on the model; nothing here can fail. With ``trainable`` names all else is frozen."""
    roster = roster_of(model, needed=False) or Roster()
    own = parameters_by_name(model)
    if not roster.order:
        roster.trainable = {key: parameter.requires_grad for key, parameter in own.items()}
    if trainable:
        model.requires_grad_(False)
    wrappers: dict[int, Adapted] = {}
    for name, plans in planned.items():
        for plan in plans:
            layer = plan.place.layer
            wrapper = plan.place.module if isinstance(plan.place.module, Adapted) else wrappers.get(id(layer))
            if wrapper is None:
                cls = AdaptedParameter if isinstance(layer, ParameterOf) else Adapted
                wrapper = wrappers[id(layer)] = cls(layer, kind_named(plan.slot.target.kind), roster)
                plan.place.replace(wrapper)
            plan.slot.requires_grad_(name in trainable)
            plan.slot.train(wrapper.training)
            wrapper.adapters[name] = plan.slot
        for key in extras[name]:
            own[key].requires_grad_(own[key].requires_grad or name in trainable)
        roster.extras[name] = extras[name]
    roster.order += tuple(planned)
    roster.active += tuple((name, 1.0) for name in planned) if active is None else tuple(active)
    train, total = count(model)
    reports: list[Attached] = []
    for name, plans in planned.items():
        numbers = sum(p.numel() for plan in plans for p in plan.slot.parameters())
        reports.append(Attached(name, tuple(p.place.name for p in plans), numbers, train, total, extras[name]))
    return reports


def detach(model: nn.Module, names: str | Sequence[str] | None = None) -> None:
    """Remove adapters (default: all); a layer without any is the original module again.

    Merged weights are restored first. After ``merge(keep="none")`` they cannot be, so they stay: that is how to bake
    adapters into a model. When the last adapter goes, ``requires_grad`` is as it was before the first came; before
    that, parameters that only the removed ones trained (``train``, ``train_bias``) are frozen like the rest. All keep
    their values.
    """
    roster = roster_of(model)
    assert roster is not None
    gone = set(selected_names(names, roster.order, "detach"))
    if roster.rows is not None:
        raise RuntimeError("detach: leave the adapters.rows context first")
    if roster.merged == "none" and gone != set(roster.order):
        raise RuntimeError(
            'detach: after merge(keep="none") the adapters can only be removed together; or call adapters.unmerge'
        )
    if roster.merged in ("copy", "cpu"):
        unmerge(model)
    for place in places(model).values():
        if isinstance(place.module, Adapted):
            place.module.bank = None
            for name in gone & set(place.module.adapters):
                del place.module.adapters[name]
            if not len(place.module.adapters):
                place.module.base.train(place.module.training)
                place.replace(place.module.base)
    roster.order = tuple(name for name in roster.order if name not in gone)
    roster.active = tuple(pair for pair in roster.active if pair[0] not in gone)
    roster.stacked = () if gone & set(roster.stacked) else roster.stacked
    loose = {key for name in gone for key in roster.extras.pop(name)}
    own = parameters_by_name(model)
    if not roster.order:
        for key, flag in roster.trainable.items():
            if key in own:
                own[key].requires_grad_(flag)
        return
    held = {key for extras in roster.extras.values() for key in extras}
    if not any(own[key].requires_grad for key in own.keys() - held - loose):  # the model is frozen, so they are too
        for key in loose - held:
            own[key].requires_grad_(False)


# -- planning --------------------------------------------------------------------------------------------------------


def check_name(name: str, taken: Sequence[str], verb: str) -> None:
    """An adapter's name is part of state_dict keys and of files."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{verb}: an adapter's name has 1 to 64 letters, digits, _ or -, got {name!r}")
    if name == BASE:
        raise ValueError(f"{verb}: an adapter cannot be called {BASE!r}, which stands for no adapter in rows")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{verb}: an adapter cannot be called {name!r}, which torch modules use themselves")
    if name in taken:
        raise ValueError(f"{verb}: there is already an adapter {name!r}; choose another name=, or detach it first")


def prepare_slot(place: Place, method: Method, generator: torch.Generator | None) -> Planned:
    """The tensors of a method for a layer, checked: dtype, device, and the shape of the update they give."""
    target = check_layer(place.name, place.layer)
    state = draw(method, target, generator)
    _check_state(method, state, target)
    check_update(method, state, target)
    return Planned(place, Slot(method, target, state))


def _check_state(method: Method, state: State, target: Target) -> None:
    """What ``init`` of a method, which anybody may write, has returned."""
    on = f"{method!r} on {target.name!r}"
    if not isinstance(state, State) or not isinstance(state.trained, dict) or not isinstance(state.frozen, dict):
        raise TypeError(f"{on}: init must return State(trained, frozen), two dictionaries of tensors, got {state!r}")
    for key, tensor in [*state.trained.items(), *state.frozen.items()]:
        if not key.isidentifier() or hasattr(nn.Module(), key) or key in ("method", "target", "update", "state"):
            raise ValueError(f"{method!r}: a tensor of its state cannot be called {key!r}")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{on}: {key} must be a tensor, got {tensor!r}")
        floating = tensor.is_floating_point()
        if (floating and tensor.dtype != target.dtype) or (not floating and key in state.trained):
            raise DtypeError(f"{on}: {key} is {tensor.dtype}, the layer asks for {target.dtype}")
        if tensor.device != target.device:
            raise DeviceError(f"{on}: {key} is on {tensor.device}, the layer on {target.device}")
    both = state.trained.keys() & state.frozen.keys()
    if both:
        raise ValueError(f"{method!r}: {min(both)!r} is among the trained and among the frozen tensors of its state")


def check_update(method: Method, state: State, target: Target) -> Update:
    """The update of a state, which must fit the layer."""
    with torch.no_grad():
        update = method.update(state, target)
    _check_shapes(method, target, update, target.out_features)
    require_legal(method, target, update)
    return update


def _check_shapes(method: Method, target: Target, update: Update, m: int) -> None:
    n = target.columns
    wanted: list[tuple[str, Any, tuple[int, int]]] = []
    for part, value in ((k, getattr(update, k, None)) for k in ("matrix", "left", "right")):
        if value is not None and not isinstance(value, (Matrix, Tucker)):
            raise TypeError(
                f"{method!r} on {target.name!r}: {part} of its update is a {type(value).__name__}, no matrix of "
                "structmat; sm.Dense(entries) is one for any tensor"
            )
    if isinstance(update, Add):
        wanted = [("matrix", folding.as_matrix(update.matrix), (m, n))]
    elif isinstance(update, Compose):
        wanted = [(k, a, (s, s)) for k, a, s in (("left", update.left, m), ("right", update.right, n)) if a is not None]
    elif isinstance(update, Residual):
        wanted = [("matrix", update.matrix, (m, m))]
    elif isinstance(update, Parts):
        ends = [0, *(end for start, stop, _ in update.updates for end in (start, stop)), m]
        if update.rows != m or ends != sorted(ends):
            spans = [(start, stop) for start, stop, _ in update.updates]
            raise ShapeError(
                f"{method!r} on {target.name!r}: spans {spans} of {update.rows} rows, the layer has {m}; they "
                "ascend and do not overlap"
            )
        for start, stop, one in update.updates:
            if not isinstance(one, (Add, Compose)):
                raise StructureError(
                    f"{method!r} on {target.name!r}: the rows {start} to {stop} take an Add or a Compose, got a "
                    f"{type(one).__name__}, which changes no rows of a weight"
                )
            _check_shapes(method, target, one, stop - start)
    else:
        raise TypeError(f"{method!r}.update must return Add, Compose, Parts or Residual, got {type(update).__name__}")
    for part, matrix, shape in wanted:
        if tuple(matrix.shape[-2:]) != shape:
            raise ShapeError(f"{method!r} on {target.name!r}: {part} is {matrix!r}, the layer needs {shape}")
