"""Adapters that PEFT saved: read without it, and equal to what PEFT computes."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from structmat import adapters
from structmat.errors import CheckpointError
from tests.adapters.cases import generator, relative
from tests.adapters.test_bad_input import fingerprint

peft = pytest.importorskip("peft")
LIMIT = 1e-5  # both compute in float32


class Net(nn.Module):
    """Linear layers, rectangular and square, a convolution and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(16, 16)}) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.point(self.conv(x))).mean((-2, -1)) + self.words(ids)
        y = torch.tanh(self.first(y))
        for block in self.blocks:
            y = y + torch.tanh(block["query"](y))
        return self.head(self.norm(y))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(5, 4, 6, 7, generator=generator(7))
    return x, torch.randint(0, 11, (5,), generator=generator(8))


def shake(model: nn.Module, size: float = 0.3) -> None:
    """Random values for all that PEFT trains."""
    source = generator(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=source)


def saved(
    config: Any, folder: Path, make: Callable[[], nn.Module] = Net, size: float = 0.3
) -> tuple[nn.Module, nn.Module]:
    """A model, and the same with a PEFT adapter of random values, which is saved."""
    torch.manual_seed(0)
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
        shake(wrapped, size)
        wrapped.save_pretrained(folder)
    return model, wrapped


LINEAR = ["first", "query"]
CONVS = [*LINEAR, "conv", "point"]
CASES: dict[str, Callable[[], Any]] = {
    "LORA-above": lambda: peft.LoraConfig(r=20, lora_alpha=7, use_rslora=True, target_modules=LINEAR),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=CONVS, bias="boft_only"),
    "BOFT-number": lambda: peft.BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=LINEAR, bias="all"),
    "OFT-exact": lambda: peft.OFTConfig(
        r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=[*LINEAR, "point"], modules_to_save=["head"]
    ),
    "OFT-Neumann": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=LINEAR, bias="oft_only"),
    "OFT-Neumann-3": lambda: peft.OFTConfig(r=2, oft_block_size=0, num_cayley_neumann_terms=3, target_modules=LINEAR),
    "OFT-Neumann-7": lambda: peft.OFTConfig(r=2, oft_block_size=0, num_cayley_neumann_terms=7, target_modules=LINEAR),
    "OFT-shared": lambda: peft.OFTConfig(r=0, oft_block_size=4, block_share=True, target_modules=LINEAR),
    "OFT-adjusted": lambda: peft.OFTConfig(r=0, oft_block_size=5, use_cayley_neumann=False, target_modules=LINEAR),
    "COFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, coft=True, eps=0.3, target_modules=LINEAR),
    "COFT-exact": lambda: peft.OFTConfig(
        r=0, oft_block_size=4, coft=True, eps=0.3, use_cayley_neumann=False, target_modules=LINEAR
    ),
    "HRA": lambda: peft.HRAConfig(r=4, target_modules=CONVS, bias="hra_only"),
    "HRA-odd": lambda: peft.HRAConfig(r=3, target_modules=LINEAR),
    "HRA-orthonormal": lambda: peft.HRAConfig(r=3, apply_GS=True, init_weights=False, target_modules=LINEAR),
    "C3A": lambda: peft.C3AConfig(block_size=8, block_size_pattern={"query": 16, "first": 1}, target_modules=LINEAR),
    "LoHa": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=CONVS, rank_pattern={"first": 2}),
    "LoHa-tucker": lambda: peft.LoHaConfig(r=2, use_effective_conv2d=True, target_modules=CONVS),
    "LoKr": lambda: peft.LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=CONVS),
    "LoKr-full": lambda: peft.LoKrConfig(r=8, target_modules=CONVS, decompose_factor=2, modules_to_save=["head"]),
    "LoKr-tucker": lambda: peft.LoKrConfig(r=1, use_effective_conv2d=True, target_modules=CONVS),
    "LoRA": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=[*CONVS, "words"], bias="lora_only", modules_to_save=["head", "norm"],
        rank_pattern={"first": 2, r"blocks\.\d+\.query": 3}, alpha_pattern={"blocks.1.query": 7},
    ),
    "LoRA-rs": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=r".*\.query|first"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_peft(case: str, tmp_path: Path) -> None:
    """The imported model computes what PEFT's does; so do the merged one, and one that our own format brought back."""
    model, wrapped = saved(CASES[case](), tmp_path / "peft")
    x = inputs()
    with torch.no_grad():
        base, expected = model(*x), wrapped(*x)
    assert relative(expected, base) > 0.05
    fresh = copy.deepcopy(model)
    report = adapters.from_peft(model, tmp_path / "peft", name="theirs")
    assert report.name == "theirs"
    assert adapters.names(model) == ("theirs",)
    assert relative(model(*x), expected) < LIMIT
    adapters.save(model, tmp_path / "ours")
    adapters.load(fresh, tmp_path / "ours")
    assert torch.equal(fresh(*x), model(*x))
    adapters.merge(model)
    assert relative(model(*x), expected) < LIMIT
    adapters.unmerge(model)
    if case not in ("OFT-Neumann", "OFT-Neumann-3", "OFT-Neumann-7", "OFT-shared", "COFT"):
        assert "NeumannOFT" not in str(adapters.inspect(model))


