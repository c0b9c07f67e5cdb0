"""Convolutions with their adapters beside them: equal to the folded weight, chosen by the rule, exact in half."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from structmat import adapters
from structmat.adapters import forms
from structmat.adapters.kinds import convolution
from tests.adapters.cases import generator, perturb, relative
from tests.adapters.test_training import guarded

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(6, 10, 3, padding=1), (2, 6, 9)),
    "no bias, stride beyond the kernel": (nn.Conv1d(6, 10, 2, stride=3, padding=2, bias=False), (2, 6, 9)),
    "all options": (
        nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(2, 5), dilation=(1, 3), groups=2),
        (2, 8, 9, 8),
    ),
    "same, even kernel": (nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1)), (2, 4, 7, 8)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 8)),
    "reflect": (nn.Conv2d(4, 6, (1, 3), padding=(0, 2), padding_mode="reflect", stride=2), (2, 4, 5, 6)),
    "replicate": (nn.Conv3d(2, 5, (2, 1, 3), padding=(3, 0, 1), padding_mode="replicate"), (1, 2, 4, 3, 5)),
    "circular": (nn.Conv2d(4, 6, (3, 1), padding=(3, 1), padding_mode="circular", dilation=2), (2, 4, 6, 6)),
    "same circular": (nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular", dilation=3), (2, 4, 12)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), (2, 6, 5, 5)),
    "patches": (nn.Conv2d(3, 16, 4, stride=4), (2, 3, 8, 12)),
    "unbatched": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 6)),
}
TRANSPOSED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.ConvTranspose1d(6, 10, 3), (2, 6, 5)),
    "all options": (
        nn.ConvTranspose2d(
            8, 6, (3, 2), stride=(2, 3), padding=(2, 1), output_padding=(1, 2), dilation=(1, 3), groups=2
        ),
        (2, 8, 4, 5),
    ),
    "conv3d, no bias": (nn.ConvTranspose3d(2, 5, (2, 1, 3), stride=2, bias=False), (1, 2, 3, 2, 3)),
    "depthwise": (nn.ConvTranspose2d(6, 12, 3, groups=6, padding=1), (2, 6, 4, 4)),
    "unbatched": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 4, 3)),
}
CHAINS: dict[str, list[Any]] = {
    "LoRA": [adapters.LoRA(2, alpha=3.0)],
    "HRA": [adapters.HRA(4)],
    "HRA odd, LoRA, HRA, LoRA": [adapters.HRA(3), adapters.LoRA(1), adapters.HRA(2), adapters.LoRA(2)],
    "LoRA, FLoRA": [adapters.LoRA(2), adapters.FLoRA(2)],
    "HRA, FLoRA, LoRA": [adapters.HRA(2), adapters.FLoRA(2), adapters.LoRA(1)],
}


def adapted(layer: nn.Module, chain: list[Any], size: float = 0.3) -> nn.Sequential:
    """The layer in float64 with the adapters of the chain, all of which train."""
    model = nn.Sequential(copy.deepcopy(layer)).double()
    for k, method in enumerate(chain):
        adapters.attach(model, method, targets=["0"], name=f"a{k}", generator=generator(k))
    perturb(model, size=size)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters." in key)
    return model


def path(model: nn.Module, points: int = 100, dtype: torch.dtype | None = None) -> str:
    return adapters.explain(model, points, dtype).plans["0"].path


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The low-rank form wherever there is one."""
    monkeypatch.setattr(forms, "_CONV_FACTOR", 0.0)


