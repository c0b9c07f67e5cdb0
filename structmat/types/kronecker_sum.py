"""Kronecker sums ``A kron I + I kron B``, whose systems are Sylvester equations."""

from typing import Any

import torch

from structmat import backend
from structmat import claims as survive
from structmat._shell import broadcast, check_pair
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.functional import kronecker as fk
from structmat.functional.implicit import implicit_solve
from structmat.functional.sylvester import Sylvester, decomposed
from structmat.lazy.expressions import _common, tree
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["KroneckerSum", "KroneckerSumFactorisation"]


class KroneckerSum(Matrix):
    """``A kron I + I kron B`` of two square matrices; with X the row-major matrix of x, ``A X + X B^T``.

    Stores:   left (A), right (B), square matrices of any types; batches broadcast.
    Shape:    (*batch, n_A n_B, n_A n_B).      Claims: symmetric, Hermitian, definite, triangular as both are.
    Cost:     linear: that of A along the rows of X and of B along its columns. solve: Bartels-Stewart with A and B
              formed, 25 (n_A^3 + n_B^3) once and 4 n_A n_B (n_A + n_B) a right-hand side (eigenvectors in place of
              Schur forms where both claim to be Hermitian); ``factor()`` keeps the decompositions, n_A^2 + n_B^2
              numbers. eigvals: all ``lambda_i + mu_j``. slogdet: from these, above the dense limit.
    Closed:   s X, transpose, conj -> X.
    Raises:   ShapeError for matrices that are not square; SolveError where some ``lambda_i + mu_j`` is zero;
              StructureError for solve under torch.compile.
    Example:
        >>> A = KroneckerSum(sm.Diagonal(torch.tensor([1.0, 2.0])), sm.Identity(2))
        >>> A @ torch.ones(4)
        tensor([2., 2., 3., 3.])
    References: R. H. Bartels and G. W. Stewart, Solution of the matrix equation AX + XB = C, 1972;
    R. A. Horn and C. R. Johnson, Topics in Matrix Analysis, 1991, theorem 4.4.5 (eigenvalues).
    """

    left: Matrix
    right: Matrix

    def _validate(self) -> None:
        for part in (self.left, self.right):
            if not isinstance(part, Matrix) or part.shape[-1] != part.shape[-2]:
                raise ShapeError(f"KroneckerSum: square matrices are needed, got {part!r}")
        check_pair(self.left, self.right, f"KroneckerSum: {self.left!r} and {self.right!r}")
        broadcast("KroneckerSum", tuple(self.left.batch_shape), tuple(self.right.batch_shape))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(self.left.batch_shape, self.right.batch_shape)

    @property
    def shape(self) -> torch.Size:
        n = int(self.left.shape[-1]) * int(self.right.shape[-1])
        return torch.Size((*self.batch_shape, n, n))

    @property
    def dtype(self) -> torch.dtype | None:
        return _common((self.left, self.right))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        out = x.dtype if self.dtype is None else torch.promote_types(x.dtype, self.dtype)
        wide = x.to(backend.compute_dtype(x.dtype))
        steps: list[fk.Step] = [
            (f.linear, int(f.shape[-1]), int(f.shape[-1]), len(f.shape) > 2) for f in (self.left, self.right)
        ]
        return (fk.apply(wide, steps, [0]) + fk.apply(wide, steps, [1])).to(out)

    def transpose(self) -> Matrix:
        return KroneckerSum(self.left.transpose(), self.right.transpose())

    def conj(self) -> Matrix:
        return KroneckerSum(self.left.conj(), self.right.conj())

    def _alike(self) -> tuple[Matrix, Matrix]:
        """A and B; one without a dtype in that of the other."""
        dtype = self.dtype
        a, b = (f if f.dtype is not None or dtype is None else f.to(dtype) for f in (self.left, self.right))
        return a, b

    def _dense_parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (f.to_dense() for f in self._alike())
        return a.to(backend.compute_dtype(a.dtype)), b.to(backend.compute_dtype(b.dtype))

    def _hermitian(self) -> bool:
        return Claim.HERMITIAN in self.left.claims and Claim.HERMITIAN in self.right.claims

    # -- solve ----------------------------------------------------------------------------------------------------

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "sylvester")
        out = y.dtype if self.dtype is None else torch.promote_types(y.dtype, self.dtype)
        x = implicit_solve(self, y.to(backend.compute_dtype(out)), _solver)
        how = "eigenvectors of both" if self._hermitian() else "Schur forms of both"
        return x, self._checked(x, y, "sylvester", 1, options, (how,))

    def _factor(self, method: str) -> Factorisation:
        if method == "dense" or not backend.eager(*self.tensors()):
            return super()._factor(method) if method == "dense" else Factorisation(self)
        with torch.no_grad():
            known = _solver(self)
        return KroneckerSumFactorisation(self, "sylvester", (known.u, known.t, known.v, known.s), known.diagonal)

    # -- entries and spectra --------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        return fk.outer([f.diagonal() for f in self._alike()], add=True)

    def norm(self) -> torch.Tensor:
        """From the entries off the diagonals of A and B, and the sums of their diagonals: nothing cancels."""
        a, b = self._dense_parts()
        na, nb = a.shape[-1], b.shape[-1]
        off = [(v - torch.diag_embed(torch.diagonal(v, dim1=-2, dim2=-1))).flatten(-2) for v in (a, b)]
        sums = fk.outer([torch.diagonal(v, dim1=-2, dim2=-1) for v in (a, b)], add=True)
        pieces = (off[0] * nb**0.5, off[1] * na**0.5, sums)
        lead = self.batch_shape
        whole = torch.cat([v.to(sums.dtype).expand(*lead, v.shape[-1]) for v in pieces], -1)
        return self._cast(torch.linalg.vector_norm(whole, dim=-1), real=True)

    def _norm_bound(self) -> torch.Tensor:
        a, b = self._alike()
        return a._norm_bound() + b._norm_bound()

    def eigvals(self) -> torch.Tensor:
        """All ``lambda_i + mu_j``, the last index running fastest; complex."""
        a, b = self._dense_parts()
        find = torch.linalg.eigvalsh if self._hermitian() else torch.linalg.eigvals
        found = fk.outer([find(a), find(b)], add=True)
        return found.to(backend.complex_of(found.dtype))

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense up to the limit; above it the sum of the logarithms of the eigenvalues."""
        if self._is_small():
            return super().slogdet()
        found = self.eigvals()
        sign = torch.sgn(found).prod(-1)
        real = self.dtype is None or not self.dtype.is_complex
        return self._cast(torch.sgn(sign.real) if real else sign), self._cast(torch.log(found.abs()).sum(-1), real=True)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        a, b = self._alike()
        return KroneckerSum(a._scale(factor), b._scale(factor))

    def _properties(self) -> Claims:
        return Claims(survive.sum_of(self.left.claims, self.right.claims).properties)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return KroneckerSum(self.left._picked(batch, lead), self.right._picked(batch, lead))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        na, nb = int(self.left.shape[-1]), int(self.right.shape[-1])
        if verb == "linear":
            parts = self.left.plan(verb, columns * nb), self.right.plan(verb, columns * na)
            flops, moved = sum(p.flops or 0.0 for p in parts), sum(p.bytes or 0.0 for p in parts)
            path = f"two products: {parts[0].path}, {parts[1].path}"
            return backend.Plan(path, "A along the rows, B along the columns", flops, moved)
        if verb == "solve":
            flops = 25.0 * (na**3 + nb**3) + 4.0 * na * nb * (na + nb) * columns
            return backend.Plan("sylvester", "Bartels-Stewart with A and B formed", flops, None)
        return super().plan(verb, columns)

    def __repr__(self) -> str:
        return tree("KroneckerSum", (self.left, self.right))


class KroneckerSumFactorisation(Factorisation):
    """The decompositions of A and B, kept: a solve is the products with them and triangular solves."""

    kept: tuple[torch.Tensor, ...] = ()
    diagonal: bool = False

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        return self._solve(self.matrix, y, adjoint=False)

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        x = self._solve(self.matrix.mH, b if b.ndim == 1 else b.mT, adjoint=True)
        return x if b.ndim == 1 else x.mT

    def _solve(self, matrix: Any, y: torch.Tensor, adjoint: bool) -> torch.Tensor:
        rows = y[None] if y.ndim == 1 else y
        out = torch.promote_types(y.dtype, matrix.dtype) if matrix.dtype is not None else y.dtype
        u, t, v, s = self.kept
        known = Sylvester(u, t, v, s, self.diagonal, matrix.dtype is None or not matrix.dtype.is_complex, adjoint)
        usable = known if backend.eager(*self.tensors()) else None
        x = implicit_solve(matrix, rows.to(backend.compute_dtype(out)), _solver, usable).to(out)
        return x[..., 0, :] if y.ndim == 1 else x


def _solver(matrix: KroneckerSum) -> Sylvester:
    return decomposed(*matrix._dense_parts(), matrix._hermitian())
