"""The operators ``torch.ops.structmat.*``: what torch asks of an operator, derivatives of every kind, compilers.

Numbers are float64, which only the interpreter is given; each transform is compared by value with plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import operators
from structmat.functional.butterfly import cached_chain
from structmat.functional.butterfly_apply import kept_rows, program_of
from structmat.functional.householder import rotate_rows
from structmat.functional.launched import block_diagonal, block_diagonal_gradient
from structmat.functional.orthogonal import cayley, skew

F64 = torch.float64
Tensors = tuple[torch.Tensor, ...]


def numbers(*shape: int, grad: bool = False, seed: int = 0) -> torch.Tensor:
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed), dtype=F64)
    return found.requires_grad_(grad)


LINKS = cached_chain((2, 3, 2), ((1,), (2,)), (2, 2))
PROGRAM = program_of(LINKS, (1, 2))
SINGLE = program_of(cached_chain((4, 3), ((1,),), (2,)), (1,))


def passes(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two passes, on the middle digit (lanes 2) and on neighbours, output digits turned."""
    return kept_rows(x, (first, second), PROGRAM, (2, 0, 1), torch.promote_types(x.dtype, first.dtype))


def one_pass(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return kept_rows(x, (w,), SINGLE, None, x.dtype)


OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor], tuple[tuple[int, ...], ...]]] = {
    "cayley": (lambda lower: cayley(skew(lower, 3)), ((2, 3),)),
    "one pass": (one_pass, ((3, 12), (4, 2, 3))),
    "two passes": (passes, ((3, 12), (4, 2, 3), (4, 2, 2))),
    "householder": (rotate_rows, ((4, 9), (3, 9))),
}
every = pytest.mark.parametrize("name", OPERATIONS)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def given(name: str, *, grad: bool = False) -> tuple[Callable[..., torch.Tensor], Tensors]:
    run, shapes = OPERATIONS[name]
    return run, tuple(numbers(*shape, grad=grad) for shape in shapes)


def cubes(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *v: run(*v).pow(3).sum()


def same(transform: Callable[[Callable[..., torch.Tensor]], Callable[..., Any]], run: Any, values: Tensors) -> None:
    """The transform of the operation by kernels and by plain torch, by value."""
    with backend.use_backend("reference"):
        wanted = transform(run)(*values)
    torch._dynamo.reset()
    with backend.use_backend("triton"):
        found = transform(run)(*values)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def operator_cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    k = numbers(2, 3, 3)
    k = k - k.mT
    x, w, g = numbers(4, 12), numbers(4, 2, 3), numbers(4, 8)
    v, rows = numbers(3, 9), numbers(4, 9)
    _, weights, t = operators.householder(rows, v)
    grad = [z.requires_grad_() for z in (k, x, w, g, v, rows)]
    k, x, w, g, v, rows = grad
    m = operators.cayley(k.detach())[1]
    cases: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "cayley": (operators.cayley, (k,)),
        "cayley_gradient": (operators.cayley_gradient, (k, m, numbers(2, 3, 3, grad=True, seed=1))),
        "householder": (operators.householder, (rows, v)),
    }
    for lanes in (1, 2):
        cases[f"block_diagonal, lanes {lanes}"] = (operators.block_diagonal, (x, w, lanes))
        cases[f"block_diagonal_gradient, lanes {lanes}"] = (operators.block_diagonal_gradient, (x, g, w, lanes))
    for both in (True, False):
        arguments = (rows, v, t, weights, numbers(4, 9, grad=True, seed=1), both)
        cases[f"householder_gradient, both {both}"] = (operators.householder_gradient, arguments)
    return cases


@pytest.mark.parametrize("name", operator_cases())
def test_opcheck(name: str) -> None:
    """Schema, registration of the derivative, strides and dtypes of the fake, and compilation with symbols as sizes."""
    operator, arguments = operator_cases()[name]
    done = torch.library.opcheck(operator, arguments)
    assert set(done.values()) == {"SUCCESS"} and len(done) == 4


@pytest.mark.parametrize("name", operator_cases())
def test_autocast_stays_outside(name: str) -> None:
    operator, arguments = operator_cases()[name]
    single = tuple(v.detach().float() if isinstance(v, torch.Tensor) else v for v in arguments)
    wanted = operator(*single)
    with torch.autocast("cpu", torch.bfloat16):
        found = operator(*single)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", operator_cases())
