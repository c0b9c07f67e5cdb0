"""Implicit differentiation of a solve: every mode and order against dense, whatever the solver."""

from __future__ import annotations

import pytest
import torch

import structmat as sm
from structmat.functional.implicit import implicit_solve

KINDS = {"real": torch.float64, "complex": torch.complex128}


class Dense:
    """LU of the entries, counting how often it is made."""

    made = 0

    def __init__(self, matrix: sm.Matrix | None, entries: torch.Tensor | None = None) -> None:
        if matrix is not None:
            type(self).made += 1
        self.entries = matrix.to_dense() if matrix is not None else entries

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(y.dtype, self.entries.dtype)
        return torch.linalg.solve(self.entries.to(wide), y.mT.to(wide)).mT

    def adjoint(self) -> Dense:
        return Dense(None, self.entries.mH)


def system(kind: str, batch: tuple[int, ...] = (), n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = KINDS[kind]
    t = torch.randn(*batch, 2 * n - 1, generator=generator, dtype=dtype)
    t[..., n - 1] += 4
    return t, torch.randn(*batch, 2, n, generator=generator, dtype=dtype)


def solve(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return implicit_solve(sm.Toeplitz(t, (t.shape[-1] + 1) // 2), y, Dense)


def dense_solve(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(sm.Toeplitz(t, (t.shape[-1] + 1) // 2).to_dense(), y.mT).mT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_first_and_second_derivatives(kind: str, batch: tuple[int, ...]) -> None:
    t, y = (v.requires_grad_() for v in system(kind, batch, 3))
    assert torch.autograd.gradcheck(solve, (t, y), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (t, y))


def test_a_broadcast_operand_gets_the_summed_gradient() -> None:
    t, y = system("real", (3,))
    t, y = t.requires_grad_(), y[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(solve, (t, y))
    one = t[0].detach().clone().requires_grad_()
    many = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (one, many))


def test_a_real_right_side_of_a_complex_matrix_gets_a_real_gradient() -> None:
    t, _ = system("complex")
    y = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    solve(t, y).abs().square().sum().backward()
    assert y.grad is not None
    assert y.grad.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_agree_with_dense(kind: str) -> None:
    t, y = system(kind)
    dt, dy = system(kind, seed=1)

    def loss(f, t, y):
        return f(t, y).abs().square().sum()

    for argument in (0, 1):
        mine = torch.func.grad(lambda t, y: loss(solve, t, y), argument)(t, y)
        theirs = torch.func.grad(lambda t, y: loss(dense_solve, t, y), argument)(t, y)
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(
        torch.func.jvp(solve, (t, y), (dt, dy))[1], torch.func.jvp(dense_solve, (t, y), (dt, dy))[1]
    )
    if kind == "real":
        torch.testing.assert_close(
            torch.func.hessian(lambda t: loss(solve, t, y))(t), torch.func.hessian(lambda t: loss(dense_solve, t, y))(t)
        )


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (None, 1)])
def test_vmap_over_either_operand(dims: tuple[int | None, int | None]) -> None:
    t, y = system("real", (4,))
    t, y = (t if dims[0] is not None else t[0]), (y if dims[1] is not None else y[0])
    if dims[1] == 1:
        y = y.movedim(0, 1)
    each = [
        dense_solve(t if dims[0] is None else t.select(dims[0], k), y if dims[1] is None else y.select(dims[1], k))
        for k in range(4)
    ]
    torch.testing.assert_close(torch.func.vmap(solve, dims)(t, y), torch.stack(each))


def test_per_sample_gradients() -> None:
    t, y = system("real", (3,))

    def one(f, t, y):
        return f(t, y).square().sum()

    mine = torch.func.vmap(torch.func.grad(lambda t, y: one(solve, t, y)))(t, y)
    theirs = torch.func.vmap(torch.func.grad(lambda t, y: one(dense_solve, t, y)))(t, y)
    torch.testing.assert_close(mine, theirs)


def test_the_backward_pass_factorises_nothing() -> None:
    t, y = system("real")
    t.requires_grad_()
    y.requires_grad_()
    before = Dense.made
    x = solve(t, y)
    assert Dense.made == before + 1
    (g,) = torch.autograd.grad(x.square().sum(), t, create_graph=True)
    g.square().sum().backward()
    assert Dense.made == before + 1


def test_a_known_solver_is_used_and_differentiated() -> None:
    t, y = system("real")
    known = Dense(sm.Toeplitz(t, 5))
    before = Dense.made
    t.requires_grad_()
    x = implicit_solve(sm.Toeplitz(t, 5), y, Dense, known)
    x.sum().backward()
    assert Dense.made == before
    mine, t.grad = t.grad, None
    dense_solve(t, y).sum().backward()
    torch.testing.assert_close(mine, t.grad)


def test_compiling_says_what_to_do() -> None:
    t, y = system("real")
    with pytest.raises(Exception, match=r"under torch\.compile"):
        torch.compile(solve, fullgraph=True, backend="eager")(t, y)
