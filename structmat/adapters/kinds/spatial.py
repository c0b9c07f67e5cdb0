"""Layers of images and of words that take additions alone: transposed convolutions and embeddings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import nn

from structmat import backend
from structmat.adapters import folding, forms, lean
from structmat.adapters.kinds.base import Kind, Sizes, stored
from structmat.adapters.kinds.convolution import CONVOLUTIONS, Spatial, computed_in
from structmat.adapters.method import Add, Update

__all__ = ["SPATIAL"]

_CONV = (nnf.conv1d, nnf.conv2d, nnf.conv3d)
_BACK = (nnf.conv_transpose1d, nnf.conv_transpose2d, nnf.conv_transpose3d)


class _ConvTranspose(Spatial):
    """``torch.nn.ConvTranspose1d`` to ``3d``, which store ``(in, out / groups, *kernel)``: additions only, because a
    factor on the channels of an output would not act on one input's channels.
    """

    additive = True

    def matrix(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        out, inside, kernel, groups = self.sizes(layer)
        split = weight.reshape(groups, inside, out // groups, *kernel)
        return split.transpose(1, 2).reshape(out, -1)

    def stored(self, layer: Any, matrix: torch.Tensor) -> torch.Tensor:
        _, inside, kernel, groups = self.sizes(layer)
        split = matrix.reshape(groups, -1, inside, *kernel).transpose(1, 2)
        return split.reshape(groups * inside, -1, *kernel)

    def plan(self, layer: Any, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        out, inside, kernel, groups = self.sizes(layer)
        trained = layer.training or torch.is_grad_enabled()
        sizes = (out, inside * math.prod(kernel), groups)
        return forms.choose_conv(chain, sizes, rows, dtype, trained, math.prod(layer.stride))

    def forward(
        self,
        layer: Any,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """The forms of a convolution, with the transposed one in place of the first; the output is of the size that the
        layer itself gives.
        """
        spatial = len(layer.kernel_size)
        points = math.prod(x.shape[x.ndim - spatial :]) * (x.shape[0] if x.ndim > spatial + 1 else 1)
        path = self.plan(layer, chain, points * math.prod(layer.stride), computed_in(x)).path
        if path == "weight":
            return super().forward(layer, x, chain, dtype, rest, options)
        y: torch.Tensor = layer(x, *rest, **dict(options or {}))
        return (y.to(dtype) + self._added(layer, x, chain, dtype, path, y.shape)).to(y.dtype)

    def _added(
        self, layer: Any, x: torch.Tensor, chain: Sequence[Update], dtype: torch.dtype, path: str, shape: torch.Size
    ) -> torch.Tensor:
        """What the chain adds to the output of this shape, in ``dtype``."""
        spatial = len(layer.kernel_size)
        steps, sides, gaps = layer.stride, layer.padding, layer.dilation
        modes = zip(x.shape[x.ndim - spatial :], steps, sides, gaps, layer.kernel_size, strict=True)
        least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in modes]
        extra = [n - m for n, m in zip(shape[len(shape) - spatial :], least, strict=True)]

        def back(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = _BACK[spatial - 1](x, kernels, None, steps, sides, extra, layer.groups, gaps)
            return found

        if path == "beside":
            return back(x, self.change(layer, chain, dtype)).to(dtype)
        wide = x.to(dtype)
        with folding.full_precision(x.device.type):
            added = forms.thin(chain).added
            assert added is not None
            kernels = self.stored(layer, added[1].mT.repeat(layer.groups, 1))
            with lean.narrow(x, wide):
                inner = back(wide, kernels)
            points = added[0].reshape(*added[0].shape, *[1] * spatial)
            y: torch.Tensor = _CONV[spatial - 1](inner, points, groups=layer.groups)
        return y


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
