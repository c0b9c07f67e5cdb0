"""One case of the conformance suite: a matrix, what it means, and how far results may lie from it."""

import dataclasses
from typing import Any

import numpy
import torch

from structmat.matrix import Matrix
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.reference import as_wide

__all__ = ["DOUBLE", "Case", "wide_of"]

DOUBLE = (torch.float64, torch.complex128)


def wide_of(tensor: torch.Tensor) -> torch.Tensor:
    """In float64 or complex128, detached, no conjugation pending."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to(wide).resolve_conj().resolve_neg()


@dataclasses.dataclass(frozen=True)
class Case:
    """One matrix with its dense meaning; ``size`` is the norm that rounding errors are relative to."""

    matrix: Matrix
    dense: torch.Tensor
    size: float
    smooth: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of operands to try it with."""
        found = self.matrix.dtype
        if found is None:
            return torch.complex128 if self.dense.is_complex() else torch.float64
        return found

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dense.shape[-2]), int(self.dense.shape[-1])

    @property
    def lead(self) -> tuple[int, ...]:
        """The batch."""
        return tuple(self.dense.shape[:-2])

    def tol(self, roundings: int = 4) -> float:
        """How far all entries may lie from the dense ones, in the Frobenius norm."""
        m, n = self.sizes
        return rounding(self.dtype, m + n, self.size, roundings) * max(1, m, n) ** 0.5

    def rows(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A random operand, by default of the dtype of the matrix."""
        dtype = dtype or self.dtype
        wide = torch.complex128 if dtype.is_complex else torch.float64
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide)
        return drawn.to(dtype=dtype, device=self.matrix.device)

    def product(self, x: torch.Tensor) -> numpy.ndarray:
        """``x A^T`` of the dense matrix, in numpy."""
        dense, wide = self.dense.detach().resolve_conj().numpy(), as_wide(x)
        if wide.ndim == 1:
            found: numpy.ndarray = numpy.einsum("...mn,n->...m", dense, wide)
            return found
        return numpy.asarray(wide @ numpy.swapaxes(dense, -1, -2))

    def agree(self, got: Any, wanted: numpy.ndarray, x: torch.Tensor, what: str) -> None:
        """The product with x equals the dense one up to rounding."""
        size = self.size * float(numpy.linalg.norm(as_wide(x).ravel()))
        tol = rounding(self.dtype, sum(self.sizes), size, roundings=4)
        assert_close(got, torch.from_numpy(numpy.ascontiguousarray(wanted)), tol, what)
