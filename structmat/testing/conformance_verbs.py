"""Conformance: every verb of one matrix against the dense matrix, whether a type overrides it or not; claims; and
derivatives of what a type overrides."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from structmat.claims import Claim
from structmat.errors import StructureError
from structmat.matrix import Matrix
from structmat.testing.assertions import assert_claims, assert_close, rounding
from structmat.testing.conformance_case import DOUBLE, Case, wide_of

__all__ = ["check_claims_true", "check_indexing", "check_solves", "check_verb_gradients", "check_verbs"]

_CONDITION = 1e4  # systems worse than this are not solved here: rounding hides what a fault would show


def _claims_hold(matrix: Matrix, dense: torch.Tensor, size: float, what: str) -> None:
    try:
        assert_claims(matrix, dense.resolve_conj(), size=size)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def check_claims_true(case: Case) -> None:
    """Every claim holds for the dense reference, also after transpose, conjugation, scaling, product and a slice."""
    a, d, size = case.matrix, wide_of(case.dense), case.size
    m, n = case.sizes
    variants: list[tuple[str, Callable[[], Matrix], Callable[[], torch.Tensor], float]] = [
        ("A", lambda: a, lambda: d, size),
        ("A.mT", lambda: a.mT, lambda: d.mT, size),
        ("A.mH", lambda: a.mH, lambda: d.mH, size),
        ("2 A", lambda: 2 * a, lambda: 2 * d, 2 * size),
        ("-A", lambda: -a, lambda: -d, size),
        ("0 A", lambda: 0 * a, lambda: 0 * d, size),
        ("A @ A.mT", lambda: a @ a.mT, lambda: d @ d.mT, size * size),
    ]
    if m == n and n > 1:
        variants.append(("A[..., 1:, 1:]", lambda: a[..., 1:, 1:], lambda: d[..., 1:, 1:], size))
    for what, make, dense, scale in variants:
        _claims_hold(make(), dense(), scale, what)
    known = a.claims.properties
    if known & {Claim.SYMMETRIC, Claim.HERMITIAN, Claim.ORTHOGONAL, Claim.POSITIVE_DEFINITE}:
        assert m == n, f"{a!r} claims {', '.join(map(repr, known))}, but is not square"


def check_verbs(case: Case) -> None:
    """Diagonal, trace, norm, scaling, sums, ``numpy.asarray``, singular values, eigenvalues, rank bound."""
    a, d, tol = case.matrix, wide_of(case.dense), case.tol()
    m, n = case.sizes
    if a.dtype is None:  # what has no dtype answers in the default one
        tol = rounding(torch.get_default_dtype(), m + n, case.size, 4) * max(1, m, n) ** 0.5
    half = case.dtype in (torch.float16, torch.bfloat16)
    batch = torch.full((*case.lead, 1, 1), 0.5, dtype=case.dtype)
    pairs: list[tuple[str, Callable[[], Any], torch.Tensor, float]] = [
        ("diagonal()", a.diagonal, torch.diagonal(d, dim1=-2, dim2=-1), tol),
        ("norm()", a.norm, torch.linalg.matrix_norm(d), tol),
        ("(2 A).to_dense()", lambda: (2 * a).to_dense(), 2 * d, 2 * tol),
        ("(A / 4).to_dense()", lambda: (a / 4).to_dense(), d / 4, tol),
        ("(-A).to_dense()", lambda: (-a).to_dense(), -d, tol),
        ("(A * s).to_dense() for s of shape (*batch, 1, 1)", lambda: (a * batch).to_dense(), d / 2, tol),
        ("(A + A).to_dense()", lambda: (a + a).to_dense(), 2 * d, 3 * tol),
        ("(A - A).to_dense()", lambda: (a - a).to_dense(), 0 * d, 3 * tol),
    ]
    if m == n:
        pairs.append(("trace()", a.trace, torch.diagonal(d, dim1=-2, dim2=-1).sum(-1), math.sqrt(max(1, n)) * tol))
    if not half:
        pairs.append(("svdvals()", a.svdvals, torch.linalg.svdvals(d), 4 * tol))
    for what, verb, wanted, allowed in pairs:
        got = verb()
        assert_close(_at_least_rows(got), _at_least_rows(wanted), allowed, f"{a!r}.{what}")
    if m == n and not half:
        _check_eigenvalues(case, tol)
    ranks = int(torch.linalg.matrix_rank(d, atol=tol, rtol=0.0).max()) if d.numel() else 0
    assert ranks <= a.rank_bound(), f"{a!r}.rank_bound() is {a.rank_bound()}, the rank is {ranks}"


def _at_least_rows(value: Any) -> Any:
    """Batches of numbers and vectors as they are compared: each element for itself."""
    return value[..., None, None] if isinstance(value, torch.Tensor) and value.ndim < 2 else value


def _check_eigenvalues(case: Case, allowed: float) -> None:
    """Their sum is the trace and the sum of their squares that of A^2: the order is free, and single ones may be ill
    conditioned."""
    a, d = case.matrix, wide_of(case.dense)
    got = a.eigvals()
    assert got.shape == d.shape[:-1], f"{a!r}.eigvals(): shape {tuple(got.shape)}, expected {tuple(d.shape[:-1])}"
    n, scale = max(1, d.shape[-1]), case.size
    for power, matrix in ((1, d), (2, d @ d)):
        wanted = torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1).to(torch.complex128)
        found = (wide_of(got).to(torch.complex128) ** power).sum(-1)
        tol = 8 * n * allowed * max(1.0, scale) ** (power - 1)
        what = f"{a!r}.eigvals(): the sum of their powers {power}"
        assert_close(_at_least_rows(found), _at_least_rows(wanted), tol, what)


def check_indexing(case: Case) -> None:
    """Slices, rows, columns, entries and elements of the batch."""
    a, d = case.matrix, wide_of(case.dense)
    m, n = case.sizes
    whole, tol = slice(None), case.tol()
    wanted: list[Any] = [(..., slice(0, (m + 1) // 2), whole), (..., whole, slice(n // 2, None))]
    wanted += [(..., 0, whole), (..., whole, n - 1), (..., m - 1, 0)]
    wanted += [(0,)] if case.lead else []
    for index in wanted if min(m, n) else []:
        shown = ", ".join(map(_index_name, index))
        try:
            got = a[index]
        except StructureError:
            if index == (0,):
                continue  # a type without core says so
            raise
        entries = got.to_dense() if isinstance(got, Matrix) else got
        assert_close(_at_least_rows(entries), _at_least_rows(d[index]), tol, f"{a!r}[{shown}]")


def _index_name(index: Any) -> str:
    if isinstance(index, slice):
        return f"{'' if index.start is None else index.start}:{'' if index.stop is None else index.stop}"
    return "..." if index is ... else str(index)


def check_solves(case: Case) -> None:
    """``inv``, ``solve``, ``solve_rows``, ``factor``, ``det``, ``slogdet`` and ``pinv``, where the matrix is well
    conditioned."""
    a, d = case.matrix, wide_of(case.dense)
    m, n = case.sizes
    values = torch.linalg.svdvals(d) if d.numel() else torch.ones(1, dtype=torch.float64)
    least = float(values[..., -1].min())
    if case.dtype in (torch.float16, torch.bfloat16) or not least > case.size / _CONDITION:
        return
    tol, inverse = case.tol(), torch.linalg.pinv(d)
    entry = 8 * tol / least**2
    assert_close(a.pinv().to_dense(), inverse, entry, f"{a!r}.pinv()")
    if m != n:
        return
    assert_close(a.inv().to_dense(), inverse, entry, f"{a!r}.inv()")
    _claims_hold(a.inv(), inverse, case.size / least**2, "A.inv()")
    for shape in ((n,), (n, 2), (*case.lead, n, 2)):
        b = case.rows(*shape, seed=5)
        wanted = inverse @ wide_of(b).to(torch.promote_types(inverse.dtype, wide_of(b).dtype))
        allowed = entry * float(torch.linalg.vector_norm(wide_of(b)))
        assert_close(a.solve(b), wanted, allowed, f"{a!r}.solve(b) for b of shape {shape}")
        assert_close(a.factor().solve(b), wanted, allowed, f"{a!r}.factor().solve(b) for b of shape {shape}")
        rows = b if b.ndim == 1 else b.mT.contiguous()
        turned = wanted if b.ndim == 1 else wanted.mT
        assert_close(a.solve_rows(rows), turned, allowed, f"{a!r}.solve_rows(x) for x of shape {tuple(rows.shape)}")
    sign, logabs = torch.linalg.slogdet(d)
    moved = 8 * n**0.5 * tol / least
    for name, found in (("slogdet()", a.slogdet()), ("factor().slogdet()", a.factor().slogdet())):
        for part, got, wanted in zip(("sign", "logarithm"), found, (sign, logabs), strict=True):
            assert_close(_at_least_rows(got), _at_least_rows(wanted), moved, f"{a!r}.{name}, the {part}")
    assert_close(_at_least_rows(a.logabsdet()), _at_least_rows(logabs), moved, f"{a!r}.logabsdet()")
    size = float(torch.exp(logabs).max())
    assert_close(_at_least_rows(a.det()), _at_least_rows(sign * torch.exp(logabs)), 2 * moved * size, f"{a!r}.det()")


def check_verb_gradients(case: Case) -> None:
    """Derivatives of the verbs a type overrides equal those of the same verb of the entries, formed by ``linear``."""
    a, (m, n) = case.matrix, case.sizes
    leaves, spec = pytree.tree_flatten(a.detach())
    chosen = [k for k, t in enumerate(leaves) if (t.is_floating_point() or t.is_complex()) and t.numel()]
    if case.dtype not in DOUBLE or not case.smooth or not chosen or not min(m, n):
        return
    b = case.rows(*case.lead, m, 1, seed=6)
    verbs: dict[str, tuple[Callable[[Any], Any], Callable[[torch.Tensor], Any]]] = {
        "to_dense": (lambda s: s.to_dense(), lambda e: e),
        "transpose": (lambda s: s.transpose().linear(b.mT), lambda e: b.mT @ e),
        "conj": (lambda s: s.conj().linear(torch.ones(n, dtype=case.dtype)), lambda e: e.conj().sum(-1)),
        "diagonal": (lambda s: s.diagonal(), lambda e: torch.diagonal(e, dim1=-2, dim2=-1)),
        "norm": (lambda s: s.norm(), torch.linalg.matrix_norm),
        "_scale": (lambda s: (3 * s).linear(torch.ones(n, dtype=case.dtype)), lambda e: 3 * e.sum(-1)),
    }
    if m == n:
        verbs["trace"] = (lambda s: s.trace(), lambda e: torch.diagonal(e, dim1=-2, dim2=-1).sum(-1))
        values = torch.linalg.svdvals(wide_of(case.dense))
        if float(values[..., -1].min()) > case.size / 100:
            verbs["logabsdet"] = (lambda s: s.logabsdet(), lambda e: torch.linalg.slogdet(e)[1])
            verbs["slogdet"] = (lambda s: s.slogdet()[1], lambda e: torch.linalg.slogdet(e)[1])
            verbs["det"] = (lambda s: s.det(), torch.linalg.det)
            verbs["inv"] = (lambda s: s.inv().linear(b.mT), lambda e: b.mT @ torch.linalg.inv(e).mT)
            verbs["solve"] = (lambda s: s.solve(b), lambda e: torch.linalg.solve(e, b))
            verbs["_solve_rows"] = verbs["solve"]
    eye = torch.eye(n, dtype=case.dtype)
    for name, (verb, of_entries) in verbs.items():
        if getattr(type(a), name) is getattr(Matrix, name):
            continue
        wanted, got = (
            _gradient(leaves, chosen, spec, function)
            for function in (lambda s, f=of_entries: f(s.linear(eye).mT), verb)
        )
        size = 1.0 + max(float(torch.linalg.vector_norm(w)) for w in wanted)
        conditioned = 1e4 if name in ("logabsdet", "slogdet", "det", "inv", "solve", "_solve_rows") else 1e2
        tol = conditioned * rounding(case.dtype, m + n, size * (1 + case.size), 4)
        for w, g in zip(wanted, got, strict=True):
            assert_close(g, w, tol, f"{a!r}.{name}: its derivative against that of the entries")


def _gradient(
    leaves: list[torch.Tensor], chosen: list[int], spec: Any, function: Callable[[Any], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    fresh = [t.clone().requires_grad_(k in chosen) for k, t in enumerate(leaves)]
    y = function(pytree.tree_unflatten(fresh, spec))
    inputs = [fresh[k] for k in chosen]
    if not y.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    weight = torch.arange(1, y.numel() + 1, dtype=torch.float64).reshape(y.shape) / y.numel()
    loss = (y * weight).real.sum() if not y.is_complex() else (y * weight).real.sum() + 2 * (y * weight).imag.sum()
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
