"""Claims that were vouched for are carried where a theorem carries them, by every type and verb, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import structmat as sm
from structmat import Matrix
from structmat import claims as survive
from structmat.claims import Claim, Claims
from structmat.testing import assert_claims
from structmat.testing.examples import EXAMPLES, Example
from tests.cases import CI
from tests.test_claims import C128, F64, drawn_with, dtypes, many, seeds, sets

REGULAR = {Claim.POSITIVE_DEFINITE, Claim.ORTHOGONAL, Claim.ORTHONORMAL_COLUMNS, Claim.ORTHONORMAL_ROWS}
SQUARE = {Claim.SYMMETRIC, Claim.HERMITIAN, Claim.POSITIVE_DEFINITE, Claim.ORTHOGONAL}


def _vouched(properties: Any, n: int, seed: int, dtype: torch.dtype) -> Matrix:
    return sm.Dense(drawn_with(properties, n, seed, dtype)).assume(*properties)


# -- survival rules through the verbs, measured ---------------------------------------------------------------------


@many
@given(sets, sets, st.integers(1, 3), seeds, dtypes)
def test_kronecker_products(p: Any, q: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    """By the verb, lazy and closed (diagonal matrices): exactly what the rule says, and it is true."""
    a, b = _vouched(p, n, seed, dtype), _vouched(q, 2, seed + 1, dtype)
    product = sm.kron(a, b)
    assert survive.kron(a.claims, b.claims, square=True).properties <= product.claims.properties
    assert_claims(product)
    kept = [sm.Diagonal(m.diagonal()).assume(*_TRUE_OF_DIAGONAL & m.claims.properties) for m in (a, b)]
    closed = sm.kron(*kept)
    assert type(closed) is sm.Diagonal
    assert survive.kron(kept[0].claims, kept[1].claims, square=True).properties <= closed.claims.properties
    assert_claims(closed)


_TRUE_OF_DIAGONAL = {
    Claim.POSITIVE_DEFINITE,
    Claim.HERMITIAN,
}  # of its diagonal, if of a matrix


@many
@given(sets, sets, st.integers(1, 5), seeds, dtypes)
def test_entrywise_products(p: Any, q: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    """Schur's theorem: definite times definite; triangular where one is; orthogonal never."""
    a, b = _vouched(p, n, seed, dtype), _vouched(q, n, seed + 1, dtype)
    product = a * b
    assert_claims(product)
    assert survive.entrywise(a.claims, b.claims).properties <= product.claims.properties
    if Claim.POSITIVE_DEFINITE in a.claims and Claim.POSITIVE_DEFINITE in b.claims:
        assert Claim.POSITIVE_DEFINITE in product.claims
        assert float(torch.linalg.eigvalsh(product.to_dense())[0]) > 0
    if Claim.ORTHOGONAL in a.claims and n > 1:
        assert Claim.ORTHOGONAL not in product.claims


@many
@given(sets, st.integers(1, 4), seeds, dtypes, st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.0, 1j, 0.6 + 0.8j])))
def test_scaling_by_a_tensor_of_a_batch(p: Any, n: int, seed: int, dtype: torch.dtype, factors: list[complex]) -> None:
    """Each element has its own factor; unseen, so definite and orthogonal go, Hermitian stays for a real dtype."""
    assume(factors and (dtype == C128 or not any(isinstance(s, complex) for s in factors)))
    s = torch.tensor(factors, dtype=C128 if any(isinstance(s, complex) for s in factors) else F64)[:, None, None]
    a = _vouched(p, n, seed, dtype)
    for result in (a * s, sm.Scaled(a, s), sm.Product((a,)) * s, a / (s + 3)):
        assert_claims(result)
        assert not {Claim.POSITIVE_DEFINITE, Claim.ORTHOGONAL} & result.claims.properties
        assert survive.scale(a.claims, None, real=not s.is_complex()).properties <= result.claims.properties


