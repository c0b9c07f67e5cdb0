"""Numerical rank and displacement rank, from singular values or from sketches."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from structmat.checks.bounds import FACTOR, SPECTRAL, rank_failure
from structmat.checks.operands import Operand, Operator, checked, eps_of, from_entries, wide
from structmat.checks.orthogonality import worst
from structmat.checks.report import Report
from structmat.errors import StructureError
from structmat.matrix import Matrix

__all__ = [
    "displaced",
    "displacement_at_most",
    "displacement_rank",
    "is_low_rank",
    "numerical_rank",
    "rank_at_most",
    "rotated",
]

_SKETCH = 1 << 26  # numbers that a sketch may hold (512 MB): 64 vectors at n = 10^6
_RANGE = 1 << 25  # and so many where all of them are multiplied twice and made orthogonal
_START, _EXTRA = 16, 6
_CHUNK = 4096
Pair = tuple[complex, complex]


def numerical_rank(
    a: Any,
    tol: float | None = None,
    *,
    most: int | None = None,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """How many singular values exceed ``tol sigma_1``; the largest of a batch. ok: at most ``most``, default min(m, n).

    ``details["gap"]`` is ``sigma_r / sigma_{r+1}``: below 1e3 the rank is a matter of opinion (``"ambiguous"``).
    Singular values are computed where the type knows how or the entries are few (``tol`` then ``max(m, n, 64) eps``).

    Otherwise, or with ``probes`` = q given: Q spans k products with Gaussian vectors, k doubled until q fresh vectors z
    certify ``||A - Q Q^H A||_2 <= 8 max ||A z - Q Q^H A z|| <= tol sigma_1``, wrong with probability ``10^-q``; the
    singular values of ``Q^H A`` are lower bounds of those of A, and within that bound upper ones. ``details`` has
    ``"at least"`` and ``"at most"``, which differ where k reached its limit (33 at n = 10^6): the rank is then larger
    than a sketch can see. The default ``tol sigma_1`` is then 8 times what rounding does to a product.

    Cost: n^3, or k + q products, k adjoint ones and 4 n k^2.

    >>> sm.checks.numerical_rank(sm.LowRank(torch.eye(5000, 3), torch.eye(4000, 3))) == 3
    True
    """
    a = checked(a)
    values = _known_values(a) if probes is None else None
    if values is None and from_entries(a, probes):
        values = torch.linalg.svdvals(wide(a))
    if values is None:
        return _sketched(Operator.of(a, probes, generator), "numerical rank", tol, most, None)
    if bool(torch.isnan(values).any()):
        raise ValueError(f"{type(a).__name__} of shape {tuple(a.shape)} holds NaN: nothing can be measured")
    allowed = max(*a.shape[-2:], 64) * eps_of(a) if tol is None else tol
    return counted("numerical rank", values, allowed, min(a.shape[-2:]) if most is None else most)


def _known_values(a: Operand) -> torch.Tensor | None:
    """Singular values, where the type has a way to them."""
    if not isinstance(a, Matrix):
        return None
    try:
        return a.svdvals().detach().to(torch.float64)
    except (StructureError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # NaN, named where entries are read
        return None


def counted(name: str, values: torch.Tensor, tol: float, most: int, size: torch.Tensor | None = None) -> Report:
    """A report of how many values ``(*b, k)`` exceed ``tol`` times the first, or times ``size (*b)``."""
    if values.numel() == 0:
        return Report(name, 0, most, True)
    ranks = (values > tol * (values[..., :1] if size is None else size[..., None])).sum(-1)
    rank, details = worst(ranks)
    rows = values.reshape(-1, values.shape[-1])
    gap = gap_of(rows[int(ranks.flatten().argmax())], int(rank))
    details |= {"gap": gap, "ambiguous": gap < 1e3}
    return Report(name, int(rank), most, rank <= most, details=details)


def gap_of(values: torch.Tensor, rank: int) -> float:
    """``sigma_r / sigma_(r+1)``, infinite where nothing follows."""
    following = float(values[rank]) if rank < len(values) else 0.0
    return math.inf if following == 0 or rank == 0 else float(values[rank - 1]) / following


def displacement_rank(
    a: Any,
    e: complex = 1,
    f: complex = -1,
    tol: float | None = None,
    *,
    most: int | None = None,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """The numerical rank of ``Z_e A - A Z_f``, singular values counted above ``tol ||A||_F``; ok: at most ``most``.

    ``Z_e``: ones below the diagonal, e in the upper right corner. From the entries (``tol`` then ``max(m, n) eps``) up
    to 2^20 of them, n^3 work; above, or with ``probes``, from products as ``numerical_rank``, two of A for one. With
    e = f it is defined too, but says less: every square e-circulant has rank 0, so A is known only up to one.

    >>> int(sm.checks.displacement_rank(sm.Toeplitz(torch.randn(9999, dtype=torch.float64), 5000)))
    2
    """
    a = checked(a)
    name = f"displacement rank for ({e}, {f})"
    if not from_entries(a, probes):
        op = Operator.of(a, probes, generator)
        return _sketched(displaced(op, e, f), name, tol, most, op)
    entries = wide(a)
    if isinstance(e, complex) or isinstance(f, complex):
        entries = entries.to(torch.complex128)
    m, n = entries.shape[-2:]
    down = torch.cat((e * entries[..., m - 1 :, :], entries[..., : m - 1, :]), -2)
    left = torch.cat((entries[..., 1:], f * entries[..., :1]), -1)
    values = torch.linalg.svdvals(down - left)
    allowed = max(m, n) * eps_of(a) if tol is None else tol
    return counted(name, values, allowed, min(m, n) if most is None else most, torch.linalg.matrix_norm(entries))


def rotated(x: torch.Tensor, e: complex, adjoint: bool = False) -> torch.Tensor:
    """``Z_e x`` for every row x: moved one place on, what falls off comes back times e; or ``Z_e^H x``."""
    if adjoint:
        last = x[..., :1] * (e.conjugate() if isinstance(e, complex) else e)
        return torch.cat((x[..., 1:].to(last.dtype), last), -1)
    first = x[..., -1:] * e
    return torch.cat((first, x[..., :-1].to(first.dtype)), -1)


def displaced(op: Operator, e: complex, f: complex) -> Operator:
    """The operator ``x -> Z_e A x - A Z_f x``."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = op.forward(torch.cat((x.to(torch.promote_types(x.dtype, _dtype(f))), rotated(x, f)), -2))
        plain, turned = y.split(x.shape[-2], -2)
        return rotated(plain, e) - turned

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        x = op.adjoint(torch.cat((rotated(y, e, adjoint=True), y.to(torch.promote_types(y.dtype, _dtype(e)))), -2))
        turned, plain = x.split(y.shape[-2], -2)
        return turned - rotated(plain, f, adjoint=True)

    real = op.real and not (isinstance(e, complex) or isinstance(f, complex))
    return dataclasses.replace(op, forward=forward, adjoint=adjoint, real=real)


