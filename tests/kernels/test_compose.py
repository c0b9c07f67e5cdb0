"""Butterflies of rotations merged by kernels: every configuration against float64, then the operation they serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import launched_compose
from structmat.kernels import compose
from structmat.kernels.configs import TABLE, Config
from tests.kernels.test_launchers import EPS, F64, every, numbers


def factor(r: torch.Tensor, bit: int) -> torch.Tensor:
    """One factor as a dense matrix, by the definition: its blocks couple groups a and ``a XOR 2^bit``."""
    m, blocks, b, _ = r.shape
    d, h = blocks * b, b if m == 1 else b // 2
    dense = torch.zeros(d, d, dtype=r.dtype)
    lower = list(range(blocks)) if m == 1 else [a for a in range(d // h) if not a >> bit & 1]
    for block, a in zip(r[bit], lower, strict=True):
        groups = (a,) if m == 1 else (a, a ^ 1 << bit)
        index = torch.cat([torch.arange(g * h, (g + 1) * h) for g in groups])
        dense[index[:, None], index] = block
    return dense


def spans(dense: torch.Tensor, g: int) -> torch.Tensor:
    count = dense.shape[0] // g
    found = torch.stack([dense[k * g : (k + 1) * g, k * g : (k + 1) * g] for k in range(count)])
    assert torch.equal(torch.block_diag(*found), dense)
    return found


def product(r: torch.Tensor, reverse: bool) -> torch.Tensor:
    m, _, b, _ = r.shape
    found = torch.eye(r.shape[1] * b, dtype=r.dtype)
    for bit in reversed(range(m)) if reverse else range(m):
        found = factor(r, bit) @ found
    return spans(found, b << (m - 1))


def sizes(g: int) -> list[tuple[int, int]]:
    """(b, m) of spans that use this line: blocks of 4, of a size that is no power of two, and in the smallest span one
    odd factor. Small blocks, because the interpreter spends a millisecond on each entry of a block's row."""
    found = [(4, g.bit_length() - 2), (6, g.bit_length() - 3)]
    return [*found, (g - 1, 1), (2, 4)] if g == 16 else found


@every("compose_walk")
@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_of_spans(config: Config, dtype: torch.dtype, reverse: bool) -> None:
    pairs = next(c for c in TABLE if c.kernel == "compose_pairs" and c.size == config.size)
    chosen = sizes(config.size)
    for b, m in chosen if config.size < 64 else chosen[reverse : reverse + 1]:
        count = 2 * 2 ** (m - 1)
        r = (numbers(m, count, b, b, dtype=dtype) / b**0.5).contiguous()
        gc = numbers(2, b << (m - 1), b << (m - 1), dtype=dtype, turned=True)
        c, slots = compose.forward(r, reverse, config)
        wide = r.to(F64).requires_grad_()
        wanted, size = product(wide, reverse), product(r.to(F64).abs(), reverse)
        assert bool(((c.to(F64) - wanted).abs() <= (m * b + 4) * EPS * size).all()), (b, m)
        exact = torch.autograd.grad(wanted, wide, gc.to(F64))[0]
        moduli = r.to(F64).abs().requires_grad_()
        (size,) = torch.autograd.grad(product(moduli, reverse), moduli, gc.to(F64).abs())
        found = compose.backward(gc, r, slots, reverse, config, pairs)
        assert bool(((found.to(F64) - exact).abs() <= (m * b + (b << m) + 4) * EPS * size).all()), (b, m)
        assert torch.equal(found, compose.backward(gc, r, slots, reverse, config, pairs))


# -- the operation -------------------------------------------------------------------------------------------------


def rotations(m: int = 3, count: int = 8, b: int = 4) -> torch.Tensor:
    return numbers(m, count, b, b, dtype=F64).contiguous().requires_grad_()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 2, 3), (2, 2, 4)])
def test_derivatives(shape: tuple[int, int, int], reverse: bool) -> None:
    """First and second order, reverse and forward, and batched; float64 is what only the interpreter is given."""
    r = rotations(*shape)

    def run(r: torch.Tensor) -> torch.Tensor:
        found = launched_compose.composed(r, reverse)
        assert found is not None
        return found

    with backend.use_backend("triton"):
        assert torch.allclose(run(r), product(r, reverse), rtol=1e-12, atol=1e-12)
        options: dict[str, Any] = {"fast_mode": True, "check_forward_ad": True, "check_batched_grad": True}
        assert torch.autograd.gradcheck(run, r, **options)
        assert torch.autograd.gradgradcheck(run, r, fast_mode=True, check_fwd_over_rev=True)


