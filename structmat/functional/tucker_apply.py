"""Rows through a matricised Tucker tensor, along the cheapest sequence of contractions.

``y = x W^T`` with W the tensor seen as a matrix is a contraction of the row, the core and the factors. The sequence is
found by opt_einsum from the sizes alone, and kept by sizes: few rows meet the factors one by one, many rows may meet
the dense W. No intermediate is larger than the largest of the input, the output, the operands and the dense limit
squared, so W is never formed above the dense limit unless it is no larger than the rows.
"""

import functools
import math
from typing import NamedTuple

import opt_einsum
import torch

from structmat import backend
from structmat.functional.butterfly import constant, plain
from structmat.functional.tucker import Factors, Sizes

__all__ = ["Path", "Step", "path", "tucker_rows"]

_LETTERS = "abcdefghijklmnopqrstuvwxyABCDEFGHIJKLMNOPQRSTUVWXYZ"  # z counts the rows
_COMPILED_ROWS = 256  # under torch.compile one graph serves all numbers of rows: planned as for these
_EXACT = 8  # up to this many operands every sequence is searched


class Step(NamedTuple):
    """One contraction: which operands leave the list (the result joins its end), their letters, its letters."""

    takes: Sizes
    given: tuple[str, ...]
    result: str


class Path(NamedTuple):
    """The sequence of contractions, its flops for the rows planned for, and whether W is formed on the way."""

    steps: tuple[Step, ...]
    flops: float
    forms_weight: bool


def path(dims: Sizes, ranks: Sizes, rows: Sizes, columns: Sizes, count: int) -> Path:
    """The path for ``count`` rows (rounded up to a power of two)."""
    return _constant_path(plain(dims), plain(ranks), plain(rows), plain(columns), count)


@constant
def _constant_path(dims: Sizes, ranks: Sizes, rows: Sizes, columns: Sizes, count: int) -> Path:
    return _path(dims, ranks, rows, columns, 1 << max(0, min(count, 1 << 20) - 1).bit_length())


@functools.lru_cache(maxsize=4096)
def _path(dims: Sizes, ranks: Sizes, rows: Sizes, columns: Sizes, count: int) -> Path:
    order = len(dims)
    outer, inner = _LETTERS[:order], _LETTERS[order : 2 * order]
    terms = ["z" + "".join([outer[k] for k in columns]), inner, *(outer[k] + inner[k] for k in range(order))]
    result = "z" + "".join([outer[k] for k in rows])
    sizes = {"z": count, **dict(zip(outer, dims, strict=True)), **dict(zip(inner, ranks, strict=True))}
    most = max([math.prod([sizes[c] for c in term]) for term in (*terms, result)] + [backend.dense_limit() ** 2])
    shapes = [tuple([max(1, sizes[c]) for c in term]) for term in terms]
    found, _ = opt_einsum.contract_path(
        ",".join(terms) + "->" + result,
        *shapes,
        shapes=True,
        optimize="optimal" if len(terms) <= _EXACT else "greedy",
        memory_limit=most,
    )
    return _steps(terms, result, [tuple(sorted(takes)) for takes in found], sizes)


def _steps(terms: list[str], result: str, takes: list[Sizes], sizes: dict[str, int]) -> Path:
    left, steps, flops, forms = list(terms), [], 0.0, False
    for place, chosen in enumerate(takes):
        given = tuple([left[k] for k in chosen])
        left = [term for k, term in enumerate(left) if k not in chosen]
        needed = set("".join(left)) | set(result)
        letters = list(dict.fromkeys("".join(given)))
        kept = "".join([c for c in letters if c in needed])
        kept = result if place == len(takes) - 1 else kept
        flops += 2.0 * math.prod([sizes[c] for c in letters])
        forms = forms or ("z" not in kept and set(result[1:]) <= set(kept) and set(terms[0][1:]) <= set(kept))
        left.append(kept)
        steps.append(Step(chosen, given, kept))
    return Path(tuple(steps), flops, forms)


def tucker_rows(x: torch.Tensor, core: torch.Tensor, factors: Factors, rows: Sizes, columns: Sizes) -> torch.Tensor:
    """``x W^T`` for rows x ``(*batch, k, n)`` or one row: W has the modes ``rows`` as rows, ``columns`` as columns.

    Half and bfloat16 are carried out in float32. Cost: that of ``path``; for two modes and few rows
    ``2 k (n R_2 + R_1 R_2 + m R_1)`` flops.
    """
    dims, ranks = tuple([u.shape[-2] for u in factors]), tuple([u.shape[-1] for u in factors])
    out = torch.promote_types(x.dtype, core.dtype)
    wide = backend.compute_dtype(out)
    batched = core.ndim > len(dims) or any(u.ndim > 2 for u in factors)
    flat = x if batched and x.ndim > 1 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    count = _COMPILED_ROWS if torch.compiler.is_compiling() else max(1, flat.shape[-2])
    plan = path(dims, ranks, rows, columns, count)
    dots = "..." if batched else ""
    with backend.full_precision(x.device):
        opened = flat.to(wide).reshape(*flat.shape[:-1], *[dims[k] for k in columns])
        left = [opened, core.to(wide), *[u.to(wide) for u in factors]]
        for step in plan.steps:
            equation = ",".join([dots + term for term in step.given]) + "->" + dots + step.result
            product = torch.einsum(equation, *[left[k] for k in step.takes])
            left = [t for k, t in enumerate(left) if k not in step.takes]
            left.append(product)
        y = left[0]
        lead = y.shape[: y.ndim - len(rows)] if batched else flat.shape[:-1]
        y = y.reshape(*lead, math.prod([dims[k] for k in rows])).to(out)
    if x.ndim == 1:
        return y[..., 0, :]
    return y if batched else y.reshape(*x.shape[:-1], y.shape[-1])
