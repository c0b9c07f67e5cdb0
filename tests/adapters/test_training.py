"""Training as people train: checkpointing, autocast, torch.compile, torch.export; and when a weight is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from structmat import adapters
from structmat.adapters.kinds.rows import LINEAR
from tests.adapters.cases import METHODS, generator, make_input, make_model, perturb, relative

ALL = {**METHODS, "bottleneck": adapters.Bottleneck("circulant"), "BOFT-dropout": adapters.BOFT(4, 2, dropout=0.5)}
FIXED = [name for name in ALL if name != "BOFT-dropout"]
CONV = [name for name in FIXED if name not in ("bottleneck", "FLoRA-nlp", "OnRows")]


def linear(method: str, *, training: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).double().train(training)
    adapters.attach(model, ALL[method], targets=["0"], generator=generator())
    perturb(model)
    return model


def outcome(model: nn.Module, x: torch.Tensor, call: Any) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *adapters.trainable_parameters(model)])]


# -- compiled ------------------------------------------------------------------------------------------------------


def chained(kind: str, names: list[str], training: bool) -> nn.Module:
    """A layer for each method, one behind the other."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) if kind == "linear" else nn.Conv2d(4, 4, (1, 3), padding=(0, 1)) for _ in names]
    model = nn.Sequential(*layers).double().train(training)
    adapters.attach(model, {str(k): ALL[name] for k, name in enumerate(names)}, generator=generator())
    perturb(model, size=0.1)
    return model


# All of them one by one in the longer run; else in one graph some that test_transforms does not compile.
BRIEF = {
    "linear": ["HRA-odd", "kronecker", "ldr", "BOFT", "FLoRA", "OnRows"],
    "conv": ["HRA-odd", "BOFT", "FLoRA"],
}
ONE_BY_ONE = os.environ.get("HYPOTHESIS_PROFILE") == "ci"
GROUPS = [
    (kind, group)
    for kind, names in (("linear", FIXED), ("conv", CONV))
    for group in ([[name] for name in names] if ONE_BY_ONE else [BRIEF[kind]])
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "names"), GROUPS)
def test_one_graph_forward_and_backward(kind: str, names: list[str], training: bool) -> None:
    """fullgraph=True and the plain backend, every method on Linear and Conv2d, against eager by value. Layers of norm
    below 3 one behind the other: what is left of rounding grows with the number of layers, not with its power.
    """
    model = chained(kind, names, training)
    x = torch.randn((5, 8) if kind == "linear" else (2, 4, 3, 4), generator=generator(5), dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if training:
        for got, wanted in zip(outcome(model, x, compiled), outcome(model, x, model), strict=True):
            assert relative(got, wanted) < 1e-10
    else:
        with torch.no_grad():
            assert relative(compiled(x), model(x)) < 1e-11


def test_dropout_of_blocks_compiles_in_training() -> None:
    """Its draws follow the seed, and are new in every call."""
    model = linear("BOFT-dropout")
    x = torch.randn(5, 8, generator=generator(5), dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first = compiled(x)
    torch.manual_seed(1)
    assert torch.equal(compiled(x), first)
    assert not torch.equal(compiled(x), first)


@pytest.mark.parametrize("method", ["HRA-even", "LoRA"])
def test_mixed_batches_are_compiled_once_for_all_ids(method: str) -> None:
    """The ids are a tensor of the graph: other ids, the base among them or not, run what is there."""
    model = linear(method, training=False)
    for k in range(3):
        adapters.attach(model, ALL[method], targets=["0"], name=f"a{k}", generator=generator(k))
    perturb(model)
    model.requires_grad_(False)
    names = ["default", "a0", "a1", "a2"]
    adapters.stack(model, names)
    x = torch.randn(4, 3, 8, generator=generator(5), dtype=torch.float64)
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for ids in ([0, 1, 2, 3], [3, 3, 0, 1], [-1, 2, -1, 0], [-1, -1, -1, -1], [2, 1, 0, -1]):
        with adapters.rows(model, torch.tensor(ids)):
            assert relative(compiled(x), model(x)) < 1e-12
    assert len(graphs) == 1


@pytest.mark.parametrize("method", ["HRA-odd", "BOFT", "circulant"])
def test_exported_program_gives_the_same(method: str) -> None:
    model = linear(method, training=False)
    x = torch.randn(5, 8, generator=generator(5), dtype=torch.float64)
    program = torch.export.export(model, (x,))
    assert relative(program.module()(x), model(x)) < 1e-12


# -- checkpointing and autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ALL)
def test_gradient_checkpointing_changes_no_number(method: str, reentrant: bool) -> None:
    """Bit for bit: the same operations run twice, with the same dropout."""
    model = linear(method)
    x = torch.randn(5, 8, generator=generator(5), dtype=torch.float64)
    torch.manual_seed(3)
    plain = gradients(model, x, model)
    torch.manual_seed(3)
    again = gradients(model, x, lambda rows: checkpoint(model, rows, use_reentrant=reentrant))
    for got, wanted in zip(again, plain, strict=True):
        assert torch.equal(got, wanted)


def gradients(model: nn.Module, x: torch.Tensor, call: Any) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in adapters.trainable_parameters(model))]


