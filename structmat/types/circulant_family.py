"""What f-circulants share: everything follows from the first column and f."""

from collections.abc import Callable
from typing import Any

import torch

from structmat import backend, dispatch, solving
from structmat.functional import circulant as fc
from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.functional.launched_toeplitz import operation_of
from structmat.lazy import Prepared
from structmat.matrix import Matrix

__all__ = ["CirculantFamily", "refined"]


class CirculantFamily(Matrix):
    """Products, entries, eigenvalues and slices of ``sum_k v_k Z_f^k`` out of v and f."""

    def _column(self) -> torch.Tensor:
        """The first column v, ``(*batch, n)``."""
        raise TypeError(f"{type(self).__name__} must define _column")

    def _wide_column(self) -> torch.Tensor:
        """The column before it is rounded to half precision, where it is computed."""
        return self._column()

    def _number(self) -> complex:
        """f."""
        raise TypeError(f"{type(self).__name__} must define _number")

    @property
    def _n(self) -> int:
        return int(self.shape[-1])

    @property
    def _normal(self) -> bool:
        """Whether ``|f| = 1`` up to the rounding of f: then the matrix is normal, singular values are moduli."""
        return abs(abs(self._number()) - 1) <= 4 * 2.0**-52

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return ft.circulant_product(self._column(), x, self._number())

    def __rmatmul__(self, other: Any) -> torch.Tensor:
        x = self._checked_operand(other, columns_first=False)
        y = ft.circulant_transposed_product(self._wide_column(), x, self._number())
        return y if self.dtype is None else y.to(torch.promote_types(self.dtype, x.dtype))

    def to_dense(self) -> torch.Tensor:
        return ft.circulant_entries(self._column(), self._number())

    def _toeplitz(self) -> Matrix:
        """The same entries as a Toeplitz matrix, by the rule of ``algebra``."""
        matrix: Matrix = dispatch.call("toeplitz", self)
        return matrix

    def diagonal(self) -> torch.Tensor:
        column = self._column()
        return column[..., :1].to(self.dtype).expand(*column.shape[:-1], self._n)

    def trace(self) -> torch.Tensor:
        return self._n * self._column()[..., :1].sum(-1).to(self.dtype)

    def eigvals(self) -> torch.Tensor:
        """``fft(D column)`` in FFT order; f = 0: the diagonal entry n times."""
        column, f = self._column(), self._number()
        if f == 0:
            wide = column[..., :1].to(backend.compute_dtype(column.dtype))
            return wide.to(backend.complex_of(wide.dtype)).expand(*wide.shape[:-1], self._n)
        return fc.eigenvalues(column, f)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        cut: Matrix = self._toeplitz()._slice(rows, columns)
        return cut

    # -- products with the work done once -------------------------------------------------------------------------

    def prepare(self) -> Matrix:
        return Prepared(self, (fourier.spectrum(*self._embedding()),))

    def _embedding(self) -> tuple[torch.Tensor, fourier.Geometry]:
        if self._cyclic:
            return self._column(), ft.cyclic_geometry(self._n)
        return ft.fold(self._column(), self._number()), ft.toeplitz_geometry(self._n, self._n)

    @property
    def _cyclic(self) -> bool:
        return self._number() == 1 and fourier.is_smooth(self._n)

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        hat = kept[0] if kept[0].ndim == 1 or x.ndim == 1 else kept[0][..., None, :]
        n, dtype = self._n, self.dtype
        geometry = ft.cyclic_geometry(n) if self._cyclic else ft.toeplitz_geometry(n, n)
        y = fourier.apply_spectrum(hat, x, geometry, not (dtype is not None and dtype.is_complex))
        return y.to(torch.promote_types(dtype, x.dtype) if dtype is not None else x.dtype)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n, f, size = self._n, self._number(), self._column().element_size()
        if verb != "linear":
            return super().plan(verb, columns)
        asked = () if isinstance(f, complex) else (operation_of(columns, n, 2 * n - 1),)
        if self._cyclic:
            reason = f"f = 1 and {n} has no prime factor above 13"
            return backend.Plan("cyclic", reason, *ft.work(n, columns, size), operations=asked)
        length = ft.toeplitz_geometry(n, n).length
        reason = f"f = {f}" if f != 1 else f"{n} has a prime factor above 13"
        path = f"{reason}: zero-padded convolution of length {length}, folded"
        return backend.Plan("folded", path, *ft.work(length, columns, size), operations=asked)


def refined(
    matrix: Matrix,
    x: torch.Tensor,
    y: torch.Tensor,
    once: Callable[[torch.Tensor], torch.Tensor],
    accepted: float,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows x with ``A x = y`` improved by up to three residuals, ``x + once(y - A x)``, while that helps and the
    backward error is above ``accepted``; the error of each row, and the steps. Values are read; the graph is kept."""
    right = y.to(torch.promote_types(y.dtype, x.dtype))
    sigma = matrix._norm_bound().detach()

    def measure(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = right - matrix.linear(x)
        return residual, solving.backward_error(residual.detach(), x.detach(), right.detach(), sigma)

    residual, eta = measure(x)
    for step in range(3):
        if not bool((eta > accepted).any()):
            return x, eta, step
        new = x + once(residual)
        new_residual, new_eta = measure(new)
        better = new_eta < eta
        if not bool(better.any()):
            return x, eta, step
        x, eta = torch.where(better[..., None], new, x), torch.where(better, new_eta, eta)
        residual = torch.where(better[..., None], new_residual, residual)
    return x, eta, 3
