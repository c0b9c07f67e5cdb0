"""Adapted layers under torch.compile and torch.func, compared by value with eager."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from structmat import adapters
from tests.adapters.cases import METHODS, generator, make_input, make_model, perturb, relative

COMPILED = ["LoRA", "HRA-even", "HRA-orthonormal", "circulant", "toeplitz", "toeplitz-product", "symmetric"]


def adapted(method: str, layer: str = "wide") -> nn.Module:
    model = make_model(layer)
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    perturb(model)
    return model


def run(model: nn.Module, x: torch.Tensor, call) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *adapters.trainable_parameters(model)])]


@pytest.mark.parametrize("method", COMPILED)
def test_compiled_in_one_graph(method: str) -> None:
    model = adapted(method)
    x = make_input("wide")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(run(model, x, compiled), run(model, x, model), strict=True):
        assert relative(got, wanted) < 1e-12
    with adapters.disabled(model):
        assert relative(compiled(x), model[0].base(x)) < 1e-14


@pytest.mark.inductor
@pytest.mark.parametrize("method", ["HRA-even", "toeplitz"])
def test_compiled_by_inductor(method: str) -> None:
    model = adapted(method)
    x = make_input("wide")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for got, wanted in zip(run(model, x, compiled), run(model, x, model), strict=True):
        assert relative(got, wanted) < 1e-12


def test_two_adapters_and_stacked_rows_compile() -> None:
    model = adapted("HRA-even")
    adapters.attach(model, METHODS["HRA-even"], targets=["0"], name="second", generator=generator(4))
    perturb(model)
    x = make_input("wide")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative(compiled(x), model(x)) < 1e-13
    adapters.stack(model, ["default", "second"])
    with adapters.rows(model, torch.tensor([1, -1, 0])):
        assert relative(compiled(x), model(x)) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_per_sample_gradients_by_functional_call(method: str) -> None:
    model = adapted(method)
    x = make_input("wide", lead=(3,))
    parameters = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (row[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(3):
        wanted = torch.autograd.grad(model(x[row][None]).square().sum(), adapters.trainable_parameters(model))
        for key, one in zip(parameters, wanted, strict=True):
            scale = float(one.abs().max())
            torch.testing.assert_close(each[key][row], one, rtol=1e-11, atol=1e-11 * scale + 1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_forward_mode_agrees_with_a_difference(method: str) -> None:
    """Central differences with step 1e-5 are right to about 1e-9 here."""
    model = adapted(method)
    x = make_input("wide")
    v = torch.randn(x.shape, generator=generator(6), dtype=x.dtype)
    _, tangent = jvp(model, (x,), (v,))
    assert relative(tangent, (model(x + 1e-5 * v) - model(x - 1e-5 * v)) / 2e-5) < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_models(method: str) -> None:
    """An ensemble of adapters on one base: the stacked parameters under vmap."""
    models = [adapted(method), adapted(method)]
    with torch.no_grad():
        for parameter in models[1][0].adapters.parameters():
            parameter.mul_(1.5).add_(0.1)
    keys = [key for key, p in models[0].named_parameters() if p.requires_grad]
    stacked = {key: torch.stack([dict(m.named_parameters())[key].detach() for m in models]) for key in keys}
    x = make_input("wide")
    both = vmap(lambda parameters: functional_call(models[0], parameters, (x,)))(stacked)
    for got, model in zip(both, models, strict=True):
        assert relative(got, model(x)) < 1e-12
