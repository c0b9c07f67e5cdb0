"""Writing an adapter for Hugging Face PEFT, where PEFT has a method that computes the same; refused where not."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters.checkpoint import write_file
from structmat.adapters.importing_peft import CONFIG_FILE, PREFIX, TENSOR_FILE
from structmat.adapters.importing_writing_methods import common, written
from structmat.adapters.layer import Adapted
from structmat.adapters.tree import adapted, parameters_by_name, places, roster_of, selected_names
from structmat.errors import StructureError

__all__ = ["to_peft"]


def to_peft(model: nn.Module, directory: str | os.PathLike[str], name: str | None = None) -> None:
    """Write one adapter as a folder that ``peft.PeftModel.from_pretrained(model, directory)`` loads and computes alike.

    LoRA is written as LORA, HRA as HRA (the reflections of a frozen reference, at odd rank or with orthonormal vectors,
    among those that PEFT trains: r + 1 or 2 r in all), OFT as OFT or (with scales, or on convolutions) as BOFT of one
    factor, BOFT as BOFT, ``SURM("kronecker")`` as LOKR where PEFT's factorisation of the sizes gives that product, and
    what ``from_peft`` read as what it was. Trained biases of adapted layers and whole modules in ``train`` go along.
    PEFT needs its CUDA extension for a BOFT of several factors: without it, it builds one and cannot load the file.

    Args:
        directory: made if need be; gets ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: which adapter; may be left out if there is one.
    Raises:  StructureError for what PEFT cannot express, naming the layer and the way out, before anything is written;
        ValueError for an unknown name.
    """
    torch_files = need("safetensors.torch", "adapters")
    roster = roster_of(model)
    assert roster is not None
    if name is None:
        if len(roster.order) > 1:
            raise ValueError(
                f"to_peft: the model has the adapters {', '.join(map(repr, roster.order))}; say which: name="
            )
        name = roster.order[0]
    (name,) = selected_names(name, roster.order, "to_peft")
    layers = {key: layer for key, layer in adapted(model).items() if layer.slot(name) is not None}
    slots = {key: slot for key, layer in layers.items() if (slot := layer.slot(name)) is not None}
    with torch.no_grad():
        as_boft = any(slot.target.kind == "Conv2d" or "scales" in slot.state().trained for slot in slots.values())
        parts = {key: written(slot, layers[key].base, as_boft) for key, slot in slots.items()}
    config = common(parts)
    biases, modules = _extras(model, roster.extras[name], layers, config)
    tensors = {f"{PREFIX}{key}.{suffix}": t for key, part in parts.items() for suffix, t in part.tensors.items()}
    own = parameters_by_name(model)
    for key in biases:
        place = f"{key.removesuffix('.bias')}.base_layer.bias" if key.removesuffix(".bias") in layers else key
        tensors[PREFIX + place] = own[key]
    tensors |= {PREFIX + key: own[key] for module in modules for key in own if key.startswith(module + ".")}
    plain = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}
    config |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": modules or None,
        "target_modules": _only(list(parts)),
        "task_type": None,
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
    write_file(folder / TENSOR_FILE, lambda place: torch_files.save_file(plain, place, metadata={"format": "pt"}))
    write_file(folder / CONFIG_FILE, lambda place: Path(place).write_text(text, encoding="utf-8"))


def _only(names: Sequence[str]) -> str:
    """An expression for exactly these names: PEFT's lists of names also match where a longer name ends with one."""
    return "|".join(re.escape(name) for name in names)


def _extras(
    model: nn.Module, extras: Sequence[str], layers: dict[str, Adapted], config: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The biases that go along (of adapted layers, or all of the model), and the modules that go as a whole."""
    own = parameters_by_name(model)
    every = [key for key in own if key.endswith(".bias")]
    of_layers = [key for key in extras if key.endswith(".bias") and key[:-5] in layers]
    whole_model = len(every) > len(of_layers) and set(every) <= set(extras) and "bias" in config
    biases = every if whole_model else of_layers
    if biases:
        if "bias" not in config:
            raise StructureError(f"to_peft: PEFT's {config['peft_type']} saves no biases; detach or zero that change")
        config["bias"] = "all" if whole_model else f"{config['peft_type'].lower()}_only"
    rest = set(extras) - set(biases)
    names = [name for name in places(model) if name]
    modules: list[str] = []
    for key in [key for key in extras if key in rest]:
        if any(key.startswith(module + ".") for module in modules):
            continue
        parents = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
        whole = [
            p for p in parents if {k for k in own if k.startswith(p + ".")} <= set(extras) and not _holds(p, layers)
        ]
        if not whole:
            raise StructureError(
                f"to_peft: PEFT saves whole modules, and of the module of {key!r} only some parameters were trained"
            )
        last = whole[-1]
        if any(other.endswith("." + last) for other in names):
            raise StructureError(f"to_peft: modules_to_save = [{last!r}] would name other modules of the model too")
        modules.append(last)
    return biases, modules


def _inside(module: str, own: Iterable[str]) -> set[str]:
    return {key for key in own if key.startswith(module + ".")}


def _holds(module: str, layers: dict[str, Adapted]) -> bool:
    return any(key == module or key.startswith(module + ".") for key in layers)
