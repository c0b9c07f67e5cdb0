"""The forms in which a layer runs its adapters without the folded weight, and the rules between them.

A rotated linear layer, ``y = (x Q^T) W^T``:

* "rows": the rows are rotated and the layer is called with them, ``4 r n`` flops a row for r reflections.
* "low-rank": ``y = x W^T - (x R) (W L)^T`` with ``I - Q = L R^T``: the layer is called with x itself and with the
  r rows of ``L^T``, ``2 r (m + n)`` flops a row and ``2 r m n`` once. The change is computed beside the product and
  added in float32, so a half-precision layer does not round it away; rotated rows in bfloat16 have lost a turn of 0.01.

A convolution, whose weight ``W (m, n)`` acts on the n channels and taps that one of its m outputs sees:

* "weight": the layer is called with the folded weight. Its backward pass forms the gradient of the whole weight.
* "low-rank": additions and reflections are ``W_K = W + (W A) B^T + C D^T`` with r columns in B and D together, so a
  convolution of r kernels and one of 1 x 1 run beside the layer, and no gradient of a weight is formed.
* "beside": in half precision, what has no cheap low-rank form is formed in float32 and run as a second convolution.

HRA's reflections come in pairs of nearly equal vectors, whose difference is all that acts. Rounded one by one to the
precision of the layer they would lose it, so a pair enters through its half sum and half difference.
"""

import dataclasses
from collections.abc import Sequence

import torch

from structmat import backend
from structmat.adapters.method import Add, Compose, Update
from structmat.types.diagonal import Identity
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank

__all__ = ["Thin", "choose", "choose_conv", "factors", "thin", "thin_rank"]

_HALF = (torch.float16, torch.bfloat16)
# Two convolutions of few kernels run at about a fifth of the speed of the gradient of a weight: on a CPU the two forms
# of a training step met at 4.4 to 4.8 times the flops (shapes of ResNet, ranks 4 and 8, float32).
_CONV_FACTOR = 5.0


