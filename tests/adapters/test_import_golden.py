"""Files that PEFT 0.21.2 wrote, read where it is not installed; and what damaged ones do."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from structmat import adapters
from structmat.errors import CheckpointError
from tests.adapters.cases import relative
from tests.adapters.golden.make_lycoris import FILES as LYCORIS
from tests.adapters.golden.make_lycoris import Small, sample
from tests.adapters.golden.make_peft import FILES
from tests.adapters.test_checkpoint_fuzz import JSON, MUTATIONS, TENSORS, fingerprint

GOLDEN = Path(__file__).parent / "golden"
COUNT = 1500 if hypothesis.settings().max_examples >= 200 else 300


def placed(name: str, folder: Path) -> Path:
    for kind, suffix in (("config", "json"), ("model", "safetensors")):
        (folder / f"adapter_{kind}.{suffix}").write_bytes((GOLDEN / f"peft-{name}.{suffix}").read_bytes())
    return folder


@pytest.mark.parametrize("name", FILES)
def test_golden_files(name: str, tmp_path: Path) -> None:
    model = Small().eval()
    expected = load_file(GOLDEN / "peft-expected.safetensors")[name]
    x = sample()
    assert relative(expected, model(x)) > 0.05
    adapters.from_peft(model, placed(name, tmp_path))
    assert relative(model(x), expected) < 1e-5


def test_without_peft_and_lycoris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither can be imported, the files of both are read."""
    for name in ("peft", "lycoris", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert adapters.from_peft(Small(), placed("OFT", tmp_path)).layers == ("blocks.0.to_q", "first")
    report = adapters.from_lycoris(Small(), GOLDEN / "lycoris-boft.safetensors")
    assert set(report.layers) == {"blocks.0.to_q", "conv", "first"}


def read(model: nn.Module, folder: Path, lycoris: bool) -> str | None:
    """What the error says, None if the file was read; any other exception goes through."""
    try:
        if lycoris:
            adapters.from_lycoris(model, folder / "adapter_model.safetensors")
        else:
            adapters.from_peft(model, folder)
    except CheckpointError as error:
        return str(error)
    return None


def test_mutated_files(tmp_path: Path) -> None:
    """Each is an error that leaves the model alone, or a model that computes numbers."""
    draw = random.Random(21)
    model = Small()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    good = [(GOLDEN / f"peft-{name}", False) for name in FILES] + [(GOLDEN / f"lycoris-{n}", True) for n in LYCORIS]
    names = {JSON: "adapter_config.json", TENSORS: "adapter_model.safetensors"}
    refused = 0
    for step in range(COUNT):
        place, lycoris = draw.choice(good)
        told = b"{}" if lycoris else Path(f"{place}.json").read_bytes()
        files = {JSON: told, TENSORS: Path(f"{place}.safetensors").read_bytes()}
        for name, data in MUTATIONS[step % len(MUTATIONS)](draw, files).items():
            (tmp_path / names[name]).unlink(missing_ok=True)
            (tmp_path / names[name]).write_bytes(data)
        before = fingerprint(model)
        said = read(model, tmp_path, lycoris)
        if said is not None:
            assert len(said) <= 2000
            assert fingerprint(model) == before
            refused += 1
            continue
        assert model(sample()).shape == (3, 32)
        adapters.detach(model)
        with torch.no_grad():
            model.load_state_dict(kept)
    assert COUNT // 4 < refused < COUNT
