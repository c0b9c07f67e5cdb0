"""Every claim of a matrix, measured."""

import dataclasses
import math
from typing import Any

import torch

from structmat.checks.bounds import eigenvalue_resolution
from structmat.checks.membership import measured
from structmat.checks.operands import Operator, eps_of, from_entries, mean_norm, wide
from structmat.checks.orthogonality import defect_report, gram_error, orthogonal_limit, worst
from structmat.checks.rank import displacement_at_most, displacement_rank, numerical_rank, rank_at_most
from structmat.checks.report import Report
from structmat.checks.structures import triangle
from structmat.claims import Claim
from structmat.matrix import Matrix

__all__ = ["check_claims", "least_eigenvalue"]

_STEPS, _FAILURE = 12, 1e-6


def check_claims(a: Matrix, *, probes: int | None = None, generator: torch.Generator | None = None) -> Report:
    """Every claim of the matrix, measured; ``details`` holds one Report a claim, value the number of false ones.

    The entries are formed up to 2^20 of them. Above, or with ``probes`` = k, k (10) Gaussian vectors are multiplied,
    and all claims share these products: symmetric and Hermitian compare ``A z`` with ``A^T z`` and ``A^H z``;
    orthonormal columns (of a square matrix: rows) ``A^H A z`` with z; definite: 12 Lanczos steps look for a negative
    direction; triangular: random blocks beside the diagonal; a rank bound r, and a displacement rank bound: r + 6
    products of A, or of ``Z_e A - A Z_f``. ``failure_probability`` is the sum of theirs: 1 where a claim has no
    certificate (triangular, definite), else 5e-7 for each and less.

    >>> bool(sm.checks.check_claims(sm.Circulant(torch.randn(10**5))))
    True
    """
    if not isinstance(a, Matrix):
        raise TypeError(
            f"check_claims: a Matrix is needed, got {type(a).__name__}, which claims nothing; "
            "structmat.Dense(tensor).assume(...) does"
        )
    claims = sorted(a.claims.properties, key=lambda c: c.name)
    reports = _of_entries(a, claims) if from_entries(a, probes) else _of_products(a, claims, probes, generator)
    wrong = sum(not r.ok for r in reports.values())
    failure = min(1.0, sum(r.failure_probability for r in reports.values()))
    seed = 0 if generator is None else generator.initial_seed()
    how = "from the entries" if from_entries(a, probes) else f"Gaussian products, seed {seed}"
    named = f"of {len(reports)}" if reports else "nothing is claimed"
    return Report(f"false claims {named}", wrong, 0, wrong == 0, how, failure, dict(reports))


def _of_entries(a: Matrix, claims: list[Claim]) -> dict[str, Report]:
    entries = wide(a)
    eps, n = eps_of(a), max(entries.shape[-2:])
    reports: dict[str, Report] = {}
    measures: dict[Claim, Any] = {
        Claim.SYMMETRIC: lambda w: w - w.mT,
        Claim.HERMITIAN: lambda w: w - w.mH,
        Claim.UPPER_TRIANGULAR: lambda w: torch.tril(w, -1),
        Claim.LOWER_TRIANGULAR: lambda w: torch.triu(w, 1),
    }
    allowed = 8 * eps * (1 + math.log2(max(2, n)))  # entries of a fast product are off by eps log2(n) of the norm
    for claim in claims:
        if claim in measures:
            size = torch.linalg.matrix_norm(entries).clamp_min(torch.finfo(torch.float64).tiny)
            value, details = worst(torch.linalg.matrix_norm(measures[claim](entries)) / size)
            limit = allowed
        elif claim is Claim.POSITIVE_DEFINITE:
            spectrum = torch.linalg.eigvalsh((entries + entries.mH) / 2)
            value, details = worst(-spectrum[..., 0] / spectrum[..., -1].abs().clamp_min(1e-300))
            limit = n * eps
        else:
            value, details = worst(gram_error(entries.mH if claim is Claim.ORTHONORMAL_ROWS else entries))
            limit = orthogonal_limit(a)
        name = "minus least over largest eigenvalue" if claim is Claim.POSITIVE_DEFINITE else claim.value
        reports[claim.name] = Report(name, value, limit, value <= limit, details=details)
    if a.claims.rank is not None:
        found = numerical_rank(entries.to(a.dtype or entries.dtype), most=a.claims.rank)
        reports["rank"] = dataclasses.replace(found, name="rank")
    for (e, f), bound in a.claims.displacement.items():
        reports[f"displacement {e}, {f}"] = displacement_rank(entries, e, f, tol=max(64, n) * eps, most=bound)
    return reports


