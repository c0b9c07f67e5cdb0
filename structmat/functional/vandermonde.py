"""Vandermonde matrices ``V_ij = x_i^j``: products by blocks of Horner's rule, Bjorck and Pereyra's solvers.

The product evaluates polynomials: coefficients in blocks of s, each block by one matrix product with the powers
``x^0 .. x^(s-1)``, the blocks by Horner's rule in ``x^s``. Powers come by doubling, so integers stay exact as long as
the dtype holds them. Everything of the product is plain torch: derivatives and transforms of any order.

The solver does n^2 work in n memory, by divided differences, in the order of Leja: each node is the one farthest (in
the product of distances) from those before it, which keeps the differences from growing.
Sources: A. Bjorck and V. Pereyra, Solution of Vandermonde systems of equations, Math. Comp. 24, 1970, sections 2 and
3; L. Reichel, Newton interpolation at Leja points, BIT 30, 1990, equation (1.6); N. J. Higham, Accuracy and Stability
of Numerical Algorithms, 2002, chapter 22.
"""

import dataclasses
import math

import torch

from structmat import backend
from structmat.functional.cauchy import quotient_sums
from structmat.functional.transforms import nothing

__all__ = ["BjorckPereyra", "diagonal", "evaluate", "leja_order", "log_slopes", "log_value", "moments", "powers"]


def powers(x: torch.Tensor, count: int) -> torch.Tensor:
    """``x^0 .. x^(count - 1)`` along a new last axis, by doubling."""
    nowhere = torch.zeros_like(x, dtype=torch.bool)
    found = torch.where(nowhere, x, torch.ones_like(x))[..., None]  # ones, with a derivative of zero
    step = x[..., None]
    while found.shape[-1] < count:
        take = min(found.shape[-1], count - found.shape[-1])
        found = torch.cat((found, found[..., :take] * step), -1)
        step = step * step if found.shape[-1] < count else step
    return found[..., :count]


def _block(count: int) -> int:
    """The length of a block: a power of two near the square root, 64 at least."""
    return max(64, 2 ** math.ceil(math.log2(max(count, 1)) / 2))


