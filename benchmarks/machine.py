"""Where and how a run was made, and a process set up for it: one thread, and a malloc that keeps what it has.

glibc maps large blocks afresh and returns them at once, so that every large temporary pays a page fault for each 4 kB
it touches: cloning 33 MB takes three times as long as it need. With the settings below freed memory is kept and
reused. They apply to all contenders alike; ``--plain-malloc`` leaves them off.
"""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["MALLOC", "describe", "fresh_environment", "restart"]

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PACKAGES = ("torch", "numpy", "scipy", "peft", "linear_operator", "cola-ml", "structmat")
_MARK = "STRUCTMAT_BENCH_STARTED"


def restart(module: str, arguments: list[str], threads: int, malloc: bool) -> None:
    """Start this program again with the environment the measurement needs; returns in the process that has it."""
    if os.environ.get(_MARK):
        torch.set_num_threads(threads)
        return
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC} | dict.fromkeys(_THREADS, str(threads))
    environment |= {_MARK: "1"} | (MALLOC if malloc else {})
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


def fresh_environment() -> dict[str, str]:
    """The environment of a run that is to set up its own process."""
    return {k: v for k, v in os.environ.items() if k not in MALLOC and k != _MARK}


def describe() -> dict[str, Any]:
    """CPU, threads, versions, allocator, date and commit; what a reader needs to judge the numbers."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "malloc": {name: os.environ[name] for name in MALLOC if name in os.environ} or "plain",
        "load": [round(v, 2) for v in os.getloadavg()],
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