@pytest.mark.parametrize(
    ("layer", "chain"),
    [
        *((module, chain) for module in LAYERS.values() for chain in CHAINS.values()),
        *((module, [adapters.LoRA(2, alpha=3.0), adapters.LoRA(1)]) for module in TRANSPOSED.values()),
    ],
)
def test_low_rank_and_folded_are_one_function(
    layer: tuple[nn.Module, tuple[int, ...]], chain: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients of both forms. Rotations here have condition numbers below 10, so 1e-12 is 5e3 eps."""
    module, shape = layer
    model = adapted(module, chain)
    x = torch.randn(shape, generator=generator(5), dtype=torch.float64).requires_grad_()
    found = []
    for factor, expected in ((0.0, "low-rank"), (float("inf"), "weight")):
        monkeypatch.setattr(forms, "_CONV_FACTOR", factor)
        assert path(model) == expected
        y = model(x)
        probe = torch.randn(y.shape, generator=generator(9), dtype=y.dtype)
        wanted = [x, *adapters.trainable_parameters(model)]
        found.append([y, *torch.autograd.grad((y * probe).sum(), wanted)])
    for got, reference in zip(*found, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-12, atol=1e-12 * float(reference.detach().abs().max()))


def test_the_thin_form_is_the_chain() -> None:
    model = adapted(nn.Conv1d(3, 7, 4), CHAINS["HRA odd, LoRA, HRA, LoRA"])
    layer, chain = model[0], model[0].chain()
    weight = layer.base.weight.flatten(1)
    found = forms.thin(chain)
    assert found.turned is not None
    assert found.added is not None
    dense = weight + weight @ found.turned[0] @ found.turned[1].mT + found.added[0] @ found.added[1].mT
    assert relative(dense, layer.weight.flatten(1)) < 1e-14
    assert forms.thin_rank(chain) == 4 + 1 + 2 + 2 == found.turned[0].shape[1] + found.added[0].shape[1]
    assert forms.thin_rank([]) == 0
    assert forms.thin_rank(adapted(nn.Conv1d(4, 8, 3), [adapters.LoRA(1), adapters.FLoRA(2)])[0].chain()) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize(
    ("chain", "form", "cls"),
    [
        ("LoRA", "low-rank", nn.Conv2d),
        ("HRA", "low-rank", nn.Conv2d),
        ("circulant", "beside", nn.Conv2d),
        ("OFT", "beside", nn.Conv2d),
        ("LoRA", "low-rank", nn.ConvTranspose2d),
        ("circulant", "beside", nn.ConvTranspose2d),
    ],
)
def test_a_small_change_survives_a_half_layer(
    chain: str, form: str, cls: type[nn.Module], size: float, dtype: torch.dtype
) -> None:
    """Against float64 with the same parameters: before it is added, the change has the error of at most four roundings
    to the dtype; what a folded weight would lose is everything below eps.
    """
    methods = {**CHAINS, "circulant": [adapters.SURM("circulant")], "OFT": [adapters.OFT(blocks=1)]}[chain]
    torch.manual_seed(0)
    layer = cls(8, 16, 3, padding=1).to(dtype)
    wide = adapted(layer, methods, size=0.0)
    # Half of the vectors of a pair move, by `size` of their length; other methods start at zero or the identity.
    source = generator(3)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters(wide):
            step = torch.randn(parameter.shape, generator=source).double() * size
            if chain == "HRA":
                step[::2] = 0
                step = step * parameter.norm(dim=-1, keepdim=True) / parameter.shape[-1] ** 0.5
            parameter.copy_((parameter + step).float())
    narrow = copy.deepcopy(wide).to(dtype)
    assert path(narrow) == form
    x = torch.randn(2, 8, 6, 6, generator=generator(5)).to(dtype)
    exact = wide(x.double()) - wide[0].base(x.double())
    module, kind = narrow[0].base, narrow[0].kind
    if cls is nn.ConvTranspose2d:
        change = kind._added(module, x, narrow[0].chain(), torch.float32, form, exact.shape)
    elif form == "beside":
        change = module._conv_forward(x, kind.change(module, narrow[0].chain(), torch.float32), None)
    else:
        change = kind._thin(module, narrow[0].chain(), x, x.float())
    assert relative(change, exact) < 4 * torch.finfo(dtype).eps
    assert torch.equal(narrow(x), (module(x).float() + change.float()).to(dtype))


def test_the_choice_and_its_reasons() -> None:
    """By flops with a factor of 5 in full precision; half never folds; grad mode and training count as training."""
    cases = [
        (nn.Conv2d(256, 256, 3), adapters.LoRA(8), 10_000, "low-rank"),
        (nn.Conv2d(256, 256, 3), adapters.LoRA(32), 10_000, "weight"),
        (nn.Conv2d(256, 256, 3), adapters.HRA(8), 10_000, "low-rank"),
        (nn.Conv2d(32, 32, 3), adapters.LoRA(8), 10_000, "weight"),
        (nn.Conv2d(64, 64, 3, groups=64), adapters.LoRA(2), 10_000, "weight"),
        (nn.Conv2d(256, 256, 3), adapters.SURM("circulant"), 10_000, "weight"),
        (nn.Conv2d(256, 256, 3), adapters.FLoRA(8), 10_000, "tucker"),
        (nn.ConvTranspose2d(8, 8, 3), adapters.LoRA(2), 10_000, "weight"),
        (nn.ConvTranspose2d(256, 256, 3), adapters.LoRA(8), 10_000, "low-rank"),
        (nn.ConvTranspose2d(256, 256, 2, stride=8), adapters.LoRA(16), 10_000, "weight"),
        (nn.ConvTranspose2d(8, 8, 3), adapters.SURM("toeplitz"), 10_000, "weight"),
        (nn.Embedding(8, 8), adapters.LoRA(2), 10_000, "columns"),
    ]
    halves = ["low-rank", "low-rank", "low-rank", "low-rank", "beside", "beside", "tucker"]
    halves += ["low-rank", "low-rank", "beside", "beside", "columns"]
    for (layer, method, points, expected), half in zip(cases, halves, strict=True):
        model = nn.Sequential(layer)
        adapters.attach(model, method, targets=["0"])
        assert path(model, points) == expected, (layer, method)
        assert path(model, points, torch.bfloat16) == half, (layer, method)
    model = nn.Sequential(nn.Conv2d(256, 256, 3))
    adapters.attach(model, adapters.LoRA(8), targets=["0"])
    assert "the gradient of a weight would take 5 times the flops or more" in str(adapters.explain(model, 10_000))
    with torch.no_grad():
        assert path(model, 10_000) == "low-rank"
        model.eval()
        assert path(model, 10_000) == "weight"
        assert path(model, 10) == "low-rank"
    assert path(model, 10_000) == "low-rank"


@pytest.mark.usefixtures("always")
def test_a_rotation_after_a_tucker_form_is_folded() -> None:
    model = adapted(nn.Conv2d(4, 6, 3), [adapters.FLoRA(2), adapters.HRA(2)])
    assert path(model) == "weight"
    assert path(model, dtype=torch.bfloat16) == "beside"
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert relative(model(x), nn.functional.conv2d(x, model[0].weight, model[0].bias)) < 1e-13


def test_the_points_are_those_of_the_output() -> None:
    for module, shape in LAYERS.values():
        x = torch.zeros(shape)
        y = module(x)
        assert convolution._points(module, x) == y.numel() // module.out_channels


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 3, 5, 5), (2, 4, 1, 1), (1, 2, 4, 5, 5)])
def test_an_input_that_does_not_fit_is_the_layers_to_refuse(shape: tuple[int, ...]) -> None:
    model = adapted(nn.Conv2d(4, 6, 3), CHAINS["HRA"])
    x = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError) as expected:
        model[0].base(x)
    with pytest.raises(RuntimeError) as got:
        model(x)
    assert str(got.value) == str(expected.value)


def test_an_empty_batch() -> None:
    model = adapted(nn.Conv2d(4, 6, 3), CHAINS["HRA"])
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.zeros(0, 4, 5, 5, dtype=dtype, requires_grad=True)
        y = model.to(dtype)(x)
        assert y.shape == (0, 6, 3, 3)
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d])
def test_shapes_on_the_meta_device(cls: type[nn.Module], dtype: torch.dtype) -> None:
    rotations = [adapters.HRA(2)] if cls is nn.Conv2d else []  # refused by the other
    for method in (adapters.LoRA(2), adapters.SURM("circulant"), adapters.FLoRA(2), *rotations):
        model = nn.Sequential(cls(4, 6, 3, stride=2)).to(dtype)
        adapters.attach(model, method, targets=["0"])
        x = torch.zeros(2, 4, 7, 7, dtype=dtype)
        assert model.to("meta")(x.to("meta")).shape == model[0].base.to_empty(device="cpu")(x).shape


class Standardised(nn.Conv2d):
    """A convolution whose weight is normalised where it is used: no linear function of the weight it stores."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight / weight.norm(), bias)


@pytest.mark.usefixtures("always")
def test_a_layer_with_its_own_way_to_convolve_is_folded() -> None:
    model = adapted(Standardised(4, 6, 3), CHAINS["HRA"])
    assert path(model) == path(model, dtype=torch.bfloat16) == "weight"
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    base = model[0].base
    expected = nn.functional.conv2d(x, model[0].weight / model[0].weight.norm(), base.bias)
    assert relative(model(x), expected) < 1e-14


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("chain", ["LoRA", "HRA"])
def test_transforms_and_second_derivatives(chain: str) -> None:
    model = adapted(nn.Conv2d(4, 6, 3, padding=1, groups=2), CHAINS[chain])
    x = torch.randn(3, 4, 5, 5, generator=generator(5), dtype=torch.float64)
    parameters = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(3):
        wanted = torch.autograd.grad(model(x[row][None]).square().sum(), adapters.trainable_parameters(model))
        for key, one in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(each[key][row], one, rtol=1e-11, atol=1e-11 * float(one.abs().max()))
    v = torch.randn(x.shape, generator=generator(6), dtype=x.dtype)
    _, tangent = jvp(model, (x,), (v,))
    assert relative(tangent, (model(x + 1e-5 * v) - model(x - 1e-5 * v)) / 2e-5) < 1e-7
    trained = adapters.trainable_parameters(model)
    inputs = [x[:1].requires_grad_(), *trained]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        keys = [key for key, p in model.named_parameters() if p.requires_grad]
        return torch.tanh(functional_call(model, dict(zip(keys, values, strict=True)), (x,)))

    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("chain", ["LoRA", "HRA"])
def test_autocast_keeps_the_change(chain: str) -> None:
    """In autocast the layer computes in bfloat16, so the form is the one of half precision, and the output is rounded
    three times: the layer's, that of W A, and of the sum.
    """
    model = adapted(nn.Conv2d(8, 16, 3, padding=1), CHAINS[chain]).float()
    x = torch.randn(2, 8, 6, 6, generator=generator(5))
    single = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    assert low.dtype == torch.bfloat16
    assert relative(low, single) < 2.0**-6


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("layer", LAYERS)
def test_the_weight_of_a_sharded_layer_is_used_in_its_own_forward_alone(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is sharded by itself gathers its weight for its own forward: W A comes from an image then."""
    module, shape = LAYERS[layer]
    model = adapted(module, CHAINS["HRA odd, LoRA, HRA, LoRA"])
    x = torch.randn(shape, dtype=torch.float64)
    trained = adapters.trainable_parameters(model)
    y = model(x)
    wanted = [y, *torch.autograd.grad(y.square().sum(), trained)]
    monkeypatch.setattr(convolution, "sharded", lambda _: True)
    with guarded(model[0].base):
        y = model(x)
        got = [y, *torch.autograd.grad(y.square().sum(), trained)]
    for one, other in zip(got, wanted, strict=True):
        assert relative(one, other) < 1e-12


@pytest.mark.usefixtures("always")
def test_a_transposed_convolution_keeps_the_size_it_is_asked_for() -> None:
    model = adapted(nn.ConvTranspose2d(3, 4, 3, stride=2), CHAINS["LoRA"])
    assert path(model) == "low-rank"
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    base = model[0].base
    for size in ([9, 11], [10, 12]):
        extra = [size[0] - 9, size[1] - 11]
        expected = nn.functional.conv_transpose2d(x, model[0].weight, base.bias, 2, 0, extra)
        assert relative(model[0](x, output_size=size), expected) < 1e-14
        assert relative(model[0](x, size), expected) < 1e-14


@pytest.mark.usefixtures("always")
def test_channels_last_stays_channels_last() -> None:
    for chain in ("LoRA", "HRA"):
        model = adapted(nn.Conv2d(4, 6, 3, padding=1), CHAINS[chain]).to(memory_format=torch.channels_last)
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        assert model[0].base(x).is_contiguous(memory_format=torch.channels_last)
        assert model(x).is_contiguous(memory_format=torch.channels_last)
