"""Tensors ``core x_1 U_1 x_2 ... x_N U_N``: forming them, and the algebra that stays in the format.

Throughout, the core is ``(*batch, R_1, ..., R_N)`` and factor k is ``(*batch, D_k, R_k)``; batches broadcast. Every
function is a composition of recorded torch operations, so derivatives of all orders and all transforms follow.

References: L. R. Tucker, Some mathematical notes on three-mode factor analysis, 1966; T. G. Kolda and B. W. Bader,
Tensor decompositions and applications, 2009, section 4; L. De Lathauwer et al., A multilinear SVD, 2000.
"""

import functools
import itertools
import math

import torch

from structmat.functional.butterfly import constant, plain

__all__ = [
    "Factors",
    "Sizes",
    "balanced",
    "diagonal_core",
    "expand",
    "expansion_flops",
    "expansion_order",
    "fitted",
    "hadamard",
    "inner",
    "mode_product",
    "orthogonalised",
    "summed",
    "unfolding",
]

Sizes = tuple[int, ...]
Factors = tuple[torch.Tensor, ...]
_SMALL_TRAIL = 16  # a batch of products whose result has few columns runs this many columns slower
_NUMBER = 8.0  # multiply-adds that cost as much as one number read or written
_SEARCHED = 5  # orders of up to this many modes are compared one by one


def mode_product(tensor: torch.Tensor, matrix: torch.Tensor, mode: int, order: int) -> torch.Tensor:
    """``tensor x_mode matrix``: ``(*batch, ..., r, ...)`` and ``(*batch, d, r)`` to ``(*batch, ..., d, ...)``.

    The tensor is read in place as ``(before, r, after)``: one product for the first and the last mode, a batch of
    products for one between (or one product between two moves, where those of the batch would be small).
    2 before d r after flops.
    """
    lead, sizes = tensor.shape[: tensor.ndim - order], list(tensor.shape[tensor.ndim - order :])
    before, after = math.prod(sizes[:mode]), math.prod(sizes[mode + 1 :])
    r, sizes[mode] = sizes[mode], matrix.shape[-2]
    if not lead and matrix.ndim == 2:
        return _one_mode(tensor, matrix, before, r, after).reshape(sizes)
    if after == 1:
        found = tensor.reshape(*lead, before, r) @ matrix.mT
    elif before == 1:
        found = matrix @ tensor.reshape(*lead, r, after)
    else:
        found = matrix[..., None, :, :] @ tensor.reshape(*lead, before, r, after)
    whole = found.shape[: found.ndim - (2 if after == 1 or before == 1 else 3)]
    return found.reshape(*whole, *sizes)


def expansion_order(dims: Sizes, ranks: Sizes) -> Sizes:
    """The order of modes in which expanding a core is cheapest, by flops and by numbers moved.

    Modes that hardly grow come first, and the last product, which writes the whole tensor, is one of the first or the
    last mode where that is a single matrix product (for a convolution of 256 channels this is three times as fast as
    the order of the modes).
    """
    return _constant_order(plain(dims), plain(ranks))


@constant
def _constant_order(dims: Sizes, ranks: Sizes) -> Sizes:
    return _expansion_order(dims, ranks)


@functools.lru_cache(maxsize=4096)
def _expansion_order(dims: Sizes, ranks: Sizes) -> Sizes:
    modes = range(len(dims))
    if len(dims) > _SEARCHED:
        return tuple(sorted(modes, key=lambda k: (k == 0, dims[k] / max(1, ranks[k]))))
    return min(itertools.permutations(modes), key=lambda order: _expansion_cost(order, dims, ranks))


def _expansion_cost(order: Sizes, dims: Sizes, ranks: Sizes) -> float:
    sizes, cost = list(ranks), 0.0
    for mode in order:
        before, after = math.prod(sizes[:mode]), math.prod(sizes[mode + 1 :])
        slow = 1.0 if before == 1 or after == 1 else 1.0 + _SMALL_TRAIL / max(1, after)
        cost += before * after * (dims[mode] * sizes[mode] * slow + _NUMBER * (dims[mode] + sizes[mode]))
        sizes[mode] = dims[mode]
    return cost


