"""Hankel matrices: products, solves through A J, determinants, slices, scipy's constructor, index logic."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.testing.reference import dense_of
from structmat.types.toeplitz_family import ToeplitzFamily

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def antidiagonals(m: int, n: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 100 * m + n)
    return torch.randn(m + n - 1, generator=generator, dtype=dtype) / n**0.5


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    batch=st.sampled_from([(), (2,), (3, 1)]),
    complex_=st.booleans(),
    s=st.integers(0, 99),
)
def test_products_and_closed_forms(m: int, n: int, batch: tuple[int, ...], complex_: bool, s: int) -> None:
    dtype = C128 if complex_ else F64
    generator = torch.Generator().manual_seed(s)
    h, k = (torch.randn(*batch, m + n - 1, generator=generator, dtype=dtype) for _ in range(2))
    a, b = sm.Hankel(h, n), sm.Hankel(k, n)
    x = torch.randn(n, 3, generator=generator, dtype=dtype)
    bound = 4 * EPS * (1 + math.log2(2 * (m + n))) * (m + n) * float(h.norm()) * (1 + float(x.norm()))
    for found, wanted in (
        (a @ x, dense_of(a) @ x),
        (a.mT @ torch.ones(m, dtype=dtype), dense_of(a).mT @ torch.ones(m, dtype=dtype)),
        ((a + b).to_dense(), dense_of(a) + dense_of(b)),
        ((a * b).to_dense(), dense_of(a) * dense_of(b)),
        ((a * 2).to_dense(), 2 * dense_of(a)),
        (a.diagonal(), torch.diagonal(dense_of(a), dim1=-2, dim2=-1)),
        (a.norm(), torch.linalg.matrix_norm(dense_of(a))),
        (a.prepare() @ x, dense_of(a) @ x),
    ):
        assert float((found - wanted).abs().max()) <= bound + 10 * EPS * (1 + float(wanted.abs().max()))
    assert type(a + b) is type(a * b) is type(a.mT) is type(a * 2) is sm.Hankel
    if m == n:
        assert sm.Claim.SYMMETRIC in a.claims
        assert torch.allclose(a.trace(), torch.diagonal(dense_of(a), dim1=-2, dim2=-1).sum(-1))


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_slices_of_every_step_are_exact(m: int, n: int) -> None:
    """One common step: Hankel; opposite steps: Toeplitz; all else lazy. Integers, bit by bit."""
    a = sm.Hankel(torch.arange(1.0, m + n, dtype=F64), n)
    whole = a.to_dense()
    assert torch.equal(whole, dense_of(a))
    for rows in (slice(None), slice(1, None), slice(None, None, 2), slice(None, None, -1), slice(None, None, -2)):
        for columns in (slice(None), slice(0, 2), slice(None, None, 2), slice(None, None, -1), slice(None, None, -2)):
            r, c = list(range(*rows.indices(m))), list(range(*columns.indices(n)))
            cut = a[rows, columns]
            assert torch.equal(cut.to_dense().round(), whole[r][:, c]), (rows, columns)
            step = (rows.step or 1, columns.step or 1)
            if r and c and abs(step[0]) == abs(step[1]):
                assert type(cut) is (sm.Hankel if step[0] == step[1] else sm.Toeplitz)


def exchange(n: int) -> torch.Tensor:
    """The antidiagonals of the flip J."""
    return torch.nn.functional.one_hot(torch.tensor(n - 1), 2 * n - 1).to(F64)


FAMILIES = {
    "random": lambda n: antidiagonals(n, n, 5),
    "complex": lambda n: antidiagonals(n, n, 5, C128),
    "exchange": exchange,
    "zero middle": lambda n: antidiagonals(n, n, 6) * (torch.arange(2 * n - 1) != n - 1),
    "shifted exchange": lambda n: 4 * exchange(n) + antidiagonals(n, n, 7),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 33, 300])
def test_solve_inverse_and_determinant(kind: str, n: int) -> None:
    if kind == "zero middle" and n == 1:
        return  # the zero matrix
    a = sm.Hankel(FAMILIES[kind](n), n)
    dense = dense_of(a)
    kappa = float(torch.linalg.cond(dense))
    b = dense @ torch.randn(n, 2, dtype=F64).to(dense.dtype)
    exact = torch.linalg.solve(dense, b)
    kept = a.factor()
    for x in (a.solve(b), kept.solve(b), a.inv() @ b):
        eta = (dense @ x - b).norm() / (dense.norm() * x.norm() + b.norm())
        assert float(eta) <= 100 * EPS
        assert float((x - exact).norm()) <= 200 * EPS * kappa * float(exact.norm())
    adjoint = kept.adjoint_solve(b)
    assert float((dense.mH @ adjoint - b).norm()) <= 200 * EPS * float(dense.norm() * adjoint.norm() + b.norm())
    sign, logabs = torch.linalg.slogdet(dense)
    for found in (a.slogdet(), kept.slogdet()):
        assert abs(float(found[1]) - float(logabs)) <= 100 * n * EPS * kappa
        assert abs(complex(found[0]) - complex(sign)) <= (100 * n * EPS * kappa if dense.is_complex() else 0)


@pytest.mark.parametrize("n", range(1, 14))
def test_the_sign_of_the_flip(n: int) -> None:
    flip = sm.Hankel(exchange(n), n)
    assert torch.equal(flip.to_dense(), torch.eye(n, dtype=F64).flip(0))
    assert float(flip.slogdet()[0]) == (-1) ** (n * (n - 1) // 2) == round(float(torch.linalg.det(flip.to_dense())))


def test_a_kept_inverse_is_a_pytree_and_survives_pickling() -> None:
    a = sm.Hankel(antidiagonals(300, 300, 8), 300)
    inverse = pickle.loads(pickle.dumps(a.inv()))
    b = torch.randn(300, dtype=F64)
    assert float((a @ (inverse @ b) - b).norm()) <= 1e-9 * float(b.norm())
    with pytest.raises(ValueError, match="max_steps has no meaning for the direct method 'gko'"):
        a.solve(b, max_steps=3, method="gko")


def test_auto_takes_what_iterations_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start and a preconditioner are given for A and reach T as ``J x`` and ``J P``: there the exact ones leave
    GMRES nothing to do."""
    numbers = torch.randn(599, generator=torch.Generator().manual_seed(3), dtype=F64) / 300**0.5
    numbers[299] += 4.0
    a = sm.Hankel(numbers, 300)
    b = torch.randn(300, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    x, inverse = a.solve(b), sm.Dense(torch.linalg.inv(a.to_dense()))
    seen: list[int] = []
    for extra in (
        {"start": x},
        {"preconditioner": inverse},
        {"max_steps": 9, "callback": lambda step, _: seen.append(step)},
    ):
        assert torch.equal(a.solve(b, **extra), x)  # Levinson needs none of it
    for wrong in ({"start": x[:5]}, {"preconditioner": sm.Identity(5, F64)}, {"preconditioner": x}):
        with pytest.raises(sm.ShapeError):
            a.solve(b, **wrong)
    own = ToeplitzFamily._solve_rows
    by_gmres = lambda t, y, options: own(t, y, dataclasses.replace(options, method="gmres"))  # noqa: E731
    monkeypatch.setattr(ToeplitzFamily, "_solve_rows", by_gmres)
    plain = sm.linalg.solve(a, b, callback=lambda step, _: seen.append(step), return_info=True)[1]
    assert plain.steps > 5 and seen
    for extra in ({"start": x}, {"preconditioner": inverse}):
        y, info = sm.linalg.solve(a, b, return_info=True, **extra)
        assert info.steps <= 3 and float((y - x).norm()) <= 1e-10 * float(x.norm())


def test_krylov_methods_run_on_the_symmetric_matrix_itself() -> None:
    n = 40
    a = sm.Hankel(4 * exchange(n) + antidiagonals(n, n, 9), n)
    b = torch.randn(n, dtype=F64)
    x = a.solve(b, method="minres")
    assert float((a @ x - b).norm()) <= 1e-10 * float(b.norm())


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_least_squares_and_nearest(shape: tuple[int, int]) -> None:
    m, n = shape
    a = sm.Hankel(antidiagonals(m, n, 10), n)
    b = torch.randn(m, dtype=F64)
    wanted = torch.linalg.pinv(dense_of(a)) @ b
    kappa = float(torch.linalg.cond(dense_of(a)))
    assert float((a.lstsq(b) - wanted).norm()) <= 100 * EPS * kappa**2 * float(wanted.norm() + b.norm())
    target = torch.randn(m, n, dtype=F64)
    near = sm.Hankel.nearest(target)
    means = [target.flip(1).diagonal(k).mean() for k in range(n - 1, -m, -1)]
    assert torch.allclose(near.antidiagonals, torch.stack(means))
    assert torch.allclose(sm.Hankel.from_dense(dense_of(a)).antidiagonals, a.antidiagonals)
    with pytest.raises(sm.NotStructuredError, match=r"Hankel\.from_dense"):
        sm.Hankel.from_dense(target)


def test_a_product_of_two_is_a_product_of_toeplitz_matrices() -> None:
    for m, k, n in ((5, 5, 5), (3, 5, 2), (1, 4, 4)):
        a, b = sm.Hankel(antidiagonals(m, k, 1), k), sm.Hankel(antidiagonals(k, n, 2), n)
        assert torch.allclose((a @ b).to_dense(), dense_of(a) @ dense_of(b), atol=1e-13)
        assert type(a @ b) is not sm.Hankel


def test_toeplitz_plus_hankel_stays_a_sum() -> None:
    a = sm.Toeplitz(antidiagonals(4, 4, 1), 4) + sm.Hankel(antidiagonals(4, 4, 2), 4)
    assert type(a) is sm.Sum


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32], ids=str)
def test_toeplitz_plus_hankel_shares_the_transforms_of_x(dtype: torch.dtype) -> None:
    """Joint product against both on their own: shapes, batches, one row, real with complex, derivatives, graphs."""
    for m, n in ((90, 60), (60, 90), (75, 75)):
        t, h = (torch.randn(m + n - 1, generator=torch.Generator().manual_seed(s), dtype=dtype) for s in (1, 2))
        for first, second, lead in ((t, h, ()), (t.expand(2, -1), h, (2,)), (t, h.expand(3, 1, -1), (3, 1))):
            parts = (sm.Toeplitz(first, n), sm.Hankel(second, n))
            for a in (sm.Sum(parts), sm.Sum(parts[::-1])):
                for shape in ((n,), (4, n), (*lead, 20, n)):
                    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
                    for v in (x, x * 1j) if not dtype.is_complex else (x,):
                        wanted = parts[0].linear(v) + parts[1].linear(v)
                        got = a.linear(v)
                        assert got.shape == wanted.shape and got.dtype == wanted.dtype
                        gap = (got - wanted).norm() / (wanted.norm() + 1)
                        assert float(gap) <= 20 * torch.finfo(dtype).eps
    x = torch.randn(2, 75, generator=torch.Generator().manual_seed(3), dtype=dtype)
    leaves = [v.clone().requires_grad_() for v in (t, h, x)]
    joint = (sm.Toeplitz(leaves[0], n) + sm.Hankel(leaves[1], n)).linear(leaves[2])
    apart = sm.Toeplitz(leaves[0], n).linear(leaves[2]) + sm.Hankel(leaves[1], n).linear(leaves[2])
    for one, two in zip(*(torch.autograd.grad(y.abs().square().sum(), leaves) for y in (joint, apart)), strict=True):
        assert float((one - two).norm()) <= 100 * torch.finfo(dtype).eps * float(two.norm())
    torch._dynamo.reset()
    traced = torch.compile(lambda a, v: a.linear(v), fullgraph=True, backend="eager")
    total = sm.Toeplitz(t, n) + sm.Hankel(h, n)
    assert torch.allclose(traced(total, x), total.linear(x))


