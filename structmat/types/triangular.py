"""Triangular matrices as their solves take them: one triangle of a square array, the diagonal stored or ones."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Triangular"]


class Triangular(Matrix):
    """``A[i, j] = entries[i, j]`` for ``i >= j`` (``upper``: ``i <= j``), else zero; ``unit``: ones on the diagonal.

    Stores:   entries (*batch, n, n), of which the other triangle, and with ``unit`` the diagonal, is never read, as in
              ``torch.linalg.solve_triangular``; upper, unit (static). n^2 storage.
    Shape:    (*batch, n, n).      Claims: lower or upper triangular.
    Cost:     linear 2 n^2 flops a row; solve n^2 per right-hand side, inv n^3 / 3; slogdet, eigvals n.
    Closed:   X @ X, X + X of one side (else Dense), with Diagonal and multiples of Identity, X * A (any A), s X; inv,
              transpose -> X.
    Raises:   ShapeError for entries that are not square; SolveError (with the backward error) for a zero on the
              diagonal.
    Example:
        >>> A = sm.Triangular(torch.tensor([[2.0, 9.0], [1.0, 4.0]]))
        >>> A.solve(torch.tensor([2.0, 5.0]))
        tensor([1., 1.])
    References: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, chapter 8.
    """

    core: ClassVar[Mapping[str, int]] = {"entries": 2}
    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "triangular")
    entries: torch.Tensor
    upper: bool = False
    unit: bool = False

    def _validate(self) -> None:
        if self.entries.shape[-1] != self.entries.shape[-2]:
            raise ShapeError(f"Triangular: square entries are needed, got shape {tuple(self.entries.shape)}")

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    def to_dense(self) -> torch.Tensor:
        """The entries with zeros, and ones, put in."""
        if not self.unit:
            return self.entries.triu() if self.upper else self.entries.tril()
        strict = self.entries.triu(1) if self.upper else self.entries.tril(-1)
        return strict + torch.eye(int(self.shape[-1]), dtype=strict.dtype, device=strict.device)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        common = torch.promote_types(self.entries.dtype, x.dtype)
        return torch.matmul(x.to(common), self.to_dense().to(common).mT)

    def transpose(self) -> Matrix:
        return Triangular(self.entries.mT, not self.upper, self.unit)

    def _is_small(self) -> bool:
        """The entries are stored anyway: no limit."""
        return True

    # -- solve ----------------------------------------------------------------------------------------------------

    def _solved(self, columns: torch.Tensor) -> torch.Tensor:
        """``A^-1`` times columns ``(..., n, k)``, in the dtype computed in."""
        wide = backend.compute_dtype(torch.promote_types(self.entries.dtype, columns.dtype))
        with backend.full_precision(columns.device):
            return torch.linalg.solve_triangular(
                self.entries.to(wide), columns.to(wide), upper=self.upper, unitriangular=self.unit
            )

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "triangular")
        x = self._solved(y.mT).mT
        return x, self._checked(x, y, "triangular", 1, options, ("substitution",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self, "triangular") if method != "dense" else super()._factor(method)

    def inv(self) -> Matrix:
        n = int(self.shape[-1])
        found = self._solved(torch.eye(n, dtype=self.entries.dtype, device=self.entries.device))
        return Triangular(found.to(self.entries.dtype).expand(self.shape), self.upper, self.unit)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        wide = self.diagonal().to(backend.compute_dtype(self.entries.dtype))
        return self._cast(torch.sgn(wide).prod(-1)), self._cast(wide.abs().log().sum(-1), real=True)

    # -- entries --------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        stored = torch.diagonal(self.entries, dim1=-2, dim2=-1)
        return torch.ones_like(stored) if self.unit else stored

    def eigvals(self) -> torch.Tensor:
        """The diagonal, in its order, complex."""
        wide = self.diagonal().to(backend.compute_dtype(self.entries.dtype))
        return wide.to(backend.complex_of(wide.dtype))

    def norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.to_dense(), dim=(-2, -1))

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.UPPER_TRIANGULAR if self.upper else Claim.LOWER_TRIANGULAR}))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Triangular((self.to_dense() if self.unit else self.entries) * factor, self.upper)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        """A principal slice of step one is Triangular, any other Dense."""
        n = int(self.shape[-1])
        start, stop, step = rows.indices(n)
        if rows.indices(n) == columns.indices(n) and step == 1:
            return Triangular(self.entries[..., start:stop, start:stop], self.upper, self.unit)
        cut: Matrix = dispatch.call("wrap", self.to_dense())._slice(rows, columns)
        return cut

    def _statics(self) -> list[str]:
        return [f"upper={self.upper}", *(["unit=True"] if self.unit else [])]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n = int(self.shape[-1])
        moved = float((n * n + 2 * n * columns) * self.entries.element_size())
        if verb == "solve":
            return backend.Plan("triangular", "substitution", float(n * n * columns), moved)
        if verb == "linear":
            return backend.Plan("torch.matmul", "all entries are stored", 2.0 * n * n * columns, moved)
        return super().plan(verb, columns)

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(cls, dense: torch.Tensor, upper: bool = False, tol: float | None = None) -> Matrix:
        """One triangle, if the other is zero within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense, upper), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, upper: bool = False) -> "Triangular":
        """The triangle of the matrix: the best in the Frobenius norm."""
        require_square_entries(dense, "Triangular.nearest")
        return cls(dense.triu() if upper else dense.tril(), upper)

    @classmethod
    def random(
        cls, n: int, upper: bool = False, unit: bool = False, *, generator: Any = None, **options: Any
    ) -> "Triangular":
        """Standard normal entries over n below (above) a diagonal near one, so that inverses stay small."""
        drawn = torch.randn(n, n, generator=generator, **options) / max(1, n)
        return cls(drawn + torch.eye(n, **options), upper, unit)

    @classmethod
    def identity(cls, n: int, **options: Any) -> "Triangular":
        return cls(torch.eye(n, **options))


def _dense(entries: torch.Tensor) -> Matrix:
    matrix: Matrix = dispatch.call("wrap", entries)
    return matrix


@dispatch.rule("matmul", Triangular, Triangular)
def _times(a: Triangular, b: Triangular) -> Matrix:
    """Triangular for one side; Dense else."""
    x, y = a.to_dense(), b.to_dense()
    common = torch.promote_types(x.dtype, y.dtype)
    entries = x.to(common) @ y.to(common)
    return Triangular(entries, a.upper, a.unit and b.unit) if a.upper == b.upper else _dense(entries)


@dispatch.rule("add", Triangular, Triangular)
def _plus(a: Triangular, b: Triangular) -> Matrix:
    """Triangular for one side; Dense else."""
    entries = a.to_dense() + b.to_dense()
    return Triangular(entries, a.upper) if a.upper == b.upper else _dense(entries)


@dispatch.rule("hadamard", Triangular, Triangular)
def _entrywise(a: Triangular, b: Triangular) -> Matrix:
    """Triangular."""
    return Triangular(a.to_dense() * b.to_dense(), a.upper)
