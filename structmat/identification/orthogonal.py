"""Orthogonal structures, tried only where M is near an orthogonal matrix: their error is not relative to a scale."""

import math
from collections.abc import Iterator
from functools import partial

import torch

from structmat import backend
from structmat.errors import NotStructuredError
from structmat.identification.work import Trial, Work
from structmat.matrix import Matrix
from structmat.types.givens import GivensProduct
from structmat.types.householder import HouseholderProduct
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.permutation import Permutation

__all__ = ["nearest_product", "orthogonal", "polar_factor"]

_NEAR = 0.5  # relative distance to the nearest orthogonal matrix up to which these types are tried
_ROTATIONS = 128  # Givens rotations are found one by one, in Python


def polar_factor(dense: torch.Tensor) -> torch.Tensor:
    """``U V^H`` of the singular value decomposition: the nearest orthogonal (unitary) matrix in the Frobenius norm
    (K. Fan and A. J. Hoffman, Some metric inequalities in the space of matrices, 1955)."""
    u, _, vh = torch.linalg.svd(dense)
    return u @ vh


def nearest_product(dense: torch.Tensor, kind: type[HouseholderProduct] | type[GivensProduct]) -> Matrix:
    """The polar factor as ``rank(I - Q)`` reflections, or as at most n (n - 1) / 2 plane rotations."""
    found: Matrix = kind.from_dense(polar_factor(dense.to(backend.compute_dtype(dense.dtype))))
    return found.to(dtype=dense.dtype)


def orthogonal(work: Work, values: torch.Tensor) -> Iterator[Trial]:
    """Householder and Givens products for the polar factor, permutations, orthogonal circulants."""
    if work.exponent or not work.norm or not work.is_square:
        return
    n = work.sizes[0]
    distance = work.relative(float(torch.linalg.vector_norm(values.double() - 1)))
    if not distance <= _NEAR:
        return
    q = polar_factor(work.entries)
    reflections = _reflections(q, work)
    per_reflection = n + (1 if work.is_complex else 0)  # with phases, a vector brings one number more
    if reflections and work.fits(reflections * per_reflection):
        settings = {"reflectors": reflections}
        error = work.error_of(HouseholderProduct.from_dense(q).to_dense() if n <= _ROTATIONS else q)
        yield Trial(
            "HouseholderProduct",
            settings,
            reflections * per_reflection,
            error,
            partial(nearest_product, kind=HouseholderProduct),
        )
    if not work.is_complex:
        yield from _rotations(work, q)
        for f in (1, -1):
            free = n - (1 + (n % 2 == 0) if f == 1 else n % 2)
            make = partial(OrthogonalCirculant.nearest, f=f)
            yield from work.measured("OrthogonalCirculant", {"f": f}, make, free // 2)
    if _may_permute(work):
        yield from work.measured("Permutation", {}, Permutation.nearest, n)


def _reflections(q: torch.Tensor, work: Work) -> int:
    """``rank(I - Q)``, judged as ``HouseholderProduct.from_dense`` judges it."""
    n = int(q.shape[0])
    wide = q.to(torch.promote_types(q.dtype, torch.float64))
    values = torch.linalg.svdvals(torch.eye(n, dtype=wide.dtype, device=wide.device) - wide)
    allowed = 8 * torch.finfo(q.dtype).eps * (1 + math.sqrt(2 * n))
    return int((values > max(4 * allowed, 8 * torch.finfo(wide.dtype).eps * n**0.5)).sum())


def _rotations(work: Work, q: torch.Tensor) -> Iterator[Trial]:
    """The number of rotations is known only once they are found; a determinant of -1 has none."""
    n = work.sizes[0]
    if n > _ROTATIONS:
        return
    try:
        found = GivensProduct.from_dense(q)
    except NotStructuredError:  # a reflection
        return
    count = int(found.numel_stored)
    if count and work.fits(count):
        error = work.error_of(found.to_dense())
        yield Trial("GivensProduct", {"rotations": count}, count, error, partial(nearest_product, kind=GivensProduct))


def _may_permute(work: Work) -> bool:
    """Whether a permutation can be near: ``||M - P||^2 = ||M||^2 + n - 2 sum_i Re M[i, p(i)]``, and no p gives a larger
    sum than the largest entries of the rows."""
    real = work.entries.real if work.is_complex else work.entries
    least = work.norm**2 + work.sizes[0] - 2 * float(real.amax(-1).sum())
    return least <= (_NEAR * work.norm) ** 2
