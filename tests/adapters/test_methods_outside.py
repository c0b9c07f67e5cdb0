"""Methods written outside the library: what register and attach ask of them, and how faults are found early."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

from structmat import adapters
from structmat.adapters.method import Add, Compose, Parts, State
from structmat.errors import DeviceError, DtypeError, ShapeError
from structmat.types.low_rank import LowRank
from tests.adapters.test_bad_input import Encoder, refuses

THREE = Add(LowRank(torch.ones(3, 1), torch.ones(6, 1)))


def outside(**parts: Any) -> Any:
    """A method with some parts replaced."""
    body = {
        "name": "test-outside",
        "__annotations__": {"name": ClassVar[str], "size": int},
        "size": 1,
        "init": lambda self, target, generator: State({"left": torch.zeros(target.out_features, self.size)}, {}),
        "update": lambda self, state, target, *, training=False, generator=None: Add(
            LowRank(state.trained["left"], torch.ones(target.columns, self.size))
        ),
    } | parts
    return dataclasses.dataclass(frozen=True)(type("Outside", (), body))


def test_register_refuses_what_is_no_method() -> None:
    with pytest.raises(TypeError, match="a string `name`, and the methods init and update"):
        adapters.register(object)
    with pytest.raises(TypeError, match=r"Outside.*: a method is a frozen dataclass"):
        adapters.register(type("Outside", (), {"name": "x", "init": len, "update": len}))
    with pytest.raises(ValueError, match=r"the name 'LoRA' belongs to structmat\.adapters\.lora\.LoRA"):
        adapters.register(outside(name="LoRA"))


def test_a_method_must_be_registered_and_have_plain_parameters() -> None:
    model = Encoder()
    with pytest.raises(TypeError, match=r"is not registered: call structmat\.adapters\.register"):
        adapters.attach(model, outside()(), targets="head")
    cls = adapters.register(outside(name="test-not-plain"))
    refuses(
        model, lambda: adapters.attach(model, cls(object()), targets="head"), TypeError, "hyper-parameters are not JSON"
    )


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (
            {"init": lambda self, target, generator: State({"left": torch.zeros(2, 1, dtype=torch.float64)}, {})},
            DtypeError,
            r"on 'layer.0.query': left is torch\.float64, the layer asks for torch\.float32",
        ),
        (
            {"init": lambda self, target, generator: State({"forward": torch.zeros(2, 1)}, {})},
            ValueError,
            "a tensor of its state cannot be called 'forward'",
        ),
        (
            {"update": lambda self, state, target, **_: Add(LowRank(torch.ones(3, 1), torch.ones(6, 1)))},
            ShapeError,
            r"on 'layer.0.query': matrix is LowRank.*, the layer needs \(6, 6\)",
        ),
        (
            {"update": lambda self, state, target, **_: Compose(left=LowRank(torch.ones(6, 1), torch.ones(6, 1)))},
            ShapeError,
            r"on 'head': left is LowRank.*, the layer needs \(2, 2\)",
        ),
        (
            {"update": lambda self, state, target, **_: torch.zeros(2, 6)},
            TypeError,
            "must return Add, Compose, Parts or Residual, got Tensor",
        ),
        (
            {"init": lambda self, target, generator: {"left": torch.zeros(2, 1)}},
            TypeError,
            r"on 'layer.0.query': init must return State\(trained, frozen\)",
        ),
        (
            {"init": lambda self, target, generator: State({"left": torch.zeros(2, 1, device="meta")}, {})},
            DeviceError,
            r"on 'layer.0.query': left is on meta, the layer on cpu",
        ),
        (
            {"init": lambda self, target, generator: State({"left": 0.0}, {})},
            TypeError,
            r"on 'layer.0.query': left must be a tensor, got 0\.0",
        ),
        (
            {"init": lambda self, target, generator: State({"left": torch.zeros(2, 1)}, {"left": torch.zeros(2)})},
            ValueError,
            "'left' is among the trained and among the frozen tensors",
        ),
        (
            {"update": lambda self, state, target, **_: Add(torch.zeros(6, 6))},
            TypeError,
            r"on 'layer.0.query': matrix of its update is a Tensor, no matrix of structmat; sm\.Dense",
        ),
        (
            {"update": lambda self, state, target, **_: Parts(((0, 2, THREE), (1, 4, THREE)), 6)},
            ShapeError,
            r"on 'layer.0.query': spans \[\(0, 2\), \(1, 4\)\] of 6 rows, the layer has 6; they ascend",
        ),
        (
            {"update": lambda self, state, target, **_: Parts(((0, 3, THREE),), 7)},
            ShapeError,
            r"on 'layer.0.query': spans \[\(0, 3\)\] of 7 rows, the layer has 6",
        ),
    ],
)
def test_a_faulty_method_is_found_when_it_is_attached(part: Any, error: type[Exception], message: str) -> None:
    model = Encoder()
    cls = adapters.register(outside(name=f"test-faulty-{message}", **part))
    refuses(model, lambda: adapters.attach(model, cls(), targets=".*query|head"), error, message)
