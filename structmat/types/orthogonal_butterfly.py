"""Butterflies of rotations: orthogonal by construction (block orthogonal butterfly factorisation, BOFT)."""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._shell import require_floating
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError
from structmat.functional import butterfly as fb
from structmat.functional import butterfly_apply as fa
from structmat.functional import orthogonal as fo
from structmat.functional.launched_compose import composed
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.butterfly_family import legal_blocks, most_factors, plan_of, why_illegal

__all__ = ["OrthogonalButterfly"]

_KEPT_ROWS = 256  # what prepare keeps is merged as for this many rows
_AUTO = 8  # block="auto" takes the legal block nearest to it


class OrthogonalButterfly(Matrix):
    """``A = F_m ... F_2 F_1``, F_i block diagonal with rotations ``R = (I - K)(I + K)^-1`` of size b after a
    permutation: F_1 as it stands, F_i on the pairs of groups of b / 2 entries a and ``a XOR 2^(i-1)``.

    Stores:   skew (*batch, m, d / b, b (b - 1) / 2), the strictly lower triangle L of each ``K = L - L^T`` (complex:
              ``L - L^H``) in ``torch.tril_indices(b, b, -1)`` order, the pairs in ascending order of their lower group
              a; reverse (static): the factors in the order ``F_1 F_2 ... F_m``.
    Shape:    (*batch, d, d).      Claims: orthogonal. For real entries the determinant is 1.
    Cost:     m d / b rotations of size b once, then linear as Butterfly: m factors merge into blocks of span
              b 2^(m-1); memory of the triangles, m d (b - 1) / 2 numbers.
    Closed:   transpose, inv -> OrthogonalButterfly; to_butterfly() -> Butterfly; b = 2: to_givens() -> GivensProduct.
    Raises:   ShapeError (a ValueError) naming the nearest legal values: b divides d, and for m > 1 it is even and
              2^(m-1) divides d / b. Other sizes: Butterfly.from_skew, in mixed radix.
    Example:
        >>> sm.OrthogonalButterfly.identity(8, block=4, factors=2) @ torch.arange(8.0)
        tensor([0., 1., 2., 3., 4., 5., 6., 7.])
    References: W. Liu et al., Parameter-efficient orthogonal finetuning via butterfly factorization, 2024, section 4;
    orthogonality error ``||A^H A - I||_F / sqrt(d) <= 8 eps (1 + sqrt(m))``.
    """

    core: ClassVar[Mapping[str, int]] = {"skew": 3}
    skew: torch.Tensor
    reverse: bool = False

    def _validate(self) -> None:
        entries = int(self.skew.shape[-1])
        b = _block_of(entries)
        if b * (b - 1) // 2 != entries:
            near = sorted({b * (b - 1) // 2, b * (b + 1) // 2, (b + 1) * (b + 2) // 2} - {0})
            raise ShapeError(
                f"OrthogonalButterfly: skew of shape {tuple(self.skew.shape)} has {entries} entries a block, which is "
                f"no b (b - 1) / 2; the nearest legal numbers are {', '.join(map(str, near))}"
            )
        m, count = (int(s) for s in self.skew.shape[-3:-1])
        _require_legal(count * b, b, m)

    @property
    def block(self) -> int:
        """b, the size of the rotations."""
        return _block_of(fb.plain(self.skew.shape[-1]))

    @property
    def layers(self) -> int:
        """m, the number of factors."""
        return fb.plain(self.skew.shape[-3])

    @property
    def shape(self) -> torch.Size:
        d = int(self.skew.shape[-2]) * self.block
        return torch.Size((*self.skew.shape[:-3], d, d))

    def _parts(self) -> tuple[fb.Digits, tuple[fb.Digits, ...]]:
        """Digits and axes as of a Butterfly."""
        return _layout(fb.plain(self.skew.shape[-2]), self.block, self.layers, self.reverse)

    def _program(self, rows: int) -> fa.Program:
        return fa.program(*self._parts(), (self.block,) * self.layers, rows)

    def _rotations(self) -> torch.Tensor:
        """The blocks ``(*batch, m, d / b, b, b)`` in the dtype computed in."""
        wide = self.skew.to(backend.compute_dtype(self.skew.dtype))
        return fo.cayley(fo.skew(wide, self.block))

    def _acting(self, rotations: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The blocks of each factor, the first to act first."""
        factors = rotations.unbind(-4)
        return factors[::-1] if self.reverse else factors

    def _blocks(self) -> tuple[torch.Tensor, ...]:
        return self._acting(self._rotations())

    def _merged(self, plan: fa.Program) -> tuple[torch.Tensor, ...]:
        """The blocks of each pass; where all factors become one pass, by one kernel if one serves."""
        rotations = self._rotations()
        if len(plan.parts) == 1 and self.layers > 1:
            found = composed(rotations, self.reverse)
            if found is not None:
                return (found,)
        return fa.merged_blocks(self._acting(rotations), plan)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.promote_types(x.dtype, self.skew.dtype)
        lead = math.prod(self.skew.shape[:-3])
        plan = self._program(fa.rows_of(x, lead))
        return fa.kept_rows(x, self._merged(plan), plan, None, out)

    def transpose(self) -> Matrix:
        """Each rotation transposed, ``K -> K^T``, in reverse order."""
        return OrthogonalButterfly(-self.skew.conj().resolve_conj(), not self.reverse)

    def inv(self) -> Matrix:
        """``A^H``: ``K -> -K``, in reverse order."""
        return OrthogonalButterfly(-self.skew, not self.reverse)

    def pinv(self) -> Matrix:
        return OrthogonalButterfly(-self.skew, not self.reverse)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        inverse = OrthogonalButterfly(-self.skew, not self.reverse)
        return inverse.linear(y), SolveInfo("closed form", 0, None, ("the inverse is the reversed product",))

    def _factor(self, method: str) -> Factorisation:
        return super()._factor(method) if method == "dense" else Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """1 for real entries, a phase for complex ones; and 0."""
        zero = torch.zeros(self.batch_shape, dtype=backend.real_of(self.skew.dtype), device=self.skew.device)
        if not self.skew.is_complex():
            return torch.ones_like(zero), zero
        signs = [torch.linalg.det(w).prod(-1) for w in self._blocks()]
        return self._cast(torch.sgn(functools.reduce(torch.mul, signs))), zero

    def svdvals(self) -> torch.Tensor:
        return torch.ones(
            *self.batch_shape, self.shape[-1], dtype=backend.real_of(self.skew.dtype), device=self.skew.device
        )

    def norm(self) -> torch.Tensor:
        return self._norm_bound() * float(self.shape[-1]) ** 0.5

    def _norm_bound(self) -> torch.Tensor:
        return torch.ones(self.batch_shape, dtype=backend.real_of(self.skew.dtype), device=self.skew.device)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHOGONAL}))

    def prepare(self) -> Matrix:
        """Keeps the rotations, merged for many rows: later products are one or two passes."""
        return Prepared(self, self._merged(self._program(_KEPT_ROWS)))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        out = torch.promote_types(x.dtype, self.skew.dtype)
        return fa.kept_rows(x, kept, self._program(_KEPT_ROWS), None, out)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb not in ("linear", "solve"):  # a solve is a product with the reversed factors
            return super().plan(verb, columns)
        return plan_of(self._program(columns), columns, self.skew.element_size())

    def _statics(self) -> list[str]:
        shown = [f"block={self.block}", f"factors={self.layers}"]
        return shown + (["reverse=True"] if self.reverse else [])

    def to_butterfly(self) -> Matrix:
        """The same matrix as a Butterfly of its rotations, which claims to be orthogonal."""
        found: Matrix = dispatch.call("butterfly", self)
        return found

    def to_givens(self) -> Matrix:
        """The same matrix as a GivensProduct for real blocks of size 2, exactly: ``R = G(-2 atan k)``, k the one entry.

        Raises StructureError for other blocks.
        """
        found: Matrix = dispatch.call("givens", self)
        return found

    # -- makers ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_blocks(cls, blocks: torch.Tensor) -> "OrthogonalButterfly":
        """From square parameters P ``(*batch, m, d / b, b, b)``, of which only ``K = (P - P^T) / 2`` matters (complex:
        ``P - P^H``)."""
        require_floating("OrthogonalButterfly.from_blocks", blocks=blocks)
        if blocks.ndim < 4 or blocks.shape[-1] != blocks.shape[-2]:
            raise ShapeError(
                "OrthogonalButterfly.from_blocks: blocks must have shape (*batch, m, d / b, b, b), "
                f"got {tuple(blocks.shape)}"
            )
        return cls(fo.skew_entries(blocks))

    @classmethod
    def identity(
        cls, d: int, block: int | str = "auto", factors: int | None = None, **options: Any
    ) -> "OrthogonalButterfly":
        """All K zero: the identity, from which every entry trains. ``block`` and ``factors`` as in ``random``."""
        b, m = cls.sizes(d, block, factors)
        return cls(torch.zeros(m, d // b, b * (b - 1) // 2, **options))

    @classmethod
    def random(
        cls, d: int, block: int | str = "auto", factors: int | None = None, *, generator: Any = None, **options: Any
    ) -> "OrthogonalButterfly":
        """Standard normal entries of K. ``factors=None``: as many as are legal, so that rows mix as far as they can;
        ``block="auto"``: the legal block nearest to 8 (the smaller of two)."""
        b, m = cls.sizes(d, block, factors)
        return cls(torch.randn(m, d // b, b * (b - 1) // 2, generator=generator, **options))

    @staticmethod
    def sizes(d: int, block: int | str = "auto", factors: int | None = None) -> tuple[int, int]:
        """(b, m) that "auto" and None stand for. Raises ValueError naming the nearest legal values."""
        if block != "auto" and not isinstance(block, int):
            raise ValueError(f'OrthogonalButterfly: block must be an int or "auto", got {block!r}')
        if factors is not None and not isinstance(factors, int):
            raise ValueError(f"OrthogonalButterfly: factors must be an int or None, got {factors!r}")
        if block == "auto":
            legal = legal_blocks(d, 1 if factors is None else factors)
            legal = [b for b in legal if b > 1] or legal  # a block of size 1 has no freedom
            b = min(legal, key=lambda size: abs(math.log(size / _AUTO)), default=_AUTO)
        else:
            b = int(block)
        if factors is None:
            _require_legal(d, b, 1)
            m = most_factors(d, b)
        else:
            m = factors
        _require_legal(d, b, m)
        return b, m


def _require_legal(d: int, block: int, factors: int) -> None:
    wrong = why_illegal(d, block, factors)
    if wrong is not None:
        raise ShapeError(f"OrthogonalButterfly: {wrong}")


def _block_of(entries: int) -> int:
    """b with b (b - 1) / 2 = entries, or the largest below it."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2


@fb.constant
def _layout(count: int, b: int, m: int, reverse: bool) -> tuple[fb.Digits, tuple[fb.Digits, ...]]:
    """Digits (rest, bit m-1, ..., bit 0, b / 2): factor i acts on bit i - 1 and the b / 2 entries of a group."""
    if m == 1:
        return (count, b), ((1,),)
    digits = (2 * count >> m, *(2,) * m, b // 2)
    axes = tuple((m - i, m + 1) for i in range(m))
    return digits, axes[::-1] if reverse else axes
