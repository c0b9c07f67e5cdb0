"""Reflections in panels: more than a kernel applies at once, and where many vectors crowd a small space."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import householder as fh
from structmat.kernels import householder
from tests.kernels.test_launchers import F64, numbers


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of reflections of each launch over the rows, forward and backward."""
    seen: list[int] = []
    run = householder.apply

    def noted(x: Any, v: Any, *rest: Any) -> Any:
        seen.append(v.shape[0])
        return run(x, v, *rest)

    monkeypatch.setattr(householder, "apply", noted)
    return seen


@pytest.mark.parametrize(
    ("r", "n", "panels"), [(70, 1040, [6, 64]), (128, 1040, [64, 64]), (130, 1040, [2, 64, 64]), (7, 9, [1, 3, 3])]
)
def test_panels(r: int, n: int, panels: list[int], launched: list[int]) -> None:
    """Values and gradients of plain torch; the last panel comes first, and its gradient last."""
    x, v = numbers(3, n, dtype=F64).requires_grad_(), numbers(r, n, dtype=F64).requires_grad_()
    weights = torch.linspace(-1, 2, n, dtype=F64)

    def run() -> tuple[torch.Tensor, ...]:
        y = fh.rotate_rows(x, v)
        return y, *torch.autograd.grad((y * weights).square().sum(), (x, v))

    wanted = run()
    assert not launched
    with backend.use_backend("triton"):
        found = run()
    assert launched == panels + panels[::-1]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11 * float(b.detach().abs().max()))


def test_derivatives_of_second_order() -> None:
    x, v = numbers(2, 9, dtype=F64).requires_grad_(), numbers(5, 9, dtype=F64).requires_grad_()
    with backend.use_backend("triton"):
        assert torch.autograd.gradgradcheck(fh.rotate_rows, (x, v), fast_mode=True)


def test_explain_asks_for_each_size_of_panel() -> None:
    assert fh.panel_sizes(130, 4096) == (64, 2) and fh.panel_sizes(128, 4096) == (64,)
    assert fh.panel_sizes(3, 4096) == (3,) and fh.panel_sizes(0, 4) == (0,)
    a = sm.HouseholderProduct(numbers(70, 1040, dtype=torch.float32))
    with backend.use_backend("triton"):
        plan = backend.explain(a, numbers(3, 1040, dtype=torch.float32))
    shapes = (((3, 1040), (64, 1040)), ((3, 1040), (6, 1040)))
    assert plan.operations == tuple(("householder_product", s) for s in shapes) and plan.implementation == "triton"