def test_the_formula_is_the_kernel() -> None:
    """Values and tangents of the formulas, which derivatives of second order are made of."""
    r, gc = rotations().detach(), numbers(2, 16, 16, dtype=F64)
    dr, dgc = numbers(3, 8, 4, 4, dtype=F64), numbers(2, 16, 16, dtype=F64, turned=True)
    for reverse in (False, True):
        c, slots = compose.forward(r, reverse)
        order = launched_compose._order(3, reverse)
        walked = launched_compose._walked(r, launched_compose._eye(r), order, False)
        assert torch.allclose(c, walked[-1], rtol=1e-12, atol=1e-12)
        assert torch.allclose(slots, torch.stack(walked[:-1]), rtol=1e-12, atol=1e-12)
        gradient = launched_compose._gradient(gc, r, reverse)
        assert torch.allclose(compose.backward(gc, r, slots, reverse), gradient, rtol=1e-12, atol=1e-12)
        moved = launched_compose._gradient(gc, r, reverse, (dgc, dr))
        wanted = torch.func.jvp(lambda *v: launched_compose._gradient(*v, reverse), (gc, r), (dgc, dr))[1]  # noqa: B023
        assert torch.allclose(moved, wanted, rtol=1e-11, atol=1e-11)


def test_transforms() -> None:
    r = torch.stack([rotations().detach(), -2 * rotations().detach()])

    def one(r: torch.Tensor) -> torch.Tensor:
        found = launched_compose.composed(r, False)
        assert found is not None
        return found

    with backend.use_backend("triton"):
        found = torch.func.vmap(one)(r)
        grads = torch.func.vmap(torch.func.grad(lambda r: one(r).pow(3).sum()))(r)
    for k in range(2):
        assert torch.allclose(found[k], product(r[k], False), rtol=1e-12, atol=1e-12)
        leaf = r[k].clone().requires_grad_()
        (exact,) = torch.autograd.grad(product(leaf, False).pow(3).sum(), leaf)
        assert torch.allclose(grads[k], exact, rtol=1e-11, atol=1e-11)


def test_operators() -> None:
    """What torch.compile sees: schema, fake, registered derivative."""
    r, gc = rotations(2, 2, 2), numbers(1, 4, 4, dtype=F64).requires_grad_()
    for reverse in (False, True):
        torch.library.opcheck(torch.ops.structmat.compose.default, (r, reverse))
        slots = compose.forward(r.detach(), reverse)[1]
        torch.library.opcheck(torch.ops.structmat.compose_gradient.default, (gc, r, slots, reverse))
    with backend.use_backend("triton"):
        run = torch.compile(lambda r: launched_compose.composed(r, False), fullgraph=True, backend="aot_eager")
        assert torch.allclose(run(r), product(r, False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_type_composes_when_all_factors_merge(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and the gradient of the parameters, against plain torch; few rows go factor by factor."""
    seen: list[str] = []
    for module, name in ((compose, "forward"), (compose, "backward")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, run=run, name=name: (seen.append(name), run(*a))[1])
    skew = numbers(2, 4, 6, dtype=F64).requires_grad_()
    x = numbers(2048, 16, dtype=F64)
    weights = torch.linspace(-1, 2, 16, dtype=F64)

    def loss() -> torch.Tensor:
        a = sm.OrthogonalButterfly(skew, reverse)
        return (a.linear(x) * weights).square().sum()

    wanted = loss()
    (exact,) = torch.autograd.grad(wanted, skew)
    assert not seen
    with backend.use_backend("triton"):
        found = loss()
        (grad,) = torch.autograd.grad(found, skew)
    assert seen == ["forward", "backward"]
    assert torch.allclose(found, wanted, rtol=1e-11) and torch.allclose(grad, exact, rtol=1e-9, atol=1e-9)


def test_half_precision_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in bfloat16 reach the kernel as they are."""
    seen: list[torch.dtype] = []
    launchers = backend.launchers("blockdiag")
    run = launchers.forward
    monkeypatch.setattr(launchers, "forward", lambda x, *rest: (seen.append(x.dtype), run(x, *rest))[1])
    a = sm.OrthogonalButterfly(numbers(2, 4, 6, dtype=torch.bfloat16))
    x = numbers(2048, 16, dtype=torch.bfloat16)
    with backend.use_backend("triton"):
        y = a.linear(x)
    assert seen == [torch.bfloat16] and y.dtype == torch.bfloat16
    exact = sm.OrthogonalButterfly(a.skew.double()).linear(x.double())
    # Blocks, result and (in the interpreter, which truncates) twice that; 8 entries of a span meet each.
    size = x.abs().double().reshape(-1, 2, 8).sum(-1).repeat_interleave(8, -1)
    assert bool(((y - exact).abs() <= 4 * torch.finfo(torch.bfloat16).eps * size).all())


def test_sizes_without_a_line_merge_in_plain_torch() -> None:
    r = rotations(1, 1, 130)
    with backend.use_backend("triton"):
        assert launched_compose.composed(r, False) is None
