"""Tucker approximations of a dense tensor, with the error made and a bound of the best.

With orthonormal factors and the core ``T x_1 U_1^H ... x_N U_N^H`` the approximation is the orthogonal projection of T,
and its error is exactly ``err^2 = sum_k tail_k^2`` over the parts that each projection in turn removes. For the
truncated (HOSVD) and the sequentially truncated (ST-HOSVD) singular value decomposition

    max_k tail_k <= best <= err <= sqrt(sum_k tail_k(T)^2) <= sqrt(N) best.

Subspaces are computed from values: factors carry no gradient, the core does. float32 is decomposed through Gram
matrices in float64 (in float32 they would lose half the digits: 4.5e-5 instead of 1e-6 for a tensor of exact rank).

References: L. De Lathauwer, B. De Moor, J. Vandewalle, A multilinear singular value decomposition, 2000, property 10;
N. Vannieuwenhoven, R. Vandebril, K. Meerbergen, A new truncation strategy for the higher-order singular value
decomposition, 2012, theorems 5.1 and 6.5; N. Halko, P.-G. Martinsson, J. A. Tropp, Finding structure with
randomness, 2011.
"""

from typing import NamedTuple

import torch

from structmat.functional.tucker import Factors, Sizes, mode_product, unfolding

__all__ = ["METHODS", "Found", "decompose", "leading", "norm_of", "project", "singular_values"]

METHODS = ("st_hosvd", "hosvd", "hooi", "randomised")
_MORE, _POWERS = 8, 1  # columns beyond the rank, and power steps, of the randomised range finder
_STILL = 1e-6  # a sweep that raises the norm of the core by less than this fraction is the last


class Found(NamedTuple):
    """Core and orthonormal factors; ``tails (N, *batch)`` in the order of the modes; ``lower`` bounds the error of any
    tensor of these ranks from below (None where nothing is known); the number of sweeps."""

    core: torch.Tensor
    factors: Factors
    tails: torch.Tensor
    lower: torch.Tensor | None
    sweeps: int


