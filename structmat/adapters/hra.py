"""HRA: Householder reflection adaptation, ``W_new = W H_1 ... H_r``."""

import dataclasses
import math
from typing import ClassVar

import torch

from structmat.adapters.method import Compose, State, Target, check_rank, register, uniform
from structmat.adapters.pace import check_step, reflection_bound
from structmat.types.householder import HouseholderProduct

__all__ = ["HRA"]


@register
@dataclasses.dataclass(frozen=True)
class HRA:
    """``W_new = W Q``, ``Q = H_1 ... H_r``, ``H_i = I - 2 u_i u_i^T / ||u_i||^2``: rotates the input of a layer.

    Even rank starts with equal pairs ``u_{2k-1} = u_{2k}``, so ``Q`` is the identity; training separates a pair, its
    two gradients being opposite. A product of an odd number of reflections has determinant -1, and orthonormal
    vectors give ``||Q - I||_F = 2 sqrt(r)`` always: neither reaches the identity. They start there through a frozen
    reference that is saved with the adapter, ``W Q(U) Q(U_0)^T`` with ``U_0`` the starting vectors (for odd rank one
    vector: the pairs cancel).

    Stores:   vectors ``(r, n)``, n the columns of the weight; reference ``(1, n)`` for odd rank, ``(r, n)`` if
        orthonormal.
    Cost:     4 r n flops per row, next to the layer's own 2 m n; nothing of size n^2 is formed.
    Args:
        rank: r, the number of reflections, at least 1.
        orthonormal: orthonormalise the vectors by QR in every forward; then ``Q(U) = I - 2 U^T U``, the paper's
            lambda = infinity. Needs ``r <= n``.
        regulariser: lambda of the regulariser ``lambda ||I - U U^T||_F^2`` over normalised vectors, which
            ``adapters.penalty`` sums; 0 leaves it out. (The paper tries 1e-7 to 1e-3.)
        step: "even": the start has the length at which a step of Adam moves the layer as far as it moves LoRA's of rank
            8; "paper": entries in ``+- sqrt(2 / r)``, as in the authors' program.
    Raises:   ValueError for an illegal parameter, or ``orthonormal`` with r above the columns of a layer.
    References: S. Yuan, H. Liu, H. Xu, "Bridging the gap between low-rank and orthogonal adaptation via Householder
        reflection adaptation", NeurIPS 2024, equations 1 (product), 3 and 4 (compact form), 6 (regulariser).
    """

    name: ClassVar[str] = "HRA"
    rank: int
    regulariser: float = 0.0
    orthonormal: bool = False
    step: str = "even"

    def __post_init__(self) -> None:
        check_rank("HRA", self.rank)
        check_step("HRA", self.step)
        if not isinstance(self.orthonormal, bool):
            raise ValueError(f"HRA: orthonormal must be True or False, got {self.orthonormal!r}")
        if isinstance(self.regulariser, bool) or not isinstance(self.regulariser, (int, float)):
            raise ValueError(f"HRA: regulariser must be a number, got {self.regulariser!r}")
        if not math.isfinite(self.regulariser) or self.regulariser < 0:
            raise ValueError(f"HRA: regulariser must be finite and not negative, got {self.regulariser!r}")
        if self.orthonormal and self.regulariser:
            raise ValueError("HRA: orthonormal vectors have no regulariser; leave it at 0")

    def init(self, target: Target, generator: torch.Generator | None) -> State:
        """Uniform vectors: Adam turns a vector by about ``rate / bound`` a step, so the bound sets the pace."""
        r, n = self.rank, target.columns
        if self.orthonormal and r > n:
            raise ValueError(f"HRA(rank={r}, orthonormal=True) on {target.name!r}: only {n} orthonormal vectors exist")
        bound = reflection_bound(r, n, self.step)
        if self.orthonormal:
            vectors = uniform((r, n), bound, target, generator)
            return State({"vectors": vectors}, {"reference": _orthonormal(vectors)})
        vectors = uniform(((r + 1) // 2, n), bound, target, generator).repeat_interleave(2, dim=0)[:r]
        frozen = {"reference": vectors[-1:].clone()} if r % 2 else {}
        return State({"vectors": vectors.clone()}, frozen)

    def rotation(self, state: State) -> HouseholderProduct:
        """The rotation ``Q(U) Q(U_0)^T`` that multiplies the weight from the right; orthogonal by construction."""
        vectors = state.trained["vectors"]
        if self.orthonormal:
            vectors = _orthonormal(vectors)
        reference = state.frozen.get("reference")
        if reference is not None:  # (H_1 ... H_r)^T is the product in reversed order
            vectors = torch.cat([vectors, reference.flip(-2)], dim=-2)
        return HouseholderProduct(vectors)

    def update(
        self, state: State, target: Target, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Compose:
        """``Compose(right=Q)``."""
        return Compose(right=self.rotation(state))

    def penalty(self, state: State) -> torch.Tensor:
        """``lambda ||I - U U^T||_F^2`` over normalised vectors (equation 6); 0 for regulariser 0."""
        if not self.regulariser:
            return state.trained["vectors"].new_zeros(())
        unit = torch.nn.functional.normalize(state.trained["vectors"], dim=-1)
        eye = torch.eye(self.rank, dtype=unit.dtype, device=unit.device)
        return self.regulariser * (eye - unit @ unit.mT).square().sum()


def _orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows that span those of ``vectors``. ``I - 2 U^T U`` depends on the span alone, so any basis
    serves.
    """
    basis: torch.Tensor = torch.linalg.qr(vectors.mT)[0]
    return basis.mT
