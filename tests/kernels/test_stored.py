"""A stored measurement names the configuration that an operator launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from structmat import backend
from structmat.functional import operators
from structmat.kernels import blockdiag, configs, stored


def test_operators_launch_the_configuration_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = configs.Config("blockdiag_forward", "half", 16, (("BM", 32),), 8, 3)
    x, w = torch.randn(100, 32).half(), torch.randn(2, 16, 16).half()
    wanted = operators.block_diagonal(x, w, 1)
    seen = []

    def configured(kernel: str, dtype: torch.dtype, size: int, chosen: Any) -> Any:
        seen.append(chosen)
        return original(kernel, dtype, size, chosen)

    original = blockdiag.configured
    monkeypatch.setattr(blockdiag, "configured", configured)
    monkeypatch.setattr(configs, "TABLE", (*configs.TABLE, other))
    monkeypatch.setattr(backend, "_INTERPRETED", (9, 0))
    monkeypatch.setattr(stored, "TUNED", tmp_path)
    for cached in (configs.lines, backend._configurations):
        cached.cache_clear()
    backward = configs.lines("blockdiag_backward", "float16", 16)[0].name
    names = {"blockdiag_forward": other.name, "blockdiag_backward": backward}
    (tmp_path / "sm90.json").write_text(json.dumps({"measured": {"block_diagonal/float16/16/32/128": names}}))
    found = operators.block_diagonal(x, w, 1)
    operators.block_diagonal_gradient(x, found, w, 1)
    assert [c.name for c in seen] == [other.name, backward]
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)  # a sum of 16 rounded twice in another order
    for cached in (configs.lines, backend._configurations):
        cached.cache_clear()