def expansion_flops(dims: Sizes, ranks: Sizes) -> float:
    """The flops of ``expand``."""
    sizes, flops = list(ranks), 0.0
    for mode in expansion_order(dims, ranks):
        flops += 2.0 * math.prod(sizes) * dims[mode]
        sizes[mode] = dims[mode]
    return flops


def expand(core: torch.Tensor, factors: Factors) -> torch.Tensor:
    """The tensor ``(*batch, D_1, ..., D_N)``, mode by mode in the cheapest order."""
    order = len(factors)
    dims, ranks = tuple([u.shape[-2] for u in factors]), tuple([u.shape[-1] for u in factors])
    modes = expansion_order(dims, ranks)
    tensor, now = core, list(ranks)
    if core.ndim > order or any(u.ndim > 2 for u in factors):
        for mode in modes:
            tensor = mode_product(tensor, factors[mode], mode, order)
        return tensor
    for mode in modes:  # as mode_product, and shapes are put together once, at the end
        u, before, after = factors[mode], math.prod(now[:mode]), math.prod(now[mode + 1 :])
        tensor = _one_mode(tensor, u, before, now[mode], after)
        now[mode] = dims[mode]
    return tensor.reshape(now)


def _one_mode(tensor: torch.Tensor, u: torch.Tensor, before: int, r: int, after: int) -> torch.Tensor:
    """The mode product of one tensor read as ``(before, r, after)``, in any shape that reads as its result."""
    if after == 1:
        return torch.mm(tensor.reshape(before, r), u.t())
    if before == 1:
        return torch.mm(u, tensor.reshape(r, after))
    if after <= _SMALL_TRAIL:  # small products of a batch cost more than two moves
        moved = tensor.reshape(before, r, after).transpose(0, 1).reshape(r, before * after)
        return torch.mm(u, moved).reshape(u.shape[0], before, after).transpose(0, 1)
    return u @ tensor.reshape(before, r, after)


def unfolding(tensor: torch.Tensor, mode: int, order: int) -> torch.Tensor:
    """``T_(k)``: mode k as rows, the other modes ascending as columns in C order, ``(*batch, D_k, product)``."""
    lead = tensor.ndim - order
    moved = tensor.movedim(lead + mode, lead)
    rest = math.prod(moved.shape[lead + 1 :])
    return moved.reshape(*moved.shape[: lead + 1], rest)


def orthogonalised(core: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, Factors]:
    """The same tensor with orthonormal columns in every factor: ``U_k = Q_k R_k``, the R_k go into the core.

    (D_k R_k^2 flops a mode.) The QR has a gradient only where the columns of U_k are independent.
    """
    pieces = [torch.linalg.qr(u) for u in factors]
    return expand(core, tuple([r for _, r in pieces])), tuple([q for q, _ in pieces])


def inner(core: torch.Tensor, factors: Factors, other: torch.Tensor, others: Factors) -> torch.Tensor:
    """``<S, T> = sum conj(S) T = <G, H x_k U_k^H V_k>``, of shape ``batch``."""
    crossed = expand(other, tuple([u.mH @ v for u, v in zip(factors, others, strict=True)]))
    product = core.conj() * crossed
    modes = tuple(range(-len(factors), 0))
    return product.sum(modes)


def summed(core: torch.Tensor, factors: Factors, other: torch.Tensor, others: Factors) -> tuple[torch.Tensor, Factors]:
    """``S + T``: cores on a block diagonal, factors side by side; the ranks add."""
    order = len(factors)
    mine, theirs = core.shape[core.ndim - order :], other.shape[other.ndim - order :]
    after = [size for r in reversed(theirs) for size in (0, r)]
    ahead = [size for r in reversed(mine) for size in (r, 0)]
    whole = torch.nn.functional.pad(core, after) + torch.nn.functional.pad(other, ahead)
    return whole, tuple([_beside(u, v) for u, v in zip(factors, others, strict=True)])