@pytest.mark.parametrize("method", FIXED)
def test_autocast_reaches_the_layer_and_not_the_adapter(method: str) -> None:
    """Under bfloat16 autocast the layer runs in bfloat16 and the adapter in float32: outputs and gradients within
    the rounding of the layer's, 2^-8 a number, of those in float32; the trained gradients stay float32.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32))
    adapters.attach(model, ALL[method], targets=["0"], generator=generator())
    perturb(model, size=0.1)
    x = torch.randn(16, 32, generator=generator(5))
    wanted = gradients(model, x, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(model, x, model)
    assert got[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in got[1:])
    for one, other in zip(got, wanted, strict=True):
        assert relative(one, other) < 2.0**-5


# -- when a weight is read -----------------------------------------------------------------------------------------


class Guarded(torch.Tensor):
    """A weight whose values may be used only while ``open`` is set; its shape, dtype and device always."""

    open = False
    calls = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not cls.open and getattr(function, "__name__", "") not in ("__get__", "__set__", "size", "dim"):
            raise AssertionError(f"{function} used the weight outside the layer's forward")
        cls.calls += 1
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def guarded(layer: nn.Module) -> Iterator[None]:
    """The layer's weight guarded, and open while the layer itself runs."""
    plain, call = layer._parameters.pop("weight"), layer.forward

    def forward(*args: Any, **options: Any) -> torch.Tensor:
        Guarded.open = True
        try:
            return type(layer).forward(layer, *args, **options)
        finally:
            Guarded.open = False

    object.__setattr__(layer, "weight", plain.detach().as_subclass(Guarded))
    object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(layer, "weight")
        object.__delattr__(layer, "forward")
        layer._parameters["weight"] = plain
    assert layer.forward == call


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", [name for name in ALL if name != "OnRows"])
def test_no_method_uses_the_weight_outside_the_layers_forward(method: str, training: bool) -> None:
    """What shards weights gathers them for a module's own forward alone."""
    model = linear(method, training=training)
    x = torch.randn(5, 8, generator=generator(5), dtype=torch.float64).requires_grad_()
    torch.manual_seed(3)
    wanted = outcome(model, x.detach(), model)
    Guarded.calls = 0
    with guarded(model[0].base):
        torch.manual_seed(3)
        got = outcome(model, x.detach(), model)
    assert Guarded.calls > 0
    for one, other in zip(got, wanted, strict=True):  # of dropped blocks the gradient is 0
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.detach().abs().max()))
    assert LINEAR.fits(model[0].base)


def test_the_guard_notices_a_method_on_rows() -> None:
    """A method on some rows takes those of the weight inside the wrapper's forward (of a sharded layer it cuts the
    layer's output instead); so the guard is known to work.
    """
    model = linear("OnRows")
    with guarded(model[0].base), pytest.raises(AssertionError, match="outside the layer's forward"):
        model(torch.randn(5, 8, dtype=torch.float64))


def test_hooks_of_the_layer_run_under_every_method() -> None:
    """Rotations with scales included: forward hooks of the frozen layer see its calls."""
    for method in FIXED:
        model, seen = linear(method), []
        model[0].base.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model(torch.randn(5, 8, dtype=torch.float64))
        assert bool(seen) == (method != "OnRows"), method


def test_wide_and_odd_layers_start_exactly_at_the_base() -> None:
    """The bias goes through a left factor and is corrected: with unit scales nothing is rounded twice."""
    for layer in ("wide", "tall-odd"):
        model, x = make_model(layer), make_input(layer)
        plain = model(x)
        adapters.attach(model, adapters.BOFT(4, 2, mixed=True), targets=["0"])
        assert relative(model(x), plain) < 1e-15
