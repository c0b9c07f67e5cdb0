"""Divide and conquer on a Cauchy-like matrix whose nodes are roots of unity: the engine below ``superfast``.

The matrix is ``C[i, j] = g_i . h_j / (lam_i - mu_j)`` of order N with two-vectors g_i, h_j, the N-th roots of unity
``lam_k = exp(-2 pi i k / N)`` and the points half-way between them, ``mu_k = exp(i pi / N) lam_k``. Its inverse is
known from the 2 x 2 rational function

    W(z) = I - sum_j h_j x_j / (z - mu_j) = P(z) / prod_j (z - mu_j),    x = C^-1 g,    P monic of degree N,

and W of the whole is a product of W's of parts: if C11 belongs to the indices S, the Schur complement of C11 is again
Cauchy-like, with ``g_i W_S(lam_i)`` and ``W_S(mu_j)^-1 h_j`` on the remaining nodes. With S the even (or odd) indices
all evaluations and products are FFTs, the same tables serve every node of one depth, and the work is O(N log^2 N).
The leaves are small dense systems; the determinant is the product of theirs.

Nothing chooses pivots across leaves, so a nearly singular leading block costs accuracy: twice its condition. Three
things keep that in check. The half (even, odd) whose W is small goes first; each node corrects its own P by one or two
steps with the inverse that P itself defines (which takes the error from eps cond^2 back to eps cond); and the caller
turns the circle and starts again. A positive definite T gives no large W at all: the even half of C is a positive
definite Toeplitz-like matrix again, no worse conditioned (the folded ``[I, I] T' [I; I]``).

Sources: M. Van Barel, G. Heinig, P. Kravanja, A stabilized superfast solver for nonsymmetric Toeplitz systems, 2001
(tangential interpolation at roots of unity by halves, and correction of the result); I. Gohberg, T. Kailath,
V. Olshevsky, Fast Gaussian elimination with partial pivoting for matrices with displacement structure, 1995
(Cauchy-like form and its Schur complement). The choice of the half and the correction inside the tree are ours.
"""

import dataclasses
import math
from typing import Any

import numpy
import scipy.fft
import scipy.linalg

