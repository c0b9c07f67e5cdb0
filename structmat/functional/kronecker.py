"""Kronecker products by reshaping: ``(A_1 kron ... kron A_L) x``, vectors of products, and the nearest product.

Row index ``i_A m_B + i_B``, as ``torch.kron``. With X the row-major matrix of x, ``(A kron B) x`` is ``A X B^T``.
"""

import math
from collections.abc import Callable, Sequence

import torch

from structmat import backend

__all__ = ["Step", "apply", "apply_dense", "apply_left", "cheapest_order", "nearest", "outer", "rearranged"]

# One factor: its product with rows ``(..., n) -> (..., m)``, m, n, and whether it holds a batch (then it takes
# ``(*batch, k, n)`` alone).
Step = tuple[Callable[[torch.Tensor], torch.Tensor], int, int, bool]


def cheapest_order(sizes: Sequence[tuple[int, int]], costs: Sequence[float]) -> list[int]:
    """The order of applying factors m_i x n_i that does the least work, ``costs`` a row.

    Applying i before j costs ``c_i n_j + c_j m_i`` against ``c_j n_i + c_i m_j`` (over a common factor), so i goes
    first if ``(n_i - m_i) / c_i`` is larger: an exchange of neighbours never helps, hence the order is the best.
    Equal ones go from the first to the last, the order that copies nothing.
    """
    rate = [(n - m) / c if c else 0.0 for (m, n), c in zip(sizes, costs, strict=True)]
    return sorted(range(len(sizes)), key=lambda i: (-rate[i], i))


def apply(x: torch.Tensor, steps: Sequence[Step], order: Sequence[int], flat: bool = False) -> torch.Tensor:
    """``x (A_1 kron ... kron A_L)^T`` for rows x ``(*lead, r, N)`` or one row: each factor along its own axis.

    Work: ``sum_i N'/n_i cost_i``, N' the size at that time; memory: the largest size met. From the first factor to the
    last, without a batch, nothing is copied between the factors. ``flat``: the factors take ``(*batch, k, n)`` alone,
    batch or not (their solves do).
    """
    if list(order) == list(range(len(steps))) and not any(batched for *_, batched in steps):
        return _in_turn(x, steps)
    y = x[None] if x.ndim == 1 else x
    sizes = [n for _, _, n, _ in steps]
    for i in order:
        product, m, n, batched = steps[i]
        before, after = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
        rows = int(y.shape[-2])
        if after == 1:
            y = product(y.reshape(*y.shape[:-2], rows * before, n))
        else:
            z = y.reshape(*y.shape[:-2], rows * before, n, after).mT
            if batched or flat:
                z = product(z.reshape(*z.shape[:-3], rows * before * after, n))
                z = z.reshape(*z.shape[:-2], rows * before, after, m)
            else:
                z = product(z)
            y = z.mT
            y = y.reshape(*y.shape[:-3], rows, before * m * after)
        y = y.reshape(*y.shape[:-2], rows, before * m * after)
        sizes[i] = m
    return y[..., 0, :] if x.ndim == 1 else y


