"""Convolution of images that are reflected at their boundaries, with any kernel."""

import math
from typing import Any

import torch

from structmat import backend, dispatch
from structmat.errors import ShapeError
from structmat.functional import cosine as fc
from structmat.functional import level_indices as fi
from structmat.functional import multilevel_solve as fs
from structmat.functional.krylov import Apply
from structmat.functional.toeplitz import work
from structmat.lazy import Prepared
from structmat.matrix import Matrix, static
from structmat.types.block_family import MultilevelFamily, Sizes, require_sizes
from structmat.types.block_solve_family import IterativeFamily

__all__ = ["ReflectedConvolution"]


class ReflectedConvolution(IterativeFamily):
    """``A[i, j] = w[i - j] + w[i + j + 1]`` along each level, w the kernel about its centre, modulo 2 n: Toeplitz plus
    Hankel, the convolution ``y[i] = sum_k kernel[k] x[i - k + c]`` of an image reflected as ``d c b a | a b c d | d c b
    a`` (scipy.ndimage's mode "reflect").

    Stores:   kernel (*batch, p_1, ..., p_k), real or complex, its centre at p // 2 along each level; sizes = (n_1,
              ..., n_k), those of the image (static); transposed (static): whether this is A^T, which is of another
              form (the convolution, then every place outside the image is added to the pixel it shows).
    Shape:    (*batch, N, N), N = n_1 ... n_k.      Claims: none (an even kernel: see CosineDiagonal).
    Cost:     linear three k-dimensional FFTs of lengths n + p - 1 a row (``prepare`` keeps one of them); solve: dense
              LU up to order 256; above it GMRES with the cosine-diagonal matrix of the kernel's even part, then
              conjugate gradients of the normal equations with ``gram_approximation``.
    Closed:   s X, transpose; X + X for kernels of one shape.
    Raises:   ShapeError if sizes does not fit; SolveError (with the backward error) in place of an inaccurate solution.
    Example:
        >>> motion = sm.BlockToeplitz.from_kernel(torch.tensor([1.0, 0.0, 2.0]), (3,), "reflect")
        >>> motion.to_dense()
        tensor([[2., 1., 0.],
                [2., 0., 1.],
                [0., 2., 1.]])
    References: M. Ng, R. Chan, W. Tang, A fast algorithm for deblurring models with Neumann boundary conditions, 1999.
    """

    kernel: torch.Tensor
    sizes: Sizes = static()
    transposed: bool = static(default=False)

    def _levels(self) -> int:
        return len(self.sizes) if isinstance(self.sizes, tuple) else 1

    def _row_sizes(self) -> Sizes:
        return self.sizes

    def _validate(self) -> None:
        if not isinstance(self.sizes, tuple):
            raise ShapeError(f"ReflectedConvolution: sizes must be a tuple of integers, got {self.sizes!r}")
        require_sizes(self.sizes, "ReflectedConvolution")
        self._check_levels("the number of sizes", len(self.sizes))

    def _with(self, kernel: torch.Tensor) -> "ReflectedConvolution":
        return ReflectedConvolution(kernel, self.sizes, self.transposed)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.transposed:
            return fc.reflected_adjoint(self.kernel.conj().resolve_conj(), x, self.sizes)
        return fc.reflected_product(self.kernel, x, self.sizes)

    def transpose(self) -> Matrix:
        return ReflectedConvolution(self.kernel, self.sizes, not self.transposed)

    def to_dense(self) -> torch.Tensor:
        dense = fc.reflected_entries(self.kernel, self.sizes)
        return dense.mT if self.transposed else dense

    def diagonal(self) -> torch.Tensor:
        return fc.reflected_diagonal(self.kernel, self.sizes)

    def norm(self) -> torch.Tensor:
        """From the entries up to the dense limit, above it from N products in blocks."""
        if max(self.shape[-2:]) > backend.dense_limit(self.kernel.device):
            return super().norm()
        return self._cast(torch.linalg.vector_norm(self._wide_dense(), dim=(-2, -1)), real=True)

    def _norm_bound(self) -> torch.Tensor:
        """``2^(k/2) sum |kernel|``: no row of the dense matrix holds more than ``sum |kernel|`` in modulus, no column
        more than ``2^k`` times that, and ``||A||_2^2`` is at most the product of both."""
        levels = self._levels()
        wide = self.kernel.to(backend.compute_dtype(self.kernel.dtype)).flatten(-levels)
        return 2 ** (levels / 2) * wide.abs().sum(-1)

    # -- approximations that are closed ---------------------------------------------------------------------------

    def even_part(self) -> Matrix:
        """The CosineDiagonal of the mean of the kernel over all mirror images: the optimal preconditioner in that
        class (Ng, Chan, Tang 1999, section 3)."""
        matrix: Matrix = dispatch.call(
            "cosine_diagonal", fc.kernel_eigenvalues(self.kernel, self.sizes).to(self.kernel.dtype), self._levels()
        )
        return matrix

    def gram_approximation(self) -> Matrix:
        """A CosineDiagonal close to ``A^H A``: the even part of the kernel's autocorrelation. ``(P + s I).inv()``
        preconditions ``A^H A + s I``."""
        lam = fc.gram_eigenvalues(self.kernel, self.sizes)
        matrix: Matrix = dispatch.call("cosine_diagonal", lam.to(self.kernel.dtype), self._levels())
        return matrix

    def _operator(self, dtype: torch.dtype, definite: bool) -> fs.Operator:
        kernel, sizes, levels = self.kernel.to(dtype), self.sizes, self._levels()

        hat, ends, real = fc.reflected_spectrum(kernel, sizes), self._ends(), not kernel.is_complex()

        def multiply(x: torch.Tensor) -> torch.Tensor:
            return fc.reflected_by_spectrum(hat, x, ends, sizes, real, adjoint=False)

        def adjoint(y: torch.Tensor) -> torch.Tensor:
            return fc.reflected_by_spectrum(hat, y, ends, sizes, real, adjoint=True)

        def dividing(lam: torch.Tensor) -> Apply:
            def apply(x: torch.Tensor) -> torch.Tensor:
                y = fc.cosine_transform(x.unflatten(-1, sizes), levels) / lam.unsqueeze(-levels - 1)
                return fc.inverse_cosine_transform(y, levels).flatten(-levels)

            return apply

        even, gram = fc.kernel_eigenvalues(kernel, sizes), fc.gram_eigenvalues(kernel, sizes)
        axes = tuple(range(-levels, 0))
        floor = torch.finfo(torch.float64).eps ** 0.5 * even.abs().amax(axes, keepdim=True)
        inverses = []
        if bool((even.abs() > floor).all()):
            inverses.append(("even part", dividing(even), dividing(even.conj()), False))
        safe = gram.clamp_min(torch.finfo(torch.float64).eps * gram.amax(axes, keepdim=True))
        divide = dividing(safe)
        forward = fs.Operator(multiply, adjoint, self._norm_bound(), tuple(inverses), (divide, divide))
        if not self.transposed:
            return forward
        plain = ReflectedConvolution(kernel.conj().resolve_conj(), sizes)._operator(dtype, definite)
        return plain.mH

    # -- closed forms ---------------------------------------------------------------------------------------------

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return self._with(self.kernel * self._level_scale(factor))

    def _ends(self) -> Sizes:
        return tuple(self.kernel.shape[self.kernel.ndim - self._levels() :])

    def prepare(self) -> Matrix:
        kernel = self.kernel.conj().resolve_conj() if self.transposed else self.kernel
        return Prepared(self, (fc.reflected_spectrum(kernel, self.sizes),))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        real = not self.kernel.is_complex()
        y = fc.reflected_by_spectrum(kept[0], x, self._ends(), self.sizes, real, self.transposed)
        return y.to(torch.promote_types(self.kernel.dtype, x.dtype))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        total = math.prod(n + p - 1 for n, p in zip(self.sizes, self._ends(), strict=True))
        if verb == "linear":
            flops = work(total, columns, self.kernel.element_size())
            return backend.Plan("fft", "convolution of the reflected image", *flops)
        if verb == "solve" and self._iterates("auto"):
            flops = work(total, columns * 50, 8, transforms=4)
            return backend.Plan("gmres", "with the even part of the kernel, about 50 steps", *flops)
        return super().plan(verb, columns)

    def _statics(self) -> list[str]:
        return [*MultilevelFamily._statics(self), *(["transposed"] if self.transposed else [])]

    @classmethod
    def random(cls, sizes: Sizes, kernel: Sizes, *, generator: Any = None, **options: Any) -> "ReflectedConvolution":
        """A standard normal kernel of these sizes over the root of its number of entries."""
        sizes = require_sizes(sizes, "ReflectedConvolution.random")
        kernel = require_sizes(kernel, "ReflectedConvolution.random")
        return cls(torch.randn(kernel, generator=generator, **options) / math.prod(kernel) ** 0.5, sizes)


@dispatch.rule("reflected_convolution", torch.Tensor, tuple, bool)
def _of_kernel(kernel: torch.Tensor, sizes: Sizes, symmetric: bool) -> Matrix:
    """ReflectedConvolution with this kernel, or the CosineDiagonal of an even one."""
    if symmetric:
        lam = fc.kernel_eigenvalues(kernel, sizes).to(kernel.dtype)
        closed: Matrix = dispatch.call("cosine_diagonal", lam, len(sizes))
        return closed
    return ReflectedConvolution(fi.shorten(kernel, sizes), sizes)


@dispatch.rule("add", ReflectedConvolution, ReflectedConvolution)
def _plus(a: ReflectedConvolution, b: ReflectedConvolution) -> Matrix:
    """Kernels and images of one size, neither transposed alone: the kernels add; else lazy."""
    levels = a._levels()
    same = a.sizes == b.sizes and a.transposed == b.transposed
    if not same or a.kernel.shape[a.kernel.ndim - levels :] != b.kernel.shape[b.kernel.ndim - levels :]:
        lazy: Matrix = dispatch.lookup("add", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return a._with(a.kernel + b.kernel)
