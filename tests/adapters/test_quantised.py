"""Quantised layers of torchao and bitsandbytes, experts of transformers, and weights that two layers share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.errors import StructureError
from tests.adapters.cases import METHODS, change, generator, perturb, relative, slots

SOME = ["LoRA", "HRA-odd", "BOFT", "toeplitz", "OnRows"]


def torchao_layer() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Sequential(nn.Linear(32, 16))
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer[0]


def bitsandbytes_layer() -> nn.Module:
    modules = pytest.importorskip("bitsandbytes.nn")
    layer = modules.Linear4bit(64, 16, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = modules.Params4bit(torch.randn(16, 64), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")  # which quantises


QUANTISED = {"torchao": torchao_layer, "bitsandbytes": bitsandbytes_layer}


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("library", QUANTISED)
def test_a_quantised_layer_of_another_library(library: str, method: str, tmp_path: Any) -> None:
    """Against the definition on the dequantised weight, which the layer itself gives for unit vectors; float32."""
    torch.manual_seed(0)
    model = nn.Sequential(QUANTISED[library]())
    layer = model[0]
    n = layer.in_features
    x = torch.randn(5, n, generator=generator(5))
    plain = model(x).detach()
    with torch.no_grad():
        shift = layer(torch.zeros(1, n))
        weight = (layer(torch.eye(n)) - shift).T.double()
    report = adapters.attach(model, METHODS[method], targets="all-linear", generator=generator())
    assert report.layers == ("0",)
    assert model[0].slot("default").target.kind == "Opaque"
    assert relative(model(x), plain) < 1e-5
    perturb(model)
    adapted = model(x)
    (state,) = slots(model).values()
    double = adapters.State(*({key: t.double() for key, t in part.items()} for part in state))
    assert relative(adapted, x.double() @ change(METHODS[method], double, weight).T + shift.double()) < 1e-5
    gradients = torch.autograd.grad(adapted.sum(), adapters.trainable_parameters(model))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    adapters.save(model, tmp_path)
    with pytest.raises(StructureError, match="dequantise=True"):
        adapters.merge(model)
    adapters.merge(model, dequantise=True)
    assert type(model[0].base) is nn.Linear
    assert relative(model(x), adapted) < 1e-5
    adapters.unmerge(model)
    assert torch.equal(model(x), adapted)
    adapters.detach(model)
    assert model[0] is layer
    adapters.load(model, tmp_path)
    assert torch.equal(model(x), adapted)


# -- mixtures of experts -------------------------------------------------------------------------------------------

EXPERTS = r".*experts\.(gate_up_proj|down_proj)"


def mixture(kind: str, implementation: str) -> nn.Module:
    """A tiny random model; gpt-oss stores its experts as (in, out), the others as (out, in)."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    if kind == "Mixtral":
        config = transformers.MixtralConfig(num_local_experts=3, **sizes)
        model = transformers.MixtralForCausalLM(config)
    elif kind == "Qwen3Moe":
        config = transformers.Qwen3MoeConfig(num_experts=3, moe_intermediate_size=12, **sizes)
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        config = transformers.GptOssConfig(num_local_experts=3, **sizes)
        model = transformers.GptOssForCausalLM(config)
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0, 0.3, generator=generator(1))
    return model.double().eval()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
