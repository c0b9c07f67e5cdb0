"""Which implementation serves a call, and why.

The mathematics never depends on the machine: an implementation is a faster way to the same numbers. ``choose`` is a
pure function of the operation, the device, the dtype, the sizes and the mode set by ``use_backend``; where no block
sets one, by the environment variable ``STRUCTMAT_KERNELS`` at import: ``auto`` (the default), ``off`` for
``"reference"``, ``force`` for ``"triton"``.

``"auto"`` takes a Triton kernel only where a measurement for the device's compute capability is stored beside the
kernels and says that it is the faster way; this release stores none, so every call runs in plain torch.

torch.compile and torch.export make the choice while they trace: where a kernel serves, an operator of
``torch.ops.structmat`` stands in the graph, else the formula in plain torch, and a change of the mode compiles anew. A
number of rows that is a symbol then takes a kernel where it was measured to win at every number of rows. Inside a
transform of torch.func a compiler sees the formula, on demand of "triton" too: torch derives no operator there.
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
import operator
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch

from structmat._optional import need
from structmat._tracing import batched_by_autograd, carried, carry, eager, nested_jvp, transforming
from structmat.errors import BackendError

__all__ = [
    "Plan",
    "batched_by_autograd",
    "choose",
    "complex_of",
    "compute_dtype",
    "configurations",
    "demand",
    "dense_limit",
    "eager",
    "explain",
    "full_precision",
    "kernel",
    "launchers",
    "real_of",
    "served",
    "transforming",
    "trying",
    "use_backend",
]

MODES = ("auto", "reference", "triton")
_WORDS = {"auto": "auto", "off": "reference", "force": "triton"}


def _from_environment() -> str:
    """The mode that ``STRUCTMAT_KERNELS`` asks for."""
    word = os.environ.get("STRUCTMAT_KERNELS", "auto")
    if word not in _WORDS:
        raise ValueError(f"STRUCTMAT_KERNELS={word!r}: legal values are {', '.join(_WORDS)}")
    return _WORDS[word]


_DEFAULT = _from_environment()
_mode: contextvars.ContextVar[str | None] = contextvars.ContextVar("structmat_backend", default=None)
_seen: str = _DEFAULT  # the mode of the last block entered: torch.compile cannot trace a context variable
_tried: dict[str, Any] = {}
_DENSE_LIMIT = {"cpu": 256}
_INTERPRETED: tuple[int, int] | None = None  # the compute capability that Triton's interpreter is taken for: none


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call would run: the path, the reason for it, and estimates of its work.

    ``flops`` counts real floating-point operations (a complex multiply-add is 8), ``bytes`` the tensors read and
    written once each; None where no formula is known (a callable wrapped as a matrix). ``implementation`` is
    "reference" or "triton" and ``why`` the reason; ``operations`` are those that ``choose`` was asked about.
    """

    path: str
    reason: str
    flops: float | None = None
    bytes: float | None = None
    implementation: str = "reference"
    why: str = ""
    operations: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = ()

    def __str__(self) -> str:
        flops, moved = ("unknown" if v is None else f"{v:.3g}" for v in (self.flops, self.bytes))
        return f"{self.path}: {self.reason} ({flops} flops, {moved} bytes)"


@contextlib.contextmanager
def use_backend(mode: str) -> Iterator[None]:
    """Within the block use ``"auto"``, ``"reference"`` (plain torch only) or ``"triton"`` (raises where it cannot
    serve)."""
    if mode not in MODES:
        raise ValueError(f"use_backend({mode!r}): legal modes are {', '.join(map(repr, MODES))}")
    global _seen
    token, before, outer = _mode.set(mode), _seen, carried(_mode.name)
    _seen = mode
    carry(_mode.name, mode)
    try:
        yield
    finally:
        _mode.reset(token)
        carry(_mode.name, outer)
        _seen = before


def _now() -> str:
    return _mode.get() or carried(_mode.name) or _DEFAULT


def choose(
    op: str, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = ()
) -> tuple[str, str]:
    """``("reference" | "triton", the reason)`` for ``op`` on tensors of these shapes; -1 is a number not known yet.

    Under ``use_backend("triton")`` it raises ``BackendError`` with the reason in place of falling back.
    """
    mode = _now()
    choice, reason = _decided(mode, op, device, dtype, shapes)
    if choice == "reference" and mode == "triton":
        raise BackendError(reason)
    return choice, reason


