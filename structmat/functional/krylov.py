"""Preconditioned conjugate gradients on rows, many right-hand sides at once, each stopped by its own backward error.

Source: M. R. Hestenes and E. Stiefel, 1952; Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., 2003,
algorithm 9.1.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy
import torch

from structmat.functional.fourier import Array, Multiplier

__all__ = ["Outcome", "conjugate_gradients"]

Apply = Callable[[torch.Tensor], torch.Tensor]
_LEAST = 5e-324  # the smallest positive float64: 0 / max(0, this) is 0, and nothing else changes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Rows x, steps taken, whether every row met its target (False also when the matrix showed itself not definite),
    and the backward error of each row, measured on the true residual (None where that was not reached)."""

    x: torch.Tensor
    steps: int
    converged: bool
    eta: torch.Tensor | None = None


def conjugate_gradients(
    multiply: Apply,
    precondition: Apply,
    b: torch.Tensor,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Rows x with ``A x = b`` for Hermitian positive definite A; b ``(..., k, n)``, sigma an upper bound of
    ``||A||_2``.

    Stops when ``||r|| <= target (sigma ||x|| + ||b||)`` for every row, measured on the recursive residual and
    confirmed on the true one (a restart follows if they have drifted apart). ``callback(step, worst eta)`` after each
    step.
    """
    if b.numel() == b.shape[-1] and b.device.type == "cpu" and not b.is_complex():
        return _one_row(multiply, precondition, b, float(sigma), target, max_steps, start, callback)
    norm = torch.linalg.vector_norm
    size = norm(b, dim=-1, keepdim=True)
    x = torch.zeros_like(b) if start is None else start.to(b.dtype).expand(b.shape).clone()
    r = b if start is None else b - multiply(x)
    bound = sigma[..., None, None] if sigma.ndim else sigma
    steps, eta = 0, None
    for _ in range(3):
        p, rz, fresh = r, size, True  # the first direction is formed only if a step is needed
        while steps < max_steps:
            scale = torch.addcmul(size, bound, norm(x, dim=-1, keepdim=True)) if steps or start is not None else size
            length = norm(r, dim=-1, keepdim=True)
            if callback is not None and steps:
                callback(steps, float((length / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max()))
            if bool((length <= target * scale).all()):
                break
            z = precondition(r)
            new = _dot(r, z)
            p = z if fresh else torch.addcmul(z, new / rz.clamp_min(_LEAST), p)
            rz, fresh = new, False
            ap = multiply(p)
            curvature = _dot(p, ap)
            if bool(((rz > 0) & ~(curvature > 0)).any()):
                return Outcome(x, steps, False)
            alpha = rz / curvature.clamp_min(_LEAST)  # a finished row (r = 0, so rz = 0) gets 0
            x = torch.addcmul(x, alpha, p)
            r = torch.addcmul(r, alpha, ap, value=-1)
            steps += 1
        r = b - multiply(x)
        scale = torch.addcmul(size, bound, norm(x, dim=-1, keepdim=True))
        length = norm(r, dim=-1, keepdim=True)
        eta = (length / scale.clamp_min(torch.finfo(scale.dtype).tiny))[..., 0]
        if bool((length <= 1.5 * target * scale).all()):
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
    callback: Callable[[int, float], None] | None,
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
        if length <= 1.5 * target * scale or steps >= max_steps:
            break
    eta = b.new_full(b.shape[:-1], length / max(scale, _LEAST))
    return Outcome(torch.from_numpy(x).view(b.shape), steps, length <= 1.5 * target * scale, eta)


def _on_host(function: Apply, shape: torch.Size) -> Callable[[Array], Array]:
    if isinstance(function, Multiplier) and function.known is not None and function.single:
        return function.host
    return lambda v: function(torch.from_numpy(v).view(shape)).detach().reshape(-1).numpy()


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise ``a^H b``, real (A and its preconditioner are Hermitian)."""
    return torch.linalg.vecdot(a, b).real[..., None]
