"""Cyclic convolution of length N as one differentiable operation, closed under differentiation.

Three vectors are tied by ``y = a * x`` (cyclic, length N, each zero-padded): the weights ``a``, whose entry k sits at
position ``(k - shift) mod N``, the input ``x`` and the output ``y``, both from position 0. Each is a product of the
spectra of the other two (``tied``). Circulant, f-circulant, Toeplitz and Hankel products are all this operation. In an
*even* geometry entry k of the weights sits at k and at ``N - k``, each number stored once: symmetric Toeplitz matrices,
whose gradient adds both places up.

Error: ``||dy|| <= 4 eps (1 + log2 N) max|A| ||x||`` normwise (Higham, Accuracy and Stability of Numerical Algorithms,
2002, Theorem 24.2, for the transforms).
"""

import dataclasses
from typing import Any

import numpy
import scipy.fft
import torch

from structmat import backend
from structmat.functional import fourier_host as host
from structmat.functional import transforms
from structmat.functional.lengths import good_length, is_smooth
from structmat.functional.tied import INPUTS, Convolution, Job, KeepingSpectra, gradients, plain

__all__ = ["Geometry", "convolve", "convolve_transposed", "good_length", "is_smooth", "spectrum"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

_AT_ONCE = 1 << 17  # numbers of the rows that are correlated at a time
_FEW_ROWS, _SHORT = 16, 512  # on CPU, fewer rows than this and longer than that: scipy's cached plans beat torch.fft


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static sizes of one convolution: cyclic length N, the shift of the weights, the three lengths; whether the
    weights are mirrored (then shift is 0)."""

    length: int
    shift: int
    a: int
    x: int
    y: int
    even: bool = False


class _Job(Job):
    def analyse(self, role: str, t: torch.Tensor) -> torch.Tensor:
        return _analyse(role, t, self.geometry)

    def synthesise(self, hat: torch.Tensor, real: bool) -> torch.Tensor:
        return _synthesise(self, hat, real)

    def lead(self, t: torch.Tensor) -> tuple[int, ...]:
        return tuple(t.shape[:-1])

    def run(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _apply(u, v, self)


def convolve(a: torch.Tensor, x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """``y = a * x`` by FFT: a ``(*batch_a, len a)``, x ``(*batch_x, len x)`` -> ``(*broadcast, len y)``.

    Real or complex; half and bfloat16 are carried out in float32. Cost: three transforms of length N per row, those
    of ``a`` shared by the rows it broadcasts over. The backward pass keeps the inputs, and spectra of up to 8 MB in
    float64.
    """
    out = torch.promote_types(a.dtype, x.dtype)
    wide = backend.compute_dtype(out)
    batch = x.shape[:-1] if a.ndim == 1 else torch.broadcast_shapes(a.shape[:-1], x.shape[:-1])
    if geometry.y == 0 or geometry.x == 0 or 0 in batch:
        return transforms.nothing((*batch, geometry.y), out, x, a)
    return _apply(a.to(wide), x.to(wide), _Job("y", geometry, tuple(batch))).to(out)


def convolve_transposed(a: torch.Tensor, y: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """``x = A^T y`` for the matrix A of ``convolve`` (plain transpose), without forming other weights: y ``(*batch_y,
    len y)``."""
    out = torch.promote_types(a.dtype, y.dtype)
    wide = backend.compute_dtype(out)
    batch = y.shape[:-1] if a.ndim == 1 else torch.broadcast_shapes(a.shape[:-1], y.shape[:-1])
    if geometry.y == 0 or geometry.x == 0 or 0 in batch:
        return transforms.nothing((*batch, geometry.x), out, y, a)
    weights = a.to(wide).conj().resolve_conj() if a.is_complex() else a.to(wide)
    return _apply(weights, y.to(wide), _Job("x", geometry, tuple(batch))).to(out)


def correlate(x: torch.Tensor, y: torch.Tensor, geometry: Geometry, batch: tuple[int, ...]) -> torch.Tensor:
    """The gradient of ``convolve`` in its weights: ``a_k = sum y_i conj(x_j)`` over ``i - j = k - shift``, summed to
    ``batch``."""
    return _apply(x, y, _Job("a", geometry, tuple(batch)))


def correlate_rows(x: torch.Tensor, y: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """``correlate`` of rows x ``(k, len x)`` and y ``(k, len y)`` summed to one vector, for values alone: a part of the
    rows at a time, so that their spectra stay in the cache and nothing of the size of all rows is allocated."""
    total: torch.Tensor | None = None
    step = max(1, _AT_ONCE // geometry.length)
    for start in range(0, x.shape[0], step):
        fx = _analyse("x", x[start : start + step], geometry)
        product = fx.conj_physical_().mul_(_analyse("y", y[start : start + step], geometry)).sum(0)
        total = product if total is None else total.add_(product)
    if total is None:
        return x.new_zeros(geometry.a)
    inverse = transforms.ifft if x.is_complex() else transforms.irfft
    return _cut("a", inverse(total, geometry.length), geometry)


def spectrum(a: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The transform of the weights: of length N (complex) or N // 2 + 1 (real). Its largest modulus bounds
    ``||A||_2``."""
    return _analyse("a", a.to(backend.compute_dtype(a.dtype)), geometry)


def apply_spectrum(hat: torch.Tensor, x: torch.Tensor, geometry: Geometry, real: bool) -> torch.Tensor:
    """``convolve`` with the transform of the weights given; ``real`` says whether the weights are."""
    wide = backend.compute_dtype(x.dtype)
    if 0 in x.shape:
        lead = torch.broadcast_shapes(hat.shape[:-1], x.shape[:-1])
        dtype = x.dtype if real else torch.promote_types(hat.dtype, wide)
        return transforms.nothing((*lead, geometry.y), dtype, x, hat)
    if real and x.is_complex():
        return torch.complex(apply_spectrum(hat, x.real, geometry, True), apply_spectrum(hat, x.imag, geometry, True))
    x = x.to(wide) if real else x.to(hat.dtype)
    product = hat * _analyse("x", x, geometry)
    return _synthesise(_Job("y", geometry, tuple(product.shape[:-1])), product, real)


class Multiplier:
    """``x -> apply_spectrum(hat, x)`` for many calls inside a solver, where nothing is recorded: rows x of the
    spectrum's own precision. Where ``known`` is there, ``host`` does the same for numpy rows through scipy alone,
    without what a tensor costs at every step."""

    def __init__(self, hat: torch.Tensor, g: Geometry, real: bool) -> None:
        self.hat, self.geometry, self.real = hat, g, real
        served = real and hat.device.type == "cpu" and g.length > _SHORT and backend.eager(hat)
        self.known = hat.detach().resolve_conj().numpy() if served else None
        self.single = hat.numel() == hat.shape[-1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.known is None or x.numel() >= _FEW_ROWS * self.geometry.x:
            return apply_spectrum(self.hat, x, self.geometry, self.real)
        return torch.from_numpy(self.host(x.detach().numpy()))

    def host(self, v: Array) -> Array:
        """Rows in, rows out, as numpy arrays."""
        assert self.known is not None
        known = self.known.reshape(-1) if self.single else self.known
        bins = scipy.fft.rfft(v, self.geometry.length)
        bins = numpy.multiply(bins, known, out=bins) if self.single else bins * known
        rows: Array = scipy.fft.irfft(bins, self.geometry.length)[..., : self.geometry.y]
        return rows


def _apply(u: torch.Tensor, v: torch.Tensor, job: _Job) -> torch.Tensor:
    if u.is_complex() != v.is_complex():
        common = torch.promote_types(u.dtype, v.dtype)
        u, v = u.to(common), v.to(common)
    if torch.compiler.is_compiling():
        return plain(u, v, job)[0]
    backend.demand("fft_product", u, v)
    if _host_serves(u, v, job.geometry.length):
        if not (torch.is_grad_enabled() and (u.requires_grad or v.requires_grad)):
            return torch.from_numpy(_on_host(u, v, job)[0])
        served: torch.Tensor = _OnHost.apply(u, v, job)
        return served
    if backend.transforming():
        result: torch.Tensor = Convolution.apply(u, v, job)
    else:
        result = KeepingSpectra.apply(u, v, job)
    return result


def _analyse(role: str, t: torch.Tensor, g: Geometry) -> torch.Tensor:
    """Zero-pad (the weights wrap around their shift, or are mirrored) and transform."""
    if role == "a" and (g.shift or g.even):
        head, tail = (t, t[..., 1:].flip(-1)) if g.even else (t[..., g.shift :], t[..., : g.shift])
        gap = t.new_zeros(*t.shape[:-1], g.length - head.shape[-1] - tail.shape[-1])
        t = torch.cat((head, gap, tail), -1)
    t = t.contiguous()  # of strided rows torch makes strided spectra, on which every later pass is slow
    if _scipy_serves(t, g.length):
        transform = scipy.fft.fft if t.is_complex() else scipy.fft.rfft
        return torch.from_numpy(transform(t.detach().resolve_conj().resolve_neg().numpy(), g.length))
    return transforms.fft(t, g.length) if t.is_complex() else transforms.rfft(t, g.length)


def _synthesise(job: _Job, hat: torch.Tensor, real: bool) -> torch.Tensor:
    """Sum over the rows that share one vector, transform back, and cut out the vector."""
    role, g = job.role, job.geometry
    if hat.shape[:-1] != torch.Size(job.batch):
        single = hat.numel() == hat.shape[-1] and not torch.compiler.is_compiling()  # a sum of one complex row is slow
        hat = hat.reshape(*job.batch, -1) if single else hat.sum_to_size(*job.batch, hat.shape[-1])
    if _scipy_serves(hat, g.length):
        transform = scipy.fft.irfft if real else scipy.fft.ifft
        full = torch.from_numpy(transform(hat.detach().resolve_conj().resolve_neg().numpy(), g.length))
    else:
        full = transforms.irfft(hat, g.length) if real else transforms.ifft(hat, g.length)
    return _cut(role, full, g)


def _cut(role: str, full: torch.Tensor, g: Geometry) -> torch.Tensor:
    """One of the three vectors out of the N numbers of a transform back."""
    size = getattr(g, role)
    if role == "a" and g.even:
        return torch.cat((full[..., :1], full[..., 1:size] + full[..., g.length - size + 1 :].flip(-1)), -1)
    if role == "a" and g.shift:
        return torch.cat((full[..., g.length - g.shift :], full[..., : size - g.shift]), -1)
    return full[..., :size].clone() if size < g.length else full


def _scipy_serves(t: torch.Tensor, length: int) -> bool:
    if length <= _SHORT or t.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if t.requires_grad and torch.is_grad_enabled():  # inside a Function's forward nothing is recorded
        return False
    if t.numel() >= _FEW_ROWS * t.shape[-1] or type(t) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return backend.eager(t)


def _host_serves(u: torch.Tensor, v: torch.Tensor, length: int) -> bool:
    """Whether few real rows on the CPU meet, outside of every transform: there the numpy form is faster."""
    most = _FEW_ROWS * v.shape[-1]
    if length <= _SHORT or v.numel() >= most or u.numel() >= most or u.is_complex() or u.device.type != "cpu":
        return False
    plain = (torch.Tensor, torch.nn.Parameter)
    return type(u) in plain and type(v) in plain and backend.eager(u, v) and not backend.transforming()


def _on_host(u: torch.Tensor, v: torch.Tensor, job: _Job) -> tuple[host.Array, host.Array, host.Array]:
    """The result and both spectra."""
    first, second = INPUTS[job.role]
    fu = host.analyse(first, u.detach().resolve_neg().numpy(), job.geometry)
    fv = host.analyse(second, v.detach().resolve_neg().numpy(), job.geometry)
    return host.synthesise(job.role, host.combine(job.role, fu, fv), job.geometry, job.batch), fu, fv


class _OnHost(torch.autograd.Function):
    """The form for few real rows on the CPU: as ``tied.KeepingSpectra``, each pass in numpy."""

    @staticmethod
    def forward(ctx: Any, u: Any, v: Any, job: _Job) -> Any:
        y, fu, fv = _on_host(u, v, job)
        ctx.job, ctx.spectra = job, (fu, fv)
        ctx.save_for_backward(u, v)
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        u, v = ctx.saved_tensors
        job, needed = ctx.job, ctx.needs_input_grad
        if torch.is_grad_enabled() or not backend.eager(grad):
            return *gradients(job, u, v, None, grad, needed), None
        batches = (tuple(u.shape[:-1]), tuple(v.shape[:-1]))
        roles = (*INPUTS[job.role], job.role)
        found = host.gradients(roles, ctx.spectra, grad.resolve_neg().numpy(), job.geometry, batches, needed)
        return *(None if f is None else torch.from_numpy(f) for f in found), None
