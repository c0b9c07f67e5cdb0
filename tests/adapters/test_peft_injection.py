"""Putting PEFT's adapters on a model that has some already, and where a layer on the way does not fit."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("peft")

from peft import get_peft_model

import structmat.adapters.peft as bridge
from tests.adapters.peft_cases import close, config
from tests.adapters.peft_models import logits, tiny


def structure(model: torch.nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


# 24 columns behind four layers of 16, which block 16 does not divide.
MISFIT = {"block": 16, "target_modules": "all-linear"}


def test_a_layer_that_does_not_fit_leaves_the_model_as_it_was() -> None:
    model, batch = tiny("BERT")
    before, wanted = structure(model), logits(model, batch)
    with pytest.raises(ValueError, match=r"OFT\(block=16\) on 'bert.encoder.layer.0.output.dense' with 24 columns"):
        get_peft_model(model, bridge.StructmatOftConfig(**MISFIT))
    assert structure(model) == before
    assert torch.equal(logits(model, batch), wanted)
    wrapped = get_peft_model(model, config("HRA", target_modules="all-linear"))
    assert not any("structmat_oft" in name for name, _ in wrapped.named_parameters())


def test_a_second_adapter_that_does_not_fit_leaves_the_first() -> None:
    model, batch = tiny("BERT")
    first = bridge.StructmatOftConfig(block=8, target_modules="all-linear", init_weights=False)
    wrapped = get_peft_model(model, first).eval()
    before, wanted = structure(wrapped), logits(wrapped, batch)
    keys = set(wrapped.state_dict())
    with pytest.raises(ValueError, match=r"OFT\(block=16\)"):
        wrapped.add_adapter("second", bridge.StructmatOftConfig(**MISFIT))
    assert structure(wrapped) == before and set(wrapped.state_dict()) == keys
    assert list(wrapped.peft_config) == ["default"] and wrapped.active_adapters == ["default"]
    assert torch.equal(logits(wrapped, batch), wanted)
    wrapped.add_adapter("second", bridge.StructmatOftConfig(block=4, target_modules="all-linear"))
    assert torch.equal(logits(wrapped, batch), wanted)


@pytest.mark.parametrize("name", ["BOFT", "HRA-odd", "FLoRA", "ldr"])
@pytest.mark.parametrize("family", ["BERT", "GPT2", "Llama"])
def test_all_linear_is_the_same_layers_for_a_second_adapter(name: str, family: str) -> None:
    model, batch = tiny(family)
    base = copy.deepcopy(model)
    wrapped = get_peft_model(model, config(name, target_modules="all-linear", init_weights=False)).eval()
    first = logits(wrapped, batch)
    wrapped.add_adapter("other", config(name, target_modules="all-linear"))
    assert torch.equal(logits(wrapped, batch), first)
    counted = {
        adapter: sorted(key for key, _ in wrapped.named_parameters() if key.endswith(f".{adapter}"))
        for adapter in ("default", "other")
    }
    assert [key.replace("other", "default") for key in counted["other"]] == counted["default"]
    wrapped.set_adapter("other")
    assert close(logits(wrapped, batch), logits(base, batch))


def test_the_card_says_what_to_import_and_no_other_card_does(tmp_path) -> None:
    from peft import LoraConfig

    model, _ = tiny("BERT")
    get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    theirs = (tmp_path / "README.md").read_text()
    wrapped = get_peft_model(model, config("HRA", target_modules=["query"]))
    wrapped.add_adapter("other", config("HRA", target_modules=["query"]))
    wrapped.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "README.md").read_text() == theirs
    assert "import structmat.adapters.peft" in (tmp_path / "ours" / "README.md").read_text()
    wrapped.save_pretrained(tmp_path / "named", selected_adapters=["other"])
    assert "import structmat.adapters.peft" in (tmp_path / "named" / "README.md").read_text()
