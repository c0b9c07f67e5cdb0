"""Diagonal matrices and the identity."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, SolveError
from structmat.functional.transforms import largest
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Diagonal", "Identity"]

_DIAGONAL = frozenset({Claim.SYMMETRIC, Claim.UPPER_TRIANGULAR, Claim.LOWER_TRIANGULAR})


class Diagonal(Matrix):
    """``A = diag(entries)``.

    Stores:   entries (*batch, n), real or complex.
    Shape:    (*batch, n, n).      Claims: symmetric, upper and lower triangular.
    Cost:     n flops a row for products, solve, det; n memory.
    Closed:   X @ X, X + X, s X, X * A -> Diagonal; inv, pinv -> Diagonal.
    Raises:   SolveError on a zero entry in ``solve``.
    Example:
        >>> Diagonal(torch.tensor([2.0, 4.0])).inv().entries
        tensor([0.5000, 0.2500])
    """

    core: ClassVar[Mapping[str, int]] = {"entries": 1}
    entries: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.entries.shape, self.entries.shape[-1]))

    def _row(self, x: torch.Tensor) -> torch.Tensor:
        """The entries, ready to meet rows x."""
        return self.entries if self.entries.ndim == 1 or x.ndim == 1 else self.entries[..., None, :]

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._row(x)

    def transpose(self) -> Matrix:
        return Diagonal(self.entries)

    def to_dense(self) -> torch.Tensor:
        return torch.diag_embed(self.entries)

    def inv(self) -> Matrix:
        return Diagonal(1 / self.entries)

    def pinv(self) -> Matrix:
        """Entries below ``n eps max|entries|`` count as zero, as in ``torch.linalg.pinv``."""
        size = self.entries.abs()
        cut = size.shape[-1] * torch.finfo(size.dtype).eps * self._norm_bound().detach()[..., None]
        zero = size <= cut
        return Diagonal(torch.where(zero, torch.zeros_like(self.entries), 1 / torch.where(zero, 1, self.entries)))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        if options.check and backend.eager(y, self.entries) and bool((self.entries == 0).any()):
            where = (
                int((self.entries == 0).flatten(0, -2).any(0).nonzero()[0])
                if self.entries.ndim > 1
                else int((self.entries == 0).nonzero()[0])
            )
            raise SolveError(
                f"{self!r}.solve: singular, entry {where} is zero; see pinv, or check=False for inf", float("inf")
            )
        return y / self._row(y), SolveInfo("closed form", 0, None, ("division by the entries",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        wide = self.entries.to(backend.compute_dtype(self.entries.dtype))
        sign = torch.prod(torch.sgn(wide), -1)
        return self._cast(sign), self._cast(torch.log(wide.abs()).sum(-1), real=True)

    def det(self) -> torch.Tensor:
        return torch.prod(self.entries, -1)

    def diagonal(self) -> torch.Tensor:
        return self.entries

    def norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.entries, dim=-1)

    def eigvals(self) -> torch.Tensor:
        """The entries, in their order, complex."""
        wide = self.entries.to(backend.compute_dtype(self.entries.dtype))
        return wide.to(backend.complex_of(wide.dtype))

    def svdvals(self) -> torch.Tensor:
        return torch.sort(self.entries.abs(), -1, descending=True).values

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Diagonal(self.entries * (factor[..., 0] if isinstance(factor, torch.Tensor) and factor.ndim else factor))

    def _norm_bound(self) -> torch.Tensor:
        return largest(self.entries.abs())

    def _properties(self) -> Claims:
        return Claims(_DIAGONAL)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n = self.shape[-1]
        return backend.Plan(
            "closed form", "entry by entry", float(n * columns), 3.0 * n * columns * self.entries.element_size()
        )

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The diagonal, if the rest is zero within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Diagonal":
        """The diagonal of the matrix: the best in the Frobenius norm."""
        return cls(torch.diagonal(dense, dim1=-2, dim2=-1))

    @classmethod
    def random(cls, n: int, *, generator: Any = None, **options: Any) -> "Diagonal":
        """Standard normal entries; ``dtype`` and ``device`` as in ``torch.randn``."""
        return cls(torch.randn(n, generator=generator, **options))

    @classmethod
    def identity(cls, n: int, **options: Any) -> "Diagonal":
        return cls(torch.ones(n, **options))


class Identity(Matrix):
    """The n x n identity, which stores nothing; ``dtype`` and ``device`` None adopt the other operand's.

    Stores:   n, and optionally dtype and device (static).
    Shape:    (n, n).      Claims: symmetric, Hermitian, positive definite, orthogonal, triangular.
    Cost:     nothing.     Closed: X @ A -> A, inv -> X, X - HouseholderProduct -> LowRank.
    Example:
        >>> (Identity(3) @ torch.ones(3)).sum()
        tensor(3.)
    """

    n: int
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    def _validate(self) -> None:
        if self.n < 0:
            raise ValueError(f"Identity({self.n}): the order must not be negative")
        if self.dtype is not None and not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise DtypeError(f"Identity(dtype={self.dtype}): legal dtypes are floating point or complex, or None")
        if isinstance(self.device, str):
            object.__setattr__(self, "device", torch.device(self.device))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.n, self.n))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.dtype is not None and self.dtype != x.dtype:
            return x.to(torch.promote_types(self.dtype, x.dtype))
        return x.clone()

    def transpose(self) -> Matrix:
        return self

    def conj(self) -> Matrix:
        return self

    def inv(self) -> Matrix:
        return self

    def pinv(self) -> Matrix:
        return self

    def to_dense(self) -> torch.Tensor:
        return self._eye(self.n)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        return self.linear(y), SolveInfo("closed form", 0, None, ("the identity",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.dtype or torch.get_default_dtype()
        return torch.ones((), dtype=dtype, device=self.device), torch.zeros(
            (), dtype=backend.real_of(dtype), device=self.device
        )

    def diagonal(self) -> torch.Tensor:
        return torch.ones(self.n, dtype=self.dtype or torch.get_default_dtype(), device=self.device)

    def norm(self) -> torch.Tensor:
        return self._real(torch.tensor(float(self.n), dtype=torch.float64) ** 0.5)

    def _norm_bound(self) -> torch.Tensor:
        return self._real(torch.tensor(1.0))

    def _real(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype=backend.real_of(self.dtype or torch.get_default_dtype()), device=self.device)

    def eigvals(self) -> torch.Tensor:
        ones = self.diagonal()
        return ones.to(backend.complex_of(backend.compute_dtype(ones.dtype)))

    def svdvals(self) -> torch.Tensor:
        return self._real(self.diagonal().abs())

    def _properties(self) -> Claims:
        return Claims(
            _DIAGONAL | {Claim.HERMITIAN, Claim.POSITIVE_DEFINITE, Claim.ORTHOGONAL}, None, {(1, -1): 1, (-1, 1): 1}
        )

    def _statics(self) -> list[str]:
        return [] if self.dtype is not None else ["dtype=None"]
