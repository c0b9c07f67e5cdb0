"""A dense matrix as a Matrix, so that it can stand in any expression."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch, solving
from structmat._indexing import positions
from structmat._shell import require_square
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo

__all__ = ["Dense"]


class Dense(Matrix):
    """All entries stored: ``A[i, j] = entries[i, j]``.

    Stores:   entries (*batch, m, n), real or complex.
    Shape:    (*batch, m, n).      Claims: none but what ``assume`` adds.
    Cost:     linear 2 m n flops a row; solve, det 2/3 n^3; n^2 memory, also above the dense limit.
    Closed:   X @ A, A @ X, X + A, s X -> Dense for every matrix A; inv, pinv -> Dense.
    Raises:   ShapeError for fewer than two dimensions, DtypeError for integer entries.
    Example:
        >>> A = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> A @ torch.tensor([1.0, 0.0])
        tensor([1., 3.])
    """

    core: ClassVar[Mapping[str, int]] = {"entries": 2}
    entries: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.entries.dtype

    @property
    def device(self) -> torch.device:
        return self.entries.device

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        entries = self.entries
        if entries.dtype != x.dtype:
            common = torch.promote_types(entries.dtype, x.dtype)
            entries, x = entries.to(common), x.to(common)
        return torch.matmul(x, entries.mT)

    def transpose(self) -> Matrix:
        return Dense(self.entries.mT)

    def to_dense(self) -> torch.Tensor:
        return self.entries

    def inv(self) -> Matrix:
        eye = torch.eye(require_square(self, "inv"), dtype=self.dtype, device=self.device)
        return Dense(self.solve(eye, check=False).expand(self.shape))

    def diagonal(self) -> torch.Tensor:
        return torch.diagonal(self.entries, dim1=-2, dim2=-1)

    def norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.entries, dim=(-2, -1))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Dense(self.entries * factor)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        m, n = self.shape[-2:]
        return Dense(self.entries[..., positions(rows, m), :][..., positions(columns, n)])

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        options.refuse_iterative(f"{self!r}.solve", "dense")
        x = solving.dense_solve_rows(self, y)
        return x, self._checked(x, y, "dense", 1, options, ("LU with partial pivoting",))

    def _factor(self, method: str) -> Factorisation:
        return DenseFactorisation.of(self)

    def _is_small(self) -> bool:
        """The entries are stored anyway: no limit."""
        return True

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = self.shape[-2:]
        if verb == "linear":
            moved = (m * n + (m + n) * columns) * self.entries.element_size()
            return backend.Plan("torch.matmul", "all entries are stored", 2.0 * m * n * columns, float(moved))
        return super().plan(verb, columns)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> "Dense":
        """Every matrix is dense: always exact."""
        return cls(dense)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Dense":
        """The matrix itself, at distance 0."""
        return cls(dense)

    @classmethod
    def random(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Dense":
        """Standard normal entries; ``dtype`` and ``device`` as in ``torch.randn``."""
        return cls(torch.randn(m, m if n is None else n, generator=generator, **options))

    @classmethod
    def identity(cls, n: int, **options: Any) -> "Dense":
        return cls(torch.eye(n, **options))


@dispatch.rule("wrap", torch.Tensor)
def _wrap(tensor: torch.Tensor) -> Matrix:
    """A tensor in an expression is a Dense."""
    return Dense(tensor)


@dispatch.rule("matmul", Dense, Dense)
def _dense_dense(a: Dense, b: Dense) -> Matrix:
    """Dense."""
    left, right = a.entries, b.entries
    if left.dtype != right.dtype:
        common = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(common), right.to(common)
    return Dense(left @ right)


@dispatch.rule("matmul", Dense, Matrix)
def _dense_any(a: Dense, b: Matrix) -> Matrix:
    """Dense: the rows of A times B, by B's fast product."""
    return Dense(b.transpose().linear(a.entries))


@dispatch.rule("matmul", Matrix, Dense)
def _any_dense(a: Matrix, b: Dense) -> Matrix:
    """Dense: A times the columns of B, by A's fast product."""
    return Dense(a.linear(b.entries.mT).mT)


@dispatch.rule("add", Dense, Dense)
def _dense_plus_dense(a: Dense, b: Dense) -> Matrix:
    """Dense."""
    return Dense(a.entries + b.entries)


@dispatch.rule("add", Dense, Matrix)
def _dense_plus_any(a: Dense, b: Matrix) -> Matrix:
    """Dense."""
    return Dense(a.entries + b.to_dense())


@dispatch.rule("add", Matrix, Dense)
def _any_plus_dense(a: Matrix, b: Dense) -> Matrix:
    """Dense."""
    return _dense_plus_any(b, a)


@dispatch.rule("hadamard", Dense, Matrix)
def _dense_times_any(a: Dense, b: Matrix) -> Matrix:
    """Dense: entrywise."""
    return Dense(a.entries * b.to_dense())


@dispatch.rule("hadamard", Matrix, Dense)
def _any_times_dense(a: Matrix, b: Dense) -> Matrix:
    """Dense: entrywise."""
    return Dense(a.to_dense() * b.entries)


@dispatch.rule("hadamard", Dense, Dense)
def _dense_times_dense(a: Dense, b: Dense) -> Matrix:
    """Dense: entrywise."""
    return Dense(a.entries * b.entries)
