"""Which adapters act: activate, disabled, rows and stack; and the small verbs of a training loop."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from structmat.adapters.folding import weighted
from structmat.adapters.layer import Roster, Slot
from structmat.adapters.method import near
from structmat.adapters.mixed import BASE, Bank, Rows
from structmat.adapters.tree import adapted, require_unmerged, require_whole, roster_of, selected_names
from structmat.errors import DtypeError, ShapeError

__all__ = ["activate", "after_step", "disabled", "names", "penalty", "rows", "stack", "trainable_parameters"]


def _roster(model: nn.Module) -> Roster:
    roster = roster_of(model)
    assert roster is not None
    return roster


def names(model: nn.Module) -> tuple[str, ...]:
    """The adapters of a model in the order they were attached; empty if there are none."""
    roster = roster_of(model, needed=False)
    return roster.order if roster else ()


def activate(model: nn.Module, names: str | Sequence[str], weights: Sequence[float] | None = None) -> None:
    """Make these adapters the active ones, folding in the order given; an empty list leaves the base.

    ``weights`` scales additive adapters, one number each. An adapter that multiplies the weight (HRA) has no
    multiples: only 1 is legal for it. What trains (``requires_grad``) is not changed.
    """
    roster = _roster(model)
    require_unmerged(roster, "activate")
    chosen = selected_names(names, roster.order, "activate")
    factors = [1.0] * len(chosen) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(chosen):
        raise ValueError(f"activate: {len(factors)} weights for {len(chosen)} adapters")
    for name, factor in zip(chosen, factors, strict=True):
        if not math.isfinite(factor):
            raise ValueError(f"activate: the weight of {name!r} must be finite, got {factor}")
        if factor != 1.0:
            with torch.no_grad():
                for slot in _slots(model, name):
                    weighted(slot.update(), factor, name)
    roster.active = tuple(zip(chosen, factors, strict=True))


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """A context in which the model acts as its base. Under gradient checkpointing, which runs the layers again in the
    backward pass, that pass belongs into the context too.
    """
    roster = _roster(model)
    require_unmerged(roster, "disabled")
    before, roster.enabled = roster.enabled, False
    try:
        yield
    finally:
        roster.enabled = before


def stack(model: nn.Module, names: Sequence[str]) -> None:
    """Choose the adapters that a LongTensor given to ``rows`` indexes, to be served as one batched matrix per layer.

    They must use equal methods wherever they share a layer. Their tensors become views of one stacked tensor a layer,
    of which a forward takes the rows it needs, so nothing is stored twice and the cost does not grow with the number of
    adapters; while one of them trains they are gathered in every forward instead. An empty list undoes it.
    """
    roster = _roster(model)
    chosen = selected_names(names, roster.order, "stack")
    require_whole(model, "stack")
    for layer_name, layer in adapted(model).items():
        slots = [(name, slot) for name in chosen if (slot := layer.slot(name)) is not None]
        for name, slot in slots[1:]:
            if slot.method != slots[0][1].method:
                raise ValueError(
                    f"stack: on layer {layer_name!r}, {slots[0][0]!r} is {slots[0][1].method} and {name!r} is "
                    f"{slot.method}; "
                    "stacked adapters use equal methods; pass names to rows for a mixture"
                )
    for layer in adapted(model).values():  # here and not at the first forward, which may be a compiled one
        layer.bank = Bank.of(layer, chosen, layer.kind.place(layer.base)[1]) if chosen else None
    roster.stacked = chosen


@contextlib.contextmanager
def rows(model: nn.Module, ids: torch.Tensor | Sequence[str], repeat: int = 1) -> Iterator[None]:
    """A context in which row k of the batch uses the adapter ``ids[k]`` alone, whatever is active.

    Args:
        ids: names, "base" for none; or a LongTensor of indices into the stacked adapters (without ``stack``: into
            ``names(model)``), -1 for none.
        repeat: each id covers this many consecutive rows of x; ``x.shape[0]`` must be ``len(ids) * repeat``, or
            ``len(ids)`` in layers that see each row once (an encoder, where beams repeat the rows for its decoder).
    Under gradient checkpointing, which runs the layers again in the backward pass, that pass belongs into the context
    too: outside it the layers would run with what is active there.
    """
    roster = _roster(model)
    require_unmerged(roster, "rows")
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise ValueError(f"rows: repeat must be an integer of at least 1, got {repeat!r}")
    chosen = _chosen(roster, ids, repeat)
    if repeat > 1:
        chosen = dataclasses.replace(chosen, once=_chosen(roster, ids, 1))
    before, roster.rows = roster.rows, chosen
    try:
        yield
    finally:
        roster.rows = before


def _chosen(roster: Roster, ids: torch.Tensor | Sequence[str], repeat: int) -> Rows:
    return _by_index(roster, ids, repeat) if isinstance(ids, torch.Tensor) else _by_name(roster, ids, repeat)


def _by_name(roster: Roster, ids: Sequence[str], repeat: int) -> Rows:
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not len(ids):
        raise ValueError(f"rows: ids are a name for each row of the batch, or a LongTensor, got {ids!r}")
    for one in ids:
        if one != BASE and one not in roster.order:
            raise ValueError(f"rows: there is no adapter {one!r}; {near(str(one), [*roster.order, BASE])}")
    return Rows.by_name([None if one == BASE else one for one in ids for _ in range(repeat)])


def _by_index(roster: Roster, ids: torch.Tensor, repeat: int) -> Rows:
    if ids.dtype != torch.long:
        raise DtypeError(f"rows: ids must be a LongTensor, got {ids.dtype}; convert with .long()")
    if ids.ndim != 1 or not len(ids):
        raise ShapeError(f"rows: ids must have shape (batch,), got {tuple(ids.shape)}")
    known = roster.stacked or roster.order
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high >= len(known):
        raise ValueError(
            f"rows: ids from {low} to {high}; legal are -1 (base) to {len(known) - 1}, for {', '.join(known)}"
        )
    ids = ids.repeat_interleave(repeat)
    if roster.stacked:
        return Rows.by_index(ids, roster.stacked, low < 0)
    return Rows.by_name([None if i < 0 else known[i] for i in ids.tolist()])


# -- the training loop ------------------------------------------------------------------------------------------------


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, each once: what an optimiser is given."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def penalty(model: nn.Module) -> torch.Tensor:
    """The sum of the methods' regularisers over active adapters, to be added to the loss; a zero where there are
    none.
    """
    terms = [
        slot.method.penalty(slot.whole())
        for layer in adapted(model).values()
        for name, _ in layer.roster.active
        if (slot := layer.slot(name)) is not None and hasattr(slot.method, "penalty")
    ]
    if terms:
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()
    first = next(model.parameters(), None)
    return torch.zeros((), device=None if first is None else first.device)


def after_step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Call after ``optimizer.step()``: runs ``project_`` of the methods that have one (constraints kept by
    projection).

    Only adapters whose parameters the optimiser steps are projected; without an optimiser, all that train.
    """
    stepped = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for layer in adapted(model).values():
            for slot in layer.adapters.values():
                assert isinstance(slot, Slot)
                mine = [p for p in slot.parameters() if p.requires_grad and (stepped is None or id(p) in stepped)]
                if mine and hasattr(slot.method, "project_"):
                    slot.method.project_(slot.state())


def _slots(model: nn.Module, name: str) -> list[Slot]:
    return [slot for layer in adapted(model).values() if (slot := layer.slot(name)) is not None]
