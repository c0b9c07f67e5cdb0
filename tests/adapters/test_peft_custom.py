"""What PEFT's suite asks of its methods on custom models, asked of ours on every kind of layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

import peft
from peft import PeftModel, get_peft_model

import structmat.adapters.peft as bridge
from structmat import StructureError, adapters
from tests.adapters.peft_cases import ADDITIVE, CONFIGS, ONE_EACH, ROTATIONS, close, config, net, wrapped

CASES = [(name, "Linear") for name in CONFIGS]
CASES += [(name, kind) for name in ONE_EACH for kind in ("Conv1D", "Conv2d")]
CASES += [("BOFT", "Conv1d"), ("FLoRA", "Conv1d"), ("HRA-odd", "Conv3d"), ("FLoRA", "Conv3d")]
CASES += [(name, kind) for name in ("FLoRA", "circulant") for kind in ("ConvTranspose2d", "Embedding")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_starts_at_the_base_and_trains_the_adapter_alone(name: str, kind: str) -> None:
    base, model = wrapped(name, kind, init_weights=True)
    x = base.input()
    assert close(model(x), base(x))
    model.train()
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert trained and all("structmat_" in key for key in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert any(value.grad.abs().max() > 0 for value in trained.values())
    assert all(torch.equal(dict(model.named_parameters())[key], value) for key, value in frozen.items())
    assert not close(model.eval()(x), base(x))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_merge_unmerge_and_disable(name: str, kind: str) -> None:
    base, model = wrapped(name, kind)
    x = base.input()
    plain, adapted = base(x), model(x)
    assert not close(adapted, plain)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), adapted)
    model.merge_adapter(safe_merge=True)
    assert close(model(x), adapted)
    with model.disable_adapter():  # unmerges
        assert torch.equal(model(x), plain)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.first.base_layer.weight, base.first.weight)
    assert torch.equal(model(x), adapted)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.first) is type(base.first) and merged.state_dict().keys() == base.state_dict().keys()
    assert close(merged(x), adapted)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_and_loaded(name: str, kind: str, tmp_path) -> None:
    base, model = wrapped(name, kind)
    x = base.input()
    expected = model(x)
    model.save_pretrained(tmp_path)
    for options in ({"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, **options).eval()
        assert torch.equal(loaded(x), expected)
        trainable = {key for key, value in loaded.named_parameters() if value.requires_grad}
        want = {key for key, value in model.named_parameters() if value.requires_grad}
        assert trainable == (want if options.get("is_trainable") else set())
    assert loaded.peft_config["default"].method() == model.peft_config["default"].method()
    assert "import structmat.adapters.peft" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
def test_the_same_as_structmat_itself(name: str, kind: str) -> None:
    """The bridge holds tensors; the mathematics is the one of ``attach``, bit for bit."""
    base, model = wrapped(name, kind)
    layer = model.base_model.model.first
    adapters.attach(base, model.peft_config["default"].method(), targets=["first"])
    theirs = layer.state("default")
    for part, own in zip(base.first.adapters["default"].state(), theirs, strict=True):
        assert part.keys() == own.keys()
        with torch.no_grad():
            for key in part:
                part[key].copy_(own[key])
    x = base.input() if kind == "Linear" else torch.randn(4, 3, 5, 6)
    assert torch.equal(model(x), base(x))
    assert layer.get_delta_weight("default").shape == layer.base_layer.weight.shape
    delta = (base.first.weight - base.first.base.weight).detach()
    assert torch.allclose(layer.get_delta_weight("default"), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_adapters_set_both_delete(name: str, tmp_path) -> None:
    base, model = wrapped(name)
    x = base.input()
    first = model(x)
    model.add_adapter("other", config(name, target_modules=["first"], init_weights=False))
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    second = model(x)
    assert not close(second, first)
    model.base_model.set_adapter(["other", "default"])
    both = model(x)
    model.merge_adapter()
    assert close(model(x), both)
    model.unmerge_adapter()
    model.base_model.set_adapter(["default", "other"])
    if name in ADDITIVE:
        assert close(model(x), both)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "other").eval()
    assert torch.equal(loaded(x), second)
    model.set_adapter("default")
    model.delete_adapter("default")
    assert torch.equal(model(x), second)
    assert not any(".default" in key for key in model.state_dict())
    model.delete_adapter("other")
    assert torch.equal(model.base_model(x), base(x))  # PEFT's own outer forward asks for an active adapter


def test_a_partial_merge_is_peft_s_and_says_what_is_left_out() -> None:
    base, model = wrapped("HRA")
    x = base.input()
    alone = model(x)
    model.add_adapter("other", config("HRA", target_modules=["first"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    both = model(x)
    with pytest.warns(UserWarning, match="the active other will not act until the layer is unmerged"):
        model.merge_adapter(["default"])
    assert close(model(x), alone)
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"])
    assert close(model(x), both)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter()
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert torch.equal(model(x), both)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_broken_adapter_is_not_merged_safely(name: str) -> None:
    _, model = wrapped(name)
    before = model.base_model.model.first.base_layer.weight.clone()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'first' with default has a weight that is not finite; nothing merged"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.first.base_layer.weight, before)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    base = net("Linear").to(dtype)
    x = base.input().to(dtype)
    model = get_peft_model(copy.deepcopy(base), config(name, target_modules=["first"], init_weights=False)).eval()
    masters = torch.float32 if dtype == torch.bfloat16 else dtype
    assert {p.dtype for key, p in model.named_parameters() if "structmat_" in key} == {masters}
    y = model(x)
    assert y.dtype == dtype
    assert {p.dtype for key, p in model.to(dtype).named_parameters() if "structmat_" in key} == {masters}
    assert torch.equal(model(x), y)
    model.merge_adapter()
    limit = 2.0**-6 if dtype == torch.bfloat16 else 1e-12
    assert float((model(x) - y).norm() / y.norm()) < limit
    model.unmerge_adapter()
    assert torch.equal(model(x), y)
    assert close(model.float()(x.float()), y.float(), 64 if dtype == torch.float64 else 2**34)


@pytest.mark.parametrize("name", ROTATIONS)
@pytest.mark.parametrize("kind", ["ConvTranspose2d", "Embedding"])
def test_rotations_are_refused_where_they_have_no_meaning(name: str, kind: str) -> None:
    base = net(kind)
    with pytest.raises(StructureError, match=rf"on layer 'first', a {kind}: .*legal are additions"):
        get_peft_model(base, config(name, target_modules=["first"]))


def test_a_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"OFT\(block=5\) on 'first' with 16 columns: block must divide them; near: "):
        get_peft_model(net("Linear"), bridge.StructmatOftConfig(block=5, target_modules=["first"]))
    with pytest.raises(StructureError, match="layer 'norm' is a LayerNorm, which is not supported; legal: Linear"):
        get_peft_model(nn.ModuleDict({"norm": nn.LayerNorm(4)}), _hra(["norm"]))


def _hra(targets):
    return bridge.StructmatHraConfig(rank=2, target_modules=targets)


def test_one_layer_takes_one_type() -> None:
    from peft import inject_adapter_in_model

    model = inject_adapter_in_model(_hra(["first"]), net("Linear"), "a")
    with pytest.raises(StructureError, match="layer 'first' carries adapters of another PEFT type"):
        inject_adapter_in_model(config("circulant", target_modules=["first"]), model, "b")
    inject_adapter_in_model(config("circulant", target_modules=["head"]), model, "c")
    assert model(model.input()).shape == (4, 3)


@pytest.mark.parametrize("name", ONE_EACH)
def test_inside_torch_s_attention(name: str) -> None:
    """Its output projection is read and never called; the adapter acts all the same, in both of torch's paths."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    plain = base(x)
    for target in ("self_attn.out_proj", "linear1"):
        model = copy.deepcopy(base)
        model = get_peft_model(model, config(name, target_modules=[target], init_weights=False)).eval()
        y = model(x)
        assert not close(y, plain)
        with torch.no_grad():
            assert torch.allclose(model(x), y, atol=1e-5)  # torch's fused path, where it is taken
        model.train()(x).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert torch.allclose(model.eval().merge_and_unload()(x), y, atol=1e-5)


