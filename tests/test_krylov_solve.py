"""Iterative solves and least squares of every matrix: by name, by claims, their options, derivatives and errors."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import Claim, Matrix, backend
from structmat.solving import norm_estimate
from structmat.testing import assert_gradients
from structmat.testing.examples import EXAMPLES, Example
from structmat.testing.reference import dense_of
from tests.cases import settings
from tests.test_no_dense import no_dense_arrays

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
EPS = torch.finfo(F64).eps


def numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    wide = C128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def eta_of(a: Matrix, x: torch.Tensor, b: torch.Tensor) -> float:
    """The backward error by the dense reference and its 2-norm, columns in."""
    dense = dense_of(a)
    wide = torch.promote_types(dense.dtype, torch.promote_types(x.dtype, F64))
    dense, x, b = dense.to(wide), x.to(wide), b.to(wide)
    norm = torch.linalg.vector_norm
    sigma = torch.linalg.matrix_norm(dense, 2)[..., None]
    return float((norm(b - dense @ x, dim=-2) / (sigma * norm(x, dim=-2) + norm(b, dim=-2))).max())


def limit(dtype: torch.dtype) -> float:
    return 100 * torch.finfo(dtype).eps


@pytest.fixture
def iterative(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dense matrix is small enough: small examples take the path of large ones."""
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 0})


SOLVABLE = [
    pytest.param(e, s, id=f"{e.name}-{s[0]}-{s[1]}")
    for k, e in enumerate(EXAMPLES)
    if e.solvable
    for s in settings(e, k, (F64, C128, F32, torch.complex64))[:2]
]


@pytest.mark.parametrize(("example", "setting"), SOLVABLE)
def test_every_matrix_takes_gmres_by_name(example: Example, setting: Any) -> None:
    a = example.build(*setting)
    dtype = a.dtype or setting[0]
    b = numbers(*a.batch_shape, int(a.shape[-1]), 2, dtype=dtype)
    x, info = sm.linalg.solve(a, b, method="gmres", return_info=True)
    assert "gmres" in info.method and x.dtype == dtype and x.shape == b.shape
    # the Frobenius norm that the bound may be is sqrt(n) times the 2-norm at most
    assert eta_of(a, x, b) <= limit(dtype) * int(a.shape[-1]) ** 0.5


def total(n: int, kind: str, dtype: torch.dtype = F64, batch: tuple[int, ...] = ()) -> Matrix:
    """Circulant + Diagonal, which has no structured solve; condition number about ten."""
    column = torch.zeros(*batch, n, dtype=dtype)
    column[..., 0], column[..., 1] = 4.0, 1.0
    if kind != "general":
        column[..., -1] = 1.0
    sign = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0) if kind == "indefinite" else torch.ones(n)
    shift = (torch.rand(*batch, n, generator=torch.Generator().manual_seed(1), dtype=F64) + 6 * (sign - 1) / 2).to(
        dtype
    )
    matrix = sm.Sum((sm.Circulant(column), sm.Diagonal(shift - (3 if kind == "indefinite" else 0))))
    if kind == "general":
        return matrix
    return matrix.assume(Claim.POSITIVE_DEFINITE if kind == "definite" else Claim.HERMITIAN)


