"""Files that PEFT writes, and what PEFT computes with them."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.adapters.golden.cases import wave
from tests.adapters.golden.make_lycoris import Small, sample

HERE = Path(__file__).resolve().parent
LINEAR = {"target_modules": ["first", "to_q"]}
ALL = {"target_modules": ["first", "to_q", "conv"]}
# the name of a file -> PEFT's configuration
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, "bias": "boft_only", **ALL}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False, **LINEAR}),
    "OFT-Neumann": ("OFTConfig", {"r": 0, "oft_block_size": 4, **LINEAR}),
    "HRA": ("HRAConfig", {"r": 4, **ALL}),
    "HRA-odd": ("HRAConfig", {"r": 3, **LINEAR}),
    "C3A": ("C3AConfig", {"block_size": 8, **LINEAR}),
    "LoHa": ("LoHaConfig", {"r": 2, "use_effective_conv2d": True, **ALL}),
    "LoKr": ("LoKrConfig", {"r": 1, "decompose_both": True, "use_effective_conv2d": True, **ALL}),
    "LoRA": ("LoraConfig", {"r": 2, "lora_alpha": 3, "rank_pattern": {"first": 1}, **ALL}),
}


def main() -> None:
    """Write all of them."""
    import peft

    expected: dict[str, torch.Tensor] = {}
    for name, (config, options) in FILES.items():
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = peft.get_peft_model(Small(), getattr(peft, config)(**options)).eval()
            for k, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                parameter += 0.5 * wave(tuple(parameter.shape), 2.0 + k)
            expected[name] = model(sample()).contiguous()
            model.save_pretrained(folder)
            for kind, suffix in (("config", "json"), ("model", "safetensors")):
                (HERE / f"peft-{name}.{suffix}").write_bytes((Path(folder) / f"adapter_{kind}.{suffix}").read_bytes())
    save_file(expected, HERE / "peft-expected.safetensors")


if __name__ == "__main__":
    main()
