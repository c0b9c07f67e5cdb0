"""The wrapper: one module class around a frozen layer, for every method and every number of adapters.

``Adapted`` holds the layer (``base``) and one ``Slot`` of tensors per adapter (``adapters.<name>``), so the keys of a
state_dict are ``<layer>.base.weight`` and ``<layer>.adapters.<name>.<tensor>``. All wrappers of a model share one
``Roster``: which adapters there are, which are active and in what order.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.kinds import Kind
from structmat.adapters.method import Method, State, Target, Update, master_dtype
from structmat.adapters.mixed import Rows
from structmat.errors import ShapeError

__all__ = ["Adapted", "Roster", "Slot"]


@dataclasses.dataclass(eq=False)
class Roster:
    """What all wrappers of one model share; each change of it is seen by every layer at once.

    ``extras``: per adapter, the model's own parameters trained and saved with it. ``trainable``: ``requires_grad`` of
    each parameter as it was before the first adapter, restored when the last one is detached.
    """

    order: tuple[str, ...] = ()
    active: tuple[tuple[str, float], ...] = ()
    enabled: bool = True
    merged: str | None = None
    rows: Rows | None = None
    stacked: tuple[str, ...] = ()
    extras: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    trainable: dict[str, bool] = dataclasses.field(default_factory=dict)


class Slot(nn.Module):
    """The tensors of one adapter on one layer: trained ones are parameters, frozen ones buffers."""

    def __init__(self, method: Method, target: Target, state: State) -> None:
        super().__init__()
        self.method = method
        self.target = target
        for key, tensor in state.trained.items():
            self.register_parameter(key, nn.Parameter(tensor))
        for key, tensor in state.frozen.items():
            self.register_buffer(key, tensor)

    def state(self) -> State:
        """The tensors as the method's ``init`` returned them."""
        trained: dict[str, Any] = dict(self._parameters)
        frozen: dict[str, Any] = dict(self._buffers)
        return State(trained, frozen)

    def update(self) -> Update:
        """The change of the weight that this adapter makes."""
        with folding.full_precision(self.target.device.type):
            return self.method.update(self.state(), self.target, training=self.training)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Slot":
        """Conversions of the model reach the adapter, but never below float32."""

        def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
            new = fn(tensor)
            kept = master_dtype(new.dtype)
            return new if new.dtype == kept else tensor.to(device=new.device, dtype=kept)

        super()._apply(at_least_single, recurse)
        first = next(iter(self.parameters()), None)
        if first is not None:
            self.target = dataclasses.replace(self.target, dtype=first.dtype, device=first.device)
        return self

    def extra_repr(self) -> str:
        return repr(self.method)


class Adapted(nn.Module):
    """A frozen layer and its adapters: ``y = x W_K^T + b`` with ``W_K`` folded from the active adapters in order.

    ``weight`` is the weight the layer acts with, formed when it is read (torch's fused encoder layers read it instead
    of calling the layer); ``base.weight`` is the stored one.
    """

    def __init__(self, base: nn.Module, kind: Kind, roster: Roster) -> None:
        super().__init__()
        self.base = base
        self.kind = kind
        self.adapters = nn.ModuleDict()
        self.roster = roster
        self.kept: list[torch.Tensor] = []  # a list, so that the weight set aside by merge is not registered
        self.train(base.training)

    def slot(self, name: str) -> Slot | None:
        """The tensors of the adapter ``name``; None if it does not adapt this layer."""
        found = self.adapters._modules.get(name)
        return found if isinstance(found, Slot) else None

    def chain(self) -> list[Update]:
        """The updates of the active adapters, in the order they fold."""
        updates: list[Update] = []
        for name, weight in self.roster.active:
            slot = self.slot(name)
            if slot is not None:
                updates.append(folding.weighted(slot.update(), weight, name))
        return updates

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer with its active adapters; with ``rows``, each row of the batch with its own."""
        roster = self.roster
        if roster.merged is not None or not roster.enabled:
            return self.base(x)
        if roster.rows is not None:
            return roster.rows.forward(self, x)
        chain = self.chain()
        if not chain:
            return self.base(x)
        return self.run(x, chain)

    def run(self, x: torch.Tensor, chain: list[Update]) -> torch.Tensor:
        """The output for one chain of updates."""
        columns = self.in_features
        if x.shape[-1] != columns:
            raise ShapeError(f"{type(self.base).__name__} with {columns} inputs got x of shape {tuple(x.shape)}")
        return self.kind.forward(self.base, x, chain, self.dtype)

    def folded(self, chain: list[Update]) -> torch.Tensor:
        """The stored weight with a chain folded in, in its layout and dtype; n^2 storage."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        if not chain:
            return weight
        with folding.full_precision(weight.device.type):
            folded = folding.fold(self.kind.view(weight), chain)
        return self.kind.stored(folded, weight).to(weight.dtype)

    # -- what other code reads of a layer ---------------------------------------------------------------------------

    @property
    def weight(self) -> torch.Tensor:
        """The weight this layer acts with; formed here, with n^2 storage, unless nothing is active."""
        roster = self.roster
        if roster.merged is not None or not roster.enabled:
            return self.base.weight  # type: ignore[return-value]
        if roster.rows is not None:
            raise RuntimeError(
                "inside adapters.rows a layer has a weight per row of the batch; read base.weight instead"
            )
        return self.folded(self.chain())

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias, which adapters leave alone."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """What adapters are kept and computed in on this layer: at least float32."""
        return master_dtype(self.base.weight.dtype)  # type: ignore[arg-type]

    @property
    def in_features(self) -> int:
        """Columns of the weight as a matrix."""
        return self.kind.sizes(self.base)[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight as a matrix."""
        return self.kind.sizes(self.base)[0]

    # -- copies, moves, state_dict -------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Adapted":
        super()._apply(fn, recurse)
        if self.kept and self.roster.merged == "copy":
            with torch.no_grad():
                self.kept[0].data = fn(self.kept[0])  # the same object: other layers may share it
        elif self.kept:
            self.kept[0] = self.kept[0].to(self.base.weight.dtype)  # type: ignore[arg-type]
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module.state_dict``; while merged, with the weight that was set aside, so that the keys and values
        are those of the unmerged model.
        """
        found = super().state_dict(*args, **kwargs)
        if self.kept:
            key = kwargs.get("prefix", "") + "base.weight"
            found[key] = self.kept[0].detach()
        return found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.roster.merged is not None:
            raise RuntimeError("load_state_dict on a merged model would mix two weights; call adapters.unmerge first")
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        state = "merged" if self.roster.merged else "adapted"
        return f"{state}, active={[name for name, _ in self.roster.active if name in self.adapters]}"
