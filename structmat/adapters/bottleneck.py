"""A structured residual map behind a layer: the Adapter slot, without a bottleneck's two thin layers."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch.nn import functional as nnf

from structmat.adapters.folding import as_matrix
from structmat.adapters.method import Residual, State, Target, register, zeros
from structmat.adapters.surm import SURM

__all__ = ["Bottleneck"]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nnf.gelu,
    "silu": nnf.silu,
    "tanh": torch.tanh,
}


@register
@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """``y + act(M y) + bias`` for the output y of a layer, M square with structure, act(0) = 0.

    One structured map takes the place of an adapter's down and up projections; the bias is added after the activation,
    as published. It starts at the layer itself. It changes no weight, so it cannot be merged or converted.

    Stores:   the tensors of ``SURM(structure)`` on a square layer of the output's size, and bias ``(m,)``.
    Args:
        structure: one of SURM's; scale, form, rank as there.
        activation: "gelu", "silu" or "tanh". (relu is flat at 0, where M starts: it would never move.)
    Raises:   ValueError for an illegal parameter; StructureError on layers whose output is not features last.
    References: A. Sehanobish et al., "Structured unrestricted-rank matrices for parameter efficient fine-tuning",
        NeurIPS 2024, section 4 (the Adapter slot).
    """

    name: ClassVar[str] = "Bottleneck"
    structure: str
    activation: str = "gelu"
    scale: float = 9.2
    form: str = "direct"
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            legal = ", ".join(map(repr, _ACTIVATIONS))
            raise ValueError(f"Bottleneck: activation must be one of {legal}, got {self.activation!r}")
        self._method()

    def _method(self) -> SURM:
        return SURM(self.structure, scale=self.scale, form=self.form, rank=self.rank)

    def _square(self, target: Target) -> Target:
        return dataclasses.replace(target, in_features=target.out_features, kernel=())

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """M = 0 and a bias of zeros."""
        trained, frozen = self._method().init(self._square(target), generator)
        return State({**trained, "bias": zeros((target.out_features,), target)}, frozen)

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Residual:
        """``Residual(M, act, bias)``."""
        added = self._method().update(state, self._square(target), training=training, generator=generator)
        matrix = as_matrix(added.matrix)
        return Residual(matrix, _ACTIVATIONS[self.activation], state.trained["bias"])
