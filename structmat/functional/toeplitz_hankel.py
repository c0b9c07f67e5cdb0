"""Products with a Toeplitz plus a Hankel matrix through one transform of x and one back.

With X the transform of x of length N >= m + n - 1, T that of the diagonals (t_0 at place 0) and H that of the
antidiagonals from place 0, ``y = (T + H) x`` has the transform

    Y_k = T_k X_k + H_k X_{-k},      X_{-k} = conj(X_k) for real x

as ``sum_j h_{i + j} x_j`` is a correlation. Two products on their own take two transforms of x, and two back.
Source: G. Heinig and K. Rost, Fast algorithms for Toeplitz and Hankel matrices, 2011, section 2.
"""

import torch

from structmat import backend
from structmat.functional import fourier, transforms
from structmat.functional import toeplitz as ft

__all__ = ["joined_pays", "product"]

_ROWS, _SHORT, _LONG = 16, 128, 4096  # few long real rows: scipy's plans make the two products faster (measured)


def joined_pays(t: torch.Tensor, h: torch.Tensor, x: torch.Tensor, columns: int) -> bool:
    """Whether one joint product is faster than two: transforms that are not short, nothing formed, and for long real
    ones several rows."""
    length, rows = int(t.shape[-1]), x.numel() // max(1, columns)
    if length <= _SHORT or 0 in x.shape:
        return False
    if rows < _ROWS and length > _LONG and not (t.is_complex() or h.is_complex() or x.is_complex()):
        return False
    return t.ndim > 1 or h.ndim > 1 or not ft.forming_is_cheaper(length - columns + 1, columns, rows, t.device)


def product(t: torch.Tensor, h: torch.Tensor, x: torch.Tensor, columns: int) -> torch.Tensor:
    """``x A^T`` for ``A[i, j] = t[i - j + n - 1] + h[i + j]``: x ``(..., k, n)`` or one row -> ``(..., k, m)``."""
    m = t.shape[-1] - columns + 1
    out = torch.promote_types(torch.promote_types(t.dtype, h.dtype), x.dtype)
    wide = backend.compute_dtype(out)
    geometry = ft.toeplitz_geometry(m, columns)
    length = geometry.length
    t, h, x = (v.to(wide) for v in (t, h, x))
    if not torch.compiler.is_compiling():
        backend.demand("fft_product", t, x)
    turn = transforms.fft if wide.is_complex else transforms.rfft
    with backend.full_precision(x.device):
        spectra = [fourier.spectrum(t, geometry), turn(h, length)]
        if x.ndim > 1:
            spectra = [s[..., None, :] if s.ndim > 1 else s for s in spectra]
        bins = turn(x, length)
        mirrored = bins.flip(-1).roll(1, -1) if wide.is_complex else bins.conj()
        whole = spectra[0] * bins + spectra[1] * mirrored
        back = transforms.ifft(whole, length) if wide.is_complex else transforms.irfft(whole, length)
        return back[..., :m].to(out)
