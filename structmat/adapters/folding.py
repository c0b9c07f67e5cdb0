"""Several changes of one weight, folded in order; the one definition that forward, merge, conversion and rows use.

A chain is the sequence of updates ``u_1, ..., u_K`` on a frozen weight ``W_0``: ``W_k = W_{k-1} + s_k A_k`` for
``Add`` and ``W_k = left_k W_{k-1} right_k`` for ``Compose``. ``run`` applies ``W_K`` to rows without forming it;
``fold`` forms it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from structmat.adapters.method import Add, Compose, Update
from structmat.matrix import Matrix

__all__ = ["fold", "full_precision", "has_left", "run", "unfold", "weighted"]


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Autocast off: adapters are computed in the dtype they are kept in (small solves in bfloat16 lose
    orthogonality).
    """
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def weighted(update: Update, weight: float, name: str = "the adapter") -> Update:
    """The update with the weight of ``activate``: an ``Add`` is scaled; a ``Compose`` has no multiples but 1."""
    if weight == 1.0:
        return update
    if isinstance(update, Compose):
        raise ValueError(
            f"weight {weight} for {name!r}: it multiplies the weight by a matrix (left W right), and such a change has "
            "no multiples; only 1.0 is legal, or convert it with to_lora first"
        )
    return dataclasses.replace(update, scale=update.scale * weight)


def has_left(chain: Sequence[Update]) -> bool:
    """Whether an update multiplies from the left, so that the bias must be added after the whole chain."""
    return any(isinstance(update, Compose) and update.left is not None for update in chain)


def run(
    chain: Sequence[Update], x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """``x W_K^T`` for rows x ``(..., columns)``, where ``base(x)`` gives ``x W_0^T``; nothing of size n^2 is formed.

    Walks the chain from its last update to its first: a right factor acts on the rows, an ``Add`` on the rows as they
    are at its place, and left factors on what comes back. ``base`` gets ``x`` itself where no factor touched it. The
    updates are of ``dtype``, which is what they are computed in.
    """
    if not chain:
        return base(x)
    update, rest = chain[-1], chain[:-1]
    if isinstance(update, Add):
        delta = _rows(update.matrix, x, dtype)
        if update.scale != 1.0:
            delta = update.scale * delta
        inner = run(rest, x, base, dtype)
        return inner.to(dtype) + delta
    turned = x if update.right is None else _rows(update.right, x, dtype)
    inner = run(rest, turned, base, dtype)
    return inner if update.left is None else _rows(update.left, inner, dtype)


def _rows(matrix: Matrix, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x A^T`` for any number of leading axes."""
    x = x.to(dtype)
    if torch.is_autocast_enabled(x.device.type):
        with full_precision(x.device.type):
            return matrix.linear(x)
    return matrix.linear(x)


def fold(weight: torch.Tensor, chain: Sequence[Update]) -> torch.Tensor:
    """``W_K`` as a dense ``(out_features, columns)`` tensor in the dtype of the adapters; n^2 storage."""
    for update in chain:
        if isinstance(update, Add):
            weight = _as(weight, update.matrix) + update.scale * update.matrix.to_dense()
            continue
        if update.right is not None:  # W right = rows of W times (right^T)^T
            weight = update.right.mT.linear(_as(weight, update.right))
        if update.left is not None:
            weight = update.left.linear(_as(weight, update.left).mT).mT
    return weight


def unfold(weight: torch.Tensor, chain: Sequence[Update]) -> torch.Tensor:
    """``W_0`` from ``W_K``: additions subtracted, factors inverted, last first; exact up to rounding."""
    for update in reversed(chain):
        if isinstance(update, Add):
            weight = _as(weight, update.matrix) - update.scale * update.matrix.to_dense()
            continue
        if update.left is not None:
            weight = update.left.inv().linear(_as(weight, update.left).mT).mT
        if update.right is not None:
            weight = update.right.inv().mT.linear(_as(weight, update.right))
    return weight


def _as(weight: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    return weight if matrix.dtype is None else weight.to(matrix.dtype)
