"""``python -m benchmarks.aot``: every configuration of every Triton kernel compiled ahead of time, without a GPU.

Triton's wheel carries the assembler, so the machine code and its resources are known here: registers, stack, shared
memory, local loads, tensor-core instructions, loads of 16 bytes. A configuration passes if it keeps nothing in local
memory, fits the shared memory and the registers of one multiprocessor, and uses tensor cores where its kernel is a
matrix product. All must pass for sm_90; those that do not for sm_80, or ask for more shared memory than sm_86 and sm_89
have, are listed in ``structmat/kernels/refused.json``, and no device of these capabilities is given them. The figures
are written to ``benchmarks/aot.json``. ``--check`` writes nothing; it exits 1 on a fault for sm_90, where the list of
the refused would change, and where the table and the figures on file are not of the same configurations.
``TRITON_INTERPRET`` must not be set: an interpreted function cannot be compiled.
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
from structmat.kernels.stored import REFUSED

REPORT = Path(__file__).parent / "aot.json"
SHARED = {80: 166_912, 86: 101_376, 90: 232_448}  # bytes one block of threads may ask for
# Of each kernel: its module, its pointers of the dtype of the rows, its pointers to float32, and the plain integers
# that divide by 16 in the sizes compiled for (all strides do; other integers are known to divide by nothing).
KERNELS: dict[str, tuple[str, str, str, str]] = {
    "cayley_forward": ("cayley", "k r kept", "", ""),
    "cayley_polish": ("cayley", "kept r", "", ""),
    "cayley_backward": ("cayley", "kept g out", "", ""),
    "blockdiag_forward": ("blockdiag", "x w y", "", "p q"),
    "blockdiag_backward": ("blockdiag", "x g w gx", "parts", "p q"),
    "strided_forward": ("strided", "x w y", "", "p q lanes"),
    "strided_backward": ("strided", "x g w gx", "parts", "p q lanes"),
    "wy_gram": ("householder", "v", "parts", "n per"),
    "wy_inverse": ("householder", "", "parts t", ""),
    "householder_apply": ("householder", "x v y", "t w", "n"),
    "householder_vectors": ("householder", "x g", "w s parts", "n"),
    "compose_walk": ("compose", "r start slots c", "", "g"),
    "compose_pairs": ("compose", "slots halves out", "", "g"),
    "toeplitz_form": ("toeplitz", "t out", "", ""),
    "toeplitz_diagsum": ("toeplitz", "g", "parts", ""),
    "toeplitz_product": ("toeplitz", "x t", "parts", "per ins outs"),
    "toeplitz_tiles": ("toeplitz", "x g", "parts", "per ins outs"),
}
# Float32 in registers, no tensor-core instruction; the Toeplitz ones gather from a vector, entry by entry.
NO_PRODUCT = {"cayley_forward", "cayley_backward", "wy_inverse", "toeplitz_form", "toeplitz_diagsum"}
NO_PRODUCT |= {"compose_walk", "compose_pairs", "cayley_polish"}
STRIDES = ("_matrix", "_row", "_block", "_out", "_batch", "_span")


def arguments(config: Config, function: Any, half: str) -> tuple[dict[str, str], dict[tuple[int], Any], dict[Any, Any]]:
    """The signature, the constants and the alignments under which the launcher would specialise this kernel."""
    dtype = "fp32" if config.kind == "fp32" else half
    chosen: dict[str, Any] = {"BN": config.size, **dict(config.tiles), "UP": False}
    chosen["PRECISION"] = "tf32x3" if dtype == "fp32" else "tf32"
    chosen |= dict.fromkeys(("P", "Q", "R", "G"), config.size)
    chosen["ACC"] = importlib.import_module("triton.language").float32
    _, rows, wide, aligned = KERNELS[config.kernel]
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[Any, Any] = {}
    for place, name in enumerate(function.arg_names):
        if name in chosen and name.isupper():
            signature[name], constants[(place,)] = "constexpr", chosen[name]
        elif name.endswith(("_col", "_in")):
            signature[name], constants[(place,)] = "constexpr", 1
        elif name in rows.split() or name in wide.split():
            signature[name] = "*fp32" if name in wide.split() else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if config.size >= 16 and (name in aligned.split() or name.endswith(STRIDES)):
                attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled(config: Config, capability: int, half: str) -> Any:
    """Triton's compiled kernel."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    function = getattr(importlib.import_module(f"structmat.kernels.{KERNELS[config.kernel][0]}"), config.kernel)
    if not hasattr(function, "cache_key"):
        raise SystemExit("benchmarks.aot: TRITON_INTERPRET is set; interpreted kernels cannot be compiled")
    signature, constants, attributes = arguments(config, function, half)
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
    if config.kernel not in NO_PRODUCT and not found["hmma"] + (found["hgmma"] if capability >= 90 else 0):
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


