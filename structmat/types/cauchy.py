"""Cauchy-like matrices: low displacement rank with respect to two diagonal matrices."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._indexing import positions
from structmat._nearest import distance_check
from structmat._shell import require_floating, require_square
from structmat.claims import Claims
from structmat.errors import ShapeError, SolveError
from structmat.functional import cauchy as fc
from structmat.functional.determinants import LogDeterminant, slogdet
from structmat.functional.implicit import implicit_solve
from structmat.lazy import Product, Sum
from structmat.matrix import Matrix
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo
from structmat.types.solver_family import SolverFactorisation, TransposedSolver, double, is_half

__all__ = ["CauchyLike"]


class CauchyLike(Matrix):
    """``A[i, j] = left_i . right_j / (row_nodes_i - column_nodes_j)``, no conjugate in the product of generators.

    Stores:   left (*batch, m, r), right (*batch, n, r), row_nodes (*batch, m), column_nodes (*batch, n), one dtype. In
              other words ``diag(row_nodes) A - A diag(column_nodes) = left right^T``.
    Shape:    (*batch, m, n).      Claims: none.
    Cost:     linear 2 m n r flops a row with 65,536 entries in memory at a time; solve, inv, slogdet and factor above
              order 256: elimination with pivoting of the generators (method "gko"), O(n^2 (32 + r)) time, n^2 storage.
    Closed:   X + X of the same nodes, X @ X where the inner nodes agree, s X, inv (nodes exchanged), transpose, slices.
              Nodes agree if they are one tensor, or equal where values may be read.
    Raises:   ShapeError if sizes do not fit; SolveError from solve and inv of a singular matrix and of one whose row
              and column nodes coincide: construction does not read values, and such an entry is inf or NaN.
    Example:
        >>> x = torch.tensor([1.0, 3.0])
        >>> sm.CauchyLike.of_nodes(x, torch.tensor([0.0, 2.0])).to_dense()
        tensor([[ 1.0000, -1.0000],
                [ 0.3333,  1.0000]])
    References: I. Gohberg, T. Kailath, V. Olshevsky, Fast Gaussian elimination with partial pivoting for matrices with
    displacement structure, Math. Comp. 64, 1995, section 1.
    """

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "gko")
    core: ClassVar[Mapping[str, int]] = {"left": 2, "right": 2, "row_nodes": 1, "column_nodes": 1}
    left: torch.Tensor
    right: torch.Tensor
    row_nodes: torch.Tensor
    column_nodes: torch.Tensor

    def _validate(self) -> None:
        for generator, nodes in (("left", "row_nodes"), ("right", "column_nodes")):
            g, x = getattr(self, generator), getattr(self, nodes)
            if g.shape[-2] != x.shape[-1]:
                raise ShapeError(
                    f"CauchyLike: {generator} has {g.shape[-2]} rows (shape {tuple(g.shape)}) and {nodes} "
                    f"{x.shape[-1]} entries; both belong to the same {nodes.split('_')[0]}s"
                )
        if self.left.shape[-1] != self.right.shape[-1]:
            raise ShapeError(
                f"CauchyLike: left has {self.left.shape[-1]} columns (shape {tuple(self.left.shape)}), right has "
                f"{self.right.shape[-1]} (shape {tuple(self.right.shape)}); both are (*batch, size, r) with one r"
            )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, self.left.shape[-2], self.right.shape[-2]))

    def _fields(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.left, self.right, self.row_nodes, self.column_nodes

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fc.cauchy_product(*self._fields(), x)

    def transpose(self) -> Matrix:
        return CauchyLike(-self.right, self.left, self.column_nodes, self.row_nodes)

    def to_dense(self) -> torch.Tensor:
        wide = backend.compute_dtype(self.left.dtype)
        return fc.cauchy_entries(*(t.to(wide) for t in self._fields())).to(self.left.dtype)

    def diagonal(self) -> torch.Tensor:
        size = min(self.shape[-2:])
        wide = backend.compute_dtype(self.left.dtype)
        left, right, x, y = (t.to(wide) for t in self._fields())
        products = (left[..., :size, :] * right[..., :size, :]).sum(-1)
        return self._cast(products / (x[..., :size] - y[..., :size]))

    # -- solve ----------------------------------------------------------------------------------------------------

    def _wide(self) -> "CauchyLike":
        """In float64 or complex128, where solves and determinants are computed."""
        return self.to(torch.float64)

    def _structured(self, method: str) -> bool:
        return method == "gko" or (method == "auto" and (not self._is_small() or is_half(self.left.dtype)))

    def _solver(self) -> fc.CauchySolver:
        return fc.CauchySolver.of(*self._fields())

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """auto: dense LU up to the dense limit, elimination of the generators above it."""
        if is_half(self.left.dtype):
            wide = backend.compute_dtype(self.left.dtype)
            return self.to(wide)._solve_rows(y.to(torch.promote_types(wide, y.dtype)), options)
        if not self._structured(options.method):
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "gko")
        x = implicit_solve(self._wide(), double(y), CauchyLike._solver)
        x = x.to(torch.promote_types(y.dtype, self.left.dtype))
        return x, self._judged(x, y, options)

    def _judged(self, x: torch.Tensor, y: torch.Tensor, options: Options) -> SolveInfo:
        """The measured backward error; coinciding nodes are named as the cause where they are."""
        reasons = ("elimination with pivoting of the generators, one step of refinement",)
        try:
            return self._checked(x, y, "gko", 1, options, reasons)
        except SolveError:
            _refuse_equal(self.row_nodes, self.column_nodes, f"{self!r}.solve", SolveError)
            raise

    def _factor(self, method: str) -> Factorisation:
        if not self._structured(method) or not backend.eager(*self.tensors()):
            return DenseFactorisation.of(self)
        return SolverFactorisation(self, "gko", self._wide().detach()._solver())

    def inv(self) -> Matrix:
        """``-A^-1 left`` and ``A^-T right`` over the nodes exchanged: Cauchy-like of the same rank, 2 r solves."""
        require_square(self, "inv")
        if torch.compiler.is_compiling():
            lazy: Matrix = super().inv()
            return lazy
        wide = self._wide()
        known = wide.detach()._solver() if backend.eager(*self.tensors()) else None
        flipped = None if known is None else TransposedSolver(known)
        g, h = wide.left.mT, wide.right.mT
        left = implicit_solve(wide, g, CauchyLike._solver, known)
        right = implicit_solve(wide.transpose(), h, CauchyLike._solver, flipped)
        wide._judged(left, g, Options())
        batch = left.shape[:-2]
        fields = -left.mT, right.mT, self.column_nodes.expand(*batch, -1), self.row_nodes.expand(*batch, -1)
        if self.column_nodes.ndim == 1 == self.row_nodes.ndim:
            fields = *fields[:2], self.column_nodes, self.row_nodes  # the same tensors: products find them again
        return CauchyLike(*(t.to(self.left.dtype) for t in fields))

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """From the pivots of the elimination; the gradient from the generators of the inverse, without n^2 numbers."""
        require_square(self, "slogdet")
        if self._is_small():
            return super().slogdet()
        sign, logabs = slogdet(LogDeterminant(_value, _gradient), *self._wide()._fields())
        return self._cast(sign), self._cast(logabs, real=True)

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _properties(self) -> Claims:
        return Claims(frozenset(), 0 if self.left.shape[-1] == 0 else None, {})

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        left = self.left * factor
        return CauchyLike(left, *(t.to(left.dtype) for t in self._fields()[1:]))

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        m, n = (int(s) for s in self.shape[-2:])
        p, q = positions(rows, m), positions(columns, n)
        return CauchyLike(
            self.left[..., p, :], self.right[..., q, :], self.row_nodes[..., p], self.column_nodes[..., q]
        )

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        m, n = (int(s) for s in self.shape[-2:])
        r, size = int(self.left.shape[-1]), self.left.element_size()
        if verb == "linear":
            moved = float(size * ((m + n) * (r + 1) + (m + n) * columns * r))
            return backend.Plan(
                "quotients", "entries formed a block of rows at a time", 2.0 * m * n * r * columns, moved
            )
        if verb == "solve" and not self._is_small():
            reason = f"order {n} is above the dense limit: elimination with pivoting of the generators"
            return backend.Plan("gko", reason, 2.0 * n * n * (32 + r + columns), 8.0 * n * n)
        return super().plan(verb, columns)

    # -- constructors ---------------------------------------------------------------------------------------------

    @classmethod
    def of_nodes(cls, row_nodes: torch.Tensor, column_nodes: torch.Tensor) -> "CauchyLike":
        """The Cauchy matrix ``1 / (row_nodes_i - column_nodes_j)``. Raises ValueError where two of them are equal."""
        require_floating("CauchyLike.of_nodes", row_nodes=row_nodes, column_nodes=column_nodes)
        _refuse_equal(row_nodes, column_nodes, "CauchyLike.of_nodes", ValueError)
        ones = torch.ones_like(row_nodes)[..., None], torch.ones_like(column_nodes)[..., None]
        return cls(ones[0], ones[1], row_nodes, column_nodes)

    @classmethod
    def from_dense(
        cls, dense: torch.Tensor, row_nodes: torch.Tensor, column_nodes: torch.Tensor, tol: float | None = None
    ) -> Matrix:
        """The matrix with these nodes and the smallest r that the singular values of its displacement allow (those
        below ``max(m, n) eps`` of the largest are dropped); equal within ``tol ||dense||_F`` (default
        ``8 max(m, n) eps``), else NotStructuredError. Raises ValueError where two nodes are equal."""
        most = max(dense.shape[-2:])
        eps = torch.finfo(dense.dtype).eps
        found = cls.nearest(dense, row_nodes, column_nodes, min(dense.shape[-2:]))
        sizes = torch.linalg.vector_norm(found.left.detach(), dim=-2) ** 2
        rank = int((sizes > most * torch.finfo(sizes.dtype).eps * sizes[..., :1]).sum(-1).max()) if most else 0
        kept = cls(found.left[..., :rank], found.right[..., :rank], found.row_nodes, found.column_nodes)
        return distance_check(cls, dense, kept, 8 * most * eps if tol is None else tol)

    @classmethod
    def nearest(
        cls, dense: torch.Tensor, row_nodes: torch.Tensor, column_nodes: torch.Tensor, rank: int
    ) -> "CauchyLike":
        """The matrix of generators of this rank whose displacement is nearest (Eckart and Young, 1936); its own
        distance is at most ``max|x_i - y_j| / min|x_i - y_j|`` times the best. Raises ValueError where two nodes are
        equal."""
        _refuse_equal(row_nodes, column_nodes, "CauchyLike.nearest", ValueError)
        wide = dense.to(backend.compute_dtype(dense.dtype))
        u, s, vh = torch.linalg.svd(
            (row_nodes[..., :, None] - column_nodes[..., None, :]).to(wide.dtype) * wide, full_matrices=False
        )
        root = s[..., None, :rank].sqrt()
        fields = u[..., :rank] * root, vh[..., :rank, :].mT * root, row_nodes, column_nodes
        return cls(*(t.to(dense.dtype) for t in fields))

    @classmethod
    def random(
        cls, m: int, n: int | None = None, rank: int = 1, *, generator: Any = None, **options: Any
    ) -> "CauchyLike":
        """Standard normal generators over ``sqrt(rank)``, the nodes i and j + 1/2: a well-scaled matrix."""
        n = m if n is None else n
        left = torch.randn(m, rank, generator=generator, **options) / max(rank, 1) ** 0.5
        right = torch.randn(n, rank, generator=generator, **options)
        x, y = (torch.arange(size, device=left.device).to(left.dtype) for size in (m, n))
        return cls(left, right, x, y + 0.5)


def _value(*fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fc.CauchySolver.of(*fields).slogdet()


def _gradient(*fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The derivatives of log det, from the generators P, Q of the inverse:
    ``(A^-1)_ji = -P_j . Q_i / (x_i - y_j)`` meets ``dA_ij`` in sums over second and third powers of the quotients."""
    left, right, x, y = fields
    inverse = CauchyLike(*fields).inv()
    assert isinstance(inverse, CauchyLike)
    p, q = inverse.left, inverse.right
    r = left.shape[-1]
    ph = (p[..., :, None] * right[..., None, :]).flatten(-2)
    qg = (q[..., :, None] * left[..., None, :]).flatten(-2)
    over_columns = fc.quotient_sums(x, y, ph, 2).unflatten(-1, (r, r))
    over_rows = fc.quotient_sums(y, x, qg, 2).unflatten(-1, (r, r))
    to_left = -(q[..., :, None] * over_columns).sum(-2)
    to_right = -(p[..., :, None] * over_rows).sum(-2)
    to_x = (qg * fc.quotient_sums(x, y, ph, 3)).sum(-1)
    to_y = (ph * fc.quotient_sums(y, x, qg, 3)).sum(-1)
    return to_left, to_right, to_x, to_y


