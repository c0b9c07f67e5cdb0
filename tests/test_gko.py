"""GKO: backward errors over families of Toeplitz matrices, determinants, any displacement operator, batches, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import scipy.linalg
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from structmat.functional import gko
from structmat.functional.elimination import spread_order

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _symmetric(column: torch.Tensor) -> torch.Tensor:
    return torch.cat((column[1:].flip(0), column))


def _steps(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=F64)


def _gaussian(n: int) -> torch.Tensor:
    column = torch.exp(-(_steps(n) ** 2) / 50)
    column[0] += 1e-6
    return _symmetric(column)


def _second_difference(n: int) -> torch.Tensor:
    column = torch.zeros(n, dtype=F64)
    column[:2] = torch.tensor([2.0, -1.0], dtype=F64)[:n]
    return _symmetric(column)


def _with_diagonal(n: int, value: float) -> torch.Tensor:
    t = _numbers(2 * n - 1)
    t[n - 1] = value
    return t


def _singular_minor(n: int) -> torch.Tensor:
    """A leading minor of order 5 (or 2) that is singular: t_0 minus a real eigenvalue of it."""
    order = min(5 if n % 2 else 2, n - 1)
    t = _numbers(2 * n - 1, seed=5)
    minor = _dense(t[n - order : n + order - 1])
    real = [v.real for v in torch.linalg.eigvals(minor) if abs(v.imag) < 1e-9]
    t[n - 1] -= real[0] if real else t[n - 1]
    return t


def _shift(n: int) -> torch.Tensor:
    t = torch.zeros(2 * n - 1, dtype=F64)
    t[n % (2 * n - 1)] = t[0] = 1
    return t


def _graded(n: int, rate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Over twelve decades along the diagonals."""
    k = (torch.arange(2 * n - 1, dtype=F64) - (n - 1)) / max(n - 1, 1)
    return _numbers(2 * n - 1, seed=9) * 10 ** rate(k)


FAMILIES: dict[str, Callable[[int], torch.Tensor]] = {
    "kms 0.5": lambda n: _symmetric(0.5 ** _steps(n)),
    "kms 0.99": lambda n: _symmetric(0.99 ** _steps(n)),
    "gaussian + 1e-6": _gaussian,
    "0.9^(k^2)": lambda n: _symmetric(0.9 ** (_steps(n) ** 2)),
    "1/(1+k)^1.1": lambda n: _symmetric((1 + _steps(n)) ** -1.1),
    "tridiagonal": _second_difference,
    "random": lambda n: _numbers(2 * n - 1),
    "complex": lambda n: _numbers(2 * n - 1, dtype=C128),
    "zero diagonal": lambda n: _with_diagonal(n, 0.0),
    "1e-13 diagonal": lambda n: _with_diagonal(n, 1e-13),
    "singular minor": _singular_minor,
    "cyclic shift": _shift,
    "graded, growing downwards": lambda n: _graded(n, lambda k: 6 * k),
    "graded, decaying": lambda n: _graded(n, lambda k: -12 * k.abs()),
    "graded, growing": lambda n: _graded(n, lambda k: 12 * k.abs() - 12),
}


def _dense(t: torch.Tensor) -> torch.Tensor:
    n = (t.shape[-1] + 1) // 2
    return torch.from_numpy(scipy.linalg.toeplitz(t[n - 1 :].numpy(), t[:n].flip(0).numpy()))


