"""Toeplitz systems in O(n log^2 n): the two columns that define the inverse, and the determinant.

With ``Z_1 T - T Z_-1 = G H^T``, ``G = [e_0, c]``, ``H = [r, e_{n-1}]`` (c_i = t_{i-n} + t_i and
r_j = t_{n-1-j} - t_{-1-j}) and ``D = diag(exp(i pi k / n))``, the matrix ``F T D^-1 F^-1`` is Cauchy-like at roots of
unity. ``superfast_tree`` finds ``T^-1 G = [x, z]`` by halves; that pair gives T^-1 by the two-solve formula of
``levinson``, which also refines the pair itself. Leading minors of T may be singular: the blocks met are those of the
transformed matrix, and where one of those is nearly singular the circle is turned (``t_k exp(i alpha k / n)``, a
similarity) and all begins again.

n that cannot be halved often enough is padded: T is the leading block of a Toeplitz matrix of order N > n, with N - n
at most n / 48 and mostly far less; x, z and det follow from the Schur complement of the trailing N - n rows of the
larger inverse, a small dense matrix formed from its displacement.

Computed in complex128, the tree on the CPU; no gradients here (``toeplitz_solve`` has them).
Sources: see ``superfast_tree``; the Cauchy-like form is G. Heinig, Inversion of generalized Cauchy matrices and other
classes of structured matrices, 1995.
"""

import math
from typing import Any

import numpy
import scipy.fft
import scipy.linalg
import torch

from structmat.functional import fourier
from structmat.functional.levinson import second_right_side
from structmat.functional.superfast_tree import Tree, tree_order
from structmat.functional.toeplitz import toeplitz_geometry, toeplitz_product
from structmat.functional.two_solve import TwoSolve

