"""Sums of a matrix with a cheap inverse and low-rank terms: solver, determinant and inverse by Woodbury's identity."""

import dataclasses
import functools
import math
from typing import Any

import torch

from structmat import backend, dispatch, solving
from structmat._verbs import Verbs
from structmat.errors import SolveError
from structmat.functional import woodbury as fw
from structmat.functional.implicit import implicit_solve
from structmat.lazy.expressions import Product, Scaled
from structmat.matrix import Matrix, add
from structmat.solving import Factorisation

__all__ = ["Split", "WoodburyFactorisation", "WoodburySolver", "solves_itself", "split"]

_STEPS = 10  # of refinement at most; each gains as many digits as the first solve had


@dataclasses.dataclass(frozen=True)
class Split:
    """``A = base + left right^T``."""

    base: Matrix
    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.left.shape[-1])

    def lifted(self) -> "Split":
        """The same matrix in balanced factors, with a base that can be divided by, where its type knows how
        (``Diagonal``, eager)."""
        left, right = fw.balanced(self.left, self.right)
        rule = dispatch.lookup("lifted", type(self.base))
        if rule is None or not backend.eager(self.left, self.right, *self.base.tensors()):
            return Split(self.base, left, right)
        return Split(*rule(self.base, left, right))

    def half(self) -> torch.Tensor:
        """``base^-1 left``, differentiable."""
        return self.base.solve(self.left, check=False) if self.rank else self.left

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``det A = det base det C``."""
        sign, logabs = self.base.slogdet()
        s, value = torch.linalg.slogdet(fw.capacitance(self.half(), self.right))
        return sign * s, logabs + value

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """One pass of the formula, in plain torch: for graphs, where no value is read and no step is refined."""
        half = self.half()
        x = self.base.solve_rows(y, check=False)
        return fw.remove(x, self.right, half, fw.capacitance(half, self.right))

    def inverse(self) -> Matrix | None:
        """``base^-1 - H C^-1 (base^-T right)^T`` as a sum, or None where C has lost half of the digits."""
        half = self.half()
        small = fw.capacitance(half, self.right)
        other = self.base.transpose().solve(self.right, check=False) if self.rank else self.right
        if backend.eager(small) and not _condition(small) <= torch.finfo(small.dtype).eps ** -0.5:
            return None
        scaled = torch.linalg.solve_ex(small.mT, half.mT)[0].mT
        return add(self.base.inv(), dispatch.call("low_rank", -scaled, other))


def split(terms: tuple[Matrix, ...]) -> Split | None:
    """Low-rank terms on one side, the others, if they have a solve of their own, on the other; else None."""
    thin = [t for t in terms if dispatch.lookup("thin_factors", type(t)) is not None]
    rest = [t for t in terms if dispatch.lookup("thin_factors", type(t)) is None]
    if not thin or not rest or terms[0].shape[-1] != terms[0].shape[-2]:
        return None
    base = functools.reduce(add, rest)
    if not solves_itself(base):
        return None
    found = [dispatch.call("thin_factors", t) for t in thin]
    left, right = (_beside([pair[k] for pair in found]) for k in (0, 1))
    return Split(base, left, right)


def _beside(parts: list[torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    lead = torch.broadcast_shapes(*(p.shape[:-2] for p in parts))
    common = functools.reduce(torch.promote_types, [p.dtype for p in parts])
    return torch.cat([p.to(common).expand(*lead, *p.shape[-2:]) for p in parts], -1)


def solves_itself(matrix: Matrix) -> bool:
    """Whether the type, not its values, has a solve of its own."""
    if hasattr(matrix, "terms"):
        return split(matrix.terms) is not None
    if isinstance(matrix, Scaled):
        return solves_itself(matrix.matrix)
    if isinstance(matrix, Product):
        return all(f.shape[-2] == f.shape[-1] and solves_itself(f) for f in matrix.factors)
    return type(matrix)._solve_rows is not Verbs._solve_rows and getattr(matrix, "_solves", True)


def _condition(small: torch.Tensor) -> float:
    """The largest condition number of the capacitance matrices, in the 1-norm; inf where one is singular."""
    small = small.detach()
    if small.numel() == 0:
        return 1.0
    inverse, info = torch.linalg.inv_ex(small)
    found = torch.linalg.matrix_norm(small, 1) * torch.linalg.matrix_norm(inverse, 1)
    worst = torch.where((info > 0) | ~torch.isfinite(found), torch.full_like(found, torch.inf), found).max()
    return float(worst)


class WoodburySolver:
    """A solver in the sense of ``functional.implicit`` for a sum that splits: factors kept, every solve refined.

    ``eta`` is the backward error of the last solve, a row a number, ``steps`` its steps of refinement.
    """

    def __init__(self, matrix: Matrix, check: bool = True) -> None:
        found = split(matrix.terms)  # type: ignore[attr-defined]
        assert found is not None
        found = found.lifted()
        self.matrix, self.check, self.rank = matrix, check, found.rank
        self.left, self.right = found.left, found.right
        with backend.full_precision(found.left.device):
            self.base = found.base.factor()
            self.half = self.base.solve(found.left) if found.rank else found.left
            small = fw.capacitance(self.half, self.right)
        self.condition = _condition(small) if backend.eager(small) else math.nan
        self.lu, self.pivots, _ = torch.linalg.lu_factor_ex(small)
        self.turned, self.steps = False, 0
        self.eta: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.left.device

    def adjoint(self) -> "WoodburySolver":
        other = object.__new__(WoodburySolver)
        other.__dict__.update(self.__dict__)
        other.matrix, other.turned, other.eta, other.steps = self.matrix.mH, not self.turned, None, 0
        return other

    def _small(self, rows: torch.Tensor) -> torch.Tensor:
        """``C^-1`` (of the adjoint ``C^-H``) on rows."""
        columns = rows.mT
        columns = columns[(None,) * max(0, self.lu.ndim - columns.ndim)]
        return torch.linalg.lu_solve(self.lu, self.pivots, columns, adjoint=self.turned).mT

    def once(self, y: torch.Tensor) -> torch.Tensor:
        """The formula, applied to rows ``(..., k, n)``."""
        if y.is_complex() and not self.left.is_complex():
            return torch.complex(self.once(y.real), self.once(y.imag))
        if not self.rank:
            return self.base.adjoint_solve(y.mT).mT if self.turned else self.base.solve_rows(y)
        if self.turned:
            z = self._small(y @ self.half.conj())
            return self.base.adjoint_solve((y - z @ self.right.mH).mT).mT
        x = self.base.solve_rows(y)
        return x - self._small(x @ self.right) @ self.half.mT

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """The formula, and steps of refinement while they halve the backward error."""
        with backend.full_precision(y.device):
            return self._refined(y)

    def _refined(self, y: torch.Tensor) -> torch.Tensor:
        x = self.once(y)
        self.steps = 0
        if not self.check:
            return x
        sigma = self.matrix._norm_bound()
        residual = y - self.matrix.linear(x)
        eta = solving.backward_error(residual, x, y, sigma)
        while self.steps < _STEPS and bool((eta > 4 * torch.finfo(eta.dtype).eps).any()):
            better = x + self.once(residual)
            rest = y - self.matrix.linear(better)
            now = solving.backward_error(rest, better, y, sigma)
            gains = ~(now >= eta)  # also where eta was not a number
            self.steps += 1
            if not bool(gains.any()):
                break
            x, residual = (torch.where(gains[..., None], a, b) for a, b in ((better, x), (rest, residual)))
            slow = bool((now > eta / 2).all())
            eta = torch.where(gains, now, eta)
            if slow:
                break
        self.eta = eta
        return x


class WoodburyFactorisation(Factorisation):
    """The factors of base and capacitance matrix; solves and adjoint solves are refined and differentiable."""

    solver: Any = None
    reached: float | None = None

    @classmethod
    def of(cls, matrix: Matrix) -> "WoodburyFactorisation":
        """Raises SolveError where a solve with a drawn right-hand side is not backward stable."""
        wide = _wide(matrix).detach()
        solver = WoodburySolver(wide)
        drawn = torch.randn(1, int(matrix.shape[-1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        solver.solve_rows(drawn.to(dtype=solver.left.dtype, device=solver.device))
        assert solver.eta is not None
        solving.judge(matrix, solver.eta, "woodbury", solving.limit(solver.left.dtype, None), verb="factor")
        return cls(matrix, "woodbury", solver, float(solver.eta.max()) if solver.eta.numel() else 0.0)

    @property
    def backward_error(self) -> float | None:
        return self.reached

    def _known(self, device: torch.device) -> Any:
        return self.solver if self.solver is not None and self.solver.device == device else None

    def _out(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.promote_types(y.dtype, self.matrix.dtype))
        return x[..., 0, :] if y.ndim == 1 else x

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        rows = (y[None, :] if y.ndim == 1 else y).to(self._dtype(y))
        return self._out(implicit_solve(_wide(self.matrix), rows, WoodburySolver, self._known(y.device)), y)

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        known = self._known(b.device)
        rows = (b[None, :] if b.ndim == 1 else b.mT).to(self._dtype(b))
        adjoint = None if known is None else known.adjoint()
        x = self._out(implicit_solve(_wide(self.matrix).mH, rows, WoodburySolver, adjoint), b)
        return x if b.ndim == 1 else x.mT

    def _dtype(self, y: torch.Tensor) -> torch.dtype:
        return torch.promote_types(backend.compute_dtype(y.dtype), backend.compute_dtype(self.matrix.dtype))


def _wide(matrix: Matrix) -> Matrix:
    """In the dtype computed in."""
    dtype = matrix.dtype
    assert dtype is not None
    wide = backend.compute_dtype(dtype)
    return matrix if wide == dtype else matrix.to(dtype=wide)


def reported(solver: WoodburySolver) -> tuple[str, ...]:
    """What a SolveInfo says of this solver."""
    return (
        f"capacitance matrix of order {solver.rank}, condition {solver.condition:.1e}",
        f"{solver.steps} steps of refinement",
    )


def built(matrix: Matrix, check: bool, kept: list[WoodburySolver]) -> WoodburySolver:
    """The solver of a matrix, noted in ``kept``; SolveError where base or capacitance matrix is singular."""
    try:
        solver = WoodburySolver(matrix, check)
    except SolveError as error:
        raise SolveError(
            f"{matrix!r}.solve(method='woodbury'): the part that is inverted is singular ({error})"
        ) from error
    kept.append(solver)
    return solver