@many
@given(sets, sets, st.integers(1, 4), seeds, dtypes)
def test_batches_and_slices(p: Any, q: Any, n: int, seed: int, dtype: torch.dtype) -> None:
    """A stacked batch has what all have, its elements what the batch has; principal slices keep symmetry, and no more
    than is true."""
    a, b = _vouched(p, n, seed, dtype), _vouched(q, n, seed + 1, dtype)
    for parts in ([a, b], [b, a], [a, sm.Dense(b.entries)], [sm.Dense(a.entries), b]):
        batch = sm.stack(parts)
        assert_claims(batch)
        for k, part in enumerate(parts):
            assert batch.claims.properties <= part.claims.properties
            assert_claims(batch[k])
    both = sm.stack([a, a.clone()])
    assert both.claims.properties == a.claims.properties == both[1].claims.properties
    for k in range(1, n + 1):
        for cut in (a[:k, :k], a[n - k :, n - k :], a[::-1, ::-1], a[:k, n - k :], a[:, :k], a[:k]):
            assert_claims(cut)
        assert_claims(sm.Product((a,)).assume(*p)[:k, :k])
        assert_claims(sm.Product((a,)).assume(*p)[::-1, ::-1])


@many
@given(st.integers(1, 6), seeds, dtypes, st.sampled_from([1, -1, 2.0, -0.5]), st.sampled_from([1, -1, 3.0]))
def test_displacement_bounds(n: int, seed: int, dtype: torch.dtype, e: float, f: float) -> None:
    """Bounds of displacement ranks and of ranks, through transpose, conj, inverse, product, sum and scaling."""
    assume(e != f)
    g = torch.Generator().manual_seed(seed)
    r, s = (int(torch.randint(0, 3, (), generator=g)) for _ in range(2))
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    a, low = sm.LowDisplacementRank(draw(n, r), draw(n, r), e, f), sm.LowRank(draw(n, s), draw(n, s))
    b = sm.Toeplitz(torch.cat((draw(n - 1), draw(1) + 2 * n, draw(n - 1))), n)
    size = float((a.to_dense().norm() + low.to_dense().norm() + b.to_dense().norm() + 1) ** 2)
    lazy = sm.Product((a, b)), sm.Sum((a, b)), sm.Product((low, a)), sm.Sum((low, low)), sm.Inverse(b)
    for result in (a, a.mT, a.conj(), a.mH, -2 * a, a @ b, b @ a, a + b, low @ a, low + low, 0 * low, *lazy, b.inv()):
        assert_claims(result, size=size)
    assert sm.Product((low, a)).rank_bound() <= min(n, s) and sm.Sum((low, low)).rank_bound() <= min(n, 2 * s)
    assert sm.kron(low, low).rank_bound() <= min(n, s) ** 2
    assert_claims(sm.kron(low, low), size=size)


# -- what must not survive ------------------------------------------------------------------------------------------

