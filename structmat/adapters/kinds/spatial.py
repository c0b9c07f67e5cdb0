"""Convolutions: the weight ``(out, in / groups, *kernel)`` seen as a matrix ``(out, in / groups * taps)`` in C order.

A factor from the right acts on the channels and taps that one output sees, the same in every group; images are never
unfolded, so overlapping patches cannot be summed. The folded weight goes through the layer's own forward, which keeps
stride, padding, padding mode, dilation and groups. An addition in Tucker form runs as three small convolutions where
that is cheaper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structmat.adapters import folding, lean
from structmat.adapters.kinds.base import Kind, Sizes, stored
from structmat.adapters.method import Add, Update
from structmat.types.tucker import Tucker

__all__ = ["SPATIAL"]


class _Conv(Kind):
    """``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d`` and their subclasses with the same forward."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.name = cls.__name__

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.cls) and type(layer).forward is self.cls.forward

    def sizes(self, layer: Any) -> Sizes:
        return layer.out_channels, layer.in_channels // layer.groups, tuple(layer.kernel_size), layer.groups

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        out, inside, kernel, _ = self.sizes(layer)
        return matrix.reshape(out, inside, *kernel)

    def forward(
        self,
        layer: Any,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        deltas = [u for u in chain if isinstance(u, Add) and isinstance(u.matrix, Tucker)]
        if len(deltas) < len(chain) or not all(_in_layout(layer, u.matrix) for u in deltas):
            return super().forward(layer, x, chain, dtype, rest, options)
        y: torch.Tensor = layer(x)
        wide = x.to(dtype)
        with folding.full_precision(x.device.type), lean.narrow(x, wide):
            for update in deltas:
                y = y + _tucker(layer, folding.in_core(update).matrix, wide).to(y.dtype)  # type: ignore[arg-type]
        return y


def _in_layout(layer: Any, tensor: Any) -> bool:
    sizes = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    return tensor.shape == torch.Size(sizes)


def _tucker(layer: Any, tensor: Tucker, x: torch.Tensor) -> torch.Tensor:
    return tensor.conv(
        x,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
    )


class _ConvTranspose(Kind):
    """``torch.nn.ConvTranspose1d`` to ``3d``, which store ``(in, out / groups, *kernel)``: additions only, because a
    factor on the channels of an output would not act on one input's channels.
    """

    additive = True

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.name = cls.__name__

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.cls) and type(layer).forward is self.cls.forward

    def sizes(self, layer: Any) -> Sizes:
        return layer.out_channels, layer.in_channels // layer.groups, tuple(layer.kernel_size), layer.groups

    def matrix(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        out, inside, kernel, groups = self.sizes(layer)
        split = weight.reshape(groups, inside, out // groups, *kernel)
        return split.transpose(1, 2).reshape(out, -1)

    def stored(self, layer: Any, matrix: torch.Tensor) -> torch.Tensor:
        out, inside, kernel, groups = self.sizes(layer)
        split = matrix.reshape(groups, out // groups, inside, *kernel).transpose(1, 2)
        return split.reshape(groups * inside, out // groups, *kernel)


class _Embedding(Kind):
    """``torch.nn.Embedding``: row ``i`` of its table is column i of ``W`` of shape ``(embedding_dim,
    num_embeddings)``, so the layer is ``W`` times a one-hot vector; additions only, a rotation of the columns would
    mix all words.
    """

    name = "Embedding"
    additive = True

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Embedding) and type(layer).forward is nn.Embedding.forward

    def refuses(self, layer: Any) -> str | None:
        if layer.max_norm is not None:
            return f"it renormalises its table in forward (max_norm={layer.max_norm}); set max_norm to None first"
        return None

    def sizes(self, layer: Any) -> Sizes:
        return layer.embedding_dim, layer.num_embeddings, (), 1

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return weight.mT

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.mT.contiguous()

    def forward(
        self,
        layer: nn.Module,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """The table is looked up by the layer itself, and each addition gives its own rows."""
        if not all(isinstance(update, Add) for update in chain):
            return super().forward(layer, x, chain, dtype, rest, options)
        y: torch.Tensor = layer(x)
        total = y.to(dtype)
        with folding.full_precision(stored(layer).device.type):
            for update in chain:
                assert isinstance(update, Add)
                total = total + update.scale * folding.columns(folding.as_matrix(update.matrix), x)
        return total.to(y.dtype)


SPATIAL: tuple[Kind, ...] = (
    *(_Conv(cls) for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *(_ConvTranspose(cls) for cls in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    _Embedding(),
)
