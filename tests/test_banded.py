"""Banded and triangular matrices: what is read of them, closed forms, solves, determinants, derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Matrix
from structmat.testing import assert_claims, strategies
from structmat.testing.assertions import rounding
from structmat.testing.reference import dense_of, magnitude_of

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
WIDTHS = [(0, 0), (1, 1), (2, 0), (0, 3), (3, 2)]


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _banded(
    n: int, lower: int, upper: int, dtype: torch.dtype = F64, batch: tuple[int, ...] = (), shift: float = 4.0
) -> sm.Banded:
    bands = _numbers(*batch, lower + upper + 1, n, dtype=dtype, seed=lower)
    bands[..., upper, :] += shift * (lower + upper + 1) ** 0.5
    return sm.Banded(bands, upper)


def _triangular(n: int, upper: bool = False, unit: bool = False, batch: tuple[int, ...] = ()) -> sm.Triangular:
    return sm.Triangular(_numbers(*batch, n, n) / n + 2 * torch.eye(n, dtype=F64), upper, unit)


@pytest.mark.parametrize(("lower", "upper"), WIDTHS)
def test_a_banded_solve_is_that_of_scipy(lower: int, upper: int) -> None:
    for n in (1, 4, 30):
        if max(lower, upper) >= n:
            continue
        a, b = _banded(n, lower, upper), _numbers(n, 2, seed=9)
        wanted = scipy.linalg.solve_banded((lower, upper), a.bands.numpy(), b.numpy())
        x, info = sm.linalg.solve(a, b, return_info=True)
        assert info.method == "banded" and float(info.backward_error.max()) <= 10 * EPS
        kappa = float(torch.linalg.cond(dense_of(a)))
        assert torch.allclose(x, torch.from_numpy(wanted), atol=10 * kappa * EPS)


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_solve_factor_and_determinant(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    for lower, upper in WIDTHS:
        a = _banded(80, lower, upper, dtype, batch, shift=1.0)  # a weak diagonal: rows are exchanged
        dense, b = dense_of(a), _numbers(*batch, 80, 2, dtype=dtype, seed=1)
        eta_size = torch.linalg.matrix_norm(dense, 2)[..., None]
        kept = a.factor()
        pairs = [(a.solve(b, check=False), dense), (kept.solve(b), dense), (kept.adjoint_solve(b), dense.mH)]
        for x, matrix in pairs:
            residual = torch.linalg.vector_norm(matrix @ x - b, dim=-2)
            assert float((residual / (eta_size * torch.linalg.vector_norm(x, dim=-2))).max()) <= 100 * EPS
        sign, logabs = a.slogdet()
        wanted = torch.linalg.slogdet(dense)
        kappa = float(torch.linalg.cond(dense).max())
        for got in ((sign, logabs), sm.Banded(a.bands.clone().requires_grad_(), upper).slogdet()):  # LAPACK's, windows'
            assert torch.allclose(got[0], wanted[0], atol=80 * kappa * EPS)
            assert torch.allclose(got[1], wanted[1], atol=80 * kappa * EPS)


def test_real_matrices_meet_complex_right_hand_sides() -> None:
    for a in (_banded(9, 2, 1), _triangular(9)):
        b = _numbers(9, dtype=C128)
        assert torch.allclose(dense_of(a).to(C128) @ a.solve(b), b, atol=1e-13)
        assert torch.allclose(dense_of(a).mT.to(C128) @ a.factor().adjoint_solve(b), b, atol=1e-13)


def test_what_is_never_read() -> None:
    bands = _numbers(4, 6)
    clean = sm.Banded(bands, 2)
    dirty = bands.clone()
    dirty[0, :2] = dirty[1, :1] = dirty[3, 5:] = torch.nan
    a = sm.Banded(dirty, 2)
    x = _numbers(3, 6)
    assert torch.equal(a.to_dense(), clean.to_dense()) and torch.equal(a.linear(x), clean.linear(x))
    for verb in (lambda m: m.norm(), lambda m: (m @ m).to_dense(), lambda m: m.mT.to_dense(), lambda m: m.slogdet()[1]):
        assert torch.equal(verb(a), verb(clean))
    entries = _numbers(5, 5)
    spoiled = entries + torch.triu(torch.full((5, 5), torch.nan, dtype=F64), 1)
    t, whole = sm.Triangular(torch.where(torch.isnan(spoiled), torch.nan, entries)), sm.Triangular(entries)
    assert torch.equal(t.to_dense(), whole.to_dense()) and torch.equal(t.inv().to_dense(), whole.inv().to_dense())


D = sm.Diagonal
CLOSED: list[tuple[str, Callable[[], Matrix], type[Matrix]]] = [
    ("Banded @ Banded", lambda: _banded(6, 1, 2) @ _banded(6, 2, 0), sm.Banded),
    ("wide @ wide", lambda: _banded(4, 3, 3) @ _banded(4, 2, 3), sm.Banded),
    ("Banded + Banded", lambda: _banded(6, 1, 2) + _banded(6, 2, 0), sm.Banded),
    ("Banded - Banded", lambda: _banded(6, 0, 2) - _banded(6, 2, 0), sm.Banded),
    ("Banded * Banded", lambda: _banded(6, 1, 2) * _banded(6, 2, 0), sm.Banded),
    ("Banded @ Diagonal", lambda: _banded(6, 1, 2) @ D(_numbers(6)), sm.Banded),
    ("Diagonal @ Banded", lambda: D(_numbers(6)) @ _banded(6, 1, 2), sm.Banded),
    ("Banded + Diagonal", lambda: _banded(6, 2, 0) + D(_numbers(6)), sm.Banded),
    ("Diagonal - Banded", lambda: D(_numbers(6)) - _banded(6, 2, 0), sm.Banded),
    ("Banded + I", lambda: _banded(6, 2, 0) + sm.Identity(6), sm.Banded),
    ("2 I - Banded", lambda: 2 * sm.Identity(6) - _banded(6, 2, 1), sm.Banded),
    ("3 Banded", lambda: 3 * _banded(6, 2, 1), sm.Banded),
    ("Banded slice", lambda: _banded(6, 2, 1)[1:5, 1:5], sm.Banded),
    ("Banded * Toeplitz", lambda: _banded(6, 2, 1) * sm.Toeplitz(_numbers(11), 6), sm.Banded),
    ("SymmetricToeplitz * wide", lambda: sm.SymmetricToeplitz(_numbers(3)) * _banded(3, 4, 3), sm.Banded),
    ("LowRank * Banded", lambda: sm.LowRank(_numbers(6, 2), _numbers(6, 2, seed=1)) * _banded(6, 2, 1), sm.Banded),
    ("Banded inverse is lazy", lambda: _banded(6, 1, 1).inv(), sm.Inverse),
    ("Triangular @ Triangular", lambda: _triangular(5) @ _triangular(5, unit=True), sm.Triangular),
    ("unit @ unit", lambda: _triangular(5, unit=True) @ _triangular(5, unit=True), sm.Triangular),
    ("lower @ upper", lambda: _triangular(5) @ _triangular(5, True), sm.Dense),
    ("Triangular + Triangular", lambda: _triangular(5, unit=True) + _triangular(5), sm.Triangular),
    ("Triangular inverse", lambda: _triangular(5, True).inv(), sm.Triangular),
    ("unit inverse", lambda: _triangular(5, True, True).inv(), sm.Triangular),
    ("Triangular @ Diagonal", lambda: _triangular(5, unit=True) @ D(_numbers(5)), sm.Triangular),
    ("Diagonal @ Triangular", lambda: D(_numbers(5)) @ _triangular(5, True), sm.Triangular),
    ("Triangular + I", lambda: _triangular(5, True, True) + sm.Identity(5), sm.Triangular),
    ("0.5 I + Triangular", lambda: 0.5 * sm.Identity(5) + _triangular(5), sm.Triangular),
    ("Diagonal + Triangular", lambda: D(_numbers(5)) + _triangular(5), sm.Triangular),
    ("Circulant * Triangular", lambda: sm.Circulant(_numbers(5)) * _triangular(5, unit=True), sm.Triangular),
    ("Triangular * Diagonal", lambda: _triangular(5, unit=True) * D(_numbers(5)), sm.Diagonal),
    ("Dense * Triangular", lambda: sm.Dense(_numbers(5, 5)) * _triangular(5), sm.Triangular),
    ("-2 unit", lambda: -2 * _triangular(5, True, True), sm.Triangular),
    ("Triangular slice", lambda: _triangular(5, True, True)[1:4, 1:4], sm.Triangular),
    ("LowRank * LowRank", lambda: sm.LowRank(*_numbers(2, 6, 2)) * sm.LowRank(*_numbers(2, 6, 3)), sm.LowRank),
]


@pytest.mark.parametrize(("make", "kind"), [c[1:] for c in CLOSED], ids=[c[0] for c in CLOSED])
def test_closed_forms_and_their_claims(make: Callable[[], Matrix], kind: type[Matrix]) -> None:
    found = make()
    assert type(found) is kind
    assert_claims(found, dense_of(found), size=magnitude_of(found) + 1)


@given(st.data())
def test_algebra_with_any_matrix(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    mine = data.draw(st.sampled_from([sm.Banded, sm.Triangular]))
    a = data.draw(strategies.matrices(mine, shape=(n, n)))
    other = data.draw(st.sampled_from([sm.Banded, sm.Triangular, sm.Diagonal, sm.Identity, sm.Toeplitz, sm.LowRank]))
    b = data.draw(strategies.matrices(other, shape=(n, n)))
    x, y = dense_of(a), dense_of(b)
    size, both = magnitude_of(a) * magnitude_of(b), magnitude_of(a) + magnitude_of(b)
    if type(b) is sm.Identity:  # whose norm grows with n, not with its entries
        size, both = size + magnitude_of(a), both + 1
    for got, wanted, scale in ((a @ b, x @ y, size), (b @ a, y @ x, size), (a + b, x + y, both), (b - a, y - x, both)):
        lead = torch.broadcast_shapes(x.shape, y.shape)
        gap = float(torch.linalg.vector_norm(got.to_dense() - wanted.expand(lead)))
        assert gap <= rounding(F64, 2 * n, scale, 4) * 6, repr(got)
    assert torch.allclose((a * b).to_dense(), x * y, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_derivatives_of_both_orders(dtype: torch.dtype) -> None:
    bands, b = _banded(6, 1, 2, dtype).bands.requires_grad_(), _numbers(6, dtype=dtype).requires_grad_()
    entries = (_numbers(4, 4, dtype=dtype) + 3 * torch.eye(4)).requires_grad_()
    calls: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = [
        (lambda t, y: sm.Banded(t, 2).solve(y), (bands, b)),
        (lambda t: sm.Banded(t, 2).logabsdet(), (bands,)),
        (lambda t, y: sm.Triangular(t, True).solve(y), (entries, b[:4].detach().requires_grad_())),
        (lambda t: sm.Triangular(t).logabsdet(), (entries,)),
        (lambda t: sm.Triangular(t, unit=True).inv().to_dense(), (entries,)),
    ]
    for call, given_ in calls:
        assert torch.autograd.gradcheck(call, given_, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, given_, fast_mode=True)


def test_transforms_and_graphs() -> None:
    bands, b = torch.stack([_banded(70, 1, 2, shift=s).bands for s in (3.0, 4.0)]), _numbers(70)
    wanted = torch.stack([sm.Banded(t, 2).solve(b) for t in bands])
    assert torch.allclose(torch.func.vmap(lambda t: sm.Banded(t, 2).solve(b))(bands), wanted, atol=1e-13)
    dets = torch.func.vmap(lambda t: sm.Banded(t, 2).logabsdet())(bands)
    assert torch.allclose(dets, sm.Banded(bands, 2).logabsdet(), atol=1e-12)
    torch._dynamo.reset()
    traced = torch.compile(lambda a, y: (a.solve_rows(y), a.logabsdet()), fullgraph=True, backend="eager")
    x, logabs = traced(sm.Banded(bands[0], 2), b[None])
    assert torch.allclose(x[0], wanted[0], atol=1e-13) and torch.allclose(logabs, dets[0], atol=1e-12)


def test_a_large_band_is_solved_and_differentiated() -> None:
    n = 20_000
    bands = _banded(n, 2, 2).bands.requires_grad_()
    a = sm.Banded(bands, 2)
    b = _numbers(n)
    x = a.solve(b)
    x.square().sum().backward()
    assert float((a @ x - b).detach().norm()) <= 1e-11 and bands.grad is not None and bool((bands.grad != 0).any())
    smaller = bands.detach()[:, :2000].requires_grad_()
    sm.Banded(smaller, 2).logabsdet().backward()
    inverse = torch.linalg.inv(sm.Banded(smaller.detach(), 2).to_dense())
    assert torch.allclose(smaller.grad, sm.Banded.nearest(inverse.mT, 2, 2).bands, atol=1e-12)


def test_singular_ones_say_so() -> None:
    bands = _numbers(3, 300)
    bands[:, 4] = 0
    with pytest.raises(sm.SolveError, match=r"Banded\(shape=\(300, 300\), lower=1, upper=1.* backward error"):
        sm.Banded(bands, 1).solve(_numbers(300))
    assert float(sm.Banded(bands, 1).logabsdet()) == -torch.inf and float(sm.Banded(bands, 1).det()) == 0
    triangle = torch.eye(300, dtype=F64)
    triangle[7, 7] = 0
    with pytest.raises(sm.SolveError, match=r"Triangular.* backward error"):
        sm.Triangular(triangle).solve(_numbers(300))
    assert sm.Triangular(triangle, unit=True).det() == 1


def test_making() -> None:
    a = _banded(7, 2, 1)
    again = sm.Banded.from_dense(dense_of(a))
    assert (again.lower, again.upper) == (2, 1) and torch.equal(again.to_dense(), a.to_dense())
    with pytest.raises(sm.NotStructuredError, match=r"Banded\.from_dense"):
        sm.Banded.from_dense(dense_of(a), 1, 1)
    with pytest.raises(sm.NotStructuredError, match=r"Triangular\.from_dense"):
        sm.Triangular.from_dense(dense_of(a))
    assert torch.equal(sm.Triangular.from_dense(dense_of(a).triu(), upper=True).to_dense(), dense_of(a).triu())
    dense = _numbers(7, 7)
    best = sm.Banded.nearest(dense, 2, 1)
    left = dense - best.to_dense()
    assert float(left.norm()) ** 2 + float(best.norm()) ** 2 == pytest.approx(float(dense.norm()) ** 2)
    assert torch.equal(sm.Banded.identity(4).to_dense(), torch.eye(4))
    assert sm.Banded.random(5, 2, 0, dtype=F64).lower == 2 and sm.Triangular.random(5).shape == (5, 5)
    with pytest.raises(sm.ShapeError, match=r"Banded: 3 diagonals do not allow upper=3; legal are 0 to 2"):
        sm.Banded(_numbers(3, 5), 3)
    with pytest.raises(sm.ShapeError, match=r"Triangular: square entries are needed, got shape \(3, 5\)"):
        sm.Triangular(_numbers(3, 5))
    with pytest.raises(ValueError, match="legal bandwidths"):
        sm.Banded.random(5, -1, 0)


def test_a_low_rank_matrix_is_recompressed() -> None:
    a = sm.LowRank(_numbers(30, 3), _numbers(20, 3, seed=1))
    tall = a + 2 * a + sm.LowRank(1e-20 * _numbers(30, 2), _numbers(20, 2))
    small = tall.recompress()
    assert tall.left.shape[-1] == 8 and small.left.shape[-1] == 3
    assert float((small.to_dense() - tall.to_dense()).norm()) <= 16 * EPS * float(tall.norm())
    dense = _numbers(12, 9)
    s = torch.linalg.svdvals(dense)
    near = sm.LowRank.nearest(dense, 4)
    assert torch.allclose(torch.linalg.matrix_norm(dense - near.to_dense(), 2), s[4])
    assert torch.allclose((dense - near.to_dense()).norm(), s[4:].norm())
    loose = sm.LowRank.nearest(dense, 9).recompress(tol=float(s[6:].norm() / s.norm()) * 1.01)
    assert loose.left.shape[-1] == 6
    assert sm.LowRank(torch.zeros(4, 2), torch.ones(4, 2)).recompress().left.shape[-1] == 0
