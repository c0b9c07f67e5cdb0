"""``(I + K)^-1`` for many small skew-Hermitian K on the CPU, where LAPACK spends its time around the arithmetic.

Elimination without pivoting, in one of two arrangements: Gauss-Jordan with the batch as the innermost dimension, so
that a step is a few operations on long vectors, or by halves,

    A^-1 and S^-1,  S = D + B A^-1 B^H  for  I + K = [[A, -B^H], [B, D]],  with products of halves as the rest.

The Hermitian part of ``I + K`` is I, and that of every Schur complement is at least I, so no pivot is below 1 in
modulus. The complements may still be as large as ``||K||^2``, and then digits are lost that pivoting would keep:
whoever calls must measure the result and take LAPACK's in place of a bad one.

Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, sections 2.1.4 and 4.3.2 (positive definite
matrices that are not symmetric).
"""

import torch

__all__ = ["fast_inverse", "is_fast"]

_JORDAN = 16  # up to this order Gauss-Jordan, above it halves
_NUMBERS = 2048  # n times the number of matrices from which the loop over columns pays


def is_fast(k: torch.Tensor) -> bool:
    """Whether ``fast_inverse`` was measured to be faster than LAPACK for matrices ``(many, n, n)``."""
    many, n = k.shape[:2]
    return k.device.type == "cpu" and many > 0 and (n >= 32 if n > _JORDAN else n > 1 and many * n >= _NUMBERS)


def fast_inverse(k: torch.Tensor) -> torch.Tensor:
    """``(I + K)^-1`` for K ``(many, n, n)``, to be measured by the caller; no gradient."""
    if k.shape[-1] <= _JORDAN:
        return _gauss_jordan(k)
    shifted = k.clone(memory_format=torch.contiguous_format)
    shifted.diagonal(dim1=-2, dim2=-1).add_(1)
    return _by_halves(shifted)


def _gauss_jordan(k: torch.Tensor) -> torch.Tensor:
    """In place, a column a step, on ``(n, n, many)``."""
    work = k.permute(1, 2, 0).contiguous()
    work.diagonal(dim1=0, dim2=1).add_(1)
    for i in range(k.shape[-1]):
        column = work[:, i].clone()
        work[:, i] = 0
        row = work[i]
        row[i] = 1
        row.mul_(column[i].reciprocal())
        column[i] = 0
        work.addcmul_(column[:, None], row.clone()[None], value=-1)
    return work.permute(2, 0, 1).contiguous()


def _by_halves(m: torch.Tensor) -> torch.Tensor:
    n = m.shape[-1]
    if n <= _JORDAN:
        return torch.linalg.inv_ex(m).inverse
    h = n // 2
    a, right, lower, d = m[:, :h, :h], m[:, :h, h:], m[:, h:, :h], m[:, h:, h:]
    inverse = _by_halves(a)
    left = torch.bmm(lower, inverse)  # B A^-1
    complement = _by_halves(torch.baddbmm(d, left, right, alpha=-1))
    corner = torch.bmm(torch.bmm(inverse, right), complement)
    out = torch.empty_like(m, memory_format=torch.contiguous_format)
    out[:, h:, h:] = complement
    torch.neg(corner, out=out[:, :h, h:])
    out[:, h:, :h] = torch.bmm(complement, left).neg_()
    out[:, :h, :h] = torch.baddbmm(inverse, corner, left)
    return out