def _beside(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    lead = torch.broadcast_shapes(u.shape[:-2], v.shape[:-2])
    return torch.cat((u.expand(*lead, *u.shape[-2:]), v.expand(*lead, *v.shape[-2:])), -1)


def hadamard(
    core: torch.Tensor, factors: Factors, other: torch.Tensor, others: Factors
) -> tuple[torch.Tensor, Factors]:
    """``S * T`` entry by entry: the Kronecker product of the cores, row by row that of the factors; ranks multiply."""
    order = len(factors)
    mine, theirs = core.shape[core.ndim - order :], other.shape[other.ndim - order :]
    left = core.reshape(*core.shape[: core.ndim - order], *(s for r in mine for s in (r, 1)))
    right = other.reshape(*other.shape[: other.ndim - order], *(s for r in theirs for s in (1, r)))
    product = left * right
    whole = product.reshape(
        *product.shape[: product.ndim - 2 * order], *(a * b for a, b in zip(mine, theirs, strict=True))
    )
    rows = [u[..., :, None] * v[..., None, :] for u, v in zip(factors, others, strict=True)]
    return whole, tuple([w.flatten(-2) for w in rows])


def fitted(core: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, Factors]:
    """The same tensor with legal ranks: ``R_k <= D_k`` and ``R_k <= product of the other R_j``; exact.

    A factor with more columns than rows goes into the core and leaves the identity; a core unfolding with more rows
    than columns goes into its factor and leaves the identity there.
    """
    order, kept = len(factors), list(factors)
    for k, u in enumerate(kept):
        if u.shape[-1] > u.shape[-2]:
            core = mode_product(core, u, k, order)
            kept[k] = torch.eye(u.shape[-2], dtype=u.dtype, device=u.device)
    while True:
        ranks = core.shape[core.ndim - order :]
        rest = [math.prod(ranks[:k]) * math.prod(ranks[k + 1 :]) for k in range(order)]
        wide = next((k for k in range(order) if ranks[k] > rest[k]), None)
        if wide is None:
            return core, tuple(kept)
        kept[wide] = kept[wide] @ unfolding(core, wide, order)
        eye = torch.eye(rest[wide], dtype=core.dtype, device=core.device)
        others = [r for k, r in enumerate(ranks) if k != wide]
        core = eye.reshape(rest[wide], *others).movedim(0, wide)


def balanced(core: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, Factors]:
    """The same tensor with core and factors of one Frobenius norm, their geometric mean; unchanged where one is 0."""
    order = len(factors)
    sizes = [_length(core, order), *(_length(u, 2) for u in factors)]
    lead = torch.broadcast_shapes(*(s.shape for s in sizes))
    logs = torch.stack([s.expand(lead).clamp_min(torch.finfo(s.dtype).tiny).log() for s in sizes])
    shift = logs.mean(0) - logs
    zero = torch.stack([s.expand(lead) == 0 for s in sizes]).any(0)
    scale = torch.where(zero, torch.zeros_like(shift), shift).exp()
    parts = [scale[0].reshape(*lead, *[1] * order) * core]
    parts += [s.reshape(*lead, 1, 1) * u for s, u in zip(scale[1:].unbind(), factors, strict=True)]
    return parts[0], tuple(parts[1:])


def _length(tensor: torch.Tensor, dims: int) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor, dim=tuple(range(-dims, 0)))


def diagonal_core(weights: torch.Tensor, order: int) -> torch.Tensor:
    """``(*batch, R, ..., R)`` with the weights ``(*batch, R)`` where all indices agree: the core of a CP form."""
    tensor = weights
    for _ in range(order - 1):  # one more mode, equal to the last
        tensor = torch.diag_embed(tensor, dim1=-2, dim2=-1)
    return tensor
