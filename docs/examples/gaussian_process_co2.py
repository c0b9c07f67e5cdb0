"""A Gaussian process on a regular time grid: weekly CO2 at Mauna Loa, its missing weeks, and a forecast.

The series, 1958 to 2001, ships with statsmodels. On a weekly grid the covariance of a stationary process is one
``SymmetricToeplitz``; the weeks without a measurement are left out by ``Submatrix``. The hyperparameters are learned by
maximising the log marginal likelihood through ``factor()``, whose solve and determinant are differentiable. The last
four years are held out. Everything is compared with dense algebra at the point that was learned. Prints what it finds
and writes ``co2.png`` into ``--out``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

try:
    import matplotlib.pyplot as plt
    import torch
    from statsmodels.datasets import co2
except ModuleNotFoundError as error:
    raise SystemExit(f"error: the example needs {error.name!r}: pip install 'structmat[examples]'") from error

import structmat as sm

FIRST_YEAR = 1958.24  # 29 March 1958
WEEKS_A_YEAR = 365.25 / 7
HELD_OUT, BEYOND = 204, 208  # weeks compared with the forecast, and weeks after the last measurement
# The terms of Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.3, with a Matern
# term for what lasts a year, and an exponential one for what lasts weeks; rough first values.
START = {
    "trend, ppm": 30.0,
    "trend, years": 30.0,
    "season, ppm": 3.0,
    "season, decay in years": 50.0,
    "season, smoothness": 1.0,
    "medium term, ppm": 1.0,
    "medium term, years": 2.0,
    "weather, ppm": 0.5,
    "weather, years": 0.1,
    "noise, ppm": 0.3,
}


def series() -> torch.Tensor:
    """The weekly means in ppm, NaN where there is none."""
    return torch.tensor(co2.load_pandas().data["co2"].to_numpy(), dtype=torch.float64)


def covariance(theta: torch.Tensor, weeks: int) -> torch.Tensor:
    """The first column of the covariance of the process: a smooth trend, a season that drifts, a Matern term of medium
    range, and weather that is forgotten exponentially; theta holds the logarithms of the hyperparameters."""
    d = torch.arange(weeks, dtype=theta.dtype) / WEEKS_A_YEAR
    trend, trend_years, season, decay, smooth, medium, medium_years, weather, weather_years, _ = theta.exp()
    smooth_trend = trend**2 * torch.exp(-0.5 * (d / trend_years) ** 2)
    seasonal = season**2 * torch.exp(-0.5 * (d / decay) ** 2 - 2 * (torch.sin(math.pi * d) / smooth) ** 2)
    u = math.sqrt(3) * d / medium_years
    return smooth_trend + seasonal + medium**2 * (1 + u) * torch.exp(-u) + weather**2 * torch.exp(-d / weather_years)


def observed_covariance(theta: torch.Tensor, there: torch.Tensor) -> sm.Submatrix:
    """The covariance of the measurements: signal and noise on the whole grid, without the missing weeks."""
    whole = sm.SymmetricToeplitz(covariance(theta, len(there))).assume(sm.Claim.POSITIVE_DEFINITE)
    noisy = whole + theta[-1].exp() ** 2 * sm.Identity(len(there))
    return sm.Submatrix(noisy.assume(sm.Claim.POSITIVE_DEFINITE), there)


def log_likelihood(theta: torch.Tensor, y: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """``-(y^T K^-1 y + log det K + n log 2 pi) / 2``, from one factorisation."""
    factor = observed_covariance(theta, there).factor()
    return -0.5 * (y @ factor.solve(y) + factor.logabsdet() + len(y) * math.log(2 * math.pi))


def dense_log_likelihood(theta: torch.Tensor, y: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The same with n^2 numbers."""
    lower = torch.linalg.cholesky(observed_covariance(theta, there).to_dense())
    white = torch.linalg.solve_triangular(lower, y[:, None], upper=False)
    return -0.5 * (white.square().sum() + len(y) * math.log(2 * math.pi)) - lower.diagonal().log().sum()


def learn(y: torch.Tensor, there: torch.Tensor, steps: int) -> torch.Tensor:
    """The hyperparameters (their logarithms) that maximise the likelihood, by L-BFGS."""
    theta = torch.tensor(list(START.values()), dtype=torch.float64).log().requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=steps, max_eval=2 * steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = -log_likelihood(theta, y, there)
        loss.backward()
        return loss

    print(f"log likelihood at the start: {float(log_likelihood(theta, y, there).detach()):.1f}")
    optimiser.step(closure)
    taken = optimiser.state[theta]["func_evals"]
    print(f"log likelihood learned:      {float(log_likelihood(theta, y, there).detach()):.1f}, in {taken} evaluations")
    return theta.detach()