__all__ = ["Tree", "tree_order"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

_LEAF = 48  # leaves hold from this many to six times as many nodes; smaller ones are slower and less stable
_ROUNDS = 3  # corrections of one node
_ENOUGH = 8e-15  # residual of a node below which it is left alone
_GROWTH = 100.0  # max |W| over the number of nodes above which the other half is tried
_TINY = 1e-300


def tree_order(n: int, leaf: int = _LEAF) -> tuple[int, int]:
    """The order ``N = q 2^k >= n`` of the tree that serves n unknowns, and its leaf size q in [leaf, 6 leaf).

    Chosen by a count of operations: the leaves ``N q^2``, and ``(N - n)^3`` for the rows beyond n. Up to two leaves
    N is n itself.
    """
    if n < 2 * leaf:
        return n, n
    best, choice = math.inf, (n, n)
    power = 2
    while n > power * leaf:
        q = -(-n // power)
        if q < 6 * leaf:
            order = q * power
            cost = 2.7 * order * (q + 60) ** 2 + 0.7 * (order - n) ** 3
            if cost < best:
                best, choice = cost, (order, q)
        power *= 2
    return choice


@dataclasses.dataclass(frozen=True)
class _Level:
    """Tables for the nodes of one size M, in the variable that makes their lam the M-th roots of unity."""

    lam: Array  # exp(-2 pi i k / M)
    mu: Array  # exp(i pi / N) lam
    shift: Array  # exp(i pi l / N): a polynomial's coefficients times this, transformed, are its values at mu
    corner: complex  # mu^M, one number for all k
    other: tuple[Array, Array]  # factors for the values at the mu of the even and of the odd half
    turn: Array  # from the variable of the odd half to that of the node; the leading coefficient back to 1


class Tree:
    """The recursion for one order N and leaf size q; ``run`` serves any number of matrices.

    ``largest`` is the largest |W| met, ``worst`` the largest residual of a node before its correction.
    """

    def __init__(self, order: int, leaf: int, rounds: int = _ROUNDS, growth: float = _GROWTH) -> None:
        self.order, self.leaf, self.rounds, self.growth = order, leaf, rounds, growth
        self.largest, self.worst = 0.0, 0.0
        self._levels: dict[int, _Level] = {}
        self._luck: dict[int, tuple[int, int]] = {}
        k = numpy.arange(leaf)
        # lam_k - mu_l = 2i sin(a) exp(i b) with integer angles, reduced: no cancellation, no rounded large angle
        stride = order // leaf
        turns = 2 * (k - k[:, None]) * stride - 1
        wrapped = (turns + order) % (2 * order) - order
        sign = numpy.where((turns - wrapped) % (4 * order) == 0, 1.0, -1.0)
        half = (1 - 2 * (k + k[:, None]) * stride) % (4 * order)
        self._cauchy = 1 / (
            2j * sign * numpy.sin(wrapped * (math.pi / (2 * order))) * numpy.exp(half * (0.5j * math.pi / order))
        )

    def run(self, g: Array, h: Array) -> tuple[Array, complex, float]:
        """``x = C^-1 g`` as ``(2, N)``, the phase of det C and ``log|det C|``; g and h ``(2, N)``, complex128."""
        self.largest = self.worst = 0.0
        self._luck = {}
        with numpy.errstate(all="ignore"):
            r, sign, logabs = self._node(g, h, 0)
            level = self._level(self.order)
            return _solution(r, h, level), sign, logabs

    def _level(self, size: int) -> _Level:
        if size not in self._levels:
            k = numpy.arange(size)
            lam = numpy.exp((-2j * math.pi / size) * k)
            shift = numpy.exp((1j * math.pi / self.order) * k)
            m = size // 2
            other = shift[:m], shift[:m] * lam[:m]
            corner = complex(numpy.exp(1j * math.pi * size / self.order)) if size < self.order else -1 + 0j
            self._levels[size] = _Level(
                lam, numpy.exp(1j * math.pi / self.order) * lam, shift, corner, other, -lam[:m].conj()
            )
        return self._levels[size]

    def _node(self, g: Array, h: Array, start: int) -> tuple[Array, complex, float]:
        """The coefficients of ``R = P - (z^M - corner) I``, below degree M, ``(2, 2, M)``; phase and log of det.

        The nodes are ``start + k N / M`` of the whole circle.
        """
        size = g.shape[1]
        phase = numpy.exp((2j * math.pi / self.order) * start)
        if size == self.leaf:
            return self._solve_leaf(phase * g, h)
        level, step = self._level(size), self.order // size
        first, r0, e0, sign0, log0 = self._better_half(g, h, start)
        rest = 1 - first
        root = 1.0 - 2.0 * rest  # z^m at the lam of the second half; minus that at those of the first
        corner = self._level(size // 2).corner * -root  # z^m at the mu of the first half, minus that at the second
        g1 = (g[:, None, rest::2] * e0[:, :, rest::2]).sum(0) / (root - corner)
        p = scipy.fft.fft(r0 * level.other[rest])
        _add(p, -2 * corner)
        p /= root - corner  # W^-1 = adj(P) / (z^m + root), and z^m = -corner at these mu
        a, b = h[0, rest::2], h[1, rest::2]
        h1 = numpy.stack((p[1, 1] * a - p[0, 1] * b, p[0, 0] * b - p[1, 0] * a))
        r1, sign1, log1 = self._node(g1, h1, start + rest * step)
        if rest:
            r1 = r1 * level.turn
        product = _product(e0, self._values(r1, size, -corner))
        return self._corrected(phase * g, h, product, level), sign0 * sign1, log0 + log1

    def _better_half(self, g: Array, h: Array, start: int) -> tuple[int, Array, Array, complex, float]:
        """The half to eliminate first: which, its R in the node's variable, its P at all lam, phase, log.

        The odd half is tried only where the even one has a large W, and taken if its own is smaller.
        """
        size = g.shape[1]
        level, step = self._level(size), self.order // size
        inner = self._level(size // 2).corner
        best, before = (math.inf, 0, g[:1], g[:1], 1 + 0j, 0.0), math.inf
        for first in (0, 1):
            half, other = g[:, first::2], h[:, first::2]
            r, sign, logabs = self._node(
                numpy.ascontiguousarray(half), numpy.ascontiguousarray(other), start + first * step
            )
            if first:
                r = r * level.turn
            values = self._values(r, size, inner if not first else -inner)
            large = float(numpy.abs(values[:, :, 1 - first :: 2]).max()) / abs(1 + inner)
            if not best[0] <= large:
                best = (large if math.isfinite(large) else math.inf, first, r, values, sign, logabs)
            if first:
                tried, gained = self._luck.get(size, (0, 0))
                self._luck[size] = tried + 1, gained + (large < before / 2)
            if large <= self.growth * size or not self._hopeful(size):
                break
            before = large
        self.largest = max(self.largest, best[0])
        return best[1:]

    def _hopeful(self, size: int) -> bool:
        """Whether other halves of nodes of this size used to be better. Where T itself is ill-conditioned none is, and
        to try at every depth would multiply the work by 3/2 for each."""
        tried, gained = self._luck.get(size, (0, 0))
        return tried < 4 or 4 * gained >= tried

    def _values(self, r: Array, size: int, corner: complex) -> Array:
        """P at the lam of a node from the R of one of its halves: ``z^m`` is 1 at the even ones and -1 at the odd."""
        values: Array = scipy.fft.fft(r, size)
        for k in (0, 1):
            values[k, k, 0::2] += 1 - corner
            values[k, k, 1::2] -= 1 + corner
        return values

    def _solve_leaf(self, g: Array, h: Array) -> tuple[Array, complex, float]:
        level = self._level(self.leaf)
        c = (g.T @ h) * self._cauchy
        lu, pivots, x, info = scipy.linalg.lapack.zgesv(c, g.T)
        if info > 0:  # exactly singular: a tiny shift now, corrected later
            c[numpy.diag_indices_from(c)] += numpy.finfo(numpy.float64).eps * numpy.abs(c).max()
            lu, pivots, x, info = scipy.linalg.lapack.zgesv(c, g.T)
        diagonal = lu.diagonal()
        sizes = numpy.abs(diagonal)
        swaps = int((pivots != numpy.arange(self.leaf)).sum())
        sign = complex(numpy.prod(diagonal / sizes)) * (-1) ** swaps
        return _polynomial(x.T, h, level), sign, float(numpy.log(sizes).sum())

    def _corrected(self, g: Array, h: Array, p: Array, level: _Level) -> Array:
        """R from the values of P at lam, after steps of refinement: ``g W(lam)`` would be zero, and ``C^-1`` is known
        from P, ``(C^-1)[j, i] = -x_j y_i / (mu_j - lam_i)``."""
        gap = 1 - level.corner
        r = _residual_part(p, gap)
        remainder, size = _remainder(g, p, gap)
        self.worst = max(self.worst, size)
        for _ in range(self.rounds):
            if not size > _ENOUGH:
                break
            x = _solution(r, h, level)
            x += _apply_inverse(x, _left(p, g, level), remainder, level)
            candidate = _polynomial(x, h, level)
            values = scipy.fft.fft(candidate)
            _add(values, gap)
            rest, smaller = _remainder(g, values, gap)
            if not smaller < size:
                break
            r, p, remainder, gain, size = candidate, values, rest, smaller / size, smaller
            if gain > 0.5:
                break
        return r


def _add(p: Array, number: complex) -> None:
    p[0, 0] += number
    p[1, 1] += number


def _product(p: Array, q: Array) -> Array:
    """2 x 2 matrices, entry by entry of the last axis."""
    return numpy.stack([p[k, 0] * q[0] + p[k, 1] * q[1] for k in (0, 1)])


def _residual_part(p: Array, gap: complex) -> Array:
    values = p.copy()
    _add(values, -gap)
    r: Array = scipy.fft.ifft(values, overwrite_x=True)
    return r


def _remainder(g: Array, p: Array, gap: complex) -> tuple[Array, float]:
    """``g - C x = g W(lam)``, and its largest entry relative to ``max|g| (1 + max|W|)``."""
    rest = (g[0] * p[0] + g[1] * p[1]) / gap
    scale = float(numpy.abs(g).max()) * (1 + float(numpy.abs(p).max()) / abs(gap))
    return rest, float(numpy.abs(rest).max()) / max(scale, _TINY)


def _solution(r: Array, h: Array, level: _Level) -> Array:
    """x out of R: at mu_j, ``R = -h_j x_j M mu_j^(M-1)``."""
    values = scipy.fft.fft(r * level.shift)
    inner = h[0].conj() * values[0] + h[1].conj() * values[1]
    weight = level.mu / (-h.shape[1] * level.corner)
    x: Array = inner * (weight / numpy.maximum((h.real**2 + h.imag**2).sum(0), _TINY))
    return x


def _polynomial(x: Array, h: Array, level: _Level) -> Array:
    """R out of x: interpolation at the mu."""
    weighted = x * (level.mu.conj() * (-h.shape[1] * level.corner))
    r: Array = scipy.fft.ifft(h[:, None] * weighted[None], overwrite_x=True)
    r *= level.shift.conj()
    return r


def _left(p: Array, g: Array, level: _Level) -> Array:
    """``y = H^T C^-1`` as ``(2, M)``: at lam_i, ``adj P = y_i g_i M lam_i^(M-1)``."""
    a, b = g.conj()
    y = numpy.stack((p[1, 1] * a - p[0, 1] * b, p[0, 0] * b - p[1, 0] * a))
    weight = level.lam / g.shape[1]
    scaled: Array = y * (weight / numpy.maximum((g.real**2 + g.imag**2).sum(0), _TINY))
    return scaled


def _apply_inverse(x: Array, y: Array, right: Array, level: _Level) -> Array:
    """``C^-1 right`` for right ``(2, M)``: four Cauchy products from lam to mu."""
    weights = y[:, None] * (right * (level.lam.conj() * right.shape[1]))[None]
    field = scipy.fft.fft(scipy.fft.ifft(weights, overwrite_x=True) * level.shift, overwrite_x=True)
    return (x[0] * field[0] + x[1] * field[1]) / (1 - level.corner)
