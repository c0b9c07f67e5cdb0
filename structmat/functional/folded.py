"""A linear map by a weight plus a convolution, ``y = x (W + A)^T + bias``, with W + A formed on the way.

A is the matrix of a ``fourier.Geometry`` (Toeplitz, symmetric Toeplitz, circulant) and holds far fewer numbers than W.
Beside the product with W it costs four transforms a row in a training step: of x, of ``A x``, and of both gradients.
Formed, it costs two passes over the m n entries and two transforms a row, of x and of the gradient of y, which meet in
the sum over all rows. Nothing of size m n is kept between the passes.
"""

from typing import Any

import numpy
import torch

from structmat import backend
from structmat.functional import fourier
from structmat.functional.fourier import Geometry

__all__ = ["diagonals", "folded_linear", "plus_convolution", "serves"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]


def diagonals(a: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """``t`` of length m + n - 1 with ``A[i, j] = t[i - j + n - 1]``, from the numbers a ``(..., len a)``."""
    m, n = geometry.y, geometry.x
    if geometry.even:
        return torch.cat((a[..., 1:n].flip(-1), a[..., :m]), -1)
    if geometry.shift:
        return a
    return torch.cat((a[..., geometry.length - n + 1 :], a[..., :m]), -1)


def plus_convolution(weight: torch.Tensor, a: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """``W + A`` as a dense ``(m, n)`` tensor; differentiable, in plain torch."""
    t = diagonals(a, geometry)
    return weight + t.flip(-1).unfold(-1, geometry.x, 1).flip(-2)


def serves(x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor) -> bool:
    """Whether ``folded_linear`` takes these: plain real CPU tensors of one dtype of at least single precision, outside
    of autocast, torch.compile and every transform."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return (
        x.dtype == weight.dtype == a.dtype
        and x.dtype in (torch.float32, torch.float64)
        and type(x) in plain
        and type(weight) in plain
        and type(a) in plain
        and x.device.type == weight.device.type == a.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and backend.eager(x, weight, a)
        and not backend.transforming()
    )


def folded_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """``y = x (W + A)^T + bias`` for rows x ``(..., n)`` where ``serves`` says so: W ``(m, n)``, a one vector.

    Cost: 2 m n flops a row and m n once, as W alone; backward also two transforms a row. Keeps x, W and a. The rounding
    of W + A is that of a merged weight, ``eps |W|`` an entry. Differentiable any number of times in all four.
    """
    y: torch.Tensor = _Folded.apply(x, weight, bias, a, geometry)
    return y


class _Folded(torch.autograd.Function):
    """Without ``setup_context``: torch inspects the signature of such a Function at every call."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, geometry: Geometry) -> Any:
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight, a)
        return torch.nn.functional.linear(x, _formed(weight, a, geometry), bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, a = ctx.saved_tensors
        g: Geometry = ctx.geometry
        needs = ctx.needs_input_grad
        again = torch.is_grad_enabled() or not backend.eager(grad)  # a second order follows, or a batch of gradients
        rows, dy = x.reshape(-1, g.x), grad.reshape(-1, g.y)
        dx = dw = db = da = None
        with backend.full_precision(x.device):
            if needs[0]:
                dx = grad @ (plus_convolution if again else _formed)(weight, a, g)
            if needs[1]:
                dw = dy.mT @ rows
            if needs[2]:
                db = dy.sum(0)
            if needs[3]:
                da = fourier.correlate(rows, dy, g, ()) if again else fourier.correlate_rows(rows, dy, g)
        return dx, dw, db, da, None


def _formed(weight: torch.Tensor, a: torch.Tensor, g: Geometry) -> torch.Tensor:
    """``W + A`` in the layout of W, by numpy, whose strides may be negative: with them A is a view of its diagonals."""
    m, n = g.y, g.x
    w, t = weight.detach().resolve_neg().numpy(), _diagonals(a.detach().resolve_neg().numpy(), g)
    if w.strides[0] < w.strides[1]:  # W^T is the one that lies row by row: (W + A)^T = W^T + A^T
        return torch.from_numpy(numpy.add(w.T, _view(t, n, m))).mT
    return torch.from_numpy(numpy.add(w, _view(t[::-1].copy(), m, n)))


def _diagonals(a: Array, g: Geometry) -> Array:
    """As ``diagonals``, in numpy."""
    if g.even:
        return numpy.concatenate((a[g.x - 1 : 0 : -1], a[: g.y]))
    if g.shift:
        return a
    return numpy.concatenate((a[g.length - g.x + 1 :], a[: g.y]))


def _view(u: Array, m: int, n: int) -> Array:
    """The matrix ``u[m - 1 - i + j]``; its rows lie as u does, which is what addition is fast on."""
    step = u.itemsize
    return numpy.ndarray((m, n), u.dtype, u, (m - 1) * step, (-step, step))
