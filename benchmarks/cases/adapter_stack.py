"""Many adapters on one layer: a batch of 32 rows, each with another of 1,000, over the same batch with one adapter.

Forward only, as served; every row of the batch holds 128 tokens. ``stack`` keeps the tensors of all adapters together
and a pass takes those of the 32 rows, so the number of adapters costs nothing; that each row has its own costs 32 small
matrices in place of one. The reference folds each row's weight in float64.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.case import Case, Contender, Problem, Tensors, overhead
from benchmarks.cases.adapters import frozen_layer
from structmat import adapters
from structmat.adapters import folding

__all__ = ["CASES", "stacked_problem"]

_EPS = torch.finfo(torch.float32).eps
MANY, BATCH, TOKENS = 1000, 32, 128


def stacked_problem(make: Callable[[], adapters.Method], d: int, many: int, batch: int, tokens: int) -> Problem:
    """Ours: ``batch`` rows with as many different adapters out of ``many``; base: the same rows, all with one."""
    layer = frozen_layer(d)
    model = nn.Sequential(layer)
    names = [f"a{k}" for k in range(many)]
    generator = torch.Generator().manual_seed(1)
    for name in names:
        adapters.attach(model, make(), targets=["0"], name=name, generator=generator)
    model.requires_grad_(False)
    slots = [model[0].slot(name) for name in names]
    with torch.no_grad():
        for slot in slots:
            for parameter in slot.parameters():  # away from the start, at which all are the base
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    one = nn.Sequential(frozen_layer(d))
    adapters.attach(one, make(), targets=["0"])
    one.requires_grad_(False)
    adapters.stack(model, names)
    ids = torch.randperm(many, generator=generator)[:batch]
    x = torch.randn(batch, tokens, d, generator=generator)

    def ours() -> Tensors:
        with torch.no_grad(), adapters.rows(model, ids):
            return (model(x),)

    def base() -> Tensors:
        with torch.no_grad():
            return (one(x),)

    def right() -> Tensors:
        outputs = []
        for row, k in zip(x, ids.tolist(), strict=True):
            update = slots[k].double().update()
            weight = folding.fold(layer.weight.double(), [update])
            outputs.append(row.double() @ weight.mT + layer.bias.double())
            slots[k].float()
        adapters.stack(model, names)  # the conversions above have ended the sharing
        return (torch.stack(outputs),)

    contenders = {"ours": Contender(ours), "base": Contender(base, read=None)}
    return Problem(contenders, ("y",), right, (8 * _EPS * math.sqrt(d),))


METHODS: dict[str, tuple[Callable[[], adapters.Method], bool]] = {
    "LoRA r=8": (lambda: adapters.LoRA(8), True),
    "HRA r=8": (lambda: adapters.HRA(8), True),
    "BOFT b=8 m=2": (lambda: adapters.BOFT(8, 2), False),
    "OFT b=32": (lambda: adapters.OFT(block=32), False),
    "FLoRA r=8": (lambda: adapters.FLoRA(8), False),
    "circulant": (lambda: adapters.SURM("circulant"), False),
    "toeplitz": (lambda: adapters.SURM("toeplitz"), False),
    "kronecker": (lambda: adapters.SURM("kronecker"), False),
}

CASES: tuple[Case, ...] = tuple(
    Case(
        f"adapters/stack of {MANY} {name} d={d}",
        f"a batch of {BATCH} rows of {TOKENS} tokens, each with another adapter of {MANY}, over one adapter for all",
        functools.partial(stacked_problem, make, d, MANY, BATCH, TOKENS),
        overhead(must=1.3 if must else None),
        versus="base",
    )
    for name, (make, must) in METHODS.items()
    for d in ((256, 1024) if must else (1024,))
)
