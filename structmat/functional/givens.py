"""Products of plane rotations, applied a layer of disjoint planes at a time.

``G(i, j, t)`` is the identity but for ``[i, i] = [j, j] = cos t``, ``[i, j] = -sin t``, ``[j, i] = sin t``. Rotations
in disjoint planes commute and act at once:

    y = c * x + s * x[partner],     c = cos t at i and j (1 elsewhere),  s = -sin t at i, sin t at j (0 elsewhere),

one pass over the vector a layer, however many planes it holds.
Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 5.1.8; the layers are those of
A. H. Sameh and D. J. Kuck, On stable parallel linear system solvers, 1978.
"""

import math
from typing import NamedTuple

import torch

from structmat import backend
from structmat.functional.transforms import nothing

__all__ = ["Planes", "Stage", "angles_of", "layers", "reflectors", "rotate_rows", "rotation_blocks", "stages"]

Planes = tuple[tuple[int, int], ...]


def layers(planes: Planes) -> list[list[int]]:
    """Which rotations act at once: lists of positions in ``planes``, in the order in which they are applied to a
    column, the last rotation first. Each goes into the first layer after those that touch its two indices."""
    depth: dict[int, int] = {}
    found: list[list[int]] = []
    for k in range(len(planes) - 1, -1, -1):
        i, j = planes[k]
        level = max(depth.get(i, 0), depth.get(j, 0))
        if level == len(found):
            found.append([])
        found[level].append(k)
        depth[i] = depth[j] = level + 1
    return found


def rotate_rows(x: torch.Tensor, angles: torch.Tensor, planes: Planes) -> torch.Tensor:
    """``x (G_1 ... G_k)^T`` for rows x ``(..., rows, n)`` or one row, angles ``(*b, k)``: real or complex rows.

    Half and bfloat16 are carried out in float32. Cost: 3 n flops a row and layer; the backward pass keeps one vector a
    row and layer.
    """
    out = torch.promote_types(x.dtype, angles.dtype)
    wide = backend.compute_dtype(out)
    turn = angles.to(backend.real_of(wide))
    y, n = x.to(wide), x.shape[-1]
    cos, sin = torch.cos(turn), torch.sin(turn)
    batched = x.ndim > 1 and angles.ndim > 1
    for layer in layers(planes):
        first, second = ([planes[k][side] for k in layer] for side in (0, 1))
        partner = list(range(n))
        for i, j in zip(first, second, strict=True):
            partner[i], partner[j] = j, i
        where = torch.tensor(first + second, device=x.device)
        which = torch.tensor(layer, device=x.device)
        c, s = cos.index_select(-1, which), sin.index_select(-1, which)
        keep = turn.new_ones(*turn.shape[:-1], n).index_copy(-1, where, torch.cat((c, c), -1))
        cross = turn.new_zeros(*turn.shape[:-1], n).index_copy(-1, where, torch.cat((-s, s), -1))
        if batched:
            keep, cross = keep[..., None, :], cross[..., None, :]
        y = keep * y + cross * y[..., torch.tensor(partner, device=x.device)]
    if not planes:
        lead = torch.broadcast_shapes(x.shape[: -1 if x.ndim == 1 else -2], angles.shape[:-1])
        y = y.expand(*lead, *x.shape[-2:]) + nothing((), wide, angles)
    return y.to(out)


def reflectors(angles: torch.Tensor, planes: Planes, n: int) -> torch.Tensor:
    """Two reflection vectors a rotation, ``(*b, 2 k, n)``: ``G(i, j, t) = H(cos(t/2) e_i + sin(t/2) e_j) H(e_i)``."""
    k = len(planes)
    half = angles / 2
    rows = torch.arange(k, device=angles.device) * 2
    first = torch.tensor([i for i, _ in planes], device=angles.device, dtype=torch.long)
    second = torch.tensor([j for _, j in planes], device=angles.device, dtype=torch.long)
    where = torch.cat((rows * n + first, rows * n + second, (rows + 1) * n + first))
    entries = torch.cat((torch.cos(half), torch.sin(half), torch.ones_like(half)), -1)
    flat = angles.new_zeros(*angles.shape[:-1], 2 * k * n).index_copy(-1, where, entries)
    return flat.unflatten(-1, (2 * k, n))


