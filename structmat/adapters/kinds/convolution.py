"""Convolutions: the weight ``(out, in / groups, *kernel)`` seen as a matrix ``(out, in / groups * taps)`` in C order.

A factor from the right acts on the channels and taps that one output sees, the same in every group; images are never
unfolded, so overlapping patches cannot be summed. The folded weight goes through the layer's own forward, which keeps
stride, padding, padding mode, dilation and groups. What else there is (``structmat.adapters.forms``) runs beside the
layer: low-rank changes as two small convolutions, Tucker forms as three, and others in half precision as one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import nn

from structmat import backend
from structmat.adapters import folding, forms, lean, tucker_form
from structmat.adapters.kinds.base import Kind, Sizes, sharded, stored
from structmat.adapters.method import Add, Update
from structmat.functional.tucker_conv import output_sizes, paddings
from structmat.types.tucker import Tucker

__all__ = ["CONVOLUTIONS", "Spatial", "computed_in"]

_CONV = (nnf.conv1d, nnf.conv2d, nnf.conv3d)


class Spatial(Kind):
    """A class of convolutions of torch, plain or transposed, and its subclasses with the same forward."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.name = cls.__name__

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.cls) and type(layer).forward is self.cls.forward

    def sizes(self, layer: Any) -> Sizes:
        return layer.out_channels, layer.in_channels // layer.groups, tuple(layer.kernel_size), layer.groups


