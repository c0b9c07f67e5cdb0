"""``python -m benchmarks.aot``: every configuration of every Triton kernel compiled ahead of time, without a GPU.

Triton's wheel carries the assembler, so the machine code and its resources are known here: registers, stack, shared
memory, local loads, tensor-core instructions, loads of 16 bytes. A configuration passes if it keeps nothing in local
memory, fits the shared memory and the registers of one multiprocessor, and uses tensor cores where its kernel is a
matrix product. The figures are written to ``benchmarks/aot.json``; ``--check`` writes nothing and exits 1 on a fault,
as the other form does. ``TRITON_INTERPRET`` must not be set: an interpreted function cannot be compiled.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from structmat.kernels.configs import TABLE, Config

REPORT = Path(__file__).parent / "aot.json"
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes one block of threads may ask for
MODULES = {
    "blockdiag": "blockdiag",
    "cayley": "cayley",
    "householder": "householder",
    "strided": "strided",
    "wy": "householder",
}
# Pointers that are not of the dtype of the rows: float32 sums, T, and what passes between the kernels.
WIDE = {"parts", "t"}
WIDE_OF = {"householder_apply": {"w"}, "householder_vectors": {"w", "s"}}
NO_PRODUCT = {"cayley_forward", "cayley_backward", "wy_inverse"}  # float32 in registers, no tensor-core instruction
RAGGED = {"rows", "n", "r", "per", "blocks", "lanes", "outer", "count"}  # plain integers, known to divide by nothing
ALIGNED = {
    "per": {"wy_gram"},
    "n": {"householder_apply", "householder_vectors", "wy_gram"},
    "lanes": {"strided_forward", "strided_backward"},
}


def arguments(config: Config, function: Any, half: str) -> tuple[dict[str, str], dict[tuple[int], Any], dict[Any, Any]]:
    """The signature, the constants and the alignments under which the launcher would specialise this kernel."""
    dtype = "fp32" if config.kind == "fp32" else half
    chosen: dict[str, Any] = {**dict(config.tiles), "UP": False, "PRECISION": "tf32x3" if dtype == "fp32" else "tf32"}
    chosen |= dict.fromkeys(("P", "Q", "R"), config.size)
    triton_language = importlib.import_module("triton.language")
    chosen["ACC"] = triton_language.float32
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[Any, Any] = {}
    for place, name in enumerate(function.arg_names):
        wide = name in WIDE or name in WIDE_OF.get(config.kernel, ())
        if name in chosen and name.isupper():
            signature[name], constants[(place,)] = "constexpr", chosen[name]
        elif name.endswith(("_col", "_in")):
            signature[name], constants[(place,)] = "constexpr", 1
        elif name in POINTERS:
            signature[name] = "*fp32" if wide else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name not in RAGGED or config.kernel in ALIGNED.get(name, ()):
                attributes[(place,)] = [["tt.divisibility", 16]] if config.size >= 16 else []
    return signature, constants, {key: value for key, value in attributes.items() if value}


POINTERS = {"x", "y", "w", "g", "gx", "v", "t", "s", "k", "out", "parts", "kept"}
MATRIX_POINTERS = {"r"}  # a pointer in cayley_forward, a number elsewhere


def compiled(config: Config, capability: int, half: str) -> Any:
    """Triton's compiled kernel."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    function = getattr(
        importlib.import_module(f"structmat.kernels.{MODULES[config.kernel.split('_')[0]]}"), config.kernel
    )
    if not hasattr(function, "cache_key"):
        raise SystemExit("benchmarks.aot: TRITON_INTERPRET is set; interpreted kernels cannot be compiled")
    signature, constants, attributes = arguments(config, function, half)
    if config.kernel == "cayley_forward":
        signature["r"] = "*fp32"
    source = compiler.ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": config.warps, "num_stages": config.stages})


def tool(name: str, *arguments: str) -> str:
    """The output of a program of CUDA's that triton's wheel carries."""
    folder = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.run([str(folder / name), *arguments], capture_output=True, text=True, check=True).stdout


