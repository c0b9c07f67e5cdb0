"""PEFT's enumeration and configurations: the new members, plain JSON, illegal values."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

pytest.importorskip("peft")

import peft
from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import structmat.adapters.peft as bridge
from structmat import adapters
from structmat.adapters.peft import model as tuners
from tests.adapters.peft_cases import CONFIGS, config, net

NAMES = ("BOFT", "OFT", "HRA", "FLORA", "SURM")


@pytest.mark.parametrize("name", NAMES)
def test_a_member_of_the_enumeration_like_any_other(name: str) -> None:
    value = f"STRUCTMAT_{name}"
    found = PeftType[value]
    assert found is PeftType(value) is getattr(PeftType, value)
    assert found in list(PeftType) and value in PeftType.__members__ and found in PeftType and found == value
    assert found.name == found.value == value and isinstance(found, PeftType)
    assert pickle.loads(pickle.dumps(found)) is found is copy.deepcopy(found)
    assert json.loads(json.dumps(found)) == value
    assert repr(PeftType.LORA) == repr(found).replace(value, "LORA") and hash(found) == hash(value)
    assert list(PeftType).count(found) == 1 and len(PeftType) == len(list(PeftType))
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[found]
    assert prefix == value.lower() + "_" == PEFT_TYPE_TO_TUNER_MAPPING[found].prefix
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[value]
    assert cls is getattr(bridge, f"Structmat{name.capitalize()}Config") and cls().peft_type is found


def test_registering_twice_changes_nothing() -> None:
    before = list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING)
    tuners.register_all()
    assert before == (list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING))


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_json_there_and_back(name: str, tmp_path) -> None:
    one = config(
        name,
        target_modules=["first", "head"],
        exclude_modules=["norm"],
        layers_to_transform=[0, 2],
        layers_pattern="h",
        modules_to_save=["head"],
        task_type="SEQ_CLS",
    )
    one.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    assert text["peft_type"] == one.peft_type.value and sorted(text["target_modules"]) == ["first", "head"]
    back = PeftConfig.from_pretrained(tmp_path)
    assert back == one and back.method() == one.method()


def test_tuples_come_back_as_the_same_method(tmp_path) -> None:
    for one in (
        bridge.StructmatFloraConfig(ranks=(3, 2), scale=2.0, start="nlp"),
        bridge.StructmatBoftConfig(dropout=(0.5, 0.25)),
    ):
        one.save_pretrained(tmp_path)
        assert PeftConfig.from_pretrained(tmp_path).method() == one.method()
    assert bridge.StructmatFloraConfig(ranks=[3, 2]).method() == adapters.FLoRA((3, 2))
    assert bridge.StructmatOftConfig().method() == adapters.OFT(block=32)
    assert bridge.StructmatOftConfig(blocks=4, constraint=0.1).method() == adapters.OFT(blocks=4, constraint=0.1)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (bridge.StructmatBoftConfig, {"block": 1}, "BOFT: block must be an integer of at least 2, got 1"),
        (bridge.StructmatBoftConfig, {"dropout": 1.5}, "dropout must be a probability, or a pair"),
        (bridge.StructmatOftConfig, {"block": 4, "blocks": 2}, "give either block= or blocks="),
        (bridge.StructmatHraConfig, {"rank": 0}, "HRA: rank must be an integer of at least 1"),
        (bridge.StructmatHraConfig, {"step": "odd"}, "step must be 'even' or 'paper', got 'odd'"),
        (bridge.StructmatFloraConfig, {"start": "audio"}, "init must be 'vision' or 'nlp', got 'audio'"),
        (bridge.StructmatSurmConfig, {"structure": "hankel"}, "structure must be one of 'circulant', 'skew'"),
        (bridge.StructmatHraConfig, {"init_weights": "pissa"}, "init_weights must be True or False, got 'pissa'"),
        (bridge.StructmatHraConfig, {"bias": "some"}, "bias must be one of 'none', 'all', 'structmat_hra_only'"),
        (bridge.StructmatHraConfig, {"target_modules": "a", "layers_to_transform": 0}, "needs a list of target_mod"),
        (bridge.StructmatHraConfig, {"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
    ],
)
def test_illegal_values_name_the_legal_ones(cls, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_the_base_of_the_configurations_is_none() -> None:
    with pytest.raises(TypeError, match="use StructmatHraConfig, for instance"):
        bridge.StructmatConfig()


def test_what_cannot_work_raises(tmp_path) -> None:
    from peft.utils.hotswap import hotswap_adapter

    one = config("HRA", target_modules=["first"])
    with pytest.raises(ValueError, match="type"):
        get_peft_model(net("Linear"), one, mixed=True)
    model = get_peft_model(net("Linear"), one)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"STRUCTMAT_HRA|only supports LORA"):
        hotswap_adapter(model, tmp_path, "default")


@pytest.mark.skipif(
    not hasattr(peft.tuners.tuners_utils.BaseTuner, "_get_learnable_bias_state_dict"),
    reason="this peft does not save biases of methods from outside, and the configuration refuses them",
)
@pytest.mark.parametrize("bias", ["all", "structmat_hra_only"])
def test_biases_train_and_are_saved(bias: str, tmp_path) -> None:
    base = net("Linear")
    model = get_peft_model(copy.deepcopy(base), config("HRA", target_modules=["first"], bias=bias))
    biases = [key for key, value in model.named_parameters() if value.requires_grad and key.endswith("bias")]
    assert len(biases) == (2 if bias == "all" else 1)
    with torch.no_grad():
        model.get_parameter(biases[0]).add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded(base.input()), model(base.input()))


def test_a_peft_that_is_too_old_is_refused(monkeypatch) -> None:
    from structmat.adapters.peft import types

    monkeypatch.setattr(peft, "__version__", "0.17.1")
    with pytest.raises(ImportError, match=r"needs peft 0\.18 or newer, found 0\.17\.1"):
        types.require_version()
