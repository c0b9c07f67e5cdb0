"""Toeplitz and f-circulant products, projections, and gathers. Rows in, rows out: every product is ``x A^T``.

Toeplitz ``A[i, j] = t[i - j + n - 1]`` (``t`` of length m + n - 1); f-circulant ``Z_f(v)[i, j] = v[i - j]`` on and
below the diagonal, ``f v[n + i - j]`` above it.
Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, sections 4.7 and 4.8.
"""

import math

import torch

from structmat import backend
from structmat.functional import fourier, launched_toeplitz
from structmat.functional.fourier import Geometry, good_length, is_smooth
from structmat.functional.transforms import nothing

__all__ = [
    "circulant_entries",
    "circulant_product",
    "circulant_transposed_product",
    "cyclic_geometry",
    "diagonal_means",
    "diagonal_sums",
    "fold",
    "symmetric_geometry",
    "symmetric_product",
    "toeplitz_entries",
    "toeplitz_geometry",
    "toeplitz_product",
    "toeplitz_rows",
    "work",
]


def toeplitz_rows(diagonals: int, columns: int) -> int:
    """The number m of rows: ``diagonals = m + n - 1``, and none of n = 0 columns: the empty matrix is 0 x 0."""
    return diagonals - columns + 1 if columns else 0


def toeplitz_geometry(m: int, n: int) -> Geometry:
    """The cyclic convolution in which an m x n Toeplitz product is embedded; its spectrum bounds ``||A||_2``."""
    if m == 0 or n == 0:
        return Geometry(1, 0, 0, n, m)
    return Geometry(good_length(m + n - 1), n - 1, m + n - 1, n, m)


def symmetric_geometry(n: int) -> Geometry:
    """As ``toeplitz_geometry`` for a symmetric matrix, whose weights are its first column, mirrored."""
    return Geometry(good_length(2 * n - 1), 0, n, n, n, even=True)


def cyclic_geometry(n: int) -> Geometry:
    """The cyclic convolution of length n that is a circulant product."""
    return Geometry(n, 0, n, n, n)


