"""Krylov solves of any square matrix: which method, what it is given, the record it leaves, and its derivatives.

The methods are those of ``functional.krylov``; here a matrix becomes a product on rows of size one, so that nothing
over- or underflows, and the solution is differentiated by the adjoint solve (``functional.implicit``).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from structmat import backend, solving
from structmat._shell import Place, name_of
from structmat._value import Value, nested
from structmat.claims import Claim
from structmat.errors import DtypeError, ShapeError, StructureError
from structmat.functional.implicit import implicit_solve
from structmat.functional.krylov import Apply, Outcome, conjugate_gradients, gmres, minres
from structmat.functional.krylov.common import quotient, sizes
from structmat.solving import Options, SolveInfo

__all__ = [
    "METHODS",
    "Scaling",
    "as_rows",
    "default_steps",
    "given_rows",
    "preconditioner_of",
    "refuse_closures",
    "solve_rows",
    "suited",
]

METHODS: dict[str, Callable[..., Outcome]] = {"cg": conjugate_gradients, "minres": minres, "gmres": gmres}
_MOST_STEPS = 10_000
_ADVICE = (
    "give a preconditioner (a Matrix near A^-1), more max_steps or a larger tol, spend n^2 memory on "
    'method="dense", or take the result as it is with check=False'
)


def suited(matrix: Any) -> tuple[tuple[str, ...], str]:
    """The methods "auto" tries, one after the other, and why the first is the first; from claims alone."""
    claims = matrix.claims
    if Claim.POSITIVE_DEFINITE in claims:
        return ("cg", "minres", "gmres"), "claimed positive definite"
    if Claim.HERMITIAN in claims:
        return ("minres", "gmres"), "Hermitian"
    return ("gmres",), "not claimed Hermitian"


def default_steps(n: int) -> int:
    """``4 n + 100`` steps, 10,000 at most."""
    return min(4 * n + 100, _MOST_STEPS)


def as_rows(value: torch.Tensor) -> torch.Tensor:
    """Columns ``(..., n, k)``, or one vector, as rows ``(..., k, n)``."""
    return value[None, :] if value.ndim == 1 else value.mT


def given_rows(start: Any, place: str | Place, y: torch.Tensor, n: int) -> torch.Tensor | None:
    """The ``start`` of the options as rows of length n that fit y; ShapeError, DtypeError and TypeError name it."""
    if start is None:
        return None
    if not isinstance(start, torch.Tensor):
        raise TypeError(f"{place}: start must be a tensor, got {type(start).__name__}")
    if start.ndim == 0 or start.shape[-1 if start.ndim == 1 else -2] != n:
        raise ShapeError(f"{place}: start has shape {tuple(start.shape)}, a solution has {n} rows")
    if start.is_complex() and not y.is_complex():
        raise DtypeError(f"{place}: start is {name_of(start.dtype)}, the solution is real")
    rows = as_rows(start.detach())
    if rows.ndim > 1 and rows.shape[-2] not in (1, y.shape[-2]):
        raise ShapeError(f"{place}: start has {rows.shape[-2]} columns, b has {y.shape[-2]}")
    return rows


def refuse_closures(matrix: Any, place: str) -> None:
    """StructureError where a function that is a matrix closes over what requires a gradient: a solve differentiates
    with respect to the tensors of the matrix, so that gradient would be silently lost. One product."""
    if not (torch.is_grad_enabled() and any(getattr(v, "calls_user_code", False) for v in nested(matrix))):
        return
    dtype = backend.compute_dtype(matrix.dtype or torch.get_default_dtype())
    probe = torch.zeros(1, int(matrix.shape[-1]), dtype=dtype, device=matrix.device)
    if matrix.detach().linear(probe).requires_grad:
        raise StructureError(
            f"{place}: a function of Implicit closes over a tensor that requires a gradient, which a solve does not "
            "reach; pass it as Implicit(..., tensors=(...,)), or solve under torch.no_grad()"
        )


def preconditioner_of(given: Any, place: str, n: int, dtype: torch.dtype) -> Any:
    """The preconditioner as a matrix of order n in the precision computed in, or None."""
    if given is None:
        return None
    if not isinstance(given, Value) or not hasattr(given, "linear") or tuple(given.shape[-2:]) != (n, n):  # type: ignore[attr-defined]
        raise ShapeError(f"{place}: the preconditioner must be a Matrix of size {n} x {n}, got {given!r}")
    moved, precision = given.detach(), backend.real_of(dtype)
    if moved.dtype is not None and backend.real_of(moved.dtype) != precision:  # type: ignore[attr-defined]
        moved = moved.to(dtype=precision)
    if moved.dtype is not None and moved.dtype.is_complex and not dtype.is_complex:  # type: ignore[attr-defined]
        raise DtypeError(f"{place}: the preconditioner {given!r} is complex, the system is real")
    return moved


@dataclasses.dataclass(frozen=True)
class Scaling:
    """``A / sigma`` and rows of length one: every number of an iteration is near one, whatever the units of A and b."""

    sigma: torch.Tensor  # (*batch): bounds ||A||_2
    lifted: torch.Tensor  # the same, with a place for the rows, and 1 for 0

    @classmethod
    def of(cls, matrix: Any, like: torch.Tensor) -> "Scaling":
        sigma = matrix._norm_bound().to(dtype=backend.real_of(like.dtype), device=like.device)
        lifted = sigma[..., None, None] if sigma.ndim else sigma
        return cls(sigma, torch.where(lifted > 0, lifted, torch.ones_like(lifted)))

    @property
    def unit(self) -> torch.Tensor:
        """The bound of the scaled matrix."""
        return torch.ones_like(self.sigma)

    def product(self, multiply: Apply) -> Apply:
        return lambda v: multiply(v) / self.lifted

    def rows(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of length one, and their lengths; a row of zeros stays."""
        largest = y.abs().amax(-1, keepdim=True)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        size = largest * torch.linalg.vector_norm(y / largest, dim=-1, keepdim=True)
        size = torch.where(size > 0, size, torch.ones_like(size))
        return y / size, size


