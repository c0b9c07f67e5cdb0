"""How many numbers does it take to approximate a rotation of 512 axes?

A random rotation is approximated, in the Frobenius norm, by orthogonal butterflies BOFT(m, b) of m factors with blocks
of size b, by block diagonal rotations (m = 1: OFT), and by products of Householder reflections. The figure is that of
W. Liu et al., Parameter-efficient orthogonal finetuning via butterfly factorization, 2024, figure 5, with one more
family.

Run: python docs/examples/rotation_budget.py [--out FOLDER] [--steps N]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

import structmat as sm

N = 512
BUTTERFLIES = ((1, 2), (3, 2), (9, 2), (1, 4), (4, 4), (8, 4), (1, 16), (3, 16), (6, 16), (1, 64), (4, 64))
REFLECTIONS = (8, 32, 128)


def rotation(generator: torch.Generator) -> torch.Tensor:
    """Uniform over the rotations: Q of a Gaussian matrix, signs fixed, determinant 1."""
    q, r = torch.linalg.qr(torch.randn(N, N, generator=generator))
    q = q * torch.diagonal(r).sign()
    q[:, 0] *= torch.linalg.slogdet(q).sign
    return q


def fit(start: sm.Matrix, target: torch.Tensor, steps: int) -> tuple[int, float]:
    """Numbers stored, and ``||A - T||_F / sqrt(N)`` after ``steps`` of Adam with a cosine schedule."""
    module = sm.nn.Trainable(start)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    eye = torch.eye(N)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(eye).mT - target).square().sum() / N
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = float((module(eye).mT - target).square().sum() / N)
    return start.numel_stored, math.sqrt(found)


def start_of(m: int, b: int, generator: torch.Generator) -> sm.Matrix:
    """A small random start: at the identity all blocks of a product move alike."""
    shape = sm.OrthogonalButterfly.identity(N, block=b, factors=m).skew.shape
    return sm.OrthogonalButterfly(0.1 * torch.randn(shape, generator=generator))


def plot(rows: list[tuple[str, str, int, float]], path: Path) -> None:
    """Distance against numbers, one line a family."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("error: this example needs matplotlib: pip install 'structmat[examples]'") from None
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for family in dict.fromkeys(row[0] for row in rows):
        mine = sorted((count, error, name) for kind, name, count, error in rows if kind == family)
        axes.plot([c for c, _, _ in mine], [e for _, e, _ in mine], marker="o", label=family)
        for count, error, name in mine:
            axes.annotate(name, (count, error), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(
        xscale="log", xlabel="trained numbers", ylabel="distance / sqrt(n)", title=f"a random rotation of {N} axes"
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fit every family, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/rotation_budget"), help="folder of the plot")
    parser.add_argument("--steps", type=int, default=120, help="steps of Adam a fit (default 120)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    target = rotation(generator)
    rows = []
    for m, b in BUTTERFLIES:
        family = "block diagonal (OFT)" if m == 1 else f"butterflies, b = {b}"
        rows.append((family, f"BOFT({m},{b})", *fit(start_of(m, b, generator), target, options.steps)))
    for r in REFLECTIONS:
        start = sm.HouseholderProduct(torch.randn(r, N, generator=generator))
        rows.append(("reflections", f"r={r}", *fit(start, target, options.steps)))
    print(f"{'':<24}{'':<12}{'numbers':>9}{'distance':>10}   (0: the target; 1.414: what the identity has)")
    for family, name, count, error in rows:
        print(f"{family:<24}{name:<12}{count:>9,}{error:>10.3f}")
    print(f"every rotation: {N * (N - 1) // 2:,} numbers")
    plot(rows, options.out / "rotation_budget.png")


if __name__ == "__main__":
    main()
