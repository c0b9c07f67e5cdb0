"""Folding PEFT's adapters into a layer's weight, plain or quantised, and taking them out again."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters import folding
from structmat.errors import StructureError

if TYPE_CHECKING:
    from structmat.adapters.peft.layer import StructmatLayer

__all__ = ["backend", "matrix", "merge", "unmerge"]

try:  # peft 0.20 and later
    _resolve = need("peft.utils.quantization_utils", "peft").resolve_quantization_backend
except ImportError:
    _resolve = None


def matrix(layer: "StructmatLayer") -> torch.Tensor:
    """The frozen weight as a matrix ``(out_features, columns)``, also while merged; a quantised one as the layer gives
    it, which is never read.
    """
    if layer.kind.reads_weight:
        weight = layer.kept[0] if layer.kept else layer.base_layer.weight
        return layer.kind.matrix(layer.base_layer, weight)  # type: ignore[arg-type]
    return layer.kind.dense(layer.kept_layer[0] if layer.kept_layer else layer.base_layer)  # type: ignore[attr-defined]


def backend(layer: "StructmatLayer") -> Any:
    """How this peft reads and writes the quantised weight of a layer; None if it cannot."""
    if _resolve is None:
        return None
    base = layer.kept_layer[0] if layer.kept_layer else layer.base_layer
    try:
        found = _resolve(base, get_apply_tensor_subclass=layer.requantise)
    except (ValueError, ImportError):  # torchao in a model that transformers did not quantise, or newer than this peft
        return None
    return found if found is not None and found.supports_merge else None


def merge(layer: "StructmatLayer", fresh: list[str], safe: bool) -> None:
    """Fold what is merged already and ``fresh``, in the order in which the adapters are active; without dropout in
    every mode.
    """
    wanted = {*layer.merged_adapters, *fresh}
    names = [name for name in layer.active_adapters if name in wanted]
    names += [name for name in [*layer.merged_adapters, *fresh] if name not in names]
    left_out = [name for name in layer.active_adapters if name in layer.methods and name not in wanted]
    if left_out:
        warnings.warn(
            f"merging {', '.join(names)}: as for every method of PEFT, the active {', '.join(left_out)} will not act "
            "until the layer is unmerged",
            stacklevel=3,
        )
    if hasattr(getattr(layer.base_layer, "weight", None) if layer.kind.reads_weight else None, "device_mesh"):
        raise RuntimeError(f"merge: the weight of {layer.key!r} is sharded over devices; gather it first")
    with torch.no_grad():
        if layer.kind.reads_weight:
            _merge_plain(layer, names, safe)
        else:
            _merge_quantised(layer, names, safe)
    layer.merged_adapters = names


def _merge_plain(layer: "StructmatLayer", names: list[str], safe: bool) -> None:
    base = layer.base_layer
    before: nn.Parameter = base.weight  # type: ignore[assignment]
    base.weight = layer.kept[0] if layer.kept else before
    merged = layer.kind.folded(base, layer.chain(names, training=False)).detach()
    if safe and not torch.isfinite(merged).all():
        base.weight = before
        raise _broken(layer, names)
    layer.kept = [base.weight]
    base.weight = nn.Parameter(merged, requires_grad=False)


def _merge_quantised(layer: "StructmatLayer", names: list[str], safe: bool) -> None:
    quantised = backend(layer)
    if quantised is None:
        raise StructureError(
            f"merge: {layer.key!r} is a {type(layer.base_layer).__name__}, which this peft cannot dequantise and write "
            "back; serve it unmerged, or use structmat.adapters.attach and merge(dequantise=True)"
        )
    dense = quantised.get_base_weight(layer.kept_layer[0] if layer.kept_layer else layer.base_layer)
    with folding.full_precision(dense.device.type):
        merged = folding.fold(dense, layer.chain(names, training=False)).to(dense.dtype)
    if safe and not torch.isfinite(merged).all():
        raise _broken(layer, names)
    if not layer.kept_layer:
        layer.kept_layer = [layer.base_layer]
    layer.base_layer = copy.deepcopy(layer.kept_layer[0])  # the backend writes over it
    quantised.set_base_weight(layer, merged)


def _broken(layer: "StructmatLayer", names: list[str]) -> ValueError:
    return ValueError(f"merge: {layer.key!r} with {', '.join(names)} has a weight that is not finite; nothing merged")


def unmerge(layer: "StructmatLayer") -> None:
    """The layer as it was, bit for bit."""
    if not layer.merged_adapters:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=3)
        return
    if layer.kept_layer:
        layer.base_layer = layer.kept_layer.pop().train(layer.training)
    elif layer.kept:
        layer.base_layer.weight = layer.kept.pop()
    layer.merged_adapters = []
