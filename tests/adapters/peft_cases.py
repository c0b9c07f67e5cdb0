"""Configurations, layers and tiny transformers for the tests of the bridge to PEFT."""

from __future__ import annotations

import copy

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import structmat.adapters.peft as bridge

EPS = torch.finfo(torch.float32).eps
CONFIGS = {
    "BOFT": (bridge.StructmatBoftConfig, {"block": 4, "factors": 2, "mixed": True}),
    "OFT": (bridge.StructmatOftConfig, {"blocks": 1}),
    "HRA": (bridge.StructmatHraConfig, {"rank": 4}),
    "HRA-odd": (bridge.StructmatHraConfig, {"rank": 3}),
    "HRA-orthonormal": (bridge.StructmatHraConfig, {"rank": 2, "orthonormal": True}),
    "FLoRA": (bridge.StructmatFloraConfig, {"ranks": 2}),
    "circulant": (bridge.StructmatSurmConfig, {}),
    "toeplitz-product": (bridge.StructmatSurmConfig, {"structure": "toeplitz", "form": "product"}),
    "ldr": (bridge.StructmatSurmConfig, {"structure": "ldr", "rank": 2}),
}
ROTATIONS = ("BOFT", "OFT", "HRA", "HRA-odd", "HRA-orthonormal")
ADDITIVE = tuple(name for name in CONFIGS if name not in ROTATIONS)
ONE_EACH = ("BOFT", "OFT", "HRA-odd", "FLoRA", "circulant")  # one for each of the five PEFT types


def config(name: str, **options):
    cls, own = CONFIGS[name]
    return cls(**{**own, **options})


class Net(nn.Module):
    """Some layer called ``first``, and a linear ``head`` behind it."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.first = layer
        self.head = nn.Linear(features, 3)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.first(x)).flatten(1))

    def input(self, rows: int = 4) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        if isinstance(self.first, nn.Embedding) or isinstance(getattr(self.first, "base_layer", None), nn.Embedding):
            return torch.randint(0, 11, (rows, *self.shape), generator=generator)
        return torch.randn(rows, *self.shape, generator=generator)


def net(kind: str) -> Net:
    torch.manual_seed(0)
    found = {
        "Linear": lambda: Net(nn.Linear(16, 12), (16,), 12),
        "Conv1D": lambda: Net(Conv1D(12, 10), (10,), 12),
        "Conv1d": lambda: Net(nn.Conv1d(4, 6, 3, padding=1, groups=2), (4, 5), 30),
        "Conv2d": lambda: Net(nn.Conv2d(3, 4, (3, 2), stride=2, padding_mode="circular", padding=1), (3, 5, 6), 48),
        "Conv3d": lambda: Net(nn.Conv3d(2, 4, 2, dilation=2), (2, 3, 4, 3), 8),
        "ConvTranspose2d": lambda: Net(nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 2, 2), 64),
        "Embedding": lambda: Net(nn.Embedding(11, 6), (3,), 18),
    }
    return found[kind]().eval()


def wrapped(name: str, kind: str = "Linear", **options):
    """A net, and the same with a random adapter on its first layer."""
    base = net(kind)
    torch.manual_seed(1)
    options = {"target_modules": ["first"], "init_weights": False, **options}
    return base, get_peft_model(copy.deepcopy(base), config(name, **options)).eval()


def close(a: torch.Tensor, b: torch.Tensor, size: int = 64) -> bool:
    """Within rounding: sums of up to ``size`` float32 terms, through a handful of layers."""
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= 8 * EPS * size**0.5 * max(1.0, float(b.abs().max())))
