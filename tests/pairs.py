"""Every verb of two matrices over every ordered pair of registered examples: what type it gives, and whether that is
true of the entries.

``tests/pairs.txt`` keeps what was found: for each verb and pair of types, every type of result beside the plain lazy
one, with the smallest pair of examples that gives it. The documentation shows the same file. After a change of rules
or examples: ``python tests/pairs.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import structmat as sm
from structmat import Matrix
from structmat import matrix as verbs
from structmat.claims import Claim
from structmat.testing.assertions import rounding
from structmat.testing.examples import EXAMPLES, Example
from structmat.testing.reference import dense_of, magnitude_of

TABLE = Path(__file__).with_name("pairs.txt")
C128 = torch.complex128
MOST = 36  # rows or columns of a Kronecker product that is formed here


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb, which sizes it takes, its value on dense matrices, the size of the numbers inside, and the lazy type."""

    apply: Callable[[Matrix, Matrix], Matrix]
    fits: Callable[[torch.Size, torch.Size], bool]
    dense: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    size: Callable[[float, float], float]
    lazy: str


def _inner(a: torch.Size, b: torch.Size) -> bool:
    return a[-1] == b[-2]


def _equal(a: torch.Size, b: torch.Size) -> bool:
    return a[-2:] == b[-2:]


def _small(a: torch.Size, b: torch.Size) -> bool:
    return a[-1] * b[-1] <= MOST and a[-2] * b[-2] <= MOST


