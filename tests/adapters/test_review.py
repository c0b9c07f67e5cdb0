"""What a hostile reviewer found: odd orders of calls on layers that ordinary use never puts together."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from structmat import adapters
from structmat.adapters.layer import Adapted
from structmat.errors import CheckpointError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double()


def move(model: nn.Module, size: float = 0.2) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapters" in name:
                parameter += size * torch.randn_like(parameter)


def rows_of(model: nn.Module) -> torch.Tensor:
    return torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-12) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= limit * max(1.0, float(b.abs().max())))


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["copy", "cpu", "none"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_merge_in_training_mode_holds_no_dropout(keep: str, mixed: bool) -> None:
    model = net()
    adapters.attach(model, adapters.BOFT(4, 5 if mixed else 2, dropout=0.5, mixed=mixed), "all-linear")
    move(model)
    x = rows_of(model)
    wanted, stored = model.eval()(x), model[0].base.weight.clone()
    model.train()
    adapters.merge(model, keep=keep)
    assert close(model(x), wanted)
    assert close(model.eval()(x), wanted)
    model.train()
    adapters.unmerge(model)
    assert close(model[0].base.weight, stored, 1e-14 if keep == "none" else 0.0)


@pytest.mark.parametrize("keep", ["copy", "cpu", "none"])
def test_a_merge_that_fails_on_the_way_puts_the_first_layers_back(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    adapters.attach(model, adapters.HRA(4), "all-linear")
    move(model)
    x = rows_of(model)
    wanted, stored = model(x), model[0].base.weight.clone()
    ordinary, calls = Adapted.folded, []

    def folded(self: Adapted, chain: list) -> torch.Tensor:
        calls.append(self)
        if len(calls) == 4:  # two layers are checked, the first is merged, the second fails
            raise MemoryError
        return ordinary(self, chain)

    monkeypatch.setattr(Adapted, "folded", folded)
    with pytest.raises(MemoryError):
        adapters.merge(model, keep=keep)
    monkeypatch.undo()
    assert adapters.inspect(model).merged is None
    assert close(model(x), wanted)
    assert close(model[0].base.weight, stored, 1e-14 if keep == "none" else 0.0)
    adapters.merge(model, keep=keep)
    assert close(model(x), wanted)


@pytest.mark.parametrize("keep", ["copy", "cpu", "none"])
def test_parameters_merge_with_every_keep(keep: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, dropout=0.0, batch_first=True)}).double()
    adapters.attach(model, adapters.HRA(4), ["attention.in_proj_weight", "attention.out_proj"])
    move(model)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wanted = model["attention"](x, x, x)[0]
    adapters.merge(model, keep=keep)
    assert close(model["attention"](x, x, x)[0], wanted)
    found = model.state_dict()
    assert list(found) == list(before)
    if keep != "none":  # a state_dict is that of the unmerged model
        assert all(torch.equal(found[key], tensor) for key, tensor in before.items())
    adapters.unmerge(model)
    limit = 1e-14 if keep == "none" else 0.0
    assert all(close(tensor, before[key], limit) for key, tensor in model.state_dict().items())


def test_an_addition_is_merged_from_behind_another_one_though_a_rotation_follows() -> None:
    model = net()
    for name, method in (("a", adapters.LoRA(2)), ("t", adapters.SURM("toeplitz")), ("h", adapters.HRA(4))):
        adapters.attach(model, method, "all-linear", name=name)
    move(model)
    x = rows_of(model)
    wanted = model(x)
    adapters.merge(model, names="t")
    assert close(model(x), wanted)
    adapters.unmerge(model)
    with pytest.raises(ValueError, match="do not commute"):
        adapters.merge(model, names=["a", "h"])
    assert close(model(x), wanted, 0.0)


def test_shared_weights_are_named_as_the_model_has_them() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    model[1].weight = model[0].weight
    adapters.attach(model, adapters.LoRA(2), ["0", "1"])
    with pytest.raises(ValueError, match=r"'0' is shared with '1'; use keep=\"copy\""):
        adapters.merge(model, keep="cpu")


# -- blocks that tell their sizes, and layers within layers -----------------------------------------------------------


class Block(nn.Module):
    """Not linear, and with the attributes of a linear layer all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 16, 8
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("targets", ["all-linear", r"block.*", r".*"])
def test_a_block_that_tells_its_sizes_is_no_layer(targets: str) -> None:
    model = nn.ModuleDict({"block": Block()})
    assert adapters.attach(model, adapters.HRA(2), targets).layers == ("block.up", "block.down")
    assert [info.layer for info in adapters.inspect(model).layers] == ["block.up", "block.down"]


