"""Permutations: the convention, composition, cycles, the nearest one; index logic exactly, on integers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim
from structmat.functional import permutation as fp
from structmat.testing import assert_orthogonal
from structmat.testing.reference import dense_of

F64, C128 = torch.float64, torch.complex128


def _drawn(most: int = 12) -> st.SearchStrategy[list[int]]:
    return st.integers(1, most).flatmap(lambda n: st.permutations(range(n)))


def _sign(p: list[int]) -> int:
    """By counting inversions: no cycle is walked."""
    return (-1) ** sum(a > b for a, b in itertools.combinations(p, 2))


@given(_drawn())
def test_convention_inverse_and_sign(p: list[int]) -> None:
    """(A x)[i] = x[p[i]], exactly, on integers; A^-1 A = I; the sign is that of the inversions."""
    indices = torch.tensor(p)
    x = torch.arange(len(p)) * 7 + 3
    assert fp.pick(x, indices).tolist() == [7 * i + 3 for i in p]
    assert torch.equal(fp.compose(fp.inverse(indices), indices), torch.arange(len(p)))
    a = sm.Permutation(indices)
    assert torch.equal(a @ x.double(), x[p].double()) and torch.equal(x.double() @ a, (x.double() @ dense_of(a)))
    assert torch.equal(a.mT.to_dense().double(), dense_of(a).mT)
    sign, logabs = a.slogdet()
    assert float(sign) == _sign(p) == float(a.det()) and float(logabs) == 0
    assert torch.equal(a.solve(a @ x.double()), x.double()) and torch.equal(
        a.factor().solve(x.double()), x[a.inv().indices].double()
    )


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(*[st.permutations(range(n))] * 3)))
def test_composition_of_batches(ps: Any) -> None:
    a, b = sm.Permutation(torch.tensor(ps[:2])), sm.Permutation(torch.tensor(ps[2]))
    for left, right in ((a, b), (b, a), (a, a)):
        product = left @ right
        assert type(product) is sm.Permutation and Claim.ORTHOGONAL in product.claims
        assert torch.equal(dense_of(product), (dense_of(left) @ dense_of(right)))
    both = sm.kron(a, b)
    assert type(both) is sm.Permutation
    wanted = torch.stack([torch.kron(dense_of(a)[k], dense_of(b)) for k in range(2)])
    assert torch.equal(dense_of(both), wanted)


@given(_drawn())
def test_eigenvalues_are_roots_of_unity(p: list[int]) -> None:
    found = sm.Permutation(torch.tensor(p), F64).eigvals().numpy()
    wanted = numpy.linalg.eigvals(numpy.eye(len(p))[p])
    left = list(wanted)
    for value in found:
        k = int(numpy.argmin(numpy.abs(numpy.array(left) - value)))
        assert abs(left.pop(k) - value) <= 64 * len(p) * numpy.finfo(float).eps


def test_kron_with_the_identity() -> None:
    p, eye = sm.Permutation([2, 0, 1], F64), sm.Identity(2)
    for found, wanted in (
        (sm.kron(p, eye), torch.kron(dense_of(p), dense_of(eye))),
        (sm.kron(eye, p), torch.kron(dense_of(eye), dense_of(p))),
    ):
        assert type(found) is sm.Permutation and found.dtype == F64 and torch.equal(found.to_dense(), wanted)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_nearest_is_the_best(n: int, seed: int) -> None:
    """Against all n! permutations."""
    dense = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=C128)
    gap = float((sm.Permutation.nearest(dense).to_dense() - dense).norm())
    eye = torch.eye(n, dtype=C128)
    best = min(float((eye[list(p)] - dense).norm()) for p in itertools.permutations(range(n)))
    assert gap <= best * (1 + 1e-12)


def test_from_dense_and_making() -> None:
    a = sm.Permutation(torch.tensor([[1, 0, 2], [2, 1, 0]]))
    again = sm.Permutation.from_dense(a.to_dense())
    assert torch.equal(again.indices, a.indices) and again.dtype == torch.float32
    with pytest.raises(sm.NotStructuredError, match="nearest Permutation"):
        sm.Permutation.from_dense(torch.ones(2, 2))
    with pytest.raises(sm.ShapeError, match="a square matrix is needed, got shape"):
        sm.Permutation.nearest(torch.ones(2, 3))
    drawn = sm.Permutation.random(50, generator=torch.Generator().manual_seed(0))
    assert sorted(drawn.indices.tolist()) == list(range(50))
    assert_orthogonal(drawn)
    assert torch.equal(sm.Permutation.identity(4).to_dense(), torch.eye(4))
    assert torch.equal(sm.Permutation(numpy.array([1, 0], dtype=numpy.int32)).indices, torch.tensor([1, 0]))
    assert sm.Permutation([]).shape == (0, 0)


def test_without_a_dtype_it_takes_that_of_the_other() -> None:
    a = sm.Permutation([1, 2, 0])
    assert a.dtype is None and (a @ torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    tenth = sm.Dense(torch.zeros(3, 3, dtype=F64)) + 0.1 * a
    assert torch.equal(tenth.to_dense(), 0.1 * dense_of(a))  # not rounded to float32 on the way
    assert sm.Permutation([1, 0], C128).linear(torch.ones(2, dtype=F64)).dtype == C128
    assert a.to(F64).dtype == F64 and (a.to(F64) @ sm.Permutation([0, 1, 2])).dtype == F64
    assert type(a @ sm.Dense(torch.eye(3))) is sm.Dense
    assert type(a @ sm.LowRank(torch.ones(3, 1), torch.ones(3, 1))) is sm.LowRank


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 2], ValueError, r"must hold each of 0 to 1 once; 1 is missing in \[0, 2\]"),
        ([0, -1], ValueError, "1 is missing"),
        ([[0, 1], [1, 1]], ValueError, r"0 is missing in \[1, 1\]"),
        ([0.0, 1.0], sm.DtypeError, "indices must be integers"),
        (torch.tensor([True, False]), sm.DtypeError, "a mask has no order"),
        (torch.tensor(0), sm.ShapeError, "at least 1 dimension"),
        ("abc", sm.DtypeError, r"integers \(\*batch, n\), got str"),
    ],
)
def test_bad_indices(indices: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sm.Permutation(indices)
    with pytest.raises(sm.DtypeError, match="legal dtypes are floating point or complex"):
        sm.Permutation([0], torch.int32)


def test_transforms_and_gradients() -> None:
    """Indices may be traced and batched, where they cannot be read; x has exact derivatives to second order."""
    rows = torch.tensor([[1, 2, 0], [0, 2, 1]])
    x = torch.randn(2, 3, dtype=F64)
    found = torch.func.vmap(lambda p, v: sm.Permutation(p).linear(v))(rows, x)
    assert torch.equal(found, torch.gather(x, 1, rows))
    dets = torch.func.vmap(lambda p: sm.Permutation(p).det())(rows)
    assert dets.tolist() == [1, -1]
    compiled = torch.compile(lambda p, v: sm.Permutation(p).mT.linear(v), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rows[0], x), sm.Permutation(rows[0]).mT.linear(x))
    for a in (sm.Permutation(rows[0]), sm.Permutation(rows)):
        v = torch.randn(2, 2, 3, dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v, a=a: a.linear(v).sin(), (v,))
        assert torch.autograd.gradgradcheck(lambda v, a=a: a.linear(v).sin(), (v,))


def test_a_large_sign_is_vectorised() -> None:
    """One cycle of n = 2^17: even length, so odd."""
    n = 2**17
    a = sm.Permutation(torch.arange(n).roll(1))
    assert float(a.det()) == -1 and float(sm.Permutation(torch.arange(n)).det()) == 1
