"""The kernel lane runs in a process of its own: ``TRITON_INTERPRET=1 pytest tests/kernels`` (``tests/test_kernels.py``
starts it), because triton reads that variable when a kernel is decorated. On a GPU ``make gpu`` starts it, in several
processes, for the tests that take a configuration and those of ``test_device.py``: float64 is for the interpreter.
Elsewhere these files are not collected."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.kernels.lane import DEVICE, INTERPRETED, ON_DEVICE, share

collect_ignore_glob = [] if INTERPRETED or ON_DEVICE else ["test_*.py"]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The share of this process, and on a device only what runs there."""
    if not (INTERPRETED or ON_DEVICE):
        return
    mine = [item for item in items if item.path.parent == HERE]
    runs = ("test_device.py",)
    able = [item for item in mine if INTERPRETED or item.path.name in runs or "config" in _parameters(item)]
    kept = {id(item) for item in able[share(len(able))]}
    dropped = [item for item in mine if id(item) not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def _parameters(item: pytest.Item) -> dict[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    """What a test makes without naming a device lies on that of the lane."""
    if DEVICE.type == "cpu":
        yield
        return
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output starts as NaN, so that an entry that no program writes is seen."""
    pytest.importorskip("triton")

    def allocate(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=device)

    for name in ("blockdiag", "cayley", "compose", "householder", "strided", "toeplitz"):
        monkeypatch.setattr(importlib.import_module(f"structmat.kernels.{name}"), "allocate", allocate)
