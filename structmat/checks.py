"""Measuring what claims state: orthogonality, rank, displacement rank, membership. Measured in float64 (complex128).

Each check takes a Matrix or a tensor and returns a ``Report``, which compares like its value, and converts with
``float`` (value), ``int`` and ``bool`` (ok). NaN entries raise ValueError: nothing can be said of them.
"""

import dataclasses
import math
from typing import Any

import torch

from structmat.claims import Claim
from structmat.errors import ShapeError
from structmat.functional import circulant as fc
from structmat.functional import toeplitz as ft
from structmat.matrix import Matrix

__all__ = [
    "Report",
    "check_claims",
    "displacement_rank",
    "is_circulant",
    "is_diagonal",
    "is_hankel",
    "is_orthogonal",
    "is_symmetric",
    "is_toeplitz",
    "numerical_rank",
    "operations",
    "orthogonality_error",
]

_WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}
_BLOCK, _DENSE_ORDER = 64, 2048  # above this order orthogonality is measured block by block, without an n^2 array


@dataclasses.dataclass(frozen=True)
class Report:
    """One measurement: its name, value, the limit it is judged by, whether it holds, and what else was seen."""

    name: str
    value: float
    limit: float
    ok: bool
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return self.ok

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Report):
            return (self.name, self.value, self.limit, self.ok) == (other.name, other.value, other.limit, other.ok)
        return isinstance(other, (int, float)) and self.value == other

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Any) -> bool:
        return self.value < float(other)

    def __le__(self, other: Any) -> bool:
        return self.value <= float(other)

    def __gt__(self, other: Any) -> bool:
        return self.value > float(other)

    def __ge__(self, other: Any) -> bool:
        return self.value >= float(other)

    def __str__(self) -> str:
        more = "".join(f"; {k} {v:.3g}" if isinstance(v, float) else f"; {k} {v}" for k, v in self.details.items())
        return f"{self.name}: {self.value:.3g} ({'within' if self.ok else 'OUTSIDE'} {self.limit:.3g}{more})"


def _dense(a: Matrix | torch.Tensor) -> torch.Tensor:
    """All entries in float64 or complex128, detached; NaN raises."""
    entries = (a.to_dense() if isinstance(a, Matrix) else a).detach()
    if entries.ndim < 2:
        raise ShapeError(f"a matrix of shape (*batch, m, n) is needed, got a tensor of shape {tuple(entries.shape)}")
    wide = entries.to(_WIDE.get(entries.dtype, torch.float64))
    if bool(torch.isnan(wide).any()):
        raise ValueError(f"{type(a).__name__} of shape {tuple(entries.shape)} holds NaN: nothing can be measured")
    return wide


def _eps(a: Matrix | torch.Tensor) -> float:
    """eps of the dtype computed in: half and bfloat16 matrices compute in float32, but a dense half tensor is rounded
    to half."""
    dtype = a.dtype or torch.get_default_dtype()
    if isinstance(a, Matrix) and not hasattr(a, "entries") and dtype in (torch.float16, torch.bfloat16):
        return 2 * torch.finfo(dtype).eps  # factors are computed in float32, and the dense result is rounded once
    return float(torch.finfo(dtype).eps)


def operations(a: Matrix | torch.Tensor) -> float:
    """How many orthogonal factors were multiplied: reflectors, layers, or what a dense QR costs in accuracy,
    (log2 n)^2 / 4.

    At least 1: forming the product rounds once more.
    """
    vectors = getattr(a, "vectors", None)
    if vectors is not None:
        return max(1.0, float(vectors.shape[-2]))
    layers = getattr(a, "layers", None)
    if isinstance(layers, int):
        return max(1.0, float(layers))
    factors = getattr(a, "factors", None)
    if isinstance(factors, tuple):
        return sum(operations(f) for f in factors) + len(factors)
    return max(1.0, math.log2(max(2, a.shape[-1])) ** 2 / 4)


def orthogonality_error(
    a: Matrix | torch.Tensor, probes: int | None = None, generator: torch.Generator | None = None
) -> Report:
    """``||A^H A - I||_F / sqrt(n)`` (the largest of a batch); columns for a tall matrix, rows for a wide one.

    The limit is ``8 eps (1 + sqrt(ops))``, ops = reflectors or factors. With ``probes`` = k Gaussian vectors the
    error of one matrix is estimated from products alone, O(k) of them: value is the estimate of the same quantity, and
    ``details["bound"]`` = 10 value holds but with probability ``details["failure_probability"]`` = (0.01 e^0.99)^(k/2).
    """
    m, n = a.shape[-2:]
    if m < n:
        a = a.mT
        m, n = n, m
    limit = 8 * _eps(a) * (1 + math.sqrt(operations(a)))
    if probes is None:
        value, details = _gram_error(a, int(n)), {}
    else:
        if probes < 1:
            raise ValueError(f"orthogonality_error(probes={probes}): at least one probe is needed")
        matrix = a if isinstance(a, Matrix) else None
        z = torch.randn(probes, int(n), generator=generator, dtype=torch.float64)
        if a.device is not None:
            z = z.to(a.device)
        narrow = z.to(a.dtype or torch.get_default_dtype())
        y = matrix.linear(narrow) if matrix is not None else narrow @ a.mT
        back = matrix.mH.linear(y) if matrix is not None else y @ a.conj()
        defect = (back - narrow).to(torch.complex128)
        value = float(torch.linalg.vector_norm(defect, dim=-1).square().mean(-1).max().sqrt()) / math.sqrt(max(1, n))
        details = {"bound": 10 * value, "failure_probability": (0.01 * math.exp(0.99)) ** (probes / 2)}
    if math.isnan(value):
        raise ValueError(f"{a!r} holds NaN: nothing can be measured")
    return Report("orthogonality error", value, limit, value <= limit, details)


