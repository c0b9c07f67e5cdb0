"""The kinds of layers that adapters wrap: how each stores its weight, and how rows pass through it.

A kind is the only place that knows a layer's class. It shows the weight as a matrix ``(out_features, columns)`` and
runs a chain of updates; one more kind of layer is one more class here.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from structmat.adapters import folding
from structmat.adapters.method import Target, Update, master_dtype
from structmat.errors import DtypeError, ShapeError, StructureError

__all__ = ["CONV1D", "LINEAR", "Kind", "check_layer", "kind_named", "kind_of"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Kind(Protocol):
    """One kind of layer."""

    name: str

    def fits(self, layer: nn.Module) -> bool:
        """Whether the layer is of this kind."""
        ...

    def sizes(self, layer: nn.Module) -> tuple[int, int, tuple[int, ...], int]:
        """``(out_features, in_features, kernel, groups)``."""
        ...

    def view(self, weight: torch.Tensor) -> torch.Tensor:
        """The stored weight as a matrix ``(out_features, columns)``, a view."""
        ...

    def stored(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A matrix ``(out_features, columns)`` in the layout of the stored weight ``like``."""
        ...

    def forward(self, layer: nn.Module, x: torch.Tensor, chain: Sequence[Update], dtype: torch.dtype) -> torch.Tensor:
        """The output of the layer with the chain, whose updates are of ``dtype``, folded into its weight."""
        ...


class _Rows:
    """What the kinds share whose layers map the last axis of x: ``y = x W^T + b``."""

    name = ""

    def view(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def stored(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return matrix

    def forward(self, layer: nn.Module, x: torch.Tensor, chain: Sequence[Update], dtype: torch.dtype) -> torch.Tensor:
        """The chain on activations; the layer itself is called, so that its hooks run and its weight may be of any
        storage.

        Only a left factor needs the product without the bias, which then bypasses the layer's own forward.
        """
        given = x.dtype
        found: list[torch.dtype] = []
        bias = layer.bias if folding.has_left(chain) else None
        without_bias = bias is not None

        def base(rows: torch.Tensor) -> torch.Tensor:
            rows = rows.to(given)
            y: torch.Tensor = nn.functional.linear(rows, self.view(layer.weight)) if without_bias else layer(rows)  # type: ignore[arg-type]
            found.append(y.dtype)
            return y

        y = folding.run(chain, x, base, dtype)
        if without_bias:
            y = y + bias.to(y.dtype)  # type: ignore[union-attr, operator]
        return y.to(found[0])


class _Linear(_Rows):
    """``torch.nn.Linear`` and its subclasses with the same forward."""

    name = "Linear"

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward

    def sizes(self, layer: nn.Module) -> tuple[int, int, tuple[int, ...], int]:
        out_features, in_features = _stored(layer).shape
        return out_features, in_features, (), 1


class _Conv1D(_Rows):
    """``transformers.pytorch_utils.Conv1D`` (GPT-2): a linear layer that stores its weight as ``(in, out)``."""

    name = "Conv1D"

    def fits(self, layer: nn.Module) -> bool:
        # A Conv1D exists only where transformers was imported, so it is looked up and never imported here.
        found = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
        return found is not None and isinstance(layer, found) and type(layer).forward is found.forward

    def sizes(self, layer: nn.Module) -> tuple[int, int, tuple[int, ...], int]:
        in_features, out_features = _stored(layer).shape
        return out_features, in_features, (), 1

    def view(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.mT

    def stored(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return matrix.mT.contiguous()


def _stored(layer: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return weight


LINEAR: Kind = _Linear()
CONV1D: Kind = _Conv1D()
_KINDS = (LINEAR, CONV1D)


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer, or None."""
    return next((kind for kind in _KINDS if kind.fits(layer)), None)


def kind_named(name: str) -> Kind:
    """The kind called ``name``."""
    return next(kind for kind in _KINDS if kind.name == name)


def check_layer(name: str, layer: nn.Module, parent: nn.Module | None) -> Target:
    """The target of a layer, or an error that says why it cannot be adapted."""
    kind = kind_of(layer)
    legal = ", ".join(k.name for k in _KINDS)
    if kind is None:
        raise StructureError(f"layer {name!r} is a {type(layer).__name__}, which is not supported; legal: {legal}")
    if parametrize.is_parametrized(layer):
        raise StructureError(
            f"layer {name!r} has parametrizations; remove them first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if isinstance(parent, nn.MultiheadAttention):
        raise StructureError(
            f"layer {name!r} belongs to a MultiheadAttention, which reads its weight and never calls it; "
            "exclude it and adapt the layers around it"
        )
    weight = layer.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise StructureError(f"layer {name!r} has no sizes yet; run the model once on an input first")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise StructureError(f"layer {name!r} does not store a plain matrix as its weight, which {kind.name} needs")
    if weight.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise DtypeError(f"layer {name!r} has a weight of {weight.dtype}; adapters need one of {names}")
    out_features, in_features, kernel, groups = kind.sizes(layer)
    if not out_features or not in_features:
        raise ShapeError(f"layer {name!r} is empty: its weight has shape {tuple(weight.shape)}")
    return Target(name, kind.name, out_features, in_features, kernel, groups, master_dtype(weight.dtype), weight.device)
