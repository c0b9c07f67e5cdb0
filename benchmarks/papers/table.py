"""What the runs say: the rate of each row chosen on dev, its test scores, the bounds, a table and a plot."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.rows import CONTROL, HEAD, RATES, ROWS, SEEDS, Row
from benchmarks.papers.train import standard_error

__all__ = ["Line", "best_rate", "lines", "markdown", "plot"]

BELOW_CONTROL, ABOVE_HEAD = 1.0, 3.5
Run = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Line:
    """A row's chosen rate and what came of it; ``faults`` are the bounds it misses, ``complete`` says whether every
    rate and every seed has run."""

    row: Row
    rate: float
    numbers: int
    tests: tuple[float, ...]
    faults: tuple[str, ...]
    complete: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.tests)

    @property
    def error(self) -> float:
        return standard_error(list(self.tests))


def best_rate(runs: Sequence[Run]) -> float:
    """The rate with the best dev accuracy in the runs of the seed that has most rates; of equals that with the lower
    dev loss."""
    seeds = sorted({r["seed"] for r in runs}, key=lambda s: (-sum(r["seed"] == s for r in runs), s))
    tried = [r for r in runs if r["seed"] == seeds[0]]
    return float(max(tried, key=lambda r: (r["dev"], -r["dev_loss"]))["rate"])


def lines(runs: Sequence[Run], rates: Sequence[float] = RATES) -> list[Line]:
    """One line for each row that has runs at these rates; a record may hold others, which no row may choose."""
    found: dict[str, Line] = {}
    for row in ROWS:
        allowed = {*rates, *row.more_rates}
        own = [r for r in runs if r["row"] == row.name and r["rate"] in allowed]
        if own:
            rate = best_rate(own)
            tests = tuple(r["test"] for r in sorted(own, key=lambda r: r["seed"]) if r["rate"] == rate)
            complete = {r["rate"] for r in own} == allowed and len(tests) >= len(SEEDS)
            found[row.name] = Line(row, rate, own[0]["numbers"], tests, (), complete)
    return [dataclasses.replace(line, faults=_faults(line, found)) for line in found.values()]


def _faults(line: Line, found: Mapping[str, Line]) -> tuple[str, ...]:
    control, head = found.get(CONTROL), found.get(HEAD)
    if line.row.budget is None or control is None or head is None:
        return ()
    wrong = []
    if line.mean < control.mean - BELOW_CONTROL:
        wrong.append(f"{control.mean - line.mean:.1f} below LoRA r=8")
    if line.mean < head.mean + ABOVE_HEAD:
        wrong.append(f"only {line.mean - head.mean:.1f} above the head")
    if line.numbers > line.row.budget * control.numbers:
        wrong.append(f"{line.numbers / control.numbers:.3f} of LoRA's numbers")
    return tuple(wrong)


def markdown(found: Sequence[Line]) -> str:
    """The table."""
    control = next((line for line in found if line.row.name == CONTROL), None)
    text = ["| method | trained numbers | of LoRA r=8 | rate | test, mean ± s.e. | seeds | bounds |", "|" + "---|" * 7]
    for line in found:
        share = f"{line.numbers / control.numbers:.4g}" if control else ""
        verdict = "" if line.row.budget is None else "missed: " + "; ".join(line.faults) if line.faults else "met"
        verdict += " so far" if verdict and not line.complete else ""
        spread = f" ± {line.error:.1f}" if len(line.tests) > 1 else ""
        scores = " ".join(f"{t:.1f}" for t in line.tests)
        text.append(
            f"| {line.row.title} | {line.numbers:,} | {share} | {line.rate:g} | {line.mean:.1f}{spread} | "
            f"{scores} | {verdict} |"
        )
    return "\n".join(text)


def plot(found: Sequence[Line], path: Path) -> None:
    """Test accuracy over trained numbers, with standard errors; the head and its bound as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for line in found:
        if line.row.name == HEAD:
            axes.axhline(line.mean, color="grey", linestyle="--", linewidth=1, label=f"head only ({line.mean:.1f})")
            continue
        error = line.error if line.error == line.error else 0.0
        axes.errorbar(line.numbers, line.mean, yerr=error, fmt="o", capsize=3, label=line.row.title)
        if line.row.name == CONTROL:
            axes.axhline(
                line.mean - BELOW_CONTROL, color="black", linestyle=":", linewidth=1, label="LoRA r=8 less one point"
            )
    axes.set_xscale("log")
    axes.set_xlabel("trained numbers besides the head")
    axes.set_ylabel("SST-2 test accuracy, per cent")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
