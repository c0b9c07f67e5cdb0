"""Three arrays tied by a convolution, ``y = a * x``, as one operation that is closed under differentiation.

In the Fourier domain

    y:  Y = A X          x:  X = conj(A) Y          a:  A = conj(X) Y

and these rows are each other's gradients, for real and complex entries. So one Function with a *role* (the array it
returns) has derivatives of every order in itself. A ``Job`` says what the transforms are: ``fourier`` convolves along
one axis, ``multilevel`` along several.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch

from structmat import backend

__all__ = ["INPUTS", "Convolution", "Job", "KeepingSpectra", "combine", "gradients", "plain"]

INPUTS = {"y": ("a", "x"), "x": ("a", "y"), "a": ("x", "y")}  # the two roles that go in, in the order of the arguments
_KEPT = 1 << 20  # numbers of a spectrum up to which the backward pass keeps it; larger ones are computed again


@dataclasses.dataclass(frozen=True)
class Job(ABC):
    """What the Function needs besides its two tensors; opaque to torch's pytrees (a tuple would be taken apart)."""

    role: str
    geometry: Any
    batch: tuple[int, ...]

    @abstractmethod
    def analyse(self, role: str, t: torch.Tensor) -> torch.Tensor:
        """The spectrum of the array with this role."""

    @abstractmethod
    def synthesise(self, hat: torch.Tensor, real: bool) -> torch.Tensor:
        """The array of the job's role and batch from its spectrum."""

    @abstractmethod
    def lead(self, t: torch.Tensor) -> tuple[int, ...]:
        """The batch of an array."""

    @abstractmethod
    def run(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The operation itself, differentiable."""


def plain(u: torch.Tensor, v: torch.Tensor, job: Job) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result and both spectra."""
    first, second = INPUTS[job.role]
    fu, fv = job.analyse(first, u), job.analyse(second, v)
    return job.synthesise(combine(job.role, fu, fv), not u.is_complex()), fu, fv


def combine(role: str, fu: torch.Tensor, fv: torch.Tensor) -> torch.Tensor:
    """The spectrum of the array with this role from the other two."""
    return fu * fv if role == "y" else fu.conj() * fv


class Convolution(torch.autograd.Function):
    """The form for torch.func and forward-mode differentiation: saves its inputs only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Any, v: Any, job: Job) -> Any:
        with backend.full_precision(u.device):
            return plain(u, v, job)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        u, v, ctx.job = inputs
        ctx.save_for_backward(u, v)
        ctx.save_for_forward(u, v)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        u, v = ctx.saved_tensors
        return *gradients(ctx.job, u, v, None, grad, ctx.needs_input_grad), None

    @staticmethod
    def jvp(ctx: Any, du: Any, dv: Any, _: Any) -> Any:
        u, v = ctx.saved_tensors
        with backend.full_precision(u.device):
            terms = [plain(p, q, ctx.job)[0] for p, q in ((du, v), (u, dv)) if p is not None and q is not None]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class KeepingSpectra(torch.autograd.Function):
    """The form for plain reverse mode: keeps both spectra, unless large, for the first backward pass, which then needs
    one transform less per array; higher orders start from the inputs again.

    Without ``setup_context``, which no transform needs here: torch inspects the signature of such a Function at every
    call, which costs more than a short transform.
    """

    @staticmethod
    def forward(ctx: Any, u: Any, v: Any, job: Job) -> Any:
        with backend.full_precision(u.device):
            y, fu, fv = plain(u, v, job)
        ctx.job = job
        ctx.save_for_backward(u, v, *(f if 2 * f.numel() <= _KEPT else None for f in (fu, fv)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        u, v, fu, fv = ctx.saved_tensors
        return *gradients(ctx.job, u, v, (fu, fv), grad, ctx.needs_input_grad), None


def gradients(job: Job, u: Any, v: Any, spectra: Any, grad: Any, needed: Any) -> tuple[Any, Any]:
    """The cotangents of both inputs: from the kept spectra where no graph is recorded, else as operations of the same
    kind."""
    names = INPUTS[job.role]
    kept = spectra is not None and not torch.is_grad_enabled()
    grads: list[Any] = [None, None]
    with backend.full_precision(u.device):
        hat = job.analyse(job.role, grad) if kept else None
        for mine in (0, 1):
            if not needed[mine]:
                continue
            target = dataclasses.replace(job, role=names[mine], batch=job.lead((u, v)[mine]))
            other_first = names[1 - mine] < job.role  # arguments go in in the alphabetic order of their roles
            if kept:
                other = spectra[1 - mine]
                other = job.analyse(names[1 - mine], (u, v)[1 - mine]) if other is None else other
                pair = (other, hat) if other_first else (hat, other)
                grads[mine] = target.synthesise(combine(target.role, *pair), not u.is_complex())
            else:
                one, two = ((u, v)[1 - mine], grad) if other_first else (grad, (u, v)[1 - mine])
                grads[mine] = target.run(one, two)
    return grads[0], grads[1]
