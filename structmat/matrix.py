"""The contract of a structured matrix, and everything that follows from it.

Three primitives define a matrix: ``shape``, ``linear(x) = x A^T`` and ``transpose()``. A subclass written as annotated
fields and these three is complete: all other verbs are derived here, in ``_verbs`` and in ``_indexing``, and overridden
where structure helps. Verbs of two matrices are rules of ``structmat.dispatch``.
"""

import functools
from collections.abc import Callable
from typing import Any, Self

import numpy
import torch

from structmat import claims as survive
from structmat import dispatch
from structmat._indexing import Indexing
from structmat._shell import (
    as_factor,
    as_operand,
    broadcast,
    check_makers,
    check_pair,
    common_dtype,
    name_of,
    refuse_numpy,
)
from structmat._value import static
from structmat.claims import Claim, Claims
from structmat.errors import ShapeError, StructureError

__all__ = ["Matrix", "add", "hadamard", "kron", "matmul", "scaled", "static"]


class Matrix(Indexing):
    """An immutable structured matrix, or a batch of them: shape ``(*batch, m, n)``.

    Fields hold tensors (differentiable, moved by ``to``) or static values. ``A @ x``, ``x @ A`` and ``A @ B`` follow
    ``torch.matmul``; ``tensor + A``, ``A + B``, ``s * A`` follow the usual algebra, and keep structure where it is
    closed.
    """

    # -- the contract ---------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        raise TypeError(f"{type(self).__name__} must define the property shape")

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """``x @ A.mT``, the meaning of ``torch.nn.functional.linear(x, A)``: ``(..., n) -> (..., m)``; nothing is
        checked.

        A batched A takes ``(*batch, k, n)`` with broadcasting; x of one dimension is one row.
        """
        raise TypeError(f"{type(self).__name__} must define linear(x)")

    def transpose(self) -> "Matrix":
        """A^T, plain also for complex entries."""
        raise TypeError(f"{type(self).__name__} must define transpose()")

    def __init_subclass__(cls, **options: Any) -> None:
        for verb, survives in survive.CARRIED.items():
            if verb in cls.__dict__:
                setattr(cls, verb, _carrying(cls.__dict__[verb], survives))
        check_makers(cls)
        super().__init_subclass__(**options)

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def batch_shape(self) -> torch.Size:
        if self.core:
            lead = [t.shape[: t.ndim - self.core[name]] for name, t in self._named_tensors() if name in self.core]
            return torch.broadcast_shapes(*lead) if len(lead) > 1 else torch.Size(lead[0]) if lead else torch.Size()
        return self.shape[:-2]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the entries; None for a type without entries, which adopts the other operand's."""
        found: torch.dtype | None = None
        for t in self.tensors():
            if t.is_floating_point() or t.is_complex():
                found = t.dtype if found is None or found == t.dtype else torch.promote_types(found, t.dtype)
        return found

    @property
    def device(self) -> torch.device | None:
        return next((t.device for t in self.tensors()), None)

    @property
    def mT(self) -> "Matrix":
        return self.transpose()

    @property
    def mH(self) -> "Matrix":
        return self.transpose().conj()

    def conj(self) -> "Matrix":
        """The entrywise conjugate: tensors are conjugated, and complex static numbers."""
        new = self._map(lambda _, t: t.conj().resolve_conj() if t.is_complex() else t)
        for name, _ in self._layout:
            if isinstance(held := getattr(new, name), complex):
                object.__setattr__(new, name, held.conjugate())
        return new

    def _properties(self) -> Claims:
        """Claims that follow from the type and its static fields."""
        return Claims()

    @property
    def claims(self) -> Claims:
        """What is known without looking at values: properties, a rank bound, displacement rank bounds."""
        m, n = self.shape[-2:]
        dtype = self.dtype
        known = self._properties().with_properties(self._assumed)
        return known.closed(square=m == n, real=dtype is not None and not dtype.is_complex)  # 1j I has no dtype yet

    def assume(self, *claims: Claim) -> Self:
        """The same matrix with claims you vouch for; nothing is measured (``structmat.checks`` measures)."""
        wrong = [c for c in claims if not isinstance(c, Claim)]
        if wrong:
            raise ValueError(f"assume({wrong[0]!r}): legal claims are {', '.join(map(repr, Claim))}")
        square_only = {Claim.SYMMETRIC, Claim.HERMITIAN, Claim.POSITIVE_DEFINITE, Claim.ORTHOGONAL} & set(claims)
        if square_only and self.shape[-2] != self.shape[-1]:
            raise ShapeError(f"{self!r}.assume({next(iter(square_only))!r}): the matrix is not square")
        many = Claim.ORTHONORMAL_ROWS if self.shape[-2] > self.shape[-1] else Claim.ORTHONORMAL_COLUMNS
        if many in claims and self.shape[-2] != self.shape[-1]:
            raise ShapeError(f"{self!r}.assume({many!r}): there are more of them than the other side has entries")
        return self._vouched(claims)

    def _vouched(self, claims: Any) -> Self:
        new = self._map(lambda _, t: t)
        object.__setattr__(new, "_assumed", self._assumed | frozenset(claims))
        return new

    def rank_bound(self) -> int:
        """An upper bound of the rank of each matrix of the batch."""
        return min(int(self.shape[-2]), int(self.shape[-1]), *([r] if (r := self.claims.rank) is not None else []))

    def __repr__(self) -> str:
        try:
            parts = [f"shape={tuple(self.shape)}", *self._statics()]
            if self.dtype is not None:
                parts.append(f"dtype={name_of(self.dtype)}")
            if self.device is not None and self.device.type != "cpu":
                parts.append(f"device={self.device}")
        except (AttributeError, TypeError):  # fields replaced by placeholders inside a torch transform
            parts = ["..."]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _statics(self) -> list[str]:
        """Static fields worth showing, as ``name=value``."""
        return []

    # -- conversions ----------------------------------------------------------------------------------------------

    def to_dense(self) -> torch.Tensor:
        """The ``(*batch, m, n)`` tensor of all entries; n^2 storage, asked for by name."""
        return self.linear(self._eye(int(self.shape[-1]))).mT

    def _eye(self, n: int) -> torch.Tensor:
        return torch.eye(n, dtype=self.dtype or torch.get_default_dtype(), device=self.device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> numpy.ndarray:
        return numpy.asarray(self.to_dense().detach().cpu().resolve_conj().numpy(), dtype=dtype)

    __array_ufunc__ = None  # ndarray @ A and np.float64(2) * A reach our methods

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return refuse_numpy(function)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth value of {self!r} is not defined; compare with structmat.allclose")

    # -- operators ------------------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Matrix):
            return matmul(self, other)
        x = self._checked_operand(other, columns_first=True)
        return self.linear(x) if x.ndim == 1 else self.linear(x.mT).mT

    def __rmatmul__(self, other: Any) -> torch.Tensor:
        x = self._checked_operand(other, columns_first=False)
        return self.transpose().linear(x)

    def _checked_operand(self, other: Any, *, columns_first: bool) -> torch.Tensor:
        if isinstance(other, torch.Tensor) and 0 < other.ndim < 3 and other.dtype == self.dtype:
            axis = -1 if other.ndim == 1 or not columns_first else -2
            if other.shape[axis] == self.shape[-1 if columns_first else -2] and other.device == self.device:
                return other  # nothing is wrong, so no message is composed
        place = f"{self!r} @ x" if columns_first else f"x @ {self!r}"
        x = as_operand(other, self.dtype, self.device, place)
        if x.ndim == 0:
            raise ShapeError(f"{place}: x is a scalar; scale with A * x")
        mine, what = (int(self.shape[-1]), "columns") if columns_first else (int(self.shape[-2]), "rows")
        axis = -1 if x.ndim == 1 or not columns_first else -2
        if x.shape[axis] != mine:
            theirs = "entries" if x.ndim == 1 else "rows" if columns_first else "columns"
            raise ShapeError(f"{place}: x has {x.shape[axis]} {theirs}, {type(self).__name__} has {mine} {what}")
        check_pair(self, x, place)
        if x.ndim > 2 and len(self.shape) > 2:
            broadcast(place, self.batch_shape, x.shape[:-2])
        return x

    def __mul__(self, other: Any) -> "Matrix":
        return hadamard(self, other) if isinstance(other, Matrix) else scaled(self, other)

    def __rmul__(self, other: Any) -> "Matrix":
        return scaled(self, other)

    def __truediv__(self, other: Any) -> "Matrix":
        if isinstance(other, Matrix):
            raise StructureError(f"{self!r} / {other!r}: use A @ B.inv(), or B.mT.solve(A.mT.to_dense()).mT")
        factor = as_factor(other, self)
        return scaled(self, 1 / factor)

    def __neg__(self) -> "Matrix":
        return scaled(self, -1)

    def __add__(self, other: Any) -> "Matrix":
        return add(self, other)

    def __radd__(self, other: Any) -> "Matrix":
        return add(other, self)

    def __sub__(self, other: Any) -> "Matrix":
        return add(self, -other)

    def __rsub__(self, other: Any) -> "Matrix":
        return add(other, -self)

    def _linear_kept(self, kept: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
        """``linear`` from what ``prepare`` kept; types whose ``prepare`` keeps something override it."""
        return self.linear(x)

    def _scale(self, factor: complex | torch.Tensor) -> "Matrix":
        """s A for a checked s; types that are closed under scaling put it into their entries."""
        result: Matrix = dispatch.lookup("scaled", type(self))(self, factor)  # type: ignore[misc]
        return result


# -- verbs of two matrices ----------------------------------------------------------------------------------------


def matmul(a: Matrix, b: Matrix) -> Matrix:
    """``A @ B``: closed where a rule says so, lazy otherwise. Raises ShapeError, DtypeError, DeviceError."""
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"{a!r} @ {b!r}: the left has {a.shape[-1]} columns, the right has {b.shape[-2]} rows")
    a, b = _met(a, b, "@")
    return _joined("matmul", a, b, survive.product)


def add(a: Any, b: Any) -> Matrix:
    """``A + B``: closed where a rule says so, lazy otherwise; a tensor or numpy array of the full shape is a
    ``Dense``."""
    left, right = _as_matrix(a, b), _as_matrix(b, a)
    if left.shape[-2:] != right.shape[-2:]:
        raise ShapeError(f"{left!r} + {right!r}: sizes {tuple(left.shape[-2:])} and {tuple(right.shape[-2:])} differ")
    left, right = _met(left, right, "+")
    return _joined("add", left, right, survive.sum_of)


def scaled(a: Matrix, factor: Any) -> Matrix:
    """``s A`` for a number or a tensor of shape () or (*batch, 1, 1)."""
    s = as_factor(factor, a)
    result = a._scale(s)
    if a._assumed:
        number = None if isinstance(s, torch.Tensor) else s
        real = not (s.is_complex() if isinstance(s, torch.Tensor) else isinstance(s, complex))
        result = result._vouched(survive.scale(a.claims, number, real=real).properties)
    return result


def hadamard(a: Matrix, b: Matrix) -> Matrix:
    """The entrywise product ``A * B`` where it is closed; else StructureError."""
    if a.shape[-2:] != b.shape[-2:]:
        raise ShapeError(f"{a!r} * {b!r}: sizes {tuple(a.shape[-2:])} and {tuple(b.shape[-2:])} differ")
    a, b = _met(a, b, "*")
    if dispatch.lookup("hadamard", type(a), type(b)) is None:
        raise StructureError(
            f"{a!r} * {b!r}: the entrywise product has no structured form; use Dense(A.to_dense()) * B"
        )
    return _joined("hadamard", a, b, survive.entrywise)


def kron(a: Matrix, b: Matrix) -> Matrix:
    """The Kronecker product where a rule gives it; row index ``i_A m_B + i_B``."""
    a, b = _met(a, b, "kron")
    square = a.shape[-1] == a.shape[-2] and b.shape[-1] == b.shape[-2]
    return _joined("kron", a, b, functools.partial(survive.kron, square=square))


def _joined(verb: str, a: Matrix, b: Matrix, survives: Callable[[Claims, Claims], Claims]) -> Matrix:
    """The result of the nearest rule, with what survives of the claims that were vouched for."""
    result: Matrix = dispatch.call(verb, a, b)
    return result._vouched(survives(a.claims, b.claims).properties) if a._assumed or b._assumed else result


def _met(a: Matrix, b: Matrix, verb: str) -> tuple[Matrix, Matrix]:
    """Both operands, checked; one without a dtype (0.1 I) takes that of the other, so that nothing runs in the
    default."""
    if a.dtype != b.dtype or a.device != b.device:
        check_pair(a, b, f"{a!r} {verb} {b!r}")
        if b.dtype is None:
            b = b.to(dtype=a.dtype, device=a.device)
        elif a.dtype is None:
            a = a.to(dtype=b.dtype, device=b.device)
    if len(a.shape) > 2 and len(b.shape) > 2:
        broadcast(f"{a!r} {verb} {b!r}", a.batch_shape, b.batch_shape)
    return a, b


def _as_matrix(value: Any, other: Any) -> Matrix:
    if isinstance(value, Matrix):
        return value
    place = f"{type(value).__name__} + {other!r}"
    if isinstance(value, (int, float, complex)):
        raise TypeError(
            f"{place}: adding a number to every entry loses the structure; Identity(n) * s adds it to the diagonal"
        )
    tensor = as_operand(value, other.dtype, other.device, place)
    if tensor.ndim < 2:
        raise ShapeError(f"{place}: the tensor has shape {tuple(tensor.shape)}, a matrix needs (*batch, m, n)")
    result: Matrix = dispatch.call("wrap", tensor)
    return result


def _carrying(method: Callable[[Any], Any], survives: Callable[[Claims], Claims]) -> Callable[[Any], Any]:
    """The method, with the vouched claims that survive it carried to the result."""

    @functools.wraps(method)
    def carried(self: Any) -> Any:
        result = method(self)
        if self._assumed:
            result = result._vouched(survives(Claims(self._assumed)).properties)
        return result

    return carried


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """``torch.allclose`` of the dense entries of two matrices or tensors; n^2 work, asked for by name."""
    x, y = (v.to_dense() if isinstance(v, Matrix) else v for v in (a, b))
    common = common_dtype(x.dtype, y.dtype, "allclose") or x.dtype
    return bool(torch.allclose(x.to(common), y.to(common), rtol=rtol, atol=atol))
