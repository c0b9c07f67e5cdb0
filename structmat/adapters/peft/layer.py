"""The layer that PEFT puts in the place of a model's own: it holds tensors, and calls structmat for all mathematics.

An adapter's tensors lie in one dictionary for each of the method's tensors, ``structmat_hra_vectors`` for instance,
keyed by the adapter's name; the method and the target they belong to lie beside them.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters import folding
from structmat.adapters.attach import prepare_slot
from structmat.adapters.convert import update_in_double
from structmat.adapters.kinds import kind_named
from structmat.adapters.method import Method, State, Target, Update
from structmat.adapters.mixed import Rows
from structmat.adapters.peft import merging
from structmat.adapters.peft.config import StructmatConfig
from structmat.adapters.peft.storage import Frozen, Trained
from structmat.adapters.peft.types import prefix_of
from structmat.adapters.tree import Place

__all__ = ["BASE", "NOISE", "StructmatLayer", "StructmatLinear"]

_tuners = need("peft.tuners.tuners_utils", "peft")
BASE = "__base__"  # PEFT's name for no adapter in a mixed batch
NOISE = 0.1


class _Slot(NamedTuple):
    """One adapter of a layer as structmat's mixed batches ask for it."""

    layer: "StructmatLayer"
    name: str

    def update(self) -> Update:
        return self.layer.update(self.name)


