"""Low-rank matrices as a product of two thin factors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._indexing import positions
from structmat._nearest import distance_check
from structmat.claims import Claims
from structmat.errors import ShapeError, SolveError
from structmat.matrix import Matrix
from structmat.solving import Options, SolveInfo

__all__ = ["LowRank"]


class LowRank(Matrix):
    """``A = left right^T`` (plain transpose, also for complex entries).

    Stores:   left (*batch, m, r), right (*batch, n, r).
    Shape:    (*batch, m, n).      Claims: rank at most r.
    Cost:     linear 2 (m + n) r flops a row; svdvals, norm, pinv (m + n) r^2; (m + n) r memory.
    Closed:   X @ A, A @ X (any A), X + X, X * X (ranks multiply), s X, transpose, slices, pinv; X + A for a matrix A
              with a solve of its own is a Sum solved by Woodbury's identity.
    Raises:   ShapeError if the factors have different r; SolveError from solve for r < n (singular).
    Example:
        >>> sm.LowRank(torch.ones(2, 1), torch.ones(3, 1)).to_dense()
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 2.5.
    """

    core: ClassVar[Mapping[str, int]] = {"left": 2, "right": 2}
    left: torch.Tensor
    right: torch.Tensor

    def _validate(self) -> None:
        if self.left.shape[-1] != self.right.shape[-1]:
            raise ShapeError(
                f"LowRank: left has {self.left.shape[-1]} columns (shape {tuple(self.left.shape)}), right has "
                f"{self.right.shape[-1]} (shape {tuple(self.right.shape)}); both are (*batch, size, r) with one r"
            )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, self.left.shape[-2], self.right.shape[-2]))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left, self.right
        out = torch.promote_types(left.dtype, x.dtype)
        wide = backend.compute_dtype(out)  # of half entries: rounded once, at the end
        left, right, x = left.to(wide), right.to(wide), x.to(wide)
        # One row meets a batch: matmul would read (b, r) as rows.
        lone = x.ndim == 1 and (left.ndim > 2 or right.ndim > 2)
        with backend.full_precision(x.device):
            y = torch.matmul(torch.matmul(x[None] if lone else x, right), left.mT).to(out)
        return y[..., 0, :] if lone else y

    def transpose(self) -> Matrix:
        return LowRank(self.right, self.left)

    def to_dense(self) -> torch.Tensor:
        wide = backend.compute_dtype(self.left.dtype)  # more range: on some devices half is summed in half
        return (self.left.to(wide) @ self.right.mT.to(wide)).to(self.left.dtype)

    def _properties(self) -> Claims:
        return Claims(frozenset(), int(self.left.shape[-1]), {})

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if self.left.shape[-1] < self.shape[-1]:
            raise SolveError(
                f"{self!r}.solve: singular, the rank is at most {self.left.shape[-1]} and the order "
                f"{self.shape[-1]}; see pinv, "
                "or add a diagonal",
                float("inf"),
            )
        return super()._solve_rows(y, options)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.shape[-2] == self.shape[-1] > self.left.shape[-1]:  # singular by its form: exactly 0
            dtype = self.left.dtype
            zero = torch.zeros(self.batch_shape, dtype=dtype, device=self.left.device)
            return zero, torch.full_like(zero.real if zero.is_complex() else zero, -torch.inf)
        return super().slogdet()

    def diagonal(self) -> torch.Tensor:
        size = min(self.shape[-2:])
        return (self.left[..., :size, :] * self.right[..., :size, :]).sum(-1)

    def norm(self) -> torch.Tensor:
        """By QR of both factors: not through their Gram matrices, which would lose half the digits."""
        core = self._core()[2]
        return self._cast(torch.linalg.vector_norm(core, dim=(-2, -1)), real=True)

    def _norm_bound(self) -> torch.Tensor:
        """``(||U^H U||_F ||V^H V||_F)^(1/2)``, at least ``||U||_2 ||V||_2``: one small product a factor."""
        bound = torch.ones((), dtype=backend.real_of(backend.compute_dtype(self.left.dtype)), device=self.left.device)
        for factor in (self.left, self.right):
            wide = factor.to(backend.compute_dtype(factor.dtype))
            plain = torch.linalg.vector_norm(wide.mH @ wide, dim=(-2, -1))
            if backend.eager(plain) and bool(((plain > 1e-30) & (plain < 1e30)).all()):
                bound = bound * plain.sqrt()
                continue  # nothing over- or underflows: no copy is needed
            size = wide.abs().amax((-2, -1)) if wide.numel() else wide.abs().sum((-2, -1))
            unit = wide / torch.where(size > 0, size, torch.ones_like(size))[..., None, None]
            bound = bound * size * torch.linalg.vector_norm(unit.mH @ unit, dim=(-2, -1)).sqrt()
        return bound

    def _core(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``A = Q1 C Q2^T`` with orthonormal Q1, Q2 and a small C."""
        wide = backend.compute_dtype(self.left.dtype)
        with backend.full_precision(self.left.device):
            q1, r1 = torch.linalg.qr(self.left.to(wide))
            q2, r2 = torch.linalg.qr(self.right.to(wide))
            return q1, q2, r1 @ r2.mT

    def svdvals(self) -> torch.Tensor:
        found = torch.linalg.svdvals(self._core()[2])
        missing = min(self.shape[-2:]) - found.shape[-1]
        return self._cast(torch.nn.functional.pad(found, (0, missing)), real=True)

    def pinv(self) -> Matrix:
        """``Q2* C^+ Q1^H``; singular values below ``max(m, n) eps sigma_1`` count as zero."""
        q1, q2, core = self._core()
        cut = max(self.shape[-2:]) * torch.finfo(core.dtype).eps
        inverse = torch.linalg.pinv(core, rtol=cut)
        return LowRank((q2.conj() @ inverse).to(self.left.dtype), q1.conj().resolve_conj().to(self.left.dtype))

    def recompress(self, tol: float | None = None) -> "LowRank":
        """The same matrix at the smallest rank within ``tol ||A||_F`` (default 8 eps), from two QR and a small SVD.

        The distance is the tail of the singular values left out; of a batch, the largest rank that one of them needs.
        Cost: ``(m + n) r^2``. Values are read.
        """
        q1, q2, core = self._core()
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        tails = torch.flip(torch.cumsum(torch.flip(s.detach() ** 2, (-1,)), -1), (-1,)).sqrt()
        allowed = 8 * torch.finfo(self.left.dtype).eps if tol is None else tol
        keep = int((tails > allowed * tails[..., :1]).sum(-1).max()) if s.numel() else 0
        root = s[..., None, :keep].sqrt().to(u.dtype)
        left, right = q1 @ (u[..., :keep] * root), q2 @ (vh[..., :keep, :].mT * root)
        return LowRank(left.to(self.left.dtype), right.to(self.left.dtype))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        left = self.left * factor
        return LowRank(left, self.right.to(left.dtype))

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        m, n = (int(s) for s in self.shape[-2:])
        return LowRank(self.left[..., positions(rows, m), :], self.right[..., positions(columns, n), :])

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = self.shape[-2:]
        r = int(self.left.shape[-1])
        if verb == "linear":
            moved = ((m + n) * r + (m + n + r) * columns) * self.left.element_size()
            return backend.Plan("two products", f"rank {r}", 2.0 * (m + n) * r * columns, float(moved))
        return super().plan(verb, columns)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, rank: int | None = None) -> Matrix:
        """Equal within ``tol ||dense||_F`` (default 8 eps) at the given rank, or at the smallest rank that is."""
        if rank is not None:
            return distance_check(cls, dense, cls.nearest(dense, rank), tol)
        wide = dense.to(backend.compute_dtype(dense.dtype))
        s = torch.linalg.svdvals(wide.detach())
        allowed = 8 * torch.finfo(dense.dtype).eps if tol is None else tol
        tails = torch.flip(torch.cumsum(torch.flip(s**2, (-1,)), -1), (-1,)).sqrt()  # ||(s_k, s_{k+1}, ...)||
        enough = tails <= allowed / 2 * tails[..., :1]
        keep = int((~enough).sum(-1).max()) if s.numel() else 0
        return distance_check(cls, dense, cls.nearest(dense, keep), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, rank: int) -> "LowRank":
        """The best of rank ``rank`` in the Frobenius and the spectral norm: the truncated SVD.

        The distance is the tail of the singular values (Eckart and Young, 1936; Mirsky, 1960): ``s_{rank+1}`` in the
        spectral norm, ``(s_{rank+1}^2 + s_{rank+2}^2 + ...)^(1/2)`` in the Frobenius norm; no matrix of this rank is
        nearer.
        """
        if not rank >= 0:
            raise ValueError(f"LowRank.nearest(rank={rank}): legal ranks are 0, 1, 2, ...")
        u, s, vh = torch.linalg.svd(dense.to(backend.compute_dtype(dense.dtype)), full_matrices=False)
        root = s[..., None, :rank].sqrt().to(u.dtype)
        return cls((u[..., :, :rank] * root).to(dense.dtype), (vh[..., :rank, :].mT * root).to(dense.dtype))

    @classmethod
    def random(cls, m: int, n: int | None = None, rank: int = 1, *, generator: Any = None, **options: Any) -> "LowRank":
        """Standard normal factors over the fourth root of ``n r``."""
        n = m if n is None else n
        size = max(1, n * rank) ** 0.25
        left = torch.randn(m, rank, generator=generator, **options) / size
        return cls(left, torch.randn(n, rank, generator=generator, **options) / size)