def resources(kernel: Any) -> dict[str, int]:
    """What the machine code uses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", str(path))
        code = tool("nvdisasm", "-c", str(path))
    found = {"registers": int(re.findall(r"REG:(\d+)", usage)[-1]), "stack": int(re.findall(r"STACK:(\d+)", usage)[-1])}
    found["shared"] = int(kernel.metadata.shared)
    for name, pattern in {
        "local": r"\b(?:LDL|STL)\b", "hgmma": r"\bHGMMA\b", "hmma": r"\bHMMA\b", "ffma": r"\bFFMA\b",
        "wide_loads": r"\bLD(?:G|GSTS)\b[.\w]*\.128", "atomics": r"\b(?:RED|ATOM|ATOMG)\b",
    }.items():  # fmt: skip
        found[name] = len(re.findall(pattern, code))
    return found


def faults(config: Config, capability: int, found: dict[str, int]) -> list[str]:
    """Why a configuration may not stand in the table; empty if it may."""
    said = [f"{found[name]} {name}" for name in ("stack", "local", "atomics") if found[name]]
    if found["shared"] > SHARED[capability]:
        said.append(f"{found['shared']} bytes of shared memory, {SHARED[capability]} are there")
    if found["registers"] * 32 * config.warps > 65_536:
        said.append(f"{found['registers']} registers for {32 * config.warps} threads")
    if config.kernel not in NO_PRODUCT and not found["hgmma"] + found["hmma"]:
        said.append("no tensor-core instruction")
    if config.kernel not in NO_PRODUCT and not found["wide_loads"]:
        said.append("no load of 16 bytes")
    return said


def examined(task: tuple[Config, int, str]) -> dict[str, Any]:
    """One line of the report."""
    config, capability, half = task
    start = time.perf_counter()
    try:
        found = resources(compiled(config, capability, half))
        said = faults(config, capability, found)
    except (
        importlib.import_module("triton.errors").TritonError,
        RuntimeError,
        ValueError,
        subprocess.CalledProcessError,
    ) as error:
        found, said = {}, [f"does not compile: {type(error).__name__}: {error}"]
    dtype = "fp32" if config.kind == "fp32" else half
    line = {"config": config.name, "dtype": dtype, "sm": capability, **found, "faults": said}
    return {**line, "seconds": round(time.perf_counter() - start, 2)}


def main(given: list[str] | None = None) -> int:
    """Compile, print, write; 1 on a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression on the names of configurations")
    parser.add_argument("--sm", type=int, nargs="*", default=[90, 80], help="compute capabilities, without the dot")
    parser.add_argument("--half", nargs="*", default=["bf16"], help="what half stands for: bf16, fp16")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--check", action="store_true", help="write no report")
    chosen = parser.parse_args(given)
    tasks = [
        (config, capability, half)
        for capability in chosen.sm for config in TABLE for half in chosen.half[: None if config.kind == "half" else 1]
        if re.search(chosen.only, config.name)
    ]  # fmt: skip
    start = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(chosen.jobs) as pool:
        lines = []
        for line in pool.map(examined, tasks):
            lines.append(line)
            print(shown(line), flush=True)
    bad = sum(bool(line["faults"]) for line in lines)
    print(f"{len(lines)} configurations, {bad} with faults, {time.perf_counter() - start:.0f} s")
    if not chosen.check:
        version = importlib.import_module("triton").__version__
        text = json.dumps({"triton": version, "lines": [{**v, "seconds": None} for v in lines]}, indent=None)
        REPORT.write_text(text.replace('}, {"config', '},\n{"config') + "\n")
    return 1 if bad or not lines else 0


def shown(line: dict[str, Any]) -> str:
    """One line for the terminal."""
    figures = " ".join(
        f"{key} {line[key]}" for key in ("registers", "stack", "shared", "hgmma", "hmma", "wide_loads") if key in line
    )
    said = "; ".join(line["faults"]) or "ok"
    return f"sm_{line['sm']} {line['config']} {line['dtype']}: {figures} {said} ({line['seconds']} s)"


if __name__ == "__main__":
    sys.exit(main())
