"""Principal submatrices: entries, the three ways to solve, determinants, derivatives, factorisations, and refusals."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, Matrix, backend
from structmat.functional.schur import Complement, few, missing_of
from structmat.testing import assert_gradients, strategies
from structmat.testing.reference import dense_of
from tests.test_no_dense import no_dense_arrays

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
EPS = torch.finfo(F64).eps


def numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def without(n: int, *gone: int) -> torch.Tensor:
    return torch.tensor([i for i in range(n) if i not in gone])


def toeplitz(n: int, dtype: torch.dtype = F64, batch: tuple[int, ...] = ()) -> sm.Toeplitz:
    t = numbers(*batch, 2 * n - 1, dtype=dtype) / n**0.5
    return sm.Toeplitz(t + 4 * torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(dtype), n)


def kms(n: int, rho: float = 0.9) -> sm.SymmetricToeplitz:
    return sm.SymmetricToeplitz(rho ** torch.arange(n, dtype=F64)).assume(Claim.POSITIVE_DEFINITE)


@given(data=st.data(), dtype=strategies.dtypes())
def test_entries_of_any_square_matrix(data: Any, dtype: torch.dtype) -> None:
    """Any order of any indices; transposes, conjugates, diagonals and multiples; exact: entries are moved, not
    computed."""
    n = data.draw(st.integers(1, 9))
    a = data.draw(strategies.dense(dtype, shape=(n, n)))
    keep = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    s = sm.Submatrix(a, torch.tensor(keep))
    wanted = a.entries[..., keep, :][..., keep]
    assert s.shape == wanted.shape and torch.equal(s.to_dense(), wanted)
    assert torch.equal(s.mT.to_dense(), wanted.mT) and torch.equal(s.mH.to_dense(), wanted.mH)
    assert torch.equal(s.diagonal(), torch.diagonal(wanted, dim1=-2, dim2=-1))
    assert isinstance(2 * s, sm.Submatrix) and torch.equal((2 * s).to_dense(), 2 * wanted)
    shifted = s + 0.5 * sm.Identity(len(keep))
    assert isinstance(shifted, sm.Submatrix)
    assert torch.equal(shifted.to_dense(), wanted + 0.5 * torch.eye(len(keep), dtype=dtype))


@pytest.mark.parametrize("order", [1, 2, 7, 30])
def test_missing_indices(order: int) -> None:
    for gone in ((), (0,), (order - 1,), tuple(range(0, order, 2))):
        keep = without(order, *gone)
        keep = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(0))].to(torch.int64)
        assert missing_of(keep, order).tolist() == sorted(set(range(order)) - set(keep.tolist()))


def test_few_keeps_the_small_block_small() -> None:
    for n in (300, 4096, 10**6, 10**8):
        most = max(q for q in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384) if few(n, q))
        assert most**2 <= 16 * n and most * n <= 2**27


@pytest.mark.parametrize("dtype", [F64, C128, F32, torch.complex64])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("gone", [(), (0,), (5, 100, 101, 399)])
def test_the_schur_way(gone: tuple[int, ...], batch: tuple[int, ...], dtype: torch.dtype) -> None:
    """Solve, adjoint and determinant above the dense limit, for shuffled indices, against the dense submatrix."""
    keep = without(400, *gone)[torch.randperm(400 - len(gone), generator=torch.Generator().manual_seed(1))]
    s = sm.Submatrix(toeplitz(400, dtype, batch), keep)
    b = numbers(len(keep), 2, dtype=dtype, seed=2)
    eps = torch.finfo(dtype).eps
    dense = dense_of(s)
    wide = b.to(dense.dtype)
    x, info = sm.linalg.solve(s, b, return_info=True)
    assert info.method == "schur" == backend.explain("solve", s, b).path and x.dtype == dtype
    assert float(info.backward_error.max()) <= 100 * eps
    kappa = float(torch.linalg.cond(dense).max())
    allowed = 4 * kappa * 100 * eps * float(wide.norm())
    assert float((x - torch.linalg.solve(dense, wide)).norm()) <= allowed
    factor = s.factor()
    assert factor.method == "schur" and factor.backward_error is not None
    assert float((factor.solve(b) - torch.linalg.solve(dense, wide)).norm()) <= allowed
    assert float((factor.adjoint_solve(b) - torch.linalg.solve(dense.mH, wide)).norm()) <= allowed
    assert factor.adjoint_solve(b[:, 0]).shape == (*batch, len(keep)) == factor.solve(b[:, 0]).shape
    for sign, logabs in (s.slogdet(), factor.slogdet()):
        wanted = torch.linalg.slogdet(dense)
        assert float((logabs - wanted[1]).abs().max()) <= 100 * len(keep) * eps * kappa
        assert float((sign - wanted[0]).abs().max()) <= 100 * len(keep) * eps * kappa


def test_the_way_follows_the_number_of_missing_indices() -> None:
    many = sm.Submatrix(kms(1000), torch.arange(0, 1000, 2))
    assert backend.explain("solve", many).path == "cg"
    b = numbers(500)
    x, info = sm.linalg.solve(many, b, return_info=True)
    assert info.method == "cg, T. Chan preconditioner" and float((many @ x - b).norm()) <= 1e-10
    by_name, info = sm.linalg.solve(many, b, method="schur", return_info=True)
    assert info.method == "schur" and float((by_name - x).norm()) <= 1e-9 * float(x.norm())
    with pytest.raises(sm.StructureError, match="slogdet: Submatrix has no structured form"):
        many.slogdet()
    log = many.factor(method="schur").logabsdet()
    assert float((log - torch.linalg.slogdet(dense_of(many))[1]).abs()) <= 1e-8
    small = sm.Submatrix(kms(1000), torch.arange(20))
    assert backend.explain("solve", small).path == "dense" and small.factor().method == "dense"
    for method in ("cg", "minres", "gmres", "dense"):
        s = sm.Submatrix(kms(300), without(300, 7))
        assert method in sm.linalg.solve(s, numbers(299), method=method, return_info=True)[1].method
    lazy = sm.Submatrix(sm.Circulant(numbers(400)) + sm.Diagonal(5 + numbers(400).abs()), without(400, 1))
    assert backend.explain("solve", lazy).path == "gmres"  # a sum without a low-rank term has no solve of its own
    thin = sm.Diagonal(5 + numbers(400).abs()) + sm.LowRank(numbers(400, 1), numbers(400, 1))
    lazy = sm.Submatrix(thin, without(400, 1))
    assert sm.linalg.solve(lazy, numbers(399), return_info=True)[1].method == "schur"
    given = sm.linalg.solve(sm.Submatrix(kms(400), without(400, 1)), numbers(399), start=numbers(399), return_info=True)
    assert given[1].method.startswith("cg")
    gap = sm.Submatrix(kms(1000, 0.99), without(1000, *range(300, 600)))  # a circulant serves best where gaps are whole
    plain = {"preconditioner": sm.Identity(700, F64), "return_info": True}
    steps = [sm.linalg.solve(gap, numbers(700), **o)[1].steps for o in (plain, {"return_info": True})]
    assert steps[1] < steps[0] / 10
    with pytest.raises(ValueError, match="conjugate gradients keep nothing; legal are 'auto', 'dense', 'schur'"):
        gap.factor(method="cg")


def test_a_singular_whole_matrix_falls_through() -> None:
    """A cyclic difference is singular, its submatrices are not: the reasons say what happened."""
    column = torch.zeros(400, dtype=F64)
    column[0], column[1], column[-1] = 2.0, -1.0, -1.0
    s = sm.Submatrix(sm.Circulant(column).assume(Claim.HERMITIAN), without(400, 0))
    b = numbers(399)
    x, info = sm.linalg.solve(s, b, return_info=True)
    assert info.method == "minres" and info.reasons[0].startswith("schur: ") and "singular" in info.reasons[0]
    assert float((x - torch.linalg.solve(dense_of(s), b)).norm()) <= 1e-8 * float(x.norm())


@pytest.mark.parametrize("dtype", [F64, C128])
def test_derivatives_to_second_order(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 0})
    keep, t, b = torch.tensor([4, 0, 1, 5]), toeplitz(6, dtype).diagonals, numbers(4, 2, dtype=dtype)

    def make(t: torch.Tensor) -> sm.Submatrix:
        return sm.Submatrix(sm.Toeplitz(t, 6), keep)

    assert_gradients(lambda t, b: make(t).solve(b, method="schur"), (t, b))
    assert_gradients(lambda t, b: make(t).factor(method="schur").solve(b), (t, b))
    assert_gradients(lambda t, b: make(t).factor(method="schur").adjoint_solve(b), (t, b))
    assert_gradients(lambda t: make(t).factor(method="schur").slogdet(), (t,))
    assert_gradients(lambda t: make(t).slogdet()[1], (t,))

    def loss(t: torch.Tensor, b: torch.Tensor, dense: bool) -> torch.Tensor:
        a = make(t)
        entries = sm.Toeplitz(t, 6).to_dense()[keep][:, keep]
        x = torch.linalg.solve(entries, b) if dense else a.solve(b)
        log = torch.linalg.slogdet(entries)[1] if dense else a.factor(method="schur").logabsdet()
        return x.abs().square().sum() + log

    for transform in (
        lambda d: torch.func.grad(lambda t: loss(t, b, d))(t),
        lambda d: torch.func.jvp(lambda t: loss(t, b, d), (t,), (torch.ones_like(t),))[1],
        lambda d: torch.func.vmap(lambda b: loss(t, b, d))(torch.stack((b, 2 * b))),
    ):
        found, wanted = transform(False), transform(True)
        assert float((found - wanted).abs().max()) <= 1e4 * EPS * (1 + float(wanted.abs().max()))


def test_no_dense_array_at_4096() -> None:
    column, b = (0.9 ** torch.arange(4096, dtype=F64)).requires_grad_(), numbers(4094)
    with no_dense_arrays():
        s = sm.Submatrix(sm.SymmetricToeplitz(column), without(4096, 17, 2000))
        factor = s.factor()
        (b @ factor.solve(b) + factor.logabsdet()).backward()
        s.slogdet()
    assert column.grad is not None and bool(torch.isfinite(column.grad).all())


def test_claims_survive() -> None:
    s = sm.Submatrix(kms(9), [8, 0, 3])
    assert {Claim.POSITIVE_DEFINITE, Claim.SYMMETRIC, Claim.HERMITIAN} <= s.claims.properties
    rank = sm.Submatrix(sm.LowRank(numbers(5, 2), numbers(5, 2)), [0, 1, 2])
    assert rank.rank_bound() == 2 and Claim.ORTHOGONAL not in sm.Submatrix(sm.Identity(3), [0]).claims


def test_the_index_is_a_buffer_and_moves() -> None:
    s = sm.Submatrix(kms(6), [0, 2, 5])
    module = sm.nn.Trainable(s)
    assert [n for n, _ in module.named_parameters()] == ["matrix_column"]
    assert [n for n, _ in module.named_buffers()] == ["keep"] and module.keep.dtype == torch.int64
    assert s.to(F32).keep.dtype == torch.int64 and s.to("meta").keep.device.type == "meta"
    factor = sm.Submatrix(kms(400), without(400, 3)).factor()
    for other in (pickle.loads(pickle.dumps(factor)), copy.deepcopy(factor), factor.clone()):
        assert torch.equal(other.solve(numbers(399)), factor.solve(numbers(399)))


@pytest.mark.parametrize(
    "keep",
    [
        [1, 3],
        (1, 3),
        numpy.array([1, 3]),
        torch.tensor([1, 3], dtype=torch.int32),
        torch.tensor([False, True, False, True]),
        numpy.array([False, True, False, True]),
    ],
    ids=["list", "tuple", "numpy", "int32", "mask", "numpy mask"],
)
def test_what_keep_may_be(keep: Any) -> None:
    s = sm.Submatrix(toeplitz(4), keep)
    assert s.keep.tolist() == [1, 3] and s.keep.dtype == torch.int64


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("out of range", [0, 4], ValueError, "keep holds 4, legal indices are 0 to 3"),
    ("negative", [-1], ValueError, "keep holds -1, legal indices are 0 to 3"),
    ("twice", [2, 1, 2], ValueError, "keep holds 2 more than once"),
    ("mask", torch.tensor([True, False]), sm.ShapeError, r"the mask keep has shape \(2,\), the matrix has 4 rows"),
    ("float", torch.ones(2), ValueError, r"integer tensor \(k,\) or a mask \(n,\), got torch.float32 of shape \(2,\)"),
    ("shape", torch.ones(1, 1, dtype=torch.int64), ValueError, r"got torch.int64 of shape \(1, 1\)"),
    ("word", "all", ValueError, "got 'all'"),
]


@pytest.mark.parametrize(("keep", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_index_is_named(keep: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sm.Submatrix(toeplitz(4), keep)


def test_other_refusals() -> None:
    with pytest.raises(sm.ShapeError, match="Submatrix: a square matrix is needed"):
        sm.Submatrix(sm.Toeplitz(numbers(6), 3), [0])
    whole: Matrix = sm.Submatrix(kms(400), without(400, 1))
    with pytest.raises(ValueError, match="start has no meaning for the direct method 'schur'"):
        whole.solve(numbers(399), method="schur", start=numbers(399))
    with pytest.raises(ValueError, match="unknown method 'lu'; legal methods are 'auto', 'dense', 'schur', 'cg'"):
        whole.solve(numbers(399), method="lu")


def test_a_poor_first_solution_is_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    """With solves that are off by 1e-5 of their size, three refinements reach 20 eps and more would not be taken."""
    n, gone = 300, (0, 7, 150)
    s = sm.Submatrix(toeplitz(n), without(n, *gone))
    b = numbers(len(s.keep), 2, seed=3)
    once, asked = Complement._once, []

    def poor(self: Complement, y: torch.Tensor) -> torch.Tensor:
        asked.append(y)
        x = once(self, y)
        return x + 1e-5 * x.roll(1, -1)

    monkeypatch.setattr(Complement, "_once", poor)
    x = s.solve(b)
    residual = torch.linalg.vector_norm(b - s @ x, dim=0)
    size = torch.linalg.matrix_norm(s.to_dense(), 2) * torch.linalg.vector_norm(x, dim=0)
    assert (residual <= 50 * EPS * (size + torch.linalg.vector_norm(b, dim=0))).all()
    assert 3 <= len(asked) <= 4