class Stage(NamedTuple):
    """Rotations in disjoint planes ``(a, a XOR 2^bit)``: which they are, the place of each pair among all pairs of this
    bit (ascending in a), and 1, or -1 where the plane is named ``(a XOR 2^bit, a)``."""

    bit: int
    which: tuple[int, ...]
    places: tuple[int, ...]
    signs: tuple[int, ...]


def stages(planes: Planes) -> tuple[Stage, ...] | None:
    """The rotations as stages of a butterfly of radix 2, the first to act first; None if the indices of some plane
    differ in more than one binary digit. Rotations of one layer commute, so those of each digit are a stage."""
    found = []
    for layer in layers(planes):
        bits: dict[int, list[int]] = {}
        for k in layer:
            difference = planes[k][0] ^ planes[k][1]
            if difference & (difference - 1):
                return None
            bits.setdefault(difference.bit_length() - 1, []).append(k)
        for bit, which in sorted(bits.items()):
            lower = [min(planes[k]) for k in which]
            places = tuple([(a >> (bit + 1) << bit) | (a & ((1 << bit) - 1)) for a in lower])
            signs = tuple([1 if planes[k][0] == a else -1 for k, a in zip(which, lower, strict=True)])
            found.append(Stage(bit, tuple(which), places, signs))
    return tuple(found)


def rotation_blocks(angles: torch.Tensor, stage: Stage, n: int) -> torch.Tensor:
    """The 2 x 2 rotations of all n / 2 pairs of a stage, ``(*b, n / 2, 2, 2)``; pairs without a rotation stay."""
    wide = angles.to(backend.compute_dtype(angles.dtype))
    which, places = (torch.tensor(numbers, device=angles.device) for numbers in (stage.which, stage.places))
    chosen = wide.index_select(-1, which) * wide.new_tensor(stage.signs)
    turn = wide.new_zeros(*wide.shape[:-1], n // 2).index_copy(-1, places, chosen)
    cos, sin = torch.cos(turn), torch.sin(turn)
    return torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2)).to(angles.dtype)


def angles_of(dense: torch.Tensor) -> tuple[torch.Tensor, Planes]:
    """Angles and planes of ``G_1 ... G_k = Q`` for a real rotation Q ``(n, n)``, ``k <= n (n - 1) / 2``, in float64.

    Column by column each rotation makes one entry zero; entries that are zero to eps already need none, so a block
    diagonal Q gives block diagonal planes. For a Q of determinant -1 the product differs from Q in the sign of its last
    column. Reads values; no gradient.
    """
    n, floor = dense.shape[-1], torch.finfo(dense.dtype).eps
    work = dense.detach().to(torch.float64).cpu().numpy().copy()
    angles: list[float] = []
    planes: list[tuple[int, int]] = []

    def turn(i: int, j: int, angle: float) -> None:
        top, bottom, c, s = work[i].copy(), work[j].copy(), math.cos(angle), math.sin(angle)
        work[i], work[j] = c * top + s * bottom, c * bottom - s * top  # G(i, j, angle)^T from the left
        angles.append(angle)
        planes.append((i, j))

    for column in range(n - 1):
        for row in range(column + 1, n):
            if abs(work[row, column]) > floor:
                turn(column, row, math.atan2(work[row, column], work[column, column]))
        if work[column, column] < 0:  # nothing but the pivot, and it is -1
            turn(column, column + 1, math.pi)
    return torch.tensor(angles, dtype=torch.float64), tuple(planes)
