"""The orthonormal cosine transform over several axes, and what convolutions with reflected boundaries are in it.

``C[k, j] = s_k cos(pi k (2 j + 1) / (2 n))`` with ``s_0 = sqrt(1/n)``, else ``sqrt(2/n)`` (DCT-II; ``C^T = C^{-1}`` is
the DCT-III). With reflection ``d c b a | a b c d | d c b a`` an image has period 2 n along each axis, and a convolution
acts along a line as ``A[i, j] = w[i - j] + w[i + j + 1]``, w the kernel with its centre at 0, wrapped modulo 2 n. If w
is even, ``A = C^T diag(lam) C`` with ``lam_k = sum_d w_d cos(pi k d / n)``.

All functions are compositions of torch's transforms, so every derivative, torch.func and torch.compile apply.
Source: M. Ng, R. Chan, W. Tang, A fast algorithm for deblurring models with Neumann boundary conditions, 1999, theorem
1; P. C. Hansen, J. G. Nagy, D. P. O'Leary, Deblurring Images: Matrices, Spectra, and Filtering, 2006, section 4.4.
"""

import math
from collections.abc import Callable

import torch

from structmat import backend
from structmat.functional import level_indices as fi
from structmat.functional import multilevel as fm
from structmat.functional import transforms
from structmat.functional.fourier import good_length

__all__ = [
    "cosine_transform",
    "gram_eigenvalues",
    "inverse_cosine_transform",
    "kernel_eigenvalues",
    "reflected_adjoint",
    "reflected_by_spectrum",
    "reflected_diagonal",
    "reflected_entries",
    "reflected_product",
    "reflected_spectrum",
    "squared_sums",
]

Sizes = tuple[int, ...]


def cosine_transform(x: torch.Tensor, levels: int) -> torch.Tensor:
    """``C x`` along each of the last ``levels`` axes; real or complex, half and bfloat16 in float32."""
    return _along(x, range(-levels, 0), _forward)


def inverse_cosine_transform(y: torch.Tensor, levels: int) -> torch.Tensor:
    """``C^T y`` along each of the last ``levels`` axes."""
    return _along(y, range(-levels, 0), _backward)


