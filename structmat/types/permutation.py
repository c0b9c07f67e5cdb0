"""Permutation matrices: one index a row."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy
import scipy.optimize
import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, ShapeError
from structmat.functional import permutation as fp
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Permutation"]


class Permutation(Matrix):
    """``(A @ x)[i] = x[indices[i]]``: row i has its one at column ``indices[i]``.

    Stores:   indices (*batch, n), integers (a list or an array is turned into a tensor); they move with ``to`` and are
              a buffer in ``nn.Trainable``. ``dtype`` None adopts the other operand's.
    Shape:    (*batch, n, n).      Claims: orthogonal.
    Cost:     linear n reads a row; inverse O(n); slogdet and eigvals O(n log n), all elements of a batch at once.
    Closed:   X @ X, X kron X -> X; transpose, inv, pinv -> X.
    Raises:   DtypeError for indices that are no integers; ValueError for indices that are no permutation of 0 .. n-1
              (checked where values can be read: not under torch.compile or torch.func).
    Example:
        >>> Permutation([2, 0, 1]) @ torch.tensor([10.0, 20.0, 30.0])
        tensor([30., 10., 20.])
    References: D. E. Knuth, The Art of Computer Programming, vol. 1, 3rd ed., 1997, 1.3.3 (cycles).
    """

    core: ClassVar[Mapping[str, int]] = {"indices": 1}
    indices: torch.Tensor
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        given: Any = self.indices
        if isinstance(given, (list, tuple, range, numpy.ndarray)):
            array = numpy.asarray(given)
            object.__setattr__(self, "indices", torch.as_tensor(array.astype(numpy.int64) if not array.size else array))
        super().__post_init__()

    def _check_fields(self) -> None:
        """The one tensor holds integers: ``_validate`` looks at it."""

    def _validate(self) -> None:
        indices = self.indices
        if not isinstance(indices, torch.Tensor) or indices.is_floating_point() or indices.is_complex():
            shown = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
            raise DtypeError(f"Permutation: indices must be integers (*batch, n), got {shown}")
        if indices.dtype == torch.bool:
            raise DtypeError("Permutation: indices must be integers (*batch, n), got torch.bool; a mask has no order")
        if indices.ndim < 1:
            raise ShapeError("Permutation: indices must have at least 1 dimension, got a scalar")
        if self.dtype is not None and not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise DtypeError(f"Permutation(dtype={self.dtype}): legal dtypes are floating point or complex, or None")
        if indices.dtype != torch.int64:
            object.__setattr__(self, "indices", indices.to(torch.int64))
        if indices.device.type != "meta" and backend.eager(indices):
            self._check_indices()

    def _check_indices(self) -> None:
        n = int(self.indices.shape[-1])
        wrong = torch.sort(self.indices, -1).values != torch.arange(n, device=self.indices.device)
        if bool(wrong.any()):
            row = self.indices.reshape(-1, n)[wrong.reshape(-1, n).any(-1)][0]
            missing = sorted(set(range(n)) - set(row.tolist()))
            raise ValueError(
                f"Permutation: indices must hold each of 0 to {n - 1} once; {missing[0]} is missing"
                + (f" in {row.tolist()}" if n <= 16 else "")
            )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.indices.shape, self.indices.shape[-1]))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if self.dtype is None else x.to(torch.promote_types(self.dtype, x.dtype))
        return fp.pick(wide, self.indices)

    def transpose(self) -> Matrix:
        return Permutation(fp.inverse(self.indices), self.dtype)

    def conj(self) -> Matrix:
        return self

    def inv(self) -> Matrix:
        return Permutation(fp.inverse(self.indices), self.dtype)

    def pinv(self) -> Matrix:
        return self.inv()

    def to_dense(self) -> torch.Tensor:
        places = torch.arange(self.indices.shape[-1], device=self.indices.device)
        return (self.indices[..., None] == places).to(self._entry_dtype())

    def _entry_dtype(self) -> torch.dtype:
        return self.dtype or torch.get_default_dtype()

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        return self.inv().linear(y), SolveInfo("closed form", 0, None, ("the inverse permutation",))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The sign is that of the permutation, ``(-1)^(n - cycles)``; the logarithm is 0."""
        sign = fp.sign(self.indices).to(self._entry_dtype())
        return sign, torch.zeros_like(sign, dtype=backend.real_of(sign.dtype))

    def diagonal(self) -> torch.Tensor:
        n = self.indices.shape[-1]
        return (self.indices == torch.arange(n, device=self.indices.device)).to(self._entry_dtype())

    def norm(self) -> torch.Tensor:
        return self._norm_bound() * float(self.indices.shape[-1]) ** 0.5

    def _norm_bound(self) -> torch.Tensor:
        real = backend.real_of(self._entry_dtype())
        return torch.ones(self.batch_shape, dtype=real, device=self.indices.device)

    def eigvals(self) -> torch.Tensor:
        """The roots of unity ``exp(2 pi i k / L)``, k = 0 .. L-1, of each cycle of length L; in no promised order."""
        dtype = backend.complex_of(backend.compute_dtype(self._entry_dtype()))
        angle = fp.eigenvalue_angles(self.indices)
        return torch.polar(torch.ones_like(angle), angle).to(dtype)

    def svdvals(self) -> torch.Tensor:
        return torch.ones(self.indices.shape, dtype=backend.real_of(self._entry_dtype()), device=self.indices.device)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHOGONAL}))

    def _statics(self) -> list[str]:
        return [] if self.dtype is not None else ["dtype=None"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n = int(self.indices.shape[-1])
        return backend.Plan("closed form", "one index a row", 0.0, float((8 + 16 * columns) * n))

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> Matrix:
        """The permutation, if ``dense`` is one within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor) -> "Permutation":
        """The best in the Frobenius norm: it maximises ``sum_i Re dense[i, p(i)]``, a linear assignment (O(n^3), on
        the CPU; scipy.optimize.linear_sum_assignment)."""
        if dense.ndim < 2 or dense.shape[-1] != dense.shape[-2]:
            raise ShapeError(f"Permutation.nearest: a square matrix is needed, got shape {tuple(dense.shape)}")
        real = (dense.real if dense.is_complex() else dense).detach().to(torch.float64).cpu()
        each = real.reshape(math.prod(dense.shape[:-2]), *dense.shape[-2:])
        found = [scipy.optimize.linear_sum_assignment(a, maximize=True)[1] for a in each]
        indices = torch.as_tensor(numpy.stack(found) if found else numpy.zeros((0, dense.shape[-1])))
        return cls(indices.to(torch.int64).reshape(dense.shape[:-1]).to(dense.device), dense.dtype)

    @classmethod
    def random(cls, n: int, *, generator: Any = None, dtype: torch.dtype | None = None, device: Any = None) -> Any:
        """Uniform over all n! permutations."""
        return cls(torch.randperm(n, generator=generator, device=device), dtype)

    @classmethod
    def identity(cls, n: int, *, dtype: torch.dtype | None = None, device: Any = None) -> "Permutation":
        return cls(torch.arange(n, device=device), dtype)


@dispatch.rule("matmul", Permutation, Permutation)
def _compose(a: Permutation, b: Permutation) -> Matrix:
    """Permutation: ``(A B x)[i] = x[b[a[i]]]``."""
    return Permutation(fp.compose(a.indices, b.indices), _common(a, b))


@dispatch.rule("kron", Permutation, Permutation)
def _kron(a: Permutation, b: Permutation) -> Matrix:
    """Permutation: index ``a[i] n_B + b[j]`` at ``i n_B + j``."""
    return Permutation(fp.kron(a.indices, b.indices), _common(a, b))


def _common(a: Permutation, b: Permutation) -> torch.dtype | None:
    if a.dtype is None or b.dtype is None:
        return b.dtype if a.dtype is None else a.dtype
    return torch.promote_types(a.dtype, b.dtype)
