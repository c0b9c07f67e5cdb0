"""What our own PEFT types saved through PEFT is read without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from structmat import adapters
from structmat.errors import CheckpointError
from tests.adapters.cases import relative

pytest.importorskip("peft")
pytest.importorskip("transformers")

from tests.adapters import peft_cases

LIMIT = 1e-5  # both compute in float32

BRIDGED = ["BOFT", "OFT", "HRA", "HRA-odd", "HRA-orthonormal", "FLoRA", "circulant", "toeplitz-product", "ldr"]


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Conv2d", "Embedding"])
@pytest.mark.parametrize("name", BRIDGED)
def test_what_our_own_peft_types_saved_is_read_without_peft(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "Embedding" and name in peft_cases.ROTATIONS:
        return  # refused when it is attached
    base, wrapped = peft_cases.wrapped(name, kind, modules_to_save=["head"])
    with torch.no_grad():
        wrapped.base_model.model.head.modules_to_save["default"].weight += 0.1
    wrapped.save_pretrained(tmp_path)
    x = base.input()
    expected = wrapped(x)
    report = adapters.from_peft(base, tmp_path)
    assert report.layers == ("first",) and report.extras == ("head.weight", "head.bias")
    assert relative(base(x), expected) < LIMIT
    assert set(peft_cases.CONFIGS) == set(BRIDGED)


def test_a_file_of_our_peft_types_that_does_not_fit(tmp_path: Path) -> None:
    base, wrapped = peft_cases.wrapped("HRA-odd")
    wrapped.save_pretrained(tmp_path)
    place = tmp_path / "adapter_config.json"
    told = json.loads(place.read_text())
    for change, message in (
        ({"rank": 4}, "structmat_hra_reference is no tensor of HRA"),
        ({"rank": 5}, "vectors has shape"),
        ({"rank": -1}, "rank must be an integer"),
        ({"regulariser": []}, "regulariser must be a number"),
    ):
        place.write_text(json.dumps(told | change))
        with pytest.raises(CheckpointError, match=message):
            adapters.from_peft(base, tmp_path)
    assert not adapters.names(base)
