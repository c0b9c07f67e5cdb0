"""LowDisplacementRank: accuracy of products and algebra, closed forms with their rank bounds, conversions, errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import LowDisplacementRank as LDR
from structmat.functional import displacement as fd
from structmat.functional import displacement_measures as fm
from structmat.testing import strategies
from structmat.testing.reference import dense_of
from tests.test_no_dense import Largest, no_dense_arrays

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
PAIRS = [(1, -1), (-1, 1), (2.0, -0.5), (1j, -1)]


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _ldr(n: int, r: int, e: complex = 1, f: complex = -1, dtype: torch.dtype = F64, seed: int = 0) -> LDR:
    left, right = (_numbers(n, r, dtype=dtype, seed=seed + k) for k in range(2))
    return LDR(left, right, e, f)


def _size(a: LDR) -> float:
    """How large the numbers are that the entries are summed from: ``||G|| ||H||`` through the inverse displacement."""
    kinds = torch.linalg.matrix_norm(a.left) * torch.linalg.matrix_norm(a.right)
    return float(kinds.max()) * fm.distance_factor(int(a.shape[-1]), a.e, a.f)


def _close(got: torch.Tensor, wanted: torch.Tensor, size: float, steps: float = 1.0) -> None:
    """``100 eps`` of the size of the generators, for each of ``steps`` operations."""
    gap = float(torch.linalg.vector_norm(got.to(C128) - wanted.to(C128)))
    assert gap <= 100 * EPS * steps * size, f"{gap:.2e} exceeds {100 * EPS * steps * size:.1e}"


# -- products -----------------------------------------------------------------------------------------------------


def _multiplied_out(g: torch.Tensor, h: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``sum_j Z_e(g_j) Z_f(J h_j) / (e - f)`` by dense products."""
    columns = zip(g.mT, h.flip(0).mT, strict=True)
    total = [sm.Circulant(a, e).to_dense() @ sm.Circulant(b, f).to_dense() for a, b in columns]
    return torch.stack(total).sum(0) / (e - f)


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 64, 97, 130, 256])
def test_product_is_accurate(n: int, dtype: torch.dtype) -> None:
    """``4 eps (1 + log2 N) sum_j max|g_hat| max|w_hat| ||x|| / |e - f|`` for each of the two transforms of a term."""
    for e, f in ((1, -1), (-1, 1), (3.0, -0.25), (1, 1e-6)):
        g, h, x = _numbers(n, 3, dtype=dtype), _numbers(n, 3, dtype=dtype, seed=1), _numbers(3, n, dtype=dtype, seed=2)
        wide = torch.promote_types(dtype, F64)
        exact = x.to(wide) @ _multiplied_out(g.to(wide), h.to(wide), e, f).mT
        ghat, what, to_e, to_f = fd.spectra(g.to(wide), h.to(wide), e, f)
        stretch = max(abs(e), 1 / abs(e)) * (max(abs(f), 1 / abs(f)) if to_f.twisted else 1)
        largest = float((ghat.abs().amax(-1) * what.abs().amax(-1)).sum()) * stretch
        bound = 8 * torch.finfo(dtype).eps * (1 + math.log2(max(2, to_e.length, to_f.length))) * largest
        error = torch.linalg.vector_norm(fd.product(g, h, x, e, f).to(wide) - exact, dim=-1)
        assert bool((error <= bound * torch.linalg.vector_norm(x, dim=-1)).all())


