"""The table of configurations: which sizes and dtypes each kernel serves, and with which tiles.

A line is a kernel, a kind of dtype (``half`` for bfloat16 and float16, ``fp32``) and a size (the order of the blocks,
or the number of reflectors, padded to the size named). Every line passes ``python -m benchmarks.aot``: compiled for
sm_90 without a stack, without local memory, and within the shared memory of one block of threads. Of two lines for one
size the first is for sm_90, and the second for what cannot run that (sm_80) or for a measurement to choose. What has no
line is served by the composed operations of torch.
"""

import functools
from typing import NamedTuple

__all__ = ["OPERATIONS", "TABLE", "Config", "fits", "lines", "pick", "size_of"]

Shapes = tuple[tuple[int, ...], ...]
ORDER = 1 << 15  # the largest order of a Toeplitz matrix that the kernels serve: their work grows with its square


class Config(NamedTuple):
    """Tile sizes (the constexpr arguments of the kernel), warps, and stages of the software pipeline."""

    kernel: str
    kind: str
    size: int
    tiles: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 2

    @property
    def name(self) -> str:
        """For example ``blockdiag_forward-half-64-BM128-w4-s2``."""
        tiles = "".join(f"-{key}{value}" for key, value in self.tiles)
        return f"{self.kernel}-{self.kind}-{self.size}{tiles}-w{self.warps}-s{self.stages}"


def _rows(kernel: str, kind: str, *lines: tuple[int, dict[str, int], int, int]) -> list[Config]:
    return [Config(kernel, kind, size, tuple(tiles.items()), warps, stages) for size, tiles, warps, stages in lines]


TABLE: tuple[Config, ...] = (
    *_rows("cayley_forward", "fp32", *[(b, {}, w, 1) for b, w in ((2, 1), (4, 1), (8, 1), (16, 1), (32, 4), (64, 8))]),
    *_rows("cayley_polish", "fp32", (64, {"BN": 16}, 8, 1)),
    *_rows("cayley_backward", "fp32", *[(b, {"BN": b}, w, 1) for b, w in ((2, 1), (4, 1), (8, 1), (16, 1), (32, 4))]),
    *_rows("cayley_backward", "fp32", (64, {"BN": 16}, 8, 1)),
    *_rows("blockdiag_forward", "half", *[(g, {"BM": 128}, 4, 2) for g in (16, 32, 64, 128)]),
    *_rows("blockdiag_forward", "half", (128, {"BM": 64, "BN": 64}, 4, 2)),
    *_rows("blockdiag_forward", "fp32", *[(g, {"BM": 64}, 4, 2) for g in (16, 32, 64)]),
    *_rows("blockdiag_forward", "fp32", (64, {"BM": 64, "BN": 32}, 4, 1), (128, {"BM": 64, "BN": 64}, 8, 1)),
    *_rows("blockdiag_backward", "half", *[(g, {"BM": 64}, 4, 2) for g in (16, 32, 64)], (128, {"BM": 64}, 8, 2)),
    *_rows("blockdiag_backward", "half", (128, {"BM": 32, "BN": 64}, 4, 2)),
    *_rows("blockdiag_backward", "fp32", (16, {"BM": 32}, 4, 2), (32, {"BM": 32}, 4, 2), (64, {"BM": 32}, 8, 1)),
    *_rows("blockdiag_backward", "fp32", (64, {"BM": 32, "BN": 32}, 8, 1), (128, {"BM": 16, "BN": 64}, 8, 1)),
    *_rows("strided_forward", "half", (16, {"BM": 32, "BL": 16}, 4, 2), (32, {"BM": 32, "BL": 16}, 4, 2)),
    *_rows("strided_forward", "half", (64, {"BM": 16, "BL": 16}, 8, 1)),
    *_rows("strided_forward", "fp32", (16, {"BM": 16, "BL": 8}, 4, 1), (32, {"BM": 16, "BL": 8}, 4, 1)),
    *_rows("strided_forward", "fp32", (64, {"BM": 16, "BL": 4, "BN": 32}, 4, 1)),
    *_rows("strided_backward", "half", (16, {"BM": 16, "BL": 16}, 4, 1), (32, {"BM": 16, "BL": 16}, 8, 1)),
    *_rows("strided_backward", "half", (64, {"BM": 16, "BL": 8, "BN": 32}, 8, 1)),
    *_rows("strided_backward", "fp32", (16, {"BM": 16, "BL": 8}, 8, 1), (32, {"BM": 16, "BL": 8, "BN": 16}, 8, 1)),
    *_rows("strided_backward", "fp32", (64, {"BM": 16, "BL": 4, "BN": 16}, 8, 1)),
    *_rows("wy_gram", "half", *[(r, {"BD": 64}, 4, 2) for r in (16, 32, 64)]),
    *_rows("wy_gram", "fp32", *[(r, {"BD": 32}, 4, 2) for r in (16, 32, 64)]),
    *_rows("wy_inverse", "fp32", *[(r, {}, w, 1) for r, w in ((16, 1), (32, 4), (64, 8))]),
    *_rows("householder_apply", "half", *[(r, {"BM": 64, "BD": 64}, 4, 2) for r in (16, 32, 64)]),
    *_rows("householder_apply", "half", (64, {"BM": 32, "BD": 64}, 4, 2)),
    *_rows("householder_apply", "fp32", *[(r, {"BM": 64, "BD": 32}, 4, 2) for r in (16, 32)]),
    *_rows("householder_apply", "fp32", (64, {"BM": 64, "BD": 32}, 8, 2), (64, {"BM": 32, "BD": 32}, 4, 1)),
    *_rows("householder_vectors", "half", *[(r, {"BM": 64, "BD": 64}, 4, 2) for r in (16, 32, 64)]),
    *_rows("householder_vectors", "half", (64, {"BM": 32, "BD": 64}, 4, 2)),
    *_rows("householder_vectors", "fp32", *[(r, {"BM": 32, "BD": 64}, 4, 2) for r in (16, 32, 64)]),
    *_rows("householder_vectors", "fp32", (32, {"BM": 16, "BD": 64}, 4, 1), (64, {"BM": 16, "BD": 64}, 8, 1)),
    *_rows("compose_walk", "fp32", *[(g, {"BN": min(g, 32)}, w, 1) for g, w in ((16, 1), (32, 4), (64, 4), (128, 8))]),
    *_rows("compose_pairs", "fp32", *[(g, {"BN": min(g, 32)}, w, 1) for g, w in ((16, 1), (32, 4), (64, 4), (128, 8))]),
    *[c for kind in ("half", "fp32") for c in _rows("toeplitz_form", kind, (ORDER, {"BM": 32, "BN": 128}, 4, 1))],
    *[c for kind in ("half", "fp32") for c in _rows("toeplitz_diagsum", kind, (ORDER, {"BM": 16, "BK": 128}, 4, 2))],
    *_rows("toeplitz_product", "half", (ORDER, {"BM": 64, "BO": 64, "BK": 64}, 4, 2)),
    *_rows("toeplitz_product", "half", (ORDER, {"BM": 16, "BO": 128, "BK": 64}, 4, 2)),
    *_rows("toeplitz_product", "fp32", (ORDER, {"BM": 64, "BO": 64, "BK": 32}, 4, 2)),
    *_rows("toeplitz_tiles", "half", (ORDER, {"BM": 64, "BD": 64}, 4, 2)),
    *_rows("toeplitz_tiles", "fp32", (ORDER, {"BM": 32, "BD": 64}, 4, 2)),
)
# The kernels that each operation launches, forward and backward: all must have a line for the size.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "cayley": ("cayley_forward", "cayley_backward"),
    "block_diagonal": ("blockdiag_forward", "blockdiag_backward"),
    "block_diagonal_strided": ("strided_forward", "strided_backward"),
    "householder_product": ("wy_gram", "wy_inverse", "householder_apply", "householder_vectors"),
    "compose_blocks": ("compose_walk", "compose_pairs"),
    "toeplitz_form": ("toeplitz_form", "toeplitz_diagsum"),
    "toeplitz_formed": ("toeplitz_form", "toeplitz_tiles", "toeplitz_diagsum"),
    "toeplitz_product": ("toeplitz_product", "toeplitz_tiles", "toeplitz_diagsum"),
}
_KINDS = {"bfloat16": "half", "float16": "half", "float32": "fp32"}
_ONLY_FP32 = ("cayley_forward", "cayley_polish", "cayley_backward", "wy_inverse", "compose_walk", "compose_pairs")
_OF_WEIGHTS = ("cayley", "compose_blocks")  # operations that no row takes part in: float32, as all weights are


