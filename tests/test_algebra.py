"""Verbs of two matrices over every pair of types: values equal the dense ones, and closed forms are really closed."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Matrix
from structmat.claims import Claim
from structmat.testing import assert_claims, strategies
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.reference import dense_of, magnitude_of

F64, C128 = torch.float64, torch.complex128


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _square(n: int, dtype: torch.dtype, batch: tuple[int, ...]) -> list[Matrix]:
    """One of each type and of each form that a rule treats apart."""
    t = lambda *s: _numbers(*batch, *s, dtype=dtype, seed=len(s))  # noqa: E731
    return [
        sm.Dense(t(n, n)),
        sm.Diagonal(t(n)),
        sm.Identity(n),
        sm.Identity(n, dtype),
        sm.Circulant(t(n)),
        sm.Circulant(t(n), -1),
        sm.Circulant(t(n), 0),
        sm.Toeplitz(t(2 * n - 1), n),
        sm.SymmetricToeplitz(t(n)),
        sm.LowRank(t(n, 2), t(n, 2)),
        sm.HouseholderProduct(t(2, n)),
        3 * sm.Identity(n),
        sm.Product((sm.Circulant(t(n)), sm.Diagonal(t(n)))),
        sm.Sum((sm.HouseholderProduct(t(2, n)), sm.Diagonal(t(n)))),
        sm.Scaled(sm.HouseholderProduct(t(1, n)), -1.0),
        sm.Toeplitz(t(2 * n - 1), n).prepare(),
        sm.Zero(n, n),
        sm.Zero(n, n, dtype, batch=batch),
        sm.Permutation(torch.arange(n).flip(0)),
        sm.BlockDiagonal(t(1, n, n)),
        sm.kron(t(1, 1), t(n, n)),
    ]


PAIRS = [
    pytest.param(a, b, id=f"{type(a).__name__}{i}-{type(b).__name__}{j}")
    for (i, a), (j, b) in itertools.product(enumerate(_square(5, F64, ())), enumerate(_square(5, F64, (2,))))
]


def _check(result: Any, wanted: torch.Tensor, size: float, roundings: int = 4) -> None:
    assert isinstance(result, Matrix)
    assert result.dtype in (None, wanted.dtype)
    assert_close(result.to_dense(), wanted, rounding(wanted.dtype, 10, size, roundings) * 5**0.5, repr(result))
    assert_claims(result, wanted, size=size)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_matmul_add_subtract(a: Matrix, b: Matrix) -> None:
    """Every pair of types, one of them a batch."""
    x, y = dense_of(a), dense_of(b)
    size = magnitude_of(a) * magnitude_of(b)
    _check(a @ b, (x @ y).expand(torch.broadcast_shapes(x.shape, y.shape)), size)
    total = magnitude_of(a) + magnitude_of(b)
    _check(a + b, x + y, total)
    _check(b - a, y - x, total)


@pytest.mark.parametrize(("a", "b"), PAIRS[::3])
def test_complex_meets_real(a: Matrix, b: Matrix) -> None:
    """Equal precision: real and complex promote to complex, in both orders."""
    c = b.to(C128) if b.dtype is None else _complex(b)
    x, y = dense_of(a).to(C128), dense_of(c).to(C128)
    size = magnitude_of(a) * magnitude_of(c)
    for result, wanted in ((a @ c, x @ y), (c @ a, y @ x), (a + c, x + y), (c - a, y - x)):
        lead = torch.broadcast_shapes(x.shape, y.shape)
        assert_close(
            result.to_dense().to(C128), wanted.expand(lead), rounding(C128, 10, 4 * size + 9, 4) * 5**0.5, repr(result)
        )


def _complex(matrix: Matrix) -> Matrix:
    """The same matrix with every floating tensor made complex by the one way there is: multiplication by a complex
    one."""
    return (1 + 0j) * matrix


def test_hadamard_where_it_is_closed() -> None:
    kinds = _square(5, F64, ())
    found, refused = 0, []
    for a, b in itertools.product(kinds, kinds):
        try:
            result = a * b
        except sm.StructureError as error:
            refused.append(str(error))
            continue
        found += 1
        if a.dtype is None and b.dtype is None and isinstance(result, sm.Diagonal):
            result = result.to(F64)  # I * P: ones and zeros, exact in the default dtype
        _check(result, dense_of(a) * dense_of(b), magnitude_of(a) * magnitude_of(b))
    assert all("no structured form; use Dense(A.to_dense()) * B" in message for message in refused)
    assert found >= 200  # Dense, Diagonal, Zero, Identity with all, and within each Toeplitz-like family


CLOSED = [
    ("Circulant @ Circulant", lambda t: sm.Circulant(t(5)) @ sm.Circulant(t(5)), sm.Circulant),
    ("skew @ skew", lambda t: sm.Circulant(t(5), -1) @ sm.Circulant(t(5), -1), sm.Circulant),
    ("skew @ Circulant is lazy", lambda t: sm.Circulant(t(5), -1) @ sm.Circulant(t(5)), sm.Product),
    ("Circulant + Circulant", lambda t: sm.Circulant(t(5)) + sm.Circulant(t(5)), sm.Circulant),
    ("skew + Circulant", lambda t: sm.Circulant(t(5), -1) + sm.Circulant(t(5)), sm.Toeplitz),
    ("Circulant + Identity", lambda t: sm.Circulant(t(5)) + sm.Identity(5), sm.Circulant),
    ("Identity - Circulant", lambda t: sm.Identity(5) - sm.Circulant(t(5)), sm.Circulant),
    ("Circulant + 2 I", lambda t: sm.Circulant(t(5)) + 2 * sm.Identity(5), sm.Circulant),
    ("Circulant.mT", lambda t: sm.Circulant(t(5), 2.0).mT, sm.Circulant),
    ("lower triangular circulant transposed", lambda t: sm.Circulant(t(5), 0).mT, sm.Toeplitz),
    ("Circulant inverse", lambda t: sm.Circulant(t(5)).inv(), sm.Circulant),
    ("Toeplitz + Toeplitz", lambda t: sm.Toeplitz(t(7), 3) + sm.Toeplitz(t(7), 3), sm.Toeplitz),
    ("Toeplitz + Circulant", lambda t: sm.Toeplitz(t(9), 5) + sm.Circulant(t(5)), sm.Toeplitz),
    ("SymmetricToeplitz sum", lambda t: sm.SymmetricToeplitz(t(5)) + sm.SymmetricToeplitz(t(5)), sm.SymmetricToeplitz),
    ("Symmetric + general", lambda t: sm.SymmetricToeplitz(t(5)) + sm.Toeplitz(t(9), 5), sm.Toeplitz),
    ("SymmetricToeplitz + I", lambda t: sm.SymmetricToeplitz(t(5)) + sm.Identity(5), sm.SymmetricToeplitz),
    ("Toeplitz slice", lambda t: sm.Toeplitz(t(9), 5)[1:4, :3], sm.Toeplitz),
    ("Circulant slice", lambda t: sm.Circulant(t(5))[1:4, 2:], sm.Toeplitz),
    ("LowRank @ any", lambda t: sm.LowRank(t(5, 2), t(5, 2)) @ sm.Circulant(t(5)), sm.LowRank),
    ("any @ LowRank", lambda t: sm.HouseholderProduct(t(2, 5)) @ sm.LowRank(t(5, 2), t(5, 2)), sm.LowRank),
    ("LowRank + LowRank", lambda t: sm.LowRank(t(5, 2), t(4, 2)) + sm.LowRank(t(5, 1), t(4, 1)), sm.LowRank),
    ("Q @ Q", lambda t: sm.HouseholderProduct(t(2, 5)) @ sm.HouseholderProduct(t(1, 5)), sm.HouseholderProduct),
    ("Q inverse", lambda t: sm.HouseholderProduct(t(2, 5)).inv(), sm.HouseholderProduct),
    ("I - Q", lambda t: sm.Identity(5) - sm.HouseholderProduct(t(2, 5)), sm.LowRank),
    ("Q - I", lambda t: sm.HouseholderProduct(t(2, 5)) - sm.Identity(5), sm.LowRank),
    ("Dense @ any", lambda t: sm.Dense(t(3, 5)) @ sm.Circulant(t(5)), sm.Dense),
    ("any + Dense", lambda t: sm.Circulant(t(5)) + sm.Dense(t(5, 5)), sm.Dense),
    ("any + tensor", lambda t: sm.Circulant(t(5)) + t(5, 5), sm.Dense),
    ("tensor - any", lambda t: t(5, 5) - sm.Circulant(t(5)), sm.Dense),
    ("Diagonal @ Diagonal", lambda t: sm.Diagonal(t(5)) @ sm.Diagonal(t(5)), sm.Diagonal),
    ("Diagonal + I", lambda t: sm.Diagonal(t(5)) + sm.Identity(5), sm.Diagonal),
    ("I @ any", lambda t: sm.Identity(5) @ sm.Circulant(t(5)), sm.Circulant),
    (
        "Product of lazies is flat",
        lambda t: (sm.Diagonal(t(5)) @ sm.Circulant(t(5))) @ sm.Toeplitz(t(9), 5),
        sm.Product,
    ),
]


@pytest.mark.parametrize(("make", "kind"), [c[1:] for c in CLOSED], ids=[c[0] for c in CLOSED])
def test_closed_forms(make: Any, kind: type[Matrix]) -> None:
    assert type(make(_numbers)) is kind


def test_identity_minus_reflections_is_exact() -> None:
    """rank(I - Q) <= r, and the low-rank form agrees with Q to rounding."""
    q = sm.HouseholderProduct(_numbers(3, 8))
    low = sm.Identity(8) - q
    assert low.rank_bound() == 3
    _check(low, torch.eye(8, dtype=F64) - dense_of(q), 8**0.5)


@given(st.data())
def test_transpose_of_a_product_is_the_reversed_product(data: st.DataObject) -> None:
    m, n, k = (data.draw(st.integers(1, 6)) for _ in range(3))
    a = data.draw(strategies.matrices(shape=(m, n), batch=()))
    b = data.draw(strategies.matrices(shape=(n, k)))
    left, right = (a @ b).mT.to_dense(), (b.mT @ a.mT).to_dense()
    size = magnitude_of(a) * magnitude_of(b) + 1e-300
    dtype = (
        torch.float64 if left.dtype == torch.float64 else torch.get_default_dtype()
    )  # two identities without a dtype
    assert_close(left, right, 2 * rounding(dtype, m + n + k, size, 2) * 6**0.5, f"{a!r} @ {b!r}")


@given(st.data())
def test_ring_laws(data: st.DataObject) -> None:
    """(a + b) c = a c + b c and s (a b) = (s a) b on rows, up to rounding."""
    n = data.draw(st.integers(1, 6))
    a, b, c = (data.draw(strategies.matrices(shape=(n, n), batch=())) for _ in range(3))
    x = _numbers(2, n)
    s = data.draw(st.sampled_from([0, -1, 2.5]))
    size = (magnitude_of(a) + magnitude_of(b)) * (magnitude_of(c) + 1) * float(x.norm())
    tol = 4 * rounding(F64, n, size, 2)
    assert_close(((a + b) @ c).linear(x), (a @ c + b @ c).linear(x), tol, "distributive")
    assert_close((s * (a @ c)).linear(x), ((s * a) @ c).linear(x), 3 * tol, "scaling")


SCALES = [2, -1.5, 0, 1j, torch.tensor(0.5, dtype=F64), torch.tensor([[[2.0]], [[-1.0]]], dtype=F64)]


@pytest.mark.parametrize("s", SCALES, ids=str)
def test_scaling_on_both_sides_and_division(s: Any) -> None:
    for a in _square(4, F64, (2,)):
        if isinstance(s, complex) and a.dtype is None:
            continue  # the dtype of j I is decided by the other operand
        x = dense_of(a)
        wide = x.to(C128) if isinstance(s, complex) else x
        size = magnitude_of(a) * 2
        for result, wanted in ((a * s, wide * s), (s * a, wide * s), (-a, -x)):
            assert isinstance(result, Matrix), type(a)
            lead = torch.broadcast_shapes(wanted.shape)
            assert_close(
                result.to_dense().to(wanted.dtype), wanted.expand(lead), rounding(F64, 8, size, 2) * 2, repr(result)
            )
        if not (isinstance(s, int) and s == 0):
            tol = rounding(a.dtype or torch.get_default_dtype(), 8, size, 2) * 2
            assert_close((a / s).to_dense().to(wide.dtype), wide / s, tol, f"{a!r} / {s}")


def test_an_operand_without_dtype_takes_that_of_the_other() -> None:
    """0.1 I meets float64 in float64; formed in the default float32 it would be wrong by 1e-9."""
    tenth = 0.1 * sm.Identity(3)
    exact = 0.1 * torch.eye(3, dtype=F64)
    assert torch.equal((sm.Dense(torch.zeros(3, 3, dtype=F64)) + tenth).to_dense(), exact)
    assert torch.equal((sm.Dense(torch.ones(3, 3, dtype=F64)) * tenth).to_dense(), exact)
    q = sm.HouseholderProduct(_numbers(2, 3))
    total = q + tenth
    assert float((total.diagonal() - q.diagonal() - 0.1).abs().max()) <= 4 * torch.finfo(F64).eps
    # log 0.1 three times; float32 would miss it by 1e-7
    assert float((q @ tenth).logabsdet() - 3 * math.log(0.1)) == pytest.approx(0, abs=16 * torch.finfo(F64).eps)
    turned = q + 1j * sm.Identity(3)
    assert turned.dtype == C128
    assert_close(turned.to_dense(), dense_of(q) + 1j * torch.eye(3), rounding(F64, 6, 4), "q + iI")
    assert (2 * sm.Identity(3)).to(F64).dtype == F64


def test_indexing_equals_the_dense_one() -> None:
    index = torch.tensor([2, 0])
    keys: list[Any] = [
        (slice(1, 4), slice(0, 3)),
        (slice(None, None, 2), slice(1, None, 2)),
        (slice(None, None, -1), slice(None)),
        (2, slice(None)),
        (slice(None), 3),
        (1, 4),
        (-1, -1),
        (index, slice(None)),
        (slice(None), index),
        (index, 2),
        (index, index),
        (slice(2, 2), slice(None)),
        (slice(4, 1), slice(None)),
        (Ellipsis, 1),
        1,
    ]
    for a in _square(5, F64, ()):
        dense = dense_of(a).numpy()
        for key in keys:
            found = a[key]
            found = found.to_dense() if isinstance(found, Matrix) else found
            plain = (
                tuple(k.numpy() if isinstance(k, torch.Tensor) else k for k in key) if isinstance(key, tuple) else key
            )
            wanted = torch.from_numpy(numpy.array(dense[plain]))  # numpy takes negative steps, torch does not
            assert_close(found, wanted, rounding(F64, 10, 2 * magnitude_of(a) + 1, 2), f"{a!r}[{key}]")


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ((1, 2, 3), IndexError, "3 indices for 2 dimensions"),
        (("a",), IndexError, "an index is an int, a slice, an integer tensor or ..."),
        ((5, slice(None)), IndexError, "index 5 is out of range for 5 entries"),
        ((torch.tensor([0, -6]),), IndexError, "an index is out of range for 5 entries"),
    ],
)
def test_bad_indices(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sm.Circulant(_numbers(5))[key]


def test_picking_rows_forms_no_identity() -> None:
    """Rows by an index tensor at n = 4096: k n numbers, not n^2."""
    n = 4096
    a = sm.Circulant(_numbers(n))
    rows = torch.tensor([5, n - 1])
    assert float((a[rows, :] - torch.stack([a[5], a[n - 1]])).abs().max()) <= rounding(F64, n, float(a.column.norm()))


def test_batch_indexing() -> None:
    for a in _square(4, F64, (3,)):
        if not a.batch_shape:
            continue
        dense = dense_of(a)
        for key in [
            0,
            -1,
            slice(1, 3),
            (slice(None), slice(1, 3), slice(0, 2)),
            (2, 1, slice(None)),
            (torch.tensor([0, 2]),),
        ]:
            found = a[key]
            found = found.to_dense() if isinstance(found, Matrix) else found
            assert_close(found, dense[key], rounding(F64, 10, 2 * magnitude_of(a) + 1, 2), f"{a!r}[{key}]")


def test_stack_makes_a_batch() -> None:
    for make in (
        lambda t: sm.Circulant(t(4), -1),
        lambda t: sm.Toeplitz(t(6), 3),
        lambda t: sm.HouseholderProduct(t(2, 4)),
    ):
        parts = [make(functools.partial(_numbers, seed=k)) for k in range(3)]
        both = sm.stack(parts)
        assert type(both) is type(parts[0]) and both.batch_shape == (3,)
        assert torch.equal(both.tensors()[0], torch.stack([p.tensors()[0] for p in parts]))


def test_assumed_claims_survive_what_they_should() -> None:
    a = sm.Dense(torch.eye(3, dtype=F64)).assume(Claim.ORTHOGONAL)
    b = sm.Dense(torch.eye(3, dtype=F64)[[1, 0, 2]]).assume(Claim.ORTHOGONAL)
    assert Claim.ORTHOGONAL in (a @ b).claims
    assert Claim.ORTHOGONAL in a.mT.claims and Claim.ORTHOGONAL in a.inv().claims and Claim.ORTHOGONAL in (-a).claims
    assert Claim.ORTHOGONAL not in (2 * a).claims and Claim.ORTHOGONAL not in (0 * a).claims
    assert Claim.ORTHOGONAL not in (a + b).claims
    assert Claim.ORTHOGONAL not in (a @ sm.Dense(torch.eye(3, dtype=F64))).claims
