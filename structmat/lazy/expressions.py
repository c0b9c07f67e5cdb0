"""Products and scalings that are applied and never multiplied out.

These are the fallback rules of every verb, entered at ``Matrix`` itself; nearer rules win.
"""

import itertools
from typing import Any

import torch

from structmat import backend, dispatch
from structmat import claims as survive
from structmat._shell import broadcast, check_pair, require_floating
from structmat.claims import Claims
from structmat.errors import ShapeError, SolveError
from structmat.matrix import Matrix, matmul, scaled
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Product", "Scaled", "tree"]


def tree(name: str, parts: Any) -> str:
    """The repr of an expression, one part an indented line."""
    lines = [f"{name}("]
    for part in parts:
        lines += ["  " + line for line in repr(part).splitlines()]
    return "\n".join(lines) + "\n)"


def _common(parts: tuple[Matrix, ...]) -> torch.dtype | None:
    found: torch.dtype | None = None
    for part in parts:
        d = part.dtype
        found = d if found is None else found if d is None else torch.promote_types(found, d)
    return found


def _check_parts(name: str, parts: Any) -> None:
    """Fits of dtype, device and batch; the sizes are the business of each expression."""
    if not isinstance(parts, tuple) or not parts or not all(isinstance(p, Matrix) for p in parts):
        raise TypeError(f"{name}: a non-empty tuple of matrices is needed, got {type(parts).__name__}")
    for a, b in itertools.pairwise(parts):
        if a.dtype != b.dtype or a.device != b.device:
            check_pair(a, b, f"{name}: {a!r} and {b!r}")
    if sum(len(p.shape) > 2 for p in parts) > 1:
        broadcast(name, *(tuple(p.batch_shape) for p in parts))


class Product(Matrix):
    """``A_1 A_2 ... A_k``, applied factor by factor, the last first.

    Stores: factors, a tuple of matrices of fitting sizes. Shape: rows of the first, columns of the last, batches
            broadcast.
    Claims: what survives a product. Cost: the sum of the factors' costs.
    """

    factors: tuple[Matrix, ...]

    def _validate(self) -> None:
        _check_parts("Product", self.factors)
        for a, b in itertools.pairwise(self.factors):
            if a.shape[-1] != b.shape[-2]:
                raise ShapeError(f"Product: {a!r} has {a.shape[-1]} columns, {b!r} after it has {b.shape[-2]} rows")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, self.factors[0].shape[-2], self.factors[-1].shape[-1]))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(f.batch_shape for f in self.factors))

    @property
    def dtype(self) -> torch.dtype | None:
        return _common(self.factors)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        lone = x.ndim == 1 and len(self.shape) > 2
        y = x[None] if lone else x
        for factor in reversed(self.factors):
            y = factor.linear(y)
        return y[..., 0, :] if lone else y

    def transpose(self) -> Matrix:
        return Product(tuple(f.transpose() for f in reversed(self.factors)))

    def conj(self) -> Matrix:
        return Product(tuple(f.conj() for f in self.factors))

    def prepare(self) -> Matrix:
        """Each factor prepared."""
        parts = tuple(f.prepare() for f in self.factors)
        return self if all(p is f for p, f in zip(parts, self.factors, strict=True)) else Product(parts)

    def inv(self) -> Matrix:
        if all(f.shape[-2] == f.shape[-1] for f in self.factors):
            return Product(tuple(f.inv() for f in reversed(self.factors)))
        inverse: Matrix = super().inv()
        return inverse

    def _properties(self) -> Claims:
        known = self.factors[0].claims
        for factor in self.factors[1:]:
            known = survive.product(known, factor.claims)
        return known

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense" or any(f.shape[-2] != f.shape[-1] for f in self.factors):
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "auto")
        x, steps = y, 0
        for factor in self.factors:
            x, info = factor._solve_rows(x, Options(check=options.check))
            steps += info.steps
        return x, self._checked(x, y, "factor by factor", steps, options, ("each factor is square",))

    def _factor(self, method: str) -> Factorisation:
        square = all(f.shape[-2] == f.shape[-1] for f in self.factors)
        return Factorisation(self) if method == "auto" and square else super()._factor(method)

    def _norm_bound(self) -> torch.Tensor:
        bound = self.factors[0]._norm_bound()
        for factor in self.factors[1:]:
            bound = bound * factor._norm_bound()
        return bound

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        if any(f.shape[-2] != f.shape[-1] for f in self.factors):
            return super().slogdet()
        sign, logabs = self.factors[0].slogdet()
        for factor in self.factors[1:]:
            s, value = factor.slogdet()
            sign, logabs = sign * s, logabs + value
        return sign, logabs

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Product(tuple(f._picked(batch, lead) for f in self.factors))

    def __repr__(self) -> str:
        return tree("Product", self.factors)


