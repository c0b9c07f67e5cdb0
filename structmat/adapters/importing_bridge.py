"""Files that our own methods left through PEFT (``structmat.adapters.peft``), read without PEFT: nothing changes but
the names of the tensors.
"""

import dataclasses
import functools
from typing import Any

import torch

from structmat.adapters.boft import BOFT, OFT
from structmat.adapters.flora import FLoRA
from structmat.adapters.hra import HRA
from structmat.adapters.importing import Found
from structmat.adapters.importing_peft_tuners import Config, Reader, Tensors
from structmat.adapters.method import Method, Target, from_json
from structmat.adapters.surm import SURM

__all__ = ["BRIDGE"]

_NAMES: dict[type[Any], tuple[str, ...]] = {
    BOFT: ("skew", "scales", *(f"skew{k}" for k in range(64))),
    OFT: ("skew", "scales"),
    HRA: ("vectors", "reference"),
    FLoRA: ("core", *(f"factor{k}" for k in range(5))),
    SURM: ("entries", "second"),
}


def _fields(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _read(cls: type[Any], prefix: str, config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    method: Method = from_json(cls.name, {key: config.fields[key] for key in _fields(cls) if key in config.fields})
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    meta = method.init(dataclasses.replace(target, device=torch.device("meta")), None)
    unknown = sorted(found.keys() - meta.trained.keys() - meta.frozen.keys())
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]} is no tensor of {method!r} on this layer")
    return Found(method, found)


def _reader(cls: type[Any]) -> tuple[str, Reader]:
    prefix = f"structmat_{cls.name.lower()}_"
    names = tuple(prefix + name for name in _NAMES[cls])
    read = functools.partial(_read, cls, prefix)
    return prefix[:-1].upper(), Reader(prefix, names, frozenset(_fields(cls)), read)


BRIDGE: dict[str, Reader] = dict(_reader(cls) for cls in _NAMES)
