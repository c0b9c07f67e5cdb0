"""What an adapter method is: ``init`` draws its tensors, ``update`` turns them into one change of a weight.

A method never sees a layer or its weight, only a ``Target``; all else (wrapping, freezing, folding, merging, files,
mixed batches, conversion) is written once for all methods. A change is ``Add(A, s)``: ``W + s A``, ``Compose(left,
right)``: ``left W right``, ``Parts``: one of these on some rows, or ``Residual``: what follows the layer.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from structmat.matrix import Matrix
from structmat.types.tucker import Tucker

__all__ = [
    "Add",
    "Compose",
    "Method",
    "Parts",
    "Residual",
    "State",
    "Target",
    "Update",
    "check_rank",
    "draw",
    "from_json",
    "master_dtype",
    "method_class",
    "near",
    "normal",
    "register",
    "to_json",
    "uniform",
    "zeros",
]

Class = TypeVar("Class", bound=type[Any])
_METHODS: dict[str, type[Any]] = {}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a method may know of a layer; never its weight.

    ``in_features`` is per group; the weight is seen as ``(out_features, columns)``. ``dtype`` is the one adapters are
    kept and computed in: the layer's own, and float32 for half precision.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    kernel: tuple[int, ...]
    groups: int
    dtype: torch.dtype
    device: torch.device

    @property
    def columns(self) -> int:
        """Columns of the weight as a matrix: ``in_features`` times the entries of the kernel."""
        return self.in_features * math.prod(self.kernel)


class State(NamedTuple):
    """The tensors of one adapter on one layer. Both parts are saved; frozen ones are buffers."""

    trained: dict[str, torch.Tensor]
    frozen: dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Add:
    """``W + scale * matrix``, a matrix ``(out_features, columns)`` or a tensor in the layout of the weight ``(out,
    in / groups, *kernel)``.
    """

    matrix: Matrix | Tucker
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Compose:
    """``left W right``; None stands for the identity. Both are invertible."""

    left: Matrix | None = None
    right: Matrix | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """An update for each of some spans of rows of the weight, ``(start, stop, update)`` in ascending order without
    overlap; the other rows are kept. ``rows`` is how many rows the weight has.
    """

    updates: tuple[tuple[int, int, Add | Compose], ...]
    rows: int


@dataclasses.dataclass(frozen=True)
class Residual:
    """``y + activation(y M^T) + bias`` for the output y of the layer; changes no weight, so it cannot be merged."""

    matrix: Matrix
    activation: Callable[[torch.Tensor], torch.Tensor]
    bias: torch.Tensor | float = 0.0


Update = Add | Compose | Parts | Residual


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of JSON-able hyper-parameters, which refuses bad ones when it is made.

    Optional: ``penalty(state) -> Tensor`` (a regulariser), ``project_(state)`` (run by ``after_step``, in place).
    ``init`` must also work on the meta device: loading learns the shapes from it before it reads a file. Stacked
    states (each tensor with one more axis in front) must give batched updates if the adapter is to serve ``rows``
    with a LongTensor.
    """

    name: ClassVar[str]

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Tensors of ``target.dtype`` on ``target.device``; ValueError if the method does not fit the layer."""
        ...

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Update:
        """The change of the weight, differentiable in the trained tensors."""
        ...


def draw(method: Method, target: Target, generator: torch.Generator | None) -> State:
    """The start of a method on a target; for a parameter that holds several matrices one for each, stacked."""
    if not target.kind.startswith("Parameter") or target.groups == 1:
        return method.init(target, generator)
    states = [method.init(dataclasses.replace(target, groups=1), generator) for _ in range(target.groups)]
    trained, frozen = (
        {key: torch.stack([getattr(state, part)[key] for state in states]) for key in getattr(states[0], part)}
        for part in ("trained", "frozen")
    )
    return State(trained, frozen)


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype adapters live in on a layer of ``dtype``: at least float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# -- the registry -----------------------------------------------------------------------------------------------------


def register(cls: Class) -> Class:
    """Make a method known by its ``name``, so that files that use it can be loaded; usable as a decorator.

    Raises TypeError if ``cls`` is no frozen dataclass with ``name``, ``init`` and ``update``; ValueError if another
    class has the name.
    """
    name = getattr(cls, "name", None)
    missing = [part for part in ("init", "update") if not callable(getattr(cls, part, None))]
    if not isinstance(cls, type) or not isinstance(name, str) or not name or missing:
        raise TypeError(f"register({cls!r}): a method is a class with a string `name`, and the methods init and update")
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"register({cls.__name__}): a method is a frozen dataclass of hyper-parameters")
    known = _METHODS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"register({cls.__name__}): the name {name!r} belongs to {known.__module__}.{known.__qualname__}"
        )
    _METHODS[name] = cls
    return cls


def method_class(name: str) -> type[Any] | None:
    """The class registered under ``name``, or None."""
    return _METHODS.get(name)


def to_json(method: Method) -> dict[str, Any]:
    """``{"name": ..., "parameters": {...}}``; raises TypeError if a hyper-parameter is not plain JSON."""
    if type(method) is not _METHODS.get(method.name) and getattr(method, "factory", None) is not None:
        raise TypeError(
            f"{method!r} holds a function, which no file can; write a class with init and update and give it to "
            "structmat.adapters.register"
        )
    if type(method) is not _METHODS.get(method.name):
        raise TypeError(
            f"{method!r} is not registered: call structmat.adapters.register({type(method).__name__}) first"
        )
    own = getattr(method, "parameters", None)
    if own is None:
        fields = dataclasses.fields(method)  # type: ignore[arg-type]
        parameters = {field.name: getattr(method, field.name) for field in fields}
    else:
        parameters = own()
    try:
        json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{method!r}: its hyper-parameters are not JSON: {error}") from error
    return {"name": method.name, "parameters": parameters}


def from_json(name: str, parameters: Mapping[str, Any]) -> Method:
    """The method of a file. Raises ValueError or TypeError with the registered names or the legal parameters."""
    cls = _METHODS.get(name)
    if cls is None:
        raise ValueError(
            f"no method {name!r} is registered; known: {', '.join(sorted(_METHODS))}; "
            "import the package that registers it first"
        )
    legal = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(parameters) - set(legal))
    if unknown:
        raise ValueError(f"method {name!r} has no parameter {', '.join(unknown)}; legal: {', '.join(legal)}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    method: Method = cls(**plain)
    return method


# -- what several files check ---------------------------------------------------------------------------------------


def check_rank(owner: str, rank: Any) -> None:
    """A rank is an integer of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{owner}: rank must be an integer of at least 1, got {rank!r}")


