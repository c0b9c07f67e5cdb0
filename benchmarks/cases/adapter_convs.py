"""Low-rank adapters on a frozen convolution, forward and backward with the input requiring its gradient.

LoRA against peft's layer, which runs two small convolutions beside the frozen one too; both hold the same kernels. HRA
against peft's layer, which forms the rotation of all channels and taps (``n x n``) and the turned weight in every pass.
What folding the change into the weight costs, which takes the gradient of the whole weight, is measured in the same
rounds. The reference unfolds the image into its patches in float64.
"""

import functools
import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import nn

from benchmarks.case import Case, Contender, Figure, Problem, Tensors

__all__ = ["CASES", "hra_problem", "lora_problem"]

_EPS = torch.finfo(torch.float32).eps


class Folded(nn.Module):
    """The layer called with ``W + L R^T`` or ``W H_1 ... H_r``, formed in every pass."""

    def __init__(self, layer: nn.Conv2d, leaves: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.leaves = nn.ParameterList(leaf.clone() for leaf in leaves)

    def weight(self) -> torch.Tensor:
        weight = self.layer.weight.flatten(1)
        if len(self.leaves) == 2:
            return weight + self.leaves[0] @ self.leaves[1].mT
        for v in self.leaves[0]:
            weight = weight - torch.outer(weight @ v, 2 / (v @ v) * v)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight().reshape(self.layer.weight.shape)
        return nnf.conv2d(x, weight, self.layer.bias, padding=self.layer.padding)


def lora_problem(layer: nn.Conv2d, rank: int, x: torch.Tensor, g: torch.Tensor) -> Problem:
    """LoRA of scale 1: ours, peft's, the folded form and the frozen layer."""
    m, n = layer.weight.flatten(1).shape
    leaves = (torch.randn(m, rank) / rank**0.5, torch.randn(n, rank) / n**0.5)
    model = _attached(layer, "lora", leaves)
    ours = _call(model, x, list(model.parameters()), g)

    def aligned(out: Tensors) -> Tensors:  # peft's kernels are our columns
        return out[0], out[1], out[3].flatten(1), out[2].flatten(1).mT

    from peft import LoraConfig, get_peft_model

    peer = get_peft_model(nn.Sequential(layer), LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]))
    theirs = [p for p in peer.parameters() if p.requires_grad]
    with torch.no_grad():
        theirs[0].copy_(leaves[1].mT.reshape(theirs[0].shape))
        theirs[1].copy_(leaves[0].reshape(theirs[1].shape))
    contender = Contender(_call(peer, x, theirs, g), "peft", aligned)
    return _problem(layer, leaves, Contender(ours), contender, x, g, ("y", "grad x", "grad left", "grad right"))


def hra_problem(layer: nn.Conv2d, rank: int, x: torch.Tensor, g: torch.Tensor) -> Problem:
    """HRA: ours, peft's, the folded form and the frozen layer."""
    vectors = torch.randn(rank, layer.weight[0].numel())
    model = _attached(layer, "hra", (vectors,))
    ours = _call(model, x, list(model.parameters()), g)
    from peft.tuners.hra import HRAConfig
    from peft.tuners.hra.layer import HRAConv2d

    peer = HRAConv2d(layer, "default", config=HRAConfig(r=rank), r=rank)
    theirs = peer.hra_u["default"]
    with torch.no_grad():
        theirs.copy_(vectors.mT)
    contender = Contender(_call(peer, x, [theirs], g), "peft", lambda out: (*out[:2], out[2].mT))
    return _problem(layer, (vectors,), Contender(ours), contender, x, g, ("y", "grad x", "grad vectors"))


def _attached(layer: nn.Conv2d, what: str, leaves: tuple[torch.Tensor, ...]) -> nn.Module:
    from structmat import adapters

    model = nn.Sequential(layer)
    rank = min(leaves[0].shape)
    adapters.attach(model, adapters.LoRA(rank) if what == "lora" else adapters.HRA(rank), targets=["0"])
    with torch.no_grad():
        for parameter, leaf in zip(adapters.trainable_parameters(model), leaves, strict=True):
            parameter.copy_(leaf)
    return model


