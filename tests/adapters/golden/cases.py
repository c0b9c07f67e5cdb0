"""What the golden files hold: every method on a small layer whose weights come from a formula, not from a generator."""

from __future__ import annotations

import torch
from torch import nn

from structmat import adapters
from structmat.adapters.importing_additions import C3A, LoHa, LoKr
from structmat.adapters.importing_rotations import NeumannOFT, OutputBOFT, Reflections
from structmat.adapters.method import Method
from tests.adapters.cases import METHODS

CASES: dict[str, tuple[Method, str]] = {
    **{name: (method, "linear") for name, method in METHODS.items()},
    "bottleneck-circulant": (adapters.Bottleneck("circulant"), "linear"),
    "bottleneck-ldr": (adapters.Bottleneck("ldr", activation="tanh", rank=2), "linear"),
    "C3A": (C3A(4), "linear"),
    "LoHa": (LoHa(2, alpha=3.0), "linear"),
    "LoKr": (LoKr((3, 2), scale=0.5), "linear"),
    "NeumannOFT": (NeumannOFT(4), "linear"),
    "OutputBOFT": (OutputBOFT(2, 2, scale=True), "linear"),
    "Reflections": (Reflections(3), "linear"),
    "OFT-constraint": (adapters.OFT(block=4, constraint=0.5), "linear"),
    "BOFT-dropout": (adapters.BOFT(2, 2, dropout=(0.5, 0.1)), "linear"),
    "FLoRA-conv": (adapters.FLoRA((3, 2, 1, 2)), "conv"),
    "HRA-conv": (adapters.HRA(4), "conv"),
    "LoHa-conv": (LoHa(2, tucker=True), "conv"),
    "LoKr-conv": (LoKr((2, 2), rank=2, first="low", second="tucker"), "conv"),
    "LoRA-conv": (adapters.LoRA(2), "conv"),
}


def wave(shape: tuple[int, ...], phase: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Numbers between -1 and 1 that any machine computes alike."""
    size = torch.Size(shape).numel()
    return torch.sin(torch.arange(size, dtype=torch.float64) * 0.7 + phase).reshape(shape).to(dtype)


def model(layer: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The model of a case."""
    made = nn.Linear(8, 12) if layer == "linear" else nn.Conv2d(4, 6, 3, stride=(1, 2), padding=1)
    made = made.to(dtype)
    with torch.no_grad():
        for k, parameter in enumerate(made.parameters()):
            parameter.copy_(wave(tuple(parameter.shape), float(k)))
    return nn.Sequential(made)


def sample(layer: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The input of a case."""
    return wave((3, 8) if layer == "linear" else (2, 4, 5, 6), 0.3, dtype)
