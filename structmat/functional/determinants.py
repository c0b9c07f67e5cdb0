"""``sign, log|det|`` as one differentiable operation, for determinants whose logarithm has an explicit gradient.

With ``dz = sum_k D_k d theta_k`` the differential of ``log det`` (holomorphic in the parameters theta),

    d log|det| = Re dz,      d sign = i sign Im dz,      bar theta_k = conj(D_k) (bar log + i Im(conj(sign) bar sign)).

The gradient D is itself computed by differentiable operations, hence any order.
Source: M. B. Giles, An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation, 2008, section 2.2.4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from structmat import backend

__all__ = ["LogDeterminant", "slogdet"]

Tensors = tuple[torch.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class LogDeterminant:
    """How a determinant is found: ``value(*fields) -> (sign, log|det|)``, without gradients, and
    ``gradient(*fields) -> D``, one tensor a field and of its shape up to broadcast batches, differentiable."""

    value: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    gradient: Callable[..., Tensors]


def slogdet(job: LogDeterminant, *fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign (a phase for complex fields) and ``log|det|``, differentiable in the fields."""
    result: tuple[torch.Tensor, torch.Tensor] = _Slogdet.apply(job, *fields)
    return result


def _spread(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A number a matrix, shaped to multiply the derivative of one field."""
    return weight.reshape(*weight.shape, *(1,) * (like.ndim - weight.ndim))


class _Slogdet(torch.autograd.Function):
    @staticmethod
    def forward(job: LogDeterminant, *fields: Any) -> Any:
        with backend.full_precision(fields[0].device):
            sign, logabs = job.value(*(t.detach() for t in fields))
        return sign.clone(), logabs.clone()  # outputs must be no views

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job, *fields = inputs
        ctx.save_for_backward(output[0], *fields)
        ctx.save_for_forward(output[0], *fields)

    @staticmethod
    def backward(ctx: Any, grad_sign: Any, grad_log: Any) -> Any:
        sign, *fields = ctx.saved_tensors
        weight = grad_log.to(sign.dtype)
        if sign.is_complex():
            weight = weight + 1j * (sign.conj() * grad_sign).imag
        slopes = ctx.job.gradient(*fields)
        return None, *(
            (_spread(weight, d) * d.conj()).sum_to_size(t.shape) for d, t in zip(slopes, fields, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        sign, *fields = ctx.saved_tensors
        rate = torch.zeros_like(sign)
        for d, t in zip(ctx.job.gradient(*fields), tangents, strict=True):
            if t is not None:
                product = d * t
                rate = rate + product.flatten(sign.ndim).sum(-1)
        if sign.is_complex():
            return 1j * rate.imag * sign, rate.real.clone()
        return torch.zeros_like(sign), rate

    @staticmethod
    def vmap(info: Any, in_dims: Any, job: LogDeterminant, *fields: Any) -> Any:
        each = [
            slogdet(job, *(t if d is None else t.select(d, k) for t, d in zip(fields, in_dims[1:], strict=True)))
            for k in range(info.batch_size)
        ]
        return (torch.stack([sign for sign, _ in each]), torch.stack([log for _, log in each])), (0, 0)
