"""The names of ``torch.linalg`` and ``scipy.linalg`` over a Matrix or a tensor.

A tensor is treated as ``Dense``; ``solve_toeplitz``, ``solve_circulant`` and ``matmul_toeplitz`` have scipy's
signatures, and give numpy arrays back for numpy arrays.
"""

from typing import Any

import torch

from structmat import checks
from structmat import matrix as _matrix
from structmat.construct import _from_pair, entries_of
from structmat.errors import ShapeError, SolveError
from structmat.matrix import Matrix
from structmat.solving import Options, SolveInfo
from structmat.types.dense import Dense

__all__ = [
    "cond",
    "det",
    "diagonal",
    "eigvals",
    "inv",
    "lstsq",
    "matmul",
    "matmul_toeplitz",
    "matrix_rank",
    "norm",
    "pinv",
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


def lstsq(A: Any, b: Any) -> torch.Tensor:
    """The x of least norm that minimises ``||A x - b||_2``; b ``(m,)`` or ``(..., m, k)``.

    Applies ``pinv``: structured where that is, a dense SVD up to the dense limit elsewhere; singular values below
    ``max(m, n) eps sigma_1`` count as zero.
    """
    result: torch.Tensor = _as(A).pinv() @ entries_of(b, "b")
    return result


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


# -- scipy's names ------------------------------------------------------------------------------------------------


def _toeplitz_of(c_or_cr: Any) -> tuple[Matrix, bool]:
    """The matrix, and whether the input was numpy (or lists). r[0] is ignored, as in scipy."""
    if isinstance(c_or_cr, tuple):
        given = [entries_of(v, n) for v, n in zip(c_or_cr, ("c", "r"), strict=True)]
        column, row = given
        common = torch.promote_types(column.dtype, row.dtype)
        return _from_pair(column.to(common), row.to(common)), not any(isinstance(v, torch.Tensor) for v in c_or_cr)
    column = entries_of(c_or_cr, "c")
    row = column.conj().resolve_conj() if column.is_complex() else column
    return _from_pair(column, row), not isinstance(c_or_cr, torch.Tensor)


def _given_back(result: torch.Tensor, as_numpy: bool) -> Any:
    return result.detach().cpu().resolve_conj().numpy() if as_numpy else result


def _finite(*values: torch.Tensor) -> None:
    for v in values:
        if not bool(torch.isfinite(v).all()):
            raise ValueError("array must not contain infs or NaNs; check_finite=False lets them pass")


def solve_toeplitz(c_or_cr: Any, b: Any, check_finite: bool = True) -> Any:
    """x with ``T x = b`` for ``c`` or ``(c, r)``, as ``scipy.linalg.solve_toeplitz``, at backward error 100 eps or
    ``SolveError``.

    Differentiable for tensors. Unlike Levinson alone it does not fail at a singular leading minor.
    """
    t, as_numpy = _toeplitz_of(c_or_cr)
    right = entries_of(b, "b")
    common = torch.promote_types(t.dtype or right.dtype, right.dtype)
    t, right = t.to(common), right.to(common)
    if check_finite:
        _finite(*t.tensors(), right)
    flat = right if right.ndim < 3 else right.flatten(1)  # scipy keeps any trailing shape of b
    x = t.solve(flat)
    return _given_back(
        x if right.ndim < 3 else x.unflatten(1, right.shape[1:]), as_numpy and not isinstance(b, torch.Tensor)
    )


def matmul_toeplitz(c_or_cr: Any, x: Any, check_finite: bool = False, workers: int | None = None) -> Any:
    """``T @ x`` for ``c`` or ``(c, r)``, as ``scipy.linalg.matmul_toeplitz``; ``workers`` is accepted and has no
    effect here."""
    t, as_numpy = _toeplitz_of(c_or_cr)
    right = entries_of(x, "x")
    common = torch.promote_types(t.dtype or right.dtype, right.dtype)
    t, right = t.to(common), right.to(common)
    if check_finite:
        _finite(*t.tensors(), right)
    flat = right if right.ndim < 3 else right.flatten(1)
    y = t @ flat
    return _given_back(
        y if right.ndim < 3 else y.unflatten(1, right.shape[1:]), as_numpy and not isinstance(x, torch.Tensor)
    )


def solve_circulant(
    c: Any, b: Any, singular: str = "raise", tol: float | None = None, caxis: int = -1, baxis: int = 0, outaxis: int = 0
) -> Any:
    """x with ``C x = b`` for the circulant of first column ``c``, as ``scipy.linalg.solve_circulant``.

    ``singular``: "raise" or "lstsq" (the least-squares solution of least norm; eigenvalues at most ``tol`` count as
    zero, default n eps times the largest modulus).
    """
    if singular not in ("raise", "lstsq"):
        raise ValueError(f"solve_circulant(singular={singular!r}): legal values are 'raise' and 'lstsq'")
    columns = entries_of(c, "c").movedim(caxis, -1)
    right = entries_of(b, "b").movedim(baxis, -1)
    common = torch.promote_types(columns.dtype, right.dtype)
    columns, right = columns.to(common), right.to(common)
    n = columns.shape[-1]
    if right.shape[-1] != n:
        raise ShapeError(
            f"solve_circulant: c has {n} entries along caxis {caxis}, b has {right.shape[-1]} along baxis {baxis}"
        )
    lam = torch.fft.fft(columns)
    size = lam.detach().abs()
    cut = torch.as_tensor(n * torch.finfo(size.dtype).eps * float(size.max()) if tol is None else tol)
    small = size <= cut
    if bool(small.any()):
        if singular == "raise":
            raise SolveError(
                "solve_circulant: near singular matrix; singular='lstsq' gives the least-squares solution", float("inf")
            )
        inverse = torch.where(small, torch.zeros_like(lam), 1 / torch.where(small, torch.ones_like(lam), lam))
    else:
        inverse = 1 / lam
    x = torch.fft.ifft(inverse * torch.fft.fft(right))
    x = x if common.is_complex else x.real
    as_numpy = not isinstance(c, torch.Tensor) and not isinstance(b, torch.Tensor)
    return _given_back(x.movedim(-1, outaxis), as_numpy)
