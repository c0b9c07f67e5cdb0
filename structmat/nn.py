"""A matrix value as a trainable module."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from structmat._value import Value
from structmat.errors import ShapeError
from structmat.matrix import Matrix

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
