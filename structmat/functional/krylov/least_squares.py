"""Least squares ``min ||A x - b||`` on rows: conjugate gradients of the normal equations, and LSMR.

Both need products with A and with A^H only, and a Hermitian positive definite preconditioner ``M ~ (A^H A)^-1``. From
a zero start and without a preconditioner the result is the solution of least norm.

A row stops when its backward error, the smaller of the two that follow, meets the target: of a system that has a
solution ``||r|| / (sigma ||x|| + ||b||)``, of any other ``||A^H r|| / (sigma ||r||)`` (G. W. Stewart, Research,
development, and LINPACK, 1977). Of that numerator ``4 eps sigma (sigma ||x|| + ||b||)`` is not counted where r is
measured: so much its rounding leaves, and nothing below it can be seen. Recursive residuals go below it, and are
followed to a hundredth of eps.
"""

from collections.abc import Callable

import torch

from structmat.functional.krylov.common import CONFIRMED, Apply, Callback, Outcome, lift, nonzero, sizes, tell

__all__ = ["cgls", "lsmr"]

_FLOOR = 4  # times eps: the rounding of a measured residual
_DEEP = 0.01  # times eps: where a recursive residual says no more
_EVERY = 5  # with a preconditioner LSMR measures ||A^H r|| itself, at every fifth step

