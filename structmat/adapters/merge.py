"""Folding the active adapters into the stored weights, and taking them out again."""

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.layer import Adapted
from structmat.adapters.tree import adapted, require_unmerged, roster_of

__all__ = ["merge", "unmerge"]

_KEEP = ("copy", "cpu", "none")


def merge(model: nn.Module, keep: str = "copy") -> None:
    """Fold the active adapters into the weights; the layers then cost what they cost without adapters.

    Args:
        keep: what becomes of the stored weights. "copy": they are set aside on their device, and the merged ones take
            their place (a tied weight elsewhere in the model stays as it is). "cpu": set aside in main memory, the
            merged ones are written over them. "none": nothing is kept, and ``unmerge`` computes them back with
            rounding errors.
    The fold is computed in the dtype of the adapters (at least float32) and rounded once; n^2 storage, a layer at a
    time.
    Raises:  ValueError for an illegal ``keep``, tied weights that would be written over, or a weight that is not
        finite; RuntimeError if already merged or inside ``rows``. Nothing is changed then.
    """
    if keep not in _KEEP:
        raise ValueError(f"merge: keep must be one of {', '.join(map(repr, _KEEP))}, got {keep!r}")
    roster = roster_of(model)
    assert roster is not None
    require_unmerged(roster, "merge")
    if roster.rows is not None or not roster.enabled:
        raise RuntimeError("merge: leave the adapters.rows or adapters.disabled context first")
    layers = adapted(model)
    if keep != "copy":
        _check_ties(model, layers)
    with torch.no_grad():
        for (
            name,
            layer,
        ) in layers.items():  # a first pass only checks, so that a bad layer leaves the others as they were
            if not torch.isfinite(layer.folded(layer.chain())).all():
                raise ValueError(f"merge: the merged weight of {name!r} is not finite; nothing was merged")
        for layer in layers.values():
            _merge_layer(layer, keep)
    roster.merged = keep


def _merge_layer(layer: Adapted, keep: str) -> None:
    chain = layer.chain()
    if not chain:
        return
    base, weight = layer.base, layer.base.weight
    assert isinstance(weight, nn.Parameter)
    merged = layer.folded(chain).detach()
    if keep == "copy":
        layer.kept = [weight]
        base.weight = nn.Parameter(merged, requires_grad=False)
        return
    if keep == "cpu":
        layer.kept = [weight.detach().to("cpu", copy=True)]
    weight.copy_(merged)


def unmerge(model: nn.Module) -> None:
    """Put the weights back as they were, bit for bit; after ``merge(keep="none")`` up to rounding, by inverting the
    fold.

    In that last case the adapters must still be those that were merged.
    """
    roster = roster_of(model)
    assert roster is not None
    if roster.merged is None:
        raise RuntimeError("unmerge: the adapters are not merged")
    with torch.no_grad():
        for layer in adapted(model).values():
            _unmerge_layer(layer, roster.merged)
    roster.merged = None


def _unmerge_layer(layer: Adapted, keep: str) -> None:
    base = layer.base
    if keep == "none":
        chain = layer.chain()
        if chain:
            weight = base.weight
            assert isinstance(weight, torch.Tensor)
            restored = folding.unfold(layer.kind.view(weight), chain)
            weight.copy_(layer.kind.stored(restored, weight))
    elif layer.kept:
        kept = layer.kept[0]
        if isinstance(kept, nn.Parameter):
            base.weight = kept
        else:
            base.weight.copy_(kept)  # type: ignore[operator]
        layer.kept = []


def _check_ties(model: nn.Module, layers: dict[str, Adapted]) -> None:
    """A weight that another module shares must not be written over."""
    holders: dict[int, list[str]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in seen:
            continue
        seen.add(id(module))
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(name)
    for name, layer in layers.items():
        others = [other for other in holders.get(id(layer.base.weight), []) if other != f"{name}.base"]
        if others:
            raise ValueError(
                f'merge: the weight of {name!r} is shared with {others[0]!r}; use keep="copy", which leaves that alone'
            )
