"""The leading rows and columns of a circulant: what a circulant adapter adds to a weight that is not square."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from structmat.functional import fourier
from structmat.functional import toeplitz as ft
from structmat.functional.fourier import Geometry
from structmat.functional.launched_toeplitz import rows_served
from structmat.matrix import Matrix
from structmat.types.toeplitz_family import ToeplitzFamily

__all__ = ["LeadingCirculant"]


class LeadingCirculant(ToeplitzFamily):
    """``A[i, j] = column[(i - j) mod N]``, the first m rows and n columns of a circulant of order ``N = max(m, n)``.

    Stores:   column (*batch, N); rows = m and columns = n (static).
    Shape:    (*batch, m, n).
    Cost:     linear three FFTs a row, of length N where N has no prime factor above 13 (a Toeplitz matrix takes m + n -
              1); all else as Toeplitz.
    """

    core: ClassVar[Mapping[str, int]] = {"column": 1}
    column: torch.Tensor
    rows: int
    columns: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.column.shape[:-1], self.rows, self.columns))

    def _diagonals(self) -> torch.Tensor:
        m, n, size = self.rows, self.columns, self.column.shape[-1]
        return torch.cat((self.column[..., size - n + 1 :], self.column[..., :m]), -1)

    def _embedding(self) -> tuple[torch.Tensor, Geometry]:
        size = self.column.shape[-1]
        if not fourier.is_smooth(size):
            return super()._embedding()
        return self.column, Geometry(size, 0, size, self.columns, self.rows)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        m, n, size = self.rows, self.columns, self.column.shape[-1]
        formed = ft.forming_is_cheaper(m, n, x.numel() // n, x.device)
        if not fourier.is_smooth(size) or formed or rows_served(self.column, x, n, m + n - 1):
            return super().linear(x)
        weights = self.column if self.column.ndim == 1 or x.ndim == 1 else self.column[..., None, :]
        return fourier.convolve(weights, x, self._embedding()[1])

    def transpose(self) -> Matrix:
        column = torch.cat((self.column[..., :1], self.column[..., 1:].flip(-1)), -1)
        return LeadingCirculant(column, self.columns, self.rows)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        s = factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        return LeadingCirculant(self.column * s, self.rows, self.columns)
