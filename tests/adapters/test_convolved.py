"""Toeplitz and circulant additions inside the weight: when, that it is the same layer, and what must not notice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from structmat import adapters, testing
from structmat.adapters import convolved
from structmat.adapters.leading import LeadingCirculant
from structmat.adapters.surm import SURM
from structmat.functional import folded
from tests.adapters.cases import change, generator, make_layer, perturb, relative, slots
from tests.adapters.test_memory import kept

STRUCTURES = ["circulant", "skew", "toeplitz", "symmetric_toeplitz"]
# kind, in_features, out_features, bias: of at least 8,192 entries, and 97 has no fast transform of its own
LAYERS = {
    "square": ("Linear", 96, 96, True),
    "prime": ("Linear", 97, 97, False),
    "wide": ("Linear", 128, 80, True),
    "tall": ("Linear", 80, 128, False),
    "Conv1D": ("Conv1D", 112, 96, True),
}
ROWS = 100


def adapted(layer: str, *methods: SURM, dtype: torch.dtype = torch.float64, size: float = 0.3) -> nn.Sequential:
    model = nn.Sequential(make_layer(*LAYERS[layer], dtype=dtype))
    names = [f"adapter{k}" for k in range(len(methods))]
    for name, method in zip(names, methods, strict=True):
        adapters.attach(model, method, targets=["0"], name=name, generator=generator())
    adapters.activate(model, names)
    perturb(model, size=size)
    return model


def rows_of(layer: str, count: int = ROWS, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = torch.randn(2, count // 2, LAYERS[layer][1], generator=generator(5), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def watched(model: nn.Sequential) -> nn.Sequential:
    """A copy whose layer has a hook, so that it runs on rows."""
    other = copy.deepcopy(model)
    other[0].base.register_forward_hook(lambda *_: None)
    return other


def path(model: nn.Module, rows: int = ROWS, dtype: torch.dtype | None = None) -> str:
    return adapters.explain(model, rows=rows, dtype=dtype).plans["0"].path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call that formed the weight."""
    seen: list[int] = []
    plain = folded.folded_linear

    def counted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(x.numel() // x.shape[-1])
        return plain(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(folded, "folded_linear", counted)
    return seen


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_both_forms_are_the_layer_by_definition(structure: str, layer: str, calls: list[int]) -> None:
    """Outputs, gradients and gradients of gradients: in the weight, on rows, and by the entries written out."""
    method = SURM(structure)
    model = adapted(layer, method)
    other, x = watched(model), rows_of(layer)
    assert path(model) == "weight"
    assert path(other) == "rows"
    base = model[0].base
    stored = base.weight if LAYERS[layer][0] == "Linear" else base.weight.mT
    (entries,) = [p for p in model.parameters() if p.requires_grad]

    def by_definition(x: torch.Tensor) -> torch.Tensor:
        weight = change(method, slots(model)["adapter0"], stored)
        return x @ weight.mT + (0 if base.bias is None else base.bias)

    found = []
    for one in (model, by_definition, other):
        wanted = [x, entries if one is not other else next(p for p in other.parameters() if p.requires_grad)]
        y = one(x)
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append([y, *first, *second])
    assert calls == [ROWS]
    for result in (found[0], found[2]):
        for got, reference in zip(result, found[1], strict=True):
            assert relative(got, reference) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_start_and_merge(structure: str, dtype: torch.dtype, calls: list[int]) -> None:
    """At the start exactly the base; after training the merged layer, whose weight is the one that was formed."""
    model = adapted("wide", SURM(structure), dtype=dtype, size=0.0)
    x = rows_of("wide", dtype=dtype)
    assert torch.equal(model(x), model[0].base(x))
    perturb(model)
    y = model(x)
    assert len(calls) == 2
    adapters.merge(model)
    assert relative(y, model(x)) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("pair", [("toeplitz", "circulant"), ("circulant", "circulant"), ("skew", "toeplitz")])
def test_several_at_once_are_summed(pair: tuple[str, str], calls: list[int]) -> None:
    model = adapted("square", *(SURM(s) for s in pair))
    adapters.activate(model, ["adapter0", "adapter1"], [0.5, -2.0])
    x = rows_of("square")
    weight = model[0].weight
    trained = [p for p in model.parameters() if p.requires_grad]
    assert path(model) == "weight"
    y, wanted = model(x), x @ weight.mT + model[0].base.bias
    assert calls == [ROWS]
    assert relative(y, wanted) < 1e-13
    for got, reference in zip(
        torch.autograd.grad(y.square().sum(), [x, *trained]),
        torch.autograd.grad(wanted.square().sum(), [x, *trained]),
        strict=True,
    ):
        assert relative(got, reference) < 1e-12


@pytest.mark.parametrize("second", [adapters.LoRA(2), SURM("kronecker"), SURM("toeplitz", form="product")])
def test_a_chain_with_anything_else_runs_on_rows(second: object, calls: list[int]) -> None:
    model = adapted("square", SURM("toeplitz"), second)  # type: ignore[arg-type]
    assert path(model) != "weight"
    x = rows_of("square")
    assert relative(model(x), x @ model[0].weight.mT + model[0].base.bias) < 1e-13
    assert calls == []


def test_the_rule_and_its_reasons() -> None:
    """By sizes alone: rows times the length of a transform against a quarter of the entries."""
    model = nn.ModuleDict(
        {
            "toeplitz": nn.Linear(384, 384), "circulant": nn.Linear(384, 384), "wide": nn.Linear(1536, 384),
            "small": nn.Linear(90, 90), "other": nn.Linear(8, 8),
        }
    )  # fmt: skip
    adapters.attach(
        model, {"circulant": SURM("circulant"), "toeplitz|wide|small": SURM("toeplitz")}, targets="all-linear"
    )
    paths = {
        rows: {name: plan.path for name, plan in adapters.explain(model, rows=rows).plans.items()}
        for rows in (32, 64, 128)
    }
    assert [paths[rows]["toeplitz"] for rows in paths] == ["rows", "weight", "weight"]  # length 768: from 48 rows
    assert [paths[rows]["circulant"] for rows in paths] == ["rows", "rows", "weight"]  # length 384: from 96 rows
    assert [paths[rows]["wide"] for rows in paths] == ["rows", "rows", "weight"]  # length 1920: from 77 rows
    assert [paths[rows]["small"] for rows in paths] == ["rows"] * 3
    shown = str(adapters.explain(model, rows=64))
    assert "transforms of length 768 for each row cost more than 384 x 384 sums" in shown
    assert "few rows: forming 384 x 384 sums costs more than transforms of length 384 for each" in shown


def test_no_more_is_formed_than_four_times_a_transform_of_the_rows() -> None:
    for structure in ("toeplitz", "circulant"):
        for m, n in ((384, 384), (4096, 4096), (1024, 4096)):
            model = nn.Sequential(nn.Linear(n, m, device="meta"))
            adapters.attach(model, SURM(structure), targets=["0"])
            numbers = convolved.joined(model[0].chain())
            assert numbers is not None
            for rows in (1, 10, 100, 1000, 10000):
                assert not convolved.pays(numbers[1], rows) or m * n <= 4 * rows * numbers[1].length


@pytest.mark.parametrize("where", ["bfloat16", "autocast", "input"])
def test_half_precision_keeps_the_change_beside_the_product(where: str, calls: list[int]) -> None:
    """A change of 2^-12 of the weight would be lost in a weight of bfloat16; beside the product it is not."""
    half = torch.bfloat16
    model = adapted("square", SURM("toeplitz"), dtype=torch.float32, size=2.0**-12)
    if where == "bfloat16":
        model = model.to(half)
    x = rows_of("square", dtype=torch.float32 if where == "autocast" else half).detach()
    if where == "input":
        with pytest.raises(RuntimeError, match=r"same dtype|data type"):  # as without adapters
            model(x)
        return
    with torch.autocast("cpu", dtype=half, enabled=where == "autocast"):
        assert path(model, dtype=x.dtype) == "rows"
        y, base = model(x), model[0].base(x)
    assert calls == []
    with torch.no_grad():
        delta = adapters.folding.as_matrix(model[0].chain()[0].matrix).linear(x.float())
    assert torch.equal(y, (base.float() + delta).to(y.dtype))
    assert delta.abs().max() > 0


@pytest.mark.parametrize("how", ["forward", "pre", "backward", "backward_pre", "global", "replaced"])
def test_who_watches_the_layer_sees_its_call(how: str, calls: list[int]) -> None:
    model = adapted("square", SURM("circulant"))
    base, seen = model[0].base, []

    def hook(*_: object) -> None:
        seen.append(1)

    handle = None
    if how == "replaced":  # as accelerate does to move weights
        plain = base.forward
        base.forward = lambda x: (hook(), plain(x))[1]
    else:
        register = {
            "forward": base.register_forward_hook,
            "pre": base.register_forward_pre_hook,
            "backward": base.register_full_backward_hook,
            "backward_pre": base.register_full_backward_pre_hook,
            "global": nn.modules.module.register_module_forward_hook,
        }[how]
        handle = register(hook)
    try:
        assert "hooks" in adapters.explain(model, rows=ROWS).plans["0"].reason
        model(rows_of("square")).sum().backward()
    finally:
        if handle is not None and how == "global":
            handle.remove()
    assert seen
    assert calls == []


def test_a_layer_whose_weight_is_not_read() -> None:
    class Hidden(nn.Module):
        in_features = out_features = 96

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", torch.eye(96))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.packed

    model = nn.Sequential(Hidden())
    adapters.attach(model, SURM("toeplitz"), targets=["0"])
    plan = adapters.explain(model, rows=ROWS).plans["0"]
    assert (plan.path, plan.reason) == ("rows", "the layer's weight is never read")


def test_transforms_compilers_and_checkpoints() -> None:
    """What cannot take the formed weight gives the same numbers without it."""
    model = adapted("square", SURM("toeplitz"))
    x = rows_of("square").detach()
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    (name,) = parameters

    def loss(entries: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {name: entries}, (x,)).square().sum()

    plain = torch.autograd.grad(model(x).square().sum(), [p for p in model.parameters() if p.requires_grad])[0]
    entries = parameters[name]
    assert relative(torch.func.grad(loss)(entries), plain) < 1e-12
    _, along = torch.func.jvp(loss, (entries,), (entries,))
    assert abs(float(along - (plain * entries).sum())) <= 1e-12 * float(plain.norm() * entries.norm())
    many = torch.func.vmap(loss)(torch.stack([entries, 2 * entries]))
    assert abs(float(many[0] - loss(entries))) <= 1e-12 * float(many[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative(compiled(x), model(x)) < 1e-13
    again = torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=False)
    assert relative(torch.autograd.grad(again.square().sum(), model[0].slot("adapter0").entries)[0], plain) < 1e-13


def test_a_base_that_trains_too() -> None:
    model = adapted("wide", SURM("circulant"))
    model[0].base.requires_grad_(True)
    x = rows_of("wide")
    wanted = [x, *model.parameters()]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    reference = torch.autograd.grad((x @ model[0].weight.mT + model[0].base.bias).square().sum(), wanted)
    for got, right in zip(found, reference, strict=True):
        assert relative(got, right) < 1e-12


@pytest.mark.parametrize("structure", STRUCTURES)
def test_nothing_but_the_input_is_kept(structure: str, calls: list[int]) -> None:
    """Beside the input a few numbers of the size of the adapter: no spectra, no weight."""
    model = adapted("square", SURM(structure), dtype=torch.float32)
    x = rows_of("square", 1000, torch.float32)
    assert kept(lambda: model(x), [*model.parameters(), *model.buffers()]) <= 4 * (x.numel() + 2 * 96 * 2)
    assert calls == [1000]


def test_without_gradients() -> None:
    model = adapted("tall", SURM("toeplitz"))
    x = rows_of("tall")
    y = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), y)
    with torch.inference_mode():
        assert torch.equal(model(x), y)


def test_the_leading_block_of_a_circulant_is_a_matrix_type() -> None:
    """The suite that every type passes: wide, tall, of one row, of a length without a fast transform, and a batch."""
    cases = []
    for k, (m, n, lead) in enumerate(((4, 6, ()), (7, 3, ()), (1, 4, ()), (5, 17, ()), (6, 4, (2,)))):
        size = max(m, n)
        column = torch.randn(*lead, size, generator=generator(k), dtype=torch.float64)
        place = (torch.arange(m)[:, None] - torch.arange(n)) % size
        cases.append((LeadingCirculant(column, m, n), column[..., place]))
    testing.check_matrix_type(LeadingCirculant, cases)


def test_a_rectangular_circulant_is_transformed_at_its_own_length() -> None:
    """Not at m + n - 1: the plan says the length, and an embedding looks its columns up."""
    block = LeadingCirculant(torch.randn(1536, generator=generator()), 384, 1536)
    assert "length 1536" in block.plan("linear", 1000).reason
    model = nn.Sequential(nn.Embedding(40, 12))
    adapters.attach(model, SURM("circulant"), targets=["0"])
    perturb(model)
    index = torch.tensor([[0, 39], [7, 7]])
    assert relative(model(index), model[0].weight[index]) < 1e-6
