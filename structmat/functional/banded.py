"""Banded matrices by their diagonals: products, row form, block LU with partial pivoting. Rows in, rows out.

``bands[r, j] = A[j + r - u, j]`` for u superdiagonals, l + u + 1 rows r (LAPACK's band storage, scipy's ``ab``); the
corners that lie outside the matrix are never read. The row form ``rows[r, i] = A[i, i + r - l]`` is the band storage of
the transpose, with zeros in its corners.
Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 4.3.
"""

import torch

from structmat import backend

__all__ = ["add_bands", "block_lu", "clean", "entries", "linear", "multiply", "nearest", "spread", "turned"]


def turned(bands: torch.Tensor, upper: int) -> torch.Tensor:
    """The band storage of the transpose (l superdiagonals), its corners zero: ``(*b, w, n) -> (*b, w, n)``."""
    w, n = bands.shape[-2:]
    lower = w - 1 - upper
    padded = torch.nn.functional.pad(bands.flip(-2), (lower, upper))  # row r has A[j + l - r, j] at place j + l
    flat = torch.nn.functional.pad(padded.flatten(-2), (0, w))
    return flat.unflatten(-1, (w, n + w))[..., :n]  # row r shifted left by r


def clean(bands: torch.Tensor, upper: int) -> torch.Tensor:
    """The same bands with zeros in the corners."""
    w, n = bands.shape[-2:]
    return torch.where(
        _inside(w, n, upper, bands.device), bands, torch.zeros((), dtype=bands.dtype, device=bands.device)
    )


def _inside(w: int, n: int, upper: int, device: torch.device) -> torch.Tensor:
    row = torch.arange(n, device=device) + torch.arange(w, device=device)[:, None] - upper
    return (row >= 0) & (row < n)


def linear(bands: torch.Tensor, x: torch.Tensor, upper: int) -> torch.Tensor:
    """``x A^T``: x ``(..., k, n)`` or one row; one product of vectors a diagonal, 2 n (l + u + 1) flops a row."""
    w, n = bands.shape[-2:]
    out = torch.promote_types(bands.dtype, x.dtype)
    wide = backend.compute_dtype(out)
    rows = turned(bands.to(wide), upper)
    if bands.ndim > 2 and x.ndim > 1:
        rows = rows[..., None, :, :]
    padded = torch.nn.functional.pad(x.to(wide), (w - 1 - upper, upper))
    y = rows[..., 0, :] * padded[..., :n]
    for r in range(1, w):
        y = y + rows[..., r, :] * padded[..., r : r + n]
    return y.to(out)


def entries(bands: torch.Tensor, upper: int) -> torch.Tensor:
    """The dense matrix ``(*b, n, n)``."""
    w, n = bands.shape[-2:]
    i = torch.arange(n, device=bands.device)
    row = i[:, None] - i + upper
    picked = bands[..., row.clamp(0, w - 1), i.expand(n, n)]
    return torch.where((row >= 0) & (row < w), picked, torch.zeros((), dtype=bands.dtype, device=bands.device))


def nearest(dense: torch.Tensor, lower: int, upper: int) -> torch.Tensor:
    """The bands of a dense matrix."""
    n = int(dense.shape[-1])
    j = torch.arange(n, device=dense.device)
    row = j + torch.arange(lower + upper + 1, device=dense.device)[:, None] - upper
    picked = dense[..., row.clamp(0, max(0, n - 1)), j.expand(row.shape)]
    return torch.where((row >= 0) & (row < n), picked, torch.zeros((), dtype=dense.dtype, device=dense.device))


def spread(bands: torch.Tensor, upper: int, lower: int, wanted: int) -> torch.Tensor:
    """The same matrix with ``wanted`` superdiagonals and ``lower`` subdiagonals; diagonals left out are dropped."""
    w = int(bands.shape[-2])
    return torch.nn.functional.pad(bands, (0, 0, wanted - upper, lower - (w - 1 - upper)))


def add_bands(a: torch.Tensor, upper: int, b: torch.Tensor, other: int) -> tuple[torch.Tensor, int]:
    """A + B and its superdiagonals."""
    lower, most = max(a.shape[-2] - 1 - upper, b.shape[-2] - 1 - other), max(upper, other)
    return spread(a, upper, lower, most) + spread(b, other, lower, most), most


def multiply(a: torch.Tensor, upper: int, b: torch.Tensor, other: int) -> tuple[torch.Tensor, int]:
    """A B and its superdiagonals: bandwidths add (up to n - 1); 2 n w_a w_b flops."""
    n, wa, wb = int(a.shape[-1]), int(a.shape[-2]), int(b.shape[-2])
    padded = torch.nn.functional.pad(clean(a, upper), (other, wb - 1 - other))
    weights = clean(b, other)
    total: torch.Tensor | None = None
    for s in range(wb):  # column k of B has its entry at row k + s - u_B
        part = padded[..., s : s + n] * weights[..., s, None, :]
        part = torch.nn.functional.pad(part, (0, 0, s, wb - 1 - s))
        total = part if total is None else total + part
    assert total is not None
    most, least = (max(0, min(u, n - 1)) for u in (upper + other, wa + wb - 2 - upper - other))
    return spread(total, upper + other, least, most), most


