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

__all__ = ["BASE", "Chosen", "Rows"]

BASE = "base"  # stands for no adapter among the ids of a batch


class Chosen(Matrix):
    """A batch of matrices, some replaced: ``A_b`` where ``keep[b]``, else zero (or the identity, for a square A).

    Stores: matrix ``(b, m, n)``; keep, booleans ``(b, 1, 1)``; ``identity``. Shape: ``(b, m, n)``. Cost: that of A.
    """

    matrix: Matrix
    keep: torch.Tensor
    identity: bool = False

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x ``(b, ..., n)``: the first axis is the batch, whatever lies between it and the last."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        y = self.matrix.linear(flat)
        chosen = torch.where(self.keep, y, flat if self.identity else torch.zeros_like(y))
        return chosen.reshape(*x.shape[:-1], y.shape[-1])

    def transpose(self) -> "Chosen":
        return Chosen(self.matrix.transpose(), self.keep, self.identity)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Which adapter each row of the first axis of x uses.

    ``groups``: (adapter or None for the base, its rows); ``inverse`` puts the groups' rows back in order. With
    ``stacked`` the ``ids`` index those adapters, -1 is the base.
    """

    count: int
    groups: tuple[tuple[str | None, torch.Tensor], ...] = ()
    inverse: torch.Tensor | None = None
    stacked: tuple[str, ...] = ()
    ids: torch.Tensor | None = None

    @classmethod
    def by_name(cls, names: list[str | None]) -> "Rows":
        """One name (None: the base) for each row."""
        distinct = list(dict.fromkeys(names))
        groups = tuple((one, torch.tensor([i for i, n in enumerate(names) if n == one])) for one in distinct)
        order = torch.cat([index for _, index in groups]) if groups else torch.zeros(0, dtype=torch.long)
        return cls(len(names), groups=groups, inverse=torch.argsort(order))

    @classmethod
    def by_index(cls, ids: torch.Tensor, stacked: tuple[str, ...]) -> "Rows":
        """Indices into the stacked adapters."""
        return cls(len(ids), stacked=stacked, ids=ids)

    def forward(self, layer: "Adapted", x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """The layer's output, row by row with its own adapter."""
        if x.ndim < 2 or x.shape[0] != self.count:
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
        slots = [(place, slot) for place, name in enumerate(self.stacked) if (slot := layer.slot(name)) is not None]
        if not slots:
            return layer.base(x)
        assert self.ids is not None
        # Entry p + 1 is where adapter p stands among those of this layer; entry 0 is the base.
        places = [-1] * (len(self.stacked) + 1)
        for local, (place, _) in enumerate(slots):
            places[place + 1] = local
        local_ids = torch.tensor(places, device=x.device)[self.ids.to(x.device) + 1]
        return layer.run(x, [_batched([slot for _, slot in slots], local_ids)])


def _batched(slots: list["Slot"], ids: torch.Tensor) -> Update:
    """One update with a matrix for each row; rows with id -1 keep the base."""
    states = [slot.state() for slot in slots]
    picked = ids.clamp(min=0)

    def gather(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([part[key] for part in parts])[picked] for key in parts[0]}

    state = State(gather([s.trained for s in states]), gather([s.frozen for s in states]))
    first = slots[0]
    update = first.method.update(state, first.target, training=first.training)
    return _chosen(update, (ids >= 0)[:, None, None])


def _chosen(update: Update, keep: torch.Tensor) -> Update:
    if isinstance(update, Add):
        return Add(Chosen(as_matrix(update.matrix), keep), update.scale)
    if isinstance(update, Parts):
        parts = tuple((start, stop, _chosen(one, keep)) for start, stop, one in update.updates)
        return Parts(parts, update.rows)  # type: ignore[arg-type]
    if isinstance(update, Residual):
        bias = update.bias
        if isinstance(bias, torch.Tensor):
            bias = torch.where(keep[..., 0], bias, torch.zeros_like(bias))
        return Residual(Chosen(update.matrix, keep), update.activation, bias)
    left, right = update.left, update.right
    return Compose(
        None if left is None else Chosen(left, keep, identity=True),
        None if right is None else Chosen(right, keep, identity=True),
    )
