"""Cyclic convolutions over several levels (axes) as one differentiable operation, closed under differentiation.

The k-level form of ``fourier``: three arrays of k axes are tied by ``y = a * x``, cyclic of length ``N_l`` along axis
l, each zero-padded; ``a`` and ``x`` sit at position 0, ``y`` is read from position ``shift_l``. Each is a product of
the spectra of the other two (``tied``). Products with k-level circulant and Toeplitz matrices and with convolutions of
any boundary are this operation.

Error: ``||dy|| <= 4 eps (1 + log2 prod N) max|A| ||x||`` normwise (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, Theorem 24.2, axis by axis).
"""

import dataclasses

import torch

from structmat import backend
from structmat.functional import transforms
from structmat.functional.fourier import good_length, is_smooth
from structmat.functional.tied import Convolution, Job, KeepingSpectra, combine, plain

__all__ = [
    "Geometry",
    "adjoint_rows",
    "apply_spectrum",
    "circulant_embedding",
    "convolve",
    "correlate",
    "cyclic_geometry",
    "product_rows",
    "spectrum",
    "toeplitz_geometry",
]

Sizes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static sizes of one convolution, one number a level: the cyclic lengths N, where y begins, and the sizes of the
    three arrays."""

    lengths: Sizes
    shift: Sizes
    a: Sizes
    x: Sizes
    y: Sizes


class _Job(Job):
    def analyse(self, role: str, t: torch.Tensor) -> torch.Tensor:
        return _analyse(role, t, self.geometry)

    def synthesise(self, hat: torch.Tensor, real: bool) -> torch.Tensor:
        return _synthesise(self, hat, real)

    def lead(self, t: torch.Tensor) -> tuple[int, ...]:
        return tuple(t.shape[: t.ndim - len(self.geometry.a)])

    def run(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _apply(u, v, self)


def toeplitz_geometry(rows: Sizes, columns: Sizes) -> Geometry:
    """The convolution in which a k-level Toeplitz product is embedded; its spectrum bounds ``||A||_2``."""
    full = tuple(m + n - 1 for m, n in zip(rows, columns, strict=True))
    return Geometry(tuple(good_length(s) for s in full), tuple(n - 1 for n in columns), full, columns, rows)


def cyclic_geometry(sizes: Sizes) -> Geometry:
    """The convolution of the lengths themselves, which is a k-level circulant product."""
    return Geometry(sizes, (0,) * len(sizes), sizes, sizes, sizes)


def circulant_embedding(g: torch.Tensor, levels: int) -> tuple[torch.Tensor, Geometry]:
    """Weights and geometry of a circulant product: cyclic along the axes whose length has no prime factor above 13,
    folded (``t_d = g_{d mod n}``, padded) along the others."""
    sizes = tuple(g.shape[g.ndim - levels :])
    smooth = tuple(is_smooth(n) for n in sizes)
    parts: list[list[int]] = [[], [], []]  # lengths, shifts, sizes of the weights
    for level, (n, direct) in enumerate(zip(sizes, smooth, strict=True)):
        if not direct:
            g = fold_axis(g, level - levels)
        for part, value in zip(parts, (n, 0, n) if direct else (good_length(2 * n - 1), n - 1, 2 * n - 1), strict=True):
            part.append(value)
    lengths, shift, a = (tuple(part) for part in parts)
    return g, Geometry(lengths, shift, a, sizes, sizes)


def fold_axis(g: torch.Tensor, axis: int) -> torch.Tensor:
    """The 2 n - 1 diagonals of a circulant along one axis: entries 1 to n - 1, then 0 to n - 1."""
    return torch.cat((g.narrow(axis, 1, g.shape[axis] - 1), g), axis)


def product_rows(a: torch.Tensor, x: torch.Tensor, g: Geometry) -> torch.Tensor:
    """``x A^T`` for rows x ``(..., k, prod g.x)``, or one row, flattened in C order; a ``(*b, *g.a)``."""
    levels = len(g.a)
    weights = a.unsqueeze(-levels - 1) if a.ndim > levels and x.ndim > 1 else a
    return convolve(weights, x.unflatten(-1, g.x), g).flatten(-levels)


def adjoint_rows(a: torch.Tensor, y: torch.Tensor, g: Geometry) -> torch.Tensor:
    """``y conj(A)``, the rows of ``A^H y``: y ``(..., k, prod g.y)`` -> ``(..., k, prod g.x)``."""
    levels = len(g.a)
    weights = a.unsqueeze(-levels - 1) if a.ndim > levels and y.ndim > 1 else a
    return _checked("x", weights, y.unflatten(-1, g.y), g, levels).flatten(-levels)


def convolve(a: torch.Tensor, x: torch.Tensor, g: Geometry) -> torch.Tensor:
    """``y = a * x`` by FFT: a ``(*batch_a, *g.a)``, x ``(*batch_x, *g.x)`` -> ``(*broadcast, *g.y)``.

    Real or complex; half and bfloat16 are carried out in float32. Cost: three transforms of ``prod N`` a row, that of
    ``a`` shared by the rows it broadcasts over.
    """
    return _checked("y", a, x, g, len(g.a))


def correlate(x: torch.Tensor, y: torch.Tensor, g: Geometry, batch: Sizes) -> torch.Tensor:
    """The gradient of ``convolve`` in its weights: ``a_k = sum y_i conj(x_j)`` over ``i + shift - j = k``, summed to
    ``batch``."""
    return _apply(x, y, _Job("a", g, tuple(batch)))


def _checked(role: str, a: torch.Tensor, v: torch.Tensor, g: Geometry, levels: int) -> torch.Tensor:
    out = torch.promote_types(a.dtype, v.dtype)
    wide = backend.compute_dtype(out)
    batch = tuple(torch.broadcast_shapes(a.shape[: a.ndim - levels], v.shape[: v.ndim - levels]))
    sizes: Sizes = getattr(g, role)
    if 0 in batch or 0 in sizes or 0 in v.shape:
        return transforms.nothing((*batch, *sizes), out, v, a)
    return _apply(a.to(wide), v.to(wide), _Job(role, g, batch)).to(out)


def spectrum(a: torch.Tensor, g: Geometry) -> torch.Tensor:
    """The transform of the weights: ``(*batch, *N)``, along the last axis half of it where they are real."""
    with backend.full_precision(a.device):
        return _analyse("a", a.to(backend.compute_dtype(a.dtype)), g)


def apply_spectrum(hat: torch.Tensor, x: torch.Tensor, g: Geometry, real: bool, role: str = "y") -> torch.Tensor:
    """``convolve`` (or with ``role`` x its adjoint) with the transform of the weights given, on arrays of k axes;
    ``real`` says whether the weights are."""
    levels, sizes = len(g.a), getattr(g, role)
    if 0 in x.shape:
        lead = torch.broadcast_shapes(hat.shape[:-levels], x.shape[:-levels])
        dtype = x.dtype if real else torch.promote_types(hat.dtype, x.dtype)
        return transforms.nothing((*lead, *sizes), dtype, x, hat)
    if real and x.is_complex():
        parts = (apply_spectrum(hat, part, g, True, role) for part in (x.real, x.imag))
        return torch.complex(*parts)
    x = x.to(backend.compute_dtype(x.dtype)) if real else x.to(hat.dtype)
    with backend.full_precision(x.device):
        product = combine(role, hat, _analyse("x" if role == "y" else "y", x, g))
        return _synthesise(_Job(role, g, tuple(product.shape[:-levels])), product, real)


# -- the operation ------------------------------------------------------------------------------------------------


def _apply(u: torch.Tensor, v: torch.Tensor, job: _Job) -> torch.Tensor:
    if u.is_complex() != v.is_complex():
        common = torch.promote_types(u.dtype, v.dtype)
        u, v = u.to(common), v.to(common)
    if torch.compiler.is_compiling():
        return plain(u, v, job)[0]
    backend.demand("multilevel_product", u, v)
    if backend.transforming():
        result: torch.Tensor = Convolution.apply(u, v, job)
    else:
        result = KeepingSpectra.apply(u, v, job)
    return result


def _analyse(role: str, t: torch.Tensor, g: Geometry) -> torch.Tensor:
    """Zero-pad, y behind its shift, and transform."""
    if role == "y" and any(g.shift):
        pads = [
            p for s, n, size in reversed(list(zip(g.shift, g.lengths, g.y, strict=True))) for p in (s, n - s - size)
        ]
        t = torch.nn.functional.pad(t, pads)
    t = t.contiguous()  # of strided arrays torch makes strided spectra, on which every later pass is slow
    return transforms.fftn(t, g.lengths) if t.is_complex() else transforms.rfftn(t, g.lengths)


def _synthesise(job: _Job, hat: torch.Tensor, real: bool) -> torch.Tensor:
    """Sum over the rows that share one array, transform back, and cut out the array."""
    role, g = job.role, job.geometry
    levels = len(g.a)
    if tuple(hat.shape[:-levels]) != job.batch:
        hat = hat.sum_to_size(*job.batch, *hat.shape[-levels:])
    full = transforms.irfftn(hat, g.lengths) if real else transforms.ifftn(hat, g.lengths)
    start = g.shift if role == "y" else (0,) * levels
    sizes: Sizes = getattr(g, role)
    if sizes == g.lengths:
        return full
    for axis, (s, size) in enumerate(zip(start, sizes, strict=True)):
        full = full.narrow(axis - levels, s, size)
    return full.clone(memory_format=torch.contiguous_format)  # no output is a view
