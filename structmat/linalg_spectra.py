"""Eigenvalues of Hermitian matrices, polar factors and norms: one rule a structure, dense up to the dense limit."""

import torch

from structmat import backend
from structmat._shell import require_square
from structmat._verbs import Verbs
from structmat.claims import Claim
from structmat.errors import SolveError, StructureError
from structmat.functional import kronecker as fk
from structmat.lazy import Inverse, Prepared, Scaled
from structmat.matrix import Matrix
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.kronecker import Kronecker

__all__ = ["hermitian_eigvals", "polar_factors", "sum_norm"]

_NEWTON = 10  # scaled steps: enough for a condition of 1 / eps in float64


def hermitian_eigvals(matrix: Matrix) -> torch.Tensor:
    """The eigenvalues ``(*batch, n)`` of a matrix that claims to be Hermitian, real, ascending."""
    require_square(matrix, "eigvalsh")
    if Claim.HERMITIAN not in matrix.claims:
        raise StructureError(
            f"eigvalsh({matrix!r}): the matrix does not claim to be Hermitian; vouch for it with "
            "A.assume(structmat.Claim.HERMITIAN), or use eigvals, which takes any square matrix"
        )
    return torch.sort(_real_spectrum(matrix), -1).values


def _real_spectrum(matrix: Matrix) -> torch.Tensor:
    """The eigenvalues of a Hermitian matrix in any order."""
    if isinstance(matrix, Prepared):
        return _real_spectrum(matrix.matrix)
    if isinstance(matrix, Inverse) and Claim.HERMITIAN in matrix.matrix.claims:
        return 1 / _real_spectrum(matrix.matrix)
    if isinstance(matrix, Scaled) and Claim.HERMITIAN in matrix.matrix.claims:
        scale = matrix._flat(1)
        real = scale.real if isinstance(scale, (complex, torch.Tensor)) else scale
        return _real_spectrum(matrix.matrix) * real
    if isinstance(matrix, Kronecker) and all(Claim.HERMITIAN in f.claims for f in matrix.factors):
        found = fk.outer([_real_spectrum(f) for f in matrix._alike()])
        return matrix._cast(found, real=True)
    if isinstance(matrix, BlockDiagonal) and matrix.blocks.shape[-1] == matrix.blocks.shape[-2]:
        wide = matrix.blocks.to(backend.compute_dtype(matrix.blocks.dtype))
        return matrix._cast(torch.linalg.eigvalsh(wide).flatten(-2), real=True)
    if type(matrix).eigvals is not Verbs.eigvals:
        return matrix._cast(matrix.eigvals().real, real=True)
    if not matrix._is_small():
        raise StructureError(
            f"eigvalsh({matrix!r}): {type(matrix).__name__} has no structured form of it; "
            "scipy.sparse.linalg.eigsh(structmat.linalg.as_linear_operator(A), k) finds k eigenvalues from products, "
            "torch.linalg.eigvalsh(A.to_dense()) spends n^2 memory on all"
        )
    return matrix._cast(torch.linalg.eigvalsh(matrix._wide_dense()), real=True)


# -- polar --------------------------------------------------------------------------------------------------------


def polar_factors(matrix: Matrix, side: str) -> tuple[Matrix, Matrix]:
    """U and P with ``A = U P`` (side "right") or ``A = P U`` ("left"), see ``linalg.polar``."""
    if side not in ("right", "left"):
        raise ValueError(f"polar({matrix!r}, side={side!r}): legal sides are 'right' and 'left'")
    claims, size = matrix.claims, int(matrix.shape[-1 if side == "right" else -2])
    kept = Claim.ORTHONORMAL_COLUMNS if side == "right" else Claim.ORTHONORMAL_ROWS
    if kept in claims:
        return matrix, Identity(size, matrix.dtype, matrix.device)
    if Claim.POSITIVE_DEFINITE in claims:
        return Identity(size, matrix.dtype, matrix.device), matrix
    if isinstance(matrix, Prepared):
        return polar_factors(matrix.matrix, side)
    if isinstance(matrix, Diagonal):
        return _claimed(Diagonal(_sign(matrix.entries)), Diagonal(matrix.entries.abs().to(matrix.dtype)))
    if isinstance(matrix, Circulant) and abs(matrix.f) == 1:
        return _claimed(matrix._of_eigenvalues(_sign), matrix._of_eigenvalues(lambda lam: lam.abs().to(lam.dtype)))
    if isinstance(matrix, Scaled):
        unit, part = polar_factors(matrix.matrix, side)
        s = matrix.scale
        sign, length = (_sign(s), s.abs()) if isinstance(s, torch.Tensor) else (s / abs(s) if s else 1.0, abs(s))
        return (unit * sign).assume(*_isometry(unit)), part * length
    if isinstance(matrix, Kronecker):
        slopes = {int(f.shape[-2]) - int(f.shape[-1]) > 0 for f in matrix.factors if f.shape[-2] != f.shape[-1]}
        if len(slopes) < 2:  # else U would be neither tall nor wide in the way of its factors
            parts = [polar_factors(f, side) for f in matrix._alike(wide=False)]
            unit = Kronecker(tuple(u for u, _ in parts))
            return _claimed(unit, Kronecker(tuple(p for _, p in parts)))
    if isinstance(matrix, BlockDiagonal):
        u, p = _dense_polar(matrix.blocks, side)
        return _claimed(BlockDiagonal(u), BlockDiagonal(p))
    if not matrix._is_small():
        raise StructureError(
            f"polar({matrix!r}): {type(matrix).__name__} has no structured form of it, and its order is above the "
            f"dense limit {backend.dense_limit(matrix.device or 'cpu')}; structmat.linalg.polar(A.to_dense()) spends "
            "n^2 memory on it"
        )
    u, p = _dense_polar(matrix.to_dense(), side)
    return _claimed(Dense(u), Dense(p))


