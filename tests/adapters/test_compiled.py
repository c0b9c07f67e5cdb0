"""Every registered method on every sort of layer in one graph: forward and backward as in eager, for any batch.

The plain backend runs the traced graph as it is, so what is compared is the tracing: no break, and no value of the
batch written into the graph. A second graph is granted, because some products choose their way by the number of rows.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from structmat import adapters
from structmat.adapters import forms
from structmat.adapters.importing_additions import C3A, LoHa, LoKr
from structmat.adapters.importing_rotations import NeumannOFT, OutputBOFT, Reflections
from structmat.adapters.method import _METHODS
from tests.adapters.cases import METHODS, ROTATIONS, generator, perturb, relative

MORE = {
    "bottleneck": adapters.Bottleneck("circulant"),
    "C3A": C3A(2),
    "LoHa": LoHa(2),
    "LoKr": LoKr((2, 4), 1, second="low"),
    "reflections": Reflections(2),
    "neumann": NeumannOFT(4),
    "output-BOFT": OutputBOFT(4, 2, scale=True),
}
ALL = {**METHODS, **MORE}
WHOLE = os.environ.get("HYPOTHESIS_PROFILE") == "ci"
# One of each class, and the four sorts of products among SURM's; all variants in the longer run.
BRIEF = ("LoRA", "HRA-odd", "circulant", "toeplitz", "kronecker", "ldr", "OFT", "BOFT", "FLoRA", "OnRows")
CHOSEN = list(ALL) if WHOLE else [*BRIEF, *MORE]
# Layer by name: what makes it, the shape of its input without the batch.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 8), (8,)),
    "conv": (lambda: nn.Conv2d(4, 8, (1, 2), padding=(0, 1)), (4, 2, 3)),
    "grouped conv": (lambda: nn.Conv1d(4, 8, 4, groups=2, stride=2, padding=3, padding_mode="circular"), (4, 9)),
    "transposed conv": (lambda: nn.ConvTranspose1d(4, 8, 2, stride=2), (4, 3)),
    "embedding": (lambda: nn.Embedding(8, 8), (2,)),
}
ADDITIVE = ("transposed conv", "embedding")
NO_ADDITION = {*ROTATIONS, "reflections", "neumann", "output-BOFT", "bottleneck"}
NO_CONV = {"FLoRA-nlp", "bottleneck"}  # ranks for two modes; an output whose features are last
FEW = ("LoRA",)  # of layers that differ from others in their options alone


def fits(method: str, layer: str) -> bool:
    if layer in ADDITIVE and method in NO_ADDITION:
        return False
    if "conv" in layer and method in NO_CONV:
        return False
    return WHOLE or layer in ("linear", "conv", "embedding") or method in FEW


CASES = [(method, layer) for layer, method in itertools.product(LAYERS, CHOSEN) if fits(method, layer)]


def test_every_registered_method_is_compiled() -> None:
    met = {type(ALL[name]).name for name in CHOSEN}
    assert met >= {name for name, cls in _METHODS.items() if cls.__module__.startswith("structmat.")}
    assert {layer for _, layer in CASES} == set(LAYERS)


def check(model: nn.Module, layer: str, limit: float, most: int = 2) -> None:
    """Outputs and gradients of a compiled model over batches of several sizes, and how often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    dtype = next(model[0].base.parameters()).dtype
    trained = adapters.trainable_parameters(model)
    for batch in (6, 9):
        shape = (batch, *LAYERS[layer][1])
        if layer == "embedding":
            x, wanted = torch.randint(8, shape, generator=generator(5)), trained
        else:
            x = torch.randn(shape, generator=generator(5), dtype=torch.float64).to(dtype).requires_grad_()
            wanted = [x, *trained]
        torch._dynamo.mark_dynamic(x, 0)
        found = []
        for call in (compiled, model):
            y = call(x)
            assert y.shape[0] == batch
            found.append([y, *torch.autograd.grad(y.double().square().sum(), wanted)])
        for got, reference in zip(*found, strict=True):
            assert relative(got, reference) <= limit
    assert counter.frame_count <= most


def adapted(method: str, layer: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer][0]()).double()
    adapters.attach(model, ALL[method], targets=["0"], generator=generator())
    perturb(model, size=0.1)
    return model


@pytest.mark.parametrize(("method", "layer"), CASES)
def test_one_graph_for_every_batch(method: str, layer: str) -> None:
    """The same operations in another order at most: rotations near the identity, so 1e-12 is 5e3 eps."""
    check(adapted(method, layer), layer, 1e-12)


def test_a_convolution_in_low_rank_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_CONV_FACTOR", 0.0)
    model = adapted("HRA-odd", "conv")
    adapters.attach(model, adapters.FLoRA(2), targets=["0"], name="second", generator=generator())
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters." in key)
    perturb(model, size=0.1)
    assert adapters.explain(model, 10).plans["0"].path == "low-rank"
    check(model, "conv", 1e-12)


@pytest.mark.parametrize(("method", "layer"), [("HRA-odd", "linear"), ("HRA-odd", "conv"), ("circulant", "conv")])
def test_half_precision(method: str, layer: str) -> None:
    """In bfloat16 the same roundings: an operation that a graph fuses or reorders moves a result by its eps."""
    model = adapted(method, layer).bfloat16()
    check(model, layer, 2.0**-7)


def test_every_size_a_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    """dynamic=True also makes symbols of pixels, and of numbers that a module holds."""
    monkeypatch.setattr(forms, "_CONV_FACTOR", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 4, 3, stride=2)).double()
    adapters.attach(model, {"0": adapters.HRA(2), "1": adapters.LoRA(2)}, generator=generator())
    perturb(model, size=0.1)
    assert {plan.path for plan in adapters.explain(model, 10).plans.values()} == {"low-rank"}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((2, 4, 5, 6), (3, 4, 9, 7)):
        x = torch.randn(sizes, generator=generator(5), dtype=torch.float64)
        assert relative(compiled(x), model(x)) <= 1e-12
