"""The wrapper among other modules: names, copies, shared and tied weights, fused layers, left factors, real models."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import ClassVar

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.adapters.layer import Adapted
from structmat.adapters.method import Compose, State
from structmat.types.householder import HouseholderProduct
from tests.adapters.cases import METHODS, generator, make_input, make_model, perturb, reflections, relative


@adapters.register
@dataclasses.dataclass(frozen=True)
class BothSides:
    """``Q_1 W Q_2`` with one reflection on each side, a method written outside."""

    name: ClassVar[str] = "test-both-sides"

    def init(self, target, generator) -> State:
        left = torch.ones(1, target.out_features, dtype=target.dtype, device=target.device)
        right = torch.ones(1, target.columns, dtype=target.dtype, device=target.device)
        return State({"left": left, "right": right}, {})

    def update(self, state, target, *, training=False, generator=None) -> Compose:
        return Compose(HouseholderProduct(state.trained["left"]), HouseholderProduct(state.trained["right"]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.body = nn.Linear(6, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.body(self.embed(ids))))

    def get_output_embeddings(self) -> nn.Module:
        return self.out


@pytest.mark.parametrize("layer", ["wide", "tall-odd", "Conv1D"])
def test_left_factors_leave_the_bias_alone(layer: str) -> None:
    model = make_model(layer)
    x = make_input(layer)
    base = model[0]
    adapters.attach(model, adapters.LoRA(2), targets=["0"], name="a", generator=generator())
    adapters.attach(model, BothSides(), targets=["0"], name="b")
    adapters.attach(model, adapters.SURM("toeplitz"), targets=["0"], name="c", generator=generator())
    perturb(model)
    a, b, c = (model[0].adapters[name] for name in "abc")
    weight = base.weight.mT if layer == "Conv1D" else base.weight
    weight = weight + 1.0 * a.left @ a.right.mT
    weight = reflections(b.left) @ weight @ reflections(b.right)
    weight = weight + c.update().scale * c.update().matrix.to_dense()
    expected = x @ weight.mT + (0 if base.bias is None else base.bias)
    assert relative(model(x), expected) < 1e-13
    adapters.merge(model)
    assert relative(model(x), expected) < 1e-13
    adapters.unmerge(model)
    adapters.merge(model, keep="none")
    adapters.unmerge(model)
    assert relative(model(x), expected) < 1e-13


def test_state_dict_keys_are_stable_and_detach_gives_the_module_back() -> None:
    model = nn.ModuleDict({"query": nn.Linear(4, 4), "value": nn.Linear(4, 4)})
    query = model["query"]
    keys = list(model.state_dict())
    model["value"].weight.requires_grad_(False)
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    adapters.attach(model, adapters.HRA(3), targets=["query"], name="style")
    expected = {
        "query.base.weight",
        "query.base.bias",
        "query.adapters.style.vectors",
        "query.adapters.style.reference",
        "value.weight",
        "value.bias",
    }
    assert set(model.state_dict()) == expected
    assert [key for key, p in model.named_parameters() if p.requires_grad] == ["query.adapters.style.vectors"]
    adapters.attach(model, adapters.LoRA(1), targets="all-linear", name="more")
    adapters.detach(model, "style")
    assert adapters.names(model) == ("more",)
    assert not any(".style." in key for key in model.state_dict())
    adapters.detach(model)
    assert model["query"] is query
    assert list(model.state_dict()) == keys
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_pickles_are_independent_and_equal(method: str) -> None:
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    perturb(model)
    before = model(x)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(other(x), before)
        adapters.merge(other)
        adapters.unmerge(other)
        adapters.activate(other, [])
        assert torch.equal(model(x), before)
        assert adapters.inspect(model).active == (("default", 1.0),)
        other.load_state_dict(model.state_dict())


def test_state_dict_and_moves_while_merged() -> None:
    model = make_model("square", torch.float32)
    x = make_input("square", torch.float32)
    adapters.attach(model, adapters.HRA(2), targets=["0"], generator=generator())
    perturb(model)
    before, values = model(x), copy.deepcopy(model.state_dict())
    for keep in ("copy", "cpu"):
        adapters.merge(model, keep=keep)
        found = model.state_dict()
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert torch.equal(found[key], value)
        merged = copy.deepcopy(model)
        adapters.unmerge(merged)
        assert torch.equal(merged(x), before)
        merged = copy.deepcopy(model).double()
        adapters.unmerge(merged)
        assert merged[0].base.weight.dtype == torch.float64
        assert torch.equal(merged[0].base.weight, values["0.base.weight"].double())
        adapters.unmerge(model)
    adapters.merge(model, keep="none")
    adapters.detach(model)
    assert isinstance(model[0], nn.Linear)
    assert relative(model(x), before) < 1e-5


def test_a_shared_module_gets_one_adapter_in_every_place() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    report = adapters.attach(model, adapters.HRA(2), targets=r"b\.0")
    assert report.layers == ("a",)
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], Adapted)
    adapters.detach(model)
    assert model["a"] is shared
    assert model["b"][0] is shared


def test_tied_weights() -> None:
    torch.manual_seed(0)
    model = Tied()
    ids = torch.arange(10)
    assert adapters.attach(model, adapters.LoRA(1), targets="all-linear", name="body").layers == ("body",)
    adapters.attach(model, adapters.SURM("toeplitz"), targets=["out"], name="out")
    perturb(model)
    before, embedded = model(ids), model.embed(ids).clone()
    for keep in ("cpu", "none"):
        with pytest.raises(ValueError, match=r"""weight of 'out' is shared with 'embed'; use keep="copy\""""):
            adapters.merge(model, keep)
    adapters.merge(model)
    assert torch.equal(model.embed(ids), embedded)
    assert relative(model(ids), before) < 1e-5
    adapters.unmerge(model)
    assert model.out.base.weight is model.embed.weight
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("method", ["HRA-odd", "toeplitz"])
def test_a_fused_encoder_layer_that_reads_the_weight_gets_the_adapted_one(method: str) -> None:
    """torch's fast path takes linear1.weight and never calls linear1: the adapter must not be lost there."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    plain = model(x)
    adapters.attach(model, METHODS[method], targets="all-linear", generator=generator())
    perturb(model)
    slow = model(x)
    with torch.no_grad():
        fast = model(x)
    assert relative(slow, plain) > 0.01
    assert relative(fast, slow) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_weight_is_the_folded_one_and_differentiable(method: str) -> None:
    model = make_model("Conv1D")
    x = make_input("Conv1D")
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    perturb(model)
    layer = model[0]
    assert relative(x @ layer.weight + layer.bias, model(x)) < 1e-13
    layer.weight.square().sum().backward()
    assert all(p.grad is not None for p in adapters.trainable_parameters(model))
    assert (layer.in_features, layer.out_features) == (9, 6)
    with adapters.disabled(model):
        assert layer.weight is layer.base.weight


def test_train_names_modules_and_parameters_and_train_bias() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2), "norm": nn.LayerNorm(4)})
    report = adapters.attach(
        model, adapters.LoRA(1), targets="all-linear", train=["head", "norm.bias"], train_bias=True
    )
    assert report.layers == ("body",)
    assert report.extras == ("head.weight", "head.bias", "norm.bias", "body.bias")
    names = {key for key, p in model.named_parameters() if p.requires_grad}
    lora = {"body.adapters.default.left", "body.adapters.default.right"}
    assert names == {"head.weight", "head.bias", "norm.bias", "body.base.bias"} | lora
    assert report.trainable == sum(p.numel() for p in adapters.trainable_parameters(model)) == 8 + 10 + 4 + 4
    assert report.parameters == 8
    assert str(report) == (
        "adapter 'default': 8 parameters on 1 layers and 4 parameters of the model itself; 26 of 46 train (56.52 %)"
    )


def test_inspect_prints_a_table() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    assert str(adapters.inspect(model)).endswith("active: none; not merged; 30 of 30 parameters train")
    adapters.attach(model, {"body": adapters.HRA(2), "head": adapters.LoRA(1)})
    lines = str(adapters.inspect(model)).splitlines()
    assert lines[1].split()[:5] == ["body", "Linear", "4", "x", "4"]
    assert "HRA(rank=2, regulariser=0.0, orthonormal=False, step='even')" in lines[1]
    assert lines[2].split()[:5] == ["head", "Linear", "2", "x", "4"]
    assert lines[3] == "active: default; not merged; 14 of 44 parameters train"


def test_to_lora_by_tolerance() -> None:
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, adapters.SURM("toeplitz"), targets=["0"], generator=generator())
    perturb(model)
    full = model(x)
    weight = model[0].weight.detach() - model[0].base.weight
    report = adapters.to_lora(model, tol=0.3)
    singular = torch.linalg.svdvals(weight)
    wanted = next(k for k in range(1, 9) if singular[k:].norm() <= 0.3 * singular.norm())
    assert report.ranks == {"0": wanted}
    assert report.error == pytest.approx(float(singular[wanted:].norm() / singular.norm()), rel=1e-10)
    assert 1e-3 < relative(model(x), full) < 1
    assert "relative error" in str(report)


def test_a_real_transformer_with_conv1d() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=12, n_layer=2, n_head=2)).eval()
    ids = torch.arange(8)[None]
    plain = model(ids).logits
    report = adapters.attach(
        model, {r".*c_attn": adapters.HRA(4), r".*mlp\..*": adapters.SURM("circulant")}, targets="all-linear"
    )
    assert len(report.layers) == 6
    assert "lm_head" not in report.layers
    assert relative(model(ids).logits, plain) < 1e-5
    perturb(model, size=0.1)
    adapted = model(ids).logits
    assert relative(adapted, plain) > 1e-3
    adapters.merge(model)
    assert relative(model(ids).logits, adapted) < 1e-5
    adapters.unmerge(model)
    assert torch.equal(model(ids).logits, adapted)
