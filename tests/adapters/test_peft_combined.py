"""Weighted sums of adapters, weights of single ones, quantised layers, torch.compile, and a diffusion model."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

import peft
from peft import PeftModel, get_peft_model

import structmat.adapters.peft as bridge
from structmat import StructureError
from tests.adapters.peft_cases import ADDITIVE, CONFIGS, ONE_EACH, ROTATIONS, close, config, net, wrapped

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "ci"
BACKENDS = peft.__version__ >= "0.20"


def two(first: dict, second: dict, name: str, kind: str = "Linear"):
    """A net with two random adapters, both on ``first``, the second also on ``head``."""
    base, model = wrapped(name, kind, **first)
    model.add_adapter("b", config(name, target_modules=["first", "head"], init_weights=False, **second))
    return base, model


SUMS = [
    ("FLoRA", {"ranks": 2}, {"ranks": 3, "scale": 0.5}, ("Linear", "Conv2d", "Embedding")),
    ("FLoRA", {"ranks": 2}, {"ranks": 30}, ("Linear",)),  # more columns than a mode has rows
    ("circulant", {}, {"form": "product", "scale": 2.0}, ("Linear", "Conv2d")),
    ("circulant", {"structure": "skew"}, {"structure": "skew"}, ("Linear",)),
    ("circulant", {"structure": "toeplitz"}, {"structure": "toeplitz"}, ("Linear",)),
    ("circulant", {"structure": "symmetric_toeplitz"}, {"structure": "symmetric_toeplitz"}, ("Linear",)),
    ("ldr", {"rank": 2}, {"rank": 1, "scale": 1.5}, ("Linear",)),
]


@pytest.mark.parametrize(
    ("name", "first", "second", "kind"), [(n, a, b, kind) for n, a, b, kinds in SUMS for kind in kinds]
)
def test_a_weighted_sum_is_exact(name: str, first: dict, second: dict, kind: str, tmp_path) -> None:
    base, model = two(first, second, name, kind)
    model.add_weighted_adapter(["default", "b"], [0.7, -1.5], "sum")
    assert not any(p.requires_grad for key, p in model.named_parameters() if key.endswith(".sum"))
    for layer in (model.base_model.model.first, model.base_model.model.head):
        expected = sum(
            weight * layer.get_delta_weight(one)
            for one, weight in (("default", 0.7), ("b", -1.5))
            if one in layer.methods
        )
        assert close(layer.get_delta_weight("sum"), expected, 4096)
    model.set_adapter("sum")
    x = base.input()
    y = model(x)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "sum").eval()(x), y)
    model.add_weighted_adapter(["default"], [2.0], "sum")  # the name is taken: as in PEFT nothing happens
    assert torch.equal(model(x), y)


def test_sums_over_expressions_and_mode_by_mode_ranks() -> None:
    base, model = wrapped("FLoRA", target_modules="first", ranks=[2, 3])
    model.add_adapter("b", config("FLoRA", target_modules=".*head", ranks=1, init_weights=False))
    model.add_weighted_adapter(["default", "b"], [1.0, 1.0], "sum", combination_type="cat")
    assert model.peft_config["sum"].ranks == [3, 4]
    model.base_model.set_adapter(["default", "b"])
    expected = model(base.input())
    model.set_adapter("sum")
    assert close(model(base.input()), expected)


@pytest.mark.parametrize("name", [*ROTATIONS, "toeplitz-product"])
def test_what_has_no_sum_says_so(name: str) -> None:
    _, model = two({}, {}, name)
    with pytest.raises(ValueError, match="make a LoRA of each with peft's convert_to_lora, and combine those"):
        model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "sum")
    assert list(model.peft_config) == ["default", "b"]


@pytest.mark.parametrize(
    ("second", "arguments", "message"),
    [
        ({}, (["default", "b"], [1.0]), "1 weights for 2 adapters"),
        ({}, (["default", "c"], [1.0, 1.0]), "there is no adapter 'c'; there are: 'default', 'b'"),
        ({}, (["default", "b"], [1.0, 1.0], "ties"), "combination_type must be 'linear' or 'cat', got 'ties'"),
        ({"exclude_modules": ["x"]}, (["default", "b"], [1.0, 1.0]), "differ in exclude_modules"),
        ({"layers_to_transform": [0]}, (["default", "b"], [1.0, 1.0]), "differ in layers_to_transform"),
        ({"structure": "skew"}, (["default", "b"], [1.0, 1.0]), "have the structures"),
    ],
)
def test_sums_refused(second: dict, arguments: tuple, message: str) -> None:
    _, model = wrapped("circulant")
    second = config("circulant", **{"target_modules": ["first"], **second})
    model.peft_config["b"] = second  # as far as the sum is concerned
    adapters, weights, *rest = arguments
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, "sum", *rest)


def test_the_weight_of_one_adapter() -> None:
    base, model = wrapped("FLoRA")
    x, layer = base.input(), model.base_model.model.first
    plain, whole = layer.base_layer(x), layer(x)
    layer.scale_layer(0.5)
    assert close(layer(x), plain + 0.5 * (whole - plain))
    layer.unscale_layer(0.5)
    assert torch.equal(layer(x), whole)
    layer.set_scale("default", 0.0)
    assert close(layer(x), plain)
    layer.unscale_layer()
    assert torch.equal(layer(x), whole)
    rotated = wrapped("HRA")[1].base_model.model.first
    rotated.scale_layer(1.0)
    with pytest.raises(ValueError, match=r"weight 0\.5 for 'default': .* has no multiples; only 1\.0 is legal"):
        rotated.scale_layer(0.5)


# -- quantised layers --------------------------------------------------------------------------------------------------


class Quantised(nn.Module):
    """A linear layer in int8 whose weight cannot be read as a float tensor."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", layer.bias.detach().clone())

    @property
    def weight(self) -> torch.Tensor:
        raise RuntimeError("a quantised weight was read")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scale.to(x.dtype), self.bias.to(x.dtype))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_quantised_layer_is_called_and_never_read(name: str, tmp_path, monkeypatch) -> None:
    base = net("Linear")
    base.first = Quantised(base.first)
    x = base.input()
    model = get_peft_model(copy.deepcopy(base), config(name, target_modules=["first"], init_weights=False)).eval()
    y = model(x)
    assert not close(y, base(x))
    layer = model.base_model.model.first
    dense = layer.base_layer.codes * layer.base_layer.scale + layer.get_delta_weight("default")
    assert torch.allclose(layer(x), nn.functional.linear(x, dense, layer.base_layer.bias), atol=1e-5)
    model.train()(x).square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(x), y)
    monkeypatch.delattr(Quantised, "weight")  # merging asks PEFT whether it knows the layer, and PEFT does look
    with pytest.raises(StructureError, match="merge: 'first' is a Quantised, which this peft cannot dequantise"):
        model.merge_adapter()


