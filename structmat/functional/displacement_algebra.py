"""Generators of sums, products, transposes, inverses and blocks: index logic alone, without a transform or a division.

A has the operator (e, f) and the generators G, H ``(*b, n, r)``: ``Z_e A - A Z_f = G H^T``. Products with A that a
formula needs are passed in, so each function is exact in any commutative ring; the tests run them over Z_p.

    A^T                 (1/f, 1/e)   (Z_{1/f} H, Z_{1/e}^T G)                                rank r
    A, other operator   (e', f')     G, (e' - e) e_0, (f - f') A e_0;  H, A^T e_{n-1}, e_{n-1}    r + 2
    A B, (e, f)(f', g)  (e, g)       G_A, A G_B, (f - f') A e_0;  B^T H_A, H_B, B^T e_{n-1}      r + s + 1
    A^{-1}              (f, e)       (-A^{-1} G, A^{-T} H)                                   r
    A[a:b, a:b]         (e', f')     the rows a to b of G and H, and two more                  r + 2

Source: V. Y. Pan, Structured Matrices and Polynomials, 2001, sections 1.5 and 4.3 (Theorems 1.5.1 to 1.5.6); each row
was derived anew for this convention, where H enters by plain transpose.
"""

import torch

__all__ = [
    "Pair",
    "beside",
    "block",
    "changed",
    "identity",
    "product",
    "shift",
    "shift_transposed",
    "stein",
    "toeplitz",
    "transposed",
    "triangular",
    "unit",
]

Pair = tuple[torch.Tensor, torch.Tensor]


def unit(like: torch.Tensor, position: int) -> torch.Tensor:
    """The unit vector as one column ``(n, 1)``, beside columns ``(*b, n, r)``; position -1 is the last."""
    n = like.shape[-2]
    column = torch.zeros(n, 1, dtype=like.dtype, device=like.device)
    if n:
        column[position] = 1
    return column


def shift(v: torch.Tensor, e: complex) -> torch.Tensor:
    """``Z_e v`` for columns ``(*b, n, r)``: one down, the last comes first, times e."""
    return torch.cat((v[..., -1:, :] * e, v[..., :-1, :]), -2)


def shift_transposed(v: torch.Tensor, e: complex) -> torch.Tensor:
    """``Z_e^T v``: one up, the first comes last, times e."""
    return torch.cat((v[..., 1:, :], v[..., :1, :] * e), -2)


def beside(*columns: torch.Tensor) -> torch.Tensor:
    """Columns side by side, batches broadcast, dtypes promoted."""
    lead = torch.broadcast_shapes(*(c.shape[:-2] for c in columns))
    common = columns[0].dtype
    for c in columns[1:]:
        common = torch.promote_types(common, c.dtype)
    return torch.cat([c.to(common).expand(*lead, *c.shape[-2:]) for c in columns], -1)


def _pair(left: list[torch.Tensor], right: list[torch.Tensor]) -> Pair:
    g, h = beside(*left), beside(*right)
    common = torch.promote_types(g.dtype, h.dtype)
    return g.to(common), h.to(common)


def _times(columns: torch.Tensor, number: complex) -> torch.Tensor:
    return columns if number == 1 else columns * number


def transposed(left: torch.Tensor, right: torch.Tensor, over_e: complex, over_f: complex) -> Pair:
    """Of ``A^T``, operator (1/f, 1/e): ``over_e`` is 1/e, ``over_f`` is 1/f."""
    return _pair([shift(right, over_f)], [shift_transposed(left, over_e)])


def changed(
    left: torch.Tensor,
    right: torch.Tensor,
    old: tuple[complex, complex],
    new: tuple[complex, complex],
    first: torch.Tensor,
    last: torch.Tensor,
) -> Pair:
    """Of the same A under another operator, also one with e' = f': ``first`` is ``A e_0``, ``last`` is
    ``A^T e_{n-1}``, both as columns ``(*b, n, 1)``. One more column for each number that changes."""
    (e, f), (e2, f2) = old, new
    g, h = [left], [right]
    if e2 != e:
        g.append(_times(unit(left, 0), e2 - e))
        h.append(last)
    if f2 != f:
        g.append(_times(first, f - f2))
        h.append(unit(right, -1))
    return _pair(g, h)