def _of_products(
    a: Matrix, claims: list[Claim], probes: int | None, generator: torch.Generator | None
) -> dict[str, Report]:
    op = Operator.of(a, probes, generator)
    reports: dict[str, Report] = {}
    columns: Report | None = None
    for claim in claims:
        if claim is Claim.SYMMETRIC or claim is Claim.HERMITIAN:
            known = reports.get(Claim.HERMITIAN.name) if op.real else None
            back = op.transposed if claim is Claim.SYMMETRIC else op.adjoint
            reports[claim.name] = (
                dataclasses.replace(known, name=claim.value)
                if known is not None
                else measured(op, (op.az + back(op.z)) / 2, claim.value, None)
            )
        elif claim is Claim.POSITIVE_DEFINITE:
            reports[claim.name] = least_eigenvalue(op)
        elif claim in (Claim.UPPER_TRIANGULAR, Claim.LOWER_TRIANGULAR):
            reports[claim.name] = triangle(op, claim is Claim.LOWER_TRIANGULAR, claim.value, None)
        elif claim is Claim.ORTHONORMAL_ROWS and op.shape[0] != op.shape[1]:
            turned = Operator.of(a.mH, probes, op.generator)
            reports[claim.name] = defect_report(turned, claim.value, orthogonal_limit(a))
        else:  # of a square matrix A^H A - I and A A^H - I have one norm
            columns = columns or defect_report(op, claim.value, orthogonal_limit(a))
            reports[claim.name] = dataclasses.replace(columns, name=claim.value)
    if a.claims.rank is not None:
        reports["rank"] = rank_at_most(op, a.claims.rank, 8 * op.noise, "rank")
    if a.claims.displacement:
        for (e, f), found in displacement_at_most(op, a.claims.displacement):
            reports[f"displacement {e}, {f}"] = found
    return reports


def least_eigenvalue(op: Operator) -> Report:
    """Minus the least Ritz value of 12 Lanczos steps over the largest, to be at most ``8 eps (1 + log2 n)``.

    A Ritz value is never below the least eigenvalue, so a matrix that fails is not definite (up to rounding). One that
    passes has no eigenvalue below minus ``details["resolution"]`` times its spread, but with probability 1e-6: a small
    negative eigenvalue can not be excluded by few products.
    """
    n = op.shape[0]
    steps = min(_STEPS, n)
    v = op.gaussian(1, n)
    v = (v / torch.linalg.vector_norm(v)).expand(*op.matrix.shape[:-2], 1, n)
    before, beta = torch.zeros_like(v), torch.zeros((*v.shape[:-2], 1, 1), dtype=torch.float64, device=op.device)
    diagonal, beside = [], []
    for _ in range(steps):
        w = op.forward(v) - beta * before
        alpha = (v.conj() * w).sum(-1, keepdim=True).real
        w = w - alpha * v
        w = w - (v.conj() * w).sum(-1, keepdim=True) * v
        beta = mean_norm(w)[..., None, None]
        diagonal.append(alpha[..., 0, 0])
        beside.append(beta[..., 0, 0])
        before, v = v, w / torch.where(beta > 0, beta, 1.0)
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1))
    side = torch.diag_embed(torch.stack(beside[:-1], -1), 1) if steps > 1 else torch.zeros_like(tridiagonal)
    spectrum = torch.linalg.eigvalsh(tridiagonal + side + side.mT)
    value, details = worst(-spectrum[..., 0] / spectrum[..., -1].abs().clamp_min(1e-300))
    limit = 8 * op.eps * (1 + math.log2(max(2, n)))  # Ritz values are as accurate as products
    details["resolution"] = eigenvalue_resolution(n, steps, _FAILURE)
    method = f"{steps} Lanczos steps, seed {op.generator.initial_seed()}"
    return Report("minus least over largest eigenvalue", value, limit, value <= limit, method, 1.0, details)