__all__ = ["Superfast", "factor"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

_EPS = float(numpy.finfo(numpy.float64).eps)
_CAUTION = 8.0  # one sample of an error may be smaller than the next
_ACCEPT, _TARGET = 100 * _EPS, 20 * _EPS  # backward errors: good enough, and where refinement ends
# What each attempt at a matrix takes: the angle the circle is turned by, the leaf size asked of the tree, and how readily
# it tries the other half. Larger leaves and less patience with growth cost time and leave fewer blocks to be singular.
_ATTEMPTS = ((0.0, 48, 100.0), (1.0, 48, 20.0), (2.3, 192, 5.0))


class Superfast:
    """The factorisation of one Toeplitz matrix or a batch: ``solve_rows``, ``adjoint``, ``slogdet``.

    ``inverse`` is T^-1 (of T itself, also in an adjoint), ``backward_error`` ``(*batch, 2)`` the errors of the two
    systems that define it, ``determinant_error`` a measured estimate of the error of log|det T| and of its phase.
    """

    def __init__(
        self,
        t: torch.Tensor,
        inverse: TwoSolve,
        sign: torch.Tensor,
        logabs: torch.Tensor,
        determinant_error: torch.Tensor,
        adjointed: bool = False,
    ) -> None:
        self.t, self.inverse, self.adjointed = t, inverse, adjointed
        self.sign, self.logabs, self.determinant_error = sign, logabs, determinant_error
        self.backward_error = _errors(t, torch.stack((inverse.x, inverse.z), -2), _right_sides(t))

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``T x = y`` (``T^H x = y`` for an adjoint) for each row; y ``(*batch, k, n)``. Refined while that
        gains."""
        t = self.t.flip(-1).conj() if self.adjointed else self.t
        x = self._apply(y)
        eta = _errors(t, x, y)
        for _ in range(4):
            if not bool((eta > _TARGET).any()):
                break
            new = x + self._apply(y - _multiply(t, x))
            eta_new = _errors(t, new, y)
            better = eta_new < eta
            if not bool(better.any()):
                break
            x, eta = torch.where(better[..., None], new, x), torch.where(better, eta_new, eta)
        return x

    def _apply(self, y: torch.Tensor) -> torch.Tensor:
        if self.adjointed:
            return self.inverse.solve_transposed_rows(y.conj()).conj().resolve_conj()
        return self.inverse.solve_rows(y)

    def adjoint(self) -> "Superfast":
        """The solver of ``T^H``, out of the same pair: ``T^-T = J T^-1 J``."""
        sign = self.sign.conj().resolve_conj()
        return Superfast(self.t, self.inverse, sign, self.logabs, self.determinant_error, not self.adjointed)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign (phase) and ``log|det T|``, ``(*batch)``; NaN where the measured error is above ``100 n eps cond(T)``,
        cond estimated from below by a few power steps."""
        bad = ~(self.determinant_error <= _determinant_limit(self.t, self.inverse))
        return self.sign.masked_fill(bad, torch.nan), self.logabs.masked_fill(bad, torch.nan)


def factor(t: torch.Tensor, determinant: bool = False) -> Superfast:
    """The factorisation of the square Toeplitz matrices of t ``(*batch, 2n - 1)``, entry k at ``t[k + n - 1]``.

    Up to three attempts a matrix, each O(n log^2 n); the best is kept, whatever its ``backward_error``: the caller
    looks. ``determinant`` makes sure that ``slogdet`` has its error measured, which for complex t takes a second
    attempt (for real t it is the distance of the phase from the real axis), and tries again where it is too
    large; without it that error may be inf.
    """
    wide = t.detach().to(torch.promote_types(t.dtype, torch.float64))
    n = (wide.shape[-1] + 1) // 2
    flat = wide.reshape(-1, wide.shape[-1])
    found = [_best(row, determinant) for row in flat]
    pairs = torch.stack([f[0] for f in found]) if found else flat.new_zeros(0, 2, n)
    batch = wide.shape[:-1]
    pairs = pairs.reshape(*batch, 2, n)
    sign = torch.tensor([f[1] for f in found], dtype=wide.dtype, device=wide.device)
    logs, errors = (torch.tensor([f[k] for f in found], dtype=torch.float64, device=wide.device) for k in (2, 3))
    return Superfast(
        wide,
        TwoSolve(pairs[..., 0, :], pairs[..., 1, :]),
        sign.reshape(batch),
        logs.reshape(batch),
        errors.reshape(batch),
    )


def _best(t: torch.Tensor, determinant: bool) -> tuple[torch.Tensor, complex, float, float]:
    """The best pair ``(2, n)`` of one matrix, with phase, log|det| and the error of these."""
    host = t.cpu().resolve_conj().numpy()
    right = _right_sides(t)
    best: tuple[torch.Tensor, complex, float, float] = (torch.full_like(right, torch.nan), math.nan, math.nan, math.inf)
    least = math.inf
    logs: list[tuple[complex, float]] = []
    for attempt in range(len(_ATTEMPTS)):
        rows, sign, logabs = _attempt(host, attempt)
        pair, eta = _improved(t, torch.from_numpy(rows).to(t), right)
        if not least <= eta:
            least = eta if eta == eta else math.inf
            best = (pair, *best[1:])
        error = _disagreement(host, sign, logabs, logs)
        logs.append((sign, logabs))
        if not best[3] <= error or attempt == 0:
            best = (best[0], _rounded(host, sign), logabs, error if error == error else math.inf)
        if least <= _ACCEPT and not (determinant and best[3] > _limit(t, best[0])):
            break
    return best


def _limit(t: torch.Tensor, pair: torch.Tensor) -> float:
    return float(_determinant_limit(t, TwoSolve(pair[0], pair[1])))


def _determinant_limit(t: torch.Tensor, inverse: TwoSolve, steps: int = 4) -> torch.Tensor:
    """``100 n eps ||T|| ||T^-1||``, the last from below by power steps with ``T^-H T^-1`` from a fixed vector."""
    n = (t.shape[-1] + 1) // 2
    v = torch.cos(torch.arange(n, dtype=torch.float64, device=t.device) ** 2)  # no pattern that T shares
    v = v.to(t.dtype).expand(*t.shape[:-1], 1, n)
    norm = torch.ones(t.shape[:-1], dtype=torch.float64, device=t.device)
    for _ in range(steps):
        w = inverse.solve_rows(v / torch.linalg.vector_norm(v, dim=-1, keepdim=True))
        norm = torch.linalg.vector_norm(w, dim=-1)[..., 0]
        v = inverse.solve_transposed_rows(w.conj()).conj().resolve_conj()
    return 100 * n * _EPS * _norm_bound(t) * norm


def _rounded(host: Array, sign: complex) -> complex:
    if numpy.iscomplexobj(host) or not abs(sign) > 0:
        return sign
    return 1.0 if sign.real >= 0 else -1.0


def _disagreement(host: Array, sign: complex, logabs: float, others: list[tuple[complex, float]]) -> float:
    """How far ``log det`` of one attempt is wrong: by the sine of its angle to the real axis, else by the others."""
    if not numpy.iscomplexobj(host):
        return _CAUTION * abs(sign.imag) if abs(sign.real) > 0.5 else math.inf
    return _CAUTION * min((max(abs(logabs - log), abs(sign - other)) for other, log in others), default=math.inf)


def _right_sides(t: torch.Tensor) -> torch.Tensor:
    c = second_right_side(t)
    unit = torch.zeros_like(c)
    unit[..., 0] = 1
    return torch.stack((unit, c), -2)


def _multiply(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return toeplitz_product(t, x, (t.shape[-1] + 1) // 2)


def _norm_bound(t: torch.Tensor) -> torch.Tensor:
    n = (t.shape[-1] + 1) // 2
    return fourier.spectrum(t, toeplitz_geometry(n, n)).abs().amax(-1)


def _errors(t: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm
    size = _norm_bound(t)[..., None] * norm(x, dim=-1) + norm(b, dim=-1)
    return norm(b - _multiply(t, x), dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)


def _improved(t: torch.Tensor, pair: torch.Tensor, right: torch.Tensor, rounds: int = 4) -> tuple[torch.Tensor, float]:
    """The pair refined with the inverse that it defines, and the larger of its two backward errors."""
    eta = float(_errors(t, pair, right).max())
    for _ in range(rounds):
        if not eta > _TARGET:  # NaN also ends it
            break
        new = pair + TwoSolve(pair[0], pair[1]).solve_rows(right - _multiply(t, pair))
        smaller = float(_errors(t, new, right).max())
        if not smaller < eta:
            break
        pair, eta = new, smaller
    return pair, eta


# -- one attempt ---------------------------------------------------------------------------------------------------


def _attempt(t: Array, number: int) -> tuple[Array, complex, float]:
    """The pair ``(2, n)``, phase and log of det, by the tree of the matrix itself or of a slightly larger one."""
    n = (t.shape[0] + 1) // 2
    turn, leaf, growth = _ATTEMPTS[number]
    order, leaf = tree_order(n, leaf)
    tree = Tree(order, leaf, growth=growth)
    if order == n:
        return _pair(tree, t, turn)
    larger = _extended(t, order, number)
    rows, sign, logabs = _pair(tree, larger, turn)
    wide = torch.from_numpy(larger)
    pair, _ = _improved(wide, torch.from_numpy(rows).to(wide.dtype), _right_sides(wide), rounds=2)
    inverse = TwoSolve(pair[0], pair[1])
    block = _trailing_block(inverse, n)
    right = torch.zeros(2, order, dtype=wide.dtype)
    right[:, :n] = _right_sides(torch.from_numpy(t))
    whole = inverse.solve_rows(right)
    with numpy.errstate(all="ignore"):
        lu, swaps = scipy.linalg.lu_factor(block, check_finite=False)
        right[:, :n] = 0
        right[:, n:] = torch.from_numpy(
            scipy.linalg.lu_solve((lu, swaps), whole[:, n:].numpy().T, check_finite=False).T
        )
        diagonal = lu.diagonal()
        sizes = numpy.abs(diagonal)
        phase = complex(numpy.prod(diagonal / sizes)) * (-1) ** int((swaps != numpy.arange(order - n)).sum())
        logabs += float(numpy.log(sizes).sum())
    rest: Array = (whole - inverse.solve_rows(right))[:, :n].numpy()
    return rest, sign * phase, logabs


def _extended(t: Array, order: int, number: int) -> Array:
    """t with ``order - n`` further diagonals on both sides: zeros first, numbers of the size of t's later."""
    n, more = (t.shape[0] + 1) // 2, order - (t.shape[0] + 1) // 2
    fill = numpy.zeros(2 * more, t.dtype)
    if number:
        size = numpy.linalg.norm(t) / math.sqrt(2 * n - 1)
        fill += size * numpy.cos((number + 1.0) * numpy.arange(2 * more) ** 2)
    return numpy.concatenate((fill[:more], t, fill[more:]))


def _trailing_block(inverse: TwoSolve, n: int) -> Array:
    """``T^-1[n:, n:]`` down its diagonals: with ``Z_-1 A - A Z_1 = G H^T``, ``A[i, j+1] = A[i-1, j] - (G H^T)[i, j]``,
    G = [-x, -z], H = [J (2 e_0 - z), J x], T of ``levinson``'s formula."""
    order = inverse.x.shape[-1]
    unit = torch.zeros(1, order, dtype=inverse.x.dtype)
    unit[0, n] = 1
    block = numpy.empty((order - n, order - n), inverse.x.numpy().dtype)
    column = inverse.solve_rows(unit)[0, n:].numpy()
    block[0] = inverse.solve_transposed_rows(unit)[0, n:].numpy()
    block[:, 0] = column
    x, z = inverse.x.numpy(), inverse.z.numpy()
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
