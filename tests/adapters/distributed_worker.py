"""What each of two processes runs for test_distributed: the same training, by DDP and by FSDP2."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from structmat import adapters
from structmat.adapters import convolved
from structmat.functional import folded
from tests.adapters.cases import generator

WORLD, STEPS, D = 2, 10, 16
METHODS: dict[str, adapters.Method] = {
    "hra": adapters.HRA(4, regulariser=1e-3),
    "hra-odd": adapters.HRA(3),
    "hra-orthonormal": adapters.HRA(2, orthonormal=True),
    "boft": adapters.BOFT(4, 2),
    "coft": adapters.OFT(block=4, constraint=0.05),
    "shared": adapters.OFT(blocks=2, shared=True),
    "lora": adapters.LoRA(2),
    "circulant": adapters.SURM("circulant"),
    "toeplitz": adapters.SURM("toeplitz"),
    "kronecker": adapters.SURM("kronecker"),
    "ldr": adapters.SURM("ldr"),
    "flora": adapters.FLoRA(2),
    "bottleneck": adapters.Bottleneck("symmetric_toeplitz"),
    "rows": adapters.OnRows(adapters.HRA(2), ((0, 4), (8, 12))),
    "conv": adapters.FLoRA(2),
    "convhra": adapters.HRA(2),
    "experts": adapters.OFT(block=4),
}


class Block(nn.Module):
    """A residual block with one layer to adapt: dense, a convolution of four channels, or two experts in one
    parameter.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind.startswith("conv"):
            self.layer: Any = nn.Conv1d(4, 4, 3, padding=1)
        elif kind == "experts":
            self.layer = nn.Parameter(torch.randn(2, D, D) / D**0.5)
        else:
            self.layer = nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "experts":
            y = torch.einsum("bi,eoi->bo", x, self.layer) / 2
        elif self.kind.startswith("conv"):
            y = self.layer(x.unflatten(-1, (4, -1))).flatten(1)
        else:
            y = self.layer(x)
        return x + torch.tanh(y)


class Model(nn.Module):
    """One block for every method, and a head that trains with them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block(name) for name in METHODS})
        self.head = nn.Linear(D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            x = block(x)
        return self.head(x)


def build(base: torch.dtype = torch.float64) -> Model:
    """The adapted model, away from its start; equal in every process."""
    torch.manual_seed(0)
    model = Model().double().to(base)
    chosen = {rf"blocks\.{name}\.layer": method for name, method in METHODS.items()}
    adapters.attach(model, chosen, train="head", generator=generator())
    source = generator(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and not key.startswith("head"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=source, dtype=torch.float64).to(parameter)
    return model


def batches(base: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = generator(3)
    return [
        (torch.randn(8, D, generator=source, dtype=torch.float64).to(base), torch.randint(3, (8,), generator=source))
        for _ in range(STEPS)
    ]


def train(model: nn.Module, inner: nn.Module, share: slice, steps: int = STEPS) -> None:
    """Steps of AdamW on this share of each batch; the verbs of structmat act on ``inner``."""
    dtype = next(p.dtype for key, p in inner.named_parameters() if key.startswith("head"))
    optimizer = torch.optim.AdamW(adapters.trainable_parameters(inner), lr=1e-2, eps=1e-6)
    for x, label in batches(dtype)[:steps]:
        optimizer.zero_grad()
        scores = model(x[share])
        loss = nn.functional.cross_entropy(scores.to(torch.promote_types(dtype, torch.float32)), label[share])
        (loss + adapters.penalty(inner)).backward()
        optimizer.step()
        adapters.after_step(inner, optimizer)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters, gathered; every process must call this."""
    return {key: whole(p) for key, p in model.named_parameters() if p.requires_grad}


def measured(model: nn.Module) -> list[tuple[str, int, float]]:
    """What inspect says of each layer: its numbers, and how far they move the weight."""
    return [
        (one.layer, one.parameters, -1.0 if one.distance is None else one.distance)
        for one in adapters.inspect(model).layers
    ]


def sharded_model(base: torch.dtype = torch.float64) -> Model:
    """Each block a group of its own, then the rest."""
    model = build(base)
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def refusals(model: Model) -> dict[str, str]:
    """What each verb says to a sharded model."""
    calls = {
        "merge": lambda: adapters.merge(model),
        "to_lora": lambda: adapters.to_lora(model, rank=2),
        "stack": lambda: adapters.stack(model, ["default"]),
        "attach": lambda: adapters.attach(model, adapters.LoRA(1), targets=[r"blocks.lora.layer"], name="late"),
    }
    said = {}
    for name, call in calls.items():
        said[name] = "nothing"
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def inside_one_layer() -> torch.Tensor:
    """``fully_shard`` on the frozen layer itself: its weight is whole only inside its own forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D)).double()
    adapters.attach(model, adapters.BOFT(4, 2), targets=["0"], generator=generator())
    with torch.no_grad():
        for parameter in adapters.trainable_parameters(model):
            parameter.add_(0.1)
    x = batches()[0][0]
    before = model(x)
    fully_shard(model[0].base, mesh=dist.device_mesh.init_device_mesh("cpu", (WORLD,)))
    return (model(x) - before).abs().max().detach()


def watch_forms() -> list[str]:
    """From here on layers as small as these form the weight with a Toeplitz or circulant addition too; the list grows
    by the class of every weight that is.
    """
    convolved._FEW_ENTRIES = 0
    seen: list[str] = []
    plain = folded.folded_linear

    def noted(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(type(weight).__name__)
        return plain(x, weight, *rest)

    folded.folded_linear = noted  # type: ignore[assignment]
    return seen


def run(rank: int, folder: str) -> None:
    """The whole of one process; process 0 writes what it found."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(Path(folder) / "store").as_uri(), rank=rank, world_size=WORLD)
    try:
        found: dict[str, Any] = {}
        forms = watch_forms()
        share = slice(rank * 8 // WORLD, (rank + 1) * 8 // WORLD)
        model = build()
        train(DistributedDataParallel(model), model, share)
        found["ddp"] = trained(model)
        forms.append("sharded")
        model = sharded_model()
        found["refused"] = refusals(model)
        train(model, model, share)
        found["fsdp"] = trained(model)
        adapters.save(model, Path(folder) / "saved")
        found["inspected"] = measured(model)
        model = sharded_model(torch.bfloat16)
        train(model, model, share, 3)
        found["bf16"] = trained(model)
        found["one layer"] = inside_one_layer()
        found["forms"] = forms
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
        dist.barrier()
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
