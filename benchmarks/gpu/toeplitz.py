"""Toeplitz products: dense entries and a matrix product, or transforms; few rows by the kernel that forms nothing."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.row import Context, Result, Row, at_least, at_most
from benchmarks.gpu.structures import over
from structmat import backend
from structmat.functional.toeplitz import toeplitz_product

__all__ = ["ROWS", "crossing"]


def crossing(sizes: list[int], ratios: list[float]) -> float | None:
    """Where the ratio passes 1, on a logarithmic scale between two sizes; None where it does not."""
    for (d, e), (a, b) in zip(itertools.pairwise(sizes), itertools.pairwise(ratios), strict=True):
        if (a - 1) * (b - 1) <= 0 and a != b:
            part = math.log(a) / (math.log(a) - math.log(b))
            return math.exp(math.log(d) + part * (math.log(e) - math.log(d)))
    return None


def _under(mode: str, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    with backend.use_backend(mode):
        return toeplitz_product(t, x, x.shape[-1])


def many_rows(c: Context) -> list[Result]:
    """Forward, 16384 rows, bfloat16: which way wins at which order, and which one ``auto`` takes."""
    rows = c.size(16384, 8)
    sizes = [64, 128] if c.dry else [1024, 2048, 4096, 6144, 8192]
    ratios, found, wrong = [], [], []
    for d in sizes:
        x, t = c.randn(rows, d), c.randn(2 * d - 1) / d**0.5
        forced = "reference" if c.dry else "triton"
        runs: dict[str, Callable[[int], Any]] = {
            "formed": functools.partial(lambda k, mode, t, x: _under(mode, t, x), mode=forced, t=t, x=x),
            "transforms": functools.partial(lambda k, mode, t, x: _under(mode, t, x), mode="reference", t=t, x=x),
            "auto": functools.partial(lambda k, mode, t, x: _under(mode, t, x), mode="auto", t=t, x=x),
        }
        seconds, errors = c.times(runs)
        ratio = over(seconds, "formed", "transforms")
        chosen = over(seconds, "auto", "formed", "transforms")
        if ratio is not None and chosen is not None:
            ratios.append(ratio)
            if chosen < 1 / 1.1:
                wrong.append(d)
        moved = 2.0 * x.nbytes
        fraction = c.fraction(moved, seconds.get("formed"))
        name = f"Toeplitz d={d}: transforms over entries"
        found.append(Result(name, ratio, "x", None, None, seconds, errors, moved, fraction))
    where = crossing(sizes, ratios) if len(ratios) == len(sizes) else None
    note = f"auto is more than 10 % behind the better way at {wrong}" if wrong else ""
    bad = float(len(wrong)) if len(ratios) == len(sizes) else None
    name = "Toeplitz: orders where auto is over 10 % behind the better way"
    found.append(Result("Toeplitz: crossover of entries and transforms", where, "order"))
    found.append(Result(name, bad, "orders", at_most(0), None, note=note))
    return found


def few_rows(rows: int, d: int, c: Context) -> list[Result]:
    """Nothing formed, against forming the entries in bfloat16 and one matrix product."""
    d = c.size(d, 64)
    inputs = c.sets(lambda seed: (c.randn(rows, d, seed=seed), c.randn(2 * d - 1, seed=seed) / d**0.5))
    forced = "reference" if c.dry else "triton"

    def formed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ t.flip(-1).unfold(-1, d, 1).flip(-2).contiguous().mT

    compiled = c.compiled(formed)
    of = lambda k: inputs[k % len(inputs)]  # noqa: E731
    runs: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: _under(forced, of(k)[1], of(k)[0]),
        "formed": lambda k: formed(*of(k)),
        "compiled": lambda k: compiled(*of(k)),
        "transforms": lambda k: _under("reference", of(k)[1], of(k)[0]),
    }
    seconds, errors = c.times(runs, graph=tuple(runs))
    value = over(seconds, "kernel", "formed", "compiled", "transforms")
    return [
        Result(
            f"Toeplitz {rows} rows, d={d}: over the best of torch", value, "x", None, at_least(1.15), seconds, errors
        )
    ]


ROWS = (
    Row("Toeplitz crossover", many_rows, ("auto within 10 % of the better way",)),
    Row("Toeplitz 64 rows d=4096", functools.partial(few_rows, 64, 4096)),
    Row("Toeplitz 128 rows d=2048", functools.partial(few_rows, 128, 2048)),
)
