"""Several changes of one weight, folded in order; the one definition that forward, merge, conversion and rows use.

A chain is the sequence of updates ``u_1, ..., u_K`` on a frozen weight ``W_0``: ``W_k = W_{k-1} + s_k A_k`` for
``Add``, ``W_k = left_k W_{k-1} right_k`` for ``Compose``, and for ``Parts`` one of these on some of the rows. ``run``
applies ``W_K`` to rows without forming it; ``fold`` forms it. ``Residual`` updates change no weight: they act on what
the layer returns, after all others.
"""

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from structmat.adapters import lean
from structmat.adapters.method import Add, Compose, Parts, Residual, Update
from structmat.matrix import Matrix
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz_family import ToeplitzFamily
from structmat.types.tucker import Tucker

__all__ = [
    "Base",
    "Span",
    "as_matrix",
    "columns",
    "finish",
    "fold",
    "full_precision",
    "has_left",
    "in_core",
    "run",
    "settled",
    "split",
    "unfold",
    "weighted",
]

Span = tuple[int, int] | None


class Base(Protocol):
    """``x W_0^T``; with a span only the outputs ``start:stop``."""

    def __call__(self, rows: torch.Tensor, span: Span = None) -> torch.Tensor: ...


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Autocast off: adapters are computed in the dtype they are kept in (small solves in bfloat16 lose
    orthogonality).
    """
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta tensors have no autocast
        return nullcontext()
    return torch.autocast(device, enabled=False)


def as_matrix(delta: Matrix | Tucker) -> Matrix:
    """What an ``Add`` adds, as a matrix ``(out_features, columns)``: of a tensor, its first mode as rows."""
    return delta.matricize((0,)) if isinstance(delta, Tucker) else delta


def in_core(update: Add) -> Add:
    """The scale of an addition in Tucker form moved into its core, which is far smaller than an output."""
    if update.scale == 1.0 or not isinstance(update.matrix, Tucker):
        return update
    return Add(update.matrix * update.scale)


def weighted(update: Update, weight: float, name: str = "the adapter") -> Update:
    """The update with the weight of ``activate``: an ``Add`` is scaled; a factor has no multiples but 1."""
    if weight == 1.0:
        return update
    if isinstance(update, Add):
        return dataclasses.replace(update, scale=update.scale * weight)
    if isinstance(update, Parts):
        parts = tuple((start, stop, weighted(one, weight, name)) for start, stop, one in update.updates)
        return Parts(parts, update.rows)  # type: ignore[arg-type]
    what = (
        "it multiplies the weight by a matrix (left W right)"
        if isinstance(update, Compose)
        else "it acts on the layer's output through a nonlinear function"
    )
    raise ValueError(
        f"weight {weight} for {name!r}: {what}, and such a change has no multiples; only 1.0 is legal, or convert it "
        "with to_lora first"
    )


def has_left(chain: Sequence[Update]) -> bool:
    """Whether an update multiplies from the left, so that the bias must be added after the whole chain."""
    for update in chain:
        if isinstance(update, Parts):
            if has_left([one for _, _, one in update.updates]):
                return True
        elif isinstance(update, Compose) and update.left is not None:
            return True
    return False


def settled(chain: Sequence[Update], bias: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``b - L b``, L the product of the left factors: what is added to the chain's output ``like`` where the bias b
    went through the chain.
    """
    moved = bias
    for update in chain:
        moved = _moved(update, moved, like)
    return bias - moved


