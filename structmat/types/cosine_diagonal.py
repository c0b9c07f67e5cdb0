"""Matrices that the cosine transform diagonalises: convolutions with even kernels and reflected boundaries."""

import math
from typing import Any

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, SolveError, StructureError
from structmat.functional import block_circulant as fb
from structmat.functional import cosine as fc
from structmat.functional.toeplitz import work
from structmat.lazy import Product
from structmat.matrix import Matrix, static
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.block_family import MultilevelFamily, Sizes, require_sizes

__all__ = ["CosineDiagonal"]


class CosineDiagonal(MultilevelFamily):
    """``A = C^T diag(eigenvalues) C``, C the orthonormal cosine transform (DCT-II) over k levels.

    Stores:   eigenvalues (*batch, n_1, ..., n_k), real or complex, by frequency; levels = k (static), by default 2.
    Shape:    (*batch, N, N), N = n_1 ... n_k, rows in C order.      Claims: symmetric (A = A^T, C is real).
    Cost:     linear, solve: two cosine transforms a row, N log N; inv, det, sqrt, svdvals, norm: N.
    Closed:   X @ X, X + X, s X, X + s Identity, inv, pinv, sqrt, transpose.
    Raises:   ShapeError if there are fewer axes than levels; SolveError if an eigenvalue is zero to working precision.
    Example:
        >>> blur = sm.BlockToeplitz.from_kernel(torch.tensor([1.0, 2.0, 1.0]), (3,), "reflect", symmetric=True)
        >>> blur.to_dense().round(decimals=4)
        tensor([[3., 1., 0.],
                [1., 2., 1.],
                [0., 1., 3.]])
    References: M. Ng, R. Chan, W. Tang, A fast algorithm for deblurring models with Neumann boundary conditions, 1999.
    """

    eigenvalues: torch.Tensor
    levels: int = static(default=2)

    def _levels(self) -> int:
        return self.levels if isinstance(self.levels, (int, torch.SymInt)) else 1

    def _row_sizes(self) -> Sizes:
        return tuple(self.eigenvalues.shape[self.eigenvalues.ndim - self.levels :])

    def _validate(self) -> None:
        self._check_levels("levels", self.levels)

    @property
    def _n(self) -> int:
        return math.prod(self._row_sizes())

    def _with(self, eigenvalues: torch.Tensor) -> "CosineDiagonal":
        return CosineDiagonal(eigenvalues, self.levels)

    def _wide(self) -> torch.Tensor:
        return self.eigenvalues.to(backend.compute_dtype(self.eigenvalues.dtype))

    def _between(self, lam: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Rows ``x C^T diag(lam) C``."""
        lam = lam.unsqueeze(-self.levels - 1) if lam.ndim > self.levels and x.ndim > 1 else lam
        y = lam * fc.cosine_transform(x.unflatten(-1, self._row_sizes()), self.levels)
        return fc.inverse_cosine_transform(y, self.levels).flatten(-self.levels)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.promote_types(self.eigenvalues.dtype, x.dtype)
        return self._between(self._wide(), x).to(out)

    def transpose(self) -> Matrix:
        return self._with(self.eigenvalues)

    # -- functions of the eigenvalues -----------------------------------------------------------------------------

    def inv(self) -> Matrix:
        """The matrix of the reciprocal eigenvalues."""
        return self._with((1 / self._wide()).to(self.eigenvalues.dtype))

    def pinv(self) -> Matrix:
        """Reciprocal eigenvalues; those below ``N eps max|lam|`` count as zero."""
        return self._with(fb.reciprocal(self._wide(), self.levels).to(self.eigenvalues.dtype))

    def sqrt(self) -> "CosineDiagonal":
        """The principal square root: ``S @ S = A``. Raises StructureError if A is real and an eigenvalue is negative
        (inside a transform or a compiled graph that gives NaN)."""
        lam = self._wide()
        if not lam.is_complex() and backend.eager(lam) and bool((lam < 0).any()):
            raise StructureError(
                f"{self!r}.sqrt: an eigenvalue is negative, so the principal square root is not real; use "
                "CosineDiagonal(A.eigenvalues.to(torch.complex128), A.levels).sqrt()"
            )
        return self._with(torch.sqrt(lam).to(self.eigenvalues.dtype))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method != "auto":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        lam = self._wide()
        if options.check and backend.eager(y, lam):
            size = lam.detach().abs().flatten(-self.levels)
            if bool((size.amin(-1) <= self._n * torch.finfo(size.dtype).eps * size.amax(-1)).any()):
                raise SolveError(
                    f"{self!r}.solve: singular to working precision, the smallest eigenvalue is "
                    f"{float(size.min()):.1e} and the largest {float(size.max()):.1e}; see pinv, or check=False",
                    float("inf"),
                )
        x = self._between(1 / lam, y)
        return x, self._checked(x, y, "closed form", 0, options, ("division by the eigenvalues",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self) if method == "auto" else super()._factor(method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The signs (phases) multiply, ``log|det| = sum log|lam|``."""
        lam = self._wide().flatten(-self.levels)
        return self._cast(torch.sgn(lam).prod(-1)), self._cast(torch.log(lam.abs()).sum(-1), real=True)

    def eigvals(self) -> torch.Tensor:
        """The stored eigenvalues, by frequency, flattened in C order; complex."""
        lam = self._wide().flatten(-self.levels)
        return lam.to(backend.complex_of(lam.dtype))

    def svdvals(self) -> torch.Tensor:
        """The moduli of the eigenvalues (A is normal), descending."""
        size = self._wide().abs().flatten(-self.levels)
        return self._cast(torch.sort(size, -1, descending=True).values, real=True)

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        """``sum_k lam_k C[k, i]^2``, by one transform along each level."""
        return self._cast(fc.squared_sums(self._wide(), self.levels).flatten(-self.levels))

    def trace(self) -> torch.Tensor:
        return self._cast(self._wide().flatten(-self.levels).sum(-1))

    def norm(self) -> torch.Tensor:
        """``||eigenvalues||``: C is orthogonal."""
        return self._cast(torch.linalg.vector_norm(self._wide().flatten(-self.levels), dim=-1), real=True)

    def _norm_bound(self) -> torch.Tensor:
        return self._wide().abs().flatten(-self.levels).amax(-1)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.SYMMETRIC}))

    # -- closed forms, makers -------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return self._with(self.eigenvalues * self._level_scale(factor))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb not in ("linear", "solve"):
            return super().plan(verb, columns)
        flops = work(2 * self._n, columns, self.eigenvalues.element_size(), transforms=2)
        return backend.Plan("closed form", "two cosine transforms and a product with the eigenvalues", *flops)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, *, sizes: Sizes) -> Matrix:
        """The matrix of these level sizes equal to the dense one within ``tol ||dense||_F`` (default 8 eps);
        NotStructuredError otherwise. The transforms round: entries of one that was formed elsewhere need a tol of
        about ``eps N``."""
        return distance_check(cls, dense, cls.nearest(dense, sizes), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, sizes: Sizes) -> "CosineDiagonal":
        """The diagonal of ``C dense C^T``: the best in the Frobenius norm, because C is orthogonal."""
        if dense.ndim < 2 or dense.shape[-1] != dense.shape[-2]:
            raise ShapeError(f"CosineDiagonal.nearest: a square matrix is needed, got shape {tuple(dense.shape)}")
        sizes = require_sizes(sizes, "CosineDiagonal.nearest", dense.shape[-1])
        levels = len(sizes)
        half = fc.cosine_transform(dense.unflatten(-1, sizes), levels).flatten(-levels).mT
        both = fc.cosine_transform(half.unflatten(-1, sizes), levels).flatten(-levels)
        return cls(torch.diagonal(both, dim1=-2, dim2=-1).unflatten(-1, sizes).to(dense.dtype), levels)

    @classmethod
    def random(cls, sizes: Sizes, *, generator: Any = None, **options: Any) -> "CosineDiagonal":
        """Standard normal eigenvalues."""
        sizes = require_sizes(sizes, "CosineDiagonal.random")
        return cls(torch.randn(sizes, generator=generator, **options), len(sizes))

    @classmethod
    def identity(cls, sizes: Sizes, **options: Any) -> "CosineDiagonal":
        sizes = require_sizes(sizes, "CosineDiagonal.identity")
        return cls(torch.ones(sizes, **options), len(sizes))


@dispatch.rule("cosine_diagonal", torch.Tensor, int)
def _of_eigenvalues(eigenvalues: torch.Tensor, levels: int) -> Matrix:
    """CosineDiagonal of these eigenvalues."""
    return CosineDiagonal(eigenvalues, levels)


def _same(a: CosineDiagonal, b: CosineDiagonal) -> bool:
    return a._row_sizes() == b._row_sizes()


@dispatch.rule("matmul", CosineDiagonal, CosineDiagonal)
def _times(a: CosineDiagonal, b: CosineDiagonal) -> Matrix:
    """Equal levels: the eigenvalues multiply; else lazy."""
    return a._with(a.eigenvalues * b.eigenvalues) if _same(a, b) else Product((a, b))


@dispatch.rule("add", CosineDiagonal, CosineDiagonal)
def _plus(a: CosineDiagonal, b: CosineDiagonal) -> Matrix:
    """Equal levels: the eigenvalues add; else lazy."""
    if not _same(a, b):
        lazy: Matrix = dispatch.lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return a._with(a.eigenvalues + b.eigenvalues)
