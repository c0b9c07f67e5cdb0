"""An HRA adapter on a frozen linear layer, forward and backward with the input requiring its gradient.

Against peft's HRALinear, which forms the d x d rotation and W times it in every forward pass; the frozen layer without
any adapter is measured in the same rounds: its time over the peer's is the cap no implementation can pass. Both apply
``y = x (W H_1 ... H_r)^T + b``; the reference multiplies reflection by reflection in float64.
"""

import math

import torch
from torch import nn

from benchmarks.case import Case, Contender, Figure, Limit, Problem, Tensors, fewest, overhead
from benchmarks.memory import peaks

__all__ = ["CASES", "adapted", "frozen_layer", "ours_on", "peer_on"]

_CHUNK = 256  # rows a reference pass takes at once: r copies of them are kept in float64


def frozen_layer(d: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(d, d).requires_grad_(False)


def ours_on(layer: nn.Linear, vectors: torch.Tensor) -> tuple[nn.Module, nn.Parameter]:
    """A model that holds the layer with our adapter of these vectors ``(r, d)``, and its parameter."""
    from structmat import adapters

    model = nn.Sequential(layer)
    adapters.attach(model, adapters.HRA(rank=vectors.shape[0]), targets=["0"])
    (parameter,) = adapters.trainable_parameters(model)
    with torch.no_grad():
        parameter.copy_(vectors)
    return model, parameter


def peer_on(layer: nn.Linear, vectors: torch.Tensor) -> tuple[nn.Module, nn.Parameter]:
    """peft's layer around the same weight; its parameter holds the vectors as columns."""
    from peft.tuners.hra import HRAConfig
    from peft.tuners.hra.layer import HRALinear

    rank = vectors.shape[0]
    module = HRALinear(layer, "default", config=HRAConfig(r=rank), r=rank)
    parameter = module.hra_u["default"]
    with torch.no_grad():
        parameter.copy_(vectors.mT)
    return module, parameter


def adapted(who: str, d: int, rank: int) -> tuple[nn.Module, tuple[nn.Parameter, ...]]:
    """A contender's model and what it trains, for the measurement of memory; ``"base"`` is the frozen layer alone."""
    layer, vectors = frozen_layer(d), torch.randn(rank, d)
    if who == "base":
        return layer, ()
    model, parameter = ours_on(layer, vectors) if who == "ours" else peer_on(layer, vectors)
    return model, (parameter,)


def reference(layer: nn.Linear, vectors: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> Tensors:
    """Output, gradient of x, gradient of the vectors: one reflection after the other, in float64."""
    weight, bias = layer.weight.double(), layer.bias.double()
    u = vectors.double().requires_grad_()
    outputs, inputs, total = [], [], torch.zeros_like(u)
    for rows, back in zip(x.double().split(_CHUNK), g.double().split(_CHUNK), strict=True):
        start = rows.detach().requires_grad_()
        turned = start
        for v in reversed(u.unbind()):
            turned = turned - 2 / (v @ v) * torch.outer(turned @ v, v)
        y = torch.nn.functional.linear(turned, weight, bias)
        gx, gu = torch.autograd.grad(y, (start, u), back)
        outputs.append(y.detach())
        inputs.append(gx)
        total = total + gu
    return torch.cat(outputs), torch.cat(inputs), total


def _problem(d: int, rank: int, rows: int, peer: bool) -> Problem:
    layer = frozen_layer(d)
    vectors = torch.randn(rank, d)
    x = torch.randn(rows, d).requires_grad_()
    g = torch.randn(rows, d)
    model, mine = ours_on(layer, vectors)

    def ours() -> Tensors:
        y = model(x)
        return y, *torch.autograd.grad(y, (x, mine), g)

    def base() -> Tensors:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x,), g)

    contenders = {"ours": Contender(ours), "base": Contender(base, read=None)}
    if peer:
        module, theirs = peer_on(layer, vectors)

        def other() -> Tensors:
            y = module(x)
            return y, *torch.autograd.grad(y, (x, theirs), g)

        contenders["peer"] = Contender(other, "peft", lambda out: (out[0], out[1], out[2].mT))
    eps = torch.finfo(torch.float32).eps
    turn = 8 * eps * (1 + math.sqrt(rank))  # the rotation's own limit (DESIGN, conventions)
    product = eps * math.sqrt(d)  # a d-term float32 dot product
    # A vector's gradient is what is left of a difference of two sums over the rows, each up to sqrt(rank) larger.
    limits = (turn + product, turn + product, math.sqrt(rank) * (turn + eps * math.sqrt(max(d, rows))))
    return Problem(contenders, ("y", "grad x", "grad vectors"), lambda: reference(layer, vectors, x, g), limits)


def cap(share: float) -> Limit:
    """A share of the cap: the peer's time over the frozen layer's."""
    return lambda times: share * times["peer"] / times["base"]


def _speed(d: int, rank: int, rows: int, figure: Figure, heavy: bool = False) -> Case:
    return Case(
        f"hra/layer d={d} r={rank} rows={rows}",
        f"HRA on a frozen linear {d} x {d}, rank {rank}, {rows} rows, against peft's HRALinear",
        lambda: _problem(d, rank, rows, peer=True),
        figure,
        peers=("peft",),
        heavy=heavy,
    )


def _against(must: Limit, aim: Limit) -> Figure:
    return Figure("x", lambda t: t["peer"] / t["ours"], must, aim)


CASES: tuple[Case, ...] = (
    _speed(1024, 32, 256, _against(lambda t: 20.0, cap(0.9))),
    _speed(1024, 32, 2048, _against(fewest(lambda t: 4.5, cap(0.75)), cap(0.9))),
    _speed(4096, 32, 16, _against(fewest(lambda t: 300.0, cap(0.75)), cap(0.9)), heavy=True),
    Case(
        "hra/overhead d=4096 r=32 rows=2048",
        "HRA on a frozen linear 4096 x 4096, rank 32, 2048 rows, over the frozen layer alone",
        lambda: _problem(4096, 32, 2048, peer=False),
        overhead(must=1.10, aim=1.05),
        versus="base",
        heavy=True,
    ),
    Case(
        "hra/memory d=1024 r=128",
        "peak memory that a forward and backward pass adds (256 rows), ours over peft's HRALinear",
        lambda: _problem(256, 128, 64, peer=True),
        Figure("of peer (MB)", lambda t: t["ours"] / t["peer"], lambda t: 1 / 50, lambda t: 1 / 100, at_least=False),
        peers=("peft",),
        child=lambda quick: peaks("adapters", (1024, 128), (64, 8), rows=256),
    ),
)