class Scaled(Matrix):
    """``s A``. Stores: matrix, and scale, a number (static) or a tensor of shape () or (*batch, 1, 1)."""

    matrix: Matrix
    scale: complex | torch.Tensor

    def _validate(self) -> None:
        if isinstance(self.scale, torch.Tensor):
            require_floating("Scaled", scale=self.scale)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch_shape, *self.matrix.shape[-2:]))

    @property
    def batch_shape(self) -> torch.Size:
        lead = self.scale.shape[:-2] if isinstance(self.scale, torch.Tensor) else ()
        return torch.broadcast_shapes(self.matrix.batch_shape, lead)

    @property
    def dtype(self) -> torch.dtype | None:
        inner = self.matrix.dtype
        if isinstance(self.scale, torch.Tensor):
            return self.scale.dtype if inner is None else torch.promote_types(inner, self.scale.dtype)
        if isinstance(self.scale, complex):
            return None if inner is None else backend.complex_of(inner)
        return inner

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self.matrix.linear(x) * self._for(x)

    def _for(self, x: torch.Tensor) -> Any:
        lone = isinstance(self.scale, torch.Tensor) and self.scale.ndim > 1 and x.ndim == 1
        return self.scale[..., 0] if lone and isinstance(self.scale, torch.Tensor) else self.scale

    def transpose(self) -> Matrix:
        return Scaled(self.matrix.transpose(), self.scale)

    def conj(self) -> Matrix:
        return Scaled(self.matrix.conj(), _conj(self.scale))

    def prepare(self) -> Matrix:
        """The matrix prepared, the scale beside it."""
        inner = self.matrix.prepare()
        return self if inner is self.matrix else Scaled(inner, self.scale)

    def inv(self) -> Matrix:
        if not isinstance(self.scale, torch.Tensor) and self.scale == 0:
            raise SolveError(f"{self!r}.inv: singular, the scale is zero; see pinv", float("inf"))
        return Scaled(self.matrix.inv(), 1 / self.scale)

    def diagonal(self) -> torch.Tensor:
        return self.matrix.diagonal() * self._flat(1)

    def norm(self) -> torch.Tensor:
        size = self.scale.abs() if isinstance(self.scale, torch.Tensor) else abs(self.scale)
        return self.matrix.norm() * (size[..., 0, 0] if isinstance(size, torch.Tensor) and size.ndim else size)

    def _flat(self, keep: int) -> Any:
        """The factor for results with ``keep`` trailing dimensions."""
        s = self.scale
        return s if not isinstance(s, torch.Tensor) or s.ndim == 0 else s[..., 0] if keep else s[..., 0, 0]

    def _properties(self) -> Claims:
        s = self.scale
        if isinstance(s, torch.Tensor):
            return survive.scale(self.matrix.claims, None, real=not s.is_complex())
        return survive.scale(self.matrix.claims, s, real=not isinstance(s, complex))

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Scaled(self.matrix, self.scale * factor)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        self._refuse_zero(y, options)
        x, info = self.matrix._solve_rows(y / self.scale, options)
        return x, info

    def _refuse_zero(self, y: torch.Tensor, options: Options) -> None:
        """A zero scale is singular, whatever the matrix; a tensor is looked at only where values may be read."""
        s = self.scale
        readable = options.check and backend.eager(y, *self.tensors())
        if (
            bool((s == 0).any())
            if isinstance(s, torch.Tensor) and readable
            else not isinstance(s, torch.Tensor) and s == 0
        ):
            raise SolveError(f"{self!r}.solve: singular, the scale is zero; see pinv", float("inf"))

    def _factor(self, method: str) -> Factorisation:
        return Factorisation(self) if method == "auto" else super()._factor(method)

    def _norm_bound(self) -> torch.Tensor:
        size = self._flat(0)
        return self.matrix._norm_bound() * (size.abs() if isinstance(size, torch.Tensor) else abs(size))

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        n = self.shape[-1]
        sign, logabs = self.matrix.slogdet()
        s = self._flat(0)
        s = s if isinstance(s, torch.Tensor) else torch.as_tensor(s, dtype=self.dtype, device=self.device)
        return sign * torch.sgn(s) ** n, logabs + n * torch.log(s.abs())

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        s = self.scale
        s = s.expand(*lead, 1, 1)[batch] if isinstance(s, torch.Tensor) and s.ndim else s
        return Scaled(self.matrix._picked(batch, lead), s)

    def __repr__(self) -> str:
        s = self.scale
        shown = "tensor" if isinstance(s, torch.Tensor) else s if isinstance(s, int) else f"{s:.6g}"
        return tree(f"Scaled[{shown}]", (self.matrix,))


@dispatch.rule("matmul", Matrix, Matrix)
def _product(a: Matrix, b: Matrix) -> Matrix:
    """Lazy: the factors side by side; two that meet are multiplied where their product is closed."""
    left, right = _factors(a), _factors(b)
    if len(left) + len(right) == 2:
        closed = _unscaled(a, b)
        return Product((a, b)) if closed is None else closed
    met = matmul(left[-1], right[0])
    if isinstance(met, Product) and [type(f) for f in met.factors] == [type(left[-1]), type(right[0])]:
        return Product((*left, *right))
    if left[:-1]:
        met = matmul(_of(left[:-1]), met)
    return matmul(met, _of(right[1:])) if right[1:] else met


def _factors(a: Matrix) -> tuple[Matrix, ...]:
    return a.factors if isinstance(a, Product) and not a._assumed else (a,)


def _of(factors: tuple[Matrix, ...]) -> Matrix:
    return factors[0] if len(factors) == 1 else Product(factors)


def _unscaled(a: Matrix, b: Matrix) -> Matrix | None:
    """``(s A) B = s (A B)``, if A B is closed: s I times any matrix is of that matrix's type."""
    for one, other, first in ((a, b, True), (b, a, False)):
        if isinstance(one, Scaled) and not one._assumed:
            inner = matmul(one.matrix, other) if first else matmul(other, one.matrix)
            if not isinstance(inner, Product):
                return scaled(inner, one.scale)
    return None


@dispatch.rule("scaled", Matrix)
def _scaled(a: Matrix, factor: Any) -> Matrix:
    """Lazy: the factor beside the matrix."""
    return Scaled(a, factor)


def _conj(factor: Any) -> Any:
    if isinstance(factor, torch.Tensor):
        return factor.conj().resolve_conj()
    return factor.conjugate()
