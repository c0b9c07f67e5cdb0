"""Products of real reflections by kernels: ``x Q^T`` from rows x and vectors V, see ``launched``.

The vectors are rounded to the dtype of the rows, and T comes from them as rounded; their gradient stays in the dtype
computed in. Derivatives of second order are those of the formula ``x - (M^-1 V x^T)^T V``, ``M = T^-1``.
"""

from collections.abc import Callable
from typing import Any

import torch

from structmat import backend
from structmat.functional import operators as op
from structmat.functional.operators import batched, either, zeros_if_none

__all__ = ["reflected_rows"]


def _pushed(formula: Callable[..., Any], inputs: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """``J t``: the pullback is linear, and its own pullback is J. (A jvp may not call ``torch.func.jvp``.)"""
    outputs, pull = torch.func.vjp(formula, *inputs)[:2]
    return torch.func.vjp(pull, _zeros(outputs))[1](tangents)[0]


def _zeros(outputs: Any) -> Any:
    return tuple(map(torch.zeros_like, outputs)) if isinstance(outputs, tuple) else torch.zeros_like(outputs)


class ReflectedRows(torch.autograd.Function):
    """``(x Q^T, W, T)`` from rows x and real vectors ``(r, n)`` in the dtype computed in."""

    @staticmethod
    def forward(x: Any, v: Any) -> Any:
        return op.householder(x, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Any, *_: Any) -> Any:
        x, v, w, t = ctx.saved_tensors
        if backend.batched_by_autograd(g):
            gx, gv = _reflection_gradients(x.to(v.dtype), v, g.to(v.dtype))
            return gx.to(x.dtype), gv
        gx, gv = householder_gradient(x, v, t, w, g, ctx.needs_input_grad[1])
        return gx, gv.to(v.dtype) if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, v: Any) -> Any:
        if in_dims[1] is None:
            x = x.movedim(in_dims[0], 0)
            y, w, t = ReflectedRows.apply(x.flatten(0, 1), v)
            return (y.unflatten(0, x.shape[:2]), w.unflatten(0, x.shape[:2]), t), (0, 0, None)
        given = (batched(a, d, info.batch_size) for a, d in zip((x, v), in_dims, strict=True))
        return _one_by_one(ReflectedRows, given), (0, 0, 0)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dv: Any) -> Any:
        x, v = ctx.saved_tensors
        dx, dv = zeros_if_none((dx, dv), (x, v))
        with backend.full_precision(x.device):
            return _pushed(_reflected, (x.to(v.dtype), v), (dx.to(v.dtype), dv)).to(x.dtype), None, None


def _one_by_one(function: Any, given: Any, *more: Any) -> tuple[Any, ...]:
    """The outputs for each sample, stacked."""
    found = [function.apply(*sample, *more) for sample in zip(*given, strict=True)]
    return tuple(torch.stack(v) for v in zip(*found, strict=True))


def _reflected(x: Any, v: Any) -> Any:
    """``x Q^T``, the formula."""
    return x - torch.linalg.solve_triangular(op.wy_matrix(v), v @ x.mT, upper=True).mT @ v


def _reflection_gradients(x: Any, v: Any, g: Any) -> Any:
    with backend.full_precision(x.device):
        return torch.func.vjp(_reflected, x, v)[1](g)


class ReflectedRowsGradient(torch.autograd.Function):
    """``(x', V')``; its derivatives are those of the formula in x, V and y'."""

    @staticmethod
    def forward(x: Any, v: Any, t: Any, w: Any, g: Any, both: Any) -> Any:
        return op.householder_gradient(x, v, t, w, g, both)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, v, _, _, g, ctx.both = inputs
        ctx.save_for_backward(x, v, g)
        ctx.save_for_forward(x, v, g)

    @staticmethod
    def backward(ctx: Any, hx: Any, hv: Any) -> Any:
        x, v, g = ctx.saved_tensors
        hv = hv if ctx.both else torch.zeros_like(v)
        with backend.full_precision(x.device):
            pull = torch.func.vjp(_reflection_gradients, x.to(v.dtype), v, g.to(v.dtype))[1]
            of_x, of_v, of_g = pull((hx.to(v.dtype), hv.to(v.dtype)))
        return of_x.to(x.dtype), of_v, None, None, of_g.to(g.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, v: Any, t: Any, w: Any, g: Any, both: Any) -> Any:
        dims = zip((x, v, t, w, g), in_dims[:5], strict=True)
        return _one_by_one(ReflectedRowsGradient, (batched(a, d, info.batch_size) for a, d in dims), both), (0, 0)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dv: Any, _t: Any, _w: Any, dg: Any, _b: Any) -> Any:
        x, v, g = ctx.saved_tensors
        wide = tuple(a.to(v.dtype) for a in (x, v, g))
        tangents = tuple(t.to(v.dtype) for t in zeros_if_none((dx, dv, dg), (x, v, g)))
        with backend.full_precision(x.device):
            moved, turned = _pushed(_reflection_gradients, wide, tangents)
        return moved.to(x.dtype), turned if ctx.both else turned[:0]


householder_gradient = either(ReflectedRowsGradient, op.householder_gradient)
op.differentiable("householder", ReflectedRows)
op.differentiable("householder_gradient", ReflectedRowsGradient)


def reflected_rows(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``x Q^T`` for rows ``(rows, n)`` and real vectors ``(r, n)``."""
    found: torch.Tensor = either(ReflectedRows, op.householder)(x, v)[0]
    return found
