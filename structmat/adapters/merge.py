"""Folding active adapters into the stored weights, and taking them out again."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from structmat.adapters import folding
from structmat.adapters.kinds import Kind, ParameterOf, kind_of
from structmat.adapters.layer import Adapted
from structmat.adapters.method import Add, Residual, Update
from structmat.adapters.tree import adapted, require_unmerged, require_whole, roster_of, selected_names
from structmat.errors import StructureError

__all__ = ["merge", "unmerge"]

_KEEP = ("copy", "cpu", "none")


def merge(
    model: nn.Module, keep: str = "copy", names: str | Sequence[str] | None = None, dequantise: bool = False
) -> None:
    """Fold active adapters (default: all) into the weights; the layers then cost what they cost without adapters.

    Args:
        keep: what becomes of the stored weights. "copy": they are set aside on their device, and the merged ones take
            their place (a tied weight elsewhere in the model stays as it is). "cpu": set aside in main memory, the
            merged ones are written over them. "none": nothing is kept, and ``unmerge`` computes them back with
            rounding errors.
        names: which of the active adapters; the others go on acting on the merged weight. They must come first in
            folding order on every layer, or all be additions, so that the model computes what it did before.
        dequantise: layers whose weight cannot be read (quantised ones) become ``torch.nn.Linear`` with the dense merged
            weight, which costs 4 bytes a number of memory; ``unmerge`` brings the layer itself back. Needs "copy".
    The fold is computed in the dtype of the adapters (at least float32) and rounded once, without dropout in every
    mode; n^2 storage, a layer at a time.
    Raises:  ValueError for an illegal argument, tied weights that would be written over, or a weight that is not
        finite; StructureError for what has no merged weight; RuntimeError if already merged, inside ``rows``, or
        with weights sharded over devices. Nothing is changed then.
    """
    if keep not in _KEEP:
        raise ValueError(f"merge: keep must be one of {', '.join(map(repr, _KEEP))}, got {keep!r}")
    roster = roster_of(model)
    assert roster is not None
    require_unmerged(roster, "merge")
    require_whole(model, "merge")
    if roster.rows is not None or not roster.enabled:
        raise RuntimeError("merge: leave the adapters.rows or adapters.disabled context first")
    active = tuple(name for name, _ in roster.active)
    chosen = selected_names(active if names is None else names, roster.order, "merge")
    for name in chosen:
        if name not in active:
            raise ValueError(f"merge: {name!r} is not active; active are {', '.join(map(repr, active)) or 'none'}")
    layers = adapted(model)
    if keep != "copy":
        _check_ties(model, layers)
    roster.merged_names = chosen
    done: list[Adapted] = []
    try:
        with torch.no_grad():
            for name, layer in layers.items():  # only checks, so that a bad layer leaves the others as they were
                _check_layer(name, layer, keep, dequantise)
            for layer in layers.values():
                _merge_layer(layer, keep)
                done.append(layer)
    except BaseException:  # out of memory, for one: the layers before are put back
        with torch.no_grad():
            for layer in layers.values():
                if layer in done or layer.kept or layer.kept_base:
                    _unmerge_layer(layer, keep)
        roster.merged_names = ()
        raise
    roster.merged = keep


def _check_layer(name: str, layer: Adapted, keep: str, dequantise: bool) -> None:
    chain = layer.chain(merged=True)
    if not chain:
        return
    _, residuals = folding.split(chain)
    if residuals:
        raise StructureError(
            f"merge: an adapter on {name!r} acts on the layer's output through a nonlinear function, which no weight "
            "holds; merge the others with names="
        )
    if not _first(layer):
        raise ValueError(
            f"merge: on {name!r} an adapter that stays active folds before one to be merged, and they do not commute; "
            "merge those that come first, or all"
        )
    if not layer.kind.reads_weight and not (dequantise and keep == "copy"):
        size = 4 * layer.in_features * layer.out_features / 2**20
        raise StructureError(
            f"merge: {name!r} is a {type(layer.base).__name__}, whose weight is not read; "
            f'merge(model, keep="copy", dequantise=True) puts a dense Linear of {size:.1f} MiB in its place'
        )
    if not torch.isfinite(layer.folded(chain)).all():
        raise ValueError(f"merge: the merged weight of {name!r} is not finite; nothing was merged")


def _first(layer: Adapted) -> bool:
    """Whether the adapters to be merged may fold before the others of this layer: each one comes first, or it and
    those that stay active before it are additions.
    """
    stays: list[Update] = []
    for name, _ in layer.roster.active:
        slot = layer.slot(name)
        if slot is None:
            continue
        update = slot.update()
        if isinstance(update, Residual):  # acts after the whole chain, wherever it stands
            continue
        if name not in layer.roster.merged_names:
            stays.append(update)
        elif stays and not all(isinstance(one, Add) for one in (*stays, update)):
            return False
    return True


def _merge_layer(layer: Adapted, keep: str) -> None:
    chain = layer.chain(merged=True)
    if not chain:
        return
    base = layer.base
    if not layer.kind.reads_weight:
        layer.kept_base = [base]
        like = torch.zeros(1, dtype=layer.dtype, device=layer.kind.place(base)[1])
        layer.base = _linear(base, layer.folded(chain), layer.kind.shift(base, like))  # type: ignore[attr-defined]
        layer.kind = _kind(layer.base)
        return
    weight = base.weight
    assert isinstance(weight, nn.Parameter)
    merged = layer.folded(chain).detach()
    if keep == "copy":
        layer.kept = [weight]
        _put(base, nn.Parameter(merged, requires_grad=False))
        return
    if keep == "cpu":
        layer.kept = [weight.detach().to("cpu", copy=True)]
    weight.copy_(merged)


def _put(base: nn.Module, weight: nn.Parameter) -> None:
    if isinstance(base, ParameterOf):
        base.put(weight)
    else:
        base.weight = weight


def _linear(base: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A plain layer with a dense weight and a bias, in the mode of ``base``."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return made.train(base.training)


def _kind(layer: nn.Module) -> Kind:
    found = kind_of(layer)
    assert found is not None
    return found


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
    roster.merged, roster.merged_names = None, ()


def _unmerge_layer(layer: Adapted, keep: str) -> None:
    base = layer.base
    if keep == "none":
        chain = layer.chain(merged=True)
        if chain:
            weight = base.weight
            assert isinstance(weight, torch.Tensor)
            restored = folding.unfold(layer.kind.matrix(base, weight), chain)
            weight.copy_(layer.kind.stored(base, restored))
    elif layer.kept_base:
        layer.base = layer.kept_base.pop().train(layer.training)
        layer.kind = _kind(layer.base)
    elif layer.kept:
        kept = layer.kept.pop()
        if isinstance(kept, nn.Parameter):
            _put(base, kept)
        else:
            base.weight.copy_(kept)  # type: ignore[operator]


def _check_ties(model: nn.Module, layers: Mapping[str, Adapted]) -> None:
    """A weight that another module shares must not be written over."""
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((name.removesuffix(".base"), module))
    for name, layer in layers.items():
        if not layer.kind.reads_weight:
            continue
        own = layer.base.holder if isinstance(layer.base, ParameterOf) else layer.base
        others = [other for other, module in holders.get(id(layer.base.weight), []) if module is not own]
        if others:
            raise ValueError(
                f'merge: the weight of {name!r} is shared with {others[0]!r}; use keep="copy", which leaves that alone'
            )
