"""scipy's constructors with scipy's signatures, and stacking: arrays, lists or tensors in, structured matrices out."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch

from structmat._shell import common_dtype
from structmat.claims import Claim
from structmat.errors import DeviceError, DtypeError, ShapeError, StructureError
from structmat.matrix import Matrix
from structmat.matrix import kron as _kron
from structmat.types.block import Block
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.butterfly import Butterfly
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.hankel import Hankel
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.zero import Zero

__all__ = [
    "block",
    "block_diag",
    "cat",
    "circulant",
    "dft",
    "entries_of",
    "hadamard",
    "hankel",
    "hstack",
    "kron",
    "kron_sum",
    "stack",
    "toeplitz",
    "vstack",
]


def entries_of(value: Any, name: str) -> torch.Tensor:
    """A floating tensor: lists and numpy integers become float64, torch integer tensors raise ``DtypeError``."""
    if isinstance(value, torch.Tensor):
        if not (value.is_floating_point() or value.is_complex()):
            raise DtypeError(f"{name} is an integer tensor ({value.dtype}); convert it first: {name}.to(torch.float64)")
        return value
    array = numpy.asarray(value)
    if array.dtype.kind in "iub":
        array = array.astype(numpy.float64)
    if array.dtype.kind not in "fc":
        raise DtypeError(f"{name} must hold numbers, got an array of dtype {array.dtype}")
    return torch.as_tensor(array)


def toeplitz(c: Any, r: Any = None) -> Toeplitz | SymmetricToeplitz:
    """The Toeplitz matrix with first column ``c`` and first row ``r``; batches in leading axes.

    Without ``r``: ``SymmetricToeplitz`` for real c, and for complex c the row ``conj(c)``, as in
    ``scipy.linalg.toeplitz``. Raises ValueError if ``r[0] != c[0]``: the matrix has one corner.
    """
    column = entries_of(c, "c")
    if column.ndim == 0:
        raise ShapeError("toeplitz: c is a scalar; a first column has at least one dimension")
    if r is None:
        if not column.is_complex():
            return SymmetricToeplitz(column)
        row = torch.cat((column[..., :1], column[..., 1:].conj().resolve_conj()), -1)
    else:
        row = entries_of(r, "r")
        common = torch.promote_types(column.dtype, row.dtype)
        column, row = column.to(common), row.to(common)
        if row.ndim == 0 or not bool((column[..., 0] == row[..., 0]).all()):
            raise ValueError(
                f"toeplitz(c, r): the corner is given twice and differs: c[0] = {_shown(column)}, "
                f"r[0] = {_shown(row)}; make them equal "
                "(structmat.linalg.solve_toeplitz and matmul_toeplitz ignore r[0], as scipy does)"
            )
    return _from_pair(column, row)


def _from_pair(column: torch.Tensor, row: torch.Tensor) -> Toeplitz:
    """The corner is taken from the column."""
    lead = torch.broadcast_shapes(column.shape[:-1], row.shape[:-1])
    pieces = (row[..., 1:].flip(-1), column)
    return Toeplitz(torch.cat([p.expand(*lead, p.shape[-1]) for p in pieces], -1), row.shape[-1])


def _shown(values: torch.Tensor) -> str:
    first = values.reshape(-1, values.shape[-1])[:, 0] if values.ndim else values.reshape(1)
    return f"{first[0].item():g}" if len(first) == 1 and not values.is_complex() else str(first.tolist())


def circulant(c: Any) -> Circulant:
    """The circulant with first column ``c``, as ``scipy.linalg.circulant``."""
    return Circulant(entries_of(c, "c"))


def hankel(c: Any, r: Any = None) -> Hankel:
    """The Hankel matrix with first column ``c`` and last row ``r`` (zeros without one), as ``scipy.linalg.hankel``.

    ``r[0]`` is ignored, as in scipy: the last row is ``c[-1], r[1], r[2], ...``. Batches in leading axes.
    """
    column = entries_of(c, "c")
    row = torch.zeros_like(column) if r is None else entries_of(r, "r")
    for values, name in ((column, "c"), (row, "r")):
        if values.ndim == 0 or values.shape[-1] == 0:
            raise ShapeError(f"hankel: {name} must have at least one entry, got shape {tuple(values.shape)}")
    common = torch.promote_types(column.dtype, row.dtype)
    lead = torch.broadcast_shapes(column.shape[:-1], row.shape[:-1])
    pieces = (column.to(common), row[..., 1:].to(common))
    return Hankel(torch.cat([p.expand(*lead, p.shape[-1]) for p in pieces], -1), row.shape[-1])


def dft(n: int, scale: str | None = None, *, dtype: torch.dtype = torch.complex128, device: Any = None) -> Butterfly:
    """The DFT matrix ``exp(-2 pi i j k / n)`` as a butterfly, as ``scipy.linalg.dft``; ``scale`` None, "sqrtn" (then
    it claims to be orthogonal) or "n"."""
    if scale not in (None, "sqrtn", "n"):
        raise ValueError(f"dft(scale={scale!r}): legal are None, 'sqrtn' and 'n'")
    found = Butterfly.dft(n, dtype, device)
    if scale is None:
        return found
    first = found.blocks[0] * (n**-0.5 if scale == "sqrtn" else 1 / n)
    scaled = Butterfly((first, *found.blocks[1:]), found.digits, found.axes, found.order)
    claims = (Claim.SYMMETRIC, Claim.ORTHOGONAL) if scale == "sqrtn" else (Claim.SYMMETRIC,)
    return scaled.assume(*claims)


def hadamard(n: int, *, dtype: torch.dtype = torch.float64, device: Any = None) -> Butterfly:
    """Sylvester's Hadamard matrix of order n, a power of two, as a butterfly, as ``scipy.linalg.hadamard``."""
    return Butterfly.hadamard(n, dtype=dtype, device=device)


