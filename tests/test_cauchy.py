"""Cauchy-like matrices: sums over quotients, elimination of generators, closed forms, gradients, what they refuse."""

from __future__ import annotations

import pickle

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import cauchy as fc
from structmat.functional.determinants import LogDeterminant, slogdet
from structmat.functional.elimination import eliminate
from structmat.types import cauchy as tc

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
DTYPES = pytest.mark.parametrize("dtype", [F64, C128])


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _nodes(n: int, start: float, dtype: torch.dtype, seed: int = 3) -> torch.Tensor:
    moved = _numbers(n, dtype=dtype, seed=seed)
    return (torch.arange(n) + start).to(dtype) + moved / (8 * (1 + moved.abs()))


def _matrix(n: int, r: int = 2, dtype: torch.dtype = F64, m: int | None = None) -> sm.CauchyLike:
    m = n if m is None else m
    left, right = _numbers(m, r, dtype=dtype, seed=1), _numbers(n, r, dtype=dtype, seed=2)
    return sm.CauchyLike(left, right, _nodes(m, 0, dtype), _nodes(n, 0.5, dtype, 4))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


# -- sums over quotients ------------------------------------------------------------------------------------------


def test_sums_are_exact_where_the_quotients_are() -> None:
    """Differences that are powers of two, integers elsewhere: no rounding, so any slip of an index or a sign shows."""
    x, y = torch.tensor([0.0, 3.0], dtype=F64), torch.tensor([1.0, 2.0, -1.0, 4.0], dtype=F64)
    w = torch.tensor([[3.0, 1.0], [5.0, -2.0], [-7.0, 4.0], [2.0, 6.0]], dtype=F64)
    for power in (1, 2, 3):
        wanted = [[sum(w[j, q] / (x[i] - y[j]) ** power for j in range(4)) for q in range(2)] for i in range(2)]
        assert fc.quotient_sums(x, y, w, power).tolist() == [[float(v) for v in row] for row in wanted]
    left, right = torch.tensor([[1.0, 2.0], [-3.0, 4.0]], dtype=F64), w.flip(0)
    a = sm.CauchyLike(left, right, x, y)
    dense = torch.stack([torch.stack([left[i] @ right[j] / (x[i] - y[j]) for j in range(4)]) for i in range(2)])
    assert (
        torch.equal(a.to_dense(), dense) and torch.equal(a @ w, dense @ w) and torch.equal(a.mT @ left, dense.mT @ left)
    )
    assert torch.equal(a.diagonal(), torch.diagonal(dense))


