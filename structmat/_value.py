"""Immutable values that hold tensors and static fields, and are pytree nodes of torch.

A subclass is written as annotated fields. Which fields are children (tensors, values, non-empty tuples of them) and
which belong to the static spec (None, numbers, strings, empty tuples, and fields marked ``static()``) is decided
once, when the object is constructed, by value, and is carried along by unflatten: ``torch.func.vmap`` unflattens with
integer placeholders, so it must not be decided again.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy
import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat.errors import DeviceError, DtypeError, ShapeError

__all__ = ["Value", "nested", "static"]


def static(**options: Any) -> Any:
    """A dataclass field that is never a child: part of the spec even if it holds a tuple of tensors."""
    return dataclasses.field(metadata={"static": True}, **options)


_NOTHING: frozenset[Any] = frozenset()


@typing.dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, dataclasses.field))
class Value:
    """Base of ``Matrix`` and of the tensor formats: a frozen dataclass, a pytree node, no cache.

    ``core`` gives, for each tensor field, the number of trailing dimensions that are not batch dimensions.
    ``real_fields`` names tensor fields that stay real when the others are complex (phases, angles).
    """

    core: ClassVar[Mapping[str, int]] = {}
    real_fields: ClassVar[frozenset[str]] = frozenset()
    _layout: ClassVar[tuple[tuple[str, bool], ...]] = ()  # name of each field, and whether it is marked static
    _children: tuple[bool, ...]
    _assumed: frozenset[Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls._layout = tuple((f.name, bool(f.metadata.get("static"))) for f in dataclasses.fields(cls))  # type: ignore[arg-type]
        pytree.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls))

    def __post_init__(self) -> None:
        mask, traced = [], False
        for name, fixed in self._layout:
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                mask.append(not fixed)
            else:
                mask.append(not fixed and _is_child(value))
                parts = value if isinstance(value, tuple) else (value,)
                traced = traced or any(isinstance(part, torch.fx.Proxy) for part in parts)
        object.__setattr__(self, "_children", tuple(mask))
        object.__setattr__(self, "_assumed", _NOTHING)
        if traced:
            return  # torch.compile rebuilds the operand of ``A @ x`` on symbols, and again, checked, on tensors
        self._check_fields()
        self._validate()

    def _validate(self) -> None:
        """Checks of one type; called once, at construction, after those every type shares."""

    def _check_fields(self) -> None:
        first: torch.Tensor | None = None
        leads: list[torch.Size] = []
        for name, least in self.core.items():
            value = getattr(self, name)
            if isinstance(value, (tuple, torch.Tensor)):
                for tensor in _leaves(value):
                    first = self._check_tensor(name, least, tensor, first)
                    if tensor.ndim > least:
                        leads.append(tensor.shape[: tensor.ndim - least])
            elif isinstance(value, (list, int, float, complex, str, numpy.ndarray)):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a tensor, got {type(value).__name__}; torch.as_tensor(...) "
                    "makes one"
                )
        if len(leads) > 1 and not torch.compiler.is_compiling():
            self._check_batches(leads)

    def _check_batches(self, leads: list[torch.Size]) -> None:
        try:
            torch.broadcast_shapes(*leads)
        except RuntimeError as error:
            shown = ", ".join(str(tuple(lead)) for lead in dict.fromkeys(leads))
            raise ShapeError(f"{type(self).__name__}: the batch shapes {shown} do not broadcast") from error

    def _check_tensor(self, name: str, least: int, tensor: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
        """One tensor against the number of its dimensions and against the first tensor; returns the first."""
        if tensor.ndim < least:
            raise ShapeError(
                f"{type(self).__name__}: {name} must have at least {least} dimension{'s' * (least > 1)}, "
                f"got shape {tuple(tensor.shape)}"
            )
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise DtypeError(
                f"{type(self).__name__}: {name} must be floating point or complex, got {tensor.dtype}; "
                f"convert it first, e.g. {name}.to(torch.float64)"
            )
        if first is None:
            return tensor
        if tensor.device != first.device:
            raise DeviceError(
                f"{type(self).__name__}: {name} is on {tensor.device}, the other entries on {first.device}"
            )
        if tensor.dtype != first.dtype and not (
            name in self.real_fields and backend.real_of(first.dtype) == tensor.dtype
        ):
            raise DtypeError(f"{type(self).__name__}: {name} is {tensor.dtype}, the other entries are {first.dtype}")
        return first

    def _named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for (name, _), child in zip(self._layout, self._children, strict=True):
            if child:
                for tensor in _leaves(getattr(self, name)):
                    yield name, tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All stored tensors, those of nested values included."""
        return tuple(tensor for _, tensor in self._named_tensors())

    def _map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Self:
        """The same value with each stored tensor replaced; nothing is checked again."""
        new = object.__new__(type(self))
        for (name, _), child in zip(self._layout, self._children, strict=True):
            held = getattr(self, name)
            object.__setattr__(new, name, _map_child(name, held, function) if child else held)
        object.__setattr__(new, "_children", self._children)
        object.__setattr__(new, "_assumed", self._assumed)
        return new

    # -- copies and conversions -----------------------------------------------------------------------------------

    def to(self, *target: torch.device | str | torch.dtype, **options: Any) -> Self:
        """Move to a device, a dtype, or both, as ``torch.Tensor.to``; a real dtype keeps complex entries complex.

        Index fields only move. A type without tensors (``Identity``) records the dtype and the device.
        """
        dtype = options.pop("dtype", next((t for t in target if isinstance(t, torch.dtype)), None))
        device = options.pop("device", next((t for t in target if not isinstance(t, torch.dtype)), None))
        if options:
            raise TypeError(f"{type(self).__name__}.to: unknown options {sorted(options)}; legal: dtype, device")
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise DtypeError(f"{type(self).__name__}.to({dtype}): legal dtypes are floating point or complex")
        new = self._map(lambda name, t: t.to(device=device, dtype=self._target_dtype(name, t, dtype)))
        for value in nested(new):  # all of them are new objects: _map made them
            for name, wanted in (("dtype", dtype), ("device", torch.device(device) if device is not None else None)):
                if wanted is not None and name in value.__dict__:
                    value.__dict__[name] = _recorded(value.__dict__[name], wanted)
        return new

    def _target_dtype(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
        if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.dtype
        if name in self.real_fields:
            return backend.real_of(dtype)
        return backend.complex_of(dtype) if tensor.is_complex() else dtype

    def double(self) -> Self:
        return self.to(torch.float64)

    def float(self) -> Self:
        return self.to(torch.float32)

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self) -> Self:
        return self.to("cuda")

    def clone(self) -> Self:
        return self._map(lambda _, t: t.clone())

    def detach(self) -> Self:
        return self._map(lambda _, t: t.detach())

    @property
    def numel_stored(self) -> int:
        """How many numbers the tensors of the value hold (index fields included; static numbers, as the 2 of
        ``2.0 * Identity(n)``, are none of them)."""
        return sum(t.numel() for t in self.tensors())


