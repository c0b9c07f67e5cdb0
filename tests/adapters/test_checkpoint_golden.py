"""Files that were saved once stay loadable, and give what they gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from structmat import adapters
from structmat.adapters.method import method_class
from tests.adapters.cases import relative
from tests.adapters.golden.cases import CASES, model, sample

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_golden_files_give_the_stored_outputs(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The outputs were computed when the file was written; in float32 the tensors are rounded once."""
    for suffix in ("json", "safetensors"):
        shutil.copy(GOLDEN / f"{case}.{suffix}", tmp_path / f"adapters.{suffix}")
    method, layer = CASES[case]
    made = model(layer, dtype).eval()
    adapters.load(made, tmp_path)
    assert made[0].adapters["default"].method == method
    expected = load_file(GOLDEN / "expected.safetensors")[case]
    x = sample(layer, dtype)
    assert relative(expected, made[0].base(x)) > 1e-3
    assert relative(made(x), expected) < (1e-12 if dtype == torch.float64 else 1e-6)


def test_every_registered_method_has_a_golden_file() -> None:
    names = {json.loads(path.read_text())["adapters"]["default"]["layers"]["0"]["method"] for path in golden_json()}
    ours = {"OFT", "BOFT", "HRA", "FLoRA", "SURM", "LoRA", "OnRows", "Bottleneck"}
    ours |= {"C3A", "LoHa", "LoKr", "NeumannOFT", "OutputBOFT", "Reflections"}
    registered = {name for name in ours if method_class(name) is not None}
    assert registered == ours
    assert ours <= names
    assert {path.stem for path in golden_json()} == set(CASES)


def golden_json() -> list[Path]:
    return sorted(path for path in GOLDEN.glob("*.json") if not path.name.startswith("peft-"))


def test_golden_files_are_version_1() -> None:
    for path in golden_json():
        found = json.loads(path.read_text())
        assert (found["format"], found["version"]) == ("structmat.adapters", 1)
