"""Butterflies: every cut into passes computes the same, exactly over the integers; solves; rules; errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import butterfly as fb
from structmat.functional import butterfly_apply as fa
from structmat.testing import assert_gradients
from structmat.testing.reference import dense_of
from tests.test_no_dense import no_dense_arrays

F32, F64, C128 = torch.float32, torch.float64, torch.complex128
EPS = torch.finfo(F64).eps

# digits, axes, rows a block: single digits up and down, joint ones in any order and apart, sizes that change
CHAINS = [
    ((2, 2, 2, 2), ((3,), (2,), (1,), (0,)), (2, 2, 2, 2)),
    ((2, 3, 2), ((0,), (1,), (2,), (1,), (0,)), (2, 3, 2, 3, 2)),
    ((2, 2, 2, 3), ((2, 3), (1, 3), (0, 3)), (6, 6, 6)),
    ((2, 3, 2, 2), ((3, 0), (1,), (2, 0, 3)), (4, 3, 8)),
    ((4, 3), ((1,), (0,)), (5, 2)),
    ((2, 1, 3), ((0,), (1, 2), (2,)), (3, 6, 1)),
]


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def _blocks(
    digits: fb.Digits, axes: tuple[fb.Digits, ...], rows: fb.Digits, lead: tuple[int, ...] = (), **options: Any
) -> tuple[torch.Tensor, ...]:
    steps = fb.chain(digits, axes, rows).steps
    return tuple(_numbers(*lead, s.rest, s.rows, s.columns, seed=k, **options) for k, s in enumerate(steps))


def _cuts(count: int) -> list[fb.Digits]:
    inner = range(1, count)
    return [(*c, count) for size in range(count) for c in itertools.combinations(inner, size)]


# -- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("digits", "axes", "rows"), CHAINS)
def test_every_cut_is_exact_over_the_integers(digits: Any, axes: Any, rows: Any) -> None:
    """Entries are integers below 2^53 throughout, so merging and passes must agree with the definition bit by bit."""
    blocks = tuple(torch.round(2 * w) for w in _blocks(digits, axes, rows))
    a = sm.Butterfly(blocks, digits, axes)
    dense = dense_of(a)
    links = fb.chain(digits, axes, rows)
    x = torch.round(3 * _numbers(5, math.prod(digits), seed=9))
    for ends in _cuts(len(axes)):
        plan = fa.program_of(links, ends)
        y = fa.kept_rows(x, fa.merged_blocks(blocks, plan), plan, None, F64)
        assert torch.equal(y, x @ dense.mT), ends
    order = tuple(reversed(range(len(digits))))
    turned = sm.Butterfly(blocks, digits, axes, order)
    assert torch.equal(turned.to_dense(), dense_of(turned))
    assert torch.equal(turned.mT.to_dense(), dense_of(turned).mT)
    assert torch.equal(turned.mT.mT.to_dense(), dense_of(turned))


@pytest.mark.parametrize(("digits", "axes", "rows"), CHAINS)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_passes_and_their_gradients_are_those_of_the_formula(
    digits: Any, axes: Any, rows: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of rows, for every cut, with an order, and with gradients of some inputs only."""
    monkeypatch.setattr(fa, "_CHUNK", 0)  # the least chunk is 64 rows
    blocks = tuple(w.requires_grad_() for w in _blocks(digits, axes, rows, dtype=dtype))
    links = fb.chain(digits, axes, rows)
    n, m = links.columns, links.rows
    x = _numbers(150, n, dtype=dtype, seed=7).requires_grad_()
    g = _numbers(150, m, dtype=dtype, seed=8)
    for order in (None, (len(digits) - 1, *range(len(digits) - 1))):
        dense = sm.Butterfly(blocks, digits, axes, order).to_dense()
        wanted = torch.autograd.grad(x @ dense.mT, (x, *blocks), g)
        for ends in _cuts(len(axes)):
            plan = fa.program_of(links, ends)
            y = fa.kept_rows(x, fa.merged_blocks(blocks, plan), plan, order, dtype)
            got = torch.autograd.grad(y, (x, *blocks), g)
            for one, other in zip(got, wanted, strict=True):
                assert float((one - other).norm()) <= 256 * EPS * float(other.norm()), ends
            only = fa.kept_rows(x.detach(), fa.merged_blocks(blocks, plan), plan, order, dtype)
            last = torch.autograd.grad(only, blocks[-1], g)[0]
            assert float((last - wanted[-1]).norm()) <= 256 * EPS * float(wanted[-1].norm())