def _recorded(old: Any, wanted: Any) -> Any:
    """The recorded dtype or device of a value without tensors, moved; a real dtype keeps a complex one complex."""
    complex_kept = isinstance(old, torch.dtype) and old.is_complex and not wanted.is_complex
    return backend.complex_of(wanted) if complex_kept else wanted


def _is_child(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(_is_child(v) for v in value)
    return isinstance(value, (torch.Tensor, Value, torch.fx.Proxy))


def _leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, Value):
        yield from value.tensors()
    elif isinstance(value, tuple):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def nested(value: Any) -> Iterator["Value"]:
    """The value and all values inside it."""
    if isinstance(value, Value):
        yield value
        for (name, _), child in zip(value._layout, value._children, strict=True):
            if child:
                yield from nested(value.__dict__[name])
    elif isinstance(value, tuple):
        for v in value:
            yield from nested(v)


def _map_child(name: str, value: Any, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, Value):
        return value._map(function)
    if isinstance(value, tuple):
        return tuple(_map_child(name, v, function) for v in value)
    return function(name, value)


def _flatten(value: Value) -> tuple[list[Any], tuple[Any, ...]]:
    mask = value._children
    held = [value.__dict__[name] for name, _ in value._layout]
    rest = tuple(v for v, child in zip(held, mask, strict=True) if not child)
    return [v for v, child in zip(held, mask, strict=True) if child], (mask, rest, value._assumed)


def _unflatten(cls: type[Value], children: Any, spec: tuple[Any, ...]) -> Value:
    mask, rest, assumed = spec[0], iter(spec[1]), spec[2]
    given = iter(children)
    value = object.__new__(cls)
    for (name, _), child in zip(cls._layout, mask, strict=True):
        object.__setattr__(value, name, next(given) if child else next(rest))
    object.__setattr__(value, "_children", mask)
    object.__setattr__(value, "_assumed", assumed)
    return value
