"""The copying problem: a recurrent network that must remember, with its weight orthogonal and without.

Four symbols are shown, then blanks for a while, then a signal: the network must repeat the symbols. The gradient has to
pass through every blank, so it must neither vanish nor explode. The same network is trained three times: with its
recurrent weight kept orthogonal by ``sm.nn.orthogonal``, with a plain weight from the same start, and with a plain
weight as torch starts it.

Run: python docs/examples/copy_task.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import nn

import structmat as sm

SYMBOLS, SHOWN, WAIT, HIDDEN = 6, 4, 100, 64
STEPS, BATCH, EVERY = 400, 32, 20


def episodes(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``(time, count)`` of symbol numbers (0 the blank, SYMBOLS + 1 the signal) and the symbols to repeat."""
    symbols = torch.randint(1, SYMBOLS + 1, (SHOWN, count), generator=generator)
    blanks = torch.zeros(WAIT, count, dtype=torch.long)
    signal = torch.full((1, count), SYMBOLS + 1)
    return torch.cat((symbols, blanks, signal, blanks[: SHOWN - 1])), symbols


class Network(nn.Module):
    """``h <- modrelu(W h + U x)``, read out at the last SHOWN steps; modrelu keeps the sign and shifts the size
    (M. Arjovsky, A. Shah, Y. Bengio, Unitary evolution recurrent neural networks, 2016, section 4.2)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inward = nn.Embedding(SYMBOLS + 2, HIDDEN)
        self.recurrent = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.shift = nn.Parameter(torch.zeros(HIDDEN))
        self.out = nn.Linear(HIDDEN, SYMBOLS)
        if kind != "plain":
            nn.init.orthogonal_(self.recurrent.weight)
        if kind == "orthogonal":
            sm.nn.orthogonal(self.recurrent, "weight", kind="householder")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.recurrent.weight  # built once a sequence
        h = weight.new_zeros(inputs.shape[1], HIDDEN)
        scores = []
        for moment, x in enumerate(self.inward(inputs)):
            z = h @ weight.mT + x
            h = torch.sign(z) * torch.relu(z.abs() + self.shift)
            if moment >= inputs.shape[0] - SHOWN:
                scores.append(self.out(h))
        return torch.stack(scores)


def train(kind: str) -> tuple[list[float], list[float], float]:
    """Losses, orthogonality errors of the recurrent weight, and the share of symbols repeated rightly at the end."""
    torch.manual_seed(0)
    network, generator = Network(kind), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses, errors = [], []
    for step in range(STEPS):
        inputs, symbols = episodes(BATCH, generator)
        loss = nn.functional.cross_entropy(network(inputs).flatten(0, 1), symbols.flatten() - 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % EVERY == 0 or step == STEPS - 1:
            errors.append(sm.checks.orthogonality_error(network.recurrent.weight.detach()).value)
    with torch.no_grad():
        inputs, symbols = episodes(500, torch.Generator().manual_seed(2))
        right = float((network(inputs).argmax(-1) + 1 == symbols).float().mean())
    return losses, errors, right


def plot(results: dict[str, tuple[list[float], list[float], float]], path: Path) -> None:
    """Loss and orthogonality error against the step."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("error: this example needs matplotlib: pip install 'structmat[examples]'") from None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, (losses, errors, _) in results.items():
        smooth = [sum(losses[max(0, k - 10) : k + 1]) / len(losses[max(0, k - 10) : k + 1]) for k in range(len(losses))]
        left.plot(smooth, label=name)
        right.semilogy([min(EVERY * k, STEPS) for k in range(len(errors))], errors, label=name)
    left.axhline(math.log(SYMBOLS), color="gray", linestyle=":", label="guessing")
    left.set(xlabel="step", ylabel="cross entropy", title=f"repeating {SHOWN} symbols after {WAIT} blanks")
    right.set(xlabel="step", ylabel="orthogonality error", title="recurrent weight")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train all, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/copy_task"), help="folder of the plot")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    kinds = {"kept orthogonal": "orthogonal", "orthogonal start only": "start", "torch's own start": "plain"}
    results = {name: train(kind) for name, kind in kinds.items()}
    print(
        f"{SHOWN} of {SYMBOLS} symbols, {WAIT} blanks, {HIDDEN} hidden units, {STEPS} steps of AdamW with weight decay"
    )
    print(f"{'recurrent weight':<23}{'loss':>8}{'right':>9}{'orthogonality error, first':>29}{'last':>10}")
    for name, (losses, errors, right) in results.items():
        last = sum(losses[-20:]) / 20
        print(f"{name:<23}{last:>8.3f}{right:>9.1%}{errors[0]:>29.1e}{errors[-1]:>10.1e}")
    print(f"guessing has loss {math.log(SYMBOLS):.3f} and {1 / SYMBOLS:.1%} right")
    plot(results, out / "copy_task.png")


if __name__ == "__main__":
    main()
