"""A stored measurement names the configuration that an operator launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from structmat import backend
from structmat.functional import operators
from structmat.functional.householder import rotate_rows
from structmat.kernels import blockdiag, configs, stored

CUDA = torch.device("cuda", 0)


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


@pytest.mark.parametrize(
    ("rows", "dynamic", "wanted"),
    [("128", False, True), ("256", False, False), ("128", True, False), ("*", True, True), ("*", False, True)],
)
def test_a_compiler_follows_the_measurement(
    rows: str, dynamic: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``auto`` as it decides on a CUDA device: an operator in the graph where the number of rows was measured, or every
    number was and this one is a symbol; else plain torch. The interpreter runs what the graph holds."""
    decide, graphs = backend._decided, []
    monkeypatch.setattr(backend, "served", lambda x: True)
    monkeypatch.setattr(backend, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "_decided", lambda mode, op, device, *rest: decide(mode, op, CUDA, *rest))
    monkeypatch.setattr(stored, "TUNED", tmp_path)
    names = {
        kernel: configs.lines(kernel, "float32", 3)[0].name for kernel in configs.OPERATIONS["householder_product"]
    }
    record = {"measured": {f"householder_product/float32/3/16/{rows}": names}}
    (tmp_path / "sm90.json").write_text(json.dumps(record))

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(module.graph))
        return module

    torch._dynamo.reset()
    traced = torch.compile(rotate_rows, fullgraph=True, backend=keep, dynamic=dynamic)
    v = torch.randn(3, 16)
    torch._dynamo.mark_static(v)
    for count in (100, 120):
        x = torch.randn(count, 16)
        if dynamic:
            torch._dynamo.mark_static(x, 1)
            torch._dynamo.mark_dynamic(x, 0)
        with backend.use_backend("reference"):
            exact = rotate_rows(x, v)
        torch.testing.assert_close(traced(x, v), exact, rtol=1e-4, atol=1e-5)
    assert all(("structmat" in graph) is wanted for graph in graphs)
    assert len(graphs) == (1 if dynamic else 2)
    torch._dynamo.reset()