@DTYPES
@pytest.mark.parametrize("skip", [False, True])
def test_sums_in_blocks_and_their_derivatives(dtype: torch.dtype, skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, w = _nodes(5, 0, dtype), _nodes(4, 0.5, dtype, 5), _numbers(2, 4, 3, dtype=dtype)
    whole = [fc.quotient_sums(x, y, w, p, skip) for p in (1, 2)]
    monkeypatch.setattr(backend, "dense_limit", lambda device="cpu": 3)  # two rows at a time
    for p, kept in zip((1, 2), whole, strict=True):
        assert torch.equal(fc.quotient_sums(x, y, w, p, skip), kept) or _distance(kept, whole[p - 1]) < 8 * EPS
        leaves = tuple(t.clone().requires_grad_() for t in (x, y, w))
        assert torch.autograd.gradcheck(
            lambda x, y, w, p=p: fc.quotient_sums(x, y, w, p, skip),
            leaves,
            check_forward_ad=True,
            check_batched_grad=True,
            fast_mode=True,
        )
        assert torch.autograd.gradgradcheck(
            lambda x, y, w, p=p: fc.quotient_sums(x, y, w, p, skip), leaves, fast_mode=True
        )


def test_smallest_gap() -> None:
    x, y = torch.tensor([[0.0, 4.0], [9.0, 1.0]]), torch.tensor([3.0, 7.0])
    assert float(fc.smallest_gap(x, y)) == 1.0 and float(fc.smallest_gap(y, y)) == 0.0
    assert float(fc.smallest_gap(x[:, :0], y)) == torch.inf


# -- elimination --------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 150, 300])
def test_solve_determinant_and_inverse(dtype: torch.dtype, n: int) -> None:
    a = _matrix(n, 2, dtype)
    dense = a.to_dense()
    b = _numbers(n, 3, dtype=dtype, seed=6)
    kappa = float(torch.linalg.cond(dense))
    for matrix, entries in ((a, dense), (a.mT, dense.mT), (a.mH, dense.mH)):
        x = matrix.solve(b, method="gko")
        residual = torch.linalg.vector_norm(entries @ x - b) / (
            torch.linalg.matrix_norm(entries, 2) * torch.linalg.vector_norm(x)
        )
        assert float(residual) <= 20 * EPS
    solver = fc.CauchySolver.of(*a.tensors())
    sign, logabs = solver.slogdet()
    exact_sign, exact = torch.linalg.slogdet(dense)
    assert abs(float(logabs - exact)) <= 100 * n * EPS * kappa
    assert abs(complex(sign - exact_sign)) <= (100 * n * EPS * kappa if dtype == C128 else 0)
    inverse = a.inv()
    assert isinstance(inverse, sm.CauchyLike) and inverse.left.shape[-1] == 2
    assert inverse.row_nodes is a.column_nodes and inverse.column_nodes is a.row_nodes
    assert _distance(inverse.to_dense(), torch.linalg.inv(dense)) <= 200 * EPS * kappa


@DTYPES
def test_factors_are_those_of_the_matrix(dtype: torch.dtype) -> None:
    """``L U`` put together again from its panels, in the order of rows that pivoting chose."""
    n = 140
    a = _matrix(n, 3, dtype)
    nodes = fc._Nodes(a.row_nodes[None], a.column_nodes[None])
    factors = eliminate(a.left[None], a.right[None], nodes)
    rest = torch.zeros(0, 0, dtype=dtype)
    for panel in reversed(factors._panels):
        m, w = panel.lower.shape[1:]
        assert panel.choice is None
        corner = panel.lower[0, :w].triu()
        lower = panel.lower[0].tril(-1) + torch.eye(m, w, dtype=dtype)
        block = lower @ torch.cat((corner, panel.upper[0]), 1)
        block[w:, w:] += rest
        rest = torch.empty_like(block)
        rest[panel.order[0]] = block
    assert _distance(rest, a.to_dense()) <= 50 * EPS * float(factors.growth)


def test_a_graded_matrix_needs_care() -> None:
    """Node distances over many decades: the growth asks for care, the columns are chosen, the solve is accurate."""
    n = 200
    x = 10.0 ** torch.linspace(-8, 2, n, dtype=F64)
    a = sm.CauchyLike.of_nodes(x, -x)
    b = _numbers(n, 2)
    solution = a.solve(b, method="gko", check=False)
    solver = fc.CauchySolver.of(*a.tensors())
    assert solution.isfinite().all() and any(p.choice is not None for p in solver.factors._panels)
    dense = a.to_dense()
    eta = torch.linalg.vector_norm(dense @ solution - b) / (
        torch.linalg.matrix_norm(dense, 2) * torch.linalg.vector_norm(solution)
    )
    assert float(eta) <= 1e3 * EPS


def test_batches_share_what_they_can() -> None:
    n = 6
    a = sm.CauchyLike(_numbers(2, 1, n, 2), _numbers(3, n, 2, seed=1), _nodes(n, 0, F64), _nodes(n, 0.5, F64, 4))
    assert a.batch_shape == (2, 3)
    b = _numbers(4, 1, 1, n, 2, seed=5)
    x = a.solve(b, method="gko")
    assert x.shape == (4, 2, 3, n, 2) and _distance(a.to_dense() @ x, b.expand(x.shape)) < 1e-10
    assert a.inv().batch_shape == (2, 3)
    assert torch.allclose(a.inv().to_dense(), torch.linalg.inv(a.to_dense()), rtol=1e-8, atol=1e-8)


def test_factor_keeps_the_elimination() -> None:
    a, b = _matrix(300, 2), _numbers(300, 2)
    kept = a.factor()
    assert kept.method == "gko"
    again = pickle.loads(pickle.dumps(kept))
    for f in (kept, again):
        assert torch.equal(f.solve(b), kept.solve(b)) and _distance(a @ f.solve(b), b) < 1e-9
        assert _distance(a.mH @ f.adjoint_solve(b), b) < 1e-9
        assert f.solve(b[:, 0]).shape == (300,) == f.adjoint_solve(b[:, 0]).shape
    assert _matrix(5).factor().method == "dense" and _matrix(5).factor("gko").method == "gko"
    leaves = [t.clone().requires_grad_() for t in a.tensors()]
    grown = sm.CauchyLike(*leaves).factor().solve(b).sum()
    plain = torch.linalg.solve(sm.CauchyLike(*leaves).to_dense(), b).sum()
    for found, wanted in zip(torch.autograd.grad(grown, leaves), torch.autograd.grad(plain, leaves), strict=True):
        assert _distance(found, wanted) < 1e-7


# -- derivatives --------------------------------------------------------------------------------------------------


@DTYPES
def test_derivatives_of_solve_inverse_and_determinant(dtype: torch.dtype) -> None:
    leaves = tuple(t.requires_grad_() for t in _matrix(3, 2, dtype).tensors())
    b = _numbers(3, 1, dtype=dtype, seed=7).requires_grad_()

    def solve(*t: torch.Tensor) -> torch.Tensor:
        return sm.CauchyLike(*t[:4]).solve(t[4], method="gko", check=False)

    assert torch.autograd.gradcheck(solve, (*leaves, b), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(solve, (*leaves, b), fast_mode=True)
    assert torch.autograd.gradcheck(lambda *t: sm.CauchyLike(*t).inv().tensors()[:2], leaves, fast_mode=True)

    def determinant(*t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = slogdet(LogDeterminant(tc._value, tc._gradient), *t)
        return found if dtype == C128 else found[1:]

    assert torch.autograd.gradcheck(determinant, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(determinant, leaves, fast_mode=True)


@DTYPES
def test_gradient_of_the_determinant_of_a_large_matrix(dtype: torch.dtype) -> None:
    """Above the dense limit, against autograd through the dense matrix; also for a batch and under vmap."""
    a = _matrix(270, 2, dtype)
    leaves = [t.requires_grad_() for t in a.tensors()]
    dense = torch.linalg.slogdet(sm.CauchyLike(*leaves).to_dense())
    found = sm.CauchyLike(*leaves).slogdet()
    assert torch.allclose(found[1], dense[1], rtol=1e-9)
    for p, q in zip(torch.autograd.grad(found[1], leaves), torch.autograd.grad(dense[1], leaves), strict=True):
        assert _distance(p, q) < 1e-7


def test_vmap_over_generators() -> None:
    a = _matrix(4)
    lefts, b = _numbers(3, 4, 2, seed=9), _numbers(4, 2)

    def solve(left: torch.Tensor) -> torch.Tensor:
        return sm.CauchyLike(left, *a.tensors()[1:]).solve(b, method="gko", check=False)

    def determinant(left: torch.Tensor) -> torch.Tensor:
        return slogdet(LogDeterminant(tc._value, tc._gradient), left, *a.tensors()[1:])[1]

    for function in (solve, determinant):
        assert torch.allclose(torch.func.vmap(function)(lefts), torch.stack([function(t) for t in lefts]), rtol=1e-9)


# -- closed forms -------------------------------------------------------------------------------------------------


def test_sums_and_products_of_one_set_of_nodes() -> None:
    a, b = _matrix(6, 2), _matrix(6, 1)
    dense_a, dense_b = a.to_dense(), b.to_dense()
    total = a + b
    assert isinstance(total, sm.CauchyLike) and total.left.shape[-1] == 3
    assert _distance(total.to_dense(), dense_a + dense_b) < 20 * EPS
    c = sm.CauchyLike(_numbers(6, 1, seed=8), _numbers(4, 1, seed=9), b.column_nodes, _nodes(4, 0.25, F64, 12))
    product = a @ c
    assert isinstance(product, sm.CauchyLike) and product.left.shape[-1] == 3 and product.row_nodes is a.row_nodes
    assert _distance(product.to_dense(), dense_a @ c.to_dense()) < 200 * EPS
    other = sm.CauchyLike(a.left, a.right, a.row_nodes, a.column_nodes + 0.125)
    assert type(a + other).__name__ == "Sum" and type(a @ other.mT @ a).__name__ == "Product"
    assert _distance((a + other).to_dense(), dense_a + other.to_dense()) < 20 * EPS


def test_a_product_onto_its_own_nodes_stays_lazy() -> None:
    """``A A^-1`` would divide by zero, and outer nodes that nearly meet would divide by nearly zero."""
    a = _matrix(5)
    assert _distance((a @ a.inv()).to_dense(), torch.eye(5, dtype=F64)) < 1e-12
    close = sm.CauchyLike(a.left, a.right, a.column_nodes, a.row_nodes + 1e-9)
    assert type(a @ close).__name__ == "Product"
    assert _distance((a @ close).to_dense(), a.to_dense() @ close.to_dense()) < 1e-13


def test_diagonal_factors_scale_the_generators() -> None:
    a, d = _matrix(5, m=3), _numbers(2, 5)
    rows = sm.Diagonal(_numbers(3, dtype=C128))
    last, first = a @ sm.Diagonal(d), rows @ a.to(C128)
    assert isinstance(last, sm.CauchyLike) and isinstance(first, sm.CauchyLike)
    assert _distance(last.to_dense(), a.to_dense() * d[:, None, :]) < 10 * EPS
    assert _distance(first.to_dense(), rows.entries[:, None] * a.to_dense()) < 10 * EPS


def test_slices_and_scaling_stay_cauchy_like() -> None:
    a = _matrix(7, m=5)
    for rows, columns in ((slice(1, 4), slice(None, None, 2)), (slice(None, None, -1), slice(2, 3))):
        cut = a[rows, columns]
        assert isinstance(cut, sm.CauchyLike)
        index = torch.arange(5)[torch.arange(5).tolist().__getitem__(rows)], torch.arange(7).tolist()[columns]
        assert _distance(cut.to_dense(), a.to_dense()[index[0]][:, index[1]]) < 4 * EPS
    twice = a * (2 + 1j)
    assert isinstance(twice, sm.CauchyLike) and _distance(twice.to_dense(), a.to_dense() * (2 + 1j)) < 10 * EPS


def test_from_dense_finds_the_smallest_rank() -> None:
    a = _matrix(8, 2, m=6)
    found = sm.CauchyLike.from_dense(a.to_dense(), a.row_nodes, a.column_nodes)
    assert isinstance(found, sm.CauchyLike) and found.left.shape[-1] == 2
    assert _distance(found.to_dense(), a.to_dense()) < 1e-13
    assert (
        _distance(sm.CauchyLike.nearest(a.to_dense(), a.row_nodes, a.column_nodes, 1).to_dense(), a.to_dense()) > 0.01
    )
    with pytest.raises(ValueError, match="a row node equals a column node"):
        sm.CauchyLike.from_dense(a.to_dense(), a.row_nodes, a.row_nodes[:1].expand(8))
    with pytest.raises(sm.NotStructuredError):
        sm.CauchyLike.from_dense(a.to_dense(), a.row_nodes, a.column_nodes, tol=1e-18)


def test_rank_zero() -> None:
    a = sm.CauchyLike(torch.zeros(4, 0), torch.zeros(4, 0), torch.arange(4.0), torch.arange(4.0) + 0.5)
    assert a.rank_bound() == 0 and not (a @ torch.ones(4)).any() and not a.to_dense().any()
    with pytest.raises(sm.SolveError):
        a.solve(torch.ones(4), method="gko")


# -- what is refused ----------------------------------------------------------------------------------------------


def test_sizes_must_fit() -> None:
    good = _matrix(3, 2).tensors()
    for k, wrong in ((0, _numbers(4, 2)), (1, _numbers(3, 1)), (2, _numbers(2)), (3, _numbers(5))):
        with pytest.raises(sm.ShapeError, match="CauchyLike"):
            sm.CauchyLike(*(wrong if i == k else t for i, t in enumerate(good)))


def test_coinciding_nodes_are_named() -> None:
    x = torch.arange(4.0, dtype=F64)
    y = x + 0.5
    y[2] = 1.0
    with pytest.raises(ValueError, match="a row node equals a column node"):
        sm.CauchyLike.of_nodes(x, y)
    a = sm.CauchyLike(torch.ones(4, 1, dtype=F64), torch.ones(4, 1, dtype=F64), x, y)  # construction reads no values
    with pytest.raises(sm.SolveError, match="a row node equals a column node"):
        a.solve(torch.ones(4, dtype=F64), method="gko")
    with pytest.raises(ValueError, match="no meaning for the direct method"):
        _matrix(3).solve(_numbers(3), method="gko", max_steps=3)


def test_plans() -> None:
    a = sm.CauchyLike.random(300)
    assert backend.explain("solve", a, torch.zeros(300)).path == "gko"
    assert backend.explain(a, torch.zeros(300)).path == "quotients"
    assert backend.explain("solve", sm.CauchyLike.random(5), torch.zeros(5)).path == "dense"