def _gram_error(a: Matrix | torch.Tensor, n: int) -> float:
    if n == 0:
        return 0.0
    if not isinstance(a, Matrix) or n <= _DENSE_ORDER:
        wide = _dense(a)
        gram = wide.mH @ wide - torch.eye(n, dtype=wide.dtype, device=wide.device)
        return float(torch.linalg.matrix_norm(gram).max()) / math.sqrt(n)
    total = 0.0
    adjoint = a.mH
    for start in range(0, n, _BLOCK):
        units = torch.zeros(min(_BLOCK, n - start), n, dtype=a.dtype, device=a.device)
        units[:, start : start + units.shape[0]].fill_diagonal_(1)
        defect = adjoint.linear(a.linear(units)) - units
        total += float(torch.linalg.matrix_norm(defect.to(torch.complex128)).square().max())
    return math.sqrt(total / n)


def is_orthogonal(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """Whether ``orthogonality_error`` is within ``tol`` (default its own limit)."""
    found = orthogonality_error(a)
    return found if tol is None else dataclasses.replace(found, limit=tol, ok=found.value <= tol)


def numerical_rank(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """How many singular values exceed ``tol sigma_1``, ``tol`` by default ``max(m, n, 64) eps``; the largest of a
    batch.

    ``details["gap"]`` is ``sigma_r / sigma_{r+1}``: below 1e3 the rank is a matter of opinion
    (``details["ambiguous"]``).
    """
    values = a.svdvals().to(torch.float64) if isinstance(a, Matrix) else torch.linalg.svdvals(_dense(a))
    if bool(torch.isnan(values).any()):
        raise ValueError(f"{type(a).__name__} of shape {tuple(a.shape)} holds NaN: nothing can be measured")
    return _count("numerical rank", values, max(*a.shape[-2:], 64) * _eps(a) if tol is None else tol, min(a.shape[-2:]))


def _count(name: str, values: torch.Tensor, tol: float, most: int, size: torch.Tensor | None = None) -> Report:
    if values.shape[-1] == 0:
        return Report(name, 0, most, True)
    largest = values[..., :1] if size is None else size[..., None]
    rank = int((values > tol * largest).sum(-1).max())
    flat = values.reshape(-1, values.shape[-1])[0]
    last, following = (float(flat[rank - 1]) if rank else 0.0), (float(flat[rank]) if rank < len(flat) else 0.0)
    gap = last / following if following > 0 else math.inf
    return Report(name, rank, most, rank <= most, {"gap": gap, "ambiguous": gap < 1e3})


def displacement_rank(a: Matrix | torch.Tensor, e: complex = 1, f: complex = -1, tol: float | None = None) -> Report:
    """The numerical rank of ``Z_e A - A Z_f``, singular values counted above ``tol ||A||_F`` (default ``n eps``); n^3
    work.

    ``Z_e``: ones below the diagonal, e in the upper right corner.
    """
    wide = _dense(a)
    m, n = wide.shape[-2:]
    if isinstance(e, complex) or isinstance(f, complex):
        wide = wide.to(torch.complex128)
    down = torch.cat((e * wide[..., m - 1 :, :], wide[..., : m - 1, :]), -2)
    left = torch.cat((wide[..., 1:], f * wide[..., :1]), -1)
    values = torch.linalg.svdvals(down - left)
    size = torch.linalg.matrix_norm(wide)
    return _count(
        f"displacement rank for ({e}, {f})", values, max(m, n) * _eps(a) if tol is None else tol, min(m, n), size
    )


def _membership(name: str, a: Matrix | torch.Tensor, nearest: Any, tol: float | None, read: Any) -> Report:
    """Distance from ``nearest``; with ``tol=0`` the entries must equal, bit by bit, those ``read`` off the matrix (the
    mean of equal numbers may differ from them in the last place)."""
    wide = _dense(a)
    size = torch.linalg.matrix_norm(wide)
    gap = torch.linalg.matrix_norm(wide - nearest(wide))
    relative = torch.where(size == 0, torch.zeros_like(gap), gap / torch.where(size == 0, torch.ones_like(size), size))
    value = float(relative.max()) if relative.numel() else 0.0
    limit = 8 * _eps(a) if tol is None else tol
    return Report(name, value, limit, torch.equal(wide, read(wide)) if tol == 0 else value <= limit)


def is_toeplitz(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """Distance from the nearest Toeplitz matrix over ``||A||_F``; within ``tol`` (default 8 eps). The zero matrix is
    Toeplitz."""

    def entries(diagonals: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_entries(diagonals, like.shape[-1])

    def read(wide: torch.Tensor) -> torch.Tensor:
        return entries(torch.cat((wide[..., 0, 1:].flip(-1), wide[..., :, 0]), -1), wide)

    return _membership("distance from Toeplitz", a, lambda w: entries(ft.diagonal_means(w), w), tol, read)


def is_hankel(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """Distance from the nearest Hankel matrix over ``||A||_F``: that of A J from Toeplitz; within ``tol`` (default 8
    eps)."""
    report = is_toeplitz(_dense(a).flip(-1), 8 * _eps(a) if tol is None else tol)
    return dataclasses.replace(report, name="distance from Hankel")


def is_circulant(a: Matrix | torch.Tensor, f: complex = 1, tol: float | None = None) -> Report:
    """Distance from the nearest f-circulant over ``||A||_F``."""

    def nearest(wide: torch.Tensor) -> torch.Tensor:
        n = wide.shape[-1]
        if wide.shape[-2] != n:
            raise ShapeError(f"is_circulant: a square matrix is needed, got shape {tuple(wide.shape)}")
        return ft.circulant_entries(fc.nearest_column(wide, f), f)

    return _membership(
        f"distance from f-circulant, f = {f}", a, nearest, tol, lambda w: ft.circulant_entries(w[..., 0], f)
    )


def is_symmetric(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """Distance from the symmetric part over ``||A||_F``."""
    return _membership("distance from symmetric", a, lambda w: (w + w.mT) / 2, tol, lambda w: w.mT)


def is_diagonal(a: Matrix | torch.Tensor, tol: float | None = None) -> Report:
    """Size of the off-diagonal part over ``||A||_F``."""

    def diagonal(wide: torch.Tensor) -> torch.Tensor:
        return torch.diag_embed(torch.diagonal(wide, dim1=-2, dim2=-1))

    return _membership("distance from diagonal", a, diagonal, tol, diagonal)


def check_claims(a: Matrix) -> Report:
    """Every claim of the matrix, measured on its dense entries; ``details`` holds one Report a claim, value the
    number of false ones."""
    wide = _dense(a)
    eps = _eps(a)
    reports: dict[str, Any] = {}
    measures: dict[Claim, Any] = {
        Claim.SYMMETRIC: lambda w: w - w.mT,
        Claim.HERMITIAN: lambda w: w - w.mH,
        Claim.UPPER_TRIANGULAR: lambda w: torch.tril(w, -1),
        Claim.LOWER_TRIANGULAR: lambda w: torch.triu(w, 1),
    }
    n = max(wide.shape[-2:])
    allowed = 8 * eps * (1 + math.log2(max(2, n)))  # entries of a fast product are off by eps log2(n) of the norm
    for claim in sorted(a.claims.properties, key=lambda c: c.name):
        if claim in measures:
            size = torch.linalg.matrix_norm(wide).clamp_min(torch.finfo(torch.float64).tiny)
            value = float((torch.linalg.matrix_norm(measures[claim](wide)) / size).max())
            reports[claim.name] = Report(claim.value, value, allowed, value <= allowed)
        elif claim is Claim.POSITIVE_DEFINITE:
            spectrum = torch.linalg.eigvalsh((wide + wide.mH) / 2)
            value = float((-spectrum[..., 0] / spectrum[..., -1].abs().clamp_min(1e-300)).max())
            reports[claim.name] = Report("minus least over largest eigenvalue", value, n * eps, value <= n * eps)
        else:
            shaped = wide if claim is not Claim.ORTHONORMAL_ROWS else wide.mH
            gram = shaped.mH @ shaped - torch.eye(shaped.shape[-1], dtype=wide.dtype, device=wide.device)
            value = float(torch.linalg.matrix_norm(gram).max()) / math.sqrt(max(1, shaped.shape[-1]))
            limit = 8 * eps * (1 + math.sqrt(operations(a)))
            reports[claim.name] = Report(claim.value, value, limit, value <= limit)
    if a.claims.rank is not None:
        found = int(numerical_rank(wide.to(a.dtype or wide.dtype)))
        reports["rank"] = Report("rank", found, a.claims.rank, found <= a.claims.rank)
    for (e, f), bound in a.claims.displacement.items():
        found = int(displacement_rank(wide, e, f, tol=max(64, n) * eps))
        reports[f"displacement {e}, {f}"] = Report(f"displacement rank for ({e}, {f})", found, bound, found <= bound)
    wrong = sum(not r.ok for r in reports.values())
    return Report("false claims", wrong, 0, wrong == 0, reports)
