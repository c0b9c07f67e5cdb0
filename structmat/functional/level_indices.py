"""Index maps of k-level matrices: rows and columns are multi-indices flattened in C order.

Toeplitz: entry ``(i, j)`` holds generator ``i_l - j_l + n_l - 1`` along level l; circulant: ``(i_l - j_l) mod n_l``.
Everything here is exact: gathers and sums, no transform. Only ``entries`` and ``group_sums`` touch m n numbers.
Source: E. E. Tyrtyshnikov, A unifying approach to some old and new theorems on distribution and clustering, 1996
(multilevel Toeplitz and circulant matrices); boundaries and centres of kernels are those of ``scipy.ndimage``.
"""

import math

import torch

from structmat import backend
from structmat.functional.toeplitz import diagonal_counts

__all__ = [
    "circulant_index",
    "circulant_kernel",
    "counts",
    "entries",
    "group_sums",
    "reflected_index",
    "shorten",
    "toeplitz_index",
    "toeplitz_kernel",
    "wrap",
]

Sizes = tuple[int, ...]


def _flat_index(parts: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
    """One flat index ``(prod m, prod n)`` out of the index ``(m_l, n_l)`` of each level into an array of these
    sizes."""
    total = parts[0]
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        joined = total[:, None, :, None] * size + part[None, :, None, :]
        total = joined.flatten(2).flatten(0, 1)
    return total


def toeplitz_index(rows: Sizes, columns: Sizes, device: torch.device) -> torch.Tensor:
    """Which generator each entry of a k-level Toeplitz matrix holds, ``(prod m, prod n)``."""
    parts = [
        torch.arange(m, device=device)[:, None] - torch.arange(n, device=device) + (n - 1)
        for m, n in zip(rows, columns, strict=True)
    ]
    return _flat_index(parts, tuple(m + n - 1 for m, n in zip(rows, columns, strict=True)))


def circulant_index(sizes: Sizes, device: torch.device) -> torch.Tensor:
    """Which generator each entry of a k-level circulant matrix holds, ``(prod n, prod n)``."""
    parts = [(torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)) % n for n in sizes]
    return _flat_index(parts, sizes)


def entries(generators: torch.Tensor, index: torch.Tensor, levels: int) -> torch.Tensor:
    """The dense ``(*b, m, n)`` matrix by gathering: exact."""
    return generators.flatten(-levels)[..., index]


def group_sums(dense: torch.Tensor, index: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The sums of the entries that share a generator: ``(*b, m, n) -> (*b, *sizes)``; m n work."""
    wide = dense.to(backend.compute_dtype(dense.dtype)).flatten(-2)
    zeros = torch.zeros(*wide.shape[:-1], math.prod(sizes), dtype=wide.dtype, device=wide.device)
    return zeros.index_add(-1, index.flatten(), wide).unflatten(-1, sizes)


def counts(rows: Sizes, columns: Sizes, device: torch.device) -> torch.Tensor:
    """How many entries hold each generator of a k-level Toeplitz matrix: the product of the levels' counts."""
    total = torch.ones((), dtype=torch.float64, device=device)
    for m, n in zip(rows, columns, strict=True):
        total = total[..., None] * diagonal_counts(m, n, device)
    return total


# -- kernels of convolutions --------------------------------------------------------------------------------------


def wrap(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The kernel with its centre ``size // 2`` moved to 0 and every index taken modulo ``sizes``; what meets adds
    up."""
    levels = len(sizes)
    for level, n in enumerate(sizes):
        axis = level - levels
        p = kernel.shape[axis]
        index = (torch.arange(p, device=kernel.device) - p // 2) % n
        shape = list(kernel.shape)
        shape[axis] = n
        kernel = torch.zeros(shape, dtype=kernel.dtype, device=kernel.device).index_add(axis, index, kernel)
    return kernel


def toeplitz_kernel(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The generators ``(*b, 2 n_1 - 1, ...)`` of convolution with zeros outside the image: ``t_d = kernel[d + c]``,
    c the centre; what lies further out than the image is long meets nothing and is cut off."""
    pads: list[int] = []
    levels = len(sizes)
    for level in reversed(range(levels)):
        p, n = kernel.shape[level - levels], sizes[level]
        pads += [n - 1 - p // 2, n - p + p // 2]
    return torch.nn.functional.pad(kernel, pads)


def circulant_kernel(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The generators ``(*b, n_1, ...)`` of convolution with the image repeated periodically."""
    return wrap(kernel, sizes)


def shorten(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """A kernel longer than the period 2 n of a reflected image, wrapped to 2 n entries about the centre n."""
    levels = len(sizes)
    for axis, n in zip(range(-levels, 0), sizes, strict=True):
        p = kernel.shape[axis]
        if p > 2 * n:
            index = (torch.arange(p, device=kernel.device) - p // 2 + n) % (2 * n)
            shape = list(kernel.shape)
            shape[axis] = 2 * n
            kernel = torch.zeros(shape, dtype=kernel.dtype, device=kernel.device).index_add(axis, index, kernel)
    return kernel


def reflected_index(n: int, first: int, length: int, device: torch.device) -> torch.Tensor:
    """Where positions ``first .. first + length - 1`` lie in ``d c b a | a b c d | d c b a``: scipy's "reflect"."""
    position = (torch.arange(length, device=device) + first) % (2 * n)
    return torch.where(position < n, position, 2 * n - 1 - position)
