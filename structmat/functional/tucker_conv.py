"""Convolutions with a Tucker kernel: 1 x 1 to few channels, a small kernel, 1 x 1 to all channels.

A kernel ``W = core x_1 U_out x_2 U_in x_3 U_3 ...`` of layout ``(out, in / groups, *kernel)`` factors through ``R_in``
and ``R_out`` channels: the stride, the padding and the dilation belong to the small kernel ``core x_3 U_3 x_4 ...`` in
the middle, and with groups the factor of the input channels is shared by all of them. Where forming W takes fewer
flops (a depthwise kernel) it is formed. Plain recorded operations: derivatives of all orders follow.

Reference: Y.-D. Kim et al., Compression of deep convolutional neural networks for fast and low power mobile
applications, 2016, equations 4 to 6.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as nnf

from structmat import backend
from structmat.functional.tucker import Factors, Sizes, expand, expansion_flops

__all__ = [
    "PADDING_MODES",
    "ConvPlan",
    "conv_plan",
    "each_mode",
    "output_sizes",
    "tucker_conv",
    "tucker_conv_transpose",
]

_CONV = (nnf.conv1d, nnf.conv2d, nnf.conv3d)
PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
_BACK = (nnf.conv_transpose1d, nnf.conv_transpose2d, nnf.conv_transpose3d)


class ConvPlan(NamedTuple):
    """Whether the kernel is formed, and the flops of the two ways."""

    dense: bool
    factored_flops: float
    dense_flops: float


def conv_plan(dims: Sizes, ranks: Sizes, groups: int, rows: int, at_input: int, at_output: int) -> ConvPlan:
    """The rule between the factored and the formed kernel, by flops.

    ``dims`` and ``ranks`` in the layout (out, in / groups, *kernel); ``rows`` images of ``at_input`` points that the
    kernel reads and ``at_output`` that it writes.
    """
    out, inside, *kernel = dims
    few_out, few_in = ranks[:2]
    taps = math.prod(kernel)
    middle = few_out * few_in * taps * groups * at_output
    factored = 2.0 * rows * (groups * inside * few_in * at_input + middle + out * few_out * at_output)
    factored += expansion_flops((few_out, few_in, *kernel), ranks)
    dense = 2.0 * rows * out * inside * taps * at_output + expansion_flops(dims, ranks)
    return ConvPlan(dense < factored, factored, dense)


def output_sizes(sizes: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    """The spatial sizes of a convolution; ``padding`` counts both sides together."""
    both = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return tuple([(n + p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in both])


def each_mode(value: int | Sizes, count: int) -> Sizes:
    """A number for every spatial mode, or one for each."""
    return (value,) * count if isinstance(value, int) else tuple(value)


def paddings(padding: int | str | Sizes, kernel: Sizes, dilation: Sizes) -> tuple[tuple[int, int], ...]:
    """(before, after) for each spatial mode; "same" puts the odd one after, as torch does."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple([(s // 2, s - s // 2) for s in spans])
    assert not isinstance(padding, str)
    return tuple([(p, p) for p in each_mode(padding, len(kernel))])


