"""Stochastic Lanczos quadrature: ``tr log`` of a matrix out of products alone.

For a row g, ``g^H log(A) g`` is an integral over the spectrum of A. k steps of Lanczos from g give a tridiagonal T
whose eigenvalues and (squared) first components of eigenvectors are the Gauss rule with k nodes for it. For a matrix
that is not definite the steps are those of Golub and Kahan, ``A V = U B`` with B bidiagonal, and the rule integrates
``log(sigma)``, so that the condition of A is not squared. The basis is orthogonalised against all of itself, twice.

The error of the rule is judged by what the second half of its steps changed: an overestimate as long as twice the steps
halve the error.
Sources: G. H. Golub and G. Meurant, Matrices, Moments and Quadrature with Applications, 2010, chapter 6; S. Ubaru, J.
Chen and Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017, algorithm 1; one-sided
orthogonalisation: H. D. Simon and H. Zha, 2000.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch

from structmat.errors import SolveError

__all__ = ["Quadrature", "log_forms"]

Apply = Callable[[torch.Tensor], torch.Tensor]
_SHARE = 0.1  # a rule may be off by this share of what the samples scatter


@dataclasses.dataclass(frozen=True)
class Quadrature:
    """``g^H log|A| g`` of each row ``(*batch, k)`` in float64, what the rule and rounding may have added to it, and the
    steps taken."""

    values: torch.Tensor
    errors: torch.Tensor
    steps: int


def log_forms(
    multiply: Apply, adjoint: Apply | None, g: torch.Tensor, total: int, most: int, name: str = "the matrix"
) -> Quadrature:
    """``g^H log(A) g`` for rows g ``(*batch, k, n)`` of a Hermitian positive definite A, of ``(A^H A)^(1/2)`` where
    ``adjoint``, the product with A^H, is given.

    Ends when the rule is accurate to a tenth of the scatter of the mean of ``total`` such rows, at the latest after
    ``most`` steps. Raises SolveError, naming ``name``, where A shows itself singular or not positive definite.
    Cost: a product (two, with ``adjoint``) and 8 n steps flops a step and row; memory: the basis, n steps a row.
    """
    n, eps = int(g.shape[-1]), torch.finfo(g.dtype).eps
    most = min(most, n)
    weight = torch.linalg.vector_norm(g, dim=-1).double().square()
    stages = _stages(most)
    found: dict[int, torch.Tensor] = {}
    run = _definite(multiply, g, eps) if adjoint is None else _general(multiply, adjoint, g, eps)
    for steps, (main, off, done) in enumerate(run, 1):
        if steps not in stages and not done:
            continue
        rule = _rule(main, off, adjoint is not None, name)
        _refuse(rule, eps, name, adjoint is None)
        found[steps] = weight * rule.mean
        exact = done or steps == n
        if exact or steps < 4:
            change = torch.full_like(weight, 0.0 if exact else math.inf)
        else:
            change = (found[steps] - found[max(k for k in found if 2 * k <= steps)]).abs()
        scatter = (2 * weight * weight.mean() * rule.variance).mean().div(total).sqrt()
        noise = 8 * eps * weight * rule.sensitivity
        if exact or steps >= most or bool((change.mean() <= _SHARE * scatter) | (change <= noise).all()):
            return Quadrature(found[steps], change + noise, steps)
    raise AssertionError("the last step ends the run")


def _stages(most: int) -> set[int]:
    """2, 3, 4, 6, 8, 12, 16, ..., half of most, and most."""
    found = {most, max(1, most // 2)}
    k = 2
    while k <= most:
        found |= {k, min(most, 3 * k // 2)}
        k *= 2
    return found


@dataclasses.dataclass(frozen=True)
class _Rule:
    nodes: torch.Tensor  # (..., k)
    weights: torch.Tensor  # (..., k), of sum one

    @property
    def mean(self) -> torch.Tensor:
        return (self.weights * torch.log(self.nodes)).sum(-1)

    @property
    def variance(self) -> torch.Tensor:
        return (self.weights * (torch.log(self.nodes) - self.mean[..., None]).square()).sum(-1)

    @property
    def sensitivity(self) -> torch.Tensor:
        """What a change of A by its norm does to the mean, to first order, and of what size the logarithms are."""
        return (self.weights * (self.nodes.amax(-1, keepdim=True) / self.nodes + torch.log(self.nodes).abs())).sum(-1)


def _rule(main: list[torch.Tensor], off: list[torch.Tensor], bidiagonal: bool, name: str) -> _Rule:
    """Gauss's rule out of T, or of B: nodes and weights, on the host (these matrices are small)."""
    matrix = torch.diag_embed(torch.stack(main, -1).double().cpu())
    if not bool(torch.isfinite(matrix).all()):
        raise SolveError(f"{name}: a product gave numbers that are not finite", math.inf)
    if off:
        beside = torch.diag_embed(torch.stack(off, -1).double().cpu(), 1)
        matrix = matrix + beside if bidiagonal else matrix + beside + beside.mT
    device = main[0].device
    if bidiagonal:
        _, nodes, vh = torch.linalg.svd(matrix)
        return _Rule(nodes.to(device), vh[..., :, 0].square().to(device))
    nodes, vectors = torch.linalg.eigh(matrix)
    return _Rule(nodes.to(device), vectors[..., 0, :].square().to(device))


