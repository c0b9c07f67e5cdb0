"""What every strategy is made of: tensors of chosen kinds of numbers, sizes, batches; how one is written, and how a
matrix is printed.

A strategy is a function that draws, made public by ``@strategy``: nothing of hypothesis is built while it draws, which
would take ten times as long.

A tensor costs two choices, a kind and a seed, however large it is. In the kind "small", which comes first, the digits
of the seed are the entries, so that what hypothesis shrinks to is a matrix of few ones, readable as printed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.vendor import pretty

from structmat._value import Value

__all__ = [
    "HARD",
    "KINDS",
    "Batch",
    "Draw",
    "Entries",
    "Function",
    "Size",
    "Strategy",
    "batch_shapes",
    "dtypes",
    "legal_kinds",
    "numbers",
    "strategy",
    "tensors",
]

KINDS = ("small", "integers", "normal", "equal", "some zeros", "parallel", "spread", "large", "little")
HARD = ("zero", "near parallel", "huge", "tiny", "denormal")
GENTLE = ("small", "integers", "normal", "equal", "some zeros", "parallel")

Strategy = st.SearchStrategy[Any]
Batch = tuple[int, ...] | None
Size = tuple[int, int] | None
Entries = str | Sequence[str] | None
Function = Callable[..., Strategy]  # of (dtype, most, batch, shape, entries)

_BITS = 62
_SEEDS = st.integers(0, 2**_BITS - 1)
_DIGITS = _BITS // 2  # so many entries of a small tensor are digits of the seed, in base 4
_integers, _permutations = functools.cache(st.integers), functools.cache(lambda n: st.permutations(range(n)))


def dtypes(half: bool = False) -> Strategy:
    """The dtypes that everything accepts; half and bfloat16 on request."""
    wide = [torch.float64, torch.complex128, torch.float32, torch.complex64]
    return st.sampled_from(wide + ([torch.bfloat16, torch.float16] if half else []))


def batch_shapes(most: int = 2, empty: bool = False) -> Strategy:
    """Batch shapes of 0 to ``most`` axes of 1 to 3 elements; with ``empty`` an axis may have none."""
    return st.lists(st.integers(0 if empty else 1, 3), max_size=most).map(tuple)


def legal_kinds(entries: Entries) -> tuple[str, ...]:
    """The kinds named, all of ``KINDS`` for None; ValueError for one that does not exist."""
    if entries is None:
        return KINDS
    named = (entries,) if isinstance(entries, str) else tuple(entries)
    wrong = [kind for kind in named if kind not in KINDS + HARD]
    if wrong or not named:
        legal = ", ".join(map(repr, KINDS + HARD))
        raise ValueError(f"entries={entries!r}: legal are {legal}, a sequence of them, or None for the first nine")
    return named


def tensors(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, entries: Entries = None, *, factors: int = 1
) -> Strategy:
    """A tensor of this shape and dtype whose numbers are of one of the kinds ``entries``, by default any of the first
    nine.

    "small": 0, 1, -1 and 2 (complex: 0, 1, i and -1). "integers": the same, a quarter of them zero. "normal": standard
    normal. "equal": one number everywhere. "some zeros": normal with 40 % zeros. "parallel": rows that are multiples of
    one row. "spread": normal times a power of ten between -3 and 3 for each entry. "large", "little": normal, times or
    divided by 10^6 (10 in float16).
    Only where asked for: "zero"; "near parallel": parallel rows that differ by sqrt(eps), nearly singular; "huge",
    "tiny": as far out as squares of the entries neither over- nor underflow; "denormal": below the smallest normal
    number. ``factors``: how many such tensors a type multiplies; they share the range.
    """
    return _tensors(tuple(int(s) for s in shape), dtype, legal_kinds(entries), factors)


@st.composite
def _tensors(draw: Any, shape: tuple[int, ...], dtype: torch.dtype, kinds: tuple[str, ...], factors: int) -> Any:
    """No ``map`` and no ``builds``, which would print the choices: what is printed is the tensor."""
    return Draw(draw, dtype, 1, (), None, kinds).tensor(*shape, factors=factors)


def numbers(kind: str, seed: int, shape: tuple[int, ...], dtype: torch.dtype, factors: int = 1) -> torch.Tensor:
    """The tensor of this kind and seed; the same on every machine with the same torch, and never global state."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    if kind == "small":
        return _small(seed, shape, wide).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    if kind == "integers":  # where a fault is not seen in a matrix of few ones, it is in these
        return _table(wide)[torch.randint(0, 4, shape, generator=generator)].to(dtype)
    drawn = torch.randn(shape, generator=generator, dtype=wide)
    info, half = torch.finfo(dtype), dtype == torch.float16
    if kind == "zero":
        return torch.zeros(shape, dtype=dtype)
    if kind == "equal":
        return drawn.flatten()[0].to(dtype).repeat(shape)
    if kind == "some zeros":
        return (drawn * (torch.rand(shape, generator=generator) < 0.6)).to(dtype)
    if kind in ("parallel", "near parallel"):
        lines = drawn if len(shape) < 2 else drawn[..., :1, :] * drawn[..., :, :1]
        lines = drawn.flatten()[0].repeat(shape) if len(shape) < 2 else lines
        return (lines if kind == "parallel" else lines + info.eps**0.5 * drawn).to(dtype)
    if kind == "denormal":
        return (drawn.sgn() * torch.rand(shape, generator=generator) * info.tiny).to(dtype)
    if kind == "spread":
        most = (1 if half else 3) / factors  # products of larger numbers overflow half precision
        powers = torch.randint(-3, 4, shape, generator=generator, dtype=torch.float64) * (most / 3)
        return (drawn * 10.0**powers).to(dtype)
    top = math.log10(info.max)
    power = {"large": 1 if half else 6, "little": -1 if half else -6, "huge": 0.4 * top, "tiny": -0.4 * top}.get(
        kind, 0
    )
    return (drawn * 10.0 ** (power / factors)).to(dtype)


