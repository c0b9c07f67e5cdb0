"""Minimum residuals for Hermitian, possibly indefinite matrices, on rows, with a positive definite preconditioner.

Source: C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, 1975; with a
preconditioner as in H. Elman, D. Silvester, A. Wathen, Finite Elements and Fast Iterative Solvers, 2005, algorithm 6.1.
"""

import dataclasses

import torch

from structmat.functional.krylov.common import (
    CONFIRMED,
    Apply,
    Callback,
    Outcome,
    begin,
    lift,
    nonzero,
    quotient,
    sizes,
    tell,
)

__all__ = ["minres"]


@dataclasses.dataclass
class _Lanczos:
    """The three-term recurrences of one run: Lanczos vectors, search directions and their images, all per row."""

    v_old: torch.Tensor  # v_(j-1), orthonormal in the inner product of the preconditioner
    v: torch.Tensor
    z: torch.Tensor  # M v
    gamma: torch.Tensor
    d_old: torch.Tensor  # directions of x, and their images under A
    d: torch.Tensor
    ad_old: torch.Tensor
    ad: torch.Tensor
    phi: torch.Tensor
    c_old: torch.Tensor
    c: torch.Tensor
    s_old: torch.Tensor
    s: torch.Tensor

    @classmethod
    def of(cls, r: torch.Tensor, z: torch.Tensor, gamma: torch.Tensor) -> "_Lanczos":
        none, one, zero = torch.zeros_like(r), torch.ones_like(gamma), torch.zeros_like(gamma)
        v, z = r / nonzero(gamma), z / nonzero(gamma)
        return cls(none, v, z, gamma, none, none, none, none, gamma, one, one, zero, zero)


def minres(
    multiply: Apply,
    precondition: Apply,
    b: torch.Tensor,
    sigma: torch.Tensor,
    target: float,
    max_steps: int,
    start: torch.Tensor | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Rows x with ``A x = b`` for Hermitian A (definite or not); b ``(..., k, n)``, sigma a bound of ``||A||_2``.

    Stops as ``conjugate_gradients`` does: each row by its own backward error, confirmed on the true residual. The
    preconditioner must be Hermitian positive definite; where a row shows that it is not, the run ends, not converged.
    Cost: a product and a preconditioner a step; ten vectors a row.
    """
    norm = torch.linalg.vector_norm
    size = norm(b, dim=-1, keepdim=True)
    x, r = begin(multiply, b, start)
    bound = lift(sigma)
    steps, eta = 0, None
    for _ in range(3):
        z = precondition(r)
        square = _dot(r, z)
        if bool((square < 0).any()):
            return Outcome(x, steps, False)
        state = _Lanczos.of(r, z, square.sqrt())
        while True:
            scale, length = sizes(size, bound, x), norm(r, dim=-1, keepdim=True)
            tell(callback, steps, length, scale)
            live = ~(length <= target * scale) & (state.gamma > 0)
            if steps >= max_steps or not bool(live.any()):
                break
            length_of_step = _step(state, multiply, precondition)
            if length_of_step is None:
                return Outcome(x, steps, False)
            tau = torch.where(live, length_of_step, 0)
            x = torch.addcmul(x, tau, state.d)
            r = torch.addcmul(r, tau, state.ad, value=-1)
            steps += 1
        r = b - multiply(x)
        scale, length = sizes(size, bound, x), norm(r, dim=-1, keepdim=True)
        eta = quotient(length, scale)
        if bool((length <= CONFIRMED * target * scale).all()):
            return Outcome(x, steps, True, eta)
        if steps >= max_steps:
            break
    return Outcome(x, steps, False, eta)


def _step(k: _Lanczos, multiply: Apply, precondition: Apply) -> torch.Tensor | None:
    """One step of Lanczos and one rotation: the state moves on, and the length of the step along ``d`` is returned;
    None where the preconditioner is not definite."""
    az = multiply(k.z)
    delta = _dot(k.z, az)
    v_new = az - delta * k.v - k.gamma * k.v_old
    z_new = precondition(v_new)
    square = _dot(v_new, z_new)
    if bool((square < 0).any()) and bool((square < -1e-8 * _size(v_new) * _size(z_new)).any()):
        return None
    gamma_new = square.clamp_min(0).sqrt()
    alpha0 = k.c * delta - k.c_old * k.s * k.gamma
    alpha1 = torch.hypot(alpha0, gamma_new)
    alpha2 = k.s * delta + k.c_old * k.c * k.gamma
    alpha3 = k.s_old * k.gamma
    by = alpha1 > 0  # zero only where the matrix is singular on what was reached: the row stays
    inverse = torch.where(by, 1 / nonzero(alpha1), 0)
    k.d_old, k.d = k.d, (k.z - alpha3 * k.d_old - alpha2 * k.d) * inverse
    k.ad_old, k.ad = k.ad, (az - alpha3 * k.ad_old - alpha2 * k.ad) * inverse
    k.c_old, k.c, k.s_old, k.s = k.c, alpha0 * inverse, k.s, gamma_new * inverse
    tau = k.c * k.phi
    k.phi = -k.s * k.phi
    rest = torch.where(gamma_new > 0, 1 / nonzero(gamma_new), 0)
    k.v_old, k.v, k.z, k.gamma = k.v, v_new * rest, z_new * rest, gamma_new
    return tau


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise ``a^H b``, real for a Hermitian form."""
    return torch.linalg.vecdot(a, b).real[..., None]


def _size(a: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)
