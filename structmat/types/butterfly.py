"""Butterflies: chains of small blocks on the digits of the index."""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim
from structmat.errors import ShapeError
from structmat.functional import butterfly as fb
from structmat.functional import butterfly_apply as fa
from structmat.functional import butterfly_peel as fp
from structmat.functional import orthogonal as fo
from structmat.lazy import Prepared
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.butterfly_family import (
    block_shapes,
    check_axes,
    check_blocks,
    check_skew,
    digits_of,
    mixed,
    plan_of,
    require_positive,
)

__all__ = ["Butterfly"]

_KEPT_ROWS = 256  # what prepare keeps is merged as for this many rows


class Butterfly(Matrix):
    """``A = F_k ... F_2 F_1``, each factor a small block on some digits of the index, for every value of the others.

    The columns are numbered by ``digits = (p_1, ..., p_L)``, the most significant first. Factor l takes the digits at
    positions ``axes[l]`` (C order within the tuple, p their product) through ``blocks[l]``: 2 x 2 butterflies have one
    digit of size 2 a factor, Monarch two large digits, OFT one factor; the same digits may come again (Kaleidoscope).

    Stores:   blocks, a tuple of (*batch, rest, q, p), rest the product of the other digits, in C order (or 1: the
              same block everywhere); q != p changes the size of the first digit listed. Static: digits, axes;
              order, how the output digits are written (None: as they are; the DFT reverses them); tail, further
              coordinates at the end that stay as they are.
    Shape:    (*batch, m, n), n the product of the digits plus the tail.      Claims: those vouched for.
    Cost:     linear 2 n q flops a row and factor, or merged into fewer, larger blocks (see explain(A, x)); memory
              of the blocks.
    Closed:   X @ X with digits that fit, transpose, inv where all blocks are square, s X, Diagonal @ X.
    Raises:   ShapeError for blocks, digits, axes that do not fit.
    Example:
        >>> sm.Butterfly((torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]),), (2, 2), ((0,),)) @ torch.arange(4.0)
        tensor([2., 3., 0., 1.])
    References: T. Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations, 2019,
                section 3.1; T. Dao et al., Kaleidoscope, 2020, definition 2.3; T. Dao et al., Monarch, 2022.
    """

    core: ClassVar[Mapping[str, int]] = {"blocks": 3}
    blocks: tuple[torch.Tensor, ...]
    digits: fb.Digits
    axes: tuple[fb.Digits, ...]
    order: fb.Digits | None = None
    tail: int = 0

    def _validate(self) -> None:
        digits, axes = fb.plain(self.digits), fb.plain(self.axes)
        check_axes("Butterfly", digits, axes, self.order, self.tail)
        check_blocks("Butterfly", [tuple(w.shape) for w in self.blocks], digits, axes)

    @property
    def _chain(self) -> fb.Chain:
        return fb.chain(self.digits, self.axes, self._rows())

    @property
    def layers(self) -> int:
        """The number of factors."""
        return len(self.blocks)

    def _rows(self) -> fb.Digits:
        """How many rows the blocks of each factor have."""
        return tuple([w.shape[-2] for w in self.blocks])

    def _program(self, rows: int) -> fa.Program:
        return fa.program(self.digits, self.axes, self._rows(), rows)

    @property
    def shape(self) -> torch.Size:
        links = self._chain
        return torch.Size((*self.batch_shape, links.rows + self.tail, links.columns + self.tail))

    @property
    def output_digits(self) -> fb.Digits:
        """The sizes of the digits of the rows, most significant first."""
        after = self._chain.outputs
        return after if self.order is None else tuple(after[a] for a in self.order)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self._beside_tail(x, lambda y: fa.butterfly_rows(y, self.blocks, self.digits, self.axes, self.order))

    def _beside_tail(self, x: torch.Tensor, act: Any) -> torch.Tensor:
        """``act`` on all but the tail, which stays as it is."""
        if not self.tail:
            result: torch.Tensor = act(x)
            return result
        cut = x.shape[-1] - self.tail
        y = act(x[..., :cut])
        return torch.cat((y, x[..., cut:].to(y.dtype).expand(*y.shape[:-1], self.tail)), -1)

    def transpose(self) -> Matrix:
        return self._reversed(tuple(w.mT for w in self.blocks))

    def _reversed(self, blocks: tuple[torch.Tensor, ...]) -> Matrix:
        """The factors in reverse order, with these blocks in place of theirs; output digits become input digits."""
        digits, axes, order = self._chain.outputs, self.axes[::-1], None
        pieces = blocks[::-1]
        if self.order is not None:
            order = tuple([self.order.index(k) for k in range(len(self.order))])
            how = fb.relabelling(digits, axes, tuple([w.shape[-2] for w in pieces]), order)
            pieces, digits, axes = fb.relabelled(pieces, how), how.digits, how.axes
        return Butterfly(pieces, digits, axes, order, self.tail)

    def _square(self) -> bool:
        return all(w.shape[-2] == w.shape[-1] for w in self.blocks)

    def inv(self) -> Matrix:
        """The inverse blocks in reverse order where all blocks are square, else lazy."""
        if not self._square():
            return super().inv()
        wide = [w.to(backend.compute_dtype(w.dtype)) for w in self.blocks]
        with backend.full_precision(wide[0].device):
            inverses = tuple(torch.linalg.inv_ex(w).inverse for w in wide)
        return self._reversed(tuple(w.to(b.dtype) for w, b in zip(inverses, self.blocks, strict=True)))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """Factor by factor from the last, LU of each block, then one step of refinement."""
        if options.method == "dense" or not self._square():
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "factor by factor")
        wide = backend.compute_dtype(torch.promote_types(y.dtype, self.blocks[0].dtype))
        exact = self._map(lambda _, w: w.to(wide))
        solve = functools.partial(fa.solve_rows, blocks=exact.blocks, links=self._chain, order=self.order)
        right = y.to(wide)
        with backend.full_precision(y.device):
            x = exact._beside_tail(right, solve)
            x = x + exact._beside_tail(right - exact.linear(x), solve)
        return x, self._checked(x, y, "factor by factor", 1, options, ("LU of each block, one refinement",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self) if method == "auto" and self._square() else super()._factor(method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum over all blocks; the order of the output digits gives a sign."""
        if not self._square():
            return super().slogdet()
        sign: Any = 1 if self.order is None else fb.relabelling_sign(self._chain.outputs, self.order)
        logabs: Any = 0
        for w, step in zip(self.blocks, self._chain.steps, strict=True):
            s, value = torch.linalg.slogdet(w.to(backend.compute_dtype(w.dtype)))
            many = step.rest // s.shape[-1]  # how often a shared block stands on the diagonal
            sign = sign * s.prod(-1) ** many
            logabs = logabs + value.sum(-1) * many
        return self._cast(sign), self._cast(logabs, real=True)

    def _norm_bound(self) -> torch.Tensor:
        """The product of the largest block norms."""
        bounds = [torch.linalg.matrix_norm(w.to(backend.compute_dtype(w.dtype)), 2).amax(-1) for w in self.blocks]
        whole = functools.reduce(torch.mul, bounds)
        return whole.clamp_min(1.0) if self.tail else whole

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        if self.tail:
            return super()._scale(factor)
        wide = factor[..., None] if isinstance(factor, torch.Tensor) and factor.ndim else factor
        scaled = self.blocks[0] * wide
        return self._with_blocks((scaled, *(w.to(scaled.dtype) for w in self.blocks[1:])))

    def _with_blocks(self, blocks: tuple[torch.Tensor, ...]) -> "Butterfly":
        return Butterfly(blocks, self.digits, self.axes, self.order, self.tail)

    def prepare(self) -> Matrix:
        """Keeps the merged blocks of the best cut for many rows: later products are one or two passes."""
        return Prepared(self, fa.merged_blocks(self.blocks, self._program(_KEPT_ROWS)))

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        out, plan = torch.promote_types(x.dtype, self.blocks[0].dtype), self._program(_KEPT_ROWS)
        return self._beside_tail(x, lambda y: fa.kept_rows(y, kept, plan, self.order, out))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb == "solve" and self._square():
            steps = self._chain.steps
            flops = 2.0 * sum(s.rest * s.rows**2 * (s.rows / 3 + 3 * columns) for s in steps)
            return backend.Plan("factor by factor", "LU of each block, one refinement", flops)
        if verb != "linear":
            return super().plan(verb, columns)
        return plan_of(self._program(columns), columns, self.blocks[0].element_size())

    def _statics(self) -> list[str]:
        shown = [f"digits={self.digits}", f"axes={self.axes}"]
        shown += [f"order={self.order}"] if self.order is not None else []
        return shown + ([f"tail={self.tail}"] if self.tail else [])

    # -- makers ----------------------------------------------------------------------------------------------------

    @classmethod
    def nearest(
        cls,
        dense: torch.Tensor,
        digits: fb.Digits | None = None,
        rows: fb.Digits | None = None,
        sequence: fb.Digits | None = None,
    ) -> "Butterfly":
        """A butterfly of one factor a digit near dense ``(*batch, m, n)``, the digit ``sequence[0]`` first (by default
        the most significant; Monarch takes ``sequence=(1, 0)``).

        ``digits`` of the columns and ``rows`` (by default those of mixed radix, every prime factor a digit). The error
        is ``err^2 <= sum_s tail_s^2 <= (L - 1) dist^2`` (``functional.butterfly_peel``). Exact for butterflies.
        """
        digits, rows = digits_of(dense, digits, rows)
        sequence = tuple(range(len(digits))) if sequence is None else sequence
        if sorted(sequence) != list(range(len(digits))):
            raise ShapeError(f"Butterfly: sequence must name each of the {len(digits)} digits once, got {sequence!r}")
        blocks, axes = fp.peel_in(dense.to(backend.compute_dtype(dense.dtype)), digits, rows, sequence)
        return cls(tuple(w.to(dense.dtype) for w in blocks), digits, axes)

    @classmethod
    def from_dense(
        cls,
        dense: torch.Tensor,
        tol: float | None = None,
        *,
        digits: fb.Digits | None = None,
        rows: fb.Digits | None = None,
        sequence: fb.Digits | None = None,
    ) -> "Butterfly":
        """``nearest``, if it is within ``tol ||dense||_F`` (default 8 eps); else NotStructuredError with the
        distance."""
        found: Butterfly = distance_check(cls, dense, cls.nearest(dense, digits, rows, sequence), tol)
        return found

    @staticmethod
    def membership(dense: torch.Tensor, digits: fb.Digits | None = None, rows: fb.Digits | None = None) -> torch.Tensor:
        """The certificate ``max_s tail_s / ||dense||_F``, of shape ``batch``: zero exactly for limits of butterflies of
        one factor a digit, a lower bound of the relative distance to them, and that distance is at most sqrt(L - 1)
        times it."""
        digits, rows = digits_of(dense, digits, rows)
        wide = dense.to(backend.compute_dtype(dense.dtype))
        size = torch.linalg.vector_norm(wide, dim=(-2, -1))
        found = fp.tails(wide, digits, rows)
        largest = found.amax(-1) if found.shape[-1] else torch.zeros_like(size)
        return largest / torch.where(size > 0, size, torch.ones_like(size))

    @classmethod
    def random(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Butterfly":
        """Standard normal blocks over sqrt(p) in mixed radix, every prime factor a digit; dense for any sizes.

        A square matrix whose order has a prime factor above 64 is a butterfly of the largest order without one, and
        the identity on the coordinates that are left.
        """
        rows, digits, tail = mixed(m, m if n is None else n)
        shapes = block_shapes(digits, rows)
        blocks = tuple(torch.randn(s, generator=generator, **options) / math.sqrt(s[-1]) for s in shapes)
        return cls(blocks, digits, tuple((k,) for k in range(len(digits))), None, tail)

    @classmethod
    def identity(cls, m: int, n: int | None = None, digits: fb.Digits | None = None, **options: Any) -> "Butterfly":
        """The start of training: identity blocks, in mixed radix or on the digits given (then m is their product).

        The identity matrix for m = n; for other sizes blocks of ones on the diagonal keep some of the coordinates."""
        if digits is not None and math.prod(digits) != m:
            raise ShapeError(f"Butterfly.identity({m}, digits={digits}): the digits multiply to {math.prod(digits)}")
        rows, columns, tail = (digits, digits, 0) if digits is not None else mixed(m, m if n is None else n)
        blocks = tuple(torch.eye(s[-2], s[-1], **options).repeat(s[0], 1, 1) for s in block_shapes(columns, rows))
        return cls(blocks, columns, tuple((k,) for k in range(len(columns))), None, tail)

    @classmethod
    def monarch(cls, m: int, n: int | None = None, *, generator: Any = None, **options: Any) -> "Butterfly":
        """Two factors on two digits as near to the square root as divisors allow, the last digit first: random."""
        require_positive(m, m if n is None else n)
        rows, digits = fp.balanced(m), fp.balanced(m if n is None else n)
        shapes = ((digits[0], rows[1], digits[1]), (rows[1], rows[0], digits[0]))
        blocks = tuple(torch.randn(s, generator=generator, **options) / math.sqrt(s[-1]) for s in shapes)
        return cls(blocks, digits, ((1,), (0,)))

    @classmethod
    def dft(cls, n: int, dtype: torch.dtype = torch.complex128, device: Any = None) -> Self:
        """The unnormalised DFT ``exp(-2 pi i j k / n)``: every prime factor a digit, the output digits reversed.

        Products and inverses are fast for n without large prime factors; a prime p costs a p x p block (and for n = p
        the matrix is dense). Relative Frobenius error at most ``4 eps sqrt(L)``. Claims to be symmetric.
        """
        if n < 1 or not dtype.is_complex:
            raise ValueError(f"Butterfly.dft({n}, dtype={dtype}): n must be positive and dtype complex")
        digits = fp.prime_factors(n) or (1,)
        blocks = tuple(w.to(device) for w in fp.fourier_blocks(digits, dtype))
        places = tuple(range(len(digits)))
        order = places[::-1] if len(digits) > 1 else None
        return cls(blocks, digits, tuple((k,) for k in places), order).assume(Claim.SYMMETRIC)

    @classmethod
    def hadamard(cls, n: int, **options: Any) -> Self:
        """Sylvester's Hadamard matrix of order ``n = 2^L``, exactly: one 2 x 2 block a digit. Claims to be
        symmetric."""
        if n < 1 or n & (n - 1):
            below = 1 << (max(n, 1).bit_length() - 1)
            raise ValueError(f"Butterfly.hadamard({n}): n must be a power of two; the nearest are {below}, {2 * below}")
        if n == 1:
            return cls((torch.ones(1, 1, 1, **options),), (1,), ((0,),)).assume(Claim.SYMMETRIC)
        block, levels = torch.tensor([[[1, 1], [1, -1]]]), n.bit_length() - 1
        blocks = tuple(block.to(**options) if options else block.to(torch.get_default_dtype()) for _ in range(levels))
        return cls(blocks, (2,) * levels, tuple((k,) for k in range(levels))).assume(Claim.SYMMETRIC)

    @classmethod
    def from_skew(
        cls, skew: tuple[torch.Tensor, ...], digits: fb.Digits, axes: tuple[fb.Digits, ...] | None = None, tail: int = 0
    ) -> Self:
        """An orthogonal butterfly of any size: blocks ``(I - K)(I + K)^-1`` from strictly lower triangles
        ``(*batch, rest, p (p - 1) / 2)``, one a factor (by default one a digit); it claims to be orthogonal
        (to the rounding of the blocks: convert entries held in half precision first)."""
        axes = tuple((k,) for k in range(len(digits))) if axes is None else axes
        sizes = [math.prod([digits[a] for a in where]) for where in axes]  # lists: torch.compile traces them
        check_skew(skew, sizes)
        blocks = tuple(fo.cayley(fo.skew(entries, p)) for entries, p in zip(skew, sizes, strict=True))
        return cls(blocks, digits, axes, None, tail).assume(Claim.ORTHOGONAL)

    @classmethod
    def orthogonal(cls, n: int, *, generator: Any = None, **options: Any) -> Self:
        """A random orthogonal butterfly of any order in mixed radix (see ``random`` for large primes): det 1."""
        rows, digits, tail = mixed(n, n)
        shapes = [(s[0], s[-1] * (s[-1] - 1) // 2) for s in block_shapes(digits, rows)]
        return cls.from_skew(tuple(torch.randn(s, generator=generator, **options) for s in shapes), digits, None, tail)


@dispatch.rule("matmul", Butterfly, Butterfly)
def _times(a: Butterfly, b: Butterfly) -> Matrix:
    """Butterfly: the factors one after the other, where the digits between them agree; else lazy."""
    if a.digits != b.output_digits or a.tail != b.tail:
        lazily: Matrix = dispatch.lookup("matmul", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazily
    pieces, axes, order = a.blocks, a.axes, a.order
    if b.order is not None:  # what a calls digit k is b's digit order[k]
        how = fb.relabelling(a.digits, a.axes, a._rows(), b.order)
        pieces, axes = fb.relabelled(pieces, how), how.axes
        order = b.order if order is None else tuple([b.order[k] for k in order])
        order = None if order == tuple(range(len(order))) else order
    common = torch.promote_types(a.blocks[0].dtype, b.blocks[0].dtype)
    blocks = tuple(w.to(common) for w in (*b.blocks, *pieces))
    return Butterfly(blocks, b.digits, (*b.axes, *axes), order, b.tail)
