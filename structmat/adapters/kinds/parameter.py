"""Parameters that no layer owns alone: an attention's packed projection, the weights of a mixture of experts.

The module that holds one may use it in any way, so it cannot be wrapped; the parameter itself is read through torch's
parametrization, which gives the folded weight wherever it is used.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize

from structmat.adapters.kinds.base import Kind, Sizes, stored

__all__ = ["PARAMETER", "PARAMETER_T", "ParameterOf"]


class ParameterOf(nn.Module):
    """Stands for the parameter ``owner.key`` where a layer is expected; registers nothing itself."""

    def __init__(self, owner: nn.Module, key: str) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # past nn.Module, which would register it as a child
        self.__dict__["key"] = key

    @property
    def weight(self) -> torch.Tensor:
        """The stored parameter."""
        owner, key = self.__dict__["owner"], self.__dict__["key"]
        held: torch.Tensor
        if parametrize.is_parametrized(owner, key):
            held = owner.parametrizations[key].original
        else:
            held = owner._parameters[key]
        return held

    @property
    def holder(self) -> nn.Module:
        """The module that has the stored parameter among its own: the owner, or its list of parametrizations."""
        owner: nn.Module = self.__dict__["owner"]
        key: str = self.__dict__["key"]
        listed = parametrize.is_parametrized(owner, key)
        return owner.parametrizations[key] if listed else owner  # type: ignore[index, return-value]

    def put(self, weight: nn.Parameter) -> None:
        """Store another parameter in its place."""
        owner, key = self.__dict__["owner"], self.__dict__["key"]
        if parametrize.is_parametrized(owner, key):
            owner.parametrizations[key].original = weight
        else:
            owner._parameters[key] = weight

    def extra_repr(self) -> str:
        return str(self.__dict__["key"])


class _Parameter(Kind):
    """A parameter ``(m, n)``, or ``(experts, m, n)`` with an adapter of its own for each expert; ``groups`` counts the
    experts.
    """

    name = "Parameter"
    turned = False

    def fits(self, layer: nn.Module) -> bool:
        # Experts that multiply x by the weight as it stands say so (transformers' is_transposed).
        return isinstance(layer, ParameterOf) and bool(_turned(layer)) == self.turned

    def sizes(self, layer: nn.Module) -> Sizes:
        shape = stored(layer).shape
        m, n = shape[-2:] if not self.turned else (shape[-1], shape[-2])
        return int(m), int(n), (), int(shape[0]) if len(shape) == 3 else 1


class _ParameterT(_Parameter):
    """As ``Parameter``, stored as ``(n, m)``."""

    name = "ParameterT"
    turned = True

    def matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return weight.mT

    def stored(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.mT.contiguous()


def _turned(layer: ParameterOf) -> bool:
    found = getattr(layer.__dict__["owner"], "is_transposed", False)
    return isinstance(found, bool) and found


PARAMETER = _Parameter()
PARAMETER_T = _ParameterT()
