"""Operations whose forward and first backward pass are Triton kernels; ``backend.kernel`` decides when.

Each is the operation of the same meaning in ``orthogonal``, ``butterfly_apply`` and ``householder``, on plain tensors
in eager mode. Rows come in the dtype of the result (bfloat16, float16, float32) and what belongs to the weights in the
dtype computed in: it is rounded to the dtype of the rows once, and sums are kept in float32. Inputs are saved, so that
a backward pass that is itself recorded, or batched, starts from them by the formula, in plain torch.
"""

import math
from typing import Any

import torch

from structmat import backend
from structmat.functional.butterfly import Digits, Step

__all__ = ["CayleyKernel", "PassesKernel", "RotateKernel", "lanes_of", "operation_of", "passes_kernel"]


def _recorded(g: torch.Tensor) -> bool:
    return torch.is_grad_enabled() or not backend.eager(g)


class CayleyKernel(torch.autograd.Function):
    """``(I - K)(I + K)^-1`` for K ``(m, n, n)``; keeps ``M = (I + K)^-1``, and ``K' = -2 M^T R' M^T``."""

    @staticmethod
    def forward(ctx: Any, k: Any, kernels: Any) -> Any:
        rotation, inverse = kernels.forward(k)
        ctx.save_for_backward(k, inverse)
        ctx.kernels = kernels
        return rotation

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        k, inverse = ctx.saved_tensors
        if not _recorded(g):
            return ctx.kernels.backward(inverse, g), None
        with backend.full_precision(k.device):
            eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
            inverse = torch.linalg.inv_ex(eye + k).inverse
            return -2 * (inverse.mT @ g @ inverse.mT), None


def lanes_of(step: Step) -> int | None:
    """How far apart the entries of a block lie, where its digits stand next to each other in order; else None."""
    if step.axes != tuple(range(step.axes[0], step.axes[0] + len(step.axes))):
        return None
    return math.prod(step.before[step.axes[-1] + 1 :])


def operation_of(step: Step, rows: int) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """The name under which ``backend.choose`` knows a pass, and the sizes it looks at."""
    lanes = lanes_of(step)
    kind = "scattered" if lanes is None else "" if lanes == 1 else "strided"
    name = f"block_diagonal_{kind}" if kind else "block_diagonal"
    return name, ((rows, math.prod(step.before)), (step.rest, step.rows, step.columns), (lanes or 0,))


def passes_kernel(x: torch.Tensor, out: torch.dtype, steps: tuple[Step, ...]) -> tuple[Any, ...] | None:
    """The launchers of each pass over the rows x in the dtype ``out`` of the result, or None where one pass has
    none."""
    if not backend.served(x):
        return None
    rows = x.numel() // max(1, x.shape[-1])
    found = []
    for step in steps:
        name, shapes = operation_of(step, rows)
        kernels = backend.kernel(
            name, x, dtype=out, module="blockdiag" if shapes[2] == (1,) else "strided", shapes=shapes
        )
        if kernels is None:
            return None
        found.append(kernels)
    return tuple(found)


def _ordered(y: torch.Tensor, digits: Digits, order: Digits | None) -> torch.Tensor:
    if order is None or order == tuple(range(len(digits))):
        return y
    return y.reshape(-1, *digits).permute(0, *(a + 1 for a in order)).reshape(y.shape)


def _unordered(g: torch.Tensor, digits: Digits, order: Digits | None) -> torch.Tensor:
    if order is None:
        return g
    back = tuple(order.index(a) for a in range(len(order)))
    return _ordered(g, tuple(digits[a] for a in order), back)


class PassesKernel(torch.autograd.Function):
    """``x A^T`` from merged blocks; the rows between two passes are rounded to the dtype of x, and not stored."""

    @staticmethod
    def forward(ctx: Any, x: Any, steps: Any, order: Any, kernels: Any, formula: Any, *pieces: Any) -> Any:
        ctx.save_for_backward(x, *pieces)
        ctx.constants = steps, order, kernels, formula
        return _ordered(_through(x, steps, kernels, pieces)[-1], steps[-1].after, order)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, *pieces = ctx.saved_tensors
        steps, order, kernels, formula = ctx.constants
        if _recorded(g):
            gx, *gw = formula(x.to(pieces[0].dtype), tuple(pieces), steps, order, g.to(pieces[0].dtype))
            return gx.to(x.dtype), None, None, None, None, *gw
        inputs = _through(x, steps[:-1], kernels[:-1], pieces[:-1])
        gw = [None] * len(pieces)
        g = _unordered(g, steps[-1].after, order)
        for k in range(len(steps) - 1, -1, -1):
            w = pieces[k].to(x.dtype)
            lanes = () if kernels[k] is None or lanes_of(steps[k]) == 1 else (lanes_of(steps[k]),)
            g, gw[k] = kernels[k].backward(inputs[k], g, w, *lanes)
        return g, None, None, None, None, *(v.to(w.dtype) for v, w in zip(gw, pieces, strict=True))


def _through(x: Any, steps: Any, kernels: Any, pieces: Any) -> list[Any]:
    """x and the rows after each pass."""
    found = [x]
    for w, step, launch in zip(pieces, steps, kernels, strict=True):
        lanes = lanes_of(step)
        found.append(launch.forward(found[-1], w.to(x.dtype), *(() if lanes == 1 else (lanes,))))
    return found


class RotateKernel(torch.autograd.Function):
    """``x Q^T`` from rows x and real vectors ``(r, n)``, r up to 64; T comes from the vectors as rounded."""

    @staticmethod
    def forward(ctx: Any, x: Any, vectors: Any, scale: Any, kernels: Any, formula: Any) -> Any:
        v = (vectors / scale).to(x.dtype)
        t = kernels.factor(v)
        y, w = kernels.apply(x, v, t)
        ctx.save_for_backward(x, vectors, scale, v, t, w)
        ctx.constants = kernels, formula
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, vectors, scale, v, t, w = ctx.saved_tensors
        kernels, formula = ctx.constants
        if _recorded(g):
            gx, gv = formula(x.to(vectors.dtype), vectors, g.to(vectors.dtype))
            return gx.to(x.dtype), gv, None, None, None
        gx, s = kernels.apply(g, v, t.mT)  # s = (g V^T) T = -P'
        gv = None
        if ctx.needs_input_grad[1]:
            with backend.full_precision(x.device):
                upper = torch.triu(s.mT @ w)  # M' = -P'^T W, and K = its strictly upper triangle plus half its diagonal
                both = upper + upper.mT
                both.diagonal().mul_(0.5)
                gv = kernels.vectors_gradient(x, g, w, s).addmm_(both, v.to(both.dtype))
                gv = gv.to(vectors.dtype).div_(scale)
        return gx, gv, None, None, None