@pytest.mark.parametrize("dtype", [F64, C128])
def test_second_order_through_the_passes(dtype: torch.dtype) -> None:
    digits, axes, rows = CHAINS[2]
    plan = fa.program_of(fb.chain(digits, axes, rows), (1, 3))

    def apply(x: torch.Tensor, *blocks: torch.Tensor) -> torch.Tensor:
        return fa.kept_rows(x, fa.merged_blocks(blocks, plan), plan, None, dtype)

    assert_gradients(apply, (_numbers(3, 24, dtype=dtype), *_blocks(digits, axes, rows, dtype=dtype)))


def test_many_rows_under_every_transform() -> None:
    """At n = 256 the plan merges to two passes: batches, vmap, jvp, grad and a compiled graph agree with dense."""
    digits, axes = (2,) * 8, tuple((k,) for k in range(7, -1, -1))
    blocks = tuple(w / 2**0.5 for w in _blocks(digits, axes, (2,) * 8))
    a = sm.Butterfly(blocks, digits, axes)
    x = _numbers(300, 256, seed=20)
    assert len(a._program(300).parts) == 2
    dense = a.to_dense()
    wanted = x @ dense.mT
    tol = 64 * EPS * float(wanted.norm())
    assert float((a.linear(x) - wanted).norm()) <= tol
    assert float((a.prepare().linear(x) - wanted).norm()) <= tol
    assert float((torch.func.vmap(a.linear)(x) - wanted).norm()) <= tol
    many = torch.func.vmap(lambda *ws: sm.Butterfly(ws, digits, axes).linear(x))(*(torch.stack((w, w)) for w in blocks))
    assert float((many[1] - wanted).norm()) <= tol
    rate = torch.func.jvp(lambda w: sm.Butterfly((w, *blocks[1:]), digits, axes).linear(x), (blocks[0],), (blocks[0],))
    assert float((rate[1] - wanted).norm()) <= tol
    batch = tuple(torch.stack((w, -w)) for w in blocks)
    both = sm.Butterfly(batch, digits, axes)
    assert float((both.linear(x) - torch.stack((wanted, wanted))).norm()) <= 2 * tol
    torch._dynamo.reset()
    compiled = torch.compile(lambda b, v: b.linear(v), fullgraph=True, backend="aot_eager")
    assert float((compiled(a, x) - wanted).norm()) <= tol
    assert float((compiled(a, x[:7]) - wanted[:7]).norm()) <= tol


def test_one_compiled_function_takes_butterflies_of_many_sizes() -> None:
    """The plan is made of numbers while torch traces, also where sizes are symbols; transposes and ``@`` too."""
    torch._dynamo.reset()
    rows = torch.compile(lambda a, v: a.linear(v), fullgraph=True, backend="aot_eager")
    columns = torch.compile(lambda a, v: a.mT @ v, fullgraph=True, backend="aot_eager")
    for n in (6, 8, 16, 12):
        a, x = sm.Butterfly.random(n, dtype=F64), _numbers(3, n)
        assert float((rows(a, x) - a.linear(x)).norm()) <= 64 * EPS * n * float(a.norm() * x.norm())
        f = sm.dft(n)
        assert float((columns(f, x.mT.to(C128)) - f @ x.mT.to(C128)).norm()) <= 64 * EPS * n * float(x.norm())
    torch._dynamo.reset()
    for n in (6, 8, 16):
        q, x = sm.OrthogonalButterfly.random(n, dtype=F64), _numbers(3, n)
        assert float((rows(q, x) - q.linear(x)).norm()) <= 64 * EPS * n * float(x.norm())


