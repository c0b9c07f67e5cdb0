"""DDP and FSDP2: two processes end where one process ends, and the verbs say what they cannot do to a sharded model.

One pair of processes runs everything (distributed_worker) within a time limit; the tests look at what it wrote.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from structmat import adapters
from tests.adapters import distributed_worker as worker
from tests.adapters.cases import relative

LIMIT = 300  # seconds for two processes on a busy machine; they need about ten alone

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs the package 'gloo'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they are ended after the limit, whatever they wait for."""
    place = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        context = torch.multiprocessing.spawn(worker.run, (str(place),), nprocs=worker.WORLD, join=False)
    assert context is not None
    end = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=5):  # raises with the traceback of a process that failed
            assert time.monotonic() < end, f"the processes did not end within {LIMIT} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """The gathered parameters, losses and messages."""
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone() -> nn.Module:
    """One process on the whole batches."""
    model = worker.build()
    worker.train(model, model, slice(None))
    return model


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(mode: str, found: dict[str, Any], alone: nn.Module) -> None:
    """After ten steps of AdamW, all methods in one model: to 1e-10 in float64, parameter by parameter."""
    expected, start = worker.trained(alone), worker.trained(worker.build())
    assert found[mode].keys() == expected.keys()
    for key, wanted in expected.items():
        assert relative(wanted, start[key]) > 1e-3, key  # all of them moved
        assert relative(found[mode][key], wanted) < 1e-10, key


def test_a_sharded_model_is_saved_whole(folder: Path, found: dict[str, Any], alone: nn.Module) -> None:
    fresh = worker.Model().double()
    torch.manual_seed(0)
    fresh.load_state_dict(worker.Model().double().state_dict())
    adapters.load(fresh, folder / "saved", trainable=True)
    for key, wanted in worker.trained(fresh).items():
        assert torch.equal(found["fsdp"][key], wanted), key
    x = worker.batches()[0][0]
    assert relative(fresh(x), alone(x)) < 1e-10


@pytest.mark.parametrize("verb", ["merge", "to_lora", "stack"])
def test_what_a_sharded_model_cannot_do_names_the_call(verb: str, found: dict[str, Any]) -> None:
    said = found["refused"][verb]
    assert said.startswith(f"RuntimeError: {verb}: the parameter ")
    assert said.endswith(
        f"adapters.save gathers the adapters, load them on a model that is not sharded and call {verb} there"
    )


def test_attaching_to_a_sharded_model_is_refused(found: dict[str, Any]) -> None:
    wanted = "layer 'blocks.lora.layer' is sharded over devices: attach or load adapters before fully_shard"
    assert found["refused"]["attach"] == f"StructureError: {wanted}"


def test_inspect_gathers(found: dict[str, Any], alone: nn.Module) -> None:
    """The sharded model's layers, numbers of parameters and distances from the base are those of one that is whole."""
    for got, wanted in zip(found["inspected"], worker.measured(alone), strict=True):
        assert got[:2] == wanted[:2]
        assert got[2] == pytest.approx(wanted[2], rel=1e-9)


def test_single_adapters_on_a_half_base(found: dict[str, Any]) -> None:
    """Three steps on a bfloat16 base in one group with float32 adapters, against one process. Outputs are rounded to
    2^-8, and Adam makes steps of 0.01 whatever the gradient's size: what rounding turns differs by at most that.
    """
    model = worker.build(torch.bfloat16)
    start = worker.trained(model)
    worker.train(model, model, slice(None), 3)
    for key, wanted in worker.trained(model).items():
        got = found["bf16"][key]
        assert got.dtype == (torch.bfloat16 if key.startswith("head") else torch.float32)
        assert not torch.equal(got, start[key]), key
        difference = (got.double() - wanted.double()).abs()
        assert float(difference.max()) <= 3 * 2 * 0.0101 + 2.0**-7 * float(wanted.abs().max()), key
        assert float(difference.mean()) < 0.01, key


def test_the_weight_is_read_in_the_layers_own_forward(found: dict[str, Any]) -> None:
    """``fully_shard`` on the frozen layer alone, under rotations and scales: the output of the whole layer."""
    assert float(found["one layer"]) < 1e-13


def test_weights_are_formed_with_an_addition_in_both(found: dict[str, Any]) -> None:
    """Toeplitz and circulant layers, ten steps each, by DDP and, gathered for the forward pass, by FSDP2."""
    forms = found["forms"]
    at = forms.index("sharded")
    assert forms[:at].count("Parameter") == len(forms[:at]) >= 2 * worker.STEPS
    assert forms[at + 1 :].count("Parameter") == len(forms[at + 1 :]) >= 2 * worker.STEPS
