"""An autoregressive model of the yearly sunspot numbers: its order by AIC, its cycle, a forecast with its uncertainty.

The series, 1700 to 2008, ships with statsmodels. One Levinson-Durbin recursion gives the models of all orders at once.
The last three cycles are held out, the model is fitted to what came before, and the forecast is compared with what
the sun did. Prints what it finds and writes ``sunspots.png`` into ``--out``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

try:
    import matplotlib.pyplot as plt
    import torch
    from statsmodels.datasets import sunspots
except ModuleNotFoundError as error:
    raise SystemExit(f"error: the example needs {error.name!r}: pip install 'structmat[examples]'") from error

import structmat as sm

MOST = 30  # the highest order tried
HELD_OUT = 33  # three cycles


def series() -> tuple[torch.Tensor, torch.Tensor]:
    """Years and sunspot numbers."""
    table = sunspots.load_pandas().data
    return torch.tensor(table["YEAR"].to_numpy()), torch.tensor(table["SUNACTIVITY"].to_numpy())


def autocovariances(x: torch.Tensor, lags: int) -> torch.Tensor:
    """``r_k = (1/n) sum_t x_{t+k} x_t`` for k = 0..lags: dividing by n at every lag keeps them positive definite.

    All the sums are one product: the Hankel matrix whose row k is the series from lag k on, zeros behind it, times x.
    """
    behind = torch.cat((x, x.new_zeros(lags)))
    shifted = sm.Hankel(behind, columns=len(x))
    return shifted @ x / len(x)


def chosen_order(r: torch.Tensor, n: int) -> tuple[int, torch.Tensor]:
    """The order of least ``AIC = n log(variance) + 2 order``; the variances of all orders follow from the
    reflections."""
    reflection = sm.linalg.levinson_durbin(r).reflection
    variances = r[0] * torch.cat((torch.ones(1, dtype=r.dtype), torch.cumprod(1 - reflection.square(), 0)))
    aic = n * torch.log(variances) + 2 * torch.arange(len(variances))
    return int(aic.argmin()), aic


def forecast(x: torch.Tensor, a: torch.Tensor, steps: int) -> torch.Tensor:
    """The best prediction of the next values: the recursion without its noise."""
    values = x[-len(a) :].tolist()
    for _ in range(steps):
        values.append(sum(c * v for c, v in zip(a.tolist(), reversed(values[-len(a) :]), strict=True)))
    return torch.tensor(values[len(a) :], dtype=x.dtype)


def spread(a: torch.Tensor, variance: float, steps: int) -> torch.Tensor:
    """The standard deviation of the forecast's error: sums of squares of the response to one unit of noise.

    The response h solves ``L h = e_0`` with the lower triangular Toeplitz matrix of ``1, -a_1, -a_2, ...``, which is
    a circulant with f = 0.
    """
    column = torch.zeros(steps, dtype=a.dtype)
    column[0] = 1
    used = min(len(a), steps - 1)
    column[1 : used + 1] = -a[:used]
    unit = torch.zeros(steps, dtype=a.dtype)
    unit[0] = 1
    response = sm.Circulant(column, f=0).solve(unit)
    return torch.sqrt(variance * torch.cumsum(response.square(), 0))


def period(a: torch.Tensor) -> float:
    """Years of the slowest decaying oscillation: the largest complex root of ``z^p - a_1 z^{p-1} - ... - a_p``."""
    companion = torch.zeros(len(a), len(a), dtype=a.dtype)
    companion[0] = a
    companion.diagonal(-1).fill_(1)
    roots = torch.linalg.eigvals(companion)
    roots = roots[roots.imag.abs() > 1e-9]
    largest = roots[roots.abs().argmax()]
    return float(2 * math.pi / largest.angle().abs())


def draw(
    years: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, error: torch.Tensor, aic: torch.Tensor, out: Path
) -> None:
    """The series with the forecast over what was held out, and the criterion over the order."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 1), constrained_layout=True)
    ahead = years[-len(mean) :]
    left.plot(years[-130:], x[-130:], color="0.3", lw=1, label="observed")
    left.plot(ahead, mean, color="C1", label="forecast")
    left.fill_between(
        ahead, (mean - 1.645 * error).clamp(min=0), mean + 1.645 * error, color="C1", alpha=0.25, lw=0, label="90 %"
    )
    left.set(xlabel="year", ylabel="sunspot number", title="Three cycles ahead")
    left.legend(loc="upper left", frameon=False, ncols=3)
    right.plot(aic - aic.min(), ".-", color="C0")
    right.set(xlabel="order", ylabel="AIC above its least", yscale="symlog", title="The order")
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "sunspots.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, forecast, compare, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/sunspots_autoregression"), help="folder of the picture")
    out = parser.parse_args(argv).out
    years, x = series()
    known, later = x[:-HELD_OUT], x[-HELD_OUT:]
    level = known.mean()
    r = autocovariances(known - level, MOST)
    order, aic = chosen_order(r, len(known))
    a, variance, _ = sm.linalg.levinson_durbin(r, order)
    mean = forecast(known - level, a, HELD_OUT) + level
    error = spread(a, float(variance), HELD_OUT)

    dense = torch.linalg.solve(sm.toeplitz(r[:order]).to_dense(), r[1 : order + 1])
    inside = float(((later - mean).abs() <= 1.645 * error).double().mean())
    print(f"yearly sunspot numbers {int(years[0])} to {int(years[-1])}; fitted to the first {len(known)} years")
    print(f"order by AIC, of 0 to {MOST}: {order}")
    print("coefficients: " + " ".join(f"{c:.3f}" for c in a))
    print(f"difference from a dense solve of the Yule-Walker equations: {float((a - dense).abs().max()):.0e}")
    print(f"period of the slowest decaying oscillation: {period(a):.1f} years")
    print(f"standard deviation: series {float(r[0].sqrt()):.1f}, one year ahead {float(variance.sqrt()):.1f}")
    for years_ahead in (1, 11, HELD_OUT):
        gap = float((later - mean)[:years_ahead].square().mean().sqrt())
        flat = float((later - level)[:years_ahead].square().mean().sqrt())
        print(f"error over {years_ahead:2d} held-out years: {gap:5.1f}, of the constant mean {flat:5.1f}")
    print(f"held-out years inside the 90 % band: {inside:.0%}")
    draw(years, x, mean, error, aic, out)


if __name__ == "__main__":
    main()