def choose(chain: list[Update], rows: int, out_features: int, dtype: torch.dtype) -> backend.Plan:
    """The form for so many rows of a dtype: a function of sizes and types alone. (Under a compiler the rows may be a
    symbol, so no reason prints them.)

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
        return backend.Plan("low-rank", f"{m} outputs are fewer than {n} inputs, and the rows are many", split)
    return backend.Plan(
        "rows", "the low-rank form would not take fewer flops", direct
    )  # no number: rows may be a symbol


def factors(rotation: HouseholderProduct) -> tuple[torch.Tensor, torch.Tensor]:
    """``(L, R)`` of shape (n, r) with ``I - Q = L R^T``; for an even number of reflections neighbours ``(1, 2), (3, 4),
    ...`` enter R as half sum and half difference, and L as the sum and the difference. The columns of L lie each in one
    piece: they go through the layer as rows, and of strided rows the gradient is formed with the transposed weight.
    """
    n, dtype = rotation.shape[-1], rotation.vectors.dtype
    low = Identity(n, dtype=dtype, device=rotation.vectors.device) - rotation
    assert isinstance(low, LowRank)
    size = torch.linalg.vector_norm(low.right, dim=-2).clamp(min=torch.finfo(dtype).tiny)
    left, right = low.left * size, low.right / size
    if left.shape[-1] % 2:
        return left.mT.contiguous().mT, right
    (a, b), (c, d) = (left[:, 0::2], left[:, 1::2]), (right[:, 0::2], right[:, 1::2])
    return torch.cat([(a + b).mT, (a - b).mT], -2).mT, torch.cat([(c + d) / 2, (c - d) / 2], -1)


# -- convolutions ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Thin:
    """``W_K = W + (W A) B^T + C D^T``; ``turned`` is (A, B), both ``(n, a)``, and ``added`` is (C ``(m, c)``,
    D ``(n, c)``); None where there is none.
    """

    turned: tuple[torch.Tensor, torch.Tensor] | None
    added: tuple[torch.Tensor, torch.Tensor] | None


def thin_rank(chain: Sequence[Update]) -> int | None:
    """``a + c`` of ``thin(chain)``; None if an update has no such form. Of sizes alone."""
    total = 0
    for update in chain:
        if isinstance(update, Add) and isinstance(update.matrix, LowRank):
            tensor = update.matrix.left
            total += int(tensor.shape[-1])
        elif isinstance(update, Compose) and update.left is None and isinstance(update.right, HouseholderProduct):
            if update.right.phases is not None:
                return None
            tensor = update.right.vectors
            total += int(tensor.shape[-2])
        else:
            return None
        if tensor.ndim > 2:
            return None
    return total


def thin(chain: Sequence[Update]) -> Thin:
    """The low-rank form of low-rank additions and products of reflections, in their order: a rotation ``Q = I - L R^T``
    gives ``A = -L``, ``B = R`` and turns what came before it, ``(B, D) -> Q^T (B, D)``.
    """
    kept: list[torch.Tensor] = []  # A and C, and B and D: pairs side by side
    seen: list[torch.Tensor] = []
    turns: list[bool] = []
    for update in chain:
        if isinstance(update, Add):
            assert isinstance(update.matrix, LowRank)
            kept.append(update.matrix.left if update.scale == 1.0 else update.scale * update.matrix.left)
            seen.append(update.matrix.right)
        else:
            assert isinstance(update, Compose) and isinstance(update.right, HouseholderProduct)
            left, right = factors(update.right)
            turned = update.right.transpose()
            seen = [turned.linear(one.mT).mT for one in seen]
            kept.append(-left)
            seen.append(right)
        turns.append(isinstance(update, Compose))

    def joined(which: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
        places = [k for k, turn in enumerate(turns) if turn == which]
        if not places:
            return None
        return torch.cat([kept[k] for k in places], -1), torch.cat([seen[k] for k in places], -1)

    return Thin(joined(True), joined(False))


def choose_conv(
    chain: Sequence[Update],
    sizes: tuple[int, int, int],
    points: int,
    dtype: torch.dtype,
    trained: bool,
    spread: int = 1,
) -> backend.Plan:
    """The form of a convolution for so many points of its output (batch times pixels), computed in ``dtype``.

    ``sizes``: (m, n, groups). With r the rank, T the points and g the groups, the low-rank form takes ``2 r T (g n +
    m)`` flops beyond the frozen layer, three times that with its backward pass; the folded weight ``2 r m n``, and with
    its backward pass ``6 r m n + 2 T m n``. In half precision the form is low-rank where ``r (g n + m) < m n``, else
    beside; else low-rank where that takes a fifth of the flops or less (few kernels run slower), else the weight.
    ``trained``: whether a backward pass is to be expected. ``spread``: of a transposed convolution, whose kernels are
    applied at the points of its input, the points of the output for each of them.
    """
    m, n, groups = sizes
    r = thin_rank(chain)
    name = str(dtype).removeprefix("torch.")
    if r is None:
        if dtype in _HALF:
            return backend.Plan("beside", f"rounded to {name}, a folded weight would lose a small change")
        return backend.Plan("weight", "only low-rank additions and reflections have a low-rank form")
    few, at = r * (groups * n + m * spread), points / spread
    low = (6.0 if trained else 2.0) * few * at
    fold = (6.0 if trained else 2.0) * r * m * n + (2.0 * at * m * n if trained else 0.0)
    if dtype in _HALF:
        reason = f"rounded to {name}, a folded weight would lose a small change"
        if few < m * n:
            return backend.Plan("low-rank", reason, low)
        return backend.Plan("beside", f"{reason}; rank {r} is not low for {n} channels and taps in {groups} groups")
    what = "the gradient of a weight" if trained else "the folded weight"
    if _CONV_FACTOR * low <= fold:
        return backend.Plan("low-rank", f"{what} would take 5 times the flops or more", low)
    return backend.Plan("weight", f"{what} takes less than 5 times the flops, and runs faster", fold)
