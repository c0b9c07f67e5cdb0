"""Transforms, and a maximum, that also take nothing: ``torch.fft`` refuses a length of 0, its CPU library a batch of 0.

Where there is nothing to transform the result is what the definition gives, zeros of the right shape, and it stays in
the graph: a backward pass through it reaches every tensor that went in, with zero gradients.
"""

from collections.abc import Sequence

import torch

from structmat import backend

__all__ = ["fft", "fftn", "ifft", "ifftn", "irfft", "irfftn", "largest", "nothing", "rfft", "rfftn"]


def nothing(shape: Sequence[int], dtype: torch.dtype, *parts: torch.Tensor) -> torch.Tensor:
    """Zeros of this shape and dtype on the device of the first of ``parts``, in the graph of all of them: each adds the
    sum of none of its numbers, so that not even NaN passes."""
    zeros = torch.zeros(tuple(shape), dtype=dtype, device=parts[0].device)
    for part in parts:
        if part.is_floating_point() or part.is_complex():
            none = part.reshape(-1)[:0]
            zeros = zeros + (none.real if none.is_complex() and not dtype.is_complex else none).sum()
    return zeros.to(dtype)


def largest(sizes: torch.Tensor) -> torch.Tensor:
    """The largest along the last axis, of none 0; not negative numbers."""
    return sizes.amax(-1) if sizes.shape[-1] else sizes.sum(-1)


def fft(t: torch.Tensor, n: int | None = None, norm: str | None = None) -> torch.Tensor:
    """``torch.fft.fft`` along the last axis."""
    return torch.fft.fft(t, n, norm=norm) if t.numel() else _complex(t, (t.shape[-1] if n is None else n,))


def ifft(t: torch.Tensor, n: int | None = None, norm: str | None = None) -> torch.Tensor:
    """``torch.fft.ifft`` along the last axis."""
    return torch.fft.ifft(t, n, norm=norm) if t.numel() else _complex(t, (t.shape[-1] if n is None else n,))


def rfft(t: torch.Tensor, n: int | None = None) -> torch.Tensor:
    """``torch.fft.rfft`` along the last axis: n // 2 + 1 numbers, of which an empty transform has none."""
    return torch.fft.rfft(t, n) if t.numel() else _complex(t, (_half(t.shape[-1] if n is None else n),))


def irfft(hat: torch.Tensor, n: int) -> torch.Tensor:
    """``torch.fft.irfft`` along the last axis, to n numbers."""
    return torch.fft.irfft(hat, n) if hat.numel() else _real(hat, (n,))


def fftn(t: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """``torch.fft.fftn`` along the last axes, zero-padded to ``sizes``."""
    return torch.fft.fftn(t, sizes, _axes(sizes)) if t.numel() else _complex(t, sizes)


def ifftn(hat: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """``torch.fft.ifftn`` along the last axes, of these ``sizes``."""
    return torch.fft.ifftn(hat, sizes, _axes(sizes)) if hat.numel() else _complex(hat, sizes)


def rfftn(t: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """``torch.fft.rfftn`` along the last axes, zero-padded to ``sizes``."""
    return torch.fft.rfftn(t, sizes, _axes(sizes)) if t.numel() else _complex(t, (*sizes[:-1], _half(sizes[-1])))


def irfftn(hat: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """``torch.fft.irfftn`` along the last axes, to these ``sizes``."""
    return torch.fft.irfftn(hat, sizes, _axes(sizes)) if hat.numel() else _real(hat, sizes)


def _axes(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(sizes), 0))


def _half(n: int) -> int:
    return n // 2 + 1 if n else 0


def _complex(t: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    return nothing((*t.shape[: t.ndim - len(sizes)], *sizes), backend.complex_of(t.dtype), t)


def _real(hat: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    return nothing((*hat.shape[: hat.ndim - len(sizes)], *sizes), backend.real_of(hat.dtype), hat)
