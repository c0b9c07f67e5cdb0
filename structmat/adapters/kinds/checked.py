"""Finding the kind of a layer, and refusing what cannot be adapted: before anything is changed, with the reason."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from structmat.adapters.kinds.base import Kind, sharded
from structmat.adapters.kinds.parameter import PARAMETER, PARAMETER_T
from structmat.adapters.kinds.rows import CONV1D, LINEAR, OPAQUE
from structmat.adapters.kinds.spatial import SPATIAL
from structmat.adapters.method import Target
from structmat.errors import DtypeError, ShapeError, StructureError

__all__ = ["KINDS", "check_layer", "kind_named", "kind_of"]

KINDS: tuple[Kind, ...] = (LINEAR, CONV1D, *SPATIAL, PARAMETER, PARAMETER_T, OPAQUE)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer, or None."""
    return next((kind for kind in KINDS if kind.fits(layer)), None)


def kind_named(name: str) -> Kind:
    """The kind called ``name``."""
    return next(kind for kind in KINDS if kind.name == name)


def check_layer(name: str, layer: nn.Module) -> Target:
    """The target of a layer, or an error that says why it cannot be adapted."""
    kind = kind_of(layer)
    if kind is None:
        if isinstance(layer, nn.MultiheadAttention):
            raise StructureError(
                f"layer {name!r} is a MultiheadAttention, which computes with its parameters; target them: "
                f"{name}.in_proj_weight (queries, keys and values, see OnRows) and {name}.out_proj"
            )
        legal = ", ".join(k.name for k in (LINEAR, CONV1D, *SPATIAL))
        raise StructureError(
            f"layer {name!r} is a {type(layer).__name__}, which is not supported; legal: {legal}, any linear module "
            "with in_features and out_features, and parameters of two or three dimensions by their names"
        )
    if parametrize.is_parametrized(layer):
        raise StructureError(
            f"layer {name!r} has parametrizations; remove them first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    reason = kind.refuses(layer)
    if reason is not None:
        raise StructureError(f"layer {name!r} is a {type(layer).__name__} that cannot be adapted: {reason}")
    if kind.reads_weight:
        _check_weight(name, layer)
    out_features, in_features, kernel, groups = kind.sizes(layer)
    if not out_features or not in_features:
        raise ShapeError(f"layer {name!r} is empty: it maps {in_features} features to {out_features}")
    dtype, device = kind.place(layer)
    return Target(name, kind.name, out_features, in_features, kernel, groups, dtype, device)


def _check_weight(name: str, layer: nn.Module) -> None:
    weight = layer.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise StructureError(f"layer {name!r} has no sizes yet; run the model once on an input first")
    if sharded(weight):
        raise StructureError(f"layer {name!r} is sharded over devices: attach or load adapters before fully_shard")
    if not isinstance(weight, torch.Tensor):
        raise StructureError(f"layer {name!r} does not store a tensor as its weight")
    if weight.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise DtypeError(f"layer {name!r} has a weight of {weight.dtype}; adapters need one of {names}")