@dispatch.rule("thin_factors", LowRank)
def _thin(a: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """U and V of ``U V^T``: a term that Woodbury's identity takes out of a sum."""
    return a.left, a.right


@dispatch.rule("low_rank", torch.Tensor, torch.Tensor)
def _of_factors(left: torch.Tensor, right: torch.Tensor) -> Matrix:
    """LowRank of these factors."""
    return _pair(left, right)


@dispatch.rule("matmul", LowRank, Matrix)
def _times_any(a: LowRank, b: Matrix) -> Matrix:
    """LowRank: ``left (B^T right)^T``."""
    return _pair(a.left, b.transpose().linear(a.right.mT).mT)


@dispatch.rule("matmul", Matrix, LowRank)
def _any_times(a: Matrix, b: LowRank) -> Matrix:
    """LowRank: ``(A left) right^T``."""
    return _pair(a.linear(b.left.mT).mT, b.right)


@dispatch.rule("matmul", LowRank, LowRank)
def _times(a: LowRank, b: LowRank) -> Matrix:
    """LowRank of the smaller rank."""
    if a.left.dtype != b.left.dtype:
        common = torch.promote_types(a.left.dtype, b.left.dtype)
        a, b = (LowRank(v.left.to(common), v.right.to(common)) for v in (a, b))
    core = a.right.mT @ b.left
    if a.left.shape[-1] <= b.left.shape[-1]:
        return _pair(a.left, b.right @ core.mT)
    return _pair(a.left @ core, b.right)


@dispatch.rule("hadamard", LowRank, LowRank)
def _entrywise(a: LowRank, b: LowRank) -> Matrix:
    """LowRank: the products of every two columns (row-wise Khatri-Rao), ranks multiply."""
    pairs = ((a.left, b.left), (a.right, b.right))
    left, right = ((p[..., :, None] * q[..., None, :]).flatten(-2) for p, q in pairs)
    return _pair(left, right)


@dispatch.rule("add", LowRank, LowRank)
def _plus(a: LowRank, b: LowRank) -> Matrix:
    """LowRank: the factors side by side, ranks add; nothing is truncated."""
    return LowRank(_beside(a.left, b.left), _beside(a.right, b.right))


def _beside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    common = torch.promote_types(a.dtype, b.dtype)
    return torch.cat([v.to(common).expand(*lead, *v.shape[-2:]) for v in (a, b)], -1)


def _pair(left: torch.Tensor, right: torch.Tensor) -> LowRank:
    common = torch.promote_types(left.dtype, right.dtype)
    return LowRank(left.to(common), right.to(common))
