"""LU with partial pivoting of banded matrices by LAPACK's ``gbtrf``, kept for solves with A and its adjoint.

Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 4.3.5.
"""

from typing import Any

import numpy
import torch
from scipy.linalg import get_lapack_funcs

__all__ = ["BandedSolver"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]


class BandedSolver:
    """A solver in the sense of ``functional.implicit``: one factorisation a matrix of the batch, on the host."""

    def __init__(self, bands: torch.Tensor, upper: int) -> None:
        """Bands ``(*batch, l + u + 1, n)`` in float64 or complex128; 2 n l (l + u) flops."""
        w, self.n = (int(s) for s in bands.shape[-2:])
        self.lower, self.upper, self.batch = w - 1 - upper, upper, tuple(bands.shape[:-2])
        self.device, self.complex, self.adjoint_ = bands.device, bands.is_complex(), False
        held = bands.detach().cpu().resolve_conj().numpy()
        self._factor, self._solve = get_lapack_funcs(("gbtrf", "gbtrs"), (held,))
        self.kept: dict[tuple[int, ...], tuple[Array, Array]] = {}
        for index in numpy.ndindex(self.batch):
            storage = numpy.zeros((2 * self.lower + upper + 1, self.n), dtype=held.dtype, order="F")
            storage[self.lower :] = held[index]
            lu, pivots, _ = self._factor(storage, self.lower, upper, overwrite_ab=True)
            self.kept[index] = lu, pivots

    def adjoint(self) -> "BandedSolver":
        other = object.__new__(BandedSolver)
        other.__dict__.update(self.__dict__)
        other.adjoint_ = not self.adjoint_
        return other

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``A x = y`` (or ``A^H x = y``) for rows ``(..., k, n)``; a zero pivot gives inf and nan."""
        if y.is_complex() and not self.complex:
            return torch.complex(self.solve_rows(y.real), self.solve_rows(y.imag))
        lead = torch.broadcast_shapes(self.batch, y.shape[:-2])
        given = y.detach().cpu().resolve_conj().numpy()
        given = given.astype(numpy.complex128 if self.complex else numpy.float64, copy=False)
        if given.size == 0:
            return torch.zeros((*lead, *given.shape[-2:]), dtype=torch.from_numpy(given).dtype, device=y.device)
        if not self.batch:
            found = self._one((), given.reshape(-1, self.n)).reshape(given.shape)
            return torch.from_numpy(found).to(y.device)
        given = numpy.broadcast_to(given, (*lead, *given.shape[-2:]))
        out = numpy.empty(given.shape, dtype=given.dtype)
        own = numpy.broadcast_to(numpy.arange(len(self.kept)).reshape(self.batch), lead)
        keys = list(self.kept)
        for index in numpy.ndindex(lead):
            out[index] = self._one(keys[own[index]], given[index])
        return torch.from_numpy(out).to(y.device)

    def _one(self, index: tuple[int, ...], rows: Array) -> Array:
        lu, pivots = self.kept[index]
        right = numpy.array(rows.T, order="F", copy=True)
        found, _ = self._solve(lu, self.lower, self.upper, right, pivots, trans=2 * self.adjoint_, overwrite_b=True)
        return numpy.ascontiguousarray(found.T)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign and ``log|det|`` of A, ``(*batch)``."""
        signs, logs = [], []
        for lu, pivots in self.kept.values():
            diagonal = torch.from_numpy(numpy.ascontiguousarray(lu[self.lower + self.upper]))
            swaps = int((pivots != numpy.arange(self.n)).sum())
            signs.append(torch.sgn(diagonal).prod() * (-1) ** swaps)
            logs.append(diagonal.abs().log().sum())
        pair = (torch.stack(v).reshape(self.batch).to(self.device) for v in (signs, logs))
        return tuple(pair)  # type: ignore[return-value]