def tucker_conv(
    x: torch.Tensor,
    core: torch.Tensor,
    factors: Factors,
    stride: int | Sizes = 1,
    padding: int | str | Sizes = 0,
    dilation: int | Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """``torch.nn.functional.conv{1,2,3}d`` of x ``(batch, in, *sizes)`` or ``(in, *sizes)`` with the Tucker kernel.

    ``padding_mode``: "zeros", "circular", "reflect" or "replicate": the few channels are padded, which is the same
    because the first factor acts point by point. Cost: see ``conv_plan``. Half and bfloat16 are carried out in float32.
    """
    spatial = len(factors) - 2
    kernel = tuple([u.shape[-2] for u in factors[2:]])
    steps, gaps = each_mode(stride, spatial), each_mode(dilation, spatial)
    sides = paddings(padding, kernel, gaps)
    out = torch.promote_types(x.dtype, core.dtype)
    z, small, wide, lone = _opened(x, core, factors, spatial, out)
    read = tuple(z.shape[2:])
    written = output_sizes(read, kernel, steps, tuple([a + b for a, b in sides]), gaps)
    dims, ranks = tuple([u.shape[-2] for u in wide]), tuple(core.shape)
    plan = conv_plan(dims, ranks, groups, z.shape[0], math.prod(read), math.prod(written))
    convolve = _CONV[spatial - 1]
    with backend.full_precision(x.device):
        if plan.dense:
            z, inside = _padded(z, sides, padding_mode)
            y = convolve(z, expand(small, wide), None, steps, inside, gaps, groups)
            return (y[0] if lone else y).to(out)
        few_out, few_in = ranks[:2]
        z = convolve(z.reshape(-1, dims[1], *read), wide[1].mT.reshape(few_in, dims[1], *[1] * spatial))
        z, inside = _padded(z, sides, padding_mode)
        z = convolve(z, _spatial(small, wide), None, steps, inside, gaps)
        z = z.reshape(-1, groups * few_out, *z.shape[2:])
        y = convolve(z, wide[0].reshape(dims[0], few_out, *[1] * spatial), None, 1, 0, 1, groups)
    return (y[0] if lone else y).to(out)


def tucker_conv_transpose(
    x: torch.Tensor,
    core: torch.Tensor,
    factors: Factors,
    stride: int | Sizes = 1,
    padding: int | Sizes = 0,
    output_padding: int | Sizes = 0,
    groups: int = 1,
    dilation: int | Sizes = 1,
) -> torch.Tensor:
    """``torch.nn.functional.conv_transpose{1,2,3}d`` with the Tucker kernel of layout ``(in, out / groups, *kernel)``.

    Arguments as torch orders them; x is ``(batch, in, *sizes)`` or ``(in, *sizes)``. The rows of the first factor
    belong to the groups in turn, the second factor is shared.
    """
    spatial = len(factors) - 2
    kernel = tuple([u.shape[-2] for u in factors[2:]])
    steps, gaps = each_mode(stride, spatial), each_mode(dilation, spatial)
    sides, extra = each_mode(padding, spatial), each_mode(output_padding, spatial)
    out = torch.promote_types(x.dtype, core.dtype)
    z, small, wide, lone = _opened(x, core, factors, spatial, out)
    read = tuple(z.shape[2:])
    both = zip(read, kernel, steps, sides, extra, gaps, strict=True)
    written = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, e, d in both]
    dims, ranks = tuple([u.shape[-2] for u in wide]), tuple(core.shape)
    few_in, few_out = ranks[:2]
    plan = conv_plan(dims, ranks, groups, z.shape[0], math.prod(written), math.prod(read))  # of what it is adjoint to
    convolve, back = _CONV[spatial - 1], _BACK[spatial - 1]
    ones = [1] * spatial
    with backend.full_precision(x.device):
        if plan.dense:
            y = back(z, expand(small, wide), None, steps, sides, extra, groups, gaps)
            return (y[0] if lone else y).to(out)
        rows = wide[0].reshape(groups, dims[0] // groups, few_in).mT
        z = convolve(z, rows.reshape(groups * few_in, dims[0] // groups, *ones), None, 1, 0, 1, groups)
        z = z.reshape(-1, few_in, *read)
        z = back(z, _spatial(small, wide), None, steps, sides, extra, 1, gaps)
        y = convolve(z, wide[1].reshape(dims[1], few_out, *ones))
        y = y.reshape(-1, groups * dims[1], *y.shape[2:])
    return (y[0] if lone else y).to(out)


def _opened(
    x: torch.Tensor, core: torch.Tensor, factors: Factors, spatial: int, out: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, Factors, bool]:
    """All in the dtype computed in, with a batch axis, and whether that axis was added."""
    wide = backend.compute_dtype(out)
    lone = x.ndim == spatial + 1
    z = (x[None] if lone else x).to(wide)
    return z, core.to(wide), tuple([u.to(wide) for u in factors]), lone


def _padded(z: torch.Tensor, sides: tuple[tuple[int, int], ...], padding_mode: str) -> tuple[torch.Tensor, Sizes]:
    """What is padded beforehand, and the padding left to the convolution (that of zeros, equal on both sides)."""
    none = (0,) * len(sides)
    if padding_mode == "zeros" and all(a == b for a, b in sides):
        return z, tuple([a for a, _ in sides])
    if all(a == b == 0 for a, b in sides):
        return z, none
    widths = [w for side in reversed(sides) for w in side]  # torch lists the last mode first
    return nnf.pad(z, widths, mode="constant" if padding_mode == "zeros" else padding_mode), none


def _spatial(core: torch.Tensor, factors: Factors) -> torch.Tensor:
    """``core x_3 U_3 x_4 ...``: the small kernel ``(R_out, R_in, *kernel)``."""
    few = core.shape[0] * core.shape[1]
    kernel = expand(core.reshape(few, *core.shape[2:]), factors[2:]) if len(factors) > 2 else core
    return kernel.reshape(*core.shape[:2], *kernel.shape[1:])
