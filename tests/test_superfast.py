"""The superfast solver: its tree against dense Cauchy matrices, its pair, solves and determinants on every family."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import superfast, toeplitz_policy
from structmat.functional.superfast_attempt import _pair, attempt, trailing_block
from structmat.functional.superfast_tree import Tree, tree_order
from structmat.functional.toeplitz_system import right_sides
from structmat.functional.two_solve import TwoSolve

EPS = float(numpy.finfo(numpy.float64).eps)


def _families(n: int, seed: int = 0) -> dict[str, tuple[Any, Any]]:
    """Columns and rows: definite, indefinite, nonsymmetric, complex, singular minors, graded over 12 decades."""
    draw = numpy.random.default_rng(seed)
    k = numpy.arange(n, dtype=float)
    gauss = numpy.exp(-((k / 10) ** 2) / 2) + 1e-6 * (k == 0)
    c, r = draw.standard_normal((2, n))
    grade = 10.0 ** (-12 * draw.random((2, n)))
    u, v = draw.standard_normal((2, n)) + 1j * draw.standard_normal((2, n))
    shift = 1.0 * (k == 1), 1.0 * (k == n - 1)
    nearly = numpy.where(k == 0, 1e-13, c)
    pairs = {
        "KMS 0.5": (0.5**k, 0.5**k),
        "KMS 0.99": (0.99**k, 0.99**k),
        "Gaussian + 1e-6": (gauss, gauss),
        "0.9^(k^2)": (0.9 ** (k * k), 0.9 ** (k * k)),
        "power": ((1 + k) ** -1.1, (1 + k) ** -1.1),
        "power, shifted": ((1 + k) ** -1.1 - 3 * (k == 0), (1 + k) ** -1.1 - 3 * (k == 0)),
        "tridiagonal": (2.0 * (k == 0) - (k == 1), 2.0 * (k == 0) - (k == 1)),
        "random": (c, r),
        "random symmetric": (c, c),
        "diagonal zero": (c * (k > 0), c * (k > 0)),
        "diagonal 1e-13": (nearly, nearly),
        "random complex": (u, v),
        "Hermitian": (u - 1j * u.imag * (k == 0), (u - 1j * u.imag * (k == 0)).conj()),
        "graded": (c * grade[0], r * grade[1]),
    }
    if n > 1:
        pairs["cyclic shift"] = shift
    else:
        del pairs["diagonal zero"]
    if n > 2:
        pairs["singular minor 2"] = numpy.where(k < 2, 1.0, c), numpy.where(k < 2, 1.0, r)
    return pairs


def _entries(pair: tuple[Any, Any]) -> torch.Tensor:
    column, row = pair
    return torch.from_numpy(numpy.concatenate((row[:0:-1], column)))


def _dense(t: torch.Tensor) -> Any:
    n = (t.shape[-1] + 1) // 2
    return scipy.linalg.toeplitz(t.numpy()[n - 1 :], t.numpy()[:n][::-1])


def _sigma(a: Any) -> float:
    """The largest spectral modulus of an embedding circulant; independent of the library."""
    n = len(a)
    return float(numpy.abs(numpy.fft.fft(numpy.concatenate((a[:, 0], a[0, :0:-1])))).max()) if n > 1 else abs(a[0, 0])


def _eta(a: Any, x: torch.Tensor, b: torch.Tensor) -> float:
    x_, b_ = x.numpy(), b.numpy()
    norm = numpy.linalg.norm
    return float((norm(b_ - x_ @ a.T, axis=-1) / (_sigma(a) * norm(x_, axis=-1) + norm(b_, axis=-1))).max())


# -- the tree ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300_000), st.integers(1, 64))
def test_tree_order(n: int, leaf: int) -> None:
    order, q = tree_order(n, leaf)
    halvings = math.log2(order / q)
    assert halvings == int(halvings)
    assert n <= order
    assert (order - n) * leaf <= n
    assert q < 6 * leaf


def _cauchy(order: int, g: Any, h: Any) -> Any:
    """The matrix by its definition, with the nodes in one exponential each: ``(lam_i - mu_j)`` to order * eps."""
    k = numpy.arange(order)
    lam, mu = numpy.exp(-2j * numpy.pi * k / order), numpy.exp(1j * numpy.pi * (1 - 2 * k) / order)
    return (g.T @ h) / (lam[:, None] - mu)


@pytest.mark.parametrize("growth", [math.inf, 0.0])  # 0: both halves are tried everywhere, and the smaller W taken
@pytest.mark.parametrize(("order", "leaf"), [(1, 1), (2, 1), (5, 5), (6, 3), (12, 3), (32, 1), (48, 6), (128, 16)])
def test_tree(order: int, leaf: int, growth: float) -> None:
    draw = numpy.random.default_rng(order)
    g, h = draw.standard_normal((2, 2, order)) + 1j * draw.standard_normal((2, 2, order))
    c = _cauchy(order, g, h)
    right = numpy.linalg.solve(c, g.T).T
    sign, logabs = numpy.linalg.slogdet(c)
    tree = Tree(order, leaf, growth=growth)
    x, phase, log = tree.run(g, h)
    # the blocks met are no better conditioned than C on the whole: room for their condition, squared (the tree's claim)
    room = 50 * order * EPS * max(numpy.linalg.cond(c), tree.largest**2, 1)
    assert numpy.linalg.norm(x - right) <= room * numpy.linalg.norm(right)
    assert abs(log - logabs) <= room
    assert abs(phase - sign) <= room


def test_correction_of_nodes() -> None:
    """Without corrections the error of a node is eps times its growth squared; with them the residual is small."""
    t = _entries(_families(1024, 1)["diagonal zero"])
    plain, corrected = Tree(1024, 64, rounds=0), Tree(1024, 64)
    rows = [_pair(tree, t.numpy(), 0.0)[0] for tree in (plain, corrected)]
    a, right = _dense(t), right_sides(t)
    first, second = (_eta(a, torch.from_numpy(v), right) for v in rows)
    assert first > 1e-13
    assert second < first / 10


# -- pair, solves, determinant -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 17, 96, 193, 300, 512])
def test_every_family(n: int) -> None:
    """n from one leaf to several levels, with padding (193, 300) and without."""
    generator = torch.Generator().manual_seed(n)
    for name, pair in _families(n).items():
        t = _entries(pair)
        a = _dense(t)
        f = superfast.factor(t, determinant=True)
        b = torch.randn(3, n, generator=generator, dtype=torch.float64).to(t.dtype)
        x, y = f.solve_rows(b), f.adjoint().solve_rows(b)
        assert _eta(a, x, b) <= 100 * EPS, name
        assert _eta(a.conj().T, y, b) <= 100 * EPS, name
        kappa = numpy.linalg.cond(a)
        exact = numpy.linalg.solve(a, b.numpy().T).T
        error = numpy.linalg.norm(x.numpy() - exact, axis=-1) / numpy.linalg.norm(exact, axis=-1)
        assert error.max() <= (200 + 10 * math.sqrt(n)) * EPS * kappa, name  # 200 ours, the rest that of dense LU
        _check_determinant(name, n, f, a, kappa)


def _check_determinant(name: str, n: int, f: superfast.Superfast, a: Any, kappa: float) -> None:
    right_sign, right_log = numpy.linalg.slogdet(a)
    sign, log = f.slogdet()
    if bool(log.isnan()):  # refused: only where leading blocks of every attempt were nearly singular
        assert "symmetric" in name or "diagonal" in name or "Hermitian" in name, name
        return
    assert abs(float(log) - right_log) <= 100 * n * EPS * kappa, name
    if n * EPS * kappa < 1e-3:
        tolerance = 100 * n * EPS * kappa if numpy.iscomplexobj(a) else 0.0
        assert abs(complex(sign) - right_sign) <= tolerance, name
    inverse = f.adjoint().slogdet()
    torch.testing.assert_close(inverse[0], sign.conj().resolve_conj())
    assert float(inverse[1]) == float(log)


@pytest.mark.parametrize("name", ["random", "random symmetric", "diagonal zero", "random complex", "graded"])
@pytest.mark.parametrize("n", [2048, 2049])
def test_larger(n: int, name: str) -> None:
    t = _entries(_families(n, 3)[name])
    a = _dense(t)
    f = superfast.factor(t)
    b = torch.ones(1, n, dtype=t.dtype)
    assert _eta(a, f.solve_rows(b), b) <= 100 * EPS
    assert float(f.backward_error.max()) <= 100 * EPS


def test_trailing_block() -> None:
    n, more = 40, 9
    t = _entries(_families(n + more)["random complex"])
    a = numpy.linalg.inv(_dense(t))
    right = right_sides(t).numpy()
    inverse = TwoSolve(*(torch.from_numpy(v[None]) for v in (right @ a.T)))
    block = trailing_block(inverse, n)
    assert numpy.abs(block - a[n:, n:]).max() <= 1e4 * EPS * numpy.abs(a).max()


def test_later_attempts_agree() -> None:
    """Turned circles and filled paddings describe the same matrix."""
    for n, name in ((300, "random"), (193, "random complex"), (96, "KMS 0.99")):
        t = _entries(_families(n)[name]).numpy()
        a = _dense(torch.from_numpy(t))
        sign, logabs = numpy.linalg.slogdet(a)
        limit = 1e3 * n * EPS * numpy.linalg.cond(a)
        for number in (1, 2):
            rows, phase, log = attempt(t, number)
            pair = numpy.linalg.solve(a, right_sides(torch.from_numpy(t)).numpy().T).T
            assert numpy.linalg.norm(rows - pair) <= limit * numpy.linalg.norm(pair)
            assert abs(log - logabs) <= limit
            assert abs(phase - sign) <= limit


# -- shapes and edges ----------------------------------------------------------------------------------------------


def test_batches() -> None:
    n = 33
    t = torch.stack([_entries(_families(n, s)["random"]) for s in range(6)]).reshape(2, 3, -1)
    f = superfast.factor(t, determinant=True)
    b = torch.randn(2, 3, 4, n, dtype=torch.float64)
    x, y = f.solve_rows(b), f.adjoint().adjoint().solve_rows(b)
    torch.testing.assert_close(x, y)
    sign, log = f.slogdet()
    assert f.backward_error.shape == (2, 3)
    assert sign.shape == log.shape == (2, 3)
    for i, j in numpy.ndindex(2, 3):
        a = _dense(t[i, j])
        assert _eta(a, x[i, j], b[i, j]) <= 100 * EPS
        assert float(sign[i, j]) == numpy.linalg.slogdet(a)[0]


def test_float32_is_computed_in_float64() -> None:
    t = _entries(_families(64)["KMS 0.5"]).float()
    f = superfast.factor(t)
    assert f.t.dtype == torch.float64
    assert float(f.backward_error.max()) <= 100 * EPS


def test_complex_rows_of_a_real_matrix() -> None:
    n = 600
    t = _entries(_families(n)["random"])
    f, y = superfast.factor(t), torch.randn(2, n, dtype=torch.complex128)
    for solver, a in ((f, _dense(t)), (f.adjoint(), _dense(t).T)):
        assert _eta(a, solver.solve_rows(y), y) <= 100 * EPS


def test_what_cannot_be_solved_shows_in_the_error() -> None:
    nothing = superfast.factor(torch.zeros(2 * 200 - 1, dtype=torch.float64), determinant=True)
    missing = superfast.factor(torch.full((2 * 200 - 1,), torch.nan, dtype=torch.float64))
    for f in (nothing, missing):
        assert not bool((f.backward_error <= 100 * EPS).all())
    assert bool(nothing.slogdet()[1].isnan())


def test_pickles() -> None:
    t = _entries(_families(50)["random"])
    f = pickle.loads(pickle.dumps(superfast.factor(t)))
    b = torch.randn(1, 50, dtype=torch.float64)
    assert _eta(_dense(t), f.solve_rows(b), b) <= 100 * EPS


@pytest.mark.parametrize("n", [4096, 4100])
def test_memory_is_linear(n: int) -> None:
    """No array of n^2 numbers, nor of n^2 / 8: the rule of the house, here for the padded order too."""
    t = _entries(_families(n)["random"])
    tracemalloc.start()
    try:
        superfast.factor(t, determinant=True).slogdet()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * n  # 8 bytes a number


# -- where a user meets it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_toeplitz_matrix_solves_by_name(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    t = torch.randn(2, 2 * 301 - 1, generator=generator, dtype=dtype).requires_grad_()
    b = torch.randn(2, 301, 3, generator=generator, dtype=dtype)
    a = sm.Toeplitz(t, 301)
    x, info = sm.linalg.solve(a, b, method="superfast", return_info=True)
    assert info.method == "superfast"
    assert float(info.backward_error.max()) <= 100 * 2.3e-16
    (mine,) = torch.autograd.grad(x.abs().square().sum(), t)
    (exact,) = torch.autograd.grad(torch.linalg.solve(a.to_dense(), b).abs().square().sum(), t)
    assert float((mine - exact).norm() / exact.norm()) <= 1e-9
    kept = a.detach().factor("superfast")
    assert kept.method == "superfast"
    torch.testing.assert_close(a.detach().mH @ kept.adjoint_solve(b), b, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="direct method 'superfast'"):
        a.solve(b, method="superfast", max_steps=3)


def test_large_orders_take_it_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toeplitz_policy, "SUPERFAST", 300)
    generator = torch.Generator().manual_seed(4)
    t = torch.randn(2 * 320 - 1, generator=generator, dtype=torch.float64).requires_grad_()
    a, b = sm.Toeplitz(t, 320), torch.randn(320, generator=generator, dtype=torch.float64)
    info = sm.linalg.solve(a, b, return_info=True)[1]
    assert info.method == "superfast"
    assert a.factor().method == "superfast"
    assert sm.backend.explain("solve", a, b).path == "superfast"
    sign, logabs = a.slogdet()
    true = torch.linalg.slogdet(a.to_dense())
    assert float(sign) == float(true[0])
    assert abs(float(logabs - true[1])) <= 1e-9
    (mine,) = torch.autograd.grad(logabs, t)
    (exact,) = torch.autograd.grad(true[1], t)
    assert float((mine - exact).norm() / exact.norm()) <= 1e-9
    symmetric = sm.SymmetricToeplitz(torch.randn(320, generator=generator, dtype=torch.float64))
    assert sm.linalg.solve(symmetric, b, return_info=True)[1].method == "superfast"


def test_what_it_cannot_do_goes_on_to_the_next_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toeplitz_policy, "SUPERFAST", 300)

    def fails(system, determinant=False):
        found = superfast_find(system, determinant)
        bad = torch.full_like(found.eta, 1e-3)
        nan = torch.full_like(found.logabs, torch.nan)
        broken = type(found.pair)(found.pair.x * 0.9, found.pair.z * 0.9)
        return type(found)(broken, bad, found.sign * nan, nan, nan)

    superfast_find = superfast.find
    monkeypatch.setattr(superfast, "find", fails)
    generator = torch.Generator().manual_seed(5)
    a = sm.Toeplitz(torch.randn(2 * 310 - 1, generator=generator, dtype=torch.float64), 310)
    b = torch.randn(310, generator=generator, dtype=torch.float64)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert "superfast" not in info.method or float(info.backward_error.max()) <= 100 * 2.3e-16
    torch.testing.assert_close(a @ x, b, rtol=0, atol=1e-9)
    assert a.factor().method == "levinson"
    torch.testing.assert_close(a.slogdet()[1], torch.linalg.slogdet(a.to_dense())[1])
