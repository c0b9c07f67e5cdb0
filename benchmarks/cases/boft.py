"""BOFT on a frozen linear layer, forward and backward to the rotation, the scale and the input, against peft.

``y = s * (x R) W^T + bias``: the rotation acts on the input, the scale on the output without its bias. Without its
extension peft replaces the number of factors by one, so peft as shipped is measured with m = 1 only; for more factors
the peer is the arithmetic of its forward pass in plain torch: Cayley by ``linalg.solve``, the blocks of each factor in
a dense matrix between a dense permutation matrix and its transpose, the factors multiplied, times the identity that
collects the active adapters, and ``x R``. All contenders hold the same rotation: peft's square P enters as
``K = (P - P^T) / 2``, ours as the triangle of K, whose gradient is twice that of P's entries. The reference gathers,
multiplies block by block and scatters in float64.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

import structmat as sm
from benchmarks.case import Case, Contender, Figure, Problem, Tensors, speed
from benchmarks.cases.adapters import frozen_layer
from benchmarks.memory import peaks

__all__ = ["CASES", "Arithmetic", "Ours", "adapted", "problem"]


class Ours(nn.Module):
    """The layer with its input rotated by an ``OrthogonalButterfly`` and its output scaled."""

    def __init__(self, layer: nn.Linear, skew: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.rotation = nn.Parameter(skew.clone())
        self.scale = nn.Parameter(torch.ones(layer.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = sm.OrthogonalButterfly(self.rotation).transpose().linear(x)
        return self.scale * linear(turned, self.layer.weight) + self.layer.bias


class Arithmetic(nn.Module):
    """What peft's forward pass computes where its extension, which lays blocks on a diagonal, is loaded."""

    moves: torch.Tensor

    def __init__(self, layer: nn.Linear, skew: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.rotation = nn.Parameter(_square(skew))
        self.scale = nn.Parameter(torch.ones(layer.out_features, 1))
        m, count, b, _ = self.rotation.shape
        moves = torch.zeros(m, count * b, count * b)
        for i in range(m):
            moves[i, _members(count * b, b, i).flatten(), torch.arange(count * b)] = 1
        self.register_buffer("moves", moves)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m, count, b, _ = self.rotation.shape
        k = 0.5 * (self.rotation - self.rotation.mT)
        turns = _cayley(k)
        each = torch.arange(count)
        dense = x.new_zeros(m, count, b, count, b)
        dense[:, each, :, each, :] = turns.transpose(0, 1)
        flat = dense.view(m, count * b, count * b)
        factors = torch.bmm(self.moves, torch.bmm(flat, self.moves.mT))
        rotation = factors[0]
        for factor in factors[1:]:
            rotation = factor @ rotation
        rotation = rotation @ torch.eye(count * b)
        y = self.layer(x @ rotation)
        return (y - self.layer.bias) * self.scale.squeeze(-1) + self.layer.bias


def shipped(layer: nn.Linear, skew: torch.Tensor) -> tuple[nn.Module, nn.Parameter, nn.Parameter]:
    """peft's layer around the same weight, its rotation and its scale; only one factor without its extension."""
    from peft.tuners.boft import BOFTConfig
    from peft.tuners.boft.layer import Linear as BOFTLinear

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that m becomes 1, and it is 1
        config = BOFTConfig(boft_block_size=_order(skew), boft_block_num=0, boft_n_butterfly_factor=skew.shape[0])
        module = BOFTLinear(layer, "default", config=config)
    rotation, scale = module.boft_R["default"], module.boft_s["default"]
    with torch.no_grad():
        rotation.copy_(_square(skew))
        scale.fill_(1.0)
    return module, rotation, scale


def adapted(who: str, d: int, block: int, factors: int) -> tuple[nn.Module, tuple[nn.Parameter, ...]]:
    """A contender's model and what it trains, for the measurement of memory; ``"base"`` is the frozen layer alone."""
    layer = frozen_layer(d)
    if who == "base":
        return layer, ()
    model = (Ours if who == "ours" else Arithmetic)(layer, _entries(d, block, factors))
    return model, (model.rotation, model.scale)


def _entries(d: int, block: int, factors: int) -> torch.Tensor:
    return 0.3 * torch.randn(factors, d // block, block * (block - 1) // 2)


def _order(skew: torch.Tensor) -> int:
    return (1 + math.isqrt(1 + 8 * skew.shape[-1])) // 2


def _square(skew: torch.Tensor) -> torch.Tensor:
    """``K = L - L^T`` from its triangles ``(m, d / b, b (b - 1) / 2)``."""
    b = _order(skew)
    rows, columns = torch.tril_indices(b, b, -1)
    k = skew.new_zeros(*skew.shape[:-1], b, b)
    k[..., rows, columns], k[..., columns, rows] = skew, -skew
    return k


def _triangle(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of L from that of P."""
    rows, columns = torch.tril_indices(*gradient.shape[-2:], -1)
    return 2 * gradient[..., rows, columns]


def _members(d: int, b: int, i: int) -> torch.Tensor:
    """Which entries the blocks of factor i take, ``(d / b, b)``: the groups of b / 2 entries a and ``a XOR 2^i``."""
    if i == 0:
        return torch.arange(d).view(-1, b)
    groups = torch.arange(d).view(-1, b // 2)
    lower = torch.tensor([a for a in range(len(groups)) if not a >> i & 1])
    return torch.cat((groups[lower], groups[lower + 2**i]), 1)


def _cayley(k: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(k.shape[-1], dtype=k.dtype)
    return torch.linalg.solve(eye + k, eye - k, left=False)


def reference(layer: nn.Linear, skew: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> Tensors:
    """Output and gradients of x, of the triangles and of the scale, in float64: ``x F_m ... F_1`` block by block."""
    weight, bias = layer.weight.double(), layer.bias.double()
    k = _square(skew.double()).requires_grad_()
    scale = torch.ones(layer.out_features, dtype=torch.float64, requires_grad=True)
    z = x.detach().double().requires_grad_()
    turned, turns = z, _cayley(k)
    for i in range(k.shape[0] - 1, -1, -1):
        members = _members(x.shape[1], k.shape[-1], i)
        blocks = torch.einsum("rcb,cbe->rce", turned[:, members], turns[i])
        turned = torch.zeros_like(z).index_copy(1, members.flatten(), blocks.flatten(1))
    y = scale * linear(turned, weight) + bias
    gx, gk, gs = torch.autograd.grad(y, (z, k, scale), g.double())
    return y, gx, _triangle(gk - gk.mT) / 2, gs


def problem(
    d: int, block: int, factors: int, rows: int, peer: str, ours: Callable[[nn.Linear, torch.Tensor], Any] = Ours
) -> Problem:
    """Ours, the frozen layer alone, and peft as shipped or its arithmetic."""
    layer = frozen_layer(d)
    skew = _entries(d, block, factors)
    x, g = torch.randn(rows, d).requires_grad_(), torch.randn(rows, d)
    model = ours(layer, skew)
    if peer == "peft":
        module, rotation, size = shipped(layer, skew)
    else:
        module = Arithmetic(layer, skew)
        rotation, size = module.rotation, module.scale

    def mine() -> Tensors:
        y = model(x)
        return y, *torch.autograd.grad(y, (x, model.rotation, model.scale), g)

    def other() -> Tensors:
        y = module(x)
        return y, *torch.autograd.grad(y, (x, rotation, size), g)

    def base() -> Tensors:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x,), g)

    def aligned(out: Tensors) -> Tensors:
        return out[0], out[1], _triangle(out[2]), out[3].squeeze(-1)

    eps = torch.finfo(torch.float32).eps
    turn = 8 * eps * (1 + math.sqrt(factors))
    limit = turn + eps * math.sqrt(d)
    inner = 4 * (turn * math.sqrt(block) + eps * math.sqrt(max(d, rows)))  # the gradient of K: sums over the rows too
    return Problem(
        {
            "ours": Contender(mine),
            "peer": Contender(other, "peft" if peer == "peft" else None, aligned),
            "base": Contender(base, read=None),
        },
        ("y", "grad x", "grad skew", "grad scale"),
        lambda: reference(layer, skew, x, g),
        (limit, limit, inner, limit),
    )


def _case(peer: str, block: int, factors: int, rows: int, must: float, heavy: bool = False) -> Case:
    who = "peft's layer" if peer == "peft" else "the arithmetic of peft's layer in plain torch"
    return Case(
        f"boft/{peer} d=1024 b={block} m={factors} rows={rows}",
        f"BOFT on a frozen linear 1024 x 1024, {factors} factors of blocks of {block}, {rows} rows, against {who}",
        lambda: problem(1024, block, factors, rows, peer),
        speed(must=must),
        peers=("peft",) if peer == "peft" else (),
        heavy=heavy,
    )


CASES: tuple[Case, ...] = (
    _case("peft", 32, 1, 16, must=20),
    _case("peft", 32, 1, 256, must=8),
    _case("arithmetic", 32, 2, 256, must=12),
    _case("arithmetic", 2, 10, 256, must=50, heavy=True),
    Case(
        "boft/memory d=4096 b=8 m=4",
        "peak memory that a forward and backward pass adds (256 rows), ours over the arithmetic of peft's layer",
        lambda: problem(256, 8, 4, 64, "arithmetic"),
        Figure("of peer (MB)", lambda t: t["ours"] / t["peer"], lambda t: 1 / 20, at_least=False),
        child=lambda quick: peaks("boft", (4096, 8, 4), (64, 8, 2), rows=256),
    ),
)
