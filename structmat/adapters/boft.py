"""OFT and BOFT: rotations of a layer's input, ``W_new = diag(s) W R^T``, from exact Cayley transforms."""

import dataclasses
import math
from typing import ClassVar

import torch

from structmat.adapters.method import Compose, State, Target, register, zeros
from structmat.adapters.pace import check_step, rotation_scale
from structmat.functional.orthogonal import cayley, skew
from structmat.matrix import Matrix
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.butterfly import Butterfly
from structmat.types.butterfly_family import why_illegal
from structmat.types.diagonal import Diagonal
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__ = ["BOFT", "OFT"]


@register
@dataclasses.dataclass(frozen=True)
class OFT:
    """``W_new = diag(s) W R^T`` with ``R = diag(R_1, ..., R_k)``, ``R_i = (I - K_i)(I + K_i)^-1`` a rotation of size b.

    Orthogonal finetuning: the angles between the rows of W, and its singular values, are kept (up to s). ``K_i = L_i -
    L_i^T`` is stored as its strictly lower triangle, ``b (b - 1) / 2`` numbers a block. Zeros are the identity.

    Stores:   skew ``(k, b (b - 1) / 2)`` (one row if shared), k b the columns of the weight; scales ``(m,)`` from one.
    Cost:     2 b n flops per row and k Cayley transforms of size b.
    Memory:   the gradient of s is the sum over the rows of ``dy * z``, z the layer's output before s, so z is kept
        beside the input. Less would cost another product with W (half the frozen layer's two passes), because no form
        of ``sum dy * (x R^T W^T)`` is cheaper, and y / s has no answer where s is 0; ``scale=False`` keeps the input
        alone.
    Args:
        block: b, the size of the blocks; or ``blocks``, their number. Exactly one is given, and divides the columns.
        shared: one rotation for all blocks.
        constraint: eps, or None. ``after_step`` projects each block to ``||K_i||_F <= eps / sqrt(k)``, so ``||R -
            I||_F <= 2 eps`` (COFT); forward never changes a parameter. k counts the stored blocks, one if shared, as in
            the authors' program: then the bound is ``2 eps sqrt(n / b)``.
        scale: train s; False leaves the lengths of the rows as they are.
        step: "even": ``K_i = s (L_i - L_i^T)`` with s such that a step of Adam moves the layer as far as it moves
            LoRA's of rank 8, whatever b; "paper": s = 1.
    Raises:   ValueError for an illegal parameter, or a block that does not divide the columns of a layer, with sizes
        that do.
    References: Z. Qiu et al., "Controlling text-to-image diffusion by orthogonal finetuning", NeurIPS 2023, section 3
        and equation 4 (constraint).
    """

    name: ClassVar[str] = "OFT"
    block: int | None = None
    blocks: int | None = None
    shared: bool = False
    constraint: float | None = None
    scale: bool = True
    step: str = "even"

    def __post_init__(self) -> None:
        if (self.block is None) == (self.blocks is None):
            raise ValueError(f"OFT: give either block= or blocks=, got block={self.block!r}, blocks={self.blocks!r}")
        for field in ("block", "blocks"):
            if getattr(self, field) is not None:
                _integer("OFT", field, getattr(self, field), 1)
        if self.constraint is not None:
            number = isinstance(self.constraint, (int, float)) and not isinstance(self.constraint, bool)
            if not number or not math.isfinite(self.constraint) or self.constraint <= 0:
                raise ValueError(f"OFT: constraint must be a positive number or None, got {self.constraint!r}")
        _flags("OFT", shared=self.shared, scale=self.scale)
        check_step("OFT", self.step)

    def sizes(self, columns: int, name: str = "the layer") -> tuple[int, int]:
        """(b, k) for a layer with so many columns."""
        one = self.block if self.block is not None else self.blocks
        assert one is not None
        if columns % one:
            field = "block" if self.block is not None else "blocks"
            legal = [k for k in range(1, columns + 1) if columns % k == 0]
            near = sorted(sorted(legal, key=lambda k: abs(math.log(k / one)))[:4])
            raise ValueError(
                f"OFT({field}={one}) on {name!r} with {columns} columns: {field} must divide them; near: "
                f"{', '.join(map(str, near))}"
            )
        return (one, columns // one) if self.block is not None else (columns // one, one)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros and ones: the identity, exactly."""
        b, k = self.sizes(target.columns, target.name)
        trained = {"skew": zeros((1 if self.shared else k, b * (b - 1) // 2), target)}
        return State(_with_scales(trained, self.scale, target), {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(diag(s), R^T)``."""
        b, k = self.sizes(target.columns, target.name)
        entries = state.trained["skew"] * rotation_scale(b, 1, self.step)
        if not self.shared:
            return _composed(OrthogonalButterfly(entries[..., None, :, :]), state)
        blocks = cayley(skew(entries, b))
        return _composed(BlockDiagonal(blocks.expand(*blocks.shape[:-3], k, b, b)), state)

    def project_(self, state: State) -> None:
        """Each block onto ``||K_i||_F <= eps / sqrt(k)``, k the number of stored blocks."""
        if self.constraint is None:
            return
        entries = state.trained["skew"]
        block = (1 + math.isqrt(1 + 8 * entries.shape[-1])) // 2
        limit = self.constraint / math.sqrt(entries.shape[-2]) / rotation_scale(block, 1, self.step)
        size = math.sqrt(2) * torch.linalg.vector_norm(entries, dim=-1, keepdim=True)  # ||K||_F of L - L^T
        entries.mul_(torch.where(size > limit, limit / size, torch.ones_like(size)))


@register
@dataclasses.dataclass(frozen=True)
class BOFT:
    """``W_new = diag(s) W R^T`` with ``R = F_m ... F_2 F_1`` an orthogonal butterfly of m factors, blocks of size b.

    Stores:   skew ``(m, n / b, b (b - 1) / 2)``, zeros at the start; scales ``(m_out,)`` from one. In mixed radix:
        skew0, skew1, ... one a factor.
    Cost:     2 m b n flops per row and m n / b Cayley transforms; R reaches blocks of size ``b 2^(m-1)``.
    Memory:   with s trained the layer's input and output are kept, as for OFT; ``scale=False`` keeps the input alone.
    Args:
        block: b. For ``factors > 1`` it is even and ``2^(factors - 1)`` divides n / b.
        factors: m.
        dropout: multiplicative dropout in training: each block of each factor is the identity with this probability; a
            pair ``(p1, p2)`` picks each factor with probability p1, and in those each block with p2.
        scale: train s.
        mixed: on layers where (block, factors) is not legal, use mixed radix: n as a product of digits of at most
            ``block`` (a larger prime stands alone), the ``factors`` least significant ones used. Without it such a
            layer raises.
        step: "even" or "paper", as for OFT.
    Raises:   ValueError for an illegal parameter; for a layer that (block, factors) do not fit, the legal values.
    References: W. Liu et al., "Parameter-efficient orthogonal finetuning via butterfly factorization", ICLR 2024,
        section 4 (butterfly), section 5.1 (multiplicative dropout).
    """

    name: ClassVar[str] = "BOFT"
    block: int
    factors: int
    dropout: float | tuple[float, float] = 0.0
    scale: bool = True
    mixed: bool = False
    step: str = "even"

    def __post_init__(self) -> None:
        _integer("BOFT", "block", self.block, 2)
        _integer("BOFT", "factors", self.factors, 1)
        if self.factors > 64:
            raise ValueError(f"BOFT: factors above 64 fit no layer, got {self.factors}")
        if isinstance(self.dropout, list):  # as JSON has a pair
            object.__setattr__(self, "dropout", tuple(self.dropout))
        chances = self.dropout if isinstance(self.dropout, tuple) else (self.dropout,)
        for p in chances:
            if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1 or len(chances) > 2:
                raise ValueError(
                    f"BOFT: dropout must be a probability, or a pair (p1, p2) of them, got {self.dropout!r}"
                )
        _flags("BOFT", scale=self.scale, mixed=self.mixed)
        check_step("BOFT", self.step)

    def digits(self, columns: int, name: str = "the layer") -> tuple[int, ...] | None:
        """None where the butterfly of the paper fits a layer with so many columns, else the digits of mixed radix."""
        wrong = why_illegal(columns, self.block, self.factors)
        if wrong is None:
            return None
        if not self.mixed:
            wrong = wrong.rsplit("; Butterfly.from_skew", 1)[0]
            raise ValueError(
                f"BOFT(block={self.block}, factors={self.factors}) on {name!r} with {columns} columns: {wrong}; "
                "mixed=True takes any size"
            )
        return mixed_digits(columns, self.block)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros and ones: the identity, exactly."""
        n, b = target.columns, self.block
        digits = self.digits(n, target.name)
        if digits is None:
            trained = {"skew": zeros((self.factors, n // b, b * (b - 1) // 2), target)}
        else:
            used = digits[-self.factors :][::-1]
            trained = {f"skew{k}": zeros((n // p, p * (p - 1) // 2), target) for k, p in enumerate(used)}
        return State(_with_scales(trained, self.scale, target), {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(diag(s), R^T)``; in training with dropout, some blocks of R are the identity."""
        if "skew" in state.trained:
            entries = state.trained["skew"] * rotation_scale(self.block, self.factors, self.step)
            if training and self.dropout:
                entries = entries * self._kept(entries.shape[:-1], entries, generator)
            return _composed(OrthogonalButterfly(entries), state)
        digits = self.digits(target.columns, target.name)
        assert digits is not None
        used = min(self.factors, len(digits))
        sizes = digits[-used:][::-1]
        pieces = tuple(state.trained[f"skew{k}"] * rotation_scale(p, used, self.step) for k, p in enumerate(sizes))
        if training and self.dropout:
            pieces = tuple(
                t * self._kept((*t.shape[:-2], 1, t.shape[-2]), t, generator).reshape(*t.shape[:-1], 1) for t in pieces
            )
        axes = tuple((len(digits) - 1 - k,) for k in range(used))
        return _composed(Butterfly.from_skew(pieces, digits, axes), state)

    def _kept(self, shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Ones, and zeros for blocks that are dropped; shape ``(*batch, factors, blocks, 1)``."""
        first, second = self.dropout if isinstance(self.dropout, tuple) else (1.0, self.dropout)
        draw = torch.rand(*shape, device=like.device, generator=generator)
        dropped = draw < second
        if first < 1:
            dropped = dropped & (torch.rand(*shape[:-1], 1, device=like.device, generator=generator) < first)
        return (~dropped).to(like.dtype)[..., None]


def mixed_digits(columns: int, block: int) -> tuple[int, ...]:
    """``columns`` as a product of digits: its primes in descending order, gathered while a product stays at most
    ``block``.
    """
    primes: list[int] = []
    rest, p = columns, 2
    while rest > 1:
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p = p + 1 if p * p <= rest else max(rest, p + 1)
    digits: list[int] = []
    for prime in sorted(primes, reverse=True):
        fits = [k for k, digit in enumerate(digits) if digit * prime <= block]
        if fits:
            digits[fits[0]] *= prime
        else:
            digits.append(prime)
    return tuple(sorted(digits, reverse=True)) or (1,)


def _composed(rotation: Matrix, state: State) -> Compose:
    scales = state.trained.get("scales")
    return Compose(None if scales is None else Diagonal(scales), rotation.transpose())


def _with_scales(trained: dict[str, torch.Tensor], scale: bool, target: Target) -> dict[str, torch.Tensor]:
    return {**trained, "scales": zeros((target.out_features,), target) + 1} if scale else trained


def _integer(owner: str, field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}: {field} must be an integer of at least {least}, got {value!r}")


def _flags(owner: str, **flags: object) -> None:
    for field, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}: {field} must be True or False, got {value!r}")
