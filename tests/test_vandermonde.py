"""Vandermonde matrices: exact powers, products in blocks, Bjorck and Pereyra's solves, determinants, gradients."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy
import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import vandermonde as fv

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
DTYPES = pytest.mark.parametrize("dtype", [F64, C128])


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _dense(nodes: torch.Tensor, n: int) -> torch.Tensor:
    return torch.from_numpy(numpy.vander(nodes.numpy(), n, increasing=True))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 17, 26])
def test_integer_powers_are_exact(n: int) -> None:
    """Integers that float64 holds: entries, products both ways and the diagonal without any rounding."""
    nodes = torch.tensor([-3.0, 0.0, 2.0, 1.0, -1.0], dtype=F64)
    exact = [[int(x) ** j for j in range(n)] for x in nodes]
    a = sm.Vandermonde(nodes, n)
    c, d = torch.arange(n, dtype=F64) % 3 - 1, torch.tensor([2.0, -1.0, 3.0, 1.0, -2.0], dtype=F64)
    assert a.to_dense().tolist() == exact and a.mT.to_dense().mT.tolist() == exact
    assert (a @ c).tolist() == [sum(int(v) * int(u) for v, u in zip(row, c, strict=True)) for row in exact]
    assert (a.mT @ d).tolist() == [sum(int(d[i]) * exact[i][j] for i in range(5)) for j in range(n)]
    assert a.diagonal().tolist() == [exact[i][i] for i in range(min(5, n))]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 4, 2, 1), (2, 4, 1, 0, 3)])
def test_interpolation_through_integers_is_exact(order: tuple[int, ...]) -> None:
    """Divided differences of an integer polynomial at integers are integers, in any order of the nodes."""
    nodes = torch.tensor([-2.0, 5.0, 1.0, 3.0, -4.0], dtype=F64)[list(order)]
    wanted = torch.tensor([7.0, -3.0, 0.0, 2.0, 1.0], dtype=F64)
    a = sm.Vandermonde(nodes, 5)
    assert torch.equal(a.solve(a @ wanted, method="bjorck-pereyra"), wanted)


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 64), (3, 65), (4, 129), (200, 150), (2, 700)])
def test_products_in_blocks(dtype: torch.dtype, m: int, n: int) -> None:
    """Against numpy's powers; nodes of modulus at most 1, so that errors are relative to the sum of the moduli."""
    nodes = torch.tanh(_numbers(m).abs()).to(dtype) * torch.sgn(_numbers(m, dtype=dtype, seed=1))
    a, dense = sm.Vandermonde(nodes, n), _dense(nodes, n)
    x, z = _numbers(n, 3, dtype=dtype, seed=2), _numbers(m, 2, dtype=dtype, seed=3)
    for matrix, entries, v in ((a, dense, x), (a.mT, dense.mT, z), (a.mH, dense.mH, z)):
        bound = 8 * EPS * (1 + math.log2(n) + n / 16) * (entries.abs() @ v.abs())
        assert bool(((matrix @ v - entries @ v).abs() <= bound).all())
    assert a.linear(_numbers(n, dtype=dtype)).shape == (m,) and a.mT.linear(_numbers(m, dtype=dtype)).shape == (n,)


NODES: dict[str, Callable[[int], torch.Tensor]] = {
    "equispaced": lambda n: torch.linspace(-1, 1, n, dtype=F64),
    "positive": lambda n: torch.linspace(1 / n, 1, n, dtype=F64),
    "chebyshev": lambda n: torch.cos(torch.pi * (torch.arange(n, dtype=F64) + 0.5) / n),
    "reciprocals": lambda n: 1 / (torch.arange(n, dtype=F64) + 1),
    "roots of unity": lambda n: torch.polar(torch.ones(n, dtype=F64), -2 * torch.pi * torch.arange(n, dtype=F64) / n),
    "random": lambda n: torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=F64) * 2 - 1,
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_backward_errors_of_solves(name: str, n: int) -> None:
    """Within 20 eps, whatever the condition number (up to 1e60 here), both ways."""
    a = sm.Vandermonde(NODES[name](n), n)
    dense = a.to_dense()
    b = _numbers(n, 2, seed=4).to(dense.dtype)
    for matrix, entries in ((a, dense), (a.mT, dense.mT), (a.mH, dense.mH)):
        x = matrix.solve(b)
        size = torch.linalg.matrix_norm(entries, 2) * torch.linalg.vector_norm(x) + torch.linalg.vector_norm(b)
        assert float(torch.linalg.vector_norm(entries @ x - b) / size) <= 20 * EPS


