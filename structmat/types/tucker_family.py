"""What the Tucker format shares with its decompositions: checks of sizes, the result of ``decompose``, certificates."""

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from structmat.errors import DtypeError, ShapeError
from structmat.functional import tucker_decompose as fd
from structmat.functional.tucker import Sizes

__all__ = [
    "Decomposition",
    "RankCertificate",
    "checked_method",
    "checked_ranks",
    "checked_rows",
    "legal_ranks",
    "told",
    "wasted",
]

_TOLD = threading.local()  # whether what is built here has ranks that were warned of before
_AMBIGUOUS = 1e3  # a smaller gap between the last singular value that counts and the next leaves the rank open


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """What ``Tucker.decompose`` found, and how good it is.

    ``tensor``: the Tucker tensor, with orthonormal factors. ``error``: ``||T - tensor||_F`` (``batch``), exact up to
    rounding. ``tails (N, *batch)``: the parts that the projections removed mode by mode, ``error^2 = sum tails^2``.
    ``lower``: no tensor of these ranks has a smaller error (None for "randomised", where nothing is known);
    the best error is also at least ``error / sqrt(N)``, except for "randomised". ``sweeps``: those of HOOI.
    """

    tensor: Any
    error: torch.Tensor
    tails: torch.Tensor
    lower: torch.Tensor | None
    method: str
    sweeps: int

    def __repr__(self) -> str:
        error = f"{float(self.error.max()):.3e}" if self.error.numel() else "none"
        return f"Decomposition({self.tensor!r}, error={error}, method={self.method!r})"


class RankCertificate(NamedTuple):
    """The multilinear rank measured: ``ranks``, mode by mode; ``gaps``, the last singular value that counts over the
    next one (inf where none follows); ``bounds`` known from the sizes alone; ``certain``: every gap is above 1000."""

    ranks: Sizes
    gaps: tuple[float, ...]
    bounds: Sizes
    certain: bool


def legal_ranks(name: str, dims: Sizes, ranks: Sizes) -> None:
    """ShapeError for a rank above its dimension; a warning for one above the product of the others, which only
    wastes numbers."""
    for k, (d, r) in enumerate(zip(dims, ranks, strict=True)):
        if r > d:
            raise ShapeError(
                f"{name}: rank {r} of mode {k} is above its size {d}; an unfolding with {d} rows has rank at most {d}"
            )
    if torch.compiler.is_compiling() or getattr(_TOLD, "already", False):
        return
    found = wasted(ranks)
    if found is not None:
        mode, most = found
        warnings.warn(
            f"{name}: rank {ranks[mode]} of mode {mode} is above {most}, the product of the other ranks {ranks}; the "
            f"tensor has multilinear rank at most {most} there. round(ranks=...) drops what is wasted",
            UserWarning,
            stacklevel=5,
        )


def told(build: Callable[[], Any]) -> Any:
    """``build()`` without the warning of wasted ranks: for a tensor of ranks that were warned of before."""
    if torch.compiler.is_compiling():
        return build()
    before = getattr(_TOLD, "already", False)
    _TOLD.already = True
    try:
        return build()
    finally:
        _TOLD.already = before


def wasted(ranks: Sizes) -> tuple[int, int] | None:
    """The first mode whose rank is above the product of the others, and that product; None if there is none."""
    for k, r in enumerate(ranks):
        others = math.prod(ranks[:k]) * math.prod(ranks[k + 1 :])
        if r > others:
            return k, others
    return None


def checked_ranks(
    place: str, tensor: torch.Tensor, ranks: int | Sizes | None, tol: float | None
) -> tuple[int, Sizes | None]:
    """The order of the tensor and its ranks, from what was asked for: ranks, or tol."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise DtypeError(f"{place}: the tensor must be floating point or complex, got {tensor.dtype}; convert it first")
    if (ranks is None) == (tol is None):
        raise ValueError(f"{place}: give either ranks or tol (relative to the norm), not both and not neither")
    if ranks is None:
        if tol is not None and not tol >= 0:
            raise ValueError(f"{place}: tol must be 0 or more, got {tol!r}")
        if tensor.ndim < 1:
            raise ShapeError(f"{place}: the tensor is a scalar")
        return tensor.ndim, None
    wanted = (ranks,) * tensor.ndim if isinstance(ranks, int) else tuple(ranks)
    order = len(wanted)
    if not 1 <= order <= tensor.ndim:
        raise ShapeError(f"{place}: {order} ranks for a tensor of shape {tuple(tensor.shape)}")
    dims = tuple(tensor.shape[tensor.ndim - order :])
    for k, r in enumerate(wanted):
        if not isinstance(r, int) or r < 1:
            raise ShapeError(f"{place}: rank {r!r} of mode {k} must be a positive int")
    for k, (d, r) in enumerate(zip(dims, wanted, strict=True)):
        others = math.prod(wanted[:k]) * math.prod(wanted[k + 1 :])
        if r > min(d, others):
            raise ShapeError(
                f"{place}: rank {r} of mode {k} must be an int from 1 to {min(d, others)}: at most the size {d} and "
                f"the product {others} of the other ranks"
            )
    return order, wanted


def checked_method(place: str, method: str, ranks: Sizes | None) -> str:
    """A legal method; "randomised" asks for ranks."""
    if method not in fd.METHODS:
        raise ValueError(f"{place}: unknown method {method!r}; legal methods are {', '.join(map(repr, fd.METHODS))}")
    if method == "randomised" and ranks is None:
        raise ValueError(f'{place}: method "randomised" takes ranks; "st_hosvd" finds them from tol')
    return method


def checked_rows(place: str, rows: int | Sizes, order: int) -> tuple[Sizes, Sizes]:
    """The modes of the rows, non-negative and in the order given, and the others ascending."""
    given = (rows,) if isinstance(rows, int) else tuple(rows)
    if any(not isinstance(k, int) or not -order <= k < order for k in given):
        raise ShapeError(f"{place}: rows must be modes from 0 to {order - 1}, got {rows!r}")
    modes = tuple([k % order for k in given])
    if len(set(modes)) < len(modes):
        raise ShapeError(f"{place}: rows must be different modes, got {rows!r}")
    return modes, tuple([k for k in range(order) if k not in modes])


def certificate(values: tuple[torch.Tensor, ...], dims: Sizes, bounds: Sizes, tol: float | None) -> RankCertificate:
    """Ranks and gaps from the singular values of the unfoldings; a batch counts as its largest."""
    ranks, gaps, whole = [], [], math.prod(dims)
    for s, d in zip(values, dims, strict=True):
        flat = s.reshape(-1, s.shape[-1]).double()
        level = max(d, whole // max(1, d)) * torch.finfo(s.dtype).eps if tol is None else tol
        counts = (flat > level * flat[:, :1]).sum(-1)
        r = int(counts.max()) if counts.numel() else 0
        ranks.append(r)
        after = float(flat[:, r].max()) if r < flat.shape[-1] else 0.0
        last = float(flat[:, r - 1].max()) if r else 0.0
        gaps.append(last / after if after > 0 else math.inf)
    return RankCertificate(tuple(ranks), tuple(gaps), bounds, all(g >= _AMBIGUOUS for g in gaps))
