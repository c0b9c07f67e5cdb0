"""Kronecker products: index logic exactly, the cheapest order, everything factor by factor, the nearest product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, Matrix
from structmat.functional import kronecker as fk
from structmat.testing import assert_claims, assert_gradients, strategies
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.reference import dense_of, magnitude_of
from tests.test_no_dense import Largest, N, no_dense_arrays

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
P = 10007


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _square(n: int, dtype: torch.dtype = F64, seed: int = 0, lead: tuple[int, ...] = ()) -> sm.Dense:
    return sm.Dense(_numbers(*lead, n, n, dtype=dtype, seed=seed) + 2 * n**0.5 * torch.eye(n))


def _check(found: Any, wanted: torch.Tensor, size: float) -> None:
    assert isinstance(found, Matrix)
    m, n = (int(s) for s in wanted.shape[-2:])
    assert_close(found.to_dense(), wanted, rounding(wanted.dtype, m + n, size, 4) * n**0.5, repr(found))
    assert_claims(found, wanted, size=size)


# -- products -----------------------------------------------------------------------------------------------------

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@given(SHAPES, st.integers(0, 100), st.data())
def test_index_logic_is_exact(shapes: list[tuple[int, int]], seed: int, data: st.DataObject) -> None:
    """Over the integers modulo 10007, in any order of the factors, against numpy.kron."""
    drawn = torch.Generator().manual_seed(seed)
    factors = [torch.randint(P, s, generator=drawn) for s in shapes]
    wanted = factors[0].numpy()
    for factor in factors[1:]:
        wanted = numpy.kron(wanted, factor.numpy()) % P
    steps: list[fk.Step] = [(lambda r, f=f: r @ f.mT % P, *f.shape, False) for f in factors]  # type: ignore[misc]
    order = data.draw(st.permutations(range(len(factors))))
    for lead in ((), (2,), (3, 2), (0, 2)):
        x = torch.randint(P, (*lead, wanted.shape[1]), generator=drawn)
        for flat in (False, True):
            assert (fk.apply(x, steps, order, flat).numpy() == x.numpy() @ wanted.T % P).all()


@given(SHAPES, st.integers(1, 9), st.integers(0, 100))
def test_columns_from_the_left_are_exact(shapes: list[tuple[int, int]], k: int, seed: int) -> None:
    """The other layout, modulo 10007: dense factors multiply columns."""
    drawn = torch.Generator().manual_seed(seed)
    factors = [torch.randint(P, s, generator=drawn) for s in shapes]
    wanted = factors[0].numpy()
    for factor in factors[1:]:
        wanted = numpy.kron(wanted, factor.numpy()) % P
    x = torch.randint(P, (wanted.shape[1], k), generator=drawn)
    for columns in (x, x[:, 0]):
        found = fk.apply_left(columns, factors, lambda a, b: a @ b % P)
        assert (found.numpy() == wanted @ columns.numpy() % P).all()


@pytest.mark.parametrize("columns", [7, 8, 9])
def test_columns_and_rows_agree(columns: int) -> None:
    """On both sides of the number of columns from which the layout changes; complex columns, half, derivatives."""
    a = sm.kron(_numbers(3, 3), _numbers(2, 2, seed=1))
    for dtype in (F64, C128):
        x = _numbers(6, columns, dtype=dtype)
        assert_close(a @ x, a.linear(x.mT.contiguous()).mT, 1e3 * EPS, "columns")
    low = a.to(torch.bfloat16)
    half = x.real.bfloat16()
    assert (low @ half).dtype == torch.bfloat16
    gap = (low @ half).double() - dense_of(low) @ half.double()
    assert float(gap.norm()) <= 8 * torch.finfo(torch.bfloat16).eps * magnitude_of(a) * float(half.double().norm())
    assert_gradients(lambda m, v: m @ v, (a, x.real.contiguous()))
    found = torch.func.vmap(lambda v: a @ v)(torch.stack((x, 2 * x)))
    assert_close(found, torch.stack((a @ x, 2 * (a @ x))), 1e3 * EPS, "vmap")
    compiled = torch.compile(lambda m, v: m.linear(v.mT).mT, fullgraph=True, backend="aot_eager")
    assert_close(compiled(a, x), a @ x, 1e3 * EPS, "compiled")


@given(SHAPES)
def test_the_order_is_the_cheapest(shapes: list[tuple[int, int]]) -> None:
    """Against every order, for dense factors."""

    def work(order: Any) -> int:
        now, total = [n for _, n in shapes], 0
        for i in order:
            m, n = shapes[i]
            total += math.prod(now) // n * m * n
            now[i] = m
        return total

    found = work(fk.cheapest_order(shapes, [float(m * n) for m, n in shapes]))
    assert found == min(map(work, itertools.permutations(range(len(shapes)))))


@given(st.data())
def test_any_two_types(data: st.DataObject) -> None:
    """kron of any two drawn matrices equals the dense one, and claims what is true."""
    a, b = (data.draw(strategies.matrices(most=4, batch=data.draw(st.sampled_from([(), (2,)])))) for _ in range(2))
    found = sm.kron(a, b)
    dtype = found.dtype or torch.get_default_dtype()
    x, y = dense_of(a).to(F64), dense_of(b).to(F64)
    wanted = torch.einsum("...ij,...kl->...ikjl", x, y).flatten(-4, -3).flatten(-2)
    size = magnitude_of(a) * magnitude_of(b)
    assert_close(
        found.to_dense(), wanted, rounding(dtype, sum(wanted.shape[-2:]), size, 4) * wanted.shape[-1], repr(found)
    )
    assert_claims(found, wanted, size=size)
    v = _numbers(3, wanted.shape[-1]).to(dtype)
    tol = rounding(dtype, sum(wanted.shape[-2:]), size * float(v.norm()), 4)
    assert_close(found.linear(v), v.to(F64) @ wanted.mT, tol, repr(found))


CLOSED: dict[str, tuple[Callable[[], Any], type]] = {
    "Diagonal": (lambda: sm.kron(sm.Diagonal(_numbers(2)), sm.Diagonal(_numbers(3))), sm.Diagonal),
    "Identity": (lambda: sm.kron(sm.Identity(2), sm.Identity(3)), sm.Identity),
    "Permutation": (lambda: sm.kron(sm.Permutation([1, 0]), sm.Permutation([0, 1])), sm.Permutation),
    "Zero": (lambda: sm.kron(sm.Zero(2, 3), sm.Circulant(_numbers(3))), sm.Zero),
    "Dense": (lambda: sm.kron(_numbers(2, 2), _numbers(2, 2)), sm.Kronecker),
    "one factor": (lambda: sm.kron(sm.Circulant(_numbers(3))), sm.Circulant),
    "lists": (lambda: sm.kron([[1, 2]], numpy.eye(2)), sm.Kronecker),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_of_kron(name: str) -> None:
    make, kind = CLOSED[name]
    assert type(make()) is kind


def test_products_of_products() -> None:
    """(A kron B) (C kron D) = AC kron BD where the sizes fit one to one; flat; else lazy."""
    a, b, c, d = _numbers(2, 2, 3), _numbers(4, 2, seed=1), _numbers(3, 4, seed=2), _numbers(2, 5, seed=3)
    left, right = sm.kron(a, b), sm.kron(c, d)
    found = left @ right
    assert type(found) is sm.Kronecker and [tuple(f.shape) for f in found.factors] == [(2, 2, 4), (4, 5)]
    _check(found, dense_of(left) @ dense_of(right), magnitude_of(left) * magnitude_of(right))
    other = sm.kron(_numbers(6, 5), _numbers(1, 2))
    assert type(left @ other) is sm.Product
    _check(left @ other, dense_of(left) @ dense_of(other), magnitude_of(left) * magnitude_of(other))
    nested = sm.kron(sm.kron(a, b), c)
    assert len(nested.factors) == 3
    scaled = (0.5j * sm.kron(sm.Identity(2), b)) / 2
    assert type(scaled) is sm.Kronecker and scaled.dtype == C128
    _check(scaled, 0.25j * torch.kron(torch.eye(2, dtype=F64), b), 1.0)
    weights = torch.tensor([[[2.0]], [[-1.0]]], dtype=F64)
    _check(sm.kron(b, c) * weights, weights * torch.kron(b, c), 100.0)
    bare = 1j * sm.Kronecker((sm.Permutation([1, 0]), sm.Identity(2)))  # the dtype of j is decided by the other operand
    assert_close((sm.Dense(torch.zeros(4, 4, dtype=C128)) + bare).to_dense(), 1j * dense_of(bare.matrix), 1e-15, "jP")


# -- factor by factor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
@pytest.mark.parametrize("orders", [(2, 3), (3, 4), (2, 2, 3), (5,)], ids=str)
def test_measures_and_solves(orders: tuple[int, ...], dtype: torch.dtype) -> None:
    a = sm.Kronecker(tuple(_square(n, dtype, k, (2,) if k == 0 else ()) for k, n in enumerate(orders)))
    dense = dense_of(a)
    n = int(dense.shape[-1])
    kappa = float(torch.linalg.cond(dense).max())
    tol = 1e3 * n * kappa * EPS
    sign, logabs = a.slogdet()
    wanted_sign, wanted_log = torch.linalg.slogdet(dense)
    for found in ((sign, logabs), a.factor().slogdet()):
        assert float((found[0] - wanted_sign).abs().max()) <= tol and float((found[1] - wanted_log).abs().max()) <= tol
    b = _numbers(n, 2, dtype=dtype)
    for x in (a.solve(b), a.factor().solve(b), a.solve(b, method="dense"), a.inv() @ b):
        assert x.dtype == dtype and float((dense @ x - b).abs().max()) <= tol
    adjoint = a.factor().adjoint_solve(b)
    assert float((dense.mH @ adjoint - b).abs().max()) <= tol and a.factor().backward_error is None
    for got, wanted in (
        (a.svdvals(), torch.linalg.svdvals(dense)),
        (a.trace(), torch.einsum("...ii->...", dense)),
        (a.norm(), torch.linalg.matrix_norm(dense)),
        (a.diagonal(), torch.diagonal(dense, dim1=-2, dim2=-1)),
    ):
        assert float((got - wanted).abs().max()) <= tol * float(wanted.abs().max())
    moments = torch.stack([a.eigvals() ** k for k in (1, 2)]).sum(-1)
    wanted = torch.stack([torch.einsum("...ii->...", torch.linalg.matrix_power(dense, k)) for k in (1, 2)])
    assert float((moments - wanted).abs().max()) <= tol * float(wanted.abs().max())


def test_rectangular_factors() -> None:
    """Measures without one closed form a factor, the pseudo-inverse, and a square product that is singular by form."""
    a = sm.kron(_numbers(2, 3), _numbers(3, 2, seed=1))
    dense = dense_of(a)
    assert_close(a.svdvals(), torch.linalg.svdvals(dense), 1e3 * EPS, "svdvals")
    assert_close(a.pinv().to_dense(), torch.linalg.pinv(dense, rtol=1e-10), 1e4 * EPS, "pinv")
    assert_close(a.diagonal(), dense.diagonal(), 1e3 * EPS, "diagonal")
    assert_close(a.trace(), dense.diagonal().sum(), 1e3 * EPS, "trace")
    assert a.rank_bound() == 4 and a.eigvals().shape == (6,)
    sign, logabs = a.slogdet()
    assert float(sign) == 0 and float(logabs) == -math.inf and float(a.det()) == 0
    for call in (lambda: a.solve(torch.ones(6, dtype=F64)), a.inv, a.factor):
        with pytest.raises(sm.SolveError, match="singular, the factors are not square; see pinv and lstsq"):
            call()
    wide = sm.kron(_numbers(2, 3), _numbers(2, 4, seed=1))
    b = _numbers(4, 2)
    assert_close(wide @ wide.lstsq(b), b, 1e3 * EPS, "lstsq")


def test_singular_factors_and_options() -> None:
    singular = sm.kron(torch.ones(2, 2), torch.eye(3))
    with pytest.raises(sm.SolveError):
        singular.solve(torch.ones(6))
    with pytest.raises(ValueError, match="max_steps has no meaning for the direct method 'factor by factor'"):
        sm.kron(torch.eye(2), torch.eye(2)).solve(torch.ones(4), max_steps=2)
    with pytest.raises(TypeError, match="Kronecker: a non-empty tuple of matrices is needed"):
        sm.Kronecker((torch.eye(2),))  # type: ignore[arg-type]
    with pytest.raises(sm.DtypeError, match="differ in precision"):
        sm.kron(torch.eye(2), torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match="kron: at least one matrix is needed"):
        sm.kron()


def test_claims_that_survive() -> None:
    q = sm.HouseholderProduct(_numbers(2, 3))
    assert Claim.ORTHOGONAL in sm.kron(q, sm.Permutation([1, 0])).claims
    assert Claim.ORTHOGONAL not in sm.kron(2 * q, q).claims
    definite = sm.SymmetricToeplitz(torch.tensor([2.0, 1.0], dtype=F64)).assume(Claim.POSITIVE_DEFINITE)
    both = sm.kron(definite, sm.Identity(3))
    assert {Claim.POSITIVE_DEFINITE, Claim.SYMMETRIC} <= both.claims.properties
    assert Claim.POSITIVE_DEFINITE not in (-both).claims and Claim.HERMITIAN in (-both).claims
    low = sm.kron(sm.LowRank(_numbers(4, 1), _numbers(4, 1)), _square(3))
    assert low.rank_bound() == 3


def test_half_precision_is_carried_in_single() -> None:
    factors = [_numbers(4, 4, seed=k).bfloat16() for k in range(3)]
    a = sm.kron(*factors)
    x = _numbers(5, 64).bfloat16()
    exact = x.double() @ dense_of(a).mT
    assert a.linear(x).dtype == torch.bfloat16
    inner = 8 * torch.finfo(torch.bfloat16).eps * magnitude_of(a) * float(x.double().norm())
    assert float((a.linear(x).double() - exact).norm()) <= inner


VERBS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda a: a.linear(torch.arange(6.0, dtype=F64)),
    "solve": lambda a: a.solve(torch.arange(6.0, dtype=F64)),
    "factor": lambda a: a.factor().solve(torch.arange(6.0, dtype=F64)),
    "logabsdet": lambda a: a.logabsdet(),
    "pinv": lambda a: a.pinv().to_dense(),
    "norm": lambda a: a.norm(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_gradients(verb: str, dtype: torch.dtype) -> None:
    a = sm.Kronecker((_square(2, dtype), sm.Circulant(_numbers(3, dtype=dtype) + torch.tensor([4.0, 0, 0]))))
    assert_gradients(VERBS[verb], (a,), order=1 if verb == "pinv" else 2)


def test_nothing_dense_exists_at_4096() -> None:
    def run(n: int) -> None:
        side = math.isqrt(n)
        parts = [(_numbers(side, side, seed=k) + 20 * torch.eye(side)).requires_grad_() for k in range(2)]
        a = sm.kron(*parts)
        x = _numbers(2, n)
        total = a.linear(x).sum() + a.solve(x.mT).sum() + a.inv().linear(x).sum() + a.slogdet()[1] + a.norm()
        total = total + a.svdvals().sum() + a.diagonal().sum() + (a @ a.mT).trace() + a.pinv().linear(x).sum()
        total.backward()

    with Largest():
        run(16)
    with no_dense_arrays():
        run(N)


# -- the nearest product ------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 4), st.integers(0, 100))
def test_nearest_of_two_factors_is_the_best(sizes: tuple[int, ...], terms: int, seed: int) -> None:
    """The error is the tail of the rearrangement's singular values, exactly; in float64 and complex128."""
    (ma, na, mb, nb), dtype = sizes, (F64, C128)[seed % 2]
    dense = _numbers(2, ma * mb, na * nb, dtype=dtype, seed=seed)
    found = sm.Kronecker.nearest(dense, [(ma, na), (mb, nb)], terms)
    rearranged = dense.reshape(2, ma, mb, na, nb).permute(0, 1, 3, 2, 4).reshape(2, ma * na, mb * nb)
    tail = torch.linalg.svdvals(rearranged)[:, terms:].norm(dim=-1)
    gap = torch.linalg.matrix_norm(found.to_dense() - dense)
    assert float((gap - tail).abs().max()) <= 1e3 * EPS * float(dense.norm())
    first = found if terms == 1 else found.terms[0]
    norms = torch.stack([f.norm() for f in first.factors])
    assert float((norms[0] - norms[1]).abs().max()) <= 1e3 * EPS * float(norms.max())


