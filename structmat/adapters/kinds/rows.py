"""Layers that map the last axis of their input, ``y = x W^T + b``: linear ones of any storage."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from structmat import backend
from structmat.adapters import convolved, folding, forms, lean
from structmat.adapters.kinds.base import Kind, Sizes, sharded, stored
from structmat.adapters.method import Compose, Update, master_dtype
from structmat.errors import ShapeError
from structmat.functional import folded
from structmat.types.householder import HouseholderProduct

__all__ = ["CONV1D", "LINEAR", "OPAQUE"]


class _Rows(Kind):
    """The chain acts on activations: the layer itself is called and nothing of size n^2 is formed, except where the
    rows are so many that a Toeplitz or circulant addition costs less in the weight (``convolved``).
    """

    by_rows = True

    def check_input(self, layer: nn.Module, x: torch.Tensor) -> None:
        columns = self.sizes(layer)[1]
        if x.shape[-1] != columns:
            raise ShapeError(f"{type(layer).__name__} with {columns} inputs got x of shape {tuple(x.shape)}")

    def shift(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        """What the layer gives for a zero row, its bias; None for a layer without one."""
        found: torch.Tensor | None = layer.bias  # type: ignore[assignment]
        if found is not None and sharded(found):  # whole only inside the layer's own forward
            found = layer(like.new_zeros(1, self.sizes(layer)[1]))[0]
        return found

    def product(self, layer: nn.Module, rows: torch.Tensor, span: folding.Span) -> torch.Tensor:
        """``rows W[span]^T + b[span]``, from the layer itself; a span of None is all outputs."""
        if span is None or sharded(layer.weight):
            y: torch.Tensor = layer(rows)
            return y if span is None else y[..., span[0] : span[1]]
        weight, bias = self.matrix(layer, stored(layer)), self.shift(layer, rows)
        return nn.functional.linear(rows, weight[span[0] : span[1]], None if bias is None else bias[span[0] : span[1]])

    def forward(
        self,
        layer: nn.Module,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """The layer is called, bias included, so that its hooks run and its weight is read in its own forward; what a
        left factor L does to the bias is corrected after the whole chain, ``L (x W^T + b) + (b - L b)``.
        """
        given = x.dtype
        found: list[torch.dtype] = []

        def base(rows: torch.Tensor, span: folding.Span = None) -> torch.Tensor:
            y = self.product(layer, rows.to(given), span)
            found.append(y.dtype)
            return y

        rows = x.numel() // max(1, x.shape[-1])
        numbers = convolved.joined(chain)
        if numbers is not None and self._joins_weight(layer, x, numbers, dtype, rows):
            weight = self.matrix(layer, stored(layer))
            return folded.folded_linear(x, weight, layer.bias, *numbers)  # type: ignore[arg-type]
        if forms.choose(list(chain), rows, self.sizes(layer)[0], given).path == "low-rank":
            y = self._beside(layer, x, chain[0], dtype, base)
        else:
            y = folding.run(chain, x, base, dtype)
        if folding.has_left(chain):
            bias = self.shift(layer, x)
            if bias is not None:
                y = y + folding.settled(chain, bias.to(dtype), y)
        return y.to(found[0])

    def plan(self, layer: nn.Module, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        numbers = convolved.joined(chain)
        if numbers is None:
            return forms.choose(list(chain), rows, self.sizes(layer)[0], dtype)
        reason = "the layer's weight is never read"
        return convolved.plan(
            numbers, rows, convolved.lacking(layer, self.place(layer)[0], dtype) if self.reads_weight else reason
        )

    def _joins_weight(
        self, layer: nn.Module, x: torch.Tensor, numbers: convolved.Numbers, dtype: torch.dtype, rows: int
    ) -> bool:
        """Whether the sum of the weight and a convolution is formed for so many rows x: only for plain tensors outside
        torch.compile and every transform.
        """
        if not self.reads_weight or torch.compiler.is_compiling():
            return False
        if not convolved.pays(numbers[1], rows) or convolved.lacking(layer, dtype, x.dtype) is not None:
            return False
        return folded.serves(x, stored(layer), numbers[0])

    def _beside(
        self, layer: nn.Module, x: torch.Tensor, update: Update, dtype: torch.dtype, base: folding.Base
    ) -> torch.Tensor:
        """``x W^T - (x R) (W L)^T``, the change in the dtype of the adapters; W L from the layer itself."""
        assert isinstance(update, Compose) and isinstance(update.right, HouseholderProduct)
        y = base(x)
        wide = x.to(dtype)
        with folding.full_precision(x.device.type):
            left, right = forms.factors(update.right)
            with lean.narrow(x, wide):
                inner = wide @ right
            # Of the size of ordinary rows, next to which the bias is small.
            size = torch.linalg.vector_norm(left, dim=0).clamp(min=torch.finfo(dtype).tiny) / left.shape[0] ** 0.5
        few = base((left / size).mT)
        bias = self.shift(layer, x)
        few = few.to(dtype) if bias is None else few.to(dtype) - bias.to(dtype)
        with folding.full_precision(x.device.type):
            return y.to(dtype) - (inner * size) @ few


class _Linear(_Rows):
    """``torch.nn.Linear`` and its subclasses with the same forward."""

    name = "Linear"

    def fits(self, layer: nn.Module) -> bool:
        # A weight of another tensor class (torchao's) or behind a property is not read: that is OPAQUE.
        if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
            return False
        return parametrize.is_parametrized(layer) or _plain(layer._parameters.get("weight"))

    def sizes(self, layer: nn.Module) -> Sizes:
        return int(layer.out_features), int(layer.in_features), (), 1  # type: ignore[arg-type]


class _Conv1D(_Rows):
    """``transformers.pytorch_utils.Conv1D`` (GPT-2): a linear layer that stores its weight as ``(in, out)``."""

    name = "Conv1D"

    def fits(self, layer: nn.Module) -> bool:
        # A Conv1D exists only where transformers was imported, so it is looked up and never imported here.
        found = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
        return found is not None and isinstance(layer, found) and type(layer).forward is found.forward

    def sizes(self, layer: nn.Module) -> Sizes:
        return int(layer.nf), int(layer.nx), (), 1  # type: ignore[arg-type]

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return weight.mT

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.mT.contiguous()


class _Opaque(_Rows):
    """Any module with ``in_features`` and ``out_features`` that maps rows linearly: quantised layers, and layers of
    other libraries. Its weight is never read; it is called, ``x W^T = layer(x) - layer(0)``.
    """

    name = "Opaque"
    reads_weight = False

    def fits(self, layer: nn.Module) -> bool:
        if LINEAR.fits(layer) or isinstance(layer, (nn.Bilinear, nn.MultiheadAttention)):
            return False
        sizes = [getattr(layer, key, None) for key in ("in_features", "out_features")]
        return all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)

    def sizes(self, layer: nn.Module) -> Sizes:
        return int(layer.out_features), int(layer.in_features), (), 1  # type: ignore[arg-type]

    def place(self, layer: nn.Module) -> tuple[torch.dtype, torch.device]:
        """From the tensors that the module registers; the dtype is that of the first floating one of at least half
        precision (a bias, a scale), float32 without any.
        """
        held = [t for t in (*layer.parameters(), *layer.buffers()) if t is not None]
        wide = [t.dtype for t in held if t.is_floating_point() and t.element_size() >= 2]
        device = held[0].device if held else torch.device("cpu")
        return master_dtype(wide[0] if wide else torch.float32), device

    def shift(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        found: torch.Tensor = layer(like.new_zeros(1, self.sizes(layer)[1]))[0]
        return found

    def product(self, layer: nn.Module, rows: torch.Tensor, span: folding.Span) -> torch.Tensor:
        y: torch.Tensor = layer(rows)
        return y if span is None else y[..., span[0] : span[1]]

    def dense(self, layer: nn.Module) -> torch.Tensor:
        """``W`` as ``layer(I) - layer(0)``, in the dtype of adapters: what dequantising means here; n^2 storage."""
        dtype, device = self.place(layer)
        eye = torch.eye(self.sizes(layer)[1], dtype=dtype, device=device)
        with torch.no_grad(), folding.full_precision(device.type):
            found: torch.Tensor = (layer(eye) - self.shift(layer, eye)).to(dtype)
        return found.mT.contiguous()

    def folded(self, layer: nn.Module, chain: Sequence[Update]) -> torch.Tensor:
        weight = self.dense(layer)
        return folding.fold(weight, chain) if chain else weight


def _plain(weight: object) -> bool:
    """Whether a weight is an ordinary tensor, or one sharded over devices."""
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return True
    known = (torch.Tensor, nn.Parameter)
    return type(weight) in known or type(weight).__module__.startswith("torch.distributed.tensor")


LINEAR = _Linear()
CONV1D = _Conv1D()
OPAQUE = _Opaque()
