"""The zero matrix, which stores nothing."""

from typing import Any

import torch

from structmat import backend
from structmat._indexing import positions
from structmat._nearest import distance_check
from structmat._shell import require_square
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, SolveError
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Zero"]

_TRIANGULAR = frozenset({Claim.UPPER_TRIANGULAR, Claim.LOWER_TRIANGULAR})


class Zero(Matrix):
    """The m x n matrix of zeros; ``dtype`` and ``device`` None adopt the other operand's.

    Stores:   m, n, and optionally dtype, device and the batch (all static).
    Shape:    (*batch, m, n).      Claims: rank 0, upper and lower triangular; symmetric, Hermitian if square.
    Cost:     the zeros of a result; no memory.
    Closed:   X @ A, A @ X, X * A, X kron A -> X; X + A -> A; s X, transpose, pinv, slices -> X.
    Raises:   ValueError for a negative size or a dtype that holds no real or complex numbers; SolveError for solve,
              inv and factor (``pinv`` and ``lstsq`` answer).
    Example:
        >>> (Zero(2, 3) @ torch.ones(3)).tolist()
        [0.0, 0.0]
    """

    m: int
    n: int
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    batch: tuple[int, ...] = ()

    def _validate(self) -> None:
        if min(self.m, self.n, *self.batch) < 0:
            raise ValueError(f"Zero({self.m}, {self.n}, batch={tuple(self.batch)}): sizes must not be negative")
        if self.dtype is not None and not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise DtypeError(f"Zero(dtype={self.dtype}): legal dtypes are floating point or complex, or None")
        if isinstance(self.device, str):
            object.__setattr__(self, "device", torch.device(self.device))
        object.__setattr__(self, "batch", tuple(int(b) for b in self.batch))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch, self.m, self.n))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros that hang on x: its gradient is zero, and a NaN of x is not multiplied in."""
        wide = x if self.dtype is None else x.to(torch.promote_types(self.dtype, x.dtype))
        y = torch.nn.functional.pad(wide[..., :0], (0, self.m))
        if not self.batch:
            return y
        if y.ndim == 1:
            return y.expand(*self.batch, self.m)
        return y.expand(*torch.broadcast_shapes(self.batch, y.shape[:-2]), *y.shape[-2:])

    def transpose(self) -> Matrix:
        return Zero(self.n, self.m, self.dtype, self.device, self.batch)

    def conj(self) -> Matrix:
        return self

    def inv(self) -> Matrix:
        if require_square(self, "inv"):
            raise self._singular("inv")
        return self

    def pinv(self) -> Matrix:
        return self.transpose()

    def to_dense(self) -> torch.Tensor:
        return self._zeros(self.m, self.n)

    def _zeros(self, *shape: int, real: bool = False) -> torch.Tensor:
        dtype = self.dtype or torch.get_default_dtype()
        lead = (*self.batch, *shape)
        return torch.zeros(lead, dtype=backend.real_of(dtype) if real else dtype, device=self.device)

    def _singular(self, verb: str) -> SolveError:
        return SolveError(f"{self!r}.{verb}: singular, the matrix is zero; see pinv and lstsq", float("inf"))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        raise self._singular("solve")

    def _factor(self, method: str) -> Factorisation:
        if self.n:
            raise self._singular("factor")
        return Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(0, -inf); (1, 0) for order 0, whose determinant is the empty product."""
        if require_square(self, "slogdet") == 0:
            return self._zeros() + 1, self._zeros(real=True)
        return self._zeros(), self._zeros(real=True) - torch.inf

    def diagonal(self) -> torch.Tensor:
        return self._zeros(min(self.m, self.n))

    def norm(self) -> torch.Tensor:
        return self._zeros(real=True)

    def _norm_bound(self) -> torch.Tensor:
        return self._zeros(real=True)

    def eigvals(self) -> torch.Tensor:
        zeros = self._zeros(require_square(self, "eigvals"))
        return zeros.to(backend.complex_of(backend.compute_dtype(zeros.dtype)))

    def svdvals(self) -> torch.Tensor:
        return self._zeros(min(self.m, self.n), real=True)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        dtype, batch = self.dtype, self.batch
        if isinstance(factor, torch.Tensor):
            dtype = factor.dtype if dtype is None else torch.promote_types(dtype, factor.dtype)
            batch = tuple(torch.broadcast_shapes(batch, factor.shape[:-2]))
        elif isinstance(factor, complex) and dtype is not None:
            dtype = backend.complex_of(dtype)
        return Zero(self.m, self.n, dtype, self.device, batch)

    def _slice(self, rows: slice, columns: slice) -> Matrix:
        m, n = (len(range(*index.indices(size))) for index, size in ((rows, self.m), (columns, self.n)))
        return Zero(m, n, self.dtype, self.device, self.batch)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        picked = torch.empty(lead, device="meta")
        kept = picked[tuple(positions(i, s) if isinstance(i, slice) else i for i, s in zip(batch, lead, strict=False))]
        return Zero(self.m, self.n, self.dtype, self.device, tuple(kept.shape))

    def _properties(self) -> Claims:
        square = {Claim.SYMMETRIC, Claim.HERMITIAN} if self.m == self.n else set()
        return Claims(_TRIANGULAR | square, 0, {})

    def _statics(self) -> list[str]:
        return [] if self.dtype is not None else ["dtype=None"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        return backend.Plan("closed form", "every entry is zero", 0.0, float(8 * self.m * columns))

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """Zero, if the matrix is zero exactly; with tol its entries may be of any size below ``tol ||dense||_F``, so
        only ``tol >= 1`` accepts another one."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Zero":
        """Zero, at distance ``||dense||_F``."""
        return cls(int(dense.shape[-2]), int(dense.shape[-1]), dense.dtype, dense.device, tuple(dense.shape[:-2]))
