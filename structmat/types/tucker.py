"""Tensors in Tucker format: a small core and a factor for each mode."""

import dataclasses
import math
from typing import Any, Self

import torch

from structmat import backend
from structmat._shell import as_factor, check_pair, name_of
from structmat._value import Value
from structmat.errors import ShapeError
from structmat.functional import tucker as ft
from structmat.functional import tucker_conv as fc
from structmat.functional import tucker_decompose as fd
from structmat.types import tucker_family as family
from structmat.types.tucker_matrix_family import TuckerMatrix

__all__ = ["Tucker"]


class Tucker(Value):
    """``T = core x_1 U_1 x_2 U_2 ... x_N U_N``: entry ``[i, j, ...]`` is ``sum core[a, b, ...] U_1[i, a] U_2[j, b]``.

    A tensor of any order, not a matrix; ``matricize(rows)`` is one. The factors may be changed by any invertible matrix
    that the core undoes: ``orthogonalise`` and ``balance`` choose among them.

    Stores:   core (*batch, R_1, ..., R_N), factors, a tuple of (*batch, D_k, R_k).
    Shape:    (*batch, D_1, ..., D_N).
    Cost:     to_dense about 2 D_1 ... D_N R flops for the last mode; inner, norm, distance D R^2 a mode and R^(N + 1);
              memory of core and factors.
    Closed:   S + T, S - T, S * T (entry by entry), s T: the ranks add or multiply, never above D_k.
    Raises:   ShapeError for factors that do not fit the core, or R_k > D_k; a UserWarning for R_k above the product of
              the other ranks.
    Example:
        >>> T = sm.Tucker(torch.ones(1, 1, 1), (torch.ones(2, 1), torch.ones(3, 1), torch.ones(2, 1)))
        >>> T.matricize((0,)) @ torch.ones(6)
        tensor([6., 6.])
    References: L. R. Tucker, Some mathematical notes on three-mode factor analysis, 1966; T. G. Kolda and B. W. Bader,
                Tensor decompositions and applications, 2009, section 4.
    """

    core: torch.Tensor = dataclasses.field()  # type: ignore[assignment,misc]
    factors: tuple[torch.Tensor, ...]

    def _check_fields(self) -> None:
        order = len(self.factors)
        if order < 1:
            raise ShapeError("Tucker: at least one factor is needed")
        first = self._check_tensor("core", order, self.core, None)
        for u in self.factors:
            self._check_tensor("factors", 2, u, first)

    def _validate(self) -> None:
        got = tuple([int(u.shape[-1]) for u in self.factors])
        if tuple(self.ranks) != got:
            raise ShapeError(
                f"Tucker: the factors have {got} columns, the last {self.order} sizes of the core are {self.ranks}; "
                "factor k is (*batch, D_k, R_k) and the core (*batch, R_1, ..., R_N)"
            )
        try:
            _ = self.batch_shape
        except RuntimeError as error:
            shapes = [tuple(t.shape) for t in (self.core, *self.factors)]
            raise ShapeError(f"Tucker: the batches of core and factors {shapes} do not broadcast") from error
        family.legal_ranks("Tucker", self.dims, self.ranks)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def order(self) -> int:
        """The number of modes."""
        return len(self.factors)

    @property
    def dims(self) -> ft.Sizes:
        """``(D_1, ..., D_N)``."""
        return tuple([int(u.shape[-2]) for u in self.factors])

    @property
    def ranks(self) -> ft.Sizes:
        """``(R_1, ..., R_N)``."""
        return tuple([int(r) for r in self.core.shape[self.core.ndim - len(self.factors) :]])

    @property
    def batch_shape(self) -> torch.Size:
        lead = self.core.shape[: self.core.ndim - self.order]
        return torch.broadcast_shapes(lead, *(u.shape[:-2] for u in self.factors))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, *self.dims))

    @property
    def dtype(self) -> torch.dtype:
        return self.core.dtype

    @property
    def device(self) -> torch.device:
        return self.core.device

    def __repr__(self) -> str:
        try:
            shown = f"shape={tuple(self.shape)}, ranks={self.ranks}, dtype={name_of(self.dtype)}"
        except (AttributeError, TypeError):  # fields replaced by placeholders inside a torch transform
            shown = "..."
        return f"Tucker({shown})"

    def to_dense(self) -> torch.Tensor:
        """The tensor of all entries, in the order of modes that is cheapest."""
        core, factors = self._wide()
        with backend.full_precision(self.device):
            return ft.expand(core, factors).to(self.dtype)

    def matricize(self, rows: int | ft.Sizes) -> "TuckerMatrix":
        """The matrix with the modes ``rows`` as rows, in the order given, the others ascending as columns, C order."""
        modes, others = family.checked_rows(f"{self!r}.matricize({rows!r})", rows, self.order)
        return TuckerMatrix(self.core, self.factors, modes, others)

    def conj(self) -> "Tucker":
        return self._map(lambda _, t: t.conj().resolve_conj() if t.is_complex() else t)

    def _wide(self) -> tuple[torch.Tensor, ft.Factors]:
        dtype = backend.compute_dtype(self.dtype)
        return self.core.to(dtype), tuple([u.to(dtype) for u in self.factors])

    def _with(self, core: torch.Tensor, factors: ft.Factors, dtype: torch.dtype | None = None) -> "Tucker":
        dtype = self.dtype if dtype is None else dtype
        return self._of(core.to(dtype), tuple([u.to(dtype) for u in factors]))

    @classmethod
    def _of(cls, core: torch.Tensor, factors: ft.Factors) -> "Tucker":
        """A tensor made of another one, or of parts chosen before: wasted ranks are not warned of again."""
        found: Tucker = family.told(lambda: Tucker(core, factors))
        return found

    # -- algebra in the format -------------------------------------------------------------------------------------

    def _met(self, other: Any, verb: str) -> "Tucker":
        place = f"{self!r} {verb} {other!r}"
        if not isinstance(other, Tucker):
            raise TypeError(f"{place}: expected a Tucker tensor, got {type(other).__name__}")
        if other.dims != self.dims:
            raise ShapeError(f"{place}: sizes {self.dims} and {other.dims} differ")
        check_pair(self, other, place)
        return other

    def _both(self, other: "Tucker") -> tuple[tuple[torch.Tensor, ft.Factors], tuple[torch.Tensor, ft.Factors]]:
        dtype = backend.compute_dtype(torch.promote_types(self.dtype, other.dtype))
        return tuple((t.core.to(dtype), tuple([u.to(dtype) for u in t.factors])) for t in (self, other))  # type: ignore[return-value]

    def _combined(self, other: Any, verb: str, how: Any) -> "Tucker":
        other = self._met(other, verb)
        mine, theirs = self._both(other)
        with backend.full_precision(self.device):
            core, factors = ft.fitted(*how(*mine, *theirs))
        return self._with(core, factors, torch.promote_types(self.dtype, other.dtype))

    def __add__(self, other: Any) -> "Tucker":
        return self._combined(other, "+", ft.summed)

    def __sub__(self, other: Any) -> "Tucker":
        return self + (-self._met(other, "-"))

    def __neg__(self) -> "Tucker":
        return self._of(-self.core, self.factors)

    def __mul__(self, other: Any) -> "Tucker":
        """Entry by entry with a Tucker tensor, or scaled by a number or a tensor of shape () or (*batch, 1, 1)."""
        if isinstance(other, Tucker):
            return self._combined(other, "*", ft.hadamard)
        factor = as_factor(other, self)
        if isinstance(factor, torch.Tensor) and factor.ndim:
            factor = factor.reshape(*factor.shape[:-2], *[1] * self.order)
        scaled = self.core * factor
        return self._of(scaled, tuple([u.to(scaled.dtype) for u in self.factors]))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Tucker":
        if isinstance(other, Tucker):
            raise TypeError(f"{self!r} / {other!r}: the entrywise quotient is not in the format; use to_dense()")
        return self * (1 / as_factor(other, self))

    def inner(self, other: "Tucker") -> torch.Tensor:
        """``sum conj(self) other`` (as ``torch.vdot``), of shape ``batch``: no dense tensor is formed."""
        other = self._met(other, "inner")
        mine, theirs = self._both(other)
        with backend.full_precision(self.device):
            return ft.inner(*mine, *theirs).to(torch.promote_types(self.dtype, other.dtype))

    def norm(self) -> torch.Tensor:
        """The Frobenius norm: that of the core, once the factors are orthonormal."""
        with backend.full_precision(self.device):
            core = ft.orthogonalised(*self._wide())[0]
        return fd.norm_of(core, self.order).to(backend.real_of(self.dtype))

    def distance(self, other: "Tucker") -> torch.Tensor:
        """``||self - other||_F`` by QR of the factors side by side.

        Gram matrices would lose half the digits of a small distance: 1e-9 here at a distance of 2e-8, 0.2 there.
        """
        return (self - other).norm()

    def orthogonalise(self) -> "Tucker":
        """The same tensor with orthonormal columns in every factor."""
        with backend.full_precision(self.device):
            return self._with(*ft.orthogonalised(*self._wide()))

    def balance(self) -> "Tucker":
        """The same tensor with core and factors of one Frobenius norm: a good start of training."""
        return self._with(*ft.balanced(*self._wide()))

    def round(
        self, ranks: int | ft.Sizes | None = None, tol: float | None = None, method: str = "st_hosvd"
    ) -> "Tucker":
        """A nearby tensor of the ranks given, or of the least ranks with ``distance <= tol norm``; only the core is
        decomposed. The error is at most sqrt(N) times the least possible."""
        place = f"{self!r}.round(ranks={ranks!r}, tol={tol!r})"
        with backend.full_precision(self.device):
            core, factors = ft.orthogonalised(*self._wide())
            wanted = (ranks,) * self.order if isinstance(ranks, int) else ranks
            wanted = family.checked_ranks(place, core, wanted, tol)[1]
            family.checked_method(place, method, wanted)
            found = fd.decompose(core, self.order, wanted, tol, method)
            return self._with(found.core, tuple([u @ v for u, v in zip(factors, found.factors, strict=True)]))

    # -- multilinear rank ------------------------------------------------------------------------------------------

    def rank_bounds(self) -> ft.Sizes:
        """Upper bounds of the ranks of the unfoldings, from sizes alone: ``min(R_k, product of the other R_j)``."""
        ranks = self.ranks
        return tuple([min(r, math.prod(ranks[:k]) * math.prod(ranks[k + 1 :])) for k, r in enumerate(ranks)])

    def mode_svdvals(self) -> tuple[torch.Tensor, ...]:
        """The ``R_k`` largest singular values of each unfolding (the others are zero), from the core alone."""
        with backend.full_precision(self.device):
            core = ft.orthogonalised(*self._wide())[0]
            return fd.singular_values(core, self.order)

    def multilinear_rank(self, tol: float | None = None) -> family.RankCertificate:
        """The measured ranks of the unfoldings: singular values above ``tol`` times the largest (default the larger
        side of the unfolding times eps), with the gap behind each rank."""
        return family.certificate(self.mode_svdvals(), self.dims, self.rank_bounds(), tol)

    # -- convolutions ----------------------------------------------------------------------------------------------

    def conv(self, x: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """Convolve x ``(batch, in, *sizes)`` with this tensor as kernel ``(out, in / groups, *kernel)``, 1 to 3 kernel
        modes.

        Options as torch.nn.Conv2d: stride, padding (numbers, "same", "valid"), dilation, groups, padding_mode. The
        dense kernel is formed only where that takes fewer flops (``functional.tucker_conv.conv_plan``).
        """
        groups = int(options.get("groups", 1))
        self._check_conv(x, "conv", self.dims[1] * groups if self.order > 1 else 0, groups, options)
        y = fc.tucker_conv(x, self.core, self.factors, **options)
        return y if bias is None else y + bias.reshape(-1, *[1] * (self.order - 2))

    def conv_transpose(self, x: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """The transposed convolution with this tensor as kernel ``(in, out / groups, *kernel)``.

        Options as torch.nn.ConvTranspose2d: stride, padding, output_padding, groups, dilation.
        """
        self._check_conv(x, "conv_transpose", self.dims[0], int(options.get("groups", 1)), options)
        y = fc.tucker_conv_transpose(x, self.core, self.factors, **options)
        return y if bias is None else y + bias.reshape(-1, *[1] * (self.order - 2))

    def _check_conv(self, x: torch.Tensor, verb: str, channels: int, groups: int, options: dict[str, Any]) -> None:
        place = f"{self!r}.{verb}(x)"
        if not 3 <= self.order <= 5 or self.batch_shape:
            raise ShapeError(
                f"{place}: a kernel is one tensor (not a batch) with 2 modes of channels and 1 to 3 others"
            )
        if x.ndim not in (self.order, self.order - 1) or x.shape[1 - self.order] != channels:
            raise ShapeError(
                f"{place}: x has shape {tuple(x.shape)}, it must be (batch, {channels}, ...) or ({channels}, ...) with "
                f"{self.order - 2} further sizes"
            )
        if groups < 1 or self.dims[0] % groups:
            raise ShapeError(f"{place}: {groups} groups do not divide {self.dims[0]} channels")
        mode = options.get("padding_mode", "zeros")
        if mode not in fc.PADDING_MODES:
            legal = ", ".join(map(repr, fc.PADDING_MODES))
            raise ValueError(f"{place}: unknown padding_mode {mode!r}; legal are {legal}")
        steps = options.get("stride", 1)
        if options.get("padding") == "same" and any(s != 1 for s in fc.each_mode(steps, self.order - 2)):
            raise ValueError(f"{place}: padding 'same' needs stride 1, got {steps!r}")
        check_pair(self, x, place)

    # -- makers ----------------------------------------------------------------------------------------------------

    @classmethod
    def decompose(
        cls,
        tensor: torch.Tensor,
        ranks: int | ft.Sizes | None = None,
        tol: float | None = None,
        method: str = "st_hosvd",
        *,
        sweeps: int = 10,
        generator: torch.Generator | None = None,
    ) -> family.Decomposition:
        """The tensor in Tucker format of the ranks given, or of the least ranks with ``error <= tol ||T||``.

        ``method``: "st_hosvd" (the modes that shrink most first), "hosvd", "hooi" (at most ``sweeps`` alternating
        sweeps from st_hosvd), or "randomised" (range finder with one power step; ``generator``). Leading dimensions
        beyond the ranks are a batch. The result carries the error made and a bound of the best, see ``Decomposition``;
        its core is differentiable in the tensor, its factors are computed from values.
        """
        place = f"Tucker.decompose(tensor of shape {tuple(tensor.shape)}, ranks={ranks!r}, tol={tol!r})"
        order, wanted = family.checked_ranks(place, tensor, ranks, tol)
        family.checked_method(place, method, wanted)
        wide = tensor.to(backend.compute_dtype(tensor.dtype))
        with backend.full_precision(tensor.device):
            found = fd.decompose(wide, order, wanted, tol, method, sweeps, generator)
        core, factors = found.core.to(tensor.dtype), tuple([u.to(tensor.dtype) for u in found.factors])
        error = torch.linalg.vector_norm(found.tails, dim=0)
        return family.Decomposition(cls(core, factors), error, found.tails, found.lower, method, found.sweeps)

    @classmethod
    def from_cp(cls, factors: tuple[torch.Tensor, ...], weights: torch.Tensor | None = None) -> "Tucker":
        """``sum_r weights[r] u_r o v_r o ...`` (a CP form): columns of ``factors (*batch, D_k, R)``; R^N core."""
        if len({u.shape[-1] for u in factors}) != 1 or any(u.ndim < 2 for u in factors):
            raise ShapeError(f"Tucker.from_cp: factors {[tuple(u.shape) for u in factors]} must be (*batch, D_k, R)")
        r = factors[0].shape[-1]
        if weights is None:
            weights = torch.ones(r, dtype=factors[0].dtype, device=factors[0].device)
        if weights.ndim < 1 or weights.shape[-1] != r:
            raise ShapeError(f"Tucker.from_cp: weights {tuple(weights.shape)} must be (*batch, {r})")
        return cls(*ft.fitted(ft.diagonal_core(weights, len(factors)), tuple(factors)))

    @classmethod
    def random(cls, dims: ft.Sizes, ranks: int | ft.Sizes, *, generator: Any = None, **options: Any) -> Self:
        """Standard normal core, standard normal factors over ``sqrt(R_k)``."""
        wanted = (ranks,) * len(dims) if isinstance(ranks, int) else tuple(ranks)
        core = torch.randn(*wanted, generator=generator, **options)
        pairs = zip(dims, wanted, strict=True)
        return cls(core, tuple([torch.randn(d, r, generator=generator, **options) / math.sqrt(r) for d, r in pairs]))
