"""Solves with a principal submatrix by solves with the whole matrix.

With o the kept and M the missing indices, ``A_oo x = b`` is ``A v = [b; c], v_M = 0`` for the c that makes it so:
``u = A^-1 [b; 0]``, ``c = -((A^-1)_MM)^-1 u_M``, ``v = A^-1 [b; c]``, ``x = v_o``.
Source: R. A. Horn and C. R. Johnson, Matrix Analysis, 2nd ed., 2013, section 0.7.3.
"""

import dataclasses
from typing import Any

import torch

from structmat import backend

__all__ = ["Complement", "bordered", "few", "missing_of"]

_ROWS = 64  # unit vectors a block: no array of q n numbers exists where no gradient is recorded
_NUMBERS = 2**27  # q n at most: what a gradient of the determinant keeps


def few(n: int, missing: int) -> bool:
    """Whether q missing indices are few: ``q^2 <= 16 n``, so that the small LU stays as small as 16 right-hand sides,
    and ``q n <= 2^27``."""
    return missing**2 <= 16 * n and missing * n <= _NUMBERS


def missing_of(keep: torch.Tensor, n: int) -> torch.Tensor:
    """The indices that are not in ``keep``, ascending."""
    held = torch.zeros(n, dtype=torch.int64, device=keep.device).index_fill(0, keep, 1)
    return torch.argsort(held, stable=True)[: n - keep.shape[-1]]


def bordered(inner: Any, keep: torch.Tensor, matrix: Any) -> torch.Tensor:
    """``(A^-1)_MM``, ``(*batch, q, q)``, out of a factorisation of A, in the dtype computed in; differentiable as its
    solves are."""
    n = int(matrix.shape[-1])
    missing = missing_of(keep, n)
    dtype = backend.compute_dtype(matrix.dtype or torch.get_default_dtype())
    pieces = []
    for some in missing.split(_ROWS):
        units = torch.zeros(len(some), n, dtype=dtype, device=keep.device)
        units = units.index_put((torch.arange(len(some), device=keep.device), some), units.new_ones(()))
        pieces.append(inner.solve_rows(units)[..., missing].to(dtype))  # row j is column j of A^-1 at M
    if not pieces:
        return torch.zeros(*matrix.batch_shape, 0, 0, dtype=dtype, device=keep.device)
    return torch.cat(pieces, -2).mT


@dataclasses.dataclass(frozen=True)
class Complement:
    """A solver in the sense of ``functional.implicit``: the submatrix, A's factorisation, the LU of ``(A^-1)_MM``."""

    matrix: Any
    inner: Any
    lu: torch.Tensor
    pivots: torch.Tensor
    turned: bool = False  # solves with the adjoint

    def adjoint(self) -> "Complement":
        """From the same factorisations."""
        return dataclasses.replace(self, matrix=self.matrix.mH, turned=not self.turned)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``A_oo x = y``, refined where the backward error exceeds 20 eps and while that gains, three times at
        most."""
        norm = torch.linalg.vector_norm
        sigma = self.matrix._norm_bound().to(y.device)
        bound = sigma[..., None, None] if sigma.ndim else sigma
        x = self._once(y)
        residual = y - self.matrix.linear(x)
        length = norm(residual, dim=-1, keepdim=True)
        for _ in range(3):
            size = bound * norm(x, dim=-1, keepdim=True) + norm(y, dim=-1, keepdim=True)
            if not bool((length > 20 * torch.finfo(length.dtype).eps * size).any()):
                break
            new = x + self._once(residual)
            residual_new = y - self.matrix.linear(new)
            length_new = norm(residual_new, dim=-1, keepdim=True)
            better = length_new < 0.5 * length
            if not bool(better.any()):
                break
            x, residual = torch.where(better, new, x), torch.where(better, residual_new, residual)
            length = torch.where(better, length_new, length)
        return x

    def _once(self, y: torch.Tensor) -> torch.Tensor:
        whole = self.matrix.matrix
        n, keep = int(whole.shape[-1]), self.matrix.keep
        missing = missing_of(keep, n)
        full = y.new_zeros(*y.shape[:-1], n).index_copy(-1, keep, y)
        u = self._whole(full)
        if len(missing):
            c = -torch.linalg.lu_solve(
                self.lu.to(u.dtype), self.pivots, u[..., missing].mT, adjoint=self.turned
            ).mT  # fmt: skip
            full = full.expand(*c.shape[:-1], n).index_copy(-1, missing, c)
            u = self._whole(full)
        return u[..., keep]

    def _whole(self, rows: torch.Tensor) -> torch.Tensor:
        x = self.inner.adjoint_solve(rows.mT).mT if self.turned else self.inner.solve_rows(rows)
        return x.to(rows.dtype)
