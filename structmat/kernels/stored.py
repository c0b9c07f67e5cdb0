"""What is stored about the configurations: measurements of a device, and those that it cannot run.

``tuned/sm90.json`` is written by ``python -m benchmarks.tune`` on a GPU of that compute capability. Its ``measured``
holds, for the operations and sizes where the kernels won, the configuration of each kernel:
``{"cayley/float32/8/8/2048": {"cayley_forward": name, ...}}``; the last two parts of a key are the width and the
number of rows, rounded up to powers of two, or ``*`` for the latter where the kernels won at every number timed.
``refused.json`` is written by ``python -m benchmarks.aot``: what compiled for Hopper and not, without fault, for older
devices. Imports no triton.
"""

import functools
import json
from pathlib import Path

from structmat.kernels import configs
from structmat.kernels.configs import Config, Shapes

__all__ = [
    "REFUSED",
    "TUNED",
    "configurations",
    "first_configurations",
    "key_of",
    "lacking",
    "measured",
    "refused",
    "usable",
]

TUNED = Path(__file__).parent / "tuned"
REFUSED = Path(__file__).parent / "refused.json"
Capability = tuple[int, int]


@functools.lru_cache(maxsize=8)
def _refused(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def refused(capability: Capability | None) -> frozenset[str]:
    """The names of the configurations that a device of this capability cannot run; None is the interpreter."""
    if capability is None or capability[0] in (9, 10):  # at least the shared memory that the table was checked for
        return frozenset()
    return frozenset(_refused(REFUSED).get("80" if capability == (8, 0) else "86", ()))


def usable(kernel: str, dtype: str, size: int, capability: Capability | None) -> tuple[Config, ...]:
    """The configurations that serve this size and run on this capability, in the order of the table."""
    barred = refused(capability)
    return tuple(c for c in configs.lines(kernel, dtype, size) if c.name not in barred)


def lacking(op: str, dtype: str, shapes: Shapes, capability: Capability | None) -> str | None:
    """Why no configuration of ``op`` for these sizes runs on this capability, or None; ``configs.fits`` comes first."""
    size = configs.size_of(op, shapes)
    for kernel in configs.OPERATIONS[op]:
        if not usable(kernel, dtype, size, capability):
            shown = "" if capability is None else f"{capability[0]}.{capability[1]}"
            return f"the configurations of {kernel} for size {size} in {dtype} do not run on compute capability {shown}"
    return None


@functools.lru_cache(maxsize=64)
def _stored(folder: Path, capability: Capability) -> dict[str, dict[str, str]]:
    path = folder / f"sm{capability[0]}{capability[1]}.json"
    found: dict[str, dict[str, str]] = json.loads(path.read_text())["measured"] if path.is_file() else {}
    return found


def key_of(op: str, dtype: str, shapes: Shapes) -> str:
    """The key of a measurement: operation, dtype, size, and the width and the number of rows of the first operand, each
    rounded up to a power of two; ``*`` for a number that is not known (-1, while ``torch.compile`` traces)."""
    bucket = [str(1 << max(0, n - 1).bit_length()) if n >= 0 else "*" for n in (shapes[0][-1], shapes[0][0])]
    return "/".join((op, dtype, str(configs.size_of(op, shapes)), *bucket))


def measured(op: str, dtype: str, shapes: Shapes, capability: Capability) -> dict[str, str] | None:
    """The configurations ``{kernel: name}`` measured to be the faster way on this capability, or None.

    A measurement that names a configuration which is no longer in the table, or leaves out a kernel, says nothing.
    """
    stored = _stored(TUNED, capability)
    key = key_of(op, dtype, shapes)
    names = stored.get(key) or stored.get(key.rsplit("/", 1)[0] + "/*")
    if names is None:
        return None
    size = configs.size_of(op, shapes)
    for kernel in configs.OPERATIONS[op]:
        if names.get(kernel) not in {c.name for c in usable(kernel, dtype, size, capability)}:
            return None
    return names


def first_configurations(op: str, dtype: str, shapes: Shapes, capability: Capability | None) -> dict[str, Config]:
    """The first of the table for each kernel of ``op`` that runs on this capability."""
    size = configs.size_of(op, shapes)
    return {kernel: usable(kernel, dtype, size, capability)[0] for kernel in configs.OPERATIONS[op]}


def configurations(op: str, dtype: str, shapes: Shapes, capability: Capability | None) -> dict[str, Config]:
    """The configuration of each kernel of ``op``: the one measured to be the fastest, else the first of the table."""
    found = first_configurations(op, dtype, shapes, capability)
    names = (measured(op, dtype, shapes, capability) if capability else None) or {}
    size = configs.size_of(op, shapes)
    for kernel, name in names.items():
        found[kernel] = next(c for c in usable(kernel, dtype, size, capability) if c.name == name)
    return found
