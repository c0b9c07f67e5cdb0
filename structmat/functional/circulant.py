"""Eigenvalues, solves and inverses of f-circulants, f != 0, by the scaled Fourier transform that diagonalises them.

``Z_f(v) = D^{-1} F^{-1} diag(lam) F D`` with ``lam = fft(D v)``, ``D = diag(d^k)``, ``d = f^{1/n}`` (principal root).
The condition number of D, and with it the loss of accuracy, is at most ``max(|f|, 1/|f|)``.
Source: P. J. Davis, Circulant Matrices, 1979, section 3.2; R. E. Cline, R. J. Plemmons, G. Worm, 1974 (general f).
"""

import math

import torch

from structmat import backend

__all__ = ["divide_rows", "eigenvalues", "from_eigenvalues", "slogdet", "twist"]


def twist(n: int, f: complex, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """The diagonal of D in the precision of ``dtype``, formed in float64: real for f > 0, complex else, None for f =
    1."""
    if f == 1:
        return None
    k = torch.arange(n, dtype=torch.float64, device=device) / n
    radius = torch.exp(k * math.log(abs(f)))
    if not isinstance(f, complex) and f > 0:
        return radius.to(backend.real_of(dtype))
    # atan2, because cmath.phase does not trace under torch.compile
    return torch.polar(radius, k * math.atan2(f.imag, f.real)).to(backend.complex_of(dtype))


def _apply(d: torch.Tensor | None, v: torch.Tensor) -> torch.Tensor:
    return v if d is None else d * v


def eigenvalues(v: torch.Tensor, f: complex) -> torch.Tensor:
    """``lam = fft(D v)``, complex ``(*b, n)``, in FFT order; half and bfloat16 in float32."""
    wide = v.to(backend.compute_dtype(v.dtype))
    with backend.full_precision(v.device):
        return torch.fft.fft(_apply(twist(v.shape[-1], f, wide.dtype, v.device), wide))


def from_eigenvalues(lam: torch.Tensor, f: complex, real: bool) -> torch.Tensor:
    """The first column ``D^{-1} ifft(lam)``; ``real`` says that it is known to be real."""
    v = torch.fft.ifft(lam)
    d = twist(lam.shape[-1], f, lam.dtype, lam.device)
    v = v if d is None else v / d
    return v.real.contiguous() if real else v


def divide_rows(v: torch.Tensor, y: torch.Tensor, f: complex) -> torch.Tensor:
    """Rows x with ``Z_f(v) x = y``: division by the eigenvalues between two transforms; y ``(..., n)``, v ``(*b,
    n)``."""
    real = not (v.is_complex() or y.is_complex() or isinstance(f, complex))
    lam = eigenvalues(v, f)
    lam = lam if lam.ndim == 1 or y.ndim == 1 else lam[..., None, :]
    wide = y.to(backend.compute_dtype(y.dtype))
    d = twist(v.shape[-1], f, wide.dtype, v.device)
    with backend.full_precision(y.device):
        x = torch.fft.ifft(torch.fft.fft(_apply(d, wide)) / lam)
        x = x if d is None else x / d
    return x.real.contiguous() if real else x


def slogdet(v: torch.Tensor, f: complex) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det| = sum log|lam|``. Real v and f = +-1: the sign is that of the real eigenvalues, exactly
    +-1."""
    lam = eigenvalues(v, f)
    logabs = torch.log(lam.abs()).sum(-1)
    if v.is_complex() or isinstance(f, complex):
        return torch.prod(torch.sgn(lam), -1), logabs
    n = v.shape[-1]
    real_ones = _real_positions(n, f)  # the other eigenvalues come in conjugate pairs, whose product is positive
    sign = torch.ones_like(logabs)
    for k in real_ones:
        sign = sign * torch.sgn(lam[..., k].real)
    return sign, logabs


def _real_positions(n: int, f: complex) -> tuple[int, ...]:
    """Which eigenvalues of a real f-circulant, real f, are real: those whose node ``d w^-k`` is."""
    positive = not isinstance(f, complex) and f > 0
    if positive:
        return (0, n // 2) if n % 2 == 0 else (0,)
    return ((n + 1) // 2 % n,) if n % 2 == 1 else ()
