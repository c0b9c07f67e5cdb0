"""Which method solves which square Toeplitz system: tiers, each for the matrices that the one before did not solve.

``auto``: conjugate gradients where T is claimed definite (Strang's circulant where it is safely definite, else
T. Chan's); from order 16,384 on the superfast pair; Levinson's recursion, the two-solve inverse and refinement; the
same with a shifted diagonal; Gaussian elimination with partial pivoting (dense up to the dense limit, else of the
Cauchy-like form); Krylov. The backward error of every right-hand side decides. A method called by name runs alone. No
gradients here.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from structmat import backend
from structmat.functional import fourier, krylov, superfast
from structmat.functional.implicit import Solver
from structmat.functional.levinson import FEW
from structmat.functional.levinson_direct import LARGEST, solve_side_by_side
from structmat.functional.preconditioners import chan, safely_definite, strang
from structmat.functional.toeplitz import cyclic_geometry
from structmat.functional.toeplitz_pair import (
    Kept,
    eliminated,
    eliminated_pair,
    groups,
    improved,
    levinson_pair,
    shifted_pair,
)
from structmat.functional.toeplitz_system import ACCEPTED, TARGET, System, flatten, right_sides
from structmat.functional.two_solve import TwoSolve

__all__ = ["ELIMINATED", "Record", "run", "side_by_side", "superfast_pays"]

ELIMINATED = 8192  # "auto" eliminates up to this order: 1 GiB a matrix
SUPERFAST = 16384  # from this order on n log^2 n beats the n^2 of Levinson's recursion (docs/guides/superfast.md)
_MANY = 4  # from so many right-hand sides on a pair by conjugate gradients is cheaper than conjugate gradients for each

Apply = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass
class Record:
    """What a solve did, and what it may be told: filled in by the solver, read by the caller."""

    method: str = "auto"
    definite: bool = False
    mirror: str | None = None  # "symmetric" or "hermitian"
    target: float = TARGET
    accepted: float = ACCEPTED
    precondition: Apply | None = None
    start: torch.Tensor | None = None
    max_steps: int | None = None
    callback: Callable[[int, float], None] | None = None
    keep: bool = True  # whether a factorisation will be wanted again (a derivative)
    known: Solver | None = None  # of the flattened batch: a factorisation to use in place of a new one
    used: str = ""
    steps: int = 0
    backward_error: torch.Tensor | None = None
    reasons: list[str] = dataclasses.field(default_factory=list)


def side_by_side(count: int, n: int) -> bool:
    """Whether so many systems of order n (up to the dense limit) are faster as one vectorised recursion than by dense
    LU one after the other. Seconds, fitted to timings on one machine: LU costs ``n^2.5`` there, a step of the recursion
    some calls of numpy whatever it works on."""
    if count < 4:
        return False
    dense = count * (4e-7 + 1.5e-9 * n**2.5)
    if n <= LARGEST:
        return count > FEW and dense > 1e-4 + 1.2e-5 * n + count * (1e-7 + 1e-9 * n * n)
    if count <= FEW:
        return dense > 6e-4 + count * 1.2e-6 * n
    return dense > 3e-4 + 2.5e-5 * n + count * 8e-10 * n * n


def superfast_pays(n: int) -> bool:
    """Whether "auto" takes the superfast pair before Levinson's."""
    return n >= SUPERFAST