class StructmatLayer(nn.Module, _tuners.BaseTunerLayer):  # type: ignore[misc, name-defined]
    """A frozen layer and its adapters of one method: ``y = x W_K^T + b``, ``W_K`` folded from the active adapters.

    Args:
        base_layer: a layer of any kind that structmat adapts; of a quantised one the weight is never read.
        key: its name in the model, for errors.
        requantise: what PEFT needs to write a weight of torchao back, or None.
        reader: the class of the module around it if that reads ``weight`` instead of calling it (torch's attention),
            so that ``weight`` is the adapted one, formed when it is read.
    Raises: StructureError, ValueError, DtypeError or ShapeError if the layer or the method does not fit, before
        anything is changed.
    """

    # What BaseTunerLayer brings, which a type checker would look for in torch's tensors and modules.
    active_adapters: list[str]
    merged: bool
    disable_adapters: bool
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    delete_adapter: Callable[[str], None]

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: StructmatConfig,
        key: str,
        requantise: Any = None,
        reader: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        slot = prepare_slot(Place(base_layer, (key,), ()), config.method(), None).slot
        self.base_layer = base_layer
        self.kind = kind_named(slot.target.kind)
        self.key = key
        self.prefix = prefix_of(config.short)
        self.requantise = requantise
        self.reader = reader
        self.methods: dict[str, tuple[Method, Target]] = {}
        self.scaling: dict[str, float] = {}
        self.adapter_layer_names: tuple[str, ...] = ()
        self.other_param_names: tuple[str, ...] = ("methods", "scaling")
        self.merged_adapters: list[str] = []
        # Lists, so that what merge sets aside is not registered.
        self.kept: list[nn.Parameter] = []
        self.kept_layer: list[nn.Module] = []
        self.cast_input_dtype_enabled = True
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._hold(adapter_name, slot, config)

    def update_layer(self, adapter_name: str, config: StructmatConfig) -> None:
        """Give the layer one more adapter; errors as for the first."""
        base = self.kept_layer[0] if self.kept_layer else self.get_base_layer()
        self._hold(adapter_name, prepare_slot(Place(base, (self.key,), ()), config.method(), None).slot, config)

    def _hold(self, name: str, slot: Any, config: StructmatConfig) -> None:
        trained, frozen = slot.state()
        for key, tensor in trained.items():
            with torch.no_grad():
                if not config.init_weights:
                    tensor += NOISE * torch.randn_like(tensor)
            self._dictionary(key, Trained)[name] = nn.Parameter(tensor.detach())
        for key, tensor in frozen.items():
            self._dictionary(key, Frozen)[name] = nn.Parameter(tensor.detach(), requires_grad=False)
        self.methods[name] = (slot.method, slot.target)
        self.scaling[name] = 1.0
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _dictionary(self, key: str, cls: type[Trained]) -> Trained:
        attribute = self.prefix + key
        found = self._modules.get(attribute)
        if found is None:
            found = cls()
            self.add_module(attribute, found)
            if cls is Trained:
                self.adapter_layer_names += (attribute,)
            else:
                self.other_param_names += (attribute,)
        assert isinstance(found, Trained)
        return found

    # -- adapters as updates -------------------------------------------------------------------------------------------

    def state(self, name: str) -> State:
        """The tensors of an adapter as its method's ``init`` returned them."""
        parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        for attribute, module in self._modules.items():
            if isinstance(module, Trained) and name in module:
                key = attribute.removeprefix(self.prefix)
                if isinstance(module, Frozen):
                    parts[1][key] = module[name].detach()
                else:
                    parts[0][key] = module[name]
        return State(*parts)

    def update(self, name: str, training: bool | None = None) -> Update:
        """The change of the weight that an adapter makes, with its weight of ``set_scale``; ``training`` (dropout) is
        by default the module's mode.
        """
        method, target = self.methods[name]
        with folding.full_precision(target.device.type):
            update = method.update(self.state(name), target, training=self.training if training is None else training)
        return folding.weighted(update, self.scaling[name], name)

    def chain(self, names: Iterable[str], training: bool | None = None) -> list[Update]:
        """The updates of those of the adapters that this layer has, in the order given."""
        return [self.update(name, training) for name in names if name in self.methods]

    def slot(self, name: str) -> _Slot | None:
        """An adapter for a mixed batch; None if it does not adapt this layer."""
        return _Slot(self, name) if name in self.methods else None

    # -- the layer -----------------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """The layer with its active adapters; with ``adapter_names``, each row of the batch with its own."""
        names = options.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *rest, **options)
        if names is not None:
            if self.merged:
                raise ValueError("adapter_names: the adapters are merged; call unmerge_adapter first")
            chosen = Rows.by_name([None if name == BASE else name for name in names])
            return chosen.forward(self, x, *rest, **options)
        if self.merged:
            return self.base_layer(x, *rest, **options)
        return self.run(x, self.chain(self.active_adapters), *rest, **options)

    def run(self, x: torch.Tensor, chain: list[Update], *rest: Any, **options: Any) -> torch.Tensor:
        """The output for one chain of updates."""
        if not chain:
            return self.base_layer(x, *rest, **options)
        self.kind.check_input(self.base_layer, x)
        return self.kind.forward(self.base_layer, x, chain, self.kind.place(self.base_layer)[0], rest, options)

    @property
    def weight(self) -> torch.Tensor:
        """The stored weight, as everywhere in PEFT; for a parent that reads it to compute, the adapted one."""
        chain = self.chain(self.active_adapters) if self.reader is not None and not self.disable_adapters else []
        if chain and not self.merged:
            return self.kind.folded(self.base_layer, chain)
        found: torch.Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        return found

    @property
    def in_features(self) -> int:
        """Columns of the weight as a matrix, before its kernel."""
        return self.kind.sizes(self.base_layer)[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight as a matrix."""
        return self.kind.sizes(self.base_layer)[0]

    # -- merging -------------------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters (default: the active ones) into the weight, in the order in which they are active.

        As everywhere in PEFT, a merged layer computes with what is merged alone; active adapters that are left out are
        named in a warning. The stored weight is set aside, for ``unmerge``.

        ``safe_merge``: ValueError, and nothing changed, if the merged weight is not finite.
        """
        fresh = _tuners.check_adapters_to_merge(self, adapter_names)
        fresh = [name for name in fresh if name in self.methods]
        if fresh:
            merging.merge(self, fresh, safe_merge)

    def unmerge(self) -> None:
        """Put the stored weight back, bit for bit."""
        merging.unmerge(self)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """``W_new - W`` of one adapter alone in the layout of the stored weight; n^2 storage.

        Computed in float64: in float32 the difference would carry the rounding of the whole weight.
        """
        base = self.kept_layer[0] if self.kept_layer else self.base_layer
        with torch.no_grad():
            weight = merging.matrix(self).double()
            method, target = self.methods[adapter_name]
            update = update_in_double(method, self.state(adapter_name), target)
            change = folding.fold(weight, [folding.weighted(update, self.scaling[adapter_name], adapter_name)]) - weight
            return self.kind.stored(base, change).to(self.kind.place(base)[0])

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True for linear layers of any storage."""
        return self.kind.by_rows

    # -- weights of adapters -------------------------------------------------------------------------------------------

    def set_scale(self, adapter: str, scale: float) -> None:
        """Give an additive adapter a weight; ValueError for a rotation and any weight but 1."""
        if adapter in self.methods:
            method, target = self.methods[adapter]
            with torch.no_grad():
                folding.weighted(method.update(self.state(adapter), target), float(scale), adapter)
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the weights of the active adapters."""
        for name in self.active_adapters:
            if name in self.methods:
                self.set_scale(name, self.scaling[name] * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the weights of the active adapters again; None: back to 1."""
        for name in self.active_adapters:
            if name in self.methods:
                self.set_scale(name, 1.0 if scale is None else self.scaling[name] / scale)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device of the layer, in the dtype that adapters are kept in (at least float32)."""
        if adapter_name not in self.methods:
            return
        dtype, place = self.kind.place(self.base_layer)
        place = place if device is None else torch.device(device)
        for module in self._modules.values():
            if isinstance(module, Trained) and adapter_name in module and module[adapter_name].device.type != "meta":
                tensor = module[adapter_name]
                if tensor.dtype != dtype or tensor.device != place:
                    moved = nn.Parameter(tensor.detach().to(place, dtype), requires_grad=tensor.requires_grad)
                    module[adapter_name] = moved
        method, target = self.methods[adapter_name]
        self.methods[adapter_name] = (method, dataclasses.replace(target, dtype=dtype, device=place))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "StructmatLayer":
        super()._apply(fn, recurse)
        with torch.no_grad():
            for weight in self.kept:
                weight.data = fn(weight)  # the same object: other layers may share it
        self.kept_layer = [layer._apply(fn) for layer in self.kept_layer]
        for name, (method, target) in self.methods.items():
            first = next(iter(self.state(name).trained.values()), None)
            if first is not None:
                self.methods[name] = (method, dataclasses.replace(target, dtype=first.dtype, device=first.device))
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={method!r}" for name, (method, _) in self.methods.items())


class StructmatLinear(StructmatLayer):
    """A linear layer of any storage. PEFT knows them by this word in the name, where it looks for "all-linear" among
    layers that have an adapter already.
    """
