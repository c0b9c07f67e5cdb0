"""Matrices that are Tucker tensors with some modes as rows and the others as columns."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from structmat import backend, dispatch
from structmat.claims import Claims
from structmat.errors import ShapeError, StructureError
from structmat.functional import tucker as ft
from structmat.functional import tucker_apply as fa
from structmat.matrix import Matrix

__all__ = ["TuckerMatrix"]


class TuckerMatrix(Matrix):
    """``A = (U_r1 x U_r2 x ...) G (U_c1 x U_c2 x ...)^T`` (x: Kronecker): a Tucker tensor with modes r as rows, modes c
    as columns, each in C order, G the core seen the same way.

    ``Tucker.matricize(rows)`` makes one. With two modes it is the low-rank product ``U_1 G U_2^T``.

    Stores:   kernel (*batch, R_1, ..., R_N), the core; factors, a tuple of (*batch, D_k, R_k). Static: rows, columns,
              the modes of each, together 0 to N - 1.
    Shape:    (*batch, product of D_r, product of D_c).      Claims: rank at most that of G.
    Cost:     linear along the cheapest sequence of contractions for the number of rows (see explain(A, x)), which
              forms the dense matrix only where that is cheaper and no larger than the rows or the dense limit;
              svdvals and norm D_k R_k^2 a mode and those of G; memory of core and factors.
    Closed:   transpose, s A, A + B and A * B (entry by entry) with the same modes.
    Raises:   ShapeError for modes that are not named once each, factors that do not fit, R_k > D_k.
    Example:
        >>> sm.Tucker(torch.ones(1, 1), (torch.ones(2, 1), torch.ones(3, 1))).matricize(0).to_dense()
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    References: T. G. Kolda and B. W. Bader, Tensor decompositions and applications, 2009, equation 4.2.
    """

    kernel: torch.Tensor
    factors: tuple[torch.Tensor, ...]
    rows: ft.Sizes
    columns: ft.Sizes

    @property
    def core(self) -> Mapping[str, int]:  # type: ignore[override]
        """How many trailing dimensions of each tensor are not batch: those of the kernel are the modes."""
        return {"kernel": len(self.factors), "factors": 2}

    def _validate(self) -> None:
        order = len(self.factors)
        if sorted((*self.rows, *self.columns)) != list(range(order)):
            raise ShapeError(
                f"TuckerMatrix: rows {self.rows} and columns {self.columns} must name each of the {order} modes once"
            )
        got = tuple([u.shape[-1] for u in self.factors])
        if self.kernel.ndim < order or tuple(self.kernel.shape[self.kernel.ndim - order :]) != got:
            raise ShapeError(
                f"TuckerMatrix: the factors have {got} columns, the kernel has shape {tuple(self.kernel.shape)}; the "
                "last sizes must agree"
            )
        if any(u.shape[-1] > u.shape[-2] for u in self.factors):
            raise ShapeError(f"TuckerMatrix: a rank of {got} is above the size of its mode {self.dims}")

    @property
    def dims(self) -> ft.Sizes:
        """The sizes of the modes."""
        return tuple([u.shape[-2] for u in self.factors])

    @property
    def shape(self) -> torch.Size:
        dims = self.dims
        m, n = (math.prod([dims[k] for k in modes]) for modes in (self.rows, self.columns))
        return torch.Size((*self.batch_shape, m, n))

    def _statics(self) -> list[str]:
        return [f"dims={self.dims}", f"ranks={tuple([u.shape[-1] for u in self.factors])}", f"rows={self.rows}"]

    def _properties(self) -> Claims:
        ranks = [u.shape[-1] for u in self.factors]
        return Claims(frozenset(), min(math.prod([ranks[k] for k in modes]) for modes in (self.rows, self.columns)), {})

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fa.tucker_rows(x, self.kernel, self.factors, self.rows, self.columns)

    def transpose(self) -> Matrix:
        return TuckerMatrix(self.kernel, self.factors, self.columns, self.rows)

    def to_dense(self) -> torch.Tensor:
        kernel, factors = self._wide()
        with backend.full_precision(kernel.device):
            return self._as_matrix(ft.expand(kernel, factors)).to(self.kernel.dtype)

    def _wide(self) -> tuple[torch.Tensor, ft.Factors]:
        dtype = backend.compute_dtype(self.kernel.dtype)
        return self.kernel.to(dtype), tuple([u.to(dtype) for u in self.factors])

    def _as_matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """``(*batch, D_1, ..., D_N)`` with its row modes flattened, then its column modes."""
        lead = tensor.ndim - len(self.factors)
        sizes = tensor.shape[lead:]
        moved = tensor.permute(*range(lead), *(lead + k for k in (*self.rows, *self.columns)))
        m, n = (math.prod([sizes[k] for k in modes]) for modes in (self.rows, self.columns))
        return moved.reshape(*tensor.shape[:lead], m, n)

    def _small(self) -> torch.Tensor:
        """A matrix with the same singular values, zeros apart: the core behind orthonormal factors."""
        with backend.full_precision(self.kernel.device):
            return self._as_matrix(ft.orthogonalised(*self._wide())[0])

    def norm(self) -> torch.Tensor:
        """That of the core once the factors are orthonormal."""
        return self._cast(torch.linalg.vector_norm(self._small(), dim=(-2, -1)), real=True)

    def svdvals(self) -> torch.Tensor:
        """Those of the core once the factors are orthonormal, and zeros."""
        found = torch.linalg.svdvals(self._small())
        missing = min(self.shape[-2:]) - found.shape[-1]
        return self._cast(torch.nn.functional.pad(found, (0, missing)), real=True)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        if isinstance(factor, torch.Tensor) and factor.ndim:
            factor = factor.reshape(*factor.shape[:-2], *[1] * len(self.factors))
        scaled = self.kernel * factor
        return TuckerMatrix(scaled, tuple([u.to(scaled.dtype) for u in self.factors]), self.rows, self.columns)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb != "linear":
            return super().plan(verb, columns)
        ranks = tuple([u.shape[-1] for u in self.factors])
        found = fa.path(self.dims, ranks, self.rows, self.columns, columns)
        name = "dense" if found.forms_weight else "factored"
        m, n = (int(s) for s in self.shape[-2:])
        words = "; ".join(" with ".join([*step.given]) + " to " + step.result for step in found.steps)
        reason = f"the fewest flops of all sequences for about {columns} rows: {words}"
        size = self.kernel.element_size()
        moved = size * (self.kernel.numel() + sum(u.numel() for u in self.factors) + columns * (m + n))
        return backend.Plan(name, reason, found.flops, float(moved))


def _same_modes(a: TuckerMatrix, b: TuckerMatrix) -> bool:
    return a.rows == b.rows and a.columns == b.columns and a.dims == b.dims


def _combined(a: TuckerMatrix, b: TuckerMatrix, how: Any) -> Matrix:
    common = torch.promote_types(a.kernel.dtype, b.kernel.dtype)
    wide = backend.compute_dtype(common)
    parts = [part for t in (a, b) for part in (t.kernel.to(wide), tuple([u.to(wide) for u in t.factors]))]
    with backend.full_precision(a.kernel.device):
        kernel, factors = ft.fitted(*how(*parts))
    return TuckerMatrix(kernel.to(common), tuple([u.to(common) for u in factors]), a.rows, a.columns)


@dispatch.rule("add", TuckerMatrix, TuckerMatrix)
def _plus(a: TuckerMatrix, b: TuckerMatrix) -> Matrix:
    """TuckerMatrix with the same modes: the ranks add; else lazy."""
    if not _same_modes(a, b):
        lazily: Matrix = dispatch.lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazily
    return _combined(a, b, ft.summed)


@dispatch.rule("hadamard", TuckerMatrix, TuckerMatrix)
def _entrywise(a: TuckerMatrix, b: TuckerMatrix) -> Matrix:
    """TuckerMatrix with the same modes: the ranks multiply; else StructureError."""
    if not _same_modes(a, b):
        raise StructureError(
            f"{a!r} * {b!r}: the modes differ, so the entrywise product has no Tucker form; "
            "use Dense(A.to_dense()) * Dense(B.to_dense())"
        )
    return _combined(a, b, ft.hadamard)