@pytest.mark.skipif(not BACKENDS, reason="peft writes quantised weights back for methods from outside since 0.20")
@pytest.mark.parametrize("name", ONE_EACH)
def test_torchao_merges_and_unmerges(name: str, monkeypatch) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    if peft.__version__.startswith("0.20") and not hasattr(torchao, "LinearActivationQuantizedTensor"):
        pytest.skip("needs the package 'torchao' below 0.18 with peft 0.20")
    base = net("Linear")
    apply = torchao.Int8WeightOnlyConfig
    torchao.quantize_(base.first, apply())
    monkeypatch.setattr(
        bridge.StructmatModel,
        "_requantise",
        lambda self: apply,
    )
    x = base.input()
    model = get_peft_model(copy.deepcopy(base), config(name, target_modules=["first"], init_weights=False)).eval()
    y = model(x)
    model.merge_adapter(safe_merge=True)
    assert type(model.base_model.model.first.base_layer.weight) is type(base.first.weight)
    step = float(base.first.weight.dequantize().detach().abs().max()) / 127  # of the quantisation
    assert float((model(x) - y).detach().norm()) < 8 * step * float(x.norm())
    model.unmerge_adapter()
    assert torch.equal(model(x), y)


# -- torch.compile, and a diffusion model ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_EACH if THOROUGH else ("BOFT", "circulant"))
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    base, model = wrapped(name)
    x = base.input()
    y = model(x)
    compiled = torch.compile(model, backend="aot_eager")
    assert close(compiled(x), y)
    compiled(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["FLoRA", "HRA-odd"])
def test_a_diffusion_model(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=2,
    ).eval()
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 5]), torch.randn(2, 3, 6)
    plain = unet(*inputs).sample
    targets = ["to_q", "to_v", "conv1", "conv_shortcut", "proj_in"]
    model = get_peft_model(unet, config(name, target_modules=targets, init_weights=False)).eval()
    y = model(*inputs).sample
    assert not close(y, plain)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.allclose(model.merge_and_unload(safe_merge=True)(*inputs).sample, y, atol=1e-4 * float(y.abs().max()))


def test_every_additive_method_is_covered() -> None:
    assert {name for name, *_ in SUMS} | {"toeplitz-product"} >= set(ADDITIVE)
