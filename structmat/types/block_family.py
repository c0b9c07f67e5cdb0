"""What matrices of several levels share: the sizes of their levels, ``apply`` on images, and ``from_kernel``.

A convolution of images, ``y[i] = sum_k kernel[k] x[i - k + c]`` with the centre ``c = size // 2`` along each axis (that
of ``scipy.ndimage.convolve``, odd and even sizes alike), is a matrix whose type depends on what lies outside the
image: zeros give a k-level Toeplitz matrix, a periodic image a k-level circulant, a reflected one (``d c b a | a b c d
| d c b a``) a sum of Toeplitz and Hankel terms along each level.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from structmat import backend, dispatch
from structmat._shell import as_operand, broadcast, check_pair
from structmat.errors import DtypeError, ShapeError, StructureError
from structmat.functional import level_indices as fi
from structmat.matrix import Matrix

__all__ = ["BOUNDARIES", "MultilevelFamily", "from_kernel", "require_sizes"]

BOUNDARIES = ("zero", "periodic", "reflect")
Sizes = tuple[int, ...]


class MultilevelFamily(Matrix):
    """Rows and columns are multi-indices of k levels, flattened in C order; the first field holds k trailing axes."""

    def _levels(self) -> int:
        raise TypeError(f"{type(self).__name__} must define _levels")

    def _row_sizes(self) -> Sizes:
        raise TypeError(f"{type(self).__name__} must define _row_sizes")

    def _column_sizes(self) -> Sizes:
        return self._row_sizes()

    @property
    def core(self) -> Mapping[str, int]:  # type: ignore[override]  # the number of levels differs from value to value
        """All trailing axes of the stored array belong to the levels; if it has too few, ``_check_levels`` says so."""
        levels = self._levels()
        return {self._layout[0][0]: min(levels, getattr(self._stored(), "ndim", levels))}

    def _stored(self) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self, self._layout[0][0])
        return tensor

    @property
    def shape(self) -> torch.Size:
        stored = self._stored()
        lead = stored.shape[: stored.ndim - self._levels()]
        return torch.Size((*lead, math.prod(self._row_sizes()), math.prod(self._column_sizes())))

    def apply(self, image: Any) -> torch.Tensor:
        """The product with an image, or a batch of them: ``(..., n_1, ..., n_k) -> (..., m_1, ..., m_k)``; leading
        axes broadcast with the batch of the matrix.

        Raises ShapeError if the last k axes are not the column sizes.
        """
        place = f"{self!r}.apply(image)"
        x = as_operand(image, self.dtype, self.device, place)
        levels, sizes = self._levels(), self._column_sizes()
        if tuple(x.shape[max(0, x.ndim - levels) :]) != tuple(sizes):
            raise ShapeError(f"{place}: the image has shape {tuple(x.shape)}, its last axes must be {tuple(sizes)}")
        check_pair(self, x, place)
        rows = x.flatten(-levels)
        if len(self.shape) > 2:
            broadcast(place, self.batch_shape, rows.shape[:-1])
            return self.linear(rows[..., None, :])[..., 0, :].unflatten(-1, self._row_sizes())
        return self.linear(rows).unflatten(-1, self._row_sizes())

    def _level_scale(self, factor: complex | torch.Tensor) -> complex | torch.Tensor:
        """A factor of shape () or (*b, 1, 1), shaped to multiply the stored array."""
        if isinstance(factor, torch.Tensor) and factor.ndim:
            return factor.reshape(*factor.shape[:-2], *(1,) * self._levels())
        return factor

    def _statics(self) -> list[str]:
        return [f"levels={'x'.join(map(str, self._row_sizes()))}"]

    def _check_levels(self, name: str, given: Any) -> None:
        """A static number of levels: a positive integer that the stored array has axes for, none of them empty."""
        kind, stored = type(self).__name__, self._stored()
        if isinstance(given, bool) or not isinstance(given, (int, torch.SymInt)) or not 1 <= given <= stored.ndim:
            raise ShapeError(
                f"{kind}: {name} must be an integer from 1 to {stored.ndim}, the axes of an array of "
                f"shape {tuple(stored.shape)}; got {given!r}"
            )
        if 0 in stored.shape[stored.ndim - given :]:
            raise ShapeError(f"{kind}: a level has no entry in an array of shape {tuple(stored.shape)}")


def require_sizes(sizes: Any, place: str, total: int | None = None) -> Sizes:
    """The sizes of the levels as a tuple of positive integers (whose product is ``total`` where it is given)."""
    found = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not found or not all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) and n >= 1 for n in found):
        raise ShapeError(f"{place}: the sizes of the levels must be positive integers, got {sizes!r}")
    if total is not None and math.prod(found) != total:
        raise ShapeError(f"{place}: the levels {found} have {math.prod(found)} entries, the matrix has {total}")
    return found


def from_kernel(kernel: Any, shape: Any, boundary: str, symmetric: bool) -> Matrix:
    """The matrix of the convolution with ``kernel (*b, p_1, ..., p_k)`` of images of ``shape`` (k sizes).

    boundary: what lies outside the image: "zero" gives a ``BlockToeplitz``, "periodic" a ``BlockCirculant``, "reflect"
    a ``ReflectedConvolution``, and with ``symmetric`` (the kernel is even about its centre along each axis) a
    ``CosineDiagonal``, in which everything is closed. Kernels larger than the image are exact in all of them.
    """
    place = f"from_kernel(kernel, shape={shape!r}, boundary={boundary!r})"
    if boundary not in BOUNDARIES:
        raise ValueError(f"{place}: unknown boundary; legal are {', '.join(map(repr, BOUNDARIES))}")
    sizes = require_sizes(shape, place)
    if not isinstance(kernel, torch.Tensor):
        raise TypeError(f"{place}: the kernel must be a tensor, got {type(kernel).__name__}")
    if not (kernel.is_floating_point() or kernel.is_complex()):
        raise DtypeError(f"{place}: the kernel has dtype {kernel.dtype}; convert it first, e.g. .to(torch.float64)")
    levels = len(sizes)
    if kernel.ndim < levels or 0 in kernel.shape[kernel.ndim - levels :]:
        raise ShapeError(f"{place}: a kernel of shape {tuple(kernel.shape)} has not {levels} non-empty axes")
    if boundary == "periodic":
        circulant: Matrix = dispatch.call("block_circulant", fi.circulant_kernel(kernel, sizes), levels)
        return circulant
    if boundary == "zero":
        toeplitz: Matrix = dispatch.call("block_toeplitz", fi.toeplitz_kernel(kernel, sizes), sizes)
        return toeplitz
    if symmetric:
        _require_even(kernel, levels, place)
    reflected: Matrix = dispatch.call("reflected_convolution", kernel, sizes, symmetric)
    return reflected


def _require_even(kernel: torch.Tensor, levels: int, place: str) -> None:
    """Look, where values may be read, whether the kernel is even about its centre along each axis."""
    if not backend.eager(kernel):
        return
    spans = tuple(2 * (p // 2) + 1 for p in kernel.shape[kernel.ndim - levels :])
    pads = [
        pad
        for p, s in reversed(list(zip(kernel.shape[kernel.ndim - levels :], spans, strict=True)))
        for pad in (0, s - p)
    ]
    full = torch.nn.functional.pad(kernel.detach().to(backend.compute_dtype(kernel.dtype)), pads)
    gap = max(float((full - full.flip(axis)).abs().max()) for axis in range(-levels, 0))
    if not gap <= 8 * torch.finfo(kernel.dtype).eps * float(full.abs().max()):
        raise StructureError(
            f"{place}: symmetric=True, but the kernel differs from its mirror image about the centre (index "
            f"{tuple(s // 2 for s in spans)}) by {gap:.1e}; leave symmetric out to get a ReflectedConvolution"
        )
