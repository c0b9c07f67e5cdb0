"""Does a matrix have a structure: its relative distance from the nearest one, or from one read off few products."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from structmat.checks.bounds import ABOVE, FACTOR, ratio_failure
from structmat.checks.operands import Operand, Operator, checked, eps_of, from_entries, mean_norm, wide
from structmat.checks.orthogonality import worst
from structmat.checks.report import Report
from structmat.errors import ShapeError, StructureError
from structmat.matrix import Matrix

__all__ = ["Structure", "distance", "measured", "member", "quotient"]

Entries = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Structure:
    """A set of matrices, in three ways.

    ``nearest(entries)``: the entries of its nearest member (or, where noted, of one near). ``read(entries)``: those of
    the member that some of the entries determine, equal to all of them bit by bit exactly for members.
    ``products(op)``: rows ``(k, n)`` of z to rows ``(k, m)`` of P z, for the member P determined by few products of the
    operator; None where few products determine none.
    """

    name: str
    nearest: Entries
    read: Entries
    products: Callable[[Operator], Entries] | None
    square: bool = False


def member(
    a: Any, structure: Structure, tol: float | None, probes: int | None, generator: torch.Generator | None
) -> Report:
    """The report of a structure; see the module ``structures``."""
    a = checked(a)
    if structure.square and a.shape[-2] != a.shape[-1]:
        raise ShapeError(f"distance from {structure.name}: a square matrix is needed, got shape {tuple(a.shape)}")
    name = f"distance from {structure.name}"
    if not from_entries(a, probes):
        if structure.products is None:
            raise StructureError(
                f"{name}: {_shown(a)} is too large to be formed, and few products do not determine a member; "
                "checks.distance(A, B) compares it with a matrix that you have"
            )
        op = Operator.of(a, probes, generator)
        _refuse_exact(tol, name, a)
        return measured(op, structure.products(op)(op.z), name, tol)
    entries = wide(a)
    value, details = worst(quotient(entries - structure.nearest(entries), entries))
    limit = 8 * eps_of(a) if tol is None else tol
    if tol == 0:
        return Report(name, value, 0.0, torch.equal(entries, structure.read(entries)), "entries, bit by bit")
    return Report(name, value, limit, value <= limit, details=details)


def _shown(a: Operand) -> str:
    return repr(a) if isinstance(a, Matrix) else f"a tensor of shape {tuple(a.shape)}"


def _refuse_exact(tol: float | None, name: str, a: Operand) -> None:
    if tol == 0:
        raise ValueError(f"{name}: tol=0 compares entries bit by bit; of {_shown(a)} only products are looked at")


def quotient(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``||part||_F / ||whole||_F`` of each matrix of a batch; 0 where both vanish."""
    top, size = mean_norm(part), mean_norm(whole)
    return torch.where(top == 0, 0.0, top / size)


def measured(op: Operator, candidate: torch.Tensor, name: str, tol: float | None, gap_factor: float = 1.0) -> Report:
    """``||A - P||_F / ||A||_F`` from ``candidate = P z`` for the vectors of ``op``.

    The default tolerance is twice what rounding does to a product, ``8 eps (1 + log2 N)`` and more where few singular
    values dominate.
    """
    gap = (op.az - candidate) * gap_factor
    values = quotient(gap, op.az)
    rounding = torch.where(op.size > 0, 2 * op.noise / op.size, 0.0)
    limits = rounding if tol is None else torch.full_like(rounding, tol)
    excess = values - limits
    place = int(excess.argmax()) if excess.numel() else 0
    value, limit = (float(t.flatten()[place]) if t.numel() else 0.0 for t in (values, limits))
    factor = FACTOR * math.sqrt(ABOVE)
    details: dict[str, Any] = worst(excess)[1] | {"factor": factor, "bound": factor * value}
    return Report(name, value, limit, value <= limit, op.method, ratio_failure(op.probes), details)


def distance(
    a: Any, b: Any, tol: float | None = None, *, probes: int | None = None, generator: torch.Generator | None = None
) -> Report:
    """``||A - B||_F / ||A||_F`` of two matrices or tensors of one shape; ok within ``tol`` (default 8 eps).

    Both are formed up to 2^20 entries. Above, or with ``probes`` = k, from k (10) Gaussian products of both: the value
    is an estimate, ``details["bound"]`` = 31.6 value bounds the ratio but for the probability ``(0.01 e^0.99)^(k/2) +
    (10 e^-9)^(k/2)``; the default ``tol`` is then twice what rounding does to a product.

    >>> A = sm.Circulant(torch.randn(10**4, dtype=torch.float64))
    >>> bool(sm.checks.distance(A, sm.Toeplitz(torch.cat((A.column[1:], A.column)), 10**4)))
    True
    """
    a, b = checked(a), checked(b)
    if a.shape[-2:] != b.shape[-2:]:
        raise ShapeError(f"checks.distance: shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    if from_entries(a, probes) and from_entries(b, probes):
        first, second = wide(a), wide(b)
        value, details = worst(quotient(first - second, first.expand(torch.broadcast_shapes(a.shape, b.shape))))
        limit = 8 * eps_of(a) if tol is None else tol
        return Report("distance", value, limit, value <= limit, details=details)
    op = Operator.of(a, probes, generator)
    return measured(op, Operator.of(b, probes, op.generator).forward(op.z), "distance", tol)
