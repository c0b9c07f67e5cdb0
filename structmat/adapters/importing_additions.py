"""Additions that other libraries' files hold: block-circulant (C3A), entrywise products (LoHa), Kronecker (LoKr)."""

import dataclasses
import math
from typing import ClassVar

import torch

from structmat.adapters.lora import check_scale
from structmat.adapters.method import Add, State, Target, check_rank, register, uniform, zeros
from structmat.matrix import Matrix
from structmat.types.dense import Dense
from structmat.types.kronecker import Kronecker
from structmat.types.low_rank import LowRank

__all__ = ["C3A", "CirculantBlocks", "LoHa", "LoKr"]


class CirculantBlocks(Matrix):
    """A grid of circulant blocks: entry (p, q) of block (i, j) is ``kernel[i, j, (q - p) mod b]``.

    Stores:   kernel ``(*batch, M, N, b)``, real.
    Shape:    ``(*batch, M b, N b)``.
    Cost:     linear one FFT of length b for each of M + N blocks and M N b multiplications a row.
    """

    kernel: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        *batch, m, n, b = self.kernel.shape
        return torch.Size((*batch, m * b, n * b))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        *_, n, b = self.kernel.shape
        spectrum = torch.fft.rfft(x.unflatten(-1, (n, b)))
        kernel = torch.fft.rfft(self.kernel).conj().resolve_conj()
        if self.kernel.ndim > 3:  # (*batch, k, N b): one row axis between the batch and the columns
            kernel = kernel.unsqueeze(-4)
        product = torch.einsum("...jf,...ijf->...if", spectrum, kernel)
        return torch.fft.irfft(product, n=b).flatten(-2)

    def transpose(self) -> "CirculantBlocks":
        return CirculantBlocks(self.kernel.transpose(-3, -2).flip(-1).roll(1, -1))


@register
@dataclasses.dataclass(frozen=True)
class C3A:
    """``W_new = W + M / n``, M a grid of circulant blocks of size b, n the columns of the weight (as in PEFT's C3A).

    Stores:   kernel ``(m / b, n / b, b)``, from zero; block (i, j) has entries ``kernel[i, j, (q - p) mod b]``.
    Args:
        block: b, which divides both sizes of a layer.
    """

    name: ClassVar[str] = "C3A"
    block: int

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"C3A: block must be an integer of at least 1, got {self.block!r}")

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros; the gradient is not."""
        m, n, b = target.out_features, target.columns, self.block
        if m % b or n % b:
            raise ValueError(f"C3A(block={b}) on {target.name!r} of shape ({m}, {n}): the block must divide both sizes")
        return State({"kernel": zeros((m // b, n // b, b), target)}, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(M, 1 / n)``."""
        return Add(CirculantBlocks(state.trained["kernel"]), 1 / target.columns)


