"""Learning a fast transform from examples: the Fourier transform, and a hidden butterfly.

A chain of log2(n) sparse factors, started at random, sees pairs (x, y = T x) and is fitted by gradient steps. It has
2 n log2(n) numbers where a dense matrix has n^2, and what it finds is a fast algorithm: n log2(n) multiplications.
The setting is that of T. Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations,
2019. Given the matrix itself, the same factors come out of singular value decompositions (``Butterfly.from_dense``).

Run: python docs/examples/learn_transform.py [--out FOLDER] [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import structmat as sm

N, ROWS = 16, 64
REVERSED = [int(f"{i:04b}"[::-1], 2) for i in range(N)]  # the factors write the frequencies with their bits reversed


def targets(generator: torch.Generator) -> dict[str, tuple[sm.Butterfly, torch.Tensor]]:
    """For each target a butterfly with the same digits and axes (its blocks are not used), and the dense matrix."""
    fourier = sm.dft(N) / N**0.5
    hidden = sm.Butterfly.orthogonal(N, generator=generator, dtype=torch.float64)
    return {"Fourier transform": (fourier, fourier.to_dense()), "hidden butterfly": (hidden, hidden.to_dense())}


def learn(like: sm.Butterfly, dense: torch.Tensor, steps: int, generator: torch.Generator) -> list[float]:
    """Relative errors ``||A - T||_F / ||T||_F``, one a step of L-BFGS on the samples; the best of a few starts."""
    x = torch.randn(ROWS, N, generator=generator, dtype=dense.dtype)
    y = x @ dense.mT
    best: list[float] = []
    for _ in range(6):
        blocks = tuple(torch.randn(w.shape, generator=generator, dtype=w.dtype) * 0.7 for w in like.blocks)
        module = sm.nn.Trainable(sm.Butterfly(blocks, like.digits, like.axes, like.order))
        optimizer = torch.optim.LBFGS(module.parameters(), max_iter=10, history_size=30, line_search_fn="strong_wolfe")
        errors = []

        def closure(module: sm.nn.Trainable = module, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (module(x) - y).abs().square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
            with torch.no_grad():
                found = module.matrix.to_dense()
            errors.append(float((found - dense).norm() / dense.norm()))
            if errors[-1] < 1e-6:
                break
        if not best or errors[-1] < best[-1]:
            best = errors
        if best[-1] < 1e-6:
            break
    return best


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Error against the step."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("error: this example needs matplotlib: pip install 'structmat[examples]'") from None
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, errors in curves.items():
        axes.semilogy(range(1, len(errors) + 1), errors, marker=".", label=name)
    axes.set(
        xlabel="step (10 iterations of L-BFGS)", ylabel="relative error", title=f"transforms of length {N}, learned"
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Learn both targets, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/learn_transform"), help="folder of the plot")
    parser.add_argument("--steps", type=int, default=60, help="steps of ten iterations (default 60)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    curves = {}
    print(
        f"{'target':<20}{'numbers':>9}{'dense':>7}{'steps':>7}{'learned from samples':>22}{'peeled from entries':>21}"
    )
    for name, (like, dense) in targets(generator).items():
        curves[name] = learn(like, dense, options.steps, generator)
        exact = dense if like.order is None else dense[REVERSED]
        peeled = sm.Butterfly.from_dense(exact)
        gap = float((peeled.to_dense() - exact).norm() / exact.norm())
        steps, last = len(curves[name]), curves[name][-1]
        print(f"{name:<20}{like.numel_stored:>9}{N * N:>7}{steps:>7}{last:>22.1e}{gap:>21.1e}")
    plot(curves, options.out / "learn_transform.png")


if __name__ == "__main__":
    main()
