"""Which adapters act: order, weights, disabled, rows and stack; the verbs of a training loop."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from structmat import adapters
from structmat.adapters.method import Add, State
from structmat.errors import ShapeError
from structmat.types.low_rank import LowRank
from tests.adapters.cases import METHODS, generator, make_input, make_model, perturb, relative

BATCHED = ["LoRA", "HRA-even", "HRA-odd", "HRA-orthonormal", "circulant", "toeplitz", "toeplitz-product", "symmetric"]


def two(method: str, layer: str = "wide") -> nn.Sequential:
    model = make_model(layer)
    for place, name in enumerate(("a", "b", "c")):
        adapters.attach(model, METHODS[method], targets=["0"], name=name, generator=generator(place))
    perturb(model)
    return model


def alone(model: nn.Module, name: str | None, x: torch.Tensor) -> torch.Tensor:
    if name is None:
        with adapters.disabled(model):
            return model(x)
    adapters.activate(model, name)
    return model(x)


def test_activate_sets_the_order_of_folding() -> None:
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, adapters.LoRA(2), targets=["0"], name="add", generator=generator())
    adapters.attach(model, adapters.HRA(2), targets=["0"], name="turn", generator=generator())
    perturb(model)
    assert adapters.names(model) == ("add", "turn")
    one = model(x)
    adapters.activate(model, ["turn", "add"])
    other = model(x)
    assert relative(one, other) > 0.01  # (W + A) Q is not W Q + A
    adapters.activate(model, ["add", "turn"])
    assert torch.equal(model(x), one)
    adapters.activate(model, [])
    assert torch.equal(model(x), model[0].base(x))


def test_weights_scale_additive_adapters_and_are_refused_for_rotations() -> None:
    model = make_model("square")
    x = make_input("square")
    adapters.attach(model, adapters.LoRA(2), targets=["0"], name="add", generator=generator())
    perturb(model)
    base, full = model[0].base(x), model(x)
    adapters.activate(model, "add", weights=[0.25])
    assert relative(model(x), base + 0.25 * (full - base)) < 1e-14
    adapters.attach(model, adapters.HRA(2), targets=["0"], name="turn", generator=generator())
    with pytest.raises(ValueError, match=r"weight 0\.5 for 'turn': it multiplies the weight .* only 1\.0 is legal"):
        adapters.activate(model, ["add", "turn"], weights=[1.0, 0.5])
    assert adapters.inspect(model).active == (("add", 0.25), ("turn", 1.0))
    adapters.activate(model, ["add", "turn"], weights=[0.5, 1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["add", "lora"],), r"activate: there is no adapter 'lora'"),
        ((["add", "add"],), r"activate: an adapter is named twice"),
        ((["add"], [1.0, 2.0]), r"activate: 2 weights for 1 adapters"),
        ((["add"], [float("nan")]), r"activate: the weight of 'add' must be finite"),
    ],
)
def test_activate_refuses(arguments: tuple, message: str) -> None:
    model = make_model("square")
    adapters.attach(model, adapters.LoRA(2), targets=["0"], name="add", generator=generator())
    with pytest.raises(ValueError, match=message):
        adapters.activate(model, *arguments)
    assert adapters.inspect(model).active == (("add", 1.0),)


def test_disabled_is_the_base_and_ends_also_on_an_error() -> None:
    model = two("LoRA")
    x = make_input("wide")
    before = model(x)
    with adapters.disabled(model):
        assert torch.equal(model(x), model[0].base(x))
    assert torch.equal(model(x), before)

    def fail() -> None:
        with adapters.disabled(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("method", BATCHED)
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("lead", [(4,), (4, 3), (4, 2, 3)])
def test_rows_by_index(method: str, stacked: bool, lead: tuple[int, ...]) -> None:
    model = two(method)
    x = make_input("wide", lead=lead).requires_grad_()
    chosen = ["c", None, "a", "c"]
    expected = torch.stack([alone(model, name, x[row]) for row, name in enumerate(chosen)])
    ids = torch.tensor([2, -1, 0, 2])
    if stacked:
        adapters.stack(model, ["c", "a"])
        ids = torch.tensor([0, -1, 1, 0])
    with adapters.rows(model, ids):
        y = model(x)
    assert relative(y, expected) < 1e-13
    for parameter in model[0].adapters.parameters():
        parameter.requires_grad_(True)
    parameters = [x, *model[0].adapters.parameters()]
    with adapters.rows(model, ids):
        got = torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True)
    outputs = torch.stack([alone(model, name, x[row]) for row, name in enumerate(chosen)])
    wanted = torch.autograd.grad(outputs.square().sum(), parameters, allow_unused=True)
    for one, other in zip(got, wanted, strict=True):
        if other is None:  # adapter b serves no row
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11 * float(other.abs().max()) + 1e-13)


def test_rows_on_layers_that_only_some_adapters_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    adapters.attach(model, adapters.LoRA(2), targets=["0"], name="a")
    adapters.attach(model, adapters.LoRA(2), targets=["2"], name="b")
    perturb(model)
    expected = torch.stack([alone(model, name, x[row]) for row, name in enumerate(["a", "b", None])])
    with adapters.rows(model, ["a", "b", "base"]):
        assert relative(model(x), expected) < 1e-14
    adapters.stack(model, ["a", "b"])
    with adapters.rows(model, torch.tensor([0, 1, -1])):
        assert relative(model(x), expected) < 1e-14


def test_repeat_covers_consecutive_rows() -> None:
    model = two("LoRA")
    x = make_input("wide", lead=(6,))
    with adapters.rows(model, ["a", "base"], repeat=3):
        y = model(x)
    assert relative(y[:3], alone(model, "a", x[:3])) < 1e-14
    assert torch.equal(y[3:], model[0].base(x[3:]))
    with adapters.rows(model, ["a", "base"]), pytest.raises(ShapeError, match=r"rows has 2 ids, .* repeat=k"):
        model(x)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "d"], r"rows: there is no adapter 'd'"),
        ([], r"rows: ids are a name for each row"),
        (torch.tensor([0.0, 1.0]), r"rows: ids must be a LongTensor, got torch.float32"),
        (torch.tensor([[0, 1]]), r"rows: ids must have shape \(batch,\), got \(1, 2\)"),
        (torch.tensor([0, 3]), r"rows: ids from 0 to 3; legal are -1 \(base\) to 2, for a, b, c"),
    ],
)
def test_rows_refuses(ids: object, message: str) -> None:
    model = two("LoRA")
    with pytest.raises((ValueError, TypeError), match=message), adapters.rows(model, ids):
        pass
    with pytest.raises(ValueError, match="repeat must be"), adapters.rows(model, ["a"], repeat=0):
        pass
    assert adapters.inspect(model).enabled


def test_inside_rows_there_is_no_single_weight() -> None:
    model = two("LoRA")
    with adapters.rows(model, ["a"]):
        with pytest.raises(RuntimeError, match=r"a weight for each row of the batch.*set_fastpath_enabled"):
            _ = model[0].weight
        with pytest.raises(RuntimeError, match=r"leave the adapters\.rows"):
            adapters.merge(model)


def test_stack_needs_equal_methods() -> None:
    model = two("LoRA")
    adapters.attach(model, adapters.LoRA(1), targets=["0"], name="d")
    with pytest.raises(ValueError, match=r"stack: on layer '0', 'a' is LoRA\(rank=2.* and 'd' is LoRA\(rank=1"):
        adapters.stack(model, ["a", "d"])


def test_penalty_is_equation_6() -> None:
    model = make_model("wide")
    assert float(adapters.penalty(model)) == 0.0
    adapters.attach(model, adapters.HRA(3, regulariser=0.5), targets=["0"], generator=generator())
    perturb(model)
    vectors = model[0].adapters["default"].vectors
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    expected = 0.5 * (torch.eye(3, dtype=torch.float64) - unit @ unit.mT).norm() ** 2
    penalty = adapters.penalty(model)
    assert relative(penalty, expected) < 1e-14
    penalty.backward()
    assert vectors.grad.norm() > 0
    adapters.activate(model, [])
    assert float(adapters.penalty(model)) == 0.0


def test_trainable_parameters_are_those_of_the_newest_adapter() -> None:
    model = two("LoRA")
    assert [p.shape for p in adapters.trainable_parameters(model)] == [(5, 2), (12, 2)]
    assert {id(p) for p in adapters.trainable_parameters(model)} == {id(p) for p in model[0].adapters["c"].parameters()}


def test_after_step_projects_what_the_optimizer_steps() -> None:
    model = make_model("wide")
    adapters.attach(model, Clipped(0.5), targets=["0"], name="one", generator=generator())
    parameters = adapters.trainable_parameters(model)
    adapters.attach(model, Clipped(0.5), targets=["0"], name="two", generator=generator())
    optimizer = torch.optim.SGD(adapters.trainable_parameters(model), lr=1.0)
    with torch.no_grad():
        for parameter in model[0].adapters.parameters():
            parameter.fill_(3.0)
    adapters.after_step(model, optimizer)
    assert parameters[0].max() == 3.0  # frozen: not this optimiser's
    assert adapters.trainable_parameters(model)[0].max() == 0.5


@adapters.register
@dataclasses.dataclass(frozen=True)
class Clipped:
    """A method written outside: a rank-one change whose entries are kept within a bound."""

    name: ClassVar[str] = "test-clipped"
    bound: float

    def init(self, target, generator) -> State:
        zero = torch.zeros(target.out_features, 1, dtype=target.dtype, device=target.device)
        return State({"left": zero, "right": zero.new_ones(target.columns, 1)}, {})

    def update(self, state, target, *, training=False, generator=None) -> Add:
        return Add(LowRank(state.trained["left"], state.trained["right"]))

    def project_(self, state) -> None:
        for tensor in state.trained.values():
            tensor.clamp_(-self.bound, self.bound)
