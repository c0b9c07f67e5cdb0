"""Block-diagonal matrices of equal blocks."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat._shell import require_square
from structmat.errors import ShapeError, SolveError, StructureError
from structmat.functional import block_diagonal as fb
from structmat.matrix import Matrix, add, matmul
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["BlockDiagonal"]


class BlockDiagonal(Matrix):
    """``A = diag(B_1, ..., B_k)`` of k blocks of one size p x q.

    Stores:   blocks (*batch, k, p, q), real or complex.
    Shape:    (*batch, k p, k q).      Claims: none but what ``assume`` adds.
    Cost:     linear 2 k p q flops a row; solve, inv, slogdet 2/3 k p^3; svdvals, pinv, eigvals of order k p^3.
    Closed:   X @ X, X + X, X * X with the same blocks, with Diagonal and with multiples of Identity -> X; s X;
              transpose, inv, pinv -> X.
    Raises:   ShapeError for fewer than three dimensions, DtypeError for integer entries; SolveError where a block is
              singular.
    Example:
        >>> BlockDiagonal(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])).to_dense()
        tensor([[1., 2., 0., 0.],
                [0., 0., 3., 4.]])
    """

    core: ClassVar[Mapping[str, int]] = {"blocks": 3}
    blocks: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        k, p, q = self.blocks.shape[-3:]
        return torch.Size((*self.blocks.shape[:-3], k * p, k * q))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fb.linear(x, self.blocks)

    def transpose(self) -> Matrix:
        return BlockDiagonal(self.blocks.mT)

    def to_dense(self) -> torch.Tensor:
        return fb.dense(self.blocks)

    def _wide(self) -> torch.Tensor:
        return self.blocks.to(backend.compute_dtype(self.blocks.dtype))

    def _singular(self, verb: str, error: Exception) -> SolveError:
        return SolveError(f"{self!r}.{verb}: a block is singular ({error}); see pinv and lstsq", float("inf"))

    def inv(self) -> Matrix:
        require_square(self, "inv")
        try:
            return BlockDiagonal(fb.inverse(self.blocks))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise self._singular("inv", error) from error

    def pinv(self) -> Matrix:
        """Block by block; singular values below ``max(m, n) eps sigma_1``, sigma_1 that of all blocks, count as
        zero."""
        wide = self._wide()
        norms = torch.linalg.matrix_norm(wide.detach(), 2) if wide.numel() else wide.new_zeros(wide.shape[:-2]).real
        largest = norms.amax(-1) if wide.shape[-3] else norms.sum(-1)
        cut = max(self.shape[-2:]) * torch.finfo(wide.dtype).eps * largest
        each = cut[..., None].expand(wide.shape[:-2])
        inverse = torch.linalg.pinv(wide, atol=each, rtol=torch.zeros_like(each))
        return BlockDiagonal(inverse.to(self.blocks.dtype))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "blocks")
        try:
            x = fb.solve_rows(y, self.blocks)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise self._singular("solve", error) from error
        return x, self._checked(x, y, "blocks", 1, options, ("LU of each block",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self, "blocks") if method == "auto" else super()._factor(method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        require_square(self, "slogdet")
        sign, logabs = torch.linalg.slogdet(self._wide())
        return self._cast(sign.prod(-1)), self._cast(logabs.sum(-1), real=True)

    def diagonal(self) -> torch.Tensor:
        return fb.diagonal(self.blocks)

    def norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.blocks, dim=(-3, -2, -1))

    def _norm_bound(self) -> torch.Tensor:
        each = torch.linalg.vector_norm(self.blocks, dim=(-2, -1))
        return each.amax(-1) if each.shape[-1] else each.sum(-1)

    def eigvals(self) -> torch.Tensor:
        """Those of the first block, then those of the second, ...; complex."""
        require_square(self, "eigvals")
        return self._cast(torch.linalg.eigvals(self._wide()).flatten(-2), complex_=True)

    def svdvals(self) -> torch.Tensor:
        each = torch.linalg.svdvals(self._wide()).flatten(-2)
        return self._cast(torch.sort(each, -1, descending=True).values, real=True)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        one = factor[..., None] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        return BlockDiagonal(self.blocks * one)

    def _statics(self) -> list[str]:
        k, p, q = self.blocks.shape[-3:]
        return [f"blocks={k} of {p} x {q}"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        k, p, q = (int(s) for s in self.blocks.shape[-3:])
        moved = (k * p * q + k * (p + q) * columns) * self.blocks.element_size()
        if verb == "linear":
            return backend.Plan("blocks", f"{k} products of {p} x {q}", 2.0 * k * p * q * columns, float(moved))
        if verb == "solve":
            flops = k * (2 / 3 * p**3 + 2.0 * p * p * columns)
            return backend.Plan("blocks", f"LU of {k} blocks of order {p}", flops, float(moved))
        return super().plan(verb, columns)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, count: int, tol: float | None = None) -> Matrix:
        """The ``count`` blocks, if the rest is zero within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense, count), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, count: int) -> "BlockDiagonal":
        """The ``count`` diagonal blocks of the matrix: the best in the Frobenius norm. ShapeError if the sizes are not
        divisible."""
        m, n = (int(s) for s in dense.shape[-2:])
        if count < 1 or m % count or n % count:
            raise ShapeError(f"BlockDiagonal.nearest(count={count}): {m} x {n} has no {count} blocks of one size")
        grid = dense.unflatten(-2, (count, m // count)).unflatten(-1, (count, n // count))
        return cls(torch.diagonal(grid, dim1=-4, dim2=-2).movedim(-1, -3))

    @classmethod
    def random(
        cls, count: int, p: int, q: int | None = None, *, generator: Any = None, **options: Any
    ) -> "BlockDiagonal":
        """Standard normal entries over the root of q; ``dtype`` and ``device`` as in ``torch.randn``."""
        q = p if q is None else q
        return cls(torch.randn(count, p, q, generator=generator, **options) / max(1, q) ** 0.5)

    @classmethod
    def identity(cls, count: int, p: int, **options: Any) -> "BlockDiagonal":
        return cls(torch.eye(p, **options).repeat(count, 1, 1))


def _blocks(matrix: Matrix) -> Any:
    """The blocks as a batch of dense matrices."""
    return dispatch.call("wrap", matrix.blocks)  # type: ignore[attr-defined]


def _lazy(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = dispatch.lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


@dispatch.rule("matmul", BlockDiagonal, BlockDiagonal)
def _times(a: BlockDiagonal, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal: block by block, where the blocks fit; else lazy."""
    if a.blocks.shape[-3] != b.blocks.shape[-3]:
        return _lazy("matmul", a, b)
    return BlockDiagonal(matmul(_blocks(a), _blocks(b)).to_dense())


@dispatch.rule("add", BlockDiagonal, BlockDiagonal)
def _plus(a: BlockDiagonal, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal: block by block, for blocks of one size; else lazy."""
    if a.blocks.shape[-3:] != b.blocks.shape[-3:]:
        return _lazy("add", a, b)
    return BlockDiagonal(add(_blocks(a), _blocks(b)).to_dense())


@dispatch.rule("hadamard", BlockDiagonal, BlockDiagonal)
def _entrywise(a: BlockDiagonal, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal: block by block, for blocks of one size; else StructureError."""
    if a.blocks.shape[-3:] != b.blocks.shape[-3:]:
        raise StructureError(
            f"{a!r} * {b!r}: the entrywise product has no structured form for blocks of two sizes; "
            "use Dense(A.to_dense()) * B"
        )
    return BlockDiagonal(a.blocks * b.blocks)
