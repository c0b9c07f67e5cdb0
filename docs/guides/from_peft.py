"""A folder that PEFT wrote, on a model without PEFT: as the file has it, and as the rotation it stands for.

Run: python docs/guides/from_peft.py
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from structmat import adapters


def peft_folder(folder: Path) -> None:
    """What ``save_pretrained`` leaves for an OFT of blocks of 8 with PEFT's defaults."""
    names = [f"base_model.model.{k}.oft_R.weight" for k in (0, 2)]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.05 * torch.randn(4, 28, generator=generator) for name in names}
    config = {"peft_type": "OFT", "target_modules": ["0", "2"], "r": 0, "oft_block_size": 8, "bias": "none"}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_cayley_neumann": True}))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    exact = copy.deepcopy(model)
    x = torch.randn(4, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peft_folder(folder)
        # begin-read
        print(adapters.from_peft(model, folder))
        print(adapters.inspect(model), "\n")

        print(adapters.from_peft(exact, folder, orthogonalise=True))
        print(adapters.inspect(exact), "\n")
        # end-read
        with torch.no_grad():
            print(f"the outputs differ by {float((exact(x) - model(x)).norm() / model(x).norm()):.1e}")
        # begin-write
        adapters.to_peft(exact, folder / "back")
        # end-write
        config = json.loads((folder / "back" / "adapter_config.json").read_text())
        print("written:", {key: config[key] for key in ("peft_type", "oft_block_size", "use_cayley_neumann")})


if __name__ == "__main__":
    main()
