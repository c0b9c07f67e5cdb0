"""The four promises over {method} x {layer} x {1, 2 adapters} x {dtype} x {train, eval}, generated: the base at the
start, adapted is merged, unmerge to the bit, and outputs and gradients of the dense definition in float64.

Layers of every kind, by the references of test_every_layer and of cases; thinned so that every pair of values is met.
"""

from __future__ import annotations

import copy
import itertools
import os
from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.adapters.method import State
from tests.adapters import test_every_layer as images
from tests.adapters.cases import (
    DTYPES,
    MERGE_LIMIT,
    METHODS,
    ROTATIONS,
    change,
    generator,
    make_input,
    make_layer,
    perturb,
    relative,
)
from tests.adapters.cases import LAYERS as LINEAR


class Opaque(nn.Module):
    """A linear layer of eight-bit numbers, whose bias only a call with zeros tells."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 6
        self.register_buffer("codes", torch.randint(-127, 128, (6, 8), generator=generator(), dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(6, generator=generator(), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.codes.to(x.dtype) / 127).mT + 2 * self.bias.to(x.dtype)


class Held(nn.Module):
    """A parameter that the module multiplies by: one matrix, or one for each expert."""

    def __init__(self, *sizes: int, turned: bool = False) -> None:
        super().__init__()
        self.is_transposed = turned
        self.weights = nn.Parameter(torch.randn(*sizes, generator=generator(), dtype=torch.float64) / 8**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weights if self.is_transposed else self.weights.mT)


MORE = {"opaque": Opaque, "parameter": lambda: Held(6, 8), "experts, turned": lambda: Held(3, 8, 6, turned=True)}
LAYERS = [*LINEAR, *images.LAYERS, *MORE]
SECOND = {"none": None, "LoRA": adapters.LoRA(1), "HRA": adapters.HRA(2)}
# Relative errors of outputs and gradients, ||got - dense|| / ||dense||: 500 eps in float64 and 64 eps in float32, for
# sums of at most 324 terms and condition numbers near 1. In bfloat16 the layer, a folded weight, the output and what
# flows back are each rounded once, to 2^-8 or less.
LIMIT = {torch.float64: 1e-13, torch.float32: 2.0**-17, torch.bfloat16: 2.0**-6}


def legal(method: str, layer: str, second: str) -> bool:
    if layer in images.ADDITIVE and (method in ROTATIONS or second == "HRA"):
        return False
    return not layer.startswith("experts") or method not in ("OnRows", "FLoRA-nlp")


WHOLE = [
    case
    for case in itertools.product(METHODS, LAYERS, DTYPES, SECOND, (True, False))
    if legal(case[0], case[1], case[3])
]
STEP = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else 11
CASES = WHOLE[::STEP]


def test_the_thinned_product_meets_every_pair_of_values() -> None:
    for i, j in itertools.combinations(range(5), 2):
        assert {(case[i], case[j]) for case in CASES} == {(case[i], case[j]) for case in WHOLE}


def build(layer: str, dtype: torch.dtype) -> tuple[nn.Sequential, str, torch.Tensor]:
    """A model of one layer, the name of what is adapted, and an input."""
    if layer in LINEAR:
        return nn.Sequential(make_layer(*LINEAR[layer], dtype=dtype)), "0", make_input(layer, dtype)
    if layer in images.LAYERS:
        return images.make(layer, dtype), "0", images.inputs(layer, dtype)
    x = torch.randn(4, 3, 8, generator=generator(5), dtype=torch.float64)
    x = x.transpose(0, 1) if layer.startswith("experts") else x
    name = "0" if layer == "opaque" else "0.weights"
    return nn.Sequential(MORE[layer]()).to(dtype), name, x.to(dtype)


def methods(method: str, layer: str, second: str) -> list[Any]:
    first = images.CONV_METHODS[method] if layer in images.LAYERS else METHODS[method]
    return [first] + ([SECOND[second]] if second != "none" else [])


def adapted_layer(model: nn.Module, name: str) -> Any:
    return model[0] if name == "0" else model[0].parametrizations.weights[0]


def doubled(state: State) -> State:
    """In float64; the gradients reach the tensors themselves."""
    return State(*({key: tensor.double() for key, tensor in part.items()} for part in state))


def dense(layer: str, model: nn.Module, name: str, chosen: list[Any], x: torch.Tensor) -> torch.Tensor:
    """The output by the definitions folded into the weight, all in float64."""
    wrapper, x = adapted_layer(model, name), x if layer == "embedding" else x.double()
    states = [doubled(wrapper.slot(f"a{k}").state()) for k in range(len(chosen))]

    def folded(weight: torch.Tensor, place: int | None = None) -> torch.Tensor:
        for one, state in zip(chosen, states, strict=True):
            own = state if place is None else State(*({k: t[place] for k, t in part.items()} for part in state))
            weight = change(one, own, weight)
        return weight

    if name != "0":
        stored = model[0].parametrizations.weights.original.double()
        if stored.ndim == 2:
            return x @ folded(stored).mT
        return torch.stack([x[e] @ folded(stored[e].mT, e).mT for e in range(3)])
    base = copy.deepcopy(wrapper.base).double()
    if layer == "opaque":
        return x @ folded(base.codes.double() / 127).mT + 2 * base.bias
    if layer in images.LAYERS:
        matrix = folded(images.as_matrix(layer, base, base.weight))
        return images.call(layer, base, images.as_stored(layer, base, matrix), x)
    weight = base.weight.mT if LINEAR[layer][0] == "Conv1D" else base.weight
    return x @ folded(weight).mT + (0 if base.bias is None else base.bias)


def stored_in(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("method", "layer", "dtype", "second", "training"), CASES)
def test_the_four_promises(method: str, layer: str, dtype: str, second: str, training: bool) -> None:
    kind = DTYPES[dtype]
    model, name, x = build(layer, kind)
    model.train(training)
    plain = model(x)
    chosen = methods(method, layer, second)
    for k, one in enumerate(chosen):
        adapters.attach(model, one, targets=[name], name=f"a{k}", generator=generator(k))
    started = model(x)
    assert started.dtype == plain.dtype
    if method in ROTATIONS or second == "HRA":
        assert relative(started, plain) <= 8 * torch.finfo(kind).eps
    else:
        assert torch.equal(started, plain)

    perturb(model, size=0.1)
    trained = [p for key, p in model.named_parameters() if ".a0." in key or ".a1." in key]
    for parameter in trained:
        parameter.requires_grad_(True)
    wanted = trained if layer == "embedding" else [x.requires_grad_(), *trained]
    outputs = [model(x), dense(layer, model, name, chosen, x)]
    probe = torch.randn(plain.shape, generator=generator(9), dtype=torch.float64)
    found = [[y, *torch.autograd.grad((y * probe.to(y.dtype)).sum(), wanted)] for y in outputs]
    for got, reference in zip(*found, strict=True):
        assert relative(got, reference) <= LIMIT[kind]

    before = stored_in(model)
    adapted = outputs[0].detach()
    for keep in ("copy",) if layer == "opaque" else ("copy", "cpu"):
        adapters.merge(model, keep=keep, dequantise=layer == "opaque")
        assert relative(model(x), adapted) <= MERGE_LIMIT[kind]
        adapters.unmerge(model)
        after = stored_in(model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert torch.equal(model(x), adapted)
    adapters.detach(model)
    assert torch.equal(model(x), plain)
