"""Circulant matrices of several levels (block circulant with circulant blocks, and so on)."""

import math
from typing import Any

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, SolveError, StructureError
from structmat.functional import block_circulant as fb
from structmat.functional import level_indices as fi
from structmat.functional import multilevel as fm
from structmat.functional.toeplitz import work
from structmat.lazy import Prepared, Product
from structmat.matrix import Matrix, static
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.block_family import MultilevelFamily, Sizes, from_kernel, require_sizes

__all__ = ["BlockCirculant"]


class BlockCirculant(MultilevelFamily):
    """``A[i, j] = generators[(i - j) mod n]``, i and j multi-indices of k levels in C order: periodic convolution.

    Stores:   generators (*batch, n_1, ..., n_k), real or complex; levels = k (static), by default 2.
    Shape:    (*batch, N, N), N = n_1 ... n_k.      Claims: displacement rank 2 N / n_k - 1.
    Cost:     linear three k-dimensional FFTs a row (an axis whose length has a prime factor above 13 is embedded in
              twice its length); solve, inv, det, eigvals, sqrt N log N; N memory.
    Closed:   X @ X, X + X, s X, inv, pinv, transpose, sqrt, X * X, X + s Identity; X + BlockToeplitz -> BlockToeplitz.
    Raises:   ShapeError if there are fewer axes than levels; SolveError if an eigenvalue is zero to working precision.
    Example:
        >>> sm.BlockCirculant(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).to_dense()
        tensor([[1., 2., 3., 4.],
                [2., 1., 4., 3.],
                [3., 4., 1., 2.],
                [4., 3., 2., 1.]])
    References: P. J. Davis, Circulant Matrices, 1979, section 5.8.
    """

    generators: torch.Tensor
    levels: int = static(default=2)

    def _levels(self) -> int:
        return self.levels if isinstance(self.levels, (int, torch.SymInt)) else 1

    def _row_sizes(self) -> Sizes:
        return tuple(self.generators.shape[self.generators.ndim - self.levels :])

    def _validate(self) -> None:
        self._check_levels("levels", self.levels)

    @property
    def _n(self) -> int:
        return math.prod(self._row_sizes())

    def _with(self, generators: torch.Tensor) -> "BlockCirculant":
        return BlockCirculant(generators, self.levels)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        weights, geometry = fm.circulant_embedding(self.generators, self.levels)
        return fm.product_rows(weights, x, geometry)

    def transpose(self) -> Matrix:
        axes = tuple(range(-self.levels, 0))
        return self._with(self.generators.flip(axes).roll((1,) * self.levels, axes))  # index -k mod n

    def to_dense(self) -> torch.Tensor:
        index = fi.circulant_index(self._row_sizes(), self.generators.device)
        return fi.entries(self.generators, index, self.levels)

    # -- functions of the eigenvalues -----------------------------------------------------------------------------

    def _function(self, lam: torch.Tensor) -> "BlockCirculant":
        """The matrix of these eigenvalues, real where the generators are."""
        return self._with(fb.from_eigenvalues(lam, self.levels, not self.generators.is_complex()).to(self.dtype))

    def _eigenvalues(self) -> torch.Tensor:
        return fb.eigenvalues(self.generators, self.levels)

    def inv(self) -> Matrix:
        """The matrix of the reciprocal eigenvalues."""
        return self._function(1 / self._eigenvalues())

    def pinv(self) -> Matrix:
        """Reciprocal eigenvalues; those below ``N eps max|lam|`` count as zero."""
        return self._function(fb.reciprocal(self._eigenvalues(), self.levels))

    def sqrt(self) -> "BlockCirculant":
        """The principal square root: ``S @ S = A``, eigenvalues with real part >= 0.

        Raises StructureError if A is real and has a negative eigenvalue, whose root is not real: convert A to complex
        entries first. (Inside a transform or a compiled graph, where values cannot be read, that gives NaN.)
        """
        lam = self._eigenvalues()
        if self.generators.is_complex():
            return self._function(torch.sqrt(lam))
        places = self._real_places(lam)
        if backend.eager(lam) and bool((lam.detach().real[..., places] < 0).any()):
            raise StructureError(
                f"{self!r}.sqrt: a real eigenvalue is negative, so the principal square root is not real; use "
                "BlockCirculant(A.generators.to(torch.complex128), A.levels).sqrt()"
            )
        one = torch.ones_like(lam)  # each branch gets what it can take, else the other's NaN enters its gradient
        real = torch.sqrt(torch.where(places, lam, one).real)
        return self._function(torch.where(places, real.to(lam.dtype), torch.sqrt(torch.where(places, one, lam))))

    def _real_places(self, lam: torch.Tensor) -> torch.Tensor:
        """Which eigenvalues of a real matrix are real by symmetry: index 0 or n/2 along each level."""
        mask = torch.ones((), dtype=torch.bool, device=lam.device)
        for n in self._row_sizes():
            index = torch.arange(n, device=lam.device)
            mask = mask[..., None] & (2 * index % n == 0)
        return mask

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method != "auto":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        if options.check and backend.eager(y, self.generators):
            size = self._eigenvalues().detach().abs().flatten(-self.levels)
            cut = self._n * torch.finfo(size.dtype).eps * size.amax(-1)
            if bool((size.amin(-1) <= cut).any()):
                raise SolveError(
                    f"{self!r}.solve: singular to working precision, the smallest eigenvalue is "
                    f"{float(size.min()):.1e} and the largest {float(size.max()):.1e}; see pinv, or check=False",
                    float("inf"),
                )
        x = fb.divide_rows(self.generators, y, self.levels)
        return x, self._checked(x, y, "closed form", 0, options, ("division by the eigenvalues",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self) if method == "auto" else super()._factor(method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        sign, logabs = fb.slogdet(self.generators, self.levels)
        return self._cast(sign), self._cast(logabs, real=True)

    def eigvals(self) -> torch.Tensor:
        """``fftn(generators)`` in FFT order, flattened in C order."""
        return self._eigenvalues().flatten(-self.levels)

    def svdvals(self) -> torch.Tensor:
        """The moduli of the eigenvalues (A is normal), descending."""
        return self._cast(torch.sort(self.eigvals().abs(), -1, descending=True).values, real=True)

    # -- measures -------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        first = self.generators.flatten(-self.levels)[..., :1]
        return first.expand(*first.shape[:-1], self._n)

    def trace(self) -> torch.Tensor:
        return self._n * self.generators.flatten(-self.levels)[..., 0]

    def norm(self) -> torch.Tensor:
        """``sqrt(N) ||generators||``."""
        wide = self.generators.to(backend.compute_dtype(self.generators.dtype)).flatten(-self.levels)
        return self._cast(torch.linalg.vector_norm(wide, dim=-1) * self._n**0.5, real=True)

    def _norm_bound(self) -> torch.Tensor:
        return self.eigvals().abs().amax(-1)

    def _properties(self) -> Claims:
        n, bound = self._n, 2 * (self._n // self._row_sizes()[-1]) - 1
        symmetric = all(size <= 2 for size in self._row_sizes())  # i - j and j - i are the same modulo 1 and 2
        known = frozenset({Claim.SYMMETRIC}) if symmetric else frozenset()
        return Claims(known, None, {(1, -1): min(n, bound), (-1, 1): min(n, bound)})

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return self._with(self.generators * self._level_scale(factor))

    def prepare(self) -> Matrix:
        return Prepared(self, (fm.spectrum(*fm.circulant_embedding(self.generators, self.levels)),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        hat, geometry = kept[0], fm.circulant_embedding(self.generators, self.levels)[1]
        hat = hat if hat.ndim == self.levels or x.ndim == 1 else hat.unsqueeze(-self.levels - 1)
        y = fm.apply_spectrum(hat, x.unflatten(-1, geometry.x), geometry, not self.generators.is_complex())
        return y.flatten(-self.levels).to(torch.promote_types(self.generators.dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n, size = self._n, self.generators.element_size()
        if verb == "solve":
            return backend.Plan("closed form", "division by the eigenvalues", *work(n, columns, size, transforms=2))
        if verb != "linear":
            return super().plan(verb, columns)
        lengths = fm.circulant_embedding(self.generators, self.levels)[1].lengths
        path = "cyclic" if lengths == self._row_sizes() else "folded"
        reason = f"a {self.levels}-dimensional convolution of lengths {'x'.join(map(str, lengths))}"
        return backend.Plan(path, reason, *work(math.prod(lengths), columns, size))

    # -- makers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_kernel(
        cls, kernel: torch.Tensor, shape: Sizes, boundary: str = "periodic", *, symmetric: bool = False
    ) -> Matrix:
        """Convolution of images of this shape with a kernel ``(*b, p_1, ..., p_k)`` centred at ``p // 2``, as
        ``scipy.ndimage.convolve`` has it; other boundaries ("zero", "reflect") give other types, see
        ``BlockToeplitz.from_kernel``."""
        return from_kernel(kernel, shape, boundary, symmetric)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, *, sizes: Sizes) -> Matrix:
        """The matrix of these level sizes equal to the dense one within ``tol ||dense||_F`` (default 8 eps);
        NotStructuredError otherwise."""
        return distance_check(cls, dense, cls.nearest(dense, sizes), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, sizes: Sizes) -> "BlockCirculant":
        """The mean over each product group ``(i - j) mod n``: the best in the Frobenius norm."""
        if dense.ndim < 2 or dense.shape[-1] != dense.shape[-2]:
            raise ShapeError(f"BlockCirculant.nearest: a square matrix is needed, got shape {tuple(dense.shape)}")
        sizes = require_sizes(sizes, "BlockCirculant.nearest", dense.shape[-1])
        sums = fi.group_sums(dense, fi.circulant_index(sizes, dense.device), sizes)
        return cls((sums / math.prod(sizes)).to(dense.dtype), len(sizes))

    @classmethod
    def random(cls, sizes: Sizes, *, generator: Any = None, **options: Any) -> "BlockCirculant":
        """Standard normal generators over ``sqrt(N)``, so that products keep the size of x."""
        sizes = require_sizes(sizes, "BlockCirculant.random")
        return cls(torch.randn(sizes, generator=generator, **options) / math.prod(sizes) ** 0.5, len(sizes))

    @classmethod
    def identity(cls, sizes: Sizes, **options: Any) -> "BlockCirculant":
        sizes = require_sizes(sizes, "BlockCirculant.identity")
        generators = torch.zeros(sizes, **options)
        generators[(0,) * len(sizes)] = 1
        return cls(generators, len(sizes))


@dispatch.rule("block_circulant", torch.Tensor, int)
def _of_generators(generators: torch.Tensor, levels: int) -> Matrix:
    """BlockCirculant of these generators."""
    return BlockCirculant(generators, levels)


def _same(a: BlockCirculant, b: BlockCirculant) -> bool:
    return a._row_sizes() == b._row_sizes()


@dispatch.rule("matmul", BlockCirculant, BlockCirculant)
def _times(a: BlockCirculant, b: BlockCirculant) -> Matrix:
    """Equal levels: the matrix of A times B's generators; else lazy."""
    if not _same(a, b):
        return Product((a, b))
    weights, geometry = fm.circulant_embedding(a.generators, a.levels)
    return a._with(fm.convolve(weights, b.generators, geometry))


@dispatch.rule("add", BlockCirculant, BlockCirculant)
def _plus(a: BlockCirculant, b: BlockCirculant) -> Matrix:
    """Equal levels: the generators add; else lazy."""
    if not _same(a, b):
        lazy: Matrix = dispatch.lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return a._with(a.generators + b.generators)


@dispatch.rule("hadamard", BlockCirculant, BlockCirculant)
def _entrywise(a: BlockCirculant, b: BlockCirculant) -> Matrix:
    """Equal levels: the generators multiply; else StructureError."""
    if not _same(a, b):
        raise StructureError(f"{a!r} * {b!r}: the levels differ, so the entrywise product has no structured form")
    return a._with(a.generators * b.generators)
