"""{method} x {layer that is no plain linear one} x {1, 2 adapters} x {dtype} x {train, eval}, generated.

The reference folds the definitions of ``cases.change`` into the weight, seen as one matrix, and calls torch's function.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from structmat import adapters
from structmat.errors import StructureError
from tests.adapters.cases import DTYPES, MERGE_LIMIT, METHODS, ROTATIONS, change, generator, perturb, relative, slots

# FLoRA-nlp has ranks for two modes and OnRows spans up to row 5; both are kept, with ranks and rows that fit.
CONV_METHODS = {**METHODS, "FLoRA-nlp": adapters.FLoRA(2, scale=4000.0, init="nlp")}
LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (2, 4, 9)),
    "conv1d-circular": (
        nn.Conv1d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 4, "stride": 2, "padding": 3, "padding_mode": "circular"},
        (2, 4, 9),
    ),
    "conv2d-all": (
        nn.Conv2d,
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (2, 1),
            "dilation": (1, 2),
            "groups": 2,
        },
        (2, 4, 9, 8),
    ),
    "conv2d-reflect": (
        nn.Conv2d,
        {"in_channels": 3, "out_channels": 5, "kernel_size": (1, 3), "padding": (0, 1), "padding_mode": "reflect"},
        (2, 3, 5, 6),
    ),
    "depthwise": (
        nn.Conv2d,
        {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, "padding": "same", "bias": False},
        (1, 6, 7, 7),
    ),
    "conv3d": (nn.Conv3d, {"in_channels": 2, "out_channels": 5, "kernel_size": (2, 1, 3)}, (1, 2, 4, 3, 5)),
    "transposed1d": (nn.ConvTranspose1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 5)),
    "transposed2d": (
        nn.ConvTranspose2d,
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "stride": 2,
            "groups": 2,
            "output_padding": 1,
        },
        (2, 4, 3, 4),
    ),
    "embedding": (nn.Embedding, {"num_embeddings": 12, "embedding_dim": 6}, (3, 4)),
}
ADDITIVE = ("transposed1d", "transposed2d", "embedding")
SECOND = {"none": None, "LoRA": adapters.LoRA(1), "FLoRA": adapters.FLoRA(2)}
STEP = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else 7  # 7 divides no factor, so each value is met
LEGAL = [(m, k) for m, k in itertools.product(METHODS, LAYERS) if k not in ADDITIVE or m not in ROTATIONS]
CASES = [(m, k, d, s, t) for (m, k), d, s, t in itertools.product(LEGAL, DTYPES, SECOND, (True, False))][::STEP]


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    cls, options, _ = LAYERS[name]
    torch.manual_seed(0)
    return nn.Sequential(cls(**options)).to(dtype)


def inputs(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = LAYERS[name][2]
    if name == "embedding":
        return torch.randint(12, shape, generator=generator(5))
    return torch.randn(shape, generator=generator(5), dtype=torch.float64).to(dtype)


def attach_all(model: nn.Module, method: str, second: str) -> list[Any]:
    chosen = [CONV_METHODS[method]] + ([SECOND[second]] if SECOND[second] else [])
    for place, one in enumerate(chosen):
        adapters.attach(model, one, targets=["0"], name=f"a{place}", generator=generator(place))
    return chosen


def as_matrix(name: str, layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """Entry by entry for transposed layers: ``[o, (c, taps)]`` of channel o and the c-th input of its group."""
    if name == "embedding":
        return weight.T
    if not name.startswith("transposed"):
        return weight.reshape(weight.shape[0], -1)
    g, inside, out = layer.groups, layer.in_channels // layer.groups, layer.out_channels
    rows = []
    for o in range(out):
        group, place = divmod(o, out // g)
        rows.append(torch.cat([weight[group * inside + c, place].reshape(-1) for c in range(inside)]))
    return torch.stack(rows)


def as_stored(name: str, layer: Any, matrix: torch.Tensor) -> torch.Tensor:
    if name == "embedding":
        return matrix.T
    if not name.startswith("transposed"):
        return matrix.reshape(layer.weight.shape)
    g, inside, out = layer.groups, layer.in_channels // layer.groups, layer.out_channels
    taps = math.prod(layer.kernel_size)
    channels = []
    for i in range(layer.in_channels):
        group, c = divmod(i, inside)
        rows = matrix[group * (out // g) : (group + 1) * (out // g), c * taps : (c + 1) * taps]
        channels.append(rows.reshape(out // g, *layer.kernel_size))
    return torch.stack(channels)


def call(name: str, layer: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if name == "embedding":
        return nnf.embedding(x, weight)
    if name.startswith("transposed"):
        conv = {3: nnf.conv_transpose1d, 4: nnf.conv_transpose2d}[x.ndim]
        return conv(x, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups)
    conv = {3: nnf.conv1d, 4: nnf.conv2d, 5: nnf.conv3d}[x.ndim]
    if layer.padding_mode != "zeros":
        both = [p for p in reversed(layer.padding) for _ in range(2)]
        x = nnf.pad(x, both, mode=layer.padding_mode)
        return conv(x, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
    return conv(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def test_the_thinned_product_meets_every_value() -> None:
    for values, met in zip((METHODS, LAYERS, DTYPES, SECOND, (True, False)), zip(*CASES, strict=True), strict=True):
        assert set(met) == set(values)


@pytest.mark.parametrize(("method", "layer", "dtype", "second", "training"), CASES)
def test_start_merge_and_unmerge(method: str, layer: str, dtype: str, second: str, training: bool) -> None:
    """The base at the start (exactly, but for rotations); adapted is merged; unmerge is bit for bit."""
    model = make(layer, DTYPES[dtype]).train(training)
    x = inputs(layer, DTYPES[dtype])
    stored, plain = model[0].weight.detach().clone(), model(x)
    attach_all(model, method, second)
    started = model(x)
    assert started.dtype == plain.dtype
    if method in ROTATIONS:
        assert relative(started, plain) <= 8 * torch.finfo(DTYPES[dtype]).eps
    else:
        assert torch.equal(started, plain)
    perturb(model)
    adapted = model(x)
    assert relative(adapted, plain) > 0.02
    for keep in ("copy", "cpu"):
        adapters.merge(model, keep=keep)
        assert relative(model(x), adapted) <= MERGE_LIMIT[DTYPES[dtype]]
        adapters.unmerge(model)
        assert torch.equal(model[0].base.weight, stored)
        assert torch.equal(model(x), adapted)
    adapters.detach(model)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(("method", "layer"), LEGAL)
def test_outputs_and_gradients_are_those_of_the_dense_reference(method: str, layer: str) -> None:
    """Against the definition folded into the weight; condition numbers here are below 1e3, so 1e-11 is 4e4 eps."""
    model = make(layer)
    chosen = attach_all(model, method, "LoRA")
    perturb(model)
    trained = [p for key, p in model.named_parameters() if ".adapters." in key]
    for parameter in trained:
        parameter.requires_grad_(True)
    x = inputs(layer)
    parameters = trained if layer == "embedding" else [x.requires_grad_(), *trained]
    y = model(x)
    probe = torch.randn(y.shape, generator=generator(9), dtype=y.dtype)
    grads = torch.autograd.grad((y * probe).sum(), parameters)

    base = model[0].base
    weight = as_matrix(layer, base, base.weight)
    for one, state in zip(chosen, slots(model).values(), strict=True):
        weight = change(one, state, weight)
    expected = call(layer, base, as_stored(layer, base, weight), x)
    references = torch.autograd.grad((expected * probe).sum(), parameters)
    assert relative(y, expected) < 1e-11
    for got, wanted in zip(grads, references, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11 * float(wanted.abs().max()) + 1e-13)


@pytest.mark.parametrize(("method", "layer"), list(itertools.product(("HRA-even", "OFT", "BOFT"), ADDITIVE)))
def test_a_rotation_of_an_additive_layer_is_refused(method: str, layer: str) -> None:
    model = make(layer)
    before = dict(model.named_modules())
    with pytest.raises(StructureError, match=r"on layer '0', a .*legal are additions: LoRA, FLoRA, SURM"):
        adapters.attach(model, METHODS[method], targets=["0"])
    assert dict(model.named_modules()) == before


def test_a_transposed_convolution_keeps_its_output_size() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2)).double()
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    plain = model[0](x, output_size=[10, 12])
    adapters.attach(model, adapters.LoRA(2), targets=["0"])
    assert torch.equal(model[0](x, output_size=[10, 12]), plain)
    perturb(model)
    assert model[0](x, output_size=[10, 12]).shape == plain.shape