def _isometry(unit: Matrix) -> tuple[Claim, ...]:
    m, n = unit.shape[-2:]
    return (Claim.ORTHOGONAL,) if m == n else (Claim.ORTHONORMAL_COLUMNS if m > n else Claim.ORTHONORMAL_ROWS,)


def _claimed(unit: Matrix, part: Matrix) -> tuple[Matrix, Matrix]:
    return unit.assume(*_isometry(unit)), part.assume(Claim.HERMITIAN)


def _sign(value: torch.Tensor) -> torch.Tensor:
    """The phase of each number, 1 for 0."""
    return torch.where(value == 0, torch.ones_like(value), torch.sgn(value))


def _dense_polar(dense: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """U with orthonormal columns (rows, of a wide matrix) and P, of ``(*batch, m, n)`` entries."""
    a = dense.to(backend.compute_dtype(dense.dtype))
    moving = backend.transforming() or (torch.is_grad_enabled() and a.requires_grad)
    if not moving:
        w, _, vh = torch.linalg.svd(a, full_matrices=False)
        u = w @ vh
    elif a.shape[-2] >= a.shape[-1]:
        u = _newton(a)
    else:
        u = _newton(a.mH).mH
    p = u.mH @ a if side == "right" else a @ u.mH
    return u.to(dense.dtype), ((p + p.mH) / 2).to(dense.dtype)


def _newton(a: torch.Tensor) -> torch.Tensor:
    """U of a tall matrix of full rank by ``X <- (mu X + (mu X)^-H) / 2``, so that derivatives of every order exist also
    where singular values coincide. N. J. Higham, Functions of Matrices, 2008, section 8.6; the scaling takes the
    interval of the singular values, known at the first step, to that at the next."""
    if 0 in a.shape:
        return a
    s = torch.linalg.svdvals(a.detach())
    if backend.eager(a) and bool((s[..., -1] <= torch.finfo(s.dtype).eps * s[..., 0]).any()):
        raise SolveError("polar: a singular matrix has no derivative of its polar factors", float("inf"))
    q, x = torch.linalg.qr(a) if a.shape[-2] > a.shape[-1] else (None, a)
    high, low = s[..., 0], s[..., -1]
    for _ in range(_NEWTON):
        mu = ((high * low) ** -0.5)[..., None, None]
        root = (high / low).sqrt()
        x = (mu * x + torch.linalg.inv(x).mH / mu) / 2
        high, low = (root + 1 / root) / 2, torch.ones_like(low)
    return x if q is None else q @ x


# -- norms --------------------------------------------------------------------------------------------------------


def sum_norm(matrix: Matrix, axis: int, least: bool) -> torch.Tensor:
    """The largest (``least``: the smallest) sum of absolute values of a column (axis -2) or of a row (axis -1)."""
    if isinstance(matrix, Prepared):
        return sum_norm(matrix.matrix, axis, least)
    if isinstance(matrix, Scaled):
        size = matrix._flat(0)
        return sum_norm(matrix.matrix, axis, least) * (size.abs() if isinstance(size, torch.Tensor) else abs(size))
    if isinstance(matrix, Kronecker):
        found = [sum_norm(f, axis, least) for f in matrix._alike()]
        return matrix._cast(torch.stack(torch.broadcast_tensors(*found)).prod(0), real=True)
    if isinstance(matrix, BlockDiagonal):
        sums = matrix.blocks.abs().sum(axis)
        return sums.amin((-2, -1)) if least else sums.amax((-2, -1))
    if isinstance(matrix, (Diagonal, Identity)):
        sizes = matrix.diagonal().abs()
        return sizes.amin(-1) if least else sizes.amax(-1)
    turned = matrix if axis == -2 else matrix.transpose()
    sums = torch.cat([c.abs().sum(-2) for _, c in turned._columns(int(turned.shape[-1]))], -1)
    return sums.amin(-1) if least else sums.amax(-1)
