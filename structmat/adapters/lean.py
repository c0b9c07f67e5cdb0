"""What the backward pass of an adapter keeps: its input in the dtype it was given in, and no product in between.

Two things would keep more. An input that is converted (bfloat16 to the adapter's float32) would be kept converted;
``narrow`` keeps the one that was given, which the model keeps anyway, and converts it again. A matrix that takes
several passes would keep what is between them; ``recomputed`` runs them again where that is more than a few megabytes.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from structmat import backend
from structmat.functional.householder import block_of
from structmat.lazy import Product
from structmat.matrix import Matrix
from structmat.types.householder import HouseholderProduct
from structmat.types.kronecker import Kronecker

__all__ = ["narrow", "passes", "recomputed"]

_KEPT = 1 << 20  # numbers of the input from which its intermediate products are computed again


def _recording() -> bool:
    """Whether plain autograd records here: a compiler decides itself what to keep, and transforms take no hooks."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not backend.transforming()


def narrow(given: torch.Tensor, wide: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which what is saved of ``wide``, the converted ``given``, is saved as ``given``."""
    if given is wide or not _recording() or not backend.eager(given):
        return contextlib.nullcontext()
    place, version = wide.untyped_storage().data_ptr(), given._version
    known = given.detach()

    def pack(tensor: torch.Tensor) -> Any:
        if tensor.dtype != wide.dtype or tensor.untyped_storage().data_ptr() != place:
            return tensor
        return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if known._version != version:
            raise RuntimeError("the input of an adapted layer was changed in place before the backward pass")
        return known.to(wide.dtype).as_strided(*packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def passes(matrix: Matrix) -> bool:
    """Whether a product with the matrix keeps more of each row than the row itself."""
    inner = getattr(matrix, "matrix", None)  # a matrix for each row of a batch
    if isinstance(inner, Matrix):
        return passes(inner)
    if isinstance(matrix, HouseholderProduct):
        r, n = matrix.vectors.shape[-2:]
        return block_of(int(r), int(n)) < r  # several blocks of reflections
    return isinstance(matrix, (Product, Kronecker))


def recomputed(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``function(x)``, of which the backward pass keeps x alone if x is large."""
    if x.numel() <= _KEPT or not _recording():
        return function(x)
    y: torch.Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return y
