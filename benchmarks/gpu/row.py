"""What a row is: a measurement with its bounds; and what a row is given to measure with."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from benchmarks.gpu.clock import Clock
from structmat import backend

__all__ = ["Bound", "Context", "Result", "Row", "at_least", "at_most"]


@dataclasses.dataclass(frozen=True)
class Bound:
    """``>= value`` or ``<= value``."""

    sign: str
    value: float

    def met(self, found: float | None) -> bool:
        """Whether a number meets it; no number does not, NaN neither."""
        if found is None:
            return False
        return found >= self.value if self.sign == ">=" else found <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


def at_least(value: float) -> Bound:
    """``>= value``."""
    return Bound(">=", value)


def at_most(value: float) -> Bound:
    """``<= value``."""
    return Bound("<=", value)


@dataclasses.dataclass
class Result:
    """One number with its bounds; ``seconds`` of every variant timed, ``errors`` of those that failed.

    ``moved`` are the bytes that must be read and written, and ``fraction`` what of the copy rate they are moved at.
    """

    name: str
    value: float | None
    unit: str
    must: Bound | None = None
    aim: Bound | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    moved: float | None = None
    fraction: float | None = None
    note: str = ""

    def verdict(self) -> str:
        """``must missed``, ``aim missed``, ``met``, or empty without bounds."""
        if self.value is None and not self.must:
            return ""
        if self.must is not None and not self.must.met(self.value):
            return "must missed"
        if self.aim is not None and not self.aim.met(self.value):
            return "aim missed"
        return "met" if self.must or self.aim else ""

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        found = {**dataclasses.asdict(self), "verdict": self.verdict()}
        return found | {key: str(bound) if bound else None for key, bound in (("must", self.must), ("aim", self.aim))}


@dataclasses.dataclass(frozen=True)
class Row:
    """A named function of the context that gives results; ``promised`` are the names with a must among them."""

    name: str
    run: Callable[["Context"], list[Result]]
    promised: tuple[str, ...] = ()


@dataclasses.dataclass
class Context:
    """The device, the sizes of this run, the ceilings measured so far."""

    device: torch.device
    dry: bool
    clock: Clock
    copy_rate: float | None = None  # bytes read and written a second
    gemm_rate: float | None = None  # flops a second in bfloat16
    l2: int = 60 << 20

    def size(self, full: int, tiny: int) -> int:
        """The size on a GPU, and that of a dry run."""
        return tiny if self.dry else full

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
        """Normal numbers, drawn on the device."""
        generator = torch.Generator(self.device).manual_seed(seed + sum(shape))
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def sets(self, make: Callable[[int], Any]) -> list[Any]:
        """Inputs drawn anew until they are twice the L2 cache, so that no repetition finds its own there: 2 to 16."""
        found = [make(0)]
        each = sum(t.nbytes for t in torch.utils._pytree.tree_leaves(found[0]) if isinstance(t, torch.Tensor))
        count = 2 if self.dry else min(16, max(2, -(-2 * self.l2 // max(1, each))))
        return found + [make(k) for k in range(1, count)]

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Kernels on demand: an operation that none serves raises. In a dry run, plain torch."""
        with backend.use_backend("reference" if self.dry else "triton"):
            yield

    def require(self, op: str, like: torch.Tensor, *shapes: tuple[int, ...]) -> None:
        """An operator called directly computes its formula where no kernel serves; a row may not time that."""
        if not self.dry and backend.configurations(op, like, like.dtype, shapes) is None:
            raise RuntimeError(f"no kernel of {op} serves {like.dtype} {shapes} on this device")

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.compile`` of it (in a dry run without code generation)."""
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, backend="aot_eager" if self.dry else "inductor")

    def fraction(self, moved: float, seconds: float | None) -> float | None:
        """What of the measured copy rate these bytes are moved at."""
        return None if seconds is None or self.copy_rate is None else moved / seconds / self.copy_rate

    def times(
        self, runs: dict[str, Callable[[int], Any]], *, graph: Collection[str] = ()
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of a call of each, measured in turns, and what failed: ``Clock.times``."""
        return self.clock.times(runs, graph=graph)

    def launched(self) -> str:
        """Which of the last comparison could not be captured in a graph, and pay for their launches."""
        return f"by events: {', '.join(sorted(self.clock.by_events))}" if self.clock.by_events else ""
