"""The kernel lane runs in a process of its own: ``TRITON_INTERPRET=1 pytest tests/kernels`` (``tests/test_kernels.py``
starts it), because triton reads that variable when a kernel is decorated. Elsewhere these files are not collected."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output starts as NaN, so that an entry that no program writes is seen."""
    from structmat.kernels import blockdiag, cayley, compose, householder, strided, toeplitz

    def allocate(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=device)

    for module in (blockdiag, cayley, compose, householder, strided, toeplitz):
        monkeypatch.setattr(module, "allocate", allocate)
