"""``python -m benchmarks.tune``: times every configuration of every kernel on a GPU and writes what ``auto`` reads.

For each operation, size and dtype, forward and backward together: the kernels with every configuration of the table
that the device can run, one kernel varied at a time; the composed form in plain torch; torch.compile of it. Kernels are
stored as ``measured`` where they beat the faster of the two by 1.15 at least and agree with plain torch; ``*`` stands
for the number of rows where they did at every number timed. ``structmat/kernels/tuned/sm90.json`` holds all the times,
the device, driver and versions. Nobody's training is timed: this program alone writes the file.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import structmat as sm
from benchmarks.gpu.clock import Clock, message
from structmat import backend
from structmat.functional import butterfly, butterfly_apply
from structmat.functional.householder import rotate_rows
from structmat.functional.launched_compose import composed
from structmat.functional.orthogonal import cayley
from structmat.functional.toeplitz import toeplitz_product
from structmat.kernels import configs, stored

__all__ = ["THRESHOLD", "Problem", "main", "problems", "tuned"]

THRESHOLD = 1.15
Times = tuple[dict[str, float], dict[str, str]]
Timer = Callable[[dict[str, Callable[[int], Any]]], Times]
Capability = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operation at one size: its name and sizes as ``backend.choose`` knows them, how its inputs are drawn, and the
    function of them that is timed with its gradients."""

    op: str
    dtype: torch.dtype
    shapes: configs.Shapes
    inputs: Callable[[torch.device], tuple[torch.Tensor, ...]]
    function: Callable[..., torch.Tensor]

    @property
    def key(self) -> str:
        """As ``stored.key_of``."""
        return stored.key_of(self.op, str(self.dtype).removeprefix("torch."), self.shapes)


