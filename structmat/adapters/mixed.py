"""Mixed batches: every row of a batch with its own adapter, or with none.

Names, or a LongTensor without ``stack``, split the batch into groups known on the host: one pass of the layer per
group. A LongTensor after ``stack`` is looked up on its device: the tensors of the stacked adapters form one batched
matrix, so there is one pass and no synchronisation.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from structmat.adapters.folding import as_matrix
from structmat.adapters.method import Add, Compose, Parts, Residual, State, Update
from structmat.errors import ShapeError
from structmat.matrix import Matrix

if TYPE_CHECKING:
    from structmat.adapters.layer import Adapted, Slot

__all__ = ["BASE", "Bank", "Chosen", "Rows"]

BASE = "base"  # stands for no adapter among the ids of a batch


class Chosen(Matrix):
    """A batch of matrices, some replaced: ``A_b`` where ``keep[b]``, else zero (or the identity, for a square A).

    Stores: matrix ``(b, m, n)``; keep, booleans ``(b, 1, 1)``, or None to keep all; ``identity``.
    Shape: ``(b, m, n)``. Cost: that of A.
    """

    matrix: Matrix
    keep: torch.Tensor | None
    identity: bool = False

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x ``(b, ..., n)``: the first axis is the batch, whatever lies between it and the last."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        chosen = self.matrix.linear(flat)
        if self.keep is not None:
            chosen = torch.where(self.keep, chosen, flat if self.identity else torch.zeros_like(chosen))
        return chosen.reshape(*x.shape[:-1], chosen.shape[-1])

    def transpose(self) -> "Chosen":
        return Chosen(self.matrix.transpose(), self.keep, self.identity)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Which adapter each row of the first axis of x uses.

    ``groups``: (adapter or None for the base, its rows); ``inverse`` puts the groups' rows back in order. With
    ``stacked`` the ``ids`` index those adapters, -1 is the base. ``once``: the same without repetition, for layers that
    see each row once (an encoder, before its decoder gets each row for every beam).
    """

    count: int
    groups: tuple[tuple[str | None, torch.Tensor], ...] = ()
    inverse: torch.Tensor | None = None
    stacked: tuple[str, ...] = ()
    ids: torch.Tensor | None = None
    some_base: bool = True
    once: "Rows | None" = None

    @classmethod
    def by_name(cls, names: list[str | None]) -> "Rows":
        """One name (None: the base) for each row."""
        distinct = list(dict.fromkeys(names))
        groups = tuple((one, torch.tensor([i for i, n in enumerate(names) if n == one])) for one in distinct)
        order = torch.cat([index for _, index in groups]) if groups else torch.zeros(0, dtype=torch.long)
        return cls(len(names), groups=groups, inverse=torch.argsort(order))

    @classmethod
    def by_index(cls, ids: torch.Tensor, stacked: tuple[str, ...], some_base: bool = True) -> "Rows":
        """Indices into the stacked adapters; ``some_base``: whether -1 may be among them."""
        return cls(len(ids), stacked=stacked, ids=ids, some_base=some_base)

    def forward(self, layer: "Adapted", x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """The layer's output, row by row with its own adapter."""
        least = 1 if layer.kind.name == "Embedding" else 2  # one index for each row is a batch, one vector is none
        if self.once is not None and x.ndim >= least and x.shape[0] == self.once.count:
            return self.once.forward(layer, x, *rest, **options)
        if x.ndim < least or x.shape[0] != self.count:
            raise ShapeError(
                f"adapters.rows has {self.count} ids, but a layer got x of shape {tuple(x.shape)}: the first axis must "
                "be the batch; where each id covers k consecutive rows, pass repeat=k"
            )
        if self.ids is None:
            return self._grouped(layer, x, *rest, **options)
        if layer.kind.by_rows and not rest and not options:
            return self._gathered(layer, x)
        known = [None, *self.stacked]  # a layer whose weight is folded takes one adapter at a time
        return Rows.by_name([known[i + 1] for i in self.ids.tolist()])._grouped(layer, x, *rest, **options)

    def _grouped(self, layer: "Adapted", x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        for name, index in self.groups:
            part = x if len(self.groups) == 1 else x.index_select(0, index.to(x.device))
            slot = None if name is None else layer.slot(name)
            outputs.append(layer.run(part, [] if slot is None else [slot.update()], *rest, **options))
        if len(outputs) == 1:
            return outputs[0]
        assert self.inverse is not None
        return torch.cat(outputs).index_select(0, self.inverse.to(x.device))

    def _gathered(self, layer: "Adapted", x: torch.Tensor) -> torch.Tensor:
        assert self.ids is not None
        bank = layer.bank
        if bank is None or bank.stale(self.stacked):
            bank = layer.bank = Bank.of(layer, self.stacked, x.device)
        if not bank.slots:
            return layer.base(x)
        # A compiler is told that some rows may keep the base, so that one graph serves all ids.
        return layer.run(x, [bank.update(self.ids, torch.compiler.is_compiling() or self.some_base)])


class Bank:
    """The tensors of the stacked adapters of one layer, each name's together: ``(adapters, ...)``.

    The adapters' own tensors become views of these, so nothing is stored twice, a step of an optimiser is seen here,
    and a forward picks the few rows of ``ids`` whatever the number of adapters. While one of them trains, the
    tensors are gathered from the adapters instead, so that gradients reach them.
    """

    def __init__(self, names: tuple[str, ...], slots: list["Slot"], lookup: torch.Tensor) -> None:
        self.names = names
        self.slots = slots
        self.partial = len(slots) < len(names)
        self.lookup = lookup  # entry p + 1: where adapter p stands among those of this layer, -1 for none
        self.tensors: list[dict[str, torch.Tensor]] = []
        self.parameters = [p for slot in slots for p in slot.parameters()]
        self.fixed = not self._train()
        if not slots or not self.fixed:
            return
        with torch.no_grad():
            for part in range(2):
                keys = slots[0].state()[part]
                stacked = {key: torch.stack([slot.state()[part][key] for slot in slots]) for key in keys}
                for key, whole in stacked.items():
                    for k, slot in enumerate(slots):
                        slot.state()[part][key].data = whole[k]
                self.tensors.append(stacked)

    @classmethod
    def of(cls, layer: "Adapted", names: tuple[str, ...], device: torch.device) -> "Bank":
        """The bank of a layer for the adapters that ``stack`` named."""
        found = [(place, slot) for place, name in enumerate(names) if (slot := layer.slot(name)) is not None]
        places = [-1] * (len(names) + 1)
        for local, (place, _) in enumerate(found):
            places[place + 1] = local
        return cls(names, [slot for _, slot in found], torch.tensor(places, device=device))

    def stale(self, names: tuple[str, ...]) -> bool:
        """Whether other adapters are stacked now, or some train now or have ceased to."""
        if names != self.names:
            return True
        # Without gradients both ways give the same numbers, and a thousand flags need not be read.
        return (torch.is_grad_enabled() or not self.fixed) and self._train() == self.fixed

    def _train(self) -> bool:
        return any(p.requires_grad for p in self.parameters)

    def update(self, ids: torch.Tensor, some_base: bool) -> Update:
        """One update with a matrix for each row; rows with id -1 keep the base."""
        local = self.lookup[ids.to(self.lookup.device) + 1]
        picked = local.clamp(min=0)
        if self.tensors:
            parts = [{key: whole[picked] for key, whole in part.items()} for part in self.tensors]
        else:
            states = [slot.state() for slot in self.slots]
            parts = [
                {key: torch.stack([state[part][key] for state in states])[picked] for key in states[0][part]}
                for part in range(2)
            ]
        first = self.slots[0]
        update = first.method.update(State(*parts), first.target, training=first.training)
        keep = (local >= 0)[:, None, None] if some_base or self.partial else None
        return _chosen(update, keep)


def _chosen(update: Update, keep: torch.Tensor | None) -> Update:
    """The batched update on the rows to keep (None: all), the base on the others."""
    if isinstance(update, Add):
        return Add(Chosen(as_matrix(update.matrix), keep), update.scale)
    if isinstance(update, Parts):
        parts = tuple((start, stop, _chosen(one, keep)) for start, stop, one in update.updates)
        return Parts(parts, update.rows)  # type: ignore[arg-type]
    if isinstance(update, Residual):
        bias = update.bias
        if isinstance(bias, torch.Tensor) and keep is not None:
            bias = torch.where(keep[..., 0], bias, torch.zeros_like(bias))
        return Residual(Chosen(update.matrix, keep), update.activation, bias)
    left, right = update.left, update.right
    return Compose(
        None if left is None else Chosen(left, keep, identity=True),
        None if right is None else Chosen(right, keep, identity=True),
    )
