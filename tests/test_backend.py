"""Which implementation serves a call: modes, demands that cannot be met, the dense limit, plans."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.testing.examples import EXAMPLES

F64 = torch.float64


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


KERNELS: dict[str, Callable[[], sm.Matrix]] = {
    "circulant": lambda: sm.Circulant(_numbers(8)),
    "folded": lambda: sm.Circulant(_numbers(17)),
    "toeplitz": lambda: sm.Toeplitz(_numbers(15), 8),
    "symmetric": lambda: sm.SymmetricToeplitz(_numbers(8)),
    "householder": lambda: sm.HouseholderProduct(_numbers(3, 8)),
    "householder blocks": lambda: sm.HouseholderProduct(_numbers(130, 8)),
    "householder batch": lambda: sm.HouseholderProduct(_numbers(2, 3, 8)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("rows", [1, 64])
def test_triton_on_demand_raises_on_every_path(name: str, rows: int) -> None:
    """Few rows and many take different paths; none may fall back silently."""
    a = KERNELS[name]()
    x = _numbers(rows, int(a.shape[-1]))
    with (
        backend.use_backend("triton"),
        pytest.raises(sm.BackendError, match=r"(no Triton kernel|not float64).*use_backend\(\"auto\"\)"),
    ):
        a.linear(x)
    with backend.use_backend("reference"):
        assert torch.equal(a.linear(x), a.linear(x))


def test_modes_nest_and_are_restored_after_an_error() -> None:
    a, x = KERNELS["circulant"](), _numbers(8)

    def fail() -> None:
        with backend.use_backend("triton"):
            with backend.use_backend("reference"):
                a.linear(x)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    a.linear(x)


def test_the_threads_of_autograd_know_the_mode() -> None:
    """On a GPU they run the backward pass, with no context variable and with a copy of torch's own state: an empty
    context is the same."""
    for mode in ("triton", "reference"):
        with backend.use_backend(mode):
            assert contextvars.Context().run(backend._now) == mode
    assert contextvars.Context().run(backend._now) == backend._now() == backend._DEFAULT


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_every_matrix_explains_its_product(example: Any) -> None:
    """A path and a reason; work that grows with the number of rows where it is known."""
    a = example.build()
    n = int(a.shape[-1])
    plan = backend.explain(a, _numbers(4, n))
    assert isinstance(plan, backend.Plan) and plan.path and plan.reason and plan.path in str(plan)
    once = backend.explain(a, _numbers(n))
    for many, one in ((plan.flops, once.flops), (plan.bytes, once.bytes)) if plan.path == once.path else ():
        assert (many is None) == (one is None) and (many is None or many >= one >= 0)
    if a.shape[-1] == a.shape[-2]:
        assert backend.explain("solve", a, _numbers(n)).path


def test_formed_products_are_explained() -> None:
    """Where the entries are formed because that is cheaper, explain says so (rule 8)."""
    a = sm.Toeplitz(_numbers(15), 8)
    assert backend.explain(a, _numbers(2, 8)).path == "fft"
    formed = backend.explain(a, _numbers(64, 8))
    assert formed.path != "fft" and "form" in f"{formed.path} {formed.reason}"


@pytest.mark.parametrize("verb", ["solve", "slogdet"])
def test_structured_solves_do_not_trace_and_say_so(verb: str) -> None:
    """Above the dense limit the traced graph would have to form n^2 numbers: refused, with the way out."""
    n = 300
    t = _numbers(2 * n - 1) / n + 3 * torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1)
    act: Any = {
        "solve": lambda t, b: sm.Toeplitz(t, n).solve(b),
        "slogdet": lambda t, b: sm.Toeplitz(t, n).slogdet()[1],
    }[verb]
    torch._dynamo.reset()
    with pytest.raises(
        Exception, match=rf"{verb} under torch.compile: above the dense limit 256 the structured methods look at values"
    ):
        torch.compile(act, fullgraph=True, backend="aot_eager")(t, _numbers(n))
    dense = torch.compile(lambda t, b: sm.Toeplitz(t, n).solve(b, method="dense"), fullgraph=True, backend="aot_eager")
    found, wanted = dense(t, _numbers(n)), sm.Toeplitz(t, n).solve(_numbers(n))
    # condition number below 10, backward error 100 eps
    assert float((found - wanted).norm()) <= 1e3 * torch.finfo(F64).eps * float(wanted.norm() + _numbers(n).norm())


def test_dense_limits() -> None:
    assert backend.dense_limit("cpu") == 256 and backend.dense_limit(torch.device("cuda")) == 256
