"""scipy's functions for Toeplitz and circulant systems, and the Levinson-Durbin recursion; part of ``linalg``.

Arrays and lists give numpy arrays, tensors give tensors (differentiable). Leading axes are batches, as in scipy from
1.17 on: c and r are ``(*batch, n)``, b is a vector only if 1-D, else ``(*batch, n, k)``.
"""

from typing import Any, NamedTuple

import numpy
import torch

from structmat import backend
from structmat._shell import broadcast, name_of
from structmat.construct import _from_pair, entries_of
from structmat.errors import ShapeError, SolveError
from structmat.functional import autoregression
from structmat.matrix import Matrix
from structmat.types.toeplitz import SymmetricToeplitz

__all__ = ["LevinsonDurbin", "levinson_durbin", "matmul_toeplitz", "solve_circulant", "solve_toeplitz"]


# -- what comes in and goes out -----------------------------------------------------------------------------------


def _read(double: bool, **values: Any) -> tuple[list[torch.Tensor], bool]:
    """The values as tensors of one dtype, and whether all of them were arrays or lists.

    Arrays are carried out in float64 (``double``: scipy does so whatever they hold), at least in float32, unless a
    tensor stands beside them.
    """
    host = not any(isinstance(v, torch.Tensor) for v in values.values())
    tensors = []
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{name} must be an array, not None")
        tensors.append(entries_of(numpy.asarray(value) if host else value, name))
    common = tensors[0].dtype
    for t in tensors[1:]:
        common = torch.promote_types(common, t.dtype)
    if host:
        common = torch.promote_types(common, torch.float64 if double else torch.float32)
    return [t.to(common) for t in tensors], host


def _given_back(result: torch.Tensor, host: bool) -> Any:
    return result.detach().cpu().resolve_conj().numpy() if host else result


def _system(c_or_cr: Any, b: Any, what: str, place: str, check_finite: bool) -> tuple[Any, Any, torch.Tensor, bool]:
    """First column, first row (None: the conjugate of the column), operand, and whether to give numpy back.

    r[0] is ignored, as in scipy.
    """
    given = {"c": c_or_cr[0], "r": c_or_cr[1]} if isinstance(c_or_cr, tuple) else {"c": c_or_cr}
    tensors, host = _read(True, **given, **{what: b})
    for name, t in zip((*given, what), tensors, strict=True):
        if t.ndim == 0:
            raise ShapeError(f"{place}: {name} is a scalar, it needs at least one dimension")
        if check_finite and not bool(torch.isfinite(t).all()):
            raise ValueError(f"{place}: {name} must not contain infs or NaNs; check_finite=False lets them pass")
    column, right = tensors[0], tensors[-1]
    row = tensors[1] if len(tensors) == 3 else None
    n = int((column if row is None else row).shape[-1])
    rows = right.shape[-1 if right.ndim == 1 else -2]
    if rows != n:
        raise ShapeError(
            f"{place}: {what} of shape {tuple(right.shape)} has {rows} rows, the Toeplitz matrix has {n} columns"
        )
    batches = (column.shape[:-1], row.shape[:-1] if row is not None else (), right.shape[:-2])
    broadcast(place, *(tuple(b) for b in batches))
    return column, row, right, host


def _matrix(column: torch.Tensor, row: torch.Tensor | None) -> Matrix:
    if row is None and not column.is_complex():
        return SymmetricToeplitz(column)
    return _from_pair(column, column.conj().resolve_conj() if row is None else row)


def _nothing(column: torch.Tensor, row: torch.Tensor | None, right: torch.Tensor) -> torch.Tensor | None:
    """The result where the matrix or the operand has no entries (a Toeplitz matrix of the library has at least one)."""
    m, n = column.shape[-1], (column if row is None else row).shape[-1]
    if m and n and right.numel():
        return None
    lead = torch.broadcast_shapes(column.shape[:-1], () if row is None else row.shape[:-1], right.shape[:-2])
    tail = (m,) if right.ndim == 1 else (m, right.shape[-1])
    return torch.zeros(*lead, *tail, dtype=right.dtype, device=right.device)


# -- scipy's names ------------------------------------------------------------------------------------------------


