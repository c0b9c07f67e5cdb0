"""SURM in the LoRA slot: a structured matrix of unrestricted rank added to a weight."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch

from structmat.adapters.leading import LeadingCirculant
from structmat.adapters.lora import check_scale
from structmat.adapters.method import Add, State, Target, check_rank, normal, register, uniform, zeros
from structmat.lazy import Product
from structmat.matrix import Matrix
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.displacement import LowDisplacementRank
from structmat.types.kronecker import Kronecker
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = ["SURM"]

_FORMS = ("direct", "product")


@register
@dataclasses.dataclass(frozen=True)
class SURM:
    """``W_new = W + s D`` with D circulant, Toeplitz or of another structure, ``s = scale / sqrt(n)``.

    Structures, D of shape ``(m, n)``, N = max(m, n):
        "circulant": ``D[i, j] = c[(i - j) mod N]``, N numbers. For m != n, the leading rows and columns of the square
            circulant of size N, so every number is used.
        "toeplitz": ``D[i, j] = t[i - j + n - 1]``, m + n - 1 numbers.
        "skew": as "circulant", with the entries above the diagonal negated (skew-circulant), N numbers.
        "symmetric_toeplitz": ``D[i, j] = c[abs(i - j)]``, N numbers.
        "kronecker": ``D = B (x) A`` (Kronecker product), B of shape ``(m / r, r)`` from zero, A ``(r, n / r)`` uniform
            in ``+- sqrt(r / n)``; m + n numbers for every r, which divides m and n.
        "ldr": ``D = sum_k Z_1(g_k) Z_-1(h_k)``, r circulants times skew-circulants of size N, g from zero, h of
            deviation ``1 / sqrt(N)``; 2 r N numbers. For m != n the leading rows and columns.

    Forms:
        "direct" (default): the numbers themselves are trained, from zero. The start is exactly the base output and
            the gradient is not zero.
        "product": the published parametrisations, two factors b = 0 and a random. Circulant: ``c = b * a`` entrywise,
            a of deviation 1. Toeplitz and symmetric Toeplitz: ``D = T(b) T(a)``, T(a) square of size n, a of
            deviation ``1 / sqrt(n)``, so that T(a) keeps the size of a vector. Only one factor is zero, so the
            gradient is not.

    Kronecker and LDR matrices are products as they stand and have no "product" form.

    Scaling rule: one number of D stands in every row once and meets n inputs, so a step of Adam at rate e moves each
    output by about ``s e sqrt(n)`` inputs, where a LoRA of rank r moves it by about ``r e / sqrt(3)`` at first and, its
    other factor trained too, soon by twice that. With ``s = scale / sqrt(n)`` they agree at ``scale = 2 r / sqrt(3)``
    for every n, so one learning rate serves all structures and sizes. Products of trained factors speed up as LoRA does
    and take half: product forms ``s = scale / (2 sqrt(n))``; a Kronecker step adds up r products with random signs,
    ``s = scale sqrt(3 / r) / 2``; the r terms of an LDR add up, ``s = scale / (2 r sqrt(n))``.

    Cost:     O((m + n) log(m + n)) flops per row by FFT. A circulant, skew or Toeplitz D that is no product, on a
        plain CPU weight of the adapter's dtype with rows so many that it costs less (``adapters.explain``): the m n
        sums W + s D are formed in each pass and not kept, and only the gradient takes transforms, two a row.
    Args:
        structure: "circulant", "skew", "toeplitz", "symmetric_toeplitz", "kronecker" or "ldr".
        scale: as above; the default is that of LoRA's rank 8.
        form: "direct" or "product".
        rank: r of "kronecker" (None: the common divisor of m and n nearest to 16) and of "ldr" (None: 1).
    Raises:   ValueError for an illegal parameter.
    References: A. Sehanobish et al., "Structured unrestricted-rank matrices for parameter efficient fine-tuning",
        NeurIPS 2024, section 4; the product forms are those of the authors' code.
    """

    name: ClassVar[str] = "SURM"
    structure: str
    scale: float = 9.2
    form: str = "direct"
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.structure not in (*_STRUCTURES, *_RANKED):
            legal = ", ".join(map(repr, (*_STRUCTURES, *_RANKED)))
            raise ValueError(f"SURM: structure must be one of {legal}, got {self.structure!r}")
        if self.form not in _FORMS:
            raise ValueError(f"SURM: form must be 'direct' or 'product', got {self.form!r}")
        if self.form == "product" and self.structure not in _PRODUCTS:
            raise ValueError(f"SURM: {self.structure!r} has no product form; legal: {', '.join(map(repr, _PRODUCTS))}")
        if self.rank is not None:
            if self.structure not in _RANKED:
                raise ValueError(f"SURM: rank belongs to 'kronecker' and 'ldr', not to {self.structure!r}")
            check_rank("SURM", self.rank)
        check_scale("SURM", "scale", self.scale)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros; a product also draws its second factor."""
        m, n = target.out_features, target.columns
        if self.structure == "kronecker":
            r = self.split(target)
            return State(
                {
                    "entries": zeros((m // r, r), target),
                    "second": uniform((r, n // r), math.sqrt(r / n), target, generator),
                },
                {},
            )
        if self.structure == "ldr":
            shape = (self.rank or 1, max(m, n))
            return State(
                {
                    "entries": zeros(shape, target),
                    "second": normal(shape, 1 / math.sqrt(max(m, n)), target, generator),
                },
                {},
            )
        size = _STRUCTURES[self.structure][0]
        if self.form == "direct":
            return State({"entries": zeros((size(m, n),), target)}, {})
        if self.structure == "circulant":
            second = normal((size(m, n),), 1.0, target, generator)
        else:
            second = normal((size(n, n),), 1 / math.sqrt(n), target, generator)
        return State({"entries": zeros((size(m, n),), target), "second": second}, {})

    def split(self, target: Target) -> int:
        """r of a Kronecker product for a layer."""
        common = math.gcd(target.out_features, target.columns)
        legal = [k for k in range(1, common + 1) if common % k == 0]
        if self.rank is None:
            return min(legal, key=lambda k: abs(math.log(k / 16)))
        if self.rank not in legal:
            raise ValueError(
                f"SURM('kronecker', rank={self.rank}) on {target.name!r} of shape ({target.out_features}, "
                f"{target.columns}): rank must divide both; legal: {', '.join(map(str, legal))}"
            )
        return self.rank

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(s D)``; s multiplies the entries of D, which are far fewer than the numbers of an output."""
        m, n = target.out_features, target.columns
        entries, second = state.trained["entries"], state.trained.get("second")
        if self.structure in _RANKED:
            assert second is not None
            if self.structure == "kronecker":
                scale = 0.5 * self.scale * math.sqrt(3 / second.shape[-2])
                return Add(Kronecker((Dense(entries * scale), Dense(second))))
            return Add(_ldr(entries * (0.5 * self.scale / (math.sqrt(n) * entries.shape[-2])), second, m, n))
        build = _STRUCTURES[self.structure][1]
        first = entries * ((self.scale if second is None else 0.5 * self.scale) / math.sqrt(n))
        if second is None:
            matrix = build(first, m, n)
        elif self.structure == "circulant":
            matrix = build(first * second, m, n)
        else:
            matrix = Product((build(first, m, n), build(second, n, n)))
        return Add(matrix)


def _circulant(column: torch.Tensor, m: int, n: int) -> Matrix:
    return Circulant(column) if m == n else LeadingCirculant(column, m, n)


def _skew(column: torch.Tensor, m: int, n: int) -> Matrix:
    if m == n:
        return Circulant(column, f=-1)
    place = torch.arange(m + n - 1, device=column.device) - (n - 1)  # i - j along the diagonals
    return Toeplitz(column[..., place % max(m, n)] * torch.where(place < 0, -1.0, 1.0).to(column.dtype), n)


def _toeplitz(diagonals: torch.Tensor, m: int, n: int) -> Matrix:
    return Toeplitz(diagonals, n)


def _symmetric(column: torch.Tensor, m: int, n: int) -> Matrix:
    if m == n:
        return SymmetricToeplitz(column)
    place = torch.arange(m + n - 1, device=column.device) - (n - 1)
    return Toeplitz(column[..., place.abs()], n)


def _ldr(first: torch.Tensor, second: torch.Tensor, m: int, n: int) -> Matrix:
    """``sum_k Z_1(g_k) Z_-1(h_k)``, as an LDR matrix with generators ``2 g`` and ``J h`` in columns."""
    square = LowDisplacementRank(2 * first.mT, second.flip(-1).mT)
    return square if m == n else square[..., :m, :n]


_STRUCTURES: dict[str, tuple[Callable[[int, int], int], Callable[[torch.Tensor, int, int], Matrix]]] = {
    "circulant": (max, _circulant),
    "skew": (max, _skew),
    "toeplitz": (lambda m, n: m + n - 1, _toeplitz),
    "symmetric_toeplitz": (max, _symmetric),
}
_RANKED = ("kronecker", "ldr")
_PRODUCTS = ("circulant", "toeplitz", "symmetric_toeplitz")
