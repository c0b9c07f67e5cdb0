"""The tuner's problems, run on kernels: every operation in every dtype agrees with plain torch and gives a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import tune
from structmat.kernels import configs


def once(runs: dict[str, Callable[[int], Any]]) -> tune.Times:
    """Runs each; seconds that let the kernels win."""
    for run in runs.values():
        run(0)
    return {name: 2.0 if name in ("composed", "compiled") else 1.0 for name in runs}, {}


@pytest.mark.parametrize("problem", list(tune.problems(tiny=True)), ids=lambda p: p.key)
def test_a_problem_gives_a_line(problem: tune.Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune.torch, "compile", lambda function, **options: function)
    line = tune.measured(problem, once, torch.device("cpu"), (9, 0))
    assert line["errors"] == {} and line["ratio"] == 2.0
    assert line["best"].keys() == set(configs.OPERATIONS[problem.op])
