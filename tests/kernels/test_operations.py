"""The operations served by kernels: the numbers and the derivatives of plain torch, and refusals with a reason."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint

import structmat as sm
from structmat import backend
from structmat.functional.butterfly import cached_chain
from structmat.functional.butterfly_apply import kept_rows, program_of
from structmat.functional.householder import rotate_rows
from structmat.functional.orthogonal import cayley, skew
from structmat.kernels import blockdiag, householder, strided
from structmat.kernels import cayley as cayley_kernel

F64 = torch.float64


def numbers(*shape: int, dtype: torch.dtype = F64, grad: bool = True) -> torch.Tensor:
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=F64).to(dtype)
    return found.requires_grad_(grad)


def loss(y: torch.Tensor) -> torch.Tensor:
    """Of no rotation's invariants: the norm of a rotated row has no gradient."""
    return (y * torch.linspace(-1, 2, y.shape[-1], dtype=y.dtype)).double().square().sum()


def passes(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two passes over digits (4, 3, 2): the middle one (lanes 2), then the last (neighbours), output digits turned."""
    links = cached_chain((4, 3, 2), ((1,), (2,)), (5, 2))
    return kept_rows(
        x, (first, second), program_of(links, (1, 2)), (2, 0, 1), torch.promote_types(x.dtype, first.dtype)
    )


OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor], tuple[tuple[int, ...], ...], str]] = {
    "cayley": (lambda lower: cayley(skew(lower, 3)), ((2, 3),), "cayley"),
    "butterfly": (passes, ((3, 24), (8, 5, 3), (20, 2, 2)), "blockdiag strided"),
    "householder": (rotate_rows, ((4, 9), (3, 9)), "householder"),
}


def noting(run: Callable[..., Any], name: str, seen: set[str]) -> Callable[..., Any]:
    def noted(*given: Any) -> Any:
        seen.add(name)
        return run(*given)

    return noted


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules whose forward launchers ran."""
    seen: set[str] = set()
    launchers = ((blockdiag, "forward"), (cayley_kernel, "forward"), (householder, "apply"), (strided, "forward"))
    for module, name in launchers:
        monkeypatch.setattr(module, name, noting(getattr(module, name), module.__name__.rsplit(".", 1)[1], seen))
    return seen


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_numbers_of_plain_torch(name: str, launched: set[str]) -> None:
    """float64, which only the interpreter is given: values, gradients (other derivatives: ``test_operators``)."""
    run, shapes, modules = OPERATIONS[name]
    given = tuple(numbers(*shape) for shape in shapes)
    wanted = run(*given)
    assert not launched
    with backend.use_backend("triton"):
        found = run(*given)
        assert launched == set(modules.split())
        eager = torch.autograd.grad(loss(found), given)
    for a, b in zip((found, *eager), (wanted, *torch.autograd.grad(loss(wanted), given)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_computes_again_what_it_did(launched: set[str]) -> None:
    """In a thread of autograd on a GPU, which has no context variable; here in an empty context."""
    run, shapes, _ = OPERATIONS["householder"]
    given = tuple(numbers(*shape) for shape in shapes)
    wanted = torch.autograd.grad(loss(run(*given)), given)
    with backend.use_backend("triton"):
        found = loss(torch.utils.checkpoint.checkpoint(run, *given, use_reentrant=False))
        launched.clear()
        grads = contextvars.Context().run(torch.autograd.grad, found, given)
    assert launched == {"householder"}
    for a, b in zip(grads, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["butterfly", "householder"])
def test_half_in_and_out(name: str, dtype: torch.dtype) -> None:
    run, shapes, _ = OPERATIONS[name]
    given = tuple(numbers(*shape, dtype=dtype) for shape in shapes)
    with backend.use_backend("triton"):
        found = run(*given)
        grads = torch.autograd.grad(loss(found), given)
    exact = tuple(v.detach().double().requires_grad_() for v in given)
    wanted = run(*exact)
    for a, b in zip((found, *grads), (wanted, *torch.autograd.grad(loss(wanted), exact)), strict=True):
        # Two roundings a pass, forward, backward and in the loss: 10 of them, of the largest entry at most.
        assert a.dtype == dtype and float((a - b).detach().abs().max()) <= 10 * torch.finfo(dtype).eps * float(
            b.detach().abs().max()
        )


def test_what_no_kernel_serves_is_refused_with_the_reason() -> None:
    with backend.use_backend("triton"):
        with pytest.raises(sm.BackendError, match="no configuration for size 65"):
            cayley(skew(numbers(1, 65 * 32, grad=False), 65))
        with pytest.raises(sm.BackendError, match="complex128"):
            cayley(1j * numbers(1, 2, 2, grad=False))
        with pytest.raises(sm.BackendError, match="holds no Triton kernel"):
            rotate_rows(numbers(2, 9, grad=False), numbers(2, 3, 9, grad=False))
    with backend.use_backend("reference"):
        assert cayley(skew(numbers(1, 65 * 32, grad=False), 65)).shape == (1, 65, 65)


def test_an_adapter_of_one_merged_span() -> None:
    """BOFT's factors for many rows are one block-diagonal pass."""
    a = sm.OrthogonalButterfly(numbers(2, 4, 6, grad=False))
    x = numbers(2048, 16, grad=False)
    with backend.use_backend("triton"):
        found = a.linear(x)
    assert torch.allclose(found, a.linear(x), rtol=1e-12, atol=1e-12)
