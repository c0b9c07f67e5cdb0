"""Ten thousand damaged files: each is a CheckpointError that leaves the model alone, or loads as exactly what it says.

The profile ``ci`` runs all of them, ``dev`` a share.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from safetensors.torch import load
from torch import nn

from structmat import adapters
from structmat.adapters.method import to_json
from structmat.errors import CheckpointError
from tests.adapters.cases import generator, perturb

JSON, TENSORS = "adapters.json", "adapters.safetensors"
COUNT = 10_000 if hypothesis.settings().max_examples >= 200 else 1_500
Files = dict[str, bytes]
Mutation = Callable[[random.Random, Files], Files]


class Tiny(nn.Module):
    """Two small layers and a head that is trained along."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.value = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.value(torch.tanh(self.query(x)))))


def methods() -> list[Any]:
    return [
        {"query": adapters.LoRA(2, alpha=3.0), "value": adapters.HRA(3)},
        {"query": adapters.BOFT(2, 2, dropout=(0.5, 0.1), mixed=True), "value": adapters.OFT(block=3, constraint=0.1)},
        {"query": adapters.OnRows(adapters.SURM("ldr", rank=2), ((0, 2), (3, 5))), "value": adapters.FLoRA((3, 2))},
        {"query": adapters.Bottleneck("kronecker", rank=2), "value": adapters.SURM("toeplitz", form="product")},
    ]


def seeds(folder: Path) -> list[Files]:
    """Good files, one for each pair of methods."""
    found = []
    for k, method in enumerate(methods()):
        torch.manual_seed(0)
        model = Tiny()
        adapters.attach(model, method, name="first", train="head", generator=generator())
        perturb(model)
        adapters.save(model, folder / str(k))
        found.append({name: (folder / str(k) / name).read_bytes() for name in (JSON, TENSORS)})
    return found


# -- values that a file should not hold -------------------------------------------------------------------------------

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 65, 2**31, 2**63, 10**12, 10**400, 0.5, -0.0, 1e308, "", "0", "os.system", [], {},
    "../../etc/passwd", "a\0b", "\ud800", "x" * 5000, "__class__", "query\n", [[[[]]]], [1, [2, [3]]], {"": {}},
    {"name": "LoRA", "parameters": {"rank": 2}}, {"name": "OnRows", "parameters": {}}, [0, 1], [[0, 2]], [-1, 3], [1e9],
    {"__reduce__": "os.system"}, {"name": {"name": {}}}, "vision", "kronecker", "ldr", "even", [1] * 1000,
]  # fmt: skip


def nested(depth: int) -> Any:
    """A method in the rows of a method in the rows of a method ..."""
    inner: Any = {"name": "LoRA", "parameters": {"rank": 1}}
    for _ in range(depth):
        inner = {"name": "OnRows", "parameters": {"method": inner, "spans": [[0, 2]]}}
    return inner


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def edited(draw: random.Random, files: Files) -> Files:
    """One or two values of the JSON replaced, removed, renamed or repeated."""
    document = json.loads(files[JSON])
    for _ in range(draw.randint(1, 2)):
        known = places(document)
        if not known:
            break
        path = draw.choice(known)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        action = draw.randint(0, 4)
        if action == 0:
            del holder[path[-1]]
        elif action == 1 and isinstance(holder, dict):
            name = draw.choice([str(v) for v in HOSTILE if not isinstance(v, (dict, list))])
            holder[name] = holder.pop(path[-1])
        elif action == 2:
            holder[path[-1]] = nested(draw.choice([1, 2, 20, 100]))
        else:
            holder[path[-1]] = draw.choice(HOSTILE)
    return {**files, JSON: json.dumps(document).encode()}


def flipped(draw: random.Random, files: Files) -> Files:
    """A few bits of one of the files."""
    name = draw.choice([JSON, TENSORS])
    data = bytearray(files[name])
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return {**files, name: bytes(data)}


def cut(draw: random.Random, files: Files) -> Files:
    """A file that ends early, or late."""
    name = draw.choice([JSON, TENSORS])
    data = files[name]
    end = data[: draw.randrange(len(data))] if draw.random() < 0.7 else data + bytes(draw.randint(1, 5000))
    return {**files, name: end}


def text(draw: random.Random, files: Files) -> Files:
    """JSON that parsers disagree about: repeated keys, deep nesting, constants, other encodings."""
    data = files[JSON]
    made = [
        data.replace(b'"rank"', b'"rank": 1, "rank"', 1),
        data.replace(b'"version": 1', b'"version": 1, "version": 1', 1),
        data.replace(b'"adapters"', b'"adapters": {}, "adapters"', 1),
        b"[" * draw.choice([10, 1000, 100_000]),
        b'{"a":' * draw.choice([10, 1000, 50_000]) + b"1" + b"}" * 10,
        data.replace(b"1.0", draw.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000]), 1),
        data.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + data,
        b"\x80\x04\x95cos\nsystem\n.",
        data.replace(b"query", b"\\u0000", 1),
        data.replace(b"first", b"x" * draw.choice([64, 65, 10_000]), 1),
    ]
    return {**files, JSON: draw.choice(made)}


