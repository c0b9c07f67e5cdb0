"""Rotations that other libraries' files hold and whose definitions ours do not cover; made by the importers."""

import dataclasses
from typing import ClassVar

import torch

from structmat.adapters.method import Compose, State, Target, check_rank, register, uniform, zeros
from structmat.functional.orthogonal import skew
from structmat.lazy import Product
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.butterfly_family import why_illegal
from structmat.types.diagonal import Diagonal
from structmat.types.householder import HouseholderProduct
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__ = ["NeumannOFT", "OutputBOFT", "Reflections"]


@register
@dataclasses.dataclass(frozen=True)
class Reflections:
    """``W_new = W H_1 ... H_r`` without a reference: PEFT's HRA of odd rank, or with orthonormal vectors.

    At odd rank and for orthonormal vectors no start is the identity; to train from the base, use ``HRA``.

    Stores:   vectors ``(r, n)``.
    Args:
        rank: r.
        orthonormal: the vectors are orthonormalised (their span alone matters), and ``Q = I - 2 U^T U``.
    """

    name: ClassVar[str] = "Reflections"
    rank: int
    orthonormal: bool = False

    def __post_init__(self) -> None:
        check_rank("Reflections", self.rank)
        _flags("Reflections", orthonormal=self.orthonormal)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Equal pairs of random vectors, which cancel; the last one of odd rank does not."""
        r, n = self.rank, target.columns
        if self.orthonormal and r > n:
            raise ValueError(f"Reflections(rank={r}) on {target.name!r}: only {n} orthonormal vectors exist")
        vectors = uniform(((r + 1) // 2, n), 1.0, target, generator).repeat_interleave(2, dim=0)[:r]
        return State({"vectors": vectors.clone()}, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(right=Q)``."""
        vectors = state.trained["vectors"]
        if self.orthonormal:
            basis: torch.Tensor = torch.linalg.qr(vectors.mT)[0]
            vectors = basis.mT
        return Compose(right=HouseholderProduct(vectors))


@register
@dataclasses.dataclass(frozen=True)
class NeumannOFT:
    """``W_new = W R^T`` with blocks ``R_i = I + 2 Q_i + 2 Q_i^2 + ... + Q_i^t``, a cut Neumann series of the Cayley
    transform ``(I + Q)(I - Q)^-1``: what PEFT's OFT computes by default.

    R is not orthogonal, and is not said to be: the error grows as ``||Q||^t``. ``from_peft(orthogonalise=True)`` gives
    the rotation it stands for.

    Stores:   skew ``(k, b (b - 1) / 2)``, the strictly lower triangle of ``Q = L - L^T``; zeros are the identity.
    Args:
        block: b, which divides the columns.
        terms: PEFT's ``num_cayley_neumann_terms``; 3 and 4 give the same polynomial there, and so here.
        shared: one block for all.
    """

    name: ClassVar[str] = "NeumannOFT"
    block: int
    terms: int = 5
    shared: bool = False

    def __post_init__(self) -> None:
        _integer("NeumannOFT", "block", self.block)
        if isinstance(self.terms, bool) or not isinstance(self.terms, int) or not 1 <= self.terms <= 64:
            raise ValueError(f"NeumannOFT: terms must be an integer from 1 to 64, got {self.terms!r}")
        _flags("NeumannOFT", shared=self.shared)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros: the identity, exactly."""
        b, n = self.block, target.columns
        if n % b:
            raise ValueError(f"NeumannOFT(block={b}) on {target.name!r}: the block must divide its {n} columns")
        return State({"skew": zeros((1 if self.shared else n // b, b * (b - 1) // 2), target)}, {})

    def blocks(self, entries: torch.Tensor) -> torch.Tensor:
        """The blocks R_i ``(*batch, k, b, b)``."""
        q = skew(entries, self.block)
        r = torch.eye(self.block, dtype=q.dtype, device=q.device).expand(q.shape).clone()
        if self.terms > 1:
            r = r + 2 * q
        if self.terms > 2:
            power = q @ q
            r = r + 2 * power
            for _ in range(3, self.terms - 1):
                power = power @ q
                r = r + 2 * power
            r = r + power @ q
        return r

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(right=R^T)``."""
        blocks = self.blocks(state.trained["skew"])
        if self.shared:
            blocks = blocks.expand(*blocks.shape[:-3], target.columns // self.block, *blocks.shape[-2:])
        return Compose(right=BlockDiagonal(blocks.mT))


@register
@dataclasses.dataclass(frozen=True)
class OutputBOFT:
    """``W_new = diag(s) F_m ... F_1 W``: an orthogonal butterfly on the outputs of a layer, as LyCORIS's boft and, with
    one factor, its diag-oft. (The paper's acts on the inputs: ``BOFT``.)

    Stores:   skew ``(m, out / b, b (b - 1) / 2)``, zeros are the identity; scales ``(out,)`` from one.
    Args:
        block: b. For ``factors > 1`` it is even and ``2^(factors - 1)`` divides out / b.
        factors: m.
        scale: train s.
    """

    name: ClassVar[str] = "OutputBOFT"
    block: int
    factors: int = 1
    scale: bool = False

    def __post_init__(self) -> None:
        _integer("OutputBOFT", "block", self.block)
        _integer("OutputBOFT", "factors", self.factors)
        if self.factors > 64:
            raise ValueError(f"OutputBOFT: factors above 64 fit no layer, got {self.factors}")
        _flags("OutputBOFT", scale=self.scale)

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Zeros and ones: the identity, exactly."""
        m, b = target.out_features, self.block
        wrong = why_illegal(m, b, self.factors)
        if wrong is not None:
            raise ValueError(f"OutputBOFT on {target.name!r} with {m} outputs: {wrong.rsplit('; Butterfly', 1)[0]}")
        trained = {"skew": zeros((self.factors, m // b, b * (b - 1) // 2), target)}
        if self.scale:
            trained["scales"] = zeros((m,), target) + 1
        return State(trained, {})

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(left=diag(s) R)``."""
        rotation = OrthogonalButterfly(state.trained["skew"])
        scales = state.trained.get("scales")
        return Compose(left=rotation if scales is None else Product((Diagonal(scales), rotation)))


def _integer(owner: str, field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {field} must be an integer of at least 1, got {value!r}")


def _flags(owner: str, **flags: object) -> None:
    for field, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}: {field} must be True or False, got {value!r}")
