"""One run: a row at a rate from a seed, trained, scored on dev and test, and checked for what must always hold."""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.papers.rows import HEAD_RATE, Row
from benchmarks.papers.text import Classifier, Text, batches, collate
from structmat import adapters, checks
from structmat.adapters.layer import Slot
from structmat.adapters.method import Compose

__all__ = ["TARGETS", "Settings", "run"]

TARGETS = r".*\.(query|value)"
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs of a table share."""

    steps: int = 187
    batch: int = 16
    half: bool = True  # bfloat16 autocast of the encoder; adapters stay in float32


def run(
    pretrained: nn.Module, texts: Mapping[str, Text], row: Row, rate: float, seed: int, how: Settings
) -> dict[str, Any]:
    """Train and score; plain numbers for a JSON record."""
    model = Classifier(copy.deepcopy(pretrained), seed)
    first = collate(texts["dev"], list(range(8)))[:2]
    with torch.no_grad():
        before = model.eval()(*first)
    if row.make is not None:
        generator = torch.Generator().manual_seed(seed)
        adapters.attach(model, row.make(), targets=TARGETS, train=r"head\..*", generator=generator)
    with torch.no_grad():
        start = float((model.eval()(*first) - before).abs().max())
    begun = time.process_time()
    losses, seconds = fit(model, texts["train"], rate, seed, how, adapted=row.make is not None)
    record: dict[str, Any] = {"row": row.name, "rate": rate, "seed": seed, "start_difference": start}
    record["numbers"] = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "head." not in n)
    record["train_loss"] = statistics.fmean(losses[-40:])
    record["dev"], record["dev_loss"] = score(model, texts["dev"], how)
    record["test"], record["test_loss"] = score(model, texts["test"], how)
    record["cpu_seconds_per_step"] = statistics.median(seconds)
    record["orthogonality_error"] = rotation_error(model)
    record["merge_difference"] = merged_difference(model, first) if row.make is not None else 0.0
    record["cpu_seconds"] = time.process_time() - begun
    return record


def fit(
    model: Classifier, text: Text, rate: float, seed: int, how: Settings, adapted: bool
) -> tuple[list[float], list[float]]:
    """AdamW without decay, a tenth of the steps warming up, then linearly to zero; the losses and CPU times of steps.
    The encoder has no dropout.
    """
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "head." not in n]
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr": HEAD_RATE if adapted else rate}]
    groups += [{"params": rest, "lr": rate}] if rest else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1, how.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, (how.steps - k) / max(1, how.steps - warm))
    )
    torch.manual_seed(seed)  # of the dropout
    model.train()
    model.encoder.eval()
    losses, seconds = [], []
    for _, chosen in zip(range(how.steps), batches(text, how.batch, seed), strict=False):
        begun = time.process_time()
        ids, mask, labels = collate(text, chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=how.half):
            logits = model(ids, mask)
        loss = F.cross_entropy(logits.float(), labels)
        if adapted:
            loss = loss + adapters.penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if adapted:
            adapters.after_step(model, optimizer)
        schedule.step()
        losses.append(float(loss.detach()))
        seconds.append(time.process_time() - begun)
    return losses, seconds


@torch.inference_mode()
def score(model: Classifier, text: Text, how: Settings, size: int = 64) -> tuple[float, float]:
    """Accuracy in per cent and mean loss."""
    model.eval()
    right, total = 0, 0.0
    for chosen in _by_length(text, size):
        ids, mask, labels = collate(text, chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=how.half):
            logits = model(ids, mask)
        right += int((logits.argmax(1) == labels).sum())
        total += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
    return 100 * right / len(text.labels), total / len(text.labels)


def _by_length(text: Text, size: int) -> Iterator[list[int]]:
    order = sorted(range(len(text.ids)), key=lambda i: len(text.ids[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def rotation_error(model: nn.Module) -> float | None:
    """The largest ``||Q^T Q - I||_F / sqrt(n)`` over the layers whose weight a Q multiplies; None if there is none."""
    updates = [slot.update() for slot in model.modules() if isinstance(slot, Slot)]
    factors = [q for u in updates if isinstance(u, Compose) for q in (u.left, u.right) if q is not None]
    return max((float(checks.orthogonality_error(q)) for q in factors), default=None)


@torch.no_grad()
def merged_difference(model: nn.Module, first: tuple[torch.Tensor, ...]) -> float:
    """The largest difference of a logit that merging makes, in float32, over the largest logit."""
    apart = model.eval()(*first)
    adapters.merge(model)
    together = model(*first)
    adapters.unmerge(model)
    return float((together - apart).abs().max() / max(1.0, float(apart.abs().max())))


def standard_error(values: list[float]) -> float:
    """Of the mean of a few runs; nan for one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