def cross_covariance(column: torch.Tensor, weeks: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The covariance of some weeks of the grid with the measured ones, a row a week."""
    return column[(weeks[:, None] - seen).abs()]


def posterior(
    theta: torch.Tensor, y: torch.Tensor, there: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of a measurement in each of the first ``total`` weeks, given those that were made."""
    factor = observed_covariance(theta, there).factor()
    column, seen = covariance(theta, total), there.nonzero()[:, 0]
    weight = torch.zeros(total, dtype=y.dtype).index_copy(0, seen, factor.solve(y))
    mean = sm.SymmetricToeplitz(column) @ weight
    variance = torch.empty_like(mean)
    for some in torch.arange(total).split(256):
        cross = cross_covariance(column, some, seen)
        variance[some] = column[0] - (cross * factor.solve_rows(cross)).sum(-1)
    return mean, (variance.clamp_min(0) + theta[-1].exp() ** 2).sqrt()


def compare_with_dense(
    theta: torch.Tensor, y: torch.Tensor, there: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor
) -> None:
    """Likelihood, gradient, mean and standard deviation by dense algebra, and how far ours are from them."""
    point = theta.clone().requires_grad_()
    ours, dense = log_likelihood(point, y, there), dense_log_likelihood(point, y, there)
    gap = torch.autograd.grad(ours, point)[0] - torch.autograd.grad(dense, point)[0]
    print(f"  log likelihood {dense.item():.4f}, difference {abs((ours - dense).item()):.0e}")
    print(f"  its gradient, largest difference {float(gap.abs().max()):.0e} (in the logarithms of the parameters)")
    column, seen = covariance(theta, len(mean)), there.nonzero()[:, 0]
    lower = torch.linalg.cholesky(observed_covariance(theta, there).to_dense())
    cross = cross_covariance(column, torch.arange(len(mean)), seen)
    white = torch.linalg.solve_triangular(lower, cross.mT, upper=False)
    dense_mean = white.mT @ torch.linalg.solve_triangular(lower, y[:, None], upper=False)[:, 0]
    dense_spread = (column[0] - white.square().sum(0) + theta[-1].exp() ** 2).sqrt()
    print(f"  posterior mean, largest difference {float((mean - dense_mean).abs().max()):.0e} ppm")
    print(f"  standard deviation, largest difference {float((spread - dense_spread).abs().max()):.0e} ppm")


def plot(data: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor, trained: int, out: Path) -> None:
    """The whole series, the years with missing weeks, and the forecast, each with twice the standard deviation."""
    years = FIRST_YEAR + torch.arange(len(mean), dtype=torch.float64) / WEEKS_A_YEAR
    figure, axes = plt.subplots(3, 1, figsize=(8, 10), layout="constrained")
    end = float(years[trained])
    views = [
        ("the whole series", (float(years[0]), float(years[-1]))),
        ("missing weeks", (1958, 1965)),
        ("the forecast", (end - 2, float(years[-1]))),
    ]
    for axis, (title, (left, right)) in zip(axes, views, strict=True):
        inside = (years >= left) & (years <= right)
        axis.fill_between(years[inside], (mean - 2 * spread)[inside], (mean + 2 * spread)[inside], alpha=0.3)
        axis.plot(years[inside], mean[inside], linewidth=0.8, label="posterior mean, two standard deviations")
        shown = inside[: len(data)]
        axis.plot(years[: len(data)][shown], data[shown], "k.", markersize=1.5, label="measured")
        if left < end < right:
            axis.axvline(end, color="grey", linestyle="--", linewidth=0.8)
        axis.set(title=title, ylabel="CO2, ppm", xlim=(left, right))
    axes[0].legend(loc="upper left")
    figure.savefig(out / "co2.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gaussian_process_co2"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=40, help="steps of the optimiser")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)

    data = series()
    trained = len(data) - HELD_OUT
    there = ~data[:trained].isnan()
    missing = int((~there).sum())
    print(f"{len(data)} weeks; trained on a grid of {trained}, of which {missing} are missing; {HELD_OUT} are held out")
    level = data[:trained][there].mean()
    y = data[:trained][there] - level
    example = observed_covariance(torch.tensor(list(START.values()), dtype=torch.float64).log(), there)
    print(f"solve: {sm.backend.explain('solve', example, y)}")

    theta = learn(y, there, options.steps)
    for name, value in zip(START, theta.exp().tolist(), strict=True):
        print(f"  {name:24s}{value:10.3g}")

    mean, spread = posterior(theta, y, there, len(data) + BEYOND)
    print("compared with dense algebra at this point:")
    compare_with_dense(theta, y, there, mean, spread)

    error = data[trained:] - (mean[trained : len(data)] + level)
    measured = ~error.isnan()
    inside = (error.abs() <= 2 * spread[trained : len(data)])[measured].double().mean()
    print(
        f"forecast of the {int(measured.sum())} weeks held out: root mean square error "
        f"{float(error[measured].square().mean().sqrt()):.2f} ppm, {float(inside):.0%} within two standard deviations"
    )
    plot(data, mean + level, spread, trained, options.out)


if __name__ == "__main__":
    main()