def _dtype(number: complex) -> torch.dtype:
    return torch.complex128 if isinstance(number, complex) else torch.float64


def triangle_values(rows: torch.Tensor) -> torch.Tensor:
    """The singular values of ``(*b, k, n)`` through triangular factors of pieces of n: what fits the cache is fast."""
    k, n = rows.shape[-2:]
    if n >= 2 * _CHUNK and k <= _CHUNK // 16:
        whole = n - n % _CHUNK
        pieces = rows[..., :whole].unflatten(-1, (-1, _CHUNK)).movedim(-2, -3).mT  # (*b, pieces, _CHUNK, k)
        small = torch.linalg.qr(pieces, mode="r")[1].flatten(-3, -2).mT
        rows = torch.cat((small, rows[..., whole:]), -1)
    return torch.linalg.svdvals(rows)


def _sketched(op: Operator, name: str, tol: float | None, most: int | None, base: Operator | None) -> Report:
    """The adaptive range finder with its certificate. ``base``: the matrix that was displaced, whose size counts."""
    m, n = op.shape
    least = min(m, n)
    cap = max(1, min(least, _RANGE // max(1, m, n)))
    source = op if base is None else base
    floor = 8 * source.noise if tol is None else tol * (source.size if base is not None else _largest(op))
    rest = op.forward(op.gaussian(op.probes, n))
    basis = rest.mT[..., :0]  # (*b, m, k)
    while True:
        k = basis.shape[-1]
        new = op.forward(op.gaussian(min(cap, max(_START, 2 * k)) - k, n))
        block = torch.linalg.qr(_outside(_outside(new, basis), basis).mT)[0]
        rest = _outside(_outside(rest, block), block)
        basis = torch.cat((basis, block), -1)
        bound = SPECTRAL * torch.linalg.vector_norm(rest, dim=-1).amax(-1)
        if bool((bound <= floor).all()) or basis.shape[-1] >= cap:
            break
    certain = bound <= floor if basis.shape[-1] < least else torch.ones_like(bound, dtype=torch.bool)
    values = triangle_values(op.adjoint(basis.mT.contiguous()))
    floor = floor if tol is None or base is not None else torch.maximum(floor, tol * values[..., 0])
    low = (values > floor[..., None]).sum(-1)
    high = torch.where(certain, torch.maximum(low, (values + bound[..., None] > floor[..., None]).sum(-1)), least)
    return _range_report(op, name, values, low, high, bound, most)


def _outside(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """What is left of rows without their part in the span of the columns of ``basis``."""
    return rows - (rows @ basis.conj()) @ basis.mT


def _largest(op: Operator) -> torch.Tensor:
    """``||A||_2`` from the singular values of ``Q^H A``, Q the span of the shared products: from below, and closely."""
    basis = torch.linalg.qr(op.az.mT)[0]
    return triangle_values(op.adjoint(basis.mT.contiguous()))[..., 0]


def _range_report(
    op: Operator,
    name: str,
    values: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    bound: torch.Tensor,
    most: int | None,
) -> Report:
    rank, details = worst(low)
    top = int(high.max())
    gap = gap_of(values.reshape(-1, values.shape[-1])[int(low.flatten().argmax())], int(rank))
    ambiguous = gap < 1e3 or top > rank
    details |= {"at least": int(rank), "at most": top, "gap": gap, "ambiguous": ambiguous, "rest": float(bound.max())}
    limit = min(op.shape) if most is None else most
    return Report(name, int(rank), limit, top <= limit, op.method, FACTOR**-op.probes, details)


def rank_at_most(op: Operator, rank: int, floor: torch.Tensor, name: str) -> Report:
    """Whether ``sigma_(rank+1)`` is at most ``floor (*b)``, from ``rank + 6`` products and no adjoint one.

    The sketch A Z has at most the rank of A, and its singular value of that number is a tenth of that of A or more,
    but with the probability of ``bounds.rank_failure``.
    """
    return _unmeasured(op, rank, name) or _judged(op, rank, floor, name, _leading(op, rank + _EXTRA)[1])


def displacement_at_most(op: Operator, bounds: Mapping[Pair, int]) -> Iterator[tuple[Pair, Report]]:
    """The same of ``Z_e A - A Z_f`` for several pairs, from two products a vector for all of them together: ``A Z_f z =
    A Z_0 z + f z_(n-1) A e_0``."""
    n = op.shape[1]
    names = {(e, f): f"displacement rank for ({e}, {f})" for e, f in bounds}
    idle = {pair: _unmeasured(op, rank, names[pair]) for pair, rank in bounds.items()}
    most = max((rank for pair, rank in bounds.items() if idle[pair] is None), default=0)
    z, az = _leading(op, most + _EXTRA)
    moved = op.forward(torch.cat((rotated(z, 0), op.unit(0, n).to(z.dtype)), -2))
    moved, first = moved[..., :-1, :], moved[..., -1:, :]
    for (e, f), rank in bounds.items():
        count = rank + _EXTRA
        known = idle[e, f]
        if known is None:
            y = rotated(az[..., :count, :], e) - moved[..., :count, :] - (z[..., :count, -1:] * f) * first
            known = _judged(op, rank, 8 * op.noise, names[e, f], y)
        yield (e, f), known


def _leading(op: Operator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` Gaussian vectors and their products: those that all checks share, and more where these are too few."""
    if count <= op.probes:
        return op.z[:count], op.az[..., :count, :]
    more = op.gaussian(count - op.probes, op.shape[1])
    return torch.cat((op.z, more), -2), torch.cat((op.az, op.forward(more)), -2)


def _unmeasured(op: Operator, rank: int, name: str) -> Report | None:
    """What needs no sketch, and what is too large for one."""
    m, n = op.shape
    if rank >= min(m, n):
        return Report(name, min(m, n), rank, True, "no matrix of this shape has more")
    if (rank + _EXTRA) * max(m, n) <= _SKETCH:
        return None
    return Report(name, math.nan, rank, True, f"not measured: {rank + _EXTRA} products of this length are many", 1.0)


def _judged(op: Operator, rank: int, floor: torch.Tensor, name: str, sketch: torch.Tensor) -> Report:
    found, details = worst((triangle_values(sketch) > floor[..., None]).sum(-1))
    method = f"{rank + _EXTRA} Gaussian products, seed {op.generator.initial_seed()}"
    details |= {"factor": FACTOR}
    return Report(name, int(found), rank, found <= rank, method, rank_failure(rank, _EXTRA), details)


def is_low_rank(
    a: Any,
    rank: int,
    tol: float | None = None,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """Whether at most ``rank`` singular values exceed ``tol sigma_1``: ``numerical_rank`` with ``most=rank``.

    Of a large A, or with ``probes``, from ``rank + 6`` products and no adjoint one; values then count above ``tol
    ||A||_F``, by default 8 times what rounding does to a product.
    """
    a = checked(a)
    if from_entries(a, probes):
        return dataclasses.replace(numerical_rank(a, tol, most=rank), name=f"rank, at most {rank}")
    op = Operator.of(a, probes, generator)
    return rank_at_most(op, rank, 8 * op.noise if tol is None else tol * op.size, f"rank, at most {rank}")
