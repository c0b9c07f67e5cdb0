"""Deblurring a photograph: reflective boundaries in closed form, and a camera's shake by preconditioned iterations.

The photograph ships with scikit-learn. A part of it is cut out after blurring, so that light from outside has entered
at the borders, as in a camera, and noise is added. It is restored by Tikhonov's method, as if the scene were periodic
and as if it were reflected at the borders. Prints signal-to-noise ratios (PSNR, in dB) of the whole part and of its
outermost 12 pixels, and writes ``deblurred.png`` into ``--out``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

try:
    import matplotlib.pyplot as plt
    import PIL  # noqa: F401  (what scikit-learn reads the photograph with)
    import torch
    from sklearn.datasets import load_sample_image
except ModuleNotFoundError as error:
    raise SystemExit(f"error: the example needs {error.name!r}: pip install 'structmat[examples]'") from error

import structmat as sm

NOISE, MARGIN, BORDER = 0.01, 24, 12  # standard deviation of the noise (white is 1), pixels cut off, pixels of a border
LAPLACIAN = torch.tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=torch.float64)
WEIGHTS = torch.logspace(-4, 0, 13, dtype=torch.float64).tolist()


def disc(radius: int) -> torch.Tensor:
    """The kernel of a lens out of focus: even about its centre along both axes."""
    u = torch.arange(-radius, radius + 1, dtype=torch.float64)
    inside = (u[:, None] ** 2 + u**2 <= (radius + 0.3) ** 2).double()
    return inside / inside.sum()


def shake(size: int = 21) -> torch.Tensor:
    """The kernel of a camera that moved while the shutter was open: a bent path, slower towards its end; not even."""
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for t in torch.linspace(0, 1, 400, dtype=torch.float64).tolist():
        row = size // 2 + 9 * (t - 0.3) - 9.6 * (t - 0.5) ** 2
        kernel[round(row), round(size // 2 + 8 * math.sin(2.2 * t - 0.6))] += 1 + 2 * t
    return kernel / kernel.sum()


def photographed(scene: torch.Tensor, kernel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sharp inner part of a scene, and the same part blurred and noisy."""
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    blurred = sm.BlockToeplitz.from_kernel(kernel, tuple(scene.shape[-2:])).apply(scene)[inner]
    noise = torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scene[inner], blurred + NOISE * noise


def psnr(found: torch.Tensor, sharp: torch.Tensor, border: bool = False) -> float:
    """``-10 log10`` of the mean square error, of all pixels or of those at the border."""
    gap = (found.clamp(0, 1) - sharp).square()
    if border:
        chosen = torch.ones(sharp.shape[-2:], dtype=torch.bool)
        chosen[BORDER:-BORDER, BORDER:-BORDER] = False
        gap = gap[..., chosen]
    return -10 * math.log10(float(gap.mean()))


def columns(images: torch.Tensor) -> torch.Tensor:
    """Images ``(..., h, w)`` as columns of right-hand sides."""
    return images.reshape(-1, images.shape[-2] * images.shape[-1]).mT


def chosen_weight(A: sm.Matrix, roughness: sm.Matrix, y: torch.Tensor) -> float:
    """The weight of least generalised cross-validation score, ``n ||(I - H) y||^2 / tr(I - H)^2``, where ``H y`` is the
    restored image, blurred again. All of these matrices are of one closed type, traces included.
    Source: G. Golub, M. Heath, G. Wahba, Generalized cross-validation as a method for choosing a good ridge parameter,
    1979."""
    y, gram, scores = columns(y), A.mH @ A, []
    for weight in WEIGHTS:
        left_over = sm.Identity(len(y)) - gram @ (gram + weight * roughness).inv()
        scores.append(float((left_over @ y).square().sum() / left_over.trace() ** 2))
    return WEIGHTS[scores.index(min(scores))]


def restored(
    kernel: torch.Tensor, y: torch.Tensor, boundary: str, weight: float | None = None
) -> tuple[torch.Tensor, float]:
    """The minimiser of ``||A x - y||^2 + weight ||L x||^2``, L the Laplacian, in closed form: Fourier transforms if the
    scene is periodic, cosine transforms if it is reflected. And the weight, chosen where none is given."""
    size = tuple(y.shape[-2:])
    A = sm.BlockToeplitz.from_kernel(kernel, size, boundary, symmetric=boundary == "reflect")
    L = sm.BlockToeplitz.from_kernel(LAPLACIAN, size, boundary, symmetric=boundary == "reflect")
    weight = chosen_weight(A, L @ L, y) if weight is None else weight
    x = (A.mH @ A + weight * (L @ L)).solve(columns(A.mH.apply(y)))
    return x.mT.reshape(y.shape), weight