def refused(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The names of the configurations that sm_80, and sm_86 with less shared memory, cannot run."""
    found: dict[str, list[str]] = {"80": [], "86": []}
    for line in lines:
        if line["sm"] == 80:
            if line["faults"]:
                found["80"].append(line["config"])
            if line["faults"] or line["shared"] > SHARED[86]:
                found["86"].append(line["config"])
    return {key: sorted(set(names)) for key, names in found.items()}


def disagreements(lines: list[dict[str, Any]]) -> list[str]:
    """Where the files written by an earlier run no longer say what was found."""
    said = []
    stored = json.loads(REPORT.read_text()) if REPORT.is_file() else {"triton": "", "lines": []}
    same = stored["triton"] == importlib.import_module("triton").__version__  # another version spills elsewhere
    if same and (json.loads(REFUSED.read_text()) if REFUSED.is_file() else {}) != refused(lines):
        said.append(f"{REFUSED.name} lists other configurations than those that failed for sm_80 and sm_86")
    report = stored["lines"]
    if {(v["config"], v["dtype"], v["sm"]) for v in report} != {(v["config"], v["dtype"], v["sm"]) for v in lines}:
        said.append(f"{REPORT.name} is of another table")
    return said


def write(lines: list[dict[str, Any]]) -> None:
    """The figures, and the list of the refused."""
    version = importlib.import_module("triton").__version__
    text = json.dumps({"triton": version, "lines": [{**v, "seconds": None} for v in lines]}, indent=None)
    REPORT.write_text(text.replace('}, {"config', '},\n{"config') + "\n")
    REFUSED.write_text(json.dumps(refused(lines), indent=1) + "\n")


def main(given: list[str] | None = None) -> int:
    """Compile, print, write; 1 on a fault for sm_90, or where ``--check`` finds other files on record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression on the names; nothing is written")
    parser.add_argument("--sm", type=int, nargs="*", default=[90, 80], help="compute capabilities, without the dot")
    parser.add_argument("--half", nargs="*", default=["bf16"], help="what half stands for: bf16, fp16")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true", help="write nothing, compare with what is on file")
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
            if line["faults"] or not chosen.check:
                print(shown(line), flush=True)
    bad = sum(bool(line["faults"]) for line in lines if line["sm"] == 90)
    whole = not chosen.only and (chosen.sm, chosen.half) == ([90, 80], ["bf16"])
    said = disagreements(lines) if chosen.check and whole else []
    for text in [*said, *(["run python -m benchmarks.aot and commit what it writes"] if said else [])]:
        print(text)
    seconds = time.perf_counter() - start
    print(f"{len(lines)} compilations, {bad} with faults for sm_90, {len(refused(lines)['80'])} refused on sm_80, "
          f"{len(refused(lines)['86'])} on sm_86; {seconds:.0f} s")  # fmt: skip
    if whole and not chosen.check:
        write(lines)
    return 1 if bad or said or not lines else 0


def shown(line: dict[str, Any]) -> str:
    """One line for the terminal."""
    figures = " ".join(
        f"{key} {line[key]}" for key in ("registers", "stack", "shared", "hgmma", "hmma", "wide_loads") if key in line
    )
    said = "; ".join(line["faults"]) or "ok"
    return f"sm_{line['sm']} {line['config']} {line['dtype']}: {figures} {said} ({line['seconds']} s)"


if __name__ == "__main__":
    sys.exit(main())
