"""Files that LyCORIS writes, and what LyCORIS computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.adapters.golden.cases import wave

HERE = Path(__file__).resolve().parent
# the name of a file -> options of create_lycoris
FILES: dict[str, dict[str, Any]] = {
    "boft": {"algo": "boft", "linear_dim": 8, "conv_dim": 4},
    "boft-rescaled": {"algo": "boft", "linear_dim": 8, "conv_dim": 4, "constraint": 0.02, "rescaled": True},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 4, "conv_dim": 2},
    "diag-oft-rescaled": {"algo": "diag-oft", "linear_dim": 4, "conv_dim": 4, "constraint": 0.05, "rescaled": True},
    "lokr": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "linear_alpha": 3, "conv_alpha": 3},
    "lokr-tucker": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "decompose_both": True, "use_tucker": True}
    | {"linear_alpha": 9, "conv_alpha": 9},
    "lokr-full": {"algo": "lokr", "linear_dim": 100, "conv_dim": 100, "factor": 2},
}


class Small(nn.Module):
    """A convolution and two linear layers, one of them under a name with dots and underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(16, 32)})])
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                parameter.copy_(0.5 * wave(tuple(parameter.shape), float(k)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.conv(x)).mean((-2, -1))
        return self.blocks[0]["to_q"](torch.tanh(self.first(y)))


def sample() -> torch.Tensor:
    """The input."""
    return wave((3, 4, 5, 6), 0.3, torch.float32)


def write(name: str, place: Path) -> torch.Tensor:
    """One file; returns what LyCORIS computes with it."""
    from lycoris import LycorisNetwork, create_lycoris

    torch.manual_seed(0)
    model = Small().eval()
    options = {"linear_alpha": 1, "conv_alpha": 1, **FILES[name]}
    LycorisNetwork.apply_preset({"enable_conv": True, "target_module": ["Linear", "Conv2d"], "target_name": []})
    network = create_lycoris(model, 1.0, **options).eval()
    network.apply_to()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter += 0.4 * wave(tuple(parameter.shape), 2.0 + k)
        y = model(sample()).clone()
    network.save_weights(str(place), None, {})
    return y


def main() -> None:
    """Write all of them."""
    expected = {name: write(name, HERE / f"lycoris-{name}.safetensors") for name in FILES}
    save_file(expected, HERE / "lycoris-expected.safetensors")


if __name__ == "__main__":
    main()
