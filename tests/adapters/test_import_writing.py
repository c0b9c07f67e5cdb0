"""Adapters written for PEFT: PEFT loads them and computes the same; what it cannot express is refused by name."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.errors import StructureError
from tests.adapters.cases import generator, perturb, relative
from tests.adapters.test_import_peft import CASES, CONVS, LIMIT, LINEAR, Net, inputs, saved

peft = pytest.importorskip("peft")


def theirs(model: nn.Module, folder: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def names(short: list[str]) -> list[str]:
    return [name for name, _ in Net().named_modules() if name.rsplit(".", 1)[-1] in short]


WRITTEN: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "LoRA": (adapters.LoRA(3, alpha=5.0), [*CONVS, "words"], {"train": "head|norm", "train_bias": True}),
    "LoRA-ranks": (
        {r"first": adapters.LoRA(2), r".*\.1\.query": adapters.LoRA(4, alpha=3.0), ".*query": adapters.LoRA(4)},
        LINEAR,
        {},
    ),
    "HRA": (adapters.HRA(4), CONVS, {"train_bias": True}),
    "HRA-odd": (adapters.HRA(3), CONVS, {"train": "head"}),
    "HRA-orthonormal": (adapters.HRA(2, orthonormal=True), LINEAR, {}),
    "OFT": (adapters.OFT(block=4, scale=False), LINEAR, {"train": "head"}),
    "OFT-shared": (adapters.OFT(block=4, scale=False, shared=True, step="paper"), LINEAR, {}),
    "OFT-scaled": (adapters.OFT(block=4, shared=True), [*LINEAR, "conv"], {"train_bias": True}),
    "BOFT": (adapters.BOFT(4, 1), CONVS, {}),
    "kronecker": (adapters.SURM("kronecker", rank=4), ["query"], {}),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_peft_computes_the_same(case: str, tmp_path: Path) -> None:
    method, targets, options = WRITTEN[case]
    torch.manual_seed(0)
    model = Net().eval()
    base = copy.deepcopy(model)
    adapters.attach(model, method, targets=names(targets), generator=generator(), **options)
    perturb(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    adapters.to_peft(model, tmp_path)
    x = inputs()
    expected = model(*x)
    assert relative(expected, base(*x)) > 0.05
    assert relative(theirs(base, tmp_path)(*x), expected) < LIMIT
    fresh = copy.deepcopy(base)
    adapters.from_peft(fresh, tmp_path)
    assert relative(fresh(*x), expected) < LIMIT


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("C3A", "OFT-adjusted")])
def test_what_was_read_is_written_back(case: str, tmp_path: Path) -> None:
    """PEFT -> ours -> PEFT."""
    model, wrapped = saved(CASES[case](), tmp_path / "first")
    base = copy.deepcopy(model)
    adapters.from_peft(model, tmp_path / "first")
    adapters.to_peft(model, tmp_path / "second")
    x = inputs()
    assert relative(theirs(base, tmp_path / "second")(*x), wrapped(*x)) < LIMIT
    again = copy.deepcopy(base)
    adapters.from_peft(again, tmp_path / "second")
    assert relative(again(*x), wrapped(*x)) < LIMIT


REFUSED: dict[str, tuple[Any, list[str], str]] = {
    "toeplitz": (adapters.SURM("toeplitz"), LINEAR, "PEFT has no toeplitz matrices; .*to_lora"),
    "kronecker": (adapters.SURM("kronecker", rank=2), ["query"], "no decompose_factor of PEFT's LoKr splits"),
    "tucker": (adapters.FLoRA(2), LINEAR, r"FLoRA.* on 'first', a Linear: PEFT has no such method; .*to_lora"),
    "rows": (adapters.OnRows(adapters.LoRA(2), ((0, 4),)), LINEAR, "PEFT has no such method"),
    "mixed radix": (adapters.BOFT(3, 2, mixed=True), ["query"], "PEFT has no mixed radix"),
    "two": ({"first": adapters.LoRA(2), ".*query": adapters.HRA(2)}, LINEAR, "peft_type = 'HRA', another layer 'LORA'"),
    "blocks": ({"first": adapters.OFT(block=4), ".*query": adapters.OFT(block=2)}, LINEAR, "one size or one number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    method, targets, message = REFUSED[case]
    model = Net()
    adapters.attach(model, method, targets=names(targets), generator=generator())
    with pytest.raises(StructureError, match=message):
        adapters.to_peft(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_refused_layers_and_parameters(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, (3, 1)))
    adapters.attach(model, adapters.HRA(2), targets=["0"], name="a")
    adapters.attach(model, adapters.HRA(2), targets=["1"], name="b")
    for name in ("a", "b"):
        with pytest.raises(StructureError, match="PEFT ignores the layer's padding mode, dilation, groups or shape"):
            adapters.to_peft(model, tmp_path, name=name)
    with pytest.raises(ValueError, match="the model has the adapters 'a', 'b'; say which: name="):
        adapters.to_peft(model, tmp_path)
    model = Net()
    adapters.attach(model, adapters.LoRA(2), targets=["first"], train=["norm.weight"])
    with pytest.raises(StructureError, match=r"of the module of 'norm\.weight' only some parameters were trained"):
        adapters.to_peft(model, tmp_path)