def _moved(update: Update, bias: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if isinstance(update, Parts):
        pieces, at = [], 0
        for start, stop, one in update.updates:
            pieces += [bias[..., at:start], _moved(one, bias[..., start:stop], like)]
            at = stop
        pieces.append(bias[..., at:])
        lead = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
        return torch.cat([piece.expand(*lead, piece.shape[-1]) for piece in pieces], dim=-1)
    if not isinstance(update, Compose) or update.left is None:
        return bias
    if len(update.left.shape) > 2 and bias.ndim < like.ndim:  # a factor for each row of the batch
        bias = bias.expand(like.shape[0], *(1,) * (like.ndim - 2), bias.shape[-1])
    return _rows(update.left, bias, bias.dtype)


def split(chain: Sequence[Update]) -> tuple[list[Update], list[Residual]]:
    """The updates of the weight, and those of the layer's output, each in their order."""
    return [u for u in chain if not isinstance(u, Residual)], [u for u in chain if isinstance(u, Residual)]


def finish(residuals: Sequence[Residual], y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The layer's output after its residual updates, ``y + act(y M^T) + bias`` one after the other."""
    for update in residuals:
        wide = y.to(dtype)
        with full_precision(y.device.type), lean.narrow(y, wide):
            inner = lean.recomputed(functools.partial(_activated, update), wide)
        bias = update.bias
        if isinstance(bias, torch.Tensor) and bias.ndim > 1:  # one for each row of a batch
            bias = bias.reshape(bias.shape[0], *(1,) * (y.ndim - 2), bias.shape[-1])
        y = (y.to(dtype) + inner + bias).to(y.dtype)
    return y


def _activated(update: Residual, y: torch.Tensor) -> torch.Tensor:
    return update.activation(update.matrix.linear(y))


def run(chain: Sequence[Update], x: torch.Tensor, base: Base, dtype: torch.dtype) -> torch.Tensor:
    """``x W_K^T`` for rows x ``(..., columns)``, where ``base(x)`` gives ``x W_0^T``; nothing of size n^2 is formed.

    Walks the chain from its last update to its first: a right factor acts on the rows, an ``Add`` on the rows as they
    are at its place, and left factors on what comes back. ``base`` gets ``x`` itself where no factor touched it. The
    updates are of ``dtype``, which is what they are computed in.
    """
    return _run(chain, x, base, dtype, None)


def _run(chain: Sequence[Update], x: torch.Tensor, base: Base, dtype: torch.dtype, span: Span) -> torch.Tensor:
    if not chain:
        return base(x) if span is None else base(x, span)
    update, rest = chain[-1], chain[:-1]
    if isinstance(update, Parts):
        return _run_parts(update, rest, x, base, dtype, span)
    if span is not None and not _keeps_rows(update):  # all outputs are needed, and then cut
        return _run(chain, x, base, dtype, None)[..., span[0] : span[1]]
    if isinstance(update, Add):
        update = in_core(update)
        delta = _rows(as_matrix(update.matrix), x, dtype)
        delta = delta if span is None else delta[..., span[0] : span[1]]
        inner = _run(rest, x, base, dtype, span)
        return inner.to(dtype) + (delta if update.scale == 1.0 else update.scale * delta)
    assert isinstance(update, Compose)
    turned = x if update.right is None else _rows(update.right, x, dtype)
    inner = _run(rest, turned, base, dtype, span)
    return inner if update.left is None else _rows(update.left, inner, dtype)


def _keeps_rows(update: Update) -> bool:
    return isinstance(update, Add) or (isinstance(update, Compose) and update.left is None)


def _run_parts(
    update: Parts, rest: Sequence[Update], x: torch.Tensor, base: Base, dtype: torch.dtype, span: Span
) -> torch.Tensor:
    """The outputs of each span with its own update, the others without: concatenated in order."""
    pieces: list[torch.Tensor] = []
    at = 0
    for start, stop, one in update.updates:
        if start > at:
            pieces.append(_run(rest, x, base, dtype, (at, start)))
        pieces.append(_run([one], x, _within(rest, base, dtype, start, stop), dtype, None))
        at = stop
    if at < update.rows:
        pieces.append(_run(rest, x, base, dtype, (at, update.rows)))
    y = torch.cat([piece.to(dtype) for piece in pieces], dim=-1)
    return y if span is None else y[..., span[0] : span[1]]


def _within(rest: Sequence[Update], base: Base, dtype: torch.dtype, start: int, stop: int) -> Base:
    """The outputs ``start:stop`` of what the rest of the chain makes of rows."""

    def product(rows: torch.Tensor, span: Span = None) -> torch.Tensor:
        inside = (start, stop) if span is None else (start + span[0], start + span[1])
        return _run(rest, rows, base, dtype, inside)

    return product


def _rows(matrix: Matrix, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x A^T`` for any number of leading axes."""
    wide = x.to(dtype)
    with full_precision(x.device.type), lean.narrow(x, wide):
        return lean.recomputed(matrix.linear, wide) if lean.passes(matrix) else matrix.linear(wide)


def columns(matrix: Matrix, index: torch.Tensor) -> torch.Tensor:
    """The columns ``A[:, index]`` as rows ``(*index.shape, m)``: what an embedding looks up.

    Low-rank, Tucker and Toeplitz matrices give theirs alone; of other types all n^2 entries are formed.
    """
    if isinstance(matrix, LowRank):
        return torch.nn.functional.embedding(index, matrix.right) @ matrix.left.mT
    if isinstance(matrix, ToeplitzFamily):
        m, n = matrix.shape
        place = torch.arange(m, device=index.device) + (n - 1) - index[..., None]
        return matrix._diagonals()[place]
    tucker = getattr(matrix, "columns", None)
    if tucker == (1,) and getattr(matrix, "rows", None) == (0,):
        left, right = matrix.factors  # type: ignore[attr-defined]
        return torch.nn.functional.embedding(index, right) @ (left @ matrix.kernel).mT  # type: ignore[attr-defined]
    return torch.nn.functional.embedding(index, matrix.to_dense().mT)


def fold(weight: torch.Tensor, chain: Sequence[Update]) -> torch.Tensor:
    """``W_K`` as a dense ``(out_features, columns)`` tensor in the dtype of the adapters; n^2 storage."""
    for update in chain:
        weight = _folded(weight, update)
    return weight


def _folded(weight: torch.Tensor, update: Update) -> torch.Tensor:
    if isinstance(update, Residual):
        raise ValueError("a residual update acts on the output of a layer: it has no weight to be folded into")
    if isinstance(update, Parts):
        return _by_rows(weight, update, _folded)
    if isinstance(update, Add):
        return _as(weight, update.matrix) + update.scale * as_matrix(update.matrix).to_dense()
    if update.right is not None:  # W right = rows of W times (right^T)^T
        weight = update.right.mT.linear(_as(weight, update.right))
    if update.left is not None:
        weight = update.left.linear(_as(weight, update.left).mT).mT
    return weight


def unfold(weight: torch.Tensor, chain: Sequence[Update]) -> torch.Tensor:
    """``W_0`` from ``W_K``: additions subtracted, factors inverted, last first; exact up to rounding."""
    for update in reversed(chain):
        weight = _unfolded(weight, update)
    return weight


def _unfolded(weight: torch.Tensor, update: Update) -> torch.Tensor:
    if isinstance(update, Parts):
        return _by_rows(weight, update, _unfolded)
    if isinstance(update, Add):
        return _as(weight, update.matrix) - update.scale * as_matrix(update.matrix).to_dense()
    assert isinstance(update, Compose)
    if update.left is not None:
        weight = update.left.inv().linear(_as(weight, update.left).mT).mT
    if update.right is not None:
        weight = update.right.inv().mT.linear(_as(weight, update.right))
    return weight


def _by_rows(weight: torch.Tensor, update: Parts, change: Any) -> torch.Tensor:
    pieces: list[torch.Tensor] = []
    at = 0
    for start, stop, one in update.updates:
        pieces += [weight[..., at:start, :], change(weight[..., start:stop, :], one)]
        at = stop
    pieces.append(weight[..., at:, :])
    dtype = pieces[1].dtype if len(pieces) > 1 else weight.dtype
    return torch.cat([piece.to(dtype) for piece in pieces if piece.shape[-2]], dim=-2)


def _as(weight: torch.Tensor, matrix: Matrix | Tucker) -> torch.Tensor:
    return weight if matrix.dtype is None else weight.to(matrix.dtype)
