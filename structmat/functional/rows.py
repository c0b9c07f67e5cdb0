"""Rows as the products by transforms want them: one batch axis, blocks, real rows two by two as complex ones."""

import math

import torch

__all__ = ["ALL", "conjugate_of", "cut", "flattened", "packed", "restored", "unpacked"]

ALL = slice(None)


def flattened(rows: torch.Tensor, lead: torch.Size) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Rows ``(..., k, n)`` as ``(B, K, n)`` for a batch ``lead`` of B matrices: axes that the batch does not have, or
    has of size 1, become rows. And their shape, broadcast."""
    batch = torch.broadcast_shapes(rows.shape[:-2], lead)
    rows = rows.expand(*batch, *rows.shape[-2:])
    shape = tuple(rows.shape)
    if rows.numel() == 0:
        return rows, shape
    own, others = _axes(len(batch), lead)
    if others and own:
        rows = rows.permute(*own, *others, -2, -1)
    return rows.reshape(math.prod(lead), -1, rows.shape[-1]), shape


def _axes(count: int, lead: torch.Size) -> tuple[list[int], list[int]]:
    """The axes along which the matrices differ, and the others."""
    mine = (1,) * (count - len(lead)) + tuple(lead)
    return [i for i in range(count) if mine[i] != 1], [i for i in range(count) if mine[i] == 1]


def restored(y: torch.Tensor, shape: tuple[int, ...], lead: torch.Size) -> torch.Tensor:
    """The inverse of ``flattened``."""
    own, others = _axes(len(shape) - 2, lead)
    if not (others and own):
        return y.reshape(shape)
    order = own + others
    y = y.reshape(*(shape[i] for i in order), *shape[-2:])
    return y.permute(*(order.index(i) for i in range(len(order))), -2, -1)


def cut(t: torch.Tensor, some: slice, rows: slice = ALL) -> torch.Tensor:
    """Matrices and rows of one block; everything is the tensor itself, since not every transform has a rule for an
    alias."""
    t = t if some == ALL else t[some]
    return t if rows == ALL else t[:, rows]


def conjugate_of(t: torch.Tensor) -> torch.Tensor:
    """The conjugate as numbers: a lazy one would be resolved at each use."""
    return t.conj().resolve_conj()


def packed(x: torch.Tensor) -> torch.Tensor:
    """Complex rows as they are; real rows two by two, the second half as imaginary parts."""
    if x.is_complex():
        return x
    half = (int(x.shape[-2]) + 1) // 2
    if x.shape[-2] == 1:
        return torch.complex(x, torch.zeros_like(x))
    if x.shape[-2] % 2:
        x = torch.nn.functional.pad(x, (0, 0, 0, 1))
    return torch.complex(x[..., :half, :], x[..., half:, :])


def unpacked(z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The rows that were packed, in the number and kind of ``like``."""
    if like.is_complex():
        return z
    if like.shape[-2] == 1:
        return z.real.contiguous()
    return torch.cat((z.real, z.imag[..., :-1, :] if like.shape[-2] % 2 else z.imag), -2)