def test_a_model_that_tells_its_sizes_has_layers() -> None:
    model = Block()
    assert adapters.attach(model, adapters.HRA(2), "all-linear").layers == ("up", "down")
    with pytest.raises(ValueError, match="wrap it"):
        adapters.attach(nn.Linear(4, 4), adapters.HRA(2), "all-linear")


def test_a_quantised_layer_with_tables_inside_is_one_layer() -> None:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 16, 8
            self.centroids = nn.Embedding(4, 16)
            self.scale = nn.Linear(1, 1)._parameters["weight"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.centroids.weight.repeat(2, 1).mT * self.scale

    model = nn.Sequential(Coded())
    assert adapters.attach(model, adapters.LoRA(2), "all-linear").layers == ("0",)


def test_a_layer_and_a_part_of_it_are_refused(tmp_path) -> None:
    model = nn.ModuleDict({"block": Block()})
    for listed in (["block", "block.up"], ["block.up", "block"]):
        with pytest.raises(ValueError, match=r"'block.up' is a part of 'block', and only one"):
            adapters.attach(model, adapters.HRA(2), listed)
    assert not adapters.names(model)
    adapters.attach(model, adapters.HRA(2), ["block.up"], name="inner")
    with pytest.raises(ValueError, match=r"'block' holds the layer block.up that has adapters already"):
        adapters.attach(model, adapters.HRA(2), ["block"], name="outer")
    assert adapters.names(model) == ("inner",)

    whole = nn.ModuleDict({"block": Block()})
    adapters.attach(whole, adapters.HRA(2), ["block"], name="outer")
    adapters.save(whole, tmp_path)
    with pytest.raises(CheckpointError, match="has adapters already"):
        adapters.load(model, tmp_path)
    assert adapters.names(model) == ("inner",)


# -- copies, replicas, templates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "assigned"])
def test_a_copy_of_a_stacked_model_serves_its_own_tensors(how: str) -> None:
    model = net().eval()
    for name in ("a", "b"):
        adapters.attach(model, adapters.LoRA(2), "all-linear", name=name)
    move(model)
    model.requires_grad_(False)
    adapters.stack(model, ["a", "b"])
    x, ids = rows_of(model), torch.tensor([1, -1, 0])
    with torch.no_grad(), adapters.rows(model, ids):
        wanted = model(x)
    made = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    with torch.no_grad(), adapters.rows(made, ids):
        assert close(made(x), wanted)
    if how == "assigned":
        twice = {key: 2 * tensor if "adapters" in key else tensor for key, tensor in made.state_dict().items()}
        made.load_state_dict(twice, assign=True)
    else:
        move(made, 1.0)
    with torch.no_grad():
        with adapters.rows(made, ids):
            served = made(x)
        with adapters.rows(made, ["b", "base", "a"]):
            assert close(served, made(x))
        with adapters.rows(model, ids):
            assert close(model(x), wanted, 0.0)


def _replica(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` makes for one device: parameters are copies, kept beside the module's own
    empty dictionary.
    """
    if id(module) in known:
        return known[id(module)]
    made = known[id(module)] = module._replicate_for_data_parallel()
    made._former_parameters = {}
    for key, child in module._modules.items():
        if child is not None:
            made._modules[key] = _replica(child, known)
    for key, parameter in module._parameters.items():
        if parameter is not None:
            clone = parameter * 1
            setattr(made, key, clone)
            made._former_parameters[key] = clone
    return made


@pytest.mark.parametrize(
    "method", [adapters.HRA(3), adapters.BOFT(4, 2), adapters.FLoRA(2), adapters.SURM("toeplitz"), adapters.LoRA(2)]
)
def test_a_replica_of_data_parallel(method) -> None:
    model = net()
    adapters.attach(model, method, "all-linear")
    move(model)
    x = rows_of(model)
    y = _replica(model, {})(x)
    assert close(y, model(x))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.trainable_parameters(model))


@pytest.mark.parametrize("method", [adapters.HRA(4), adapters.BOFT(4, 2), adapters.SURM("circulant"), adapters.LoRA(2)])
def test_an_ensemble_through_a_template_on_the_meta_device(method) -> None:
    """The recipe of torch.func: one module without numbers, and the parameters of several stacked."""
    models = []
    for _ in range(3):
        one = net()
        adapters.attach(one, method, "all-linear")
        move(one)
        models.append(one)
    template = copy.deepcopy(models[0]).to("meta")
    assert template(torch.empty(5, 16, dtype=torch.float64, device="meta")).shape == (5, 8)
    stacked, x = stack_module_state(models), rows_of(models[0])
    y = vmap(lambda parameters, buffers: functional_call(template, (parameters, buffers), (x,)))(*stacked)
    assert all(close(y[k], one(x)) for k, one in enumerate(models))


@pytest.mark.parametrize("method", [adapters.HRA(4), adapters.HRA(3), adapters.BOFT(4, 2), adapters.SURM("ldr")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows_at_all(method, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    adapters.attach(model, method, "all-linear")
    y = model(torch.zeros(2, 0, 16, dtype=dtype))
    assert y.shape == (2, 0, 8) and y.dtype == dtype
    y.sum().backward()


def test_torch_s_fused_encoder_serves_rows_when_told_to_call_its_layers() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        before = encoder(x)
        adapters.attach(encoder, adapters.HRA(4), r".*\.linear[12]")
        move(encoder)
        after = encoder(x)  # the fused layer reads the adapted weight
        with adapters.rows(encoder, ["default", "base", "default"]):
            with pytest.raises(RuntimeError, match=r"torch\.backends\.mha\.set_fastpath_enabled\(False\)"):
                encoder(x)
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                mixed = encoder(x)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
    assert close(mixed[1], before[1], 1e-5) and close(mixed[[0, 2]], after[[0, 2]], 1e-5)
    assert not close(after, before, 1e-2)


def test_what_is_no_model_and_what_are_no_ids() -> None:
    with pytest.raises(TypeError, match=r"attach: the model must be a torch\.nn\.Module, got int"):
        adapters.attach(3, adapters.HRA(2), "all-linear")
    model = net()
    adapters.attach(model, adapters.LoRA(2), "all-linear")
    with pytest.raises(ValueError, match="a name for each row of the batch, or a LongTensor, got None"):
        adapters.rows(model, None).__enter__()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_checkpointed_rows_train_where_backward_is_inside(stacked: bool, reentrant: bool) -> None:
    model = net()
    for name in ("a", "b"):
        adapters.attach(model, adapters.HRA(4), "all-linear", name=name)
    move(model)
    chosen = {n: p.requires_grad_(True) for n, p in model.named_parameters() if "adapters" in n}
    if stacked:
        adapters.stack(model, ["a", "b"])
    x = rows_of(model).requires_grad_()
    with adapters.rows(model, torch.tensor([0, 1, -1])):
        wanted = torch.autograd.grad(model(x).square().sum(), [*chosen.values(), x])
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    found = [*(parameter.grad for parameter in chosen.values()), x.grad]
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_was_trained_along_with_a_removed_adapter_is_frozen_again() -> None:
    model = net()
    adapters.attach(model, adapters.HRA(2), ["0"], name="a", train=r"2\.bias")
    adapters.attach(model, adapters.LoRA(2), ["0"], name="b", train="2")
    adapters.detach(model, "b")
    assert not model[2].weight.requires_grad
    assert model[2].bias.requires_grad  # as it trains with "a", which stays
    adapters.detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
