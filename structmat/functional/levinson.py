"""Levinson's recursion and the two-solve formula for the inverse of a Toeplitz matrix. Float64 throughout, no
gradients here.

The recursion is O(n^2) time and O(n) memory, batched over the first axis, and runs in numpy on the CPU (its steps are
too short for anything else); it needs nonsingular leading minors and loses accuracy where one is nearly singular, so
nobody may trust it unchecked. Source: N. Levinson, 1947; Golub and Van Loan, Matrix Computations, 4th ed., 2013,
section 4.7.

The inverse is applied from ``x = T^-1 e_0`` and ``z = T^-1 c``, ``c_i = t_{i-n} + t_i`` (t_{-n} := 0), by

    T^-1 = S(x) + 1/2 [ S(z) C(x) - S(x) C(z) ],     C circulant, S skew-circulant of that first column,

which holds for every nonsingular T (no condition on x_0, unlike Gohberg-Semencul).
Source: G. Heinig and K. Rost, Algebraic Methods for Toeplitz-like Matrices and Operators, 1984 (the f-circulant
family).
"""

from typing import Any

import numpy
import scipy.linalg
import torch

__all__ = ["TwoSolve", "compiled_pairs", "recursion"]


def recursion(t: Any, rhs: Any, symmetric: bool) -> tuple[Any, Any, Any, Any]:
    """``f = T^-1 e_0``, ``y = T^-1 rhs`` and ``sign, log|det T|`` for t ``(B, 2n - 1)``, rhs ``(B, n)``, all numpy.

    A singular leading minor gives non-finite numbers, which the caller must look for.
    """
    kind = numpy.result_type(t, rhs)
    if t.shape[0] == 1:  # one system: one-dimensional arrays and BLAS dots, several times faster
        f, y, pivots = _march(t[0].astype(kind), rhs[0].astype(kind), symmetric, numpy.dot)
        f, y, pivots = f[None], y[None], pivots[None]
    else:
        entries, right = (numpy.ascontiguousarray(v.T.astype(kind)) for v in (t, rhs))
        f, y, pivots = (v.T for v in _march(entries, right, symmetric, lambda a, b: (a * b).sum(0)))
    with numpy.errstate(all="ignore"):
        sizes = numpy.abs(pivots)
        return f, y, numpy.prod(pivots / sizes, axis=1), numpy.log(sizes).sum(1)


def compiled_pairs(t: Any, rhs: Any, symmetric: bool) -> tuple[Any, Any, Any, Any]:
    """As ``recursion`` without the determinant (NaN): few large systems go through scipy's compiled Levinson, one by
    one.

    Compiled steps are cheaper than numpy calls; a batch of more than 8 shares each call in one vectorised recursion.
    """
    batch, n = rhs.shape
    if batch > 8 or not numpy.isfinite(t).all():
        return recursion(t, rhs, symmetric)
    kind = numpy.result_type(t, rhs)
    f, y = numpy.full((batch, n), numpy.nan, kind), numpy.full((batch, n), numpy.nan, kind)
    right = numpy.zeros((n, 2), kind)
    right[0, 0] = 1
    for k in range(batch):
        right[:, 1] = rhs[k]
        try:
            pair = scipy.linalg.solve_toeplitz((t[k, n - 1 :], t[k, n - 1 :: -1]), right, check_finite=False)
        except numpy.linalg.LinAlgError:
            continue  # a singular leading minor: the caller looks for the NaN
        f[k], y[k] = pair[:, 0], pair[:, 1]
    nothing = numpy.full(batch, numpy.nan)
    return f, y, nothing.astype(kind), nothing


def _march(t: Any, rhs: Any, symmetric: bool, dot: Any) -> tuple[Any, Any, Any]:
    """The recursion along axis 0: f and b solve for the first and the last unit vector of the leading k x k minor."""
    n = rhs.shape[0]
    backwards = numpy.ascontiguousarray(t[: n - 2 if n > 1 else None : -1])  # t_{n-1} .. t_0
    upper = numpy.ascontiguousarray(t[n - 1 :: -1])  # t_0, t_-1, .. t_{-(n-1)}
    f, b, y, pivots, work = (numpy.zeros_like(rhs) for _ in range(5))
    with numpy.errstate(all="ignore"):
        pivots[0] = t[n - 1]
        f[0] = b[0] = 1 / pivots[0]
        y[0] = rhs[0] / pivots[0]
        for k in range(1, n):
            column = backwards[n - 1 - k : n - 1]  # t_k .. t_1
            below = dot(column, f[:k])
            above = below if symmetric else dot(upper[1 : k + 1], b[:k])
            scale = 1 / (1 - below * above)
            missing = rhs[k] - dot(column, y[:k])
            shifted = work[: k + 1]
            shifted[0] = 0
            shifted[1:] = b[:k]
            if not symmetric:
                numpy.multiply(f[: k + 1], -above * scale, out=b[: k + 1])
                b[: k + 1] += scale * shifted
            shifted *= below
            f[: k + 1] -= shifted
            f[: k + 1] *= scale
            if symmetric:
                b[: k + 1] = f[k::-1]
            y[: k + 1] += missing * b[: k + 1]
            pivots[k] = 1 / f[0]
    return f, y, pivots


def second_right_side(t: Any) -> Any:
    """c with ``c_i = t_{i-n} + t_i`` and t_{-n} := 0; numpy or torch, t ``(..., 2n - 1)``."""
    n = (t.shape[-1] + 1) // 2
    if isinstance(t, torch.Tensor):
        return t[..., n - 1 :] + torch.cat((torch.zeros_like(t[..., :1]), t[..., : n - 1]), -1)
    return t[..., n - 1 :] + numpy.concatenate((numpy.zeros_like(t[..., :1]), t[..., : n - 1]), -1)


class TwoSolve:
    """T^-1 from the pair (x, z), each ``(*b, n)``: applied to rows with seven transforms of length n, four of them
    kept."""

    def __init__(self, x: torch.Tensor, z: torch.Tensor) -> None:
        n = x.shape[-1]
        self.x, self.z = x, z
        angle = torch.arange(n, device=x.device, dtype=torch.float64) * (torch.pi / n)
        self._twist = torch.polar(torch.ones_like(angle), angle)  # D with S(v) = D^-1 C(D v) D
        self._cx, self._cz = torch.fft.fft(x)[..., None, :], torch.fft.fft(z)[..., None, :]
        self._sx, self._sz = (torch.fft.fft(v * self._twist)[..., None, :] for v in (x, z))

    def solve_rows(self, b: torch.Tensor) -> torch.Tensor:
        """y with ``T y = b`` for each row b ``(*b, k, n)``."""
        hat = torch.fft.fft(b)
        by_x, by_z = torch.fft.ifft(self._cx * hat), torch.fft.ifft(self._cz * hat)
        first = torch.fft.fft((b - by_z / 2) * self._twist)
        second = torch.fft.fft(by_x * self._twist)
        y = torch.fft.ifft(self._sx * first + self._sz * second / 2) * self._twist.conj()
        return y if b.is_complex() or self.x.is_complex() else y.real

    def solve_transposed_rows(self, b: torch.Tensor) -> torch.Tensor:
        """y with ``T^T y = b``: ``T^-T = J T^-1 J``, so no new factorisation."""
        return self.solve_rows(b.flip(-1)).flip(-1)
