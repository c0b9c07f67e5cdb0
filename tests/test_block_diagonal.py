"""Block-diagonal matrices: against scipy, closed with each other and with diagonals, block by block at any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import block_diagonal as fb
from structmat.testing import assert_gradients
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.reference import dense_of
from tests.test_no_dense import Largest, N, no_dense_arrays

F64, C128 = torch.float64, torch.complex128
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _check(found: Any, wanted: torch.Tensor, kind: type = sm.BlockDiagonal, size: float = 40.0) -> None:
    assert type(found) is kind, repr(found)
    assert_close(found.to_dense(), wanted, rounding(wanted.dtype, 24, size), repr(found))


@given(SIZES, st.integers(0, 100))
def test_index_logic_is_exact(kpq: tuple[int, int, int], seed: int) -> None:
    """Over the integers modulo 10007: products, dense entries and diagonal, against scipy."""
    k, p, q = kpq
    drawn = torch.Generator().manual_seed(seed)
    blocks = torch.randint(10007, (k, p, q), generator=drawn)
    wanted = scipy.linalg.block_diag(*blocks.numpy())
    x = torch.randint(10007, (3, k * q), generator=drawn)
    assert (fb.linear(x, blocks).numpy() % 10007 == x.numpy() @ wanted.T % 10007).all()
    assert (fb.dense(blocks).numpy() == wanted).all()
    assert (fb.diagonal(blocks).numpy() == numpy.diagonal(wanted)).all()
    both = torch.stack((blocks, blocks + 1))
    rows = torch.randint(10007, (5, 2, 3, k * q), generator=drawn)
    other = numpy.stack((wanted, scipy.linalg.block_diag(*(blocks + 1).numpy())))
    assert (fb.linear(rows, both).numpy() % 10007 == rows.numpy() @ other.swapaxes(-1, -2) % 10007).all()
    assert fb.linear(rows[0, 0, 0], both).shape == (2, k * p) and fb.linear(rows[:0], blocks).shape == (0, 2, 3, k * p)


@given(SIZES, st.integers(1, 4))
def test_closed_products_and_sums(kpq: tuple[int, int, int], r: int) -> None:
    k, p, q = kpq
    a, b = sm.BlockDiagonal(_numbers(2, k, p, q)), sm.BlockDiagonal(_numbers(k, q, r, seed=1))
    x, y = dense_of(a), dense_of(b)
    _check(a @ b, x @ y)
    _check(a + sm.BlockDiagonal(_numbers(k, p, q, seed=2)), x + dense_of(sm.BlockDiagonal(_numbers(k, p, q, seed=2))))
    _check(a * a, x * x)
    left, right = sm.Diagonal(_numbers(k * p, seed=3)), sm.Diagonal(_numbers(2, k * q, seed=4))
    _check(left @ a, dense_of(left) @ x)
    _check(a @ right, x @ dense_of(right))
    _check(a @ right.to(C128), (x @ dense_of(right)).to(C128))
    _check(2j * a, 2j * x)


def test_sums_with_diagonals_and_what_stays_lazy() -> None:
    a = sm.BlockDiagonal(_numbers(3, 2, 2))
    x, eye = dense_of(a), torch.eye(6, dtype=F64)
    d = sm.Diagonal(_numbers(6))
    for found, wanted in (
        (a + d, x + dense_of(d)),
        (d - a, dense_of(d) - x),
        (a + sm.Identity(6), x + eye),
        (sm.Identity(6) + a, x + eye),
        (a - 0.1 * sm.Identity(6), x - 0.1 * eye),
        (3 * sm.Identity(6) + a, x + 3 * eye),
        (a + sm.Identity(6, C128), (x + eye).to(C128)),
    ):
        _check(found, wanted)
    other = sm.BlockDiagonal(_numbers(2, 3, 3))
    _check(a @ other, x @ dense_of(other), sm.Product)
    _check(a + other, x + dense_of(other), sm.Sum)
    _check(a + 2 * sm.HouseholderProduct(torch.zeros(1, 6, dtype=F64)), x + 2 * eye, sm.Sum)
    with pytest.raises(sm.StructureError, match="no structured form for blocks of two sizes"):
        a * other


def test_solve_and_singular_blocks() -> None:
    blocks = _numbers(2, 4, 3, 3, dtype=C128) + 4 * torch.eye(3)
    a = sm.BlockDiagonal(blocks)
    b = _numbers(12, 2, dtype=C128)
    limit = 1e3 * torch.finfo(F64).eps * float(torch.linalg.cond(dense_of(a)).max())
    assert float((a @ a.solve(b) - b).abs().max()) <= limit and float((a.inv() @ b - a.solve(b)).abs().max()) <= limit
    assert float((a.mH @ a.factor().adjoint_solve(b) - b).abs().max()) <= limit
    assert float((a.solve(b, method="dense") - a.solve(b)).abs().max()) <= limit
    singular = sm.BlockDiagonal(torch.stack((torch.eye(2), torch.zeros(2, 2))))
    for call in (lambda: singular.solve(torch.ones(4)), singular.inv):
        with pytest.raises(sm.SolveError, match=r"a block is singular .*; see pinv and lstsq"):
            call()
    assert singular.slogdet()[1] == -torch.inf and singular.det() == 0
    with pytest.raises(sm.ShapeError, match="inv needs a square one"):
        sm.BlockDiagonal(torch.ones(2, 3, 1)).inv()
    with pytest.raises(ValueError, match="max_steps has no meaning for the direct method 'blocks'"):
        a.solve(b, max_steps=3)


def test_pinv_cuts_by_the_largest_value_of_all_blocks() -> None:
    """1e-18 is noise beside 1, also where it is the largest value of its own block."""
    blocks = torch.stack((torch.eye(2, dtype=F64), 1e-18 * torch.eye(2, dtype=F64)))
    a = sm.BlockDiagonal(blocks)
    assert float((a.pinv().to_dense() - torch.linalg.pinv(dense_of(a))).norm()) == 0
    wide = sm.BlockDiagonal(_numbers(2, 3, 2, 4))
    wanted = torch.linalg.pinv(dense_of(wide))
    assert float((wide.pinv().to_dense() - wanted).norm()) <= 1e3 * torch.finfo(F64).eps * float(wanted.norm())
    assert tuple(wide.lstsq(_numbers(6)).shape) == (2, 12)


VERBS: dict[str, Callable[[Any], Any]] = {
    "inv": lambda a: a.inv().to_dense(),
    "logabsdet": lambda a: a.logabsdet(),
    "solve": lambda a: a.solve(torch.arange(1.0, 7.0, dtype=F64)),
    "norm": lambda a: a.norm(),
    "svdvals": lambda a: a.svdvals(),
    "diagonal": lambda a: a.diagonal(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_gradients(verb: str, dtype: torch.dtype) -> None:
    a = sm.BlockDiagonal(_numbers(2, 3, 2, 2, dtype=dtype) + 3 * torch.eye(2))
    assert_gradients(VERBS[verb], (a,), order=1 if verb == "svdvals" else 2)


def test_nothing_dense_exists_at_4096() -> None:
    def run(n: int) -> None:
        a = sm.BlockDiagonal((_numbers(n // 8, 8, 8) + 6 * torch.eye(8)).requires_grad_())
        x = _numbers(2, n)
        total = a.linear(x).sum() + a.solve(x.mT).sum() + a.inv().linear(x).sum() + a.slogdet()[1] + a.norm()
        total = total + a.svdvals().sum() + a.diagonal().sum() + (a @ a + sm.Identity(n)).pinv().norm()
        total.backward()

    with Largest():
        run(16)
    with no_dense_arrays():
        run(N)


def test_making() -> None:
    a = sm.block_diag(torch.ones(2, 2, dtype=F64), sm.Identity(2, F64), [[1, 2], [3, 4]])
    assert type(a) is sm.BlockDiagonal
    wanted = scipy.linalg.block_diag(numpy.ones((2, 2)), numpy.eye(2), [[1, 2], [3, 4]])
    assert (numpy.asarray(a) == wanted).all()
    assert sm.block_diag([1.0, 2.0], [3.0, 4.0]).shape == (2, 4)
    assert sm.block_diag(torch.ones(5, 1, 2, 2), torch.ones(3, 2, 2)).shape == (5, 3, 4, 4)
    assert torch.equal(sm.BlockDiagonal.identity(2, 3).to_dense(), torch.eye(6))
    assert sm.BlockDiagonal.random(3, 2, 4, dtype=F64).shape == (6, 12)
    assert (
        repr(sm.BlockDiagonal(torch.ones(2, 3, 1))) == "BlockDiagonal(shape=(6, 2), blocks=2 of 3 x 1, dtype=float32)"
    )
    dense = _numbers(2, 6, 9)
    best = sm.BlockDiagonal.nearest(dense, 3)
    mask = torch.block_diag(*[torch.ones(2, 3, dtype=torch.bool)] * 3)
    assert torch.equal(best.to_dense(), torch.where(mask, dense, torch.zeros_like(dense)))
    assert torch.equal(sm.BlockDiagonal.from_dense(best.to_dense(), 3).blocks, best.blocks)
    both = sm.stack([best, 2 * best])
    assert both.shape == (2, 2, 6, 9) and torch.equal(both[1].to_dense(), 2 * best.to_dense())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sm.BlockDiagonal(torch.ones(2, 2)), sm.ShapeError, "blocks must have at least 3 dimensions"),
        (lambda: sm.BlockDiagonal(torch.ones(1, 2, 2).int()), sm.DtypeError, "blocks must be floating point"),
        (lambda: sm.BlockDiagonal.nearest(torch.ones(4, 6), 4), sm.ShapeError, "4 x 6 has no 4 blocks of one size"),
        (lambda: sm.BlockDiagonal.from_dense(torch.ones(4, 4), 2), sm.NotStructuredError, "nearest BlockDiagonal"),
        (lambda: sm.block_diag(), sm.ShapeError, "blocks of one size are needed, got none"),
        (lambda: sm.block_diag([[1.0]], [[1.0, 2.0]]), sm.ShapeError, "got 1 x 1, 1 x 2; pad them"),
        (lambda: sm.block_diag(torch.ones(1, 1), [[1.0]]), sm.DtypeError, "block_diag: dtypes float32 and float64"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
