"""Times of contenders, interleaved: in each round every contender runs once, in an order that moves on by one.

A figure is formed from the times of one round, and its median over the rounds is reported: what slows the machine for
a while slows all contenders of a round alike. Next to the elapsed time stands the processor time of the process; where
the two differ, another program had the core.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks.case import Contender

__all__ = ["Series", "interleaved"]

_LEAST = 0.02  # a timing lasts at least this long: short calls are repeated

Series = list[dict[str, float]]


def interleaved(contenders: Mapping[str, Contender], rounds: int, budget: float) -> tuple[Series, Series]:
    """Per round the elapsed and the processor seconds of one call, by contender.

    Stops before ``rounds`` once ``budget`` seconds are spent, but never below three rounds.
    """
    repeats = {name: _repeats(contender.call) for name, contender in contenders.items()}
    wall: Series = []
    cpu: Series = []
    names = list(contenders)
    started = time.perf_counter()
    for k in range(rounds):
        if k >= 3 and time.perf_counter() - started > budget:
            break
        wall.append({})
        cpu.append({})
        for name in names[k % len(names) :] + names[: k % len(names)]:
            wall[-1][name], cpu[-1][name] = _time(contenders[name].call, repeats[name])
    return wall, cpu


def _repeats(call: Callable[[], object]) -> int:
    """How many calls make one timing; also the warm-up."""
    count = 1
    while True:
        elapsed = _time(call, count)[0] * count
        if elapsed >= _LEAST:
            return count
        count = max(count + 1, min(10 * count, int(1.2 * count * _LEAST / max(elapsed, 1e-9))))


def _time(call: Callable[[], object], count: int) -> tuple[float, float]:
    enabled = gc.isenabled()
    gc.collect(0)
    gc.disable()
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
    finally:
        if enabled:
            gc.enable()


def medians(series: Series) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in series) for name in series[0]}