def product(
    a: Pair,
    b: Pair,
    gap: complex,
    applied: torch.Tensor,
    pulled: torch.Tensor,
    first: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
) -> Pair:
    """Of ``A B``, A with (e, f) and B with (f', g): operator (e, g). ``gap`` is ``f - f'``, ``applied`` ``A G_B``,
    ``pulled`` ``B^T H_A``, and where the gap is not zero ``first`` is ``A e_0`` and ``last`` ``B^T e_{n-1}``."""
    g, h = [a[0], applied], [pulled, b[1]]
    if gap != 0:
        assert first is not None and last is not None
        g.append(_times(first, gap))
        h.append(last)
    return _pair(g, h)


def identity(like: torch.Tensor, gap: complex) -> Pair:
    """Of I, any operator with ``e - f = gap``: one column; like are columns ``(*b, n, r)``."""
    return _pair([_times(unit(like, 0), gap)], [unit(like, -1)])


def toeplitz(diagonals: torch.Tensor, e: complex, f: complex) -> Pair:
    """Of the Toeplitz matrix with ``A[i, j] = t[i - j + n - 1]``, t ``(*b, 2n - 1)``, for any e and f, equal ones
    too: two columns.

    ``G = [e_0, c], H = [row, e_{n-1}]``, ``row_j = e t_{n-1-j} - t_{-1-j}``, ``c_i = t_{i-n} - f t_i``, with 0 for
    ``t_{-n}``, which no entry holds.
    """
    n = (diagonals.shape[-1] + 1) // 2
    lower = diagonals[..., n - 1 :]  # t_0 .. t_{n-1}
    upper = torch.cat((torch.zeros_like(lower[..., :1]), diagonals[..., : n - 1]), -1)  # t_{-n} .. t_{-1}
    row = (_times(lower, e) - upper).flip(-1)
    column = upper - _times(lower, f)
    one = torch.ones_like(row[..., None])
    zero = torch.zeros_like(one[..., 1:, :])
    first, last = torch.cat((one[..., :1, :], zero), -2), torch.cat((zero, one[..., :1, :]), -2)
    return _pair([first, column[..., None]], [row[..., None], last])


def stein(left: torch.Tensor, right: torch.Tensor, over_f: complex) -> Pair:
    """Of the A with ``A - Z_e A Z_f^T = G H^T``, f not zero, under the operator (e, 1/f); ``over_f`` is 1/f."""
    return _pair([-left], [shift_transposed(right, over_f)])


def triangular(
    left: torch.Tensor,
    right: torch.Tensor,
    e: complex,
    f: complex,
    last_column: torch.Tensor,
    last_row: torch.Tensor,
) -> Pair:
    """Of ``A = sum_j L(g_j) L(h_j)^T``, that is ``A - Z_0 A Z_0^T = G H^T``, under the operator (e, f).

    Multiplying ``A - Z_0 A Z_0^T`` by ``Z_f`` gives ``Z_e A - A Z_f = -G (Z_0^T H)^T + e e_0 (A^T e_{n-1})^T +
    (Z_0 A e_{n-1} - f A e_0) e_{n-1}^T``, where row 0 of A is that of ``G H^T``. ``last_column`` is ``A e_{n-1}``,
    ``last_row`` ``A^T e_{n-1}``, as columns.
    """
    first = (left * right[..., :1, :]).sum(-1, keepdim=True)  # A e_0 = G H[0]
    right_part = shift(last_column, 0) - _times(first, f)
    return _pair([-left, _times(unit(left, 0), e), right_part], [shift_transposed(right, 0), last_row, unit(right, -1)])


def block(
    left: torch.Tensor,
    right: torch.Tensor,
    bounds: tuple[int, int],
    new: tuple[complex, complex],
    rows: tuple[torch.Tensor, torch.Tensor],
    columns: tuple[torch.Tensor, torch.Tensor],
) -> Pair:
    """Of the principal block ``B = A[a:b, a:b]`` under the operator (e', f').

    ``rows`` are ``A^T e_{b-1}`` and ``A^T Z_e^T e_a``: row b - 1, and the row that the operator brings to row a, which
    is row a - 1, or e times row n - 1 for a = 0; ``columns`` are ``A Z_f e_{b-1}`` (column b, or f times column 0 for
    b = n) and ``A e_a``. All ``(*b, n, 1)``; the ends of the block see these in place of its own.
    """
    cut = slice(*bounds)
    g, h = left[..., cut, :], right[..., cut, :]
    row = _times(rows[0][..., cut, :], new[0]) - rows[1][..., cut, :]
    column = columns[0][..., cut, :] - _times(columns[1][..., cut, :], new[1])
    return _pair([g, unit(g, 0), column], [h, row, unit(h, -1)])