Q = sm.HouseholderProduct(torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]], dtype=F64))
P = sm.Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)).assume(Claim.POSITIVE_DEFINITE)
S = sm.SymmetricToeplitz(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
H = sm.HermitianToeplitz(torch.tensor([1.0, 2.0j, 3.0], dtype=C128))
L = sm.Circulant(torch.tensor([1.0, 2.0, 3.0], dtype=F64), 0)
t = lambda x: torch.tensor(x, dtype=F64)  # noqa: E731

GONE: dict[str, tuple[Callable[[], Matrix], Claim]] = {
    "0 Q": (lambda: 0 * Q, Claim.ORTHOGONAL),
    "tensor Q": (lambda: Q * t(1.0), Claim.ORTHOGONAL),
    "2 Q": (lambda: 2 * Q, Claim.ORTHONORMAL_ROWS),
    "Q + Q": (lambda: Q + Q, Claim.ORTHOGONAL),
    "Q * Q entrywise": (lambda: sm.Dense(Q.to_dense()).assume(Claim.ORTHOGONAL) * Q, Claim.ORTHOGONAL),
    "-P": (lambda: -P, Claim.POSITIVE_DEFINITE),
    "0 P": (lambda: 0 * P, Claim.POSITIVE_DEFINITE),
    "P times an unseen number": (lambda: P * t(3.0), Claim.POSITIVE_DEFINITE),
    "P - P": (lambda: P - P, Claim.POSITIVE_DEFINITE),
    "P @ P": (lambda: P @ P, Claim.SYMMETRIC),
    "P / -2": (lambda: P / -2, Claim.POSITIVE_DEFINITE),
    "S @ S": (lambda: sm.Product((S, S)), Claim.SYMMETRIC),
    "S @ L": (lambda: S @ L, Claim.LOWER_TRIANGULAR),
    "L^T": (lambda: L.mT, Claim.LOWER_TRIANGULAR),
    "i H": (lambda: 1j * H, Claim.HERMITIAN),
    "i I": (lambda: 1j * sm.Identity(3), Claim.HERMITIAN),
    "i I + I": (lambda: sm.Sum((1j * sm.Identity(3), sm.Identity(3))), Claim.HERMITIAN),
    "i I kron I": (lambda: sm.Kronecker((1j * sm.Identity(2), sm.Identity(2))), Claim.HERMITIAN),
    "complex tensor times H": (lambda: H * torch.tensor(1j, dtype=C128), Claim.HERMITIAN),
    "i S is symmetric, not Hermitian": (lambda: 1j * S, Claim.HERMITIAN),
    "a complex symmetric Toeplitz": (lambda: sm.SymmetricToeplitz(torch.ones(3, dtype=C128) * 1j), Claim.HERMITIAN),
    "a complex Hermitian Toeplitz": (lambda: H, Claim.SYMMETRIC),
    "H^T H": (lambda: H.mT @ H, Claim.HERMITIAN),
    "S + H": (lambda: S + H, Claim.SYMMETRIC),
    "L kron L of rectangles": (lambda: sm.kron(sm.Zero(2, 3, F64), L), Claim.POSITIVE_DEFINITE),
    "Q[1:, 1:]": (lambda: Q[1:, 1:], Claim.ORTHOGONAL),
    "P[:, ::-1]": (lambda: P[:, ::-1], Claim.SYMMETRIC),
    "L[::-1, ::-1]": (lambda: sm.Product((L,))[::-1, ::-1], Claim.LOWER_TRIANGULAR),
    "L kept by keep": (lambda: sm.Submatrix(L, torch.tensor([2, 0])), Claim.LOWER_TRIANGULAR),
    "a batch of P and -P": (lambda: sm.stack([P, -P]), Claim.POSITIVE_DEFINITE),
    "Q kron 2 Q": (lambda: sm.kron(Q, 2 * Q), Claim.ORTHOGONAL),
}


@pytest.mark.parametrize("name", GONE)
def test_what_must_not_survive(name: str) -> None:
    make, claim = GONE[name]
    result = make()
    assert claim not in result.claims
    if result.dtype is not None:
        assert_claims(result)


def test_symmetry_of_complex_matrices_is_not_hermitian() -> None:
    """Real: one implies the other. Complex, or not known yet: neither does."""
    entries = torch.ones(2, 2, dtype=F64)
    for claim in (Claim.SYMMETRIC, Claim.HERMITIAN):
        assert {Claim.SYMMETRIC, Claim.HERMITIAN} <= sm.Dense(entries).assume(claim).claims.properties
        assert sm.Dense(entries.to(C128)).assume(claim).claims.properties == {claim}
        assert sm.Dense(entries).assume(claim).to(C128).claims.properties == {claim}
    assert Claim.HERMITIAN in sm.Identity(2).claims and Claim.HERMITIAN in sm.Zero(2, 2).claims


def test_a_rectangle_cannot_have_more_orthonormal_rows_than_columns() -> None:
    tall = sm.Dense(torch.ones(5, 3))
    assert Claim.ORTHONORMAL_COLUMNS in tall.assume(Claim.ORTHONORMAL_COLUMNS).claims
    with pytest.raises(sm.ShapeError, match=r"assume\(Claim.ORTHONORMAL_ROWS\): there are more of them"):
        tall.assume(Claim.ORTHONORMAL_ROWS)
    with pytest.raises(sm.ShapeError, match=r"assume\(Claim.ORTHONORMAL_COLUMNS\): there are more of them"):
        tall.mT.assume(Claim.ORTHONORMAL_COLUMNS)


# -- no type invents or loses a claim -------------------------------------------------------------------------------

ONE: dict[str, tuple[Callable[[Matrix], Any], Callable[[Claims], Claims]]] = {
    "transpose": (lambda a: a.mT, survive.transpose),
    "conj": (lambda a: a.conj(), survive.conj),
    "adjoint": (lambda a: a.mH, lambda c: survive.conj(survive.transpose(c))),
    "prepare": (lambda a: a.prepare(), lambda c: c),
    "clone": (lambda a: a.clone(), lambda c: c),
    "minus": (lambda a: -a, lambda c: survive.scale(c, -1, real=True)),
    "twice": (lambda a: 2 * a, lambda c: survive.scale(c, 2, real=True)),
    "nothing": (lambda a: 0 * a, lambda c: survive.scale(c, 0, real=True)),
    "i": (lambda a: 1j * a, lambda c: survive.scale(c, 1j, real=False)),
    "a tensor": (lambda a: a * t(2.0), lambda c: survive.scale(c, None, real=True)),
    "a complex tensor": (lambda a: a * t(2.0).to(C128), lambda c: survive.scale(c, None, real=False)),
    "times I": (lambda a: a @ sm.Identity(int(a.shape[-1])), lambda c: c),
    "plus 0": (lambda a: a + sm.Zero(*map(int, a.shape[-2:])), lambda c: c),
}


def _real(matrix: Matrix) -> bool:
    return matrix.dtype is not None and not matrix.dtype.is_complex


def _closed(known: Claims, matrix: Matrix) -> frozenset[Claim]:
    return known.closed(square=matrix.shape[-1] == matrix.shape[-2], real=_real(matrix)).properties


def _examples() -> list[Example]:
    """In profile ci all; else the last of each type (its more general ones come last)."""
    return list(EXAMPLES) if CI else list({e.type: e for e in EXAMPLES}.values())


@pytest.mark.parametrize("example", _examples(), ids=lambda e: e.name)
def test_no_type_invents_or_loses_a_claim(example: Example) -> None:
    """What a result claims beyond that of the matrix without the assumption is what the survival rule carries."""
    for dtype in {F64, C128} & set(example.dtypes):
        plain = example.build(dtype)
        m, n = plain.shape[-2:]
        hard = {Claim.ORTHONORMAL_COLUMNS} if m < n else {Claim.ORTHONORMAL_ROWS} if m > n else set()
        for name, (verb, rule) in ONE.items():
            before = verb(plain)
            nothing = REGULAR if plain.rank_bound() == 0 else set()
            for claim in set(Claim) - hard - nothing - (SQUARE if m != n else set()):
                vouched = plain.assume(claim)
                found, result = verb(vouched), rule(vouched.claims)
                carried = _closed(result, found)
                if name == "a tensor" and dtype == F64:
                    carried |= vouched.claims.properties & {Claim.HERMITIAN}
                allowed = _closed(dataclasses.replace(result, properties=carried | before.claims.properties), found)
                extra, lost = found.claims.properties - allowed, carried - found.claims.properties
                assert not extra, f"{name} of {vouched!r} with {claim!r} invents {extra}"
                assert not lost, f"{name} of {vouched!r} with {claim!r} loses {lost}"
