"""Structures that are linear subspaces: the nearest member is a mean, or a part, of the entries, in O(m n)."""

import math
from collections.abc import Iterator
from functools import partial

import torch

from structmat import backend
from structmat.identification.work import Trial, Work, divisors, splits
from structmat.lazy import Scaled
from structmat.matrix import Matrix
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.circulant import Circulant
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.vandermonde import Vandermonde
from structmat.types.zero import Zero

__all__ = ["diagonals", "powers", "shift_invariant", "trivial", "two_levels"]

_PASSES = 2**23  # entries visited by the searches over level sizes: they try fewer splits of a larger matrix
_NEAR_ONE = 0.1


def identity_multiple(dense: torch.Tensor) -> Matrix:
    """``(tr M / n) I``, the nearest multiple of the identity; the identity itself where the mean is 1."""
    n = int(dense.shape[-1])
    mean = torch.diagonal(dense).mean().item()
    unit = Identity(n, dense.dtype, dense.device)
    return unit if mean == 1 else Scaled(unit, mean)


def trivial(work: Work) -> Iterator[Trial]:
    """Zero, and the multiple of the identity."""
    yield from work.measured("Zero", {}, Zero.nearest, 0)
    if work.is_square:
        found = identity_multiple(work.entries)
        unit = isinstance(found, Identity) and not work.exponent
        yield from work.measured("Identity" if unit else "Scaled Identity", {}, identity_multiple, 0 if unit else 1)


def diagonals(work: Work) -> Iterator[Trial]:
    """Diagonal and block-diagonal matrices of every number of equal blocks."""
    m, n = work.sizes
    if m == n:
        yield from work.measured("Diagonal", {}, Diagonal.nearest, n)
    for count in divisors(math.gcd(m, n)):
        if count > 1 and not (m == n == count):
            make = partial(BlockDiagonal.nearest, count=count)
            yield from work.measured("BlockDiagonal", {"count": count}, make, m * n // count)


def shift_invariant(work: Work) -> Iterator[Trial]:
    """Circulants of f = 1 and -1, Toeplitz matrices (symmetric, Hermitian), Hankel matrices."""
    m, n = work.sizes
    if m == n and n > 1:
        for f in (1, -1):
            yield from work.measured("Circulant", {"f": f}, partial(Circulant.nearest, f=f), n)
        yield from work.measured("SymmetricToeplitz", {}, SymmetricToeplitz.nearest, n)
        if work.is_complex:
            yield from work.measured("HermitianToeplitz", {}, HermitianToeplitz.nearest, n)
        yield from work.measured("CosineDiagonal", {"sizes": (n,)}, partial(CosineDiagonal.nearest, sizes=(n,)), n)
    yield from work.measured("Toeplitz", {}, Toeplitz.nearest, m + n - 1)
    yield from work.measured("Hankel", {}, Hankel.nearest, m + n - 1)


def powers(work: Work) -> Iterator[Trial]:
    """Vandermonde matrices and their transposes: tried where a column, or row, of ones begins M."""
    for turned in (False, True):
        entries = work.entries.mT if turned else work.entries
        if entries.shape[-1] < 2 or work.exponent or float((entries[:, 0] - 1).abs().amax()) > _NEAR_ONE:
            continue
        settings = {"transposed": True} if turned else {}
        make = partial(near_vandermonde, transposed=turned)
        yield from work.measured("Vandermonde", settings, make, int(entries.shape[-2]))


def near_vandermonde(dense: torch.Tensor, transposed: bool) -> Matrix:
    """The powers of the second column (of the transpose: of the second row)."""
    nodes = dense[1] if transposed else dense[:, 1]
    return Vandermonde(nodes.clone(), int(dense.shape[0 if transposed else 1]), transposed)


def nearest_kronecker_sum(dense: torch.Tensor, sizes: tuple[int, int]) -> KroneckerSum:
    """``A kron I + I kron B`` nearest in the Frobenius norm: the partial means, the mean of the trace shared.

    Matrices ``A kron I`` and ``I kron B`` meet only in multiples of I and are orthogonal otherwise, so the projection
    on their sum is the sum of both projections less that on I.
    """
    a, b = sizes
    grid = dense.to(backend.compute_dtype(dense.dtype)).reshape(a, b, a, b)
    left = torch.einsum("ijkj->ik", grid) / b
    right = torch.einsum("ijil->jl", grid) / a
    half = torch.diagonal(left).mean() / 2
    left.diagonal().sub_(half)
    right.diagonal().sub_(half)
    return KroneckerSum(Dense(left.to(dense.dtype)), Dense(right.to(dense.dtype)))


def two_levels(work: Work) -> Iterator[Trial]:
    """Square matrices whose index is a pair: convolutions of pictures under each boundary condition, and Kronecker
    sums, such as discrete Laplacians."""
    m, n = work.sizes
    if m != n:
        return
    most = max(4, min(12, _PASSES // (n * n)))
    for place, (a, b) in enumerate(splits(n, most)):
        sizes = (a, b)
        settings = {"sizes": sizes}
        toeplitz = (2 * a - 1) * (2 * b - 1)
        yield from work.measured("BlockToeplitz", settings, partial(BlockToeplitz.nearest, columns=sizes), toeplitz)
        yield from work.measured("BlockCirculant", settings, partial(BlockCirculant.nearest, sizes=sizes), n)
        make = partial(nearest_kronecker_sum, sizes=sizes)
        yield from work.measured("KroneckerSum", settings, make, a * a + b * b)
        if place < max(1, most // 4) or n <= 256:
            yield from work.measured("CosineDiagonal", settings, partial(CosineDiagonal.nearest, sizes=sizes), n)