def test_attention_s_output_projection_cannot_serve_a_mixed_batch() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    model = get_peft_model(model, _hra(["self_attn.out_proj", "linear1"])).eval()
    with pytest.raises(StructureError, match=r"'0\.self_attn\.out_proj' is read by its attention and not called"):
        model(torch.randn(2, 5, 8), adapter_names=["default", "__base__"])
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    model = get_peft_model(model, _hra(["linear1"])).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        y = model(x)
        assert torch.allclose(model(x, adapter_names=["default", "default"]), y, atol=1e-5)


def test_a_tied_weight_is_replaced_in_the_adapted_layer_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.words(x))

    torch.manual_seed(0)
    model = get_peft_model(Tied(), config("FLoRA", target_modules=["words"], init_weights=False)).eval()
    x = torch.arange(11)
    y, weight = model(x), model.base_model.model.out.weight.clone()
    model.merge_adapter()
    assert close(model(x), y) and torch.equal(model.base_model.model.out.weight, weight)
    model.unmerge_adapter()
    assert torch.equal(model(x), y)
    assert model.base_model.model.out.weight is model.base_model.model.words.base_layer.weight


@pytest.mark.parametrize("merged", [False, True])
def test_copies_and_moves(merged: bool) -> None:
    _, model = wrapped("HRA-odd")
    x = net("Linear").input()
    y = model(x)
    if merged:
        model.merge_adapter()
    double = copy.deepcopy(model).double()
    assert close(double(x.double()).float(), y)
    again = pickle.loads(pickle.dumps(model))
    if merged:
        double.unmerge_adapter()
        again.unmerge_adapter()
    assert close(double(x.double()).float(), y)
    assert torch.equal(again(x), y)
    reference = again.base_model.model.first.structmat_hra_reference
    again.requires_grad_(True)
    again(x).sum().backward()
    assert reference["default"].grad is None  # frozen whatever is asked of it


def test_convolutions_are_no_lora() -> None:
    if not hasattr(peft, "convert_to_lora"):
        return
    _, model = wrapped("FLoRA", "Conv2d")
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(model, rank=2)


def test_a_merge_in_training_mode_holds_no_dropout() -> None:
    base, model = wrapped("BOFT", dropout=0.5)
    x = base.input()
    wanted = model(x)
    model.train()
    model.merge_adapter()
    assert close(model.eval()(x), wanted)
    model.unmerge_adapter()
    merged = model.train().merge_and_unload().eval()
    assert close(merged(x), wanted)


def test_a_weight_that_is_tied_stays_tied_when_the_merged_model_is_moved() -> None:
    base = net("Linear")
    base.head = nn.Linear(16, 12, bias=False)
    base.head.weight = base.first.weight
    model = get_peft_model(base, config("HRA", target_modules=["first"], init_weights=False))
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    inner = model.base_model.model
    assert inner.head.weight is inner.first.base_layer.weight and inner.head.weight.dtype == torch.float64


def test_a_whole_attention_is_refused_with_what_peft_can_reach() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(StructureError, match=r"PEFT can reach attention\.out_proj; .* takes attention\.in_proj_weight"):
        get_peft_model(model, config("HRA", target_modules=["attention"]))
