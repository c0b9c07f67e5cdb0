"""What a hostile reviewer found, continued: what trains along, quantised layers, residuals, rows and beams."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from structmat import DtypeError, ShapeError, StructureError, adapters
from structmat.errors import CheckpointError
from tests.adapters.test_bad_input import fingerprint


class Quantised(nn.Module):
    """A layer with a table of integers, and its bias among the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 6
        self.weight = nn.Parameter(torch.randint(-9, 9, (6, 8), dtype=torch.int8), requires_grad=False)
        self.register_buffer("bias", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (0.1 * self.weight.to(x.dtype)).mT + self.bias


def test_a_bias_that_is_no_parameter() -> None:
    model = nn.Sequential(Quantised(), nn.Linear(6, 4))
    before = fingerprint(model)
    with pytest.raises(StructureError, match=r"the bias of '0', a Quantised, is no parameter .* exclude="):
        adapters.attach(model, adapters.HRA(2), "all-linear", train_bias=True)
    assert fingerprint(model) == before
    report = adapters.attach(model, adapters.HRA(2), "all-linear", exclude="0", train_bias=True)
    assert report.extras == ("1.bias",)


@pytest.mark.parametrize("targets", [["1"], ["0", "1"], ["0"]])
def test_a_bias_that_two_layers_share(targets: list[str], tmp_path) -> None:
    def made() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6))
        model[1].bias = model[0].bias
        return model

    torch.manual_seed(0)
    model = made()
    base = copy.deepcopy(model)
    report = adapters.attach(model, adapters.LoRA(2), targets, train_bias=True)
    assert report.extras == ("0.bias",)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters(model):
            parameter += 0.1
    adapters.save(model, tmp_path)
    adapters.load(base, tmp_path)
    x = torch.randn(3, 8)
    assert torch.equal(base(x), model(x))


def test_integers_do_not_train(tmp_path) -> None:
    model = nn.Sequential(Quantised(), nn.Linear(6, 4))
    before = fingerprint(model)
    with pytest.raises(DtypeError, match=r"selects '0.weight', a parameter of torch.int8"):
        adapters.attach(model, adapters.HRA(2), ["1"], train="0")
    assert fingerprint(model) == before

    plain = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    adapters.attach(plain, adapters.HRA(2), ["1"], train=r"0\.weight")
    adapters.save(plain, tmp_path)
    with pytest.raises(CheckpointError, match=r"parameter '0\.weight' is of torch\.int8 in the model"):
        adapters.load(model, tmp_path, trainable=True)
    assert fingerprint(model) == before


def test_nothing_is_not_saved(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    adapters.attach(model, adapters.HRA(2), ["0"])
    with pytest.raises(ValueError, match=r"save: names=\[\] is no adapter; there are: 'default'"):
        adapters.save(model, tmp_path / "x", names=[])
    assert not (tmp_path / "x").exists()


def test_integers_are_not_written_over_by_a_peft_file(tmp_path) -> None:
    pytest.importorskip("peft")
    import peft

    wrapped = peft.get_peft_model(
        nn.ModuleDict({"0": nn.Linear(8, 6), "1": nn.Linear(6, 4)}),
        peft.LoraConfig(r=2, target_modules=["1"], modules_to_save=["0"]),
    )
    wrapped.save_pretrained(tmp_path)
    assert "0" in json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    model = nn.ModuleDict({"0": Quantised(), "1": nn.Linear(6, 4)})
    before = fingerprint(model)
    with pytest.raises(CheckpointError, match=r"'0\.weight' is of torch\.int8 in the model|no parameter of the model"):
        adapters.from_peft(model, tmp_path)
    assert fingerprint(model) == before


def test_a_dequantised_layer_comes_back_where_the_model_went() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Quantised()).eval()
    adapters.attach(model, adapters.HRA(2), ["0"])
    adapters.merge(model, dequantise=True)
    model.double().train()
    adapters.unmerge(model)
    layer = model[0].base
    assert isinstance(layer, Quantised) and layer.training
    assert layer.bias.dtype == torch.float64 and layer.weight.dtype == torch.int8
    assert model(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("order", [("residual", "change"), ("change", "residual")])
@pytest.mark.parametrize("method", [adapters.LoRA(2), adapters.HRA(2)])
def test_what_is_not_residual_merges_beside_a_residual(method, order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6)).double()
    made = {"residual": adapters.Bottleneck("circulant"), "change": method}
    for name in order:
        adapters.attach(model, made[name], ["0"], name=name)
    with torch.no_grad():
        for parameter in model[0].adapters.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(3, 8, dtype=torch.float64)
    wanted = model(x)
    with pytest.raises(StructureError, match="merge the others with names="):
        adapters.merge(model)
    adapters.merge(model, names="change")
    assert torch.allclose(model(x), wanted, rtol=1e-13, atol=1e-13)


