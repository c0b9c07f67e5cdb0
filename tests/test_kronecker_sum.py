"""Kronecker sums: Sylvester equations by eigenvectors and by Schur forms, against scipy and the dense matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Claim, backend
from structmat.functional.sylvester import decomposed
from structmat.testing import assert_claims, assert_gradients
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.reference import dense_of, magnitude_of
from tests.test_no_dense import Largest, N, no_dense_arrays

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _general(n: int, dtype: torch.dtype = F64, seed: int = 0, lead: tuple[int, ...] = ()) -> sm.Dense:
    return sm.Dense(_numbers(*lead, n, n, dtype=dtype, seed=seed) / n**0.5 + 3 * torch.eye(n))


def _hermitian(n: int, dtype: torch.dtype = F64, seed: int = 0, lead: tuple[int, ...] = ()) -> Any:
    a = _numbers(*lead, n, n, dtype=dtype, seed=seed)
    return sm.Dense(a + a.mH + 6 * n * torch.eye(n)).assume(Claim.HERMITIAN)


KINDS = {"general": _general, "hermitian": _hermitian}


def test_the_convention() -> None:
    """A X + X B^T on the row-major X, and ``torch.kron`` with identities."""
    a, b = _numbers(2, 2), _numbers(3, 3, seed=1)
    found = sm.kron_sum(a, b)
    wanted = torch.kron(a, torch.eye(3, dtype=F64)) + torch.kron(torch.eye(2, dtype=F64), b)
    assert_close(found.to_dense(), wanted, 16 * EPS, "entries")
    x = _numbers(2, 3)
    assert_close((found @ x.flatten()).reshape(2, 3), a @ x + x @ b.mT, 64 * EPS, "product")
    assert type(sm.kron_sum([[1.0]], numpy.eye(2))) is sm.KroneckerSum


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_solves(kind: str, dtype: torch.dtype, lead: tuple[int, ...]) -> None:
    left, right = KINDS[kind](4, dtype, 0, lead), KINDS[kind](3, F64, 1)
    a = sm.KroneckerSum(left, right)
    dense = dense_of(a)
    tol = 1e3 * EPS * float(torch.linalg.cond(dense).max())
    b = _numbers(12, 2, dtype=dtype)
    for x in (a.solve(b), a.factor().solve(b), a.solve(b, method="dense"), a.inv() @ b):
        assert x.dtype == dtype and x.shape == (*lead, 12, 2)
        assert float((dense @ x - b).abs().max()) <= tol
    assert float((dense.mH @ a.factor().adjoint_solve(b) - b).abs().max()) <= tol
    assert float((dense.mT @ a.mT.solve(b[:, 0])[..., None] - b[:, :1]).abs().max()) <= tol
    info = sm.linalg.solve(a, b, return_info=True)[1]
    assert info.method == "sylvester" and ("eigenvectors" in info.reasons[0]) == (kind == "hermitian")
    if not lead:
        y = b[:, 0].reshape(4, 3).numpy()
        # scipy 1.17 is wrong for a complex A with a real B: it takes B's real Schur form for a triangle
        other = right.entries.mT.to(dtype).numpy()
        wanted = scipy.linalg.solve_sylvester(left.entries.numpy(), other, y)
        assert float(numpy.abs(a.solve(b[:, 0]).reshape(4, 3).numpy() - wanted).max()) <= tol


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 200), st.sampled_from([F64, C128]))
def test_the_backward_error_is_small(na: int, nb: int, seed: int, dtype: torch.dtype) -> None:
    """Without any shift: the systems may be as ill-conditioned as random ones are; both orders of the triangles."""
    a, b = _numbers(na, na, dtype=dtype, seed=seed), _numbers(nb, nb, dtype=dtype, seed=seed + 1)
    solver = decomposed(a, b, hermitian=False)
    y = _numbers(3, na * nb, dtype=dtype, seed=seed + 2)
    size = float(torch.linalg.matrix_norm(a) + torch.linalg.matrix_norm(b))
    for found, left, right in ((solver, a, b), (solver.adjoint(), a.mH, b.mH)):
        x = found.solve_rows(y)
        assert x.dtype == dtype
        grid = x.reshape(3, na, nb)
        residual = (left @ grid + grid @ right.mT).flatten(-2) - y
        # each of n_B columns is solved stably; errors of one enter the next through the strict triangle
        assert float(residual.norm()) <= 1e3 * EPS * (size * float(x.norm()) + float(y.norm()))


def test_eigenvalues_determinant_and_norm() -> None:
    for kind, make in KINDS.items():
        a = sm.KroneckerSum(make(3), make(4, seed=1))
        dense = dense_of(a)
        size = 1e3 * EPS * magnitude_of(a)
        assert float((a.trace() - dense.trace()).abs()) <= size * 12 and float((a.norm() - dense.norm()).abs()) <= size
        values = a.eigvals()
        for k in (1, 2):
            wanted = torch.linalg.matrix_power(dense, k).trace()
            assert float((values**k).sum().sub(wanted).abs()) <= 1e3 * size * float(wanted.abs()), kind
        assert float(a.logabsdet() - torch.linalg.slogdet(dense)[1]) == pytest.approx(0, abs=size)


def test_the_determinant_by_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": 0})
    for dtype in (F64, C128):
        a = sm.KroneckerSum(_general(3, dtype), sm.Dense(_numbers(4, 4, dtype=dtype, seed=1)))
        for found, wanted in zip(a.slogdet(), torch.linalg.slogdet(dense_of(a)), strict=True):
            assert found.dtype == wanted.dtype and float((found - wanted).abs()) <= 1e5 * EPS


def test_claims_and_closed_forms() -> None:
    definite = sm.SymmetricToeplitz(torch.tensor([2.0, 1.0], dtype=F64)).assume(Claim.POSITIVE_DEFINITE)
    a = sm.KroneckerSum(definite, definite)
    assert {Claim.POSITIVE_DEFINITE, Claim.SYMMETRIC} <= a.claims.properties
    assert Claim.ORTHOGONAL not in sm.KroneckerSum(sm.Permutation([1, 0]), sm.Permutation([1, 0])).claims
    for found in (a, -a, 2j * a, a.mT, a[...]):
        assert type(found) is sm.KroneckerSum
        assert_claims(found, dense_of(found))
    batch = sm.KroneckerSum(_general(2, lead=(3,)), sm.Identity(2))
    assert torch.equal(batch[1].to_dense(), batch.to_dense()[1])
    assert_close((2j * batch).to_dense(), 2j * batch.to_dense(), rounding(F64, 8, 30.0), "scaled")


VERBS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda a: a.linear(torch.arange(6.0, dtype=F64)),
    "solve": lambda a: a.solve(torch.arange(6.0, dtype=F64)),
    "factor": lambda a: a.factor().solve(torch.arange(6.0, dtype=F64)),
    "adjoint": lambda a: a.factor().adjoint_solve(torch.arange(6.0, dtype=F64)),
    "logabsdet": lambda a: a.logabsdet(),
    "norm": lambda a: a.norm(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(verb: str, kind: str) -> None:
    """Through the equation, so equal eigenvalues do no harm: the second matrix is a multiple of the identity.

    Finite differences leave the Hermitian matrices, so these are made Hermitian inside.
    """
    dtype = C128 if kind == "general" else F64

    def matrix(left: torch.Tensor, right: torch.Tensor) -> sm.KroneckerSum:
        if kind == "general":
            return sm.KroneckerSum(sm.Dense(left), sm.Dense(right))
        parts = [sm.Dense((v + v.mH) / 2).assume(Claim.HERMITIAN) for v in (left, right)]
        return sm.KroneckerSum(parts[0], parts[1])

    tensors = (KINDS[kind](2, dtype).entries, 2.5 * torch.eye(3, dtype=dtype))
    assert_gradients(lambda left, right: VERBS[verb](matrix(left, right)), tensors)


def test_transforms() -> None:
    a = sm.KroneckerSum(_general(3), _general(2, seed=1))
    y = _numbers(5, 6)
    found = torch.func.vmap(lambda v: a.solve(v, check=False))(y)
    assert_close(found, a.solve_rows(y), 1e3 * EPS, "vmap over right-hand sides")
    stacked = torch.stack([a.left.entries, 2 * a.left.entries])
    each = torch.func.vmap(lambda e: sm.KroneckerSum(sm.Dense(e), a.right).solve(y[0], check=False))(stacked)
    assert_close(each[0], a.solve(y[0]), 1e3 * EPS, "vmap over matrices")
    slope = torch.func.grad(lambda e: sm.KroneckerSum(sm.Dense(e), a.right).solve(y[0], check=False).sum())
    leaf = a.left.entries.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(sm.KroneckerSum(sm.Dense(leaf), a.right).solve(y[0]).sum(), leaf)
    assert_close(slope(a.left.entries), wanted, 1e4 * EPS, "grad")
    compiled = torch.compile(lambda m, v: m.solve(v, check=False), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"under torch\.compile"):
        compiled(a, y[0])


def test_singular_and_bad_arguments() -> None:
    a = sm.kron_sum(torch.eye(2), -torch.eye(2))
    with pytest.raises(sm.SolveError, match="backward error nan"):
        a.solve(torch.ones(4))
    with pytest.raises(sm.ShapeError, match=r"KroneckerSum: square matrices are needed, got Dense\(shape=\(2, 3\)"):
        sm.kron_sum(torch.ones(2, 3), torch.eye(2))
    with pytest.raises(sm.DtypeError, match="differ in precision"):
        sm.kron_sum(torch.eye(2), torch.eye(2, dtype=F64))
    with pytest.raises(sm.ShapeError, match="do not broadcast"):
        sm.kron_sum(torch.ones(2, 2, 2), torch.ones(3, 2, 2))


def test_nothing_dense_exists_at_4096() -> None:
    def run(side: int) -> None:
        parts = [t.entries.requires_grad_() for t in (_general(side), _general(side, seed=1))]
        a = sm.kron_sum(*parts)
        x = _numbers(2, side * side)
        total = a.linear(x).sum() + a.solve(x.mT).sum() + a.norm() + a.diagonal().sum()
        total = total + (a.slogdet()[1] if side * side > 256 else 0)
        total.backward()

    with Largest():
        run(4)
    with no_dense_arrays():
        run(int(N**0.5))
