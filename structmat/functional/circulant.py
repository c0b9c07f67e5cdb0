"""Eigenvalues, solves, inverses and functions of f-circulants by the scaled Fourier transform that diagonalises them.

``Z_f(v) = D^{-1} F^{-1} diag(lam) F D`` with ``lam = fft(D v)``, ``D = diag(d^k)``, ``d = f^{1/n}`` (principal root),
for f != 0. The condition number of D, and with it the loss of accuracy, is at most ``max(|f|, 1/|f|)``; where that is
more than 4, float32 is carried out in float64. f = 0 is a triangular Toeplitz matrix, whose inverse is a power series.
Source: P. J. Davis, Circulant Matrices, 1979, section 3.2; R. E. Cline, R. J. Plemmons, G. Worm, 1974 (general f).
"""

import math
from collections.abc import Callable

import torch

from structmat import backend
from structmat.functional import fourier, transforms
from structmat.functional import toeplitz as ft

__all__ = [
    "alone",
    "divide_rows",
    "eigenvalues",
    "from_eigenvalues",
    "function_of",
    "nearest_column",
    "pairs",
    "separated",
    "series_error",
    "series_inverse",
    "slogdet",
    "spectrum_of_phases",
    "twist",
]


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


def _working(dtype: torch.dtype, f: complex) -> torch.dtype:
    """The dtype computed in: double precision where D costs more than two bits."""
    wide = backend.compute_dtype(dtype)
    return wide if 0.25 <= abs(f) <= 4 else torch.promote_types(wide, torch.float64)


def eigenvalues(v: torch.Tensor, f: complex) -> torch.Tensor:
    """``lam = fft(D v)``, complex ``(*b, n)``, in FFT order; half and bfloat16 in float32."""
    wide = v.to(_working(v.dtype, f))
    with backend.full_precision(v.device):
        lam = transforms.fft(_apply(twist(v.shape[-1], f, wide.dtype, v.device), wide))
    return lam.to(backend.complex_of(backend.compute_dtype(v.dtype)))


def from_eigenvalues(lam: torch.Tensor, f: complex, real: bool) -> torch.Tensor:
    """The first column ``D^{-1} ifft(lam)``; ``real`` says that it is known to be real."""
    v = transforms.ifft(lam)
    d = twist(lam.shape[-1], f, lam.dtype, lam.device)
    v = v if d is None else v / d
    return v.real.contiguous() if real else v


def _is_real(v: torch.Tensor, f: complex) -> bool:
    return not (v.is_complex() or isinstance(f, complex))


def divide_rows(v: torch.Tensor, y: torch.Tensor, f: complex) -> torch.Tensor:
    """Rows x with ``Z_f(v) x = y``: division by the eigenvalues between two transforms; y ``(..., n)``, v ``(*b,
    n)``."""
    real = _is_real(v, f) and not y.is_complex()
    out = backend.compute_dtype(torch.promote_types(v.dtype, y.dtype))
    dtype = _working(out, f)
    lam = eigenvalues(v.to(torch.promote_types(v.dtype, backend.real_of(dtype))), f)
    lam = lam if lam.ndim == 1 or y.ndim == 1 else lam[..., None, :]
    wide = y.to(torch.promote_types(y.dtype, backend.real_of(dtype)))
    d = twist(v.shape[-1], f, wide.dtype, v.device)
    with backend.full_precision(y.device):
        x = transforms.ifft(transforms.fft(_apply(d, wide)) / lam)
        x = x if d is None else x / d
    return x.real.contiguous().to(out) if real else x.to(backend.complex_of(out))


