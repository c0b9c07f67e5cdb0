"""What the backward pass keeps, counted: an adapter's input, a few numbers a row, and nothing that grows faster.

Every tensor that autograd saves passes ``saved_tensors_hooks``; storages are counted once, those of parameters and
buffers not at all. The difference between two large numbers of tokens is what one token costs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from tests.adapters.cases import METHODS, generator, perturb, relative

D = 256
MORE = {
    "HRA-32": adapters.HRA(32),
    "HRA-160": adapters.HRA(160),
    "OFT-16": adapters.OFT(block=16),
    "BOFT-wide": adapters.BOFT(8, 4),
    "BOFT-deep": adapters.BOFT(2, 8),
    "bottleneck": adapters.Bottleneck("circulant"),
    "bottleneck-kronecker": adapters.Bottleneck("kronecker"),
    "OnRows-many": adapters.OnRows(adapters.BOFT(4, 2), ((0, 64), (128, 256))),
}
RANK = {"HRA-32": 32, "HRA-160": 160, "OnRows-many": 4, "FLoRA-nlp": 4}


def kept(call: Any, own: list[torch.Tensor]) -> int:
    """Bytes that a backward pass would find, without those of ``own``."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in found.values())


def scaled(method: Any) -> bool:
    """Whether a left factor is trained, whose gradient needs the layer's output."""
    inner = getattr(method, "method", method)
    return bool(getattr(inner, "scale", False)) and isinstance(inner, (adapters.OFT, adapters.BOFT))


def per_token(method: Any, dtype: torch.dtype) -> float:
    totals = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D)).to(dtype)
    adapters.attach(model, method, targets=["0"], generator=generator())
    perturb(model, size=0.1)
    own = [*model.parameters(), *model.buffers()]
    for tokens in (8192, 12288):
        x = torch.randn(tokens, D, generator=generator(5)).to(dtype).requires_grad_()
        totals.append(kept(lambda x=x: model(x), own))
    return (totals[1] - totals[0]) / 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*METHODS, *MORE])
def test_an_adapter_keeps_its_input_and_a_few_numbers(method: str, dtype: torch.dtype) -> None:
    """In the dtype of the model: on bfloat16 half the bytes, although the adapter computes in float32. Scales that
    train keep the layer's output too: a gradient for every output needs it.
    """
    chosen = {**METHODS, **MORE}[method]
    size = dtype.itemsize
    rows = D * size * (2 if scaled(chosen) else 1)
    assert per_token(chosen, dtype) <= rows + 4 * 2 * RANK.get(method, 4)


@pytest.mark.parametrize("method", ["kronecker", "toeplitz-product", "HRA-160", "bottleneck-kronecker", "circulant"])
def test_what_is_computed_again_has_the_same_gradients(method: str) -> None:
    """Many rows at once, whose products are computed again, against the same rows in small batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D)).double()
    adapters.attach(model, {**METHODS, **MORE}[method], targets=["0"], generator=generator())
    perturb(model, size=0.1)
    trained = adapters.trainable_parameters(model)
    x = torch.randn(4608, D, generator=generator(5), dtype=torch.float64).requires_grad_()
    probe = torch.randn(4608, D, generator=generator(6), dtype=torch.float64)
    whole = torch.autograd.grad((model(x) * probe).sum(), [x, *trained])
    pieces = [
        torch.autograd.grad((model(a) * b).sum(), [a, *trained])
        for a, b in zip(x.split(1152), probe.split(1152), strict=True)
    ]
    assert relative(whole[0], torch.cat([piece[0] for piece in pieces])) < 1e-12
    for k in range(1, len(whole)):
        assert relative(whole[k], sum(piece[k] for piece in pieces)) < 1e-12


def test_an_input_changed_in_place_is_noticed() -> None:
    """bfloat16 inputs are kept as given, so autograd's own check is repeated."""
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    adapters.attach(model, adapters.HRA(2), targets=["0"], generator=generator())
    x = torch.randn(4, 8).bfloat16()
    y = model(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


CONVS = {
    "conv2d": nn.Conv2d(16, 16, 3, padding=1),
    "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "transposed": nn.ConvTranspose2d(16, 16, 3, padding=1),
}
ADDITIVE = ["LoRA", "FLoRA", "toeplitz"]
CONV_METHODS = {"conv2d": ["HRA-even", "BOFT", *ADDITIVE], "depthwise": ["HRA-even", *ADDITIVE], "transposed": ADDITIVE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layer", "method"), [(k, m) for k in CONVS for m in CONV_METHODS[k]])
def test_a_convolution_keeps_its_input(layer: str, method: str, dtype: torch.dtype) -> None:
    """16 channels a pixel, and at most two small images of FLoRA's rank; the folded weight does not grow."""
    totals = []
    model = nn.Sequential(CONVS[layer]).to(dtype)
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    try:
        perturb(model, size=0.1)
        own = [*model.parameters(), *model.buffers()]
        for images in (2, 4):
            x = torch.randn(images, 16, 24, 24, generator=generator(5)).to(dtype).requires_grad_()
            totals.append(kept(lambda x=x: model(x), own))
    finally:
        adapters.detach(model)
    assert (totals[1] - totals[0]) / (2 * 24 * 24) <= 16 * dtype.itemsize + 2 * 2 * 4


def test_two_adapters_on_one_layer_share_their_input() -> None:
    model = nn.Sequential(nn.Linear(D, D))
    for name in ("a", "b"):
        adapters.attach(model, adapters.LoRA(4), targets=["0"], name=name, generator=generator())
    x = torch.randn(8192, D).requires_grad_()
    own = [*model.parameters(), *model.buffers()]
    assert kept(lambda: model(x), own) <= 4 * 8192 * (D + 2 * 4)
