"""The table of methods in README and in the documentation: its formulas count what is trained, README is up to date."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from structmat import adapters
from structmat.adapters.kinds.checked import KINDS
from structmat.adapters.refused import REFUSED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """Return docs/_ext/adapter_rows.py as a module."""
    spec = importlib.util.spec_from_file_location("adapter_rows", ROOT / "docs" / "_ext" / "adapter_rows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_readme_holds_the_table_of_today(table: ModuleType) -> None:
    text = table.README.read_text(encoding="utf-8")
    assert text == table.written(text), "run docs/_ext/adapter_rows.py"


def test_a_table_that_is_out_of_date_is_written_anew(table: ModuleType) -> None:
    old = "before\n" + table.BEGIN + "| old |\n" + table.END + "after\n"
    assert table.written(old) == "before\n" + table.BEGIN + table.markdown() + table.END + "after\n"
    with pytest.raises(ValueError, match="lacks the lines"):
        table.written("no place")


@pytest.mark.parametrize("width", [16, 64, 768])
def test_the_formulas_count_what_an_attached_adapter_trains(table: ModuleType, width: int) -> None:
    for row in table.ROWS:
        model = torch.nn.Sequential(torch.nn.Linear(width, width, device="meta"))
        assert table.formula(row, width) == adapters.attach(model, row.method, targets=["0"]).parameters, row.call


def test_every_method_with_a_size_has_a_row(table: ModuleType) -> None:
    public = {getattr(adapters, name) for name in adapters.__all__}
    methods = {cls for cls in public if isinstance(cls, type) and isinstance(getattr(cls, "name", None), str)}
    without = {adapters.Delta, adapters.Rotation, adapters.OnRows}  # their numbers are those of what they are given
    assert methods - without == {type(row.method) for row in table.ROWS}


def test_every_kind_of_layer_and_every_refusal_is_told(table: ModuleType) -> None:
    assert {kind.name for kind in KINDS} == set(table.FAMILIES)
    told = {(kind.strip(" `"), change.strip("`")) for kinds, change, _ in table.refused() for kind in kinds.split(",")}
    assert told == {(kind, change.__name__) for kind, change in REFUSED}
    assert table.layers(adapters.LoRA(1)) == "all"
    assert table.layers(adapters.HRA(2)) == "all but transposed convolution, embedding"
    assert table.layers(adapters.Bottleneck("circulant")) == "linear, quantised"
