"""Seconds of one call: events around many calls, or replays of a CUDA graph of them; medians of rounds in turns."""

import functools
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any

import torch

__all__ = ["Clock"]

_ROUNDS = 5
_REGION = 0.02  # seconds of device time between two events
_CALLS = 20  # in one graph


def message(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Clock:
    """Times functions of a number k, which takes the k-th of several sets of inputs; a CPU is timed by the wall."""

    def __init__(self, device: torch.device, rounds: int = _ROUNDS) -> None:
        self.device = device
        self.rounds = rounds
        self.by_events: set[str] = set()  # of the last comparison: what a graph was asked for and could not hold

    def times(
        self, runs: dict[str, Callable[[int], Any]], *, graph: Collection[str] = ()
    ) -> tuple[dict[str, float], dict[str, str]]:
        """``(seconds, errors)`` by name: a median over rounds in which each is timed once; those named in ``graph`` as
        replays of a graph, which pay for no launch (what waits for the device must not be among them)."""
        ready: dict[str, tuple[Callable[[], Any], int]] = {}
        errors: dict[str, str] = {}
        self.by_events = set()
        for name, run in runs.items():
            try:
                ready[name] = self._prepared(name, run, name in graph)
            except Exception as error:
                errors[name] = message(error)
        samples: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.rounds):
            for name, (region, calls) in ready.items():
                if name not in errors:
                    try:
                        samples[name].append(self._region(region) / calls)
                    except Exception as error:
                        errors[name] = message(error)
        return {name: statistics.median(v) for name, v in samples.items() if v and name not in errors}, errors

    def _prepared(self, name: str, run: Callable[[int], Any], graph: bool) -> tuple[Callable[[], Any], int]:
        """A region of calls about ``_REGION`` long, after the calls that compile and warm up."""
        for k in range(3):
            run(k)
        if self.device.type != "cuda":
            return lambda: run(0), 1
        torch.cuda.synchronize()
        if graph:
            captured = self._captured(run)
            if captured is not None:
                one = max(1e-6, self._region(captured))
                repeats = max(1, min(200, round(_REGION / one)))
                return lambda: [captured() for _ in range(repeats)], repeats * _CALLS
            self.by_events.add(name)
        one = max(1e-6, min(self._region(functools.partial(run, k)) for k in range(2)))
        calls = max(2, min(200, round(_REGION / one)))
        return lambda: [run(k) for k in range(calls)], calls

    def _captured(self, run: Callable[[int], Any]) -> Callable[[], Any] | None:
        """The replay of a graph of ``_CALLS`` calls, or None where a call cannot be captured."""
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for k in range(_CALLS):
                    run(k)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for k in range(_CALLS):
                    run(k)
        except Exception:  # a solver that waits for the device: timed by events
            torch.cuda.synchronize()
            return None
        replay: Callable[[], Any] = graph.replay
        return replay

    def _region(self, region: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            region()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        region()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