@given(st.integers(0, 200))
def test_nearest_of_three_factors_gives_a_product_back(seed: int) -> None:
    """Exact for a product; for any matrix within sqrt(2) of the best, which the error of a two-factor split bounds."""
    shapes = [(2, 3), (3, 1), (2, 2)]
    exact = sm.Kronecker.random(shapes, generator=torch.Generator().manual_seed(seed), dtype=F64)
    again = sm.Kronecker.from_dense(exact.to_dense(), shapes, tol=1e-13)
    assert [tuple(f.shape) for f in again.factors] == shapes
    dense = _numbers(12, 6, seed=seed)
    gap = float((sm.Kronecker.nearest(dense, shapes).to_dense() - dense).norm())
    tails = [
        float(torch.linalg.svdvals(fk.rearranged(dense, left, right))[1:].norm())
        for left, right in (((2, 3), (6, 2)), ((6, 3), (2, 2)))
    ]
    assert max(tails) * (1 - 1e-12) <= gap <= math.hypot(*tails) * (1 + 1e-12)


def test_nearest_of_what_is_zero_or_does_not_fit() -> None:
    assert float(sm.Kronecker.nearest(torch.zeros(4, 6), [(2, 3), (2, 2)]).norm()) == 0
    assert type(sm.Kronecker.nearest(torch.ones(4, 6), [(4, 6)])) is sm.Kronecker
    with pytest.raises(sm.ShapeError, match=r"factors of \(\(2, 2\),\) make 2 x 2, got \(4, 6\)"):
        sm.Kronecker.nearest(torch.ones(4, 6), [(2, 2)])
    for terms, shapes in ((0, [(2, 3), (2, 2)]), (2, [(2, 3), (2, 2), (1, 1)])):
        with pytest.raises(ValueError, match=rf"nearest\(terms={terms}\): legal is 1, and for two factors also"):
            sm.Kronecker.nearest(torch.ones(4, 6), shapes, terms)
    with pytest.raises(sm.NotStructuredError, match="nearest Kronecker"):
        sm.Kronecker.from_dense(_numbers(4, 6), [(2, 3), (2, 2)])
