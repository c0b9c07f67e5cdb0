"""An estimate of ``log|det A|`` that is differentiated through the matrix, and never through the iteration.

The value is a mean of ``g^H log|A| g`` over random rows g. Its derivative is not that of the iteration but the estimate
of ``d log|det A| = Re tr(A^-1 dA)`` with the same rows,

    Re mean_g (A^-H g)^H dA g,

which is unbiased: one solve and one vector-Jacobian product of ``linear`` for all rows. Both are differentiable, so
that higher derivatives estimate those of ``log|det A|`` likewise.
Source: J. Gardner, G. Pleiss, D. Bindel, K. Weinberger and A. Wilson, GPyTorch, 2018, section 4 (the derivative by the
same probes).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat.errors import StructureError

__all__ = ["estimated_logdet"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the Function needs besides its tensors; opaque to torch's pytrees."""

    spec: Any
    estimate: Callable[[Any], torch.Tensor]
    at_once: int

    def matrix(self, leaves: Any) -> Any:
        return pytree.tree_unflatten(list(leaves), self.spec)


def estimated_logdet(
    matrix: Any, g: torch.Tensor, estimate: Callable[[Any], torch.Tensor], at_once: int
) -> torch.Tensor:
    """``estimate(matrix)``, a real ``(*batch)``, with the derivative estimated by the rows g ``(*batch, k, n)``.

    ``matrix`` is any pytree with ``linear``, ``mH`` and ``solve_rows``; ``estimate`` sees it without gradients, and may
    read values. A derivative solves with ``at_once`` rows at a time (GMRES keeps a basis for each). Raises
    StructureError under torch.compile and torch.func.vmap.
    """
    if torch.compiler.is_compiling():
        raise StructureError(
            f"log|det| of {type(matrix).__name__} under torch.compile: the estimate reads values, which a traced graph "
            "cannot; call it outside the compiled region"
        )
    leaves, spec = pytree.tree_flatten(matrix)
    result: torch.Tensor = _LogDet.apply(_Job(spec, estimate, at_once), g, *leaves)
    return result


class _LogDet(torch.autograd.Function):
    """The estimate with its estimated derivative, in reverse and in forward mode."""

    @staticmethod
    def forward(job: _Job, g: Any, *leaves: Any) -> Any:
        with torch.no_grad(), backend.full_precision(g.device):
            return job.estimate(job.matrix([leaf.detach() for leaf in leaves]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job, g, *leaves = inputs
        ctx.save_for_backward(g, *leaves)
        ctx.save_for_forward(g, *leaves)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        g, *leaves = ctx.saved_tensors
        grads: list[Any] = [None] * len(leaves)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        if wanted:
            weighted = _solved(ctx.job, leaves, g) * (grad / g.shape[-2])[..., None, None]
            found: Any = torch.func.vjp(_product(ctx.job, leaves, wanted, g), *(leaves[i] for i in wanted))
            for i, each in zip(wanted, found[1](weighted), strict=True):
                grads[i] = each
        return None, None, *grads

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Any) -> Any:
        g, *leaves = ctx.saved_tensors
        moving = [i for i, t in enumerate(tangents) if t is not None and (t.is_floating_point() or t.is_complex())]
        solved = _solved(ctx.job, leaves, g)
        if not moving:
            return torch.zeros_like(solved[..., 0, 0].real)
        pulled: Any = torch.func.vjp(_product(ctx.job, leaves, moving, g), *(leaves[i] for i in moving))
        # The pull-back is linear in its argument: its own pull-back, anywhere, is the push-forward.
        pushed: Any = torch.func.vjp(pulled[1], torch.zeros_like(pulled[0]))
        change = pushed[1](tuple(tangents[i] for i in moving))[0]
        return torch.linalg.vecdot(solved, change).real.mean(-1)

    @staticmethod
    def vmap(info: Any, in_dims: Any, job: _Job, *_: Any) -> Any:
        raise StructureError(
            "an estimate of log|det| under torch.func.vmap: it reads values; make one matrix with a batch, whose "
            "estimates run side by side, or loop"
        )


def _solved(job: _Job, leaves: Any, g: torch.Tensor) -> torch.Tensor:
    """``A^-H g`` for each row, differentiable."""
    adjoint = job.matrix(leaves).mH
    return torch.cat([adjoint.solve_rows(part) for part in g.split(job.at_once, -2)], -2)


def _product(job: _Job, leaves: Any, free: list[int], g: torch.Tensor) -> Callable[..., torch.Tensor]:
    """``theta -> A(theta) g`` in the leaves numbered ``free``, the others and g held fixed."""

    def product(*moving: torch.Tensor) -> torch.Tensor:
        new = list(leaves)
        for i, leaf in zip(free, moving, strict=True):
            new[i] = leaf
        result: torch.Tensor = job.matrix(new).linear(g)
        return result

    return product