class _Iteration:
    """A solver in the sense of ``functional.implicit``: Krylov steps, on the matrix or on its adjoint."""

    def __init__(self, matrix: Any, options: Options, place: str, record: list[SolveInfo] | None) -> None:
        self.matrix, self.options, self.place, self.record = matrix, options, place, record

    def adjoint(self) -> "_Iteration":
        """The same method for A^H: nothing is there to be kept, the preconditioner is turned."""
        given = self.options.preconditioner
        options = dataclasses.replace(
            self.options, preconditioner=None if given is None else given.mH, start=None, callback=None
        )
        return _Iteration(self.matrix.mH, options, f"{self.place}, its gradient", None)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        matrix, options = self.matrix, self.options
        n = int(matrix.shape[-1])
        lead = torch.broadcast_shapes(matrix.batch_shape, y.shape[:-2])
        y = y.expand(*lead, *y.shape[-2:])
        given = preconditioner_of(options.preconditioner, self.place, n, y.dtype)
        start = given_rows(options.start, self.place, y, n)
        x, info = self._run(y, (lambda v: v) if given is None else given.linear, start)
        if self.record is not None:
            self.record.append(info)
        if options.check and info.backward_error is not None:
            accepted = solving.limit(y.dtype, options.tol)
            solving.judge(matrix, info.backward_error, info.method, accepted, f" after {info.steps} steps; {_ADVICE}")
        return x

    def _run(self, y: torch.Tensor, apply: Apply, start: torch.Tensor | None) -> tuple[torch.Tensor, SolveInfo]:
        """Method after method: those rows go on whose backward error is too large, the others are solved."""
        options, scaling = self.options, Scaling.of(self.matrix, y)
        multiply = scaling.product(self.matrix.linear)
        b, size = scaling.rows(y)
        methods, reason = suited(self.matrix) if options.method == "auto" else ((options.method,), "asked for")
        accepted = solving.limit(y.dtype, options.tol)
        goal = options.tol / 2 if options.tol is not None else accepted / 5
        most = default_steps(int(y.shape[-1])) if options.max_steps is None else options.max_steps
        steps, reasons, x, eta = 0, [f"{methods[0]}: {reason}"], torch.zeros_like(b), None
        first = None if start is None else start.to(b.dtype) * scaling.lifted / size
        for name in methods:
            right = b if eta is None else torch.where((eta <= accepted)[..., None], 0, b)
            out = METHODS[name](multiply, apply, right, scaling.unit, goal, most, first, options.callback)
            steps += out.steps
            residual = torch.linalg.vector_norm(right - multiply(out.x), dim=-1, keepdim=True)
            whole = torch.linalg.vector_norm(right, dim=-1, keepdim=True)
            found = quotient(residual, sizes(whole, torch.ones_like(whole), out.x))
            better = torch.ones_like(found, dtype=torch.bool) if eta is None else (eta > accepted) & ~(found >= eta)
            x = torch.where(better[..., None], out.x, x)
            eta = found if eta is None else torch.where(better, found, eta)
            if bool((eta <= accepted).all()):
                break
            reasons.append(f"{name} reached {float(eta.max()):.1e} in {out.steps} steps")
        label = name if options.preconditioner is None else f"{name}, given preconditioner"
        return x * size / scaling.lifted, SolveInfo(label, steps, eta, tuple(reasons))


def solve_rows(matrix: Any, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
    """x with ``A x = y`` for rows ``(..., k, n)`` by Krylov steps, differentiable to any order; see ``suited`` for
    "auto".

    Raises SolveError with the backward error reached, ShapeError and DtypeError for a preconditioner or a start that
    does not fit, StructureError under torch.compile. Under vmap over the matrix the record is that of the first.
    """
    place = f"{matrix!r}.solve"
    wide = backend.compute_dtype(y.dtype if matrix.dtype is None else torch.promote_types(y.dtype, matrix.dtype))
    solving.check_options(options, place)
    refuse_closures(matrix, place)
    record: list[SolveInfo] = []
    x = implicit_solve(matrix, y.to(wide), lambda m: _Iteration(m, options, place, record))
    return x, record[0] if record else SolveInfo(options.method, 0, None, ("nothing was run",))
