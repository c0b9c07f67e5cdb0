"""The bridge in transformers: six architectures, the Trainer, PEFT's and transformers' own ways in and out."""

from __future__ import annotations

import copy
import os

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("accelerate")

import peft
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model

import structmat.adapters.peft as bridge
from tests.adapters.peft_cases import ONE_EACH, close, config
from tests.adapters.peft_models import METHOD_OF, TARGETS, logits, tiny

PEFT = tuple(int(part) for part in peft.__version__.split(".")[:2])
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "ci"
native = pytest.mark.skipif(PEFT < (0, 20), reason="transformers 5 asks for peft 0.20 for its own add_adapter")
conversion = pytest.mark.skipif(not hasattr(peft, "convert_to_lora"), reason="this peft has no convert_to_lora")


def adapted(model: str, name: str | None = None, **options):
    """A tiny model, its batch, and a copy with a random adapter."""
    base, batch = tiny(model)
    torch.manual_seed(1)
    options = {"target_modules": TARGETS[model], "init_weights": False, **options}
    if isinstance(options["target_modules"], str) and model != "ConvNeXt":
        options.setdefault("task_type", {"BERT": "SEQ_CLS", "Llama": "CAUSAL_LM", "GPT2": "CAUSAL_LM"}.get(model))
    return base, batch, get_peft_model(copy.deepcopy(base), config(name or METHOD_OF[model], **options)).eval()


@pytest.mark.parametrize("name", TARGETS)
def test_start_train_merge_save(name: str, tmp_path) -> None:
    base, batch, model = adapted(name, init_weights=True)
    plain = logits(base, batch)
    assert close(logits(model, batch), plain)
    model.train()
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model(**batch).loss.backward()
    grown = {key: p.grad is not None for key, p in model.named_parameters() if p.requires_grad}
    assert grown and all(grown.values()), grown
    base, batch, model = adapted(name)
    y = logits(model, batch)
    assert not close(y, plain)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path).eval(), batch), y)
    assert close(logits(model.merge_and_unload(safe_merge=True), batch), y)


class Rows(torch.utils.data.Dataset):
    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 8

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        return {key: value[k % len(value)] for key, value in self.batch.items()}


def trainer(model, batch, folder, steps: int, callbacks=()):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=3,
        dataloader_num_workers=0,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=Rows(batch), callbacks=list(callbacks))


