"""Claims state only what is true: each survival rule of ``structmat.claims`` as a property over drawn matrices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import structmat as sm
from structmat import claims as survive
from structmat.claims import Claim, Claims
from structmat.testing import assert_claims, strategies
from structmat.testing.assertions import holds
from tests.cases import CI

F64, C128 = torch.float64, torch.complex128
TOL = (
    1e-9  # matrices below have entries and condition numbers below 1e3 and order at most 5: rounding stays under 1e-11
)
seeds = st.integers(0, 2**31 - 1)
many = settings(max_examples=1000 if CI else 30)  # of each survival rule


def drawn_with(properties: frozenset[Claim], n: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """A random matrix that has all these properties at once (numbers chosen so that no other one holds by chance)."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=g, dtype=dtype)
    upper, lower = Claim.UPPER_TRIANGULAR in properties, Claim.LOWER_TRIANGULAR in properties
    orthogonal = properties & {Claim.ORTHOGONAL, Claim.ORTHONORMAL_COLUMNS, Claim.ORTHONORMAL_ROWS}
    symmetric, hermitian = Claim.SYMMETRIC in properties, Claim.HERMITIAN in properties
    definite = Claim.POSITIVE_DEFINITE in properties
    diagonal = (upper and lower) or ((upper or lower) and (orthogonal or symmetric or hermitian or definite))
    if diagonal:
        d = torch.randn(n, generator=g, dtype=dtype)
        d = d.abs().to(dtype) + 0.5 if definite else d.real.to(dtype) if hermitian else d
        return torch.diag(torch.sgn(d) if orthogonal else d)
    if upper or lower:
        return torch.triu(a) if upper else torch.tril(a)
    q = torch.linalg.qr(a)[0]
    if orthogonal and definite:
        return torch.eye(n, dtype=dtype)
    if orthogonal and (symmetric or hermitian):
        v = torch.randn(n, 1, generator=g, dtype=F64).to(dtype)  # a real reflection is both
        return torch.eye(n, dtype=dtype) - 2 * v @ v.mT / (v.mT @ v)
    if orthogonal:
        return q
    a = a.real.to(dtype) if symmetric and (hermitian or definite) else a
    if definite:
        return a @ a.mH + torch.eye(n, dtype=dtype)
    if hermitian:
        return a + a.mH
    return a + a.mT if symmetric else a


SETS = [frozenset(s) for k in range(3) for s in itertools.combinations(Claim, k)]
sets = st.sampled_from(SETS)
dtypes = st.sampled_from([F64, C128])


