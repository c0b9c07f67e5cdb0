"""The factors of a butterfly of rotations as one block a span, by Triton kernels; ``backend.kernel`` decides when.

For blocks R ``(m, d / b, b, b)`` of all factors, C ``(spans, g, g)`` as ``structmat.kernels.compose`` has it: one merge
of all factors, as ``butterfly.merged`` makes m - 1 of. C is linear in each factor, so all derivatives are made of two
steps: a factor times a product (``_times``), and the entries of a factor's blocks of a product (``_pairs``).
"""

from typing import Any

import torch

from structmat import backend
from structmat.errors import BackendError
from structmat.functional import operators as op
from structmat.functional.operators import batched, either, zeros_if_none

__all__ = ["composed"]


def composed(r: torch.Tensor, reverse: bool) -> torch.Tensor | None:
    """C of real blocks r ``(m, d / b, b, b)``, or None where no kernel serves: then factors are merged two by two."""
    if r.ndim != 4 or r.is_complex() or not backend.served(r):
        return None
    try:  # merging has a form in plain torch also where kernels are demanded for the passes over the rows
        served = backend.kernel("compose_blocks", r, shapes=_sizes(r))
    except BackendError:
        return None
    if not served:
        return None
    found: torch.Tensor = _compose(r, reverse)[0]
    return found