Error = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _size(a: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def _judge(b: torch.Tensor, sigma: torch.Tensor, floor: float) -> Error:
    """``(x, r, ||A^H r||) -> eta`` per row ``(..., k, 1)``; ``floor`` times eps of the gradient is not counted."""
    size, bound = _size(b), lift(sigma)
    floor = floor * torch.finfo(size.dtype).eps

    def error(x: torch.Tensor, r: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        scale, length = sizes(size, bound, x), _size(r)
        counted = (gradient - floor * bound * scale).clamp_min(0) / nonzero(bound * length)
        normal = torch.maximum(counted, gradient / nonzero(bound * scale))
        return torch.minimum(length / nonzero(scale), normal)

    return error


def _run(
    iterate: Callable[..., tuple[torch.Tensor, int]],
    multiply: Apply,
    adjoint: Apply,
    b: torch.Tensor,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None,
    columns: int,
) -> Outcome:
    """Up to three rounds of a method, each from the measured residual of the last: refinement, where recursive and
    true residuals have drifted apart."""
    error, within = _judge(b, sigma, _FLOOR), _judge(b, sigma, _DEEP)
    x, r = b.new_zeros(*b.shape[:-1], columns), b
    if start is not None:
        x = x + start.to(b.dtype)
        r = b - multiply(x)
    steps, eta = 0, error(x, r, _size(adjoint(r)))
    for _ in range(3):
        if steps >= max_steps or bool((eta <= target).all()):
            break
        x_new, taken = iterate(x, r, ~(eta <= target), within, steps)
        steps += taken
        r_new = b - multiply(x_new)
        eta_new = error(x_new, r_new, _size(adjoint(r_new)))
        better = eta_new < eta
        if not bool(better.any()):
            break
        x, r, eta = torch.where(better, x_new, x), torch.where(better, r_new, r), torch.where(better, eta_new, eta)
    return Outcome(x, steps, bool((eta <= CONFIRMED * target).all()), eta[..., 0])


def cgls(
    multiply: Apply,
    adjoint: Apply,
    precondition: Apply,
    b: torch.Tensor,
    columns: int,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Rows x ``(..., k, columns)`` that minimise ``||A x - b||``, by conjugate gradients of ``A^H A x = A^H b``.

    ``multiply(x) = x A^T``, ``adjoint(y) = y conj(A)``, ``precondition`` applies ``M ~ (A^H A)^-1``. Cost: a product,
    an adjoint product and a preconditioner a step; six vectors a row. Its error grows with the square of the
    condition number earlier than LSMR's.
    Source: A. Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1.
    """

    def iterate(
        x: torch.Tensor, r: torch.Tensor, live: torch.Tensor, error: Error, before: int
    ) -> tuple[torch.Tensor, int]:
        s = adjoint(r)
        p = z = precondition(s)
        gamma = _dot(s, z)
        taken = 0
        while before + taken < max_steps:
            q = multiply(p)
            square = _dot(q, q)
            alpha = torch.where(live & (square > 0), gamma / nonzero(square), 0)
            x, r = torch.addcmul(x, alpha, p), torch.addcmul(r, alpha, q, value=-1)
            s = adjoint(r)
            taken += 1
            eta = error(x, r, _size(s))
            tell(callback, before + taken, eta, torch.ones_like(eta))
            live = live & ~(eta <= target) & (square > 0)
            if not bool(live.any()):
                break
            z = precondition(s)
            new = _dot(s, z)
            p = torch.addcmul(z, new / nonzero(gamma), p)
            gamma = new
        return x, taken

    return _run(iterate, multiply, adjoint, b, sigma, target, max_steps, start, columns)


def lsmr(
    multiply: Apply,
    adjoint: Apply,
    precondition: Apply | None,
    b: torch.Tensor,
    columns: int,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Rows x ``(..., k, columns)`` that minimise ``||A x - b||``, by MINRES of the normal equations on Golub-Kahan
    vectors: ``||A^H r||`` never grows.

    Arguments as ``cgls``; a preconditioner enters as the inner product of the right vectors, and the backward error
    is then measured, and told to the callback, at every fifth step. Cost: a product, an
    adjoint product and a preconditioner a step; nine vectors a row.
    Source: D. C.-L. Fong and M. Saunders, LSMR: an iterative algorithm for sparse least-squares problems, 2011; with a
    preconditioner: M. Arioli and D. Orban, Iterative Solution of Symmetric Quasi-Definite Linear Systems, 2017, 4.
    """

    def iterate(
        x: torch.Tensor, r: torch.Tensor, live: torch.Tensor, error: Error, before: int
    ) -> tuple[torch.Tensor, int]:
        u, beta = _unit(r)
        v, z, alpha = _right(adjoint(u), precondition)
        h = ah = hbar = ahbar = None
        rho = rhobar = cbar = torch.ones_like(beta)
        theta = sbar = torch.zeros_like(beta)
        alphabar, zetabar, taken = alpha, alpha * beta, 0
        while before + taken < max_steps and bool((live & (alpha > 0)).any()):
            az = multiply(z)
            h, ah = (z, az) if h is None or ah is None else (z - theta / rho * h, az - theta / rho * ah)
            u, beta = _unit(az - alpha * u)
            v, z, alpha_new = _right(adjoint(u) - beta * v, precondition)
            rho_old, rho = rho, nonzero(torch.hypot(alphabar, beta))
            c, s = alphabar / rho, beta / rho
            theta, alphabar = s * alpha_new, c * alpha_new
            thetabar, rhobar_old = sbar * rho, rhobar
            rhobar = nonzero(torch.hypot(cbar * rho, theta))
            cbar, sbar = cbar * rho / rhobar, theta / rhobar
            zeta, zetabar = cbar * zetabar, -sbar * zetabar
            back = thetabar * rho / (rho_old * rhobar_old)
            hbar, ahbar = (h, ah) if hbar is None or ahbar is None else (h - back * hbar, ah - back * ahbar)
            tau = torch.where(live, zeta / (rho * rhobar), 0)
            x, r = torch.addcmul(x, tau, hbar), torch.addcmul(r, tau, ahbar, value=-1)
            alpha, taken = alpha_new, taken + 1
            if precondition is None or taken % _EVERY == 0:
                eta = error(x, r, zetabar.abs() if precondition is None else _size(adjoint(r)))
                tell(callback, before + taken, eta, torch.ones_like(eta))
                live = live & ~(eta <= target)
        return x, taken

    return _run(iterate, multiply, adjoint, b, sigma, target, max_steps, start, columns)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a, b).real[..., None]


def _unit(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = _size(a)
    return a / nonzero(length), length


def _right(v: torch.Tensor, precondition: Apply | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The next right vector v, its preconditioned self z, both over ``sqrt(v^H z)``, and that number."""
    if precondition is None:
        v, length = _unit(v)
        return v, v, length
    z = precondition(v)
    length = _dot(v, z).clamp_min(0).sqrt()
    return v / nonzero(length), z / nonzero(length), length
