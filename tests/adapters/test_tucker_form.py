"""Additions in Tucker form on convolutions: in the weight or beside the layer, and what is said of wasted ranks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.adapters import tucker_form
from structmat.functional import tucker_conv
from tests.adapters.cases import generator, perturb, relative

CPU = torch.device("cpu")
LAYERS = {
    "plain": nn.Conv2d(6, 8, 3, padding=1),
    "stride": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6, bias=False),
    "one-dimensional": nn.Conv1d(4, 6, 5, dilation=2, padding=2),
}


def adapted(layer: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer].__class__(**_sizes(LAYERS[layer]))).to(dtype)
    adapters.attach(model, adapters.FLoRA(2), targets=["0"], generator=generator())
    perturb(model)
    sizes = (9,) if isinstance(model[0].base, nn.Conv1d) else (9, 8)
    x = torch.randn(3, model[0].base.in_channels, *sizes, generator=generator(5), dtype=torch.float64)
    return model, x.to(dtype).requires_grad_()


def _sizes(layer: nn.Module) -> dict[str, object]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


@pytest.mark.parametrize("layer", LAYERS)
def test_both_forms_are_one_layer(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and gradients of gradients of the two forms, and the merged layer."""
    model, x = adapted(layer)
    wanted = [x, *adapters.trainable_parameters(model)]
    found = []
    for path in ("weight", "tucker"):
        monkeypatch.setattr(tucker_form, "_NUMBER", 0.0 if path == "tucker" else 1e9)
        if layer != "depthwise":  # there the kernel is formed in both
            assert adapters.explain(model, rows=216).plans["0"].path == path
        y = model(x)
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append([y, *first, *second])
    for one, two in zip(*found, strict=True):
        assert relative(one, two) < 1e-12
    adapters.merge(model)
    assert relative(model(x), found[0][0]) < 1e-13


def test_the_rule_and_its_reasons() -> None:
    """Few channels in the weight, many beside; a form without a backward pass is cheap to form; half is beside."""
    convs = nn.ModuleDict(
        {
            "narrow": nn.Conv2d(32, 32, 3), "wide": nn.Conv2d(128, 128, 3), "strided": nn.Conv2d(32, 64, 3, stride=2),
            "depthwise": nn.Conv2d(128, 128, 3, groups=128),
        }
    )  # fmt: skip
    adapters.attach(convs, adapters.FLoRA(8), targets=list(convs))

    def paths(rows: int, dtype: torch.dtype | None = None) -> list[str]:
        return [plan.path for plan in adapters.explain(convs, rows=rows, dtype=dtype).plans.values()]

    assert paths(8192) == ["weight", "tucker", "weight", "weight"]
    assert paths(8192, torch.bfloat16) == ["tucker"] * 4
    convs.eval()
    with torch.no_grad():
        assert paths(8192) == ["weight"] * 4
        assert paths(4) == ["tucker"] * 3 + ["weight"]
    shown = str(adapters.explain(convs.train(), rows=8192))
    assert "three small convolutions cost less than the gradient of a weight" in shown
    assert "three small convolutions move more than the gradient of a weight costs" in shown


def test_where_nothing_was_measured_it_stays_beside() -> None:
    model, _ = adapted("plain")
    chain = model[0].chain()
    assert tucker_form.choose(chain, 1, 216, 1, torch.float32, True, CPU).path == "weight"
    for device in ("meta", "cuda"):
        assert tucker_form.choose(chain, 1, 216, 1, torch.float32, True, torch.device(device)).path == "tucker"


def test_a_small_change_survives_a_bfloat16_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = adapted("plain", torch.bfloat16)
    calls: list[int] = []
    plain = tucker_conv.tucker_conv

    def counted(*given: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return plain(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tucker_conv, "tucker_conv", counted)
    with torch.no_grad():
        model[0].slot("default").core.mul_(2.0**-12)
        y, base = model(x), model[0].base(x)
        delta = model[0].chain()[0]
        change = (delta.matrix * delta.scale).conv(x.float(), padding=1)
    assert calls
    assert torch.equal(y, (base.float() + change).bfloat16())


@pytest.mark.parametrize("layer", [nn.Linear(5, 6), nn.Conv1d(5, 6, 3)], ids=["linear", "convolution"])
def test_wasted_ranks_are_said_once_at_attach(layer: nn.Module) -> None:
    """And at no step, report, weighting or merge after that."""
    model = nn.Sequential(layer)
    ranks = (4, 2) if isinstance(layer, nn.Linear) else (5, 2, 2)
    with pytest.warns(UserWarning, match=r"FLoRA\(ranks=\(\d, .*\)\): rank \d of mode 0 is above \d") as told:
        adapters.attach(model, adapters.FLoRA(ranks), targets=["0"])
    assert len(told) == 1
    perturb(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(2, 5, 7)
        for _ in range(2):
            model(x).sum().backward()
        model.eval()(x.bfloat16().float())
        adapters.inspect(model)
        adapters.explain(model, rows=4)
        adapters.activate(model, "default", [0.5])
        model(x)
        adapters.merge(model)
        adapters.unmerge(model)
        fine = nn.Sequential(nn.Linear(5, 6))
        adapters.attach(fine, adapters.FLoRA((2, 2)), targets=["0"])
    adapters.detach(model)