@pytest.mark.parametrize("dtype", [F64, C128, F32])
@pytest.mark.parametrize(("kind", "method"), [("definite", "cg"), ("indefinite", "minres"), ("general", "gmres")])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_auto_follows_the_claims(kind: str, method: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    a = total(300, kind, dtype, batch)
    b = numbers(*batch, 300, 2, dtype=dtype)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == method == backend.explain("solve", a, b).path and info.reasons[0].startswith(method)
    assert info.steps > 1 and info.backward_error.shape == (*batch, 2)
    assert float(info.backward_error.max()) <= limit(dtype) and eta_of(a, x, b) <= 20 * limit(dtype)
    again = sm.linalg.solve(a, b, return_info=True)[0]
    assert torch.equal(x, again)
    factor = a.factor()
    assert factor.method == method
    assert eta_of(a, factor.solve(b), b) <= 20 * limit(dtype)
    assert eta_of(a.mH, factor.adjoint_solve(b), b) <= 20 * limit(dtype)


def test_a_false_claim_falls_through_for_the_failing_rows_alone() -> None:
    """Claimed definite, indefinite in truth: cg stops, minres goes on; what the record says is so."""
    n = 300
    a = total(n, "indefinite").assume(Claim.POSITIVE_DEFINITE)
    b = numbers(n, 2)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "minres" and any(r.startswith("cg reached") for r in info.reasons)
    assert eta_of(a, x, b) <= 20 * limit(F64)


def test_units_do_not_matter() -> None:
    a, b = total(300, "definite"), numbers(300, 2)
    steps = sm.linalg.solve(a, b, return_info=True)[1].steps
    for scale in (1e-170, 1e170):
        info = sm.linalg.solve(sm.Scaled(a, scale), b * scale, method="cg", return_info=True)[1]
        assert abs(info.steps - steps) <= 1


def test_options_reach_the_iteration() -> None:
    a, b = total(300, "definite"), numbers(300, 2)
    seen: list[int] = []
    x, info = sm.linalg.solve(a, b, callback=lambda k, _: seen.append(k), return_info=True)
    assert seen == list(range(1, info.steps + 1))
    assert sm.linalg.solve(a, b, start=x, return_info=True)[1].steps <= 1
    assert sm.linalg.solve(a, b, tol=1e-4, return_info=True)[1].steps < info.steps
    given = sm.linalg.solve(a, b, preconditioner=sm.Circulant(a.terms[0].column).inv(), return_info=True)[1]
    assert given.method == "cg, given preconditioner" and given.steps < info.steps
    prepared = sm.Circulant(a.terms[0].column).inv().prepare()
    assert sm.linalg.solve(a, b, preconditioner=prepared, return_info=True)[1].steps == given.steps
    rough = a.solve(b, max_steps=3, check=False)
    assert eta_of(a, rough, b) > 1e-12
    vector = a.solve(b[:, 0], start=x[:, 0])
    assert vector.shape == (300,)


REFUSED: list[tuple[str, type[Exception], dict[str, Any], str]] = [
    ("unknown", ValueError, {"method": "qmr"}, "unknown method 'qmr'; legal methods are 'auto', 'dense', 'cg'"),
    ("order", sm.ShapeError, {"preconditioner": sm.Identity(5, F64)}, "must be a Matrix of size 300 x 300"),
    ("tensor", sm.ShapeError, {"preconditioner": torch.eye(300)}, "preconditioner must be a Matrix"),
    ("complex", sm.DtypeError, {"preconditioner": sm.Identity(300, C128)}, "is complex, the system is real"),
    ("start rows", sm.ShapeError, {"start": torch.ones(7)}, r"start has shape \(7,\), a solution has 300 rows"),
    ("start columns", sm.ShapeError, {"start": torch.ones(300, 5)}, "start has 5 columns, b has 2"),
    ("start type", TypeError, {"start": [1.0]}, "start must be a tensor, got list"),
    ("start dtype", sm.DtypeError, {"start": torch.ones(300, dtype=C128)}, "start is complex128, the solution is real"),
    ("steps", ValueError, {"max_steps": 0}, "max_steps must be a positive int, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "options", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_options_that_do_not_fit(error: type[Exception], options: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        total(300, "definite").solve(numbers(300, 2), **options)


def test_what_is_not_solved_raises_with_the_error_reached_and_the_way_out() -> None:
    a, b = total(300, "general"), numbers(300)
    with pytest.raises(
        sm.SolveError, match=r"method='gmres'\): backward error .* exceeds .* after 4 steps; give a"
    ) as e:
        a.solve(b, max_steps=4)
    assert 1e-13 < e.value.backward_error < 1
    with pytest.raises(Exception, match=r"under torch\.compile: the solver reads values"):
        torch.compile(lambda m, v: m.solve(v), fullgraph=True, backend="eager")(a, b)


@pytest.mark.usefixtures("iterative")
@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("method", ["auto", "gmres", "cg", "minres"])
def test_derivatives_to_second_order(method: str, dtype: torch.dtype) -> None:
    column = torch.tensor([4.0, 1.0, 0.5, 0.5, 1.0], dtype=dtype)
    shift, b = torch.rand(5, dtype=F64).to(dtype), numbers(5, 2, dtype=dtype)

    def solve(c: torch.Tensor, d: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # Hermitian for every c and d, so that finite differences stay within what cg and minres are for
        a = sm.Circulant(c) + sm.Diagonal(d.real.to(dtype))
        return (a + a.mH).solve(b, method=method, tol=1e-15, check=False)

    assert_gradients(solve, (column, shift, b))


@pytest.mark.usefixtures("iterative")
def test_transforms_agree_with_the_dense_solve() -> None:
    c, d, b = torch.tensor([4.0, 1.0, 0.5], dtype=F64), torch.rand(3, dtype=F64), numbers(3, 2)

    def ours(c: torch.Tensor, d: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (sm.Circulant(c) + sm.Diagonal(d)).solve(b).sin().sum()

    def dense(c: torch.Tensor, d: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(sm.Circulant(c).to_dense() + torch.diag(d), b).sin().sum()

    arguments = (c, d, b)
    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1, 2))(*arguments),
        lambda f: (torch.func.jvp(f, arguments, tuple(torch.ones_like(v) for v in arguments))[1],),
        lambda f: torch.func.vmap(f)(*(torch.stack((v, v + 0.1)) for v in arguments)).split(1),
    ):
        for found, wanted in zip(transform(ours), transform(dense), strict=True):
            assert float((found - wanted).abs().max()) <= 1e4 * EPS * (1 + float(wanted.abs().max()))


def test_no_dense_array_at_4096() -> None:
    column = torch.zeros(4096, dtype=F64)
    column[0], column[1] = 3.0, 1.0
    c, d, b = column.requires_grad_(), torch.rand(4096, dtype=F64).requires_grad_(), numbers(4096)
    with no_dense_arrays():
        (sm.Circulant(c) + sm.Diagonal(d)).solve(b).sum().backward()
        sm.Toeplitz(numbers(4096 + 2047), 2048).lstsq(b, tol=1e-6)
    assert c.grad is not None and d.grad is not None


def test_the_estimate_of_the_norm_is_a_lower_bound() -> None:
    for k in range(5):
        a = sm.Dense(numbers(2, 40, 40, seed=k))
        estimate, exact = norm_estimate(a), torch.linalg.matrix_norm(a.entries, 2)
        assert bool((estimate <= exact * (1 + 1e-12)).all() and (estimate >= exact / 2).all())


# -- least squares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128, F32])
@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("method", ["auto", "lsmr", "cgls", "dense"])
def test_least_squares_above_the_dense_limit(shape: tuple[int, int], method: str, dtype: torch.dtype) -> None:
    m, n = shape
    t = numbers(m + n - 1, dtype=dtype) / 60
    t[n - 1] += 3
    a, b = sm.Toeplitz(t, n), numbers(m, 2, dtype=dtype, seed=1)
    x, info = sm.linalg.lstsq(a, b, method=method, return_info=True)
    # "auto" of a Toeplitz matrix brings a preconditioner of its own
    assert (info.method != "dense" if method == "auto" else info.method == method) and x.dtype == dtype
    wanted = torch.linalg.pinv(dense_of(a)) @ b.to(dense_of(a).dtype)
    kappa = float(torch.linalg.cond(dense_of(a)))
    assert float((x - wanted).norm()) <= kappa**2 * limit(dtype) * float(wanted.norm() + b.norm())
    assert a.lstsq(b[:, 0], method=method).shape == (n,)


@pytest.mark.usefixtures("iterative")
@pytest.mark.parametrize(
    ("columns", "dtype", "method"), [(3, F64, "lsmr"), (4, C128, "lsmr"), (5, F64, "lsmr"), (5, C128, "cgls")]
)
def test_least_squares_derivatives(columns: int, dtype: torch.dtype, method: str) -> None:
    """Tall, square and wide, by the augmented system, to second order; with a preconditioner too."""
    t = numbers(7, dtype=dtype, seed=1)
    t[columns - 1] += 3
    b = numbers(8 - columns, 2, dtype=dtype)
    assert_gradients(lambda t, b: sm.Toeplitz(t, columns).lstsq(b, method=method), (t, b))
    weight = sm.Diagonal(torch.linspace(0.5, 1, min(columns, 8 - columns), dtype=F64).to(dtype))
    with_one = lambda t, b: sm.Toeplitz(t, columns).lstsq(b, method=method, preconditioner=weight)  # noqa: E731
    assert_gradients(with_one, (t, b), order=1)
    assert float((with_one(t, b) - sm.Toeplitz(t, columns).lstsq(b, method="dense")).abs().max()) <= 1e-10


def test_least_squares_where_the_type_knows_its_inverse() -> None:
    assert sm.linalg.lstsq(total(300, "general"), numbers(300), return_info=True)[1].method == "lsmr"
    for a in (sm.Diagonal(torch.arange(300, dtype=F64)), sm.LowRank(numbers(300, 2), numbers(400, 2, seed=1))):
        b = numbers(300)
        x, info = sm.linalg.lstsq(a, b, return_info=True)
        assert info.method == "pinv" and float((x - torch.linalg.pinv(dense_of(a)) @ b).norm()) <= 1e-9


def test_a_circulant_that_is_not_normal_takes_lsmr() -> None:
    column = torch.zeros(300, dtype=F64)
    column[0], column[1] = 3.0, 1.0
    for f, method in ((1, "pinv"), (-1, "pinv"), (2, "lsmr")):
        a = sm.Circulant(column, f)
        x, info = sm.linalg.lstsq(a, numbers(300), return_info=True)
        assert info.method == method and float((a @ x - numbers(300)).norm()) <= 1e-11


def test_least_squares_refuses() -> None:
    a = sm.Toeplitz(numbers(8), 3)
    with pytest.raises(sm.ShapeError, match=r"lstsq\(b\): b has shape \(3,\), the matrix has 6 rows"):
        a.lstsq(numbers(3))
    with pytest.raises(ValueError, match=r"unknown method 'qr'; legal methods are .*'lsmr', 'cgls'"):
        a.lstsq(numbers(6), method="qr")
    with pytest.raises(ValueError, match="start has no meaning for the direct method 'pinv'"):
        a.lstsq(numbers(6), start=numbers(3))
    with pytest.raises(sm.SolveError, match=r"lstsq\(method='lsmr'\): backward error .* after 1 steps; give a precond"):
        a.lstsq(numbers(6), method="lsmr", max_steps=1)
    assert a.lstsq(numbers(6, 0)).shape == (3, 0)


# -- the progress bar ---------------------------------------------------------------------------------------------


def test_the_progress_bar_counts_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    a, b = total(300, "definite"), numbers(300)
    with sm.linalg.progress_bar("cg", tol=1e-12, mininterval=0, ascii=True, file=sys.stdout) as bar:
        a.solve(b, callback=bar)
        a.solve(b, callback=bar)  # a second solve, a second bar
    written = capsys.readouterr().out
    assert "cg: 100%" in written and "12.0 of 12.0 digits" in written and "backward error" in written
    assert written.count("step 1,") == 2
