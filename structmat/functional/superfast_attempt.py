"""One attempt at a Toeplitz matrix by the tree of ``superfast_tree``: scaling, turning, padding, and back. In numpy.

With ``Z_1 T - T Z_-1 = G H^T``, ``G = [e_0, c]``, ``H = [r, e_{n-1}]`` (c_i = t_{i-n} + t_i and
r_j = t_{n-1-j} - t_{-1-j}) and ``D = diag(exp(i pi k / n))``, the matrix ``F T D^-1 F^-1`` is Cauchy-like with the
nodes that the tree is made for, and its solutions with the transformed G are those of T with G, the pair x, z of
``two_solve``. Turning the circle by alpha is the similarity ``t_k exp(i alpha k / n)``: other leading blocks.

An n that cannot be halved often enough is padded: T is the leading block of a Toeplitz matrix of order N > n, with
N - n at most n / 48 and mostly far less; x, z and det follow from the Schur complement of the trailing N - n rows of
the larger inverse, a small dense matrix formed from its displacement.
Source: G. Heinig, Inversion of generalized Cauchy matrices and other classes of structured matrices, 1995 (the
Cauchy-like form); R. A. Horn and C. R. Johnson, Matrix Analysis, 2nd ed., 2013, section 0.8.5 (the complement).
"""

import math
from typing import Any

import numpy
import scipy.fft
import scipy.linalg
import torch

from structmat.functional.levinson import second_right_side
from structmat.functional.superfast_tree import Tree, tree_order
from structmat.functional.toeplitz_pair import improved
from structmat.functional.toeplitz_system import System, right_sides
from structmat.functional.two_solve import TwoSolve

__all__ = ["ATTEMPTS", "attempt", "trailing_block"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

# What each attempt takes: the angle the circle is turned by, the leaf size asked of the tree, and how readily
# it tries the other half. Larger leaves and less patience with growth cost time and leave fewer blocks to be singular.
ATTEMPTS = ((0.0, 48, 100.0), (1.0, 48, 20.0), (2.3, 192, 5.0), (3.1, 48, 20.0), (4.3, 96, 10.0), (5.5, 192, 5.0))


def attempt(t: Array, number: int) -> tuple[Array, complex, float]:
    """The unrefined pair ``(2, n)`` of t ``(2n - 1,)``, the phase of its determinant and ``log|det T|``. Non-finite
    numbers where it fails."""
    n = (t.shape[0] + 1) // 2
    turn, leaf, growth = ATTEMPTS[number]
    order, leaf = tree_order(n, leaf)
    tree = Tree(order, leaf, growth=growth)
    if order == n:
        return _pair(tree, t, turn)
    larger = _extended(t, order, number)
    rows, sign, logabs = _pair(tree, larger, turn)
    x, z = torch.from_numpy(rows)[:, None].unbind(0)
    inverse, _ = improved(System(torch.from_numpy(larger)[None]), TwoSolve(x, z), rounds=2)
    block = trailing_block(inverse, n)
    right = torch.zeros(1, 2, order, dtype=inverse.x.dtype)
    right[0, :, :n] = right_sides(torch.from_numpy(t))
    whole = inverse.solve_rows(right)[0]
    with numpy.errstate(all="ignore"):
        lu, swaps = scipy.linalg.lu_factor(block, check_finite=False)
        inner = scipy.linalg.lu_solve((lu, swaps), whole[:, n:].numpy().T, check_finite=False).T
        diagonal = lu.diagonal()
        sizes = numpy.abs(diagonal)
        phase = complex(numpy.prod(diagonal / sizes)) * (-1) ** int((swaps != numpy.arange(order - n)).sum())
        logabs += float(numpy.log(sizes).sum())
    right[0, :, :n] = 0
    right[0, :, n:] = torch.from_numpy(inner)
    pair: Array = (whole - inverse.solve_rows(right)[0])[:, :n].numpy()
    return pair, sign * phase, logabs


def _extended(t: Array, order: int, number: int) -> Array:
    """t with ``order - n`` further diagonals on both sides: zeros first, numbers of the size of t's later."""
    n, more = (t.shape[0] + 1) // 2, order - (t.shape[0] + 1) // 2
    fill = numpy.zeros(2 * more, t.dtype)
    if number:
        size = numpy.linalg.norm(t) / math.sqrt(2 * n - 1)
        fill += size * numpy.cos((number + 1.0) * numpy.arange(2 * more) ** 2)
    return numpy.concatenate((fill[:more], t, fill[more:]))


def trailing_block(inverse: TwoSolve, n: int) -> Array:
    """``T^-1[n:, n:]`` down its diagonals: with ``Z_-1 A - A Z_1 = G H^T``, ``A[i, j+1] = A[i-1, j] - (G H^T)[i, j]``,
    G = [-x, -z], H = [J (2 e_0 - z), J x]; the pair x, z ``(1, N)``."""
    order = inverse.n
    unit = torch.zeros(1, 1, order, dtype=inverse.x.dtype)
    unit[..., n] = 1
    x, z = inverse.x[0].numpy(), inverse.z[0].numpy()
    block = numpy.empty((order - n, order - n), x.dtype)
    block[0] = inverse.solve_transposed_rows(unit)[0, 0, n:].numpy()
    block[:, 0] = inverse.solve_rows(unit)[0, 0, n:].numpy()
    first, second = -z[::-1][n:], x[::-1][n:]  # 2 e_0 touches the last column alone, which no step uses
    for i in range(1, order - n):
        block[i, 1:] = block[i - 1, :-1] + (x[n + i] * first[:-1] + z[n + i] * second[:-1])
    return block


def _pair(tree: Tree, t: Array, turn: float) -> tuple[Array, complex, float]:
    """``[T^-1 e_0, T^-1 c]`` of a matrix of the tree's order: scaled to norm 1, turned, transformed, and back."""
    n = tree.order
    scale = float(numpy.linalg.norm(t))
    if not 0 < scale < math.inf:
        return numpy.full((2, n), numpy.nan, t.dtype), math.nan, -math.inf if scale == 0 else math.nan
    k = numpy.arange(n)
    turned = t / scale
    back = numpy.exp((-1j * turn / n) * k)
    if turn:
        turned = turned * numpy.exp((1j * turn / n) * numpy.arange(1 - n, n))
    g, h = numpy.zeros((2, n), numpy.complex128), numpy.zeros((2, n), numpy.complex128)
    g[0, 0] = h[1, n - 1] = 1
    g[1] = second_right_side(turned)
    h[0] = turned[n - 1 :][::-1]
    h[0, : n - 1] -= turned[: n - 1][::-1]
    untwist = numpy.exp((-1j * math.pi / n) * k)
    x, sign, logabs = tree.run(scipy.fft.fft(g, norm="ortho"), scipy.fft.ifft(untwist * h, norm="ortho"))
    rows: Array = scipy.fft.ifft(x, norm="ortho") * (untwist * back)
    rows[0] /= scale
    if turn:  # z is T^-1 (w c' + t_0..) with the weight w = exp(-i turn) instead of 1
        rows[1, 0] -= 1
        rows[1] *= numpy.exp(1j * turn)
        rows[1, 0] += 1
    sign *= 1j ** ((n - 1) % 4)  # det D
    return rows if numpy.iscomplexobj(t) else rows.real, sign, logabs + n * math.log(scale)
