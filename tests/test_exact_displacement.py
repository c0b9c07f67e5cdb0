"""The algebra of generators, exactly: each index and each sign over the integers modulo a prime, where nothing rounds.

The functions run as they stand, on int64 tensors; the matrices come from the defining equation, by Python loops.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import structmat as sm
from structmat.functional import displacement as fd
from structmat.functional import displacement_algebra as fa
from structmat.functional import displacement_measures as fm

P = 10007
PAIRS = [(3, 5), (5, 3), (1, P - 1), (2, 1)]
SIZES = [1, 2, 3, 5, 8]


def _inverse(a: int) -> int:
    return pow(a, P - 2, P)


def _integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, P, shape, generator=torch.Generator().manual_seed(seed))


def _shift(n: int, e: int) -> torch.Tensor:
    z = torch.zeros(n, n, dtype=torch.int64)
    for i in range(n - 1):
        z[i + 1, i] = 1
    z[0, n - 1] += e
    return z


def _circulant(v: torch.Tensor, f: int) -> torch.Tensor:
    n = len(v)
    out = torch.zeros(n, n, dtype=torch.int64)
    for i, j in itertools.product(range(n), repeat=2):
        out[i, j] = v[i - j] if i >= j else f * v[n + i - j]
    return out % P


def _matrix(g: torch.Tensor, h: torch.Tensor, e: int, f: int) -> torch.Tensor:
    """The sum of products of two circulants, modulo p."""
    n = len(g)
    total = torch.zeros(n, n, dtype=torch.int64)
    for k in range(g.shape[1]):
        total = (total + _circulant(g[:, k], e) @ _circulant(h[:, k].flip(0), f)) % P
    return total * _inverse(e - f) % P


def _assert_generates(pair: fa.Pair, a: torch.Tensor, e: int, f: int) -> None:
    """``Z_e A - A Z_f = G H^T`` modulo p."""
    n = len(a)
    moved = (_shift(n, e) @ a - a @ _shift(n, f)) % P
    assert torch.equal(moved, (pair[0] % P) @ (pair[1] % P).mT % P)


def _random(n: int, r: int, e: int, f: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g, h = _integers(n, r, seed=seed), _integers(n, r, seed=seed + 1)
    return g, h, _matrix(g, h, e, f)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_reconstruction_transpose_and_operator(n: int, e: int, f: int) -> None:
    for r in (0, 1, 3):
        g, h, a = _random(n, r, e, f)
        _assert_generates((g, h), a, e, f)
        over_e, over_f = _inverse(e), _inverse(f)
        _assert_generates(fa.transposed(g, h, over_e, over_f), a.mT, over_f, over_e)
        _assert_generates((-h.flip(0), g.flip(0)), a.mT.flip(0, 1), f, e)
        for new in ((7, 11), (e, 11), (7, f), (7, 7), (e, f)):
            pair = fa.changed(g, h, (e, f), new, a[:, :1], a[-1, :, None])
            assert pair[0].shape[1] == r + (new[0] != e) + (new[1] != f)
            _assert_generates(pair, a, *new)


@pytest.mark.parametrize("n", SIZES)
def test_products_and_sums(n: int) -> None:
    e, f, f2, g2 = 3, 5, 7, 2
    for r, s in ((1, 2), (3, 1), (0, 2)):
        g, h, a = _random(n, r, e, f)
        p, q, b = _random(n, s, f2, g2, seed=5)
        product = a @ b % P
        pair = fa.product((g, h), (p, q), f - f2, a @ p % P, b.mT @ h % P, a[:, :1], b[-1, :, None])
        assert pair[0].shape[1] == r + s + 1
        _assert_generates(pair, product, e, g2)
        p, q, b = _random(n, s, f, g2, seed=7)
        pair = fa.product((g, h), (p, q), 0, a @ p % P, b.mT @ h % P)
        assert pair[0].shape[1] == r + s
        _assert_generates(pair, a @ b % P, e, g2)
        p, q, b = _random(n, s, e, f, seed=9)
        _assert_generates((fa.beside(g, p), fa.beside(h, q)), (a + b) % P, e, f)
    _assert_generates(fa.identity(_integers(n, 1), e - f), torch.eye(n, dtype=torch.int64), e, f)


@pytest.mark.parametrize("n", SIZES)
def test_toeplitz_circulant_stein_and_kailath(n: int) -> None:
    t = _integers(2 * n - 1)
    a = torch.stack([torch.stack([t[i - j + n - 1] for j in range(n)]) for i in range(n)])
    for e, f in (*PAIRS, (3, 3)):
        _assert_generates(fa.toeplitz(t, e, f), a, e, f)
    v = _integers(n, seed=1)
    for number, (e, f) in itertools.product((1, 5, 0), PAIRS):
        c = _circulant(v, number)
        none = v[:, None][:, :0]
        pair = fa.changed(none, none, (number, number), (e, f), c[:, :1], c[-1, :, None])
        assert torch.equal(c[-1], v.flip(0))
        _assert_generates(pair, c, e, f)
    for e, f in PAIRS:
        # any matrix has generators (A - Z_e A Z_f^T) I^T
        b = _integers(n, n, seed=2)
        stein = (b - _shift(n, e) @ b @ _shift(n, f).mT) % P
        over_f = _inverse(f)
        _assert_generates(fa.stein(stein, torch.eye(n, dtype=torch.int64), over_f), b, e, over_f)
    g, h = _integers(n, 3), _integers(n, 3, seed=4)
    lower = [(torch.tril(_circulant(g[:, k], 0)), torch.tril(_circulant(h[:, k], 0))) for k in range(3)]
    kailath = sum(((x @ y.mT) % P for x, y in lower), torch.zeros(n, n, dtype=torch.int64)) % P
    for e, f in PAIRS:
        pair = fa.triangular(g, h, e, f, kailath[:, -1:], kailath[-1, :, None])
        assert pair[0].shape[1] == 5
        _assert_generates(pair, kailath, e, f)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_principal_blocks(n: int, e: int, f: int) -> None:
    g, h, a = _random(n, 2, e, f)
    for start, stop in itertools.combinations(range(n + 1), 2):
        above = a[start - 1] if start else e * a[-1]
        beside = a[:, stop] if stop < n else f * a[:, 0]
        for new in ((e, f), (7, 11)):
            rows, columns = (a[stop - 1, :, None], above[:, None]), (beside[:, None], a[:, start, None])
            pair = fa.block(g, h, (start, stop), new, rows, columns)
            assert pair[0].shape[1] == 4
            _assert_generates(pair, a[start:stop, start:stop], *new)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("e", "f"), PAIRS)
def test_entries_and_diagonal(n: int, e: int, f: int) -> None:
    """The column recurrence and the diagonal, batches too."""
    g, h, a = _random(n, 3, e, f)
    assert torch.equal(fm.entries(a[:, 0], g, h, e) % P, a)
    assert torch.equal(fm.diagonal(a[:1, 0], g, h) % P, a.diagonal())
    many = fm.entries(a[:, 0].expand(2, n), g, h.expand(2, 1, n, 3)[:, 0], e) % P
    assert torch.equal(many, a.expand(2, n, n))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize(("e", "f"), [(1, -1), (-1, 1), (3, 2), (2, -1), (1, 9)])
def test_transforms_of_integers_round_to_the_exact_ones(n: int, e: int, f: int) -> None:
    """Products, edges and traces through the FFT, times ``e - f``: integers, so that a slip is a whole unit."""
    generator = torch.Generator().manual_seed(n)
    g, h = (torch.randint(-5, 6, (n, 2), generator=generator).double() for _ in range(2))
    exact = torch.zeros(n, n, dtype=torch.float64)
    for k in range(2):
        exact += sm.Circulant(g[:, k], e).to_dense() @ sm.Circulant(h[:, k].flip(0), f).to_dense()
    gap = e - f
    x = torch.randint(-5, 6, (3, n), generator=generator).double()
    assert torch.equal((fd.product(g, h, x, e, f) * gap).round(), x @ exact.mT)
    assert torch.equal((fm.first_column(g, h, e, f) * gap).round(), exact[:, 0])
    assert torch.equal((fm.last_row(g, h, e, f) * gap).round(), exact[-1])
    sums = torch.stack([torch.diagonal(exact, -k).sum() for k in range(-(n - 1), n)])
    assert torch.equal((fm.diagonal_sums(g, h, e, f) * gap).round(), sums)
    for power in (e, f):
        shift = _shift(n, power).double()
        traces = torch.stack([torch.trace(exact @ torch.linalg.matrix_power(shift, k)) for k in range(n)])
        assert torch.equal((fm.power_traces(g, h, e, f, power) * gap).round(), traces)
    if abs(e) == abs(f) == 1:
        assert float(fm.squared_norm(g, h, e, f) * gap**2) == pytest.approx(float(exact.square().sum()), rel=1e-13)
