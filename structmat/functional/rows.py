"""Rows as the products by transforms want them: one batch axis, blocks, real rows two by two as complex ones."""

import math

import torch

__all__ = ["ALL", "Collected", "broadcast", "conjugate_of", "cut", "flattened", "packed", "restored"]

ALL = slice(None)


def broadcast(a: torch.Size, b: torch.Size) -> torch.Size:
    """``torch.broadcast_shapes``, which costs more than a short transform, only where it is needed."""
    if a == b or len(b) == 0:
        return a
    return b if len(a) == 0 else torch.broadcast_shapes(a, b)


def flattened(rows: torch.Tensor, lead: torch.Size) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Rows ``(..., k, n)`` as ``(B, K, n)`` for a batch ``lead`` of B matrices: axes that the batch does not have, or
    has of size 1, become rows. And their shape, broadcast."""
    batch = broadcast(rows.shape[:-2], lead)
    if batch != rows.shape[:-2]:
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


def _unpacked(z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The rows that were packed, in the number and kind of ``like``."""
    if like.is_complex():
        return z
    if like.shape[-2] == 1:
        return z.real.contiguous()
    return torch.cat((z.real, z.imag[..., :-1, :] if like.shape[-2] % 2 else z.imag), -2)


class Collected:
    """The unpacked rows of all blocks as one tensor like x: written in place where nothing is recorded, else joined."""

    def __init__(self, like: torch.Tensor, direct: bool) -> None:
        self.like = like
        self.into = torch.empty_like(like, memory_format=torch.contiguous_format) if direct else None
        self.rows: list[torch.Tensor] = []
        self.done: list[torch.Tensor] = []

    def put(self, z: torch.Tensor, some: slice, rows: slice) -> None:
        """The packed rows of one block."""
        if self.into is None:
            self.rows.append(_unpacked(z, cut(self.like, some, rows)))
            return
        place = cut(self.into, some, rows)
        if place.is_complex():
            place.copy_(z)
            return
        half = z.shape[-2]
        place[..., :half, :] = z.real
        if place.shape[-2] > half:
            place[..., half:, :] = z.imag[..., : place.shape[-2] - half, :]

    def next(self) -> None:
        """All rows of these matrices are there."""
        if self.rows:
            self.done.append(self.rows[0] if len(self.rows) == 1 else torch.cat(self.rows, -2))
            self.rows = []

    def whole(self) -> torch.Tensor:
        if self.into is not None:
            return self.into
        return self.done[0] if len(self.done) == 1 else torch.cat(self.done, 0)
