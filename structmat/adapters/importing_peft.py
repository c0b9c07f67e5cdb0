"""Adapters that Hugging Face PEFT saved, read without PEFT: each one as the matrix that PEFT itself applies."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structmat.adapters.checkpoint import read_object, refusing
from structmat.adapters.importing import Found, Imported, names_of, put, read_all, target_of
from structmat.adapters.importing_bridge import BRIDGE
from structmat.adapters.importing_peft_tuners import READERS, Config, Reader
from structmat.errors import CheckpointError

__all__ = ["from_peft"]

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_READERS = READERS | BRIDGE
# Fields of a configuration that say nothing about what a trained adapter computes, or that the tensors show better.
_SILENT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode",
    "init_weights", "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type",
    "peft_version", "rank_pattern", "revision", "target_modules", "task_type", "fan_in_fan_out", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config",
    "velora_config",
}  # fmt: skip


def from_peft(
    model: nn.Module,
    directory: str | os.PathLike[str],
    name: str = "default",
    *,
    trainable: bool = False,
    orthogonalise: bool = False,
) -> Imported:
    """Put an adapter that PEFT saved on a model: BOFT, OFT, HRA, C3A, LoHa, LoKr or LoRA, without PEFT installed; also
    what ``structmat.adapters.peft`` saved there (STRUCTMAT_HRA and the others), as the same method.

    The layers then compute what PEFT's compute, up to rounding. BOFT, exact OFT, even HRA and LoRA become ours with
    ``step="paper"``; the others become methods of their own, which train, merge and save like any. ``modules_to_save``
    and trained biases are written into the model and belong to the adapter as ``attach(train=...)`` has it.

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: the adapter's name here.
        trainable: freeze all else and train it, as after ``attach``.
        orthogonalise: an OFT file trained with ``use_cayley_neumann=True`` (PEFT's default) holds blocks that are not
            orthogonal, and is read as that; True gives the exact Cayley rotation instead, and the report says how far
            it is from the file's on each layer.
    Raises:  CheckpointError for files that are damaged, hostile, do not fit the model, contradict themselves (PEFT
        trains one butterfly factor where its CUDA extension is missing, whatever the configuration says), or need
        what no weight expresses; a pickle (.bin) is never read. The model is not changed then.
    """
    folder = Path(directory)
    if not (folder / TENSOR_FILE).is_file() and (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder} holds adapter_model.bin, a pickle, which can run any program when it is read; load it with peft "
            "where you trust it, and write model.save_pretrained(directory, safe_serialization=True)"
        )
    with refusing():
        config = _configuration(folder / CONFIG_FILE)
        tensors = read_all(folder / TENSOR_FILE)
        found, extras = _read(model, config, tensors, orthogonalise)
        return put(model, found, extras, name=name, trainable=trainable, source=folder, verb="from_peft")


def _read(
    model: nn.Module, config: Config, held: Mapping[str, torch.Tensor], orthogonalise: bool
) -> tuple[dict[str, Found], dict[str, torch.Tensor]]:
    """The adapters of the file by layer, and the model's own parameters in it."""
    folder, reader = config.place.parent, _READERS[config.kind]
    source = folder / TENSOR_FILE
    layers, rest = _sorted(held, reader, source)
    known = names_of(model)
    found: dict[str, Found] = {}
    for layer, tensors in layers.items():
        target = target_of(layer, known, source)
        try:
            one = reader.read(config, layer, target, tensors)
            found[layer] = reader.orthogonal(one) if orthogonalise and reader.orthogonal is not None else one
        except Exception as error:  # whatever hostile numbers lead to
            said = f"lacks the tensor {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{folder}, layer {layer!r}: {said}") from error
    _check_targets(config, found)
    return found, _extras(config, rest, model, source)


def _configuration(place: Path) -> Config:
    fields = read_object(place)
    kind = fields.get("peft_type") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in _READERS:
        raise CheckpointError(
            f"{place}: peft_type is {kind!r}; read are {', '.join(_READERS)}; merge others in peft "
            "(merge_and_unload), or convert them with peft's convert_to_lora"
        )
    config = Config(kind, fields, place)
    for key, value in fields.items():
        known = key in _SILENT or key in _READERS[kind].fields
        if not known and value not in (None, False, [], {}, "", 0, 0.0):
            raise CheckpointError(
                f"{place}: {key} = {value!r} changes what the adapter computes in a way that is not read here; merge "
                "it in peft (merge_and_unload)"
            )
    return config


def _sorted(
    tensors: Mapping[str, torch.Tensor], reader: Reader, source: Path
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The tensors of the adapter by layer, and the others by name."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    rest: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        short = key.removeprefix(PREFIX)
        suffix = next((s for s in reader.suffixes if short.endswith("." + s)), None)
        if suffix is not None:
            layers.setdefault(short[: -len(suffix) - 1], {})[suffix] = tensor
        elif f".{reader.prefix}" in short:
            raise CheckpointError(
                f"{source} holds {key!r}, which no adapter here expresses; merge it in peft (merge_and_unload)"
            )
        else:
            rest[short] = tensor
    return layers, rest


def _check_targets(config: Config, found: Mapping[str, Found]) -> None:
    """A list of target modules and the layers in the file name each other; an expression is not run."""
    listed = config.fields.get("target_modules")
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        return
    for layer in found:
        if not any(layer == one or layer.endswith("." + one) for one in listed):
            raise CheckpointError(
                f"{config.place}: target_modules = {listed!r} leaves out {layer!r}, which {TENSOR_FILE} adapts"
            )


def _extras(
    config: Config, rest: Mapping[str, torch.Tensor], model: nn.Module, source: Path
) -> dict[str, torch.Tensor]:
    """The model's own parameters in the file: modules_to_save, and biases that were trained."""
    modules = config.fields.get("modules_to_save") or []
    if not isinstance(modules, list) or not all(isinstance(one, str) for one in modules):
        raise CheckpointError(f"{config.place}: modules_to_save must be a list of names, got {modules!r}")
    biased = config.fields.get("bias", "none") != "none"
    state = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for key, tensor in rest.items():
        if re.search(r"\.(modules_to_save|original_module)\.", key):
            continue  # a copy of what stands under its plain name
        plain = key.replace(".base_layer.", ".")
        kept = any(re.search(rf"(^|\.){re.escape(one)}\.", plain) for one in modules)
        if kept or (biased and (plain.endswith(".bias") or plain == "bias")):
            found[plain] = tensor
        elif plain not in state or not _same(state[plain], tensor):  # peft may add embeddings that nobody trained
            raise CheckpointError(
                f"{source} holds {key!r}, which is neither of a {config.kind} adapter nor in modules_to_save = "
                f"{modules!r}, with bias = {config.fields.get('bias')!r}"
            )
    return found


def _same(own: Any, tensor: torch.Tensor) -> bool:
    return isinstance(own, torch.Tensor) and own.shape == tensor.shape and torch.equal(own.cpu().to(tensor), tensor)
