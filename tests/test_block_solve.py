"""Systems with several Toeplitz levels above the dense limit: backward errors, methods, derivatives, and no array of
n^2 numbers anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import Claim
from structmat.testing.reference import dense_of
from tests.test_no_dense import N, no_dense_arrays

F64, F32, C128 = torch.float64, torch.float32, torch.complex128
EPS = torch.finfo(F64).eps
SIZES = (17, 18)  # order 306: above the dense limit, and small enough for a dense reference


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _offsets(n: int) -> torch.Tensor:
    return torch.arange(-(n - 1), n, dtype=F64)


def _separable(of: Callable[[torch.Tensor], torch.Tensor], sizes: tuple[int, int] = SIZES) -> sm.Matrix:
    matrix = sm.BlockToeplitz(torch.outer(of(_offsets(sizes[0])), of(_offsets(sizes[1]))), sizes)
    return matrix.assume(Claim.POSITIVE_DEFINITE)


def _laplacian(sizes: tuple[int, int] = SIZES) -> sm.BlockToeplitz:
    generators = torch.zeros(2 * sizes[0] - 1, 2 * sizes[1] - 1, dtype=F64)
    p, q = sizes[0] - 1, sizes[1] - 1
    generators[p, q] = 4
    for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        generators[p + i, q + j] = -1
    return sm.BlockToeplitz(generators, sizes)


def _dominant(
    sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = F64, batch: tuple[int, ...] = ()
) -> sm.BlockToeplitz:
    ends = tuple(2 * n - 1 for n in sizes)
    generators = _numbers(*batch, *ends, dtype=dtype) / math.prod(sizes) ** 0.5
    generators[(..., *(n - 1 for n in sizes))] += 4
    return sm.BlockToeplitz(generators, sizes)


def _motion(sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = F64) -> sm.ReflectedConvolution:
    kernel = _numbers(3, 4, dtype=dtype) / 8
    kernel[1, 2] += 2
    return sm.ReflectedConvolution(kernel, sizes)


FAMILIES: dict[str, Callable[[], Any]] = {
    "kms 0.5": lambda: _separable(lambda d: 0.5 ** d.abs()),
    "kms 0.99": lambda: _separable(lambda d: 0.99 ** d.abs()),
    "gauss + 1e-4": lambda: (_separable(lambda d: torch.exp(-(d**2) / 8)) + 1e-4 * sm.Identity(306)).assume(
        Claim.POSITIVE_DEFINITE
    ),
    "slow decay": lambda: _separable(lambda d: (1 + d.abs()) ** -1.1),
    "laplacian": lambda: _laplacian().assume(Claim.POSITIVE_DEFINITE),
    "laplacian, unclaimed": _laplacian,
    "laplacian in tiny units": lambda: (1e-140 * _laplacian()).assume(Claim.POSITIVE_DEFINITE),
    "nonsymmetric": _dominant,
    "complex": lambda: _dominant(dtype=C128),
    "three levels": lambda: _dominant((6, 7, 8)),
    "one level": lambda: _dominant((300,)),
    "indefinite random": lambda: sm.BlockToeplitz(_numbers(33, 35), SIZES),
    "reflected": _motion,
    "reflected, transposed": lambda: _motion().mT,
    "reflected, complex": lambda: _motion(dtype=C128).mH,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_backward_errors_of_every_family(name: str) -> None:
    """Measured with the dense reference, and the forward error within 200 eps kappa."""
    a = FAMILIES[name]()
    b = _numbers(int(a.shape[-1]), 2, dtype=a.dtype)
    x, info = sm.linalg.solve(a, b, return_info=True)
    dense = dense_of(a)
    norm = torch.linalg.matrix_norm(dense, 2)
    eta = (b - dense @ x).norm(dim=0) / (norm * x.norm(dim=0) + b.norm(dim=0))
    assert float(eta.max()) <= 100 * EPS and info.method not in ("dense", "") and info.steps > 0
    exact = torch.linalg.solve(dense, b)
    assert float((x - exact).norm() / exact.norm()) <= 200 * EPS * float(torch.linalg.cond(dense))


@pytest.mark.parametrize("method", ["cg", "gmres", "cgls", "minres", "dense"])
def test_methods_by_name_are_deterministic(method: str) -> None:
    a = _separable(lambda d: 0.5 ** d.abs())
    b = _numbers(306, 2)
    first, info = sm.linalg.solve(a, b, method=method, return_info=True)
    again = a.solve(b, method=method)
    assert torch.equal(first, again) and info.method.startswith(method)


def test_what_a_solve_may_be_told() -> None:
    a, b = _dominant(), _numbers(306)
    exact = torch.linalg.solve(dense_of(a), b)
    seen: list[int] = []
    near = sm.BlockCirculant(sm.functional.multilevel_solve.block_circulant_of(a.generators, 2)).inv()
    for method in ("auto", "gmres", "cgls"):
        x = a.solve(b, method=method, preconditioner=near, callback=lambda step, _: seen.append(step))
        assert float((x - exact).norm()) <= 1e-11 * float(exact.norm())
    assert seen
    _, info = sm.linalg.solve(a, b, start=exact, return_info=True)
    assert info.steps == 0
    loose = sm.linalg.solve(a, b, tol=1e-4, return_info=True)[1]
    assert loose.steps < sm.linalg.solve(a, b, return_info=True)[1].steps
    with pytest.raises(sm.SolveError, match="backward error"):
        a.solve(b, method="gmres", max_steps=2)
    assert torch.isfinite(a.solve(b, method="gmres", max_steps=2, check=False)).all()
    with pytest.raises(sm.ShapeError, match="preconditioner must be a Matrix of the same size"):
        a.solve(b, preconditioner=sm.Identity(3))
    with pytest.raises(ValueError, match="unknown method 'levinson'"):
        a.solve(b, method="levinson")


def test_singular_matrices_raise() -> None:
    with pytest.raises(sm.SolveError, match="backward error"):
        sm.BlockToeplitz(torch.zeros(33, 35, dtype=F64), SIZES).solve(_numbers(306))


def test_batches_real_matrices_complex_sides_and_single_precision() -> None:
    a = _dominant(batch=(2,))
    b = _numbers(3, 2, 306, 2)
    exact = torch.linalg.solve(dense_of(a), b)
    assert float((a.solve(b) - exact).norm() / exact.norm()) <= 1e-11
    one = _dominant()
    c = _numbers(306, 1, dtype=C128)
    exact = torch.linalg.solve(dense_of(one).to(C128), c)
    assert float((one.solve(c) - exact).norm() / exact.norm()) <= 1e-11
    for dtype in (F32, torch.bfloat16):
        low = one.to(dtype)
        x = low.solve(b[0, 0].to(dtype))
        exact = torch.linalg.solve(dense_of(low), b[0, 0].to(dtype).double())
        assert x.dtype == dtype
        assert float((x.double() - exact).norm() / exact.norm()) <= 1e-4 + torch.finfo(dtype).eps


def test_factorisation_keeps_the_matrix_and_solves_both_ways() -> None:
    a, b = _dominant(), _numbers(306)
    kept = a.factor()
    exact = torch.linalg.solve(dense_of(a).mT, b)
    assert float((kept.adjoint_solve(b) - exact).norm() / exact.norm()) <= 1e-11
    assert float((kept.solve(b) - a.solve(b)).norm()) == 0
    with pytest.raises(sm.StructureError, match="dense limit"):
        kept.slogdet()


# -- derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kms 0.5", "nonsymmetric", "complex", "reflected", "reflected, complex"])
def test_first_and_second_derivatives_equal_those_of_the_dense_solve(name: str) -> None:
    a = FAMILIES[name]()
    b = _numbers(int(a.shape[-1]), 2, dtype=a.dtype)
    tensors, rebuild = sm.nn.split(a.detach())
    direction, moved = _numbers(*b.shape, dtype=a.dtype, seed=3), _numbers(*tensors[0].shape, dtype=a.dtype, seed=4)

    def real(v: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(v).sum() if v.is_complex() else v.sum()

    def both(solve: Callable[[Any, torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        t, right = tensors[0].clone().requires_grad_(), b.clone().requires_grad_()
        loss = real(solve(rebuild((t,)), right) ** 2 * direction)
        first = torch.autograd.grad(loss, (t, right), create_graph=True)
        second = torch.autograd.grad(real(first[0] * moved) + real(first[1] ** 2), (t, right))
        return [*first, *second]

    kappa = float(torch.linalg.cond(dense_of(a)))
    wanted = both(lambda m, right: torch.linalg.solve(m.to_dense(), right))
    for got, exact in zip(both(lambda m, right: m.solve(right)), wanted, strict=True):
        # each derivative is one more solve, and adds its condition number
        assert float((got - exact).norm()) <= 1e4 * EPS * kappa**2 * float(exact.norm())


def test_forward_mode_and_transforms() -> None:
    a, b = _dominant(), _numbers(306, 1)
    moved = _numbers(*a.generators.shape, seed=4)

    def solved(t: torch.Tensor) -> torch.Tensor:
        return sm.BlockToeplitz(t, SIZES).solve(b, check=False)

    rate = torch.func.jvp(solved, (a.generators,), (moved,))[1]
    exact = -torch.linalg.solve(
        dense_of(a), sm.BlockToeplitz(moved, SIZES).to_dense() @ torch.linalg.solve(dense_of(a), b)
    )
    assert float((rate - exact).norm() / exact.norm()) <= 1e-10
    grad = torch.func.grad(lambda t: solved(t).square().sum())(a.generators)
    t = a.generators.clone().requires_grad_()
    torch.linalg.solve(sm.BlockToeplitz(t, SIZES).to_dense(), b).square().sum().backward()
    assert float((grad - t.grad).norm() / grad.norm()) <= 1e-10
    stacked = torch.stack((a.generators, 2 * a.generators))
    both = torch.func.vmap(solved)(stacked)
    assert float((both[0] - 2 * both[1]).norm()) <= 1e-10 * float(both.norm())


def test_tracing_is_refused_above_the_limit_only() -> None:
    solve = torch.compile(lambda m, v: m.solve(v), fullgraph=True, backend="aot_eager")
    small = sm.BlockToeplitz(_dominant((3, 4)).generators, (3, 4))
    assert torch.allclose(solve(small, _numbers(12)), small.solve(_numbers(12)))
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"under torch\.compile"):
        solve(_dominant(), _numbers(306))


# -- nothing dense ------------------------------------------------------------------------------------------------

WIDE = (64, 64)
assert WIDE[0] * WIDE[1] == N
BIG: dict[str, Callable[[torch.Tensor], Any]] = {
    "block toeplitz": lambda t: sm.BlockToeplitz(t, (t.shape[0] // 2 + 1, t.shape[1] // 2 + 1)),
    "block circulant": lambda t: sm.BlockCirculant(t[: t.shape[0] // 2 + 1, : t.shape[1] // 2 + 1].flip(0, 1)),
    "reflected": lambda t: sm.ReflectedConvolution(
        t[(n := t.shape[0] // 2) - 2 : n + 3, (m := t.shape[1] // 2) - 2 : m + 3], (n + 1, m + 1)
    ),
    "cosine": lambda t: sm.CosineDiagonal(t[: t.shape[0] // 2 + 1, : t.shape[1] // 2 + 1] + 1),
}
VERBS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "linear": lambda a, x: a.linear(x).square().sum(),
    "transposed": lambda a, x: a.mT.linear(x).square().sum(),
    "solve": lambda a, x: a.solve(x.mT).square().sum(),
    "inv": lambda a, x: a.inv().linear(x).square().sum(),
    "diagonal": lambda a, x: a.diagonal().sum() + 0 * x.sum(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", BIG)
def test_forward_and_backward_form_nothing_dense(name: str, verb: str) -> None:
    def run(n: int) -> None:
        t = _dominant((n, n)).generators / 4
        VERBS[verb](BIG[name](t.requires_grad_()), _numbers(2, n * n, seed=5).requires_grad_()).backward()

    run(17)  # what Python itself allocates once (imports, plans) is no array of ours
    with no_dense_arrays():
        run(WIDE[0])


def test_measures_form_nothing_dense() -> None:
    def run(n: int) -> None:
        t = _dominant((n, n)).generators
        a = BIG["block toeplitz"](t)
        c, d = BIG["block circulant"](t), BIG["cosine"](t)
        (
            a.norm(),
            a._norm_bound(),
            a.prepare().linear(_numbers(1, n * n)),
            (a + c).norm(),
            (a + 2 * sm.Identity(n * n)).trace(),
        )
        c.slogdet(), c.svdvals(), (c @ c.mH).sqrt().norm(), c.pinv().norm()
        d.slogdet(), d.svdvals(), d.diagonal(), d.norm()

    run(17)
    with no_dense_arrays():
        run(WIDE[0])
