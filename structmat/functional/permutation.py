"""Permutations as index tensors ``(*batch, n)``: application, inverse, composition, cycles. No loop over entries."""

import math

import torch

__all__ = ["compose", "eigenvalue_angles", "inverse", "kron", "pick", "sign"]


def pick(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """``x[..., indices]``, row by row: x ``(..., n)``, indices ``(*batch, n)``; a batch meets x ``(*batch, k, n)``."""
    if indices.ndim == 1:
        return x.index_select(-1, indices)
    index = indices if x.ndim == 1 else indices[..., None, :]
    lead = torch.broadcast_shapes(x.shape[:-1], index.shape[:-1])
    return torch.gather(x.expand(*lead, x.shape[-1]), -1, index.expand(*lead, x.shape[-1]))


def inverse(indices: torch.Tensor) -> torch.Tensor:
    """q with ``q[p[i]] = i``: the indices of the inverse, which is the transpose. O(n)."""
    places = torch.arange(indices.shape[-1], device=indices.device).expand(indices.shape)
    return torch.zeros_like(indices).scatter(-1, indices, places)


def compose(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``b[a]``, the indices of A B; batches broadcast."""
    lead = torch.broadcast_shapes(a.shape, b.shape)
    return torch.gather(b.expand(lead), -1, a.expand(lead))


def kron(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The indices of the Kronecker product; batches broadcast."""
    both = a[..., :, None] * b.shape[-1] + b[..., None, :]
    return both.flatten(-2)


def _smallest_of_cycle(indices: torch.Tensor) -> torch.Tensor:
    """For each i the smallest member of its cycle: after k rounds the minimum over 2^k successors is known."""
    n = int(indices.shape[-1])
    label = torch.arange(n, device=indices.device).expand(indices.shape)
    step = indices
    for _ in range(max(0, n - 1).bit_length()):
        label = torch.minimum(label, torch.gather(label, -1, step))
        step = torch.gather(step, -1, step)
    return label


def sign(indices: torch.Tensor) -> torch.Tensor:
    """``(-1)^(n - cycles)``, an integer tensor ``(*batch)``. O(n log n) by pointer doubling."""
    n = int(indices.shape[-1])
    cycles = (_smallest_of_cycle(indices) == torch.arange(n, device=indices.device)).sum(-1)
    return 1 - 2 * ((n - cycles) % 2)


def eigenvalue_angles(indices: torch.Tensor) -> torch.Tensor:
    """``2 pi k / L``, k = 0 .. L-1, for each cycle of length L: the angles of the n eigenvalues, float64."""
    label = _smallest_of_cycle(indices)
    length = torch.zeros_like(indices).scatter_add(-1, label, torch.ones_like(indices))  # at the cycle's label
    start = length.cumsum(-1) - length
    ordered = torch.sort(label, -1).values  # members of a cycle side by side
    place = torch.arange(indices.shape[-1], device=indices.device) - torch.gather(start, -1, ordered)
    return 2 * math.pi * place.double() / torch.gather(length, -1, ordered).double()