def test_one_index_for_each_row_is_a_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6))
    adapters.attach(model, adapters.LoRA(2), ["0", "1"])
    with torch.no_grad():
        for layer in model:
            layer.adapters["default"].left.normal_()
    labels = torch.tensor([3, 3, 8])
    wanted = model(labels)
    with adapters.disabled(model):
        base = model(labels)
    for ids in (["default", "base", "default"], torch.tensor([0, -1, 0])):
        with adapters.rows(model, ids):
            mixed = model(labels)
        assert torch.allclose(mixed[[0, 2]], wanted[[0, 2]], atol=1e-6) and torch.allclose(mixed[1], base[1], atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
def test_beams_of_an_encoder_and_a_decoder(stacked: bool) -> None:
    """The encoder sees each row once, the decoder once for every beam."""
    pytest.importorskip("transformers")
    from tests.adapters.peft_models import tiny

    model, batch = tiny("T5")
    for name in ("a", "b"):
        adapters.attach(model, adapters.LoRA(2), r".*\.(q|v|wi)", name=name)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("left"):
                parameter.normal_()
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    wanted = []
    for row, names in enumerate((["b"], [])):
        adapters.activate(model, names)
        wanted.append(model.generate(batch["input_ids"][row : row + 1], **options)[0])
    adapters.stack(model, ["a", "b"] if stacked else [])
    ids = torch.tensor([1, -1]) if stacked else ["b", "base"]
    with torch.no_grad(), adapters.rows(model, ids, repeat=3):
        found = model.generate(batch["input_ids"], **options)
    for row, alone in zip(found, wanted, strict=True):
        assert torch.equal(row[: len(alone)], alone)
    assert not torch.equal(wanted[0], wanted[1])


def test_a_residual_on_some_rows_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    before = fingerprint(model)
    with pytest.raises(StructureError, match=r"on '0': the rows 0 to 2 take an Add or a Compose, got a Residual"):
        adapters.attach(model, adapters.OnRows(adapters.Bottleneck("circulant"), ((0, 2),)), ["0"])
    assert fingerprint(model) == before


def test_a_pair_may_be_a_list() -> None:
    assert adapters.BOFT(4, 2, dropout=[0.1, 0.2]) == adapters.BOFT(4, 2, dropout=(0.1, 0.2))
    hash(adapters.BOFT(4, 2, dropout=[0.1, 0.2]))


def test_a_parameter_inside_a_layer_and_the_layer_are_refused() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 6
            self.table = nn.Module()
            self.table.entries = nn.Parameter(torch.randn(6, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.table.entries.mT

    model = nn.ModuleDict({"outer": Outer()})
    for listed in (["outer", "outer.table.entries"], ["outer.table.entries", "outer"]):
        with pytest.raises(ValueError, match=r"'outer.table.entries' is a part of 'outer'"):
            adapters.attach(model, adapters.LoRA(2), listed)
    adapters.attach(model, adapters.LoRA(2), ["outer.table.entries"], name="inner")
    with pytest.raises(ValueError, match=r"'outer' holds the layer .* that has adapters already"):
        adapters.attach(model, adapters.LoRA(2), ["outer"], name="outer")
    adapters.detach(model)
    assert adapters.attach(model, adapters.LoRA(2), ["outer"]).layers == ("outer",)


def test_numbers_of_a_file_are_not_lost_on_the_meta_device(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    adapters.attach(model, adapters.LoRA(2), ["0"])
    adapters.save(model, tmp_path / "own")
    adapters.to_peft(model, tmp_path / "peft")
    empty = nn.Sequential(nn.Linear(8, 6, device="meta"))
    for read, folder in ((adapters.load, "own"), (adapters.from_peft, "peft")):
        with pytest.raises(CheckpointError, match=r"layer '0' is on the meta device, which would lose"):
            read(empty, tmp_path / folder)
    assert not adapters.names(empty)


def test_a_tied_output_layer_may_be_tied_again_and_keeps_its_sizes() -> None:
    """transformers ties by assignment."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    adapters.attach(model, adapters.LoRA(2), targets=["lm_head"])
    model.lm_head.base.weight = nn.Parameter(torch.zeros(20, 16))
    model.tie_weights()
    assert model.lm_head.base.weight is model.transformer.wte.weight
    with pytest.raises(ShapeError, match=r"an adapted layer keeps its sizes, .*; call adapters.detach first"):
        model.lm_head.out_features = 24  # as resize_token_embeddings does
    with pytest.raises(ShapeError, match=r"its weight was set"):
        model.lm_head.weight = nn.Parameter(torch.zeros(3, 16))
    adapters.merge(model)
    with pytest.raises(RuntimeError, match=r"the weight of a merged layer was set; call adapters.unmerge first"):
        model.lm_head.weight = nn.Parameter(torch.zeros(20, 16))
