"""Maps from skew-Hermitian to unitary matrices: Cayley's and the exponential, each ended by a polish.

    cayley(K) = (I - K)(I + K)^-1 = 2 (I + K)^-1 - I,        K = cayley(R) again,
    expm(K)   = sum_j K^j / j!,                              K^H = -K.

Both are unitary in exact arithmetic only: rounding leaves errors that grow with the size of K. One step of Newton and
Schulz, ``R <- R (3 I - R^H R) / 2``, squares that error away (N. J. Higham, Functions of Matrices, 2008, eq. 8.20). It
moves R by less than the error it removes, so it carries no derivative: the derivative is the exact map's,

    d cayley(K) = -2 M dK M,   M = (I + K)^-1,               no system is solved in a backward pass.

A truncated Neumann series of ``(I + K)^-1`` is not unitary (at entries of size 1 it is wrong by orders of magnitude)
and is not offered. Cayley's map has determinant 1 and never the eigenvalue -1; ``flip`` multiplies the first column by
-1 for the matrices of determinant -1. Small matrices in batches, ``(*b, n, n)``, real or complex; half and bfloat16 are
computed in float32.

Source: A. Cayley, Sur quelques propriétés des déterminants gauches, 1846; Z. Qiu et al., Controlling Text-to-Image
Diffusion by Orthogonal Finetuning, 2023, section 3.2.
"""

import math
from typing import Any

import torch

from structmat import backend
from structmat.functional.launched import cayley_rotation
from structmat.functional.shifted_inverse import fast_inverse, is_fast

__all__ = ["cayley", "cayley_inverse", "expm", "polish", "skew", "skew_entries"]

_TRUSTED = 64  # entries of R^H R - I, in eps, up to which an inverse found without pivoting is as good as LAPACK's


def skew(lower: torch.Tensor, n: int) -> torch.Tensor:
    """``K = L - L^T`` from the strictly lower triangle L ``(*b, n (n - 1) / 2)`` in ``torch.tril_indices(n, n, -1)``
    order; for complex entries ``K = L - L^H``. Shape ``(*b, n, n)``."""
    rows, columns = torch.tril_indices(n, n, -1, device=lower.device)
    full = lower.new_zeros(*lower.shape[:-1], n * n).index_copy(-1, rows * n + columns, lower)
    triangle = full.unflatten(-1, (n, n))
    return triangle - triangle.mH


def skew_entries(matrix: torch.Tensor) -> torch.Tensor:
    """The strictly lower triangle of ``(K - K^H) / 2``, ``(*b, n (n - 1) / 2)``: the inverse of ``skew``."""
    n = matrix.shape[-1]
    rows, columns = torch.tril_indices(n, n, -1, device=matrix.device)
    return ((matrix - matrix.mH) / 2)[..., rows, columns]


def polish(nearly: torch.Tensor) -> torch.Tensor:
    """``R (3 I - R^H R) / 2`` for a nearly unitary R: an error of size d becomes one of size 3/4 d^2, plus rounding.

    The step carries no derivative: that of the result is that of its argument.
    """
    r = nearly.detach()
    step = (r - r @ (r.mH @ r)) / 2  # so that what is added to R is small, and R itself is not rounded again
    return nearly + step


def cayley(k: torch.Tensor, *, flip: bool = False) -> torch.Tensor:
    """``(I - K)(I + K)^-1`` for skew-Hermitian K ``(*b, n, n)``, unitary to ``8 eps`` per sqrt(n) at every size of K.

    K is trusted to be skew-Hermitian. Cost: one inverse and two products of n x n matrices; backward two products.
    """
    wide = k.to(backend.compute_dtype(k.dtype))
    with backend.full_precision(k.device):
        flat = wide.reshape(math.prod(wide.shape[:-2]), *wide.shape[-2:])
        if backend.kernel("cayley", flat):
            rotation = cayley_rotation(flat).reshape(wide.shape)
        elif torch.compiler.is_compiling() or backend.transforming() or not backend.eager(wide):
            eye = torch.eye(k.shape[-1], dtype=wide.dtype, device=wide.device)
            rotation = polish(2 * torch.linalg.inv_ex(eye + wide).inverse - eye)  # I + K is never singular
        else:
            rotation = _Cayley.apply(flat).reshape(wide.shape)
        return (_flipped(rotation) if flip else rotation).to(k.dtype)


