"""Training and prediction: one loop for every row of the table."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from structmat import adapters

from .methods import HEAD_RATE, Row
from .model import TextClassifier, collate

__all__ = ["HEAD", "Rows", "Settings", "fit", "is_head", "predict", "prepare"]

HEAD = r"head\..*"  # trained in every row, saved with the adapter
POOL = 16  # batches whose rows are sorted together by length: less padding, hardly less random
WARMUP = 0.1


@dataclass(frozen=True)
class Settings:
    """What holds for every row of one run."""

    steps: int
    batch_size: int
    seed: int
    targets: str
    device: torch.device


@dataclass(frozen=True)
class Rows:
    """Encoded sentences with their labels."""

    ids: list[list[int]]
    labels: list[int]
    pad: int


def is_head(name: str) -> bool:
    """Whether the parameter belongs to the classifier's head."""
    return re.fullmatch(HEAD, name) is not None


def prepare(model: TextClassifier, row: Row, settings: Settings) -> TextClassifier:
    """Attach the row's adapter (nothing for head only), drawn from the seed; the head stays trainable."""
    if row.make is not None:
        generator = torch.Generator().manual_seed(settings.seed)
        adapters.attach(model, row.make(), targets=settings.targets, train=HEAD, name=row.name, generator=generator)
    return model


def batches(rows: Rows, size: int, seed: int) -> Iterator[list[int]]:
    """Indices of batch after batch, for ever: a new order each epoch, rows of like length together."""
    generator = torch.Generator().manual_seed(seed)
    count = len(rows.ids)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        ready = []
        for start in range(0, count, size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lambda i: len(rows.ids[i]))
            ready += [pool[i : i + size] for i in range(0, len(pool), size)]
        for place in torch.randperm(len(ready), generator=generator).tolist():
            yield ready[place]


def optimiser(
    model: nn.Module, row: Row, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay; the rate rises over the first tenth of the steps and falls linearly to zero."""
    head, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (head if is_head(name) else rest).append(parameter)
    groups = [{"params": head, "lr": row.rate if row.make is None else HEAD_RATE}]
    if rest:
        groups.append({"params": rest, "lr": row.rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    return optimizer, schedule


def fit(model: TextClassifier, row: Row, rows: Rows, settings: Settings) -> float:
    """Train in place for ``settings.steps`` steps; returns the median of the seconds that a step took.

    The encoder stays in eval mode (no dropout inside it); the dropout before the head is on.
    """
    optimizer, schedule = optimiser(model, row, settings.steps)
    torch.manual_seed(settings.seed)
    model.train()
    model.encoder.eval()
    times = []
    stream = batches(rows, settings.batch_size, settings.seed)
    bar = tqdm(range(settings.steps), desc=f"{row.title:20s} train", unit="step", mininterval=0.5)
    for _ in bar:
        chosen = next(stream)
        start = time.perf_counter()
        ids, mask = collate([rows.ids[i] for i in chosen], rows.pad, settings.device)
        truth = torch.tensor([rows.labels[i] for i in chosen], device=settings.device)
        loss = F.cross_entropy(model(ids, mask), truth)
        if row.make is not None:
            loss = loss + adapters.penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if row.make is not None:
            adapters.after_step(model, optimizer)
        schedule.step()
        value = float(loss.detach())  # waits for the device, so the clock below is honest
        times.append(time.perf_counter() - start)
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if value != value:
            raise FloatingPointError(
                f"{row.title}: the loss is NaN at step {len(times)}; a lower rate than {row.rate:g} is needed"
            )
    return statistics.median(times)


@torch.inference_mode()
def predict(model: TextClassifier, rows: Rows, settings: Settings, title: str, size: int = 64) -> Tensor:
    """Logits ``(rows, labels)`` on the CPU, in the order of ``rows``; nothing is dropped out."""
    model.eval()
    order = sorted(range(len(rows.ids)), key=lambda i: len(rows.ids[i]))
    parts: list[Tensor] = []
    for start in tqdm(range(0, len(order), size), desc=title, unit="batch", mininterval=0.5, leave=False):
        ids, mask = collate([rows.ids[i] for i in order[start : start + size]], rows.pad, settings.device)
        parts.append(model(ids, mask).float().cpu())
    logits = torch.cat(parts)
    return logits[torch.tensor(order).argsort()]


def accuracy(logits: Tensor, labels: Sequence[int]) -> float:
    """Share of rows whose largest logit stands at their label."""
    return float((logits.argmax(1) == torch.tensor(labels)).double().mean())