def size_of(op: str, shapes: Shapes) -> int:
    """What the lines of a table are named after: the order of a block, of a span or of a Toeplitz matrix, or the
    number of reflectors."""
    if op.startswith("block_diagonal"):
        return max(shapes[1][-2:])
    if op == "compose_blocks":
        return shapes[0][-1] << (shapes[0][1] - 1)
    if op.startswith("toeplitz"):
        (m, n), rest = shapes[0][-2:], shapes[1:]
        return max(n, rest[0][-1] - n + 1) if rest else max(m, n)
    return shapes[0][-1] if op == "cayley" else shapes[1][-2]


@functools.lru_cache(maxsize=4096)
def lines(kernel: str, dtype: str, size: int) -> tuple[Config, ...]:
    """The lines that serve this size, smallest padding first; float64 (interpreted only) takes those of float32."""
    kind = "fp32" if kernel in _ONLY_FP32 else _KINDS.get(dtype, "fp32")
    padded = sorted({c.size for c in TABLE if c.kernel == kernel and c.kind == kind and c.size >= size})
    return tuple(c for c in TABLE if padded and c[:3] == (kernel, kind, padded[0]))


def fits(op: str, dtype: str, shapes: Shapes, *, interpreted: bool = False) -> str | None:
    """None where the kernels of ``op`` serve these arguments, else the reason why not."""
    if op not in OPERATIONS:
        return f"this release holds no Triton kernel for {op}"
    allowed = ("float32",) if op in _OF_WEIGHTS else tuple(_KINDS)
    if dtype not in (*allowed, *(("float64",) if interpreted else ())):
        return f"the kernels of {op} take {', '.join(allowed)}, not {dtype}"
    if any(0 in shape for shape in shapes):
        return "there is nothing to compute"
    size = size_of(op, shapes)
    lacking = next((kernel for kernel in OPERATIONS[op] if not lines(kernel, dtype, size)), None)
    if lacking or (op == "cayley" and size < 2):
        return f"{lacking or 'cayley_forward'} has no configuration for size {size} in {dtype}"
    return None


def pick(kernel: str, dtype: str, size: int, wanted: str | None = None) -> Config:
    """The configuration named, or the first of the table."""
    found = lines(kernel, dtype, size)
    return next((c for c in found if c.name == wanted), found[0])
