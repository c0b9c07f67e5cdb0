"""Entries and measures of a matrix of low displacement rank from its generators: nothing of n^2 but the entries.

``Z_e A - A Z_f = G H^T`` says ``A[i, j + 1] = A[i - 1, j] - G_i . H_j`` along a diagonal (for i = 0 with e times the
last row in place of row -1), and ``A = 1/(e - f) sum_j Z_e(g_j) Z_f(J h_j)``. Traces of products need

    tr(Z_e(a) Z_f(v)) = n a_0 v_0 + sum_{p=1}^{n-1} a_p v_{n-p} ((n - p) f + p e),

since ``tr(Z_e^p Z_f^q)`` vanishes unless n divides p + q.
Source: V. Y. Pan, Structured Matrices and Polynomials, 2001, section 4.4; the trace by counting.
"""

import cmath
import math

import torch

from structmat.functional.toeplitz import circulant_product
from structmat.functional.transforms import nothing

__all__ = [
    "diagonal",
    "diagonal_sums",
    "distance_factor",
    "entries",
    "first_column",
    "last_row",
    "power_traces",
    "squared_norm",
]


def first_column(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``A e_0 = 1/(e - f) sum_j Z_e(g_j) J h_j``, ``(*b, n)``, by r transforms."""
    return _summed(left, right.flip(-2), e) * (1 / (e - f))


def last_row(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``A^T e_{n-1} = J / (e - f) sum_j Z_f(J h_j) g_j``, ``(*b, n)``, since ``Z_f(v)^T = J Z_f(v) J``."""
    return _summed(right.flip(-2), left, f).flip(-1) * (1 / (e - f))


def _summed(weights: torch.Tensor, columns: torch.Tensor, e: complex) -> torch.Tensor:
    """``sum_j Z_e(a_j) b_j`` for a, b ``(*b, n, r)``."""
    lead = torch.broadcast_shapes(weights.shape[:-2], columns.shape[:-2])
    a, b = (t.expand(*lead, *t.shape[-2:]).mT for t in (weights, columns))
    return circulant_product(a, b[..., None, :], e)[..., 0, :].sum(-2)


def entries(first: torch.Tensor, left: torch.Tensor, right: torch.Tensor, e: complex) -> torch.Tensor:
    """The dense ``(*b, n, n)`` matrix from its first column ``(*b, n)``: sums along the diagonals, exact in a ring.

    With rows continued upwards by ``A[i - n] = e A[i]``, ``A[i, j] = first[i - j] - sum_{s < j} G_{i-j+s+1} . H_s``.
    """
    n = left.shape[-2]
    if n == 0:
        return nothing((*first.shape[:-1], 0, 0), first.dtype, first, left, right)
    steps = right @ left.mT  # row s holds G_i . H_s for all i
    lead = torch.broadcast_shapes(first.shape[:-1], steps.shape[:-2])
    head = torch.cat((first[..., 1:] * e, first), -1).expand(*lead, 2 * n - 1)  # diagonals -(n-1) to n-1
    long = torch.cat((steps[..., 1:] * e, steps), -1).expand(*lead, n, 2 * n - 1)
    # row s moved left by s + 1, so that a column holds one diagonal: what leaves on the left is read by no entry
    skewed = torch.nn.functional.pad(long, (0, 1)).flatten(-2)
    skewed = torch.nn.functional.pad(skewed[..., 1:], (0, n + 1)).unflatten(-1, (n, 2 * n + 1))[..., : 2 * n - 1]
    sums = torch.cumsum(skewed, -2)
    sums = torch.cat((torch.zeros_like(sums[..., :1, :]), sums[..., :-1, :]), -2)
    along = head[..., None, :] - sums  # [j, d]: the entry of column j on diagonal d
    flat = torch.nn.functional.pad(along, (0, 1)).flatten(-2)[..., : n * (2 * n - 1)]
    return flat.unflatten(-1, (n, 2 * n - 1))[..., n - 1 :].mT  # moved right by j again: diagonals become rows


def diagonal(corner: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``A_ii = A_00 - sum_{k=1}^{i} G_k . H_{k-1}``, ``(*b, n)`` from the corner ``(*b, 1)``: n r work."""
    if left.shape[-2] == 0:
        return corner
    steps = (left[..., 1:, :] * right[..., :-1, :]).sum(-1)
    lead = torch.broadcast_shapes(corner.shape[:-1], steps.shape[:-1])
    corner, steps = corner.expand(*lead, 1), steps.expand(*lead, steps.shape[-1])
    return torch.cat((corner, corner - torch.cumsum(steps, -1)), -1)


def _weights(n: int, e: complex, f: complex, like: torch.Tensor) -> torch.Tensor:
    """``(n - p) f + p e`` for p = 0..n-1, in the dtype computed in."""
    p = torch.arange(n, device=like.device, dtype=torch.float64)
    dtype = torch.promote_types(like.dtype, torch.complex64) if isinstance(e * f, complex) else like.dtype
    return ((n - p) * f + p * e).to(dtype)


def power_traces(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex, power: complex) -> torch.Tensor:
    """``tr(A Z_power^k)``, k = 0..n-1, ``(*b, n)``; ``power`` is e or f. r transforms: O(r n log n).

    For ``power = f``, with v continued by ``v_{q-n} = f v_q``: ``Z_f(v) Z_f^k = Z_f(Z_f^k v)``, and the trace formula
    becomes ``t_k = sum_p a~_p h_{p+k-1}``, ``a~_p = ((n - p) f + p e) g_p``, ``h_{q+n} = f h_q``: the product of a
    transposed f-circulant with ``Z_f a~ / f``. For ``power = e`` the two factors change places, ``tr(Z_e^k A)``.
    """
    n = left.shape[-2]
    if power != f:  # J A^T J has the operator (f, e), the generators (-J H, J G), and the same traces
        return power_traces(-right.flip(-2), left.flip(-2), f, e, e)
    weighted = left * _weights(n, e, f, left)[:, None]
    # t_k = sum_p a~_p h_{p+k-1} = (Z_f(u) w)_{...}: reversed, it is an f-circulant product of J h with a~
    whole = _summed(right.flip(-2), weighted, f)  # s_q = sum_p a~_p (J h)_{q-p}, f-continued
    # (J h)_{n-k-p} = h_{p+k-1}: t_k = s_{n-k} for k >= 1, and t_0 = s_n = s_0 / f
    scale = 1 / (e - f)
    return torch.cat((whole[..., :1] * (scale / f), whole[..., 1:].flip(-1) * scale), -1)


def diagonal_sums(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``s_k = sum_{i-j=k} A_ij``, k from -(n-1) to n-1, ``(*b, 2n - 1)``, in O(r n log n).

    ``tr(A Z_c^k) = s_{-k} + c s_{n-k}`` for c = e and for c = f: two equations, two unknowns.
    """
    if left.shape[-2] == 0:
        return first_column(left, right, e, f)
    by_e, by_f = (power_traces(left, right, e, f, c) for c in (e, f))
    lower = (by_e - by_f)[..., 1:] * (1 / (e - f))  # s_{n-k}, k = 1..n-1
    upper = by_f[..., 1:] - lower * f  # s_{-k}
    return torch.cat((upper.flip(-1), by_f[..., :1], lower.flip(-1)), -1)


def squared_norm(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``||A||_F^2`` for |e| = |f| = 1, ``(*b,)``: O(r^2 n log n).

    ``1/|e - f|^2 sum_jk tr(Z_e(g_j)^H Z_e(g_k) Z_f(w_k) Z_f(w_j)^H)``, where both pairs are circulants again.
    """
    n, r = left.shape[-2:]
    total = torch.zeros((), dtype=left.dtype, device=left.device)
    weights = _weights(n, e, f, left)
    w = right.flip(-2)
    conj_e, conj_f = _adjoint(left, e), _adjoint(w, f)
    for j in range(r):
        a = circulant_product(conj_e[..., j, :], left.mT, e)  # first columns of Z_e(g_j)^H Z_e(g_k), (*b, r, n)
        v = circulant_product(conj_f[..., j, :], w.mT, f)
        inner = (a[..., 1:] * v[..., 1:].flip(-1) * weights[1:]).sum((-2, -1))
        total = total + inner + n * (a[..., :1] * v[..., :1]).sum((-2, -1))
    return (total.real if total.is_complex() else total) * (1 / abs(e - f) ** 2)


def _adjoint(columns: torch.Tensor, f: complex) -> torch.Tensor:
    """The first columns ``(*b, r, n)`` of ``Z_f(v)^H``, an f-circulant for |f| = 1: ``conj(v_0), f conj(v_{n-k})``."""
    v = columns.mT
    v = torch.conj_physical(v) if v.is_complex() else v
    number = f.conjugate() if isinstance(f, complex) else f
    return torch.cat((v[..., :1], v[..., 1:].flip(-1) * number), -1)


def distance_factor(n: int, e: complex, f: complex) -> float:
    """An upper bound of ``||A||_F / ||Z_e A - A Z_f||_F``: sharp for |e| = |f| = 1, where it is
    ``1 / (2 sin(delta / 2))``, delta the least angle between n-th roots of e and of f; ``1 / (2 sin(pi / 2n))``, about
    ``n / pi``, for (1, -1)."""
    ratio = cmath.log(complex(e)) - cmath.log(complex(f))
    turn = 2 * math.pi / n
    angle = (ratio.imag / n) % turn
    angle = min(angle, turn - angle)
    low, high = sorted((abs(e) ** (1 / n), abs(f) ** (1 / n)))
    gap = math.hypot(high - low, 2 * math.sqrt(low * high) * math.sin(angle / 2))
    skew = max(abs(e), 1 / abs(e)) * max(abs(f), 1 / abs(f))
    return skew / gap if gap else math.inf
