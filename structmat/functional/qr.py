"""Householder QR that keeps the reflectors: ``A = H_1 ... H_k R``, R ``(m, n)`` upper triangular, k = min(m, n).

LAPACK's conventions: the diagonal of R is real, of the sign opposite to (the real part of) the pivot it replaces, and
``H_i = I - tau_i v_i v_i^H`` with ``v_i = (0, .., 0, 1, *)``. ``phases`` is the form of tau that keeps H_i unitary
whatever the rounding of v_i: ``tau v^H v = 1 - exp(i phi)``.

Where gradients are asked for, the reflectors are made one by one in differentiable operations; else ``torch.geqrf``
makes them. Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 5.2.2; LAPACK's xGEQRF.
"""

import torch

from structmat import backend

__all__ = ["from_lapack", "householder_qr"]

Factors = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


def from_lapack(a: torch.Tensor, tau: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Vectors ``(*b, k, m)`` and phases ``(*b, k)`` (None for real) out of what ``torch.geqrf`` returns: a ``(*b, m,
    n)``, tau ``(*b, k)``. A zero tau is the identity: its vector is zero."""
    k = tau.shape[-1]
    below = torch.tril(a[..., :k], -1)
    unit = torch.eye(a.shape[-2], k, dtype=a.dtype, device=a.device)
    vectors = (below + unit).mT * (tau != 0)[..., None].to(a.dtype)
    if not a.is_complex():
        return vectors, None
    squares = (vectors.abs() ** 2).sum(-1)
    return vectors, torch.angle(1 - tau * squares)


def householder_qr(a: torch.Tensor) -> Factors:
    """``(vectors, phases, R)`` of a ``(*b, m, n)``; half and bfloat16 are computed in float32.

    Cost: ``2 n^2 (m - n/3)`` flops. Differentiable to any order where the columns are linearly independent.
    """
    wide = a.to(backend.compute_dtype(a.dtype))
    with backend.full_precision(a.device):
        recorded = (a.requires_grad and torch.is_grad_enabled()) or not backend.eager(a)
        vectors, phases, r = _columns(wide) if recorded else _lapack(wide)
    real = backend.real_of(a.dtype)
    return vectors.to(a.dtype), None if phases is None else phases.to(real), r.to(a.dtype)


def _lapack(a: torch.Tensor) -> Factors:
    if 0 in a.shape:
        return _columns(a)
    packed, tau = torch.geqrf(a)
    return *from_lapack(packed, tau), torch.triu(packed)


def _columns(a: torch.Tensor) -> Factors:
    """One reflector a column, each applied to what is left."""
    m, n = a.shape[-2:]
    vectors, taus, rest = [], [], a
    for k in range(min(m, n)):
        live = torch.arange(m, device=a.device) >= k
        x = rest[..., :, k] * live
        pivot = x[..., k]
        below = torch.cat((torch.zeros_like(x[..., : k + 1]), x[..., k + 1 :]), -1)
        nothing = (below == 0).all(-1)  # then, for a real pivot, H_k = I
        if a.is_complex():
            nothing = nothing & (pivot.imag == 0)
        size = torch.linalg.vector_norm(torch.where(nothing[..., None], torch.ones_like(x), x), dim=-1)
        alpha = pivot.real if a.is_complex() else pivot
        beta = torch.where(alpha < 0, size, -size)  # real, of the sign opposite to the pivot's
        unit = torch.nn.functional.one_hot(torch.tensor(k, device=a.device), m).to(a.dtype)
        v = unit + below / torch.where(nothing, torch.ones_like(pivot), pivot - beta)[..., None]
        tau = torch.where(nothing, torch.zeros_like(pivot), (beta - pivot) / beta)
        v = torch.where(nothing[..., None], torch.zeros_like(v), v)
        rest = rest - tau.conj()[..., None, None] * v[..., :, None] * (v.conj()[..., None, :] @ rest)
        vectors.append(v)
        taus.append(tau)
    rows = torch.stack(vectors, -2) if vectors else a.new_zeros(*a.shape[:-2], 0, m)
    if not a.is_complex():
        return rows, None, torch.triu(rest)
    tau = torch.stack(taus, -1) if taus else a.new_zeros(*a.shape[:-2], 0)
    return rows, torch.angle(1 - tau * (rows.abs() ** 2).sum(-1)), torch.triu(rest)