def _refuse(rule: _Rule, eps: float, name: str, definite: bool) -> None:
    least, largest = float(rule.nodes.min()), float(rule.nodes.max())
    if definite and least < -eps * rule.nodes.shape[-1] * largest:
        raise SolveError(
            f"{name}: claimed positive definite, but Lanczos found an eigenvalue {least:.1e} (the largest is "
            f"{largest:.1e}); without the claim log|det| is estimated",
            math.inf,
        )
    if bool((rule.nodes <= eps * rule.nodes.amax(-1, keepdim=True)).any()):
        what = "eigenvalue" if definite else "singular value"
        raise SolveError(
            f"{name}: singular to working precision, Lanczos found the {what} {least:.1e} beside {largest:.1e}; "
            "compute in float64, or add a multiple of the identity",
            math.inf,
        )


_Step = Iterator[tuple[list[torch.Tensor], list[torch.Tensor], bool]]


def _definite(multiply: Apply, g: torch.Tensor, eps: float) -> _Step:
    """Lanczos: after each step the diagonal and the off-diagonal of T, and whether every row is done (its space is
    invariant; a done row goes on with zeros and the diagonal entry it began with, which have no weight)."""
    basis = _Basis(g)
    alphas: list[torch.Tensor] = []
    betas: list[torch.Tensor] = []
    v, scale = basis.unit, torch.zeros((), dtype=torch.float64, device=g.device)
    alive = torch.ones(g.shape[:-1], dtype=torch.bool, device=g.device)
    while True:
        w = multiply(v)
        alpha = torch.linalg.vecdot(v, w).real
        alphas.append(torch.where(alive, alpha, alphas[0]) if alphas else alpha)
        w = basis.orthogonal(w)
        beta = torch.linalg.vector_norm(w, dim=-1)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), beta))
        alive = alive & (beta > 10 * eps * len(alphas) * scale)
        yield alphas, betas, not bool(alive.any())
        betas.append(torch.where(alive, beta, 0))
        v = basis.extend(w * torch.where(alive, 1 / beta, 0)[..., None])


def _general(multiply: Apply, adjoint: Apply, g: torch.Tensor, eps: float) -> _Step:
    """Golub-Kahan: after each step the diagonal and the upper diagonal of B; rows that are done as above."""
    basis = _Basis(g)
    alphas: list[torch.Tensor] = []
    betas: list[torch.Tensor] = []
    v, u, scale = basis.unit, None, torch.zeros((), dtype=torch.float64, device=g.device)
    alive = torch.ones(g.shape[:-1], dtype=torch.bool, device=g.device)
    while True:
        p = multiply(v) if u is None else multiply(v) - betas[-1][..., None] * u
        alpha = torch.linalg.vector_norm(p, dim=-1)
        alphas.append(torch.where(alive, alpha, alphas[0]) if alphas else alpha)
        u = p / torch.where(alpha > 0, alpha, 1)[..., None]
        w = basis.orthogonal(adjoint(u))
        beta = torch.linalg.vector_norm(w, dim=-1)
        scale = torch.maximum(scale, torch.maximum(alpha, beta))
        alive = alive & (beta > 10 * eps * len(alphas) * scale)
        yield alphas, betas, not bool(alive.any())
        betas.append(torch.where(alive, beta, 0))
        v = basis.extend(w * torch.where(alive, 1 / beta, 0)[..., None])


class _Basis:
    """Orthonormal vectors ``(*lead, steps, n)``, one set a row, in memory that grows by doubling."""

    def __init__(self, g: torch.Tensor) -> None:
        length = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        self.unit = g / torch.where(length > 0, length, 1)
        self.kept, self.count = self.unit[..., None, :], 1

    def orthogonal(self, w: torch.Tensor) -> torch.Tensor:
        """w without its part in the space, taken away twice."""
        basis = self.kept[..., : self.count, :]
        for _ in range(2):
            parts = basis.conj() @ w[..., None]
            w = w - (basis.mT @ parts)[..., 0]
        return w

    def extend(self, v: torch.Tensor) -> torch.Tensor:
        if self.count == self.kept.shape[-2]:
            self.kept = torch.cat((self.kept, torch.zeros_like(self.kept)), -2)
        self.kept[..., self.count, :] = v
        self.count += 1
        return v
