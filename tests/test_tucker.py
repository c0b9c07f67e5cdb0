"""Tucker tensors: entries, algebra and norms against the sums that define them; bad input."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import tucker as ft
from structmat.testing.reference import as_wide
from structmat.testing.reference_tucker import tucker_entries

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128
LETTERS = "abcdefgh"


def numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def make(
    dims: tuple[int, ...],
    ranks: tuple[int, ...],
    dtype: torch.dtype = F64,
    batch: tuple[int, ...] = (),
    seed: int = 0,
    whole: bool = False,
) -> sm.Tucker:
    """A random Tucker tensor; ``whole``: of small integers, so that every sum is exact."""
    core = numbers(*batch, *ranks, dtype=dtype, seed=seed)
    factors = tuple(
        numbers(*batch, d, r, dtype=dtype, seed=seed + 1 + k) for k, (d, r) in enumerate(zip(dims, ranks, strict=True))
    )
    if whole:
        core, factors = torch.round(2 * core), tuple(torch.round(2 * u) for u in factors)
    return sm.Tucker(core, factors)


def dense(t: sm.Tucker) -> torch.Tensor:
    """The definition, one einsum over all indices, in double precision."""
    wide = C128 if t.dtype.is_complex else F64
    n = t.order
    inner, outer = "ijklmnop"[:n], LETTERS[:n]
    terms = ["..." + inner, *("..." + outer[k] + inner[k] for k in range(n))]
    return torch.einsum(",".join(terms) + "->..." + outer, t.core.to(wide), *(u.to(wide) for u in t.factors))


def size_of(t: sm.Tucker) -> float:
    """The norms of core and factors multiply before terms cancel."""
    return math.prod(float(torch.linalg.vector_norm(p.to(torch.complex128))) for p in (t.core, *t.factors))


def close(got: torch.Tensor, wanted: torch.Tensor, *sizes: float, dtype: torch.dtype = F64) -> None:
    """Within ``20 eps N prod ||.||``, N at most 5."""
    assert got.shape == wanted.shape
    error = float(torch.linalg.vector_norm(got.to(wanted.dtype) - wanted))
    assert error <= 100 * torch.finfo(dtype).eps * sum(sizes), error


@st.composite
def shapes(draw: Any, most: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Dimensions and legal ranks of one to four modes."""
    dims = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=most)))
    ranks = [draw(st.integers(1, d)) for d in dims]
    while True:  # no rank above the product of the others
        over = [k for k, r in enumerate(ranks) if r > math.prod(ranks) // r]
        if not over:
            return dims, tuple(ranks)
        ranks[over[0]] = math.prod(ranks) // ranks[over[0]]


# -- entries ---------------------------------------------------------------------------------------------------------


@given(shapes(), st.integers(0, 1000), st.sampled_from([F64, C128, F32, C64]), st.sampled_from([(), (2,)]))
def test_entries_are_the_sums_that_define_them(sizes: Any, seed: int, dtype: torch.dtype, batch: Any) -> None:
    t = make(*sizes, dtype, batch, seed)
    assert t.shape == (*batch, *sizes[0])
    assert (t.dims, t.ranks, t.order) == (*sizes, len(sizes[0]))
    close(t.to_dense(), dense(t), size_of(t), dtype=dtype)
    assert t.to_dense().dtype == dtype


@given(shapes(3), st.integers(0, 1000))
def test_entries_are_exact_over_the_integers(sizes: Any, seed: int) -> None:
    t = make(*sizes, seed=seed, whole=True)
    by_loops = tucker_entries(as_wide(t.core), tuple(as_wide(u) for u in t.factors))
    assert numpy.array_equal(t.to_dense().numpy(), by_loops)
    assert torch.equal((t + t).to_dense(), 2 * t.to_dense())
    assert torch.equal((t * t).to_dense(), t.to_dense() ** 2)
    assert float(t.inner(t)) == float((t.to_dense() ** 2).sum())
    for rows in range(t.order):
        a = t.matricize(rows)
        assert torch.equal(a.to_dense(), ft.unfolding(t.to_dense(), rows, t.order))


def test_every_order_of_modes_gives_the_tensor_and_the_chosen_one_ends_in_one_product() -> None:
    assert ft.expansion_order((256, 256, 3, 3), (8, 8, 3, 3))[-1] == 0
    assert ft.expansion_order((3, 3, 256, 256), (3, 3, 8, 8))[-1] in (2, 3)
    for dims, ranks in [((3, 4, 5), (2, 2, 2)), ((2, 3, 2, 3, 2, 3, 2), (1, 2, 1, 2, 2, 1, 2))]:
        t = make(dims, ranks)
        close(t.to_dense(), dense(t), size_of(t))


def test_half_is_carried_out_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        t = make((5, 4, 3), (2, 3, 2), dtype)
        for got, wanted in ((t.to_dense(), dense(t)), (t.norm(), torch.linalg.vector_norm(dense(t)))):
            assert got.dtype == dtype
            assert float((got.double() - wanted).norm()) <= 2 * torch.finfo(dtype).eps * float(wanted.norm())


# -- algebra ---------------------------------------------------------------------------------------------------------


@given(shapes(), st.integers(0, 1000), st.sampled_from([F64, C128]), st.data())
def test_algebra_in_the_format(sizes: Any, seed: int, dtype: torch.dtype, data: Any) -> None:
    dims = sizes[0]
    left, right = data.draw(st.sampled_from([((), ()), ((2,), ()), ((2, 1), (3,))]))
    a, b = make(*sizes, dtype, left, seed), make(dims, (1,) * len(dims), dtype, right, seed + 50)
    one, two = dense(a), dense(b)
    p, q = size_of(a), size_of(b)
    close((a + b).to_dense(), one + two, p * 3, q * 3)
    close((a - b).to_dense(), one - two, p * 3, q * 3)
    close((a * b).to_dense(), one * two, p * q * 3)
    close((-2.5 * a / 2).to_dense(), -1.25 * one, p)
    modes = tuple(range(-len(dims), 0))
    close(a.inner(b), (one.conj() * two).sum(modes), p * q * 3)
    close(a.norm(), torch.linalg.vector_norm(one, dim=modes), p)
    close(a.distance(b), torch.linalg.vector_norm(one - two, dim=modes), p * 3, q * 3)
    for found in (a + b, a * b):
        assert all(r <= d for r, d in zip(found.ranks, found.dims, strict=True))
        assert found.rank_bounds() == found.ranks


def test_batches_scale_and_convert() -> None:
    t = make((4, 3, 2), (2, 2, 2), batch=(3,))
    s = numbers(3, 1, 1, seed=9)
    close((t * s).to_dense(), dense(t) * s[..., None], size_of(t))
    z = t.to(C64)
    assert (z.dtype, z.conj().dtype, t.float().dtype, t.device.type) == (C64, C64, F32, "cpu")
    assert "ranks=(2, 2, 2)" in repr(t)
    mixed = t + (1j * t.to(C128))
    close(mixed.to_dense(), (1 + 1j) * dense(t).to(C128), 3 * size_of(t))


def test_a_small_distance_keeps_its_digits() -> None:
    """Through Gram matrices the distance 2e-12 would be all error."""
    t = make((20, 24, 16), (3, 3, 3))
    for gap in (1e-6, 1e-11):
        other = sm.Tucker(t.core + gap * numbers(3, 3, 3, seed=5), t.factors)
        wanted = float(torch.linalg.vector_norm(dense(sm.Tucker(other.core - t.core, t.factors))))
        assert abs(float(t.distance(other)) - wanted) <= 100 * torch.finfo(F64).eps * size_of(t)
        assert abs(float(t.distance(other)) - wanted) <= 1e-3 * wanted


@given(shapes(), st.integers(0, 1000), st.sampled_from([F64, C128]), st.sampled_from([(), (2,)]))
def test_gauges_leave_the_tensor_alone(sizes: Any, seed: int, dtype: torch.dtype, batch: Any) -> None:
    t = make(*sizes, dtype, batch, seed)
    turned, even = t.orthogonalise(), (sm.Tucker(1e6 * t.core, t.factors)).balance()
    close(turned.to_dense(), dense(t), 3 * size_of(t))
    close(even.to_dense(), 1e6 * dense(t), 3e6 * size_of(t))
    for u in turned.factors:
        eye = torch.eye(u.shape[-1], dtype=dtype)
        assert float((u.mH @ u - eye).abs().max()) <= 100 * torch.finfo(F64).eps
    lengths = [torch.linalg.vector_norm(even.core, dim=tuple(range(-t.order, 0)))]
    lengths += [torch.linalg.vector_norm(u, dim=(-2, -1)) for u in even.factors]
    assert all(torch.allclose(lengths[0], s, rtol=1e-12) for s in lengths)


def test_balance_of_zero_is_zero() -> None:
    t = sm.Tucker(torch.zeros(2, 2, 2), tuple(torch.ones(3, 2) for _ in range(3)))
    assert torch.equal(t.balance().core, t.core)
    assert torch.equal(t.balance().factors[0], t.factors[0])


def test_cp_form_and_random() -> None:
    u, v, w = (numbers(d, 2, seed=d) for d in (3, 4, 2))
    weights = torch.tensor([2.0, -3.0], dtype=F64)
    got = sm.Tucker.from_cp((u, v, w), weights).to_dense()
    assert torch.allclose(got, torch.einsum("r,ir,jr,kr->ijk", weights, u, v, w), rtol=1e-13)
    wide = sm.Tucker.from_cp(tuple(numbers(d, 5, seed=d) for d in (3, 4, 2)))  # R above every size
    assert wide.ranks == (3, 4, 2)
    parts = [numbers(d, 5, seed=d) for d in (3, 4, 2)]
    assert torch.allclose(wide.to_dense(), torch.einsum("ir,jr,kr->ijk", *parts), rtol=1e-12)
    again = [sm.Tucker.random((3, 4), 2, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(again[0].to_dense(), again[1].to_dense())


# -- rank ------------------------------------------------------------------------------------------------------------


def test_ranks_are_measured_with_their_gaps() -> None:
    t = make((8, 7, 6), (2, 3, 2))
    found = (t + t).multilinear_rank()
    assert found.ranks == (2, 3, 2)
    assert found.bounds == (4, 6, 4)
    assert found.certain and min(found.gaps) > 1e10
    for k, s in enumerate(t.mode_svdvals()):
        wanted = torch.linalg.svdvals(ft.unfolding(dense(t), k, 3))[: len(s)]
        assert float((s - wanted).norm()) <= 100 * torch.finfo(F64).eps * size_of(t)
    slope = torch.diag(10.0 ** -torch.arange(6.0, dtype=F64))  # no gap anywhere: which rank is a matter of taste
    open_ = sm.Tucker(slope, (torch.eye(6, dtype=F64),) * 2).multilinear_rank(tol=3e-4)
    assert open_.ranks == (4, 4)
    assert not open_.certain
    assert sm.Tucker(torch.zeros(2, 2, dtype=F64), (torch.eye(2, dtype=F64),) * 2).multilinear_rank().ranks == (0, 0)


def test_round_drops_what_is_not_needed() -> None:
    t = make((9, 8, 7), (2, 3, 2), batch=(2,))
    twice = t + t
    for small in (twice.round((2, 3, 2)), (make((9, 8, 7), (2, 3, 2)) * 2).round(tol=1e-12)):
        assert small.ranks == (2, 3, 2)
    assert float((twice.round((2, 3, 2)).to_dense() - 2 * dense(t)).norm()) <= 100 * torch.finfo(F64).eps * size_of(t)
    even = twice.round(tol=1e-12)  # one rank for the whole batch, enough for each of its tensors
    assert (even.ranks, even.batch_shape) == ((2, 3, 2), (2,))
    assert float((even.to_dense() - 2 * dense(t)).norm()) <= 1e-11 * size_of(t)
    with pytest.raises(sm.ShapeError, match="rank 5 of mode 0 must be an int from 1 to 4"):
        twice.round((5, 3, 2))
    rough = make((9, 8, 7), (5, 5, 5))
    near = rough.round(tol=0.3)
    assert float(near.distance(rough)) <= 0.3 * float(rough.norm())
    assert near.numel_stored < rough.numel_stored


# -- derivatives and transforms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
def test_first_and_second_derivatives(dtype: torch.dtype) -> None:
    t = make((3, 2, 3), (2, 2, 2), dtype)
    leaves = [v.requires_grad_() for v in t.tensors()]
    other = make((3, 2, 3), (2, 2, 2), dtype, seed=40)

    def verbs(core: torch.Tensor, *factors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = sm.Tucker(core, factors)
        return s.to_dense(), s.inner(other), s.norm(), (s + other).core, (s * other).core

    assert torch.autograd.gradcheck(verbs, leaves)
    assert torch.autograd.gradgradcheck(lambda *v: verbs(*v)[:3], leaves)


def test_transforms_and_compile_of_the_value() -> None:
    t = make((4, 3, 2), (2, 2, 2))

    def loss(s: sm.Tucker) -> torch.Tensor:
        return (s.to_dense() ** 3).sum()

    by_func = torch.func.grad(loss)(t)
    leaves = [v.clone().requires_grad_() for v in t.tensors()]
    plain = torch.autograd.grad(loss(sm.Tucker(leaves[0], tuple(leaves[1:]))), leaves)
    for one, two in zip(by_func.tensors(), plain, strict=True):
        assert torch.allclose(one, two, rtol=1e-12)
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, v: s.to_dense() * v, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(t, torch.ones(())), t.to_dense(), rtol=1e-12)
    stacked = sm.Tucker(torch.stack((t.core, 2 * t.core)), tuple(torch.stack((u, u)) for u in t.factors))
    both = torch.func.vmap(lambda s: s.to_dense())(stacked)
    assert torch.allclose(both[1], 2 * t.to_dense(), rtol=1e-12)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_fields_are_named() -> None:
    core, u, v = torch.ones(2, 2), torch.ones(3, 2), torch.ones(4, 2)
    cases: list[tuple[type[Exception], str, Any, Any]] = [
        (sm.ShapeError, "at least one factor", core, ()),
        (sm.ShapeError, r"factors have \(2, 3\) columns", core, (u, torch.ones(4, 3))),
        (sm.ShapeError, "core must have at least 3 dimensions", core, (u, v, v)),
        (sm.ShapeError, "rank 2 of mode 1 is above its size 1", core, (u, torch.ones(1, 2))),
        (sm.ShapeError, "do not broadcast", torch.ones(2, 2, 2), (u, torch.ones(3, 4, 2))),
        (sm.DtypeError, "int64", torch.ones(2, 2, dtype=torch.int64), (u, v)),
        (sm.DtypeError, "float64", core, (u, v.double())),
    ]
    for error, message, c, factors in cases:
        with pytest.raises(error, match=message):
            sm.Tucker(c, factors)
    with pytest.warns(UserWarning, match="rank 3 of mode 0 is above 2, the product of the other ranks"):
        sm.Tucker(torch.ones(3, 2), (torch.ones(4, 3), v))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sm.Tucker(core, (u, v))
    with pytest.raises(sm.ShapeError, match="must be"):
        sm.Tucker.from_cp((u, torch.ones(4, 3)))
    with pytest.raises(sm.ShapeError, match="weights"):
        sm.Tucker.from_cp((u, v), torch.ones(3))


def test_bad_operands_are_named() -> None:
    t = make((4, 3, 2), (2, 2, 2))
    with pytest.raises(TypeError, match="expected a Tucker tensor, got Tensor"):
        _ = t + t.to_dense()
    with pytest.raises(sm.ShapeError, match=r"sizes \(4, 3, 2\) and \(4, 3, 3\) differ"):
        _ = t + make((4, 3, 3), (2, 2, 2))
    with pytest.raises(sm.DtypeError, match="differ in precision"):
        t.inner(make((4, 3, 2), (2, 2, 2), F32))
    with pytest.raises(TypeError, match="quotient"):
        _ = t / t
    for rows, message in (((0, 0), "different modes"), ((3,), "modes from 0 to 2"), ((0.5,), "modes from 0 to 2")):
        with pytest.raises(sm.ShapeError, match=message):
            t.matricize(rows)
    assert t.matricize(-1).rows == (2,)
    with pytest.raises(sm.ShapeError, match="must name each of the 3 modes once"):
        sm.TuckerMatrix(t.core, t.factors, (0,), (1,))
    with pytest.raises(sm.ShapeError, match="the last sizes must agree"):
        sm.TuckerMatrix(t.core[..., :1], t.factors, (0,), (1, 2))
