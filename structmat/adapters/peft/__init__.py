"""BOFT, OFT, HRA, FLoRA and SURM as methods of Hugging Face PEFT; importing this registers them.

``STRUCTMAT_BOFT``, ``STRUCTMAT_OFT``, ``STRUCTMAT_HRA``, ``STRUCTMAT_FLORA`` and ``STRUCTMAT_SURM`` are then PEFT types
like any other: ``peft.get_peft_model(model, StructmatHraConfig(rank=8, target_modules="all-linear"))``. A program that
only loads such adapters imports this module first. Needs peft 0.18 or newer: ``pip install 'structmat[peft]'``.
"""

from structmat.adapters.peft.config import (
    StructmatBoftConfig,
    StructmatConfig,
    StructmatFloraConfig,
    StructmatHraConfig,
    StructmatOftConfig,
    StructmatSurmConfig,
)
from structmat.adapters.peft.layer import StructmatLayer
from structmat.adapters.peft.model import (
    StructmatBoftModel,
    StructmatFloraModel,
    StructmatHraModel,
    StructmatModel,
    StructmatOftModel,
    StructmatSurmModel,
    register_all,
)
from structmat.adapters.peft.training import StructmatCallback, after_step, penalty

__all__ = [
    "StructmatBoftConfig",
    "StructmatBoftModel",
    "StructmatCallback",
    "StructmatConfig",
    "StructmatFloraConfig",
    "StructmatFloraModel",
    "StructmatHraConfig",
    "StructmatHraModel",
    "StructmatLayer",
    "StructmatModel",
    "StructmatOftConfig",
    "StructmatOftModel",
    "StructmatSurmConfig",
    "StructmatSurmModel",
    "after_step",
    "penalty",
]

register_all()
