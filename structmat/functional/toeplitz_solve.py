"""Square Toeplitz systems: which method, refinement, the backward error, and gradients without a dense matrix.

Everything is computed in float64 (complex128) whatever the dtype of the entries; Levinson's O(n^2) recursion runs on
the CPU, all else on the device of the entries. ``solve_rows`` is differentiable to any order: the derivative of a solve
is a solve, ``b' = T^-H x'``, ``t'_k = -sum_{i-j=k} b'_i conj(x_j)``.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from structmat import backend
from structmat.functional import fourier
from structmat.functional.krylov import Apply, Outcome, conjugate_gradients
from structmat.functional.levinson import TwoSolve, compiled_pairs, recursion, second_right_side
from structmat.functional.preconditioners import chan, strang
from structmat.functional.toeplitz import cyclic_geometry, toeplitz_geometry, toeplitz_product

__all__ = ["Record", "TwoSolve", "norm_bound", "pair_error", "right_sides", "solve_rows", "two_solve"]

_TARGET = 20 * torch.finfo(torch.float64).eps  # refinement goes on above this backward error, if it still gains


@dataclasses.dataclass
class Record:
    """What a solve did, and what it may be told: filled in by the solver, read by the caller."""

    method: str = "auto"
    definite: bool = False
    symmetric: bool = False
    target: float = _TARGET
    precondition: Apply | None = None
    start: torch.Tensor | None = None
    max_steps: int | None = None
    callback: Callable[[int, float], None] | None = None
    known: TwoSolve | None = None  # a factorisation to use in place of a new one
    used: str = ""
    steps: int = 0
    backward_error: torch.Tensor | None = None
    reasons: list[str] = dataclasses.field(default_factory=list)


def solve_rows(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    """Rows y with ``T y = b``: t ``(*batch, 2n - 1)``, b ``(*batch, k, n)``; result in float64 (complex128)."""
    common = torch.promote_types(torch.promote_types(t.dtype, b.dtype), torch.float64)
    t, b = t.to(common), b.to(common)
    if not backend.transforming() and not (torch.is_grad_enabled() and (t.requires_grad or b.requires_grad)):
        return _Solve.forward(t, b, record)  # nothing to record
    result: torch.Tensor = _Solve.apply(t, b, record)
    return result


def two_solve(
    t: torch.Tensor, symmetric: bool, determinant: bool = False
) -> tuple[TwoSolve, torch.Tensor, torch.Tensor, list[str]]:
    """The pair (x, z) by Levinson, with sign and log|det| (NaN unless asked for), and notes. Where a leading minor
    is singular to working precision the diagonal is shifted by ``1e-8 max|t|`` for the recursion only; refinement
    then removes the shift from x and z."""
    flat = t.reshape(-1, t.shape[-1])
    host = flat.detach().cpu().resolve_conj().numpy()
    right = second_right_side(host)
    march = recursion if determinant else compiled_pairs
    f, y, sign, logabs = march(host, right, symmetric)
    x, z = (torch.from_numpy(v).reshape(*t.shape[:-1], -1).to(t.device) for v in (f, y))
    notes: list[str] = []
    pair = _improve(t, x, z)
    good = _good(t, pair)
    if not bool(good.all()):
        notes.append("a leading minor is nearly singular: shifted diagonal, then refined")
        shifted = host.copy()
        shifted[:, (host.shape[1] - 1) // 2] += 1e-8 * abs(host).max(1)
        f, y, _, _ = march(shifted, right, symmetric)
        x, z = (torch.from_numpy(v).reshape(*t.shape[:-1], -1).to(t.device) for v in (f, y))
        other = _improve(t, x, z, rounds=6)
        take = (~good & _good(t, other))[..., None]  # each matrix of the batch keeps the pair that serves it
        pair = (torch.where(take, other[0], pair[0]), torch.where(take, other[1], pair[1]))
    shape = t.shape[:-1]
    logs = _tensor(logabs, shape, t.device)
    logs = torch.where(
        good, logs, torch.full_like(logs, torch.nan)
    )  # pivots that cannot be trusted give no determinant
    return TwoSolve(*pair), _tensor(sign, shape, t.device), logs, notes


def _tensor(values: Any, shape: torch.Size, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).reshape(shape).to(device)


def right_sides(t: torch.Tensor) -> torch.Tensor:
    """The two systems that define the inverse: rows ``e_0`` and ``c``."""
    n = (t.shape[-1] + 1) // 2
    unit = torch.zeros(*t.shape[:-1], n, dtype=t.dtype, device=t.device)
    unit[..., 0] = 1
    return torch.stack((unit, second_right_side(t)), -2)


def _improve(t: torch.Tensor, x: torch.Tensor, z: torch.Tensor, rounds: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Refine the pair with the inverse it defines, keeping the better of each step."""
    right = right_sides(t)
    pair = torch.stack((x, z), -2)
    best = _eta(t, pair, right)
    for _ in range(rounds):
        if not bool((best > _TARGET).any()):
            break
        residual = right - _multiply(t, pair)
        new = pair + TwoSolve(pair[..., 0, :], pair[..., 1, :]).solve_rows(residual)
        eta = _eta(t, new, right)
        better = (eta.amax(-1) < best.amax(-1))[..., None, None]  # both or neither: the pair belongs together
        if not bool(better.any()):
            break
        pair, best = torch.where(better, new, pair), torch.where(better[..., 0], eta, best)
    return pair[..., 0, :], pair[..., 1, :]