@pytest.mark.parametrize("name", TARGETS if THOROUGH else ("Llama", "ConvNeXt"))
def test_three_steps_of_the_trainer_and_resumed(name: str, tmp_path) -> None:
    """Two steps, a checkpoint, and a third after resuming it, end where three steps in one go end."""
    base, batch, model = adapted(name, init_weights=True)
    plain = logits(base, batch)
    trainer(model, batch, tmp_path, 3).train()
    straight = logits(model.eval(), batch)
    assert not close(straight, plain)
    _, _, model = adapted(name, init_weights=True)
    trainer(model, batch, tmp_path, 3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert close(logits(model.eval(), batch), straight)


def test_the_callback_regularises_and_projects(tmp_path) -> None:
    base, batch, model = adapted("BERT", "HRA", init_weights=True, regulariser=1e-3)
    assert float(bridge.penalty(model).detach()) > 0
    trainer(model, batch, tmp_path, 3, [bridge.StructmatCallback()]).train()
    with_it = bridge.penalty(model).detach()
    _, _, model = adapted("BERT", "HRA", init_weights=True, regulariser=1e-3)
    trainer(model, batch, tmp_path, 3).train()
    assert with_it < bridge.penalty(model).detach()
    _, _, model = adapted("BERT", "OFT", init_weights=True, constraint=1e-3)
    trainer(model, batch, tmp_path, 3, [bridge.StructmatCallback()]).train()
    sizes = [
        2**0.5 * layer.state("default").trained["skew"].norm() * 7.4 / (0.95 * layer.in_features)
        for layer in model.modules()
        if isinstance(layer, bridge.StructmatLayer)
    ]
    assert max(sizes) <= 1e-3 * (1 + 1e-5) and max(sizes) > 1e-4
    assert float(bridge.penalty(base)) == 0


@native
@pytest.mark.parametrize("name", ONE_EACH)
def test_transformers_own_adapters(name: str, tmp_path) -> None:
    base, batch = tiny("Llama")
    plain = logits(base, batch)
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    model.add_adapter(config(name, target_modules=["q_proj", "down_proj"], init_weights=False), "mine")
    y = logits(model, batch)
    assert not close(y, plain)
    model.disable_adapters()
    assert torch.equal(logits(model, batch), plain)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    for trainable in (False, True):
        loaded = copy.deepcopy(base)
        loaded.load_adapter(str(tmp_path), adapter_name="read", is_trainable=trainable)
        assert torch.equal(logits(loaded.eval(), batch), y)
        training = {key for key, p in loaded.named_parameters() if p.requires_grad and "structmat_" in key}
        assert bool(training) == trainable and not any("reference" in key for key in training)
    loaded.delete_adapter("read")
    assert not any("read" in key for key in loaded.state_dict())


@native
def test_from_pretrained_of_a_folder_with_an_adapter(tmp_path) -> None:
    base, batch = tiny("Llama")
    base.save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(model, config("BOFT", target_modules=["q_proj"], init_weights=False, task_type="CAUSAL_LM"))
    y = logits(model.eval(), batch)
    model.save_pretrained(tmp_path / "adapter")
    for load in (AutoPeftModelForCausalLM.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained):
        assert torch.equal(logits(load(tmp_path / "adapter").eval(), batch), y)


@pytest.mark.parametrize("name", ["HRA-odd", "FLoRA"])
def test_modules_to_save_and_a_mixed_batch(name: str) -> None:
    base, batch, model = adapted("BERT", name, target_modules=["query", "dense"], task_type="SEQ_CLS")
    model.add_adapter("other", config(name, target_modules=["value"], init_weights=False, task_type="SEQ_CLS"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "classifier.modules_to_save.other" in key:
                parameter.add_(0.5)
    alone = {"default": logits(model, batch)}
    model.set_adapter("other")
    alone["other"] = logits(model, batch)
    alone["__base__"] = logits(base, batch)
    assert not close(alone["other"], alone["default"]) and not close(alone["default"], alone["__base__"])
    for names in (["other", "__base__"], ["default", "other"], ["__base__", "__base__"]):
        y = logits(model, batch, adapter_names=names)
        assert close(y, torch.stack([alone[one][row] for row, one in enumerate(names)]))
    with pytest.raises(ValueError, match="there is no adapter 'ohter'; near: 'other'"):
        logits(model, batch, adapter_names=["ohter", "other"])
    with pytest.raises(ValueError, match="call eval"):
        logits(model.train(), batch, adapter_names=["other", "other"])
    assert torch.equal(logits(model.eval(), batch), alone["other"])  # the hooks are gone


def test_a_mixed_batch_with_beams() -> None:
    _, batch, model = adapted("T5")
    model.add_adapter("other", config("circulant", target_modules=["q", "wo"], init_weights=False))
    with torch.no_grad():  # far from the base, so that the words differ
        for key, parameter in model.named_parameters():
            if "structmat_" in key:
                parameter.add_(3 * torch.randn_like(parameter))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3, "do_sample": False}
    ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
    rows = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        rows[name] = model.generate(**ids, **options)
    with model.disable_adapter():
        rows["__base__"] = model.generate(**ids, **options)
    assert len({str(value.tolist()) for value in rows.values()}) == 3
    for names in (["other", "__base__"], ["default", "other"]):
        found = model.generate(**ids, **options, adapter_names=names)
        for row, name in enumerate(names):
            assert torch.equal(found[row], rows[name][row])


@conversion
@pytest.mark.parametrize(("model", "name", "rank"), [("Llama", "HRA", 4), ("GPT2", "HRA-odd", 4), ("Llama", "OFT", 16)])
def test_converted_to_lora(model: str, name: str, rank: int) -> None:
    """r reflections change the weight by rank r (r + 1 for odd r): nothing is lost."""
    from peft import LoraConfig, set_peft_model_state_dict

    targets = ["q_proj", "o_proj"] if model == "Llama" else ["c_attn"]
    base, batch, adapter = adapted(model, name, target_modules=targets)
    y = logits(adapter, batch)
    lora_config, state = peft.convert_to_lora(adapter, rank=rank)
    assert isinstance(lora_config, LoraConfig)
    lora = get_peft_model(base, lora_config)
    set_peft_model_state_dict(lora, state)
    assert torch.allclose(logits(lora.eval(), batch), y, atol=2e-5)


@pytest.mark.parametrize("name", ONE_EACH)
def test_which_layers(name: str) -> None:
    base, _ = tiny("BERT", layers=3)

    def layers(**options) -> list[str]:
        model = get_peft_model(copy.deepcopy(base), config(name, **options))
        return [key.removeprefix("bert.encoder.layer.") for key in model.base_model.targeted_module_names]

    head = [f"{k}.attention.self.query" for k in range(3)]
    assert layers(target_modules=["query"]) == head
    assert layers(target_modules=["query", "value"], layers_to_transform=[0, 2], layers_pattern="layer") == [
        f"{k}.attention.self.{one}" for k in (0, 2) for one in ("query", "value")
    ]
    assert layers(target_modules=r".*\.[01]\..*query") == head[:2]
    assert layers(target_modules=r".*query", exclude_modules=r".*\.1\..*") == [head[0], head[2]]
    assert layers() == [f"{k}.attention.self.{one}" for k in range(3) for one in ("query", "value")]
    every = layers(target_modules="all-linear", task_type="SEQ_CLS")
    assert len(every) == 3 * 6 + 1 and not any("classifier" in one for one in every)
    with pytest.raises(ValueError, match="not found"):
        layers(target_modules=["nowhere"])


@pytest.mark.parametrize("name", ONE_EACH)
def test_bfloat16_base_with_float32_adapters(name: str) -> None:
    base, batch = tiny("Llama")
    base = base.bfloat16()
    model = get_peft_model(copy.deepcopy(base), config(name, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    plain = logits(base, batch).float()
    assert float((logits(model.eval(), batch).float() - plain).norm() / plain.norm()) < 2.0**-6
    model.train()(**batch).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
