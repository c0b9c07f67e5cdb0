"""Products of Householder reflections: orthogonal (unitary) by construction."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._shell import require_floating
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, NotStructuredError, ShapeError
from structmat.functional import householder as fh
from structmat.functional import qr
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["HouseholderProduct"]


class HouseholderProduct(Matrix):
    """``Q = H_1 H_2 ... H_r``, ``H_i = I - (1 - exp(i phases_i)) v_i v_i^H / v_i^H v_i``.

    Stores:   vectors (*batch, r, n), row k holding v_{k+1} (any length; zero gives H = I); phases real (*batch, r),
              or None for phi = pi: reflections. Phases make the matrix complex, and every unitary matrix reachable.
    Shape:    (*batch, n, n).      Claims: orthogonal; rank(I - Q) <= r.
    Cost:     linear 4 r n flops a row after r^2 n + r^3 / 3 once (in blocks for r > 128 or r >= n / 2); r n memory.
    Closed:   X @ X, inv, transpose, solve (a product); Identity - X -> LowRank.
    Raises:   ShapeError if phases do not match vectors.
    Example:
        >>> sm.HouseholderProduct(torch.tensor([[1.0, 0.0]])) @ torch.tensor([3.0, 4.0])
        tensor([-3.,  4.])
    References: R. Schreiber and C. Van Loan, A storage-efficient WY representation for products of Householder
                transformations, 1989, eq. 2.2. Orthogonality error
    ``||Q^H Q - I||_F / sqrt(n) <= 8 eps (1 + sqrt(r))``.
    """

    core: ClassVar[Mapping[str, int]] = {"vectors": 2, "phases": 1}
    real_fields: ClassVar[frozenset[str]] = frozenset({"phases"})
    vectors: torch.Tensor
    phases: torch.Tensor | None = None

    def _validate(self) -> None:
        if self.phases is None:
            return
        if self.phases.is_complex():
            raise ShapeError("HouseholderProduct: phases are real angles, got a complex tensor")
        if self.phases.shape[-1] != self.vectors.shape[-2]:
            raise ShapeError(
                f"HouseholderProduct: {self.phases.shape[-1]} phases (shape {tuple(self.phases.shape)}) for "
                f"{self.vectors.shape[-2]} vectors (shape {tuple(self.vectors.shape)}); there is one phase a vector"
            )

    @property
    def shape(self) -> torch.Size:
        n = self.vectors.shape[-1]
        return torch.Size((*self.batch_shape, n, n))

    @property
    def dtype(self) -> torch.dtype:
        return self.vectors.dtype if self.phases is None else backend.complex_of(self.vectors.dtype)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fh.rotate_rows(x, self.vectors, self.phases)

    def transpose(self) -> Matrix:
        vectors = self.vectors.flip(-2)
        vectors = vectors.conj().resolve_conj() if vectors.is_complex() else vectors
        return HouseholderProduct(vectors, None if self.phases is None else self.phases.flip(-1))

    def conj(self) -> Matrix:
        vectors = self.vectors.conj().resolve_conj() if self.vectors.is_complex() else self.vectors
        return HouseholderProduct(vectors, None if self.phases is None else -self.phases)

    def inv(self) -> Matrix:
        """``Q^H``: the reflections in reverse order, with opposite phases."""
        phases = None if self.phases is None else -self.phases.flip(-1)
        return HouseholderProduct(self.vectors.flip(-2), phases)

    def pinv(self) -> Matrix:
        inverse: Matrix = self.inv()
        return inverse

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        return self.inv().linear(y), SolveInfo("closed form", 0, None, ("the inverse is the reversed product",))

    def _factor(self, method: str) -> Factorisation:
        return super()._factor(method) if method == "dense" else Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``prod exp(i phi)`` over nonzero vectors (real: -1 to their number), and 0."""
        live = (self.vectors != 0).any(-1)
        zero = torch.zeros(self.batch_shape, dtype=backend.real_of(self.dtype), device=self.vectors.device)
        if self.phases is None:
            odd = (live.sum(-1) % 2).expand(self.batch_shape)
            return (1 - 2 * odd).to(self.dtype), zero
        turns = torch.where(live, self.phases, torch.zeros_like(self.phases))
        turns = turns.to(backend.compute_dtype(self.phases.dtype))
        unit = torch.polar(torch.ones_like(turns), turns)  # a sum of large phases would lose the digits of its sine
        return self._cast(torch.sgn(unit.prod(-1))), zero

    def eigvals(self) -> torch.Tensor:
        """Dense up to the limit; above it, for r < n: 1 (n - r times) and ``1 - eig(T W^H W)``, an r x r problem."""
        r, n = self.vectors.shape[-2:]
        if n <= backend.dense_limit(self.vectors.device) or r >= n:
            return super().eigvals()
        vectors, t = self._whole()
        small = torch.linalg.eigvals(t @ (vectors.conj() @ vectors.mT))
        ones = torch.ones(*small.shape[:-1], n - r, dtype=small.dtype, device=small.device)
        return torch.cat((1 - small, ones), -1)

    def _whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All reflectors as one block: vectors (complex where phases are) and T."""
        wide = backend.compute_dtype(self.dtype)
        vectors = fh.normalised(self.vectors.to(wide if self.vectors.is_complex() else backend.real_of(wide))).to(wide)
        phases = None if self.phases is None else self.phases.to(backend.real_of(wide))
        return vectors, fh.wy_factor(vectors, phases)

    def svdvals(self) -> torch.Tensor:
        return torch.ones(
            *self.batch_shape, self.shape[-1], dtype=backend.real_of(self.dtype), device=self.vectors.device
        )

    def norm(self) -> torch.Tensor:
        return torch.full(
            self.batch_shape,
            float(self.shape[-1]) ** 0.5,
            dtype=backend.real_of(self.dtype),
            device=self.vectors.device,
        )

    def diagonal(self) -> torch.Tensor:
        """``1 - diag(W T W^H)``: n r^2 flops."""
        vectors, t = self._whole()
        return self._cast(1 - ((t.mT @ vectors) * vectors.conj()).sum(-2))

    def _norm_bound(self) -> torch.Tensor:
        return torch.ones(self.batch_shape, dtype=backend.real_of(self.dtype), device=self.vectors.device)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHOGONAL}))

    def prepare(self) -> Matrix:
        """Keeps T of each block: later products are three matrix products."""
        wide = backend.compute_dtype(self.dtype)
        vectors = self.vectors.to(wide if self.vectors.is_complex() else backend.real_of(wide))
        phases = None if self.phases is None else self.phases.to(backend.real_of(wide))
        if 0 in vectors.shape:
            return self
        with backend.full_precision(vectors.device):
            return Prepared(self, tuple(tensor for block in fh.blocks(vectors, phases) for tensor in block))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        out = torch.promote_types(x.dtype, self.dtype)
        with backend.full_precision(x.device):
            blocks = list(zip(kept[::2], kept[1::2], strict=True))
            return fh.apply_blocks(x.to(backend.compute_dtype(out)), blocks).to(out)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        r, n = (int(s) for s in self.vectors.shape[-2:])
        block = fh.block_of(r, n)
        flops = 4.0 * r * n * columns + 2.0 * min(r, block) * r * n
        moved = float((r * n + 2 * n * columns) * self.vectors.element_size())
        shown = "one block" if block >= r else f"blocks of {block}"
        served = self.phases is None and not self.vectors.is_complex() and self.vectors.ndim == 2
        asked = tuple([("householder_product", ((columns, n), (size, n))) for size in fh.panel_sizes(r, n)])
        asked = asked if served and verb == "linear" else ()
        return backend.Plan("compact WY", f"{r} reflectors in {shown}", flops, moved, operations=asked)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> "HouseholderProduct":
        """Exactly ``rank(I - Q)`` reflectors whose product is the given orthogonal (unitary) matrix.

        With ``I - Q = U M U^H`` (singular vectors of the nonzero part), ``K = M^-1`` has ``K + K^H = I``, so it has
        an unpivoted factorisation ``K = L R``; the vectors are the columns of ``U L^-H``. Raises NotStructuredError if
        ``||Q^H Q - I||_F / sqrt(n)`` exceeds ``tol`` (default 8 eps (1 + sqrt(2 n)), what 2 n reflectors may leave).
        Source: P. Scherk, On the decomposition of orthogonalities into symmetries, 1950 (the count).
        """
        if dense.ndim != 2 or dense.shape[0] != dense.shape[1]:
            raise ShapeError(
                f"HouseholderProduct.from_dense: one square matrix (n, n) is needed, got shape {tuple(dense.shape)}"
            )
        if not (dense.is_floating_point() or dense.is_complex()):
            raise DtypeError(
                f"HouseholderProduct.from_dense: the matrix must be floating point or complex, got {dense.dtype}"
            )
        n = dense.shape[0]
        wide = dense.to(torch.promote_types(dense.dtype, torch.float64))
        eye = torch.eye(n, dtype=wide.dtype, device=wide.device)
        measured = float(torch.linalg.matrix_norm(wide.mH @ wide - eye)) / max(1, n) ** 0.5
        allowed = 8 * torch.finfo(dense.dtype).eps * (1 + math.sqrt(2 * n)) if tol is None else tol
        if not measured <= allowed:
            raise NotStructuredError(
                "HouseholderProduct.from_dense: the matrix is not orthogonal, ||Q^H Q - I||_F / "
                f"sqrt(n) = {measured:.2e} exceeds "
                f"{allowed:.1e}; torch.linalg.qr gives the nearest by columns, the polar factor the nearest in norm",
                measured,
            )
        u, s, _ = torch.linalg.svd(eye - wide)
        rank = int((s > max(4 * allowed, 8 * torch.finfo(wide.dtype).eps * n**0.5)).sum())
        basis = u[:, :rank]
        core = torch.linalg.inv(basis.mH @ (eye - wide) @ basis)
        core = (core - core.mH + torch.eye(rank, dtype=wide.dtype, device=wide.device)) / 2  # K + K^H = I exactly
        lower = torch.eye(rank, dtype=wide.dtype, device=wide.device)
        upper = core.clone()
        for k in range(rank - 1):
            factor = upper[k + 1 :, k : k + 1] / upper[k, k]
            lower[k + 1 :, k : k + 1] = factor
            upper[k + 1 :] = upper[k + 1 :] - factor * upper[k : k + 1]
        vectors = torch.linalg.solve_triangular(lower, basis.mH, upper=False)  # rows: (U L^-H)^H
        scaled = torch.linalg.solve_triangular(lower, upper.mH, upper=False).mH  # R L^-H
        squares = (vectors.abs() ** 2).sum(-1)
        tau = 1 / torch.diagonal(scaled)
        rows = vectors.conj().resolve_conj() if wide.is_complex() else vectors
        if not wide.is_complex():
            return cls(rows.to(dense.dtype))
        phases = torch.angle(1 - tau * squares)  # tau v^H v = 1 - exp(i phi)
        return cls(rows.to(dense.dtype), phases.to(backend.real_of(dense.dtype)))

    @classmethod
    def from_lapack(cls, a: torch.Tensor, tau: torch.Tensor) -> "HouseholderProduct":
        """The Q of order m that ``torch.geqrf(A) -> (a, tau)`` left below the diagonal: a ``(*b, m, n)``, tau
        ``(*b, k)``.

        The reflectors are made exactly unitary: tau counts only as zero or not, and, for complex entries, as a phase.
        """
        require_floating("HouseholderProduct.from_lapack", a=a, tau=tau)
        if a.ndim < 2 or tau.ndim < 1 or tau.shape[-1] > min(a.shape[-2:]):
            raise ShapeError(
                f"HouseholderProduct.from_lapack: a {tuple(a.shape)} and tau {tuple(tau.shape)} do not fit; "
                "torch.geqrf gives a (*b, m, n) and tau (*b, k) with k <= min(m, n)"
            )
        return cls(*qr.from_lapack(a, tau))

    @classmethod
    def orthonormal(cls, vectors: torch.Tensor) -> "HouseholderProduct":
        """``I - 2 U U^H``, U an orthonormal basis of the span of the rows of ``vectors (*b, r, n)``, r <= n.

        Reflections along orthonormal vectors commute: their product is the reflection at a subspace, symmetric, its
        own inverse, of determinant ``(-1)^r``. Differentiable where the rows are linearly independent.
        """
        require_floating("HouseholderProduct.orthonormal", vectors=vectors)
        if vectors.ndim < 2 or vectors.shape[-2] > vectors.shape[-1]:
            raise ShapeError(
                f"HouseholderProduct.orthonormal: at most n vectors of length n are independent, got shape "
                f"{tuple(vectors.shape)}"
            )
        wide = vectors.to(backend.compute_dtype(vectors.dtype))
        basis = torch.linalg.qr(wide.mT)[0].mT
        return cls(basis.to(vectors.dtype))

    @classmethod
    def random(
        cls, n: int, reflectors: int | None = None, *, generator: Any = None, **options: Any
    ) -> "HouseholderProduct":
        """Standard normal vectors; r = n - 1 reflectors by default."""
        r = max(n - 1, 0) if reflectors is None else reflectors
        return cls(torch.randn(r, n, generator=generator, **options))

    @classmethod
    def identity(cls, n: int, reflectors: int = 0, *, generator: Any = None, **options: Any) -> "HouseholderProduct":
        """The identity: each random vector twice in a row (an even number), so that training can part the pairs."""
        if reflectors % 2:
            raise ValueError(
                f"HouseholderProduct.identity(reflectors={reflectors}): an odd number of reflections "
                "has det -1; use an even one"
            )
        half = torch.randn(reflectors // 2, n, generator=generator, **options)
        return cls(half.repeat_interleave(2, dim=-2))


@dispatch.rule("matmul", HouseholderProduct, HouseholderProduct)
def _times(a: HouseholderProduct, b: HouseholderProduct) -> Matrix:
    """HouseholderProduct: the reflectors one after the other."""
    lead = torch.broadcast_shapes(a.batch_shape, b.batch_shape)
    common = torch.promote_types(a.vectors.dtype, b.vectors.dtype)
    vectors = torch.cat([q.vectors.to(common).expand(*lead, *q.vectors.shape[-2:]) for q in (a, b)], -2)
    if a.phases is None and b.phases is None:
        return HouseholderProduct(vectors)
    phases = [
        torch.full_like(q.vectors[..., 0], torch.pi, dtype=backend.real_of(common)) if q.phases is None else q.phases
        for q in (a, b)
    ]
    return HouseholderProduct(vectors, torch.cat([p.expand(*lead, p.shape[-1]) for p in phases], -1))


def identity_minus(q: HouseholderProduct) -> tuple[torch.Tensor, torch.Tensor]:
    """``I - Q = W T W^H`` as the factors (left, right) of a low-rank matrix."""
    vectors, t = q._whole()
    return (vectors.mT @ t).to(q.dtype), vectors.conj().resolve_conj().mT.to(q.dtype)
