"""The accuracy each structure promises, as properties: one test a row, at its stated tolerance, against an oracle that
shares no code with the library (numpy's extended precision, mpmath, LAPACK, explicit dense factors).

Errors are normwise. ``eps`` is that of the dtype, so that the float32 promise is the float64 one times the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import gko
from structmat.functional import toeplitz as ft
from structmat.lazy import Prepared
from structmat.testing.example import Example
from structmat.testing.examples import EXAMPLES
from structmat.testing.reference import as_wide
from tests.families import FAMILIES

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128
EPS = torch.finfo(F64).eps
Array = Any

DTYPES = st.sampled_from([F32, F64, C64, C128])
SEEDS = st.integers(0, 2**16)
NUMBERS = st.sampled_from([1, -1, 1j, 2.0, -0.5, 0.6 + 0.8j, 1e-3, -1e3])


def drawn(seed: int, *shape: int, dtype: torch.dtype = F64, decades: int = 0) -> torch.Tensor:
    """Normal numbers, those of the last axis spread over some decades."""
    wide = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=C128 if dtype.is_complex else F64)
    return (wide * torch.logspace(0, -decades, shape[-1], dtype=F64)).to(dtype)


def exact(tensor: torch.Tensor) -> Array:
    """The numbers in extended precision: 64 bits where numpy has them, so that a sum of n of them counts as exact."""
    return as_wide(tensor).astype(numpy.clongdouble if tensor.is_complex() else numpy.longdouble)


def norm(a: Array) -> float:
    return float(numpy.sqrt((numpy.abs(a) ** 2).sum()))


def eps_of(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


# -- products by transforms ---------------------------------------------------------------------------------------


@given(st.integers(1, 130), st.integers(1, 130), DTYPES, st.integers(0, 6), SEEDS)
def test_toeplitz_and_circulant_products(m: int, n: int, dtype: torch.dtype, decades: int, seed: int) -> None:
    """``||dy|| <= 4 eps (1 + log2 N) max|t_hat_N| ||x||``."""
    t, x = drawn(seed, m + n - 1, dtype=dtype, decades=decades), drawn(seed + 1, n, dtype=dtype)
    for matrix in (sm.Toeplitz(t, n), sm.Circulant(x), sm.Circulant(t, -1), sm.Hankel(t, n)):
        z = drawn(seed + 2, int(matrix.shape[-1]), dtype=dtype)
        if isinstance(matrix, sm.Circulant):
            v, size = exact(matrix.column), int(matrix.shape[-1])
            i = numpy.arange(size)
            dense = numpy.where(i[:, None] >= i, 1, matrix.f) * v[(i[:, None] - i) % size]
        elif isinstance(matrix, sm.Hankel):
            dense = scipy.linalg.hankel(exact(t)[:m], exact(t)[m - 1 :])
        else:
            dense = scipy.linalg.toeplitz(exact(t)[n - 1 :], exact(t)[n - 1 :: -1])
        rows, columns = dense.shape
        if isinstance(matrix, sm.Hankel):
            diagonals = matrix.antidiagonals
        else:
            diagonals = torch.as_tensor(numpy.concatenate((dense[0, :0:-1], dense[:, 0])).astype(complex))
        length = ft.toeplitz_geometry(rows, columns).length
        largest = float(torch.fft.fft(diagonals.to(C128).roll(1 - columns), length).abs().max())
        if isinstance(matrix, sm.Circulant) and matrix.f == 1 and ft.is_smooth(columns):
            length, largest = columns, float(torch.fft.fft(matrix.column.to(C128)).abs().max())
        elif length > rows + columns - 1:  # the zeros stand between both halves
            padded = torch.zeros(length, dtype=C128)
            padded[:rows] = diagonals[columns - 1 :]
            padded[length - columns + 1 :] = diagonals[: columns - 1]
            largest = float(torch.fft.fft(padded).abs().max())
        error = norm(exact(matrix @ z) - dense @ exact(z))
        assert error <= 4 * eps_of(dtype) * (1 + math.log2(max(2, length))) * largest * norm(exact(z))


# -- solves -------------------------------------------------------------------------------------------------------


def solved(dense: Array, b: Array) -> Array:
    """The solution in 60 digits, rounded."""
    with mpmath.workdps(60):
        x = mpmath.lu_solve(mpmath.matrix(dense.tolist()), mpmath.matrix(b.tolist()))
        return numpy.array([complex(v) for v in x])


@given(st.integers(1, 9), NUMBERS, st.booleans(), SEEDS)
def test_inverse_and_solve_of_f_circulants(n: int, f: complex, whole: bool, seed: int) -> None:
    """``30 eps kappa max(|f|, 1/|f|)``, both for a solution and for the inverse."""
    column = drawn(seed, n, dtype=C128 if whole else F64)
    matrix = sm.Circulant(column, f)
    v, i = as_wide(column).astype(complex), numpy.arange(n)
    dense = numpy.where(i[:, None] >= i, 1, f) * v[(i[:, None] - i) % n]
    kappa = float(numpy.linalg.cond(dense))
    if kappa > 1e6:
        return
    b = drawn(seed + 1, n)
    bound = 30 * EPS * kappa * max(abs(f), 1 / abs(f))
    wanted = solved(dense, as_wide(b))
    assert norm(as_wide(matrix.solve(b)) - wanted) <= bound * norm(wanted)
    inverse = solved(dense, numpy.eye(n)[0])
    assert norm(as_wide(matrix.inv().to_dense())[:, 0] - inverse) <= bound * norm(inverse)


@given(st.sampled_from(sorted(FAMILIES)), st.integers(2, 40), SEEDS)
def test_backward_error_of_toeplitz_solves(name: str, n: int, seed: int) -> None:
    """``eta <= 100 eps`` with ``sigma = ||A||_2`` itself, on the families every solver is judged on."""
    diagonals = FAMILIES[name].diagonals(n)
    dense = scipy.linalg.toeplitz(diagonals[n - 1 :], diagonals[n - 1 :: -1])
    b = drawn(seed, n, dtype=C128 if diagonals.dtype.kind == "c" else F64)
    matrix = sm.Toeplitz(torch.as_tensor(diagonals), n)
    for method in ("auto", "gko", "levinson"):
        try:
            x = exact(matrix.solve(b, method=method))
        except sm.SolveError:
            assert method == "levinson"  # asked for by name it may give up, and says so
            continue
        size = float(numpy.linalg.norm(dense, 2)) * norm(x) + norm(exact(b))
        assert norm(exact(b) - dense.astype(x.dtype) @ x) <= 100 * EPS * size


@given(st.integers(9, 13), st.sampled_from([0.03, 0.05]), SEEDS)
def test_ill_conditioned_toeplitz_solves_against_60_digits(n: int, width: float, seed: int) -> None:
    """Condition numbers from 1e8 to 1e15: the error is that of backward error 100 eps, ``200 eps kappa``."""
    column = numpy.exp(-width * numpy.arange(n) ** 2.0)
    dense = scipy.linalg.toeplitz(column)
    kappa = float(numpy.linalg.cond(dense))
    assert 1e8 < kappa < 1e15
    b = drawn(seed, n)
    wanted = solved(dense, as_wide(b)).real
    x = sm.SymmetricToeplitz(torch.as_tensor(column)).solve(b)
    assert norm(as_wide(x) - wanted) <= 200 * EPS * kappa * norm(wanted)


# -- low displacement rank ----------------------------------------------------------------------------------------


def shifted(a: Array, e: complex, f: complex) -> Array:
    """``Z_e A - A Z_f``."""
    down, right = numpy.roll(a, 1, 0), numpy.roll(a, -1, 1)
    down[0] *= e
    right[:, -1] *= f
    return down - right


def entries(g: Array, h: Array, e: complex, f: complex) -> Array:
    """``sum_j Z_e(g_j) Z_f(J h_j) / (e - f)`` by its definition."""
    n = len(g)
    i = numpy.arange(n)
    below, place = i[:, None] >= i, (i[:, None] - i) % n
    total = numpy.zeros((n, n), g.dtype)
    for a, w in zip(g.T, h[::-1].T, strict=True):
        total = total + (numpy.where(below, 1, e) * a[place]) @ (numpy.where(below, 1, f) * w[place])
    return total / (e - f)


@given(st.integers(1, 20), st.integers(1, 3), st.sampled_from([(1, -1), (-1, 1), (2.0, 1), (1j, -1)]), SEEDS)
def test_algebra_of_low_displacement_rank(n: int, r: int, pair: tuple[complex, complex], seed: int) -> None:
    """``100 eps kg``: what an operation gives satisfies its displacement equation with the exact entries of the
    result to ``100 eps ||G|| ||H||``."""
    e, f = pair
    kind = C128 if isinstance(e, complex) else F64
    (g, h), (p, q) = (tuple(drawn(seed + k + s, n, r, dtype=kind) for k in (0, 1)) for s in (0, 2))
    a, b = sm.LowDisplacementRank(g, h, e, f), sm.LowDisplacementRank(p, q, e, f)
    x, y = entries(exact(g), exact(h), e, f), entries(exact(p), exact(q), e, f)
    results: list[tuple[Any, Array]] = [
        (a, x),
        (a + b, x + y),
        (a @ b, x @ y),
        (a.transpose(), x.T),
        (a.with_operator(-2.0, 3.0), x),
        (a.block(n // 3, n), x[n // 3 :, n // 3 :]),
        (a + 2.0 * sm.Identity(n), x + 2.0 * numpy.eye(n)),
    ]
    for found, dense in results:
        assert isinstance(found, sm.LowDisplacementRank)
        left, right = exact(found.left), exact(found.right)
        gap = norm(shifted(dense, found.e, found.f) - left @ right.T)
        assert gap <= 100 * EPS * norm(left) * norm(right)


@given(st.integers(1, 40), st.integers(1, 4), st.booleans(), SEEDS)
def test_elimination_of_cauchy_like_matrices(n: int, r: int, whole: bool, seed: int) -> None:
    """GKO: ``eta <= 50 eps growth``, and the determinant of LAPACK."""
    g, h = (drawn(seed + k, n, r, dtype=C128 if whole else F64) for k in (0, 1))
    unit = torch.eye(n, dtype=g.dtype)[:, :1]
    g, h = torch.cat((g, 4.0 * unit), -1), torch.cat((h, unit.flip(0)), -1)  # keeps it away from singular ones
    solver = gko.factor(g, h, 1, -1)
    dense = entries(exact(g), exact(h), 1, -1)
    b = drawn(seed + 2, 2, n, dtype=g.dtype)
    x = exact(solver.solve_rows(b))
    size = float(numpy.linalg.norm(dense.astype(complex), 2))
    for row, rhs in zip(x, exact(b), strict=True):
        assert norm(rhs - dense @ row) <= 50 * EPS * float(solver.growth) * (size * norm(row) + norm(rhs))
    sign, logabs = numpy.linalg.slogdet(dense.astype(complex))
    doubt = 100 * n * EPS * float(numpy.linalg.cond(dense.astype(complex))) + 8 * n * EPS
    mine, log = solver.slogdet()
    assert abs(float(log) - logabs) <= doubt and abs(complex(mine) - sign) <= doubt


# -- orthogonal and sparse factors ----------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(0, 60), DTYPES, st.integers(0, 2), SEEDS)
def test_reflections(n: int, r: int, dtype: torch.dtype, decades: int, seed: int) -> None:
    """``4 eps (1 + sqrt r)`` normwise against one dense reflection after the other."""
    vectors, x = drawn(seed, r, n, dtype=dtype, decades=decades), drawn(seed + 1, n, dtype=dtype)
    wanted = exact(x)
    for v in exact(vectors)[::-1]:
        wanted = wanted - 2 * v * ((v.conj() @ wanted) / (v.conj() @ v).real)
    error = norm(exact(sm.HouseholderProduct(vectors) @ x) - wanted)
    assert error <= 4 * eps_of(dtype) * (1 + math.sqrt(r)) * norm(exact(x))


@given(st.integers(1, 8), st.integers(1, 90), DTYPES, st.integers(0, 8), SEEDS)
def test_many_reflections_in_few_dimensions(n: int, more: int, dtype: torch.dtype, decades: int, seed: int) -> None:
    """Of more reflectors than dimensions most are nearly parallel: ``||Q^H Q - I||_F / sqrt(n) <= 8 eps (1 + sqrt r)``
    all the same (in one block of 64 it was 70 times that)."""
    r = n + more
    q = exact(sm.HouseholderProduct(drawn(seed, r, n, dtype=dtype, decades=decades)).to_dense())
    assert norm(q.conj().T @ q - numpy.eye(n)) / math.sqrt(n) <= 8 * eps_of(dtype) * (1 + math.sqrt(r))


def embedded(w: Array, before: int, after: int) -> Array:
    """The dense factor of blocks ``(before * after, p, p)`` that act on the middle one of three digits."""
    p = w.shape[-1]
    full = numpy.zeros((before, p, after, before, p, after), w.dtype)
    for a, c in numpy.ndindex(before, after):
        full[a, :, c, a, :, c] = w[a * after + c]
    return full.reshape(before * p * after, -1)


DIGITS = st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple)


@given(DIGITS, DTYPES, st.integers(0, 4), SEEDS)
def test_butterflies(digits: tuple[int, ...], dtype: torch.dtype, decades: int, seed: int) -> None:
    """``4 eps sqrt(L) max p prod ||W_l||`` against the product of the dense factors."""
    n, levels = math.prod(digits), len(digits)
    blocks = tuple(drawn(seed + k, n // p, p, p, dtype=dtype, decades=decades) for k, p in enumerate(digits))
    matrix = sm.Butterfly(blocks, digits, tuple((k,) for k in range(levels)))
    x = drawn(seed + levels, n, dtype=dtype)
    wanted, size = exact(x), 1.0
    for k, w in enumerate(blocks):
        wanted = embedded(exact(w), math.prod(digits[:k]), math.prod(digits[k + 1 :])) @ wanted
        size *= float(torch.linalg.matrix_norm(w.to(C128), 2).max())
    error = norm(exact(matrix @ x) - wanted)
    assert error <= 4 * eps_of(dtype) * math.sqrt(levels) * max(digits) * size * norm(exact(x))


# -- tensors ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4), DTYPES, SEEDS)
@pytest.mark.filterwarnings("ignore:Tucker")
def test_tucker_tensors(sizes: list[tuple[int, int]], dtype: torch.dtype, seed: int) -> None:
    """``20 eps N prod ||.||``: entries, and the product with the matrix of an unfolding."""
    pairs = [(max(d, r), min(d, r)) for d, r in sizes]
    core = drawn(seed, *(r for _, r in pairs), dtype=dtype)
    factors = tuple(drawn(seed + 1 + k, *pair, dtype=dtype) for k, pair in enumerate(pairs))
    tucker = sm.Tucker(core, factors)
    full, size = exact(core), norm(exact(core))
    for k, u in enumerate(factors):
        full = numpy.moveaxis(numpy.tensordot(exact(u), full, (1, k)), 0, k)
        size *= norm(exact(u))
    bound = 20 * eps_of(dtype) * len(pairs) * size
    assert norm(exact(tucker.to_dense()) - full) <= bound
    unfolded = full.reshape(full.shape[0], -1)
    x = drawn(seed + 9, unfolded.shape[1], dtype=dtype)
    assert norm(exact(tucker.matricize((0,)) @ x) - unfolded @ exact(x)) <= bound * norm(exact(x))


# -- gradients ----------------------------------------------------------------------------------------------------

KEPT = (Prepared, sm.Inverse)  # their leaves are not those of the matrix they stand for
SMOOTH = [e for e in EXAMPLES if e.smooth and e.type not in KEPT and e.build(e.dtypes[0]).tensors()]


def leaves_of(matrix: Any) -> list[torch.Tensor]:
    return [t for t in matrix.tensors() if t.is_floating_point() or t.is_complex()]


@pytest.mark.parametrize("example", SMOOTH, ids=lambda e: e.name)
def test_gradients_are_those_of_the_dense_product(example: Example) -> None:
    """1e-12 against autograd through the entries; gradcheck and gradgradcheck run in test_autograd.py."""
    products: tuple[Callable[[Any, Any], Any], ...] = (lambda a, x: a.linear(x), lambda a, x: x @ a.to_dense().mT)
    for dtype in (F64, C128):
        if dtype not in example.dtypes:
            continue
        matrix = example.build(dtype)
        x = drawn(1, 3, int(matrix.shape[-1]), dtype=matrix.dtype or dtype)
        w = drawn(2, 3, int(matrix.shape[-2]), dtype=matrix.dtype or dtype)
        found = []
        for product in products:
            live = matrix._map(
                lambda _, t: t.detach().requires_grad_() if t.is_floating_point() or t.is_complex() else t
            )
            loss = (product(live, x) * w).sum().abs()
            found.append(torch.autograd.grad(loss, leaves_of(live), allow_unused=True))
        for fast, slow in zip(*found, strict=True):
            fast, slow = (torch.zeros(1) if t is None else t for t in (fast, slow))
            size = 1 + float(slow.norm()) + float(x.norm() * w.norm())
            assert float((fast - slow).norm()) <= 1e-12 * size
