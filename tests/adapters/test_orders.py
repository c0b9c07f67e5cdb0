"""Random orders of calls on one model, compared after every call with dense weights folded by definition."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from structmat import adapters
from structmat.adapters.folding import as_matrix
from structmat.adapters.tree import adapted

LIMIT = 1e-9  # float64, a handful of layers, up to some 20 merges and unmerges with rounding
METHODS: dict[str, Any] = {
    "LoRA": adapters.LoRA(3),
    "HRA": adapters.HRA(4),
    "HRA-odd": adapters.HRA(3),
    "HRA-orthonormal": adapters.HRA(4, orthonormal=True),
    "BOFT": adapters.BOFT(4, 2, dropout=0.3),
    "OFT": adapters.OFT(4),
    "FLoRA": adapters.FLoRA(3),
    "circulant": adapters.SURM("circulant"),
    "toeplitz": adapters.SURM("toeplitz", form="product"),
    "kronecker": adapters.SURM("kronecker"),
    "ldr": adapters.SURM("ldr", rank=2),
}
LAYERS = ("words", "first", "conv", "attention.in_proj_weight", "attention.out_proj", "last", "head")


class Net(nn.Module):
    """Every way in which a weight is held: a table, tied to the head, a convolution, an attention's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(11, 16), nn.Linear(16, 24)
        self.conv = nn.Conv1d(24, 24, 3, padding=1, groups=2)
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.last, self.head = nn.Linear(24, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(self.words(ids)))
        x = x + self.conv(x.mT).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.tanh(self.last(x)))


