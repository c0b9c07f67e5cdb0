"""Rules of the matrices that only place entries: Zero with every type, BlockDiagonal with diagonals, Permutation with
Identity."""

from collections.abc import Callable

import torch

from structmat.dispatch import lookup, rule
from structmat.lazy import Product, Scaled
from structmat.matrix import Matrix
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.low_rank import LowRank
from structmat.types.permutation import Permutation
from structmat.types.zero import Zero

__all__: list[str] = []


def _lazily(verb: str, a: Matrix, b: Matrix) -> Matrix:
    result: Matrix = lookup(verb, Matrix, Matrix)(a, b)  # type: ignore[misc]
    return result


# -- Zero ---------------------------------------------------------------------------------------------------------


def joint(a: Matrix, b: Matrix, m: int, n: int) -> Zero:
    """Zeros of the dtype, the device and the batch that the two operands have together."""
    dtype = b.dtype if a.dtype is None else a.dtype
    if a.dtype is not None and b.dtype is not None:
        dtype = torch.promote_types(a.dtype, b.dtype)
    batch = tuple(torch.broadcast_shapes(a.batch_shape, b.batch_shape))
    return Zero(m, n, dtype, b.device if a.device is None else a.device, batch)


def _unchanged(a: Matrix, zero: Zero) -> Matrix:
    """A + 0 is A in the dtype and the batch of both; lazy where A's type cannot hold these."""
    wanted = joint(a, zero, *(int(s) for s in a.shape[-2:]))
    found = a if wanted.dtype in (None, a.dtype) else a.to(dtype=wanted.dtype)
    if found.batch_shape != wanted.batch_shape and found.core:
        found = found._picked((), tuple(wanted.batch_shape))
    same = found.dtype == wanted.dtype and found.batch_shape == wanted.batch_shape
    return found if same else _lazily("add", a, zero)


def _zero_products(kind: type[Matrix]) -> None:
    @rule("matmul", Zero, kind)
    def left(a: Zero, b: Matrix) -> Matrix:
        """Zero."""
        return joint(a, b, a.m, int(b.shape[-1]))

    @rule("matmul", kind, Zero)
    def right(a: Matrix, b: Zero) -> Matrix:
        """Zero."""
        return joint(a, b, int(a.shape[-2]), b.n)


def _zero_sums(kind: type[Matrix]) -> None:
    @rule("add", Zero, kind)
    def left(a: Zero, b: Matrix) -> Matrix:
        """The other term; lazy where it cannot hold the batch or the dtype of the sum."""
        return _unchanged(b, a)

    @rule("add", kind, Zero)
    def right(a: Matrix, b: Zero) -> Matrix:
        """The other term; lazy where it cannot hold the batch or the dtype of the sum."""
        return _unchanged(a, b)


# A type that has rules with every matrix meets Zero in two rules, so the pair needs one of its own.
_MEETING: dict[Callable[[type[Matrix]], None], tuple[type[Matrix], ...]] = {
    _zero_products: (Matrix, Dense, LowRank, Identity),
    _zero_sums: (Matrix, Dense),
}
for _enter, _kinds in _MEETING.items():
    for _kind in _kinds:
        _enter(_kind)


@rule("matmul", Zero, Zero)
def _zero_zero(a: Zero, b: Zero) -> Matrix:
    """Zero."""
    return joint(a, b, a.m, b.n)


@rule("add", Zero, Zero)
def _zero_plus_zero(a: Zero, b: Zero) -> Matrix:
    """Zero."""
    return joint(a, b, a.m, a.n)


# -- BlockDiagonal ------------------------------------------------------------------------------------------------


def _split(entries: torch.Tensor, like: BlockDiagonal, axis: int) -> torch.Tensor:
    """Diagonal entries, k groups of the rows (-2) or columns (-1) of a block."""
    return entries.unflatten(-1, (like.blocks.shape[-3], like.blocks.shape[axis]))


def _plus_entries(a: BlockDiagonal, entries: torch.Tensor) -> Matrix:
    """Square blocks, with a diagonal added."""
    return BlockDiagonal(a.blocks + torch.diag_embed(_split(entries, a, -1)))


@rule("matmul", BlockDiagonal, Diagonal)
def _block_diagonal(a: BlockDiagonal, b: Diagonal) -> Matrix:
    """BlockDiagonal: the columns are scaled."""
    return BlockDiagonal(a.blocks * _split(b.entries, a, -1)[..., None, :])