class _Conv(Spatial):
    """``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d``."""

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        out, inside, kernel, _ = self.sizes(layer)
        return matrix.reshape(out, inside, *kernel)

    def plan(self, layer: nn.Module, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        others = list(chain)
        first = next((k for k, update in enumerate(chain) if _is_tucker(update)), len(chain))
        # A rotation after a Tucker form would turn it, which leaves the format.
        if first < len(chain) and all(isinstance(u, Add) for u in chain[first:]) and _in_layout(layer, chain):
            others = [update for update in chain if not _is_tucker(update)]
            if not others:
                return self._tucker_plan(layer, chain, rows, dtype)
        if type(layer)._conv_forward is not self.cls._conv_forward:  # type: ignore[attr-defined]
            return backend.Plan("weight", f"{type(layer).__name__} brings its own _conv_forward")
        out, inside, kernel, groups = self.sizes(layer)
        trained = layer.training or torch.is_grad_enabled()
        return forms.choose_conv(others, (out, inside * math.prod(kernel), groups), rows, dtype, trained)

    def _tucker_plan(self, layer: Any, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        weight = stored(layer)
        if sharded(weight):
            return backend.Plan("tucker", "a weight that is spread over devices is read by its layer alone")
        trained, spread = layer.training or torch.is_grad_enabled(), math.prod(layer.stride)
        return tucker_form.choose(chain, layer.groups, rows, spread, dtype, trained, weight.device)  # type: ignore[arg-type]

    def forward(
        self,
        layer: Any,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        path = "weight" if rest or options else self.plan(layer, chain, _points(layer, x), computed_in(x)).path
        if path == "weight":
            return super().forward(layer, x, chain, dtype, rest, options)
        y: torch.Tensor = layer(x)
        if path == "beside":
            change = self.change(layer, chain, dtype)
            return (y.to(dtype) + layer._conv_forward(x, change, None).to(dtype)).to(y.dtype)
        small = [update for update in chain if not _is_tucker(update)]
        wide = x.to(dtype)
        total = y.to(dtype)
        if small:
            total = total + self._thin(layer, small, x, wide)
        with folding.full_precision(x.device.type), lean.narrow(x, wide):
            for update in chain:
                if _is_tucker(update):
                    assert isinstance(update, Add)
                    total = total + _tucker(layer, folding.in_core(update).matrix, wide)  # type: ignore[arg-type]
        return total.to(y.dtype)

    def _thin(self, layer: Any, chain: Sequence[Update], x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        """The images of ``(W A) B^T + C D^T``: a convolution with the columns of B and D as kernels, the same in every
        group, and one of 1 x 1 with W A and C.
        """
        out, inside, kernel, groups = self.sizes(layer)
        with folding.full_precision(x.device.type):
            found = forms.thin(chain)
            kept, seen = [], []
            if found.turned is not None:
                a, b = found.turned
                # Of the size of ordinary patches, next to which the bias is small.
                size = torch.linalg.vector_norm(a, dim=0).clamp(min=torch.finfo(a.dtype).tiny) / a.shape[0] ** 0.5
        if found.turned is not None:
            kept.append(self._product(layer, a / size, x.dtype).to(wide.dtype))
            seen.append(b * size)
        if found.added is not None:
            kept.append(found.added[0])
            seen.append(found.added[1])
        with folding.full_precision(x.device.type):
            kernels = torch.cat(seen, -1).mT.reshape(-1, inside, *kernel)
            with lean.narrow(x, wide):
                inner = layer._conv_forward(wide, kernels.repeat(groups, *[1] * (len(kernel) + 1)), None)
            points = torch.cat(kept, -1).contiguous().reshape(out, -1, *[1] * len(kernel))
            y: torch.Tensor = _CONV[len(kernel) - 1](inner, points, groups=groups)
        return y

    def _product(self, layer: Any, columns: torch.Tensor, given: torch.dtype) -> torch.Tensor:
        """``W A`` for A ``(n, k)`` in the precision of the layer. A weight that is spread over devices is whole in the
        layer's own forward alone: there each column is laid into an image where one point of the output sees it whole,
        and an image of zeros gives the bias.
        """
        weight = stored(layer)
        if not sharded(weight):
            # Contiguous, or its gradient would be a product with the transposed weight, four times slower.
            return nnf.linear(columns.mT.contiguous().to(given), self.matrix(layer, weight)).mT
        _, inside, kernel, groups = self.sizes(layer)
        k = columns.shape[-1]
        patches = columns.mT.reshape(k, inside, *[s for size in kernel for s in (size, 1)])
        sides = paddings(layer.padding, kernel, layer.dilation)
        place: list[int] = []
        spread: list[int] = []
        around: list[int] = []
        grown: list[int] = []
        for size, step, gap, (before, after) in zip(kernel, layer.stride, layer.dilation, sides, strict=True):
            point = -(-before // step)  # the first point whose patch has nothing of the padding
            start = point * step - before
            whole = start + gap * (size - 1) + 1
            if layer.padding_mode != "zeros":  # an image is larger than what is reflected
                whole = max(whole, before + 1, after + 1)
            place.append(point)
            spread = [0, gap - 1, 0, 0, *spread]
            around = [start, whole - start - gap * size, *around]
            grown.append(gap * size)
        images = nnf.pad(nnf.pad(patches, spread).reshape(k, inside, *grown), around)
        images = images.repeat(1, groups, *[1] * len(kernel))
        if layer.bias is not None:
            images = nnf.pad(images, [0, 0] * (len(kernel) + 1) + [0, 1])
        y = layer(images.to(given))[(slice(None), slice(None), *place)]
        found: torch.Tensor = y if layer.bias is None else y[:k].to(columns.dtype) - y[k:].to(columns.dtype)
        return found.mT


def _is_tucker(update: Update) -> bool:
    return isinstance(update, Add) and isinstance(update.matrix, Tucker)


def _in_layout(layer: Any, chain: Sequence[Update]) -> bool:
    sizes = torch.Size((layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size))
    return all(update.matrix.shape == sizes for update in chain if _is_tucker(update))  # type: ignore[union-attr]


def _points(layer: Any, x: torch.Tensor) -> int:
    """How many points of the output there are, batch times pixels."""
    kernel, gaps = tuple(layer.kernel_size), tuple(layer.dilation)
    if x.ndim <= len(kernel):
        return 0  # the layer says what is wrong
    read = tuple(x.shape[x.ndim - len(kernel) :])
    both = tuple([a + b for a, b in paddings(layer.padding, kernel, gaps)])
    written = output_sizes(read, kernel, tuple(layer.stride), both, gaps)
    return math.prod(written) * (x.shape[0] if x.ndim > len(kernel) + 1 else 1)


def computed_in(x: torch.Tensor) -> torch.dtype:
    """What the layer computes in: autocast's dtype where it is on."""
    kind = x.device.type
    if x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _tucker(layer: Any, tensor: Tucker, x: torch.Tensor) -> torch.Tensor:
    return tensor.conv(
        x,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
    )


CONVOLUTIONS: tuple[Kind, ...] = tuple(_Conv(cls) for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