@pytest.mark.parametrize(
    ("c", "r"), [([1, 17, 99], None), ([1, 2, 3, 4], [4, 7, 7, 8, 9]), ([1.5], [9, 2.0]), (np.array([1j, 2]), [7, 3.0])]
)
def test_the_constructor_is_that_of_scipy(c: object, r: object) -> None:
    found = sm.hankel(c, r)
    assert type(found) is sm.Hankel
    wanted = scipy.linalg.hankel(c, r)
    assert np.array_equal(found.to_dense().numpy(), wanted)
    assert found.dtype == (C128 if np.iscomplexobj(wanted) else F64)


def test_the_constructor_takes_tensors_and_batches() -> None:
    c, r = torch.randn(2, 3), torch.randn(1, 4)
    found = sm.hankel(c, r)
    assert tuple(found.shape) == (2, 3, 4) and found.dtype == torch.float32
    for k in range(2):
        wanted = scipy.linalg.hankel(c[k].numpy(), r[0].numpy())
        assert np.array_equal(found[k].to_dense().numpy(), wanted)
    with pytest.raises(sm.DtypeError, match="integer tensor"):
        sm.hankel(torch.arange(3))
    with pytest.raises(sm.ShapeError, match="c must have at least one entry"):
        sm.hankel([])
    with pytest.raises(sm.ShapeError, match="do not allow columns=7"):
        sm.Hankel(torch.ones(6), 7)


def test_gradients_of_solve_and_determinant() -> None:
    for dtype in (F64, C128):
        h = (antidiagonals(4, 4, 3, dtype) + 4 * exchange(4)).requires_grad_()
        b = antidiagonals(2, 3, 4, dtype).requires_grad_()

        def solved(h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return sm.Hankel(h, 4).solve(b)

        assert torch.autograd.gradcheck(solved, (h, b)) and torch.autograd.gradgradcheck(solved, (h, b))
        assert torch.autograd.gradcheck(lambda h: sm.Hankel(h, 4).logabsdet(), (h,))


def test_the_measure_of_membership() -> None:
    a = sm.Hankel(antidiagonals(4, 6), 6)
    assert sm.checks.is_hankel(a) and sm.checks.is_hankel(a, tol=0) and not sm.checks.is_toeplitz(a)
    noisy = a.to_dense() + 1e-3 * torch.eye(4, 6, dtype=F64)
    report = sm.checks.is_hankel(noisy)
    wanted = (noisy - sm.Hankel.nearest(noisy).to_dense()).norm() / noisy.norm()
    assert not report and float(report) == pytest.approx(float(wanted), rel=1e-10) and "Hankel" in str(report)
