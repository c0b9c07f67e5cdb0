"""Square Toeplitz systems, differentiable: the door to the tiers of ``toeplitz_policy``.

Everything is computed in float64 (complex128) whatever the dtype of the entries; Levinson's O(n^2) recursion runs on
the CPU, all else on the device of the entries. ``solve_rows`` is differentiable to any order: the derivative of a solve
is a solve, ``b' = T^-H x'``, ``t'_k = -sum_{i-j=k} b'_i conj(x_j)``, with the factorisation of the forward pass.
"""

import dataclasses
from typing import Any

import torch

from structmat import backend
from structmat.functional import fourier
from structmat.functional.toeplitz import toeplitz_geometry, toeplitz_product
from structmat.functional.toeplitz_policy import Record, run

__all__ = ["Record", "solve_rows"]


def solve_rows(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    """Rows y with ``T y = b``: t ``(*batch, 2n - 1)``, b ``(*batch, k, n)``; result in float64 (complex128)."""
    common = torch.promote_types(torch.promote_types(t.dtype, b.dtype), torch.float64)
    t, b = t.to(common), b.to(common)
    if not backend.transforming() and not (torch.is_grad_enabled() and (t.requires_grad or b.requires_grad)):
        record.keep = False  # nothing to record
        return _Solve.forward(t, b, record)
    result: torch.Tensor = _Solve.apply(t, b, record)
    return result


class _Solve(torch.autograd.Function):
    """``T^-1 b`` with explicit derivatives of every mode; batches under vmap are batches of the solver."""

    @staticmethod
    def forward(t: Any, b: Any, record: Record) -> Any:
        with backend.full_precision(t.device), torch.no_grad():
            return run(t, b, record)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        t, b, record = inputs
        ctx.record = record
        ctx.save_for_backward(t, b, output)
        ctx.save_for_forward(t, b, output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        t, b, y = ctx.saved_tensors
        n = y.shape[-1]
        adjoint = solve_rows(t.flip(-1).conj(), grad, _again(ctx.record, adjoint=True))
        gt = -fourier.correlate(y, adjoint, toeplitz_geometry(n, n), (*y.shape[:-2], 1))[..., 0, :]
        return gt.sum_to_size(t.shape), adjoint.sum_to_size(b.shape), None

    @staticmethod
    def jvp(ctx: Any, dt: Any, db: Any, _: Any) -> Any:
        t, _, y = ctx.saved_tensors
        right = torch.zeros_like(y) if db is None else db.expand(y.shape)
        if dt is not None:
            right = right - toeplitz_product(dt, y, y.shape[-1])
        return solve_rows(t, right, _again(ctx.record, adjoint=False))

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, b: Any, record: Record) -> Any:
        alone = in_dims[0] is None  # one matrix for all: one factorisation, also the one that is there
        t = t[None] if alone else t.movedim(in_dims[0], 0)
        b = b.expand(info.batch_size, *b.shape) if in_dims[1] is None else b.movedim(in_dims[1], 0)
        extra = (b.ndim - 2) - (t.ndim - 1)  # align the batch axes behind the new one
        t = t.reshape(t.shape[0], *(1,) * max(extra, 0), *t.shape[1:])
        b = b.reshape(b.shape[0], *(1,) * max(-extra, 0), *b.shape[1:])
        fresh = dataclasses.replace(record, known=record.known if alone else None, start=None, reasons=[])
        return solve_rows(t, b, fresh), 0


def _again(record: Record, adjoint: bool) -> Record:
    """The record of a further solve with T or T^H: the factorisation goes along, what belongs to one right-hand side
    does not."""
    known = record.known.adjoint() if adjoint and record.known is not None else record.known
    return dataclasses.replace(record, known=known, start=None, callback=None, reasons=[], steps=0)