class _Cayley(torch.autograd.Function):
    """The same map with few passes over the matrices: 1.3 (b = 8) to 2.8 times (b = 64) the speed of
    ``torch.linalg.solve``, both ways together.

    The inverse is found without pivoting where that is faster, and by LAPACK where R would not be orthogonal to
    rounding before the polish (entries of K of size 10 and more). Keeps ``M = (I + K)^-1`` for the backward pass,
    ``K' = -2 M^H R' M^H``; higher orders start from K again.
    """

    @staticmethod
    def forward(ctx: Any, k: Any) -> Any:
        quick = is_fast(k)
        inverse = fast_inverse(k) if quick else _lapack_inverse(k)
        rotation, defect = _rotation(inverse)
        if quick and not float(defect.abs().amax()) <= _TRUSTED * torch.finfo(k.dtype).eps:
            inverse = _lapack_inverse(k)
            rotation, defect = _rotation(inverse)
        ctx.save_for_backward(k, inverse)
        return rotation.sub_(torch.bmm(rotation, defect), alpha=0.5)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        k, inverse = ctx.saved_tensors
        with backend.full_precision(k.device):
            if torch.is_grad_enabled() or not backend.eager(g):
                eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
                inverse = torch.linalg.inv_ex(eye + k).inverse
                return -2 * (inverse.mH @ g @ inverse.mH)
            return torch.bmm(torch.bmm(inverse.mH, g), inverse.mH).mul_(-2)


def _lapack_inverse(k: torch.Tensor) -> torch.Tensor:
    """``(I + K)^-1``; LAPACK writes columns, and ``(I - K)^-H = (I + K)^-1`` gives it by rows without a copy."""
    shifted = -k
    shifted.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.linalg.inv_ex(shifted).inverse.mT.conj().resolve_conj()


def _rotation(inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``R = 2 M - I`` and ``R^H R - I``."""
    rotation = inverse + inverse
    rotation.diagonal(dim1=-2, dim2=-1).sub_(1)
    defect = torch.bmm(rotation.mH, rotation)
    defect.diagonal(dim1=-2, dim2=-1).sub_(1)
    return rotation, defect


def cayley_inverse(r: torch.Tensor, *, flip: bool = False) -> torch.Tensor:
    """K with ``cayley(K) = R`` for unitary R without eigenvalue -1, made exactly skew-Hermitian.

    The error is eps over the distance of -1 to the spectrum; an eigenvalue -1 gives inf or nan. Real R of determinant
    -1 always has that eigenvalue: ``flip`` undoes the flipped column first.
    """
    wide = r.to(backend.compute_dtype(r.dtype))
    with backend.full_precision(r.device):
        wide = _flipped(wide) if flip else wide
        eye = torch.eye(r.shape[-1], dtype=wide.dtype, device=wide.device)
        k = 2 * torch.linalg.inv_ex(eye + wide).inverse - eye
        return ((k - k.mH) / 2).to(r.dtype)


def expm(k: torch.Tensor, *, flip: bool = False) -> torch.Tensor:
    """``exp(K)`` for skew-Hermitian K ``(*b, n, n)``, unitary to ``8 eps`` per sqrt(n); reaches every rotation.

    K is trusted to be skew-Hermitian. Cost: that of ``torch.linalg.matrix_exp``, about ten products, and four more.
    """
    wide = k.to(backend.compute_dtype(k.dtype))
    with backend.full_precision(k.device):
        rotation = polish(polish(torch.linalg.matrix_exp(wide)))  # one step is too few where the norm of K is 1e4
        return (_flipped(rotation) if flip else rotation).to(k.dtype)


def _flipped(rotation: torch.Tensor) -> torch.Tensor:
    """The first column times -1."""
    return torch.cat((-rotation[..., :1], rotation[..., 1:]), -1)