def _matrix_of(value: Any, name: str) -> Matrix:
    return value if isinstance(value, Matrix) else Dense(entries_of(value, name))


def kron(*factors: Any) -> Matrix:
    """The Kronecker product of matrices, arrays, lists or tensors: closed where a rule says so, else ``Kronecker``."""
    if not factors:
        raise ValueError("kron: at least one matrix is needed")
    found, *others = (_matrix_of(f, f"kron: factor {k}") for k, f in enumerate(factors))
    for other in others:
        found = _kron(found, other)
    return found


def kron_sum(a: Any, b: Any) -> KroneckerSum:
    """``A kron I + I kron B`` of two square matrices, arrays, lists or tensors; its solve is a Sylvester equation's."""
    return KroneckerSum(_matrix_of(a, "kron_sum: a"), _matrix_of(b, "kron_sum: b"))


def block_diag(*blocks: Any) -> BlockDiagonal:
    """The block-diagonal matrix of blocks of one size, as ``scipy.linalg.block_diag``; vectors are single rows.

    Batches broadcast; a Matrix counts by its dense entries. ShapeError for blocks of different sizes, DtypeError for
    different precisions.
    """
    named = [(b, f"block_diag: block {k}") for k, b in enumerate(blocks)]
    found = [b.to_dense() if isinstance(b, Matrix) else entries_of(b, name) for b, name in named]
    found = [b.reshape(1, -1) if b.ndim < 2 else b for b in found]
    sizes = sorted({tuple(b.shape[-2:]) for b in found})
    if len(sizes) != 1:
        shown = ", ".join(f"{m} x {n}" for m, n in sizes) or "none"
        raise ShapeError(f"block_diag: blocks of one size are needed, got {shown}; pad them to one size")
    common = found[0].dtype
    for block in found[1:]:
        common = common_dtype(common, block.dtype, "block_diag") or common
    lead = torch.broadcast_shapes(*(b.shape[:-2] for b in found))
    return BlockDiagonal(torch.stack([b.to(common).expand(*lead, *b.shape[-2:]) for b in found], -3))


