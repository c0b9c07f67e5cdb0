"""Write golden files for the cases that have none: ``python -m tests.adapters.golden.make``.

A file once written is kept: it stands for what users have on their disks. With ``lycoris`` or ``peft`` as an argument,
also the files that these write, and what they compute with them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from structmat import adapters
from tests.adapters.golden.cases import CASES, model, sample, wave

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected.safetensors"


def main() -> None:
    """Write what is missing."""
    expected = load_file(EXPECTED) if EXPECTED.is_file() else {}
    for case, (method, layer) in CASES.items():
        if case in expected:
            continue
        made = model(layer)
        adapters.attach(made, method, targets=["0"], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for k, parameter in enumerate(adapters.trainable_parameters(made)):
                parameter += 0.3 * wave(tuple(parameter.shape), 2.0 + k)
            expected[case] = made.eval()(sample(layer)).contiguous()
        with tempfile.TemporaryDirectory() as folder:
            adapters.save(made, folder)
            for suffix in ("json", "safetensors"):
                (HERE / f"{case}.{suffix}").write_bytes((Path(folder) / f"adapters.{suffix}").read_bytes())
        print("wrote", case)
    save_file(expected, EXPECTED)


if __name__ == "__main__":
    main()
    if "lycoris" in sys.argv[1:]:
        from tests.adapters.golden.make_lycoris import main as main_lycoris

        main_lycoris()
    if "peft" in sys.argv[1:]:
        from tests.adapters.golden.make_peft import main as main_peft

        main_peft()