def test_the_formula_where_no_kernel_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an exported program computes on a machine without triton: same numbers, strides and dtypes."""
    operator, arguments = operator_cases()[name]
    wanted = operator(*arguments)
    monkeypatch.setattr(backend, "_configurations", lambda *given: None)
    found = operator(*arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    assert all(a.stride() == b.stride() and a.is_contiguous() for a, b in pairs)


@every
def test_gradcheck_in_every_mode(name: str) -> None:
    """Reverse, forward, batched; second order reverse over reverse, forward over reverse, batched."""
    run, values = given(name, grad=True)
    with backend.use_backend("triton"):
        fast = {"fast_mode": True, "check_batched_grad": True}
        assert torch.autograd.gradcheck(run, values, check_forward_ad=True, **fast)
        assert torch.autograd.gradgradcheck(run, values, check_fwd_over_rev=True, **fast)


@every
def test_transforms_of_torch_func(name: str) -> None:
    run, values = given(name)
    tangents = tuple(numbers(*v.shape, seed=5) for v in values)
    places = tuple(range(len(values)))
    same(lambda f: torch.func.grad(cubes(f), argnums=places), run, values)
    same(lambda f: lambda *v: torch.func.jvp(f, v, tangents), run, values)
    same(lambda f: torch.func.hessian(cubes(f)), run, values)
    same(lambda f: torch.func.jacrev(torch.func.jacrev(cubes(f))), run, values)
    with backend.use_backend("triton"), pytest.raises(sm.BackendError, match="a jvp inside a jvp"):
        torch.func.jacfwd(torch.func.jacfwd(cubes(run)))(*values)


@every
def test_vmap_over_any_argument(name: str) -> None:
    run, values = given(name)
    places = range(len(values))
    masks = [tuple(k == j for j in places) for k in places] + [(True,) * len(values)]
    for mask in masks:
        dims = tuple(1 if one else None for one in mask)
        stacked = tuple(torch.stack([v, 2 * v, v + 1], 1) if one else v for v, one in zip(values, mask, strict=True))
        same(lambda f, dims=dims: torch.func.vmap(f, in_dims=dims), run, stacked)
        same(lambda f, dims=dims: torch.func.vmap(torch.func.grad(cubes(f), tuple(places)), in_dims=dims), run, stacked)


def compiled(run: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
    return torch.compile(run, fullgraph=True, backend="aot_eager", **options)


@every
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_value(name: str, dynamic: bool) -> None:
    """Value and gradients through operators in the graph; and again for another number of rows."""
    run, values = given(name, grad=True)

    def both(f: Callable[..., torch.Tensor]) -> Callable[..., Tensors]:
        traced = compiled(f, dynamic=dynamic)

        def called(*v: torch.Tensor) -> Tensors:
            found: list[torch.Tensor] = []
            for x in (v[0], torch.cat((v[0], v[0]))):
                y = traced(x, *v[1:])
                found += [y, *torch.autograd.grad(y.pow(3).sum(), v)]
            return tuple(found)

        return called

    same(both, run, values)


@every
def test_compiled_transforms_see_the_formula(name: str) -> None:
    """grad, jvp and vmap of torch.func inside torch.compile: torch cannot derive an operator there."""
    run, values = given(name)
    tangents = tuple(numbers(*v.shape, seed=5) for v in values)
    same(lambda f: compiled(torch.func.grad(cubes(f), argnums=tuple(range(len(values))))), run, values)
    same(lambda f: compiled(lambda *v: torch.func.jvp(f, v, tangents)[1]), run, values)
    same(lambda f: compiled(torch.func.vmap(f)), run, tuple(torch.stack([v, -v]) for v in values))


@every
def test_the_graph_holds_operators_on_demand_only(name: str) -> None:
    """A change of the mode compiles anew; without a kernel the compiler sees plain torch."""
    run, values = given(name)
    graphs: list[str] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(module.graph))
        return module

    traced = torch.compile(run, fullgraph=True, backend=keep)
    wanted = traced(*values)
    assert len(graphs) == 1 and "structmat" not in graphs[0]
    with backend.use_backend("triton"):
        torch.testing.assert_close(traced(*values), wanted, rtol=1e-12, atol=1e-12)
    assert len(graphs) == 2 and "torch.ops.structmat" in graphs[1]
    traced(*values)
    assert len(graphs) == 2


@every
def test_export(name: str) -> None:
    """Any number of rows; the program computes without kernels too."""
    run, values = given(name)

    class Layer(torch.nn.Module):
        def forward(self, *v: torch.Tensor) -> torch.Tensor:
            return run(*v)

    rows = torch.export.Dim("rows", min=2, max=1000)
    moving = tuple({0: rows} if k == 0 else None for k in range(len(values)))
    with backend.use_backend("triton"):
        program = torch.export.export(Layer(), values, dynamic_shapes=(moving,))
    assert "structmat." in str(program.graph)
    more = (torch.cat((values[0], 2 * values[0])), *values[1:])
    torch.testing.assert_close(program.module()(*more), run(*more), rtol=1e-12, atol=1e-12)


def test_refusals_while_compiling() -> None:
    """On demand of "triton", what no kernel serves raises the reason; inside a graph too."""
    with backend.use_backend("triton"), pytest.raises(Exception, match="no configuration for size 65"):
        compiled(lambda lower: cayley(skew(lower, 65)))(numbers(1, 65 * 32))


def test_autocast_of_a_training_step() -> None:
    """Inside autocast the operation keeps its dtypes, forward and backward, eager and compiled."""
    x, v = numbers(4, 9).float().requires_grad_(), numbers(3, 9).float().requires_grad_()
    wanted = torch.autograd.grad(rotate_rows(x, v).pow(3).sum(), (x, v))
    with backend.use_backend("triton"):
        for f in (rotate_rows, compiled(rotate_rows)):
            with torch.autocast("cpu", torch.bfloat16):
                y = f(x, v)
                assert y.dtype == torch.float32
                found = torch.autograd.grad(y.pow(3).sum(), (x, v))
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_pair_of_block_operators_is_closed() -> None:
    """Third order, through the same two operators alone."""
    x, g, w = numbers(4, 12, grad=True), numbers(4, 8, grad=True), numbers(4, 2, 3, grad=True)
    for lanes in (1, 2):
        assert torch.autograd.gradgradcheck(lambda *v, s=lanes: block_diagonal(*v, s), (x, w), fast_mode=True)
        assert torch.autograd.gradgradcheck(
            lambda *v, s=lanes: block_diagonal_gradient(*v, s), (x, g, w), fast_mode=True
        )