def _generators(t: torch.Tensor, e: complex = 1, f: complex = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """``Z_e T - T Z_f = [e_0, c] [row, e_(n-1)]^T``."""
    n = (t.shape[-1] + 1) // 2
    low = torch.cat((t.new_zeros(1), t[: n - 1]))
    unit = torch.nn.functional.one_hot(torch.tensor(0), n).to(t.dtype)
    row = e * t[n - 1 :].flip(0) - low.flip(0)
    return torch.stack((unit, low - f * t[n - 1 :]), -1), torch.stack((row, unit.flip(0)), -1)


def _eta(a: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> float:
    """The largest backward error of rows x with ``A x = b``, relative to ``||A||_2``."""
    residual = torch.linalg.vector_norm(b - x @ a.mT, dim=-1)
    size = torch.linalg.matrix_norm(a, 2) * torch.linalg.vector_norm(x, dim=-1) + torch.linalg.vector_norm(b, dim=-1)
    return float((residual / size).max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n", [2, 3, 8, 65, 200, 301])
def test_backward_errors(name: str, n: int) -> None:
    """Within 50 eps times the measured growth and 100 eps in all, both ways; sign and determinant as promised."""
    t = FAMILIES[name](n)
    a, b = _dense(t), _numbers(2, n, dtype=t.dtype, seed=1)
    solver = gko.factor(*_generators(t), 1, -1)
    growth = float(solver.growth)
    assert growth <= 1e4
    for matrix, inverse in ((a, solver), (a.mH, solver.adjoint())):
        assert _eta(matrix, inverse.solve_rows(b), b) <= min(50 * growth, 100) * EPS
    sign, logabs = solver.slogdet()
    exact_sign, exact = torch.linalg.slogdet(a)
    doubt = n * EPS * float(torch.linalg.cond(a))
    assert abs(float(logabs - exact)) <= 100 * doubt + 8 * n * EPS
    if doubt < 1e-3:
        assert abs(complex(sign - exact_sign)) <= (100 * doubt if t.is_complex() else 0)


@pytest.mark.parametrize("name", ["gaussian + 1e-6", "0.9^(k^2)"])
def test_smooth_symbols_are_eliminated_with_care(name: str) -> None:
    """Their spectra fall by many decades, so that panels end early; the adjoint solve shows what the factors are worth:
    without the care its backward error was 1e3 to 1e6 eps here."""
    t = FAMILIES[name](260)
    solver = gko.factor(*_generators(t), 1, -1)
    assert len(solver.factors._panels) > 260 // 64 + 1
    b = _numbers(3, 260)
    assert _eta(_dense(t).mT, solver.adjoint().solve_rows(b), b) <= 20 * EPS


def test_a_step_that_returns_too_soon_is_avoided() -> None:
    """n = 1000: 21 steps of 619, the number nearest to the golden section, end next to the start, and the factors of a
    graded matrix were wrong by 3000 eps."""
    n = 1000
    step, places = spread_order(n), torch.arange(1, 64)
    turn = step * places % n
    assert int(torch.minimum(turn, n - turn).min()) >= 5
    t = FAMILIES["graded, growing"](n)
    b = _numbers(1, n)
    assert _eta(_dense(t), gko.factor(*_generators(t), 1, -1).solve_rows(b), b) <= 50 * EPS


def _of_displacement(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """A out of ``Z_e A - A Z_f = left right^T``, by the Kronecker form of the equation."""
    n = left.shape[-2]
    unit = torch.eye(n, dtype=C128)

    def cyclic(corner: complex) -> torch.Tensor:
        z = torch.diag(torch.ones(n - 1, dtype=C128), -1)
        z[0, n - 1] += corner
        return z

    operator = torch.kron(cyclic(e), unit) - torch.kron(unit, cyclic(f).mT.contiguous())
    product = left.to(C128) @ right.to(C128).mT
    return torch.linalg.solve(operator, product.reshape(*product.shape[:-2], n * n, 1)).reshape(product.shape)


OPERATORS = [(1, -1), (-1, 1), (1, 2), (2.0, -0.5), (1j, -2), (0.3 + 0.4j, 1.0), (1, 1e-3), (-1, -1j)]


@pytest.mark.parametrize(("e", "f"), OPERATORS)
@pytest.mark.parametrize(("n", "batch"), [(1, ()), (2, (2,)), (5, (2, 3)), (12, (3,)), (12, (2, 1))])
def test_any_operator_and_batch(e: complex, f: complex, n: int, batch: tuple[int, ...]) -> None:
    """Real generators, numbers of any modulus and phase; right-hand sides that broadcast against the batch."""
    left, right = _numbers(*batch, n, 3), _numbers(*batch, n, 3, seed=1)
    a = _of_displacement(left, right, e, f)
    solver = gko.factor(left, right, e, f)
    real = not (isinstance(e, complex) or isinstance(f, complex))
    twist = max(abs(e), 1 / abs(e)) * max(abs(f), 1 / abs(f))
    for lead in ((), (1,) * len(batch), (2, *(1,) * len(batch))):
        y = _numbers(*lead, 2, n, seed=2)
        for matrix, inverse in ((a, solver), (a.mH, solver.adjoint())):
            x = inverse.solve_rows(y)
            assert x.dtype == (F64 if real else C128)
            assert x.shape == (*torch.broadcast_shapes(batch, lead), 2, n)
            wide = x.to(C128)
            residual = torch.linalg.vector_norm(wide @ matrix.mT - y, dim=(-2, -1))
            size = torch.linalg.matrix_norm(matrix) * torch.linalg.vector_norm(wide, dim=(-2, -1))
            assert bool((residual <= 100 * EPS * twist * size).all())
    sign, logabs = solver.slogdet()
    exact_sign, exact = torch.linalg.slogdet(a)
    doubt = 100 * n * EPS * twist * torch.linalg.cond(a)
    assert sign.shape == logabs.shape == solver.growth.shape == batch
    assert sign.dtype == x.dtype and logabs.dtype == F64
    assert bool(((logabs - exact).abs() <= doubt).all()) and bool(((sign - exact_sign).abs() <= doubt).all())


def test_a_batch_is_solved_as_its_elements() -> None:
    """Pivots, panels and care differ between the elements; together they give what each gives alone."""
    n = 130
    chosen = [FAMILIES[k](n) for k in ("random", "gaussian + 1e-6", "zero diagonal", "graded, growing")]
    pairs = [_generators(t) for t in chosen]
    together = gko.factor(torch.stack([g for g, _ in pairs]), torch.stack([h for _, h in pairs]), 1, -1)
    y = _numbers(2, n)
    found, signs = together.solve_rows(y), together.slogdet()[0]
    for k, (t, (g, h)) in enumerate(zip(chosen, pairs, strict=True)):
        assert _eta(_dense(t), found[k], y) <= 100 * EPS
        assert signs[k] == gko.factor(g, h, 1, -1).slogdet()[0]


def test_dtypes() -> None:
    """Computed in double precision whatever comes in; results in the dtype of the arguments."""
    left, right = _numbers(40, 2).float(), _numbers(40, 2, seed=1).float()
    y = _numbers(2, 40)
    solver, double = gko.factor(left, right, 1, -1), gko.factor(left.double(), right.double(), 1, -1)
    assert solver.solve_rows(y.float()).dtype == torch.float32 and solver.solve_rows(y).dtype == F64
    assert torch.equal(solver.solve_rows(y), double.solve_rows(y))
    assert solver.slogdet()[1].dtype == torch.float32
    mixed = double.solve_rows(torch.complex(y, y.flip(-1)))
    assert mixed.dtype == C128 and torch.allclose(mixed.real, double.solve_rows(y), rtol=1e-9)


def test_singular_and_empty() -> None:
    nothing = gko.factor(torch.zeros(4, 0), torch.zeros(4, 0), 1, -1)
    assert not nothing.solve_rows(torch.ones(1, 4)).isfinite().any()
    assert [float(v) for v in nothing.slogdet()] == [0.0, -torch.inf]
    empty = gko.factor(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), 1, -1)
    assert empty.solve_rows(torch.zeros(2, 5, 0)).shape == (2, 5, 0)
    assert [v.tolist() for v in empty.slogdet()] == [[1.0, 1.0], [0.0, 0.0]]
    ones = gko.factor(*_generators(torch.ones(199, dtype=F64)), 1, -1)  # rank one: rounding may hide it, no answer may
    x = ones.solve_rows(_numbers(1, 100))
    assert not x.isfinite().all() or float(x.abs().max()) > 1e10


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 12, 64, 997, 1024, 30030])
def test_the_spread_order_visits_every_node(n: int) -> None:
    step = spread_order(n)
    assert torch.equal((step * torch.arange(n) % n).sort().values, torch.arange(n))


class _Largest(TorchDispatchMode):
    """The largest tensor, counted in numbers stored, that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def test_no_array_is_larger_than_a_panel() -> None:
    """The factors are kept by panels and never copied: nothing of n^2 numbers exists in one piece."""
    n = 1100
    left, right = _generators(FAMILIES["random"](n))
    with _Largest() as watch:
        solver = gko.factor(left, right, 1, -1)
        solver.solve_rows(_numbers(2, n))
        solver.adjoint().solve_rows(_numbers(2, n))
    assert n * 32 <= watch.numel <= n * 33
    stored = sum(p.lower.numel() + p.upper.numel() for p in solver.factors._panels)
    assert stored == sum(
        (n - s) * min(32, n - s) * 2 - min(32, n - s) ** 2 for s in itertools.islice(range(0, n, 32), n)
    )
