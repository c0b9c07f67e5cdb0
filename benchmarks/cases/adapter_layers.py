"""Whole adapted layers as ``adapters.attach`` leaves them: BOFT and FLoRA, forward and backward, against their peers.

The input requires its gradient, as inside a network. The frozen layer alone is measured in the same rounds: the peer's
time over it is the cap that no implementation can pass. FLoRA's peer is the layer of the authors' program: the update
is formed from core and factors, one tensordot a mode, and takes a linear map or a convolution of its own.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import nn

from benchmarks.case import Case, Contender, Figure, Problem, Tensors, fewest
from benchmarks.cases.adapters import cap, frozen_layer
from benchmarks.cases.boft import problem

__all__ = ["CASES", "Attached", "FormedUpdate", "flora_problem"]

_EPS = torch.finfo(torch.float32).eps


class Attached(nn.Module):
    """The adapter BOFT on the layer, with the names of its tensors that the other contenders have."""

    def __init__(self, layer: nn.Linear, skew: torch.Tensor) -> None:
        super().__init__()
        from structmat import adapters

        m, count, _ = skew.shape
        self.model = nn.Sequential(layer)
        adapters.attach(self.model, adapters.BOFT(layer.in_features // count, m, step="paper"), targets=["0"])
        self.scale, self.rotation = sorted(adapters.trainable_parameters(self.model), key=lambda p: p.ndim)
        with torch.no_grad():
            self.rotation.copy_(skew)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class FormedUpdate(nn.Module):
    """FLoRA's layer: ``layer(x) + f(x, delta)``, f the layer's own map and delta formed in every pass."""

    def __init__(self, layer: nn.Module, core: torch.Tensor, factors: list[torch.Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.leaves = nn.ParameterList([core.clone(), *(u.clone() for u in factors)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        delta = self.leaves[0]
        for u in self.leaves[1:]:
            delta = torch.tensordot(delta, u, ([0], [1]))
        second = nnf.linear(x, delta) if delta.ndim == 2 else nnf.conv2d(x, delta, padding=self.layer.padding)  # type: ignore[arg-type]
        return self.layer(x) + second


def flora_problem(layer: nn.Module, ranks: tuple[int, ...], x: torch.Tensor, g: torch.Tensor) -> Problem:
    """The adapter FLoRA of scale 1, the authors' layer and the frozen layer; the reference is theirs in float64."""
    from structmat import adapters

    layer.requires_grad_(False)
    sizes = tuple(layer.weight.shape)  # type: ignore[union-attr,arg-type]
    core = torch.randn(ranks) / len(ranks)
    factors = [torch.randn(d, r) / r**0.5 for d, r in zip(sizes, ranks, strict=True)]
    theirs = FormedUpdate(layer, core, factors)
    model = nn.Sequential(layer)
    adapters.attach(model, adapters.FLoRA(ranks, scale=1.0), targets=["0"])
    leaves = adapters.trainable_parameters(model)
    with torch.no_grad():
        for leaf, value in zip(leaves, (core, *factors), strict=True):
            leaf.copy_(value)
    x.requires_grad_()

    def ours() -> Tensors:
        y = model(x)
        return y, *torch.autograd.grad(y, (x, *leaves), g)

    def peer() -> Tensors:
        y = theirs(x)
        return y, *torch.autograd.grad(y, (x, *theirs.leaves), g)

    def base() -> Tensors:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x,), g)

    def right() -> Tensors:
        wide = type(layer)(**_sizes_of(layer)).double().requires_grad_(False)
        wide.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
        found = FormedUpdate(wide, core.double(), [u.double() for u in factors])
        z = x.detach().double().requires_grad_()
        y = found(z)
        return y.detach(), *torch.autograd.grad(y, (z, *found.leaves), g.double())

    names = ("y", "grad x", "grad core", *(f"grad U_{k + 1}" for k in range(len(factors))))
    # Sums over the rows, of products that a float32 matrix product of these sizes has rounded.
    terms = max(x.numel() // x.shape[1] if len(ranks) > 2 else x.shape[0], math.prod(sizes[1:]))
    limits = (4 * _EPS * math.sqrt(math.prod(sizes[1:])),) * 2 + (4 * _EPS * math.sqrt(terms),) * (len(factors) + 1)
    contenders = {"ours": Contender(ours), "peer": Contender(peer), "base": Contender(base, read=None)}
    return Problem(contenders, names, right, limits)


def _sizes_of(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    assert isinstance(layer, nn.Conv2d)
    names = ("in_channels", "out_channels", "kernel_size", "padding")
    return {name: getattr(layer, name) for name in names}


def _linear(rows: int) -> Problem:
    layer = frozen_layer(4096)
    return flora_problem(layer, (16, 16), torch.randn(rows, 4096), torch.randn(rows, 4096))


def _conv(batch: int) -> Problem:
    torch.manual_seed(31)
    layer = nn.Conv2d(256, 256, 3, padding=1)
    shape = (batch, 256, 32, 32)
    return flora_problem(layer, (8, 8, 3, 3), torch.randn(shape), torch.randn(shape))


def _boft(d: int, block: int, factors: int, rows: int, peer: str) -> Problem:
    return problem(d, block, factors, rows, peer, ours=Attached)


def _against(must: float, aim: float) -> Figure:
    return Figure("x", lambda t: t["peer"] / t["ours"], fewest(lambda t: must, cap(0.75)), lambda t: aim)


def _case(name: str, what: str, build: Callable[[], Problem], must: float, aim: float, peer: str = "") -> Case:
    peers = ("peft",) if peer == "peft" else ()
    return Case(f"adapters/{name}", what, build, _against(must, aim), peers=peers, heavy=True)


def _boft_case(d: int, block: int, factors: int, rows: int, must: float, aim: float) -> Case:
    peer = "peft" if factors == 1 else "arithmetic"
    who = "peft's layer" if factors == 1 else "the arithmetic of peft's layer in plain torch"
    return _case(
        f"boft d={d} b={block} m={factors} rows={rows}",
        f"BOFT attached to a frozen linear {d} x {d}, against {who}",
        functools.partial(_boft, d, block, factors, rows, peer),
        must,
        aim,
        peer,
    )


CASES: tuple[Case, ...] = (
    _boft_case(1024, 32, 1, 16, 20, 24),
    _boft_case(1024, 32, 1, 256, 8, 10),
    _boft_case(4096, 32, 1, 16, 120, 165),
    _boft_case(1024, 32, 2, 256, 12, 16),
    _boft_case(1024, 32, 2, 2048, 4, 5),
    _boft_case(1024, 2, 10, 256, 50, 62),
    *(
        _case(
            f"flora linear d=4096 r=16 rows={rows}",
            "FLoRA attached to a frozen linear 4096 x 4096, against the authors' layer, which forms the update",
            functools.partial(_linear, rows),
            must,
            aim,
        )
        for rows, must, aim in ((16, 7, 8), (2048, 2.3, 2.5))
    ),
    _case(
        "flora conv 256 3x3 batch=8",
        "FLoRA attached to a frozen convolution of 256 channels, against the authors' layer, with its two convolutions",
        functools.partial(_conv, 8),
        1.8,
        2.1,
    ),
)