def toeplitz_product(t: torch.Tensor, x: torch.Tensor, columns: int) -> torch.Tensor:
    """``x A^T`` for the Toeplitz matrix of t ``(*b, m + n - 1)``: x ``(..., k, n)`` or one row -> ``(..., k, m)``."""
    m = toeplitz_rows(t.shape[-1], columns)
    if launched_toeplitz.rows_served(t, x, columns, t.shape[-1]):
        return launched_toeplitz.toeplitz_rows(t, x, columns)
    if t.ndim == 1 and forming_is_cheaper(m, columns, x.numel() // max(1, columns), t.device):
        return _formed(t, x, columns)
    return _rows(t, x, toeplitz_geometry(m, columns))


def forming_is_cheaper(m: int, n: int, rows: int, device: torch.device) -> bool:
    """Whether to form the m x n entries and multiply: on CPU, up to order 192, where they are no more than the rows
    x hold.

    Measured in float32 on one core, forward and backward: equal to transforms near order 192, half as fast at order 256
    and 384 with as many rows (at ten times the rows the two agree up to order 384).
    """
    return device.type == "cpu" and max(m, n) <= 192 and rows >= max(m, n) > 0


def _formed(t: torch.Tensor, x: torch.Tensor, columns: int) -> torch.Tensor:
    """Through the dense entries; half and bfloat16 in float32, as everywhere."""
    out = torch.promote_types(t.dtype, x.dtype)
    wide = backend.compute_dtype(out)
    if not torch.compiler.is_compiling():
        backend.demand("toeplitz_product", t, x)
    with backend.full_precision(x.device):
        gather = not torch.compiler.is_compiling() and backend.transforming()  # vmap has no rule for windows' gradient
        entries = (toeplitz_entries if gather else toeplitz_windows)(t.to(wide), columns)
        return (x.to(wide) @ entries.mT).to(out)


def toeplitz_windows(t: torch.Tensor, columns: int) -> torch.Tensor:
    """The dense matrix as sliding windows over the diagonals, whose gradient is cheaper than that of gathering."""
    return t.flip(-1).unfold(-1, columns, 1).flip(-2)


def symmetric_product(c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``x A^T`` for ``A[i, j] = c[|i - j|]``, c ``(*b, n)`` read once for both sides: as ``toeplitz_product``."""
    n = c.shape[-1]
    if launched_toeplitz.rows_served(c, x, n, 2 * n - 1):
        return launched_toeplitz.toeplitz_rows(torch.cat((c[..., 1:].flip(-1), c), -1), x, n)
    return _rows(c, x, symmetric_geometry(n))


def circulant_product(v: torch.Tensor, x: torch.Tensor, f: complex = 1) -> torch.Tensor:
    """``x Z_f(v)^T``: for f = 1 and a smooth n one cyclic convolution of length n, else folded (any f, any n, real
    arithmetic).

    Folding computes the zero-padded linear convolution s and adds ``f s_{i + n}`` to ``s_i``: no roots of f are formed.
    """
    n = v.shape[-1]
    if not isinstance(f, complex) and launched_toeplitz.rows_served(v, x, n, 2 * n - 1):
        return launched_toeplitz.toeplitz_rows(fold(v, f), x, n)
    if f == 1 and is_smooth(n):
        return _rows(v, x, cyclic_geometry(n))
    return toeplitz_product(fold(v, f), x, n)


def circulant_transposed_product(v: torch.Tensor, x: torch.Tensor, f: complex = 1) -> torch.Tensor:
    """``x Z_f(v)``, the product with the transpose, from v itself."""
    n = v.shape[-1]
    if not isinstance(f, complex) and launched_toeplitz.rows_served(v, x, n, 2 * n - 1):
        return launched_toeplitz.toeplitz_rows(fold(v, f).flip(-1), x, n)
    if not (f == 1 and is_smooth(n)):
        return toeplitz_product(fold(v, f).flip(-1), x, n)
    weights = v if v.ndim == 1 or x.ndim == 1 else v[..., None, :]
    return fourier.convolve_transposed(weights, x, cyclic_geometry(n))


def fold(v: torch.Tensor, f: complex) -> torch.Tensor:
    """The diagonals ``(*b, 2 n - 1)`` of ``Z_f(v)`` as a Toeplitz matrix."""
    head = v[..., 1:]
    return torch.cat((head if f == 1 else head * f, v), -1)


def _rows(a: torch.Tensor, x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Broadcast the weights over rows: batched weights meet ``(*batch, k, n)``, and one row counts as k = 1."""
    if a.ndim == 1:
        return fourier.convolve(a, x, geometry)
    if x.ndim == 1:
        return fourier.convolve(a, x, geometry)
    return fourier.convolve(a[..., None, :], x, geometry)


def toeplitz_entries(t: torch.Tensor, columns: int) -> torch.Tensor:
    """The dense ``(*b, m, n)`` matrix, by gathering: exact."""
    found = launched_toeplitz.toeplitz_entries(t, columns)
    if found is not None:
        return found
    m = toeplitz_rows(t.shape[-1], columns)
    return t[..., _offsets(m, columns, t.device)]


def circulant_entries(v: torch.Tensor, f: complex = 1) -> torch.Tensor:
    """The dense f-circulant, by gathering: exact up to the product with f."""
    return toeplitz_entries(fold(v, f), v.shape[-1])


def _offsets(m: int, n: int, device: torch.device) -> torch.Tensor:
    return torch.arange(m, device=device)[:, None] - torch.arange(n, device=device)[None, :] + (n - 1)


def diagonal_sums(a: torch.Tensor) -> torch.Tensor:
    """Sums of the entries ``i - j = k``, k from -(n-1) to m-1: ``(*b, m, n) -> (*b, m + n - 1)``; m n work."""
    m, n = a.shape[-2:]
    if n == 0:
        return nothing((*a.shape[:-2], 0), a.dtype, a)
    found = launched_toeplitz.toeplitz_diagonals(a)
    if found is not None:
        return found
    padded = torch.nn.functional.pad(a.flip(-1), (0, m))  # row i holds its entries at (n - 1 - j); skew the rows by i
    skewed = padded.flatten(-2)[..., : m * (n + m - 1)].unflatten(-1, (m, n + m - 1))
    return skewed.sum(-2)


def diagonal_means(a: torch.Tensor) -> torch.Tensor:
    """The Toeplitz matrix nearest to A in the Frobenius norm: the mean of each diagonal."""
    m, n = a.shape[-2:]
    return diagonal_sums(a) / diagonal_counts(m, n, a.device)


def diagonal_counts(m: int, n: int, device: torch.device) -> torch.Tensor:
    """How many entries each diagonal has: ``min(m, n + k) - max(0, k)``."""
    k = torch.arange(-(n - 1), m, device=device) if n else torch.arange(0, device=device)
    return torch.clamp(n + k, max=m) - torch.clamp(k, min=0)


def work(length: int, rows: int, size: int, transforms: int = 3) -> tuple[float, float]:
    """Flops and bytes of FFT products on this many rows: ``2.5 N log2 N`` flops a real transform, each row read and
    written once a transform (``size`` bytes a number)."""
    return transforms * 2.5 * length * math.log2(max(2, length)) * rows, 2.0 * transforms * length * rows * size
