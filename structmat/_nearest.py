"""What every ``from_dense`` shares: the nearest structured matrix, accepted only if it is close enough."""

from typing import Any

import torch

from structmat import backend
from structmat.errors import NotStructuredError, ShapeError

__all__ = ["distance_check", "require_square_entries"]


def require_square_entries(dense: torch.Tensor, place: str) -> int:
    """The order of a dense square matrix; ShapeError for any other shape."""
    if dense.ndim < 2 or dense.shape[-2] != dense.shape[-1]:
        raise ShapeError(f"{place}: a square matrix is needed, got shape {tuple(dense.shape)}")
    return int(dense.shape[-1])


def distance_check(cls: type, dense: torch.Tensor, nearest: Any, tol: float | None) -> Any:
    """What every ``from_dense`` does: the nearest matrix if it lies within tol (relative, default 8 eps), else
    raise."""
    with torch.no_grad():
        wide = backend.compute_dtype(dense.dtype)
        gap = torch.linalg.vector_norm(nearest.to_dense().to(wide) - dense.to(wide), dim=(-2, -1))
        size = torch.linalg.vector_norm(dense.to(wide), dim=(-2, -1))
        relative = float((gap / size.clamp_min(torch.finfo(size.dtype).tiny)).max()) if gap.numel() else 0.0
    allowed = 8 * torch.finfo(dense.dtype).eps if tol is None else tol
    if not relative <= allowed:
        raise NotStructuredError(
            f"{cls.__name__}.from_dense: the matrix of shape {tuple(dense.shape)} is at relative "
            f"distance {relative:.2e} from "
            f"the nearest {cls.__name__}, more than tol {allowed:.1e}; {cls.__name__}.nearest(dense) takes it anyway",
            relative,
        )
    return nearest