# -- the cost rule -------------------------------------------------------------------------------------------------


def test_the_cut_is_the_cheapest_of_all_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic programming against every cut, by the same estimates."""
    for digits, axes, rows in [*CHAINS, ((2,) * 7, tuple((k,) for k in range(7)), (2,) * 7)]:
        links = fb.chain(digits, axes, rows)
        for many in (1, 64, 4096):
            found = fa._program(links, many)
            costs = []
            for ends in _cuts(len(axes)):
                plan = fa.program_of(links, ends)
                merging = sum(fa._MERGE + how.work * fa._MULTIPLY for part in plan.parts for how in part.equations)
                costs.append(merging + sum(fa._pass_seconds(step, many) for step in plan.steps))
            assert found.seconds == pytest.approx(min(costs), rel=1e-12)


def test_explain_says_how_rows_go_through() -> None:
    a = sm.Butterfly.random(1024, dtype=F32)
    few, many = backend.explain(a, torch.zeros(1024)), backend.explain(a, torch.zeros(2048, 1024))
    assert few.path == "per factor" and "512 blocks 2 x 2" in few.reason
    assert many.path == "merged" and "merged to 32 blocks 32 x 32" in many.reason
    small = backend.explain(sm.Butterfly.random(16), torch.zeros(4096, 16))
    assert small.path == "dense" and small.flops == 2.0 * 4096 * 256
    turn = sm.OrthogonalButterfly.random(1024, 8, 4)
    assert "16 blocks 64 x 64" in backend.explain(turn, torch.zeros(1024, 1024)).reason


def test_explain_of_a_solve() -> None:
    b = torch.zeros(24, 2)
    assert backend.explain("solve", sm.Butterfly.random(24), b).path == "factor by factor"
    assert backend.explain("solve", sm.Butterfly.random(24, 12).mT, b).path == "dense"
    assert "3 blocks 8 x 8" in backend.explain("solve", sm.OrthogonalButterfly.random(24), b).reason
    with pytest.raises(ValueError, match="legal verbs"):
        backend.explain("inv", sm.Butterfly.random(24), b)


@pytest.mark.parametrize("rows", [1, 16])
def test_no_square_array_at_4096(rows: int) -> None:
    for a in (sm.Butterfly.random(4096, dtype=F64), sm.OrthogonalButterfly.random(4096, 8, 4, dtype=F64)):
        x = torch.randn(rows, 4096, dtype=F64).requires_grad_()
        with no_dense_arrays():
            leaves = [t.requires_grad_() for t in a.tensors()]
            torch.autograd.grad(a.linear(x).sum(), (x, *leaves))
            a.inv()
            a.slogdet()
            with torch.no_grad():
                a.solve(x.detach().mT, check=False)


# -- solving, rules, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("digits", "axes", "rows"), CHAINS[:4])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_inverse_solve_and_determinant(digits: Any, axes: Any, rows: Any, dtype: torch.dtype) -> None:
    for order in (None, tuple(reversed(range(len(digits))))):
        a = sm.Butterfly(_blocks(digits, axes, rows, dtype=dtype), digits, axes, order)
        dense, n = dense_of(a), a.shape[-1]
        condition = float(torch.linalg.cond(dense))
        spread = math.prod(float(torch.linalg.cond(w).max()) for w in a.blocks)
        eye = torch.eye(n, dtype=dtype)
        assert float((a.inv().to_dense() @ dense - eye).norm()) <= 100 * EPS * spread
        b = _numbers(n, 3, dtype=dtype, seed=4)
        x = torch.linalg.solve(dense, b)
        assert float((a.solve(b) - x).norm()) <= 100 * n * EPS * condition * float(x.norm())
        sign, logabs = a.slogdet()
        wanted = torch.linalg.slogdet(dense)
        assert float((sign - wanted[0]).abs()) <= 1e-9 and float((logabs - wanted[1]).abs()) <= 1e-9


def test_a_singular_block_is_found() -> None:
    a = sm.Butterfly((torch.ones(2, 2, 2, dtype=F64),), (2, 2), ((0,),))
    with pytest.raises(sm.SolveError):
        a.solve(torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=F64))


def test_products_of_butterflies_concatenate_factors() -> None:
    digits, axes, rows = CHAINS[1]
    order = (2, 0, 1)
    a = sm.Butterfly(_blocks(digits, axes, rows), digits, axes, order)
    b = sm.Butterfly(_blocks((2, 2, 3), ((1,), (0, 2)), (2, 6)), (2, 2, 3), ((1,), (0, 2)), order)
    for left, right in ((b, a), (a.mT, a), (a, a.inv())):
        product = left @ right
        assert isinstance(product, sm.Butterfly) == (left.digits == right.output_digits)
        gap = product.to_dense() - left.to_dense() @ right.to_dense()
        assert float(gap.norm()) <= 1e3 * EPS * float(left.to_dense().norm() * right.to_dense().norm())
    assert (b @ a).layers == 7 and isinstance(b @ a, sm.Butterfly)
    assert not isinstance(a @ a, sm.Butterfly), "digits (2, 3, 2) meet (2, 2, 3)"


def test_diagonals_go_into_the_blocks() -> None:
    for digits, axes, rows in CHAINS:
        order = tuple(reversed(range(len(digits))))
        a = sm.Butterfly(_blocks(digits, axes, rows), digits, axes, order)
        m, n = a.shape
        left, right = sm.Diagonal(_numbers(m, seed=2)), sm.Diagonal(_numbers(n, seed=3))
        both = left @ (a @ right)
        assert isinstance(both, sm.Butterfly)
        wanted = left.to_dense() @ dense_of(a) @ right.to_dense()
        assert float((both.to_dense() - wanted).norm()) <= 64 * EPS * float(wanted.norm()) * m
        assert isinstance(2 * a, sm.Butterfly)
    tailed = sm.Butterfly.random(67, dtype=F64)
    for product in (tailed @ sm.Diagonal(_numbers(67)), sm.Diagonal(_numbers(67)) @ tailed):
        assert isinstance(product, sm.Product)


def test_shared_blocks_are_kroneckers() -> None:
    p, q = _numbers(1, 3, 2), _numbers(1, 2, 4, seed=1)
    a = sm.Butterfly((p, q), (2, 4), ((0,), (1,)))
    assert float((a.to_dense() - torch.kron(p[0], q[0])).norm()) <= 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: sm.Butterfly((w,), (2, 3), ((0,),)), r"blocks\[0\] has shape \(2, 2, 2\)"),
        (lambda w: sm.Butterfly((w,), (2, 2), ((2,),)), "positions of digits"),
        (lambda w: sm.Butterfly((w,), (2, 2), ((0, 0),)), "different positions"),
        (lambda w: sm.Butterfly((w, w), (2, 2), ((0,),)), "one a factor"),
        (lambda w: sm.Butterfly((), (2, 2), ()), "at least one factor"),
        (lambda w: sm.Butterfly((w,), (2, 0), ((0,),)), "positive ints"),
        (lambda w: sm.Butterfly((w,), (2, 2), ((0,),), (0, 0)), "each of the 2 digits once"),
        (lambda w: sm.Butterfly((w,), (2, 2), ((0,),), None, -1), "tail"),
        (lambda w: sm.Butterfly((torch.ones(2, 3, 4),), (2, 2, 2), ((0, 1),)), "no multiple"),
        (lambda w: sm.Butterfly.identity(6, digits=(2, 2)), "multiply to 4"),
        (lambda w: sm.Butterfly.nearest(torch.ones(4, 4), (2, 3)), "multiply to"),
        (lambda w: sm.Butterfly.from_skew((torch.ones(1, 2),), (2,)), "p = 2 needs"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(sm.ShapeError, match=message):
        make(torch.ones(2, 2, 2))
