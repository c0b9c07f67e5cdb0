"""What the launchers share: products of tiles, outputs, and how the sum over rows is cut."""

import os
from typing import Any

import torch
import triton
import triton.language as tl

from structmat.kernels.configs import Config, pick

__all__ = ["INTERPRETED", "accumulator", "allocate", "configured", "product", "splits"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by triton too, when a kernel is decorated
_PROGRAMS = 528  # about four a multiprocessor of the largest device: the cut of a sum may not depend on the device


@triton.jit
def product(a, b, acc, UP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``acc + a b`` for tiles; UP: the interpreter multiplies the bits of bfloat16, so it is given float32."""
    if UP:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype that sums are kept in: float32, and float64 for the float64 that only the interpreter is given."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def allocate(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An output. The tests fill it with NaN, to see entries that no program wrote."""
    return torch.empty(shape, dtype=dtype, device=device)


def name_of(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def configured(kernel: str, dtype: torch.dtype, size: int, wanted: Config | str | None) -> tuple[int, dict[str, Any]]:
    """The padded size, and the keyword arguments of the launch that come from the table."""
    c = wanted if isinstance(wanted, Config) else pick(kernel, name_of(dtype), size, wanted)
    up = INTERPRETED and dtype == torch.bfloat16
    options: dict[str, Any] = {**dict(c.tiles), "num_warps": c.warps, "num_stages": c.stages}
    return c.size, {**options, "UP": up, "ACC": accumulator(dtype), "PRECISION": precision(c)}


def precision(config: Config) -> str:
    """How float32 tiles are multiplied: in three parts on tensor cores, as accurate as float32."""
    return "tf32x3" if config.kind == "fp32" else "tf32"


def splits(rows: int, tile: int, others: int) -> tuple[int, int]:
    """``(parts, rows a part)`` of a sum over rows when ``others`` programs run beside each part."""
    tiles = -(-rows // tile)
    wanted = max(1, min(tiles, -(-_PROGRAMS // others)))
    per = -(-tiles // wanted)
    return -(-tiles // per), per * tile