def _refuse_equal(x: torch.Tensor, y: torch.Tensor, place: str, error: Any) -> None:
    """Raise where a row node equals a column node; values are read."""
    if backend.eager(x, y) and float(fc.smallest_gap(x, y)) == 0:
        message = f"{place}: a row node equals a column node, so an entry divides by zero; the nodes must differ"
        raise error(message, float("inf")) if error is SolveError else error(message)


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two sets of nodes agree: one tensor, or equal values where these may be read."""
    return x is y or (x.shape == y.shape and backend.eager(x, y) and bool(torch.equal(x, y)))


@dispatch.rule("add", CauchyLike, CauchyLike)
def _plus(a: CauchyLike, b: CauchyLike) -> Matrix:
    """The same nodes: the generators stand side by side; else lazy."""
    if not (_same(a.row_nodes, b.row_nodes) and _same(a.column_nodes, b.column_nodes)):
        return Sum((a, b))
    return CauchyLike(_beside(a.left, b.left), _beside(a.right, b.right), a.row_nodes, a.column_nodes)


@dispatch.rule("matmul", CauchyLike, CauchyLike)
def _times(a: CauchyLike, b: CauchyLike) -> Matrix:
    """The inner nodes agree and the outer ones lie apart: ranks add; else lazy."""
    if not _same(a.column_nodes, b.row_nodes) or not _apart(a, b):
        return Product((a, b))
    left = a.linear(b.left.mT).mT
    right = b.transpose().linear(a.right.mT).mT
    return CauchyLike(_beside(a.left, left), _beside(right, b.right), a.row_nodes, b.column_nodes)


def _apart(a: CauchyLike, b: CauchyLike) -> bool:
    """Whether the row nodes of A lie as far from the column nodes of B as from their own, up to a factor of 100: the
    error of an entry is that of the generators over the distance. False where values may not be read."""
    if not backend.eager(*a.tensors(), *b.tensors()):
        return False
    own = torch.minimum(*(fc.smallest_gap(m.row_nodes, m.column_nodes) for m in (a, b)))
    return bool(fc.smallest_gap(a.row_nodes, b.column_nodes) * 100 >= own)


def _beside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    common = torch.promote_types(a.dtype, b.dtype)
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return torch.cat([t.to(common).expand(*lead, *t.shape[-2:]) for t in (a, b)], -1)
