"""Any structured matrix as an adapter, for experiments: an addition, or a factor on the layer's input.

They take a function, which no file can hold, so ``save`` refuses them; a class with ``init`` and ``update`` that is
given to ``register`` can be saved.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from structmat.adapters.method import Add, Compose, State, Target
from structmat.errors import StructureError
from structmat.matrix import Matrix

__all__ = ["Delta", "Rotation"]

Factory = Callable[[Target, torch.Generator | None], Matrix]


@dataclasses.dataclass(frozen=True)
class _Made:
    """The tensors of a matrix as the state of an adapter; the factory gives its form."""

    factory: Factory
    _forms: dict[tuple[str, int, int], Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise TypeError(
                f"{type(self).__name__}: factory is a function of (target, generator) that returns a Matrix, got "
                f"{self.factory!r}"
            )

    def _matrix(self, target: Target, generator: torch.Generator | None) -> Matrix:
        matrix = self.factory(target, generator)
        if not isinstance(matrix, Matrix):
            raise TypeError(f"{type(self).__name__} on {target.name!r}: the factory returned {type(matrix).__name__}")
        return matrix.to(dtype=target.dtype, device=target.device)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """The floating tensors of the factory's matrix in their order; its index tensors are kept beside them."""
        leaves, spec = pytree.tree_flatten(self._matrix(target, generator))
        trained = {f"tensor{k}": t.detach().clone() for k, t in enumerate(leaves) if t.is_floating_point()}
        if not trained:
            raise StructureError(f"{type(self).__name__} on {target.name!r}: the factory's matrix has nothing to train")
        self._forms[_key(target)] = spec
        return State(trained, {f"tensor{k}": t for k, t in enumerate(leaves) if not t.is_floating_point()})

    def _rebuilt(self, state: State, target: Target) -> Matrix:
        tensors = {**state.trained, **state.frozen}
        ordered = [tensors[f"tensor{k}"] for k in range(len(tensors))]
        result: Matrix = pytree.tree_unflatten(ordered, self._forms[_key(target)])
        return result


def _key(target: Target) -> tuple[str, int, int]:
    return target.name, target.out_features, target.columns


@dataclasses.dataclass(frozen=True)
class Delta(_Made):
    """``W_new = W + A`` with A of any type; ``factory(target, generator)`` returns A of shape ``(target.out_features,
    target.columns)`` at its start. An A of zeros starts at the base.
    """

    name: ClassVar[str] = "Delta"

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(A)``."""
        return Add(self._rebuilt(state, target))


@dataclasses.dataclass(frozen=True)
class Rotation(_Made):
    """``W_new = W Q`` with Q of any square type; ``factory(target, generator)`` returns Q of order
    ``target.columns``. ``Q = I`` starts at the base.
    """

    name: ClassVar[str] = "Rotation"

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(right=Q)``."""
        return Compose(right=self._rebuilt(state, target))
