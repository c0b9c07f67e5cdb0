"""Illegal parameters, singular systems, missing structure: each fault raises its own error, with the objects and
sizes in the message, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import structmat as sm
from structmat import Matrix, backend
from structmat._optional import need
from structmat.testing import strategies

F64 = torch.float64
S = sm.SymmetricToeplitz(torch.tensor([4.0, 1.0, 0.5], dtype=F64))
T = sm.Toeplitz(torch.arange(1.0, 10.0, dtype=F64), 3)  # 7 x 3
Q = sm.HouseholderProduct(torch.ones(1, 3, dtype=F64))


PARAMETERS: list[tuple[str, type[Exception], Callable[[], Any], str]] = [
    (
        "corner given twice",
        ValueError,
        lambda: sm.toeplitz([1.0, 2.0], [3.0, 4.0]),
        r"toeplitz\(c, r\): the corner is given twice and differs: c\[0\] = 1, r\[0\] = 3; make them equal",
    ),
    (
        "method",
        ValueError,
        lambda: S.solve(torch.ones(3, dtype=F64), method="lu"),
        r"unknown method 'lu'; legal methods are 'auto', 'dense', 'levinson', 'superfast', 'cg'",
    ),
    ("factor method", ValueError, lambda: S.factor("lu"), r"unknown method 'lu'; legal methods are"),
    ("cg has no factorisation", ValueError, lambda: S.factor("cg"), r"'cg' keeps no factorisation"),
    (
        "start for a direct method",
        ValueError,
        lambda: Q.solve(torch.ones(3, dtype=F64), start=torch.ones(3, dtype=F64)),
        r"start has no meaning for the direct method",
    ),
    (
        "preconditioner for levinson",
        ValueError,
        lambda: S.solve(torch.ones(3, dtype=F64), method="levinson", preconditioner=S),
        r"preconditioner has no meaning for the direct method 'levinson'",
    ),
    ("claim", ValueError, lambda: S.assume("symmetric"), r"assume\('symmetric'\): legal claims are"),
    ("identity order", ValueError, lambda: sm.Identity(-1), r"Identity\(-1\): the order must not be negative"),
    (
        "identity dtype",
        sm.DtypeError,
        lambda: sm.Identity(2, torch.int64),
        r"legal dtypes are floating point or complex, or None",
    ),
    (
        "f of a circulant",
        ValueError,
        lambda: sm.Circulant(torch.ones(3), "1"),
        r"Circulant: f must be a Python number .*, got '1'",
    ),
    (
        "odd identity",
        ValueError,
        lambda: sm.HouseholderProduct.identity(4, 3),
        r"an odd number of reflections has det -1; use an even one",
    ),
    (
        "negative rank",
        ValueError,
        lambda: sm.LowRank.nearest(torch.eye(3), -1),
        r"LowRank.nearest\(rank=-1\): legal ranks are 0, 1, 2",
    ),
    (
        "backend",
        ValueError,
        lambda: backend.use_backend("cuda").__enter__(),
        r"use_backend\('cuda'\): legal modes are 'auto', 'reference', 'triton'",
    ),
    (
        "explain verb",
        ValueError,
        lambda: backend.explain("qr", S),
        r"explain\('qr', ...\): legal verbs are 'linear' and 'solve'",
    ),
    (
        "norm order",
        ValueError,
        lambda: sm.linalg.norm(S, 3),
        r"norm\(ord=3\): legal orders are None, 'fro', 'nuc', 2, -2, 1, -1, inf and -inf",
    ),
    (
        "option of to",
        TypeError,
        lambda: S.to(colour="red"),
        r"SymmetricToeplitz.to: unknown options \['colour'\]; legal: dtype, device",
    ),
    ("object operand", TypeError, lambda: S @ "x", r"expected a Matrix, a tensor or a numpy array, got str"),
    ("list operand", TypeError, lambda: S @ [1.0, 2.0, 3.0], r"expected a Matrix, a tensor or a numpy array, got list"),
    (
        "adding a number",
        TypeError,
        lambda: S + 1,
        r"adding a number to every entry loses the structure; Identity\(n\) \* s adds it to the diagonal",
    ),
    ("scaling by text", TypeError, lambda: S * "2", r"scale by a number or a tensor"),
    ("truth", TypeError, lambda: bool(S), r"the truth value of .* is not defined; compare with structmat.allclose"),
    ("product of nothing", TypeError, lambda: sm.Product(()), r"Product: a non-empty tuple of matrices is needed"),
    ("stack of nothing", ValueError, lambda: sm.stack([]), r"stack: at least one matrix is needed"),
    (
        "strategy of no type",
        ValueError,
        lambda: strategies.matrices(sm.Matrix),
        r"Matrix: there is no strategy for this type; legal are .*Circulant",
    ),
    (
        "strategy of a shape",
        ValueError,
        lambda: strategies.matrices(sm.Circulant, shape=(2, 3)),
        r"circulants: shape=\(2, 3\) is not square",
    ),
]


@pytest.mark.parametrize(("error", "act", "message"), [s[1:] for s in PARAMETERS], ids=[s[0] for s in PARAMETERS])
def test_illegal_parameters(error: type[Exception], act: Callable[[], Any], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


STRUCTURE: list[tuple[str, Callable[[], Any], str]] = [
    ("division", lambda: S / S, r"use A @ B.inv\(\)"),
    ("entrywise", lambda: Q * S, r"the entrywise product has no structured form"),
    ("stack of two types", lambda: sm.stack([S, Q]), r"stack: .* differ in type, size or static fields"),
    (
        "stack of two f",
        lambda: sm.stack([sm.Circulant(torch.ones(3)), sm.Circulant(torch.ones(3), -1)]),
        r"differ in type, size or static fields",
    ),
]


@pytest.mark.parametrize(("act", "message"), [s[1:] for s in STRUCTURE], ids=[s[0] for s in STRUCTURE])
def test_no_structured_form(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(sm.StructureError, match=message):
        act()


LARGE = torch.zeros(300, dtype=F64)
LARGE[:3] = torch.tensor([3.0, 1.0, 0.5], dtype=F64)


@pytest.mark.parametrize("verb", ["eigvals", "svdvals", "pinv"])
def test_above_the_dense_limit_a_verb_without_structure_says_what_to_do(verb: str) -> None:
    with pytest.raises(
        sm.StructureError,
        match=rf"{verb}: Toeplitz has no structured form of it, and order 300 .* limit 256; .*Dense\(A.to_dense\(\)\)",
    ):
        getattr(sm.Toeplitz(torch.cat((LARGE.flip(0)[:-1], LARGE)), 300), verb)()


def test_solving_with_a_sum_above_the_dense_limit() -> None:
    """No structured form: Krylov steps, or n^2 memory by name; the determinant says what to do."""
    total = sm.HouseholderProduct(torch.ones(1, 300, dtype=F64)) + sm.Circulant(LARGE)
    with pytest.raises(sm.StructureError, match=r"slogdet: Sum has no structured form .* structmat.Dense"):
        total.slogdet()
    assert float((total @ total.solve(LARGE) - LARGE).norm()) <= 300 * 100 * torch.finfo(F64).eps
    assert float((total @ total.solve(LARGE, method="dense") - LARGE).norm()) <= 300 * 100 * torch.finfo(F64).eps


def test_far_from_the_unit_circle_a_circulant_has_no_singular_values() -> None:
    with pytest.raises(sm.StructureError, match=r"only \|f\| = 1 is normal"):
        sm.Circulant(LARGE, 2.0).svdvals()


SINGULAR: list[tuple[str, Matrix, str]] = [
    (
        "circulant",
        sm.Circulant(torch.ones(4, dtype=F64)),
        r"singular to working precision, the smallest eigenvalue is .* and the largest 4.0e\+00; see pinv",
    ),
    (
        "diagonal",
        sm.Diagonal(torch.tensor([1.0, 0.0, 2.0], dtype=F64)),
        r"Diagonal.*solve: singular, entry 1 is zero; see pinv, or check=False",
    ),
    ("diagonal batch", sm.Diagonal(torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=F64)), r"singular, entry 1 is zero"),
    (
        "low rank",
        sm.LowRank(torch.ones(3, 1, dtype=F64), torch.ones(3, 1, dtype=F64)),
        r"singular, the rank is at most 1 and the order 3; see pinv",
    ),
    ("dense", sm.Dense(torch.zeros(2, 2, dtype=F64)), r"Dense.*solve: the matrix is singular"),
    ("toeplitz", sm.Toeplitz(torch.zeros(5, dtype=F64), 3), r"Toeplitz.*solve: the matrix is singular"),
    ("zero times a rotation", 0 * Q, r"singular"),
    ("zero tensor times a rotation", torch.tensor(0.0, dtype=F64) * Q, r"singular"),
    (
        "product with a singular factor",
        sm.Product((Q, sm.Diagonal(torch.tensor([1.0, 0.0, 1.0], dtype=F64)))),
        r"singular, entry 1 is zero",
    ),
    ("dense of ones", sm.Dense(torch.ones(3, 3, dtype=F64)), r"Dense.*solve: the matrix is singular"),
]


@pytest.mark.parametrize(("matrix", "message"), [s[1:] for s in SINGULAR], ids=[s[0] for s in SINGULAR])
def test_singular_solves(matrix: Matrix, message: str) -> None:
    b = torch.ones(int(matrix.shape[-1]), dtype=F64)
    with pytest.raises(sm.SolveError, match=message) as caught:
        matrix.solve(b)
    assert caught.value.backward_error is not None
    assert isinstance(caught.value, torch.linalg.LinAlgError) and isinstance(caught.value, numpy.linalg.LinAlgError)


def test_a_tolerance_that_cannot_be_met_carries_the_error_reached() -> None:
    rows = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=F64)
    with pytest.raises(sm.SolveError, match=r"backward error .* exceeds 1.0e-30; the matrix may be singular") as caught:
        sm.Dense(torch.diag(rows) + 0.1).solve(rows, tol=1e-30)
    assert 0 < caught.value.backward_error < 1e-14


FROM_DENSE: list[tuple[type[Matrix], float]] = [
    (sm.Toeplitz, 1e-3),
    (sm.SymmetricToeplitz, 1e-3),
    (sm.Circulant, 1e-3),
    (sm.Diagonal, 1e-3),
    (sm.HouseholderProduct, 1e-3),
]


@pytest.mark.parametrize(("kind", "gap"), FROM_DENSE, ids=[k.__name__ for k, _ in FROM_DENSE])
def test_from_dense_refuses_with_the_distance(kind: Any, gap: float) -> None:
    dense = torch.eye(4, dtype=F64)
    assert torch.allclose(kind.from_dense(dense).to_dense(), dense)
    dense[0, 1] += gap
    with pytest.raises(sm.NotStructuredError, match=rf"{kind.__name__}.from_dense: the matrix") as caught:
        kind.from_dense(dense)
    assert gap / 4 <= caught.value.distance <= 2 * gap
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, sm.StructureError)


def test_from_dense_of_low_rank_refuses_a_rank_that_is_too_small() -> None:
    dense = torch.diag(torch.tensor([1.0, 1.0, 0.5], dtype=F64))
    with pytest.raises(sm.NotStructuredError, match=r"relative distance 3.33e-01 from the nearest LowRank"):
        sm.LowRank.from_dense(dense, rank=2)
    assert sm.LowRank.from_dense(dense).left.shape[-1] == 3


def test_a_failed_check_changes_nothing() -> None:
    x = torch.ones(5, dtype=F64)
    kept = (T.diagonals.clone(), x.clone())
    with pytest.raises(sm.ShapeError):
        T @ x
    assert torch.equal(T.diagonals, kept[0]) and torch.equal(x, kept[1])


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        ("toeplitz_product", "the kernels of toeplitz_product take bfloat16, float16, float32, not float64"),
        ("fft_product", "this release holds no Triton kernel for fft_product"),
    ],
)
def test_triton_is_refused_with_the_reason(op: str, reason: str) -> None:
    device = torch.device("cpu")
    assert backend.choose(op, device, F64)[0] == "reference"
    with backend.use_backend("triton"), pytest.raises(sm.BackendError, match=f"{op} on cpu .*: {reason}"):
        backend.choose(op, device, F64)
    with backend.use_backend("reference"):
        assert "asked for" in backend.choose(op, device, F64)[1]


def test_a_missing_optional_package_prints_the_pip_line() -> None:
    with pytest.raises(
        ImportError,
        match=r"needs the package 'no_such_package', which is not installed: pip install 'structmat\[bench\]'",
    ):
        need("no_such_package", "bench")


def test_an_incomplete_subclass_says_what_is_missing() -> None:
    class Half(Matrix):
        entries: torch.Tensor

    half = Half(torch.ones(2))
    with pytest.raises(TypeError, match="Half must define the property shape"):
        half.shape  # noqa: B018
    with pytest.raises(TypeError, match=r"Half must define linear\(x\)"):
        half.linear(torch.ones(2))
    with pytest.raises(TypeError, match=r"Half must define transpose\(\)"):
        half.transpose()


def test_error_classes_are_those_a_caller_would_catch() -> None:
    assert issubclass(sm.ShapeError, ValueError) and issubclass(sm.DtypeError, TypeError)
    assert issubclass(sm.DeviceError, RuntimeError) and issubclass(sm.StructureError, TypeError)
    assert issubclass(sm.CheckpointError, ValueError) and issubclass(sm.BackendError, RuntimeError)
