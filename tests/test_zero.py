"""Zero meets every type: products are Zero, sums are the other term, and nothing is multiplied in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, Matrix
from structmat.matrix import kron
from structmat.testing import assert_claims, strategies
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.examples import EXAMPLES, Example
from structmat.testing.reference import dense_of, magnitude_of

F64, C128 = torch.float64, torch.complex128


@pytest.mark.parametrize("example", [e for e in EXAMPLES if F64 in e.dtypes], ids=lambda e: e.name)
def test_products_and_sums_with_every_example(example: Example) -> None:
    a = example.build()
    m, n = (int(s) for s in a.shape[-2:])
    dense = dense_of(a)
    dtype = a.dtype
    for zero in (sm.Zero(m, n), sm.Zero(m, n, dtype)):
        left, right = zero.mT @ a, a @ zero.mT
        assert type(left) is type(right) is sm.Zero and left.shape == (n, n) and right.shape == (m, m)
        assert left.dtype == right.dtype == dtype
        for total in (zero + a, a + zero, a - zero):
            assert type(total) is type(a) and total.claims == a.claims
            assert_close(total.to_dense(), dense, rounding(F64, m + n, magnitude_of(a), 4) * n**0.5, repr(total))
        product = zero * a
        assert type(product) is sm.Zero and product.dtype == dtype and type(a * zero) is sm.Zero
        for both, shape in ((kron(sm.Zero(2, 3), a), (2 * m, 3 * n)), (kron(a, sm.Zero(2, 3)), (2 * m, 3 * n))):
            assert type(both) is sm.Zero and tuple(both.shape) == shape


@pytest.mark.parametrize("kind", [e.type for e in EXAMPLES if e.name.endswith(("-5", "-4", "6x6", "-8"))])
def test_a_batch_or_a_complex_zero_widens_the_sum(kind: type[Matrix]) -> None:
    example = next(e for e in EXAMPLES if e.type is kind and F64 in e.dtypes)
    a = example.build()
    m, n = (int(s) for s in a.shape[-2:])
    for zero in (sm.Zero(m, n, batch=(3,)), sm.Zero(m, n, C128, batch=(2, 1))):
        for total in (a + zero, zero + a):
            assert tuple(total.shape) == (*zero.batch, m, n)
            assert total.dtype == (a.dtype if zero.dtype is None else C128)
            wide = dense_of(a).to(total.to_dense().dtype).expand(*zero.batch, m, n)
            assert_close(total.to_dense(), wide, rounding(F64, m + n, magnitude_of(a) + 1, 4) * n, repr(total))


@given(st.data())
def test_zero_is_absorbing_and_neutral(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    a = data.draw(strategies.matrices(shape=(m, n)))
    zero = sm.Zero(m, n, batch=data.draw(st.sampled_from([(), (2,), (2, 1)])))
    lead = torch.broadcast_shapes(a.batch_shape, zero.batch)
    total = a + zero
    assert tuple(total.shape) == (*lead, m, n)
    size = magnitude_of(a)
    dtype = a.dtype or torch.get_default_dtype()
    assert_close(total.to_dense(), dense_of(a).expand(*lead, m, n), rounding(dtype, m + n, size, 4) * n**0.5, repr(a))
    assert_claims(total)
    assert tuple((a @ zero.mT).shape) == (*lead, m, m)


def test_a_zero_product_hangs_on_x_and_multiplies_nothing_in() -> None:
    zero = sm.Zero(3, 2, F64)
    x = torch.tensor([float("nan"), float("inf")], dtype=F64, requires_grad=True)
    y = zero @ x
    assert torch.equal(y, torch.zeros(3, dtype=F64))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.zeros(2, dtype=F64))
    again = torch.func.vmap(zero.linear)(torch.ones(4, 5, 2, dtype=F64))
    assert again.shape == (4, 5, 3) and not again.any()
    assert torch.func.jvp(zero.linear, (x.detach(),), (torch.ones(2, dtype=F64),))[1].eq(0).all()


def test_verbs() -> None:
    a = sm.Zero(3, 3, C128, batch=(2,))
    sign, logabs = a.slogdet()
    assert sign.tolist() == [0, 0] and sign.dtype == C128 and logabs.tolist() == [-torch.inf] * 2
    assert logabs.dtype == F64 and a.det().tolist() == [0, 0]
    assert a.eigvals().shape == a.svdvals().shape == a.diagonal().shape == (2, 3)
    assert a.norm().tolist() == [0, 0] and a.rank_bound() == 0
    assert type(a.pinv()) is type(a.mT) is type(a.conj()) is type(2j * a) is sm.Zero
    assert a.lstsq(torch.ones(3, 2, dtype=C128)).shape == (2, 3, 2)
    assert {Claim.SYMMETRIC, Claim.HERMITIAN, Claim.UPPER_TRIANGULAR} <= a.claims.properties
    assert Claim.SYMMETRIC not in sm.Zero(2, 3).claims
    assert [float(v) for v in sm.Zero(0, 0).slogdet()] == [1.0, 0.0] and type(sm.Zero(0, 0).inv()) is sm.Zero
    assert (sm.Zero(2, 3, F64) * 1j).dtype == C128
    assert tuple((sm.Zero(2, 3) * torch.ones(4, 1, 1)).shape) == (4, 2, 3)


def test_pieces_are_zero() -> None:
    a = sm.Zero(4, 6, F64, batch=(3, 2))
    for key in (0, (slice(0, 2), 1), (slice(None), slice(None), slice(1, 3), slice(None, None, -2))):
        piece = a[key]
        assert type(piece) is sm.Zero and piece.shape == a.to_dense().numpy()[key].shape
    assert a[0, 1, 2].shape == (6,) and not a[..., 1, 2].any()


@pytest.mark.parametrize("verb", ["solve", "inv", "factor"])
def test_singular(verb: str) -> None:
    calls: dict[str, Any] = {
        "solve": lambda a: a.solve(torch.ones(3)),
        "inv": lambda a: a.inv(),
        "factor": sm.Zero.factor,
    }
    with pytest.raises(sm.SolveError, match=rf"Zero\(shape=\(3, 3\), dtype=None\).{verb}: singular.*see pinv"):
        calls[verb](sm.Zero(3, 3))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Zero\(-1, 2, batch=\(\)\): sizes must not be negative"):
        sm.Zero(-1, 2)
    with pytest.raises(sm.DtypeError, match=r"Zero\(dtype=torch.int64\): legal dtypes are floating point or complex"):
        sm.Zero(1, 2, torch.int64)
    with pytest.raises(sm.ShapeError, match="Zero has 3 columns"):
        sm.Zero(2, 3) @ torch.ones(4)


def test_from_dense_takes_zeros_only() -> None:
    assert type(sm.Zero.from_dense(torch.zeros(2, 3, 4))) is sm.Zero
    with pytest.raises(sm.NotStructuredError, match=r"at relative distance 1.00e\+00 from the nearest Zero"):
        sm.Zero.from_dense(torch.ones(2, 3))
