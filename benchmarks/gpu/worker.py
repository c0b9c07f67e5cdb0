"""The process that measures rows: a line of JSON when a row starts and one with its results.

It ends with 3 where an error has left the device unusable; ``__main__`` then starts another at the next row.
"""

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.gpu import ceilings, layers, structures, toeplitz
from benchmarks.gpu.clock import Clock, message
from benchmarks.gpu.row import Context, Row

__all__ = ["ROWS", "main"]

_LAYERS, _STRUCTURES = layers.ROWS, structures.ROWS
# What must hold comes first: layers, then kernels with a must, then the crossover, then what has aims alone.
ROWS: tuple[Row, ...] = (
    *ceilings.ROWS,
    *_LAYERS,
    *(row for row in _STRUCTURES if row.promised),
    *(row for row in toeplitz.ROWS if row.promised),
    *(row for row in (*_STRUCTURES, *toeplitz.ROWS) if not row.promised),
)
_FATAL = (
    "illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure",
    "illegal instruction", "invalid program counter", "launch timed out",
)  # fmt: skip


def say(**line: Any) -> None:
    """One line for the parent."""
    print(json.dumps(line), flush=True)


def main(given: list[str] | None = None) -> int:
    """Measure the rows from ``--first`` on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--copy-rate", type=float, default=None, help="as an earlier process measured it")
    parser.add_argument("--only", default="", help="rows with this in their name")
    chosen = parser.parse_args(given)
    device = torch.device("cpu" if chosen.dry_run else "cuda")
    context = Context(device, chosen.dry_run, Clock(device, 1 if chosen.dry_run else 5), chosen.copy_rate)
    if device.type == "cuda":
        context.l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", context.l2)
    for place, row in enumerate(ROWS):
        if place < chosen.first or chosen.only not in row.name:
            continue
        say(start=place, row=row.name)
        try:
            results = [result.record() for result in row.run(context)]
            say(end=place, row=row.name, results=results, copy_rate=context.copy_rate)
            errors = [text for result in results for text in result["errors"].values()]
        except Exception as error:
            errors = [message(error)]
            say(end=place, row=row.name, results=[], error=errors[0], copy_rate=context.copy_rate)
        if any(word in text for word in _FATAL for text in errors):
            return 3
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