def solve_toeplitz(c_or_cr: Any, b: Any, check_finite: bool = True) -> Any:
    """x with ``T x = b`` for ``c`` or ``(c, r)``, as ``scipy.linalg.solve_toeplitz``, at backward error 100 eps.

    Shapes: c, r ``(*batch, n)``; b ``(n,)`` or ``(*batch, n, k)``; batches broadcast. Without r the row is ``conj(c)``;
    r[0] is ignored. Dtypes: arrays are solved in float64 or complex128, tensors in their own. Differentiable for
    tensors. Unlike Levinson alone it does not fail at a singular leading minor of a nonsingular matrix.
    Raises: SolveError (a LinAlgError) for a matrix singular to working precision; ValueError for sizes that do not fit,
    and for infinities and NaNs with ``check_finite``.
    """
    column, row, right, host = _system(c_or_cr, b, "b", "solve_toeplitz", check_finite)
    if row is not None and row.shape[-1] != column.shape[-1]:
        raise ShapeError(
            f"solve_toeplitz: c has {column.shape[-1]} entries and r {row.shape[-1]}; a square system is needed"
        )
    empty = _nothing(column, row, right)
    return _given_back(_matrix(column, row).solve(right) if empty is None else empty, host)


def matmul_toeplitz(c_or_cr: Any, x: Any, check_finite: bool = False, workers: int | None = None) -> Any:
    """``T @ x`` for ``c`` or ``(c, r)``, as ``scipy.linalg.matmul_toeplitz``; ``workers`` is accepted and has no
    effect here.

    Shapes: c ``(*batch, m)``, r ``(*batch, n)``; x ``(n,)`` or ``(*batch, n, k)``. Dtypes, r and errors as
    ``solve_toeplitz``.
    """
    column, row, right, host = _system(c_or_cr, x, "x", "matmul_toeplitz", check_finite)
    empty = _nothing(column, row, right)
    return _given_back(_matrix(column, row) @ right if empty is None else empty, host)


def solve_circulant(
    c: Any, b: Any, singular: str = "raise", tol: Any = None, caxis: int = -1, baxis: int = 0, outaxis: int = 0
) -> Any:
    """x with ``C x = b`` for the circulants of first column ``c``, as ``scipy.linalg.solve_circulant``.

    Shapes: the coefficients lie along ``caxis`` of c and ``baxis`` of b; what is left broadcasts, and the solutions lie
    along ``outaxis``. ``singular``: "raise" or "lstsq" (the least-squares solution of least norm; eigenvalues at most
    ``tol`` count as zero, default n eps times the largest modulus of each circulant). Differentiable for tensors.
    Raises: SolveError (a LinAlgError) for a circulant singular to working precision; ValueError for axes or sizes that
    do not fit.
    """
    if singular not in ("raise", "lstsq"):
        raise ValueError(f"solve_circulant(singular={singular!r}): legal values are 'raise' and 'lstsq'")
    (columns, right), host = _read(False, c=c, b=b)
    columns, right = _last(columns, "c", caxis), _last(right, "b", baxis)
    n = columns.shape[-1]
    if right.shape[-1] != n:
        raise ShapeError(
            f"solve_circulant: c has {n} entries along caxis {caxis}, b has {right.shape[-1]} along baxis {baxis}"
        )
    broadcast("solve_circulant", tuple(columns.shape[:-1]), tuple(right.shape[:-1]))
    if n == 0 or columns.numel() == 0 or right.numel() == 0:
        x = torch.zeros(torch.broadcast_shapes(columns.shape, right.shape), dtype=right.dtype, device=right.device)
    else:
        x = _divided(columns, right, singular, tol)
    if not -x.ndim <= outaxis < x.ndim:
        raise ShapeError(f"solve_circulant: outaxis {outaxis} is out of bounds for a result of {x.ndim} dimensions")
    return _given_back(x.movedim(-1, outaxis), host)


def _last(t: torch.Tensor, name: str, axis: int) -> torch.Tensor:
    t = t[None] if t.ndim == 0 else t
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(f"solve_circulant: {name}axis {axis} is out of bounds for {name} of shape {tuple(t.shape)}")
    return t.movedim(axis, -1)


