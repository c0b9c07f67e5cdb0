"""Sylvester equations ``A X + X B^T = Y``: systems with the Kronecker sum of A and B, by one decomposition of each.

Hermitian A and B: ``A = Q L Q^H``, ``B = P M P^H`` give ``X = Q ((Q^H Y conj(P)) / (l_i + m_j)) P^T``. Otherwise the
complex Schur forms ``A = U T U^H``, ``B^T = V S V^H`` leave ``T Z + Z S = U^H Y V``, whose columns follow one from the
other by triangular solves. Work: 25 (n_A^3 + n_B^3) once, then 4 n_A n_B (n_A + n_B) a right-hand side.
Source: R. H. Bartels and G. W. Stewart, Solution of the matrix equation AX + XB = C, 1972.
"""

import dataclasses
import math

import numpy
import scipy.linalg
import torch

from structmat import backend

__all__ = ["Sylvester", "decomposed"]


@dataclasses.dataclass(frozen=True)
class Sylvester:
    """Solver of ``A X + X B^T = Y`` from what ``decomposed`` found: bases u, v and middles t, s (vectors of
    eigenvalues for Hermitian A and B, else upper triangles); ``is_real``: A and B were."""

    u: torch.Tensor
    t: torch.Tensor
    v: torch.Tensor
    s: torch.Tensor
    diagonal: bool
    is_real: bool
    adjoined: bool = False

    def adjoint(self) -> "Sylvester":
        """The solver of ``A^H X + X conj(B) = Y``, out of the same decomposition."""
        return dataclasses.replace(self, adjoined=not self.adjoined)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """Rows y ``(*batch, r, n_A n_B)``, each the row-major Y of one system; no check for singular ones: inf or
        NaN."""
        na, nb = int(self.u.shape[-1]), int(self.v.shape[-1])
        common = torch.promote_types(y.dtype, self.u.dtype)
        u, v = self.u.to(common)[..., None, :, :], self.v.to(common)[..., None, :, :]
        f = u.mH @ y.to(common).reshape(*y.shape[:-1], na, nb) @ v
        z = f / self._sums(common) if self.diagonal else self._columns(f)
        x = (u @ z @ v.mH).flatten(-2)
        return x.real if self.is_real and x.is_complex() and not y.is_complex() else x

    def _sums(self, dtype: torch.dtype) -> torch.Tensor:
        """``l_i + m_j``, real for Hermitian matrices: the adjoint divides by the same."""
        return (self.t[..., :, None] + self.s[..., None, :]).to(dtype)[..., None, :, :]

    def _columns(self, f: torch.Tensor) -> torch.Tensor:
        """``T Z + Z S = F`` column by column, from the first for triangles T, S, from the last for their adjoints."""
        t, s = (self.t.mH, self.s.mH) if self.adjoined else (self.t, self.s)
        n = int(s.shape[-1])
        order = range(n - 1, -1, -1) if self.adjoined else range(n)
        eye = torch.eye(int(t.shape[-1]), dtype=t.dtype, device=t.device)
        columns: list[torch.Tensor] = [f[..., :, j] for j in range(n)]
        done: list[int] = []
        for j in order:
            right = columns[j]
            if done:
                known = torch.stack([columns[k] for k in done], -1)  # (*batch, r, n_A, known)
                right = right - (known @ s[..., None, done, j, None])[..., 0]
            shifted = t + s[..., j, j, None, None] * eye
            columns[j] = torch.linalg.solve_triangular(shifted, right.mT, upper=not self.adjoined).mT
            done.append(j)
        return torch.stack(columns, -1)


def decomposed(a: torch.Tensor, b: torch.Tensor, hermitian: bool) -> Sylvester:
    """The decompositions for square a ``(*batch, n_A, n_A)`` and b ``(*batch, n_B, n_B)``; values are read."""
    is_real = not (a.is_complex() or b.is_complex())
    common = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(common), b.to(common)
    if hermitian:
        with backend.full_precision(a.device):
            (t, u), (s, p) = torch.linalg.eigh(a), torch.linalg.eigh(b)
        return Sylvester(u, t, p.conj().resolve_conj(), s, True, is_real)
    (u, t), (v, s) = _schur(a), _schur(b.mT)
    return Sylvester(u, t, v, s, False, is_real)


def _schur(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U and upper triangular T with ``A = U T U^H``, complex, each matrix of the batch by LAPACK."""
    entries = a.resolve_conj().cpu().numpy()
    n = entries.shape[-1]
    dtype = numpy.result_type(entries.dtype, numpy.complex64)
    found = [scipy.linalg.schur(m, output="complex") for m in entries.reshape(-1, n, n)] if n else []
    both = numpy.array([(u, t) for t, u in found], dtype=dtype).reshape(math.prod(entries.shape[:-2]), 2, n, n)
    u, t = (torch.as_tensor(both[:, k].reshape(entries.shape), device=a.device) for k in (0, 1))
    return u, t
