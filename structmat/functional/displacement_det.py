"""Determinants of matrices of low displacement rank, with gradients in their generators and no dense matrix.

With ``B = A^-1 = (-A^-1 G, A^-T H)`` under the operator (f, e) and ``A = 1/(e - f) sum_j Z_e(g_j) Z_f(w_j)``,
``w_j = J h_j``,

    d log det A = tr(B dA) = 1/(e - f) sum_j sum_k dg_j[k] tr(Z_f(w_j) B Z_e^k) + dw_j[k] tr(B Z_e(g_j) Z_f^k).

``Z_f(w_j) B`` and ``B Z_e(g_j)`` have the operator (f, e) again, since f-circulants commute: generators
``(Z_f(w_j) G_B, H_B)`` and ``(G_B, Z_e(g_j)^T H_B)``. So 2r solves and ``power_traces`` give all: O(r^2 n log n) beyond
the solves. Source: Jacobi's formula; the traces by ``displacement_measures``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from structmat import backend
from structmat.functional.displacement_measures import power_traces
from structmat.functional.gko import GKO
from structmat.functional.toeplitz import circulant_product

__all__ = ["Job", "log_derivatives", "slogdet"]

Solve = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool, GKO | None], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Job:
    """What the Function needs besides the generators. ``factor(left, right)`` eliminates; ``solve(left, right, rows,
    transposed, known)`` gives the rows x with ``A x = y``, or ``A^T x = y``, differentiably. ``kept`` holds the factors
    of the forward pass."""

    e: complex
    f: complex
    factor: Callable[[torch.Tensor, torch.Tensor], GKO]
    solve: Solve
    kept: list[GKO] = dataclasses.field(default_factory=list)


def slogdet(left: torch.Tensor, right: torch.Tensor, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det A|``, ``(*b)``, for generators ``(*b, n, r)`` of one batch shape; 0 and -inf where a pivot is
    exactly zero. Differentiable to any order."""
    result: tuple[torch.Tensor, torch.Tensor] = _Slogdet.apply(left, right, job)
    return result


def log_derivatives(
    left: torch.Tensor, right: torch.Tensor, job: Job, known: GKO | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``d log det A / dG`` and ``/ dH`` (plain, not conjugated), each ``(*b, n, r)``; differentiable themselves."""
    e, f = job.e, job.f
    inverse_left = -job.solve(left, right, left.mT, False, known)  # rows: (*b, r, n)
    inverse_right = job.solve(left, right, right.mT, True, known)
    w = right.flip(-2)
    scale = 1 / (e - f)
    by_g, by_h = [], []
    for j in range(left.shape[-1]):
        turned = circulant_product(w[..., j], inverse_left, f)  # Z_f(w_j) G_B, as rows
        by_g.append(power_traces(turned.mT, inverse_right.mT, f, e, e) * scale)
        # Z_e(g)^T = J Z_e(g) J
        pulled = circulant_product(left[..., j], inverse_right.flip(-1), e).flip(-1)
        by_h.append(power_traces(inverse_left.mT, pulled.mT, f, e, f).flip(-1) * scale)
    return torch.stack(by_g, -1), torch.stack(by_h, -1)


class _Slogdet(torch.autograd.Function):
    @staticmethod
    def forward(left: Any, right: Any, job: Job) -> Any:
        if not job.kept:
            job.kept.append(job.factor(left, right))
        sign, logabs = job.kept[0].slogdet()
        dtype = backend.complex_of(left.dtype) if isinstance(job.e * job.f, complex) else left.dtype
        return sign.to(dtype).clone(), logabs.to(backend.real_of(left.dtype)).clone()  # outputs must be no views

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        left, right, ctx.job = inputs
        ctx.save_for_backward(left, right, output[0])
        ctx.save_for_forward(left, right, output[0])

    @staticmethod
    def backward(ctx: Any, grad_sign: Any, grad_log: Any) -> Any:
        left, right, sign = ctx.saved_tensors
        job = ctx.job
        derivatives = log_derivatives(left, right, job, job.kept[0] if job.kept else None)
        weight = grad_log.to(sign.dtype)
        if sign.is_complex():  # d sign = i Im(d log det) sign
            weight = weight - 1j * (grad_sign.conj() * sign).imag
        found = (weight[..., None, None] * d.conj() for d in derivatives)
        return *(g if t.is_complex() else g.real for g, t in zip(found, (left, right), strict=True)), None

    @staticmethod
    def jvp(ctx: Any, d_left: Any, d_right: Any, _: Any) -> Any:
        left, right, sign = ctx.saved_tensors
        job = ctx.job
        derivatives = log_derivatives(left, right, job, job.kept[0] if job.kept else None)
        rate = torch.zeros_like(sign)
        for derivative, tangent in zip(derivatives, (d_left, d_right), strict=True):
            if tangent is not None:
                rate = rate + (derivative * tangent).sum((-2, -1))
        if sign.is_complex():
            return 1j * rate.imag * sign, rate.real.clone()
        return torch.zeros_like(sign), rate

    @staticmethod
    def vmap(info: Any, in_dims: Any, left: Any, right: Any, job: Job) -> Any:
        both = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((left, right), in_dims[:2], strict=True)
        )
        return _Slogdet.apply(*both, dataclasses.replace(job, kept=[])), (0, 0)
