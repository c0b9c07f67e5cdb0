"""Conversion of any adapters to one LoRA, for programs that serve nothing else."""

import dataclasses

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.attach import Planned, check_name, commit
from structmat.adapters.kinds import check_layer
from structmat.adapters.layer import Adapted, Slot
from structmat.adapters.lora import LoRA
from structmat.adapters.method import Method, State, Target, Update
from structmat.adapters.report import Converted
from structmat.adapters.tree import places, require_unmerged, require_whole, roster_of

__all__ = ["to_lora", "update_in_double"]


def to_lora(model: nn.Module, rank: int | None = None, tol: float | None = None, name: str = "lora") -> Converted:
    """Add an adapter ``name``, on every layer the best low-rank form of what the active adapters change, and activate
    it alone.

    ``D = W_K - W`` is formed and its singular value decomposition cut: the error is the smallest possible at that
    rank. An HRA of rank r gives D of rank at most r (r + 1 for odd rank, 2r if orthonormal), so the conversion is
    exact there up to rounding. The converted adapters stay on the model, inactive. Nothing trains in the new adapter;
    n^2 storage and n^3 work a layer.

    Args:
        rank: the rank on every layer. tol: the smallest rank with ``||D - L R^T||_F <= tol ||D||_F``. Exactly one is
        given; a rank above both sizes of a layer is cut to its smaller size.
    Returns: a report with rank and relative error of each layer.
    Raises:  ValueError for illegal arguments or without active adapters, RuntimeError if merged or sharded.
    """
    roster = roster_of(model)
    assert roster is not None
    require_unmerged(roster, "to_lora")
    require_whole(model, "to_lora")
    check_name(name, roster.order, "to_lora")
    if (rank is None) == (tol is None):
        raise ValueError("to_lora: give either rank= or tol=")
    if rank is not None:
        LoRA(rank)
    if tol is not None and not (isinstance(tol, (int, float)) and 0 <= tol < 1):
        raise ValueError(f"to_lora: tol must be at least 0 and below 1, got {tol!r}")
    planned: list[Planned] = []
    report = Converted(name, {}, {})
    for place in places(model).values():
        if isinstance(place.module, Adapted) and any(one in place.module.adapters for one, _ in roster.active):
            target = check_layer(place.name, place.layer)
            left, right, error = _factors(_change(place.module), rank, tol)
            state = State({"left": left.to(target.dtype), "right": right.to(target.dtype)}, {})
            planned.append(Planned(place, Slot(LoRA(left.shape[-1]), target, state)))
            report.ranks[place.name], report.errors[place.name] = left.shape[-1], error
    if not planned:
        raise ValueError("to_lora: no adapter is active; activate those to convert")
    commit(model, {name: planned}, {name: ()}, trainable=())
    roster.active = ((name, 1.0),)
    return report


def _change(layer: Adapted) -> torch.Tensor:
    """``W_K - W`` with all in float64: in float32 the difference would carry the rounding of the whole weight."""
    weight = layer.kind.matrix(layer.base, layer.folded([])).detach().double()
    chain: list[Update] = []
    with torch.no_grad():
        for name, factor in layer.roster.active:
            slot = layer.slot(name)
            if slot is not None:
                chain.append(folding.weighted(update_in_double(slot.method, slot.state(), slot.target), factor, name))
        return folding.fold(weight, chain) - weight


def update_in_double(method: Method, state: State, target: Target) -> Update:
    """The update that a method makes of the tensors of a state, all in float64."""
    double = State(*({key: _double(t) for key, t in part.items()} for part in state))
    return method.update(double, dataclasses.replace(target, dtype=torch.float64))


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _factors(change: torch.Tensor, rank: int | None, tol: float | None) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Of a batch (the experts of one parameter) each matrix is cut by itself, at the largest rank that one needs."""
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    squares = s.square().flip(-1).cumsum(-1).flip(-1)
    tails = torch.cat([squares, torch.zeros_like(squares[..., :1])], -1).sqrt()  # tails[k]: error of rank k
    total = tails[..., :1]
    if rank is None:
        assert tol is not None
        rank = max(1, int((tails > tol * total).sum(-1).max()))
    rank = min(rank, s.shape[-1])
    root = s[..., None, :rank].sqrt()
    errors = torch.where(
        (total > 0) & torch.isfinite(total), tails[..., rank : rank + 1] / total, torch.zeros_like(total)
    )
    return u[..., :rank] * root, vh[..., :rank, :].mT * root, float(errors.max())
