"""Files of adapters: they come back bit for bit in another process, and a bad one changes nothing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from structmat import adapters
from structmat.adapters import checkpoint
from structmat.errors import CheckpointError
from tests.adapters.cases import DTYPES, METHODS, generator, make_input, make_model, perturb
from tests.adapters.test_bad_input import Encoder, fingerprint

READ = """
import torch
from structmat import adapters
from tests.adapters.cases import make_input, make_model
model = make_model({layer!r}, {dtype})
adapters.load(model, {folder!r})
torch.save(model(make_input({layer!r}, {dtype})), {out!r})
"""


def test_saved_then_loaded_equals_in_another_process(tmp_path: Path) -> None:
    """All methods, layers of both kinds and the three dtypes; one process reads them all."""
    script, expected = [], {}
    for method, layer, dtype in [(m, "wide", "float64") for m in METHODS] + [
        ("HRA-odd", "Conv1D", "float32"),
        ("toeplitz", "square", "bfloat16"),
    ]:
        model = make_model(layer, DTYPES[dtype])
        adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
        perturb(model)
        folder = tmp_path / f"{method}-{layer}"
        adapters.save(model, folder)
        expected[folder] = model(make_input(layer, DTYPES[dtype]))
        script.append(READ.format(layer=layer, dtype=f"torch.{dtype}", folder=str(folder), out=str(folder / "y.pt")))
    subprocess.run([sys.executable, "-c", "\n".join(script)], check=True, cwd=Path(__file__).parents[2])
    for folder, y in expected.items():
        assert torch.equal(torch.load(folder / "y.pt"), y)


def trained() -> Encoder:
    torch.manual_seed(3)
    model = Encoder()
    adapters.attach(model, adapters.LoRA(2), targets=r".*\.query", name="first")
    adapters.attach(
        model, {r".*\.query": adapters.HRA(3), r".*\.value": adapters.SURM("toeplitz")}, name="second", train="head"
    )
    perturb(model)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    return model


def test_order_activity_extras_and_several_adapters(tmp_path: Path) -> None:
    model = trained()
    x = torch.randn(4, 6)
    adapters.activate(model, ["second", "first"], weights=[1.0, 0.5])
    adapters.save(model, tmp_path / "deep" / "folder")
    torch.manual_seed(3)
    fresh = Encoder()
    reports = adapters.load(fresh, tmp_path / "deep" / "folder")
    assert [report.name for report in reports] == ["first", "second"]
    assert reports[1].extras == ("head.weight", "head.bias")
    assert adapters.names(fresh) == ("first", "second")
    assert adapters.inspect(fresh).active == (("second", 1.0), ("first", 0.5))
    assert torch.equal(fresh(x), model(x))
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == ["adapters.json", "adapters.safetensors"]


def test_one_of_several_under_another_name(tmp_path: Path) -> None:
    model = trained()
    adapters.save(model, tmp_path, names="first")
    with pytest.raises(ValueError, match="load: there is already an adapter 'first'"):
        adapters.load(model, tmp_path)
    x = torch.randn(4, 6)
    adapters.activate(model, "first")
    before = model(x)
    adapters.load(model, tmp_path, name="again")
    adapters.activate(model, "again")
    assert torch.equal(model(x), before)


def test_loading_trains_only_when_asked(tmp_path: Path) -> None:
    adapters.save(trained(), tmp_path)
    model = Encoder()
    adapters.load(model, tmp_path)
    own = {key for key, p in model.named_parameters() if p.requires_grad}
    assert not any(".adapters." in key for key in own)
    assert "layer.0.query.base.weight" in own
    model = Encoder()
    adapters.load(model, tmp_path, trainable=True)
    own = {key for key, p in model.named_parameters() if p.requires_grad}
    assert all(".adapters." in key or key.startswith("head.") for key in own)
    assert len(own) == 2 * 2 + 2 + 2 + 2
    adapters.detach(model)
    assert all(p.requires_grad for p in model.parameters())


def test_saving_while_merged_saves_the_same(tmp_path: Path) -> None:
    model = trained()
    adapters.save(model, tmp_path / "a")
    adapters.merge(model)
    adapters.save(model, tmp_path / "b")
    for name in ("adapters.json", "adapters.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_save_refuses_before_writing(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(ValueError, match="save: there is no adapter 'third'"):
        adapters.save(model, tmp_path / "x", names="third")
    assert not (tmp_path / "x").exists()


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    adapters.save(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        adapters.save(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- bad files --------------------------------------------------------------------------------------------------------

JSON, TENSORS = "adapters.json", "adapters.safetensors"
FIRST = "first/layers/layer.0.query/left"


def edit_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / JSON).read_text())
        change(document)
        (folder / JSON).write_text(json.dumps(document))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return edit


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return edit


def layer(document: dict[str, Any]) -> dict[str, Any]:
    return document["adapters"]["first"]["layers"]["layer.0.query"]


def rename(document: dict[str, Any], to: str) -> None:
    layers = document["adapters"]["first"]["layers"]
    layers[to] = layers.pop("layer.0.query")


def rename_adapter(document: dict[str, Any], to: str) -> None:
    document["adapters"][to] = document["adapters"].pop("first")


BAD = {
    "no json": (lambda f: (f / JSON).unlink(), r"adapters\.json does not exist or is no file"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), r"adapters\.safetensors does not exist or is no file"),
    "truncated json": (cut(JSON, 0.7), r"adapters\.json is damaged: JSONDecodeError"),
    "not text": (write(JSON, b"\xff\xfe\x00"), r"adapters\.json is damaged: UnicodeDecodeError"),
    "deeply nested": (write(JSON, b"[" * 100_000), r"adapters\.json is damaged: RecursionError"),
    "oversized json": (
        write(JSON, b" " * (checkpoint.JSON_LIMIT + 1)),
        r"16,777,217 bytes; at most 16,777,216 are read",
    ),
    "repeated key": (write(JSON, b'{"format": 1, "format": 2}'), "a key is repeated"),
    "NaN": (write(JSON, b'{"format": NaN}'), "NaN is no number of JSON"),
    "other file": (write(JSON, b'{"peft_type": "LORA"}'), r"its format is not 'structmat\.adapters'"),
    "a list": (write(JSON, b"[]"), "no file of structmat adapters"),
    "newer version": (edit_json(lambda d: d.update(version=2)), "has version 2; this structmat reads version 1"),
    "version of another type": (edit_json(lambda d: d.update(version=True)), "has version True"),
    "unknown key": (edit_json(lambda d: d.update(run="rm")), r"missing keys \[\], unknown keys \['run'\]"),
    "missing key": (edit_json(lambda d: d.pop("active")), r"missing keys \['active'\]"),
    "no adapters": (edit_json(lambda d: d.update(adapters={})), "the file holds no adapter"),
    "adapters a list": (edit_json(lambda d: d.update(adapters=[])), "adapters must be a JSON object, got list"),
    "no layers": (edit_json(lambda d: d["adapters"]["first"].update(layers={})), "'first' of the file has no layers"),
    "path as a layer": (edit_json(lambda d: rename(d, "../../etc")), r"the model has no layer '\.\./\.\./etc'"),
    "the model as a layer": (edit_json(lambda d: rename(d, "")), "the model has no layer ''"),
    "attribute as a layer": (edit_json(lambda d: rename(d, "__class__")), "the model has no layer '__class__'"),
    "layer of another kind": (edit_json(lambda d: rename(d, "norm")), "the file adapts 'norm': .* LayerNorm"),
    "name with a path": (edit_json(lambda d: rename_adapter(d, "../x")), r"name has 1 to 64 letters.*, got '\.\./x'"),
    "other size": (edit_json(lambda d: layer(d).update(in_features=7)), "made for in_features=7, the model has 6"),
    "other kind": (
        edit_json(lambda d: layer(d).update(kind="Conv1D")),
        "made for kind='Conv1D', the model has 'Linear'",
    ),
    "unknown method": (
        edit_json(lambda d: layer(d).update(method="os.system")),
        r"no method 'os\.system' is registered",
    ),
    "unknown parameter": (edit_json(lambda d: layer(d)["parameters"].update(x=1)), "method 'LoRA' has no parameter x"),
    "rank zero": (edit_json(lambda d: layer(d)["parameters"].update(rank=0)), "rank must be an integer of at least 1"),
    "huge rank": (edit_json(lambda d: layer(d)["parameters"].update(rank=10**12)), r"layer 'layer\.0\.query': LoRA"),
    "another rank": (
        edit_json(lambda d: layer(d)["parameters"].update(rank=3)),
        r"left' has shape \(6, 2\), the model and its method need \(6, 3\)",
    ),
    "active unknown": (edit_json(lambda d: d.update(active=[["third", 1.0]])), "is no \\[name, weight\\]"),
    "active no weight": (edit_json(lambda d: d.update(active=[["first", "1"]])), "must be a finite number, got '1'"),
    "active twice": (edit_json(lambda d: d.update(active=[["first", 1], ["first", 1]])), "names an adapter twice"),
    "rotation weighted": (
        edit_json(lambda d: d.update(active=[["second", 0.5]])),
        "weight 0.5 for 'second': it multiplies the weight",
    ),
    "extra unknown": (
        edit_json(lambda d: d["adapters"]["second"]["extras"].update({"haed.weight": [2, 6]})),
        "the model has no parameter 'haed.weight'; near: 'head.weight'",
    ),
    "extra of another shape": (
        edit_json(lambda d: d["adapters"]["second"]["extras"].update({"head.weight": [6, 2]})),
        r"parameter 'head\.weight': the file holds shape \[6, 2\], the model has \[2, 6\]",
    ),
    "truncated tensors": (cut(TENSORS, 0.9), r"adapters\.safetensors is damaged"),
    "empty tensors": (write(TENSORS, b""), r"adapters\.safetensors is damaged"),
    "huge header": (
        write(TENSORS, (2**62).to_bytes(8, "little") + b"{}"),
        "its header claims 4,611,686,018,427,387,904",
    ),
    "pickle": (write(TENSORS, b"\x80\x02cos\nsystem\nq\x00."), r"adapters\.safetensors is damaged"),
    "tensor missing": (edit_tensors(lambda t: t.pop(FIRST)), f"lacks tensor '{FIRST}'"),
    "tensor unknown": (edit_tensors(lambda t: t.update(more=torch.zeros(1))), "holds the unknown tensor 'more'"),
    "tensor of another shape": (
        edit_tensors(lambda t: t.update({FIRST: torch.zeros(6, 5)})),
        r"left' has shape \(6, 5\), the model and its method need \(6, 2\)",
    ),
    "tensor of integers": (
        edit_tensors(lambda t: t.update({FIRST: torch.zeros(6, 2, dtype=torch.int32)})),
        "left' has dtype I32, which is not F32",
    ),
    "tensor not finite": (
        edit_tensors(lambda t: t[FIRST].fill_(float("inf"))),
        "left' holds numbers that are not finite",
    ),
    "extra not finite": (
        edit_tensors(lambda t: t["second/extras/head.bias"].fill_(float("nan"))),
        "head.bias' holds numbers that are not finite",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    adapters.save(trained(), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files(fault: str, good: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    edit, message = BAD[fault]
    edit(tmp_path)
    model = Encoder()
    before, values = fingerprint(model), copy.deepcopy(model.state_dict())
    with pytest.raises((CheckpointError, ValueError), match=message) as caught:
        adapters.load(model, tmp_path)
    if "name has" not in message:
        assert isinstance(caught.value, CheckpointError)
    assert fingerprint(model) == before
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key])


def test_half_precision_files_are_read_into_masters(good: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    edit_tensors(lambda t: t.update({FIRST: t[FIRST].half()}))(tmp_path)
    model = Encoder()
    adapters.load(model, tmp_path)
    left = model.layer[0]["query"].adapters["first"].left
    assert left.dtype == torch.float32
    assert torch.equal(left, left.half().float())


def test_one_name_for_several_adapters(good: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="the folder holds 2 adapters, and one name cannot serve them"):
        adapters.load(Encoder(), tmp_path, name="x")


def test_a_model_of_other_sizes(good: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    other = Encoder()
    other.layer[0]["query"] = nn.Linear(6, 8)
    with pytest.raises(
        CheckpointError, match=r"layer 'layer\.0\.query': the file was made for out_features=6, the model has 8"
    ):
        adapters.load(other, tmp_path)
    assert not adapters.names(other)