def _sizes(r: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    m, blocks, b, _ = r.shape
    return ((blocks, m, b, b),)


# -- the formula in plain torch ---------------------------------------------------------------------------------------


def _by_block(r: torch.Tensor, bit: int, c: torch.Tensor) -> torch.Tensor:
    """The rows of C ``(spans, g, w)`` block by block of the factor, ``(d / b, b, w)``."""
    m, blocks, b, _ = r.shape
    if m == 1:
        return c
    wide = c.reshape(blocks >> (m - 1), 1 << (m - 1 - bit), 2, 1 << bit, b // 2, c.shape[-1])
    return wide.permute(0, 1, 3, 2, 4, 5).reshape(blocks, b, c.shape[-1])


def _by_span(r: torch.Tensor, bit: int, y: torch.Tensor) -> torch.Tensor:
    """The inverse of ``_by_block``."""
    m, blocks, b, _ = r.shape
    if m == 1:
        return y
    wide = y.reshape(blocks >> (m - 1), 1 << (m - 1 - bit), 1 << bit, 2, b // 2, y.shape[-1])
    return wide.permute(0, 1, 3, 2, 4, 5).reshape(blocks >> (m - 1), b << (m - 1), y.shape[-1])


def _times(r: torch.Tensor, bit: int, c: torch.Tensor, turned: bool = False) -> torch.Tensor:
    """``F_bit C``, or ``F_bit^T C``."""
    return _by_span(r, bit, (r[bit].mT if turned else r[bit]) @ _by_block(r, bit, c))


def _pairs(r: torch.Tensor, bit: int, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The entries of ``left right^T`` that belong to blocks of the factor, ``(d / b, b, b)``."""
    return _by_block(r, bit, left) @ _by_block(r, bit, right).mT


def _order(m: int, reverse: bool) -> list[int]:
    return list(range(m))[::-1] if reverse else list(range(m))


def _walked(r: Any, start: Any, order: list[int], turned: bool, moved: tuple[Any, Any] | None = None) -> Any:
    """The products from the start on, one a factor; with ``moved``, tangents of r and of the start, theirs too."""
    found = [start]
    tangents = [] if moved is None else [moved[1]]
    for bit in order:
        if moved is not None:
            tangents.append(_times(r, bit, tangents[-1], turned) + _times(moved[0], bit, found[-1], turned))
        found.append(_times(r, bit, found[-1], turned))
    return found if moved is None else (found, tangents)


def _eye(r: torch.Tensor) -> torch.Tensor:
    m, blocks, b, _ = r.shape
    g = b << (m - 1)
    return torch.eye(g, dtype=r.dtype, device=r.device).expand(blocks >> (m - 1), g, g)


def _gradient(gc: Any, r: Any, reverse: bool, moved: tuple[Any, Any] | None = None) -> Any:
    """The cotangent of r; with ``moved``, tangents of gc and r, its tangent."""
    order = _order(r.shape[0], reverse)
    if moved is None:
        slots, halves = _walked(r, _eye(r), order, False), _walked(r, gc, order[::-1], True)
        terms = {bit: _pairs(r, bit, halves[-2 - s], slots[s]) for s, bit in enumerate(order)}
    else:
        eye = _eye(r)
        slots, dslots = _walked(r, eye, order, False, (moved[1], torch.zeros_like(eye)))
        halves, dhalves = _walked(r, gc, order[::-1], True, (moved[1], moved[0]))
        terms = {
            bit: _pairs(r, bit, dhalves[-2 - s], slots[s]) + _pairs(r, bit, halves[-2 - s], dslots[s])
            for s, bit in enumerate(order)
        }
    return torch.stack([terms[bit] for bit in range(r.shape[0])])


# -- the operators ----------------------------------------------------------------------------------------------------


def _fake(r: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    m, blocks, b, _ = r.shape
    g = b << (m - 1)
    return r.new_empty(blocks >> (m - 1), g, g), r.new_empty(m, blocks >> (m - 1), g, g)


@op.define("compose(Tensor r, bool reverse) -> (Tensor, Tensor)", _fake)
def _operator(r: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """C, and the products of the factors before each."""
    plan = backend.configurations("compose_blocks", r, r.dtype, _sizes(r))
    if plan:
        c, slots = backend.launchers("compose").forward(r.contiguous(), reverse, plan["compose_walk"])
        return c, slots
    *slots, c = _walked(r, _eye(r), _order(r.shape[0], reverse), False)
    return c.contiguous(), torch.stack(slots)


@op.define(
    "compose_gradient(Tensor gc, Tensor r, Tensor slots, bool reverse) -> Tensor",
    lambda gc, r, slots, reverse: r.new_empty(r.shape),
)
def _gradient_operator(gc: torch.Tensor, r: torch.Tensor, slots: torch.Tensor, reverse: bool) -> torch.Tensor:
    """The cotangent of r from that of C."""
    plan = backend.configurations("compose_blocks", r, r.dtype, _sizes(r))
    if plan:
        configs = plan["compose_walk"], plan["compose_pairs"]
        found = backend.launchers("compose").backward(gc, r.contiguous(), slots.contiguous(), reverse, *configs)
        return found
    return _gradient(gc, r, reverse).contiguous()


class Compose(torch.autograd.Function):
    """``(C, slots)`` of r."""

    @staticmethod
    def forward(r: Any, reverse: bool) -> Any:
        return _operator(r, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0])
        ctx.reverse = inputs[1]

    @staticmethod
    def backward(ctx: Any, gc: Any, _: Any) -> Any:
        r, slots = ctx.saved_tensors
        if backend.batched_by_autograd(gc):
            return _gradient(gc, r, ctx.reverse), None
        return _compose_gradient(gc, r, slots, ctx.reverse), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, r: Any, reverse: bool) -> Any:
        count = info.batch_size
        c, slots = Compose.apply(_side_by_side(r, in_dims[0], count, 1), reverse)
        return (c.unflatten(0, (count, -1)), slots.unflatten(1, (count, -1))), (0, 1)

    @staticmethod
    def jvp(ctx: Any, dr: Any, _: Any) -> Any:
        (r,) = ctx.saved_tensors
        with backend.full_precision(r.device):
            eye = _eye(r)
            return _walked(r, eye, _order(r.shape[0], ctx.reverse), False, (dr, torch.zeros_like(eye)))[1][-1], None


def _side_by_side(v: Any, dim: int | None, count: int, axis: int) -> Any:
    """A batch as more spans: next to each other along ``axis``."""
    return batched(v, dim, count).movedim(0, axis).flatten(axis, axis + 1)


class ComposeGradient(torch.autograd.Function):
    """The cotangent of r, linear in that of C; its derivatives start from these two."""

    @staticmethod
    def forward(gc: Any, r: Any, slots: Any, reverse: bool) -> Any:
        return _gradient_operator(gc, r, slots, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.reverse = inputs[3]

    @staticmethod
    def backward(ctx: Any, h: Any) -> Any:
        gc, r = ctx.saved_tensors
        with backend.full_precision(r.device), torch.enable_grad():
            of_gc, of_r = torch.func.vjp(lambda a, b: _gradient(a, b, ctx.reverse), gc, r)[1](h)
        return of_gc, of_r, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, gc: Any, r: Any, slots: Any, reverse: bool) -> Any:
        count = info.batch_size
        sides = (_side_by_side(v, d, count, a) for v, d, a in zip((gc, r, slots), in_dims[:3], (0, 1, 1), strict=True))
        return ComposeGradient.apply(*sides, reverse).unflatten(1, (count, -1)), 1

    @staticmethod
    def jvp(ctx: Any, dgc: Any, dr: Any, *_: Any) -> Any:
        gc, r = ctx.saved_tensors
        with backend.full_precision(r.device):
            return _gradient(gc, r, ctx.reverse, zeros_if_none((dgc, dr), (gc, r)))


_compose = either(Compose, _operator)
_compose_gradient = either(ComposeGradient, _gradient_operator)
op.differentiable("compose", Compose)
op.differentiable("compose_gradient", ComposeGradient)
