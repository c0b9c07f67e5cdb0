"""LoRA: the low-rank control that structured methods are measured against."""

import dataclasses
import math
from typing import ClassVar

import torch

from structmat.adapters.method import Add, State, Target, check_rank, register, uniform, zeros
from structmat.types.low_rank import LowRank

__all__ = ["LoRA"]


@register
@dataclasses.dataclass(frozen=True)
class LoRA:
    """``W_new = W + (alpha / r) L R^T``.

    Stores:   left L ``(m, r)``, which starts at zero; right R ``(n, r)``, uniform in ``+- 1 / sqrt(n)``.
    Cost:     2 r (m + n) flops per row.
    Args:
        rank: r, at least 1.
        alpha: the scale is ``alpha / r``; None means ``alpha = r``, a scale of 1.
    Raises:   ValueError for an illegal parameter, or a rank above both sizes of a layer.
    References: E. Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, equation 3.
    """

    name: ClassVar[str] = "LoRA"
    rank: int
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_rank("LoRA", self.rank)
        check_scale("LoRA", "alpha", self.alpha, optional=True)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zero left, random right: the change is zero, the gradient of the left factor is not."""
        m, n, r = target.out_features, target.columns, self.rank
        if r > max(m, n):
            raise ValueError(
                f"LoRA(rank={r}) on {target.name!r} of shape ({m}, {n}): more than both sizes; lower the rank"
            )
        right = uniform((n, r), 1 / math.sqrt(n), target, generator)
        return State({"left": zeros((m, r), target), "right": right}, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(L R^T, alpha / r)``."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return Add(LowRank(state.trained["left"], state.trained["right"]), scale)


def check_scale(owner: str, field: str, value: object, *, optional: bool = False) -> None:
    """A scale is a finite number other than 0: with 0 the adapter would never move."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value == 0:
        raise ValueError(f"{owner}: {field} must be a finite number other than 0, got {value!r}")
