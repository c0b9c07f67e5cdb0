"""``A[...]``: batch elements and slices are matrices, single rows, columns and entries are tensors."""

from typing import Any

import numpy
import torch

from structmat import backend, dispatch
from structmat._verbs import Verbs
from structmat.errors import StructureError

__all__ = ["Indexing", "positions"]

_WHOLE = slice(None)


class Indexing(Verbs):
    """Indexing of a matrix, derived from its products."""

    def __getitem__(self, index: Any) -> Any:
        """Batch elements and slices of rows and columns are matrices; a single row, column or entry is a tensor."""
        batch, rows, columns = self._split_index(index)
        chosen = self._index_batch(batch) if any(not (isinstance(i, slice) and i == _WHOLE) for i in batch) else self
        if isinstance(rows, slice) and isinstance(columns, slice):
            return chosen if rows == _WHOLE == columns else chosen._slice(rows, columns)
        if isinstance(rows, slice):
            rows = positions(rows, int(self.shape[-2]))
            picked = chosen.linear(self._units(columns, int(self.shape[-1])))
            return (picked if isinstance(columns, int) else picked.mT)[
                (..., rows, _WHOLE)[: 2 if isinstance(columns, int) else 3]
            ]
        picked = chosen.transpose().linear(self._units(rows, int(self.shape[-2])))
        if isinstance(rows, torch.Tensor) and isinstance(columns, torch.Tensor):
            return picked[..., torch.arange(len(rows), device=picked.device), columns]
        return picked[..., positions(columns, int(self.shape[-1])) if isinstance(columns, slice) else columns]

    def _split_index(self, index: Any) -> tuple[tuple[Any, ...], Any, Any]:
        given = list(index) if isinstance(index, tuple) else [index]
        given = [int(i) if isinstance(i, numpy.integer) else i for i in given]
        total = len(self.shape)
        if len(given) - (Ellipsis in [i for i in given if not isinstance(i, torch.Tensor)]) > total:
            raise IndexError(f"{self!r}[...]: {len(given)} indices for {total} dimensions")
        dots = next((k for k, i in enumerate(given) if i is Ellipsis), None)
        if dots is None:
            given += [_WHOLE] * (total - len(given))
        else:
            given[dots : dots + 1] = [_WHOLE] * (total - len(given) + 1)
        for i in given:
            if not isinstance(i, (int, slice, torch.Tensor)):
                raise IndexError(f"{self!r}[{i!r}]: an index is an int, a slice, an integer tensor or ...")
        return tuple(given[:-2]), given[-2], given[-1]

    def _units(self, index: Any, n: int) -> torch.Tensor:
        if isinstance(index, int):
            if not -n <= index < n:
                raise IndexError(f"{self!r}: index {index} is out of range for {n} entries")
            index %= n
            unit = torch.zeros(n, dtype=self.dtype or torch.get_default_dtype(), device=self.device)
            unit[index] = 1
            return unit
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        if backend.eager(index) and bool(((index < -n) | (index >= n)).any()):
            raise IndexError(f"{self!r}: an index is out of range for {n} entries")
        units = torch.zeros(*index.shape, n, dtype=self.dtype or torch.get_default_dtype(), device=self.device)
        return units.scatter(-1, (index % n)[..., None], 1)  # rows of the identity, without the identity

    def _index_batch(self, batch: tuple[Any, ...]) -> Any:
        return self._picked(batch, tuple(self.batch_shape))

    def _picked(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        """The elements ``batch`` of this matrix expanded to the batch shape ``lead``, with what was vouched for."""
        new = self._pick(batch, lead)
        return new._vouched(self._assumed) if self._assumed and not new._assumed else new

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        """By the tensor fields and their ``core``; composed matrices pick from their parts."""
        if not self.core and self.tensors():
            raise StructureError(
                f"{self!r}[...]: {type(self).__name__} does not declare core, so its batch cannot be indexed"
            )
        return self._map(lambda name, t: t.expand(*lead, *t.shape[t.ndim - self.core[name] :])[batch])

    def _slice(self, rows: slice, columns: slice) -> Any:
        return dispatch.lookup("slice", type(self))(self, rows, columns)  # type: ignore[misc]


def positions(index: slice, size: int) -> Any:
    """The slice itself, or for a negative step, which tensors do not take, the list of its positions."""
    return list(range(*index.indices(size))) if index.step is not None and index.step < 0 else index
