"""Operations whose forward and first backward pass are Triton kernels; ``backend.kernel`` decides when.

Each is the operation of the same meaning in ``orthogonal``, ``butterfly_apply`` and ``householder``. Rows come in the
dtype of the result (bfloat16, float16, float32) and what belongs to the weights in the dtype computed in: it is rounded
to the dtype of the rows once, and sums are kept in float32.

An operation is an ``autograd.Function`` around the operator of ``operators`` in eager mode, which also serves the
transforms of torch.func, and the operator itself while torch.compile or torch.export trace, which see its derivative
as registered: that of the same Function. A derivative of higher order starts from the inputs: for blocks it is made of
the same two operators, for the others it is a formula in plain torch. Under vmap shared weights take the batch as more
rows, blocks of their own are more blocks, and reflections of their own are taken one after the other.
"""

import math
from typing import Any

import torch

from structmat import backend
from structmat.functional import operators as op
from structmat.functional.butterfly import Digits, Step
from structmat.functional.operators import batched, either, zeros_if_none

__all__ = ["cayley_rotation", "lanes_of", "operation_of", "passes", "passes_served"]


# -- Cayley's map -----------------------------------------------------------------------------------------------------


class CayleyKernel(torch.autograd.Function):
    """``(R, M)`` of K ``(m, n, n)``; ``K' = -2 M^T R' M^T``, and ``dR = -2 M dK M``."""

    @staticmethod
    def forward(k: Any) -> Any:
        return op.cayley(k)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Any, _: Any) -> Any:
        k, m = ctx.saved_tensors
        return _gradient_from(k, g) if backend.batched_by_autograd(g) else cayley_gradient(k, m, g)

    @staticmethod
    def vmap(info: Any, in_dims: Any, k: Any) -> Any:
        k = batched(k, in_dims[0], info.batch_size)
        r, m = CayleyKernel.apply(k.reshape(-1, *k.shape[-2:]))
        return (r.reshape(k.shape), m.reshape(k.shape)), (0, 0)

    @staticmethod
    def jvp(ctx: Any, dk: Any) -> Any:
        (k,) = ctx.saved_tensors
        with backend.full_precision(k.device):
            m = op.skew_inverse(k)
            return -2 * (m @ dk @ m), None


def _gradient_from(k: Any, g: Any) -> Any:
    with backend.full_precision(k.device):
        m = op.skew_inverse(k)
        return -2 * (m.mT @ g @ m.mT)


class CayleyGradient(torch.autograd.Function):
    """``-2 M^T G M^T``; its derivatives start from K and G, ``M' = -2 (G M^T H^T + H^T M^T G)``,
    ``K' = -M^T M' M^T``."""

    @staticmethod
    def forward(k: Any, m: Any, g: Any) -> Any:
        return op.cayley_gradient(k, m, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[2])
        ctx.save_for_forward(inputs[0], inputs[2])

    @staticmethod
    def backward(ctx: Any, h: Any) -> Any:
        k, g = ctx.saved_tensors
        with backend.full_precision(k.device):
            m = op.skew_inverse(k)
            of_m = -2 * (g @ m.mT @ h.mT + h.mT @ m.mT @ g)
            return -(m.mT @ of_m @ m.mT), None, -2 * (m @ h @ m)

    @staticmethod
    def vmap(info: Any, in_dims: Any, k: Any, m: Any, g: Any) -> Any:
        given = [batched(v, d, info.batch_size) for v, d in zip((k, m, g), in_dims, strict=True)]
        return CayleyGradient.apply(*(v.reshape(-1, *v.shape[-2:]) for v in given)).reshape(given[2].shape), 0

    @staticmethod
    def jvp(ctx: Any, dk: Any, _: Any, dg: Any) -> Any:
        k, g = ctx.saved_tensors
        dk, dg = zeros_if_none((dk, dg), (k, g))
        with backend.full_precision(k.device):
            m = op.skew_inverse(k)
            turned, moved = m.mT, -(m @ dk @ m).mT
            return -2 * (moved @ g @ turned + turned @ dg @ turned + turned @ g @ moved)


cayley_gradient = either(CayleyGradient, op.cayley_gradient)
op.differentiable("cayley", CayleyKernel)
op.differentiable("cayley_gradient", CayleyGradient)


def cayley_rotation(k: torch.Tensor) -> torch.Tensor:
    """R of K ``(m, n, n)``."""
    found: torch.Tensor = either(CayleyKernel, op.cayley)(k)[0]
    return found


# -- blocks -----------------------------------------------------------------------------------------------------------


def _beside(x: Any) -> Any:
    """``(batch, rows, n)`` as rows of ``batch n`` entries: blocks of their own are more blocks."""
    return x.movedim(0, 1).reshape(x.shape[1], -1)


