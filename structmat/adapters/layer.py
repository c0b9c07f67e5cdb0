"""The wrapper: one module class around a frozen layer, for every method and every number of adapters.

``Adapted`` holds the layer (``base``) and one ``Slot`` of tensors per adapter (``adapters.<name>``), so the keys of a
state_dict are ``<layer>.base.weight`` and ``<layer>.adapters.<name>.<tensor>``. All wrappers of a model share one
``Roster``: which adapters there are, which are active and in what order.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.glance import looks_only
from structmat.adapters.kinds import Kind, gathered
from structmat.adapters.method import Method, State, Target, Update, master_dtype
from structmat.adapters.mixed import Bank, Rows
from structmat.errors import ShapeError

__all__ = ["Adapted", "AdaptedParameter", "Roster", "Slot", "at_least_single"]


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
    merged_names: tuple[str, ...] = ()
    rows: Rows | None = None
    stacked: tuple[str, ...] = ()
    extras: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    trainable: dict[str, bool] = dataclasses.field(default_factory=dict)


def at_least_single(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A conversion of tensors (``nn.Module._apply``) that never goes below float32."""

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        new = fn(tensor)
        dtype = master_dtype(new.dtype)
        return new if new.dtype == dtype else tensor.to(device=new.device, dtype=dtype)

    return kept


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
        # A replica of DataParallel keeps its copies of the parameters under another name.
        trained: dict[str, Any] = dict(self._parameters or self.__dict__.get("_former_parameters", {}))
        frozen: dict[str, Any] = dict(self._buffers)
        return State(trained, frozen)

    def whole(self) -> State:
        """As ``state``, with what is sharded over devices gathered, differentiably: every process must call this."""
        return State(*({key: gathered(tensor) for key, tensor in part.items()} for part in self.state()))

    def update(self, training: bool | None = None) -> Update:
        """The change of the weight that this adapter makes; ``training`` (dropout) is by default the module's mode."""
        training = self.training if training is None else training
        with folding.full_precision(self.target.device.type):
            return self.method.update(self.state(), self.target, training=training)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Slot":
        """Conversions of the model reach the adapter, but never below float32."""
        super()._apply(at_least_single(fn), recurse)
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
        # Lists, so that the weight (or the quantised layer) that merge sets aside is not registered.
        self.bank: Bank | None = None
        self.kept: list[torch.Tensor] = []
        self.kept_base: list[nn.Module] = []
        self.train(base.training)

    def slot(self, name: str) -> Slot | None:
        """The tensors of the adapter ``name``; None if it does not adapt this layer."""
        found = self.adapters._modules.get(name)
        return found if isinstance(found, Slot) else None

    def chain(self, merged: bool = False) -> list[Update]:
        """The updates of the active adapters in the order they fold: of those that are not merged; or those that
        are, which are without dropout in every mode.
        """
        training = False if merged else None
        updates: list[Update] = []
        for name, weight in self.roster.active:
            slot = self.slot(name)
            if slot is not None and (name in self.roster.merged_names) == merged:
                updates.append(folding.weighted(slot.update(training), weight, name))
        return updates

    def forward(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """The layer with its active adapters; with ``rows``, each row of the batch with its own. What else a layer
        takes (``output_size`` of a transposed convolution) is passed on.
        """
        if self.kept_base and x.dtype != self.base.weight.dtype:
            # A merge's dense layer in float32 stands for a quantised one, which took and gave half precision.
            y: torch.Tensor = self._forward(x.to(self.base.weight.dtype), *rest, **options)  # type: ignore[arg-type]
            return y.to(x.dtype)
        return self._forward(x, *rest, **options)

    def _forward(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        roster = self.roster
        if not roster.enabled:
            return self.base(x, *rest, **options)
        if roster.rows is not None:
            return roster.rows.forward(self, x, *rest, **options)
        return self.run(x, self.chain(), *rest, **options)

    def run(self, x: torch.Tensor, chain: list[Update], *rest: Any, **options: Any) -> torch.Tensor:
        """The output for one chain of updates."""
        if not chain:
            return self.base(x, *rest, **options)
        self.kind.check_input(self.base, x)
        weight_chain, residuals = folding.split(chain)
        if weight_chain:
            y = self.kind.forward(self.base, x, weight_chain, self.dtype, rest, options)
        else:
            y = self.base(x, *rest, **options)
        return folding.finish(residuals, y, self.dtype) if residuals else y

    def folded(self, chain: list[Update]) -> torch.Tensor:
        """The stored weight with a chain folded in, in its layout and dtype; n^2 storage."""
        if not chain and self.kind.reads_weight:
            return self.base.weight  # type: ignore[return-value]
        return self.kind.folded(self.base, chain)

    # -- what other code reads of a layer ---------------------------------------------------------------------------

    @property
    def weight(self) -> torch.Tensor:
        """The weight this layer acts with; formed here, with n^2 storage, unless nothing is active.

        Code that asks for its dtype, device, sizes or type alone, as T5 does at every forward, is given the stored
        weight, of which they are the same.
        """
        if not torch.compiler.is_compiling() and looks_only(sys._getframe(1), "weight"):
            held = getattr(self.base, "weight", None)
            if isinstance(held, torch.Tensor):
                return held
        roster = self.roster
        if not roster.enabled:
            return self.folded([])
        if roster.rows is not None:
            raise RuntimeError(
                "inside adapters.rows a layer has a weight for each row of the batch, and something reads one weight: "
                "torch's fused encoder layers (torch.backends.mha.set_fastpath_enabled(False) makes them call their "
                "layers), or an attention its out_proj (serve that with activate)"
            )
        return self.folded(self.chain())

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias, which adapters leave alone."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """What adapters are kept and computed in on this layer: at least float32."""
        return self.kind.place(self.base)[0]

    @property
    def in_features(self) -> int:
        """Columns of the weight as a matrix."""
        return self.kind.sizes(self.base)[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight as a matrix."""
        return self.kind.sizes(self.base)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight or bias assigned from outside is the stored one (models tie an output layer to an embedding so)."""
        if name not in ("weight", "bias", "in_features", "out_features"):
            return super().__setattr__(name, value)
        sizes = [tuple(getattr(v, "shape", ())) for v in (value, getattr(self.base, name, None))]
        if name.endswith("features") or sizes[0] != sizes[1]:
            raise ShapeError(f"an adapted layer keeps its sizes, and its {name} was set; call adapters.detach first")
        if self.roster.merged is not None:
            raise RuntimeError(f"the {name} of a merged layer was set; call adapters.unmerge first")
        setattr(self.base, name, value)

    # -- copies, moves, state_dict -------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Adapted":
        self.bank = None  # its views end here
        super()._apply(fn, recurse)
        if self.kept and self.roster.merged == "copy":
            with torch.no_grad():
                self.kept[0].data = fn(self.kept[0])  # the same object: other layers may share it
        elif self.kept:
            self.kept[0] = self.kept[0].to(self.base.weight.dtype)  # type: ignore[arg-type]
        for layer in self.kept_base:
            layer._apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have tensors of their own, so the bank's views end there."""
        return {**super().__getstate__(), "bank": None}

    def _replicate_for_data_parallel(self) -> "Adapted":
        replica: Adapted = super()._replicate_for_data_parallel()
        replica.bank = None
        return replica

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module.state_dict``; while merged, with the weight that was set aside, so that the keys and values
        are those of the unmerged model.
        """
        if self.kept_base:
            merged, self.base = self.base, self.kept_base[0]
            try:
                return super().state_dict(*args, **kwargs)
            finally:
                self.base = merged
        found = super().state_dict(*args, **kwargs)
        if self.kept:
            found[self._weight_key(kwargs.get("prefix", ""))] = self.kept[0].detach()
        return found

    def _weight_key(self, prefix: str) -> str:
        """The stored weight's key in a state_dict."""
        return f"{prefix}base.weight"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.roster.merged is not None:
            raise RuntimeError("load_state_dict on a merged model would mix two weights; call adapters.unmerge first")
        if args[2].get("assign_to_params_buffers", False):
            self.bank = None  # the adapters get other tensors, of which it has no views
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        state = "merged" if self.roster.merged else "adapted"
        return f"{state}, active={[name for name, _ in self.roster.active if name in self.adapters]}"


class AdaptedParameter(Adapted):
    """A frozen parameter and its adapters: a parametrization, which torch calls wherever the parameter is read.

    ``order``: the names of the module's parameters before, so that its state_dict is as it was after ``detach``.
    """

    order: tuple[str, ...] = ()

    def forward(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """The folded parameter; ``x`` is the stored one."""
        roster = self.roster
        if not roster.enabled:
            return x
        if roster.rows is not None and len(self.adapters):
            raise RuntimeError(
                f"inside adapters.rows the parameter {self.base.extra_repr()} would need a value for each row of the "
                "batch; serve its adapters with activate"
            )
        chain = self.chain()
        return self.folded(chain) if chain else x

    def _weight_key(self, prefix: str) -> str:
        return prefix.rsplit(".", 2)[0] + ".original"  # of the list of parametrizations, of which this is entry 0

    @property
    def bias(self) -> torch.Tensor | None:
        """A parameter has none."""
        return None
