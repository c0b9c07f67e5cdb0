"""Levinson's recursion for the pair of vectors that defines the inverse of a Toeplitz matrix. Numpy, float64 or
complex128, no gradients here.

The pair is ``x = T^-1 e_0`` and ``z = T^-1 c`` with ``c_i = t_{i-n} + t_i`` and t_{-n} := 0. Both are by-products of
the recursion for the predictors alone, without a right-hand side: with f and b the monic forward and backward
predictors of order k (``T_k f = delta e_0``, ``T_k b = delta e_{k-1}``), ``x = f / delta`` at the end; and because
``T e_0`` is the column of T, ``z = e_0 - w`` where w holds the first n entries of the backward predictor of order n + 1
that continues T by t_{-n} = 0.

One step costs two dot products and two updates in place: b is kept divided by delta (``g = b / delta``), and the update
of g takes the *new* f, ``g <- g - (sigma / delta_new) f_new``, which needs no copy of the old one. Where T is symmetric
or Hermitian one dot product gives both. O(n^2) time, O(n) memory. The pivots ``delta_k = det T_{k+1} / det T_k`` are
what a determinant needs. All leading minors must be nonsingular, and accuracy is lost where one is nearly singular, so
nobody may trust the result unchecked.

Source: N. Levinson, 1947; J. Durbin, 1960; G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section
4.7.
"""

from typing import Any

import numpy
import torch
from scipy.linalg import blas

__all__ = ["FEW", "pairs", "second_right_side"]

FEW = 16  # up to so many systems go one by one through BLAS (a call costs a microsecond), more share each numpy call
_CHUNK = 1024  # systems side by side: a chunk's vectors stay in the cache
_LEAST = 1e-13  # a pivot below this times max|t| is the pivot of a singular leading minor


def pairs(t: Any, mirror: str | None = None) -> tuple[Any, Any, Any]:
    """``x, z, pivots``, each ``(B, n)``, for the diagonals t ``(B, 2n - 1)``, all numpy; ``mirror`` says that each T is
    "symmetric" or "hermitian". A singular leading minor gives NaN, which the caller must look for."""
    batch = t.shape[0]
    if batch <= FEW:
        with numpy.errstate(all="ignore"):
            found = [_one(numpy.ascontiguousarray(row), mirror) for row in t]
        x, z, pivots = (numpy.stack(v) for v in zip(*found, strict=True))
        return x, z, pivots
    march = _many_mirrored if mirror else _many
    with numpy.errstate(all="ignore"):
        found = [
            march(numpy.ascontiguousarray(t[start : start + _CHUNK].T), mirror) for start in range(0, batch, _CHUNK)
        ]
    x, z, pivots = (
        v[0].T if len(v) == 1 else numpy.concatenate([part.T for part in v]) for v in zip(*found, strict=True)
    )
    return numpy.ascontiguousarray(x), numpy.ascontiguousarray(z), pivots


def second_right_side(t: Any) -> Any:
    """c with ``c_i = t_{i-n} + t_i`` and t_{-n} := 0; numpy or torch, t ``(..., 2n - 1)``."""
    n = (t.shape[-1] + 1) // 2
    if isinstance(t, torch.Tensor):
        return t[..., n - 1 :] + torch.cat((torch.zeros_like(t[..., :1]), t[..., : n - 1]), -1)
    return t[..., n - 1 :] + numpy.concatenate((numpy.zeros_like(t[..., :1]), t[..., : n - 1]), -1)


def _sides(t: Any) -> tuple[Any, Any]:
    """Along axis 0: ``t_{n-1} .. t_1``, and ``t_{-1} .. t_{-(n-1)}, 0``."""
    n = (t.shape[0] + 1) // 2
    left = numpy.ascontiguousarray(t[: n - 1 : -1]) if n > 1 else t[:0]
    return left, numpy.concatenate((t[: n - 1][::-1], numpy.zeros_like(t[:1])))


def _one(t: Any, mirror: str | None) -> tuple[Any, Any, Any]:
    return _steps(t, mirror, _LEAST * float(abs(t).max()))


def _steps(t: Any, mirror: str | None, floor: Any) -> tuple[Any, Any, Any]:
    """One system on BLAS with offsets: no slice is made. g has b's entries at its end, so that a shift costs nothing.
    NaN where a pivot is not above ``floor``."""
    n = (len(t) + 1) // 2
    left, right = _sides(t)
    f, g, pivots = numpy.zeros(n, t.dtype), numpy.zeros(n + 1, t.dtype), numpy.full(n, numpy.nan, t.dtype)
    dot, axpy = (blas.zdotu, blas.zaxpy) if t.dtype.kind == "c" else (blas.ddot, blas.daxpy)
    delta = t.tolist()[n - 1]
    if not abs(delta) > floor:
        return numpy.full_like(f, numpy.nan), numpy.full_like(f, numpy.nan), pivots
    pivots[0], f[0], g[n] = delta, 1, 1 / delta
    for k in range(1, n):
        below = dot(left, f, k, n - 1 - k)
        if mirror is None:
            above = dot(right, g, k, 0, 1, n + 1 - k)
        else:
            above = (below if mirror == "symmetric" else below.conjugate()) / delta
        delta = delta - below * above
        if not abs(delta) > floor:
            return numpy.full_like(f, numpy.nan), numpy.full_like(f, numpy.nan), pivots
        pivots[k] = delta
        axpy(g, f, k, -below, n + 1 - k, 1, 1)
        axpy(f, g, k + 1, -above / delta, 0, 1, n - k)
    z = dot(right, g, n, 0, 1, 1) * f - delta * g[:n]
    z[0] += 1
    return f / delta, z, pivots


