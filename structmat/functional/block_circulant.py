"""Eigenvalues, solves and inverses of k-level circulant matrices: diagonal in the k-dimensional Fourier transform.

``A = F^{-1} diag(lam) F`` with ``lam = fftn(g)``, F the transform over the k axes; A is normal, so singular values are
the moduli of the eigenvalues. Source: P. J. Davis, Circulant Matrices, 1979, section 5.8 (block circulants with
circulant blocks).
"""

import itertools
import math
from typing import Any

import torch

from structmat import backend
from structmat.functional import transforms

__all__ = ["divide_rows", "eigenvalues", "from_eigenvalues", "reciprocal", "slogdet"]


def _axes(levels: int) -> tuple[int, ...]:
    return tuple(range(-levels, 0))


def eigenvalues(g: torch.Tensor, levels: int) -> torch.Tensor:
    """``lam = fftn(g)``, complex ``(*b, n_1, ..., n_k)``, in FFT order; half and bfloat16 in float32."""
    with backend.full_precision(g.device):
        return transforms.fftn(g.to(backend.compute_dtype(g.dtype)), g.shape[g.ndim - levels :])


def from_eigenvalues(lam: torch.Tensor, levels: int, real: bool) -> torch.Tensor:
    """The generators ``ifftn(lam)``; ``real`` says that they are known to be real."""
    with backend.full_precision(lam.device):
        g = transforms.ifftn(lam, lam.shape[lam.ndim - levels :])
    return g.real.contiguous() if real else g


def reciprocal(lam: torch.Tensor, levels: int) -> torch.Tensor:
    """``1 / lam``, and 0 where ``|lam| <= n eps max|lam|``: the eigenvalues of the Moore-Penrose inverse."""
    size = lam.detach().abs()
    n = math.prod(size.shape[size.ndim - levels :])
    zero = size <= n * torch.finfo(size.dtype).eps * size.amax(_axes(levels), keepdim=True)
    one = torch.ones_like(lam)
    return torch.where(zero, torch.zeros_like(lam), one / torch.where(zero, one, lam))


def divide_rows(g: torch.Tensor, y: torch.Tensor, levels: int) -> torch.Tensor:
    """Rows x with ``A x = y``: division by the eigenvalues between two transforms; y ``(..., prod n)``, g ``(*b, n_1,
    ..., n_k)``. Real in, real out."""
    sizes, axes = g.shape[g.ndim - levels :], _axes(levels)
    common = backend.compute_dtype(torch.promote_types(g.dtype, y.dtype))
    image = y.to(common).unflatten(-1, sizes)
    weights = g.to(common)
    weights = weights.unsqueeze(-levels - 1) if g.ndim > levels and y.ndim > 1 else weights
    with backend.full_precision(y.device):
        if common.is_complex:
            x = torch.fft.ifftn(torch.fft.fftn(image, dim=axes) / torch.fft.fftn(weights, dim=axes), dim=axes)
        else:
            hat = torch.fft.rfftn(image, dim=axes) / torch.fft.rfftn(weights, dim=axes)
            x = torch.fft.irfftn(hat, sizes, axes)
    return x.flatten(-levels)


def slogdet(g: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det| = sum log|lam|``. Real g: the sign is that of the real eigenvalues (index 0 or n/2 along
    each level), exactly +-1; the others come in conjugate pairs."""
    lam = eigenvalues(g, levels)
    logabs = torch.log(lam.abs()).flatten(-levels).sum(-1)
    if g.is_complex():
        return torch.prod(torch.sgn(lam).flatten(-levels), -1), logabs
    sign = torch.ones_like(logabs)
    places = [(0, n // 2) if n % 2 == 0 else (0,) for n in g.shape[g.ndim - levels :]]
    for place in itertools.product(*places):
        where: tuple[Any, ...] = (..., *place)
        sign = sign * torch.sgn(lam[where].real)
    return sign, logabs
