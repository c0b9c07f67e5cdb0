"""Adapters: structured changes of the frozen weights of a pretrained model.

``attach`` wraps layers, ``merge`` folds adapters into the weights, ``save`` and ``load`` keep them in a folder.
Methods: ``HRA``, ``LoRA``, ``SURM``; any class with ``init`` and ``update`` can be one (``register``).
"""

from structmat.adapters.active import (
    activate,
    after_step,
    disabled,
    names,
    penalty,
    rows,
    stack,
    trainable_parameters,
)
from structmat.adapters.attach import attach, detach
from structmat.adapters.checkpoint import load, save
from structmat.adapters.convert import to_lora
from structmat.adapters.hra import HRA
from structmat.adapters.lora import LoRA
from structmat.adapters.merge import merge, unmerge
from structmat.adapters.method import Add, Compose, Method, State, Target, Update, register
from structmat.adapters.report import inspect
from structmat.adapters.surm import SURM

__all__ = [
    "HRA",
    "SURM",
    "Add",
    "Compose",
    "LoRA",
    "Method",
    "State",
    "Target",
    "Update",
    "activate",
    "after_step",
    "attach",
    "detach",
    "disabled",
    "inspect",
    "load",
    "merge",
    "names",
    "penalty",
    "register",
    "rows",
    "save",
    "stack",
    "to_lora",
    "trainable_parameters",
    "unmerge",
]
