"""Which structure has the change that fine-tuning made to a weight? Identified, cut, and trained as adapters.

A small network learns the digits 0 to 4 of scikit-learn, and is then fine-tuned on 5 to 9 with all its weights. The
changes of two layers are shown to ``sm.identify``; each is replaced by its nearest matrix of a structure, and the
accuracy that is left is measured; then adapters are trained from the start. Run: python choosing_an_adapter.py
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import structmat as sm
from structmat import adapters

Data = tuple[torch.Tensor, torch.Tensor]


def pictures(first: int) -> tuple[Data, Data]:
    """The pictures of five digits, every second one held out."""
    found = load_digits()
    kept = (found.target >= first) & (found.target < first + 5)
    x = torch.as_tensor(found.images[kept], dtype=torch.float32)[:, None] / 16
    y = torch.as_tensor(found.target[kept]) - first
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def network() -> nn.Sequential:
    """Two convolutions and three linear layers."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    pooled = nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 64), nn.ReLU()
    return nn.Sequential(*convolutions, *pooled, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


LAYERS = {"convolution": "2", "linear": "8"}  # of those that are looked at: 32 x 16 x 3 x 3, 64 x 64
LAST = r"10\..*"


def fit(model: nn.Module, data: Data, epochs: int, rate: float = 3e-3) -> None:
    """Adam on what trains, in batches of 32, the rate falling to zero."""
    source = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(adapters.trainable_parameters(model), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * -(-len(data[0]) // 32))
    for _ in range(epochs):
        for chosen in torch.randperm(len(data[0]), generator=source).split(32):
            loss = nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def accuracy(model: nn.Module, data: Data) -> float:
    """In percent."""
    with torch.no_grad():
        return 100 * float((model(data[0]).argmax(1) == data[1]).double().mean())


# begin-cut
def nearest(change: torch.Tensor, most: float = 0.25) -> dict[str, Any]:
    """Of every structure the nearest row, at a quarter of the numbers at most; the best structure first."""
    kinds: dict[str, Any] = {}
    for row in sorted(sm.identify(change, budget=most), key=lambda row: row.error):
        kinds.setdefault(row.structure, row)
    return kinds


def cut(tuned: nn.Module, before: torch.Tensor, layer: str, data: Data) -> None:
    """Put the nearest matrix of each structure in the place of the change; beside it what noise would leave."""
    change = tuned.get_submodule(layer).weight.detach() - before
    noise = nearest(torch.randn(change.shape, generator=torch.Generator().manual_seed(0)))
    print(f"{'kept of the change':58s} {'numbers':>7s}  {'error':>5s}  {'noise':>5s}  accuracy")
    for name, row in list(nearest(change).items())[:8]:
        left = replaced(tuned, layer, before + row.build().to_dense().reshape(change.shape), data)
        chance = f"{noise[name].error:5.2f}" if name in noise else "    -"
        print(f"{row.label():58s} {row.parameters:7d}  {row.error:5.2f}  {chance}  {left:5.1f} %")


def replaced(tuned: nn.Module, layer: str, weight: torch.Tensor, data: Data) -> float:
    """The accuracy of the tuned network with another weight in one layer."""
    model = copy.deepcopy(tuned)
    with torch.no_grad():
        model.get_submodule(layer).weight.copy_(weight)
    return accuracy(model, data)


# end-cut
def beyond_rotation(before: torch.Tensor, after: torch.Tensor) -> float:
    """The part of a change that no rotation ``W Q`` makes: ``min ||W Q - V|| / ||V - W||``, a Procrustes problem."""
    W, V = before.flatten(1).double(), after.flatten(1).double()
    Q, _ = sm.linalg.polar(W.mT @ V)
    return float((W @ Q - V).norm() / (V - W).norm())


def said(before: torch.Tensor, after: torch.Tensor) -> str:
    """How large a change is, and how much of it no rotation makes; the same for a random change of that size."""
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    other = before + noise * (after - before).norm() / noise.norm()
    size = float((after - before).norm() / before.norm())
    parts = beyond_rotation(before, after), beyond_rotation(before, other)
    return (
        f"changed by {size:.2f} of its size; beyond any rotation: {parts[0]:.2f} (of a random change: {parts[1]:.2f})"
    )


# begin-train
CONVOLUTION, LINEAR = LAYERS.values()
CHOICES: dict[str, Any] = {
    "nothing but the last layer": {},
    "LoRA(4)": adapters.LoRA(4, alpha=8.0),  # a scale of 2: the pace of rank 8, as of all others here
    "FLoRA(8)": adapters.FLoRA(8),
    "FLoRA(8, 4, 3, 3) and LoRA(8)": {CONVOLUTION: adapters.FLoRA((8, 4, 3, 3)), LINEAR: adapters.LoRA(8)},
    "HRA(8)": adapters.HRA(8),
    "SURM(circulant)": adapters.SURM("circulant"),
    "SURM(ldr)": adapters.SURM("ldr"),
}


def trained(pretrained: nn.Module, method: Any, data: tuple[Data, Data]) -> tuple[int, float]:
    """The numbers that an adapter trains, without those of the last layer, and its accuracy."""
    model = copy.deepcopy(pretrained)
    model.requires_grad_(False)
    model[-1].requires_grad_(True)
    numbers = 0
    if method:
        targets = None if isinstance(method, dict) else list(LAYERS.values())
        numbers = adapters.attach(model, method, targets, train=LAST).parameters
    fit(model, data[0], 20)
    return numbers, accuracy(model, data[1])


# end-train
def main() -> None:
    """Pretrain, fine-tune, identify, cut; then train adapters."""
    old, new = pictures(0), pictures(5)
    pretrained = network()
    fit(pretrained, old[0], 15)
    tuned = copy.deepcopy(pretrained)
    fit(tuned, new[0], 20)
    print(f"digits 5 to 9: pretrained {accuracy(pretrained, new[1]):.1f} %, fine-tuned {accuracy(tuned, new[1]):.1f} %")
    for name, layer in LAYERS.items():
        before, after = (m.get_submodule(layer).weight.detach() for m in (pretrained, tuned))
        print(f"\n{name} {tuple(before.shape)}, {said(before, after)}")
        cut(tuned, before, layer, new[1])
    print(f"\n{'adapters on these two layers':58s} {'numbers':>7s}  accuracy")
    for name, method in CHOICES.items():
        numbers, right = trained(pretrained, method, new)
        print(f"{name:58s} {numbers:7d}  {right:5.1f} %")


if __name__ == "__main__":
    main()
