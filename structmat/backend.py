"""Which implementation serves a call, and why.

The mathematics never depends on the machine: an implementation is a faster way to the same numbers. ``choose`` is a
pure function of the operation, the device type, the dtype, the sizes and the mode set by ``use_backend``.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from structmat.errors import BackendError

__all__ = [
    "Plan",
    "choose",
    "complex_of",
    "compute_dtype",
    "demand",
    "dense_limit",
    "eager",
    "explain",
    "full_precision",
    "real_of",
    "transforming",
    "use_backend",
]

MODES = ("auto", "reference", "triton")
_mode: contextvars.ContextVar[str] = contextvars.ContextVar("structmat_backend", default="auto")
_DENSE_LIMIT = {"cpu": 256}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call would run: the path, the reason for it, and estimates of its work.

    ``flops`` counts real floating-point operations (a complex multiply-add is 8), ``bytes`` the tensors read and
    written once each; None where no formula is known (a callable wrapped as a matrix).
    """

    path: str
    reason: str
    flops: float | None = None
    bytes: float | None = None
    implementation: str = "reference"

    def __str__(self) -> str:
        flops, moved = ("unknown" if v is None else f"{v:.3g}" for v in (self.flops, self.bytes))
        return f"{self.path}: {self.reason} ({flops} flops, {moved} bytes)"


@contextlib.contextmanager
def use_backend(mode: str) -> Iterator[None]:
    """Within the block use ``"auto"``, ``"reference"`` (plain torch only) or ``"triton"`` (raises where it cannot
    serve)."""
    if mode not in MODES:
        raise ValueError(f"use_backend({mode!r}): legal modes are {', '.join(map(repr, MODES))}")
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def choose(
    op: str, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = ()
) -> tuple[str, str]:
    """The implementation for ``op`` and the reason.

    This release has no Triton kernel, so "auto" answers "reference" everywhere; demanding "triton" raises
    ``BackendError`` in place of falling back.
    """
    if _mode.get() == "triton":
        raise BackendError(
            f"{op} on {device.type} in {dtype} with shapes {shapes}: this release holds no Triton kernel for it; "
            'use_backend("auto") or use_backend("reference") computes the same numbers in plain torch'
        )
    if _mode.get() == "reference":
        return "reference", 'asked for by use_backend("reference")'
    return "reference", f"no Triton kernel for {op} is stored for {device.type}"


def demand(op: str, *tensors: torch.Tensor) -> None:
    """Called by each operation in eager mode: raises ``BackendError`` where "triton" is demanded and cannot serve."""
    if _mode.get() == "triton":
        choose(op, tensors[0].device, tensors[0].dtype, tuple(tuple(t.shape) for t in tensors))


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
    implementation, _ = choose(verb, device, dtype, (tuple(matrix.shape),))
    plan: Plan = matrix.plan(verb, columns, **options)
    return dataclasses.replace(plan, implementation=implementation)


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


def eager(*tensors: torch.Tensor) -> bool:
    """Whether these are plain tensors outside torch.compile and torch.func, so that values may be read."""
    if torch.compiler.is_compiling():
        return False
    wrapped, batched = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor
    return not any(wrapped(t) or batched(t) for t in tensors)  # the second: autograd.grad(..., is_grads_batched=True)


def transforming() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active: then an operation needs its jvp."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