def near(wanted: str, known: Iterable[str], limit: int = 5) -> str:
    """The names closest to ``wanted``, for an error message; the first few names where none is close."""
    names = list(dict.fromkeys(known))
    if not names:
        return "there are none"
    # A pattern is compared without its operators, and with the last part of each name too: `.*\.query` is near
    # `layer.0.query`.
    plain = wanted.replace("\\", "").replace(".*", "").strip("^$.()")
    tails = {name: name.rsplit(".", 1)[-1] for name in names}
    scores = {
        name: max(difflib.SequenceMatcher(None, plain, part).ratio() for part in (name, tails[name])) for name in names
    }
    chosen = sorted((name for name in names if scores[name] >= 0.6), key=lambda name: -scores[name])[:limit]
    if chosen:
        return "near: " + ", ".join(map(repr, chosen))
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return "there are: " + ", ".join(map(repr, names[:limit])) + more


def uniform(shape: tuple[int, ...], bound: float, target: Target, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform numbers in ``[-bound, bound]`` for a layer; one seed gives the same numbers on every device."""
    empty = _drawn(shape, target, generator)
    return empty if empty.is_meta else empty.uniform_(-bound, bound, generator=generator).to(target.device)


def normal(shape: tuple[int, ...], std: float, target: Target, generator: torch.Generator | None) -> torch.Tensor:
    """Normal numbers of deviation ``std`` for a layer; one seed gives the same numbers on every device."""
    empty = _drawn(shape, target, generator)
    return empty if empty.is_meta else empty.normal_(0.0, std, generator=generator).to(target.device)


def zeros(shape: tuple[int, ...], target: Target) -> torch.Tensor:
    """Zeros for a layer."""
    return torch.zeros(shape, dtype=target.dtype, device=target.device)


def _drawn(shape: tuple[int, ...], target: Target, generator: torch.Generator | None) -> torch.Tensor:
    # Drawn where the generator lives (the CPU by default) and then moved; the meta device draws nothing.
    place = "meta" if target.device.type == "meta" else generator.device if generator is not None else "cpu"
    return torch.empty(shape, dtype=target.dtype, device=place)
