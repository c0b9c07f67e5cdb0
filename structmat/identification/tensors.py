"""Tensors: Tucker formats of many ranks from one higher-order singular value decomposition."""

import itertools
import math
from collections.abc import Iterator
from functools import partial

import torch

from structmat.functional import tucker_decompose as fd
from structmat.functional.tucker import mode_product, unfolding
from structmat.identification.work import Trial, Work
from structmat.types.tucker import Tucker

__all__ = ["near_tucker", "tucker_formats"]

_LEVELS = (0.5, 0.3, 0.1, 0.03, 1e-2, 1e-3, 1e-4, 1e-6)
_FRACTIONS = (2, 4, 8, 16)

Ranks = tuple[int, ...]


def near_tucker(tensor: torch.Tensor, ranks: Ranks) -> Tucker:
    """The truncated higher-order singular value decomposition."""
    found: Tucker = Tucker.decompose(tensor, ranks, method="hosvd").tensor
    return found


def tucker_formats(work: Work) -> Iterator[Trial]:
    """Formats whose ranks reach given errors, or are given fractions of the sizes.

    With all singular vectors, ``core = T x_k U_k^H`` has the norm of T, and truncation to ranks r loses exactly the
    part of it outside of the leading r_1 x ... x r_N block.
    """
    tensor, order = work.entries, work.entries.ndim
    core, tails = tensor, []
    for k in range(order):
        u, s = fd.leading(unfolding(tensor, k, order))
        core = mode_product(core, u.mH, k, order)
        squares = torch.flip(torch.cumsum(torch.flip(s.double() ** 2, (-1,)), -1), (-1,))
        tails.append(torch.cat((squares.sqrt(), squares.new_zeros(1))).tolist())
    dims = tuple(int(d) for d in tensor.shape)
    for ranks in sorted(_rank_choices(dims, tails, work)):
        count = math.prod(ranks) + sum(d * r for d, r in zip(dims, ranks, strict=True))
        if work.fits(count):
            error = work.relative(_outside(core, ranks))
            yield Trial("Tucker", {"ranks": ranks}, count, error, partial(near_tucker, ranks=ranks))


def _rank_choices(dims: Ranks, tails: list[list[float]], work: Work) -> set[Ranks]:
    """For each error the least ranks whose tails share it; for each fraction that part of each size; rank one."""
    order = len(dims)
    found = {(1,) * order}
    for level in (*_LEVELS, work.limit):
        allowed = level / math.sqrt(order) * work.norm
        found.add(tuple(max(1, next(r for r, tail in enumerate(t) if tail <= allowed)) for t in tails))
    top = [max(1, next(r for r, tail in enumerate(t) if tail <= work.limit * work.norm)) for t in tails]
    for part, small in itertools.product(_FRACTIONS, (False, True)):
        # a mode of a few entries, such as those of a convolution's kernel, keeps them all, or is cut as the others
        ranks = (t if t <= 3 and not small else min(t, max(1, d // part)) for d, t in zip(dims, top, strict=True))
        found.add(tuple(ranks))
    return {_consistent(ranks) for ranks in found}


def _consistent(ranks: Ranks) -> Ranks:
    """No rank above the product of the others, which would only waste numbers."""
    total = list(ranks)
    for k in range(len(total)):
        total[k] = min(total[k], math.prod(total[:k]) * math.prod(total[k + 1 :]))
    return tuple(total)


def _outside(core: torch.Tensor, ranks: Ranks) -> float:
    """The norm of the core outside of its leading block, summed over disjoint slabs: no difference of large numbers."""
    total, left = 0.0, core
    for k, r in enumerate(ranks):
        beyond = left.narrow(k, r, left.shape[k] - r)
        total += float(torch.linalg.vector_norm(beyond)) ** 2 if beyond.numel() else 0.0
        left = left.narrow(k, 0, r)
    return math.sqrt(total)
