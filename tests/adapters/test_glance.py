"""To ask what the weight of an adapted layer is costs nothing; who reads its numbers gets the folded one, everywhere.

pytest rewrites what stands in an assert and keeps each part of it, so glances stand outside.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.adapters.glance import looks_only
from structmat.adapters.kinds.base import Kind
from structmat.adapters.layer import Adapted
from tests.adapters.cases import METHODS, generator, perturb, relative


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each weight that is formed."""
    found: list[str] = []
    plain = Kind.folded

    def folded(self: Kind, layer: nn.Module, chain: Any) -> torch.Tensor:
        found.append(self.name)
        return plain(self, layer, chain)

    monkeypatch.setattr(Kind, "folded", folded)
    return found


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wo = nn.Linear(6, 4).double()


def owner() -> Owner:
    model = Owner()
    adapters.attach(model, adapters.HRA(2), targets="all-linear", generator=generator())
    perturb(model)
    return model


LOOKS: list[Callable[[Any], Any]] = [
    lambda m: m.wo.weight.dtype,
    lambda m: m.wo.weight.shape,
    lambda m: m.wo.weight.size(0),
    lambda m: m.wo.weight.device.type,
    lambda m: m.wo.weight.dtype != torch.int8 and m.wo.weight.ndim == 2,
    lambda m: isinstance(m.wo.weight, torch.Tensor),
    lambda m: isinstance(m.wo.weight, nn.Linear),
    lambda m: [isinstance(wo.weight, torch.Tensor) for wo in (m.wo,)],
    lambda m: eval("m.wo.weight.numel()"),
]
# What looks alike and uses the numbers, or may.
READS: list[Callable[[Any], torch.Tensor]] = [
    lambda m: m.wo.weight,
    lambda m: m.wo.weight.data,
    lambda m: m.wo.weight.mT.mT,
    lambda m: m.wo.weight.detach(),
    lambda m: getattr(m.wo, "weight"),  # noqa: B009
    lambda m: operator.attrgetter("wo.weight")(m),
    lambda m: isinstance(m.wo, Adapted) and m.wo.weight,
    lambda m: (isinstance(m, nn.Module), m.wo.weight)[1],
    lambda m: (m.wo.bias.dtype, m.wo.weight)[1],
    lambda m: {"weight": m.wo.weight, "dtype": m.wo.bias.dtype}["weight"],
    lambda m: next(wo.weight for wo in (m.wo,)),
    lambda m: nn.functional.linear(torch.eye(6, dtype=torch.float64), m.wo.weight).mT,
    lambda m: Adapted.weight.fget(m.wo),
    lambda m: operator.attrgetter("weight")(type("Holder", (), {"weight": m.wo}).weight),
]


@pytest.mark.parametrize("look", LOOKS)
def test_a_glance_forms_no_weight_and_sees_what_the_folded_one_is(
    look: Callable[[Any], Any], folds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = owner()
    seen = look(model)
    assert folds == []
    monkeypatch.setattr("structmat.adapters.layer.looks_only", lambda *_: False)
    assert look(model) == seen
    assert folds


@pytest.mark.parametrize("read", READS)
def test_numbers_are_those_of_the_folded_weight(read: Callable[[Any], torch.Tensor], folds: list[str]) -> None:
    model = owner()
    expected = (model.wo(torch.eye(6, dtype=torch.float64)) - model.wo.bias).mT
    assert relative(read(model), expected) < 1e-14
    assert relative(read(model), model.wo.base.weight) > 0.01
    assert folds


def test_a_variable_is_not_followed(folds: list[str]) -> None:
    model = owner()
    weight = model.wo.weight
    assert weight.dtype == torch.float64
    assert len(folds) == 1


def test_a_function_named_isinstance_may_do_anything(folds: list[str]) -> None:
    names: dict[str, Any] = {"isinstance": lambda tensor, _: tensor.detach().clone(), "torch": torch, "m": owner()}
    found = eval("isinstance(m.wo.weight, torch.Tensor)", names)
    assert folds
    assert relative(found, names["m"].wo.weight) == 0


def test_only_the_load_of_that_attribute_counts() -> None:
    assert not looks_only(sys._getframe(), "weight")  # which is making a call

    class Reader:
        @property
        def weight(self) -> Any:
            return (looks_only(sys._getframe(1), "weight"), looks_only(sys._getframe(1), "bias"))

        @property
        def shape(self) -> tuple[int, ...]:
            return ()

    assert Reader().weight == (False, False)
    verdicts = []

    class Told(Reader):
        @property
        def weight(self) -> Any:
            verdicts.append((looks_only(sys._getframe(1), "weight"), looks_only(sys._getframe(1), "bias")))
            return self

    shape = Told().weight.shape
    assert shape == ()
    assert verdicts == [(True, False)]


def t5(**options: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, **options)).eval()


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("method", ["HRA-odd", "circulant", "BOFT"])
def test_t5_forms_no_weight_in_training_and_serves_rows(method: str, activation: str, folds: list[str]) -> None:
    """It asks for ``self.wo.weight.dtype`` at every forward; inside rows there would be no one weight to give."""
    model = t5(feed_forward_proj=activation)
    ids = torch.arange(1, 13).reshape(2, 6)
    plain = model(input_ids=ids, labels=ids).logits
    adapters.attach(model, METHODS[method], targets=r".*\.(q|wo)", generator=generator())
    perturb(model)
    found = model(input_ids=ids, labels=ids)
    found.loss.backward()
    assert folds == []
    assert all(p.grad is not None for p in adapters.trainable_parameters(model))
    assert relative(found.logits, plain) > 1e-3
    with adapters.rows(model, ["default", "base"]):
        mixed = model(input_ids=ids, labels=ids).logits
    assert relative(mixed[0], found.logits[0]) < 1e-5
    assert relative(mixed[1], plain[1]) < 1e-5
    adapters.merge(model)
    assert relative(model(input_ids=ids, labels=ids).logits, found.logits) < 1e-5


def test_a_glance_compiles() -> None:
    class Glancing(Owner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(self.wo.weight, torch.Tensor) and x.dtype != self.wo.weight.dtype:
                x = x.to(self.wo.weight.dtype)
            return self.wo(x)

    model = Glancing()
    adapters.attach(model, adapters.HRA(2), targets="all-linear", generator=generator())
    perturb(model)
    x = torch.randn(3, 6, generator=generator(5))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert compiled(x).dtype == torch.float64
    assert relative(compiled(x), model(x)) < 1e-14


def test_a_quantised_layer_shows_how_it_stores() -> None:
    class Eighth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 6, 4
            self.register_buffer("weight", torch.randint(-100, 100, (4, 6), generator=generator(), dtype=torch.int8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (0.01 * self.weight.to(x.dtype)).mT

    model = nn.Sequential(Eighth())
    adapters.attach(model, adapters.LoRA(2), targets=["0"])
    seen = model[0].weight.dtype
    assert seen == torch.int8
    weight = model[0].weight
    assert weight.dtype == torch.float32
