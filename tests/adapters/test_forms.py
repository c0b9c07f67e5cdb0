"""The low-rank form of a rotation: what it is chosen for, and that it keeps turns which rotated rows would lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import structmat as sm
from structmat import adapters
from structmat.adapters import forms
from tests.adapters.cases import generator, perturb, relative


def turned_apart(angle: float, rank: int, n: int) -> torch.Tensor:
    """Pairs of vectors at a small angle, of unequal lengths."""
    source = generator(3)
    v = torch.randn(rank // 2, n, generator=source, dtype=torch.float64)
    d = torch.randn(rank // 2, n, generator=source, dtype=torch.float64)
    d = d / d.norm(dim=-1, keepdim=True) * v.norm(dim=-1, keepdim=True) * angle / 2
    pairs = torch.stack([v + d, v - d], 1).reshape(rank, n)
    return pairs * (1 + torch.rand(rank, 1, generator=source, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 4, 5])
def test_the_factors_are_those_of_the_rotation(rank: int) -> None:
    rotation = sm.HouseholderProduct(torch.randn(rank, 9, generator=generator(), dtype=torch.float64))
    left, right = forms.factors(rotation)
    assert left.mT.is_contiguous()
    assert relative(left @ right.mT, torch.eye(9, dtype=torch.float64) - rotation.to_dense()) < 1e-14


@pytest.mark.parametrize("angle", [0.1, 1e-2, 1e-3])
def test_a_small_turn_survives_a_bfloat16_layer(angle: float) -> None:
    """The change before the output is rounded has the error of two roundings to bfloat16, at every angle."""
    n = 256
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n, n)).bfloat16()
    adapters.attach(model, adapters.HRA(4), targets=["0"], generator=generator())
    vectors = turned_apart(angle, 4, n)
    with torch.no_grad():
        model[0].slot("default").vectors.copy_(vectors)
    layer, kind = model[0].base, model[0].kind
    x = torch.randn(32, n, generator=generator(4)).bfloat16()

    def base(rows: torch.Tensor, span: object = None) -> torch.Tensor:
        return layer(rows.bfloat16())

    # The vectors as stored, in float32: the reference must turn by the same angle.
    stored = model[0].slot("default").vectors.detach().double()
    weight = layer.weight.double()
    exact = x.double() @ (sm.HouseholderProduct(stored).to_dense() - torch.eye(n, dtype=torch.float64)).mT @ weight.mT
    change = kind._beside(layer, x, model[0].chain()[0], torch.float32, base).double() - layer(x).double()
    assert relative(change, exact) < 2.0**-7  # eps of bfloat16, and in float32 the angle lost 1e-7 / angle
    assert torch.equal(model(x), (layer(x).float() + change.float()).bfloat16())


def test_the_choice_and_its_reasons() -> None:
    torch.manual_seed(0)
    square, wide = nn.Linear(64, 64), nn.Linear(64, 8)
    model = nn.ModuleDict({"square": square, "wide": wide, "conv": nn.Conv1d(4, 4, 3), "other": nn.Linear(8, 8)})
    adapters.attach(model, adapters.HRA(4), targets=["square", "wide", "conv"])
    plans = adapters.explain(model, rows=512).plans
    assert {name: plan.path for name, plan in plans.items()} == {"square": "rows", "wide": "low-rank", "conv": "weight"}
    assert adapters.explain(model, rows=2).plans["wide"].path == "rows"
    half = adapters.explain(model, rows=2, dtype=torch.bfloat16)
    assert half.plans["square"].path == "low-rank"
    assert "rows rotated in bfloat16 would lose a small turn" in str(half)
    with pytest.raises(ValueError, match="rows must be an integer of at least 1, got 0"):
        adapters.explain(model, rows=0)


@pytest.mark.parametrize("rows", [3, 400])
def test_both_forms_give_the_same_outputs_and_gradients(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 4)).double()
    adapters.attach(model, adapters.HRA(3), targets=["0"], generator=generator())
    perturb(model)
    assert adapters.explain(model, rows=rows).plans["0"].path == ("low-rank" if rows == 400 else "rows")
    x = torch.randn(rows, 32, generator=generator(4), dtype=torch.float64, requires_grad=True)
    weight = model[0].weight
    expected = x @ weight.mT + model[0].bias
    y = model(x)
    assert relative(y, expected) < 1e-13
    wanted = [x, *adapters.trainable_parameters(model)]
    grads = torch.autograd.grad(y.square().sum(), wanted)
    references = torch.autograd.grad(expected.square().sum(), wanted)
    for got, reference in zip(grads, references, strict=True):
        assert relative(got, reference) < 1e-12
