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
    """``W + A`` in the layout of W. A is a view of its diagonals with a negative stride, which numpy has: it copies the
    view, torch adds W. Only tensors made here are shown to numpy, because that fixes the size of their storage for
    good, and FSDP frees that of a weight."""
    w, t = weight.detach(), diagonals(a.detach(), g)
    if w.stride(0) < w.stride(1):  # W^T is the one that lies row by row: (W + A)^T = W^T + A^T
        return _entries(t.clone(), g.x, g.y).add_(w.mT).mT
    return _entries(t.flip(-1), g.y, g.x).add_(w)


def _entries(u: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """The matrix ``u[m - 1 - i + j]``, whose rows lie as u does."""
    out = torch.empty(m, n, dtype=u.dtype)
    step = u.element_size()
    known = u.resolve_neg().numpy()
    numpy.copyto(out.numpy(), numpy.ndarray((m, n), known.dtype, known, (m - 1) * step, (-step, step)))
    return out