def test_blocks_do_not_change_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block, blocks of rows, blocks of the batch, several terms at once: forward and backward."""
    shapes = [((3, 12, 5), (3, 7, 12)), ((12, 5), (9, 12)), ((2, 17, 2), (2, 5, 17)), ((12, 1), (12,))]
    for lead, rows in shapes:
        inputs = [_numbers(*lead), _numbers(*lead, seed=1), _numbers(*rows, seed=2)]
        found = []
        for block in (1, 30, 100, 1 << 17):
            monkeypatch.setattr(fd, "_BLOCK", block)
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = fd.product(*leaves, 1, -1)
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
        for other in found[1:]:
            for a, b in zip(other, found[0], strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e3 * EPS * float(b.abs().max()))


def test_batches_broadcast_as_in_matmul() -> None:
    cases: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((1, 2), (3, 2, 4)),
        ((2, 1), (2, 3, 4)),
        ((2, 1, 3), (5, 1, 4, 3, 2)),
        ((), (5, 2, 3)),
        ((2,), ()),
        ((2, 3), (1,)),
        ((1,), ()),
    ]
    for lead, rows in cases:
        a = LDR(_numbers(*lead, 6, 2), _numbers(*lead, 6, 2, seed=1))
        x = _numbers(*rows, 6, seed=2)
        wanted = x @ a.to_dense().mT if x.ndim > 1 else a.to_dense() @ x
        for matrix in (a, a.prepare()):
            assert matrix.linear(x).shape == wanted.shape
            _close(matrix.linear(x), wanted, _size(a) * float(x.norm()))


@pytest.mark.parametrize("r", [1, 24])
def test_gradients_keep_nothing_that_grows_with_r_times_rows(r: int) -> None:
    """What the graph holds: generators, their spectra, the rows. What the passes form: one block at a time."""
    n, rows = 256, 1024
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t):
        leaves = [_numbers(n, r).requires_grad_(), _numbers(n, r, seed=1).requires_grad_()]
        x = _numbers(rows, n, seed=2).requires_grad_()
        y = fd.product(*leaves, x, 1, -1)
    held = sum(t.numel() * (2 if t.is_complex() else 1) for t in kept.values())
    of_rows = 2 * rows * n if r == 1 else rows * n  # of a single term u is kept too, which is no larger than x
    assert rows * n <= held <= of_rows + 6 * n * r, "the rows, and the generators with their spectra"
    with torch.profiler.profile(profile_memory=True) as watch:
        torch.autograd.grad(y, [*leaves, x], torch.ones_like(y))
    most = max(event.cpu_memory_usage for event in watch.events())
    assert 0 < most <= 8 * (2 * rows * n + 2 * fd._BLOCK + 16 * n * r), "no tensor of r times the rows"


@pytest.mark.parametrize(
    "verb",
    [
        lambda a, x: a.linear(x).square().sum(),
        lambda a, x: a.mT.linear(x).square().sum(),
        lambda a, x: a.norm(),
        lambda a, x: a.diagonal().sum() + a.trace() + a.diagonal_sums().square().sum(),
        lambda a, x: (a @ a.mT).linear(x).sum() + (a + sm.Identity(4096)).linear(x).sum(),
        lambda a, x: a.recompress(1e-2).linear(x).sum() + a.leading_block(3000).trace(),
        lambda a, x: (sm.Toeplitz(x.reshape(-1)[:8191], 4096) @ a).linear(x).sum(),
    ],
    ids=["linear", "transposed", "norm", "traces", "algebra", "recompress", "with Toeplitz"],
)
def test_nothing_dense_at_4096(verb: Callable[[sm.Matrix, torch.Tensor], torch.Tensor]) -> None:
    def run(n: int) -> None:
        leaves = [_numbers(n, 2).requires_grad_(), _numbers(n, 2, seed=1).requires_grad_()]
        verb(LDR(*leaves), _numbers(2, n, seed=2).requires_grad_()).backward()

    with Largest():
        run(4096)  # what Python itself allocates once is no array of ours
    with no_dense_arrays():
        run(4096)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_gradients_to_second_order(e: complex, f: complex, dtype: torch.dtype) -> None:
    for n in (1, 4, 17):
        leaves = [_numbers(n, 2, dtype=dtype), _numbers(n, 2, dtype=dtype, seed=1), _numbers(2, n, dtype=dtype, seed=2)]
        leaves = [t.requires_grad_() for t in leaves]
        call = lambda g, h, x: fd.product(g, h, x, e, f)  # noqa: E731
        torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=n == 4, check_forward_ad=n == 4)
        torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


# -- algebra ------------------------------------------------------------------------------------------------------


def _assert_closed(result: Any, wanted: torch.Tensor, rank: int, size: float, steps: float = 1.0) -> None:
    """A LowDisplacementRank of at most this rank, equal to the dense result, its generators true of it."""
    assert isinstance(result, LDR), repr(result)
    assert result.left.shape[-1] <= rank
    n = result.shape[-1]
    _close(result.to_dense(), wanted, size, steps * n**0.5)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 7, 33])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(PAIRS, repeat=2)))
def test_products_and_sums_of_two(
    first: tuple[complex, complex], second: tuple[complex, complex], n: int, dtype: torch.dtype
) -> None:
    a, b = _ldr(n, 2, *first, dtype=dtype), _ldr(n, 3, *second, dtype=dtype, seed=4)
    x, y = a.to_dense().to(C128), b.to_dense().to(C128)
    meets = (a.f == b.e, a.e != b.f)
    stretch = 1.0
    for number in (*first, *second):
        stretch *= max(abs(number), 1 / abs(number))
    _assert_closed(a @ b, x @ y, 5 + (not meets[0]) + (not meets[1]), stretch * _size(a) * _size(b), 4)
    _assert_closed(a + b, x + y, 5 + (a.e != b.e) + (a.f != b.f), stretch * (_size(a) + _size(b)), 4)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_with_other_types(n: int, dtype: torch.dtype) -> None:
    t = sm.Toeplitz(_numbers(2 * n - 1, dtype=dtype), n)
    s, c = sm.SymmetricToeplitz(_numbers(n, dtype=dtype, seed=1)), sm.Circulant(_numbers(n, dtype=dtype, seed=2), -1)
    eye, constant = sm.Identity(n, dtype), sm.Diagonal(torch.full((), 2.5, dtype=dtype).expand(n))
    x, y, z = t.to_dense(), s.to_dense(), c.to_dense()
    norm = 8 * n * float(x.norm() + 1) * float(y.norm() + 1) * float(z.norm() + 1)
    _assert_closed(t @ s, x @ y, 4, norm)
    _assert_closed(t @ t, x @ x, 4, norm)
    for e, f in ((1, -1), (-1, 1), (2.0, -1)):
        a = _ldr(n, 2, e, f, dtype=dtype, seed=5)
        d, size = a.to_dense(), norm * (1 + _size(a))
        for other, dense in ((t, x), (s, y), (c, z)):
            _assert_closed(a @ other, d @ dense, 4, size)
            _assert_closed(other @ a, dense @ d, 4, size)
            _assert_closed(a + other, d + dense, 4, size)
            _assert_closed(other - a, dense - d, 4, size)
        one = torch.eye(n, dtype=dtype)
        for total, wanted in (
            (a + eye, d + one),
            (eye - a, one - d),
            (a + 3 * eye, d + 3 * one),
            (0.5 * eye + a, d + 0.5 * one),
            (a + constant, d + 2.5 * one),
            (constant + a, d + 2.5 * one),
        ):
            _assert_closed(total, wanted, 3, size)
        for product, wanted in (
            (a @ eye, d),
            (2 * eye @ a, 2 * d),
            (a @ constant, 2.5 * d),
            (constant @ a, 2.5 * d),
            (a * -2, -2 * d),
        ):
            _assert_closed(product, wanted, 2, size)
        assert isinstance(a @ sm.Diagonal(_numbers(n, dtype=dtype)), sm.Product) or n == 1


@given(st.data())
def test_measures_equal_the_dense_ones(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([F64, C128]))
    a = data.draw(strategies.low_displacement_rank(dtype))
    dense, size = a.to_dense(), _size(a) * max(abs(a.e), 1 / abs(a.e)) * max(abs(a.f), 1 / abs(a.f)) + 1e-300
    n = int(a.shape[-1])
    _close(dense, dense_of(a), size, n)
    _close(a.diagonal(), torch.diagonal(dense, dim1=-2, dim2=-1), size, n)
    _close(a.trace(), torch.diagonal(dense, dim1=-2, dim2=-1).sum(-1), size, n)
    sums = torch.stack([torch.diagonal(dense, -k, -2, -1).sum(-1) for k in range(-(n - 1), n)], -1)
    _close(a.diagonal_sums(), sums, size, n)
    if abs(a.e) == abs(a.f) == 1:
        squared = fm.squared_norm(a.left, a.right, a.e, a.f)
        _close(squared, torch.linalg.matrix_norm(dense) ** 2, size**2, n)
    moved = a.with_operator(1, -1)
    _close(moved.to_dense(), dense, size, 4 * n)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_blocks_inverses_and_schur_complements(e: complex, f: complex, dtype: torch.dtype) -> None:
    n, r = 12, 3
    a = LDR(_numbers(2, n, r, dtype=dtype), _numbers(2, n, r, dtype=dtype, seed=1), e, f)
    a = a + 4 * sm.Identity(n, dtype)
    assert isinstance(a, LDR)
    dense, rank = a.to_dense(), r + 1
    kappa = float(torch.linalg.cond(dense).max())
    inverse = a.inv()
    _assert_closed(inverse, torch.linalg.inv(dense), rank, _size(a) * kappa**2)
    assert (inverse.e, inverse.f) == (a.f, a.e)
    for k in (1, 5, 11, 12):
        _assert_closed(a.leading_block(k), dense[..., :k, :k], rank + 2, 8 * _size(a))
    for k in (0, 1, 4, 11):
        head = torch.linalg.solve(dense[..., :k, :k], dense[..., :k, k:])
        schur = dense[..., k:, k:] - dense[..., k:, :k] @ head
        worst = kappa**2 * float(torch.linalg.cond(dense[..., :k, :k]).max() if k else 1)
        _assert_closed(a.schur_complement(k), schur, rank + 2, 8 * _size(a) * worst)


def test_the_schur_complement_of_a_product_is_what_elimination_leaves() -> None:
    """T^H T of a random Toeplitz matrix, at an order above the dense limit: through GKO."""
    n, k = 300, 120
    t = sm.Toeplitz(_numbers(2 * n - 1) / n**0.5, n)
    a = t.mT @ t + sm.Identity(n)
    dense = a.to_dense()
    wanted = dense[k:, k:] - dense[k:, :k] @ torch.linalg.solve(dense[:k, :k], dense[:k, k:])
    complement = a.schur_complement(k)
    assert complement.left.shape[-1] <= a.left.shape[-1] + 2
    kappa = float(torch.linalg.cond(dense))
    _close(complement.to_dense(), wanted, 100 * _size(a) * kappa)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: LDR(_numbers(4, 2), _numbers(4, 2), 1, 1), ValueError, r"must be nonzero and differ"),
    (lambda: LDR(_numbers(4, 2), _numbers(4, 2), 0, 1), ValueError, r"must be nonzero and differ"),
    (lambda: LDR(_numbers(4, 2), _numbers(4, 2), "1"), ValueError, r"e must be a nonzero Python number"),  # type: ignore[arg-type]
    (lambda: LDR(_numbers(4, 2), _numbers(4, 3)), sm.ShapeError, r"one n and one r"),
    (lambda: LDR(_numbers(4, 2), _numbers(5, 2)), sm.ShapeError, r"one n and one r"),
    (lambda: _ldr(4, 2).block(2, 2), sm.ShapeError, r"legal are 0 <= start < stop <= 4"),
    (lambda: _ldr(4, 2).leading_block(5), sm.ShapeError, r"block\(0, 5\)"),
    (lambda: _ldr(4, 2).schur_complement(4), sm.ShapeError, r"legal are 0 <= k < 4"),
    (lambda: LDR.from_toeplitz(sm.Toeplitz(_numbers(6), 3)), sm.ShapeError, r"a rectangle is a slice of one"),
    (lambda: LDR.from_toeplitz(sm.Dense(_numbers(3, 3))), sm.StructureError, r"from_dense\(A.to_dense\(\)\)"),
    (lambda: LDR.from_hankel(sm.Dense(_numbers(3, 3))), sm.ShapeError, r"square Hankel"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors_name_the_way_out(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_claims_carry_the_bounds() -> None:
    a, b = _ldr(9, 2), _ldr(9, 3, -1, 2.0, seed=3)
    assert a.claims.displacement[1, -1] == 2 and a.claims.displacement[-1, 1] == 4
    assert (a @ b).claims.displacement[1, 2.0] == 5
    assert a.inv().claims.displacement[-1, 1] == 2
    t = sm.SymmetricToeplitz(0.5 ** torch.arange(5, dtype=F64)).assume(sm.Claim.POSITIVE_DEFINITE)
    assert sm.Claim.POSITIVE_DEFINITE in t.inv().claims and sm.Claim.SYMMETRIC in t.inv().claims
    assert "r=2" in repr(a) and "f=2.0" in repr(b)
    assert _ldr(9, 0).rank_bound() == 0


def test_a_gpu_takes_larger_blocks() -> None:
    """Each block is launches of its own there; a device that is not the CPU stands for it."""
    for device, many in (("cpu", 64), ("meta", 1)):
        x = torch.empty(1, 2048, 4096, device=device)
        assert sum(len(pieces) for _, pieces, _ in fd._blocks(x, 2, 8192, False)) == many
