"""The cyclic convolution of ``fourier`` for few real rows on the CPU, in numpy: what is left is the transforms.

A product of one row with 4096 numbers takes some 13 microseconds a transform; a chain of tensor operations around each
takes longer than that. Here a whole product, and a whole backward pass, are a few array operations around scipy's
transforms, which keep their plans. Same mathematics, roles and geometry as ``fourier``; no gradients here.
"""

from typing import Any

import numpy
import scipy.fft

__all__ = ["analyse", "combine", "gradients", "synthesise"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]


def analyse(role: str, t: Array, g: Any) -> Array:
    """The spectrum ``(..., N // 2 + 1)`` of one of the three vectors; weights wrap around their shift or are
    mirrored."""
    if role == "a" and (g.shift or g.even):
        full = numpy.zeros((*t.shape[:-1], g.length), t.dtype)
        if g.even:
            full[..., : g.a] = t
            full[..., g.length - g.a + 1 :] = t[..., :0:-1]
        else:
            full[..., : g.a - g.shift] = t[..., g.shift :]
            full[..., g.length - g.shift :] = t[..., : g.shift]
        t = full
    spectrum: Array = scipy.fft.rfft(t, g.length)
    return spectrum


def combine(role: str, fu: Array, fv: Array) -> Array:
    """``A X`` for y, ``conj(first) second`` for the other two roles."""
    product: Array = (fu if role == "y" else numpy.conj(fu)) * fv
    return product


def synthesise(role: str, hat: Array, g: Any, batch: tuple[int, ...]) -> Array:
    """Sum over the rows that share one vector, transform back, and cut out the vector."""
    return _cut(role, scipy.fft.irfft(_summed(hat, batch), g.length), g)


def _summed(hat: Array, batch: tuple[int, ...]) -> Array:
    lead = hat.ndim - 1 - len(batch)
    if hat.shape[:-1] == batch:
        return hat
    if hat.size == hat.shape[-1]:
        return hat.reshape(*batch, -1)
    padded = (1,) * lead + batch
    axes = tuple(k for k, (have, want) in enumerate(zip(hat.shape[:-1], padded, strict=True)) if want == 1 != have)
    return (hat.sum(axes, keepdims=True) if axes else hat).reshape(*batch, hat.shape[-1])


def _cut(role: str, full: Array, g: Any) -> Array:
    size = getattr(g, role)
    if role == "a" and g.even:
        out: Array = full[..., :size].copy()
        out[..., 1:] += full[..., : g.length - size : -1]
        return out
    if role == "a" and g.shift:
        return numpy.concatenate((full[..., g.length - g.shift :], full[..., : size - g.shift]), -1)
    return full if size == g.length else numpy.ascontiguousarray(full[..., :size])


def gradients(
    roles: tuple[str, str, str], spectra: tuple[Array, Array], grad: Array, g: Any, batches: Any, needed: Any
) -> list[Array | None]:
    """The cotangents of both inputs, for (first, second, result) roles, from the kept spectra of the inputs."""
    hat = analyse(roles[2], grad, g)
    found: list[Array | None] = [None, None]
    sums: list[Array | None] = [None, None]
    for mine in (0, 1):
        if needed[mine]:
            other = spectra[1 - mine]
            # arguments go in in the alphabetic order of their roles
            pair = (other, hat) if roles[1 - mine] < roles[2] else (hat, other)
            sums[mine] = _summed(combine(roles[mine], *pair), batches[mine])
    one, two = sums
    if one is not None and two is not None and one.size == two.size:  # one call for both
        both = scipy.fft.irfft(
            numpy.concatenate((one.reshape(-1, one.shape[-1]), two.reshape(-1, two.shape[-1]))), g.length
        )
        half = len(both) // 2
        parts = (both[:half].reshape(*batches[0], -1), both[half:].reshape(*batches[1], -1))
        return [_cut(roles[mine], parts[mine], g) for mine in (0, 1)]
    for mine, total in enumerate(sums):
        if total is not None:
            found[mine] = _cut(roles[mine], scipy.fft.irfft(total, g.length), g)
    return found