def _many(t: Any, mirror: str | None) -> tuple[Any, Any, Any]:
    """Systems side by side along axis 1: the same steps; torch's addcmul updates in one pass over memory."""
    n, batch = (t.shape[0] + 1) // 2, t.shape[1]
    left, right = _sides(t)
    f, g, pivots = (numpy.zeros((size, batch), t.dtype) for size in (n, n + 1, n))
    f[0], g[n], pivots[0] = 1, 1 / t[n - 1], t[n - 1]
    ft, gt = torch.from_numpy(f), torch.from_numpy(g)
    for k in range(1, n):
        below = numpy.einsum("kb,kb->b", left[n - 1 - k :], f[:k])
        above = numpy.einsum("kb,kb->b", right[:k], g[n + 1 - k :])
        delta = numpy.subtract(pivots[k - 1], below * above, out=pivots[k])
        ft[1 : k + 1].addcmul_(gt[n + 1 - k :], torch.from_numpy(below), value=-1)
        gt[n - k :].addcmul_(ft[: k + 1], torch.from_numpy(above / delta), value=-1)
    z = numpy.einsum("kb,kb->b", right, g[1:]) * f - pivots[n - 1] * g[:n]
    z[0] += 1
    _spoil(t, f, pivots)
    f /= pivots[n - 1]
    return f, z, pivots


def _many_mirrored(t: Any, mirror: str | None) -> tuple[Any, Any, Any]:
    """Symmetric or Hermitian: b is f read backwards (and conjugated), so the first halves of both are all there is.
    With h the larger half of k and j < h, row j of f is ``f_j``, row ``start + j`` of g is ``b_j / delta``."""
    n, batch = (t.shape[0] + 1) // 2, t.shape[1]
    left, right = _sides(t)
    down = t[n:]
    size = n // 2 + 1
    f, g, pivots = (numpy.zeros((rows, batch), t.dtype) for rows in (size, n + size, n))
    f[0], g[n], pivots[0] = 1, 1 / t[n - 1], t[n - 1]
    ft, gt = torch.from_numpy(f), torch.from_numpy(g)
    conjugate = mirror == "hermitian" and t.dtype.kind == "c"
    for k in range(1, n):
        h, start, delta = (k + 1) // 2, n + 1 - k, pivots[k - 1]
        back = g[start : start + k - h]
        if k % 2 == 0:  # one more row: the middle entry of f comes from the other half
            f[h] = (g[start + h - 1].conj() if conjugate else g[start + h - 1]) * delta
        below = numpy.einsum("kb,kb->b", down[: k - h], back.conj() if conjugate else back) * delta
        below += numpy.einsum("kb,kb->b", left[n - 1 - k : n - 1 - k + h], f[:h])
        step = below / delta
        step = step.conj() if conjugate else step
        numpy.subtract(delta, below * step, out=pivots[k])
        h = k // 2 + 1
        ft[1:h].addcmul_(gt[start : start + h - 1], torch.from_numpy(below), value=-1)
        gt[start - 1 : start - 1 + h].addcmul_(ft[:h], torch.from_numpy(step / pivots[k]), value=-1)
    half = n // 2
    whole = numpy.empty((n, batch), t.dtype)
    whole[: n - half] = f[: n - half]
    tail = g[1 : 1 + half][::-1] if n > 1 else g[:0]
    numpy.multiply(tail.conj() if conjugate else tail, pivots[n - 1], out=whole[n - half :])
    back = whole[::-1].conj() if conjugate else whole[::-1]
    z = numpy.multiply(whole, numpy.einsum("kb,kb->b", right, back) / pivots[n - 1])
    z[1:] -= back[:-1]
    z[0] += 1
    _spoil(t[n - 1 :], whole, pivots)
    whole /= pivots[n - 1]
    return whole, z, pivots


def _spoil(t: Any, f: Any, pivots: Any) -> None:
    """As ``_one`` breaks off: NaN where a pivot is that of a singular leading minor."""
    bad = ~(abs(pivots) > _LEAST * abs(t).max(0)).all(0)
    f[:, bad] = numpy.nan
    pivots[:, bad] = numpy.nan
