"""What the tuner selects and writes, from times that are given to it, and that ``auto`` follows the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tune
from structmat import backend
from structmat.kernels import configs, stored

CPU, HOPPER = torch.device("cpu"), (9, 0)
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are never called on kernels: every mode computes plain torch here, and nothing is compiled."""
    monkeypatch.setattr(tune, "_under", lambda mode, chosen, run: lambda k: run())
    monkeypatch.setattr(tune.torch, "compile", lambda function, **options: function)


def times(kernel: float, composed: float, compiled: float, of: Callable[[str], float] | None = None) -> tune.Timer:
    """A timer of given seconds; ``of`` for the configurations by name."""
    found = {"kernel": kernel, "composed": composed, "compiled": compiled}
    return lambda runs: ({name: found[name] if name in found else (of or len)(name) for name in runs}, {})


def cayleys(*counts: int, b: int = 8) -> list[tune.Problem]:
    return [
        tune.Problem("cayley", torch.float32, ((n, b, b),), tune._drawn((n, b, b), dtype=torch.float32), tune._skewed)
        for n in counts
    ]


def lines_of(timer: tune.Timer, *problems: tune.Problem) -> list[dict[str, Any]]:
    return tune.tuned(iter(problems), timer, CPU, HOPPER)


@pytest.mark.parametrize(
    ("kernel", "composed", "compiled", "wins"),
    [(10, 12, 11.6, True), (10, 12, 11.4, False), (10, 11, 30, False), (10, 30, 9, False), (8, 9.2, 9.2, True)],
)
def test_kernels_must_beat_both_by_the_threshold(kernel: float, composed: float, compiled: float, wins: bool) -> None:
    lines = lines_of(times(kernel, composed, compiled), *cayleys(128))
    assert lines[0]["ratio"] == min(composed, compiled) / kernel
    assert (tune.winners(lines) != {}) is wins


def test_what_failed_is_a_line_with_its_reason_and_never_wins() -> None:
    def no_compiler(runs: dict[str, Any]) -> tune.Times:
        return {"kernel": 1.0, "composed": 9.0}, {"compiled": "RuntimeError: no compiler"}

    lines = lines_of(no_compiler, *cayleys(128))
    assert lines[0]["ratio"] is None and not tune.winners(lines)

    def fails(runs: dict[str, Any]) -> tune.Times:
        raise RuntimeError("out of memory")

    lines = lines_of(fails, *cayleys(128, 512), *cayleys(5, b=100))
    assert [line["errors"]["kernel"] for line in lines[:2]] == ["RuntimeError: out of memory"] * 2
    assert "no configuration for size 100" in lines[2]["errors"]["kernel"] and not tune.winners(lines)


def test_a_kernel_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(mode: str, chosen: Any, run: Callable[[], Any]) -> Callable[[int], Any]:
        return lambda k: tuple(v * (1.01 if mode == "triton" else 1) for v in run())

    monkeypatch.setattr(tune, "_under", wrong)
    (line,) = lines_of(times(1, 9, 9), *cayleys(128))
    assert "disagrees with plain torch by 1.0e-02" in line["errors"]["kernel"] and "seconds" not in line


def test_the_fastest_configuration_of_each_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = (configs.Config("cayley_forward", "fp32", 8, (), warps, 1) for warps in (2, 4))
    configs.lines.cache_clear()
    monkeypatch.setattr(configs, "TABLE", (*configs.TABLE, slow, fast))
    (line,) = lines_of(times(1, 2, 2, lambda name: 1.0 if name == fast.name else 5.0), *cayleys(128))
    assert line["best"]["cayley_forward"] == fast.name and len(line["each"]) == 3
    configs.lines.cache_clear()


def test_every_number_of_rows_needs_three_that_win() -> None:
    lines = lines_of(times(1, 2, 2), *cayleys(128, 512, 2048))
    assert "cayley/float32/8/8/*" in tune.winners(lines)
    assert "cayley/float32/8/8/*" not in tune.winners(lines[:2])
    lines[1]["ratio"] = 1.0
    assert tune.winners(lines).keys() == {"cayley/float32/8/8/128", "cayley/float32/8/8/2048"}


def test_auto_follows_the_file_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = lines_of(times(1, 2, 2), *cayleys(128, 2048)) + lines_of(times(1, 1, 1), *cayleys(512))
    path = tune.write(tmp_path, HOPPER, {"device": "a"}, lines)
    assert path.name == "sm90.json" and json.loads(path.read_text())["threshold"] == 1.15
    monkeypatch.setattr(stored, "TUNED", tmp_path)
    monkeypatch.setattr(backend, "_capability", lambda device: HOPPER)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    stored._stored.cache_clear()
    found = [backend.choose("cayley", CUDA, torch.float32, ((n, 8, 8),))[0] for n in (128, 512, 2048)]
    assert found == ["triton", "reference", "triton"]


def test_a_second_run_replaces_what_it_measured_again(tmp_path: Path) -> None:
    tune.write(tmp_path, HOPPER, {"device": "a"}, lines_of(times(1, 2, 2), *cayleys(128, 512)))
    path = tune.write(tmp_path, HOPPER, {"device": "a"}, lines_of(times(2, 2, 2), *cayleys(512)))
    assert json.loads(path.read_text())["measured"].keys() == {"cayley/float32/8/8/128"}
    path = tune.write(tmp_path, HOPPER, {"device": "b"}, lines_of(times(1, 2, 2), *cayleys(512)))
    assert [line["key"] for line in json.loads(path.read_text())["lines"]] == ["cayley/float32/8/8/512"]


def test_the_time_ends_between_two_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.tuned(iter(cayleys(128)), times(1, 2, 2), CPU, HOPPER, deadline=0.0) == []
    assert "the time was over" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", str(tmp_path)]) == 2 and not list(tmp_path.iterdir())
    assert "no CUDA device" in capsys.readouterr().out


def test_the_problems_have_keys_of_their_own_and_kernels() -> None:
    found = list(tune.problems())
    assert len({p.key for p in found}) == len(found) > 100
    assert {p.op for p in found} >= {"cayley", "block_diagonal", "householder_product", "toeplitz_formed"}
    served = [p for p in found if configs.fits(p.op, str(p.dtype)[6:], p.shapes) is None]
    assert len(served) > 0.8 * len(found)
