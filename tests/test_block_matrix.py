"""Block matrices of mixed types: making, products, block substitution, claims, closed forms, stacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, Matrix
from structmat.testing import assert_claims, strategies
from structmat.testing.reference import dense_of, magnitude_of

F64, C128 = torch.float64, torch.complex128


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _circulant(n: int, batch: tuple[int, ...] = ()) -> sm.Circulant:
    return sm.Circulant(_numbers(*batch, n) / n**0.5 + 3 * torch.nn.functional.one_hot(torch.tensor(0), n))


def _triangular(upper: bool, batch: tuple[int, ...] = ()) -> sm.Block:
    """Three types on the diagonal; the block above or below it is low-rank, one block is zero."""
    off = sm.LowRank(_numbers(4, 1), _numbers(3, 1))
    rows = [[_circulant(4, batch), off, None], [None, sm.Diagonal(2 + torch.rand(3, dtype=F64)), None]]
    rows.append([None, sm.Dense(_numbers(2, 3)) if not upper else None, sm.Identity(2)])
    if not upper:
        rows[0][1] = None
    return sm.block(rows)


def test_block_is_numpy_block() -> None:
    a, b, c, d = _numbers(2, 3), _numbers(2, 1), _numbers(4, 3), _numbers(4, 1)
    found = sm.block([[sm.Dense(a), b], [c.tolist(), d.numpy()]])
    assert type(found) is sm.Block and found.shape == (6, 4)
    assert numpy.array_equal(found.to_dense().numpy(), numpy.block([[a.numpy(), b.numpy()], [c.numpy(), d.numpy()]]))
    wide, tall = sm.hstack([sm.Dense(a), b]), sm.vstack([sm.Dense(a), c])
    assert torch.equal(wide.to_dense(), torch.cat([a, b], -1)) and torch.equal(tall.to_dense(), torch.cat([a, c], -2))
    assert torch.equal(sm.cat([sm.Dense(a), c], dim=0).to_dense(), torch.cat([a, c], 0))
    assert torch.equal(sm.cat([sm.Dense(a), b], dim=1).to_dense(), torch.cat([a, b], 1))
    none = sm.block([[sm.Dense(a), None], [None, d]])
    assert type(none.blocks[0][1]) is sm.Zero and none.blocks[1][0].shape == (4, 3)
    assert torch.equal(none.to_dense(), torch.block_diag(a, d))


def test_the_repr_shows_the_grid() -> None:
    a = sm.block([[sm.Identity(2), 3 * sm.HouseholderProduct(torch.ones(1, 2))], [None, sm.Diagonal(torch.ones(2))]])
    lines = repr(a).splitlines()
    assert lines[0] == "Block[2 x 2](" and lines[1].startswith("  [0, 0] Identity(") and lines[-1] == ")"
    assert any(line.startswith("  [1, 0] Zero(") for line in lines)


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("upper", [True, False])
def test_zeros_on_one_side_are_solved_block_by_block(upper: bool, batch: tuple[int, ...]) -> None:
    a = _triangular(upper, batch)
    dense, b = dense_of(a), _numbers(*batch, 9, 2, seed=4)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "block by block" and torch.allclose(dense @ x, b, atol=1e-12)
    assert torch.allclose(a.solve(torch.ones(9, dtype=F64)), torch.linalg.solve(dense, torch.ones(9, dtype=F64)))
    assert torch.allclose(a.factor().adjoint_solve(b), torch.linalg.solve(dense.mT, b), atol=1e-12)
    for got, wanted in zip(a.slogdet(), torch.linalg.slogdet(dense), strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.allclose(a.inv().to_dense(), torch.linalg.inv(dense), atol=1e-12)
    assert torch.allclose(a.norm(), dense.norm(dim=(-2, -1))) and torch.allclose(
        a.diagonal(), dense.diagonal(dim1=-2, dim2=-1)
    )


def test_without_zeros_it_is_solved_as_any_matrix() -> None:
    a = sm.block([[_circulant(4), _numbers(4, 2)], [_numbers(2, 4, seed=1), 5 * torch.eye(2, dtype=F64)]])
    b = _numbers(6)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "dense" and torch.allclose(dense_of(a) @ x, b, atol=1e-12)
    assert torch.allclose(a.logabsdet(), torch.linalg.slogdet(dense_of(a))[1])


def test_claims() -> None:
    q, kms = sm.HouseholderProduct(_numbers(2, 4)), sm.SymmetricToeplitz(0.5 ** torch.arange(3, dtype=F64))
    kms = kms.assume(Claim.POSITIVE_DEFINITE)
    turned = sm.block([[q, None], [None, sm.Permutation(torch.tensor([1, 0]))]])
    assert Claim.ORTHOGONAL in turned.claims and type(turned.inv()) is sm.Block
    definite = sm.block([[kms, None], [None, sm.Identity(2)]])
    assert {Claim.POSITIVE_DEFINITE, Claim.SYMMETRIC} <= definite.claims.properties
    assert Claim.ORTHOGONAL not in definite.claims
    upper = sm.block([[sm.Identity(2), _numbers(2, 3)], [None, sm.Triangular(_numbers(3, 3), upper=True)]])
    assert upper.claims.properties == {Claim.UPPER_TRIANGULAR}
    assert Claim.LOWER_TRIANGULAR in upper.mT.claims
    thin = sm.block(
        [[sm.LowRank(_numbers(4, 1), _numbers(4, 1)), None], [None, sm.LowRank(_numbers(3, 1), _numbers(3, 1))]]
    )
    assert thin.claims.rank == 2 and thin.rank_bound() == 2
    for a in (turned, definite, upper, thin):
        assert_claims(a, dense_of(a), size=magnitude_of(a))


CLOSED: list[tuple[str, Callable[[sm.Block, sm.Block], Matrix], type[Matrix]]] = [
    ("a @ b", lambda a, b: a @ b, sm.Block),
    ("a + b", lambda a, b: a + b, sm.Block),
    ("a - 2 b", lambda a, b: a - 2 * b, sm.Block),
    ("a.mT @ b", lambda a, b: a.mT @ b, sm.Block),
    ("other grid @", lambda a, b: a @ sm.block([[_circulant(4), _numbers(4, 5)], [None, _circulant(5)]]), sm.Product),
    ("other grid +", lambda a, b: a + sm.block([[_circulant(5), _numbers(5, 4)], [None, _circulant(4)]]), sm.Sum),
    ("a @ low rank", lambda a, b: a @ sm.LowRank(_numbers(9, 1), _numbers(9, 1)), sm.LowRank),
    ("a + Zero", lambda a, b: a + sm.Zero(9, 9), sm.Block),
    ("I @ a", lambda a, b: sm.Identity(9) @ a, sm.Block),
]


@pytest.mark.parametrize(("act", "kind"), [c[1:] for c in CLOSED], ids=[c[0] for c in CLOSED])
def test_closed_forms(act: Callable[[sm.Block, sm.Block], Matrix], kind: type[Matrix]) -> None:
    found = act(_triangular(True), _triangular(False))
    assert type(found) is kind
    assert_claims(found, dense_of(found), size=magnitude_of(found))


@given(st.data())
def test_products_sums_and_entrywise_products_of_one_grid(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    a = data.draw(strategies.matrices(sm.Block, shape=(m, n)))
    b = 2 * a
    x, size = dense_of(a), magnitude_of(a) + 1
    assert torch.allclose((a + b).to_dense(), 3 * x, atol=1e-12 * size)
    assert torch.allclose((a @ b.mT).to_dense(), 2 * x @ x.mT, atol=1e-12 * size**2)
    assert torch.allclose((a * b).to_dense(), 2 * x * x, atol=1e-12 * size**2)


@given(st.data())
def test_a_block_diagonal_matrix_times_any_entry_by_entry(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    a = data.draw(strategies.matrices(sm.BlockDiagonal, shape=(m, n)))
    b = data.draw(strategies.matrices(shape=(m, n)).filter(lambda b: type(b) is not sm.BlockDiagonal))
    for found in (a * b, b * a):
        size = magnitude_of(a) * magnitude_of(b) + magnitude_of(a)
        assert torch.allclose(found.to_dense(), dense_of(a) * dense_of(b), rtol=1e-10, atol=1e-11 * size), repr(b)
    assert type(a * sm.Toeplitz(_numbers(m + n - 1), n)) is sm.BlockDiagonal


def test_derivatives_reach_every_block() -> None:
    column, left, entries = _circulant(3).column.requires_grad_(), _numbers(3, 1).requires_grad_(), _numbers(2)
    entries = (2 + entries.abs()).requires_grad_()

    def solved(c: torch.Tensor, u: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        upper = sm.LowRank(u, torch.ones(2, 1, dtype=F64))
        return sm.block([[sm.Circulant(c), upper], [None, sm.Diagonal(e)]]).solve(torch.ones(5, dtype=F64))

    assert torch.autograd.gradcheck(solved, (column, left, entries), fast_mode=True)
    assert torch.autograd.gradgradcheck(solved, (column, left, entries), fast_mode=True)


def test_what_does_not_fit_is_named() -> None:
    a = sm.Dense(_numbers(2, 3))
    with pytest.raises(sm.ShapeError, match="the heights of row 0 differ: 2, 4"):
        sm.block([[a, _numbers(4, 1)]])
    with pytest.raises(sm.ShapeError, match="row 1 holds nothing but None"):
        sm.block([[a, a], [None, None]])
    with pytest.raises(sm.ShapeError, match="the same number"):
        sm.block([[a, a], [a]])
    with pytest.raises(TypeError, match="rows of blocks"):
        sm.block([])
    with pytest.raises(sm.ShapeError, match=r"block \[0, 1\], .*Dense\(shape=\(4, 1\).* has to be 2 x 1"):
        sm.Block(((a, sm.Dense(_numbers(4, 1))),))
    with pytest.raises(ValueError, match=r"cat\(dim=2\)"):
        sm.cat([a, a], dim=2)
    with pytest.raises(sm.DtypeError):
        sm.hstack([a, sm.Dense(torch.ones(2, 1))])


def test_stacks_of_composed_matrices() -> None:
    make: list[Callable[[int], Matrix]] = [
        lambda s: sm.Diagonal(_numbers(4, seed=s)) + sm.HouseholderProduct(_numbers(1, 4, seed=s)),
        lambda s: sm.Diagonal(_numbers(4, seed=s)) @ sm.HouseholderProduct(_numbers(1, 4, seed=s)),
        lambda s: sm.kron(sm.Diagonal(_numbers(2, seed=s)), sm.Circulant(_numbers(2, seed=s))),
        lambda s: sm.block([[sm.Diagonal(_numbers(2, seed=s)), None], [None, sm.Identity(2)]]),
    ]
    for each in make:
        parts = [each(s) for s in range(3)]
        found = sm.stack(parts)
        assert type(found) is type(parts[0]) and found.batch_shape == (3,)
        assert torch.equal(found.to_dense(), torch.stack([p.to_dense() for p in parts]))
        assert torch.equal(found[1].to_dense(), parts[1].to_dense())
    with pytest.raises(sm.StructureError, match=r"stack"):
        sm.stack([make[0](0), make[1](0)])
    with pytest.raises(sm.StructureError, match=r"stack"):
        sm.stack([make[0](0), make[0](0) + sm.Circulant(_numbers(4))])
