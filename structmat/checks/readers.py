"""The member of a structure that few products of an operator determine, as a function of rows: ``z -> P z``."""

import math
from collections.abc import Callable, Sequence

import torch

from structmat.checks.operands import Operator
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.hankel import Hankel
from structmat.types.kronecker import Kronecker
from structmat.types.toeplitz import Toeplitz

__all__ = [
    "band_products",
    "block_products",
    "circulant_products",
    "diagonal_products",
    "hankel_products",
    "kronecker_products",
    "permutation_products",
    "toeplitz_products",
]

Products = Callable[[torch.Tensor], torch.Tensor]
_BASE = 16  # indices are read digit by digit, so that rounding of a sum of n numbers stays below one half


def toeplitz_products(op: Operator) -> Products:
    """From the first column and the first row."""
    m, n = op.shape
    column, row = op.forward(op.unit(0, n))[..., 0, :], op.transposed(op.unit(0, m))[..., 0, :]
    return Toeplitz(torch.cat((row[..., 1:].flip(-1), column), -1), n).linear


def hankel_products(op: Operator) -> Products:
    """From the first column and the last row."""
    m, n = op.shape
    column, row = op.forward(op.unit(0, n))[..., 0, :], op.transposed(op.unit(m - 1, m))[..., 0, :]
    return Hankel(torch.cat((column, row[..., 1:]), -1), n).linear


def circulant_products(op: Operator, f: complex) -> Products:
    """From the first column."""
    return Circulant(op.forward(op.unit(0, op.shape[1]))[..., 0, :], f).linear


def diagonal_products(op: Operator) -> Products:
    """From the sums of the rows."""
    return band_products(op, 0, 0)


def band_products(op: Operator, lower: int, upper: int) -> Products:
    """From products with the sums of every w-th unit vector, w the width of the band: in row i entry j of the band is
    met by the sum number j mod w, alone."""
    m, n = op.shape
    width = min(n, lower + upper + 1)
    columns = torch.arange(n, device=op.device)
    sums = (columns % width == torch.arange(width, device=op.device)[:, None]).to(torch.float64)
    y = op.forward(sums)  # (*b, width, m)
    first = torch.arange(m, device=op.device) - lower  # the band of row i is first .. first + width - 1

    def products(z: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.promote_types(y.dtype, z.dtype), device=op.device)
        for number in range(width):
            j = first + (number - first) % width if width < n else torch.full_like(first, number)
            inside = (j >= 0) & (j < n) & (j >= first) & (j <= first + lower + upper)
            values = z[..., j.clamp(0, n - 1)] * inside
            total = total + y[..., number, :][..., None, :] * values
        return total

    return products


def block_products(op: Operator, count: int) -> Products:
    """From products with the sums of the j-th unit vectors of all blocks."""
    m, n = op.shape
    p, q = m // count, n // count
    y = op.forward(torch.eye(q, dtype=torch.float64, device=op.device).repeat(1, count))  # (*b, q, m)
    return BlockDiagonal(y.unflatten(-1, (count, p)).movedim(-3, -1).contiguous()).linear


def permutation_products(op: Operator) -> Products:
    """From products with the digits of the indices; the identity where these name no permutation."""
    n = op.shape[1]
    places = torch.arange(n, device=op.device)
    count = max(1, math.ceil(math.log(max(2, n), _BASE)))
    digits = torch.stack([(places // _BASE**k) % _BASE for k in range(count)]).to(torch.float64)
    found = op.forward(digits)
    rounded = (found.real if found.is_complex() else found).round().clamp(0, _BASE - 1).to(torch.int64)
    powers = torch.tensor([_BASE**k for k in range(count)], device=op.device)
    indices = (rounded * powers[:, None]).sum(-2).clamp(0, n - 1)  # (*b, n)
    whole = (indices.sort(-1).values == places).all(-1)[..., None, None]

    def products(z: torch.Tensor) -> torch.Tensor:
        rows = z.expand(*indices.shape[:-1], *z.shape[-2:])
        picked = torch.gather(rows, -1, indices[..., None, :].expand(rows.shape))
        return torch.where(whole, picked, rows)

    return products


def kronecker_products(op: Operator, shapes: Sequence[tuple[int, int]]) -> Products:
    """From products with ``w_1 x .. x e_j x .. x w_L``, w Gaussian: ``A_l e_j`` times the other ``A_k w_k``.

    The other modes are contracted with the fibres, through the largest entry, of ``y = A (w_1 x .. x w_L)``, which are
    multiples of ``A_k w_k``: nothing cancels. The product of what was found is too large by a power of one number.
    """
    parts = [op.gaussian(1, q)[0] for _, q in shapes]
    rows_of = [p for p, _ in shapes]
    batch = op.matrix.shape[:-2]
    y = op.forward(_outer(parts)[None])[..., 0, :]
    place = y.abs().argmax(-1) if y.shape[-1] else torch.zeros(batch, dtype=torch.int64, device=op.device)
    tensor = y.reshape(*batch, *rows_of)
    fibres = [_fibre(tensor, place, rows_of, mode) for mode in range(len(shapes))]
    found = []
    for mode, (_, q) in enumerate(shapes):
        eye = torch.eye(q, dtype=torch.float64, device=op.device).to(parts[mode].dtype)
        x = torch.stack([_outer([*parts[:mode], e, *parts[mode + 1 :]]) for e in eye])
        z = op.forward(x).reshape(*batch, q, *rows_of)
        found.append(_contracted(z, fibres, mode).mT)  # A_l times prod_{k != l} u_k^H A_k w_k
    whole = _contracted(tensor[(..., None, *[slice(None)] * len(shapes))], fibres, None)[..., 0]
    size = torch.where(whole == 0, torch.ones_like(whole), whole)[..., None, None]
    zero = (whole == 0)[..., None, None]
    factors = [torch.where(zero, 0.0, f if k == 0 else f / size) for k, f in enumerate(found)]
    return Kronecker(tuple(Dense(f) for f in factors)).linear


def _outer(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    result = vectors[0]
    for v in vectors[1:]:
        result = (result[:, None] * v).flatten()
    return result


def _fibre(tensor: torch.Tensor, place: torch.Tensor, sizes: Sequence[int], mode: int) -> torch.Tensor:
    """The fibre of this mode through the entry number ``place (*b)``, ``(*b, size)``, of length 1."""
    step = math.prod(sizes[mode + 1 :])
    start = place - (place // step % sizes[mode]) * step
    index = start[..., None] + step * torch.arange(sizes[mode], device=tensor.device)
    fibre = torch.gather(tensor.flatten(-len(sizes)), -1, index)
    length = torch.linalg.vector_norm(fibre, dim=-1, keepdim=True)
    return fibre / torch.where(length > 0, length, 1.0)


def _contracted(z: torch.Tensor, fibres: Sequence[torch.Tensor], keep: int | None) -> torch.Tensor:
    """``(*b, q, m_1 .. m_L)`` with every mode but ``keep`` multiplied by the conjugate of its fibre and summed."""
    for mode in reversed(range(len(fibres))):
        if mode == keep:
            continue
        after = int(keep is not None and keep > mode)  # of the later modes only the kept one is left
        u = fibres[mode].conj()
        view = u.reshape(*u.shape[:-1], *[1] * (mode + 1), u.shape[-1], *[1] * after)
        z = (z * view).sum(z.ndim - 1 - after)
    return z
