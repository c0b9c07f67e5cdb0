"""``python -m structmat identify``: what it prints, its exit codes, and one clear line where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import structmat as sm
from structmat.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """A symmetric Toeplitz matrix in a file."""
    np.save(tmp_path / "blur.npy", sm.toeplitz(0.5 ** torch.arange(12, dtype=torch.float64)).to_dense().numpy())
    return tmp_path / "blur.npy"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model's file: two matrices, a kernel, and what is no matrix."""
    files = pytest.importorskip("safetensors.torch", reason="needs the package 'safetensors'")
    g = torch.Generator().manual_seed(0)
    tensors = {
        "layer.0.weight": sm.LowRank.random(12, 9, 1, generator=g).to_dense(),
        "layer.1.weight": sm.Hankel.random(9, 7, generator=g).to_dense().to(torch.bfloat16),
        "conv.weight": torch.randn(6, 4, 3, 3, generator=g),
        "layer.0.bias": torch.zeros(12),
        "ids": torch.zeros(3, 3, dtype=torch.int64),
    }
    files.save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_an_array(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(array)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("12 x 12, float64, 144 entries: SymmetricToeplitz, exactly\n") and not printed.err
    assert main(["identify", str(array), "--rows", "2", "--budget", "0.5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["identify", str(array), "--rows", "0"]) == 0
    assert "Dense" in capsys.readouterr().out


def test_every_tensor_of_a_model(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(weights)]) == 0
    printed = capsys.readouterr().out
    assert "layer.0.weight: 12 x 9, float32, 108 entries: LowRank rank=1, exactly" in printed
    assert "layer.1.weight: 9 x 7, bfloat16, 63 entries: Hankel, exactly" in printed
    assert "conv.weight: 6 x 4 x 3 x 3, float32, 216 entries" in printed
    assert "bias" not in printed and "ids" not in printed
    assert main(["identify", str(weights), "--tensor", "layer.1.weight"]) == 0
    assert capsys.readouterr().out.startswith("layer.1.weight: 9 x 7")


def test_json_is_json(weights: Path, array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(array), "--json", "--budget", "40"]) == 0
    (document,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (document["tensor"], document["shape"], document["dtype"]) == (None, [12, 12], "float64")
    assert document["budget"] == 40 and document["rows"][0]["structure"] == "SymmetricToeplitz"
    wanted = sm.identify(np.load(array), 40).records()
    assert [row["error"] for row in document["rows"]] == [row["error"] for row in wanted]
    assert main(["identify", str(weights), "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert {d["tensor"] for d in documents} == {"layer.0.weight", "layer.1.weight", "conv.weight"}


def test_pictures(weights: Path, array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the package 'matplotlib'")
    assert main(["identify", str(array), "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["identify", str(weights), "--plot", str(tmp_path / "b.svg")]) == 0
    assert {p.name for p in tmp_path.glob("b-*")} == {f"b-{name}.weight.svg" for name in ("layer.0", "layer.1", "conv")}
    capsys.readouterr()
    assert main(["identify", str(array), "--plot", str(tmp_path / "no" / "a.png")]) == 1
    assert "no picture" in capsys.readouterr().err
    assert main(["identify", str(array), "--plot", str(tmp_path / "a.xyz")]) == 1
    assert "xyz" in capsys.readouterr().err


def test_one_bad_matrix_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pytest.importorskip("safetensors.torch", reason="needs the package 'safetensors'")
    file = tmp_path / "some.safetensors"
    files.save_file({"a": torch.full((3, 3), torch.nan), "b": torch.eye(3)}, file)
    assert main(["identify", str(file)]) == 1
    printed = capsys.readouterr()
    assert "a: identify(M of shape (3, 3), float32): 9 of 9 entries are not finite" in printed.err
    assert "b: 3 x 3, float32, 9 entries: Identity, exactly" in printed.out


def _bytes(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def _saved(path: Path, value: Any) -> str:
    np.save(path, value, allow_pickle=True)
    return str(path)


def test_what_cannot_be_read(tmp_path: Path, weights: Path, array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, exit code 1, nothing on stdout."""
    files = pytest.importorskip("safetensors.torch", reason="needs the package 'safetensors'")
    files.save_file({"bias": torch.zeros(3)}, tmp_path / "thin.safetensors")
    bad = [
        ([str(tmp_path / "absent.npy")], "no such file"),
        ([str(tmp_path)], "no such file"),
        ([_bytes(tmp_path / "a.txt", b"1 2")], "a file of type .txt is not read; legal are .npy and .safetensors"),
        ([_bytes(tmp_path / "noise.npy", b"no array")], "not a readable .npy file"),
        ([_bytes(tmp_path / "cut.npy", array.read_bytes()[:200])], "not a readable .npy file"),
        ([_bytes(tmp_path / "empty.npy", b"")], "not a readable .npy file"),
        ([_saved(tmp_path / "object.npy", np.array([{}, None]))], "not a readable .npy file"),
        ([_saved(tmp_path / "ints.npy", np.eye(3, dtype=int))], "int64"),
        ([_saved(tmp_path / "vector.npy", np.ones(3))], "M[:, None]"),
        ([_bytes(tmp_path / "noise.safetensors", b"no tensors")], "not a readable .safetensors file"),
        ([str(tmp_path / "thin.safetensors")], "holds no matrix"),
        ([str(weights), "--tensor", "layer.2.weight"], "no tensor 'layer.2.weight'; it holds 5, among them layer."),
        ([str(weights), "--tensor", "ids"], "int64"),
        ([str(array), "--tensor", "x"], "holds one array"),
        ([str(array), "--budget", "0.001"], "stores so few numbers"),
    ]
    for arguments, message in bad:
        assert main(["identify", *arguments]) == 1, arguments
        printed = capsys.readouterr()
        assert message in printed.err and not printed.out, printed.err
        assert len(printed.err.splitlines()) == 1 and "Traceback" not in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["identify"],
        ["identify", "a.npy", "--budget", "-3"],
        ["identify", "a.npy", "--budget", "many"],
        ["identify", "a.npy", "--budget", "1.5"],
        ["identify", "a.npy", "--rows", "-1"],
        ["recognise", "a.npy"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: python -m structmat" in capsys.readouterr().err


def test_packages_that_are_absent_are_named(
    weights: Path, array: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["identify", str(weights)]) == 1
    assert "pip install 'structmat[adapters]'" in capsys.readouterr().err
    assert main(["identify", str(array), "--plot", "a.png"]) == 1
    assert "pip install 'structmat[examples]'" in capsys.readouterr().err


def test_as_a_module(array: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "structmat", "identify", str(array), "--rows", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "SymmetricToeplitz, exactly" in done.stdout, done.stderr
