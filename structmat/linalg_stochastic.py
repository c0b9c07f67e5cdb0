"""Traces and determinants from products alone, with error bars: what ``linalg.trace`` and ``linalg.slogdet`` estimate.

A result is an ``Estimate``: a value, and an error that the truth stays within at the stated confidence. Nothing of n^2
entries is formed; a matrix of order 10^6 needs products and a few dozen vectors.
"""

import dataclasses
import math
from typing import Any, overload

import torch

from structmat import backend
from structmat._iterative import refuse_closures
from structmat._shell import require_square
from structmat.claims import Claim
from structmat.construct import entries_of
from structmat.errors import StructureError
from structmat.functional import stochastic as fs
from structmat.functional.stochastic_lanczos import log_forms
from structmat.functional.stochastic_logdet import estimated_logdet
from structmat.lazy import Inverse, Product, Scaled
from structmat.matrix import Matrix
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity

__all__ = ["Estimate", "logabsdet", "slogdet", "trace"]

_CLOSED = (Diagonal, Identity, Circulant, BlockDiagonal)  # determinants that cost a few products
_GMRES = 320  # vectors that a solve of one row may keep
_ROOM = 2**21, 2**25  # numbers of the bases kept at once: those of small matrices, and of the largest


def _rows_at_once(n: int, steps: int, batch: int) -> int:
    """How many probes have their basis kept at once: far below n^2 numbers where that is large, at least one."""
    room = min(max(_ROOM[0], n * n // 32), _ROOM[1])
    return max(1, room // max(1, n * min(steps, n) * batch))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A random estimate: ``value`` (differentiable), and ``error`` with ``|value - truth| <= error`` at ``confidence``.

    ``value`` and ``error`` have the shape of the batch; ``probes`` random vectors were drawn, and ``steps`` steps of
    Lanczos taken from each (0 for a trace). ``float(estimate)`` is the value.
    """

    value: torch.Tensor
    error: torch.Tensor
    confidence: float
    probes: int
    steps: int = 0

    @property
    def interval(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``value - error`` and ``value + error``."""
        return self.value - self.error, self.value + self.error

    def __float__(self) -> float:
        return float(self.value.detach())

    def __str__(self) -> str:
        if self.value.ndim:
            return repr(self)
        number = complex(self.value.detach()) if self.value.is_complex() else float(self)
        more = f", {self.steps} steps" if self.steps else ""
        return f"{number:.6g} +- {float(self.error):.2g} ({self.confidence:.0%}, {self.probes} probes{more})"


def _checked(matrix: Matrix, verb: str, probes: Any, least: int, confidence: Any) -> Matrix:
    """The matrix in the precision computed in; options are refused by name."""
    require_square(matrix, verb)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < least:
        raise ValueError(f"{matrix!r}: {verb}(probes={probes!r}): an int of at least {least} is needed")
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise ValueError(f"{matrix!r}: {verb}(confidence={confidence!r}): a number between 0 and 1 is needed")
    dtype = matrix.dtype or torch.get_default_dtype()
    wide = backend.compute_dtype(dtype)
    return matrix if matrix.dtype == wide else matrix.to(wide)


def _back(value: torch.Tensor, error: torch.Tensor, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The value in the precision of the entries, its rounding added to the error."""
    kept = dtype or torch.get_default_dtype()
    narrow = value.to(kept if value.is_complex() else backend.real_of(kept))
    return narrow, error.detach() + (narrow.detach().to(value.dtype) - value.detach()).abs()


@overload
def trace(A: Any) -> torch.Tensor: ...
@overload
def trace(
    A: Any, method: str, *, probes: int | None = ..., confidence: float = ..., generator: torch.Generator | None = ...
) -> Any: ...
def trace(
    A: Any,
    method: str = "exact",
    *,
    probes: int | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Any:
    """The sum of the diagonal entries; by "hutch++" or "hutchinson" an ``Estimate`` of it from products alone.

    "exact" is a closed form, or n products in blocks. ``probes``: how many products an estimate takes (60 by default,
    at least 6 for "hutch++" and 2 for "hutchinson"); its error holds with the ``confidence``.
    Differentiable; the derivative of an estimate is unbiased. Raises ShapeError for a matrix that is not square,
    ValueError for options that mean nothing.

    >>> A = sm.Circulant(0.5 ** torch.arange(500).double()) @ sm.Diagonal(torch.rand(500).double())
    >>> estimate = sm.linalg.trace(A, method="hutch++", generator=torch.Generator().manual_seed(0))
    >>> bool((estimate.value - sm.linalg.trace(A)).abs() <= estimate.error)
    True

    References: R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, Hutch++, 2021, algorithm 1.
    """
    a = _as(A)
    if _is_exact(a, "trace", method, tuple(fs.METHODS), probes=probes, generator=generator):
        return a.trace()
    probes = 60 if probes is None else probes
    wide = _checked(a, "trace", probes, 6 if method == "hutch++" else 2, confidence)
    dtype = wide.dtype or torch.get_default_dtype()
    value, error = fs.METHODS[method](wide.linear, wide.shape, probes, confidence, generator, dtype, wide.device)
    if value.is_complex() and Claim.HERMITIAN in wide.claims:
        value = value.real.to(value.dtype)
    return Estimate(*_back(value, error, a.dtype), confidence, probes)


@overload
def logabsdet(A: Any) -> torch.Tensor: ...
@overload
def logabsdet(
    A: Any,
    method: str,
    *,
    probes: int | None = ...,
    steps: int | None = ...,
    confidence: float = ...,
    generator: torch.Generator | None = ...,
) -> Any: ...
def logabsdet(
    A: Any,
    method: str = "exact",
    *,
    probes: int | None = None,
    steps: int | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Any:
    """``log|det A|``: "exact", or "lanczos", an ``Estimate`` from products alone by stochastic Lanczos quadrature.

    ``probes`` random vectors (30 by default), at most ``steps`` steps from each (128; fewer where the rule is accurate
    to a tenth of the scatter of the probes); the error holds with the ``confidence``. A that claims to be positive
    definite is multiplied ``probes x steps`` times; any other square matrix, and its adjoint, by Golub-Kahan steps,
    about as many as its condition number. Inverses, scalings and products of square factors are taken apart first.
    The derivative of the value estimates ``Re tr(A^-1 dA)`` with the same probes, unbiased, by solving with A.
    Raises SolveError where A is singular to working precision, or claimed definite and is not; StructureError under
    torch.compile and vmap.

    References: S. Ubaru, J. Chen and Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017.
    """
    a = _as(A)
    if _is_exact(a, "logabsdet", method, ("lanczos",), probes=probes, steps=steps, generator=generator):
        return a.logabsdet()
    probes, steps = 30 if probes is None else probes, 128 if steps is None else steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{a!r}: logabsdet(steps={steps!r}): a positive int is needed")
    wide = _checked(a, "logabsdet", probes, 2, confidence)
    refuse_closures(wide, f"{a!r}: an estimate of log|det|")
    value, error, taken = _estimate(wide, probes, steps, confidence, generator)
    return Estimate(*_back(value, error, a.dtype), confidence, probes, taken)


@overload
def slogdet(A: Any) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def slogdet(A: Any, method: str, **options: Any) -> tuple[torch.Tensor, Any]: ...
def slogdet(A: Any, method: str = "exact", **options: Any) -> tuple[torch.Tensor, Any]:
    """Sign (or phase) and ``log|det A|``; with ``method="lanczos"`` the logarithm is an ``Estimate``.

    "lanczos" needs products alone, and a matrix that claims to be positive definite, whose sign is 1; options as
    ``logabsdet``, which estimates any square matrix. Raises StructureError where "exact" has no structured form above
    the dense limit, and for the sign of a matrix that is not definite.

    >>> A = sm.Diagonal(torch.rand(400).double()) + sm.SymmetricToeplitz(0.5 ** torch.arange(400).double())
    >>> sign, estimate = sm.linalg.slogdet(A.assume(sm.Claim.POSITIVE_DEFINITE), method="lanczos")
    >>> float(sign), bool(estimate.error < 0.2 * abs(estimate.value))
    (1.0, True)
    """
    a = _as(A)
    if _is_exact(a, "slogdet", method, ("lanczos",), **options):
        return a.slogdet()
    require_square(a, "slogdet")
    if Claim.POSITIVE_DEFINITE not in a.claims:
        raise StructureError(
            f"slogdet({a!r}, method='lanczos'): products alone tell no sign; structmat.linalg.logabsdet(A, "
            "method='lanczos') estimates log|det A|, and A.assume(structmat.Claim.POSITIVE_DEFINITE) vouches for sign 1"
        )
    estimate = logabsdet(a, method, **options)
    return torch.ones_like(estimate.error, dtype=a.dtype or torch.get_default_dtype()), estimate


def _as(a: Any) -> Matrix:
    return a if isinstance(a, Matrix) else Dense(entries_of(a, "A"))


def _is_exact(a: Matrix, verb: str, method: str, others: tuple[str, ...], **options: Any) -> bool:
    """Whether the method is "exact", which has no options; ValueError for one that there is not."""
    if method not in ("exact", *others):
        legal = ", ".join(map(repr, ("exact", *others)))
        raise ValueError(f"{verb}({a!r}, method={method!r}): legal methods are {legal}")
    given = [name for name, value in options.items() if value is not None]
    if method == "exact" and given:
        raise ValueError(f"{verb}({a!r}): {given[0]} means nothing to method='exact'; method={others[0]!r} samples")
    return method == "exact"


_Part = tuple[torch.Tensor, torch.Tensor, int]  # value, error, steps


def _estimate(matrix: Matrix, probes: int, steps: int, confidence: float, generator: torch.Generator | None) -> _Part:
    options = (probes, steps, confidence, generator)
    definite = Claim.POSITIVE_DEFINITE in matrix.claims
    if isinstance(matrix, Inverse):
        inner = matrix.matrix.assume(Claim.POSITIVE_DEFINITE) if definite else matrix.matrix
        value, error, taken = _estimate(inner, *options)
        return -value, error, taken
    if isinstance(matrix, Scaled):
        value, error, taken = _estimate(matrix.matrix, *options)
        s = matrix._flat(0)
        size = torch.log(s.abs()) if isinstance(s, torch.Tensor) else math.log(abs(s)) if s else -math.inf
        return value + int(matrix.shape[-1]) * size, error, taken
    if isinstance(matrix, _CLOSED) or Claim.ORTHOGONAL in matrix.claims:
        return _exact(matrix)
    if isinstance(matrix, Product) and not definite and all(f.shape[-2] == f.shape[-1] for f in matrix.factors):
        parts = [_estimate(f, *options) for f in matrix.factors]
        errors = torch.stack(torch.broadcast_tensors(*(e for _, e, _ in parts)))
        total = sum((v for v, _, _ in parts[1:]), start=parts[0][0])
        return total, torch.linalg.vector_norm(errors, dim=0), max(t for *_, t in parts)
    return _sampled(matrix, definite, *options)


def _exact(matrix: Matrix) -> _Part:
    """What has a closed form: no error but rounding; an orthogonal matrix has the logarithm 0."""
    if isinstance(matrix, _CLOSED):
        value = matrix.slogdet()[1]
    else:
        kept = backend.real_of(matrix.dtype or torch.get_default_dtype())
        value = torch.zeros(matrix.batch_shape, dtype=kept, device=matrix.device)
    error = 4 * torch.finfo(value.dtype).eps * (value.detach().abs() + int(matrix.shape[-1]))
    return value, error, 0


def _sampled(
    matrix: Matrix, definite: bool, probes: int, steps: int, confidence: float, generator: torch.Generator | None
) -> _Part:
    """The mean of the quadratic forms of ``log|A|``, as many rows at once as memory has room for."""
    n, dtype = int(matrix.shape[-1]), matrix.dtype or torch.get_default_dtype()
    g = fs.signs((*matrix.batch_shape, probes, n), dtype, matrix.device, generator)
    record: list[tuple[torch.Tensor, int]] = []

    def estimate(a: Any) -> torch.Tensor:
        adjoint = None if definite else a.mH.linear
        room = _rows_at_once(n, steps, math.prod(a.batch_shape))
        found = [log_forms(a.linear, adjoint, part, probes, steps, repr(matrix)) for part in g.split(room, -2)]
        values = torch.cat([q.values for q in found], -1)
        more = torch.cat([q.errors for q in found], -1).mean(-1)
        error = (fs.half_width(values, confidence) + more).to(backend.real_of(dtype))
        record.append((error, max(q.steps for q in found)))
        return values.mean(-1).to(backend.real_of(dtype))

    if n == 0 or 0 in matrix.batch_shape:
        zero = torch.zeros(matrix.batch_shape, dtype=backend.real_of(dtype), device=matrix.device)
        return zero, zero, 0
    at_once = probes if definite else _rows_at_once(n, _GMRES, math.prod(matrix.batch_shape))
    value = estimated_logdet(matrix, g, estimate, at_once)
    return value, *record[0]
