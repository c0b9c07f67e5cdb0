"""Determinants of square Toeplitz matrices from Levinson's pivots or those of elimination; their gradient from
diagonal sums of the inverse.

Levinson's pivots are right where the recursion is: where the pair it ends with has, unrefined, a backward error of
rounding size. Elsewhere a second recursion with 1.1 T, whose rounding errors are others, tells how many of their digits
hold: they are taken if both agree within ``10 n eps kappa``, with lower bounds for the norms in kappa. What is left
goes to elimination with partial pivoting (``16 n^2`` bytes above the dense limit). From order 16,384 on the superfast
factorisation comes first, whose determinant carries a measured error.

The derivative of ``log|det T|`` in t_k is the conjugated sum of the diagonal ``-k`` of T^-1: O(n log n) from the
two-solve pair, after three solves with the factorisation of the forward pass.
"""

import dataclasses
import math
from typing import Any

import torch

from structmat import backend
from structmat.functional import fourier, gko, superfast
from structmat.functional.implicit import Solver
from structmat.functional.toeplitz import toeplitz_entries, toeplitz_geometry
from structmat.functional.toeplitz_pair import Kept, best_pair, levinson_pair
from structmat.functional.toeplitz_policy import ELIMINATED, Record, superfast_pays
from structmat.functional.toeplitz_solve import solve_rows
from structmat.functional.toeplitz_system import ACCEPTED, System, generators, right_sides
from structmat.functional.two_solve import TwoSolve

__all__ = ["diagonal_sums_of_inverse", "slogdet"]

_EPS = torch.finfo(torch.float64).eps
_OTHER = 1.1  # the scale of the second recursion


@dataclasses.dataclass
class _Job:
    """What the Function needs besides t, and what its forward pass leaves for the backward pass."""

    mirror: str | None
    keep: bool
    known: Solver | None = None