@pytest.mark.parametrize("method", ["HRA-even", "toeplitz", "LoRA"])
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "GptOss"])
def test_experts_of_transformers(kind: str, method: str, implementation: str) -> None:
    """Against a model whose parameters hold the definition, expert by expert, in the orientation in which the model
    multiplies: (out, in), or (in, out) where it says that they are transposed.
    """
    model = mixture(kind, implementation)
    dense = copy.deepcopy(model)
    ids = torch.randint(40, (2, 7), generator=generator(5))
    plain = model(ids).logits.detach()
    report = adapters.attach(model, METHODS[method], targets=EXPERTS, generator=generator())
    assert len(report.layers) == 4
    assert relative(model(ids).logits, plain) < 1e-13
    with torch.no_grad():
        for parameter in adapters.trainable_parameters(model):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(2), dtype=parameter.dtype)
    adapted = model(ids).logits
    for name in report.layers:
        owner, key = name.rsplit(".", 1)
        holder = model.get_submodule(owner)
        state = holder.parametrizations[key][0].slot("default").state()
        parameter = dense.get_submodule(owner).get_parameter(key)
        turned = kind == "GptOss"
        with torch.no_grad():
            for e in range(3):
                own = adapters.State(*({k: t[e] for k, t in part.items()} for part in state))
                stored = parameter[e].T if turned else parameter[e]
                found = change(METHODS[method], own, stored.clone())
                parameter[e] = found.T if turned else found
    assert relative(adapted, dense(ids).logits) < 1e-12
    assert relative(adapted, plain) > 1e-3
    gradients = torch.autograd.grad(adapted.square().sum(), adapters.trainable_parameters(model))
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    with torch.nn.utils.parametrize.cached():
        assert relative(model(ids).logits, adapted) < 1e-14
    adapters.merge(model)
    assert relative(model(ids).logits, adapted) < 1e-13
    adapters.detach(model)
    assert torch.equal(model(ids).logits, plain)


# -- tied weights --------------------------------------------------------------------------------------------------


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    return model.double().eval()


@pytest.mark.parametrize("place", ["transformer.wte", "lm_head"])
def test_an_adapter_on_one_of_two_tied_layers_leaves_the_other(place: str) -> None:
    """wte and lm_head share one parameter: the adapter belongs to the layer it is on, and the stored weight stays
    one. Merging with "copy" unties them, which "cpu" and "none" refuse; unmerge ties them again.
    """
    model = gpt2()
    other = {"transformer.wte": "lm_head", "lm_head": "transformer.wte"}[place]
    ids = torch.randint(30, (2, 5), generator=generator(5))
    plain = model(ids).logits.detach()
    adapters.attach(model, adapters.LoRA(2), targets=[place], generator=generator())
    assert torch.equal(model(ids).logits, plain)
    perturb(model)
    adapted = model(ids).logits
    wrapper, free = model.get_submodule(place), model.get_submodule(other)
    assert wrapper.base.weight is free.weight

    (state,) = slots(model, place).values()
    dense = gpt2()
    stored = dense.get_submodule(place).weight.detach()
    matrix = stored.T if place == "transformer.wte" else stored
    folded = change(adapters.LoRA(2), state, matrix)
    dense.get_submodule(place).weight = nn.Parameter(folded.T if place == "transformer.wte" else folded)
    assert dense.get_submodule(other).weight is not dense.get_submodule(place).weight
    assert relative(adapted, dense(ids).logits) < 1e-12

    for keep in ("cpu", "none"):
        with pytest.raises(ValueError, match=f"the weight of '{place}' is shared with '{other}'.*keep=\"copy\""):
            adapters.merge(model, keep=keep)
    adapters.merge(model)
    assert wrapper.base.weight is not free.weight
    assert relative(model(ids).logits, adapted) < 1e-12
    adapters.unmerge(model)
    assert wrapper.base.weight is free.weight
    assert torch.equal(model(ids).logits, adapted)
    adapters.detach(model)
    assert torch.equal(model(ids).logits, plain)


def test_both_of_two_tied_layers_have_adapters_of_their_own() -> None:
    model = gpt2()
    ids = torch.randint(30, (2, 5), generator=generator(5))
    plain = model(ids).logits.detach()
    report = adapters.attach(model, adapters.LoRA(2), targets=["transformer.wte", "lm_head"], generator=generator())
    assert report.parameters == 2 * 2 * (16 + 30)
    perturb(model)
    adapted = model(ids).logits
    adapters.merge(model)
    assert relative(model(ids).logits, adapted) < 1e-12
    adapters.unmerge(model)
    assert model.transformer.wte.base.weight is model.lm_head.base.weight
    adapters.detach(model)
    assert torch.equal(model(ids).logits, plain)


def test_all_linear_leaves_a_tied_output_alone() -> None:
    """The output embedding is not adapted unless it is named."""
    report = adapters.attach(gpt2(), adapters.LoRA(2), targets="all-linear", generator=generator())
    assert set(report.layers) == {
        f"transformer.h.0.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
