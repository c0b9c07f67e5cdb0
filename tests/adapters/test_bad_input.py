"""Each wrong call has its own clear error, and leaves the model as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from structmat import adapters
from structmat.errors import DtypeError, ShapeError, StructureError

LORA = adapters.LoRA(2)


class Encoder(nn.Module):
    """A small model with the names of a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(6, 6), "value": nn.Linear(6, 6)}) for _ in range(2)
        )
        self.conv = nn.Conv1d(2, 2, 3)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = torch.tanh(layer["query"](x) + layer["value"](x))
        return self.head(self.norm(x))


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything a failed call must not change."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]
    report = adapters.inspect(model)
    return [modules, parameters, report.names, report.active]


def refuses(model: nn.Module, call: Callable[[], Any], error: type[Exception], message: str) -> None:
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        call()
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (
            LORA,
            {"targets": r".*\.qurey"},
            ValueError,
            r"targets='.*qurey' matches no layer; .* near: 'layer\.0\.query'",
        ),
        (LORA, {"targets": r"norm_.*"}, ValueError, "matches no layer"),
        (
            LORA,
            {"targets": ["query"]},
            ValueError,
            r"'query' does not exist \(names are full names\); near: 'layer\.0\.query'",
        ),
        (LORA, {"targets": r"layer.(0"}, ValueError, "is no regular expression"),
        (LORA, {"targets": 3}, TypeError, "targets: a regular expression or a list of names, got 3"),
        (LORA, {"targets": [3]}, ValueError, "a list of names holds strings, got 3"),
        (LORA, {}, ValueError, 'say which layers: .* or "all-linear"'),
        (
            LORA,
            {"targets": "norm"},
            StructureError,
            "layer 'norm' is a LayerNorm, which is not supported; legal: Linear, Conv1D, Conv1d",
        ),
        (LORA, {"targets": ".*"}, StructureError, "layer 'norm' is a LayerNorm"),
        (LORA, {"targets": ["norm"]}, StructureError, "layer 'norm' is a LayerNorm"),
        (LORA, {"targets": ["layer.0"]}, StructureError, r"layer 'layer\.0' is a ModuleDict"),
        (LORA, {"targets": "all-linear", "name": "a.b"}, ValueError, r"name has 1 to 64 letters.*, got 'a\.b'"),
        (LORA, {"targets": "all-linear", "name": ""}, ValueError, "name has 1 to 64 letters"),
        (LORA, {"targets": "all-linear", "name": "base"}, ValueError, "cannot be called 'base'"),
        (LORA, {"targets": "all-linear", "name": "keys"}, ValueError, "'keys', which torch modules use"),
        (
            LORA,
            {"targets": "all-linear", "exclude": "hed"},
            ValueError,
            "exclude='hed' matches no module; near: 'head'",
        ),
        (LORA, {"targets": "head", "exclude": "head"}, ValueError, "targets='head' matches no layer"),
        (
            LORA,
            {"targets": "all-linear", "train": r"haed\..*"},
            ValueError,
            r"train='haed.*' matches no parameter and no module",
        ),
        (adapters.LoRA, {"targets": "head"}, TypeError, r"a method has a name, init and update \(adapters\.HRA"),
        ("lora", {"targets": "head"}, TypeError, "got 'lora'"),
        ({"head": LORA, "hats": LORA}, {}, ValueError, "pattern 'hats' matches no layer"),
        (adapters.LoRA(7), {"targets": "head"}, ValueError, r"LoRA\(rank=7\) on 'head' of shape \(2, 6\)"),
        (adapters.HRA(7, orthonormal=True), {"targets": "head"}, ValueError, "only 6 orthonormal vectors exist"),
    ],
)
def test_attach_refuses(method: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Encoder()
    refuses(model, lambda: adapters.attach(model, method, **options), error, message)
    adapters.attach(model, LORA, targets=r"layer\.0\..*", name="there")
    refuses(model, lambda: adapters.attach(model, method, **options), error, message)


def test_attaching_twice_under_one_name() -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets=r".*\.query")
    refuses(
        model,
        lambda: adapters.attach(model, LORA, targets="head"),
        ValueError,
        "there is already an adapter 'default'; choose another name=, or detach it first",
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapters.HRA(0), r"HRA: rank must be an integer of at least 1, got 0"),
        (lambda: adapters.HRA(-2), r"HRA: rank must be .* got -2"),
        (lambda: adapters.HRA(2.0), r"HRA: rank must be .* got 2\.0"),
        (lambda: adapters.HRA(True), r"HRA: rank must be .* got True"),
        (lambda: adapters.LoRA(0), r"LoRA: rank must be an integer of at least 1, got 0"),
        (lambda: adapters.LoRA(2, alpha=0), r"LoRA: alpha must be a finite number other than 0, got 0"),
        (lambda: adapters.LoRA(2, alpha=float("inf")), r"LoRA: alpha must be a finite number"),
        (lambda: adapters.HRA(2, orthonormal=1), r"HRA: orthonormal must be True or False, got 1"),
        (lambda: adapters.HRA(2, regulariser=-1), r"HRA: regulariser must be finite and not negative, got -1"),
        (lambda: adapters.HRA(2, regulariser="1"), r"HRA: regulariser must be a number, got '1'"),
        (lambda: adapters.HRA(2, orthonormal=True, regulariser=1e-4), r"HRA: orthonormal vectors have no regulariser"),
        (
            lambda: adapters.SURM("hankel"),
            r"structure must be one of 'circulant', 'skew', 'toeplitz', 'symm",
        ),
        (lambda: adapters.SURM("toeplitz", form="sum"), r"SURM: form must be 'direct' or 'product', got 'sum'"),
        (lambda: adapters.SURM("toeplitz", scale=0.0), r"SURM: scale must be a finite number other than 0"),
    ],
)
def test_methods_refuse_bad_parameters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _lazy() -> nn.Module:
    return nn.LazyLinear(4)


