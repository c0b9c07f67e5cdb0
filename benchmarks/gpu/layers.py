"""Adapted linear layers, forward and backward, against peft and against the frozen layer: 16384 rows, d = 4096, bf16.

The input requires its gradient, as inside a network. Ours is timed in plain torch and on kernels, and the better one
counts; the note says which. peft's BOFT replaces several factors by one without its CUDA extension, which only lays the
blocks on a diagonal: a stand-in in torch does that, so that the model is the same.
"""

import functools
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.clock import message
from benchmarks.gpu.row import Bound, Context, Result, Row, at_least, at_most
from structmat import adapters, backend

__all__ = ["ROWS"]


class OnDiagonal:
    """What peft's extension does: blocks ``(m, count, b, b)`` laid on the diagonal of ``(m, d, d)``, and back."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        m, count, b, _ = blocks.shape
        dense = blocks.new_zeros(m, count, b, count, b)
        each = torch.arange(count, device=blocks.device)
        dense[:, each, :, each, :] = blocks.transpose(0, 1)
        return [dense.view(m, count * b, count * b)]

    @staticmethod
    def backward(g: torch.Tensor, blocks: torch.Tensor) -> list[torch.Tensor]:
        m, count, b, _ = blocks.shape
        each = torch.arange(count, device=blocks.device)
        return [g.reshape(m, count, b, count, b)[:, each, :, each, :].transpose(0, 1).contiguous()]


def _ours(method: Any, layer: nn.Linear) -> nn.Module:
    model = nn.Sequential(layer)
    adapters.attach(model, method, targets=["0"])
    return model


def _hra(layer: nn.Linear, r: int) -> nn.Module:
    from peft import HRAConfig, get_peft_model

    config = HRAConfig(r=r, apply_GS=False, target_modules=["0"])
    found: nn.Module = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]
    return found


def _boft(layer: nn.Linear, b: int, m: int) -> nn.Module:
    from peft import BOFTConfig, get_peft_model
    from peft.tuners.boft import layer as peft_layer

    peft_layer._FBD_CUDA = OnDiagonal  # type: ignore[assignment]
    config = BOFTConfig(boft_block_size=b, boft_n_butterfly_factor=m, target_modules=["0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]
    return found


def _nudged(model: nn.Module) -> nn.Module:
    """Trained entries off zero, so that nothing is exact by chance."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.01)
    return model


def _step(model: nn.Module, x: torch.Tensor, g: torch.Tensor) -> Callable[[int], Any]:
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return lambda k: torch.autograd.grad(model(x), leaves, g)


def _peak(c: Context, run: Callable[[int], Any]) -> float:
    """Bytes above what is held before, at the highest point of a step."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(0)
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def layer(
    name: str, method: Callable[[Context], Any], peer: Callable[[nn.Linear], nn.Module], must: float,
    over_frozen: tuple[Bound | None, Bound | None], c: Context,
) -> list[Result]:  # fmt: skip
    """peft's seconds over ours, ours over the frozen layer, and the extra peak of memory over peft's."""
    n, d = c.size(16384, 32), c.size(4096, 64)
    torch.manual_seed(0)
    frozen = nn.Linear(d, d, bias=False, device=c.device, dtype=torch.bfloat16).requires_grad_(False)
    x, g = c.randn(n, d).requires_grad_(), c.randn(n, d, seed=1)
    ours = _nudged(_ours(method(c), nn.Linear(d, d, bias=False, device=c.device, dtype=torch.bfloat16)))
    step = _step(ours, x, g)

    def under(mode: str) -> Callable[[int], Any]:
        def run(k: int) -> Any:
            with backend.use_backend("reference" if c.dry else mode):
                return step(k)

        return run

    compiled = c.compiled(ours)
    plain = under("reference")
    runs = {"frozen": _step(frozen, x, g), "plain": plain, "kernels": under("triton")}
    runs["compiled"] = _in_reference(_step(compiled, x, g))
    errors: dict[str, str] = {}
    try:
        runs["peft"] = _step(_nudged(peer(nn.Linear(d, d, bias=False, device=c.device, dtype=torch.bfloat16))), x, g)
    except Exception as error:
        errors["peft"] = message(error)
    seconds, failed = c.times(runs)
    errors |= failed
    best = min((v for v in ("plain", "kernels") if v in seconds), key=seconds.__getitem__, default=None)
    note = "" if best is None else f"ours: {best}"
    mine = seconds.get(best) if best else None
    speed = seconds["peft"] / mine if mine and "peft" in seconds else None
    cost = mine / seconds["frozen"] if mine and "frozen" in seconds else None
    found = [
        Result(
            f"{name}: peft over ours", speed, "x", at_least(must), None, seconds, errors, 2.0 * x.nbytes, None, note
        ),
        Result(f"{name}: ours over the frozen layer", cost, "x", *over_frozen, note=note),
    ]
    if "kernels" in seconds and "compiled" in seconds:
        value = seconds["compiled"] / seconds["kernels"]
        found.append(Result(f"{name}: torch.compile of plain torch over kernels", value, "x", None, at_least(1.15)))
    found.append(_memory(name, c, runs, best))
    return found


def _in_reference(step: Callable[[int], Any]) -> Callable[[int], Any]:
    def run(k: int) -> Any:
        with backend.use_backend("reference"):
            return step(k)

    return run


def _memory(name: str, c: Context, runs: dict[str, Callable[[int], Any]], best: str | None) -> Result:
    title = f"{name}: extra peak memory, ours over peft's"
    if c.device.type != "cuda" or best is None or "peft" not in runs:
        return Result(title, None, "x", at_most(0.10))
    peaks = {which: _peak(c, runs[which]) for which in ("frozen", best, "peft")}
    extra = {which: peaks[which] - peaks["frozen"] for which in (best, "peft")}
    note = ", ".join(f"{which} {v / 2**20:.0f} MiB" for which, v in peaks.items())
    value = extra[best] / extra["peft"] if extra["peft"] > 0 else None
    return Result(title, value, "x", at_most(0.10), None, note=note)


def _row(name: str, *given: Any) -> Row:
    promised = ("peft over ours", "ours over the frozen layer", "extra peak memory")
    return Row(name, functools.partial(layer, name, *given), promised)


ROWS = (
    _row(
        "HRA r=32",
        lambda c: adapters.HRA(c.size(32, 4)),
        lambda layer: _hra(layer, 32 if layer.in_features > 64 else 4),
        8.0,
        (at_most(1.25), at_most(1.05)),
    ),
    _row(
        "BOFT b=8 m=4",
        lambda c: adapters.BOFT(8, c.size(4, 2)),
        lambda layer: _boft(layer, 8, 4 if layer.in_features > 64 else 2),
        3.5,
        (None, at_most(1.25)),
    ),
)