def _parts(x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    out = torch.promote_types(x.dtype, v.dtype)
    wide = backend.compute_dtype(out)
    return x.to(wide), (v[None] if v.ndim == 1 else v).to(wide), out


def evaluate(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Rows ``v V^T``: the polynomials with coefficients v ``(*b, k, n)`` at x ``(*b, m)``; ``(*b, k, m)``."""
    wide, rows, out = _parts(x, v)
    n = rows.shape[-1]
    size = _block(n)
    table = powers(wide, min(size, n) + 1 if n > size else n)
    far = table[..., None, :, size] if n > size else None
    result: torch.Tensor | None = None
    with backend.full_precision(rows.device):
        for start in reversed(range(0, n, size)):
            piece = rows[..., start : start + size]
            value = piece @ table[..., : piece.shape[-1]].mT
            result = value if result is None or far is None else result * far + value
    if result is None:
        lead = torch.broadcast_shapes(wide.shape[:-1], rows.shape[:-2])
        result = nothing((*lead, rows.shape[-2], wide.shape[-1]), rows.dtype, rows, wide)
    result = result.to(out)
    return result[..., 0, :] if v.ndim == 1 else result


def moments(x: torch.Tensor, v: torch.Tensor, count: int) -> torch.Tensor:
    """Rows ``v V``: ``sum_i v_i x_i^j`` for j < count; v ``(*b, k, m)``, x ``(*b, m)``; ``(*b, k, count)``."""
    wide, rows, out = _parts(x, v)
    size = _block(count)
    table = powers(wide, min(size, count) + 1)
    far = table[..., None, :, size] if count > size else None
    pieces = []
    with backend.full_precision(rows.device):
        for start in range(0, count, size):
            rows = rows if start == 0 or far is None else rows * far
            pieces.append(rows @ table[..., : min(size, count - start)])
    if not pieces:
        lead = torch.broadcast_shapes(wide.shape[:-1], rows.shape[:-2])
        pieces.append(nothing((*lead, rows.shape[-2], 0), rows.dtype, rows, wide))
    result = torch.cat(pieces, -1).to(out)
    return result[..., 0, :] if v.ndim == 1 else result


def diagonal(x: torch.Tensor, size: int) -> torch.Tensor:
    """``x_i^i``, i < size, by repeated squaring; a factor that is not needed is never formed, so none overflows."""
    wide = x[..., :size].to(backend.compute_dtype(x.dtype))
    exponent = torch.arange(size, device=x.device)
    one = torch.ones_like(wide)
    result, square = one, wide
    while size > 1:
        odd = exponent % 2 == 1
        result = torch.where(odd, result * torch.where(odd, square, one), result)
        exponent = exponent // 2
        size = (size - 1) // 2 + 1
        square = torch.where(exponent > 0, square, one)
        square = torch.where(exponent > 0, square * square, one)
    return result.to(x.dtype)


def leja_order(x: torch.Tensor) -> torch.Tensor:
    """The order of x ``(B, n)`` in which each node has the largest product of distances to those before it."""
    count, n = x.shape
    order = torch.empty(count, n, dtype=torch.int64, device=x.device)
    score = torch.log(x.abs())
    score = torch.where(torch.isnan(score), torch.full_like(score, -torch.inf), score)
    taken = torch.zeros(count, n, dtype=torch.bool, device=x.device)
    for step in range(n):
        best = torch.where(taken, -torch.inf, score)
        free = torch.where(taken, -torch.inf, torch.zeros_like(score))  # equal nodes score -inf: take any free one
        pick = torch.where(torch.isinf(best.amax(1)), free.argmax(1), best.argmax(1))[:, None]
        order[:, step] = pick[:, 0]
        taken.scatter_(1, pick, True)
        gaps = torch.log((x - x.gather(1, pick)).abs())
        score = gaps if step == 0 else score + gaps
    return order


@dataclasses.dataclass(frozen=True, eq=False)
class BjorckPereyra:
    """V^-1, or V^-T where transposed, of square V with nodes x ``(*b, n)``: no gradients, no n^2 storage."""

    x: torch.Tensor
    order: torch.Tensor
    transposed: bool

    @classmethod
    def of(cls, x: torch.Tensor, transposed: bool) -> "BjorckPereyra":
        """In float64 (complex128), the nodes in Leja's order."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float64))
        order = leja_order(wide.reshape(math.prod(x.shape[:-1]), x.shape[-1])).reshape(x.shape)
        return cls(wide.gather(-1, order), order, transposed)

    @property
    def device(self) -> torch.device:
        return self.x.device

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """a with ``V a = y`` (or ``V^T a = y``) for each row ``(*batch, k, n)``."""
        dtype = torch.promote_types(self.x.dtype, y.dtype)
        lead = torch.broadcast_shapes(self.x.shape[:-1], y.shape[:-2])
        rows = y.detach().to(dtype).expand(*lead, *y.shape[-2:])
        order = self.order[..., None, :].expand(*lead, *y.shape[-2:])
        x = self.x[..., None, :]
        if not self.transposed:
            return _interpolate(x, rows.gather(-1, order))
        found = _weights(x, rows.clone())
        return torch.empty_like(found).scatter_(-1, order, found)

    def adjoint(self) -> "BjorckPereyra":
        """Solves with the conjugated transpose, from the same order of the nodes."""
        return dataclasses.replace(self, x=self.x.conj().resolve_conj(), transposed=not self.transposed)


def _interpolate(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``V a = c``: Newton's divided differences, then the coefficients of the powers. Overwrites c."""
    n = x.shape[-1]
    for k in range(n - 1):
        c[..., k + 1 :] = (c[..., k + 1 :] - c[..., k : n - 1]) / (x[..., k + 1 :] - x[..., : n - 1 - k])
    for k in range(n - 2, -1, -1):
        c[..., k : n - 1] -= x[..., k : k + 1] * c[..., k + 1 :]
    return c


def _weights(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``V^T a = b``: the transposes of the steps of ``_interpolate``, in reverse. Overwrites b."""
    n = x.shape[-1]
    for k in range(n - 1):
        b[..., k + 1 :] = b[..., k + 1 :] - x[..., k : k + 1] * b[..., k : n - 1]
    for k in range(n - 2, -1, -1):
        b[..., k + 1 :] /= x[..., k + 1 :] - x[..., : n - 1 - k]
        b[..., k : n - 1] = b[..., k : n - 1] - b[..., k + 1 :]
    return b


def log_value(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and logarithm of ``det V = prod_{i > j} (x_i - x_j)``; n^2 work, 65,536 differences at a time."""
    n = x.shape[-1]
    block = max(1, backend.dense_limit(x.device) ** 2 // max(1, x.numel()))
    sign = torch.ones(x.shape[:-1], dtype=x.dtype, device=x.device)
    logabs = torch.zeros(x.shape[:-1], dtype=backend.real_of(x.dtype), device=x.device)
    every = torch.arange(n, device=x.device)
    for s in range(0, n, block):
        below = every[s : s + block, None] > every
        gaps = torch.where(below, x[..., s : s + block, None] - x[..., None, :], torch.ones_like(x[..., None, :]))
        sign = sign * torch.sgn(gaps).flatten(-2).prod(-1)
        logabs = logabs + torch.log(gaps.abs()).sum((-2, -1))
    return torch.sgn(sign), logabs


def log_slopes(x: torch.Tensor) -> tuple[torch.Tensor]:
    """The derivative of ``log det V`` in x_i: ``sum_{j != i} 1 / (x_i - x_j)``."""
    return (quotient_sums(x, x, torch.ones_like(x)[..., None], 1, True)[..., 0],)
