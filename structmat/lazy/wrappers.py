"""One matrix seen another way: inverted, sliced, or with the work of its products done once."""

from typing import Any

import torch

from structmat import claims as survive
from structmat import dispatch
from structmat.claims import Claims
from structmat.lazy.expressions import tree
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Inverse", "Prepared", "Slice"]


class Inverse(Matrix):
    """``A^-1``, applied by solving. ``prepare()`` factorises once; without it every product solves anew."""

    matrix: Matrix
    factorisation: Factorisation | None = None

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    @property
    def dtype(self) -> torch.dtype | None:
        return self.matrix.dtype

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.factorisation is not None:
            return self.factorisation.solve_rows(x)
        return self.matrix.solve_rows(x)

    def transpose(self) -> Matrix:
        return Inverse(self.matrix.transpose())

    def conj(self) -> Matrix:
        return Inverse(self.matrix.conj())

    def inv(self) -> Matrix:
        return self.matrix

    def prepare(self) -> Matrix:
        return Inverse(self.matrix, self.matrix.factor())

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        sign, logabs = self.matrix.slogdet()
        return (sign.conj() if sign.is_complex() else sign), -logabs

    def _properties(self) -> Claims:
        return survive.inverse(self.matrix.claims)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        return self.matrix.linear(y), SolveInfo("product", 0, None, ("the inverse of an inverse is a product",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self) if method == "auto" else super()._factor(method)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        inner = self.matrix._picked(batch, lead)
        return Inverse(inner) if self.factorisation is None else Inverse(inner, inner.factor())

    def __repr__(self) -> str:
        return tree("Inverse", (self.matrix,))


class Slice(Matrix):
    """Rows and columns of A picked by slices: zeros are put in, A is applied, rows are cut out. Costs what A costs."""

    matrix: Matrix
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.matrix.shape[:-2], len(range(*self.rows)), len(range(*self.columns))))

    @property
    def dtype(self) -> torch.dtype | None:
        return self.matrix.dtype

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(*x.shape[:-1], self.matrix.shape[-1])
        where = torch.arange(*self.columns, device=x.device)
        y = self.matrix.linear(full.index_copy(-1, where, x))
        return y[..., torch.arange(*self.rows, device=x.device)]

    def transpose(self) -> Matrix:
        return Slice(self.matrix.transpose(), self.columns, self.rows)

    def conj(self) -> Matrix:
        return Slice(self.matrix.conj(), self.rows, self.columns)

    def _properties(self) -> Claims:
        known = self.matrix.claims
        keep = frozenset({survive.Claim.SYMMETRIC, survive.Claim.HERMITIAN, survive.Claim.POSITIVE_DEFINITE})
        principal = keep & known.properties if self.rows == self.columns else frozenset()
        return Claims(principal, known.rank, {})

    def _norm_bound(self) -> torch.Tensor:
        return self.matrix._norm_bound()

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Slice(self.matrix._picked(batch, lead), self.rows, self.columns)

    def __repr__(self) -> str:
        return tree(f"Slice[{':'.join(map(str, self.rows))}, {':'.join(map(str, self.columns))}]", (self.matrix,))


class Prepared(Matrix):
    """The same entries as ``matrix``, with what its products need computed once (spectra, triangular factors)."""

    matrix: Matrix
    kept: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    @property
    def dtype(self) -> torch.dtype | None:
        return self.matrix.dtype

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self.matrix._linear_kept(self.kept, x)

    def transpose(self) -> Matrix:
        prepared: Matrix = self.matrix.transpose().prepare()
        return prepared

    def conj(self) -> Matrix:
        prepared: Matrix = self.matrix.conj().prepare()
        return prepared

    def inv(self) -> Matrix:
        inverse: Matrix = self.matrix.inv()
        return inverse

    def to(self, *target: Any, **options: Any) -> Any:
        return self.matrix.to(*target, **options).prepare()._vouched(self._assumed)

    def to_dense(self) -> torch.Tensor:
        return self.matrix.to_dense()

    def diagonal(self) -> torch.Tensor:
        return self.matrix.diagonal()

    def norm(self) -> torch.Tensor:
        return self.matrix.norm()

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix.slogdet()

    def _properties(self) -> Claims:
        return self.matrix.claims

    def _norm_bound(self) -> torch.Tensor:
        return self.matrix._norm_bound()

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        return self.matrix._solve_rows(y, options)

    def _factor(self, method: str) -> Factorisation:
        return self.matrix._factor(method)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return self.matrix._picked(batch, lead).prepare()

    def __repr__(self) -> str:
        shown = repr(self.matrix)
        return tree("Prepared", (self.matrix,)) if "\n" in shown else f"Prepared({shown})"


@dispatch.rule("inverse", Matrix)
def _inverse(a: Matrix) -> Matrix:
    """Lazy: solves when applied."""
    return Inverse(a)


@dispatch.rule("slice", Matrix)
def _slice(a: Matrix, rows: slice, columns: slice) -> Matrix:
    """Lazy: zeros in, rows out."""
    m, n = (int(s) for s in a.shape[-2:])
    places = [index.indices(size) for index, size in ((rows, m), (columns, n))]
    return Slice(a, *(p if range(*p) else (0, 0, 1) for p in places))  # torch.arange refuses 4:1
