"""A matrix value as a trainable module."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from structmat._value import Value
from structmat.errors import ShapeError, StructureError
from structmat.matrix import Matrix
from structmat.nn.replace import Replaced, Replacement

__all__ = ["Linear", "Trainable", "split"]


def split(matrix: Matrix) -> tuple[tuple[torch.Tensor, ...], Callable[[tuple[torch.Tensor, ...]], Matrix]]:
    """``(floating tensors, rebuild)`` with ``rebuild(tensors)`` the matrix again: the way to ``torch.func.grad`` over
    a matrix that also holds index tensors, which stay behind.

    >>> tensors, rebuild = sm.nn.split(sm.Circulant(torch.ones(3)))
    >>> torch.func.grad(lambda t: rebuild(t).to_dense().sum())(tensors)
    (tensor([3., 3., 3.]),)
    """
    leaves, spec = pytree.tree_flatten(matrix)
    floating = [i for i, t in enumerate(leaves) if t.is_floating_point() or t.is_complex()]

    def rebuild(tensors: tuple[torch.Tensor, ...]) -> Matrix:
        new = list(leaves)
        for i, t in zip(floating, tensors, strict=True):
            new[i] = t
        result: Matrix = pytree.tree_unflatten(new, spec)
        return result

    return tuple(leaves[i] for i in floating), rebuild


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor, in the order of the pytree, with the fields that lead to it: ``factors_0_vectors``."""
    if isinstance(value, Value):
        for (name, _), child in zip(value._layout, value._children, strict=True):
            if child:
                yield from _paths(value.__dict__[name], (*path, name))
    elif isinstance(value, tuple):
        for k, part in enumerate(value):
            yield from _paths(part, (*path, str(k)))
    else:
        yield "_".join(path), value


class Trainable(nn.Module):
    """A module whose parameters are the tensors of ``A``; ``module.matrix`` is the matrix of their present values.

    Index tensors become buffers. Parameters are named as the fields (``column``, ``factors_0_vectors``).

    >>> rotation = sm.nn.Trainable(sm.HouseholderProduct.random(8, 4))
    >>> [name for name, _ in rotation.named_parameters()]
    ['vectors']
    """

    def __init__(self, A: Matrix) -> None:
        super().__init__()
        leaves, self._spec = pytree.tree_flatten(A)
        self._names = [name for name, _ in _paths(A, ())]
        for name, tensor in zip(self._names, leaves, strict=True):
            if tensor.is_floating_point() or tensor.is_complex():
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.clone())

    @property
    def matrix(self) -> Matrix:
        result: Matrix = pytree.tree_unflatten([getattr(self, name) for name in self._names], self._spec)
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x A^T``."""
        return self.matrix.linear(x)

    def extra_repr(self) -> str:
        return repr(self.matrix)


class Linear(nn.Module):
    """``y = x A^T + b`` with a trainable structured A ``(out_features, in_features)``.

    Args: A, a matrix without batch axes; bias, whether to add a trainable b (zero at the start).
    Raises: ShapeError for a batch of matrices.
    """

    def __init__(self, A: Matrix, bias: bool = True) -> None:
        super().__init__()
        if len(A.shape) != 2:
            raise ShapeError(f"nn.Linear({A!r}): one matrix is needed, not a batch")
        self.out_features, self.in_features = (int(s) for s in A.shape)
        self.weight = Trainable(A)
        self.bias: Any = nn.Parameter(torch.zeros(self.out_features, dtype=A.dtype, device=A.device)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"nn.Linear({self.weight.matrix!r}): x has {x.shape[-1]} features, the layer takes {self.in_features}"
            )
        y = self.weight(x)
        return y if self.bias is None else y + self.bias

    @property
    def matrix(self) -> Matrix:
        return self.weight.matrix

    @classmethod
    def from_dense(cls, layer: nn.Linear, kind: Any, **options: Any) -> "Linear":
        """The layer with its weight replaced by the nearest matrix of a type: ``kind.nearest(weight, **options)``.

        ``kind`` is a Matrix type with ``nearest``, or a function of the weight ``(out, in)`` that returns a Matrix. The
        bias is copied. Raises StructureError for a type without ``nearest``, ShapeError if the matrix does not fit.

        >>> layer = torch.nn.Linear(4, 4)
        >>> sm.nn.Linear.from_dense(layer, sm.Toeplitz).matrix
        Toeplitz(shape=(4, 4), dtype=float32)
        """
        weight = layer.weight.detach()
        place = f"nn.Linear.from_dense({tuple(weight.shape)})"
        if isinstance(kind, type):
            nearest = getattr(kind, "nearest", None)
            if nearest is None:
                raise StructureError(f"{place}: {kind.__name__} has no nearest; pass a function weight -> Matrix")
            matrix = nearest(weight, **options)
        else:
            matrix = kind(weight, **options)
        if not isinstance(matrix, Matrix) or tuple(matrix.shape) != tuple(weight.shape):
            raise ShapeError(f"{place}: a Matrix of the weight's shape is needed, got {matrix!r}")
        made = cls(matrix, bias=layer.bias is not None)
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.detach().clone())
        return made.train(layer.training)

    @staticmethod
    def replace(model: nn.Module, pattern: str, factory: Any, **options: Any) -> Replaced:
        """Replace every ``torch.nn.Linear`` whose name ``pattern`` matches (``re.fullmatch``) as ``from_dense`` does.

        ``factory`` is a type or a function of the weight. Returns a table: each layer's relative error and its numbers
        before and after. A tied layer is replaced once, everywhere. All new layers are made before any is put in:
        where one fails, the model is as it was. Raises ValueError if nothing matches, naming what there is.
        """
        linear = {name: m for name, m in model.named_modules(remove_duplicate=False) if type(m) is nn.Linear and name}
        chosen = {name: m for name, m in linear.items() if re.fullmatch(pattern, name)}
        if not chosen:
            some = ", ".join(list(linear)[:8]) or "none"
            raise ValueError(f"nn.Linear.replace: {pattern!r} matches no torch.nn.Linear; names are {some}")
        made: dict[nn.Module, Linear] = {}
        rows = []
        for name, layer in chosen.items():
            if layer in made:
                continue
            made[layer] = new = Linear.from_dense(layer, factory, **options)
            wide = layer.weight.detach().double()
            distance = torch.linalg.vector_norm(wide - new.matrix.to_dense().detach().double())
            error = float(distance / torch.linalg.vector_norm(wide).clamp_min(torch.finfo(torch.float64).tiny))
            counts = [sum(p.numel() for p in m.parameters()) for m in (layer, new)]
            rows.append(Replacement(name, repr(new.weight.matrix), counts[0], counts[1], error))
        for name, layer in chosen.items():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made[layer])
        return Replaced(tuple(rows))
