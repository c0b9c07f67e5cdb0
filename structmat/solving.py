"""What every solve shares: its options, the backward error that judges it, the record it leaves, and factorisations."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch

from structmat import backend
from structmat._shell import Place, as_operand, broadcast, check_pair, require_square
from structmat._value import Value
from structmat.errors import ShapeError, SolveError

__all__ = [
    "DenseFactorisation",
    "Factorisation",
    "Options",
    "SolveInfo",
    "backward_error",
    "check_options",
    "dense_solve_rows",
    "judge",
    "limit",
    "norm_estimate",
    "slogdet_of_lu",
]

_SINGULAR = (
    '; the matrix may be singular to working precision: try method="dense", lstsq or pinv, a larger tol, or check=False'
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The keyword arguments of ``solve``, as one object."""

    method: str = "auto"
    tol: float | None = None
    preconditioner: Any = None
    start: torch.Tensor | None = None
    max_steps: int | None = None
    callback: Callable[[int, float], None] | None = None
    check: bool = True

    def refuse_iterative(self, place: str, method: str) -> None:
        """A direct method takes no preconditioner, start, step limit or callback: say so in place of ignoring them."""
        for name in ("preconditioner", "start", "max_steps", "callback"):
            if getattr(self, name) is not None:
                raise ValueError(f"{place}: {name} has no meaning for the direct method {method!r}")


@dataclasses.dataclass(frozen=True)
class SolveInfo:
    """How a system was solved: the method, its steps, ``eta`` per right-hand side (None if not measured), and why."""

    method: str
    steps: int
    backward_error: torch.Tensor | None
    reasons: tuple[str, ...]


def limit(dtype: torch.dtype, tol: float | None) -> float:
    """The accepted backward error: ``tol``, or 100 eps of the dtype computed in."""
    return tol if tol is not None else 100 * torch.finfo(backend.compute_dtype(dtype)).eps


def backward_error(residual: torch.Tensor, x: torch.Tensor, b: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``eta = ||b - A x|| / (sigma ||x|| + ||b||)`` per row, sigma an upper bound of ``||A||_2``; 0 for b = 0 = x."""
    norms = sigma[..., None] * torch.linalg.vector_norm(x, dim=-1) + torch.linalg.vector_norm(b, dim=-1)
    size = torch.linalg.vector_norm(residual, dim=-1)
    return torch.where(norms == 0, size, size / torch.where(norms == 0, torch.ones_like(norms), norms))


def judge(
    matrix: Any, eta: torch.Tensor, method: str, accepted: float, advice: str = _SINGULAR, verb: str = "solve"
) -> None:
    """Raise ``SolveError`` unless every backward error is within the accepted one (NaN is not); ``advice`` ends the
    message with the way out."""
    if eta.numel() == 0:
        return
    worst = float(eta.max()) if not bool(torch.isnan(eta).any()) else float("nan")
    if not worst <= accepted:
        raise SolveError(
            f"{matrix!r}.{verb}(method={method!r}): backward error {worst:.1e} exceeds {accepted:.1e}{advice}", worst
        )


def check_options(options: Options, place: str | Place) -> None:
    """ValueError for a step limit that is no positive int, and for a tolerance that is no positive number."""
    steps, tol = options.max_steps, options.tol
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"{place}: max_steps must be a positive int, got {steps!r}")
    if tol is not None and (not isinstance(tol, numbers.Real) or isinstance(tol, bool) or not 0 < tol < math.inf):
        raise ValueError(f"{place}: tol, the accepted backward error, must be a positive number, got {tol!r}")


def norm_estimate(matrix: Any, steps: int = 12) -> torch.Tensor:
    """The growth ``||A^H A v||^(1/2)`` of a vector after ``steps`` power steps, of shape ``batch_shape``: at most
    ``||A||_2``, and seldom below half of it, so that a backward error measured with it is never understated.

    The start is drawn with a fixed seed. Cost: 2 ``steps`` products.
    """
    dtype = backend.compute_dtype(matrix.dtype or torch.get_default_dtype())
    drawn = torch.randn(1, int(matrix.shape[-1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = drawn.to(dtype=dtype, device=matrix.device).expand(*matrix.batch_shape, 1, -1)
    adjoint, growth = matrix.mH, torch.ones(matrix.batch_shape, dtype=backend.real_of(dtype), device=matrix.device)
    for _ in range(steps):
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        w = matrix.linear(v / torch.where(length > 0, length, torch.ones_like(length)))
        growth = torch.linalg.vector_norm(w, dim=-1)[..., 0]
        v = adjoint.linear(w)
    return growth


def dense_solve_rows(matrix: Any, y: torch.Tensor) -> torch.Tensor:
    """x with ``x A^T = y`` by LU with partial pivoting of the dense matrix; n^2 storage, n^3 work, all transforms of
    torch."""
    with backend.full_precision(y.device):
        dense = matrix.to_dense()
    wide = backend.compute_dtype(torch.promote_types(dense.dtype, y.dtype))
    right = y.to(wide).mT
    right = right[(None,) * max(0, dense.ndim - right.ndim)]  # else (2, 2) beside a batch of two is read as two vectors
    with backend.full_precision(y.device):
        try:
            return torch.linalg.solve(dense.to(wide), right).mT
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise SolveError(
                f"{matrix!r}.solve: the matrix is singular ({error}); see lstsq and pinv", float("inf")
            ) from error


def slogdet_of_lu(lu: torch.Tensor, pivots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det|`` out of ``torch.linalg.lu_factor``."""
    diagonal = torch.diagonal(lu, dim1=-2, dim2=-1)
    swaps = (pivots != torch.arange(1, diagonal.shape[-1] + 1, device=pivots.device)).sum(-1)
    sign = torch.prod(torch.sgn(diagonal), -1) * (1 - 2 * (swaps % 2)).to(diagonal.dtype)
    return sign, torch.log(diagonal.abs()).sum(-1)


def _door(core: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], torch.Tensor]:
    """A solve of a factorisation that checks its right-hand side as those of the matrix do."""
    verb = core.__name__

    @functools.wraps(core)
    def checked(self: Any, b: Any) -> torch.Tensor:
        matrix, place = self.matrix, f"{self.matrix!r}.factor().{verb}"
        b = as_operand(b, matrix.dtype, matrix.device, place)
        n, rows = int(matrix.shape[-1]), verb == "solve_rows"
        if b.ndim == 0 or b.shape[-1 if b.ndim == 1 or rows else -2] != n:
            shape, what = tuple(b.shape), "columns" if rows else "rows"
            raise ShapeError(f"{place}: the right-hand side has shape {shape}, the matrix has {n} {what}")
        narrow = matrix.dtype is not None and backend.compute_dtype(matrix.dtype) != matrix.dtype
        if not (narrow and b.dtype == backend.compute_dtype(b.dtype)):  # what is built on a solver of halves is wider
            check_pair(matrix, b, place)
        if b.ndim > 2:
            broadcast(place, matrix.batch_shape, b.shape[:-2])
        return core(self, b)

    return checked


