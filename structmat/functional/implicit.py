"""Solutions of linear systems, differentiated through the equation they satisfy and never through the solver.

For ``A(theta) x = b`` the differential is ``A dx = db - dA x``, so that whatever found x,

    forward:   dx = A^-1 (db - dA x)
    reverse:   bar b = A^-H bar x,      bar theta = -[d(A(theta) x)/d theta]^H bar b      (x held fixed)

The solver may read values, iterate, factorise in numpy: its accuracy is that of the derivative. A backward pass uses
the adjoint of the same solver, so nothing is factorised again. Both formulas are written with this very operation and
with ``torch.func.vjp`` of the product, hence every order of differentiation works.
Source: M. B. Giles, An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation, 2008, section 2.3.1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat.errors import StructureError

__all__ = ["Solver", "implicit_solve"]


class Solver(Protocol):
    """What solves systems with one matrix; nothing is recorded inside, and values may be read."""

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``A x = y`` for each row: y ``(*batch, k, n)``."""

    def adjoint(self) -> "Solver":
        """The solver of ``A^H``, out of the same factorisation."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the Function needs besides its tensors; opaque to torch's pytrees. ``kept`` holds the solver of the forward
    pass."""

    spec: Any
    make: Callable[[Any], Solver]
    known: Solver | None
    kept: list[Solver] = dataclasses.field(default_factory=list)

    def matrix(self, leaves: Any) -> Any:
        return pytree.tree_unflatten(list(leaves), self.spec)

    def solver(self) -> Solver | None:
        return self.known if self.known is not None else self.kept[0] if self.kept else None

    def adjoint(self) -> Solver | None:
        solver = self.solver()
        return None if solver is None else solver.adjoint()


def implicit_solve(
    matrix: Any, y: torch.Tensor, make: Callable[[Any], Solver], known: Solver | None = None
) -> torch.Tensor:
    """x with ``A x = y`` for each row of y ``(*batch, k, n)``, differentiable in the tensors of the matrix and in y.

    ``matrix`` is any pytree with ``linear(x) = x A^T`` and ``mH``; ``make(matrix)`` builds its solver (without
    gradients, on detached tensors), unless ``known`` is one. Cost: the solver's; a backward pass adds one adjoint
    solve and one vector-Jacobian product of ``linear``. Under ``torch.func.vmap`` over the matrix each element is
    solved on its own. Raises StructureError under torch.compile, where values cannot be read.
    """
    if torch.compiler.is_compiling():
        raise StructureError(
            f"solving with {type(matrix).__name__} under torch.compile: the solver reads values, which a traced graph "
            "cannot; call it outside the compiled region, or spend n^2 memory on torch.linalg.solve with A.to_dense()"
        )
    leaves, spec = pytree.tree_flatten(matrix)
    result: torch.Tensor = _Implicit.apply(_Job(spec, make, known), y, *leaves)
    return result


class _Implicit(torch.autograd.Function):
    """``A^-1 y`` with the derivatives of the equation, in every mode."""

    @staticmethod
    def forward(job: _Job, y: Any, *leaves: Any) -> Any:
        solver = job.known
        if solver is None:
            solver = job.make(job.matrix([leaf.detach() for leaf in leaves]))
            job.kept.append(solver)
        with backend.full_precision(y.device):
            return solver.solve_rows(y.detach()).clone()  # a solver of the identity may hand back its argument

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job, y, *leaves = inputs
        ctx.like = y.shape, y.is_complex()
        ctx.save_for_backward(output, *leaves)
        ctx.save_for_forward(output, *leaves)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, *leaves = ctx.saved_tensors
        job, (shape, is_complex) = ctx.job, ctx.like
        lam = implicit_solve(job.matrix(leaves).mH, grad, job.make, job.adjoint())
        grads: list[Any] = [None] * len(leaves)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        if wanted:
            _, pull = _vjp(_product(job, leaves, wanted, x), *(leaves[i] for i in wanted))
            for i, g in zip(wanted, pull(-lam), strict=True):
                grads[i] = g
        to_y = (lam if is_complex or not lam.is_complex() else lam.real).sum_to_size(shape)
        return None, to_y, *grads

    @staticmethod
    def jvp(ctx: Any, _: Any, dy: Any, *tangents: Any) -> Any:
        x, *leaves = ctx.saved_tensors
        job = ctx.job
        right = torch.zeros_like(x) if dy is None else dy.expand(x.shape).to(x.dtype)
        moving = [i for i, t in enumerate(tangents) if t is not None and (t.is_floating_point() or t.is_complex())]
        if moving:
            primal, pull = _vjp(_product(job, leaves, moving, x), *(leaves[i] for i in moving))
            # The pull-back is linear in its argument: its own pull-back, anywhere, is the push-forward.
            _, push = _vjp(pull, torch.zeros_like(primal))
            right = right - push(tuple(tangents[i] for i in moving))[0]
        return implicit_solve(job.matrix(leaves), right, job.make, job.solver())

    @staticmethod
    def vmap(info: Any, in_dims: Any, job: _Job, y: Any, *leaves: Any) -> Any:
        _, y_dim, *dims = in_dims
        if all(d is None for d in dims):  # only right-hand sides: they are one more batch axis
            matrix = job.matrix(leaves)
            lead = y.movedim(y_dim, 0)
            gap = max(0, len(matrix.shape) - (lead.ndim - 1))
            lead = lead.reshape(lead.shape[0], *(1,) * gap, *lead.shape[1:])
            return implicit_solve(matrix, lead, job.make, job.solver()), 0
        each = []
        for k in range(info.batch_size):
            mine = [leaf if d is None else leaf.select(d, k) for leaf, d in zip(leaves, dims, strict=True)]
            right = y if y_dim is None else y.select(y_dim, k)
            each.append(implicit_solve(job.matrix(mine), right, job.make))
        return torch.stack(each), 0


def _vjp(function: Callable[..., Any], *primals: torch.Tensor) -> tuple[Any, Callable[..., Any]]:
    """``torch.func.vjp``, whose annotation leaves open how many values it returns."""
    found: Any = torch.func.vjp(function, *primals)
    return found[0], found[1]


def _product(job: _Job, leaves: Any, free: list[int], x: torch.Tensor) -> Callable[..., torch.Tensor]:
    """``theta -> A(theta) x`` in the leaves numbered ``free``, the others and x held fixed."""

    def product(*moving: torch.Tensor) -> torch.Tensor:
        new = list(leaves)
        for i, leaf in zip(free, moving, strict=True):
            new[i] = leaf
        result: torch.Tensor = job.matrix(new).linear(x)
        return result

    return product
