"""Products and solves with k blocks side by side on the diagonal: blocks ``(*batch, k, p, q)``."""

import torch

from structmat import backend

__all__ = ["dense", "diagonal", "inverse", "linear", "solve_rows"]


def _wide(x: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Both in the dtype computed in, and the dtype to return."""
    out = torch.promote_types(x.dtype, blocks.dtype)
    wide = backend.compute_dtype(out)
    return x.to(wide), blocks.to(wide), out


def linear(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """``x A^T``: x ``(..., k q) -> (..., k p)``; 2 k p q flops a row. Computed in float32 for half precision.

    Without a batch of blocks all leading axes are rows: one product a block, whatever their number.
    """
    k, p, q = blocks.shape[-3:]
    x, blocks, out = _wide(x, blocks)
    rows = x[None] if x.ndim == 1 else x
    if blocks.ndim == 3:
        rows = rows.reshape(-1 if rows.numel() else rows.shape[:-1].numel(), k * q)
    y = torch.matmul(rows.unflatten(-1, (k, q)).transpose(-3, -2), blocks.mT).transpose(-3, -2)
    y = y.reshape(*y.shape[:-2], k * p).to(out)
    if blocks.ndim == 3:
        return y.reshape(*x.shape[:-1], k * p)
    return y[..., 0, :] if x.ndim == 1 else y


def solve_rows(y: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """x with ``x A^T = y`` for rows y ``(..., r, k p)`` and square blocks, by LU of each block; (2/3) k p^3 flops.

    The result stays in the dtype computed in.

    Raises torch.linalg.LinAlgError where a block is exactly singular.
    """
    k, p = blocks.shape[-3:-1]
    y, blocks, _ = _wide(y, blocks)
    rows = y.reshape(*y.shape[:-1], k, p).movedim(-3, -1)  # (..., k, p, r)
    right = rows[(None,) * max(0, blocks.ndim - rows.ndim)]
    with backend.full_precision(blocks.device):
        x = torch.linalg.solve(blocks, right).movedim(-1, -3)
    return x.reshape(*x.shape[:-2], k * p)


def inverse(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse of each block. Raises torch.linalg.LinAlgError where a block is exactly singular."""
    with backend.full_precision(blocks.device):
        return torch.linalg.inv(blocks.to(backend.compute_dtype(blocks.dtype))).to(blocks.dtype)


def dense(blocks: torch.Tensor) -> torch.Tensor:
    """All entries ``(*batch, k p, k q)``."""
    k, p, q = blocks.shape[-3:]
    spread = torch.diag_embed(blocks.movedim(-3, -1))  # (*batch, p, q, k, k)
    n = spread.ndim
    return spread.permute(*range(n - 4), n - 2, n - 4, n - 1, n - 3).reshape(*blocks.shape[:-3], k * p, k * q)


def diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """The ``k min(p, q)`` diagonal entries; a place outside every block holds a zero."""
    k, p, q = (int(s) for s in blocks.shape[-3:])
    if p == q:
        return torch.diagonal(blocks, dim1=-2, dim2=-1).flatten(-2)
    place = torch.arange(k * min(p, q), device=blocks.device)
    inside = place // p == place // q
    found = blocks[..., place // p, place % p, place % q]
    return torch.where(inside, found, torch.zeros_like(found))
