"""Many small Toeplitz systems, one right-hand side each, by Levinson's recursion with the right-hand side in it. Numpy,
float64, nothing kept: for systems so small that a transform costs more than its arithmetic.

Systems lie side by side along the last axis. One product of sums serves the forward predictor and the solution. The
backward error is measured with the entries themselves and with the norm of the first column in place of a bound of
``||T||_2``: it is overstated, never understated. Where a norm over- or underflows it is NaN, and so it is where a
leading minor is singular: the caller then goes another way.
Source: N. Levinson, 1947; G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 4.7.3.
"""

from typing import Any

import numpy

__all__ = ["LARGEST", "solve_side_by_side"]

LARGEST = 32  # above this order the pair and its transforms are faster
_SAFE = 1e290  # squared norms above it, or below its reciprocal, say nothing


def solve_side_by_side(t: Any, b: Any, mirrored: bool) -> tuple[Any, Any]:
    """``T^-1 b`` and its backward error, ``(B, n)`` and ``(B,)``, for real t ``(B, 2n - 1)``, b ``(B, n)``.

    ``mirrored`` says that the matrices are symmetric."""
    n = b.shape[1]
    along, right = numpy.ascontiguousarray(t.T), numpy.ascontiguousarray(b.T)
    with numpy.errstate(all="ignore"):
        y = (_symmetric if mirrored else _general)(along, right)
        step, one = along.strides
        entries = numpy.lib.stride_tricks.as_strided(
            along[n - 1 :], (n, n, along.shape[1]), (step, -step, one), writeable=False
        )
        gap, size, length = (numpy.einsum("ib,ib->b", v, v) for v in (
            right - numpy.einsum("ijb,jb->ib", entries, y), y, right
        ))  # fmt: skip
        column = numpy.einsum("ib,ib->b", along[n - 1 :], along[n - 1 :])
        eta = numpy.sqrt(gap) / (numpy.sqrt(column * size) + numpy.sqrt(length))
        eta[~((numpy.minimum(column, length) * _SAFE > 1) & (numpy.maximum(size, column * size) < _SAFE))] = numpy.nan
    return numpy.ascontiguousarray(y.T), eta


def _symmetric(t: Any, b: Any) -> Any:
    n, batch = b.shape
    left = numpy.ascontiguousarray(t[: n - 1 : -1]) if n > 1 else t[:0]  # t_{n-1} .. t_1
    both, work = numpy.zeros((2, n, batch)), numpy.empty((n, batch))
    f, y = both
    f[0], y[0] = 1, b[0] / t[n - 1]
    delta = t[n - 1].copy()
    for k in range(1, n):
        below, seen = numpy.einsum("kb,ckb->cb", left[n - 1 - k :], both[:, :k])
        step = below / delta
        numpy.multiply(f[k - 1 :: -1], step, out=work[:k])
        f[1 : k + 1] -= work[:k]
        delta -= numpy.multiply(step, below, out=step)
        numpy.multiply(f[k::-1], (b[k] - seen) / delta, out=work[: k + 1])
        y[: k + 1] += work[: k + 1]
    return y


def _general(t: Any, b: Any) -> Any:
    """g is the backward predictor over the pivot, with its last entry at the end: a shift costs nothing."""
    n, batch = b.shape
    left = numpy.ascontiguousarray(t[: n - 1 : -1]) if n > 1 else t[:0]
    right = numpy.ascontiguousarray(t[: n - 1][::-1])  # t_{-1} .. t_{-(n-1)}
    both, g, work = numpy.zeros((2, n, batch)), numpy.zeros((n, batch)), numpy.empty((n, batch))
    f, y = both
    f[0], y[0], g[n - 1] = 1, b[0] / t[n - 1], 1 / t[n - 1]
    delta = t[n - 1].copy()
    for k in range(1, n):
        below, seen = numpy.einsum("kb,ckb->cb", left[n - 1 - k :], both[:, :k])
        above = numpy.einsum("kb,kb->b", right[:k], g[n - k :])
        delta -= below * above
        f[1 : k + 1] -= numpy.multiply(g[n - k :], below, out=work[:k])
        g[n - 1 - k :] -= numpy.multiply(f[: k + 1], above / delta, out=work[: k + 1])
        y[: k + 1] += numpy.multiply(g[n - 1 - k :], b[k] - seen, out=work[: k + 1])
    return y