def _in_turn(x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """All leading axes of x are one, r, put last: ``(n_1, ..., n_L, r)``. A factor takes the first axis and leaves its
    own last, ``(n_2, ..., n_L, r, m_1)``, so that after all of them r is first and nothing was moved in between."""
    rows = math.prod(x.shape[:-1])
    total = math.prod([n for _, _, n, _ in steps]) * rows
    z = x.reshape(rows, x.shape[-1]).mT
    for product, m, n, _ in steps:
        rest = total // n if n else 0
        z = product(z.reshape(n, rest).mT)
        total = rest * m
    return z.reshape(*x.shape[:-1], math.prod([m for _, m, _, _ in steps]))


def apply_left(
    columns: torch.Tensor, factors: Sequence[torch.Tensor], product: Callable[..., torch.Tensor] = torch.matmul
) -> torch.Tensor:
    """``(A_1 kron ... kron A_L) X`` for columns X ``(N, k)`` or one column ``(N,)`` and the entries of factors without
    a batch: one (batched) matrix product each, from the first to the last, with no copy.

    Each product has at least k columns: good from about 8 on, and for k = 1, where the last is a product of rows.
    """
    one = columns.ndim == 1
    z, before, after = columns, 1, columns.numel()
    last = len(factors) - 1
    for i, factor in enumerate(factors):
        m, size = factor.shape
        after //= size
        if i == last and one:
            z = product(z.reshape(before, size), factor.mT)
        else:
            z = product(factor, z.reshape(size, after) if before == 1 else z.reshape(before, size, after))
        before *= m
    return z.reshape(before) if one else z.reshape(before, columns.shape[1])


def apply_dense(x: torch.Tensor, factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``x (A_1 kron ... kron A_L)^T`` for rows x ``(k, N)`` or ``(N,)``, by ``apply_left`` on the columns ``x.mT``;
    half precision is carried out in float32."""
    out = x.dtype
    if backend.compute_dtype(out) != out or any(f.dtype != out for f in factors):
        for f in factors:
            out = torch.promote_types(out, f.dtype)
        wide = backend.compute_dtype(out)
        x, factors = x.to(wide), [f.to(wide) for f in factors]
    if x.ndim == 1:
        return apply_left(x, factors).to(out)
    return (apply_left(x[0], factors)[None] if x.shape[0] == 1 else apply_left(x.mT, factors).mT).to(out)


def outer(vectors: Sequence[torch.Tensor], add: bool = False) -> torch.Tensor:
    """All products (or sums) of one entry of each vector ``(*batch, n_i)``, the last index running fastest."""
    found = vectors[0]
    for v in vectors[1:]:
        pair = found[..., :, None] + v[..., None, :] if add else found[..., :, None] * v[..., None, :]
        found = pair.flatten(-2)
    return found


def rearranged(dense: torch.Tensor, left: tuple[int, int], right: tuple[int, int]) -> torch.Tensor:
    """The Van Loan-Pitsianis rearrangement ``(*batch, m_A n_A, m_B n_B)``: rank one exactly for a product A kron B."""
    (ma, na), (mb, nb) = left, right
    grid = dense.reshape(*dense.shape[:-2], ma, mb, na, nb)
    return grid.transpose(-3, -2).reshape(*dense.shape[:-2], ma * na, mb * nb)


def nearest(dense: torch.Tensor, shapes: Sequence[tuple[int, int]], terms: int = 1) -> list[list[torch.Tensor]]:
    """``terms`` lists of factors whose Kronecker products sum to the matrix nearest to ``dense``.

    Two factors: the best in the Frobenius norm, the truncated SVD of the rearrangement; the error is its tail. More
    factors: the first is split off, then the next from what it leaves; the error is ``sqrt(sum of tails^2)``, at most
    ``sqrt(L - 1)`` times the best. The factors of a term have equal norms (the scale of each is free).
    Source: C. F. Van Loan and N. Pitsianis, Approximation with Kronecker products, 1993, section 2; the bound for
    more factors: I. V. Oseledets, Tensor-train decomposition, 2011, theorem 2.2 and corollary 2.4.
    """
    wide = dense.to(backend.compute_dtype(dense.dtype))
    if len(shapes) == 1:
        return [[wide]]
    rest = (math.prod([m for m, _ in shapes[1:]]), math.prod([n for _, n in shapes[1:]]))
    u, s, vh = torch.linalg.svd(rearranged(wide, shapes[0], rest), full_matrices=False)
    found = []
    count = len(shapes)
    for k in range(min(terms, int(s.shape[-1]))):
        first = u[..., :, k].reshape(*dense.shape[:-2], *shapes[0])
        left = vh[..., k, :].reshape(*dense.shape[:-2], *rest)
        others = nearest(left, shapes[1:])[0]
        size = s[..., k, None, None]
        for other in others:
            size = size * torch.linalg.vector_norm(other, dim=(-2, -1), keepdim=True)
        share = size ** (1 / count)
        units = [v / _positive(torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True)) for v in (first, *others)]
        found.append([v * share for v in units])
    return found


def _positive(size: torch.Tensor) -> torch.Tensor:
    """The norm, or 1 in place of 0."""
    return torch.where(size > 0, size, torch.ones_like(size))