def pair_error(t: torch.Tensor, inverse: TwoSolve) -> torch.Tensor:
    """The backward errors of the two systems that define the pair, ``(*batch, 2)``."""
    return _eta(t, torch.stack((inverse.x, inverse.z), -2), right_sides(t))


def _good(t: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Which matrices of the batch have an accurate pair (NaN is not)."""
    eta = _eta(t, torch.stack(pair, -2), right_sides(t))
    return (eta <= 100 * torch.finfo(torch.float64).eps).all(-1)


def _multiply(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return toeplitz_product(t, x, (t.shape[-1] + 1) // 2)


def norm_bound(t: torch.Tensor) -> torch.Tensor:
    """The largest modulus of the spectrum of the circulant that T is embedded in: an upper bound of ``||T||_2``."""
    n = (t.shape[-1] + 1) // 2
    return fourier.spectrum(t, toeplitz_geometry(n, n)).abs().amax(-1)


def _eta(t: torch.Tensor, y: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    size = norm_bound(t)[..., None] * torch.linalg.vector_norm(y, dim=-1) + torch.linalg.vector_norm(b, dim=-1)
    size = size.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.linalg.vector_norm(b - _multiply(t, y), dim=-1) / size


# -- the choice of method -----------------------------------------------------------------------------------------


def _run(t: torch.Tensor, b: torch.Tensor, record: Record) -> torch.Tensor:
    """Definite: conjugate gradients with Strang's, then T. Chan's circulant; else Levinson, the two-solve inverse,
    refinement."""
    if record.known is None and (record.method == "cg" or (record.method == "auto" and record.definite)):
        for name, apply in _preconditioners(t, record):
            outcome = _pcg(t, b, apply, record)
            record.steps += outcome.steps
            if outcome.converged or (record.method == "cg" and name == "given"):
                record.used = f"cg, {name} preconditioner"
                record.backward_error = _eta(t, outcome.x, b) if outcome.eta is None else outcome.eta
                return outcome.x
            record.reasons.append(f"cg with {name} preconditioner did not converge in {outcome.steps} steps")
        if record.method == "cg":
            record.used, record.backward_error = "cg", _eta(t, outcome.x, b)
            return outcome.x
    if record.known is None:
        inverse, _, _, notes = two_solve(t, record.symmetric)
        record.reasons += notes
        record.known = inverse
    record.used = "levinson"
    return _refined(t, b, record.known, record)


def _refined(t: torch.Tensor, b: torch.Tensor, inverse: TwoSolve, record: Record) -> torch.Tensor:
    y = inverse.solve_rows(b)
    eta = _eta(t, y, b)
    for _ in range(4):
        if not bool((eta > _TARGET).any()):
            break
        new = y + inverse.solve_rows(b - _multiply(t, y))
        eta_new = _eta(t, new, b)
        better = eta_new < eta
        if not bool(better.any()):
            break
        y, eta = torch.where(better[..., None], new, y), torch.where(better, eta_new, eta)
        record.steps += 1
    record.backward_error = eta
    return y


def _preconditioners(t: torch.Tensor, record: Record) -> Iterator[tuple[str, Apply]]:
    """One after the other: the second is formed only if the first failed."""
    if record.precondition is not None:
        yield "given", record.precondition
        return
    n = (t.shape[-1] + 1) // 2
    geometry, real = cyclic_geometry(n), not t.is_complex()
    for name, column in (("Strang", strang), ("T. Chan", chan)):
        lam = fourier.spectrum(column(t), geometry).real  # Hermitian: real eigenvalues, and half of them tell all
        least, most = torch.aminmax(lam, dim=-1)
        if bool((least > torch.finfo(torch.float64).eps ** 0.5 * most).all()):
            inverse = (1 / lam)[..., None, :]
            yield name, fourier.Multiplier(inverse if real else inverse.to(t.dtype), geometry, real)
        else:
            record.reasons.append(f"{name}'s circulant is not safely positive definite")


def _pcg(t: torch.Tensor, b: torch.Tensor, apply: Apply, record: Record) -> Outcome:
    n = (t.shape[-1] + 1) // 2
    geometry = toeplitz_geometry(n, n)
    hat, real = fourier.spectrum(t, geometry)[..., None, :], not t.is_complex()
    steps = record.max_steps if record.max_steps is not None else 100
    sigma = hat.real.abs().amax((-2, -1))  # the spectrum of a Hermitian matrix is real
    multiply = fourier.Multiplier(hat, geometry, real)
    return conjugate_gradients(multiply, apply, b, sigma, record.target, steps, record.start, record.callback)


# -- derivatives --------------------------------------------------------------------------------------------------


class _Solve(torch.autograd.Function):
    """``T^-1 b`` with explicit derivatives of every mode; batches under vmap are batches of the solver."""

    @staticmethod
    def forward(t: Any, b: Any, record: Record) -> Any:
        batch = torch.broadcast_shapes(t.shape[:-1], b.shape[:-2]) if t.ndim > 1 else b.shape[:-2]
        with backend.full_precision(t.device):
            return _run(t, b.expand(*batch, *b.shape[-2:]), record)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        t, b, record = inputs
        ctx.record = record
        ctx.save_for_backward(t, b, output)
        ctx.save_for_forward(t, b, output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        t, b, y = ctx.saved_tensors
        n = y.shape[-1]
        adjoint = solve_rows(t.flip(-1).conj(), grad, _adjoint(ctx.record))
        gt = -fourier.correlate(y, adjoint, toeplitz_geometry(n, n), (*y.shape[:-2], 1))[..., 0, :]
        return gt.sum_to_size(t.shape), adjoint.sum_to_size(b.shape), None

    @staticmethod
    def jvp(ctx: Any, dt: Any, db: Any, _: Any) -> Any:
        t, _, y = ctx.saved_tensors
        right = torch.zeros_like(y) if db is None else db.expand(y.shape)
        if dt is not None:
            right = right - _multiply(dt, y)
        return solve_rows(t, right, dataclasses.replace(ctx.record, start=None, callback=None, reasons=[]))

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, b: Any, record: Record) -> Any:
        t = t.expand(info.batch_size, *t.shape) if in_dims[0] is None else t.movedim(in_dims[0], 0)
        b = b.expand(info.batch_size, *b.shape) if in_dims[1] is None else b.movedim(in_dims[1], 0)
        extra = (b.ndim - 2) - (t.ndim - 1)  # align the batch axes behind the new one
        t = t.reshape(t.shape[0], *(1,) * max(extra, 0), *t.shape[1:])
        b = b.reshape(b.shape[0], *(1,) * max(-extra, 0), *b.shape[1:])
        fresh = dataclasses.replace(record, known=None, start=None, reasons=[])
        return solve_rows(t, b, fresh), 0


def _adjoint(record: Record) -> Record:
    """T^H has the same pair, read backwards: ``T^-H = conj(J T^-1 J)``."""
    known = None
    if record.known is not None:
        known = _Adjoint(record.known)
    return dataclasses.replace(record, known=known, start=None, callback=None, reasons=[], steps=0)


class _Adjoint(TwoSolve):
    """The inverse of T^H out of that of T."""

    def __init__(self, inner: TwoSolve) -> None:
        self.inner = inner
        self.x, self.z = inner.x, inner.z

    def solve_rows(self, b: torch.Tensor) -> torch.Tensor:
        return self.inner.solve_transposed_rows(b.conj()).conj().resolve_conj()

    def solve_transposed_rows(self, b: torch.Tensor) -> torch.Tensor:
        return self.solve_rows(b.flip(-1)).flip(-1)
