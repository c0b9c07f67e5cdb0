"""Matrices of low displacement rank: everything that becomes a sum of products of two f-circulants."""

import math
import numbers
from collections.abc import Mapping
from typing import ClassVar

import torch

from structmat import backend, dispatch
from structmat.claims import Claims
from structmat.errors import ShapeError
from structmat.functional import displacement as fd
from structmat.functional import displacement_algebra as fa
from structmat.functional import displacement_measures as fm
from structmat.functional import toeplitz as ft
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.types.displacement_family import over
from structmat.types.displacement_solve_family import DisplacementSolves

__all__ = ["LowDisplacementRank"]


class LowDisplacementRank(DisplacementSolves):
    """``Z_e A - A Z_f = left right^T``: ``A = sum_j Z_e(g_j) Z_f(J h_j) / (e - f)``; Z_e shifts down, e in the corner.

    Stores:   left, right (*batch, n, r), real or complex (right enters by plain transpose); e, f numbers (static).
    Shape:    (*batch, n, n).      Claims: displacement rank r for (e, f), one more for each number that is changed.
    Cost:     linear 2r + 2 FFTs of length n a row (half of it for real rows), 2 n r memory, also in the backward pass;
              solve, inv, slogdet: dense LU up to n = 256, else GKO: O(n^2 r) time, 16 n^2 bytes while it lasts;
              diagonal n r; norm r^2 n log n. The gradient of slogdet needs 2r solves and r^2 n log n.
    Closed:   X @ X, X + X, s X, transpose, inv, X @ Toeplitz, X + Toeplitz, X + s I, blocks, Schur complements.
    Raises:   ValueError for e = f or a zero; ShapeError if the generators differ in shape; SolveError (with the
              backward error) in place of an inaccurate solution.
    Example:
        >>> a = sm.LowDisplacementRank.from_toeplitz(sm.Toeplitz(torch.tensor([1.0, 2.0, 3.0]), 2))
        >>> (a @ a).to_dense()
        tensor([[ 7.,  4.],
                [12.,  7.]])
    References: V. Y. Pan, Structured Matrices and Polynomials, 2001, Theorem 4.4.1; I. Gohberg, T. Kailath,
    V. Olshevsky, Fast Gaussian elimination with partial pivoting for matrices with displacement structure, 1995.
    """

    core: ClassVar[Mapping[str, int]] = {"left": 2, "right": 2}
    left: torch.Tensor
    right: torch.Tensor
    e: complex = 1
    f: complex = -1

    def _validate(self) -> None:
        if self.left.shape[-2:] != self.right.shape[-2:]:
            raise ShapeError(
                f"LowDisplacementRank: left has shape {tuple(self.left.shape)}, right {tuple(self.right.shape)}; both "
                "are (*batch, n, r) with one n and one r"
            )
        for name, number in (("e", self.e), ("f", self.f)):
            if isinstance(number, bool) or not isinstance(number, (numbers.Complex, torch.SymInt, torch.SymFloat)):
                raise ValueError(f"LowDisplacementRank: {name} must be a nonzero Python number, got {number!r}")
            if number - number != 0:  # infinite or NaN, in a form that traces
                raise ValueError(f"LowDisplacementRank: {name} must be finite, got {number!r}")
        if self.e == 0 or self.f == 0 or self.e == self.f:
            raise ValueError(
                f"LowDisplacementRank: e = {self.e!r} and f = {self.f!r} must be nonzero and differ: for e = f the "
                "displacement does not determine the matrix; (1, -1) is the best conditioned pair"
            )

    @property
    def shape(self) -> torch.Size:
        n = self.left.shape[-2]
        return torch.Size((*self.batch_shape, n, n))

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.left.dtype
        return backend.complex_of(dtype) if isinstance(self.e, complex) or isinstance(self.f, complex) else dtype

    @property
    def _n(self) -> int:
        return int(self.left.shape[-2])

    @property
    def _r(self) -> int:
        return int(self.left.shape[-1])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fd.product(self.left, self.right, x, self.e, self.f)

    def transpose(self) -> Matrix:
        over_e, over_f = over(self.e), over(self.f)
        return LowDisplacementRank(*fa.transposed(self.left, self.right, over_e, over_f), over_f, over_e)

    def _wide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The generators in the dtype computed in."""
        wide = backend.compute_dtype(self.left.dtype)
        return self.left.to(wide), self.right.to(wide)

    def to_dense(self) -> torch.Tensor:
        left, right = self._wide()
        with backend.full_precision(left.device):
            first = fm.first_column(left, right, self.e, self.f)
            dense = fm.entries(first, left.to(first.dtype), right.to(first.dtype), self.e)
        return dense.to(self.dtype)

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        """``A_ii = A_00 - sum_{k=1}^{i} G_k . H_{k-1}``."""
        left, right = self._wide()
        corner = fm.first_column(left, right, self.e, self.f)[..., :1]
        return fm.diagonal(corner, left.to(corner.dtype), right.to(corner.dtype)).to(self.dtype)

    def trace(self) -> torch.Tensor:
        return fm.power_traces(*self._wide(), self.e, self.f, self.f)[..., :1].sum(-1).to(self.dtype)

    def diagonal_sums(self) -> torch.Tensor:
        """``s_k = sum_{i-j=k} A_ij`` for k from -(n-1) to n-1, ``(*batch, 2n - 1)``, in O(r n log n)."""
        return fm.diagonal_sums(*self._wide(), self.e, self.f).to(self.dtype)

    def norm(self) -> torch.Tensor:
        """Frobenius: from the entries up to the dense limit, else by traces of products in O(r^2 n log n), which loses
        digits where the generators cancel each other."""
        if self._is_small():
            dense = self._wide_dense()
            return self._cast(torch.linalg.vector_norm(dense, dim=(-2, -1)), real=True)
        regular = self if abs(self.e) == abs(self.f) == 1 else self.with_operator(1, -1)
        squared = fm.squared_norm(*regular._wide(), regular.e, regular.f)
        return self._cast(squared.clamp_min(0).sqrt(), real=True)

    def _properties(self) -> Claims:
        n, r = self._n, self._r
        pairs: dict[tuple[complex, complex], int] = {
            pair: min(n, r + (pair[0] != self.e) + (pair[1] != self.f)) for pair in ((1, -1), (-1, 1))
        }
        pairs[self.e, self.f] = min(n, r)
        return Claims(frozenset(), 0 if r == 0 else None, pairs)

    def _statics(self) -> list[str]:
        shown = [f"r={self.left.shape[-1]}"]
        return shown if (self.e, self.f) == (1, -1) else [*shown, f"e={self.e}", f"f={self.f}"]

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        left = self.left * factor
        return LowDisplacementRank(left, self.right.to(left.dtype), self.e, self.f)

    def _edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``A e_0`` and ``A^T e_{n-1}`` as columns ``(*batch, n, 1)``."""
        generators = (*self._wide(), self.e, self.f)
        return fm.first_column(*generators)[..., None], fm.last_row(*generators)[..., None]

    def _generators(self, e: complex, f: complex) -> fa.Pair:
        """Of the same entries under any operator, also one with e = f; one more column for each number that differs."""
        if (e, f) == (self.e, self.f):
            return self.left, self.right
        pair = fa.changed(*self._wide(), (self.e, self.f), (e, f), *self._edges())
        narrow = torch.promote_types(self.left.dtype, torch.complex64) if pair[0].is_complex() else self.left.dtype
        return pair if self.left.dtype.is_complex else (pair[0].to(narrow), pair[1].to(narrow))

    def with_operator(self, e: complex, f: complex) -> "LowDisplacementRank":
        """The same entries under the operator (e, f): the rank grows by one for each number that changes."""
        return LowDisplacementRank(*self._generators(e, f), e, f)

    def leading_block(self, k: int) -> "LowDisplacementRank":
        """``A[:k, :k]`` under the operator of A: displacement rank at most r + 2."""
        return self.block(0, k)

    def block(self, start: int, stop: int) -> "LowDisplacementRank":
        """The principal block ``A[start:stop, start:stop]``, under the operator of A: rank at most r + 2."""
        n = self._n
        if not 0 <= start < stop <= n:
            raise ShapeError(f"{self!r}.block({start}, {stop}): legal are 0 <= start < stop <= {n}")
        if (start, stop) == (0, n):
            return self
        left, right = self._wide()
        e, f = self.e, self.f
        places = [stop - 1, start - 1 if start else n - 1], [stop if stop < n else 0, start]
        units = [torch.nn.functional.one_hot(torch.tensor(p, device=left.device), n).to(left.dtype) for p in places]
        row = fd.product(*fa.transposed(left, right, over(e), over(f)), units[0], over(f), over(e)).mT
        column = fd.product(left, right, units[1], e, f).mT
        rows = row[..., :1], row[..., 1:] if start else row[..., 1:] * e
        columns = column[..., :1] if stop < n else column[..., :1] * f, column[..., 1:]
        g, h = fa.block(left, right, (start, stop), (e, f), rows, columns)
        return LowDisplacementRank(g.to(self._kept(g)), h.to(self._kept(h)), e, f)

    def _kept(self, t: torch.Tensor) -> torch.dtype:
        """The dtype in which new generators are stored: that of A, complex if they are."""
        return backend.complex_of(self.left.dtype) if t.is_complex() else self.left.dtype

    def schur_complement(self, k: int) -> Matrix:
        """``A[k:, k:] - A[k:, :k] A[:k, :k]^-1 A[:k, k:]``, the inverse of the trailing block of A^-1: displacement
        rank at most r + 2. Two inversions; raises SolveError where A or the result is singular."""
        if not 0 <= k < self._n:
            raise ShapeError(f"{self!r}.schur_complement({k}): legal are 0 <= k < {self._n}")
        if k == 0:
            return self
        inverse = self.inv()
        assert isinstance(inverse, LowDisplacementRank)
        complement: Matrix = inverse.block(k, self._n).inv()
        return complement

    def prepare(self) -> Matrix:
        return Prepared(self, fd.prepared(*self._flat(), self.e, self.f))

    def _flat(self) -> fa.Pair:
        """The generators of one batch axis, in the dtype computed in, with at least one column."""
        left, right = self._wide()
        if self._r == 0:
            left, right = (torch.nn.functional.pad(t, (0, 1)) for t in (left, right))
        lead = self.batch_shape
        g, h = (t.expand(*lead, *t.shape[-2:]).reshape(math.prod(lead), *t.shape[-2:]) for t in (left, right))
        return g, h

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        out = torch.promote_types(self.dtype, x.dtype)
        return fd.product_kept(kept, x, self.batch_shape, self.dtype, self.e, self.f).to(out)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n, r, size = self._n, self._r, self.left.element_size()
        if verb == "linear":
            reason = f"{r} pairs of f-circulants"
            return backend.Plan("fft", reason, *ft.work(n, columns, size, transforms=2 * r + 2))
        if verb != "solve" or self._is_small():
            return super().plan(verb, columns)
        flops = 8.0 * n * n * (n / 128 + 2 * r + 4 * columns)
        return backend.Plan("gko", "Cauchy-like elimination with partial pivoting, refined", flops, 16.0 * n * n)


@dispatch.rule("matmul", LowDisplacementRank, LowDisplacementRank)
def _times(a: LowDisplacementRank, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank: ranks add, and one or two more where the operators do not meet."""
    target = b.f if b.f != a.e else -a.e  # (e, e) determines no matrix: B goes to another f first
    g, h = b._generators(b.e, target)
    (first, _), (_, last) = a._edges(), b._edges()
    applied, pulled = a.linear(g.mT).mT, b.transpose().linear(a.right.mT).mT
    pair = fa.product((a.left, a.right), (g, h), a.f - b.e, applied, pulled, first, last)
    dtype = torch.promote_types(a._kept(pair[0]), b._kept(pair[0]))
    return LowDisplacementRank(pair[0].to(dtype), pair[1].to(dtype), a.e, target)


@dispatch.rule("add", LowDisplacementRank, LowDisplacementRank)
def _plus(a: LowDisplacementRank, b: LowDisplacementRank) -> Matrix:
    """LowDisplacementRank: the generators side by side, those of B under the operator of A."""
    left, right = b._generators(a.e, a.f)
    return LowDisplacementRank(fa.beside(a.left, left), fa.beside(a.right, right), a.e, a.f)
