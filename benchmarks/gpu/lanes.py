"""What comes before the timings: packages, the kernel tests on the GPU in several processes, a smoke test."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["REQUIRED", "checks", "environment", "missing", "read_smoke", "read_tests"]

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ("torch", "numpy", "scipy", "opt_einsum", "triton", "peft", "hypothesis", "pytest")
_LINE = re.compile(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


def missing() -> list[str]:
    """The packages that cannot be found."""
    return [name for name in REQUIRED if importlib.util.find_spec(name) is None]


def environment(**more: str) -> dict[str, str]:
    """Of a child: kernels compiled, the mode of the backend as it is by default, the root on the path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "STRUCTMAT_KERNELS")}
    path = os.pathsep.join([str(ROOT), *([kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else [])])
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def _run(commands: list[list[str]], extra: list[dict[str, str]], seconds: float) -> list[tuple[str, int | None]]:
    """What each printed and its exit code, all started at once; None for one that was killed when the time was over,
    as all are when this process is interrupted."""
    deadline = time.monotonic() + seconds
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{k}.log" for k in range(len(commands))]
        codes: list[int | None] = []
        try:
            for command, more, path in zip(commands, extra, logs, strict=True):
                with path.open("wb") as log:
                    settings = environment(**more)
                    children.append(subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log))
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.1, deadline - time.monotonic()))
            codes = [child.returncode for child in children]
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        return [(log.read_text(errors="replace"), code) for log, code in zip(logs, codes, strict=True)]


def checks(seconds: float, *, device: str = "cuda", shards: int | None = None, only: str = "") -> dict[str, Any]:
    """``{"correctness": ..., "smoke": ...}``, side by side: ``tests/kernels`` on the device, every configuration of
    every kernel against float64, in several processes, and ``benchmarks.gpu.smoke`` in one.

    ``only`` is an expression for ``pytest -k``. ``complete`` is false where the time ended first.
    """
    count = shards or max(1, min(12, (os.cpu_count() or 2) - 1))
    start = time.monotonic()
    test = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "tests/kernels"]
    commands = [[*test, *(["-k", only] if only else [])] for _ in range(count)]
    extra = [{"STRUCTMAT_KERNEL_TESTS": device, "STRUCTMAT_SHARD": f"{k}/{count}"} for k in range(count)]
    commands.append([sys.executable, "-m", "benchmarks.gpu.smoke", "--device", device])
    *tests, smoke = _run(commands, [*extra, {}], seconds)
    spent = {"seconds": round(time.monotonic() - start, 1)}
    return {"correctness": read_tests(tests) | spent, "smoke": read_smoke(*smoke) | spent}


def read_tests(tests: list[tuple[str, int | None]]) -> dict[str, Any]:
    """The outcomes in what the processes printed; a bad end that no test accounts for is a failure of its own."""
    outcomes = [match.groups() for text, _ in tests for match in _LINE.finditer(text)]
    failed = sorted({name for name, what in outcomes if what in ("FAILED", "ERROR")})
    for k, (text, code) in enumerate(tests):
        named = any(what in ("FAILED", "ERROR") for what in (m.group(2) for m in _LINE.finditer(text)))
        if code not in (0, 5, None) and not (code == 1 and named):  # 5: no test in this share
            failed.append(f"process {k} ended with {code}: {text[-300:]}")
    details = "\n".join(text[-4000:] for text, code in tests if code not in (0, 5))
    return {
        "passed": sum(what == "PASSED" for _, what in outcomes),
        "skipped": sum(what == "SKIPPED" for _, what in outcomes),
        "failed": failed,
        "complete": all(code is not None for _, code in tests),
        "processes": len(tests),
        "details": details[-20_000:] if failed else "",
    }


def read_smoke(text: str, code: int | None) -> dict[str, Any]:
    """The lines ``ok`` and ``FAILED`` of the smoke test."""
    passed = re.findall(r"^ok: (.*)$", text, re.MULTILINE)
    failed = re.findall(r"^FAILED: (.*)$", text, re.MULTILINE)
    if code and not failed:
        failed = [f"ended with {code}: {text[-500:]}"]
    return {"passed": len(passed), "failed": failed, "complete": code is not None}