def _divided(columns: torch.Tensor, right: torch.Tensor, singular: str, tol: Any) -> torch.Tensor:
    """``ifft(fft(b) / fft(c))``, eigenvalues that count as zero left out."""
    wide = backend.compute_dtype(right.dtype)
    with backend.full_precision(right.device):
        lam, hat = torch.fft.fft(columns.to(wide)), torch.fft.fft(right.to(wide))
        size = lam.detach().abs()
        cut = columns.shape[-1] * torch.finfo(size.dtype).eps * size.amax(-1, keepdim=True) if tol is None else tol
        small = size <= cut
        if singular == "raise" and backend.eager(columns, right) and bool(small.any()):
            raise SolveError(
                "solve_circulant: near singular matrix; singular='lstsq' gives the least-squares solution", float("inf")
            )
        if singular == "lstsq":
            quotient = torch.where(small, torch.zeros_like(lam), hat / torch.where(small, torch.ones_like(lam), lam))
        else:
            quotient = hat / lam
        x = torch.fft.ifft(quotient)
    return (x if right.is_complex() else x.real).to(right.dtype)


# -- autoregression -----------------------------------------------------------------------------------------------


class LevinsonDurbin(NamedTuple):
    """What ``levinson_durbin`` finds: ``x_t = sum_k coefficients[k - 1] x_{t-k} + e_t`` with ``E|e_t|^2 = variance``.

    ``coefficients`` and ``reflection`` are ``(*batch, order)``, ``variance`` is ``(*batch,)`` and real. The variance of
    every lower order m is ``r_0 prod_{k <= m} (1 - |reflection_k|^2)``.
    """

    coefficients: Any
    variance: Any
    reflection: Any


def levinson_durbin(autocovariance: Any, order: int | None = None) -> LevinsonDurbin:
    """The autoregressive model of this order (default: all lags) by the Levinson-Durbin recursion.

    Args:
        autocovariance: ``r_0, r_1, ...`` along the last axis, ``(*batch, > order)``, real or complex with
            ``r_k = E[x_{t+k} conj(x_t)]``; r_0 is read as real.
        order: how many coefficients, 0 to the number of lags.
    Cost: ``order^2`` multiplications a sequence; a recorded gradient keeps ``order^2 / 2`` numbers.
    Raises: ShapeError, ValueError for an order that the lags do not reach; SolveError (a LinAlgError) that names the
        order at which the sequence stops being positive definite.
    Example:
        >>> sm.linalg.levinson_durbin(torch.tensor([1.0, 0.5, 0.25])).coefficients
        tensor([0.5000, 0.0000])

    Source: J. Durbin, The fitting of time-series models, 1960; ``functional.autoregression``.
    """
    (r,), host = _read(True, autocovariance=autocovariance)
    if r.ndim == 0 or r.shape[-1] == 0:
        raise ShapeError("levinson_durbin: autocovariance needs r_0 at least, got " + str(tuple(r.shape)))
    lags = int(r.shape[-1]) - 1
    order = lags if order is None else order
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= lags:
        raise ValueError(f"levinson_durbin: order={order!r}, but r_0 to r_{lags} allow orders from 0 to {lags}")
    with backend.full_precision(r.device):
        a, variances, k = autoregression.levinson_durbin(r, order)
    if backend.eager(r, a):
        _require_positive(variances.detach(), r.dtype)
    real = backend.real_of(r.dtype)
    return LevinsonDurbin(
        _given_back(a.to(r.dtype), host),
        _given_back(variances[..., -1].to(real), host),
        _given_back(k.to(r.dtype), host),
    )


def _require_positive(variances: torch.Tensor, dtype: torch.dtype) -> None:
    """Every variance is positive if and only if every leading minor is (NaN is not)."""
    bad = ~(variances > 0)
    if not bool(bad.any()):
        return
    where = bad.reshape(-1, bad.shape[-1])
    first = int(where.int().argmax(-1)[where.any(-1)].min())
    worst = variances.reshape(-1, bad.shape[-1])[where[:, first], first]
    advice = f"take an order below {first}, or estimates that divide by the number of samples at every lag"
    raise SolveError(
        f"levinson_durbin: the autocovariances (in {name_of(dtype)}) are not positive definite: the variance of the "
        f"prediction error at order {first} is {float(worst[0]):.3g}; "
        + (advice if first else "r_0, the variance of the sequence, must be positive"),
        float("inf"),
    )