def leading(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All left singular vectors ``(*batch, m, min(m, n))`` and singular values, descending.

    float32 and complex64 through the Gram matrix in double precision (values below 1e-8 of the largest are noise);
    double precision through the QR of the longer side and the SVD of its small factor.
    """
    m, n = matrix.shape[-2:]
    if m > n:  # the SVD of the triangle
        wide = matrix.to(_double(matrix.dtype))
        q, r = torch.linalg.qr(wide)
        u, s = leading(r)
        return (q @ u).to(matrix.dtype), s.to(matrix.real.dtype)
    if matrix.dtype in (torch.float32, torch.complex64):
        wide = matrix.to(_double(matrix.dtype))
        values, vectors = torch.linalg.eigh(wide @ wide.mH)
        s = values.clamp_min(0).sqrt().flip(-1)
        return vectors.flip(-1).to(matrix.dtype), s.to(matrix.real.dtype)
    r = torch.linalg.qr(matrix.mH, mode="r").R
    u, s, _ = torch.linalg.svd(r.mH, full_matrices=False)
    return u, s


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def singular_values(tensor: torch.Tensor, order: int) -> tuple[torch.Tensor, ...]:
    """The singular values of each unfolding, by SVD."""
    return tuple([torch.linalg.svdvals(unfolding(tensor, k, order)) for k in range(order)])


def project(tensor: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """The core ``T x_k U_k^H`` and what each projection removes, ``(N, *batch)``, as norms of residuals."""
    order, tails = len(factors), []
    for k, u in enumerate(factors):
        smaller = mode_product(tensor, u.mH, k, order)
        tails.append(norm_of(tensor - mode_product(smaller, u, k, order), order))
        tensor = smaller
    return tensor, torch.stack(tails)


def _core(tensor: torch.Tensor, factors: Factors) -> torch.Tensor:
    for k, u in enumerate(factors):
        tensor = mode_product(tensor, u.mH, k, len(factors))
    return tensor


def norm_of(tensor: torch.Tensor, order: int) -> torch.Tensor:
    """The Frobenius norm over the last ``order`` dimensions."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(-order, 0)))


def decompose(
    tensor: torch.Tensor,
    order: int,
    ranks: Sizes | None,
    tol: float | None,
    method: str,
    sweeps: int = 10,
    generator: torch.Generator | None = None,
) -> Found:
    """Factors by the method named, for ranks, or for ``err <= tol ||T||``; then the core, differentiable in T."""
    with torch.no_grad():
        if method == "randomised":
            assert ranks is not None
            core, factors, tails = _randomised(tensor, order, ranks, generator)
            found = Found(core, factors, tails, None, 0)
        elif method == "hosvd":
            found = _hosvd(tensor, order, ranks, tol)
        else:
            found = _st_hosvd(tensor, order, ranks, tol)
        if method == "hooi":
            found = _hooi(tensor, found, sweeps)
    if torch.is_grad_enabled() and tensor.requires_grad:
        found = found._replace(core=_core(tensor, found.factors))
    return found


def _mode_order(tensor: torch.Tensor, order: int, ranks: Sizes | None) -> list[int]:
    """Modes that shrink most come first."""
    dims = tensor.shape[tensor.ndim - order :]
    return sorted(range(order), key=lambda k: dims[k] if ranks is None else ranks[k] / max(1, dims[k]))


def _cut(s: torch.Tensor, k: int, ranks: Sizes | None, budget: torch.Tensor) -> tuple[int, torch.Tensor]:
    """The rank of a mode and the tail it leaves: the rank asked for, or the least with ``tail^2 <= budget`` for every
    tensor of the batch."""
    squares = s.double() ** 2
    behind = torch.nn.functional.pad(squares.flip(-1).cumsum(-1).flip(-1), (0, 1))  # behind[r]: sum of s_i^2, i >= r
    if ranks is not None:
        r = min(ranks[k], s.shape[-1])
    else:
        r = max(1, int((behind > budget[..., None]).sum(-1).max()))
    return r, behind[..., r].clamp_min(0).sqrt().to(s.dtype)


def _budget(tensor: torch.Tensor, order: int, tol: float | None) -> torch.Tensor:
    """What each mode may remove, squared: ``tol^2 ||T||^2 / N``, of shape ``batch``."""
    return (0.0 if tol is None else tol) ** 2 * norm_of(tensor, order).double() ** 2 / order


def _st_hosvd(tensor: torch.Tensor, order: int, ranks: Sizes | None, tol: float | None) -> Found:
    """Mode by mode, each from the tensor that the modes before have left."""
    budget, core = _budget(tensor, order, tol), tensor
    factors: list[torch.Tensor] = [tensor] * order
    tails: list[torch.Tensor] = [tensor] * order
    for k in _mode_order(tensor, order, ranks):
        u, s = leading(unfolding(core, k, order))
        r, tails[k] = _cut(s, k, ranks, budget)
        factors[k] = u[..., :r]
        core = mode_product(core, factors[k].mH, k, order)
    all_tails = torch.stack(tails)
    return Found(core, tuple(factors), all_tails, all_tails.amax(0), 0)


def _hosvd(tensor: torch.Tensor, order: int, ranks: Sizes | None, tol: float | None) -> Found:
    """Every mode from the tensor itself."""
    budget, factors, tails = _budget(tensor, order, tol), [], []
    for k in range(order):
        u, s = leading(unfolding(tensor, k, order))
        r, tail = _cut(s, k, ranks, budget)
        factors.append(u[..., :r])
        tails.append(tail)
    core, removed = project(tensor, tuple(factors))
    return Found(core, tuple(factors), removed, torch.stack(tails).amax(0), 0)


def _hooi(tensor: torch.Tensor, start: Found, sweeps: int) -> Found:
    """Alternating: each factor the best for the others, until the core stops growing (the error never rises)."""
    order, factors = len(start.factors), list(start.factors)
    ranks = tuple([u.shape[-1] for u in factors])
    size, done, still = norm_of(start.core, order), 0, False
    while done < sweeps and not still:
        done += 1
        for k in range(order):
            part = tensor
            for j in _mode_order(tensor, order, ranks):
                part = part if j == k else mode_product(part, factors[j].mH, j, order)
            factors[k] = leading(unfolding(part, k, order))[0][..., : ranks[k]]
        grown = norm_of(_core(tensor, tuple(factors)), order)
        still = bool((grown <= size * (1 + _STILL)).all())
        size = grown
    core, removed = project(tensor, tuple(factors))
    return Found(core, tuple(factors), removed, start.lower, done)


def _randomised(
    tensor: torch.Tensor, order: int, ranks: Sizes, generator: torch.Generator | None
) -> tuple[torch.Tensor, Factors, torch.Tensor]:
    """ST-HOSVD with each subspace from the product of the unfolding with a Gaussian matrix, and a power step."""
    core = tensor
    factors: list[torch.Tensor] = [tensor] * order
    tails: list[torch.Tensor] = [tensor] * order
    for k in _mode_order(tensor, order, ranks):
        rows = unfolding(core, k, order)
        factors[k] = _range(rows, ranks[k], generator)
        smaller = mode_product(core, factors[k].mH, k, order)
        tails[k] = norm_of(core - mode_product(smaller, factors[k], k, order), order)
        core = smaller
    return core, tuple(factors), torch.stack(tails)


def _range(rows: torch.Tensor, rank: int, generator: torch.Generator | None) -> torch.Tensor:
    m, n = rows.shape[-2:]
    width = rank + _MORE
    if 2 * width >= min(m, n):
        return leading(rows)[0][..., :rank]
    probes = torch.randn(n, width, dtype=rows.dtype, device=rows.device, generator=generator)
    q = torch.linalg.qr(rows @ probes).Q
    for _ in range(_POWERS):
        q = torch.linalg.qr(rows @ (rows.mH @ q)).Q
    inside = leading(q.mH @ rows)[0]
    return q @ inside[..., :rank]