def test_butterflies_of_several_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's CUDA extension only places blocks on a diagonal; without it PEFT would silently train one factor."""
    from peft.tuners.boft import layer

    class Place:
        @staticmethod
        def apply(blocks: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.block_diag(*one) for one in blocks])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", Place)
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=[*LINEAR, "point"])
    model, wrapped = saved(config, tmp_path)
    adapters.from_peft(model, tmp_path)
    assert relative(model(*inputs()), wrapped(*inputs())) < LIMIT
    assert model.first.adapters["default"].skew.shape == (2, 2, 6)


def test_d3_one_factor_where_the_configuration_has_three(tmp_path: Path) -> None:
    """Elsewhere the factors asked for are silently replaced by 1, and the file says otherwise."""
    model, _ = saved(peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["query"]), tmp_path)
    before = fingerprint(model)
    message = (
        r"layer 'blocks\.0\.query': boft_R of shape \(1, 4, 4, 4\) means boft_n_butterfly_factor = 1, and "
        r"adapter_config\.json says boft_n_butterfly_factor = 3; peft trains 1 factor without its CUDA extension"
    )
    with pytest.raises(CheckpointError, match=message):
        adapters.from_peft(model, tmp_path)
    assert fingerprint(model) == before


def test_orthogonalise_reports_the_difference(tmp_path: Path) -> None:
    model, wrapped = saved(peft.OFTConfig(r=0, oft_block_size=8, target_modules=LINEAR), tmp_path)
    weight = model.first.weight.detach().clone()
    plain = copy.deepcopy(model)
    adapters.from_peft(plain, tmp_path)
    assert plain.first.adapters["default"].update().right.claims.properties == frozenset()
    report = adapters.from_peft(model, tmp_path, orthogonalise=True)
    assert isinstance(model.first.adapters["default"].method, adapters.OFT)
    found = adapters.inspect(model)
    assert all(info.orthogonality < 1e-6 for info in found.layers)
    assert set(report.differences) == {"first", "blocks.0.query", "blocks.1.query"}
    assert "difference" in str(report)
    # The difference of the two rotations, from PEFT's own module and a dense Cayley transform.
    theirs = wrapped.base_model.model.first.oft_R["default"].get_weight().double()
    q = wrapped.base_model.model.first.oft_R["default"]
    skew = torch.block_diag(*q._pytorch_skew_symmetric(q.weight, 8)).double()
    exact = torch.linalg.solve(torch.eye(8).double() - skew, torch.eye(8).double() + skew)
    assert float((theirs - exact).detach().norm()) / 8**0.5 == pytest.approx(report.differences["first"], rel=1e-5)
    assert relative(model.first.weight, weight.double() @ exact.T) < LIMIT
    assert report.differences["first"] > 0.01


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("case", ["BOFT", "OFT", "HRA", "C3A", "LoKr", "LoRA"])
def test_a_transformer(case: str, tmp_path: Path) -> None:
    common = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    config = {
        "BOFT": lambda: peft.BOFTConfig(boft_block_size=8, **common),
        "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, **common),
        "HRA": lambda: peft.HRAConfig(r=8, **common),
        "C3A": lambda: peft.C3AConfig(block_size=8, **common),
        "LoKr": lambda: peft.LoKrConfig(r=4, **common),
        "LoRA": lambda: peft.LoraConfig(r=4, **common),
    }[case]()
    model, wrapped = saved(config, tmp_path, bert)
    ids = torch.randint(0, 50, (3, 9), generator=generator(3))
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
    report = adapters.from_peft(model, tmp_path)
    assert len(report.layers) == 4
    assert report.extras == ("classifier.weight", "classifier.bias")
    assert relative(model(input_ids=ids).logits, expected) < LIMIT


def test_conv1d_of_gpt2(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def make() -> nn.Module:
        return transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30))

    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model, wrapped = saved(config, tmp_path, make)
    ids = torch.randint(0, 30, (3, 9), generator=generator(3))
    adapters.from_peft(model, tmp_path)
    expected = wrapped(input_ids=ids).last_hidden_state
    assert relative(model(input_ids=ids).last_hidden_state, expected) < LIMIT


