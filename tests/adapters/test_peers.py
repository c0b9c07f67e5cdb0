"""Defects found in other adapter libraries, each kept out of ours by name (the numbers are those of our own list)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import structmat as sm
from structmat import adapters
from tests.adapters.cases import METHODS, ROTATIONS, generator, make_input, make_model, perturb, relative


@pytest.mark.parametrize(("size", "rank"), [(32, 2), (32, 4), (32, 8), (256, 8), (256, 32)])
def test_d5_orthonormal_reflections_start_at_the_identity(size: int, rank: int) -> None:
    """Elsewhere the paired start and Gram-Schmidt give rounding noise, NaN at rank 8, and gradients of 1e4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size))
    x = torch.randn(16, size)
    before = model(x)
    adapters.attach(model, adapters.HRA(rank, orthonormal=True), targets=["0"], generator=generator())
    after = model(x)
    assert relative(after, before) <= 8 * torch.finfo(torch.float32).eps
    after.square().mean().backward()
    (gradient,) = (p.grad for p in adapters.trainable_parameters(model))
    assert torch.isfinite(gradient).all()
    assert gradient.norm() < 10  # the loss is of order 1, the vectors too


@pytest.mark.parametrize(("first", "second"), list(itertools.product(METHODS, METHODS))[::4])
def test_d6_two_active_adapters_merge_to_what_the_forward_computes(first: str, second: str) -> None:
    """Elsewhere merge folds in the opposite order, or the second additive adapter sees the first one's output."""
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, METHODS[first], targets=["0"], name="first", generator=generator(1))
    adapters.attach(model, METHODS[second], targets=["0"], name="second", generator=generator(2))
    perturb(model)
    for order in (("first", "second"), ("second", "first")):
        adapters.activate(model, order)
        forward = model(x)
        adapters.merge(model)
        assert relative(model(x), forward) < 1e-13
        adapters.unmerge(model)
    base = model[0].base(x)
    parts = []
    for name in ("first", "second"):
        adapters.activate(model, name)
        parts.append(model(x) - base)
    if first not in ROTATIONS and second not in ROTATIONS:
        assert relative(forward, base + parts[0] + parts[1]) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_d7_a_mixed_batch_gives_each_row_its_own_adapter(method: str) -> None:
    """Elsewhere names per row are silently ignored for all structured methods."""
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, METHODS[method], targets=["0"], name="a", generator=generator(1))
    adapters.attach(model, METHODS[method], targets=["0"], name="b", generator=generator(2))
    perturb(model)
    expected = [model[0].base(x[0])]
    for row, name in ((1, "a"), (2, "b")):
        adapters.activate(model, name)
        expected.append(model(x[row]))
    with adapters.rows(model, ["base", "a", "b"]):
        mixed = model(x)
    for row in range(3):
        assert relative(mixed[row], expected[row]) < 1e-13
    assert relative(mixed[1], mixed[2]) > 0.05


@pytest.mark.parametrize("rank", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [16, 257])
def test_d18_odd_rank_starts_at_the_identity(rank: int, size: int) -> None:
    """Elsewhere odd rank starts at a reflection, with a warning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, 9))
    x = torch.randn(16, size)
    before = model(x)
    adapters.attach(model, adapters.HRA(rank), targets=["0"], generator=generator())
    assert relative(model(x), before) <= 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("method", "base"),
    [(m, torch.float32) for m in METHODS if "HRA" in m] + [("HRA-odd", torch.bfloat16)],
)
def test_orthogonal_after_a_thousand_steps(method: str, base: torch.dtype) -> None:
    """AdamW, rate 1e-2, weight decay 0.1: within 8 eps (1 + sqrt(reflectors)) of float32, also on a bfloat16 base."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).to(base)
    chosen = METHODS[method]
    adapters.attach(model, chosen, targets=["0"], generator=generator())
    x, y = torch.randn(32, 16).to(base), torch.randn(32, 8).to(base)
    optimizer = torch.optim.AdamW(adapters.trainable_parameters(model), lr=1e-2, weight_decay=0.1)
    start = model[0].adapters["default"].vectors.detach().clone()
    for _ in range(1000):
        optimizer.zero_grad()
        (model(x) - y).float().square().mean().backward()
        optimizer.step()
    slot = model[0].adapters["default"]
    assert relative(slot.vectors, start) > 0.1
    rotation = chosen.rotation(slot.state())
    reflectors = rotation.vectors.shape[-2]
    limit = 8 * torch.finfo(torch.float32).eps * (1 + reflectors**0.5)
    assert float(sm.checks.orthogonality_error(rotation)) <= limit


def test_the_conversion_of_reflections_to_low_rank_is_lossless() -> None:
    """Elsewhere there is none; W (H - I) has rank at most r."""
    model = make_model("square", torch.float32)
    x = make_input("square", torch.float32)
    adapters.attach(model, adapters.HRA(4), targets=["0"], generator=generator())
    perturb(model)
    before = model(x)
    report = adapters.to_lora(model, rank=4)
    assert report.error < 1e-14
    assert adapters.inspect(model).active == (("lora", 1.0),)
    assert relative(model(x), before) < 1e-5
    adapters.activate(model, "default")
    assert torch.equal(model(x), before)