def kernel_eigenvalues(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """``lam`` ``(*b, n_1, ..., n_k)`` of the convolution with a kernel ``(*b, p_1, ..., p_k)`` centred at ``p // 2``;
    of a kernel that is not even, with its mean over all mirror images."""
    wrapped = fi.wrap(kernel, tuple(2 * n for n in sizes))
    return _along(wrapped, range(-len(sizes), 0), _cosine_sums)


def gram_eigenvalues(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The eigenvalues of the even part of ``A^H A`` inside the image: ``|w_hat|^2``, its mean over all signs of the
    frequencies, at the first n of 2 n of them. Real; those of A^H A itself where the kernel is even."""
    levels = len(sizes)
    wide = kernel.to(backend.compute_dtype(kernel.dtype))
    with backend.full_precision(kernel.device):
        power = torch.fft.fftn(fi.wrap(wide, tuple(2 * n for n in sizes)), dim=tuple(range(-levels, 0))).abs() ** 2
    for axis, n in zip(range(-levels, 0), sizes, strict=True):
        mirrored = power.flip(axis).roll(1, axis)
        power = ((power + mirrored) / 2).narrow(axis, 0, n)
    return power


def _along(x: torch.Tensor, axes: range, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A real-linear function of the last axis, applied along each of these; complex numbers as two real ones."""
    x = x.to(backend.compute_dtype(x.dtype))
    if x.is_complex():
        return torch.complex(_along(x.real, axes, function), _along(x.imag, axes, function))
    with backend.full_precision(x.device):
        for axis in axes:
            x = function(x.movedim(axis, -1).contiguous()).movedim(-1, axis)
    return x.contiguous()


def _phase(n: int, like: torch.Tensor, sign: float, first: float, others: float) -> torch.Tensor:
    """``c_k exp(sign i pi k / (2 n))`` for k < n, formed in float64; ``c_0 = first``, else ``others``."""
    k = torch.arange(n, dtype=torch.float64, device=like.device)
    weight = torch.cat((torch.full_like(k[:1], first), torch.full_like(k[1:], others)))
    return torch.polar(weight, sign * math.pi / (2 * n) * k).to(backend.complex_of(like.dtype))


def _forward(x: torch.Tensor) -> torch.Tensor:
    """DCT-II: the transform of ``(x, x reversed)`` holds ``2 sum_j x_j cos`` behind a phase."""
    n = x.shape[-1]
    hat = transforms.rfft(torch.cat((x, x.flip(-1)), -1))[..., :n]
    return (hat * _phase(n, x, -1.0, 0.5 / n**0.5, 0.5 * (2 / n) ** 0.5)).real


def _backward(y: torch.Tensor) -> torch.Tensor:
    """DCT-III: the inverse transform of ``c_k y_k exp(i pi k / (2 n))``, 0 at k = n."""
    n = y.shape[-1]
    hat = y * _phase(n, y, 1.0, 2 * n / n**0.5, n * (2 / n) ** 0.5)
    full = transforms.irfft(torch.nn.functional.pad(hat, (0, 1)), 2 * n)
    return full[..., :n]


def _cosine_sums(w: torch.Tensor) -> torch.Tensor:
    """``sum_d w_d cos(pi k d / n)``, k < n, of w of length 2 n."""
    return transforms.rfft(w).real[..., : w.shape[-1] // 2]


def squared_sums(lam: torch.Tensor, levels: int) -> torch.Tensor:
    """``sum_k lam_k C[k, i]^2`` over the levels, the diagonal of ``C^T diag(lam) C``."""
    return _along(lam, range(-levels, 0), _squared)


def _squared(lam: torch.Tensor) -> torch.Tensor:
    """``n C[k, i]^2 = 1 + cos(pi k (2 i + 1) / n)``, and 1 for k = 0: the sum, and a cosine sum at odd frequencies."""
    n = lam.shape[-1]
    odd = 2 * torch.arange(n, device=lam.device) + 1
    sums = transforms.rfft(lam, 2 * n).real[..., torch.minimum(odd, 2 * n - odd)]
    return (sums + lam[..., 1:].sum(-1, keepdim=True)) / n


# -- convolution of a reflected image with any kernel -------------------------------------------------------------


def _padded_geometry(kernel: Sizes, sizes: Sizes) -> fm.Geometry:
    """The part of the convolution that needs no number outside the reflected image."""
    padded = tuple(n + p - 1 for n, p in zip(sizes, kernel, strict=True))
    lengths = tuple(good_length(s) for s in padded)
    return fm.Geometry(lengths, tuple(p - 1 for p in kernel), kernel, padded, sizes)


def _positions(kernel: Sizes, sizes: Sizes, device: torch.device) -> list[torch.Tensor]:
    """Along each axis, the pixel that each place of the padded image shows; place 0 is the pixel ``c - (p - 1)``."""
    return [fi.reflected_index(n, p // 2 - (p - 1), n + p - 1, device) for p, n in zip(kernel, sizes, strict=True)]


def _ends(kernel: torch.Tensor, sizes: Sizes) -> Sizes:
    return tuple(kernel.shape[kernel.ndim - len(sizes) :])


def _pad(image: torch.Tensor, ends: Sizes, sizes: Sizes) -> torch.Tensor:
    """The image with as much of its reflection as the kernel sees."""
    for axis, index in zip(range(-len(sizes), 0), _positions(ends, sizes, image.device), strict=True):
        image = image.index_select(axis, index)
    return image


def _fold(image: torch.Tensor, ends: Sizes, sizes: Sizes) -> torch.Tensor:
    """The adjoint of ``_pad``: every place of the padded image is added to the pixel that it shows."""
    for axis, n, index in zip(range(-len(sizes), 0), sizes, _positions(ends, sizes, image.device), strict=True):
        shape = list(image.shape)
        shape[axis] = n
        image = torch.zeros(shape, dtype=image.dtype, device=image.device).index_add(axis, index, image)
    return image


def reflected_product(kernel: torch.Tensor, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """``x A^T``: rows x ``(..., k, prod n)`` or one row, convolved with a kernel ``(*b, p_1, ..., p_k)`` after
    reflection. Cost: three FFTs of lengths ``n + p - 1``."""
    ends = _ends(kernel, sizes)
    image = _pad(x.unflatten(-1, sizes), ends, sizes)
    return fm.product_rows(kernel, image.flatten(-len(sizes)), _padded_geometry(ends, sizes))


def reflected_adjoint(kernel: torch.Tensor, y: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """``y conj(A)``, the rows of ``A^H y``: the adjoint convolution, folded back into the image."""
    ends, out = _ends(kernel, sizes), torch.promote_types(kernel.dtype, y.dtype)
    geometry = _padded_geometry(ends, sizes)
    padded = fm.adjoint_rows(kernel, y.to(torch.promote_types(y.dtype, backend.compute_dtype(out))), geometry)
    return _fold(padded.unflatten(-1, geometry.x), ends, sizes).flatten(-len(sizes)).to(out)


def reflected_spectrum(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """What both products need of the kernel, ready to be kept: its transform ``(*b, ...)``."""
    return fm.spectrum(kernel, _padded_geometry(_ends(kernel, sizes), sizes))


def reflected_by_spectrum(
    hat: torch.Tensor, x: torch.Tensor, ends: Sizes, sizes: Sizes, real: bool, adjoint: bool
) -> torch.Tensor:
    """``reflected_product``, or its adjoint, with the transform of the kernel given; ``ends`` are the kernel's sizes,
    ``real`` says whether it is."""
    levels, geometry = len(sizes), _padded_geometry(ends, sizes)
    hat = hat if hat.ndim == levels or x.ndim == 1 else hat.unsqueeze(-levels - 1)
    image = x.unflatten(-1, sizes)
    if adjoint:
        found = _fold(fm.apply_spectrum(hat, image, geometry, real, "x"), ends, sizes)
    else:
        found = fm.apply_spectrum(hat, _pad(image, ends, sizes), geometry, real)
    return found.flatten(-levels)


def reflected_entries(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The dense ``(*b, N, N)`` matrix, ``w[i - j] + w[i + j + 1]`` along each level, by gathering."""
    levels = len(sizes)
    w = fi.wrap(kernel, tuple(2 * n for n in sizes))
    lead = w.ndim - levels
    for level, n in enumerate(sizes):  # axis lead + 2 level becomes the pair (i, j) of its level
        i = torch.arange(n, device=w.device)
        axis = lead + 2 * level
        minus, plus = ((i[:, None] - i) % (2 * n)).flatten(), ((i[:, None] + i + 1) % (2 * n)).flatten()
        w = (w.index_select(axis, minus) + w.index_select(axis, plus)).unflatten(axis, (n, n))
    rows = [lead + 2 * level for level in range(levels)]
    total = math.prod(sizes)
    order = (*range(lead), *rows, *(r + 1 for r in rows))
    return w.permute(order).reshape(*w.shape[:lead], total, total)


def reflected_diagonal(kernel: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """The diagonal ``(*b, N)``: ``w[0] + w[2 i + 1]`` along each level."""
    levels = len(sizes)
    w = fi.wrap(kernel, tuple(2 * n for n in sizes))
    for axis, n in zip(range(-levels, 0), sizes, strict=True):
        odd = 2 * torch.arange(n, device=w.device) + 1
        w = w.narrow(axis, 0, 1) + w.index_select(axis, odd)
    return w.flatten(-levels)
