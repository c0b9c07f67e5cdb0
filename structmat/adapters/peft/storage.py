"""The dictionaries that hold the tensors of PEFT's adapters on one layer, keyed by the adapter's name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from structmat.adapters.layer import at_least_single

__all__ = ["Frozen", "Trained"]


class Trained(nn.ParameterDict):
    """Parameters that conversions of the model never take below float32."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Trained":
        super()._apply(at_least_single(fn), recurse)
        return self


class Frozen(Trained):
    """Tensors that never train, whoever sets them: loaders make every tensor they put here a parameter that trains.

    They are parameters and no buffers because PEFT and transformers load parameters in all their ways (on the meta
    device first, for one) and buffers only in some.
    """

    def register_parameter(self, name: str, param: Any) -> None:
        """As torch's, without a gradient."""
        super().register_parameter(name, None if param is None else param.requires_grad_(False))
