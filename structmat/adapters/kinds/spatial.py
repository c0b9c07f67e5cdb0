"""Layers of images and of words that take additions alone: transposed convolutions and embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structmat import backend
from structmat.adapters import folding
from structmat.adapters.kinds.base import Kind, Sizes, stored
from structmat.adapters.kinds.convolution import CONVOLUTIONS
from structmat.adapters.method import Add, Update

__all__ = ["SPATIAL"]


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

    def plan(self, layer: nn.Module, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        if not all(isinstance(update, Add) for update in chain):
            return super().plan(layer, chain, rows, dtype)
        return backend.Plan("columns", "each addition gives the columns that are looked up")

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
    *CONVOLUTIONS,
    *(_ConvTranspose(cls) for cls in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    _Embedding(),
)
