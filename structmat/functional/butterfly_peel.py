"""Butterflies out of dense matrices, and the digits and blocks of known ones.

With digits taken one factor each, in order, a butterfly with rows o = (o_1 ... o_L) and columns i = (i_1 ... i_L) is
``A[o, i] = prod_l W_l[o_<l, i_>l, o_l, i_l]``. For fixed o_<L and i_L the entries of A are the product of a column of
W_L and a row that the earlier factors form, so they have rank 1. Peeling takes the best rank-1 matrix of each, the unit
left vector into W_L and the scaled right one on, and repeats with the digits that are left.

Unit vectors make every step an isometry of what is left, so tails of the remainder are at most those of A:

    err^2 <= sum over cuts s of tail_s(A)^2 <= (L - 1) dist(A, butterflies)^2,      err >= max_s tail_s(A),

tail_s the Frobenius norm of what lies beyond rank 1 in the blocks of cut s. All tails are zero exactly for a limit of
butterflies. Source: L. Zheng, E. Riccietti, R. Gribonval, Efficient identification of butterfly sparse matrix
factorizations, 2023 (the hierarchical method; the unit left factors, which give this bound, are ours).
"""

import math

import torch

from structmat.functional.butterfly import Digits, relabelled, relabelling

__all__ = ["balanced", "digit_pairs", "fourier_blocks", "peel", "peel_in", "prime_factors", "smooth_below", "tails"]


def peel(dense: torch.Tensor, digits: Digits, rows: Digits) -> tuple[torch.Tensor, ...]:
    """Blocks ``(*b, rest, q_l, p_l)`` of the butterfly near dense ``(*b, m, n)``, one factor a digit, the first first.

    Cost: L singular value decompositions of all blocks, O(m n max q); memory O(m n).
    """
    lead, count = dense.shape[:-2], len(digits)
    left = dense.reshape(*lead, *rows, *digits)
    blocks: list[torch.Tensor] = []
    done = 1  # the product of the digits i_>l, kept as one axis in front of the columns still to be split
    for k in range(count - 1, 0, -1):
        before, after, q, p = math.prod(rows[:k]), math.prod(digits[:k]), rows[k], digits[k]
        # (*lead, o_<k, o_k, i_<k, i_k, i_>k) -> (*lead, o_<k, i_>k, i_k, o_k, i_<k)
        pieces = left.reshape(*lead, before, q, after, p, done).movedim(-1, -4).movedim(-1, -3)
        u, s, vh = torch.linalg.svd(pieces, full_matrices=False)
        # rest digits of factor k: (o_<k, i_>k)
        blocks.append(u[..., 0].mT.reshape(*lead, before * done, q, p))
        scaled = s[..., :1] * vh[..., 0, :]  # (*lead, o_<k, i_>k, i_k, i_<k)
        left = scaled.movedim(-1, -3).movedim(-2, -1)  # (*lead, o_<k, i_<k, i_k, i_>k)
        done *= p
    final = left.reshape(*lead, rows[0], digits[0], done).movedim(-1, -3)
    return (final, *reversed(blocks))


def peel_in(
    dense: torch.Tensor, digits: Digits, rows: Digits, sequence: Digits
) -> tuple[tuple[torch.Tensor, ...], tuple[Digits, ...]]:
    """``peel`` for factors that take the digits in another order, ``sequence[0]`` first: (blocks, axes)."""
    renamed = tuple([tuple([sizes[k] for k in sequence]) for sizes in (digits, rows)])
    blocks = peel(_reordered(dense, digits, rows, sequence), *renamed)
    how = relabelling(renamed[0], tuple([(k,) for k in range(len(digits))]), renamed[1], sequence)
    return relabelled(blocks, how), how.axes


def _reordered(dense: torch.Tensor, digits: Digits, rows: Digits, sequence: Digits) -> torch.Tensor:
    """The matrix with both its indices written in this order of digits."""
    lead, count = dense.ndim - 2, len(digits)
    wide = dense.reshape(*dense.shape[:-2], *rows, *digits)
    places = [lead + k for k in sequence] + [lead + count + k for k in sequence]
    return wide.permute(*range(lead), *places).reshape(dense.shape)


