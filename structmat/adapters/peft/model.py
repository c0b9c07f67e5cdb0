"""The tuners: PEFT finds and wraps the layers, and what PEFT leaves to each method is written once here for all."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters.kinds import kind_of
from structmat.adapters.method import near
from structmat.adapters.peft import combination
from structmat.adapters.peft.config import (
    StructmatBoftConfig,
    StructmatConfig,
    StructmatFloraConfig,
    StructmatHraConfig,
    StructmatOftConfig,
    StructmatSurmConfig,
)
from structmat.adapters.peft.layer import BASE, StructmatLayer, StructmatLinear
from structmat.adapters.peft.types import member, prefix_of
from structmat.errors import StructureError

__all__ = [
    "StructmatBoftModel",
    "StructmatFloraModel",
    "StructmatHraModel",
    "StructmatModel",
    "StructmatOftModel",
    "StructmatSurmModel",
    "register_all",
]

_tuners = need("peft.tuners.tuners_utils", "peft")
_utils = need("peft.utils", "peft")
_other = need("peft.utils.other", "peft")


class StructmatModel(_tuners.BaseTuner):  # type: ignore[misc, name-defined]
    """A model whose layers PEFT has wrapped with adapters of one method of structmat; made by ``get_peft_model``."""

    prefix: ClassVar[str] = ""
    tuner_layer_cls = StructmatLayer
    target_module_mapping = _utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; where a layer does not fit, those before it are put back, so that the model is as it was."""
        self._undo: list[Callable[[], object]] = []
        try:
            super().inject_adapter(*args, **kwargs)
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise
        finally:
            self._undo = []

    def _create_and_replace(
        self,
        peft_config: StructmatConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        if isinstance(target, StructmatLayer) and target.prefix == self.prefix:
            target.update_layer(adapter_name, peft_config)
            self._undo.append(functools.partial(target.delete_adapter, adapter_name))
            return
        if isinstance(target, _tuners.BaseTunerLayer):
            raise StructureError(
                f"layer {current_key!r} carries adapters of another PEFT type already; one layer takes one type: leave "
                "it out with exclude_modules, or merge and unload the others first"
            )
        if isinstance(target, nn.MultiheadAttention):
            raise StructureError(
                f"layer {current_key!r} is a MultiheadAttention, which computes with its parameters; of these PEFT can "
                f"reach {current_key}.out_proj; structmat.adapters.attach also takes {current_key}.in_proj_weight"
            )
        kind = kind_of(target)
        layer = (StructmatLinear if kind is not None and kind.by_rows else StructmatLayer)(
            target,
            adapter_name,
            peft_config,
            current_key,
            self._requantise(),
            type(parent) if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) else None,
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
        self._undo.append(functools.partial(setattr, parent, target_name, target))

    def _requantise(self) -> Any:
        """How a model that torchao quantised for transformers quantises a weight again; None for others."""
        try:
            return operator.attrgetter("hf_quantizer.quantization_config.get_apply_tensor_subclass")(self.model)
        except AttributeError:
            return None

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Adapters are made where the layer is, so nothing is moved (PEFT's own reads the layer's weight to do so)."""
        setattr(parent, child_name, new_module)

    def _layers(self) -> list[StructmatLayer]:
        return [module for module in self.model.modules() if isinstance(module, StructmatLayer)]

    # -- mixed batches -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """``adapter_names=``: each row of the batch with its own adapter, "__base__" for none."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        self._check_names(names)
        beams = kwargs.get("num_beams")
        beams = beams if isinstance(beams, int) and beams > 1 else 1
        encoder = getattr(self.model, "get_encoder", lambda: None)() if beams > 1 else None
        inside = set() if encoder is None or encoder is self.model else {id(m) for m in encoder.modules()}
        handles = []
        for module in self.modules():
            if isinstance(module, (StructmatLayer, _other.AuxiliaryTrainingWrapper)):
                # Beams repeat each row, in the decoder alone.
                each = list(names) if id(module) in inside else [name for name in names for _ in range(beams)]
                hook = functools.partial(_give_names, names=each)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_names(self, names: Any) -> None:
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"adapter_names: a list with a name for each row of the batch, got {names!r}")
        if self.training:
            raise ValueError("adapter_names: the model is in training mode; call eval() first")
        layers = self._layers()
        known = {name for layer in layers for name in layer.methods} | {BASE}
        for name in names:
            if name not in known:
                raise ValueError(f"adapter_names: there is no adapter {name!r}; {near(str(name), sorted(known))}")
        for layer in layers:
            if layer.reader is not None and issubclass(layer.reader, nn.MultiheadAttention):
                raise StructureError(
                    f"adapter_names: {layer.key!r} is read by its attention and not called, so it cannot serve a mixed "
                    "batch; exclude it when the adapters are made"
                )

    # -- weighted combinations -----------------------------------------------------------------------------------------

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
    ) -> None:
        """Add an adapter that changes every layer by ``sum_i weights[i] * delta_i``, exactly.

        Additive methods only: FLoRA (cores and ranks add up), SURM "circulant", "skew", "toeplitz",
        "symmetric_toeplitz" (the numbers add up; a "product" circulant becomes "direct") and "ldr" (ranks add up).
        As in PEFT nothing happens if the name is taken; the new adapter is not active and does not train.

        Raises: ValueError for other methods, unknown adapters, or a ``combination_type`` other than "linear" and "cat",
            which are the same here.
        """
        if adapter_name in self.peft_config:
            return
        adapters, weights = list(adapters), [float(weight) for weight in weights]
        if combination_type not in ("linear", "cat"):
            raise ValueError(
                f"add_weighted_adapter: combination_type must be 'linear' or 'cat', got {combination_type!r}"
            )
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"add_weighted_adapter: {len(weights)} weights for {len(adapters)} adapters")
        for name in adapters:
            if name not in self.peft_config:
                raise ValueError(f"add_weighted_adapter: there is no adapter {name!r}; {near(name, self.peft_config)}")
        self.peft_config[adapter_name] = combination.config([self.peft_config[name] for name in adapters])
        self.inject_adapter(self.model, adapter_name)
        for layer in self._layers():
            if adapter_name in layer.methods:
                summed = combination.state(layer, adapters, weights, adapter_name)
                with torch.no_grad():
                    for key, tensor in layer.state(adapter_name).trained.items():
                        tensor.copy_(summed[key])


