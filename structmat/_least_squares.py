"""Least squares with any matrix by products alone, differentiated through the augmented system.

The minimiser of ``||A x - b||`` and its residual solve a square system,

    [ I    A ] [ r ]   [ b ]
    [ A^H  0 ] [ x ] = [ 0 ],

so that its derivatives are those of a linear solve (``functional.implicit``), to any order. A wide matrix is treated
by the same system of A^H, whose first component is the solution of least norm.
Source: A. Bjorck, Numerical Methods for Least Squares Problems, 1996, section 1.4.3.
"""

import dataclasses
from typing import Any

import torch

from structmat import backend, solving
from structmat._iterative import Scaling, default_steps, given_rows, preconditioner_of, refuse_closures
from structmat._value import Value
from structmat.functional.implicit import implicit_solve
from structmat.functional.krylov import Outcome, cgls, conjugate_gradients, lsmr
from structmat.solving import Options, SolveInfo

__all__ = ["METHODS", "lstsq_rows"]

METHODS = ("lsmr", "cgls")
_ADVICE = (
    "give a preconditioner (a Matrix near (A^H A)^-1), more max_steps or a larger tol, spend n^2 memory on "
    'method="dense", or take the result as it is with check=False'
)


class Augmented(Value):
    """``[[I, A], [A^H, 0]]`` of an m x n matrix, as far as a solve needs it: rows (r, x) of length m + n."""

    matrix: Any

    @property
    def shape(self) -> torch.Size:
        m, n = self.matrix.shape[-2:]
        return torch.Size((*self.matrix.batch_shape, m + n, m + n))

    @property
    def mH(self) -> "Augmented":
        return self

    def linear(self, rows: torch.Tensor) -> torch.Tensor:
        m = int(self.matrix.shape[-2])
        r, x = rows[..., :m], rows[..., m:]
        return torch.cat((r + self.matrix.linear(x), self.matrix.mH.linear(r)), -1)


