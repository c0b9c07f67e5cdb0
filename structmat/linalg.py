"""The names of ``torch.linalg`` and ``scipy.linalg`` over a Matrix or a tensor.

A tensor, an array or a list is treated as ``Dense``, and results are tensors and matrices; ``solve_toeplitz``,
``solve_circulant`` and ``matmul_toeplitz`` have scipy's signatures, and give numpy arrays back for numpy arrays.
"""

from typing import Any

import torch

from structmat import backend
from structmat import matrix as _matrix
from structmat._progress import ProgressBar
from structmat._shell import require_square
from structmat.construct import entries_of
from structmat.errors import ShapeError, SolveError
from structmat.functional.qr import householder_qr
from structmat.linalg_operator import as_linear_operator, from_linear_operator
from structmat.linalg_spectra import hermitian_eigvals, polar_factors, sum_norm
from structmat.linalg_stochastic import Estimate, logabsdet, slogdet, trace
from structmat.linalg_toeplitz import (
    LevinsonDurbin,
    levinson_durbin,
    matmul_toeplitz,
    solve_circulant,
    solve_toeplitz,
)
from structmat.matrix import Matrix
from structmat.solving import Options, SolveInfo
from structmat.types.dense import Dense
from structmat.types.householder import HouseholderProduct

__all__ = [
    "Estimate",
    "LevinsonDurbin",
    "as_linear_operator",
    "cond",
    "det",
    "diagonal",
    "eigvals",
    "eigvalsh",
    "from_linear_operator",
    "inv",
    "levinson_durbin",
    "logabsdet",
    "lstsq",
    "matmul",
    "matmul_toeplitz",
    "matrix_rank",
    "norm",
    "pinv",
    "polar",
    "progress_bar",
    "qr",
    "slogdet",
    "solve",
    "solve_circulant",
    "solve_toeplitz",
    "svdvals",
    "trace",
]


def _as(a: Any) -> Matrix:
    return a if isinstance(a, Matrix) else Dense(entries_of(a, "A"))


def solve(
    A: Any, b: Any, *, return_info: bool = False, **options: Any
) -> torch.Tensor | tuple[torch.Tensor, SolveInfo]:
    """x with ``A x = b``; options as ``Matrix.solve``; with ``return_info`` also how it was solved.

    >>> x, info = sm.linalg.solve(sm.toeplitz([2.0, 1.0]), torch.ones(2, dtype=torch.float64), return_info=True)
    >>> info.method
    'dense'
    """
    right = b if isinstance(b, torch.Tensor) else entries_of(b, "b")
    x, info = _as(A)._solve_info(right, Options(**options))
    return (x, info) if return_info else x


def inv(A: Any) -> Matrix:
    """The inverse as a matrix."""
    result: Matrix = _as(A).inv()
    return result


def pinv(A: Any) -> Matrix:
    """The Moore-Penrose inverse as a matrix."""
    result: Matrix = _as(A).pinv()
    return result


def qr(A: Any) -> tuple[HouseholderProduct, torch.Tensor]:
    """``A = Q R``: Q ``(m, m)`` as the reflectors themselves, R ``(m, n)`` upper triangular (LAPACK's signs).

    A is a tensor ``(*b, m, n)`` or a Matrix, which is formed. ``Q.linear``, ``Q.inv()``, ``Q.solve`` cost 4 k m flops a
    vector, k = min(m, n), and Q stores k m numbers in place of m^2. Differentiable to any order where the columns of A
    are linearly independent.

    >>> Q, R = sm.linalg.qr(torch.tensor([[3.0, 1.0], [4.0, 2.0]], dtype=torch.float64))
    >>> bool(torch.allclose(Q @ R, torch.tensor([[3.0, 1.0], [4.0, 2.0]], dtype=torch.float64)))
    True
    """
    entries = _as(A).to_dense()
    vectors, phases, r = householder_qr(entries)
    return HouseholderProduct(vectors, phases), r


def lstsq(A: Any, b: Any, *, return_info: bool = False, **options: Any) -> Any:
    """The x of least norm that minimises ``||A x - b||_2``; b ``(m,)`` or ``(..., m, k)``.

    Options as ``Matrix.lstsq``; with ``return_info`` also how it was solved. "auto": the pseudo-inverse where the type
    has one and up to the dense limit (singular values below ``max(m, n) eps sigma_1`` count as zero), LSMR above it.
    """
    x, info = _as(A)._lstsq_info(entries_of(b, "b"), Options(**options))
    return (x, info) if return_info else x


def progress_bar(description: str = "solve", tol: float = 2e-14, **options: Any) -> ProgressBar:
    """A callback for ``solve`` and ``lstsq`` that draws a progress bar: the digits reached, of those of ``tol``.

    Needs tqdm (``pip install 'structmat[progress]'``), whose constructor takes the other options.

    >>> with sm.linalg.progress_bar("CG", tol=1e-6, disable=True) as bar:
    ...     x = sm.toeplitz([2.0, 1.0]).solve(torch.ones(2, dtype=torch.float64), method="cg", callback=bar)
    """
    return ProgressBar(description, tol, **options)


def det(A: Any) -> torch.Tensor:
    """The determinant."""
    return _as(A).det()


def eigvals(A: Any) -> torch.Tensor:
    """The eigenvalues, complex."""
    return _as(A).eigvals()


