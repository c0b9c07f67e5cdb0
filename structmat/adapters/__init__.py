"""Adapters: structured changes of the frozen weights of a pretrained model.

``attach`` wraps layers, ``merge`` folds adapters into the weights, ``save`` and ``load`` keep them in a folder.
Methods: ``OFT``, ``BOFT``, ``HRA``, ``FLoRA``, ``SURM``, ``LoRA``, ``Bottleneck``; ``OnRows`` for fused projections,
``Delta`` and ``Rotation`` for experiments; any class with ``init`` and ``update`` can be one (``register``).
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
from structmat.adapters.boft import BOFT, OFT
from structmat.adapters.bottleneck import Bottleneck
from structmat.adapters.checkpoint import load, save
from structmat.adapters.convert import to_lora
from structmat.adapters.experiment import Delta, Rotation
from structmat.adapters.flora import FLoRA
from structmat.adapters.hra import HRA
from structmat.adapters.importing_lycoris import from_lycoris
from structmat.adapters.importing_peft import from_peft
from structmat.adapters.importing_writing import to_peft
from structmat.adapters.lora import LoRA
from structmat.adapters.merge import merge, unmerge
from structmat.adapters.method import Add, Compose, Method, Parts, Residual, State, Target, Update, register
from structmat.adapters.parts import OnRows
from structmat.adapters.report import explain, inspect
from structmat.adapters.surm import SURM

__all__ = [
    "BOFT",
    "HRA",
    "OFT",
    "SURM",
    "Add",
    "Bottleneck",
    "Compose",
    "Delta",
    "FLoRA",
    "LoRA",
    "Method",
    "OnRows",
    "Parts",
    "Residual",
    "Rotation",
    "State",
    "Target",
    "Update",
    "activate",
    "after_step",
    "attach",
    "detach",
    "disabled",
    "explain",
    "from_lycoris",
    "from_peft",
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
    "to_peft",
    "trainable_parameters",
    "unmerge",
]