def _decided(
    mode: str, op: str, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]
) -> tuple[str, str]:
    """``choose`` in this mode; for a refusal the reason is the text of the error."""
    if mode == "reference":
        return "reference", 'asked for by use_backend("reference")'
    if mode == "auto" and device.type != "cuda":
        return "reference", f"no Triton kernel for {op} is stored for {device.type}"
    lacking = _lacking(op, device, dtype, shapes)
    if mode == "triton":
        if lacking is None:
            return "triton", 'asked for by use_backend("triton")'
        return "reference", (
            f"{op} on {device.type} in {dtype} with shapes {shapes}: {lacking}; "
            'use_backend("auto") or use_backend("reference") computes the same numbers in plain torch'
        )
    if lacking is None:
        capability = _capability(device)
        if _of_kernels("stored").measured(op, _name(dtype), shapes, capability) is not None:
            return "triton", f"measured to be faster on sm_{capability[0]}{capability[1]}"
        lacking = f"no measurement of {op} for these sizes is stored for sm_{capability[0]}{capability[1]}"
    return "reference", lacking


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_kernels(name: str) -> Any:
    """The modules ``configs`` and ``stored``, which import no triton."""
    return importlib.import_module(f"structmat.kernels.{name}")


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _lacking(op: str, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]) -> str | None:
    """What a kernel for these arguments lacks, or None."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    lacking: str | None = _of_kernels("configs").fits(op, _name(dtype), shapes, interpreted=interpreted)
    if lacking is None and device.type != "cuda" and not interpreted:
        lacking = f"Triton kernels run on CUDA devices, not on {device.type}"
    if lacking is None and importlib.util.find_spec("triton") is None:
        lacking = "triton is not installed (pip install 'structmat[triton]')"
    if lacking is None and device.type == "cuda" and _capability(device) < (8, 0):
        lacking = "the kernels need compute capability 8.0"
    if lacking is None and device.type == "cuda":
        lacking = _of_kernels("stored").lacking(op, _name(dtype), shapes, _capability(device))
    return lacking


def served(x: torch.Tensor) -> bool:
    """Whether a kernel may be asked for at all: never on the CPU, unless "triton" is demanded."""
    mode = _seen if torch.compiler.is_compiling() else _now()
    return mode == "triton" or (mode == "auto" and x.is_cuda)


def kernel(
    op: str,
    *tensors: torch.Tensor,
    module: str = "",
    dtype: torch.dtype | None = None,
    shapes: tuple[tuple[int, ...], ...] = (),
) -> Any:
    """Whether a kernel serves ``op`` for these tensors; if not, plain torch computes it. With ``module``, a name in
    ``structmat.kernels``, its launchers or None.

    Called by operations in eager mode, under the transforms of torch.func, and while a compiler traces. The dtype and
    the shapes are those of the tensors unless given.
    """
    found = _serves(op, tensors, dtype, shapes)
    return found if not module else launchers(module) if found else None


def _serves(
    op: str, tensors: tuple[torch.Tensor, ...], dtype: torch.dtype | None, shapes: tuple[tuple[int, ...], ...]
) -> bool:
    if not served(tensors[0]):
        return False
    device, kind = tensors[0].device, dtype or tensors[0].dtype
    sizes = shapes or tuple([tuple(t.shape) for t in tensors])
    if torch.compiler.is_compiling():
        if transforming():
            return False
        known = (_known(sizes[0]), *[tuple([operator.index(n) for n in shape]) for shape in sizes[1:]])
        choice, reason = _while_tracing(_seen, op, str(device), str(kind), known)
        if choice == "reference" and _seen == "triton":
            raise BackendError(reason)
        return choice == "triton"
    if nested_jvp():
        if _now() == "triton":
            raise BackendError(f"{op}: a jvp inside a jvp loses a tangent of a kernel in torch; use plain torch for it")
        return False
    return choose(op, device, kind, sizes)[0] == "triton"


def _known(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes, -1 for one that is a symbol."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # noqa: PLC0415  # with sympy: a third of a second

    return tuple([operator.index(n) if has_static_value(n) else -1 for n in shape])


def _by_names(mode: str, op: str, device: str, dtype: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[str, str]:
    """``_decided``, from constants to constants."""
    return _decided(mode, op, torch.device(device), getattr(torch, dtype.removeprefix("torch.")), shapes)


_while_tracing: Any = torch.compiler.assume_constant_result(_by_names)  # torch.compile calls it and does not trace it


@functools.lru_cache(maxsize=4096)
def _configurations(
    op: str, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]
) -> dict[str, Any] | None:
    if _lacking(op, device, dtype, shapes) is not None:
        return None
    capability = _capability(device) if device.type == "cuda" else _INTERPRETED
    found: dict[str, Any] = _of_kernels("stored").configurations(op, _name(dtype), shapes, capability)
    return found


def configurations(
    op: str, like: torch.Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]
) -> dict[str, Any] | None:
    """The configuration of each kernel that ``op`` launches for these sizes on the device of ``like``, or None where
    it cannot launch any: then an operator computes its formula."""
    found = _configurations(op, like.device, dtype, shapes)
    return found if found is None or not _tried else {kernel: _tried.get(kernel, c) for kernel, c in found.items()}


@contextlib.contextmanager
def trying(configs: Mapping[str, Any]) -> Iterator[None]:
    """Within the block these configurations are launched, by kernel: how ``benchmarks.tune`` times them."""
    before = dict(_tried)
    _tried.clear()
    _tried.update(configs)
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


@functools.cache
def launchers(module: str) -> ModuleType:
    """The one import that happens late: a Triton module, when the first call is served by it."""
    need("triton", "triton")
    return importlib.import_module(f"structmat.kernels.{module}")


def demand(op: str, *tensors: torch.Tensor) -> None:
    """Called by each operation on a path that no kernel serves: raises ``BackendError`` where "triton" is demanded."""
    if _now() == "triton":
        first = tensors[0]
        raise BackendError(
            f"{op} on {first.device.type} in {first.dtype} with shapes {tuple(tuple(t.shape) for t in tensors)}: this "
            'release holds no Triton kernel for it; use_backend("auto") or use_backend("reference") computes the same '
            "numbers in plain torch"
        )


def dense_limit(device: torch.device | str = "cpu") -> int:
    """The order n up to which a method may form an n x n array on this device where no structured form exists (256)."""
    return _DENSE_LIMIT.get(torch.device(device).type, 256)


def explain(*arguments: Any, **options: Any) -> Plan:
    """``explain(A, x)`` for the product, ``explain("solve", A, b)`` for a verb: the path, the reason, flops and
    bytes."""
    verb, (matrix, *rest) = (arguments[0], arguments[1:]) if isinstance(arguments[0], str) else ("linear", arguments)
    if not hasattr(matrix, "plan"):
        raise TypeError(
            f"explain: expected a Matrix, got {type(matrix).__name__}; explain(A, x) or explain('solve', A, b)"
        )
    columns = 1
    if rest:
        x = rest[0]
        columns = 1 if x.ndim == 1 else int(x.numel() // max(1, matrix.shape[-1]))
    device, dtype = matrix.device or torch.device("cpu"), matrix.dtype or torch.get_default_dtype()
    plan: Plan = matrix.plan(verb, columns, **options)
    asked = plan.operations or ((verb, (tuple(matrix.shape),)),)
    chosen = sorted([choose(op, device, dtype, shapes) for op, shapes in asked])  # one without a kernel decides
    return dataclasses.replace(plan, implementation=chosen[0][0], why=chosen[0][1])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype computed in: half and bfloat16 are carried out in float32, all else as it is."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return torch.complex64 if dtype == torch.complex32 else dtype


_COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}
_REAL = {c: r for r, c in _COMPLEX.items()}


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype of the same precision (bfloat16 has none: complex64). A table, because ``dtype.to_complex``
    does not trace."""
    return _COMPLEX.get(dtype, dtype if dtype in _REAL else torch.complex64)


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The real dtype of the same precision."""
    return _REAL.get(dtype, dtype)


def full_precision(device: torch.device) -> Any:
    """A context in which autocast leaves our arithmetic alone (small solves never run in bfloat16)."""
    if device.type in ("cpu", "cuda") and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()  # an autocast context costs more than a small product
    if device.type == "meta":  # shapes only, no arithmetic; torch has no autocast there
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
