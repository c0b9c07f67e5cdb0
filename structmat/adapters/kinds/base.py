"""What a kind of layer is: the only place that knows a layer's class.

A kind shows the stored weight as a matrix ``(out_features, columns)`` and runs a chain of updates on an input; one
more kind of layer is one more class beside this file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from structmat import backend
from structmat.adapters import folding
from structmat.adapters.method import Add, Update, master_dtype

__all__ = ["Kind", "Sizes", "gathered", "sharded"]

Sizes = tuple[int, int, tuple[int, ...], int]


class Kind:
    """One kind of layer; the defaults are those of a layer that stores ``weight`` and is linear in it."""

    name: str = ""
    additive: bool = False  # whether only additions fit: a factor has no meaning, or no cheap one
    by_rows: bool = False  # whether updates act on activations, so that each row of a batch may have its own
    reads_weight: bool = True  # False: the weight may be of any storage and is never read

    def fits(self, layer: nn.Module) -> bool:
        """Whether the layer is of this kind."""
        raise TypeError(f"{type(self).__name__} defines no fits")

    def refuses(self, layer: nn.Module) -> str | None:
        """Why a layer of this kind cannot be adapted, with the way out; None if it can."""
        return None

    def sizes(self, layer: nn.Module) -> Sizes:
        """``(out_features, in_features, kernel, groups)``; ``in_features`` is per group."""
        raise TypeError(f"{type(self).__name__} defines no sizes")

    def place(self, layer: nn.Module) -> tuple[torch.dtype, torch.device]:
        """The dtype that adapters are kept in on this layer, and its device."""
        weight = stored(layer)
        return master_dtype(weight.dtype), weight.device

    # -- the weight -----------------------------------------------------------------------------------------------

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """A stored weight of the layer as a matrix ``(out_features, columns)``."""
        return weight

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix ``(out_features, columns)`` in the layout of the stored weight."""
        return matrix

    def folded(self, layer: nn.Module, chain: Sequence[Update]) -> torch.Tensor:
        """The stored weight with a chain folded in, in its layout and dtype; n^2 storage."""
        weight = stored(layer)
        with folding.full_precision(weight.device.type):
            matrix = folding.fold(self.matrix(layer, weight), chain)
        return self.stored(layer, matrix).to(weight.dtype)

    def change(self, layer: nn.Module, chain: Sequence[Update], dtype: torch.dtype) -> torch.Tensor:
        """``W_K - W`` for the chain, computed in ``dtype``, in the layout and dtype of the stored weight; of additions
        their sum, which cancels nothing.
        """
        weight = stored(layer)
        with folding.full_precision(weight.device.type):
            before = self.matrix(layer, weight).to(dtype)
            if all(isinstance(update, Add) for update in chain):
                change = folding.fold(torch.zeros_like(before), chain)
            else:
                change = folding.fold(before, chain) - before
        return self.stored(layer, change).to(weight.dtype)

    def plan(self, layer: nn.Module, chain: Sequence[Update], rows: int, dtype: torch.dtype) -> backend.Plan:
        """How a chain runs on so many rows (of images: points of the output) computed in ``dtype``, and why."""
        return backend.Plan("weight", f"a {self.name} is run with the folded weight")

    # -- inputs -----------------------------------------------------------------------------------------------------

    def check_input(self, layer: nn.Module, x: torch.Tensor) -> None:
        """ShapeError for an input that the layer cannot take, where its own error would not say so."""

    def forward(
        self,
        layer: nn.Module,
        x: torch.Tensor,
        chain: Sequence[Update],
        dtype: torch.dtype,
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """The output of the layer with the chain, whose updates are of ``dtype``, folded into its weight; ``rest`` and
        ``options`` are what else the layer was called with.

        Here the weight is folded and the layer is called with it, hooks included.
        """
        weight = {"weight": self.folded(layer, chain)}
        y: torch.Tensor = functional_call(layer, weight, (x, *rest), dict(options or {}))
        return y


def stored(layer: nn.Module) -> torch.Tensor:
    """The weight of a layer that stores one."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return weight


def sharded(tensor: object) -> bool:
    """Whether a tensor is spread over devices (DTensor)."""
    return hasattr(tensor, "device_mesh")


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is spread over devices, differentiable: every process must call this."""
    whole: torch.Tensor = tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole
