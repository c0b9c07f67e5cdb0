"""Preconditioned conjugate gradients on rows, many right-hand sides at once, each stopped by its own backward error.

Source: M. R. Hestenes and E. Stiefel, 1952; Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., 2003,
algorithm 9.1.
"""

import math
from collections.abc import Callable

import numpy
import torch

from structmat.functional.fourier import Array, Multiplier
from structmat.functional.krylov.common import CONFIRMED, Apply, Callback, Outcome, begin, lift, quotient, sizes, tell

__all__ = ["conjugate_gradients"]

_LEAST = 5e-324  # the smallest positive float64: 0 / max(0, this) is 0, and nothing else changes


def conjugate_gradients(
    multiply: Apply,
    precondition: Apply,
    b: torch.Tensor,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Rows x with ``A x = b`` for Hermitian positive definite A; b ``(..., k, n)``, sigma an upper bound of
    ``||A||_2``.

    Stops a row when ``||r|| <= target (sigma ||x|| + ||b||)``, measured on the recursive residual, and confirms it on
    the true one (a restart follows if they have drifted apart). ``callback(step, worst eta)`` after each step. Ends
    at once, not converged, where a row shows that A or its preconditioner is not definite.
    Cost: a product and a preconditioner a step; four vectors a row.
    """
    if b.numel() == b.shape[-1] and b.device.type == "cpu" and not b.is_complex():
        return _one_row(multiply, precondition, b, float(sigma), target, max_steps, start, callback)
    norm = torch.linalg.vector_norm
    size = norm(b, dim=-1, keepdim=True)
    x, r = begin(multiply, b, start)
    bound = lift(sigma)
    least = torch.finfo(size.dtype).tiny
    steps, eta = 0, None
    for _ in range(3):
        p, rz, fresh = r, size, True  # the first direction is formed only if a step is needed
        while steps < max_steps:
            scale = sizes(size, bound, x) if steps or start is not None else size
            length = norm(r, dim=-1, keepdim=True)
            tell(callback, steps, length, scale)
            live = ~(length <= target * scale)
            if not bool(live.any()):
                break
            z = precondition(r)
            new = _dot(r, z)
            p = z if fresh else torch.addcmul(z, new / rz.clamp_min(least), p)
            rz, fresh = new, False
            ap = multiply(p)
            curvature = _dot(p, ap)
            if bool((live & ~((rz > 0) & (curvature > 0))).any()):
                return Outcome(x, steps, False)
            alpha = torch.where(live, rz / curvature.clamp_min(least), 0)  # a finished row stays where it is
            x = torch.addcmul(x, alpha, p)
            r = torch.addcmul(r, alpha, ap, value=-1)
            steps += 1
        r = b - multiply(x)
        scale = sizes(size, bound, x)
        length = norm(r, dim=-1, keepdim=True)
        eta = quotient(length, scale)
        if bool((length <= CONFIRMED * target * scale).all()):
            return Outcome(x, steps, True, eta)
        if steps >= max_steps:
            break
    return Outcome(x, steps, False, eta)


def _one_row(
    multiply: Apply,
    precondition: Apply,
    b: torch.Tensor,
    sigma: float,
    target: float,
    max_steps: int,
    start: torch.Tensor | None,
    callback: Callback | None,
) -> Outcome:
    """The same iteration for one real row on the CPU, on numpy arrays with Python numbers for scalars: at the length of
    a few thousand an operation of torch costs several times its arithmetic."""

    product, divide = _on_host(multiply, b.shape), _on_host(precondition, b.shape)
    right = b.detach().reshape(-1).numpy()
    size = math.sqrt(right @ right)
    x = numpy.zeros_like(right) if start is None else start.to(b.dtype).expand(b.shape).reshape(-1).numpy().copy()
    r = right.copy() if start is None else right - product(x)
    steps = 0
    for _ in range(3):
        p, rz = r, 0.0
        while True:
            scale, length = sigma * math.sqrt(x @ x) + size, math.sqrt(r @ r)
            if callback is not None and steps:
                callback(steps, length / max(scale, _LEAST))
            if length <= target * scale or steps >= max_steps:
                break
            z = divide(r)
            new = float(r @ z)
            p, rz = (z + (new / rz) * p if rz else z), new
            ap = product(p)
            curvature = float(p @ ap)
            if not (rz > 0 and curvature > 0):
                return Outcome(torch.from_numpy(x).view(b.shape), steps, False)
            x, r = x + (rz / curvature) * p, r - (rz / curvature) * ap
            steps += 1
        r = right - product(x)
        scale, length = sigma * math.sqrt(x @ x) + size, math.sqrt(r @ r)
        if length <= CONFIRMED * target * scale or steps >= max_steps:
            break
    eta = b.new_full(b.shape[:-1], length / max(scale, _LEAST))
    return Outcome(torch.from_numpy(x).view(b.shape), steps, length <= CONFIRMED * target * scale, eta)


def _on_host(function: Apply, shape: torch.Size) -> Callable[[Array], Array]:
    if isinstance(function, Multiplier) and function.known is not None and function.single:
        return function.host
    return lambda v: function(torch.from_numpy(v).view(shape)).detach().reshape(-1).numpy()


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise ``a^H b``, real (A and its preconditioner are Hermitian)."""
    return torch.linalg.vecdot(a, b).real[..., None]