def test_monotone_positive_nodes_are_solved_to_high_relative_accuracy() -> None:
    """A right-hand side of alternating signs: Higham's componentwise bound, which no dense LU meets."""
    n = 20
    nodes = torch.arange(1, n + 1, dtype=F64) / n
    b = (-1.0) ** torch.arange(n, dtype=F64)
    rising = fv.BjorckPereyra(nodes, torch.arange(n), False).solve_rows(b[None])[0]
    exact = _exact_solution(list(range(1, n + 1)), n)
    error = ((rising - exact).abs() / exact.abs()).max()
    assert float(error) <= 7 * n * EPS
    dense = torch.linalg.solve(sm.Vandermonde(nodes, n).to_dense(), b)
    assert float(((dense - exact).abs() / exact.abs()).max()) > 1e3 * float(error)


def _exact_solution(numerators: list[int], n: int) -> torch.Tensor:
    """The coefficients of the polynomial with values (-1)^i at numerators_i / n, by Lagrange's formula in integers."""
    total = [0] * n
    scale = math.prod(abs(p - q) for p in numerators for q in numerators if p != q)
    for i, p in enumerate(numerators):
        basis, below = [1], 1
        for q in numerators:
            if q != p:
                basis = [
                    (basis[k - 1] if k else 0) - q * (basis[k] if k < len(basis) else 0) for k in range(len(basis) + 1)
                ]
                below *= p - q
        for k, c in enumerate(basis):
            total[k] += (-1) ** i * c * (scale // below)
    return torch.tensor([t * n**k / scale for k, t in enumerate(total)], dtype=F64)


@DTYPES
def test_determinants(dtype: torch.dtype) -> None:
    for n in (1, 2, 5, 6, 9):
        nodes = _numbers(2, n, dtype=dtype, seed=n)
        wanted = torch.linalg.slogdet(torch.stack([_dense(x, n) for x in nodes]))
        for a in (sm.Vandermonde(nodes, n), sm.Vandermonde(nodes, n).mT):
            sign, logabs = a.slogdet()
            assert torch.allclose(logabs, wanted[1], rtol=1e-9, atol=1e-9)
            assert torch.allclose(sign, wanted[0], rtol=1e-8) and (dtype == C128 or torch.equal(sign, wanted[0]))
    roots = sm.Vandermonde(NODES["roots of unity"](600), 600)  # det of the DFT: n^(n/2), in blocks of rows
    assert float(roots.slogdet()[1]) == pytest.approx(300 * math.log(600), rel=1e-12)
    equal = sm.Vandermonde(torch.tensor([1.0, 2.0, 1.0]), 3)
    assert [float(v) for v in equal.slogdet()] == [0.0, -torch.inf]


@DTYPES
@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives(dtype: torch.dtype, transposed: bool) -> None:
    x, b = _numbers(4, dtype=dtype).requires_grad_(), _numbers(4, 2, dtype=dtype, seed=1).requires_grad_()

    def solve(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sm.Vandermonde(x, 4, transposed).solve(b, method="bjorck-pereyra", check=False)

    def product(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sm.Vandermonde(x, 4, transposed) @ b

    def determinant(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = sm.Vandermonde(x, 4, transposed).slogdet()
        return found if dtype == C128 else found[1:]

    for function, leaves in ((solve, (x, b)), (product, (x, b)), (determinant, (x,))):
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: sm.Vandermonde(x, 4).diagonal(), (x,))


def test_gradients_through_blocks() -> None:
    """Several blocks of powers, against autograd through numpy's definition."""
    x, c = (0.9 * torch.tanh(_numbers(5))).requires_grad_(), _numbers(2, 150, seed=1)
    d = _numbers(2, 5, seed=2)
    dense = torch.stack([x**j for j in range(150)], -1)
    for found, wanted in (
        (sm.Vandermonde(x, 150).linear(c), c @ dense.mT),
        (sm.Vandermonde(x, 150).mT.linear(d), d @ dense),
    ):
        weights = _numbers(*found.shape, seed=5)
        p, q = (torch.autograd.grad((v * weights).sum(), x, retain_graph=True)[0] for v in (found, wanted))
        assert float((p - q).norm() / q.norm()) < 1e-12


def test_the_diagonal_overflows_only_where_it_must() -> None:
    nodes = torch.tensor([1e200, 1e300, 1e100, 1.0, 0.0], dtype=F64).requires_grad_()
    found = sm.Vandermonde(nodes, 5).diagonal()
    assert found.tolist() == [1.0, 1e300, pytest.approx(1e200), 1.0, 0.0]
    assert torch.autograd.grad(found.sum(), nodes)[0].isfinite().all()


def test_leja_order_is_greedy() -> None:
    nodes = torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=F64)
    order = fv.leja_order(nodes)
    assert order[0, 0] in (1, 2) and order[0, 1] in (1, 2) and order[0, 2] == 0
    assert torch.equal(order.sort(1).values, torch.arange(5).expand(2, 5))


def test_batches_and_factorisation() -> None:
    a = sm.Vandermonde(_numbers(3, 1, 6), 6)
    b = _numbers(2, 6, 2, seed=1)
    x = a.solve(b)
    assert x.shape == (3, 2, 6, 2)
    kept = pickle.loads(pickle.dumps(a.factor()))
    assert kept.method == "bjorck-pereyra" and torch.equal(kept.solve(b), a.solve(b, method="bjorck-pereyra"))
    residual = a.mH @ kept.adjoint_solve(b) - b
    assert float(residual.norm()) <= 1e-10 * float(kept.adjoint_solve(b).norm() * a.norm().max())
    low = sm.Vandermonde(NODES["chebyshev"](5).bfloat16(), 5)
    assert low.factor().solve(torch.ones(5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_stays_closed() -> None:
    a, b = sm.Vandermonde(_numbers(5), 4), sm.Vandermonde(_numbers(5, seed=1), 4)
    product = a * b
    assert isinstance(product, sm.Vandermonde) and torch.allclose(product.to_dense(), a.to_dense() * b.to_dense())
    for cut, dense in (
        (a[1:4, :2], a.to_dense()[1:4, :2]),
        (a[::2], a.to_dense()[::2]),
        (a.mT[:3, 1:], a.mT.to_dense()[:3, 1:]),
    ):
        assert isinstance(cut, sm.Vandermonde) and torch.equal(cut.to_dense(), dense)
    assert not isinstance(a[:, 1:], sm.Vandermonde) and torch.allclose(a[:, 1:].to_dense(), a.to_dense()[:, 1:])
    with pytest.raises(sm.StructureError, match="one is transposed"):
        sm.Vandermonde(_numbers(4), 4) * sm.Vandermonde(_numbers(4), 4).mT
    found = sm.Vandermonde.from_dense(a.to_dense())
    assert isinstance(found, sm.Vandermonde) and torch.equal(found.nodes, a.nodes)
    with pytest.raises(sm.NotStructuredError):
        sm.Vandermonde.from_dense(_numbers(4, 4))
    with pytest.raises(sm.StructureError, match="do not determine the nodes"):
        sm.Vandermonde.from_dense(torch.ones(3, 1))


def test_what_is_refused() -> None:
    for columns in (-2, -1, 2.0, True):
        with pytest.raises(sm.ShapeError, match="columns"):
            sm.Vandermonde(_numbers(3), columns)
    with pytest.raises(sm.SolveError):
        sm.Vandermonde(torch.tensor([1.0, 2.0, 1.0]), 3).solve(torch.ones(3))
    with pytest.raises(ValueError, match="no meaning for the direct method"):
        sm.Vandermonde(_numbers(3), 3).solve(_numbers(3), start=_numbers(3))


def test_plans() -> None:
    a = sm.Vandermonde.random(300)
    assert backend.explain("solve", a, torch.zeros(300)).path == "bjorck-pereyra"
    assert backend.explain(a, torch.zeros(300)).path == "blocks"