@register
@dataclasses.dataclass(frozen=True)
class LoHa:
    """``W_new = W + (alpha / r) (A_1 B_1^T) * (A_2 B_2^T)``, the product entry by entry: rank up to r^2.

    Stores:   left1, left2 ``(m, r)``, right1, right2 ``(n, r)``. With ``tucker`` (convolutions) core1, core2 ``(r, r,
        *kernel)`` and factors of the channels, right1 and right2 then ``(in / groups, r)``.
    Cost:     as a low-rank matrix of rank r^2 where that is below both sizes; else the addition is formed, m n numbers.
    References: N. Hyeon-Woo et al., "FedPara: low-rank Hadamard product for communication-efficient federated
        learning", ICLR 2022.
    """

    name: ClassVar[str] = "LoHa"
    rank: int
    alpha: float | None = None
    tucker: bool = False

    def __post_init__(self) -> None:
        check_rank("LoHa", self.rank)
        check_scale("LoHa", "alpha", self.alpha, optional=True)
        if not isinstance(self.tucker, bool):
            raise ValueError(f"LoHa: tucker must be True or False, got {self.tucker!r}")

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """One factor zero, the others random."""
        m, r = target.out_features, self.rank
        n = target.in_features if self.tucker else target.columns
        trained = {"left1": uniform((m, r), 1 / math.sqrt(r), target, generator), "left2": zeros((m, r), target)}
        for key in ("right1", "right2"):
            trained[key] = uniform((n, r), 1 / math.sqrt(n), target, generator)
        if self.tucker:
            for key in ("core1", "core2"):
                trained[key] = uniform((r, r, *target.kernel), 1 / math.sqrt(r), target, generator)
        return State(trained, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(..., alpha / r)``."""
        t = state.trained
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        if self.tucker:
            halves = [_tucker(t[f"core{k}"], t[f"left{k}"], t[f"right{k}"], len(target.kernel)) for k in (1, 2)]
            return Add(Dense(halves[0] * halves[1]), scale)
        first, second = (LowRank(t[f"left{k}"], t[f"right{k}"]) for k in (1, 2))
        if self.rank**2 < min(target.out_features, target.columns):
            return Add(first * second, scale)
        return Add(Dense(first.to_dense() * second.to_dense()), scale)


@register
@dataclasses.dataclass(frozen=True)
class LoKr:
    """``W_new = W + scale A (x) B``, a Kronecker product; of a convolution B has the taps, in C order.

    Stores:   first ``(a, c)``, or its factors first_left ``(a, r)`` and first_right ``(c, r)``; second ``(m / a, n /
        c)``, or second_left ``(m / a, r)`` and second_right ``(n / c, r)``; for "tucker" also second_core ``(r, r,
        *kernel)``, and second_right is ``(in / groups / c, r)``.
    Args:
        shape: (a, c), the sizes of A, which divide those of the weight.
        rank: r of what is factored; None if nothing is.
        first: "full" or "low".
        second: "full", "low" or "tucker".
        scale: the scale.
    References: S. Yeh et al., "Navigating text-to-image customization: from LyCORIS fine-tuning to model evaluation",
        ICLR 2024.
    """

    name: ClassVar[str] = "LoKr"
    shape: tuple[int, int]
    rank: int | None = None
    first: str = "full"
    second: str = "full"
    scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, tuple) else ()
        if len(sizes) != 2 or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in sizes):
            raise ValueError(f"LoKr: shape must be the two sizes of the first factor, got {self.shape!r}")
        if self.first not in ("full", "low"):
            raise ValueError(f"LoKr: first must be 'full' or 'low', got {self.first!r}")
        if self.second not in ("full", "low", "tucker"):
            raise ValueError(f"LoKr: second must be 'full', 'low' or 'tucker', got {self.second!r}")
        if (self.first, self.second) == ("full", "full"):
            if self.rank is not None:
                raise ValueError(f"LoKr: two full factors have no rank, got {self.rank!r}")
        else:
            check_rank("LoKr", self.rank)
        check_scale("LoKr", "scale", self.scale)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """The first factor zero, the second random."""
        (a, c), m, n = self.shape, target.out_features, target.in_features
        if m % a or n % c:
            raise ValueError(f"LoKr(shape=({a}, {c})) on {target.name!r} with sizes ({m}, {n}): they must be divided")
        b, d, r = m // a, n // c, self.rank or 1
        taps = target.columns // n
        if self.first == "full":
            trained = {"first": zeros((a, c), target)}
        else:
            right = uniform((c, r), 1 / math.sqrt(c), target, generator)
            trained = {"first_left": zeros((a, r), target), "first_right": right}
        wide = d if self.second == "tucker" else d * taps
        bound = 1 / math.sqrt(d * taps)
        if self.second == "full":
            return State({**trained, "second": uniform((b, wide), bound, target, generator)}, {})
        trained["second_left"] = uniform((b, r), 1 / math.sqrt(r), target, generator)
        trained["second_right"] = uniform((wide, r), bound, target, generator)
        if self.second == "tucker":
            trained["second_core"] = uniform((r, r, *target.kernel), 1 / math.sqrt(r), target, generator)
        return State(trained, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Add:
        """``Add(Kronecker(A, B), scale)``."""
        t = state.trained
        first: Matrix = Dense(t["first"]) if self.first == "full" else LowRank(t["first_left"], t["first_right"])
        second: Matrix
        if self.second == "full":
            second = Dense(t["second"])
        elif self.second == "low":
            second = LowRank(t["second_left"], t["second_right"])
        else:
            second = Dense(_tucker(t["second_core"], t["second_left"], t["second_right"], len(target.kernel)))
        return Add(Kronecker((first, second)), self.scale)


def _tucker(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor, modes: int) -> torch.Tensor:
    """``core x_1 left x_2 right`` as a matrix with the rows of ``left``; kernel modes stay, in C order."""
    flat = core.flatten(core.ndim - modes) if modes else core.unsqueeze(-1)
    found = torch.einsum("...abk,...ma,...nb->...mnk", flat, left, right)
    return found.flatten(-2)