@rule("matmul", Diagonal, BlockDiagonal)
def _diagonal_block(a: Diagonal, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal: the rows are scaled."""
    return BlockDiagonal(b.blocks * _split(a.entries, b, -2)[..., :, None])


@rule("add", BlockDiagonal, Diagonal)
def _block_plus_diagonal(a: BlockDiagonal, b: Diagonal) -> Matrix:
    """BlockDiagonal."""
    return _plus_entries(a, b.entries)


@rule("add", Diagonal, BlockDiagonal)
def _diagonal_plus_block(a: Diagonal, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal."""
    return _plus_entries(b, a.entries)


@rule("add", BlockDiagonal, Identity)
def _block_plus_identity(a: BlockDiagonal, b: Identity) -> Matrix:
    """BlockDiagonal."""
    return _plus_entries(a, b.to(a.blocks.dtype).diagonal().to(a.blocks.device))


@rule("add", Identity, BlockDiagonal)
def _identity_plus_block(a: Identity, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal."""
    return _block_plus_identity(b, a)


@rule("add", BlockDiagonal, Scaled)
def _block_plus_scaled(a: BlockDiagonal, b: Scaled) -> Matrix:
    """BlockDiagonal for a multiple of the identity; else lazy."""
    if isinstance(b.matrix, Identity):
        return _plus_entries(a, b.diagonal().to(a.blocks.device))
    return _lazily("add", a, b)


@rule("add", Scaled, BlockDiagonal)
def _scaled_plus_block(a: Scaled, b: BlockDiagonal) -> Matrix:
    """BlockDiagonal for a multiple of the identity; else lazy."""
    return _block_plus_scaled(b, a) if isinstance(a.matrix, Identity) else _lazily("add", a, b)


# -- Permutation --------------------------------------------------------------------------------------------------


@rule("matmul", Permutation, Diagonal)
def _permuted_diagonal(a: Permutation, b: Diagonal) -> Matrix:
    """Product of a Diagonal and a Permutation, in this order: ``P D = D' P``, so that further ones of both join."""
    lead = torch.broadcast_shapes(a.indices.shape, b.entries.shape)
    moved = b.entries.expand(lead).gather(-1, a.indices.expand(lead))
    return Product((Diagonal(moved), a))


# -- Kronecker products of these ------------------------------------------------------------------------------------


@rule("kron", Diagonal, Diagonal)
def _kron_diagonals(a: Diagonal, b: Diagonal) -> Matrix:
    """Diagonal: every product of two entries."""
    return Diagonal((a.entries[..., :, None] * b.entries[..., None, :]).flatten(-2))


@rule("kron", Identity, Identity)
def _kron_identities(a: Identity, b: Identity) -> Matrix:
    """Identity."""
    return Identity(a.n * b.n, joint(a, b, 1, 1).dtype, b.device if a.device is None else a.device)


@rule("kron", Permutation, Identity)
def _kron_permutation_identity(a: Permutation, b: Identity) -> Matrix:
    """Permutation."""
    result: Matrix = lookup("kron", Permutation, Permutation)(a, _as_permutation(b, a))  # type: ignore[misc]
    return result


@rule("kron", Identity, Permutation)
def _kron_identity_permutation(a: Identity, b: Permutation) -> Matrix:
    """Permutation."""
    result: Matrix = lookup("kron", Permutation, Permutation)(_as_permutation(a, b), b)  # type: ignore[misc]
    return result


def _as_permutation(a: Identity, like: Permutation) -> Permutation:
    return Permutation.identity(a.n, dtype=a.dtype, device=like.device)


@rule("kron", Zero, Matrix)
def _kron_zero(a: Zero, b: Matrix) -> Matrix:
    """Zero."""
    return joint(a, b, a.m * int(b.shape[-2]), a.n * int(b.shape[-1]))


@rule("kron", Matrix, Zero)
def _kron_any_zero(a: Matrix, b: Zero) -> Matrix:
    """Zero."""
    return joint(a, b, int(a.shape[-2]) * b.m, int(a.shape[-1]) * b.n)


@rule("kron", Zero, Zero)
def _kron_zeros(a: Zero, b: Zero) -> Matrix:
    """Zero."""
    return joint(a, b, a.m * b.m, a.n * b.n)
