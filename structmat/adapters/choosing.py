"""Which layers ``attach`` takes, with which method, and which parameters train along."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from structmat.adapters.experiment import Delta, Rotation
from structmat.adapters.kinds import kind_of
from structmat.adapters.layer import Adapted
from structmat.adapters.method import Method, near, to_json
from structmat.adapters.tree import Pattern, Place, matching, parameters_by_name, parts_of
from structmat.errors import DtypeError, StructureError

__all__ = ["bias_parameters", "choose_layers", "extra_parameters"]

ALL_LINEAR = "all-linear"


def choose_layers(
    model: nn.Module,
    known: Mapping[str, Place],
    method: Method | Mapping[str, Method],
    targets: Pattern | None,
    exclude: Pattern | None,
    extras: Sequence[str],
) -> list[tuple[Place, Method]]:
    """Each layer to be adapted, with its method; ValueError for an argument of ``attach`` that selects nothing."""
    patterns: dict[str, Method] = dict(method) if isinstance(method, Mapping) else {}
    for one in patterns.values() if patterns else [method]:
        _check_method(one)
    if targets is None and not patterns:
        raise ValueError('attach: say which layers: targets=r".*\\.query", a list of names, or "all-linear"')
    names = {alias: place for place in known.values() for alias in place.names if alias}
    whole = kind_of(model) is not None and not parts_of(known[""], known)
    if whole or isinstance(model, Adapted):
        raise ValueError(
            f"attach: the model itself is a {type(model).__name__}, which cannot be replaced in place; "
            "wrap it: model = torch.nn.Sequential(model)"
        )
    left_out = set() if exclude is None else {names[n].name for n in matching(exclude, names, "exclude")}
    if exclude is not None and not left_out:
        raise ValueError(f"attach: exclude={exclude!r} matches no module; {near(str(exclude), names)}")
    allowed = (
        [names[n] for n in _supported(model, known, extras)]
        if targets == ALL_LINEAR
        else _matched(targets, names, known)
    )
    if not patterns:
        chosen = [(place, method) for place in allowed if place.name not in left_out]
        _need_some(chosen, f"targets={targets!r}", names)
        return chosen  # type: ignore[return-value]
    picked: dict[str, tuple[Place, Method]] = {}
    for pattern, one in patterns.items():
        found = [place for place in _matched(pattern, names, known) if place in allowed or targets is None]
        found = [place for place in found if place.name not in left_out]
        _need_some(found, f"pattern {pattern!r}", names)
        for place in found:
            picked.setdefault(place.name, (place, one))
    return list(picked.values())


def _matched(pattern: Pattern | None, names: Mapping[str, Place], known: Mapping[str, Place]) -> list[Place]:
    """The layers of a pattern; an expression passes over containers: modules that store nothing and are no layer, or
    are made of layers.
    """
    if pattern is None:
        return []
    found = list(dict.fromkeys(names[name] for name in matching(pattern, names, "targets")))
    if not isinstance(pattern, str | re.Pattern):
        return found
    stores = [any(v is not None for v in p.layer._parameters.values()) for p in found]
    return [p for p, own in zip(found, stores, strict=True) if own or (kind_of(p.layer) and not parts_of(p, known))]


def _supported(model: nn.Module, known: Mapping[str, Place], extras: Sequence[str]) -> list[str]:
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, place in known.items()
        if name
        and (kind := kind_of(place.layer)) is not None
        and kind.by_rows
        and place.module is not output
        and place.layer is not output
        and not any(isinstance(parent, nn.MultiheadAttention) for parent, _ in place.parents)
        and f"{name}.weight" not in extras
        and not parts_of(place, known)
    ]


def _need_some(chosen: Sequence[object], what: str, names: Mapping[str, Place]) -> None:
    if not chosen:
        usable = [name for name, place in names.items() if kind_of(place.layer) is not None]
        raise ValueError(
            f"attach: {what} matches no layer; layers that can be adapted, {near(what.split('=', 1)[-1], usable)}"
        )


def _check_method(method: object) -> Method:
    if not isinstance(method, Method) or isinstance(method, type):
        raise TypeError(
            f"attach: a method has a name, init and update (adapters.HRA(rank=8), for instance), got {method!r}"
        )
    if not isinstance(method, (Delta, Rotation)):
        to_json(method)
    return method


def extra_parameters(model: nn.Module, known: Mapping[str, Place], train: Pattern | None) -> list[str]:
    """The parameters that ``train`` names, by their own names or by the name of a module that holds them."""
    if train is None:
        return []
    own = parameters_by_name(model)
    modules = [name for name in known if name]
    hit = set(matching(train, [*own, *modules], "train"))
    found = [key for key in own if key in hit or any(key.startswith(module + ".") for module in hit)]
    if not found:
        raise ValueError(
            f"attach: train={train!r} matches no parameter and no module; {near(str(train), [*modules, *own])}"
        )
    for key in found:
        if not own[key].is_floating_point():
            raise DtypeError(
                f"attach: train={train!r} selects {key!r}, a parameter of {own[key].dtype} (a quantised one?): it has "
                "no gradient; name the parameters that can be trained"
            )
    return found


def bias_parameters(model: nn.Module, adapted: Iterable[Place]) -> list[str]:
    """The biases of layers, each under the first name it has in the model (another layer may share it)."""
    names = {id(parameter): key for key, parameter in parameters_by_name(model).items()}
    found: list[str] = []
    for place in adapted:
        bias = getattr(place.layer, "bias", None)
        if bias is None:
            continue
        if id(bias) not in names or not bias.is_floating_point():
            raise StructureError(
                f"attach: train_bias=True, but the bias of {place.name!r}, a {type(place.layer).__name__}, is no "
                "parameter that can be trained; leave that layer out with exclude=, or set train_bias=False"
            )
        found.append(names[id(bias)])
    return found
