"""Peak memory of one forward and backward pass of an adapted layer, each contender in a process of its own.

The child warms up (so that libraries have loaded and allocated what they keep), returns freed memory to the system,
resets the kernel's mark of the peak (``/proc/self/clear_refs``) and runs one pass; what is reported is the new peak of
the resident memory over the resident memory before. The frozen layer's own pass is measured too and is part of every
contender's number.
"""

import ctypes
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.machine import MALLOC

__all__ = ["peaks"]

_ROOT = Path(__file__).resolve().parents[1]


def peaks(cases: str, sizes: tuple[int, ...], small: tuple[int, ...], rows: int) -> dict[str, float]:
    """Bytes by contender, ``ours``, ``peer``, ``base``, of ``benchmarks.cases.<cases>.adapted(who, *sizes)``, which
    returns the model and its trained parameters; sizes begin with the order of the layer. ``small`` is the warm-up's.
    Linux only; raises RuntimeError with the child's last words."""
    found: dict[str, float] = {}
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC}  # a malloc that gives memory back
    for who in ("base", "ours", "peer"):
        request = json.dumps({"who": who, "cases": cases, "sizes": sizes, "small": small, "rows": rows})
        command = [sys.executable, "-m", "benchmarks.memory", request]
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"memory of {who}: {done.stderr.strip().splitlines()[-1:]}")
        found[who] = float(json.loads(done.stdout.splitlines()[-1])["bytes"])
    return found


def _child(who: str, cases: str, sizes: list[int], small: list[int], rows: int) -> int:
    adapted = importlib.import_module(f"benchmarks.cases.{cases}").adapted
    torch.set_num_threads(1)
    for numbers, batch in ((small, 16), (sizes, rows)):  # the small one loads what is loaded once
        model, parameters = adapted(who, *numbers)
        x = torch.randn(batch, numbers[0], requires_grad=True)
        g = torch.randn(batch, numbers[0])
        ctypes.CDLL(None).malloc_trim(0)
        before = _reset_peak()
        y = model(x)
        gradients = torch.autograd.grad(y, (x, *parameters), g)
        rise = _status("VmHWM") - before
        assert all(bool(torch.isfinite(t).all()) for t in (y, *gradients))
    return rise


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    print(json.dumps({"bytes": _child(**json.loads(sys.argv[1]))}))
