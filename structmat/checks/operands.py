"""What the checks look at: all entries in float64, or, where there are too many, products with Gaussian vectors."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from scipy.sparse.linalg import LinearOperator

from structmat import backend
from structmat.errors import ShapeError
from structmat.lazy import Implicit
from structmat.matrix import Matrix
from structmat.types.dense import Dense

__all__ = ["DENSE_ENTRIES", "PROBES", "Operand", "Operator", "checked", "eps_of", "from_entries", "mean_norm", "wide"]

Operand = Matrix | torch.Tensor
DENSE_ENTRIES = 1 << 20  # a matrix with at most so many entries (8 MB in float64, batch included) is formed
PROBES = 10
_SINGLE = (torch.float32, torch.complex64, torch.float16, torch.bfloat16)
_WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}


def checked(a: Any) -> Operand:
    """A Matrix or a tensor as it is, a numpy array as a tensor, a scipy LinearOperator as an ``Implicit``."""
    if isinstance(a, LinearOperator):
        return _of_scipy(a)
    if isinstance(a, numpy.ndarray):
        a = torch.from_numpy(a)
    if not isinstance(a, (Matrix, torch.Tensor)):
        raise TypeError(
            f"checks: expected a Matrix, a tensor, a numpy array or a scipy LinearOperator, got {type(a).__name__}; "
            "a function becomes a matrix by structmat.Implicit"
        )
    if len(a.shape) < 2:
        raise ShapeError(f"a matrix of shape (*batch, m, n) is needed, got a tensor of shape {tuple(a.shape)}")
    return a


def _of_scipy(a: Any) -> Matrix:
    """Products and transposed products of the operator, on the CPU; scipy multiplies columns."""
    dtype = torch.from_numpy(numpy.zeros(1, a.dtype if a.dtype is not None else numpy.float64)).dtype

    def rows(x: torch.Tensor, product: Callable[[Any], Any]) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).numpy()
        found = torch.from_numpy(numpy.ascontiguousarray(numpy.asarray(product(flat.T)).T))
        return found.reshape(*x.shape[:-1], found.shape[-1])

    def forward(x: torch.Tensor) -> torch.Tensor:
        return rows(x, a.matmat)

    def transposed(y: torch.Tensor) -> torch.Tensor:
        return rows(y, lambda columns: numpy.conj(a.rmatmat(numpy.conj(columns))))

    return Implicit(a.shape, forward, transposed, dtype)


def from_entries(a: Operand, probes: int | None) -> bool:
    """Whether all entries are looked at: not if products are asked for, nor if a Matrix has more than
    ``DENSE_ENTRIES``."""
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
        raise ValueError(f"checks: probes={probes!r}; legal are the whole numbers from 1 (10 are usual), or None")
    return probes is None and (not isinstance(a, Matrix) or math.prod(a.shape) <= DENSE_ENTRIES)


def wide(a: Operand) -> torch.Tensor:
    """All entries in float64 or complex128, detached; NaN and infinite entries raise."""
    entries = (a.to_dense() if isinstance(a, Matrix) else a).detach().resolve_conj()
    found = entries.to(_WIDE.get(entries.dtype, torch.float64))
    refuse_nan(found, a)
    return found


def refuse_nan(found: torch.Tensor, a: Operand) -> None:
    if found.numel() == 0:
        return
    least, most = torch.aminmax(torch.view_as_real(found) if found.is_complex() else found)
    if not (math.isfinite(least) and math.isfinite(most)):
        what = "NaN" if math.isnan(most) else "an infinite number"
        raise ValueError(f"{type(a).__name__} of shape {tuple(a.shape)} holds {what}: nothing can be measured")


def eps_of(a: Operand) -> float:
    """eps of the dtype computed in: half and bfloat16 matrices compute in float32, but a dense half tensor is rounded
    to half."""
    dtype = a.dtype or torch.get_default_dtype()
    if not (dtype.is_floating_point or dtype.is_complex):
        return float(torch.finfo(torch.float64).eps)
    if isinstance(a, Matrix) and not hasattr(a, "entries") and dtype in (torch.float16, torch.bfloat16):
        return 2 * torch.finfo(dtype).eps  # factors are computed in float32, and the dense result is rounded once
    return float(torch.finfo(dtype).eps)


def mean_norm(rows: torch.Tensor) -> torch.Tensor:
    """The root of the mean squared norm of the rows ``(*b, k, n)``, ``(*b)``; no square overflows."""
    if rows.numel() == 0:
        return torch.zeros(rows.shape[:-2], dtype=torch.float64, device=rows.device)
    size = torch.linalg.vector_norm(rows, dim=(-2, -1))
    if bool(((size < 1e-150) | ~torch.isfinite(size)).any()):
        top = rows.abs().amax((-2, -1), keepdim=True)
        top = torch.where(top > 0, top, 1.0)
        size = torch.linalg.vector_norm(rows / top, dim=(-2, -1)) * top[..., 0, 0]
    return size / math.sqrt(rows.shape[-2])


@dataclasses.dataclass(frozen=True)
class Operator:
    """A matrix as two functions of rows, in float64 or complex128 outside, in its own dtype inside.

    ``forward(x) = x A^T``, ``adjoint(y) = y conj(A)`` (A^H for every row). ``gaussian(k, n)`` draws rows; the first
    products ``z -> A z`` are made once, and all checks of one matrix share them.
    """

    matrix: Operand
    forward: Callable[[torch.Tensor], torch.Tensor]
    adjoint: Callable[[torch.Tensor], torch.Tensor]
    generator: torch.Generator
    probes: int
    eps: float
    real: bool

    @classmethod
    def of(cls, a: Operand, probes: int | None = None, generator: torch.Generator | None = None) -> "Operator":
        """The products of a matrix; without a generator the vectors are those of seed 0."""
        matrix = a if isinstance(a, Matrix) else Dense(a.detach())
        given = matrix.dtype or torch.get_default_dtype()
        dtype = backend.compute_dtype(given)
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        back = matrix.mH

        def through(product: Matrix) -> Callable[[torch.Tensor], torch.Tensor]:
            def call(x: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    inside = x.to(dtype if dtype.is_complex or not x.is_complex() else backend.complex_of(dtype))
                    y = product.linear(inside).detach().resolve_conj()
                found = y.to(torch.complex128 if y.is_complex() else torch.float64)
                refuse_nan(found, a)
                return found

            return call

        real = not dtype.is_complex
        return cls(a, through(matrix), through(back), generator, probes or PROBES, eps_of(a), real)

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.matrix.shape[-2]), int(self.matrix.shape[-1])

    @property
    def device(self) -> torch.device:
        return self.matrix.device or torch.device("cpu")

    @property
    def method(self) -> str:
        """How it was looked at, for the report."""
        return f"{self.probes} Gaussian products, seed {self.generator.initial_seed()}"

    def gaussian(self, count: int, length: int) -> torch.Tensor:
        """Independent standard rows ``(count, length)``; complex ones of unit variance for a complex matrix."""
        drawn = torch.float32 if self.matrix.dtype in _SINGLE else torch.float64
        dtype = drawn if self.real else backend.complex_of(drawn)
        z = torch.randn(count, length, generator=self.generator, dtype=dtype, device=self.generator.device)
        return z.to(self.device, torch.float64 if self.real else torch.complex128)

    def unit(self, place: int, length: int) -> torch.Tensor:
        """One row, zero but for a one."""
        row = torch.zeros(1, length, dtype=torch.float64, device=self.device)
        row[0, place] = 1
        return row

    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """``y A``: A^T for every row."""
        return self.adjoint(y.conj().resolve_conj()).conj().resolve_conj()

    @functools.cached_property
    def z(self) -> torch.Tensor:
        return self.gaussian(self.probes, self.shape[1])

    @functools.cached_property
    def az(self) -> torch.Tensor:
        return self.forward(self.z)

    @functools.cached_property
    def size(self) -> torch.Tensor:
        """An estimate of ``||A||_F``, ``(*b)``."""
        return mean_norm(self.az)

    @functools.cached_property
    def noise(self) -> torch.Tensor:
        """What rounding may do to a product with a Gaussian vector, ``4 eps (1 + log2 N) ||A||_2 ||z||``, ``(*b)``.

        ``||A||_2`` is at least ``||A||_F / sqrt(n)``, and where few singular values dominate ``||A^H A z|| / ||A z||``.
        """
        m, n = self.shape
        once = self.az[..., :1, :]
        length = torch.linalg.vector_norm(once, dim=-1)
        largest = torch.linalg.vector_norm(self.adjoint(once / torch.where(length > 0, length, 1)[..., None]), dim=-1)
        reach = torch.maximum(self.size, math.sqrt(n) * largest[..., 0])
        return 4 * self.eps * (1 + math.log2(max(2, m, n))) * reach