def header(draw: random.Random, files: Files) -> Files:
    """The header of the tensors: sizes, offsets, shapes, dtypes and names."""
    data = files[TENSORS]
    (size,) = struct.unpack("<Q", data[:8])
    found, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    key = draw.choice([k for k in found if k != "__metadata__"])
    action = draw.randint(0, 6)
    if action == 0:
        found[key]["dtype"] = draw.choice(["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", 3, None])
    elif action == 1:
        found[key]["shape"] = draw.choice([[], [0], [2**62, 2**62], [-1], [1e3], "6", [6, 6, 6], None, [2**64]])
    elif action == 2:
        found[key]["data_offsets"] = draw.choice([[0, 0], [0, 2**63], [-8, 8], [8, 0], [0], None, [0, len(rest) * 2]])
    elif action == 3:
        found[draw.choice(["../x", "a\0b", "", "x" * 9000, "first/layers/query/../left", "\u202e"])] = found.pop(key)
    elif action == 4:
        found["__metadata__"] = draw.choice([{}, {"format": "pt"}, {"run": "rm -rf"}, [], None, {"a": 1}])
    elif action == 5:
        del found[key]
    text_ = json.dumps(found).encode()
    if action == 6:
        text_ = text_.replace(b"{", b"{" + json.dumps(key).encode() + b":" + json.dumps(found[key]).encode() + b",", 1)
    told = len(text_) if draw.random() < 0.8 else draw.choice([0, 1, 2**20, 2**31, 2**62, 2**64 - 1, len(text_) + 7])
    return {**files, TENSORS: struct.pack("<Q", told) + text_ + rest}


MUTATIONS: list[Mutation] = [edited, edited, edited, flipped, flipped, cut, text, header, header]


def fingerprint(model: nn.Module) -> list[Any]:
    modules = [(name, id(module)) for name, module in model.named_modules()]
    return [modules, [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]]


def holds(told: Any, asked: Any) -> bool:
    """Whether all that a file gives is so; what it leaves out has its default."""
    if isinstance(asked, dict):
        return isinstance(told, dict) and all(key in told and holds(told[key], asked[key]) for key in asked)
    return bool(told == asked)


def agrees(model: nn.Module, files: Files) -> None:
    """What was loaded is what the file says, tensor by tensor and parameter by parameter."""
    tensors, document = load(files[TENSORS]), json.loads(files[JSON])
    (name,) = adapters.names(model)
    for layer, entry in document["adapters"][name]["layers"].items():
        slot = model.get_submodule(layer).adapters[name]
        told = json.loads(json.dumps(to_json(slot.method)["parameters"]))
        assert holds(told, entry["parameters"])
        for part in slot.state():
            for key, tensor in part.items():
                assert torch.equal(tensor, tensors[f"{name}/layers/{layer}/{key}"].to(tensor.dtype))
    own = dict(model.named_parameters())
    for key in document["adapters"][name]["extras"]:
        assert torch.equal(own[key], tensors[f"{name}/extras/{key}"].to(own[key].dtype))


def refusal(model: nn.Module, folder: Path) -> str | None:
    """What the error says, None if the folder was loaded; any other exception goes through."""
    try:
        adapters.load(model, folder)
    except CheckpointError as error:
        return str(error)
    return None


def test_mutated_files(tmp_path: Path) -> None:
    draw = random.Random(20)
    good = seeds(tmp_path)
    model = Tiny()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    written: Files = {}
    loaded, refused = 0, dict.fromkeys(MUTATIONS, 0)
    (tmp_path / "x").mkdir()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd ranks of a Tucker tensor, for one
        for step in range(COUNT):
            mutation = MUTATIONS[step % len(MUTATIONS)]
            files = mutation(draw, draw.choice(good))
            for name, data in files.items():
                if written.get(name) != data:
                    (tmp_path / "x" / name).unlink(missing_ok=True)  # writing over a file waits for the disk
                    (tmp_path / "x" / name).write_bytes(data)
            written = files
            before = fingerprint(model)
            said = refusal(model, tmp_path / "x")
            if said is not None:
                assert len(said) <= 2000
                assert fingerprint(model) == before
                refused[mutation] += 1
                continue
            agrees(model, files)
            loaded += 1
            adapters.detach(model)
            with torch.no_grad():
                model.load_state_dict(kept)
            assert not adapters.names(model)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert all(refused.values())
    assert loaded > COUNT // 100
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < 64, f"{grown:.0f} MiB"


@pytest.mark.parametrize("depth", [1, 10, 300, 3000])
def test_nested_methods(depth: int, tmp_path: Path) -> None:
    """Rows hold a method; a method that holds rows that hold rows is refused at any depth."""
    files = seeds(tmp_path)[2]
    document = json.loads(files[JSON])
    text_ = json.dumps(document).replace('"SURM"', '"@"')
    inner = '{"name": "OnRows", "parameters": {"spans": [[0, 2]], "method": ' * depth + "1" + "}}" * depth
    start = text_.index('"method": {"name": "@"') + len('"method": ')
    end = text_.index("}}", start) + 2
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / JSON).write_text(text_[:start] + inner + text_[end:])
    (tmp_path / "x" / TENSORS).write_bytes(files[TENSORS])
    model = Tiny()
    before = fingerprint(model)
    with pytest.raises(CheckpointError):
        adapters.load(model, tmp_path / "x")
    assert fingerprint(model) == before
