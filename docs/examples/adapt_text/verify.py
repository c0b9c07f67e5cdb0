"""One row of the table from start to end: train, measure, save, load into a fresh model, merge, and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from structmat import _optional, adapters

from .data import Example, Split
from .methods import Row
from .model import Encoder, TextClassifier, encode
from .report import Result
from .train import Rows, Settings, accuracy, fit, is_head, predict, prepare

__all__ = ["Bench"]

HEAD_FILE = "head.safetensors"
# Merging rounds each adapted layer differently, by at most 1e-5 of its output in float32 (the library's own limit); a
# dozen such layers and the layers between them amplify that by far less than a hundred.
MERGE_LIMIT = 1e-3


class Mismatch(RuntimeError):
    """Saving, loading or merging changed an answer: a fault of the library, not of the user."""


def difference(trained: Tensor, other: Tensor, what: str) -> float:
    """Largest difference of a logit; ``Mismatch`` if it is more than rounding."""
    largest = float((trained - other).abs().max())
    scale = max(1.0, float(trained.abs().max()))
    if not largest <= MERGE_LIMIT * scale:
        raise Mismatch(f"{what}: a logit differs by {largest:.1e}; the largest logit is {scale:.1f}")
    return largest


def same_predictions(trained: Tensor, other: Tensor, what: str) -> float:
    """``difference``, and ``Mismatch`` if a single prediction changes: a loaded model repeats the same arithmetic."""
    changed = int((trained.argmax(1) != other.argmax(1)).sum())
    if changed:
        raise Mismatch(f"{what}: {changed} of {len(trained)} predictions changed")
    return difference(trained, other, what)


def rotation_error(model: TextClassifier) -> float | None:
    """Largest ``||Q^T Q - I||_F / sqrt(n)`` over the layers whose weight a rotation Q multiplies; None without any."""
    errors = [info.orthogonality for info in adapters.inspect(model).layers]
    return max((error for error in errors if error is not None), default=None)


def save(model: TextClassifier, row: Row, folder: Path) -> None:
    """Write the adapter with the head, or the head alone where there is no adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    if row.make is None:
        head = {name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}
        _optional.need("safetensors.torch", "adapters").save_file(head, folder / HEAD_FILE)
    else:
        adapters.save(model, folder)


@dataclass(frozen=True)
class Bench:
    """The frozen start and the encoded text that all rows share."""

    encoder: Encoder
    labels: int
    train: Rows
    dev: Rows
    test: Rows
    settings: Settings

    @classmethod
    def build(cls, encoder: Encoder, split: Split, settings: Settings) -> Bench:
        """Encode the text once."""
        pad = encoder.tokenizer.pad_token_id or 0

        def rows(examples: list[Example]) -> Rows:
            return Rows(encode(encoder.tokenizer, [e.text for e in examples]), [e.label for e in examples], pad)

        return cls(encoder, len(split.labels), rows(split.train), rows(split.dev), rows(split.test), settings)

    def start(self, row: Row) -> TextClassifier:
        """The frozen start with the row's adapter on it; the head depends on the seed alone: the same in every row."""
        model = self.encoder.classifier(self.labels, self.settings.seed, self.settings.device)
        return prepare(model, row, self.settings)

    def measure(self, row: Row, folder: Path) -> Result:
        """Train the row, then check what a user relies on: the saved and the merged model give the same answers."""
        model = self.start(row)
        seconds = fit(model, row, self.train, self.settings)
        logits = self.predict(model, row, "held out")
        trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        in_head = sum(count for name, count in trained.items() if is_head(name))
        save(model, row, folder)
        reloaded = self.predict(self.reload(row, folder), row, "reloaded")
        reload_difference = same_predictions(logits, reloaded, f"{row.title}, loaded from {folder}")
        merge_difference = None
        if row.make is not None:
            adapters.merge(model)
            merge_difference = difference(logits, self.predict(model, row, "merged"), f"{row.title}, merged")
            adapters.unmerge(model)
        return Result(
            name=row.name,
            title=row.title,
            rate=row.rate,
            adapter_parameters=sum(trained.values()) - in_head,
            head_parameters=in_head,
            accuracy=accuracy(logits, self.test.labels),
            seconds_per_step=seconds,
            orthogonality_error=rotation_error(model),
            merge_difference=merge_difference,
            reload_difference=reload_difference,
            largest_logit=float(logits.abs().max()),
            saved_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        )

    def predict(self, model: TextClassifier, row: Row, what: str) -> Tensor:
        """Logits of the held-out text."""
        return predict(model, self.test, self.settings, f"{row.title:20s} {what}")

    def reload(self, row: Row, folder: Path) -> TextClassifier:
        """A fresh model (its head drawn from another seed) with what ``folder`` holds."""
        fresh = self.encoder.classifier(self.labels, self.settings.seed + 1, self.settings.device)
        if row.make is None:
            fresh.head.load_state_dict(_optional.need("safetensors.torch", "adapters").load_file(folder / HEAD_FILE))
        else:
            adapters.load(fresh, folder)
        return fresh