def tails(dense: torch.Tensor, digits: Digits, rows: Digits) -> torch.Tensor:
    """``tail_s`` of each cut ``s = 1 ... L - 1``, ``(*b, L - 1)``: the norm beyond rank 1 of the blocks of the cut."""
    lead, found = dense.shape[:-2], []
    for s in range(1, len(digits)):
        shape = (math.prod(rows[:s]), math.prod(rows[s:]), math.prod(digits[:s]), math.prod(digits[s:]))
        cut = dense.reshape(*lead, *shape).movedim(-1, -3)  # o_1, i_2, o_2, i_1
        values = torch.linalg.svdvals(cut)[..., 1:]
        found.append(torch.linalg.vector_norm(values, dim=(-3, -2, -1)))
    if not found:
        return torch.linalg.vector_norm(dense, dim=(-2, -1))[..., None][..., :0]
    return torch.stack(found, -1)


# -- digits ----------------------------------------------------------------------------------------------------------


def prime_factors(n: int) -> Digits:
    """The prime factors of n, ascending; empty for 1."""
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return (*found, n) if n > 1 else tuple(found)


def smooth_below(n: int, most: int) -> int:
    """The largest number up to n without a prime factor above ``most``."""
    return next(k for k in range(n, 0, -1) if max(prime_factors(k), default=1) <= most)


def digit_pairs(m: int, n: int) -> tuple[Digits, Digits]:
    """Digits ``(rows, columns)`` of equal number for an m x n butterfly: common primes together, the others against
    each other, then against 1; where the size grows the growth comes last, where it shrinks first."""
    rows, columns = list(prime_factors(m)), list(prime_factors(n))
    common = []
    for p in tuple(columns):
        if p in rows:
            rows.remove(p)
            columns.remove(p)
            common.append((p, p))
    length = max(len(rows), len(columns))
    others = list(zip(rows + [1] * (length - len(rows)), columns + [1] * (length - len(columns)), strict=True))
    pairs = common + others if m >= n else others + common
    pairs = pairs or [(1, 1)]
    return tuple(q for q, _ in pairs), tuple(p for _, p in pairs)


def balanced(n: int) -> tuple[int, int]:
    """The divisors (a, n / a) nearest to the square root, a the smaller."""
    a = math.isqrt(n)
    while n % a:
        a -= 1
    return a, n // a


def fourier_blocks(digits: Digits, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The factors of the DFT of length n = p_1 ... p_L, its outputs in reversed digit order:

        W_l[rest, k, j] = exp(-2 pi i j k / p_l) exp(-2 pi i r k / (p_l d_l)),

    d_l the product of the later digits and r their value in the rest. Angles are reduced to a multiple of 2 pi / n in
    integers before a sine is taken. Source: W. M. Gentleman and G. Sande, Fast Fourier transforms: for fun and profit,
    1966 (decimation in frequency).
    """
    blocks, n = [], math.prod(digits)
    for level, p in enumerate(digits):
        later = math.prod(digits[level + 1 :])
        earlier = n // (p * later)
        j, k, r = torch.arange(p), torch.arange(p), torch.arange(later)
        turns = (j * later + r[:, None, None]) * k[:, None] % (p * later)  # in units of 2 pi / (p d_l)
        blocks.append(_unit_roots(turns, p * later).repeat(earlier, 1, 1).to(dtype))
    return tuple(blocks)


def _unit_roots(turns: torch.Tensor, n: int) -> torch.Tensor:
    """``exp(-2 pi i t / n)`` in complex128 for integers 0 <= t < n; sines only of angles up to an eighth of a turn."""
    nearest = (8 * turns + n) // (2 * n)  # in quarter turns, 0 ... 4
    angle = (4 * turns - nearest * n).double() * (2 * math.pi / (4 * n))
    c, s = torch.cos(angle), torch.sin(angle)
    quarter = nearest % 4
    real = torch.where(quarter == 0, c, torch.where(quarter == 1, -s, torch.where(quarter == 2, -c, s)))
    imaginary = torch.where(quarter == 0, s, torch.where(quarter == 1, c, torch.where(quarter == 2, -s, -c)))
    return torch.complex(real, -imaginary)