@given(sets, st.integers(1, 5), seeds, dtypes)
def test_the_drawn_matrices_have_their_properties(properties: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    dense = drawn_with(properties, n, seed, dtype)
    assert all(holds(c, dense, TOL) for c in properties)


@many
@given(sets, st.integers(1, 5), seeds, dtypes)
def test_implied_claims_are_true(properties: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    """``closed``: Hermitian from definite, symmetric from Hermitian and real, orthogonal from orthonormal and
    square."""
    a = sm.Dense(drawn_with(properties, n, seed, dtype)).assume(*properties)
    assert properties <= a.claims.properties
    assert_claims(a)


@many
@given(sets, st.integers(1, 5), seeds, dtypes)
def test_transpose_conj_adjoint_inverse(properties: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    dense = drawn_with(properties, n, seed, dtype)
    assume(float(torch.linalg.cond(dense)) < 1e4)
    a = sm.Dense(dense).assume(*properties)
    for other in (a.mT, a.conj(), a.mH):
        assert_claims(other)
    inverse = torch.linalg.inv(dense)
    assert_claims(a.inv(), inverse, size=float(inverse.norm()) * 1e4)
    lazy = sm.Inverse(a)
    assert_claims(lazy, inverse, size=float(inverse.norm()) * 1e4)


@many
@given(sets, sets, st.integers(1, 5), seeds, dtypes)
def test_products_and_sums(p: Any, q: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    """Also of two matrices with different claims, and of a matrix with itself: symmetry must not survive a product."""
    a = sm.Dense(drawn_with(p, n, seed, dtype)).assume(*p)
    b = sm.Dense(drawn_with(q, n, seed + 1, dtype)).assume(*q)
    for x, y in ((a, b), (b, a), (a, a)):
        assert_claims(x @ y)
        assert_claims(x + y)
        assert_claims(x - y)
        assert_claims(sm.Product((x, y)))
        assert_claims(sm.Sum((x, y)))


SCALES = [0, 1, -1, 2, -0.5, 0.5, 1e-3, 1j, -1j, 0.6 + 0.8j, 2 + 0j, 0j, True]


@many
@given(sets, st.integers(1, 5), seeds, dtypes, st.sampled_from(SCALES), st.booleans())
def test_scaling(properties: Any, n: int, seed: int, dtype: torch.dtype, s: complex, as_tensor: bool) -> None:
    """By a number, and by a tensor whose value nobody looks at: 0 Q is not orthogonal, -P not definite, i H not
    Hermitian."""
    assume(dtype == C128 or not isinstance(s, complex))
    a = sm.Dense(drawn_with(properties, n, seed, dtype)).assume(*properties)
    factor = torch.tensor(s, dtype=C128 if isinstance(s, complex) else F64) if as_tensor else s
    assert_claims(a * factor)
    assert_claims(sm.Scaled(a, factor))


def test_kron_of_rectangular_triangles_is_not_triangular() -> None:
    """[1 1] is lower triangular only as a square would be: the claim is dropped for rectangular factors."""
    known = survive.kron(
        Claims(frozenset({Claim.UPPER_TRIANGULAR})), Claims(frozenset({Claim.UPPER_TRIANGULAR})), square=False
    )
    assert known.properties == frozenset()


@many
@given(st.data())
def test_claims_of_types_and_their_results(data: st.DataObject) -> None:
    """Ranks, displacement ranks and properties that types claim, through every verb of two matrices."""
    n = data.draw(st.integers(1, 6))
    dtype = data.draw(dtypes)
    a, b = (data.draw(strategies.matrices(shape=(n, n), dtype=dtype, batch=())) for _ in range(2))
    size = float(a.to_dense().norm() * b.to_dense().norm() + a.to_dense().norm() + b.to_dense().norm())
    for result in (a, b, a @ b, a + b, a - b, 2 * a, a.mT, a.mH, a[1:, 1:] if n > 1 else a):
        assert_claims(result, size=size)


@given(st.data())
def test_slices_keep_what_principal_submatrices_have(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    seed = data.draw(seeds)
    properties = data.draw(sets)
    a = sm.Dense(drawn_with(properties, n, seed, F64)).assume(*properties)
    lazy = sm.Product((a,)).assume(*properties)
    k = data.draw(st.integers(1, n))
    assert_claims(lazy[:k, :k])
    assert_claims(lazy[:k, n - k :])
    assert_claims(a[:k, :k])


def test_rank_rules() -> None:
    low = sm.LowRank(torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64))
    other = sm.LowRank(torch.randn(6, 1, dtype=F64), torch.randn(6, 1, dtype=F64))
    assert low.rank_bound() == 2 and (low + other).rank_bound() == 3 and (low @ other).rank_bound() == 1
    assert (low @ sm.Circulant(torch.randn(6, dtype=F64))).rank_bound() == 2
    assert (0 * sm.HouseholderProduct(torch.randn(2, 6, dtype=F64))).rank_bound() == 0
    assert sm.LowRank(torch.randn(3, 5), torch.randn(4, 5)).rank_bound() == 3


@pytest.mark.parametrize(
    ("s", "stays"),
    [(-1, True), (1, True), (1j, True), (0, False), (2, False), (0.6 + 0.8j, False), (float("nan"), False)],
)
def test_scaled_rotations_stay_orthogonal_only_for_exact_units(s: complex, stays: bool) -> None:
    """Peers keep the claim after any scaling (cola: 0 U stays unitary)."""
    scaled = s * sm.HouseholderProduct(torch.randn(2, 4, dtype=F64))
    assert (Claim.ORTHOGONAL in scaled.claims) is stays


def test_claims_never_read_values() -> None:
    """The identity stored as data claims nothing; a matrix of NaN keeps what its type says."""
    assert sm.Dense(torch.eye(3)).claims.properties == frozenset()
    assert Claim.ORTHOGONAL in sm.HouseholderProduct(torch.full((2, 3), torch.nan)).claims
    assert Claim.POSITIVE_DEFINITE not in sm.SymmetricToeplitz(torch.tensor([2.0, 1.0])).claims
    meta = sm.Toeplitz(torch.empty(5, device="meta"), 3)
    assert meta.claims.displacement == {(1, -1): 2, (-1, 1): 2}


def test_assume_checks_its_arguments_and_changes_nothing() -> None:
    a = sm.Dense(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"assume\('orthogonal'\): legal claims are Claim.SYMMETRIC"):
        a.assume("orthogonal")  # type: ignore[arg-type]
    with pytest.raises(sm.ShapeError, match=r"the matrix is not square"):
        a.assume(Claim.SYMMETRIC)
    b = a.assume(Claim.ORTHONORMAL_ROWS)
    assert Claim.ORTHONORMAL_ROWS in b.claims and Claim.ORTHONORMAL_ROWS not in a.claims
    assert Claim.ORTHONORMAL_COLUMNS in b.mT.claims and Claim.ORTHONORMAL_ROWS not in b.mT.claims


def test_claims_are_frozen_and_shared_by_nobody() -> None:
    for make in (lambda: sm.Identity(3), lambda: sm.Dense(torch.eye(3))):
        found = make().claims
        with pytest.raises(AttributeError):
            found.rank = 1  # type: ignore[misc]
        found.displacement[2, 3] = 1  # type: ignore[index]
        assert (2, 3) not in make().claims.displacement
