"""The two forms of a rotated layer, ``y = (x Q^T) W^T``, and the rule between them.

* "rows": the rows are rotated and the layer is called with them, ``4 r n`` flops a row for r reflections.
* "low-rank": ``y = x W^T - (x R) (W L)^T`` with ``I - Q = L R^T``: the layer is called with x itself and with the
  r rows of ``L^T``, ``2 r (m + n)`` flops a row and ``2 r m n`` once. The change is computed beside the product and
  added in float32, so a half-precision layer does not round it away; rotated rows in bfloat16 have lost a turn of 0.01.

HRA's reflections come in pairs of nearly equal vectors, whose difference is all that acts. Rounded one by one to the
precision of the layer they would lose it, so a pair enters through its half sum and half difference.
"""

import torch

from structmat import backend
from structmat.adapters.method import Compose, Update
from structmat.types.diagonal import Identity
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank

__all__ = ["choose", "factors"]

_HALF = (torch.float16, torch.bfloat16)


def choose(chain: list[Update], rows: int, out_features: int, dtype: torch.dtype) -> backend.Plan:
    """The form for so many rows of a dtype: a function of sizes and types alone.

    "low-rank" serves one rotation by reflections: always in half precision, else where it takes fewer flops by a tenth.
    """
    update = chain[0] if len(chain) == 1 else None
    if not isinstance(update, Compose) or update.left is not None or not isinstance(update.right, HouseholderProduct):
        return backend.Plan("rows", "only one rotation by reflections alone has a low-rank form")
    vectors = update.right.vectors
    r, n = vectors.shape[-2:]
    m = out_features
    if vectors.ndim > 2 or update.right.phases is not None or r >= n:
        return backend.Plan("rows", f"{r} reflections of {n} numbers, in a batch or with phases, have no small form")
    direct, split = 4.0 * r * n * rows, 2.0 * r * (m + n) * rows + 2.0 * r * m * n
    if dtype in _HALF:
        name = str(dtype).removeprefix("torch.")
        return backend.Plan("low-rank", f"rows rotated in {name} would lose a small turn", split)
    if split < 0.9 * direct:
        return backend.Plan("low-rank", f"{m} outputs are fewer than {n} inputs, and {rows} rows are many", split)
    return backend.Plan("rows", f"the low-rank form would take {split / direct:.1f} times the flops", direct)


def factors(rotation: HouseholderProduct) -> tuple[torch.Tensor, torch.Tensor]:
    """``(L, R)`` of shape (n, r) with ``I - Q = L R^T``; for an even number of reflections neighbours ``(1, 2), (3, 4),
    ...`` enter R as half sum and half difference, and L as the sum and the difference.
    """
    n, dtype = rotation.shape[-1], rotation.vectors.dtype
    low = Identity(n, dtype=dtype, device=rotation.vectors.device) - rotation
    assert isinstance(low, LowRank)
    size = torch.linalg.vector_norm(low.right, dim=-2).clamp(min=torch.finfo(dtype).tiny)
    left, right = low.left * size, low.right / size
    if left.shape[-1] % 2:
        return left, right
    (a, b), (c, d) = (left[:, 0::2], left[:, 1::2]), (right[:, 0::2], right[:, 1::2])
    return torch.cat([a + b, a - b], -1), torch.cat([(c + d) / 2, (c - d) / 2], -1)
