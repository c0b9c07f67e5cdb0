"""Adapters on a model that is sharded over two processes, from attach to a merged model.

``torchrun --nproc-per-node 2 docs/guides/distributed.py``, or plain ``python``, which starts the two processes itself.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from structmat import adapters


# begin-model
class Block(nn.Module):
    """Half of a transformer's block: two linear layers and a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


def pretrained() -> nn.Module:
    """The same weights in every process, in bfloat16."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block(64) for _ in range(4)), nn.Linear(64, 10)).bfloat16()


# end-model


# begin-training
def train(rank: int, world: int, folder: Path) -> None:
    model = pretrained()
    # First attach, with a generator of one seed: every process draws the same start.
    methods = {r"\d\.up": adapters.BOFT(block=4, factors=2), r"\d\.down": adapters.HRA(rank=4, regulariser=1e-4)}
    report = adapters.attach(model, methods, generator=torch.Generator().manual_seed(0))
    # Then shard: the frozen weights in bfloat16 and the adapters in float32, both in the groups of their block.
    for block in model[:4]:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(adapters.trainable_parameters(model), lr=1e-2)  # after sharding
    first = last = torch.zeros(())
    for step in range(20):
        source = torch.Generator().manual_seed(step % 2)
        x, label = torch.randn(32, 64, generator=source).bfloat16(), torch.randint(10, (32,), generator=source)
        mine = slice(rank * 32 // world, (rank + 1) * 32 // world)
        loss = nn.functional.cross_entropy(model(x[mine]).float(), label[mine])
        optimizer.zero_grad()
        (loss + adapters.penalty(model)).backward()
        optimizer.step()
        adapters.after_step(model, optimizer)
        last = loss.detach()
        dist.all_reduce(last)
        first = last / world if step == 0 else first
    adapters.save(model, folder)  # every process calls it; rank 0 writes
    dist.barrier()
    # end-training
    if rank == 0:
        print(report)
        weight, scales = model[0].up.base.weight, model[0].up.slot("default").scales
        print(f"{world} processes; of the weight {tuple(weight.shape)} this one holds {tuple(weight.to_local().shape)}")
        print(f"of the scales {tuple(scales.shape)} it holds {tuple(scales.to_local().shape)}, as {scales.dtype}")
        print(f"loss {float(first):.3f} -> {float(last) / world:.3f}")
        try:
            adapters.merge(model)
        except RuntimeError as error:
            print(f"RuntimeError: {error}")


# begin-merge
def merged(folder: Path) -> nn.Module:
    """One process: the base as it was, the adapters from the file, folded in."""
    model = pretrained()
    adapters.load(model, folder)
    adapters.merge(model, keep="none")
    adapters.detach(model)
    return model


# end-merge


def process(rank: int, world: int, store: str, folder: Path) -> None:
    """One of the processes."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    try:
        train(rank, world, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if rank == 0:
        model = merged(folder)
        print(f"merged: {sum(p.numel() for p in model.parameters()):,} parameters, {model[0].up}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder of the adapters (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if "RANK" in os.environ:  # torchrun has started us
            folder = Path(
                arguments.out or Path(tempfile.gettempdir()) / f"adapters-{os.environ['TORCHELASTIC_RUN_ID']}"
            )
            process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", folder)
        else:
            folder = Path(arguments.out or scratch) / "adapters"
            torch.multiprocessing.spawn(process, (2, (Path(scratch) / "store").as_uri(), folder), nprocs=2)


if __name__ == "__main__":
    main()
