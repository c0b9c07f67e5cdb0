"""Sums with a low-rank term are solved by Woodbury's identity: values, scales, derivatives, and what happens where the
identity fails."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

import structmat as sm
from structmat import Matrix, backend
from structmat.testing.reference import dense_of

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _thin(n: int, r: int, dtype: torch.dtype = F64, batch: tuple[int, ...] = ()) -> sm.LowRank:
    return sm.LowRank(_numbers(*batch, n, r, dtype=dtype, seed=1), _numbers(*batch, n, r, dtype=dtype, seed=2))


def _middle(n: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(F64)


Make = Callable[[int, torch.dtype, tuple[int, ...]], Matrix]
BASES: dict[str, Make] = {
    "diagonal": lambda n, d, b: sm.Diagonal(2 + torch.rand(*b, n, dtype=F64).to(d)),
    "identity": lambda n, d, b: sm.Identity(n),
    "scaled identity": lambda n, d, b: 0.3 * sm.Identity(n),
    "blocks": lambda n, d, b: sm.BlockDiagonal(_numbers(*b, n // 3, 3, 3, dtype=d) + 5 * torch.eye(3, dtype=d)),
    "circulant": lambda n, d, b: sm.Circulant(
        _numbers(*b, n, dtype=d) / n**0.5 + 4 * torch.nn.functional.one_hot(torch.tensor(0), n)
    ),
    "toeplitz": lambda n, d, b: sm.Toeplitz(_numbers(*b, 2 * n - 1, dtype=d) / n**0.5 + 4 * _middle(n), n),
    "orthogonal": lambda n, d, b: sm.HouseholderProduct(_numbers(*b, 2, n, dtype=d)),
    "kronecker": lambda n, d, b: sm.kron(sm.Diagonal(1 + torch.rand(*b, 3, dtype=F64).to(d)), sm.Identity(n // 3, d)),
}


def _eta(a: Matrix, x: torch.Tensor, y: torch.Tensor) -> float:
    """The backward error against the dense entries, columns."""
    dense = dense_of(a).to(torch.promote_types(x.dtype, F64))
    residual = torch.linalg.vector_norm(dense @ x - y, dim=-2)
    size = torch.linalg.matrix_norm(dense, 2)[..., None] * torch.linalg.vector_norm(x, dim=-2)
    return float((residual / (size + torch.linalg.vector_norm(y, dim=-2))).max())


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_every_base_with_a_cheap_inverse(name: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    n, r = 12, 3
    a = BASES[name](n, dtype, batch) + _thin(n, r, dtype, batch)
    assert type(a) is sm.Sum
    dense = dense_of(a)
    b = _numbers(*batch, n, 2, dtype=dtype, seed=5)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "woodbury" and _eta(a, x, b) <= 10 * EPS
    assert any("condition" in reason for reason in info.reasons)
    sign, logabs = a.slogdet()
    wanted = torch.linalg.slogdet(dense)
    kappa = float(torch.linalg.cond(dense).max())
    assert torch.allclose(sign, wanted[0].expand_as(sign), atol=n * kappa * EPS)
    assert torch.allclose(logabs, wanted[1].expand_as(logabs), atol=n * kappa * EPS)
    assert torch.allclose(a.det(), torch.linalg.det(dense), rtol=n * n * kappa * EPS)
    eye = torch.eye(n, dtype=F64)
    assert float(torch.linalg.matrix_norm(a.inv().to_dense() @ dense - eye).max()) <= 100 * n * kappa * EPS
    kept = a.factor()
    assert kept.method == "woodbury" and kept.backward_error is not None and kept.backward_error <= 100 * EPS
    assert torch.allclose(dense @ kept.solve(b), b, atol=100 * kappa * EPS)
    assert torch.allclose(dense.mH.resolve_conj() @ kept.adjoint_solve(b), b, atol=100 * kappa * EPS)
    assert torch.allclose(kept.logabsdet(), logabs)


def test_the_inverse_of_diagonal_plus_low_rank_is_one_again() -> None:
    a = BASES["diagonal"](300, F64, ()) + _thin(300, 4)
    inverse = a.inv()
    assert type(inverse) is sm.Sum and [type(t) for t in inverse.terms] == [sm.Diagonal, sm.LowRank]
    assert torch.allclose(a.linear(inverse.linear(_numbers(2, 300))), _numbers(2, 300), atol=1e-11)
    assert torch.allclose(inverse.diagonal(), torch.linalg.inv(dense_of(a)).diagonal(), rtol=1e-10)


@pytest.mark.parametrize("factor", [1e-140, 1e-8, 1.0, 1e8, 1e140])
@pytest.mark.parametrize("gauge", [1e-100, 1.0, 1e60])
def test_units_do_not_matter(factor: float, gauge: float) -> None:
    """``s A`` and another split of ``U V^T`` are solved as well as A."""
    n, base, thin = 30, BASES["diagonal"](30, F64, ()), _thin(30, 4)
    scales = gauge ** torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=F64)
    a = factor * base + sm.LowRank(thin.left * factor * scales, thin.right / scales)
    b = factor * _numbers(n)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "woodbury" and float(info.backward_error) <= 100 * EPS
    wanted = torch.linalg.solve(dense_of(base + thin), _numbers(n))
    assert torch.allclose(x, wanted, rtol=1e-11)


@pytest.mark.parametrize("noise", [1e-2, 1e-6, 1e-10])
def test_small_noise_is_refined_until_it_is_backward_stable(noise: float) -> None:
    """``s I + U U^T``: the condition number is ``||U||^2 / s``."""
    n, u = 300, _numbers(300, 5)
    a = noise * sm.Identity(n) + sm.LowRank(u, u)
    for b in (_numbers(n), u @ torch.ones(5, dtype=F64)):  # one that the noise answers, and one that it does not
        x, info = sm.linalg.solve(a, b, return_info=True)
        assert info.method == "woodbury" and float(info.backward_error) <= 100 * EPS
        assert _eta(a, x[:, None], b[:, None]) <= 100 * EPS


@pytest.mark.parametrize("entry", [0.0, 1e-30, -1e-18])
def test_entries_of_the_diagonal_that_nothing_can_be_divided_by(entry: float) -> None:
    entries = 1 + torch.rand(2, 300, dtype=F64)
    entries[0, 7] = entries[1, 250] = entries[1, 3] = entry
    a = sm.Diagonal(entries) + _thin(300, 4)
    b = _numbers(300, 2)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "woodbury" and _eta(a, x, b) <= 100 * EPS
    sign, logabs = a.slogdet()
    wanted = torch.linalg.slogdet(dense_of(a))
    assert torch.equal(sign, wanted[0]) and torch.allclose(logabs, wanted[1], atol=1e-10)


def test_more_zeros_than_columns_is_singular_and_says_so() -> None:
    entries = torch.ones(300, dtype=F64)
    entries[:5] = 0
    a = sm.Diagonal(entries) + _thin(300, 3)
    with pytest.raises(sm.SolveError, match=r"backward error|singular"):
        a.solve(_numbers(300))
    with pytest.raises(sm.SolveError, match="woodbury"):
        a.solve(_numbers(300), method="woodbury")
    with pytest.raises(sm.SolveError):
        a.factor()


def test_where_only_the_base_is_singular_another_method_answers() -> None:
    blocks = torch.eye(3, dtype=F64).repeat(20, 1, 1)
    blocks[0, 2, 2] = 0
    unit = torch.zeros(60, 1, dtype=F64)
    unit[2] = 1
    a = sm.BlockDiagonal(blocks) + sm.LowRank(unit, unit)
    x, info = sm.linalg.solve(a, _numbers(60), return_info=True)
    assert info.method == "dense" and any("singular" in reason for reason in info.reasons)
    assert torch.allclose(x, _numbers(60), atol=1e-14)
    with pytest.raises(sm.SolveError, match="woodbury"):
        a.solve(_numbers(60), method="woodbury")


def test_which_sums_are_taken() -> None:
    """Rank above n / 3 is dense up to the limit; without a low-rank term, or without a solve, nothing changes."""
    base = BASES["diagonal"](12, F64, ())
    assert backend.explain("solve", base + _thin(12, 2), _numbers(12)).path == "woodbury"
    assert backend.explain("solve", base + _thin(12, 5), _numbers(12)).path == "dense"
    assert sm.linalg.solve(base + _thin(12, 5), _numbers(12), method="woodbury", return_info=True)[1].steps <= 10
    with pytest.raises(ValueError, match="unknown method 'woodbury'; legal methods are 'auto', 'dense', 'cg'"):
        (base + sm.HouseholderProduct(_numbers(1, 12))).solve(_numbers(12), method="woodbury")
    cut = sm.HouseholderProduct(_numbers(1, 14))[1:13, 2:]
    with pytest.raises(ValueError, match="LowRank terms and one with a solve of its own"):
        (cut + _thin(12, 2)).solve(_numbers(12), method="woodbury")
    three = base + _thin(12, 1) + sm.Identity(12) + _thin(12, 2)
    x, info = sm.linalg.solve(three, _numbers(12), return_info=True)
    assert info.method == "woodbury" and "order 3" in info.reasons[0]
    assert _eta(three, x[:, None], _numbers(12)[:, None]) <= 10 * EPS
    empty = base + sm.LowRank(torch.zeros(12, 0, dtype=F64), torch.zeros(12, 0, dtype=F64))
    assert torch.allclose(empty.solve(_numbers(12)), base.solve(_numbers(12)))
    assert torch.allclose(empty.logabsdet(), base.logabsdet())


def test_halves_and_singles() -> None:
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        a = sm.Diagonal(2 + torch.rand(40).to(dtype)) + _thin(40, 2, torch.float32).to(dtype)
        x = a.solve(torch.ones(40, dtype=dtype))
        wanted = torch.linalg.solve(dense_of(a), torch.ones(40, dtype=F64))
        assert x.dtype == dtype and float((x.double() - wanted).norm() / wanted.norm()) <= tol
        assert a.logabsdet().dtype == dtype and a.inv().dtype == dtype


def _rebuilt(d: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> Matrix:
    return sm.Diagonal(d) + sm.LowRank(u, v)


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_derivatives_of_first_and_second_order(dtype: torch.dtype) -> None:
    n = 6
    d = (2 + torch.rand(n, dtype=F64)).to(dtype).requires_grad_()
    u, v = (_numbers(n, 2, dtype=dtype, seed=s).requires_grad_() for s in (1, 2))
    b = _numbers(n, dtype=dtype, seed=3).requires_grad_()
    verbs: list[Callable[..., torch.Tensor]] = [
        lambda d, u, v, b: _rebuilt(d, u, v).solve(b),
        lambda d, u, v, b: _rebuilt(d, u, v).factor().solve(b),
        lambda d, u, v, b: _rebuilt(d, u, v).inv().linear(b),
        lambda d, u, v, b: _rebuilt(d, u, v).logabsdet(),
    ]
    for verb in verbs:
        assert torch.autograd.gradcheck(verb, (d, u, v, b), fast_mode=True)
        assert torch.autograd.gradgradcheck(verb, (d, u, v, b), fast_mode=True)


def test_derivatives_where_an_entry_is_zero() -> None:
    d = torch.tensor([2.0, 0.0, 3.0, 1.5, 1.0, 2.5], dtype=F64, requires_grad=True)
    u, v = (_numbers(6, 2, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda *t: _rebuilt(*t).solve(torch.ones(6, dtype=F64)), (d, u, v))
    assert torch.autograd.gradcheck(lambda *t: _rebuilt(*t).logabsdet(), (d, u, v))


def test_transforms_and_graphs() -> None:
    d, u, v, b = 2 + torch.rand(3, 9, dtype=F64), _numbers(3, 9, 2, seed=1), _numbers(3, 9, 2, seed=2), _numbers(9)
    wanted = torch.stack([_rebuilt(d[k], u[k], v[k]).solve(b) for k in range(3)])
    got = torch.func.vmap(lambda *t: _rebuilt(*t).solve(b))(d, u, v)
    assert torch.allclose(got, wanted, atol=1e-13)
    dets = torch.func.vmap(lambda *t: _rebuilt(*t).logabsdet())(d, u, v)
    assert torch.allclose(dets, _rebuilt(d, u, v).logabsdet(), atol=1e-13)
    leaf = d[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(_rebuilt(leaf, u[0], v[0]).solve(b).sin().sum(), leaf)
    by_func = torch.func.grad(lambda t: _rebuilt(t, u[0], v[0]).solve(b).sin().sum())(d[0])
    assert torch.allclose(by_func, slope, atol=1e-12)
    torch._dynamo.reset()
    traced = torch.compile(lambda a, y: a.solve_rows(y), fullgraph=True, backend="eager")
    a = _rebuilt(d[0], u[0], v[0])
    assert torch.allclose(traced(a, b[None]), a.solve_rows(b[None]), atol=1e-12)


def test_a_factorisation_is_a_value() -> None:
    a = BASES["toeplitz"](300, F64, ()) + _thin(300, 3)
    kept, b = a.factor(), _numbers(300)
    for again in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert torch.equal(again.solve(b), kept.solve(b))
    complex_b = _numbers(300, dtype=C128)
    assert torch.allclose((a @ kept.solve(complex_b)), complex_b, atol=1e-10)


def test_a_large_one_stores_nothing_of_n_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    n, r = 20_000, 6
    d = (0.5 + torch.rand(n, dtype=F64)).requires_grad_()
    u = _numbers(n, r).requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(largest, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    with Watch():
        a = sm.Diagonal(d) + sm.LowRank(u, u)
        x = a.solve(torch.ones(n, dtype=F64))
        (x.square().sum() + a.logabsdet()).backward()
    assert 0 < largest <= 2 * n * r
    assert float((a @ x - 1).detach().norm()) <= 1e-9 and d.grad is not None
