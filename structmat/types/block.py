"""Block matrices: a grid of matrices of any types, applied block by block."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from structmat import backend, dispatch
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, StructureError
from structmat.lazy.expressions import _check_parts, _common
from structmat.matrix import Matrix, add, hadamard, matmul, scaled
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Block"]

_TRIANGULAR = frozenset({Claim.UPPER_TRIANGULAR, Claim.LOWER_TRIANGULAR})


class Block(Matrix):
    """``A = [[A_11, A_12, ...], [A_21, A_22, ...], ...]`` of matrices of any types; ``structmat.block`` makes it.

    Stores:   blocks, a tuple of rows, each a tuple of as many matrices; rows agree in height, columns in width,
              batches broadcast.
    Shape:    (*batch, sum of heights, sum of widths).      Claims: what all have that stand alone on the diagonal;
              triangular with zeros on one side; rank at most the sum of the ranks.
    Cost:     linear: that of the blocks, zero ones left out. With zeros on one side of square diagonal blocks solve,
              slogdet and factor go block by block; else as for a matrix without structure.
    Closed:   X @ X, X + X, X * X for grids that fit -> X; s X, transpose -> X; inv -> X with zeros on both sides.
    Raises:   ShapeError naming the blocks that do not fit; TypeError for what is no grid of matrices.
    Example:
        >>> A = sm.block([[sm.Identity(2), sm.Dense(torch.ones(2, 1))], [None, sm.Dense(2 * torch.ones(1, 1))]])
        >>> A.solve(torch.tensor([2.0, 3.0, 2.0]))
        tensor([1., 2., 1.])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 1.3.
    """

    blocks: tuple[tuple[Matrix, ...], ...]

    def _validate(self) -> None:
        rows = self.blocks
        if not isinstance(rows, tuple) or not rows or not all(isinstance(row, tuple) and row for row in rows):
            raise TypeError("Block: a non-empty tuple of non-empty tuples of matrices is needed; see structmat.block")
        _check_parts("Block", tuple(itertools.chain(*rows)))
        if len({len(row) for row in rows}) > 1:
            raise ShapeError(f"Block: rows of {sorted({len(row) for row in rows})} blocks; all need the same number")
        for i, row in enumerate(rows):
            for j, part in enumerate(row):
                m, n = rows[i][0].shape[-2], rows[0][j].shape[-1]
                if part.shape[-2:] != (m, n):
                    raise ShapeError(
                        f"Block: block [{i}, {j}], {part!r}, has to be {m} x {n} to fit its row and column"
                    )

    # -- sizes ----------------------------------------------------------------------------------------------------

    def _parts(self) -> Iterator[tuple[int, int, Matrix]]:
        for i, row in enumerate(self.blocks):
            for j, part in enumerate(row):
                yield i, j, part

    def _heights(self) -> list[int]:
        return [int(row[0].shape[-2]) for row in self.blocks]

    def _widths(self) -> list[int]:
        return [int(part.shape[-1]) for part in self.blocks[0]]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, sum(self._heights()), sum(self._widths())))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(part.batch_shape for _, _, part in self._parts()))

    @property
    def dtype(self) -> torch.dtype | None:
        return _common(tuple(part for _, _, part in self._parts()))

    def _each(self, function: Callable[[Matrix], Matrix]) -> "Block":
        return Block(tuple(tuple(function(part) for part in row) for row in self.blocks))

    # -- products -------------------------------------------------------------------------------------------------

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        given, found = x.split(self._widths(), -1), []
        for row in self.blocks:
            used = [(part, piece) for part, piece in zip(row, given, strict=True) if not _is_zero(part)]
            if not used:
                used = [(row[0], given[0])]
            y = used[0][0].linear(used[0][1])
            for part, piece in used[1:]:
                y = y + part.linear(piece)
            found.append(y)
        dtype = x.dtype if self.dtype is None else torch.promote_types(self.dtype, x.dtype)
        lead = (
            self.batch_shape if x.ndim == 1 else (*torch.broadcast_shapes(self.batch_shape, x.shape[:-2]), x.shape[-2])
        )
        return torch.cat([y.to(dtype).expand(*lead, y.shape[-1]) for y in found], -1)

    def transpose(self) -> Matrix:
        return Block(tuple(tuple(part.transpose() for part in column) for column in zip(*self.blocks, strict=True)))

    def conj(self) -> Matrix:
        return self._each(lambda part: part.conj())

    def to_dense(self) -> torch.Tensor:
        dtype, lead = self.dtype or torch.get_default_dtype(), self.batch_shape
        rows = []
        for row in self.blocks:
            parts = [part.to_dense().to(dtype=dtype, device=self.device) for part in row]
            rows.append(torch.cat([p.expand(*lead, *p.shape[-2:]) for p in parts], -1))
        return torch.cat(rows, -2)

    # -- zeros on one side ------------------------------------------------------------------------------------------

    def _order(self) -> range | None:
        """The order of substitution where the diagonal blocks are square and one side is zero; else None."""
        count = len(self.blocks)
        if count != len(self.blocks[0]) or self._heights() != self._widths():
            return None
        if all(_is_zero(part) for i, j, part in self._parts() if j > i):
            return range(count)
        return range(count - 1, -1, -1) if all(_is_zero(part) for i, j, part in self._parts() if i > j) else None

    def _is_diagonal(self) -> bool:
        return len(self.blocks) == len(self.blocks[0]) and all(_is_zero(p) for i, j, p in self._parts() if i != j)

    @property
    def _solves(self) -> bool:
        """Whether a solve goes block by block."""
        return self._order() is not None

    def _alike(self, part: Matrix) -> Matrix:
        """The block; one without a dtype in that of the matrix."""
        return part if part.dtype is not None or self.dtype is None else part.to(dtype=self.dtype, device=self.device)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        order = self._order()
        if options.method == "dense" or order is None:
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "block by block")
        if self.dtype is not None and (wide := backend.compute_dtype(self.dtype)) != self.dtype:
            return self.to(wide)._solve_rows(y.to(torch.promote_types(wide, y.dtype)), options)
        with backend.full_precision(y.device):
            x = self._substituted(y, order, Options(check=options.check))
        return x, self._checked(x, y, "block by block", len(order), options, ("zeros beside the diagonal blocks",))

    def _substituted(self, y: torch.Tensor, order: range, inner: Options) -> torch.Tensor:
        right = list(y.split(self._heights(), -1))
        found: dict[int, torch.Tensor] = {}
        for i in order:
            for j, x in found.items():
                if not _is_zero(self.blocks[i][j]):
                    right[i] = right[i] - self.blocks[i][j].linear(x)
            found[i] = self.blocks[i][i]._solve_rows(right[i], inner)[0]
        lead = torch.broadcast_shapes(*(x.shape[:-1] for x in found.values()))
        return torch.cat([found[i].expand(*lead, found[i].shape[-1]) for i in range(len(found))], -1)

    def _factor(self, method: str) -> Factorisation:
        if method == "dense" or self._order() is None:
            return super()._factor(method)
        return Factorisation(self, "block by block")

    def inv(self) -> Matrix:
        if self._order() is not None and self._is_diagonal():
            found = [[self.blocks[j][i].transpose() for j in range(len(self.blocks))] for i in range(len(self.blocks))]
            for i, row in enumerate(found):
                row[i] = self.blocks[i][i].inv()
            return Block(tuple(tuple(row) for row in found))
        lazy: Matrix = super().inv()
        return lazy

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._order() is None:
            value: tuple[torch.Tensor, torch.Tensor] = super().slogdet()
            return value
        found = [self._alike(self.blocks[i][i]).slogdet() for i in range(len(self.blocks))]
        sign, logabs = found[0]
        for s, log in found[1:]:
            sign, logabs = sign * s, logabs + log
        return sign.expand(self.batch_shape), logabs.expand(self.batch_shape)

    # -- entries --------------------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        if len(self.blocks) != len(self.blocks[0]) or self._heights() != self._widths():
            derived: torch.Tensor = super().diagonal()
            return derived
        parts = [self._alike(self.blocks[i][i]).diagonal() for i in range(len(self.blocks))]
        dtype = self.dtype or torch.get_default_dtype()
        return torch.cat([p.to(dtype).expand(*self.batch_shape, p.shape[-1]) for p in parts], -1)

    def norm(self) -> torch.Tensor:
        return self._root([self._alike(part).norm() for _, _, part in self._parts()])

    def _norm_bound(self) -> torch.Tensor:
        return self._root([self._alike(part)._norm_bound() for _, _, part in self._parts()])

    def _root(self, sizes: list[torch.Tensor]) -> torch.Tensor:
        wide = backend.real_of(backend.compute_dtype(self.dtype or torch.get_default_dtype()))
        each = torch.stack([s.to(dtype=wide, device=self.device).expand(self.batch_shape) for s in sizes], -1)
        return self._cast(torch.linalg.vector_norm(each, dim=-1), real=True)

    def _properties(self) -> Claims:
        ranks = sum(part.rank_bound() for _, _, part in self._parts())
        rank = ranks if ranks < min(self.shape[-2:]) else None
        order, count = self._order(), len(self.blocks)
        found: frozenset[Claim] = frozenset()
        if order is not None or self._is_diagonal():
            each = [self.blocks[i][i].claims.properties for i in range(count)]
            found = frozenset.intersection(*each)
            if order is None:  # rectangular blocks
                found -= _TRIANGULAR
            elif not self._is_diagonal():
                found &= {Claim.LOWER_TRIANGULAR} if order.step > 0 else {Claim.UPPER_TRIANGULAR}
        return Claims(found, rank, {})

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return self._each(lambda part: scaled(part, factor))

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return self._each(lambda part: part._picked(batch, lead))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb == "linear" or (verb == "solve" and self._order() is not None):
            used = [(i, j, p) for i, j, p in self._parts() if not _is_zero(p)]
            inner = [p.plan("solve" if verb == "solve" and i == j else "linear", columns) for i, j, p in used]
            flops, moved = (sum(float(getattr(q, name) or 0.0) for q in inner) for name in ("flops", "bytes"))
            return backend.Plan("block by block", f"{len(used)} blocks that are not zero", flops, moved)
        return super().plan(verb, columns)

    def __repr__(self) -> str:
        lines = [f"Block[{len(self.blocks)} x {len(self.blocks[0])}]("]
        for i, j, part in self._parts():
            first, *rest = repr(part).splitlines()
            lines += [f"  [{i}, {j}] {first}", *("  " + line for line in rest)]
        return "\n".join(lines) + "\n)"


def _is_zero(part: Matrix) -> bool:
    return part.claims.rank == 0


def _grid(a: Block) -> tuple[list[int], list[int]]:
    return a._heights(), a._widths()


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = dispatch.lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


@dispatch.rule("matmul", Block, Block)
def _times(a: Block, b: Block) -> Matrix:
    """Block: sums of products of blocks, where widths and heights fit; else lazy."""
    if a._widths() != b._heights():
        return _lazily("matmul", a, b)
    columns = list(zip(*b.blocks, strict=True))
    return Block(tuple(tuple(_inner(row, column) for column in columns) for row in a.blocks))


def _inner(row: tuple[Matrix, ...], column: tuple[Matrix, ...]) -> Matrix:
    """The sum of the products; those with a zero block are left out, unless nothing is left."""
    pairs = [(p, q) for p, q in zip(row, column, strict=True) if not (_is_zero(p) or _is_zero(q))]
    found = [matmul(p, q) for p, q in pairs or [(row[0], column[0])]]
    total = found[0]
    for other in found[1:]:
        total = add(total, other)
    return total


@dispatch.rule("add", Block, Block)
def _plus(a: Block, b: Block) -> Matrix:
    """Block: block by block, for one grid; else lazy."""
    if _grid(a) != _grid(b):
        return _lazily("add", a, b)
    return Block(tuple(tuple(map(add, p, q)) for p, q in zip(a.blocks, b.blocks, strict=True)))


@dispatch.rule("hadamard", Block, Block)
def _entrywise(a: Block, b: Block) -> Matrix:
    """Block: block by block, for one grid; else StructureError."""
    if _grid(a) != _grid(b):
        raise StructureError(
            f"{a!r} * {b!r}: the entrywise product has no structured form, as the grids differ; "
            "use Dense(A.to_dense()) * B"
        )
    return Block(tuple(tuple(map(hadamard, p, q)) for p, q in zip(a.blocks, b.blocks, strict=True)))
