"""``torch.func``: vmap, grad, jvp, jacrev and their compositions over matrices, each compared by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from structmat import nn
from structmat.testing import conformance
from structmat.testing.conformance import Case
from structmat.testing.examples import EXAMPLES, Example
from tests.cases import DOUBLE, build, over_examples, pairs

EPS = torch.finfo(torch.float64).eps
_FLOATING = [e for e in EXAMPLES if e.smooth and any(t.numel() for t in e.build().tensors())]
VERBS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "solve": lambda a, b: a.solve(b, check=False),
    "inv": lambda a, b: a.inv() @ b,
    "slogdet": lambda a, b: a.slogdet()[1],
    "sign": lambda a, b: a.slogdet()[0],
    "diagonal": lambda a, b: a.diagonal(),
    "norm": lambda a, b: a.norm(),
    "dense": lambda a, b: a.to_dense(),
    "rows": lambda a, b: a.linear(b.mT),
    "sum": lambda a, b: (a + 2 * a) @ b,
    "gram": lambda a, b: (a.mH @ a) @ b,
}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


@over_examples(lambda e: e.smooth, DOUBLE)
def test_grad_jvp_vmap_of_products(case: Case) -> None:
    conformance.check_transforms(case)


def close(a: torch.Tensor, b: torch.Tensor, factor: float = 1e3) -> None:
    """The same numbers by two orders of evaluation: condition numbers below 100, sizes below 20, so 1e3 eps of the
    size."""
    assert a.shape == b.shape
    size = 1 + float(b.abs().max()) if b.numel() else 1.0
    assert float((a - b).abs().max() if b.numel() else 0) <= factor * 20 * EPS * size


@pairs(VERBS, [e for e in _FLOATING if e.solvable], every=3)
def test_vmap_of_verbs_equals_the_loop(example: Example, verb: str) -> None:
    """Over matrices and right-hand sides at once, and over right-hand sides alone."""
    first, second = (example.build(torch.float64, seed=s) for s in (4, 5))
    tensors, rebuild = nn.split(first)
    others, _ = nn.split(second)
    stacked = tuple(torch.stack(pair) for pair in zip(tensors, others, strict=True))
    b = torch.randn(2, int(first.shape[-1]), 3, dtype=first.dtype)
    apply = VERBS[verb]
    if example.name == "inverse-toeplitz-prepared":  # its pivots are integers, which split leaves behind
        stacked, second = tuple(torch.stack((t, t)) for t in tensors), first
    wanted = torch.stack([apply(first, b[0]), apply(second, b[1])])
    close(torch.func.vmap(lambda t, v: apply(rebuild(t), v))(stacked, b), wanted)
    alone = torch.func.vmap(lambda v: apply(first, v))(b)
    close(alone, torch.stack([apply(first, v) for v in b]))


@pairs(VERBS, [e for e in _FLOATING if e.solvable], every=3)
def test_jvp_and_jacrev_of_verbs_agree(example: Example, verb: str) -> None:
    """Forward mode against reverse mode, by value: a jvp that is silently zero fails here."""
    matrix = example.build(torch.float64, seed=6)
    tensors, rebuild = nn.split(matrix)
    b = torch.randn(int(matrix.shape[-1]), 2, dtype=matrix.dtype)

    def value(*leaves: torch.Tensor) -> torch.Tensor:
        y = VERBS[verb](rebuild(leaves), b)
        return torch.view_as_real(y) if y.is_complex() else y

    moved = tuple(torch.randn_like(t) for t in tensors)
    primal, rate = torch.func.jvp(value, tensors, moved)
    close(primal, value(*tensors))
    if any(t.is_complex() for t in tensors):
        direction = torch.randn_like(primal)
        _, pull = torch.func.vjp(value, *tensors)
        by_reverse = sum((g.conj() * d).real.sum() for g, d in zip(pull(direction), moved, strict=True))
        close((rate * direction).sum(), torch.as_tensor(by_reverse), 1e5)
        return
    jacobians = torch.func.jacrev(value, argnums=tuple(range(len(tensors))))(*tensors)
    by_reverse = sum(
        (j.reshape(*primal.shape, -1) @ d.flatten() for j, d in zip(jacobians, moved, strict=True)),
        torch.zeros_like(primal),
    )
    close(rate, by_reverse, 1e5)  # derivatives of solves carry the condition number squared


@pytest.mark.parametrize("example", _FLOATING[::2], ids=lambda e: e.name)
def test_per_sample_gradients(example: Example) -> None:
    """vmap of grad equals the loop over samples."""
    matrix = example.build(torch.float64, seed=7)
    tensors, rebuild = nn.split(matrix)
    x = torch.randn(3, int(matrix.shape[-1]), dtype=matrix.dtype)

    def loss(leaves: Any, row: torch.Tensor) -> torch.Tensor:
        y = rebuild(leaves).linear(row)
        return (torch.view_as_real(y) if y.is_complex() else y).cos().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensors, x)
    for k, t in enumerate(tensors):
        wanted = torch.stack([torch.func.grad(loss)(tensors, row)[k] for row in x])
        assert wanted.shape[1:] == t.shape
        close(found[k], wanted)


@pytest.mark.parametrize(
    "example", [e for e in _FLOATING if not e.name.startswith("prepared")][::2], ids=lambda e: e.name
)
def test_hessians_by_both_orders(example: Example) -> None:
    """Forward over reverse equals reverse over reverse, along one direction."""
    matrix = example.build(torch.float64, seed=8)
    tensors, rebuild = nn.split(matrix)
    x = torch.randn(2, int(matrix.shape[-1]), dtype=matrix.dtype)

    def loss(leaves: Any) -> torch.Tensor:
        y = rebuild(leaves).linear(x)
        return (torch.view_as_real(y) if y.is_complex() else y).sin().sum()

    moved = tuple(torch.randn_like(t) for t in tensors)
    grad = torch.func.grad(loss)
    forward = torch.func.jvp(grad, (tensors,), (moved,))[1]

    def along(leaves: Any) -> torch.Tensor:
        return sum(((g.conj() * d).real.sum() for g, d in zip(grad(leaves), moved, strict=True)), torch.zeros(()))

    backward = torch.func.grad(along)(tensors)
    for f, b in zip(forward, backward, strict=True):
        close(f, b, 1e4)


@pytest.mark.parametrize("example", _FLOATING[::4], ids=lambda e: e.name)
def test_vmap_over_nothing_but_x(example: Example) -> None:
    """Two levels of vmap over x equal one product with leading axes."""
    matrix = example.build(torch.float64, seed=9)
    x = torch.randn(2, 3, int(matrix.shape[-1]), dtype=matrix.dtype)
    close(torch.func.vmap(torch.func.vmap(matrix.linear))(x), matrix.linear(x))