def eigvalsh(A: Any) -> torch.Tensor:
    """The eigenvalues of a Hermitian matrix ``(*batch, n)``, real, ascending.

    A Matrix must claim to be Hermitian (``assume`` vouches); a tensor is taken for Hermitian, and its lower triangle
    read, as ``torch.linalg.eigvalsh`` does. By structure where the type has eigenvalues (Kronecker products and sums,
    circulants, blocks, diagonals, their inverses and scalings), dense up to the dense limit.
    Raises StructureError without the claim, and above the limit.

    >>> sm.linalg.eigvalsh(sm.kron(sm.toeplitz([2.0, 1.0]), sm.Diagonal(torch.tensor([1.0, -1.0]).double())))
    tensor([-3., -1.,  1.,  3.], dtype=torch.float64)
    """
    if isinstance(A, Matrix):
        return hermitian_eigvals(A)
    a = _as(A)
    require_square(a, "eigvalsh")
    found: torch.Tensor = a._cast(torch.linalg.eigvalsh(a._wide_dense()), real=True)
    return found


def svdvals(A: Any) -> torch.Tensor:
    """Singular values, descending."""
    return _as(A).svdvals()


def polar(A: Any, side: str = "right") -> tuple[Matrix, Matrix]:
    """U and P with ``A = U P`` (side "right") or ``A = P U`` ("left"), as ``scipy.linalg.polar``.

    U has orthonormal columns (rows, where A is wide), P is Hermitian and positive semidefinite. A matrix that claims
    orthonormal columns is its own U; structure stays for diagonals, f-circulants with |f| = 1, Kronecker products,
    blocks and scalings; else dense up to the dense limit. Differentiable to any order where A has full rank.
    Raises StructureError above the limit, ValueError for another side.

    >>> U, P = sm.linalg.polar(sm.Circulant(torch.tensor([1.0, 3.0, 0.5]).double()))
    >>> type(U).__name__, type(P).__name__
    ('Circulant', 'Circulant')

    References: N. J. Higham, Functions of Matrices, 2008, chapter 8.
    """
    return polar_factors(_as(A), side)


_NORMS: dict[Any, tuple[int, bool]] = {
    1: (-2, False),
    -1: (-2, True),
    float("inf"): (-1, False),
    -float("inf"): (-1, True),
}


def norm(A: Any, ord: str | float | None = None) -> torch.Tensor:
    """The matrix norm of ``torch.linalg.matrix_norm``: Frobenius (None, "fro"), nuclear ("nuc"), the largest or least
    singular value (2, -2), column sum (1, -1) or row sum (inf, -inf) of absolute values.

    Sums cost n products in blocks where the type has no shorter way; singular values those of ``svdvals``. Of a matrix
    without entries 0; ShapeError for the least of nothing.
    """
    a = _as(A)
    if ord is None or ord == "fro":
        return a.norm()
    if 0 in a.shape[-2:] and ord in (*_NORMS, 2, -2, "nuc"):
        if ord in (-1, -2, -float("inf")):
            raise ShapeError(f"norm({a!r}, ord={ord!r}): a matrix without entries has no least one")
        return a.norm()
    if ord in (2, -2):
        return a.svdvals()[..., 0 if ord == 2 else -1]
    if ord == "nuc":
        return a.svdvals().sum(-1)
    if ord in _NORMS:
        return sum_norm(a, *_NORMS[ord])
    raise ValueError(f"norm(ord={ord!r}): legal orders are None, 'fro', 'nuc', 2, -2, 1, -1, inf and -inf")


def cond(A: Any, p: str | float | None = None) -> torch.Tensor:
    """``sigma_1 / sigma_n`` (p None or 2), its inverse (-2), or ``norm(A, p) norm(A^-1, p)``; inf for a singular A,
    0 for one without entries."""
    a = _as(A)
    if 0 in a.shape[-2:]:
        return a.norm()
    if p in (None, 2, -2):
        s = a.svdvals()
        return s[..., 0] / s[..., -1] if p != -2 else s[..., -1] / s[..., 0]
    require_square(a, "cond")
    size = norm(a, p)
    try:
        return size * norm(a.inv(), p)
    except SolveError:
        if a.batch_shape:
            raise
        return torch.full_like(size, float("inf"))


def matrix_rank(
    A: Any, *, atol: float | None = None, rtol: float | None = None, hermitian: bool = False
) -> torch.Tensor:
    """How many singular values exceed ``max(atol, rtol sigma_1)``, ``(*batch)`` integers, as torch counts them.

    ``rtol`` is by default ``max(m, n) eps``, and 0 where ``atol`` is given; ``hermitian`` takes the absolute values of
    ``eigvalsh``. ``checks.numerical_rank`` also says how clear the answer is.
    """
    a = _as(A)
    values = eigvalsh(A).abs() if hermitian else a.svdvals()
    values = values.detach()
    if rtol is None:
        eps = torch.finfo(backend.compute_dtype(a.dtype or torch.get_default_dtype())).eps
        rtol = 0.0 if atol is not None else max(a.shape[-2:]) * eps
    if values.shape[-1] == 0:
        return torch.zeros(values.shape[:-1], dtype=torch.int64, device=values.device)
    cut = (rtol * values.amax(-1, keepdim=True)).clamp_min(0.0 if atol is None else atol)
    return (values > cut).sum(-1)


def diagonal(A: Any) -> torch.Tensor:
    """The diagonal entries."""
    return _as(A).diagonal()


def matmul(A: Any, B: Any) -> Any:
    """``A @ B`` as a function (two matrices multiplied by the operator do not trace under
    ``torch.compile(fullgraph=True)``)."""
    if isinstance(A, Matrix) and isinstance(B, Matrix):
        return _matrix.matmul(A, B)
    left, right = (v if isinstance(v, (Matrix, torch.Tensor)) else entries_of(v, "matmul's operand") for v in (A, B))
    return left @ right
