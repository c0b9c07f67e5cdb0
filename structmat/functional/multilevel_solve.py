"""Square systems with k-level operators: preconditioned Krylov methods, one after the other, on functions of rows.

There is no fast closed inverse of a matrix with two or more Toeplitz levels, and no circulant preconditioner makes the
number of steps independent of the order there (S. Serra Capizzano and E. Tyrtyshnikov, Any circulant-like
preconditioner for multilevel matrices is not superlinear, 1999); for smooth symbols there are few all the same.
Everything is computed in float64 (complex128).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from structmat import backend
from structmat.functional import multilevel as fm
from structmat.functional.krylov import Apply, Outcome, cgls, conjugate_gradients, gmres
from structmat.functional.krylov.general import restart_length
from structmat.functional.preconditioners import chan, strang

__all__ = ["METHODS", "LevelSolver", "Operator", "Record", "block_circulant_of", "toeplitz_operator"]

METHODS = ("cg", "gmres", "cgls")
_TARGET = 20 * torch.finfo(torch.float64).eps
_MOST_STEPS, _GMRES_STEPS = 10_000, 300  # GMRES is left early where another method may serve
_KEPT = 100  # vectors of a cycle of GMRES
Sizes = tuple[int, ...]


@dataclasses.dataclass
class Record:
    """What a solve is told, and what it did."""

    method: str = "auto"
    definite: bool = False
    target: float = _TARGET
    accepted: float = 100 * torch.finfo(torch.float64).eps
    given: tuple[Apply, Apply] | None = None  # a preconditioner from outside, and its adjoint
    start: torch.Tensor | None = None
    max_steps: int | None = None
    callback: Callable[[int, float], None] | None = None
    used: str = ""
    steps: int = 0
    backward_error: torch.Tensor | None = None
    reasons: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Operator:
    """A square matrix as functions of rows: ``x A^T``, ``y conj(A)``, a bound of ``||A||_2``, approximate inverses by
    name (each with its adjoint, and whether it is positive definite), and approximations of ``(A^H A)^-1`` and
    ``(A A^H)^-1``."""

    multiply: Apply
    adjoint: Apply
    sigma: torch.Tensor
    inverses: tuple[tuple[str, Apply, Apply, bool], ...]
    gram: tuple[Apply, Apply] | None

    @property
    def mH(self) -> "Operator":
        flipped = tuple((name, back, forth, definite) for name, forth, back, definite in self.inverses)
        gram = None if self.gram is None else (self.gram[1], self.gram[0])
        return Operator(self.adjoint, self.multiply, self.sigma, flipped, gram)


class LevelSolver:
    """A solver in the sense of ``implicit.Solver``: tries methods in turn, keeps the best rows, and says so in its
    record. ``operator`` is that of ``A / scale``, so that every number of an iteration is near one whatever the units
    of A; scale ``(*batch)``."""

    def __init__(self, operator: Operator, record: Record, scale: torch.Tensor) -> None:
        self.operator, self.record, self.scale = operator, record, scale

    def adjoint(self) -> "LevelSolver":
        given = None if self.record.given is None else (self.record.given[1], self.record.given[0])
        fresh = dataclasses.replace(
            self.record, given=given, start=None, callback=None, steps=0, reasons=[], backward_error=None
        )
        return LevelSolver(self.operator.mH, fresh, self.scale)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``A x = y`` for rows y ``(..., k, n)``."""
        record, lifted = self.record, self.scale[..., None, None]
        lead = torch.broadcast_shapes(self.operator.sigma.shape, y.shape[:-2])
        b, size = _unit_rows(y.expand(*lead, *y.shape[-2:]))
        start, record.start = record.start, None  # it belongs to this right-hand side only
        if start is not None:
            start = (start.to(b.dtype) * lifted / torch.where(size > 0, size, 1)).expand(b.shape)
        best, eta = torch.zeros_like(b) if start is None else start, None
        for name, run in self._attempts(start):
            outcome = run(b)
            record.steps += outcome.steps
            found = self._eta(outcome.x, b)
            better = ~(found >= eta) if eta is not None else torch.ones_like(found, dtype=torch.bool)
            best = torch.where(better[..., None], outcome.x, best)
            eta = found if eta is None else torch.where(better, found, eta)
            record.used, record.backward_error = name, eta
            if bool((eta <= record.accepted).all()):
                break
            record.reasons.append(f"{name}: backward error {float(eta.max()):.1e} after {outcome.steps} steps")
        return best * size / lifted

    def _eta(self, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm
        size = self.operator.sigma[..., None] * norm(x, dim=-1) + norm(b, dim=-1)
        return norm(b - self.operator.multiply(x), dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)

    def _attempts(self, start: torch.Tensor | None) -> Iterator[tuple[str, Callable[[torch.Tensor], Outcome]]]:
        """Positive definite: conjugate gradients with each preconditioner that is too; else GMRES with the best one,
        then conjugate gradients of the normal equations."""
        op, record = self.operator, self.record
        every = list(op.inverses)
        if record.given is not None:
            every = [("given", self._given(0), self._given(1), True)]
        if record.method == "cg" or (record.method == "auto" and record.definite):
            for name, apply, _, definite in every or [("no", _same, _same, True)]:
                if definite:
                    yield f"cg, {name} preconditioner", self._run("cg", apply, start)
                else:
                    record.reasons.append(f"{name}'s preconditioner is not safely positive definite")
            if record.method == "cg" and not any(definite for *_, definite in every):
                yield "cg", self._run("cg", _same, start)
        if record.method in ("auto", "gmres"):
            name, apply = (every[-1][0], every[-1][1]) if every else ("no", _same)
            yield f"gmres, {name} preconditioner", self._run("gmres", apply, start)
        if record.method in ("auto", "cgls"):
            yield "cgls", self._run("cgls", self._normal(), start)

    def _given(self, k: int) -> Apply:
        """The preconditioner from outside (its adjoint for k = 1), as that of ``A / scale``."""
        assert self.record.given is not None
        apply, lifted = self.record.given[k], self.scale[..., None, None]
        return lambda v: lifted * apply(v)

    def _normal(self) -> Apply:
        if self.record.given is not None:
            forth, back = self._given(0), self._given(1)
            return lambda v: forth(back(v))
        return _same if self.operator.gram is None else self.operator.gram[0]

    def _run(self, method: str, apply: Apply, start: torch.Tensor | None) -> Callable[[torch.Tensor], Outcome]:
        op, record = self.operator, self.record

        def run(b: torch.Tensor) -> Outcome:
            steps = min(10 * b.shape[-1] + 100, _MOST_STEPS) if record.max_steps is None else record.max_steps
            if method == "gmres" and record.method == "auto":
                steps = min(steps, _GMRES_STEPS)
            last: Any = (op.sigma, record.target, steps, start, record.callback)
            if method == "cgls":
                return self._refined(apply, b, steps, start)
            if method == "gmres":
                width = min(_KEPT, restart_length(b.numel() // b.shape[-1], b.shape[-1]))
                return gmres(op.multiply, apply, b, op.sigma, record.target, steps, start, record.callback, width)
            return conjugate_gradients(op.multiply, apply, b, *last)

        return run

    def _refined(self, apply: Apply, b: torch.Tensor, most: int, start: torch.Tensor | None) -> Outcome:
        """The normal equations, solved again for what is left: they stop where ``A^H r`` is at rounding level, at which
        r itself may be larger by the condition number."""
        op, record = self.operator, self.record
        x = torch.zeros_like(b) if start is None else start
        eta, steps = self._eta(x, b), 0
        while steps < most:
            r, size = _unit_rows(b - op.multiply(x))
            found = cgls(
                op.multiply,
                op.adjoint,
                apply,
                r,
                r.shape[-1],
                op.sigma,
                record.target,
                most - steps,
                None,
                record.callback,
            )
            steps += max(1, found.steps)
            new = x + size * found.x
            eta_new = self._eta(new, b)
            better = eta_new < eta / 2
            x, eta = torch.where(better[..., None], new, x), torch.where(better, eta_new, eta)
            if not bool((better & (eta > record.target)).any()):
                break
        return Outcome(x, steps, bool((eta <= record.accepted).all()), eta)


def _unit_rows(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of length one and their lengths, without over- or underflow; a row of zeros stays."""
    largest = y.abs().amax(-1, keepdim=True)
    scaled = y / torch.where(largest > 0, largest, 1)
    size = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(size > 0, size, 1), largest * size


def _same(v: torch.Tensor) -> torch.Tensor:
    return v


# -- k-level Toeplitz ---------------------------------------------------------------------------------------------


def block_circulant_of(t: torch.Tensor, levels: int, kind: str = "chan") -> torch.Tensor:
    """The generators of a k-level circulant close to the square k-level Toeplitz matrix of t, level by level: T. Chan's
    (nearest in the Frobenius norm) or Strang's (the central diagonals)."""
    choose = {"chan": chan, "strang": strang}[kind]
    for axis in range(-levels, 0):
        t = choose(t.movedim(axis, -1)).movedim(-1, axis)
    return t


def toeplitz_operator(t: torch.Tensor, sizes: Sizes, definite: bool) -> Operator:
    """The square k-level Toeplitz matrix of generators t (float64 or complex128) with its circulant preconditioners.

    Strang's and T. Chan's where definite; a circulant whose eigenvalues come near zero is left out. For the normal
    equations ``|lam|^2`` of T. Chan's (R. Chan and X. Jin, A family of block preconditioners for block systems, 1992).
    """
    levels, real = len(sizes), not t.is_complex()
    geometry, cyclic = fm.toeplitz_geometry(sizes, sizes), fm.cyclic_geometry(sizes)
    hat = fm.spectrum(t, geometry).unsqueeze(-levels - 1)
    axes = tuple(range(-levels, 0))

    def rows(spectrum: torch.Tensor, g: fm.Geometry, role: str = "y") -> Apply:
        sizes_in = g.x if role == "y" else g.y
        return lambda v: fm.apply_spectrum(spectrum, v.unflatten(-1, sizes_in), g, real, role).flatten(-levels)

    inverses: list[tuple[str, Apply, Apply, bool]] = []
    gram: Apply | None = None
    for kind, name in (("strang", "Strang"), ("chan", "T. Chan")):
        lam = fm.spectrum(block_circulant_of(t, levels, kind), cyclic).unsqueeze(-levels - 1)
        least, most = lam.abs().amin(axes, keepdim=True), lam.abs().amax(axes, keepdim=True)
        floor = torch.finfo(torch.float64).eps ** 0.5 * most
        if kind == "chan":
            gram = rows((1 / (lam.abs() ** 2).clamp_min(floor**2)).to(lam.dtype), cyclic)
        if bool((least > floor).all()):
            safely = definite and bool((lam.real > floor).all())
            inverse = 1 / (lam.real.to(lam.dtype) if safely else lam)
            inverses.append((name, rows(inverse, cyclic), rows(inverse, cyclic, "x"), safely))
    sigma = hat.squeeze(-levels - 1).abs().amax(axes)
    pair = None if gram is None else (gram, gram)
    return Operator(rows(hat, geometry), rows(hat, geometry, "x"), sigma, tuple(inverses), pair)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64, or complex128 where one of these is complex."""
    found = torch.float64
    for dtype in dtypes:
        found = torch.promote_types(found, backend.compute_dtype(dtype))
    return found
