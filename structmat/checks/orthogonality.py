"""How far from orthonormal the columns of a matrix are."""

import math
from typing import Any

import torch

from structmat.checks.bounds import FACTOR, SPECTRAL, frobenius
from structmat.checks.operands import Operand, Operator, checked, eps_of, from_entries, mean_norm, wide
from structmat.checks.report import Report

__all__ = ["gram_error", "is_orthogonal", "operations", "orthogonal_limit", "orthogonality_error", "worst"]


def operations(a: Operand) -> float:
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


def orthogonal_limit(a: Operand) -> float:
    """``8 eps (1 + sqrt(ops))``: three times what QR, reflectors, rotations and rounding leave.

    Half and bfloat16 matrices are computed in float32, so eps is that of float32; rounding the entries of an exact Q
    to half adds at most half's eps (.3 of it, whatever n is), and two of these are allowed.
    """
    dtype = a.dtype or torch.get_default_dtype()
    half = dtype.is_floating_point and dtype.itemsize == 2
    eps = torch.finfo(torch.float32).eps if half else eps_of(a)
    return 8 * eps * (1 + math.sqrt(operations(a))) + (2 * torch.finfo(dtype).eps if half else 0.0)


def worst(values: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """The largest of a batch, and where it is."""
    if values.numel() == 0:
        return 0.0, {}
    if values.ndim == 0:
        return float(values), {}
    place = torch.unravel_index(values.argmax(), values.shape)
    return float(values.max()), {"worst": tuple(int(i) for i in place)}


def gram_error(entries: torch.Tensor) -> torch.Tensor:
    """``||Q^H Q - I||_F / sqrt(n)`` of each matrix of a batch, ``(*b)``."""
    n = entries.shape[-1]
    gram = entries.mH @ entries - torch.eye(n, dtype=entries.dtype, device=entries.device)
    return torch.linalg.matrix_norm(gram) / math.sqrt(max(1, n))


def orthogonality_error(
    a: Any, probes: int | None = None, generator: torch.Generator | None = None, *, tol: float | None = None
) -> Report:
    """``||A^H A - I||_F / sqrt(n)``, the largest of a batch; of columns for a tall matrix, of rows for a wide one.

    Of a square matrix ``A A^H - I`` has the same norm. The tolerance is ``8 eps (1 + sqrt(ops))``, ops = reflectors,
    layers, or ``(log2 n)^2 / 4``; of half and bfloat16 that of float32 and two roundings more, whatever n is.

    A tensor, and a Matrix of at most 2^20 entries, is formed and measured in float64. Of a larger one, or with
    ``probes`` = k given, ``E z = A^H A z - z`` is formed for k (10) Gaussian vectors: the value estimates the same
    number, ``details["bound"]`` = 10 value bounds it and ``details["spectral bound"]`` bounds ``||E||_2``, each but for
    the probability ``(0.01 e^0.99)^(k/2)`` (1.4e-8) or ``10^-k``.

    Cost: n^3, or k products and k adjoint ones. Raises ValueError where NaN is met.

    >>> bool(sm.checks.orthogonality_error(sm.HouseholderProduct(torch.ones(1, 3000), None)))
    True
    """
    a = checked(a)
    a = a.mT if a.shape[-2] < a.shape[-1] else a
    limit = orthogonal_limit(a) if tol is None else tol
    name = "orthogonality error"
    if from_entries(a, probes):
        value, details = worst(gram_error(wide(a)))
        return Report(name, value, limit, value <= limit, details=details)
    return defect_report(Operator.of(a, probes, generator), name, limit)


def defect_report(op: Operator, name: str, limit: float) -> Report:
    """The certificates from ``E z``; columns only."""
    defect = op.adjoint(op.az) - op.z
    value, details = worst(mean_norm(defect) / math.sqrt(max(1, op.shape[1])))
    spectral = float(torch.linalg.vector_norm(defect, dim=-1).max()) * SPECTRAL if defect.numel() else 0.0
    details |= {"factor": FACTOR, "bound": FACTOR * value, "spectral bound": spectral}
    return Report(name, value, limit, value <= limit, op.method, frobenius(op.probes), details)


def is_orthogonal(
    a: Any, tol: float | None = None, *, probes: int | None = None, generator: torch.Generator | None = None
) -> Report:
    """Whether ``orthogonality_error`` is within ``tol`` (default its own limit)."""
    return orthogonality_error(a, probes, generator, tol=tol)
