"""Additions that are convolutions (Toeplitz, circulant) on a linear layer: the two forms, and the rule between them.

* "rows": ``y = x W^T + x A^T``, beside the layer: four transforms of length N a row in a training step.
* "weight": ``y = x (W + A)^T``: two passes over the m n entries, and two transforms a row for the gradient of A.

The weight of a layer is read here, which not every layer allows, and the sum is rounded as a merged weight is. So only
a plain CPU weight in the dtype of the adapters qualifies, of a layer that nothing else watches. All others run "rows".
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from structmat import backend
from structmat.adapters.method import Add, Update
from structmat.functional.fourier import Geometry
from structmat.types.circulant_family import CirculantFamily
from structmat.types.toeplitz_family import ToeplitzFamily

__all__ = ["Numbers", "joined", "lacking", "pays", "plan"]

Numbers = tuple[torch.Tensor, Geometry]
_FAMILIES = (CirculantFamily, ToeplitzFamily)
_FEW_ENTRIES = 1 << 13
_WATCHED = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def joined(chain: Sequence[Update]) -> Numbers | None:
    """The numbers of a chain of convolutions and how they lie in the weight; None if the chain is of another kind.

    Several Toeplitz matrices add up to one, and so do several circulants of one kind.
    """
    for update in chain:
        if not isinstance(update, Add) or not isinstance(update.matrix, _FAMILIES):
            return None
    matrix: Any = chain[0].matrix if len(chain) == 1 else _summed(chain)  # type: ignore[union-attr]
    if not isinstance(matrix, _FAMILIES):
        return None
    numbers, geometry = matrix._embedding()
    if numbers.ndim > 1 or numbers.is_complex():
        return None
    scale = chain[0].scale if len(chain) == 1 else 1.0  # type: ignore[union-attr]
    return (numbers if scale == 1.0 else numbers * scale), geometry


def _summed(chain: Sequence[Update]) -> Any:
    terms: list[Any] = [update.matrix * update.scale for update in chain]  # type: ignore[union-attr]
    return functools.reduce(operator.add, terms)


def pays(geometry: Geometry, rows: int) -> bool:
    """Whether "weight" costs less than "rows" for so many rows: ``4 rows N >= m n``, of at least 8,192 entries.

    Measured in float32 on one core, forward and backward. For Toeplitz matrices of order 256 to 4096 and 4:1 the two
    meet at ``rows N = m n / 7 ... m n / 3``, for circulants at ``m n / 8 ... m n / 2``; at 1 each saves a fifth to a
    half of what the adapter costs, at 10 up to four fifths. So the weight that is formed has at most four times the
    numbers of a transform of the rows.
    """
    entries = geometry.x * geometry.y
    return entries >= _FEW_ENTRIES and 4 * rows * geometry.length >= entries


def lacking(layer: nn.Module, dtype: torch.dtype, given: torch.dtype) -> str | None:
    """Why the weight of a layer is not formed anew, for an input of dtype ``given`` and adapters of ``dtype``; None if
    it may be.
    """
    weight = layer._parameters.get("weight")
    if weight is None or type(weight) not in (nn.Parameter, torch.Tensor):
        return "the layer's weight is not a plain tensor"
    if weight.device.type != "cpu":
        return f"folding into the weight is measured on the CPU alone, not on {weight.device.type}"
    if given != dtype or weight.dtype != dtype or torch.is_autocast_enabled("cpu"):
        return "rounded to the layer's precision, a folded weight would lose a small change"
    own = layer.__dict__
    if "forward" in own or any(own[name] for name in _WATCHED) or nn.modules.module._has_any_global_hook():
        return "hooks of the layer want its own forward"
    return None


def plan(found: Numbers, rows: int, reason: str | None) -> backend.Plan:
    """The form for so many rows, ``reason`` being what is lacking for the other one."""
    geometry = found[1]
    m, n, length = geometry.y, geometry.x, geometry.length
    if reason is None and pays(geometry, rows):
        return backend.Plan("weight", f"transforms of length {length} for each row cost more than {m} x {n} sums")
    if reason is None:
        reason = f"few rows: forming {m} x {n} sums costs more than transforms of length {length} for each"
    return backend.Plan("rows", reason)