def block(rows: Sequence[Sequence[Any]]) -> Block:
    """The block matrix of a grid of matrices, arrays, lists or tensors, kept as it is; None stands for a zero block.

    Rows agree in height and columns in width; batches broadcast. ShapeError where blocks do not fit, or where a row or
    a column holds nothing but None.
    """
    if not rows or not all(isinstance(row, (list, tuple)) and row for row in rows):
        raise TypeError("block: rows of blocks are needed, as in block([[A, B], [None, D]])")
    if len({len(row) for row in rows}) > 1:
        raise ShapeError(f"block: rows of {sorted({len(row) for row in rows})} blocks; all need the same number")
    grid = [
        [None if v is None else _matrix_of(v, f"block [{i}, {j}]") for j, v in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    heights = [_agreed([p for p in row if p is not None], -2, f"row {i}") for i, row in enumerate(grid)]
    columns = list(zip(*grid, strict=True))
    widths = [_agreed([p for p in column if p is not None], -1, f"column {j}") for j, column in enumerate(columns)]
    filled = [
        tuple(Zero(m, n) if part is None else part for part, n in zip(row, widths, strict=True))
        for row, m in zip(grid, heights, strict=True)
    ]
    return Block(tuple(filled))


def _agreed(parts: Sequence[Matrix], axis: int, place: str) -> int:
    """The size that all matrices of a row or column have."""
    sizes = sorted({int(p.shape[axis]) for p in parts})
    if len(sizes) == 1:
        return sizes[0]
    if not sizes:
        raise ShapeError(f"block: {place} holds nothing but None, so its size is unknown; use structmat.Zero(m, n)")
    what = "heights" if axis == -2 else "widths"
    raise ShapeError(f"block: the {what} of {place} differ: {', '.join(map(str, sizes))}")


def cat(matrices: Sequence[Any], dim: int = -2) -> Block:
    """Matrices side by side (``dim=-1``) or one above the other (``dim=-2``), as ``torch.cat``; lazy, of any types."""
    if isinstance(matrices, (Matrix, torch.Tensor)):
        raise TypeError(f"cat: a list of matrices is needed, got one {type(matrices).__name__}")
    matrices = list(matrices)
    ndim = max((len(getattr(m, "shape", (0, 0))) for m in matrices), default=2)
    axis = dim - ndim if dim >= 0 else dim
    if axis not in (-1, -2) or not matrices:
        raise ValueError(
            f"cat(dim={dim}) of {len(matrices)} matrices: legal are -1 (columns) and -2 (rows) of at least one"
        )
    return block([list(matrices)] if axis == -1 else [[m] for m in matrices])


def hstack(matrices: Sequence[Any]) -> Block:
    """``cat(matrices, dim=-1)``: side by side."""
    return cat(matrices, dim=-1)


def vstack(matrices: Sequence[Any]) -> Block:
    """``cat(matrices, dim=-2)``: one above the other."""
    return cat(matrices, dim=-2)


def stack(matrices: Sequence[Matrix]) -> Matrix:
    """A batch out of matrices of one type, one size and equal static fields, along a new first axis."""
    if not matrices:
        raise ValueError("stack: at least one matrix is needed")
    first = matrices[0]
    for other in matrices[1:]:
        if type(other) is not type(first) or other.shape != first.shape or other._statics() != first._statics():
            raise StructureError(
                f"stack: {other!r} and {first!r} differ in type, size or static fields; one of each is needed"
            )
        if other.dtype != first.dtype:
            raise DtypeError(f"stack: {other!r} and {first!r} differ in dtype; convert one with .to(dtype)")
        if other.device != first.device:
            raise DeviceError(f"stack: {other!r} and {first!r} are on {other.device} and {first.device}")
        if len(other.tensors()) != len(first.tensors()):
            raise StructureError(f"stack: {other!r} and {first!r} store different fields (phases or not?)")
    if not first.core and all(isinstance(t, Matrix) for t in _held(first)) and _held(first):
        return _stacked_parts(matrices)
    if not first.core:
        raise StructureError(f"stack: {type(first).__name__} does not declare core, so it cannot be stacked")
    lead = first.batch_shape
    columns = [iter([t for _, t in m._named_tensors()]) for m in matrices]

    def joined(name: str, _: torch.Tensor) -> torch.Tensor:
        parts = [next(c) for c in columns]
        keep = first.core[name]
        return torch.stack([p.expand(*lead, *p.shape[p.ndim - keep :]) for p in parts])

    stacked = first._map(joined)
    if first._assumed:  # what was vouched for one of them holds of the batch if it holds of all
        stacked.__dict__["_assumed"] = frozenset.intersection(*(m.claims.properties for m in matrices))
    return stacked


def _held(matrix: Matrix) -> list[Any]:
    """What the child fields of a composed matrix hold, tuples taken apart."""

    def flat(value: Any) -> list[Any]:
        return [x for v in value for x in flat(v)] if isinstance(value, tuple) else [value]

    pairs = zip(matrix._layout, matrix._children, strict=True)
    return [x for (name, _), child in pairs if child for x in flat(matrix.__dict__[name])]


def _stacked_parts(matrices: Sequence[Matrix]) -> Matrix:
    """A composed matrix (Product, Sum, Kronecker, Block, ...) of stacked parts."""

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], tuple):
            if len({len(v) for v in values}) > 1:
                raise StructureError(f"stack: {matrices[0]!r} and its likes have different numbers of parts")
            return tuple(joined(each) for each in zip(*values, strict=True))
        return stack(values) if values[0].tensors() else values[0]

    first = matrices[0]
    new = first._map(lambda _, t: t)
    for (name, _), child in zip(first._layout, first._children, strict=True):
        if child:
            new.__dict__[name] = joined([m.__dict__[name] for m in matrices])
    if first._assumed:
        new.__dict__["_assumed"] = frozenset.intersection(*(m.claims.properties for m in matrices))
    return new
