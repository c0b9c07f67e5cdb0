"""Targets that are no layer of their own: attention's packed projection, experts, quantised layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.errors import StructureError
from tests.adapters.cases import METHODS, change, generator, perturb, relative, slots

EPS = torch.finfo(torch.float64).eps
BATCHED = [name for name in METHODS if name not in ("OnRows", "FLoRA-nlp")]


class Experts(nn.Module):
    """Three experts; each output is the expert's own product, as stored or transposed."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_transposed = turned
        self.weights = nn.Parameter(torch.randn((3, 8, 6) if turned else (3, 6, 8), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eio->beo" if self.is_transposed else "bi,eoi->beo", x, self.weights)


class Quantised(nn.Module):
    """A linear layer of eight-bit numbers whose ``weight`` must not be touched; the output is shifted by twice its
    ``bias``, so that only a call with a zero row tells the shift.
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_features, self.out_features = n, m
        self.register_buffer("codes", torch.randint(-127, 128, (m, n), dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(m, dtype=torch.float64))

    @property
    def weight(self) -> torch.Tensor:
        raise RuntimeError("the weight of a quantised layer was read")

    def dequantised(self) -> torch.Tensor:
        return self.codes.double() / 127

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.dequantised().to(x.dtype).T + 2 * self.bias.to(x.dtype)


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)).double()


def rows_of(n: int) -> torch.Tensor:
    return torch.randn(4, n, generator=generator(5), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_adapted_through_its_parameters(training: bool) -> None:
    model = encoder().train(training)
    x = torch.randn(2, 5, 16, generator=generator(3), dtype=torch.float64)
    plain, keys = model(x), list(model.state_dict())
    queries_and_values = adapters.OnRows(adapters.HRA(4), ((0, 16), (32, 48)))
    adapters.attach(model, {r".*in_proj_weight": queries_and_values, r".*out_proj": adapters.OFT(block=4)})
    assert relative(model(x), plain) < 64 * EPS
    perturb(model)
    adapted = model(x)
    attention = model[0].self_attn
    weight = attention.in_proj_weight
    assert torch.equal(weight[16:32], attention.parametrizations.in_proj_weight.original[16:32])
    with torch.no_grad():
        assert relative(model(x), adapted) < 64 * EPS  # torch's fused path, in eval mode
    grads = torch.autograd.grad(adapted.sum(), adapters.trainable_parameters(model))
    assert all(bool(g.abs().sum() > 0) for g in grads)
    adapters.merge(model)
    assert relative(model(x), adapted) < 64 * EPS
    adapters.unmerge(model)
    assert torch.equal(model(x), adapted)
    twin = copy.deepcopy(model)
    adapters.detach(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), plain)
    assert torch.equal(twin(x), adapted)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("method", BATCHED)
def test_each_expert_has_its_own_adapter(method: str, turned: bool, tmp_path) -> None:
    model, x = nn.Sequential(Experts(turned)), rows_of(8)
    plain = model(x)
    report = adapters.attach(model, METHODS[method], targets=["0.weights"], generator=generator())
    assert report.layers == ("0.weights",)
    assert relative(model(x), plain) < 64 * EPS
    perturb_experts(model)
    adapted = model(x)
    stored = model[0].parametrizations.weights.original
    state = model[0].parametrizations.weights[0].slot("default").state()
    for e in range(3):
        own = adapters.State(*({k: t[e] for k, t in part.items()} for part in state))
        weight = change(METHODS[method], own, stored[e].T if turned else stored[e])
        assert relative(adapted[:, e], x @ weight.T) < 1e-12
    adapters.save(model, tmp_path)
    adapters.merge(model)
    assert relative(model(x), adapted) < 1e-13
    adapters.unmerge(model)
    assert adapters.to_lora(model, rank=6).error < 1e-12
    assert relative(model(x), adapted) < 1e-12
    fresh = nn.Sequential(Experts(turned))
    adapters.load(fresh, tmp_path)
    assert torch.equal(fresh(x), adapted)


def perturb_experts(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in adapters.trainable_parameters(model):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(2), dtype=parameter.dtype)


def test_rows_cannot_serve_a_parameter() -> None:
    model = nn.Sequential(Experts())
    adapters.attach(model, adapters.LoRA(1), targets=["0.weights"])
    with (
        pytest.raises(RuntimeError, match="the parameter weights would need a value"),
        adapters.rows(model, ["base"] * 4),
    ):
        model(rows_of(8))


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_layer_is_called_and_its_weight_never_read(method: str, tmp_path) -> None:
    model, x = nn.Sequential(Quantised(8, 6)), rows_of(8)
    layer = model[0]
    plain = model(x)
    adapters.attach(model, METHODS[method], targets="all-linear", generator=generator())
    assert relative(model(x), plain) < 64 * EPS
    perturb(model)
    adapted = model(x)
    (state,) = slots(model).values()
    expected = x @ change(METHODS[method], state, layer.dequantised()).T + 2 * layer.bias
    assert relative(adapted, expected) < 1e-12
    adapters.save(model, tmp_path)
    with pytest.raises(StructureError, match=r"'0' is a Quantised, whose weight is not read; .*dequantise=True.* MiB"):
        adapters.merge(model)
    keys = list(model.state_dict())
    adapters.merge(model, dequantise=True)
    assert type(model[0].base) is nn.Linear
    assert relative(model(x), adapted) < 1e-13
    assert list(model.state_dict()) == keys
    adapters.unmerge(model)
    assert model[0].base is layer
    assert torch.equal(model(x), adapted)
    adapters.to_lora(model, rank=6)
    assert relative(model(x), adapted) < 1e-12
    adapters.detach(model)
    assert model[0] is layer
    adapters.load(model, tmp_path)
    assert torch.equal(model(x), adapted)


def test_a_subclass_of_linear_with_its_own_forward_is_only_called() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model, x = nn.Sequential(Doubling(6, 6)).double(), rows_of(6)
    adapters.attach(model, adapters.OFT(block=3), targets="all-linear", generator=generator())
    perturb(model)
    (state,) = slots(model).values()
    weight = change(adapters.OFT(block=3), state, 2 * model[0].base.weight)
    assert relative(model(x), x @ weight.T + 2 * model[0].base.bias) < 1e-13


# -- some of several adapters merged --------------------------------------------------------------------------------


def two(first: adapters.Method, second: adapters.Method) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6)).double()
    for name, method in (("a", first), ("b", second)):
        adapters.attach(model, method, targets=["0"], name=name, generator=generator())
    perturb(model)
    return model


@pytest.mark.parametrize("second", [adapters.HRA(2), adapters.LoRA(1), adapters.Bottleneck("circulant")])
def test_d17_merging_the_first_keeps_the_second_alive(second: adapters.Method) -> None:
    """Elsewhere the adapters that are not merged silently cease to act."""
    model, x = two(adapters.OFT(block=3), second), rows_of(6)
    adapted, stored = model(x), model[0].base.weight.detach().clone()
    adapters.merge(model, names="a")
    assert not torch.equal(model[0].base.weight, stored)
    assert relative(model(x), adapted) < 1e-13
    trained = dict(model[0].slot("b").named_parameters())
    for parameter in trained.values():
        parameter.requires_grad_(True)
    grads = torch.autograd.grad(model(x).sum(), list(trained.values()))
    assert all(bool(g.abs().sum() > 0) for g in grads)
    adapters.unmerge(model)
    assert torch.equal(model[0].base.weight, stored)
    assert torch.equal(model(x), adapted)


def test_merging_the_second_alone_needs_additions() -> None:
    model, x = two(adapters.LoRA(1), adapters.SURM("toeplitz")), rows_of(6)
    adapted = model(x)
    adapters.merge(model, names=["b"])
    assert relative(model(x), adapted) < 1e-13
    model = two(adapters.HRA(2), adapters.LoRA(1))
    with pytest.raises(ValueError, match="on '0' an adapter that stays active folds before one to be merged"):
        adapters.merge(model, names=["b"])
    adapters.activate(model, ["a"])
    with pytest.raises(ValueError, match="'b' is not active; active are 'a'"):
        adapters.merge(model, names=["b"])


def test_a_residual_map_has_no_merged_weight() -> None:
    model = two(adapters.Bottleneck("toeplitz", activation="tanh"), adapters.LoRA(1))
    with pytest.raises(StructureError, match=r"'0' acts on the layer's output.*merge the others with names="):
        adapters.merge(model)
    with pytest.raises(ValueError, match="acts on the layer's output through a nonlinear function"):
        adapters.activate(model, ["a"], weights=[0.5])


def test_the_residual_map_is_the_published_one() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4)).double(), rows_of(6)
    plain = model(x)
    adapters.attach(model, adapters.Bottleneck("circulant"), targets=["0"], generator=generator())
    assert torch.equal(model(x), plain)
    loss = model(x).square().sum()
    assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(loss, adapters.trainable_parameters(model)))
    perturb(model)
    (state,) = slots(model).values()
    c = state.trained["entries"] * 9.2 / 2
    m = torch.stack([torch.stack([c[(i - j) % 4] for j in range(4)]) for i in range(4)])
    expected = plain + nn.functional.gelu(plain @ m.T) + state.trained["bias"]
    assert relative(model(x), expected) < 1e-13


# -- experiments ---------------------------------------------------------------------------------------------------


def test_any_matrix_is_an_adapter_and_only_a_registered_class_is_saved(tmp_path) -> None:
    import structmat as sm

    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)).double(), rows_of(6)
    plain = model(x)
    angles = ((0, 1), (2, 3), (1, 2), (4, 5))
    adapters.attach(
        model, adapters.Rotation(lambda t, g: sm.GivensProduct(torch.zeros(4), angles, t.columns)), targets=["0"]
    )
    delta = adapters.Delta(lambda t, g: sm.Toeplitz(torch.zeros(t.out_features + t.columns - 1), t.columns))
    adapters.attach(model, delta, targets=["1"], name="delta")
    assert torch.equal(model(x), plain)
    perturb(model)
    adapted = model(x)
    adapters.merge(model)
    assert relative(model(x), adapted) < 1e-13
    adapters.unmerge(model)
    assert torch.equal(copy.deepcopy(model)(x), adapted)
    with pytest.raises(TypeError, match=r"holds a function, which no file can; .*structmat\.adapters\.register"):
        adapters.save(model, tmp_path / "file")
    assert not (tmp_path / "file").exists()
