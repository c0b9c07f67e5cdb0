"""How far one step moves an adapted layer, for every method: the derivation of structmat.adapters.pace, measured.

``python -m benchmarks.pace`` prints, for square layers of three sizes, the change of the output along its gradient
after one step of sign descent at a small rate e, divided by e: one number for each output, root mean square. "grid":
the best of five rates, a factor of 2 apart, at learning a random change of a layer, by the final loss.
"""

import argparse
import dataclasses

import torch
from torch import nn

from structmat import adapters

METHODS = {
    "LoRA r=8": adapters.LoRA(8),
    "HRA r=8": adapters.HRA(8),
    "HRA r=8, paper": adapters.HRA(8, step="paper"),
    "HRA r=32": adapters.HRA(32),
    "OFT b=8": adapters.OFT(block=8),
    "OFT b=32": adapters.OFT(block=32),
    "OFT b=32, paper": adapters.OFT(block=32, step="paper"),
    "BOFT b=8 m=2": adapters.BOFT(8, 2),
    "FLoRA r=8": adapters.FLoRA(8),
    "circulant": adapters.SURM("circulant"),
    "toeplitz": adapters.SURM("toeplitz"),
    "symmetric_toeplitz": adapters.SURM("symmetric_toeplitz"),
    "skew": adapters.SURM("skew"),
    "kronecker": adapters.SURM("kronecker"),
    "ldr": adapters.SURM("ldr"),
}
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def attached(method: adapters.Method, n: int, seed: int) -> nn.Sequential:
    """A layer with rows of length about 1, and the method on it."""
    torch.manual_seed(seed)
    layer = nn.Linear(n, n, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(n, n) / n**0.5)
    model = nn.Sequential(layer)
    adapters.attach(model, method, targets=["0"], generator=torch.Generator().manual_seed(seed))
    return model


def pace(method: adapters.Method, n: int, rate: float = 1e-4, seed: int = 0) -> float:
    """Change of the output along a random gradient, for one row: ``(dy . g / |g|) / (sqrt(n) rate)``."""
    model = attached(method, n, seed)
    x, g = torch.randn(1, n), torch.randn(n)
    trained = adapters.trainable_parameters(model)
    before = model(x)
    grads = torch.autograd.grad((before * g).sum(), trained)
    with torch.no_grad():
        for parameter, gradient in zip(trained, grads, strict=True):
            parameter += rate * gradient.sign()
        change = (model(x) - before.detach()) @ (g / g.norm())
    return float(change) / (n**0.5 * rate)


def final_loss(method: adapters.Method, rate: float, n: int = 64, steps: int = 150, seed: int = 0) -> float:
    """The loss after Adam, relative to the start, at moving a layer toward a small random change of its weight."""
    model = attached(method, n, seed)
    with torch.no_grad():
        goal = model[0].base.weight + 0.3 * torch.randn(n, n) / n**0.5
    optimizer = torch.optim.Adam(adapters.trainable_parameters(model), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / steps)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(256, n, generator=source)
    first = last = 0.0
    for _ in range(steps):
        loss = (model(x) - x @ goal.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last = loss.item()
        first = first or last
    return last / first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="store_true", help="also train at each of five rates")
    options = parser.parse_args()
    sizes = (128, 512, 1024)
    print(f"{'method':20s}" + "".join(f"  n={n:<6d}" for n in sizes))
    for name, method in METHODS.items():
        if isinstance(method, adapters.BOFT):
            method = dataclasses.replace(method)
        row = [sum(pace(method, n, seed=seed) for seed in range(3)) / 3 for n in sizes]
        print(f"{name:20s}" + "".join(f"  {value:<8.2f}" for value in row))
    if options.grid:
        print(f"\n{'method':20s}" + "".join(f"  {rate:<8g}" for rate in RATES))
        for name, method in METHODS.items():
            losses = [sum(final_loss(method, rate, seed=seed) for seed in range(2)) / 2 for rate in RATES]
            best = losses.index(min(losses))
            print(f"{name:20s}" + "".join(f"  {v:<8.4f}" for v in losses) + f"  best {RATES[best]:g}")


if __name__ == "__main__":
    main()