def _integer() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


def _complex() -> nn.Module:
    return nn.Linear(4, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_lazy, StructureError, "layer '0' has no sizes yet; run the model once"),
        (_integer, DtypeError, r"layer '0' has a weight of torch\.int8; adapters need one of float16, bfloat16"),
        (_complex, DtypeError, r"layer '0' has a weight of torch\.complex64"),
        (lambda: nn.Bilinear(4, 4, 2), StructureError, "layer '0' is a Bilinear, which is not supported"),
        (lambda: nn.Linear(0, 4), ShapeError, r"layer '0' is empty: it maps 0 features to 4"),
        (lambda: nn.Embedding(9, 4, max_norm=1.0), StructureError, "renormalises its table in forward"),
        (
            lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
            StructureError,
            "layer '0' has parametrizations; remove",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_layers_that_cannot_be_adapted(make: Callable[[], nn.Module], error: type[Exception], message: str) -> None:
    model = nn.Sequential(make())
    with pytest.raises(error, match=message):
        adapters.attach(model, LORA, targets=["0"])
    assert not adapters.names(model)


def test_attention_is_adapted_through_its_parameters() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    refuses(
        model,
        lambda: adapters.attach(model, LORA, targets=["self_attn"]),
        StructureError,
        r"layer 'self_attn' is a MultiheadAttention.*target them: self_attn\.in_proj_weight",
    )
    report = adapters.attach(model, LORA, targets="all-linear")
    assert report.layers == ("linear1", "linear2")


def test_a_bare_layer_cannot_be_wrapped_in_place() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"the model itself is a Linear.*Sequential"):
        adapters.attach(model, LORA, targets="all-linear")


@pytest.mark.parametrize(
    "verb",
    [
        adapters.merge,
        adapters.unmerge,
        adapters.detach,
        lambda model: adapters.activate(model, "default"),
        lambda model: adapters.save(model, "nowhere"),
        lambda model: adapters.to_lora(model, rank=1),
    ],
)
def test_verbs_without_adapters(verb: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ValueError, match=r"Encoder has no adapters; call adapters\.attach or adapters\.load first"):
        verb(Encoder())


def test_verbs_on_another_module_than_the_one_attached_to() -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets=r".*\.query")
    for other in (model.layer, nn.Sequential(model)):
        with pytest.raises(ValueError, match=r"attached to another module .* called 'layer\.0\.query' there"):
            adapters.merge(other)


def test_merging_and_its_order() -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets=r".*\.query")
    with pytest.raises(ValueError, match="merge: keep must be one of 'copy', 'cpu', 'none', got 'disk'"):
        adapters.merge(model, keep="disk")
    with pytest.raises(RuntimeError, match="unmerge: the adapters are not merged"):
        adapters.unmerge(model)
    adapters.merge(model)
    merged = "the adapters are merged into the weights; call adapters.unmerge first"
    calls: list[Callable[[], Any]] = [
        lambda: adapters.merge(model),
        lambda: adapters.attach(model, LORA, targets="head", name="new"),
        lambda: adapters.activate(model, []),
        lambda: adapters.disabled(model).__enter__(),
        lambda: adapters.rows(model, ["base"]).__enter__(),
        lambda: adapters.to_lora(model, rank=1),
    ]
    for call in calls:
        refuses(model, call, RuntimeError, merged)
    refuses(model, lambda: model.load_state_dict(model.state_dict()), RuntimeError, "would mix two weights")


def test_a_merge_that_is_not_finite_changes_nothing() -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets=r".*\.(query|value)")
    with torch.no_grad():
        model.layer[1]["value"].adapters["default"].left.fill_(float("nan"))
    for keep in ("copy", "cpu", "none"):
        refuses(model, lambda keep=keep: adapters.merge(model, keep), ValueError, r"'layer\.1\.value' is not finite")


def test_detach_refuses_unknown_names() -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets="head", name="style")
    refuses(
        model, lambda: adapters.detach(model, "stile"), ValueError, "detach: there is no adapter 'stile'; near: 'style'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either rank= or tol="),
        ({"rank": 1, "tol": 0.1}, "give either rank= or tol="),
        ({"rank": 0}, "rank must be an integer of at least 1"),
        ({"tol": 1.5}, "tol must be at least 0 and below 1"),
        ({"rank": 1, "name": "default"}, "already an adapter 'default'"),
    ],
)
def test_to_lora_refuses(options: dict[str, Any], message: str) -> None:
    model = Encoder()
    adapters.attach(model, LORA, targets="head")
    refuses(model, lambda: adapters.to_lora(model, **options), ValueError, message)
    adapters.activate(model, [])
    refuses(model, lambda: adapters.to_lora(model, rank=1), ValueError, "no adapter is active")


def test_a_layer_says_what_it_got() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    adapters.attach(model, LORA, targets=["0"])
    with pytest.raises(ShapeError, match=r"Linear with 6 inputs got x of shape \(3, 5\)"):
        model(torch.zeros(3, 5))


def test_a_compiled_expression_is_one() -> None:
    model, other = Encoder(), Encoder()
    for one, pattern in ((model, r"layer\.0\..*"), (other, re.compile(r"layer\.0\..*"))):
        adapters.attach(one, LORA, targets=pattern)
    assert list(dict(model.named_parameters())) == list(dict(other.named_parameters()))