def slogdet(v: torch.Tensor, f: complex) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det| = sum log|lam|``. Real v and f: the sign is that of the real eigenvalues, exactly +-1."""
    lam = eigenvalues(v, f)
    logabs = torch.log(lam.abs()).sum(-1)
    if not _is_real(v, f):
        return torch.prod(torch.sgn(lam), -1), logabs
    sign = torch.ones_like(logabs)
    for k in alone(v.shape[-1], f):  # the other eigenvalues come in conjugate pairs, whose product is positive
        sign = sign * torch.sgn(lam[..., k].real)
    return sign, logabs


# -- conjugate pairs, and functions of real matrices --------------------------------------------------------------


def alone(n: int, f: complex) -> tuple[int, ...]:
    """Which eigenvalues of a real f-circulant, f real and not 0, are real, because no other is their conjugate.

    The node of eigenvalue k is ``d w^-k``: for f > 0 the conjugate of k is -k mod n, for f < 0 it is 1 - k mod n. Of
    the others, numbers 1 to ``(n - len(alone)) / 2`` are one of each conjugate pair.
    """
    if n == 0:
        return ()
    if f.real > 0:
        return (0, n // 2) if n % 2 == 0 else (0,)
    return ((n + 1) // 2 % n,) if n % 2 == 1 else ()


def pairs(n: int, f: complex) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of one of each conjugate pair, and those of their conjugates."""
    first = tuple(range(1, (n - len(alone(n, f))) // 2 + 1))
    return first, tuple((-k if f.real > 0 else 1 - k) % n for k in first)


def separated(lam: torch.Tensor, f: complex) -> tuple[torch.Tensor, torch.Tensor]:
    """The eigenvalues that stand alone, and one of each conjugate pair."""
    n = int(lam.shape[-1])
    single = alone(n, f)
    kept = [lam[..., k : k + 1] for k in single]
    return torch.cat(kept, -1) if kept else lam[..., :0], lam[..., 1 : (n - len(single)) // 2 + 1]


def _assembled(single: torch.Tensor, first: torch.Tensor, f: complex) -> torch.Tensor:
    """The inverse of ``separated``: the whole spectrum in FFT order."""
    single, mirrored = single.to(first.dtype), first.conj()
    if f.real > 0:
        return torch.cat((single[..., :1], first, single[..., 1:], mirrored.flip(-1)), -1)
    return torch.cat((mirrored[..., :1], first, single, mirrored[..., 1:].flip(-1)), -1)


def function_of(v: torch.Tensor, f: complex, g: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """First column of ``g(Z_f(v))``: g at the eigenvalues.

    Real v and f: g is asked for the real eigenvalues and for one of each conjugate pair, and the result is real (what
    g makes imaginary of a real eigenvalue is dropped).
    """
    lam = eigenvalues(v, f)
    if not _is_real(v, f):
        return from_eigenvalues(g(lam), f, real=False)
    single, first = separated(lam, f)
    return from_eigenvalues(_assembled(g(single), g(first), f), f, real=True)


def spectrum_of_phases(angles: torch.Tensor, signs: tuple[int, ...], f: complex) -> torch.Tensor:
    """The eigenvalues of a real orthogonal f-circulant, f = 1 or -1: ``signs`` at the real positions, ``exp(i angle)``
    at one of each pair; complex ``(*b, 2 p + len(signs))`` for angles ``(*b, p)``."""
    wide = angles.to(backend.compute_dtype(angles.dtype))
    first = torch.polar(torch.ones_like(wide), wide)
    single = torch.tensor(signs, dtype=first.dtype, device=first.device).expand(*first.shape[:-1], len(signs))
    return _assembled(single, first, f)


def nearest_column(dense: torch.Tensor, f: complex) -> torch.Tensor:
    """First column of the f-circulant nearest in the Frobenius norm: ``v_k`` is the weighted mean of the diagonals k
    and k - n, ``(s_k + conj(f) s_{k-n}) / ((n - k) + k |f|^2)`` with their sums s."""
    n = dense.shape[-1]
    sums = ft.diagonal_sums(dense)
    k = torch.arange(n, device=dense.device, dtype=backend.real_of(dense.dtype))
    wrapped = torch.cat((torch.zeros_like(sums[..., :1]), sums[..., : n - 1]), -1)
    weight = f.conjugate() if isinstance(f, complex) else f
    return (sums[..., n - 1 :] + weight * wrapped) / ((n - k) + k * abs(f) ** 2)


# -- f = 0 --------------------------------------------------------------------------------------------------------


def series_inverse(v: torch.Tensor) -> torch.Tensor:
    """First column w of the inverse of the lower triangular Toeplitz matrix of v: ``v w = 1 mod x^n`` as power series.

    Newton's iteration ``w <- w (2 - v w)``, the length doubling: O(n log n). Where the inverse grows exponentially the
    result overflows or loses accuracy: the caller must look. Source: M. Sieveking, 1972; H. T. Kung, 1974.
    """
    wide = v.to(backend.compute_dtype(v.dtype))
    n = int(v.shape[-1])
    w = 1 / wide[..., :1]
    while w.shape[-1] < n:
        size = min(2 * int(w.shape[-1]), n)
        head = wide[..., :size]
        geometry = fourier.Geometry(fourier.good_length(size + int(w.shape[-1]) - 1), 0, size, int(w.shape[-1]), size)
        product = fourier.convolve(head, w, geometry)
        rest = torch.cat((2 - product[..., :1], -product[..., 1:]), -1)
        w = fourier.convolve(rest, w, geometry)
    return w


def series_error(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """How far ``v w`` is from 1, over ``||v||_1 ||w||_2``, ``(*b,)``; detached."""
    v, w = v.detach().to(w.dtype), w.detach()
    unit = ft.circulant_product(v, w[..., None, :], 0)[..., 0, :]
    gap = torch.cat((unit[..., :1] - 1, unit[..., 1:]), -1)
    return torch.linalg.vector_norm(gap, dim=-1) / (v.abs().sum(-1) * torch.linalg.vector_norm(w, dim=-1))
