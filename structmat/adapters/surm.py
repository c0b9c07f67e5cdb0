"""SURM in the LoRA slot: a structured matrix of unrestricted rank added to a weight."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch

from structmat.adapters.lora import check_scale
from structmat.adapters.method import Add, State, Target, normal, register, zeros
from structmat.lazy import Product
from structmat.matrix import Matrix
from structmat.types.circulant import Circulant
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = ["SURM"]

_FORMS = ("direct", "product")


@register
@dataclasses.dataclass(frozen=True)
class SURM:
    """``W_new = W + s D`` with D circulant, Toeplitz or symmetric Toeplitz, ``s = scale / sqrt(n)``.

    Structures, D of shape ``(m, n)``, N = max(m, n):
        "circulant": ``D[i, j] = c[(i - j) mod N]``, N numbers. For m != n, the leading rows and columns of the square
            circulant of size N, so every number is used.
        "toeplitz": ``D[i, j] = t[i - j + n - 1]``, m + n - 1 numbers.
        "symmetric_toeplitz": ``D[i, j] = c[abs(i - j)]``, N numbers.

    Forms:
        "direct" (default): the numbers themselves are trained, from zero. The start is exactly the base output and
            the gradient is not zero.
        "product": the published parametrisations, two factors b = 0 and a random. Circulant: ``c = b * a`` entrywise,
            a of deviation 1. Toeplitz and symmetric Toeplitz: ``D = T(b) T(a)``, T(a) square of size n, a of
            deviation ``1 / sqrt(n)``, so that T(a) keeps the size of a vector. Only one factor is zero, so the
            gradient is not.

    Scaling rule: one number of D stands in every row once and meets n inputs, so a step of Adam at rate e moves each
    output by about ``s e sqrt(n)`` inputs, where a LoRA of rank r moves it by about ``r e / sqrt(3)``. With ``s =
    scale / sqrt(n)`` the two agree at ``scale = r / sqrt(3)`` for every n, so one learning rate serves all structures
    and sizes.

    Cost:     O((m + n) log(m + n)) flops per row by FFT.
    Args:
        structure: "circulant", "toeplitz" or "symmetric_toeplitz".
        scale: as above; the default is that of LoRA's rank 8.
        form: "direct" or "product".
    Raises:   ValueError for an illegal parameter.
    References: A. Sehanobish et al., "Structured unrestricted-rank matrices for parameter efficient fine-tuning",
        NeurIPS 2024, section 4; the product forms are those of the authors' code.
    """

    name: ClassVar[str] = "SURM"
    structure: str
    scale: float = 4.6
    form: str = "direct"

    def __post_init__(self) -> None:
        if self.structure not in _STRUCTURES:
            legal = ", ".join(map(repr, _STRUCTURES))
            raise ValueError(f"SURM: structure must be one of {legal}, got {self.structure!r}")
        if self.form not in _FORMS:
            raise ValueError(f"SURM: form must be 'direct' or 'product', got {self.form!r}")
        check_scale("SURM", "scale", self.scale)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros; the product form draws its second factor."""
        m, n = target.out_features, target.columns
        size = _STRUCTURES[self.structure][0]
        if self.form == "direct":
            return State({"entries": zeros((size(m, n),), target)}, {})
        if self.structure == "circulant":
            second = normal((size(m, n),), 1.0, target, generator)
        else:
            second = normal((size(n, n),), 1 / math.sqrt(n), target, generator)
        return State({"entries": zeros((size(m, n),), target), "second": second}, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(s D)``; s multiplies the entries of D, which are far fewer than the numbers of an output."""
        m, n = target.out_features, target.columns
        build = _STRUCTURES[self.structure][1]
        first = state.trained["entries"] * (self.scale / math.sqrt(n))
        second = state.trained.get("second")
        if second is None:
            matrix = build(first, m, n)
        elif self.structure == "circulant":
            matrix = build(first * second, m, n)
        else:
            matrix = Product((build(first, m, n), build(second, n, n)))
        return Add(matrix)


def _circulant(column: torch.Tensor, m: int, n: int) -> Matrix:
    if m == n:
        return Circulant(column)
    place = torch.arange(m + n - 1, device=column.device) - (n - 1)  # i - j along the diagonals
    return Toeplitz(column[..., place % max(m, n)], n)


def _toeplitz(diagonals: torch.Tensor, m: int, n: int) -> Matrix:
    return Toeplitz(diagonals, n)


def _symmetric(column: torch.Tensor, m: int, n: int) -> Matrix:
    if m == n:
        return SymmetricToeplitz(column)
    place = torch.arange(m + n - 1, device=column.device) - (n - 1)
    return Toeplitz(column[..., place.abs()], n)


_STRUCTURES: dict[str, tuple[Callable[[int, int], int], Callable[[torch.Tensor, int, int], Matrix]]] = {
    "circulant": (max, _circulant),
    "toeplitz": (lambda m, n: m + n - 1, _toeplitz),
    "symmetric_toeplitz": (max, _symmetric),
}
