"""The promises of the library over {method} x {layer} x {1, 2 adapters} x {dtype} x {train, eval}, generated."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from torch import nn

from structmat import adapters
from tests.adapters.cases import (
    DTYPES,
    LAYERS,
    MERGE_LIMIT,
    METHODS,
    ROTATIONS,
    change,
    generator,
    make_input,
    make_model,
    perturb,
    relative,
    slots,
)

SECOND = {"none": None, "LoRA": adapters.LoRA(1), "HRA": adapters.HRA(2)}
PAIRS = list(itertools.product(METHODS, LAYERS))
# The whole product in profile "ci"; otherwise every fifth: 5 divides no factor, so each value is met.
STEP = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else 5
START = list(itertools.product(METHODS, LAYERS, DTYPES, SECOND, [True, False]))[::STEP]
MERGED = list(itertools.product(METHODS, LAYERS, DTYPES, SECOND))[::STEP]


def attach_all(model: nn.Module, method: str, second: str) -> list[adapters.Method]:
    chosen = [METHODS[method]] + ([SECOND[second]] if SECOND[second] else [])
    for place, one in enumerate(chosen):
        adapters.attach(model, one, targets=["0"], name=f"a{place}", generator=generator(place))
    return chosen


def test_the_thinned_product_meets_every_value() -> None:
    factors = [list(METHODS), list(LAYERS), list(DTYPES), list(SECOND), [True, False]]
    for cases in (START, MERGED):
        for values, met in zip(factors, zip(*cases, strict=True), strict=False):
            assert set(met) == set(values)
        assert len({(case[0], case[2]) for case in cases}) == len(METHODS) * len(DTYPES)


@pytest.mark.parametrize(("method", "layer", "dtype", "second", "training"), START)
def test_identity_at_the_start(method: str, layer: str, dtype: str, second: str, training: bool) -> None:
    """Exact for additive methods; 8 eps of the base dtype for rotations."""
    model = make_model(layer, DTYPES[dtype]).train(training)
    x = make_input(layer, DTYPES[dtype])
    before = model(x)
    attach_all(model, method, second)
    after = model(x)
    assert after.dtype == before.dtype
    if method in ROTATIONS or second == "HRA":
        assert relative(after, before) <= 8 * torch.finfo(DTYPES[dtype]).eps
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize(("method", "layer", "dtype", "second"), MERGED)
def test_adapted_is_merged_and_unmerge_is_exact(method: str, layer: str, dtype: str, second: str) -> None:
    model = make_model(layer, DTYPES[dtype])
    x = make_input(layer, DTYPES[dtype])
    stored, plain = model[0].weight.detach().clone(), model(x)
    attach_all(model, method, second)
    perturb(model)
    adapted = model(x)
    assert relative(adapted, plain) > 0.02  # it has moved: the comparisons below say something
    for keep in ("copy", "cpu"):
        adapters.merge(model, keep=keep)
        assert relative(model(x), adapted) <= MERGE_LIMIT[DTYPES[dtype]]
        adapters.unmerge(model)
        assert torch.equal(model[0].base.weight, stored)
        assert torch.equal(model(x), adapted)
    adapters.detach(model)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(("method", "layer"), PAIRS)
@pytest.mark.parametrize("second", SECOND)
def test_outputs_and_gradients_are_those_of_the_dense_reference(method: str, layer: str, second: str) -> None:
    """Against the definition written out densely; condition numbers here are below 1e3, so 1e-11 is 4e4 eps."""
    model = make_model(layer)
    chosen = attach_all(model, method, second)
    perturb(model)
    for parameter in adapters_of(model):
        parameter.requires_grad_(True)
    x = make_input(layer).requires_grad_()
    parameters = [x, *adapters_of(model)]
    y = model(x)
    probe = torch.randn(y.shape, generator=generator(9), dtype=y.dtype)
    grads = torch.autograd.grad((y * probe).sum(), parameters)

    weight = model[0].base.weight.mT if LAYERS[layer][0] == "Conv1D" else model[0].base.weight
    for one, state in zip(chosen, slots(model).values(), strict=True):
        weight = change(one, state, weight)
    expected = x @ weight.mT + (0 if model[0].bias is None else model[0].bias)
    references = torch.autograd.grad((expected * probe).sum(), parameters)
    assert relative(y, expected) < 1e-11
    for got, wanted in zip(grads, references, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11 * float(wanted.abs().max()) + 1e-13)


def adapters_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for key, parameter in model.named_parameters() if ".adapters." in key]


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_moves_every_method_off_its_start(method: str) -> None:
    """No start is a stationary point: one small step of plain descent lowers the loss."""
    model = make_model("wide")
    x = make_input("wide", lead=(32,))
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    target = make_model("wide", seed=3)(x).detach()
    losses = []
    optimizer = torch.optim.SGD(adapters.trainable_parameters(model), lr=1e-3)
    for _ in range(20):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in adapters.trainable_parameters(model))
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * (1 - 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", ["none"])
def test_merge_without_a_copy_comes_back_up_to_rounding(method: str, keep: str) -> None:
    model = make_model("wide")
    stored = model[0].weight.detach().clone()
    attach_all(model, method, "HRA")
    perturb(model)
    adapters.merge(model, keep=keep)
    assert relative(model[0].base.weight, stored) > 0.02
    adapters.unmerge(model)
    assert relative(model[0].base.weight, stored) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_masters_stay_float32_on_a_half_base_and_under_autocast(method: str) -> None:
    model = make_model("wide", torch.float32)
    x = make_input("wide", torch.float32)
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    perturb(model)
    single = model(x)
    before = [p.detach().clone() for p in adapters_of(model)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    assert low.dtype == torch.bfloat16
    assert relative(low, single) < 2.0**-6  # one product in bfloat16, whose eps is 2^-7
    model.to(torch.bfloat16)
    for now, then in zip(adapters_of(model), before, strict=True):
        assert now.dtype == torch.float32
        assert torch.equal(now, then)
    assert model[0].base.weight.dtype == torch.bfloat16
    assert relative(model(x.bfloat16()), single) < 2.0**-6
    model.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert relative(model(x.double()), single) < 2.0**-6


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_start(method: str) -> None:
    found = []
    for seed in (7, 7, 8):
        model = make_model("wide")
        adapters.attach(model, METHODS[method], targets=["0"], generator=generator(seed))
        found.append(torch.cat([t.flatten() for t in model[0].adapters["default"].state_dict().values()]))
    assert torch.equal(found[0], found[1])
    if (found[0] % 1).any():  # it is more than the zeros and ones of a start without random numbers
        assert not torch.equal(found[0], found[2])
