"""The demo's second part: a small convolutional network that knows the digits 0 to 4 learns 5 to 9.

The pictures are scikit-learn's (8 x 8 pixels, 1797 of them), so nothing is downloaded. A FLoRA adapter is a Tucker
core with the topology of a convolution's weight; the control is a LoRA of about as many numbers, which sees that weight
as a flat matrix. In every row a new last layer is trained too; "last layer only" is the row without an adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from structmat import _optional, adapters

from .report import aligned
from .verify import difference, same_predictions

__all__ = ["ROWS", "DigitsResult", "Pictures", "Row", "SmallNet", "measure", "pictures", "pretrain", "table"]

CONVOLUTIONS = r"conv[23]"
LAST = r"last\..*"  # trained in every row, saved with the adapter
RATE = 3e-3  # for everything that is trained in any row, and in pretraining
EPOCHS = 40
COLUMNS = ("digits 5 to 9", "parameters", "before", "after", "merge diff", "digits 0 to 4 without it")


@dataclass(frozen=True)
class Row:
    """A name for folders, a title, what is attached; None: nothing, and ``whole`` says whether all weights train."""

    name: str
    title: str
    method: Any = None
    whole: bool = False


# A step moves FLoRA as far as a LoRA of rank 8 (see structmat.adapters.pace); alpha = 8 makes that so for rank 4 too.
ROWS = (
    Row("digits_last", "last layer only"),
    Row("digits_lora", "LoRA r=4 (control)", adapters.LoRA(rank=4, alpha=8.0)),
    Row("digits_flora", "FLoRA r=8,8,3,3", adapters.FLoRA((8, 8, 3, 3))),
    Row("digits_all", "all weights", whole=True),
)


@dataclass(frozen=True)
class DigitsResult:
    """One row of the table; ``None`` where there is no adapter."""

    title: str
    parameters: int
    before: float  # accuracy on held-out pictures of 5 to 9, in 0..1, with a fresh last layer
    after: float
    merge_difference: float | None  # largest |logit adapted - logit merged|
    old_digits: float | None  # accuracy on 0 to 4 with the adapter detached and the old last layer put back


class SmallNet(nn.Module):
    """Three convolutions, the mean over the picture, a linear layer: ``(batch, 1, 8, 8)`` -> ``(batch, 5)``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.last(F.relu(self.conv3(x)).mean((-2, -1)))


@dataclass(frozen=True)
class Pictures:
    """Pictures of five digits, half to train on and half held out; labels from 0 to 4."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def pictures(digits: Sequence[int]) -> Pictures:
    """scikit-learn's pictures of these digits; of each digit every second one is held out."""
    found = _optional.need("sklearn.datasets", "demo").load_digits()
    x = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 16
    y = torch.as_tensor(found.target)
    sides: list[list[Tensor]] = [[], []]
    for digit in digits:
        places = (y == digit).nonzero()[:, 0]
        for k in range(2):
            sides[k].append(places[k::2])
    train, test = (torch.cat(side) for side in sides)
    return Pictures(x[train], y[train] - digits[0], x[test], y[test] - digits[0])


def fit(
    model: SmallNet, parameters: Sequence[nn.Parameter], data: Pictures, epochs: int, rate: float, seed: int
) -> None:
    """Adam in batches of 32, the rate falling linearly to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    batches = -(-len(data.train) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * batches))
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train), generator=generator).split(32):
            loss = F.cross_entropy(model(data.train[chosen]), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def logits(model: SmallNet, data: Pictures) -> Tensor:
    """Of the held-out pictures."""
    return model(data.test)


def accuracy(answers: Tensor, data: Pictures) -> float:
    """Share of right answers on the held-out pictures."""
    return float((answers.argmax(1) == data.test_labels).double().mean())


def pretrain(seed: int = 0, epochs: int = 15) -> SmallNet:
    """The network after training on the digits 0 to 4."""
    torch.manual_seed(seed)
    model = SmallNet()
    fit(model, list(model.parameters()), pictures(range(5)), epochs, RATE, seed)
    return model


def start(pretrained: SmallNet, row: Row, seed: int) -> SmallNet:
    """A copy with a fresh last layer, drawn from the seed alone, and the row's adapter on its convolutions."""
    model = copy.deepcopy(pretrained)
    torch.manual_seed(seed)
    model.last = nn.Linear(model.last.in_features, 5)
    if row.method is not None:
        generator = torch.Generator().manual_seed(seed)
        adapters.attach(model, row.method, targets=CONVOLUTIONS, train=LAST, name="digits", generator=generator)
    elif not row.whole:
        model.requires_grad_(False)
        model.last.requires_grad_(True)
    return model


def check(
    model: SmallNet, row: Row, pretrained: SmallNet, data: Pictures, folder: Path, seed: int
) -> tuple[float, float]:
    """Saved and loaded, merged, detached: the merge difference, and the accuracy on the old digits in the end."""
    trained = logits(model, data)
    adapters.save(model, folder)
    fresh = start(pretrained, ROWS[0], seed + 1)
    adapters.load(fresh, folder)
    same_predictions(trained, logits(fresh, data), f"{row.title}, loaded from {folder}")
    adapters.merge(model)
    largest = difference(trained, logits(model, data), f"{row.title}, merged")
    adapters.detach(model)
    model.last = copy.deepcopy(pretrained.last)
    old = pictures(range(5))
    same_predictions(logits(pretrained, old), logits(model, old), f"{row.title}, detached")
    return largest, accuracy(logits(model, old), old)


def measure(row: Row, pretrained: SmallNet, folder: Path, seed: int = 0, epochs: int = EPOCHS) -> DigitsResult:
    """Train one row on the digits 5 to 9 and measure it."""
    data = pictures(range(5, 10))
    model = start(pretrained, row, seed)
    before = accuracy(logits(model, data), data)
    trained = adapters.trainable_parameters(model)
    fit(model, trained, data, epochs, RATE, seed)
    after = accuracy(logits(model, data), data)
    difference_, old = None, None
    if row.method is not None:
        difference_, old = check(model, row, pretrained, data, folder, seed)
    return DigitsResult(row.title, sum(p.numel() for p in trained), before, after, difference_, old)


def table(results: Sequence[DigitsResult]) -> str:
    """All rows as an aligned Markdown table."""
    return aligned([COLUMNS, *(cells(result) for result in results)])


def cells(result: DigitsResult) -> tuple[str, ...]:
    """The row as text."""
    return (
        result.title,
        f"{result.parameters:,}",
        f"{100 * result.before:.1f} %",
        f"{100 * result.after:.1f} %",
        "-" if result.merge_difference is None else f"{result.merge_difference:.1e}",
        "-" if result.old_digits is None else f"{100 * result.old_digits:.1f} %",
    )
