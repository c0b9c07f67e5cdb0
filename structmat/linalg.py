"""The names of ``torch.linalg`` and ``scipy.linalg`` over a Matrix or a tensor.

A tensor is treated as ``Dense``; ``solve_toeplitz``, ``solve_circulant`` and ``matmul_toeplitz`` have scipy's
signatures, and give numpy arrays back for numpy arrays.
"""

from typing import Any

import torch

from structmat import checks
from structmat import matrix as _matrix
from structmat._progress import ProgressBar
from structmat.construct import entries_of
from structmat.functional.qr import householder_qr
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
    "LevinsonDurbin",
    "cond",
    "det",
    "diagonal",
    "eigvals",
    "inv",
    "levinson_durbin",
    "lstsq",
    "matmul",
    "matmul_toeplitz",
    "matrix_rank",
    "norm",
    "pinv",
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
    x, info = _as(A)._solve_info(b, Options(**options))
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


def slogdet(A: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign (or phase) and ``log|det A|``."""
    return _as(A).slogdet()


def eigvals(A: Any) -> torch.Tensor:
    """The eigenvalues, complex."""
    return _as(A).eigvals()


def svdvals(A: Any) -> torch.Tensor:
    """Singular values, descending."""
    return _as(A).svdvals()


def norm(A: Any, ord: str | int | None = None) -> torch.Tensor:
    """The matrix norm: Frobenius (None, "fro"), spectral (2) or nuclear ("nuc")."""
    a = _as(A)
    if ord is None or ord == "fro":
        return a.norm()
    if ord == 2:
        return a.svdvals()[..., 0]
    if ord == "nuc":
        return a.svdvals().sum(-1)
    raise ValueError(f"norm(ord={ord!r}): legal orders are None, 'fro', 2 and 'nuc'")


def cond(A: Any) -> torch.Tensor:
    """``sigma_1 / sigma_n``."""
    s = _as(A).svdvals()
    return s[..., 0] / s[..., -1]


def matrix_rank(A: Any, tol: float | None = None) -> int:
    """The numerical rank, see ``checks.numerical_rank``."""
    return int(checks.numerical_rank(_as(A), tol))


def trace(A: Any) -> torch.Tensor:
    """The sum of the diagonal entries."""
    return _as(A).trace()


def diagonal(A: Any) -> torch.Tensor:
    """The diagonal entries."""
    return _as(A).diagonal()


def matmul(A: Any, B: Any) -> Any:
    """``A @ B`` as a function (two matrices multiplied by the operator do not trace under
    ``torch.compile(fullgraph=True)``)."""
    if isinstance(A, Matrix) and isinstance(B, Matrix):
        return _matrix.matmul(A, B)
    return A @ B