def _drawn(*shapes: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The rows in the dtype, the weights in float32."""

    def inputs(device: torch.device) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        found = [torch.randn(s, generator=generator, device=device) for s in shapes]
        found = [v.to(dtype) if k == 0 else v * scale for k, v in enumerate(found)]
        return tuple(v.requires_grad_() for v in found)

    return inputs


def _skewed(k: torch.Tensor) -> torch.Tensor:
    return cayley((k - k.mT) / k.shape[-1] ** 0.5)


def _passed(g: int, d: int, strided: bool) -> tuple[Callable[..., torch.Tensor], int]:
    digits, axes = ((g, d // g), (0,)) if strided else ((d // g, g), (1,))
    plan = butterfly_apply.program_of(butterfly.cached_chain(digits, (axes,), (g,)), (1,))

    def one_pass(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return butterfly_apply.kept_rows(x, (w,), plan, None, x.dtype)

    return one_pass, d // g if strided else 1


def _toeplitz(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return toeplitz_product(t.to(x.dtype), x, x.shape[-1])


def _merged(m: int, blocks: int, b: int) -> Callable[..., torch.Tensor]:
    """The factors of a butterfly as one block a span, from the rotations of all of them."""
    plan = sm.OrthogonalButterfly(torch.zeros(m, blocks, b * (b - 1) // 2))._program(1 << 14)
    whole = butterfly_apply.program_of(plan.links, (m,))

    def merged(rotations: torch.Tensor) -> torch.Tensor:
        found = composed(rotations, False)
        return butterfly_apply.merged_blocks(rotations.unbind(-4), whole)[0] if found is None else found

    return merged


def problems(*, tiny: bool = False) -> Iterator[Problem]:
    """What is timed: the sizes that adapters use, in bfloat16, float16 and float32."""
    halves = (torch.bfloat16,) if tiny else (torch.bfloat16, torch.float16, torch.float32)
    many = (20,) if tiny else (256, 2048, 16384)
    widths = (64,) if tiny else (1024, 4096)
    for b in (4,) if tiny else (4, 8, 16, 32):
        for count in (3,) if tiny else (128, 512, 2048):
            shape = (count, b, b)
            yield Problem("cayley", torch.float32, (shape,), _drawn(shape, dtype=torch.float32), _skewed)
        for blocks, m in ((4, 2),) if tiny else ((128, 4), (512, 2), (512, 3), (512, 4)):
            if b in (4, 8):
                drawn = _drawn((m, blocks, b, b), dtype=torch.float32)
                yield Problem("compose_blocks", torch.float32, ((blocks, m, b, b),), drawn, _merged(m, blocks, b))
    for dtype in halves:
        for d in widths:
            for rows in many:
                for g in (16,) if tiny else (16, 32, 64, 128):
                    for strided in (False, True):
                        function, lanes = _passed(g, d, strided)
                        op = "block_diagonal_strided" if strided else "block_diagonal"
                        shapes = ((rows, d), (d // g, g, g), (lanes,))
                        yield Problem(op, dtype, shapes, _drawn(*shapes[:2], dtype=dtype, scale=g**-0.5), function)
                for r in (4,) if tiny else (8, 16, 32, 64):
                    shapes = ((rows, d), (r, d))
                    yield Problem("householder_product", dtype, shapes, _drawn(*shapes, dtype=dtype), rotate_rows)
        for d in widths if tiny else (1024, 2048, 4096, 8192):
            for rows in (3, 300) if tiny else (64, 128, 256, 2048, 16384):
                op = "toeplitz_product" if rows <= 256 else "toeplitz_formed"
                shapes = ((rows, d), (2 * d - 1,))
                yield Problem(op, dtype, shapes, _drawn(*shapes, dtype=dtype, scale=d**-0.5), _toeplitz)


def _under(mode: str, chosen: dict[str, Any], run: Callable[[], Any]) -> Callable[[int], Any]:
    def called(_: int) -> Any:
        with backend.use_backend(mode), backend.trying(chosen):
            return run()

    return called


def _agreement(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], dtype: torch.dtype) -> str:
    """Nothing, or how far an output or a gradient is off: at most a few roundings of the dtype, normwise."""
    for a, b in zip(found, wanted, strict=True):
        error = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))
        if not error <= 16 * max(torch.finfo(dtype).eps, 1e-6):
            return f"disagrees with plain torch by {error:.1e}"
    return ""


def measured(problem: Problem, timer: Timer, device: torch.device, capability: Capability) -> dict[str, Any]:
    """One line of the file: seconds of each configuration, of the kernels at their best, of plain torch, compiled."""
    dtype = str(problem.dtype).removeprefix("torch.")
    line: dict[str, Any] = {"key": problem.key, "op": problem.op, "dtype": dtype, "shapes": problem.shapes}
    try:
        why = configs.fits(problem.op, dtype, problem.shapes) or stored.lacking(
            problem.op, dtype, problem.shapes, capability
        )
        if why:
            return {**line, "errors": {"kernel": why}}
        best = stored.first_configurations(problem.op, dtype, problem.shapes, capability)
        inputs = problem.inputs(device)
        with torch.no_grad():
            g = torch.randn_like(problem.function(*inputs))

        def both(function: Callable[..., torch.Tensor]) -> Callable[[], tuple[torch.Tensor, ...]]:
            def run() -> tuple[torch.Tensor, ...]:
                y = function(*inputs)
                return y.detach(), *torch.autograd.grad(y, inputs, g)

            return run

        run = both(problem.function)
        off = _agreement(_under("triton", best, run)(0), _under("reference", {}, run)(0), problem.dtype)
        if off:
            return {**line, "errors": {"kernel": off}}
        each, best = _varied(problem, timer, run, best, capability)
        torch._dynamo.reset()
        compiled = both(torch.compile(problem.function, dynamic=False))
        seconds, errors = timer(
            {
                "kernel": _under("triton", best, run),
                "composed": _under("reference", {}, run),
                "compiled": _under("reference", {}, compiled),
            }
        )
    except Exception as error:  # one size that fails is one line with its reason
        return {**line, "errors": {"kernel": message(error)}}
    ratio = min(seconds["composed"], seconds["compiled"]) / seconds["kernel"] if len(seconds) == 3 else None
    names = {kernel: config.name for kernel, config in best.items()}
    return {**line, "seconds": seconds, "each": each, "best": names, "ratio": ratio, "errors": errors}


def _varied(
    problem: Problem, timer: Timer, run: Callable[[], Any], best: dict[str, Any], capability: Capability
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by configuration, and the fastest of each kernel, the others at their best so far."""
    each: dict[str, float] = {}
    dtype = str(problem.dtype).removeprefix("torch.")
    for kernel in configs.OPERATIONS[problem.op]:
        lines = stored.usable(kernel, dtype, configs.size_of(problem.op, problem.shapes), capability)
        if len(lines) > 1:
            runs = {c.name: _under("triton", {**best, kernel: c}, run) for c in lines}
            seconds, _ = timer(runs)
            each |= seconds
            best = {**best, kernel: min((c for c in lines if c.name in seconds), key=lambda c: seconds[c.name])}
    return each, best


def winners(lines: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """``measured``: where the kernels won, and ``*`` for a width at which they won at all of three numbers of rows or
    more with the configurations of the largest."""
    found: dict[str, dict[str, str]] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if (line.get("ratio") or 0.0) >= THRESHOLD:
            found[line["key"]] = line["best"]
        groups.setdefault(line["key"].rsplit("/", 1)[0], []).append(line)
    for group, members in groups.items():
        if len(members) >= 3 and all(line["key"] in found for line in members):
            largest = max(members, key=lambda line: int(line["key"].rsplit("/", 1)[1]))
            found[f"{group}/*"] = largest["best"]
    return found


def tuned(
    given: Iterator[Problem], timer: Timer, device: torch.device, capability: Capability, deadline: float = float("inf")
) -> list[dict[str, Any]]:
    """The lines of the problems, until the time is over."""
    lines = []
    for problem in given:
        if time.monotonic() > deadline:
            print("the time was over: the rest is not measured")
            break
        line = measured(problem, timer, device, capability)
        lines.append(line)
        shown = ", ".join(f"{k} {1e6 * v:.4g} us" for k, v in line.get("seconds", {}).items())
        print(f"{line['key']}: {shown} ratio {line.get('ratio')} {line['errors'] or ''}", flush=True)
    return lines


def write(folder: Path, capability: Capability, setting: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """``sm90.json``; lines of an earlier file from the same device stay where they were not measured again."""
    path = folder / f"sm{capability[0]}{capability[1]}.json"
    again = {line["key"] for line in lines}
    if path.is_file():
        before = json.loads(path.read_text())
        if before["setting"].get("device") == setting.get("device"):
            lines = [line for line in before["lines"] if line["key"] not in again] + lines
    record = {"setting": setting, "threshold": THRESHOLD, "measured": winners(lines), "lines": lines}
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)
    return path


def main(given: list[str] | None = None) -> int:
    """Time, print, write; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression on the keys, for example '^cayley/'")
    parser.add_argument("--budget", type=float, default=3600, help="seconds; what is measured by then is written")
    parser.add_argument("--out", type=Path, default=stored.TUNED)
    chosen = parser.parse_args(given)
    if not torch.cuda.is_available():
        print("benchmarks.tune: no CUDA device is there; nothing is written")
        return 2
    from benchmarks.gpu.report import setting

    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    wanted = (problem for problem in problems() if re.search(chosen.only, problem.key))
    clock = Clock(device, rounds=3)
    lines = tuned(wanted, clock.times, device, capability, time.monotonic() + chosen.budget)
    path = write(chosen.out, capability, setting(), lines)
    print(f"{len(winners(lines))} of {len(lines)} sizes are served by kernels; written to {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