VERBS = {
    "matmul": Verb(verbs.matmul, _inner, torch.matmul, lambda s, t: s * t, "Product"),
    "add": Verb(verbs.add, _equal, torch.add, lambda s, t: s + t, "Sum"),
    "subtract": Verb(lambda a, b: a - b, _equal, torch.sub, lambda s, t: s + t, "Sum"),
    "hadamard": Verb(verbs.hadamard, _equal, torch.mul, lambda s, t: s * t, "refused"),
    "kron": Verb(verbs.kron, _small, lambda x, y: torch.kron(x, y), lambda s, t: s * t, "Kronecker"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An example made: the matrix, its entries by definition, the size of the numbers inside."""

    name: str
    kind: str
    matrix: Matrix
    shape: torch.Size
    entries: torch.Tensor
    size: float


@functools.cache
def entries(complex_: bool = False) -> tuple[Entry, ...]:
    """Every example in double precision, those with more than one row and column first, small before large."""

    def made(example: Example) -> Entry:
        wanted = C128 if complex_ and C128 in example.dtypes else torch.float64
        matrix = example.build(wanted if wanted in example.dtypes else C128)
        dense = dense_of(matrix).to(C128).contiguous()
        return Entry(example.name, type(matrix).__name__, matrix, matrix.shape, dense, magnitude_of(matrix))

    found = [made(e) for e in EXAMPLES]
    return tuple(sorted(found, key=lambda e: (min(e.shape[-2:]) < 2, math.prod(e.shape), e.name)))


def conforming(verb: str, complex_: bool = False) -> Iterator[tuple[Entry, Entry]]:
    """All ordered pairs that the verb takes, small ones first."""
    for a, b in itertools.product(entries(complex_), repeat=2):
        if VERBS[verb].fits(a.shape, b.shape):
            yield a, b


def result_of(verb: str, a: Entry, b: Entry) -> Matrix | None:
    """The result, or None where there is none by design (an entrywise product without a structured form)."""
    try:
        return VERBS[verb].apply(a.matrix, b.matrix)
    except sm.StructureError:
        if verb == "hadamard":
            return None
        raise


def type_of(result: Matrix | None) -> str:
    """The name of the result's type, ``refused`` for none."""
    return "refused" if result is None else type(result).__name__


# -- measuring, all results of one size at once -------------------------------------------------------------------

DEFECTS: dict[Claim, Callable[[torch.Tensor], torch.Tensor]] = {
    Claim.SYMMETRIC: lambda a: a - a.mT,
    Claim.HERMITIAN: lambda a: a - a.mH,
    Claim.UPPER_TRIANGULAR: lambda a: a - torch.triu(a),
    Claim.LOWER_TRIANGULAR: lambda a: a - torch.tril(a),
    Claim.ORTHONORMAL_COLUMNS: lambda a: a.mH @ a - torch.eye(a.shape[-1], dtype=a.dtype),
    Claim.ORTHONORMAL_ROWS: lambda a: a @ a.mH - torch.eye(a.shape[-2], dtype=a.dtype),
}


def _norms(batch: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(batch, dim=(-2, -1))


class Measure:
    """Collects results with the entries they should have, and says which differ, or claim what is not so."""

    def __init__(self) -> None:
        self.waiting: dict[tuple[Any, ...], list[tuple[str, Any, float]]] = {}
        self.faults: list[str] = []
        self.seen = 0

    def take(self, what: str, result: Matrix, wanted: torch.Tensor, size: float) -> None:
        """One result; what it was computed from decides how far rounding may take it."""
        m, n = (int(s) for s in result.shape[-2:])
        self.seen += 1
        dense = result.to_dense().to(C128)
        allowed = 4 * rounding(torch.float64, m + n, size, 4) * max(1, n) ** 0.5
        if dense.shape != wanted.shape:
            self.faults.append(f"{what}: shape {tuple(dense.shape)}, {tuple(wanted.shape)} is right")
            return
        self._wait(("value", wanted.shape), what, dense - wanted, allowed)
        scale = max(float(_norms(wanted).max()) if wanted.numel() else 0.0, size, 1.0)
        known, claimed = result.claims, allowed * scale
        for claim in known.properties:
            if claim is Claim.ORTHOGONAL:
                for part in (Claim.ORTHONORMAL_COLUMNS, Claim.ORTHONORMAL_ROWS):
                    self._wait((part, wanted.shape), what, wanted, claimed)
            else:
                self._wait((claim, wanted.shape), what, wanted, claimed)
        if known.rank is not None:
            self._wait(("rank", wanted.shape, known.rank), what, wanted, claimed)
        for (e, f), bound in known.displacement.items():
            self._wait(("displacement", wanted.shape, e, f, bound), what, wanted, claimed * (2 + abs(e) + abs(f)))

    def _wait(self, key: tuple[Any, ...], what: str, entries: torch.Tensor, allowed: float) -> None:
        self.waiting.setdefault(key, []).append((what, entries, allowed))

    def finish(self) -> None:
        """Measure what waits; AssertionError with every fault found."""
        for key, items in self.waiting.items():
            batch, allowed = torch.stack([i[1] for i in items]), torch.tensor([i[2] for i in items])
            gaps = self._gaps(key, batch)
            gaps = gaps.flatten(1).amax(1) if gaps.ndim > 1 else gaps
            for k in (~(gaps <= allowed)).nonzero().flatten().tolist():
                self.faults.append(f"{items[k][0]}: {key} is off by {gaps[k]:.1e}, allowed {allowed[k]:.1e}")
        shown = "\n".join(self.faults[:20])
        assert not self.faults, f"{len(self.faults)} faults:\n{shown}"

    def _gaps(self, key: tuple[Any, ...], batch: torch.Tensor) -> torch.Tensor:
        if batch.numel() == 0:
            return torch.zeros(len(batch), dtype=torch.float64)
        if key[0] == "value":
            return _norms(batch)
        if key[0] is Claim.POSITIVE_DEFINITE:
            least = torch.linalg.eigvalsh(batch)[..., 0]
            return torch.maximum(_norms(batch - batch.mH), -least)
        if key[0] == "rank":
            return _beyond(batch, key[2])
        if key[0] == "displacement":
            _, shape, e, f, bound = key
            return _beyond(_shift(shape[-2], e) @ batch - batch @ _shift(shape[-1], f), bound)
        return _norms(DEFECTS[key[0]](batch))


def _beyond(batch: torch.Tensor, rank: int) -> torch.Tensor:
    """The singular value after the first ``rank``; 0 where there is none."""
    values = torch.linalg.svdvals(batch)
    return values[..., rank] if rank < values.shape[-1] else torch.zeros(values.shape[:-1], dtype=values.dtype)


def _shift(n: int, e: complex) -> torch.Tensor:
    z = torch.diag(torch.ones(n - 1, dtype=C128), -1)
    z[0, n - 1] += e
    return z


# -- the table ----------------------------------------------------------------------------------------------------

Kinds = tuple[str, str, str]  # verb, type, type
Found = dict[str, tuple[str, str]]  # type of the result: names of the two examples


def walk(verb: str, measure: Measure | None, complex_: bool = False, every: int = 1) -> dict[Kinds, Found]:
    """Apply the verb to all conforming pairs, or to one in ``every``; what came out, by types."""
    table: dict[Kinds, Found] = {}
    for a, b in itertools.islice(conforming(verb, complex_), None, None, every):
        result = result_of(verb, a, b)
        table.setdefault((verb, a.kind, b.kind), {}).setdefault(type_of(result), (a.name, b.name))
        if measure is not None and result is not None:
            take(measure, verb, a, b, result)
    return table


def take(measure: Measure, verb: str, a: Entry, b: Entry, result: Matrix) -> None:
    """Hand one result to the measure."""
    v = VERBS[verb]
    measure.take(f"{verb}({a.name}, {b.name})", result, v.dense(a.entries, b.entries), v.size(a.size, b.size))


def written(tables: list[dict[Kinds, Found]]) -> str:
    """The text of the table, without the pairs of types that only give the plain lazy type."""
    lines = []
    for table in tables:
        for (verb, a, b), found in sorted(table.items()):
            if set(found) != {VERBS[verb].lazy}:
                kinds = sorted(found, key=lambda k: (k == VERBS[verb].lazy, k))
                lines.append(f"{verb} {a} {b}: " + "; ".join(f"{k} ({', '.join(found[k])})" for k in kinds))
    return "\n".join(lines) + "\n"


def read() -> dict[Kinds, Found]:
    """The table as kept."""
    table: dict[Kinds, Found] = {}
    for line in TABLE.read_text().splitlines():
        head, rest = line.split(": ")
        verb, a, b = head.split(" ")
        for part in rest.split("; "):
            kind, names = part.removesuffix(")").split(" (")
            first, second = names.split(", ")
            table.setdefault((verb, a, b), {})[kind] = (first, second)
    return table


if __name__ == "__main__":
    TABLE.write_text(written([walk(verb, None) for verb in VERBS]))
    print(f"{TABLE}: {len(read())} pairs of types with a structured result")
