"""Finding things in a model: its layers by name, the wrappers and their roster, patterns, parameters under stable
names.

Names are those of the model before anything was attached: ``encoder.query.weight``, also where the weight now lives
in ``encoder.query.base``. A module that is registered under several names counts once, under the first.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from structmat.adapters.kinds import ParameterOf, kind_of, sharded
from structmat.adapters.layer import Adapted, AdaptedParameter, Roster
from structmat.adapters.method import near

__all__ = [
    "Pattern",
    "Place",
    "adapted",
    "matching",
    "parameters_by_name",
    "parts_of",
    "places",
    "require_apart",
    "require_unmerged",
    "require_whole",
    "roster_of",
    "selected_names",
]

Pattern = str | re.Pattern[str] | Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A module of the model (a wrapper counts as the layer it wraps), its names, and where it is registered."""

    module: nn.Module
    names: tuple[str, ...]
    parents: tuple[tuple[nn.Module, str], ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def layer(self) -> nn.Module:
        """The layer itself, unwrapped."""
        return self.module.base if isinstance(self.module, Adapted) else self.module

    def replace(self, new: nn.Module) -> None:
        """Register ``new`` everywhere in the place of the module."""
        for parent, child in self.parents:
            if isinstance(new, ParameterOf):
                _unparametrize(parent, child, self.module)
            elif isinstance(new, AdaptedParameter):
                new.order = tuple(parent._parameters)
                parametrize.register_parametrization(parent, child, new)
            else:
                parent._modules[child] = new


def _unparametrize(owner: nn.Module, key: str, wrapper: nn.Module) -> None:
    """The parameter itself again, in its old place among the others.

    A deep copy of the module shares its class, of which torch deletes the attribute, so the module gets its own first.
    """
    cls = type(owner)
    kept = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    owner.__class__ = type(cls.__name__, cls.__bases__, kept)
    parametrize.remove_parametrizations(owner, key, leave_parametrized=False)
    assert isinstance(wrapper, AdaptedParameter)
    for name in wrapper.order:
        if name in owner._parameters:
            owner._parameters[name] = owner._parameters.pop(name)


def _walk(
    module: nn.Module, prefix: str, parent: nn.Module | None, child: str
) -> Iterator[tuple[str, nn.Module, nn.Module | None, str]]:
    yield prefix, module, parent, child
    if isinstance(module, Adapted):
        return
    stem = f"{prefix}." if prefix else ""
    for key, inner in module._modules.items():
        if key == "parametrizations" and isinstance(inner, nn.ModuleDict):
            lists: dict[str, Any] = dict(inner.items())
            ours = {k: p[0] for k, p in lists.items() if isinstance(p[0], AdaptedParameter)}
            for own, wrapper in ours.items():
                yield stem + own, wrapper, module, own
            if len(ours) == len(inner):
                continue
        if inner is not None:
            yield from _walk(inner, stem + key, module, key)
    if module._parameters and kind_of(module) is None:
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim in (2, 3) and parameter.is_floating_point():
                yield stem + key, ParameterOf(module, key), module, key


def places(model: nn.Module) -> dict[str, Place]:
    """All modules of the model by their first name, the model itself (name "") included; wrappers are not entered.

    Parameters of two or three dimensions whose module is no layer of a known kind count as modules under their names.
    """
    names: dict[int, list[str]] = {}
    parents: dict[int, dict[tuple[int, str], tuple[nn.Module, str]]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module, parent, child in _walk(model, "", None, ""):
        modules[id(module)] = module
        names.setdefault(id(module), []).append(name)
        if parent is not None:
            parents.setdefault(id(module), {})[(id(parent), child)] = (parent, child)
    return {
        names[key][0]: Place(module, tuple(names[key]), tuple(parents.get(key, {}).values()))
        for key, module in modules.items()
    }


def parts_of(place: Place, known: Mapping[str, Place]) -> list[str]:
    """The names of the layers inside a module that could be adapted by themselves: of a block of layers that tells
    its ``in_features`` and ``out_features``, say. (A quantised layer may hold tables and parameters, which are none.)
    """
    if next(place.layer.children(), None) is None:
        return []
    starts = tuple(f"{name}." for name in place.names if name)
    return [
        name
        for name, other in known.items()
        if name.startswith(starts or "")
        and other is not place
        and not isinstance(other.layer, (ParameterOf, nn.Embedding))
        and kind_of(other.layer) is not None
    ]


def require_apart(chosen: Iterable[Place], verb: str) -> None:
    """Refuse adapters on a module and on a part of it: the part would be out of reach behind the wrapper."""
    wanted: dict[int, Place] = {}
    for place in chosen:  # a parameter stands for the module that holds it
        held = isinstance(place.layer, ParameterOf)
        wanted[id(place.parents[0][0] if held else place.layer)] = place
    for place in wanted.values():
        for name, inner in place.layer.named_modules():
            if inner is place.layer:
                continue
            if isinstance(inner, Adapted):
                raise ValueError(
                    f"{verb}: {place.name!r} holds the layer {place.name}.{name} that has adapters already; detach "
                    "those first, or adapt its parts alone"
                )
            if id(inner) in wanted:
                raise ValueError(
                    f"{verb}: {wanted[id(inner)].name!r} is a part of {place.name!r}, and only one of the two can be "
                    "adapted; leave one out with exclude="
                )


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """The wrappers of the model by name."""
    return {name: place.module for name, place in places(model).items() if isinstance(place.module, Adapted)}


def roster_of(model: nn.Module, *, needed: bool = True) -> Roster | None:
    """The roster that all wrappers of the model share; None where there are no adapters and none are ``needed``.

    Raises ValueError without adapters, or if they were attached to a larger or smaller module than ``model``.
    """
    found = adapted(model)
    if not found:
        if needed:
            raise ValueError(f"{type(model).__name__} has no adapters; call adapters.attach or adapters.load first")
        return None
    for name, layer in found.items():
        slot = next(iter(layer.adapters.values()))
        known: str = slot.target.name  # type: ignore[union-attr, assignment]
        if known != name:
            raise ValueError(
                f"the adapters were attached to another module than this {type(model).__name__}: layer {name!r} was "
                f"called {known!r} there; call this on that module"
            )
    rosters = {id(layer.roster): layer.roster for layer in found.values()}
    if len(rosters) > 1:
        raise ValueError(f"{type(model).__name__} joins parts that got adapters separately; call this on those parts")
    return next(iter(rosters.values()))


def require_unmerged(roster: Roster, verb: str) -> None:
    """Refuse what would make a merged weight wrong."""
    if roster.merged is not None:
        raise RuntimeError(f"{verb}: the adapters are merged into the weights; call adapters.unmerge first")


def require_whole(model: nn.Module, verb: str) -> None:
    """Refuse what would need a parameter that is sharded over devices to be written or kept whole."""
    for name, parameter in model.named_parameters():
        if sharded(parameter):
            raise RuntimeError(
                f"{verb}: the parameter {name!r} is sharded over devices; adapters.save gathers the adapters, "
                f"load them on a model that is not sharded and call {verb} there"
            )


# -- names ------------------------------------------------------------------------------------------------------------


def matching(pattern: Pattern, names: Iterable[str], what: str) -> list[str]:
    """The names a pattern selects: a regular expression that matches the whole name, or a list of names.

    Raises TypeError for neither; ValueError for a bad expression, or a listed name that does not exist. A pattern may
    select nothing.
    """
    known = list(names)
    if isinstance(pattern, str | re.Pattern):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{what}={pattern!r} is no regular expression: {error}") from None
        return [name for name in known if expression.fullmatch(name)]
    if not isinstance(pattern, Iterable):
        raise TypeError(f"{what}: a regular expression or a list of names, got {pattern!r}")
    listed = list(pattern)
    for name in listed:
        if not isinstance(name, str):
            raise ValueError(f"{what}: a list of names holds strings, got {name!r}")
        if name not in known:
            raise ValueError(f"{what}: {name!r} does not exist (names are full names); {near(name, known)}")
    wanted = set(listed)
    return [name for name in known if name in wanted]


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters under stable names, without those of adapters; a shared one has its first name."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, place in places(model).items():
        if isinstance(place.module, AdaptedParameter):
            found[prefix] = place.layer.weight  # type: ignore[assignment]
            seen.add(id(place.layer.weight))
            continue
        for key, parameter in place.layer._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{prefix}.{key}" if prefix else key] = parameter
    return found


def selected_names(names: str | Iterable[str] | None, known: Sequence[str], verb: str) -> tuple[str, ...]:
    """Adapter names as a tuple without repetition; None means all."""
    if names is None:
        return tuple(known)
    wanted = (names,) if isinstance(names, str) else tuple(names)
    for name in wanted:
        if name not in known:
            raise ValueError(f"{verb}: there is no adapter {name!r}; {near(str(name), known)}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"{verb}: an adapter is named twice in {list(wanted)}")
    return wanted
