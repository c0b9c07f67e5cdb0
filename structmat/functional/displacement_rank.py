"""Fewer generators: the numerical displacement rank, balanced generators, and what truncation costs.

``N = G H^T`` is replaced by a truncated singular value decomposition through QR of both factors. What is dropped moves
A by ``||A - A'||_F <= distance_factor ||N - N'||_F``, n / pi at most for the operator (1, -1).
Source: V. Y. Pan, Structured Matrices and Polynomials, 2001, section 4.6.2 (truncation of generators).
"""

import torch

__all__ = ["balanced", "generator_condition", "singular_values", "skeleton", "truncated"]

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _decomposed(left: torch.Tensor, right: torch.Tensor) -> Factors:
    """``G H^T = U diag(s) V^H`` and nothing of n^2: U, V ``(*b, n, min(n, r))``."""
    q1, r1 = torch.linalg.qr(left)
    q2, r2 = torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(r1 @ r2.mT, full_matrices=False)
    return q1 @ u, s, q2.conj() @ vh.mH, torch.linalg.matrix_norm(r1) * torch.linalg.matrix_norm(r2)


def singular_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The nonzero singular values of ``G H^T``, ``(*b, min(n, r))``, descending."""
    return torch.linalg.svdvals(torch.linalg.qr(left)[1] @ torch.linalg.qr(right)[1].mT)


def generator_condition(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``kg = ||G||_F ||H||_F / ||G H^T||_F >= 1``: errors of all algebra grow with it; balanced generators have at most
    sqrt(r) kg of the best. Infinite where ``G H^T`` vanishes and the generators do not."""
    r1, r2 = torch.linalg.qr(left)[1], torch.linalg.qr(right)[1]
    size = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    return torch.where(size == 0, torch.ones_like(size), size / torch.linalg.matrix_norm(r1 @ r2.mT))


def balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``G' = U s^{1/2}, H' = conj(V) s^{1/2}``: the same product, orthogonal columns of equal size in both; what lies
    below the rounding of ``G H^T`` itself is dropped. No gradients."""
    u, s, v, size = _decomposed(left, right)
    noise = torch.finfo(s.dtype).eps * size[..., None]
    keep = max(1, int((s > noise).sum(-1).max()))
    root = torch.where(s > noise, s, torch.zeros_like(s))[..., None, :keep].sqrt().to(u.dtype)
    return u[..., :keep] * root, (v[..., :keep].conj() * root).resolve_conj()


def truncated(
    left: torch.Tensor, right: torch.Tensor, allowed: torch.Tensor | None
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The least k with ``||N - N_k||_F <= allowed`` for each matrix of the batch, U_k, V_k and the tails
    ``(sum_{i >= k} s_i^2)^{1/2}`` ``(*b)``.

    ``allowed=None``: singular values ``<= n eps s_0`` and the rounding of the product itself count as zero.
    """
    u, s, v, size = _decomposed(left.detach(), right.detach())
    tails = torch.flip(torch.cumsum(torch.flip(s**2, (-1,)), -1), (-1,)).sqrt()
    tails = torch.cat((tails, torch.zeros_like(size[..., None])), -1)  # tails[k]: what is lost by keeping k
    if allowed is None:
        eps = torch.finfo(s.dtype).eps
        floor = torch.maximum(left.shape[-2] * eps * s[..., :1], eps * size[..., None])
        keep = int((s > floor).sum(-1).max()) if s.numel() else 0
    else:
        keep = int((tails > allowed[..., None]).sum(-1).max()) if s.numel() else 0
    return keep, u[..., :keep], v[..., :keep], tails[..., keep]


def skeleton(
    left: torch.Tensor, right: torch.Tensor, u: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generators of ``N V (U^H N V)^{-1} U^H N``, N = G H^T, with bases U, V ``(*b, n, k)`` held fixed.

    With singular bases it is the truncated decomposition, balanced; and where N has rank k exactly its derivative
    in N is that of N itself along matrices of rank k, without a division by gaps between singular values.
    """
    pulled = left @ (right.mT @ v)  # N V
    pushed = (u.mH @ left) @ right.mT  # U^H N
    core = u.mH @ pulled  # diagonal up to rounding
    root = torch.diagonal(core.detach(), dim1=-2, dim2=-1).abs().sqrt()
    inverse = torch.linalg.solve(core, pushed)
    return pulled / root[..., None, :], (root[..., :, None] * inverse).mT
