"""Toeplitz matrices of several levels (block Toeplitz with Toeplitz blocks, and so on)."""

import math
from typing import Any

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claims
from structmat.errors import ShapeError, StructureError
from structmat.functional import level_indices as fi
from structmat.functional import multilevel as fm
from structmat.functional import multilevel_solve as fs
from structmat.functional.toeplitz import work
from structmat.lazy import Prepared
from structmat.matrix import Matrix, static
from structmat.types.block_family import Sizes, from_kernel, require_sizes
from structmat.types.block_solve_family import IterativeFamily

__all__ = ["BlockToeplitz"]


class BlockToeplitz(IterativeFamily):
    """``A[i, j] = generators[i - j + columns - 1]``, i and j multi-indices of k levels in C order: m x n.

    Stores:   generators (*batch, m_1 + n_1 - 1, ..., m_k + n_k - 1), real or complex; columns = (n_1, ..., n_k), a
              tuple of integers (static), one for each level.
    Shape:    (*batch, m_1 ... m_k, n_1 ... n_k).      Claims: displacement rank 2 N / n_k (square).
    Cost:     linear three k-dimensional FFTs of lengths >= m_l + n_l - 1 a row; ``prepare`` keeps one of them; solve:
              dense LU up to order 256; above it conjugate gradients where claimed positive definite, else GMRES, with
              Strang's and T. Chan's k-level circulants, else conjugate gradients of the normal equations.
    Closed:   X + X, s X, X * X, transpose, X + BlockCirculant, X + s Identity -> BlockToeplitz.
    Raises:   ShapeError if columns does not fit; SolveError (with the backward error) in place of an inaccurate
              solution; StructureError for slogdet, eigvals, svdvals and pinv above the dense limit.
    Example:
        >>> sm.BlockToeplitz(torch.arange(9.0).reshape(3, 3), columns=(2, 2)).to_dense()
        tensor([[4., 3., 1., 0.],
                [5., 4., 2., 1.],
                [7., 6., 4., 3.],
                [8., 7., 5., 4.]])
    References: R. Chan and X. Jin, An Introduction to Iterative Toeplitz Solvers, 2007, chapter 5.
    """

    generators: torch.Tensor
    columns: Sizes = static()

    def _levels(self) -> int:
        return len(self.columns) if isinstance(self.columns, tuple) else 1

    def _column_sizes(self) -> Sizes:
        return self.columns

    def _row_sizes(self) -> Sizes:
        ends = self.generators.shape[self.generators.ndim - self._levels() :]
        return tuple(s - n + 1 for s, n in zip(ends, self.columns, strict=True))

    def _validate(self) -> None:
        if not isinstance(self.columns, tuple):
            raise ShapeError(f"BlockToeplitz: columns must be a tuple of integers, one a level, got {self.columns!r}")
        self._check_levels("the number of columns sizes", len(self.columns))
        ends = self.generators.shape[self.generators.ndim - len(self.columns) :]
        for n, length in zip(self.columns, ends, strict=True):
            if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or not 1 <= n <= length:
                raise ShapeError(
                    f"BlockToeplitz: generators of sizes {tuple(ends)} (m + n - 1 a level) do not allow "
                    f"columns={self.columns!r}; legal are 1 to the size, and m = size - n + 1"
                )

    def _with(self, generators: torch.Tensor) -> "BlockToeplitz":
        return BlockToeplitz(generators, self.columns)

    def _geometry(self) -> fm.Geometry:
        return fm.toeplitz_geometry(self._row_sizes(), self.columns)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fm.product_rows(self.generators, x, self._geometry())

    def transpose(self) -> Matrix:
        return BlockToeplitz(self.generators.flip(tuple(range(-self._levels(), 0))), self._row_sizes())

    def to_dense(self) -> torch.Tensor:
        index = fi.toeplitz_index(self._row_sizes(), self.columns, self.generators.device)
        return fi.entries(self.generators, index, self._levels())

    def _operator(self, dtype: torch.dtype, definite: bool) -> fs.Operator:
        return fs.toeplitz_operator(self.generators.to(dtype), self.columns, definite)

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        if self._row_sizes() != self.columns:  # the diagonal of a rectangular matrix cuts through several generators
            return super().diagonal()
        t = self._centre()
        return t[..., None].expand(*t.shape, int(self.shape[-1]))

    def _centre(self) -> torch.Tensor:
        where: tuple[Any, ...] = (..., *(n - 1 for n in self.columns))
        return self.generators[where]

    def norm(self) -> torch.Tensor:
        """``sqrt(sum_k count_k |t_k|^2)``."""
        wide = self.generators.to(backend.compute_dtype(self.generators.dtype))
        weight = fi.counts(self._row_sizes(), self.columns, wide.device).sqrt().to(backend.real_of(wide.dtype))
        return self._cast(torch.linalg.vector_norm((wide * weight).flatten(-self._levels()), dim=-1), real=True)

    def _norm_bound(self) -> torch.Tensor:
        """The largest modulus of the spectrum of the embedding circulant."""
        return fm.spectrum(self.generators, self._geometry()).abs().flatten(-self._levels()).amax(-1)

    def _properties(self) -> Claims:
        n, bound = int(self.shape[-1]), 2 * (int(self.shape[-1]) // self.columns[-1])
        square = self._row_sizes() == self.columns
        pairs: dict[tuple[complex, complex], int] = {(1, -1): min(n, bound), (-1, 1): min(n, bound)} if square else {}
        return Claims(frozenset(), None, pairs)

    def _statics(self) -> list[str]:
        rows, columns = ("x".join(map(str, sizes)) for sizes in (self._row_sizes(), self.columns))
        return [f"levels={rows}" if rows == columns else f"levels={rows} by {columns}"]

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return self._with(self.generators * self._level_scale(factor))

    def prepare(self) -> Matrix:
        return Prepared(self, (fm.spectrum(self.generators, self._geometry()),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        levels, g = self._levels(), self._geometry()
        hat = kept[0] if kept[0].ndim == levels or x.ndim == 1 else kept[0].unsqueeze(-levels - 1)
        y = fm.apply_spectrum(hat, x.unflatten(-1, g.x), g, not self.generators.is_complex())
        return y.flatten(-levels).to(torch.promote_types(self.generators.dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        lengths, size = self._geometry().lengths, self.generators.element_size()
        shown = "x".join(map(str, lengths))
        if verb == "linear":
            reason = f"embedded in a {self._levels()}-level circulant of sizes {shown}"
            return backend.Plan("fft", reason, *work(math.prod(lengths), columns, size))
        if verb == "solve" and self._iterates("auto"):
            steps = 20  # a smooth symbol; the number of steps is not bounded
            name = "cg" if self._definite() else "gmres"
            return backend.Plan(
                name,
                f"k-level circulant preconditioners, about {steps} steps for a smooth symbol",
                *work(math.prod(lengths), columns * steps, 8, transforms=4),
            )
        return super().plan(verb, columns)

    # -- makers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_kernel(
        cls, kernel: torch.Tensor, shape: Sizes, boundary: str = "zero", *, symmetric: bool = False
    ) -> Matrix:
        """Convolution of images of this shape with a kernel (point spread function) ``(*b, p_1, ..., p_k)``.

        ``y[i] = sum_k kernel[k] x[i - k + c]`` with the centre ``c = p // 2`` along each axis, for odd and even sizes:
        what ``scipy.ndimage.convolve`` computes in the modes "constant", "wrap" and "reflect". Kernels may be larger
        than the image. boundary says what lies outside of it:

        "zero": a BlockToeplitz. "periodic": a BlockCirculant. "reflect" (``d c b a | a b c d | d c b a``): a
        ReflectedConvolution, or with ``symmetric`` (the kernel is even about its centre along each axis, which is
        checked where values can be read) a CosineDiagonal, whose solve, inverse and determinant are closed.
        """
        return from_kernel(kernel, shape, boundary, symmetric)

    @classmethod
    def from_dense(
        cls, dense: torch.Tensor, tol: float | None = None, *, columns: Sizes, rows: Sizes | None = None
    ) -> Matrix:
        """The matrix of these level sizes (rows: by default as columns) equal to the dense one within ``tol
        ||dense||_F`` (default 8 eps); NotStructuredError otherwise."""
        return distance_check(cls, dense, cls.nearest(dense, columns, rows), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, columns: Sizes, rows: Sizes | None = None) -> "BlockToeplitz":
        """The mean over each product group ``i - j``: the best in the Frobenius norm."""
        place = "BlockToeplitz.nearest"
        if dense.ndim < 2:
            raise ShapeError(f"{place}: a matrix is needed, got shape {tuple(dense.shape)}")
        columns = require_sizes(columns, place, dense.shape[-1])
        rows = require_sizes(columns if rows is None else rows, place, dense.shape[-2])
        if len(rows) != len(columns):
            raise ShapeError(f"{place}: rows {rows} and columns {columns} differ in the number of levels")
        sizes = tuple(m + n - 1 for m, n in zip(rows, columns, strict=True))
        sums = fi.group_sums(dense, fi.toeplitz_index(rows, columns, dense.device), sizes)
        means = sums / fi.counts(rows, columns, dense.device).to(backend.real_of(sums.dtype))
        return cls(means.to(dense.dtype), columns)

    @classmethod
    def random(
        cls, columns: Sizes, rows: Sizes | None = None, *, generator: Any = None, **options: Any
    ) -> "BlockToeplitz":
        """Standard normal generators over ``sqrt(n)``; rows by default as columns."""
        columns = require_sizes(columns, "BlockToeplitz.random")
        rows = columns if rows is None else require_sizes(rows, "BlockToeplitz.random")
        sizes = tuple(m + n - 1 for m, n in zip(rows, columns, strict=True))
        return cls(torch.randn(sizes, generator=generator, **options) / math.prod(columns) ** 0.5, columns)

    @classmethod
    def identity(cls, columns: Sizes, **options: Any) -> "BlockToeplitz":
        columns = require_sizes(columns, "BlockToeplitz.identity")
        generators = torch.zeros(tuple(2 * n - 1 for n in columns), **options)
        generators[tuple(n - 1 for n in columns)] = 1
        return cls(generators, columns)


@dispatch.rule("block_toeplitz", torch.Tensor, tuple)
def _of_generators(generators: torch.Tensor, columns: Sizes) -> Matrix:
    """BlockToeplitz of these generators."""
    return BlockToeplitz(generators, columns)


def _same(a: BlockToeplitz, b: BlockToeplitz) -> bool:
    return a.columns == b.columns and a._row_sizes() == b._row_sizes()


@dispatch.rule("add", BlockToeplitz, BlockToeplitz)
def _plus(a: BlockToeplitz, b: BlockToeplitz) -> Matrix:
    """Equal levels: the generators add; else lazy."""
    if not _same(a, b):
        lazy: Matrix = dispatch.lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return a._with(a.generators + b.generators)


@dispatch.rule("hadamard", BlockToeplitz, BlockToeplitz)
def _entrywise(a: BlockToeplitz, b: BlockToeplitz) -> Matrix:
    """Equal levels: the generators multiply; else StructureError."""
    if not _same(a, b):
        raise StructureError(f"{a!r} * {b!r}: the levels differ, so the entrywise product has no structured form")
    return a._with(a.generators * b.generators)