def restored_by_iterations(kernel: torch.Tensor, y: torch.Tensor, weight: float) -> tuple[torch.Tensor, int]:
    """The same minimiser for a kernel that is not even, where no transform serves: conjugate gradients, preconditioned
    by the matrix that the cosine transform does diagonalise. And the number of steps."""
    size = tuple(y.shape[-2:])
    A = sm.BlockToeplitz.from_kernel(kernel, size, "reflect")
    L = sm.BlockToeplitz.from_kernel(LAPLACIAN, size, "reflect", symmetric=True)
    normal = (A.mH.prepare() @ A.prepare() + weight * (L @ L)).assume(sm.Claim.POSITIVE_DEFINITE)
    near = (A.gram_approximation() + weight * (L @ L)).inv()
    b = columns(A.mH.apply(y))
    x, info = sm.linalg.solve(normal, b, method="cg", preconditioner=near, tol=1e-5, return_info=True)
    return x.mT.reshape(y.shape), info.steps


def report(name: str, found: torch.Tensor, sharp: torch.Tensor, note: str = "") -> None:
    """One line of the table."""
    whole, border = psnr(found, sharp), psnr(found, sharp, border=True)
    print(f"  {name:22s} {whole:6.2f} dB   border {border:6.2f} dB   {note}".rstrip())


def compare_periodic(
    kernel: torch.Tensor, y: torch.Tensor, sharp: torch.Tensor, weight: float
) -> tuple[torch.Tensor, float]:
    """The periodic model with the weight it would choose itself and with the given one; the better of the two."""
    tried = [restored(kernel, y, "periodic"), restored(kernel, y, "periodic", weight)]
    for x, used in tried:
        report("restored, periodic", x, sharp, f"weight {used:.0e}")
    return max(tried, key=lambda pair: psnr(pair[0], sharp))


def draw(rows: list[list[torch.Tensor]], out: Path) -> None:
    """Each experiment a row: sharp, blurred, restored with the wrong boundary and with the right one."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 5), constrained_layout=True)
    titles = ("sharp", "blurred, noisy", "restored, periodic", "restored, reflected")
    for line, images in zip(axes, rows, strict=True):
        for axis, image, title in zip(line, images, titles, strict=True):
            shown = image.clamp(0, 1)
            axis.imshow(shown.permute(1, 2, 0) if shown.ndim == 3 else shown, cmap="gray", vmin=0, vmax=1)
            axis.set(title=title, xticks=[], yticks=[])
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "deblurred.png", dpi=90)


def main(argv: Sequence[str] | None = None) -> None:
    """Blur, restore, compare, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/deblur_photograph"), help="folder of the picture")
    out = parser.parse_args(argv).out
    colours = torch.from_numpy(load_sample_image("china.jpg").copy()).double().permute(2, 0, 1) / 255
    rows = []

    sharp, y = photographed(colours, disc(6))
    print(f"out of focus, {tuple(sharp.shape[-2:])} pixels, three colours at once, closed form")
    report("blurred", y, sharp)
    right, weight = restored(disc(6), y, "reflect")
    wrong, _ = compare_periodic(disc(6), y, sharp, weight)
    report("restored, reflected", right, sharp, f"weight {weight:.0e}")
    rows.append([sharp, y, wrong, right])

    sharp, y = photographed(colours.mean(0)[60:340, 100:500], shake())
    print(f"shaken, {tuple(sharp.shape)} pixels, gray, a system of {sharp.numel()} unknowns")
    report("blurred", y, sharp)
    right, steps = restored_by_iterations(shake(), y, weight)
    wrong, _ = compare_periodic(shake(), y, sharp, weight)
    report("restored, reflected", right, sharp, f"weight {weight:.0e}, fewer than {50 * (steps // 50 + 1)} steps")
    rows.append([sharp, y, wrong, right])
    draw(rows, out)


if __name__ == "__main__":
    main()
