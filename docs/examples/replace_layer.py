"""A layer of a pretrained transformer, replaced by a rectangular butterfly and by low rank with as many numbers.

The first matrix of a feed-forward block of MiniLM (384 to 1,536 features) maps real activations, those of the first
sentences of torch's docstrings. A Monarch butterfly of the same shape and a low-rank matrix with as many numbers are
fitted to what it does (its outputs), each from the nearest one to the weight, and put in its place: how much of the
output, and of the model's sentence embeddings, is left on held-out sentences?

Run: python docs/examples/replace_layer.py [--out FOLDER] [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from adapt_text.data import docstring_split, installed
from adapt_text.model import collate, encode, load_encoder
from torch import nn

import structmat as sm

LAYER = "encoder.layer.2.intermediate.dense"
DIGITS = {48: ((16, 24), (32, 48)), 96: ((8, 48), (16, 96))}  # columns 384 = 16 x 24, rows 1536 = 32 x 48, ...


def activations(model: nn.Module, tokenizer: object, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the layer, a row a token, and the sentence embeddings of the whole model."""
    rows: list[torch.Tensor] = []
    layer = model.get_submodule(LAYER)
    handle = layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    vectors = []
    with torch.no_grad():
        for start in range(0, len(texts), 50):
            tokens = encode(tokenizer, texts[start : start + 50])
            ids, mask = collate(tokens, tokenizer.pad_token_id, torch.device("cpu"))
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            rows[-1] = rows[-1][mask.bool()]
            weight = mask[..., None].to(hidden.dtype)
            vectors.append((hidden * weight).sum(1) / weight.sum(1))
    handle.remove()
    return torch.cat(rows), torch.cat(vectors)


def fit(layer: sm.nn.Linear, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """Adam on the squared error of the outputs, 500 tokens a step."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(x), (500,), generator=generator)
        loss = (layer(x[chosen]) - y[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def plot(rows: list[tuple[str, int, float, float]], path: Path) -> None:
    """Output error and likeness of the embeddings against numbers."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("error: this example needs matplotlib: pip install 'structmat[examples]'") from None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for family in ("butterfly", "low rank"):
        mine = [row for row in rows if row[0].startswith(family)]
        left.plot([r[1] for r in mine], [r[2] for r in mine], marker="o", label=family)
        right.plot([r[1] for r in mine], [r[3] for r in mine], marker="o", label=family)
    left.set(xlabel="numbers in the layer", ylabel="relative error of its output")
    right.set(xlabel="numbers in the layer", ylabel="cosine of the sentence embeddings")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fit, replace, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/replace_layer"), help="folder of the plot")
    parser.add_argument("--steps", type=int, default=100, help="steps of Adam a fit (default 100)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    encoder = load_encoder()
    model, tokenizer = encoder.module.eval(), encoder.tokenizer
    texts = [example.text for example in docstring_split(installed(("torch",))).train]
    x, _ = activations(model, tokenizer, texts[:250])
    z, true = activations(model, tokenizer, texts[250:350])
    parent, _, last = LAYER.rpartition(".")
    layer = model.get_submodule(LAYER)
    with torch.no_grad():
        y, w = layer(x), layer(z)
    rows: list[tuple[str, int, float, float]] = []
    for columns, heads in DIGITS.values():
        butterfly = sm.nn.Linear.from_dense(layer, sm.Butterfly, digits=columns, rows=heads)
        rank = butterfly.matrix.numel_stored // sum(butterfly.matrix.shape)
        low = sm.nn.Linear.from_dense(layer, lambda weight, rank=rank: best_rank(weight, rank))
        for name, new in ((f"butterfly {heads[0]} x {heads[1]}", butterfly), (f"low rank {rank}", low)):
            fit(new, x, y, options.steps)
            setattr(model.get_submodule(parent), last, new)
            with torch.no_grad():
                error = float((new(z) - w).norm() / (w - w.mean(0)).norm())
            likeness = float(torch.cosine_similarity(activations(model, tokenizer, texts[250:350])[1], true).mean())
            rows.append((name, new.matrix.numel_stored, error, likeness))
            setattr(model.get_submodule(parent), last, layer)
    print(f"{LAYER}: {tuple(layer.weight.shape)}, {layer.weight.numel():,} numbers")
    print(f"fitted on {len(x):,} tokens, measured on {len(z):,} others")
    print(f"{'':<20}{'numbers':>9}{'output error':>14}{'embedding cosine':>18}")
    for name, count, error, likeness in rows:
        print(f"{name:<20}{count:>9,}{error:>14.3f}{likeness:>18.4f}")
    plot(rows, options.out / "replace_layer.png")


def best_rank(weight: torch.Tensor, rank: int) -> sm.LowRank:
    """The nearest matrix of a rank (Eckart and Young), its factors of equal size."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return sm.LowRank(u[:, :rank] * root, vh[:rank].mT * root)


if __name__ == "__main__":
    main()