def run(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    """Rows y with ``T y = b``, t ``(*bt, 2n - 1)``, b ``(*bb, k, n)`` of one dtype; the record says how."""
    if _direct(t, b, record):
        return _tiny(t, b, record)
    return _by_tiers(t, b, record)


def _tiny(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    """All by the direct recursion; those that it leaves short, and only those, by the tiers."""
    found, error = solve_side_by_side(t.numpy(), b[:, 0].numpy(), record.mirror is not None)
    y, eta = torch.from_numpy(found)[:, None], torch.from_numpy(error)[:, None]
    record.used, record.backward_error = "levinson", eta
    short = torch.nonzero(~(eta[:, 0] <= record.accepted))[:, 0]
    if len(short):
        part = dataclasses.replace(record, reasons=[])
        y[short] = _by_tiers(t[short], b[short], part)
        assert part.backward_error is not None
        eta[short] = part.backward_error
        record.used = part.used if len(short) == len(t) else f"levinson, {part.used}"
        record.steps, record.reasons = part.steps, part.reasons
    return y


def _by_tiers(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    flat, rows, restore = flatten(t, b)
    if not rows.numel():
        return restore(rows)
    start = None if record.start is None else flatten(t, record.start.to(b.dtype).expand(b.shape))[1]
    job = _Job(System(flat), rows, record, start)
    for tier in _tiers(job):
        todo = job.todo()
        if todo is not None and not len(todo):
            break
        tier(job, todo)
    record.used = ", ".join(job.names)
    record.backward_error = restore(job.eta)
    if job.parts:
        record.known = job.parts[0][1] if job.reused and len(job.parts) == 1 else Kept(tuple(job.parts))
    return restore(job.y)


def _direct(t: torch.Tensor, b: torch.Tensor, record: Record) -> bool:
    """Many tiny real systems with one right-hand side each, of which nothing is to be kept."""
    fresh = record.method == "auto" and record.known is None and not record.keep
    if not (fresh and t.ndim == 2 and b.ndim == 3 and b.shape[:2] == (t.shape[0], 1)):
        return False
    return t.shape[0] > FEW and 0 < b.shape[-1] <= LARGEST and t.dtype == torch.float64 and t.device.type == "cpu"


class _Job:
    """The state of one call: the best rows so far, and who found them."""

    def __init__(self, system: System, b: torch.Tensor, record: Record, start: torch.Tensor | None) -> None:
        self.system, self.b, self.record, self.start = system, b, record, start
        self.y, self.eta = torch.empty(0), torch.empty(0)
        self.parts: list[tuple[torch.Tensor | None, Solver]] = []
        self.names: list[str] = []
        self.reused = False

    def todo(self) -> torch.Tensor | None:
        """The numbers of the matrices with a row that is not solved yet; None for all of them."""
        if not self.eta.numel():
            return None
        bad = ~(self.eta <= self.record.accepted).all(-1)
        return None if bool(bad.all()) else torch.nonzero(bad)[:, 0]

    def part(self, index: torch.Tensor | None) -> tuple[System, torch.Tensor]:
        return (self.system, self.b) if index is None else (self.system.take(index), self.b[index])

    def offer(
        self, index: torch.Tensor | None, y: torch.Tensor, eta: torch.Tensor, name: str, solver: Solver | None
    ) -> None:
        """Take the rows that are better than what is there, and keep the solver if it found any."""
        if not self.eta.numel() and index is not None:
            self.y, self.eta = torch.full_like(self.b, torch.nan), torch.full_like(self.b[..., 0].abs(), torch.nan)
        if not self.eta.numel():
            self.y, self.eta = y, eta
            better = torch.ones((), dtype=torch.bool)
        else:
            here = slice(None) if index is None else index
            better = (eta < self.eta[here]) | self.eta[here].isnan()
            self.y[here] = torch.where(better[..., None], y, self.y[here])
            self.eta[here] = torch.where(better, eta, self.eta[here])
        if bool(better.any()):
            if index is None:
                self.names.clear()
                self.parts.clear()
            if name not in self.names:
                self.names.append(name)
            if solver is not None:
                self.parts.append((index, solver))


_Tier = Callable[[_Job, torch.Tensor | None], None]


def _tiers(job: _Job) -> Iterator[_Tier]:
    record = job.record
    small = job.system.n <= backend.dense_limit(job.b.device)
    if record.method == "cg" or (record.method == "auto" and record.definite and not small and record.known is None):
        yield _gradients
        if record.method == "cg":
            return
    if record.known is not None:
        yield _reused
    elif record.method == "superfast" or (record.method == "auto" and superfast_pays(job.system.n)):
        yield _superfast
    if record.known is None and record.method in ("auto", "levinson"):
        yield _levinson
        yield _shifted
    if record.method in ("auto", "gko") and (record.method == "gko" or job.system.n <= ELIMINATED):
        yield _eliminated
    if record.method in ("auto", "gmres", "minres"):
        yield _krylov


# -- direct -------------------------------------------------------------------------------------------------------


def _reused(job: _Job, index: torch.Tensor | None) -> None:
    assert job.record.known is not None
    y, eta, steps = job.system.refined(job.b, job.record.known, job.record.target, polish=job.record.target <= TARGET)
    job.record.steps += steps
    job.reused = True
    job.offer(None, y, eta, "levinson", job.record.known)


def _superfast(job: _Job, index: torch.Tensor | None) -> None:
    """For all matrices, also where conjugate gradients solved some: the pair serves the backward pass too."""
    found = superfast.find(job.system)
    y, eta, steps = job.system.refined(job.b, found.pair, job.record.target, polish=job.record.target <= TARGET)
    job.record.steps += steps
    job.offer(None, y, eta, "superfast", found.pair)


def _levinson(job: _Job, index: torch.Tensor | None) -> None:
    """For all matrices, also where conjugate gradients solved some: the pair serves the backward pass too."""
    system, record = job.system, job.record
    pair, _ = levinson_pair(system, record.mirror)
    polish = record.target <= TARGET and system.n > backend.dense_limit(job.b.device)
    y, eta, steps = system.refined(job.b, pair, record.target, polish)
    if not bool((eta <= record.target).all()) and bool(torch.isfinite(pair.x).all(-1).any()):
        pair, _ = improved(system, pair)
        y, eta, steps = system.refined(job.b, pair, record.target, polish)
    record.steps += steps
    job.offer(None, y, eta, "levinson", pair)


def _shifted(job: _Job, index: torch.Tensor | None) -> None:
    system, b = job.part(index)
    job.record.reasons.append("a leading minor is nearly singular: shifted diagonal, then refined")
    pair = shifted_pair(system, job.record.mirror)
    y, eta, steps = system.refined(b, pair, job.record.target, polish=True)
    job.record.steps += steps
    job.offer(index, y, eta, "levinson", pair)


def _eliminated(job: _Job, index: torch.Tensor | None) -> None:
    """In groups of at most 1 GiB. A single group is kept as it is; of several the pairs are, which are O(n)."""
    record, n = job.record, job.system.n
    small = record.method == "auto" and n <= backend.dense_limit(job.b.device)
    name = "dense" if small else "gko"
    if job.names:
        record.reasons.append(f"{', '.join(job.names)}: backward error {float(job.eta.max()):.1e}, so {name}")
    numbers = torch.arange(len(job.b), device=job.b.device) if index is None else index
    parts = groups(numbers, n)
    for some in parts:
        which = index if len(parts) == 1 else some
        system, b = job.part(which)
        solver = eliminated(system, dense=small)
        y, eta, steps = system.refined(b, solver, record.target)
        record.steps += steps
        job.offer(which, y, eta, name, solver if len(parts) == 1 else eliminated_pair(system, solver))


# -- iterative ----------------------------------------------------------------------------------------------------


def _gradients(job: _Job, index: torch.Tensor | None) -> None:
    system, record = job.system, job.record
    many = record.method == "auto" and job.b.shape[-2] >= _MANY and record.callback is None and job.start is None
    b = right_sides(system.t) if many else job.b
    for name, apply in _preconditioners(system, record):
        steps = record.max_steps or (100 if record.method == "cg" else _worth(system.n))
        out = krylov.conjugate_gradients(
            system.multiply, apply, b, system.sigma, min(record.target, TARGET) if many else record.target, steps,
            job.start, record.callback,
        )  # fmt: skip
        record.steps += out.steps
        eta = system.eta(out.x, b) if out.eta is None else out.eta
        if many and out.converged:
            pair = TwoSolve(out.x[..., 0, :].contiguous(), out.x[..., 1, :].contiguous())
            y, eta, _ = system.refined(job.b, pair, record.target, polish=record.target <= TARGET)
            job.offer(None, y, eta, f"cg, {name} preconditioner", pair)
        elif not many:
            job.offer(None, out.x, eta, f"cg, {name} preconditioner", None)
        left = job.todo()
        if left is not None and not len(left):
            return
        record.reasons.append(f"cg with {name} preconditioner did not converge in {out.steps} steps")


def _worth(n: int) -> int:
    """The steps after which Levinson's recursion would have been cheaper: n / 50, by timings on one machine."""
    return min(200, max(25, n // 50))


def _preconditioners(system: System, record: Record) -> Iterator[tuple[str, Apply]]:
    """One after the other: the second is formed only if the first failed."""
    if record.precondition is not None:
        yield "given", record.precondition
        return
    geometry, real = cyclic_geometry(system.n), not system.t.is_complex()
    for name, column in (("Strang", strang), ("T. Chan", chan)):
        lam = fourier.spectrum(
            column(system.t), geometry
        ).real  # Hermitian: real eigenvalues, and half of them tell all
        if not bool(safely_definite(lam).all()):
            record.reasons.append(f"{name}'s circulant is not safely positive definite")
            if name == "Strang" or record.method != "cg":
                continue
            lam = lam.abs().clamp_min(torch.finfo(lam.dtype).eps * lam.abs().amax(-1, keepdim=True))
        inverse = (1 / lam)[..., None, :]
        yield name, fourier.Multiplier(inverse if real else inverse.to(system.t.dtype), geometry, real)


def _krylov(job: _Job, index: torch.Tensor | None) -> None:
    """MINRES where Hermitian, else GMRES, with T. Chan's circulant in modulus or as it is."""
    record = job.record
    system, b = job.part(index)
    hermitian = record.mirror == "hermitian" or (record.mirror is not None and not system.t.is_complex())
    name = record.method if record.method != "auto" else "minres" if hermitian else "gmres"
    apply = record.precondition
    if apply is None:
        geometry, real = cyclic_geometry(system.n), not system.t.is_complex()
        lam = fourier.spectrum(chan(system.t), geometry)
        size = lam.abs()
        floor = 1e-6 * size.amax(-1, keepdim=True)
        if name == "minres":
            inverse = (1 / size.clamp_min(floor)).to(lam.dtype)
        else:
            inverse = torch.where(size > floor, 1 / lam, (1 / floor).to(lam.dtype))
        apply = fourier.Multiplier(inverse[..., None, :], geometry, real)
    start = job.start if job.start is not None or not job.eta.numel() else job.y
    if start is not None:
        start = start if index is None else start[index]
        start = torch.where(torch.isfinite(start).all(-1, keepdim=True), start, torch.zeros_like(start))
    if job.names:
        record.reasons.append(f"{', '.join(job.names)}: backward error {float(job.eta.max()):.1e}, so {name}")
    method = krylov.minres if name == "minres" else krylov.gmres
    steps = record.max_steps if record.max_steps is not None else min(500, 2 * system.n)
    out = method(system.multiply, apply, b, system.sigma, record.target, steps, start, record.callback)
    record.steps += out.steps
    job.offer(index, out.x, system.eta(out.x, b) if out.eta is None else out.eta, name, None)
