"""FLoRA: an addition in Tucker form, with one factor for every axis of the weight."""

import dataclasses
import math
import warnings
from typing import ClassVar

import torch

from structmat.adapters.lora import check_scale
from structmat.adapters.method import Add, State, Target, check_rank, normal, register, zeros
from structmat.adapters.pace import flora_scale
from structmat.types.tucker import Tucker
from structmat.types.tucker_family import wasted

__all__ = ["FLoRA"]

_STARTS = ("vision", "nlp")


@register
@dataclasses.dataclass(frozen=True, init=False)
class FLoRA:
    """``W_new = W + s G x_1 A_1 x_2 A_2 ... x_N A_N``: a core tensor with the topology of the weight.

    A linear layer has two modes (out, in), a convolution has ``(out, in / groups, *kernel)``; the kernel is never
    flattened. The core starts at zero, so the start is exactly the base and the gradient of the core is not zero.

    Stores:   core ``(r_1, ..., r_N)``; factor0, factor1, ... ``(d_k, r_k)``.
    Cost:     a convolution as 1 x 1 to few channels, a small kernel, 1 x 1 back (where that is cheaper); a linear layer
        ``2 (n r_2 + r_1 r_2 + m r_1)`` flops per row.
    Args:
        ranks: one rank for the channels (a kernel mode then has ``min(ranks, d_k)``), or one for each mode in the order
            of the weight ``(out, in, *kernel)``; a rank above the size of its mode is cut to it.
        scale: s; with "nlp" it is divided by the rank of the first mode. None: the s at which a step of Adam moves the
            layer as far as it moves LoRA's of rank 8.
        init: "vision": factors of deviation ``sqrt(1 / (2 r_k))``; "nlp": of deviation 0.02. Kept as ``start``.
    Raises:   ValueError for an illegal parameter, or another number of ranks than a layer has modes.
    References: C. Si et al., "Maintaining structural integrity in parameter spaces for parameter efficient fine-tuning"
        (FLoRA), ICLR 2025; the two starts and scales are those of the authors' two programs.
    """

    name: ClassVar[str] = "FLoRA"
    ranks: int | tuple[int, ...]
    scale: float | None = None
    start: str = "vision"

    def __init__(
        self,
        ranks: int | tuple[int, ...],
        scale: float | None = None,
        init: str = "vision",
        *,
        start: str | None = None,
    ) -> None:
        chosen = init if start is None else start
        for key, value in (("ranks", ranks), ("scale", scale), ("start", chosen)):
            object.__setattr__(self, key, tuple(value) if isinstance(value, list) else value)
        for rank in self.ranks if isinstance(self.ranks, tuple) else (self.ranks,):
            check_rank("FLoRA", rank)
        check_scale("FLoRA", "scale", self.scale, optional=True)
        if self.start not in _STARTS:
            raise ValueError(f"FLoRA: init must be 'vision' or 'nlp', got {self.start!r}")

    def modes(self, target: Target) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and ranks of the modes of a layer's weight."""
        sizes = (target.out_features, target.in_features, *target.kernel)
        ranks = self.ranks if isinstance(self.ranks, tuple) else (self.ranks,) * len(sizes)
        if len(ranks) != len(sizes):
            raise ValueError(
                f"FLoRA(ranks={self.ranks}) on {target.name!r}, a {target.kind} with modes {sizes}: give one rank, or "
                f"{len(sizes)} of them"
            )
        return sizes, tuple(min(r, d) for r, d in zip(ranks, sizes, strict=True))

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Core zero, factors random. A UserWarning for a rank above the product of the others, which wastes numbers."""
        sizes, ranks = self.modes(target)
        found = None if target.device.type == "meta" else wasted(ranks)
        if found is not None:
            mode, most = found
            warnings.warn(
                f"FLoRA(ranks={self.ranks}): rank {ranks[mode]} of mode {mode} is above {most}, the product of the "
                f"other ranks {ranks}, and serves no more than rank {most} would",
                UserWarning,
                stacklevel=2,
            )
        trained = {"core": zeros(ranks, target)}
        for k, (d, r) in enumerate(zip(sizes, ranks, strict=True)):
            std = math.sqrt(0.5 / r) if self.start == "vision" else 0.02
            trained[f"factor{k}"] = normal((d, r), std, target, generator)
        return State(trained, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(Tucker(core, factors), s)``."""
        core = state.trained["core"]
        modes = len(state.trained) - 1
        factors = tuple(state.trained[f"factor{k}"] for k in range(modes))
        return Add(Tucker._of(core, factors), self._scale(core, modes))

    def _scale(self, core: torch.Tensor, modes: int) -> float:
        first, second = core.shape[core.ndim - modes :][:2]
        if self.scale is not None:
            return self.scale if self.start == "vision" else self.scale / first
        even = flora_scale(math.sqrt(first * second))
        # Factors of deviation 0.02 in place of sqrt(1 / (2 r)): smaller by so much each.
        return even if self.start == "vision" else even * math.sqrt(0.5 / first * 0.5 / second) / 0.02**2