def test_trains_after_import_and_others_stay_alive(tmp_path: Path) -> None:
    model, _ = saved(CASES["OFT-exact"](), tmp_path)
    adapters.attach(model, adapters.LoRA(2), targets=["first"], name="mine")
    report = adapters.from_peft(model, tmp_path, name="theirs", trainable=True)
    assert report.extras == ("head.weight", "head.bias")
    assert adapters.inspect(model).active == (("mine", 1.0), ("theirs", 1.0))
    own = {key for key, p in model.named_parameters() if p.requires_grad}
    assert own == {key for key, _ in model.named_parameters() if ".theirs." in key or key.startswith("head.")}


# -- files that are refused -------------------------------------------------------------------------------------------


def edit_config(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "adapter_config.json").read_text()) | fields
        (folder / "adapter_config.json").write_text(json.dumps(found))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


A = "base_model.model.first.lora_A.weight"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (pickled, r"adapter_model\.bin, a pickle, .*safe_serialization=True"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "does not exist"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "peft_type is None; read are BOFT, OFT"),
    "another method": (edit_config(peft_type="IA3"), "peft_type is 'IA3'; read are BOFT"),
    "rank": (edit_config(r=3), r"lora_A, of rank 4, means r = 4, and adapter_config\.json says r = 3"),
    "rank of a layer": (edit_config(rank_pattern={"first": 2}), "layer 'first': .* says r = 2"),
    "alpha": (edit_config(lora_alpha="8"), "lora_alpha must hold numbers, got '8'"),
    "pattern": (edit_config(alpha_pattern={"(a+)+": 2}), "more than an expression for the end of a name"),
    "no expression": (edit_config(alpha_pattern={"(": 2}), "is no regular expression"),
    "DoRA": (edit_config(use_dora=True), "use_dora = True changes what the adapter computes"),
    "start": (edit_config(init_lora_weights="pissa"), "init_lora_weights = 'pissa' also changes the frozen weights"),
    "targets": (edit_config(target_modules=["query"]), "leaves out 'first'"),
    "bias": (edit_config(bias="none"), r"first\.base_layer\.bias', which is neither of a LORA adapter"),
    "modules": (edit_config(modules_to_save=[]), r"head\.\w+', which is neither of a LORA adapter nor"),
    "a layer": (
        edit_tensors(lambda t: [t.update({k.replace("first.lora", "frist.lora"): t.pop(k)}) for k in list(t)]),
        "adapts 'frist', which the model does not have; near: 'first'",
    ),
    "half a layer": (edit_tensors(lambda t: t.pop(A)), r"layer 'first': lacks the tensor 'lora_A\.weight'"),
    "magnitudes": (
        edit_tensors(lambda t: t.update({"base_model.model.first.lora_magnitude_vector": torch.ones(16)})),
        "which no adapter here expresses",
    ),
    "shape": (edit_tensors(lambda t: t.update({A: torch.ones(4, 9)})), r"right has shape \(9, 4\)"),
    "dimensions": (edit_tensors(lambda t: t.update({A: torch.ones(4)})), "layer 'first'"),
    "integers": (edit_tensors(lambda t: t.update({A: torch.ones(4, 8, dtype=torch.int64)})), r"holds torch\.int64"),
    "not finite": (edit_tensors(lambda t: t[A].fill_(float("nan"))), "are not finite"),
    "head": (
        edit_tensors(lambda t: t.update({"base_model.model.head.weight": torch.ones(3, 16)})),
        r"'head\.weight' has shape \(3, 16\), the model's has \(4, 16\)",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("peft")
    config = peft.LoraConfig(r=4, target_modules=["first"], bias="lora_only", modules_to_save=["head"])
    saved(config, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_change_nothing(fault: str, good: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    edit, message = BAD[fault]
    edit(tmp_path)
    torch.manual_seed(0)
    model = Net()
    before, values = fingerprint(model), copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        adapters.from_peft(model, tmp_path)
    assert fingerprint(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_refused_layers(tmp_path: Path) -> None:
    """What PEFT itself computes wrongly, or what no change of a weight is."""
    model, _ = saved(peft.OFTConfig(r=0, oft_block_size=4, target_modules=["conv"]), tmp_path / "conv")
    with pytest.raises(CheckpointError, match="peft's OFT of a convolution adds up overlapping patches"):
        adapters.from_peft(model, tmp_path / "conv")
    model, _ = saved(peft.OFTConfig(r=0, oft_block_size=4, target_modules=["words"]), tmp_path / "words")
    with pytest.raises(CheckpointError, match="a rotation of an embedding's output"):
        adapters.from_peft(model, tmp_path / "words")
    config = peft.HRAConfig(r=8, apply_GS=True, target_modules=["query"])
    model, _ = saved(config, tmp_path / "hra", size=0.0)  # pairs of equal vectors, as PEFT starts
    with pytest.raises(CheckpointError, match=r"Gram-Schmidt process loses orthogonality|are not finite"):
        adapters.from_peft(model, tmp_path / "hra")