def block_lu(bands: torch.Tensor, upper: int, y: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """LU with partial pivoting, window after window in plain torch: pivots, parities of the exchanges, and x.

    Returns the n pivots ``(*b, n)``, the sign of the permutation ``(*b)`` and, for columns y ``(*b, n, k)``, the
    solution (else an empty tensor). All of it differentiable to any order on any device; the pivots' order is a
    constant of differentiation. 2 n b (l + b + u) flops for windows of b = max(l + u, 64) columns (n, if that is less).
    """
    w, n = (int(s) for s in bands.shape[-2:])
    lower = w - 1 - upper
    b = max(lower + upper, min(n, 64))
    steps = -(-n // b)
    rows = turned(bands, upper)
    size = steps * b + lower  # the identity goes on behind the matrix, zero rows behind that
    fill = torch.nn.functional.pad(rows, (0, size - n))
    if steps * b > n:
        tail = torch.zeros(w, size, dtype=rows.dtype, device=rows.device)
        tail[lower, n : steps * b] = 1
        fill = fill + tail
    columns = y if y is not None else bands.new_zeros(*bands.shape[:-2], n, 0)
    lead = torch.broadcast_shapes(bands.shape[:-2], columns.shape[:-2])
    right = torch.nn.functional.pad(columns.expand(*lead, *columns.shape[-2:]), (0, 0, 0, size - n))
    width = b + lower + upper
    carry = _window(fill[..., :lower], lower, width, skip=lower)
    laid = _window(fill[..., lower:].unflatten(-1, (steps, b)).movedim(-2, -3), b, width)
    windows = laid.unbind(-3)  # not slices one by one, each of which has a gradient of full size
    beside, *behind_these = right.split([lower, *(b for _ in range(steps))], -2)
    pivots, sign, uppers, tops = [], torch.ones_like(bands[..., 0, 0]), [], []
    for k in range(steps):
        kept = carry.expand(*lead, lower, width)
        window = torch.cat((kept, windows[k].expand(*lead, b, width)), -2)
        lu, order, _ = torch.linalg.lu_factor_ex(window[..., :b])
        permutation, low, up = torch.lu_unpack(lu, order)
        swaps = (order != torch.arange(1, b + 1, device=order.device, dtype=order.dtype)).sum(-1)
        sign = sign * (1 - 2 * (swaps % 2)).to(sign.dtype)
        behind = window[..., b:].expand(*lead, lower + b, lower + upper)
        moved = permutation.mT @ torch.cat((behind, torch.cat((beside, behind_these[k]), -2)), -1)
        top = torch.linalg.solve_triangular(low[..., :b, :], moved[..., :b, :], upper=False, unitriangular=True)
        rest = moved[..., b:, :] - low[..., b:, :] @ top
        carry = torch.nn.functional.pad(rest[..., : lower + upper], (0, b))
        beside = rest[..., lower + upper :]
        pivots.append(torch.diagonal(up, dim1=-2, dim2=-1))
        uppers.append(up)
        tops.append(top)
    return torch.cat(pivots, -1)[..., :n], sign, _back(uppers, tops, lower + upper, n)


def _window(rows: torch.Tensor, count: int, width: int, skip: int = 0) -> torch.Tensor:
    """``count`` matrix rows, each w numbers, laid out with the first one starting at column ``-skip`` of the window."""
    w = int(rows.shape[-2])
    laid = torch.nn.functional.pad(rows.mT, (0, count + width + skip))  # row i: its w entries, zeros behind
    total = w + count + width + skip
    flat = laid.flatten(-2)[..., : count * (total - 1)] if count else laid.flatten(-2)
    return flat.unflatten(-1, (count, total - 1))[..., skip : skip + width]


def _back(uppers: list[torch.Tensor], tops: list[torch.Tensor], reach: int, n: int) -> torch.Tensor:
    """Back substitution: the right-hand sides stand behind ``reach`` columns of each top."""
    found: list[torch.Tensor] = []
    after: torch.Tensor | None = None
    for up, top in zip(reversed(uppers), reversed(tops), strict=True):
        right = top[..., reach:]
        if after is not None:
            right = right - top[..., :reach] @ after[..., :reach, :]
        x = torch.linalg.solve_triangular(up, right, upper=True)
        found.append(x)
        after = x  # reach <= b
    return torch.cat(list(reversed(found)), -2)[..., :n, :]
