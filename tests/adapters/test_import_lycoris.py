"""Adapters that LyCORIS saved: read without it, and equal to what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from structmat import adapters
from structmat.errors import CheckpointError
from tests.adapters.cases import relative
from tests.adapters.golden.make_lycoris import FILES, Small, sample, write
from tests.adapters.test_bad_input import fingerprint

GOLDEN = Path(__file__).parent / "golden"
LIMIT = 1e-5  # both compute in float32


def check(file: Path, expected: torch.Tensor, folder: Path) -> None:
    model, fresh = Small().eval(), Small().eval()
    x = sample()
    assert relative(expected, model(x)) > 0.05
    report = adapters.from_lycoris(model, file)
    assert set(report.layers) == {"conv", "first", "blocks.0.to_q"}
    assert relative(model(x), expected) < LIMIT
    adapters.save(model, folder)
    adapters.load(fresh, folder)
    assert torch.equal(fresh(x), model(x))
    adapters.merge(model)
    assert relative(model(x), expected) < LIMIT


@pytest.mark.parametrize("name", FILES)
def test_golden_files(name: str, tmp_path: Path) -> None:
    """Files that LyCORIS 4.1.3 wrote, with its own outputs."""
    expected = load_file(GOLDEN / "lycoris-expected.safetensors")[name]
    check(GOLDEN / f"lycoris-{name}.safetensors", expected, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_made_now(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lycoris")
    expected = write(name, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors", expected, tmp_path / "ours")


def test_rotations_are_known_to_be_orthogonal() -> None:
    model = Small()
    adapters.from_lycoris(model, GOLDEN / "lycoris-boft.safetensors")
    found = adapters.inspect(model)
    assert all(info.orthogonality is not None and info.orthogonality < 1e-6 for info in found.layers)
    assert isinstance(model.first, nn.Module)
    assert model.first.adapters["default"].skew.shape[0] > 1  # a butterfly of several factors


KEY = "lycoris_first.oft_blocks"
BAD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "another layer": (
        lambda t: t.update(
            {KEY.replace("first", "frist"): t.pop(KEY), "lycoris_frist.alpha": t.pop("lycoris_first.alpha")}
        ),
        "adapts 'lycoris_frist', which .* near: 'lycoris_first'",
    ),
    "no alpha": (lambda t: t.pop("lycoris_first.alpha"), r"layer 'first': lacks the tensor 'alpha'"),
    "shape": (lambda t: t.update({KEY: torch.ones(3, 3, 3)}), "layer 'first'"),
    "axes": (lambda t: t.update({KEY: torch.ones(3, 3)}), "oft_blocks has 2 axes; diag-oft has 3, boft 4"),
    "not finite": (lambda t: t[KEY].fill_(float("inf")), "are not finite"),
    "another method": (
        lambda t: t.update({"lycoris_first.hada_w1_a": t.pop(KEY)}),
        "holds alpha, hada_w1_a; read are boft, diag-oft and lokr; merge others in lycoris",
    ),
    "more": (lambda t: t.update({"lycoris_first.dora_scale": torch.ones(1)}), "holds dora_scale, which is not read"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_change_nothing(fault: str, tmp_path: Path) -> None:
    edit, message = BAD[fault]
    tensors = load_file(GOLDEN / "lycoris-diag-oft.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    model = Small()
    before, values = fingerprint(model), copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        adapters.from_lycoris(model, tmp_path / "x.safetensors")
    assert fingerprint(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_pickles_and_prefixes(tmp_path: Path) -> None:
    model = Small()
    with pytest.raises(CheckpointError, match="a pickle can run any program"):
        adapters.from_lycoris(model, tmp_path / "x.pt")
    tensors = load_file(GOLDEN / "lycoris-diag-oft.safetensors")
    save_file({k.replace("lycoris", "lora_unet"): t for k, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="adapts 'lora_unet_"):
        adapters.from_lycoris(model, tmp_path / "x.safetensors")
    adapters.from_lycoris(model, tmp_path / "x.safetensors", prefix="lora_unet")
    expected = load_file(GOLDEN / "lycoris-expected.safetensors")["diag-oft"]
    assert relative(model(sample()), expected) < LIMIT
    model.blocks_0_to_q = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"may stand for any of 'blocks\.0\.to_q', 'blocks_0_to_q'"):
        adapters.from_lycoris(model, tmp_path / "x.safetensors", prefix="lora_unet", name="b")