def slogdet(t: torch.Tensor, mirror: str | None, known: Solver | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign (or phase) and ``log|det T|`` for t ``(*batch, 2n - 1)``, in float64 (complex128); ``mirror`` is
    "symmetric", "hermitian" or None, ``known`` a solver of the flattened batch. NaN where no method can be trusted."""
    wide = t.to(torch.promote_types(t.dtype, torch.float64))
    job = _Job(
        mirror, known is None and (backend.transforming() or (torch.is_grad_enabled() and t.requires_grad)), known
    )
    result: tuple[torch.Tensor, torch.Tensor] = _Slogdet.apply(wide, job)
    return result


def diagonal_sums_of_inverse(t: torch.Tensor, mirror: str | None, known: Solver | None = None) -> torch.Tensor:
    """``s_k = sum_{i-j=k} (T^-1)_{ij}``, k from -(n-1) to n-1, in O(n log n) after three solves; differentiable.

    From the displacement ``Z_{-1} A - A Z_1 = G H^T`` of A = T^-1 with G = [-x, -z], H = [J (2 e_0 - z), J x]: along a
    diagonal ``A_{i,j+1} = A_{i-1,j} - (G H^T)_{ij}``, summed with weights. The first row of A is ``J A e_{n-1}``.
    """
    n = (t.shape[-1] + 1) // 2
    first, c = right_sides(t).unbind(-2)
    x, z, last = solve_rows(t, torch.stack((first, c, first.flip(-1)), -2), Record(mirror=mirror, known=known)).unbind(
        -2
    )
    row = last.flip(-1)
    g = torch.stack((-x, -z), -2)
    h = torch.stack(((2 * first - z).flip(-1), x.flip(-1)), -2)
    down = torch.arange(n, dtype=torch.float64, device=t.device)
    ones = torch.ones_like(down)
    inner_g, inner_h = ones.clone(), ones.clone()
    inner_g[0], inner_h[n - 1] = 0, 0  # i >= 1 and j <= n - 2
    geometry, batch = toeplitz_geometry(n, n), (*t.shape[:-1], 1)
    low = fourier.correlate((h * inner_h).conj(), g * inner_g * (n - down), geometry, batch)[..., 0, :]
    high = fourier.correlate((h * inner_h * (n - 1 - down)).conj(), g * inner_g, geometry, batch)[..., 0, :]
    nothing = torch.zeros_like(x[..., :1])
    lower = (n - down) * x - torch.cat((low[..., n:], nothing), -1)  # k = 0 .. n-1 takes i - j = k + 1
    upper = (n - down[1:]) * row[..., 1:] - high[..., 1:n].flip(-1)[..., : n - 1]  # s = 1 .. n-1 takes j - i = s - 1
    return torch.cat((upper.flip(-1), lower), -1)


# -- values -------------------------------------------------------------------------------------------------------


def _values(t: torch.Tensor, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and logarithm for t ``(B, 2n - 1)``; leaves the refined pair in the job where that is wanted."""
    system = System(t)
    if not len(t) or not superfast_pays(system.n):
        return _by_recursion(system, job)
    found = superfast.find(system, determinant=True)
    sign, logabs = found.trusted_determinant(system)
    if job.keep and bool((found.eta <= ACCEPTED).all()):
        job.known, job.keep = Kept(((None, found.pair),)), False
    bad = torch.nonzero(torch.isnan(logabs))[:, 0]
    if len(bad):
        job.keep = job.keep and len(bad) == len(t)
        sign[bad], logabs[bad] = _by_recursion(system.take(bad), job)
    return sign, logabs


def _by_recursion(system: System, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
    t = system.t
    raw, pivots = levinson_pair(system, job.mirror)
    sign, logabs = _of_pivots(pivots)
    eta = system.eta(torch.stack((raw.x, raw.z), -2), right_sides(t)).amax(-1)
    trusted = eta <= ACCEPTED
    if job.keep or not bool(trusted.all()):
        pair, reached, _ = best_pair(system, job.mirror, ELIMINATED, raw)
        if job.keep and bool((reached <= ACCEPTED).all()):
            job.known = Kept(((None, pair),))
        doubtful = torch.nonzero(~trusted & torch.isfinite(logabs))[:, 0]
        if len(doubtful):
            trusted[doubtful] = _agree(system.take(doubtful), job.mirror, pair, doubtful, sign, logabs)
    bad = torch.nonzero(~trusted)[:, 0]
    for k in bad.tolist():  # one by one: 16 n^2 bytes each
        one = slice(k, k + 1)
        sign[one], logabs[one] = _eliminated(t[one])
    return sign, logabs


def _of_pivots(pivots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.prod(torch.sgn(pivots), -1), torch.log(pivots.abs()).sum(-1)


def _agree(
    system: System, mirror: str | None, pair: TwoSolve, index: torch.Tensor, sign: torch.Tensor, logabs: torch.Tensor
) -> torch.Tensor:
    """Whether a second recursion confirms sign and logarithm of the matrices of these numbers."""
    pivots = levinson_pair(System(_OTHER * system.t), mirror)[1]
    other, logs = _of_pivots(pivots)
    gap = (logs - system.n * math.log(_OTHER) - logabs[index]).abs() + (other - sign[index]).abs()
    inverse = TwoSolve(pair.x[index], pair.z[index])
    v = torch.randn(1, system.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v.to(system.t.device, system.t.dtype).expand(len(index), 1, system.n)
    for _ in range(3):  # power iteration with T^-H T^-1: a lower bound of ||T^-1||
        v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        w = inverse.solve_rows(v)
        v = inverse.adjoint().solve_rows(w)
    kappa = torch.linalg.vector_norm(w, dim=-1)[:, 0] * torch.linalg.vector_norm(system.t[:, system.n - 1 :], dim=-1)
    return gap <= 10 * system.n * _EPS * kappa


def _eliminated(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = (t.shape[-1] + 1) // 2
    if n <= backend.dense_limit(t.device):
        sign, logabs = torch.linalg.slogdet(toeplitz_entries(t, n))
        return sign, logabs
    if n > ELIMINATED:
        return torch.full_like(t[:, 0], torch.nan), torch.full_like(t[:, 0].abs(), torch.nan)
    return gko.factor(*generators(t), 1, -1).slogdet()


# -- derivatives --------------------------------------------------------------------------------------------------


class _Slogdet(torch.autograd.Function):
    @staticmethod
    def forward(t: Any, job: _Job) -> Any:
        with torch.no_grad():
            sign, logabs = _values(t.reshape(-1, t.shape[-1]), job)
        shape = t.shape[:-1]
        return sign.to(t.dtype).reshape(shape).clone(), logabs.to(torch.float64).reshape(shape).clone()  # no views

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job = inputs[1]
        ctx.save_for_backward(inputs[0], output[0])
        ctx.save_for_forward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, grad_sign: Any, grad_log: Any) -> Any:
        t, sign = ctx.saved_tensors
        sums = diagonal_sums_of_inverse(t, ctx.job.mirror, ctx.job.known).flip(-1).conj()
        weight = grad_log.to(t.dtype)
        if t.is_complex():  # d sign = i Im(tr(T^-1 dT)) sign
            weight = weight - 1j * (grad_sign.conj() * sign).imag
        return weight[..., None] * sums, None

    @staticmethod
    def jvp(ctx: Any, dt: Any, _: Any) -> Any:
        t, sign = ctx.saved_tensors
        rate = (diagonal_sums_of_inverse(t, ctx.job.mirror, ctx.job.known).flip(-1) * dt).sum(-1)
        if t.is_complex():
            return 1j * rate.imag * sign, rate.real.clone()
        return torch.zeros_like(sign), rate

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, job: _Job) -> Any:
        return _Slogdet.apply(t.movedim(in_dims[0], 0), dataclasses.replace(job, known=None)), (0, 0)
