"""Additions in Tucker form on a convolution: beside the layer, or in its weight.

* "tucker": 1 x 1 to few channels, a small kernel, 1 x 1 back, beside the layer. No gradient of a weight is formed, but
  each of the three reads and writes images for little arithmetic.
* "weight": the kernel is formed, added to the weight, and its gradient is that of the weight.
"""

import math
from collections.abc import Sequence

import torch

from structmat import backend
from structmat.adapters.method import Add
from structmat.functional.tucker import expansion_flops
from structmat.functional.tucker_conv import conv_plan
from structmat.types.tucker import Tucker

__all__ = ["choose"]

_HALF = (torch.float16, torch.bfloat16)
# What a number of an image that is read or written costs in a training step of the three convolutions, in flops of the
# gradient of a weight. Measured on one core in float32, 16 to 512 channels, kernels of 3 x 3, ranks 4 to 64: 3 to 6
# nanoseconds a number, against 150 flops a nanosecond. The two forms meet near 64 channels.
_NUMBER = 600.0


def choose(
    chain: Sequence[Add], groups: int, points: int, spread: int, dtype: torch.dtype, trained: bool, device: torch.device
) -> backend.Plan:
    """The form for additions in Tucker form in the layout of a weight ``(m, n, *kernel)``, computed in ``dtype``.

    T = ``points`` of the output (batch times pixels), each of which stands for ``spread`` points of the input (the
    product of the strides). A training step beside the layer is counted as three times the flops of the small
    convolutions and 600 for each of the ``T (g n spread + m)`` numbers of the input and the output; in the weight as
    ``2 T m n`` taps for its gradient and three times what forms the kernel. Without a backward pass a third of that,
    and nothing for a gradient. Measured on the CPU alone, elsewhere beside; half precision would round a small change
    of the weight away. Sizes and types decide, never values.
    """
    if dtype in _HALF:
        name = str(dtype).removeprefix("torch.")
        return backend.Plan("tucker", f"rounded to {name}, a folded weight would lose a small change")
    if device.type != "cpu" or torch.compiler.is_compiling():  # a compiler would make a guard of the points
        return backend.Plan("tucker", "three small convolutions, or its kernel formed where that is cheaper")
    small = forming = 0.0
    for update in chain:
        assert isinstance(update.matrix, Tucker)
        dims, ranks = update.matrix.dims, update.matrix.ranks
        found = conv_plan(dims, ranks, groups, 1, points * spread, points)
        numbers = points * (groups * dims[1] * spread + dims[0])
        small += min(3.0 * found.factored_flops + _NUMBER * numbers, 3.0 * found.dense_flops)
        forming += 3.0 * expansion_flops(dims, ranks)
    beside, inside = small / 3, forming / 3
    if trained:
        beside, inside = small, forming + 2.0 * points * math.prod(dims)
    if beside < inside:
        return backend.Plan("tucker", "three small convolutions cost less than the gradient of a weight", beside)
    return backend.Plan("weight", "three small convolutions move more than the gradient of a weight costs", inside)
