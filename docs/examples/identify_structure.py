"""Which structure does a matrix have that came out of someone else's program, or out of data?

Blurs of scipy.ndimage are taken for black boxes: one call for each unit picture gives a matrix, and ``sm.identify``
names its type under each boundary condition. Then a discretised derivative, an inverse, and the covariance of the
pixels of a photograph. Prints what it finds and writes ``structure.png`` into ``--out``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import matplotlib.pyplot as plt
    import numpy as np
    import torch
    from scipy import ndimage
    from sklearn.datasets import load_sample_image
except ModuleNotFoundError as error:
    raise SystemExit(f"error: the example needs {error.name!r}: pip install 'structmat[examples]'") from error

import structmat as sm
from structmat.identification import Identification

ROWS, COLUMNS = 10, 12  # of the pictures that are blurred
SHAKE = np.array([[0.0, 0.1, 0.3], [0.1, 0.4, 0.05], [0.05, 0.0, 0.0]])  # a camera that moved: no symmetry


def matrix_of(function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The matrix of a linear function of pictures, column by column: its value at each unit picture."""
    units = np.eye(shape[0] * shape[1])
    return np.stack([function(unit.reshape(shape)).ravel() for unit in units], axis=1)


def blurs() -> dict[str, np.ndarray]:
    """Six blurs of a picture as matrices."""
    shape = (ROWS, COLUMNS)
    found = {}
    for mode in ("constant", "wrap", "reflect"):
        found[f"shaken camera, {mode}"] = matrix_of(lambda x, m=mode: ndimage.convolve(x, SHAKE, mode=m), shape)
        found[f"Gaussian, {mode}"] = matrix_of(lambda x, m=mode: ndimage.gaussian_filter(x, 0.7, mode=m), shape)
    return found


def laplacian(rows: int, columns: int) -> np.ndarray:
    """Minus the sum of second differences in a rectangle whose border is held at zero."""
    second = [2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1) for n in (rows, columns)]
    return np.kron(second[0], np.eye(columns)) + np.kron(np.eye(rows), second[1])


def photograph_covariance() -> np.ndarray:
    """Of the 8 x 8 pieces of a photograph: 64 x 64."""
    grey = load_sample_image("china.jpg").mean(-1) / 255
    pieces = np.lib.stride_tricks.sliding_window_view(grey, (8, 8))[::2, ::2].reshape(-1, 64)
    return np.cov(pieces.T)


def say(name: str, found: Identification) -> None:
    """One line: the first row."""
    first = found[0]
    shown = "exact" if first.exact else f"{first.error:.1e}"
    print(
        f"{name:26s} {first.label():42s} {first.parameters:6d} numbers of {len(found.singular_values) ** 2}   {shown}"
    )


def noisy(matrix: np.ndarray, part: float) -> np.ndarray:
    """With relative Gaussian noise, as a measured response has."""
    noise = np.random.default_rng(0).standard_normal(matrix.shape)
    return matrix + part * np.linalg.norm(matrix) * noise / np.linalg.norm(noise)


def draw(found: Identification, covariance: np.ndarray, out: Path) -> None:
    """The covariance, all structures tried, and what the two smallest good ones get wrong."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), width_ratios=(1, 1.5, 1, 1), layout="constrained")
    axes[0].imshow(covariance, cmap="viridis")
    axes[0].set(title=f"covariance,\n{covariance.size} entries", xticks=[], yticks=[])
    kinds = (
        "BlockToeplitz",
        "CosineDiagonal",
        "SymmetricToeplitz",
        "Kronecker",
        "LowRank",
        "BlockCirculant",
    )
    for kind in kinds:
        rows = [row for row in found if row.structure == kind]
        axes[1].plot([row.parameters for row in rows], [row.error for row in rows], "o", ms=4, label=kind)
    front = [row for row in found.front if row.parameters > 1]
    axes[1].step([r.parameters for r in front], [r.error for r in front], where="post", color="0.6", lw=1, zorder=0)
    axes[1].set(yscale="log", xlabel="numbers", ylabel="relative error", title="every structure tried")
    axes[1].yaxis.set_minor_formatter("")
    axes[1].legend(fontsize=7, frameon=False)
    for ax, kind in ((axes[2], "BlockToeplitz sizes=8x8"), (axes[3], "CosineDiagonal sizes=8x8")):
        row = next(row for row in found if row.label() == kind)
        wrong = covariance - row.build().to_dense().numpy()
        most = 0.03 * covariance.max()
        image = ax.imshow(wrong, cmap="RdBu_r", vmin=-most, vmax=most)
        ax.set(title=f"{row.structure}, {row.parameters} numbers:\nwhat is left", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes[2:], shrink=0.8)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "structure.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Identify, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/identify_structure"), help="folder of the picture")
    out = parser.parse_args(argv).out

    responses = blurs()
    for name, matrix in responses.items():
        say(name, sm.identify(matrix))
    say("the first, 1 % noise", sm.identify(noisy(responses["shaken camera, constant"], 0.01)))
    grid = laplacian(ROWS, COLUMNS)
    say("Laplacian on a grid", sm.identify(grid))
    say("Laplacian on a line", sm.identify(laplacian(1, 64)))
    decay = sm.toeplitz(1 / (1 + torch.arange(64, dtype=torch.float64)) ** 2)
    say("inverse of a Toeplitz", sm.identify(torch.linalg.inv(decay.to_dense())))

    sharp = np.random.default_rng(1).standard_normal((ROWS, COLUMNS))
    A = sm.identify(responses["Gaussian, reflect"]).best(parameters=ROWS * COLUMNS).build()
    back = A.solve(torch.as_tensor(ndimage.gaussian_filter(sharp, 0.7, mode="reflect")).ravel())
    print(f"\nsolved with {A!r}: error {np.abs(back.numpy() - sharp.ravel()).max():.0e}")

    covariance = photograph_covariance()
    found = sm.identify(covariance, budget=0.1)
    print(f"\ncovariance of the pixels of a photograph:\n{found.to_text(10)}")
    row = found.best(tol=0.005)
    print(f"\nsmallest within 0.5 %: {row.label()}, {row.parameters} numbers, {row.error:.4f}")
    draw(found, covariance, out)


if __name__ == "__main__":
    main()
