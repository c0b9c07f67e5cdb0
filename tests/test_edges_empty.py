"""Nothing to do: rows, batches and matrices of size 0. Every type answers with an empty result of the right shape (the
determinant of nothing is 1), no transform is started, and a backward pass goes through with zero gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch

import structmat as sm
from structmat import Matrix
from structmat.functional import transforms
from structmat.testing.examples import EXAMPLES, Example

F64, C128, BF16 = torch.float64, torch.complex128, torch.bfloat16
BATCHED = [e for e in EXAMPLES if any(e.batches)]
SQUARE_BATCHED = [e for e in BATCHED if e.build().shape[-1] == e.build().shape[-2]]


def _dtypes(example: Example) -> list[torch.dtype]:
    return [d for d in (F64, C128, BF16) if d in example.dtypes]


def _rows(shape: tuple[int, ...], matrix: Matrix, requires_grad: bool = True) -> torch.Tensor:
    return torch.ones(shape, dtype=matrix.dtype or F64, requires_grad=requires_grad)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_no_rows(example: Example) -> None:
    for dtype in _dtypes(example):
        matrix = example.build(dtype)
        m, n = matrix.shape[-2:]
        for lead in ((0,), (2, 0), (0, 2)):
            x = _rows((*lead, n), matrix)
            y = matrix.linear(x)
            assert y.shape == (*lead, m)
            y.abs().sum().backward()
            assert x.grad is not None and x.grad.shape == x.shape
        if m == n:
            assert matrix.solve(_rows((n, 0), matrix)).shape == (n, 0)


@pytest.mark.parametrize("example", BATCHED, ids=lambda e: e.name)
def test_a_batch_of_none(example: Example) -> None:
    for dtype in _dtypes(example):
        matrix = example.build(dtype, (0,))
        m, n = matrix.shape[-2:]
        assert matrix.shape == (0, m, n) and matrix.batch_shape == (0,)
        x, b = _rows((3, n), matrix), _rows((3, m), matrix)
        for found, size in ((matrix.linear(x), m), (matrix.mT.linear(b), n), (matrix.mH.linear(b), n)):
            assert found.shape == (0, 3, size)
        matrix.linear(x).abs().sum().backward()
        assert x.grad is not None and not x.grad.any()
        assert matrix.linear(_rows((n,), matrix)).shape == (0, m)
        assert matrix.to_dense().shape == (0, m, n)
        assert matrix.norm().shape == (0,) and matrix.diagonal().shape == (0, min(m, n))


@pytest.mark.parametrize("example", SQUARE_BATCHED, ids=lambda e: e.name)
def test_a_square_batch_of_none(example: Example) -> None:
    matrix = example.build(F64 if F64 in example.dtypes else C128, (0,))
    n = int(matrix.shape[-1])
    assert matrix.solve(_rows((n, 2), matrix)).shape == (0, n, 2)
    assert matrix.solve(_rows((n,), matrix)).shape == (0, n)
    assert all(part.shape == (0,) for part in matrix.slogdet())
    assert matrix.det().shape == (0,) and matrix.trace().shape == (0,)
    assert matrix.eigvals().shape == (0, n)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def _of_order_zero() -> Iterator[tuple[str, Callable[[torch.dtype], Matrix]]]:
    def z(*shape: int) -> Callable[[torch.dtype], torch.Tensor]:
        return lambda d: _empty(*shape, dtype=d)

    none = torch.zeros(0, dtype=torch.long)
    of: list[tuple[str, Callable[[torch.dtype], Matrix]]] = [
        ("dense", lambda d: sm.Dense(z(0, 0)(d))),
        ("diagonal", lambda d: sm.Diagonal(z(0)(d))),
        ("identity", lambda d: sm.Identity(0, d)),
        ("zero", lambda d: sm.Zero(0, 0, d)),
        ("permutation", lambda d: sm.Permutation(none)),
        ("no blocks", lambda d: sm.BlockDiagonal(z(0, 2, 2)(d))),
        ("blocks of 0", lambda d: sm.BlockDiagonal(z(3, 0, 0)(d))),
        ("low rank", lambda d: sm.LowRank(z(0, 2)(d), z(0, 2)(d))),
        ("low rank 0", lambda d: sm.LowRank(z(0, 0)(d), z(0, 0)(d))),
        ("kronecker", lambda d: sm.Kronecker((sm.Circulant(z(0)(d)), sm.Diagonal(torch.ones(3, dtype=d))))),
        ("kronecker sum", lambda d: sm.KroneckerSum(sm.Dense(z(0, 0)(d)), sm.Dense(z(2, 2)(d)))),
        ("circulant", lambda d: sm.Circulant(z(0)(d))),
        ("circulants", lambda d: sm.Circulant(z(2, 0)(d))),
        ("skew-circulant", lambda d: sm.Circulant(z(0)(d), -1)),
        ("f-circulant", lambda d: sm.Circulant(z(0)(d), 2.0)),
        ("triangular", lambda d: sm.Circulant(z(0)(d), 0)),
        ("far f", lambda d: sm.Circulant(z(0)(d), 1e-12)),
        ("prepared circulant", lambda d: sm.Circulant(z(0)(d)).prepare()),
        ("orthogonal circulant", lambda d: sm.OrthogonalCirculant(_empty(0, dtype=F64), ())),
        ("orthogonal skew", lambda d: sm.OrthogonalCirculant(_empty(0, dtype=F64), (), -1)),
        ("toeplitz", lambda d: sm.Toeplitz(z(0)(d), 0)),
        ("prepared toeplitz", lambda d: sm.Toeplitz(z(0)(d), 0).prepare()),
        ("symmetric toeplitz", lambda d: sm.SymmetricToeplitz(z(0)(d))),
        ("hermitian toeplitz", lambda d: sm.HermitianToeplitz(z(0)(d))),
        ("hankel", lambda d: sm.Hankel(z(0)(d), 0)),
        ("displacement", lambda d: sm.LowDisplacementRank(z(0, 2)(d), z(0, 2)(d))),
        ("displacement 0", lambda d: sm.LowDisplacementRank(z(0, 0)(d), z(0, 0)(d))),
        ("displacement e, f", lambda d: sm.LowDisplacementRank(z(0, 1)(d), z(0, 1)(d), 2.0, 1)),
        ("prepared displacement", lambda d: sm.LowDisplacementRank(z(0, 2)(d), z(0, 2)(d)).prepare()),
        ("cauchy", lambda d: sm.CauchyLike(z(0, 1)(d), z(0, 1)(d), z(0)(d), z(0)(d))),
        ("vandermonde", lambda d: sm.Vandermonde(z(0)(d), 0)),
        ("reflections", lambda d: sm.HouseholderProduct(z(2, 0)(d))),
        ("no reflections", lambda d: sm.HouseholderProduct(z(0, 0)(d))),
        ("rotations", lambda d: sm.GivensProduct(_empty(0, dtype=F64), (), 0)),
        ("submatrix", lambda d: sm.Submatrix(sm.Circulant(torch.ones(3, dtype=d)), none)),
        ("slice", lambda d: sm.Toeplitz(torch.ones(5, dtype=d), 3)[0:0, 0:0]),
        ("tucker", lambda d: sm.Tucker(z(0, 0)(d), (z(0, 0)(d), z(0, 0)(d))).matricize((0,))),
        ("product", lambda d: sm.Product((sm.Diagonal(z(0)(d)), sm.Circulant(z(0)(d))))),
        ("sum", lambda d: sm.Sum((sm.Diagonal(z(0)(d)), sm.Circulant(z(0)(d))))),
        ("scaled", lambda d: sm.Scaled(sm.HouseholderProduct(z(1, 0)(d)), 2.0)),
        ("inverse", lambda d: sm.Inverse(sm.SymmetricToeplitz(z(0)(d)))),
        ("implicit", lambda d: sm.Implicit((0, 0), lambda x: x * 1, lambda x: x * 1, d)),
    ]
    yield from of


ORDER_ZERO = [pytest.param(make, id=name) for name, make in _of_order_zero()]


def _backward(product: Callable[[Matrix, torch.Tensor], torch.Tensor], make: Callable[[], Matrix]) -> None:
    for shape in ((0,), (3, 0), (0, 0)):
        matrix = make()
        x = torch.zeros(shape, dtype=matrix.dtype or F64, requires_grad=True)
        y = product(matrix, x)
        assert y.shape == (*matrix.batch_shape, *shape)
        y.abs().sum().backward()
        assert x.grad is not None and x.grad.shape == shape
        for field in matrix.tensors():
            if field.requires_grad and field.is_leaf:
                assert field.grad is not None and not field.grad.any()


@pytest.mark.parametrize("make", ORDER_ZERO)
def test_products_and_solves_of_order_zero(make: Callable[[torch.dtype], Matrix]) -> None:
    for dtype in (F64, C128, BF16):
        for product in (
            lambda a, x: a.linear(x),
            lambda a, x: a.mT.linear(x),
            lambda a, x: a.mH.linear(x),
            lambda a, x: a.prepare().linear(x),
            lambda a, x: a.solve_rows(x),
        ):
            _backward(product, lambda dtype=dtype: make(dtype))


@pytest.mark.parametrize("make", ORDER_ZERO)
def test_verbs_of_order_zero(make: Callable[[torch.dtype], Matrix]) -> None:
    for dtype in (F64, C128, BF16):
        matrix = make(dtype)
        batch = tuple(matrix.batch_shape)
        assert tuple(matrix.shape[-2:]) == (0, 0) and repr(matrix) and matrix.rank_bound() == 0
        for number, value in (
            (matrix.det(), 1),
            (matrix.slogdet()[0], 1),
            (matrix.slogdet()[1], 0),
            (matrix.logabsdet(), 0),
            (matrix.factor().slogdet()[0], 1),
            (matrix.trace(), 0),
            (matrix.norm(), 0),
        ):
            assert number.shape == batch and bool((number == value).all())
        for none in (matrix.diagonal(), matrix.eigvals(), matrix.svdvals()):
            assert none.shape == (*batch, 0)
        for other in (matrix, matrix.inv(), matrix.pinv(), 2.0 * matrix, matrix + matrix, matrix @ matrix):
            assert other.to_dense().shape == (*batch, 0, 0)
        b = torch.zeros(0, 2, dtype=matrix.dtype or F64)
        assert matrix.lstsq(b).shape == (*batch, 0, 2)
        assert matrix.factor().solve(b).shape == (*batch, 0, 2)


MAKERS = [
    *(lambda k=k: k.random(0) for k in (sm.Dense, sm.Diagonal, sm.Circulant, sm.SymmetricToeplitz, sm.Vandermonde)),
    *(lambda k=k: k.random(0, 0) for k in (sm.Toeplitz, sm.Hankel, sm.LowRank, sm.CauchyLike)),
    *(lambda k=k: k.identity(0) for k in (sm.Dense, sm.Diagonal, sm.Circulant, sm.Toeplitz, sm.SymmetricToeplitz)),
    *(lambda k=k: k.identity(0) for k in (sm.HermitianToeplitz, sm.OrthogonalCirculant, sm.HouseholderProduct)),
    *(
        lambda k=k: k.from_dense(torch.zeros(0, 0))
        for k in (sm.Dense, sm.Diagonal, sm.Circulant, sm.Toeplitz, sm.SymmetricToeplitz, sm.HermitianToeplitz)
    ),
    *(
        lambda k=k: k.from_dense(torch.zeros(0, 0))
        for k in (sm.Hankel, sm.Permutation, sm.OrthogonalCirculant, sm.HouseholderProduct, sm.LowRank, sm.Zero)
    ),
    lambda: sm.circulant([]),
    lambda: sm.toeplitz([]),
]


@pytest.mark.parametrize("make", MAKERS)
def test_makers_of_order_zero(make: Callable[[], Matrix]) -> None:
    matrix = make()
    assert tuple(matrix.shape) == (0, 0) and matrix.to_dense().shape == (0, 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_vandermonde_without_nodes_or_without_powers(transposed: bool) -> None:
    for nodes, columns in ((0, 3), (3, 0)):
        matrix = sm.Vandermonde(_empty(nodes, dtype=F64), columns, transposed)
        m, n = matrix.shape
        assert {m, n} == {0, 3}
        assert matrix.to_dense().shape == (m, n)
        y = matrix.linear(torch.ones(2, n, dtype=F64))
        assert y.shape == (2, m) and not y.any()
        y.sum().backward()


def test_arrays_of_levels_and_butterflies_have_no_order_zero() -> None:
    """An image without pixels and a tree without leaves have no meaning: they are refused by name."""
    for act in (
        lambda: sm.BlockCirculant(torch.ones(0, 2), 2),
        lambda: sm.BlockToeplitz(torch.ones(0, 3), (0, 2)),
        lambda: sm.CosineDiagonal(torch.ones(0, 2), 2),
        lambda: sm.Butterfly((torch.ones(0, 2, 2),), (0, 2), ((1,),)),
        lambda: sm.OrthogonalButterfly(torch.ones(1, 0, 1)),
    ):
        with pytest.raises(sm.ShapeError):
            act()


def test_transforms_of_nothing() -> None:
    """The shapes are those that torch gives where it gives any, the numbers zero, the gradient zero."""
    for lead in ((0,), (2, 0), (0, 3)):
        real, hat = torch.zeros(*lead, 6, requires_grad=True), torch.zeros(*lead, 4, dtype=torch.complex64)
        assert transforms.rfft(real).shape == (*lead, 4) and transforms.fft(real, 8).shape == (*lead, 8)
        assert transforms.irfft(hat, 6).shape == (*lead, 6) and transforms.ifft(hat).shape == (*lead, 4)
        assert transforms.fftn(real[..., None, :], (5, 6)).shape == (*lead, 5, 6)
        assert transforms.rfftn(real[..., None, :], (5, 6)).shape == (*lead, 5, 4)
        transforms.rfft(real).abs().sum().backward()
        assert real.grad is not None and real.grad.shape == real.shape
    assert transforms.rfft(torch.zeros(3, 0), 4).shape == (3, 3) and not transforms.rfft(torch.zeros(3, 0), 4).any()
    poisoned = torch.full((2, 2), math.nan, requires_grad=True)
    none = transforms.nothing((3,), F64, poisoned)
    assert not none.any() and none.dtype == F64
    none.sum().backward()
    assert poisoned.grad is not None and not poisoned.grad.any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 3, 0)], ids=str)
def test_norms_and_conditions_of_nothing(shape: tuple[int, ...]) -> None:
    a = sm.Dense(torch.zeros(shape, dtype=F64))
    for order in (None, "fro", "nuc", 1, 2, math.inf):
        assert torch.equal(sm.linalg.norm(a, order), torch.zeros(shape[:-2], dtype=F64))
    assert torch.equal(sm.linalg.cond(a), torch.zeros(shape[:-2], dtype=F64))
    for order in (-1, -2, -math.inf):
        with pytest.raises(sm.ShapeError, match="a matrix without entries has no least one"):
            sm.linalg.norm(a, order)


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize(("width", "upper"), [(1, 0), (3, 1), (2, 0)])
def test_banded_of_order_zero_with_diagonals(batch: tuple[int, ...], width: int, upper: int) -> None:
    a = sm.Banded(torch.zeros(*batch, width, 0, dtype=F64), upper)
    sign, logabs = a.slogdet()
    assert torch.equal(sign, torch.ones(batch, dtype=F64)) and torch.equal(logabs, torch.zeros(batch, dtype=F64))
    for b in (a.inv(), a @ a, a * a, a + a, a.mT, a @ a.mT):
        assert tuple(b.to_dense().shape) == (*batch, 0, 0)
    assert tuple(a.factor().solve(torch.zeros(*batch, 0, 3, dtype=F64)).shape) == (*batch, 0, 3)