def _give_names(module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


class StructmatBoftModel(StructmatModel):
    """PEFT's ``STRUCTMAT_BOFT``."""

    prefix = prefix_of("boft")


class StructmatOftModel(StructmatModel):
    """PEFT's ``STRUCTMAT_OFT``."""

    prefix = prefix_of("oft")


class StructmatHraModel(StructmatModel):
    """PEFT's ``STRUCTMAT_HRA``."""

    prefix = prefix_of("hra")


class StructmatFloraModel(StructmatModel):
    """PEFT's ``STRUCTMAT_FLORA``."""

    prefix = prefix_of("flora")


class StructmatSurmModel(StructmatModel):
    """PEFT's ``STRUCTMAT_SURM``."""

    prefix = prefix_of("surm")


_FAMILIES: tuple[tuple[type[StructmatConfig], type[StructmatModel]], ...] = (
    (StructmatBoftConfig, StructmatBoftModel),
    (StructmatOftConfig, StructmatOftModel),
    (StructmatHraConfig, StructmatHraModel),
    (StructmatFloraConfig, StructmatFloraModel),
    (StructmatSurmConfig, StructmatSurmModel),
)


def register_all() -> None:
    """Make the five methods known to PEFT; nothing happens the second time."""
    known = need("peft.mapping", "peft").PEFT_TYPE_TO_TUNER_MAPPING
    for config, model in _FAMILIES:
        if member(config.short) not in known:
            _utils.register_peft_method(name=f"structmat_{config.short}", config_cls=config, model_cls=model)