def _call(model: nn.Module, x: torch.Tensor, parameters: list[nn.Parameter], g: torch.Tensor) -> Callable[[], Tensors]:
    wanted = (x, *(p for p in parameters if p.requires_grad))

    def call() -> Tensors:
        y = model(x)
        return y, *torch.autograd.grad(y, wanted, g)

    return call


def _problem(
    layer: nn.Conv2d,
    leaves: tuple[torch.Tensor, ...],
    ours: Contender,
    peer: Contender,
    x: torch.Tensor,
    g: torch.Tensor,
    names: tuple[str, ...],
) -> Problem:
    folded = Folded(layer, leaves)

    def base() -> Tensors:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x,), g)

    def reference() -> Tensors:
        """Image by image, patches times the folded weight."""
        wide = Folded(
            nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding), leaves
        )
        wide = wide.double()
        wide.layer.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
        weight = wide.weight()
        held = weight.detach().requires_grad_()
        outputs, inputs, total = [], [], torch.zeros_like(held)
        for image, back in zip(x.detach().double().split(1), g.double().split(1), strict=True):
            start = image.requires_grad_()
            patches = nnf.unfold(start, layer.kernel_size, padding=layer.padding)
            y = (held @ patches).reshape(back.shape) + wide.layer.bias.detach()[:, None, None]  # type: ignore[union-attr]
            gx, gw = torch.autograd.grad(y, (start, held), back)
            outputs.append(y.detach())
            inputs.append(gx)
            total = total + gw
        grads = torch.autograd.grad(weight, list(wide.leaves), total)
        return torch.cat(outputs), torch.cat(inputs), *grads

    n, r = layer.weight[0].numel(), min(leaves[0].shape)
    points = g.numel() // layer.out_channels
    turn = 8 * _EPS * (1 + math.sqrt(r))
    product = 2 * turn + 2 * _EPS * math.sqrt(n)
    # A vector's gradient is what is left of a difference of two sums over the points, each up to sqrt(rank) larger.
    inner = math.sqrt(r) * (product + 4 * _EPS * math.sqrt(max(n, points)))
    limits = (product, product) + (inner,) * len(leaves)
    contenders = {
        "ours": ours,
        "peer": peer,
        "folded": Contender(_call(folded, x, list(folded.leaves), g)),
        "base": Contender(base, read=None),
    }
    return Problem(contenders, names, reference, limits)


def _build(what: str, channels: int, size: int, batch: int, rank: int) -> Problem:
    torch.manual_seed(37)
    layer = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
    x, g = torch.randn(batch, channels, size, size).requires_grad_(), torch.randn(batch, channels, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (lora_problem if what == "lora" else hra_problem)(layer, rank, x, g)


def _case(what: str, channels: int, size: int, batch: int, must: float | None, versus: str = "peer") -> Case:
    who = {"peer": "peft's layer", "folded": "the change folded into the weight"}[versus]
    limit = None if must is None else lambda times: must
    suffix = "" if versus == "peer" else f" over {versus}"
    return Case(
        f"adapters/{what} conv {channels} 3x3 {size}x{size}{suffix}",
        f"{what.upper()} of rank 8 on a frozen convolution, {batch} images of {channels} channels, against {who}",
        functools.partial(_build, what, channels, size, batch, 8),
        Figure("x", lambda t: t[versus] / t["ours"], limit),
        peers=("peft",),
        versus=versus,
        heavy=True,
    )


CASES: tuple[Case, ...] = (
    _case("lora", 256, 14, 8, 0.9),  # the same arithmetic: 1, less the noise between two equal programs
    _case("lora", 256, 14, 8, 1.0, "folded"),
    _case("lora", 64, 28, 8, None),
    _case("hra", 256, 14, 8, 10.0),
    _case("hra", 256, 14, 8, None, "folded"),
    _case("hra", 64, 28, 8, None),
)