class Walk:
    """A model, and what is known of it: its adapters in order, the active ones, and whether they are merged."""

    def __init__(self, seed: int, folder: Path) -> None:
        torch.manual_seed(seed)
        self.choose, self.folder = random.Random(seed), folder
        self.base = Net().double().eval()
        self.model = copy.deepcopy(self.base)
        self.ids = torch.randint(0, 11, (3, 4))
        self.order: list[str] = []
        self.active: list[tuple[str, float]] = []
        self.stacked: list[str] = []
        self.merged: str | None = None
        self.exact = True

    def expected(self, active: list[tuple[str, float]]) -> torch.Tensor:
        own, weights = dict(self.base.named_parameters(remove_duplicate=False)), {}
        for name in LAYERS:
            key = name if name in own else f"{name}.weight"
            weight, layer = own[key].detach(), adapted(self.model).get(name)
            matrix = weight.mT if name == "words" else weight.flatten(1)
            for adapter, factor in active if layer is not None else []:
                slot = layer.slot(adapter)
                update = None if slot is None else slot.update(training=False)
                if isinstance(update, adapters.Add):
                    matrix = matrix + factor * update.scale * as_matrix(update.matrix).to_dense()
                elif update is not None:
                    matrix = matrix @ update.right.to_dense()
                    matrix = matrix if update.left is None else update.left.to_dense() @ matrix
            weights[key] = matrix.mT if name == "words" else matrix.reshape(weight.shape)
        return functional_call(self.base, weights, (self.ids,), tie_weights=False).detach()

    def check(self, model: nn.Module, active: list[tuple[str, float]]) -> None:
        wanted = self.expected(active)
        assert (model(self.ids) - wanted).abs().max() <= LIMIT * max(1.0, float(wanted.abs().max()))

    def attach(self, name: str) -> None:
        method, targets = (
            self.choose.choice(list(METHODS.values())),
            self.choose.sample(LAYERS, self.choose.randint(1, 3)),
        )
        try:
            adapters.attach(self.model, method, targets, name=name)
        except (ValueError, TypeError):
            return  # what does not fit; check() sees that nothing has changed
        self.order.append(name)
        self.active.append((name, 1.0))
        with torch.no_grad():
            for key, parameter in self.model.named_parameters():
                if f"adapters.{name}." in key:
                    parameter += 0.1 * torch.randn_like(parameter)

    def activate(self, name: str) -> None:
        chosen = self.choose.sample(self.order, self.choose.randint(0, len(self.order)))
        weights = [self.choose.choice([1.0, 1.0, 0.0, -0.5]) for _ in chosen]
        try:
            adapters.activate(self.model, chosen, weights)
        except ValueError:
            return  # a multiple of a rotation
        self.active = list(zip(chosen, weights, strict=True))

    def merge(self, name: str) -> None:
        some = self.choose.sample([one for one, _ in self.active], self.choose.randint(0, len(self.active)))
        keep = self.choose.choice(["copy", "cpu", "none"])
        try:
            adapters.merge(self.model, keep=keep, names=self.choose.choice([None, some]))
        except ValueError:
            return  # a shared weight would be written over, or the order would change
        self.merged, self.exact = keep, self.exact and keep != "none"

    def unmerge(self, name: str) -> None:
        adapters.unmerge(self.model)
        self.merged = None

    def detach(self, name: str) -> None:
        gone = self.choose.sample(self.order, self.choose.randint(1, len(self.order)))
        if self.merged == "none":
            self.unmerge(name)
        adapters.detach(self.model, gone)
        self.merged, self.order = None, [one for one in self.order if one not in gone]
        self.active = [pair for pair in self.active if pair[0] not in gone]
        self.stacked = [] if set(gone) & set(self.stacked) else self.stacked

    def save(self, name: str) -> None:
        adapters.save(self.model, self.folder / name)
        loaded = copy.deepcopy(self.base)
        adapters.load(loaded, self.folder / name)
        assert set(adapters.names(loaded)) == set(self.order)
        self.check(loaded, self.active)

    def copied(self, name: str) -> None:
        self.model = copy.deepcopy(self.model)

    def moved(self, name: str) -> None:
        self.model.double().train()
        self.model.eval()

    def train(self, name: str) -> None:
        trained = adapters.trainable_parameters(self.model)
        loss = self.model(self.ids).square().sum()
        if trained and loss.requires_grad:
            optimizer = torch.optim.Adam(trained, lr=1e-3)
            loss.backward()
            optimizer.step()
            self.model.zero_grad()
            adapters.after_step(self.model, optimizer)

    def stack(self, name: str) -> None:
        chosen = self.choose.sample(self.order, self.choose.randint(0, len(self.order)))
        try:
            adapters.stack(self.model, chosen)
        except ValueError:
            return  # different methods on one layer
        self.stacked = chosen

    def rows(self, name: str) -> None:
        if any(layer.startswith("attention") for layer in adapted(self.model)):
            return  # its weights are read, and have no rows
        known = self.stacked or self.order
        places = [self.choose.randint(-1, len(known) - 1) for _ in self.ids]
        names = ["base" if k < 0 else known[k] for k in places]
        with torch.set_grad_enabled(self.choose.random() < 0.5):
            for ids in (names, torch.tensor(places)):
                with adapters.rows(self.model, ids):
                    y = self.model(self.ids)
                for k, one in enumerate(names):
                    wanted = self.expected([] if one == "base" else [(one, 1.0)])[k]
                    assert (y[k] - wanted).abs().max() <= LIMIT * max(1.0, float(wanted.abs().max()))

    def step(self, name: str) -> None:
        calls = [self.copied, self.moved]
        if self.merged is None:
            calls += [self.attach, self.attach]
        if self.order:
            calls += [self.detach, self.save]
            free = [self.activate, self.merge, self.merge, self.train, self.stack, self.rows]
            calls += free if self.merged is None else [self.unmerge]
        self.choose.choice(calls)(name)
        assert adapters.names(self.model) == tuple(self.order)
        self.check(self.model, self.active)


@pytest.mark.parametrize("seed", range(24))
def test_any_order_of_calls(seed: int, tmp_path: Path) -> None:
    walk = Walk(seed, tmp_path)
    for k in range(24):
        walk.step(f"n{k}")
    if walk.merged is not None:
        adapters.unmerge(walk.model)
    if walk.order:
        adapters.detach(walk.model)
    left, base = walk.model.state_dict(), walk.base.state_dict()
    assert list(left) == list(base)
    assert all(
        torch.equal(left[key], base[key]) if walk.exact else torch.allclose(left[key], base[key]) for key in base
    )
    assert walk.model.head.weight is walk.model.words.weight