@dataclasses.dataclass(frozen=True)
class _Minimiser:
    """Solves the augmented system ``r + B x = f, B^H r = g`` of a matrix B that is not wide.

    ``wide``: B is the adjoint of the user's matrix, and r what the user asked for; else x is. The options (method,
    start, callback) and the record belong to the user's own problem, the other half is solved plainly.
    """

    matrix: Any
    options: Options
    place: str
    wide: bool
    record: list[SolveInfo] | None
    multiplier: bool = True  # whether the half that only derivatives need is wanted

    def adjoint(self) -> "_Minimiser":
        """The augmented matrix is its own adjoint."""
        return dataclasses.replace(
            self, options=_plain(self.options), record=None, place=f"{self.place}, its gradient", multiplier=True
        )

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """``x = B^+ (f - q), r = f - B x`` for the q of least norm with ``B^H q = g``."""
        m, n = (int(s) for s in self.matrix.shape[-2:])
        lead = torch.broadcast_shapes(self.matrix.batch_shape, y.shape[:-2])
        y = y.expand(*lead, *y.shape[-2:])
        f, g = y[..., :m], y[..., m:]
        if self.wide or bool((g != 0).any()):
            q = self._least_norm(g)
            if not self.multiplier:
                return torch.cat((q, g.new_zeros(*g.shape[:-1], n)), -1)
            f = f - q
        options, record = (_plain(self.options), None) if self.wide else (self.options, self.record)
        x = self._minimise(self.matrix, f, options, record, options.preconditioner)
        return torch.cat((y[..., :m] - self.matrix.linear(x), x), -1)

    def _least_norm(self, g: torch.Tensor) -> torch.Tensor:
        """q of least norm with ``B^H q = g``; where a preconditioner of ``B^H B`` is given, ``q = B v`` with
        ``B^H B v = g`` by conjugate gradients."""
        options, record = (self.options, self.record) if self.wide else (_plain(self.options), None)
        if options.preconditioner is None:
            return self._minimise(self.matrix.mH, g, options, record, None)
        if options.start is not None:
            raise ValueError(f"{self.place}: start has no meaning for a wide matrix with a preconditioner")
        given = preconditioner_of(options.preconditioner, self.place, int(self.matrix.shape[-1]), g.dtype)
        scaling = Scaling.of(self.matrix, g)
        b, size = scaling.rows(g)
        multiply, adjoint = scaling.product(self.matrix.linear), scaling.product(self.matrix.mH.linear)
        out = conjugate_gradients(
            lambda v: adjoint(multiply(v)), given.linear, b, scaling.unit, self._goal(b), self._most(), None,
            options.callback,
        )  # fmt: skip
        self._keep(out, "cg of A A^H, given preconditioner" if self.wide else "cg of A^H A", record)
        return multiply(out.x) * size / scaling.lifted

    def _minimise(
        self, matrix: Any, y: torch.Tensor, options: Options, record: list[SolveInfo] | None, preconditioner: Any
    ) -> torch.Tensor:
        """Rows x of least norm that minimise ``||matrix x - y||``."""
        n = int(matrix.shape[-1])
        scaling = Scaling.of(matrix, y)
        multiply, adjoint = scaling.product(matrix.linear), scaling.product(matrix.mH.linear)
        b, size = scaling.rows(y)
        given = preconditioner_of(preconditioner, self.place, n, y.dtype)
        start = given_rows(options.start, self.place, y, n)
        first = None if start is None else start.to(b.dtype) * scaling.lifted / size
        rest = (b, n, scaling.unit, self._goal(b), self._most(), first, options.callback)
        name = "cgls" if options.method == "cgls" else "lsmr"
        if name == "cgls":
            out = cgls(multiply, adjoint, _same if given is None else given.linear, *rest)
        else:
            out = lsmr(multiply, adjoint, None if given is None else given.linear, *rest)
        self._keep(out, name if given is None else f"{name}, given preconditioner", record)
        return out.x * size / scaling.lifted

    def _goal(self, b: torch.Tensor) -> float:
        tol = self.options.tol
        return tol / 2 if tol is not None else solving.limit(b.dtype, None) / 5

    def _most(self) -> int:
        given = self.options.max_steps
        return default_steps(int(self.matrix.shape[-2])) if given is None else given

    def _keep(self, out: Outcome, name: str, record: list[SolveInfo] | None) -> None:
        """Write the record, and judge what was reached."""
        if record is not None:
            record.append(SolveInfo(name, out.steps, out.eta, ("products with A and A^H",)))
        if not self.options.check:
            return
        advice = f" after {out.steps} steps; {_ADVICE}"
        eta = torch.full((1,), float("inf")) if out.eta is None else out.eta  # None: the preconditioner is not definite
        solving.judge(self.matrix, eta, name, solving.limit(out.x.dtype, self.options.tol), advice, "lstsq")


def _same(v: torch.Tensor) -> torch.Tensor:
    return v


def _plain(options: Options) -> Options:
    return dataclasses.replace(options, start=None, callback=None)


def lstsq_rows(matrix: Any, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
    """Rows x that minimise ``||A x - y||`` by LSMR or CGLS, the one of least norm for a zero start and, where A is not
    wide, no preconditioner; y ``(..., k, m)``.

    A preconditioner is a Matrix of order ``min(m, n)`` near ``(A^H A)^-1``, or ``(A A^H)^-1`` for a wide A.
    Differentiable to any order where A has full rank (elsewhere the solution jumps with A). Raises SolveError with the
    backward error reached (``functional.krylov.least_squares``), StructureError under torch.compile.
    """
    place = f"{matrix!r}.lstsq"
    solving.check_options(options, place)
    refuse_closures(matrix, place)
    wide = backend.compute_dtype(y.dtype if matrix.dtype is None else torch.promote_types(y.dtype, matrix.dtype))
    y = y.to(wide)
    m, n = (int(s) for s in matrix.shape[-2:])
    record: list[SolveInfo] = []
    lead = torch.zeros((), dtype=wide, device=y.device).expand(*y.shape[:-1], n)
    moving = backend.transforming() or (
        torch.is_grad_enabled() and (y.requires_grad or any(t.requires_grad for t in matrix.tensors()))
    )
    tall = Augmented(matrix if m >= n else matrix.mH)
    right = torch.cat((y, lead) if m >= n else (lead, y), -1)
    x = implicit_solve(tall, right, lambda a: _Minimiser(a.matrix, options, place, m < n, record, moving or m >= n))
    return (x[..., m:] if m >= n else x[..., :n]), record[0] if record else SolveInfo(options.method, 0, None, ())