class BlockDiagonal(torch.autograd.Function):
    """``operators.block_product``, bilinear in x and W."""

    @staticmethod
    def forward(x: Any, w: Any, lanes: Any) -> Any:
        return op.block_diagonal(x, w, lanes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.lanes = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        if backend.batched_by_autograd(g):
            return *_formula_gradients(x, w, ctx.lanes, g), None
        if not ctx.needs_input_grad[1]:
            return block_diagonal(g, w.mT, ctx.lanes), None, None
        gx, gw = block_diagonal_gradient(x, g, w, ctx.lanes)
        return gx, gw.to(w.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, w: Any, lanes: Any) -> Any:
        x = batched(x, in_dims[0], info.batch_size)
        if in_dims[1] is None:
            return block_diagonal(x.flatten(0, 1), w, lanes).unflatten(0, x.shape[:2]), 0
        w = batched(w, in_dims[1], info.batch_size)
        return block_diagonal(_beside(x), w.flatten(0, 1), lanes).unflatten(1, (info.batch_size, -1)), 1

    @staticmethod
    def jvp(ctx: Any, dx: Any, dw: Any, _: Any) -> Any:
        x, w = ctx.saved_tensors
        dx, dw = zeros_if_none((dx, dw), (x, w))
        return block_diagonal(dx, w, ctx.lanes) + block_diagonal(x, dw, ctx.lanes)


def _formula_gradients(x: Any, w: Any, lanes: int, g: Any) -> tuple[Any, Any]:
    wide = backend.compute_dtype(x.dtype)
    with backend.full_precision(x.device):
        a, b = torch.func.vjp(lambda v, u: op.block_product(v, u, lanes), x.to(wide), w.to(wide))[1](g.to(wide))
    return a.to(x.dtype), b.to(w.dtype)


class BlockDiagonalGradient(torch.autograd.Function):
    """``(y' W, y'^T x)`` per block, linear in each: its derivatives are the same two operators."""

    @staticmethod
    def forward(x: Any, g: Any, w: Any, lanes: Any) -> Any:
        return op.block_diagonal_gradient(x, g, w, lanes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.lanes = inputs[3]

    @staticmethod
    def backward(ctx: Any, hx: Any, hw: Any) -> Any:
        x, g, w = ctx.saved_tensors
        of_x, of_w = block_diagonal_gradient(hx, g, hw, ctx.lanes)
        of_g = block_diagonal(hx, w, ctx.lanes) + block_diagonal(x, hw, ctx.lanes)
        return of_x, of_g, of_w.to(w.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, g: Any, w: Any, lanes: Any) -> Any:
        x, g, w = (batched(v, d, info.batch_size) for v, d in zip((x, g, w), in_dims[:3], strict=True))
        gx, gw = block_diagonal_gradient(_beside(x), _beside(g), w.flatten(0, 1), lanes)
        return (gx.unflatten(1, (info.batch_size, -1)), gw.unflatten(0, w.shape[:2])), (1, 0)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dg: Any, dw: Any, _: Any) -> Any:
        x, g, w = ctx.saved_tensors
        dx, dg, dw = zeros_if_none((dx, dg, dw), (x, g, w))
        first, second = (block_diagonal_gradient(*v, ctx.lanes) for v in ((dx, g, dw), (x, dg, w)))
        return first[0] + second[0], first[1] + second[1]


block_diagonal = either(BlockDiagonal, op.block_diagonal)
block_diagonal_gradient = either(BlockDiagonalGradient, op.block_diagonal_gradient)
op.differentiable("block_diagonal", BlockDiagonal)
op.differentiable("block_diagonal_gradient", BlockDiagonalGradient)


# -- the passes of a butterfly ----------------------------------------------------------------------------------------


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


def passes_served(x: torch.Tensor, out: torch.dtype, steps: tuple[Step, ...]) -> bool:
    """Whether kernels serve every pass over the rows x, in the dtype ``out`` of the result."""
    if not backend.served(x):
        return False
    rows = math.prod(x.shape[:-1])
    asked = [operation_of(step, rows) for step in steps]
    return all(backend.kernel(name, x, dtype=out, shapes=shapes) for name, shapes in asked)


def _ordered(y: torch.Tensor, digits: Digits, order: Digits | None) -> torch.Tensor:
    if order is None or order == tuple(range(len(digits))):
        return y
    return y.reshape(-1, *digits).permute(0, *(a + 1 for a in order)).reshape(y.shape)


def passes(
    x: torch.Tensor, steps: tuple[Step, ...], order: Digits | None, pieces: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """``x A^T`` from merged blocks: rows ``(rows, n)`` in the dtype of the result. The rows between two passes are
    rounded to it; in plain eager mode they are computed again for the backward pass, not stored."""
    if len(steps) > 1 and backend.eager(x, *pieces) and not backend.transforming():
        y: torch.Tensor = PassesKernel.apply(x, steps, *pieces)
    else:
        y = _through(x, steps, pieces)[-1]
    return _ordered(y, steps[-1].after, order)


def _through(x: Any, steps: Any, pieces: Any) -> list[Any]:
    """x and the rows after each pass."""
    found = [x]
    for w, step in zip(pieces, steps, strict=True):
        found.append(block_diagonal(found[-1], w, lanes_of(step)))
    return found


class PassesKernel(torch.autograd.Function):
    """Several passes of ``BlockDiagonal``, of which the inputs alone are kept."""

    @staticmethod
    def forward(ctx: Any, x: Any, steps: Any, *pieces: Any) -> Any:
        ctx.save_for_backward(x, *pieces)
        ctx.steps = steps
        return _through(x, steps, pieces)[-1]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, *pieces = ctx.saved_tensors
        if torch.is_grad_enabled() or not backend.eager(g):
            wanted = ctx.needs_input_grad
            with torch.enable_grad():
                pull = torch.func.vjp(lambda v, *ws: _through(v, ctx.steps, ws)[-1], x, *pieces)[1]
                gx, *gw = pull(g)
            return gx if wanted[0] else None, None, *gw
        inputs, gw = _through(x, ctx.steps[:-1], pieces[:-1]), [None] * len(pieces)
        for k in range(len(pieces) - 1, -1, -1):
            g, gw[k] = op.block_diagonal_gradient(inputs[k], g, pieces[k], lanes_of(ctx.steps[k]))
        return g, None, *(v.to(w.dtype) for v, w in zip(gw, pieces, strict=True))