def _table(wide: torch.dtype) -> torch.Tensor:
    return torch.tensor([0, 1, 1j, -1] if wide.is_complex else [0, 1, -1, 2], dtype=wide)


def _small(seed: int, shape: tuple[int, ...], wide: torch.dtype) -> torch.Tensor:
    """Entry k is digit k of the seed in base 4; entries after the last digit are zero unless the seed is long."""
    count = math.prod(shape)
    digits = torch.zeros(count, dtype=torch.int64)
    for k in range(min(count, _DIGITS)):
        digits[k] = (seed >> 2 * k) & 3
    if count > _DIGITS and seed >> (_BITS // 2):
        rest = torch.Generator().manual_seed(seed)
        digits[_DIGITS:] = torch.randint(0, 4, (count - _DIGITS,), generator=rest)
    return _table(wide)[digits].reshape(shape)


@dataclasses.dataclass(frozen=True)
class Draw:
    """What was asked for, and the choices in these terms."""

    draw: Any
    dtype: torch.dtype
    most: int
    batch: Batch
    shape: Size
    kinds: tuple[str, ...] = KINDS

    def integer(self, first: int, last: int) -> int:
        return int(self.draw(_integers(first, last)))

    def choose(self, *options: Any) -> Any:
        """One of them; the first is the simplest."""
        return options[self.integer(0, len(options) - 1)] if len(options) > 1 else options[0]

    def permutation(self, n: int) -> list[int]:
        return list(self.draw(_permutations(n)))

    def lead(self) -> tuple[int, ...]:
        """The batch asked for, or half of the time none, else one of two shapes."""
        return tuple(self.batch) if self.batch is not None else self.choose((), (), (2,), (2, 1))

    def sizes(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.shape is not None:
            return int(self.shape[0]), int(self.shape[1])
        return self.integer(1, self.most), self.integer(1, self.most)

    def order(self) -> int:
        """Rows, of a square matrix."""
        return int(self.shape[0]) if self.shape is not None else self.integer(1, self.most)

    def split(self, n: int, count: int) -> tuple[int, ...]:
        """n as a product of ``count`` numbers."""
        found = []
        for _ in range(count - 1):
            found.append(self.choose(*(d for d in range(1, n + 1) if n % d == 0)))
            n //= found[-1]
        return (*found, n)

    def tensor(self, *shape: int, factors: int = 1, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Numbers of the kinds asked for."""
        dtype = self.dtype if dtype is None else dtype
        if not math.prod(shape):
            return torch.zeros(shape, dtype=dtype)
        kind = self.choose(*self.kinds)
        return numbers(kind, self.draw(_SEEDS), shape, dtype, factors)

    def bounded(self, shape: tuple[int, ...], place: int, room: float = 0.5) -> torch.Tensor:
        """1 at ``place`` of the last axis, plus entries whose absolute values sum to at most ``room``: as the diagonals
        or the column of a matrix they bound its condition number."""
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        drawn = dataclasses.replace(self, kinds=GENTLE).tensor(*shape, dtype=wide)
        total = drawn.abs().sum(-1, keepdim=True) / room
        drawn = drawn * 2.0 ** -torch.ceil(torch.log2(total.clamp_min(1.0)))  # a power of two: small stays readable
        drawn[..., place] += 1
        return drawn.to(self.dtype)

    def tame(self) -> "Draw":
        """Without numbers much larger than 1, unless they were asked for."""
        return self if self.kinds != KINDS else dataclasses.replace(self, kinds=(*GENTLE, "little"))

    def part(self, form: Callable[["Draw"], Any], batch: Batch, shape: Size) -> Any:
        """A matrix of another strategy, of this batch and shape."""
        return form(dataclasses.replace(self, batch=batch, shape=shape))


def check_shape(name: str, shape: object) -> None:
    """ValueError unless ``shape`` is None or two whole numbers from 1."""
    if shape is None:
        return
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 2 or not all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in sizes):
        raise ValueError(f"{name}: shape={shape!r}; legal are (rows, columns), two whole numbers from 1, or None")


def strategy(*, square: bool = False, batched: bool = True, plain: bool = True) -> Callable[[Any], Function]:
    """Make a function of ``Draw`` a strategy of the signature that all share; it keeps the function as ``form``.

    ``square``: the shape must be; ``batched``: there may be a batch; ``plain``: the entries may be chosen.
    """

    def public(form: Callable[[Draw], Any]) -> Function:
        name = form.__name__

        def asked(
            dtype: torch.dtype = torch.float64,
            most: int = 9,
            batch: Batch = None,
            shape: Size = None,
            entries: Entries = None,
        ) -> Strategy:
            check_shape(name, shape)
            if square and shape is not None and shape[0] != shape[1]:
                raise ValueError(f"{name}: shape={tuple(shape)} is not square, and these matrices are")
            if batch and not batched:
                raise ValueError(f"{name}: batch={tuple(batch)}, but these matrices have no batch")
            if entries is not None and not plain:
                raise ValueError(f"{name}: the entries of these matrices are not free; leave entries None")
            if most < 1:
                raise ValueError(f"{name}: most={most}; legal are 1, 2, 3, ...")
            return _formed(form, dtype, most, batch, shape, legal_kinds(entries))

        functools.update_wrapper(asked, form, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        del asked.__wrapped__  # type: ignore[attr-defined]  # the signature is that of asked
        asked.form = form  # type: ignore[attr-defined]
        return asked

    return public


@st.composite
def _formed(draw: Any, form: Callable[[Draw], Any], *asked: Any) -> Any:
    return form(Draw(draw, *asked))


def _printed(value: Value, p: Any, cycle: bool) -> None:
    """A failing example of hypothesis as the call that makes it, where it is small enough to be read."""
    fields = [f.name for f in dataclasses.fields(value)]  # type: ignore[arg-type]
    if (
        not isinstance(p, pretty.RepresentationPrinter)
        or cycle
        or value.numel_stored > 64
        or any(name.startswith("_") for name in fields)
    ):
        p.text(repr(value))
        return
    with p.group(2, f"{type(value).__name__}(", ")"):
        for k, name in enumerate(fields):
            if k:
                p.text(",")
                p.breakable()
            p.text(f"{name}=")
            _print_field(getattr(value, name), p)


def _print_field(held: Any, p: Any) -> None:
    if isinstance(held, torch.Tensor):
        p.text(f"torch.tensor({held.tolist()}, dtype={held.dtype})")
    elif isinstance(held, tuple) and any(isinstance(part, torch.Tensor) for part in held):
        p.text("(")
        for part in held:
            _print_field(part, p)
            p.text(", ")
        p.text(")")
    else:
        p.pretty(held)


Value._repr_pretty_ = _printed  # type: ignore[attr-defined]  # also for types written outside