class Factorisation(Value):
    """What is worth keeping of a solve: ``solve``, ``solve_rows``, ``adjoint_solve``, ``slogdet``, ``logabsdet``.

    Differentiable, a pytree, picklable. This base keeps the matrix alone, which is right for types whose solve is a
    closed form. A subclass overrides the solves as unchecked cores: it gets the checks of shape, dtype and device
    before them.
    """

    matrix: Any
    method: str = "closed form"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for verb in ("solve", "solve_rows", "adjoint_solve"):
            if verb in cls.__dict__:
                setattr(cls, verb, _door(cls.__dict__[verb]))

    @property
    def backward_error(self) -> float | None:
        """The largest eta of the factorisation's own solves at construction; None for a closed form."""
        return None

    @_door
    def solve(self, b: torch.Tensor) -> torch.Tensor:
        """x with ``A x = b``; b is a vector only if 1-D, else ``(..., n, k)``."""
        return self.solve_rows(b) if b.ndim == 1 else self.solve_rows(b.mT).mT

    @_door
    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``x A^T = y``, the inverse of ``linear``."""
        result: torch.Tensor = self.matrix.solve_rows(y)
        return result

    @_door
    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        """x with ``A^H x = b``."""
        result: torch.Tensor = self.matrix.mH.solve(b)
        return result

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        result: tuple[torch.Tensor, torch.Tensor] = self.matrix.slogdet()
        return result

    def logabsdet(self) -> torch.Tensor:
        return self.slogdet()[1]


class DenseFactorisation(Factorisation):
    """LU with partial pivoting of the dense matrix, kept: n^2 storage; solves cost 2 n^2 per right-hand side."""

    lu: torch.Tensor | None = None
    pivots: torch.Tensor | None = None

    @classmethod
    def of(cls, matrix: Any) -> "DenseFactorisation":
        require_square(matrix, "factor")
        with backend.full_precision(matrix.device or torch.device("cpu")):
            dense = matrix.to_dense()
            lu, pivots, info = torch.linalg.lu_factor_ex(dense.to(backend.compute_dtype(dense.dtype)))
        if backend.eager(lu, dense) and bool((info > 0).any()):
            raise SolveError(f"{matrix!r}.factor: the matrix is singular, a pivot is zero; see lstsq, pinv", math.inf)
        return cls(matrix, "dense", lu, pivots)

    def _solve(self, b: torch.Tensor, adjoint: bool) -> torch.Tensor:
        assert self.lu is not None and self.pivots is not None
        columns = b[..., None] if b.ndim == 1 else b
        wide = torch.promote_types(self.lu.dtype, backend.compute_dtype(b.dtype))
        with backend.full_precision(columns.device):
            x = torch.linalg.lu_solve(self.lu.to(wide), self.pivots, columns.to(wide), adjoint=adjoint)
        x = x.to(torch.promote_types(b.dtype, self.matrix.dtype))
        return x[..., 0] if b.ndim == 1 else x

    def solve(self, b: torch.Tensor) -> torch.Tensor:
        return self._solve(b, adjoint=False)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        return self.solve(y) if y.ndim == 1 else self.solve(y.mT).mT

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        return self._solve(b, adjoint=True)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.lu is not None and self.pivots is not None
        return slogdet_of_lu(self.lu, self.pivots)
