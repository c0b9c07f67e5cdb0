"""Kronecker products of any number of matrices of any types."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from structmat import backend, dispatch
from structmat import claims as survive
from structmat._nearest import distance_check
from structmat._shell import require_square
from structmat.claims import Claims
from structmat.errors import ShapeError, SolveError
from structmat.functional import kronecker as fk
from structmat.lazy import Sum
from structmat.lazy.expressions import _check_parts, _common, tree
from structmat.matrix import Matrix, matmul
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Kronecker", "KroneckerFactorisation"]

_COLUMNS = 8  # from so many columns on, dense factors multiply them from the left (measured)


class Kronecker(Matrix):
    """``A_1 kron A_2 kron ... kron A_L``: row index ``i_1 m_2 + i_2`` for two factors, as ``torch.kron``.

    Stores:   factors, a tuple of matrices of any types, square or not; batches broadcast.
    Shape:    (*batch, m_1 ... m_L, n_1 ... n_L).      Claims: what all factors have; the product of the ranks.
    Cost:     linear: each factor once along its own axis, in the cheapest order; solve, inv, slogdet, eigvals, svdvals,
              pinv, norm, trace, diagonal factor by factor. Memory: that of the factors and of x.
    Closed:   X @ X for factors that fit one to one -> X; s X, transpose, inv, pinv -> X; X kron A -> X.
    Raises:   TypeError for what is no tuple of matrices; SolveError for a square product of rectangular factors, which
              is singular, and where a factor is.
    Example:
        >>> A = Kronecker((sm.Diagonal(torch.tensor([1.0, 2.0])), sm.toeplitz([3.0, 1.0]).float()))
        >>> A @ torch.ones(4)
        tensor([4., 4., 8., 8.])
    References: C. F. Van Loan, The ubiquitous Kronecker product, 2000, sections 1 and 2.
    """

    factors: tuple[Matrix, ...]

    def _validate(self) -> None:
        _check_parts("Kronecker", self.factors)

    @property
    def shape(self) -> torch.Size:
        m, n, flat = 1, 1, True
        for factor in self.factors:
            size = factor.shape
            m, n, flat = m * size[-2], n * size[-1], flat and len(size) == 2
        return torch.Size((m, n) if flat else (*self.batch_shape, m, n))

    @property
    def batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(f.batch_shape for f in self.factors))

    @property
    def device(self) -> torch.device | None:
        return next((f.device for f in self.factors if f.device is not None), None)

    @property
    def dtype(self) -> torch.dtype | None:
        return _common(self.factors)

    def _all_square(self) -> bool:
        return all(f.shape[-2] == f.shape[-1] for f in self.factors)

    def _apply(self, x: torch.Tensor, products: Sequence[Callable[..., torch.Tensor]], flat: bool) -> torch.Tensor:
        """One product (or solve) a factor, each along its axis; the result stays in the dtype computed in."""
        shapes = [f.shape for f in self.factors]
        steps = [(product, int(s[-2]), int(s[-1]), len(s) > 2) for product, s in zip(products, shapes, strict=True)]
        return fk.apply(x.to(backend.compute_dtype(x.dtype)), steps, self._order(shapes), flat)

    def _order(self, shapes: Sequence[Sequence[int]]) -> Sequence[int]:
        """The cheapest order of the factors; that of square ones makes no difference."""
        if all(s[-2] == s[-1] for s in shapes):
            return range(len(shapes))
        return fk.cheapest_order([(int(s[-2]), int(s[-1])) for s in shapes], [_work(f) for f in self.factors])

    def _out(self, x: torch.Tensor) -> torch.dtype:
        return x.dtype if self.dtype is None else torch.promote_types(x.dtype, self.dtype)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        rows = 1 if x.ndim == 1 else int(x.shape[0]) if x.ndim == 2 else 0
        if rows == 1 or (rows >= _COLUMNS and x.stride(0) == 1):  # A @ X passes X.mT
            entries = self._dense_factors()
            if entries is not None and x.shape[-1] > 0:
                return fk.apply_dense(x, entries)
        return self._apply(x, [f.linear for f in self.factors], False).to(self._out(x))

    def _dense_factors(self) -> list[torch.Tensor] | None:
        """The entries where every factor is dense, square and without a batch; else None."""
        found = []
        for factor in self.factors:
            stored = dispatch.lookup("entries", type(factor))
            if stored is None or len(shape := factor.shape) != 2 or shape[0] != shape[1]:
                return None
            found.append(stored(factor))
        return found

    def transpose(self) -> Matrix:
        return Kronecker(tuple(f.transpose() for f in self.factors))

    def conj(self) -> Matrix:
        return Kronecker(tuple(f.conj() for f in self.factors))

    def to_dense(self) -> torch.Tensor:
        found = self._entries(self.factors[0])
        for factor in self.factors[1:]:
            b = self._entries(factor)
            pair = found[..., :, None, :, None] * b[..., None, :, None, :]
            found = pair.flatten(-4, -3).flatten(-2)
        return found.to(self.dtype or found.dtype)

    def _entries(self, factor: Matrix) -> torch.Tensor:
        """Dense entries of a factor, in the dtype computed in; one without a dtype takes that of the product."""
        dense = factor.linear(torch.eye(int(factor.shape[-1]), dtype=self._wide_dtype(), device=self.device)).mT
        return dense.expand(*factor.batch_shape, *dense.shape[-2:])

    def _wide_dtype(self) -> torch.dtype:
        return backend.compute_dtype(self.dtype or torch.get_default_dtype())

    def _alike(self, wide: bool = True) -> list[Matrix]:
        """The factors; those without a dtype in that of the others, half precision in the dtype computed in."""
        dtype = self.dtype
        if dtype is None:
            return list(self.factors)
        known = backend.compute_dtype(dtype) if wide else dtype
        return [f if f.dtype is not None and known == dtype else f.to(dtype=known) for f in self.factors]

    # -- inverse and solve ----------------------------------------------------------------------------------------

    def inv(self) -> Matrix:
        require_square(self, "inv")
        if not self._all_square():
            raise self._singular("inv")
        return Kronecker(tuple(f.inv() for f in self.factors))

    def pinv(self) -> Matrix:
        """Factor by factor: singular values of a factor below its own ``max(m_i, n_i) eps sigma_1`` count as zero."""
        return Kronecker(tuple(f.pinv() for f in self._alike(wide=False)))

    def _singular(self, verb: str) -> SolveError:
        return SolveError(f"{self!r}.{verb}: singular, the factors are not square; see pinv and lstsq", float("inf"))

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if not self._all_square():
            raise self._singular("solve")
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "factor by factor")
        inner = Options(check=options.check)
        x = self._apply(y, [_solver(f, inner) for f in self.factors], flat=True)
        info = self._checked(x, y, "factor by factor", len(self.factors), options, ("each factor is square",))
        return x, info

    def _factor(self, method: str) -> Factorisation:
        if not self._all_square():
            raise self._singular("factor")
        if method == "dense":
            return super()._factor(method)
        return KroneckerFactorisation(self, "factor by factor", tuple(f.factor() for f in self._alike()))

    # -- determinants, entries and spectra ------------------------------------------------------------------------

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``det(A kron B) = det(A)^n_B det(B)^n_A``; exactly zero where the factors are not square."""
        n = require_square(self, "slogdet")
        if not self._all_square():
            zero = torch.zeros(self.batch_shape, dtype=self._wide_dtype(), device=self.device)
            return self._cast(zero), self._cast(zero.abs() - torch.inf, real=True)
        sign, logabs = _determinant([f.slogdet() for f in self._alike()], [int(f.shape[-1]) for f in self.factors], n)
        return self._cast(sign), self._cast(logabs, real=True)

    def diagonal(self) -> torch.Tensor:
        if not self._all_square():
            found: torch.Tensor = super().diagonal()
            return found
        return self._cast(fk.outer([f.diagonal() for f in self._alike()]))

    def trace(self) -> torch.Tensor:
        require_square(self, "trace")
        if not self._all_square():
            return self.diagonal().sum(-1)
        return self._cast(_product([f.trace() for f in self._alike()]))

    def norm(self) -> torch.Tensor:
        return self._cast(_product([f.norm() for f in self._alike()]), real=True)

    def _norm_bound(self) -> torch.Tensor:
        return _product([f._norm_bound() for f in self._alike()])

    def eigvals(self) -> torch.Tensor:
        """All products ``lambda_i mu_j``, the last index running fastest; complex."""
        require_square(self, "eigvals")
        if not self._all_square():
            found: torch.Tensor = super().eigvals()
            return found
        return fk.outer([f.eigvals() for f in self._alike()])

    def svdvals(self) -> torch.Tensor:
        found = torch.sort(fk.outer([f.svdvals() for f in self._alike()]), -1, descending=True).values
        missing = int(min(self.shape[-2:])) - int(found.shape[-1])
        return self._cast(torch.nn.functional.pad(found, (0, missing)), real=True)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        """The number goes into the first factor that has a dtype."""
        k = next((i for i, f in enumerate(self.factors) if f.dtype is not None), None)
        if k is None:
            lazy: Matrix = super()._scale(factor)
            return lazy
        return Kronecker(tuple(f._scale(factor) if i == k else f for i, f in enumerate(self.factors)))

    def _properties(self) -> Claims:
        known, square = self.factors[0].claims, self._all_square()
        for other in self.factors[1:]:
            known = survive.kron(known, other.claims, square=square)
        rank = math.prod([f.rank_bound() for f in self.factors])
        low = rank < min(self.shape[-2:])
        return Claims(known.properties, rank if low else None, {})

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Kronecker(tuple(f._picked(batch, lead) for f in self.factors))

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb not in ("linear", "solve") or (verb == "solve" and not self._all_square()):
            return super().plan(verb, columns)
        sizes = [(int(f.shape[-2]), int(f.shape[-1])) for f in self.factors]
        order = self._order(sizes)
        now, flops, moved, paths = [n for _, n in sizes], 0.0, 0.0, []
        for i in order:
            rows = columns * math.prod(now) // max(1, now[i])
            inner = self.factors[i].plan(verb, rows)
            flops, moved, now[i] = flops + (inner.flops or 0.0), moved + (inner.bytes or 0.0), sizes[i][0]
            paths.append(inner.path)
        reason = f"{len(sizes)} factors, applied in the order {', '.join(str(i + 1) for i in order)}"
        return backend.Plan(f"factor by factor: {', '.join(paths)}", reason, flops, moved)

    def __repr__(self) -> str:
        return tree("Kronecker", self.factors)

    @classmethod
    def from_dense(cls, dense: torch.Tensor, shapes: Sequence[tuple[int, int]], tol: float | None = None) -> Matrix:
        """The factors of these sizes, if their product is ``dense`` within ``tol ||dense||_F`` (default 8 eps)."""
        return distance_check(cls, dense, cls.nearest(dense, shapes), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, shapes: Sequence[tuple[int, int]], terms: int = 1) -> Matrix:
        """The nearest Kronecker product of Dense factors of these sizes; for ``terms`` above 1 a Sum of so many.

        Two factors: the best in the Frobenius norm, its error the tail of the singular values of the rearrangement.
        More: split off one after the other, within ``sqrt(L - 1)`` of the best (``functional.kronecker.nearest``).
        """
        m, n = math.prod([s[0] for s in shapes]), math.prod([s[1] for s in shapes])
        if not shapes or tuple(dense.shape[-2:]) != (m, n):
            raise ShapeError(f"Kronecker.nearest: factors of {tuple(shapes)} make {m} x {n}, got {tuple(dense.shape)}")
        if terms < 1 or (terms > 1 and len(shapes) != 2):
            raise ValueError(f"Kronecker.nearest(terms={terms}): legal is 1, and for two factors also 2, 3, ...")
        found = fk.nearest(dense, [(int(a), int(b)) for a, b in shapes], terms)
        parts = tuple(cls(tuple(dispatch.call("wrap", v.to(dense.dtype)) for v in term)) for term in found)
        return parts[0] if terms == 1 else Sum(parts)

    @classmethod
    def random(cls, shapes: Sequence[tuple[int, int]], *, generator: Any = None, **options: Any) -> "Kronecker":
        """Dense factors of these sizes, normal entries over the root of the columns; options as ``torch.randn``."""
        drawn = (torch.randn(m, n, generator=generator, **options) / max(1, n) ** 0.5 for m, n in shapes)
        return cls(tuple(dispatch.call("wrap", v) for v in drawn))


class KroneckerFactorisation(Factorisation):
    """The factorisation of each factor: a solve is one solve a factor along its axis."""

    inner: tuple[Factorisation, ...] = ()

    @property
    def backward_error(self) -> float | None:
        found = [e for f in self.inner if (e := f.backward_error) is not None]
        return max(found) if found else None

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.matrix._apply(y, [f.solve_rows for f in self.inner], flat=True)
        return found.to(self.matrix._out(y))

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        rows = b if b.ndim == 1 else b.mT
        x: torch.Tensor = self.matrix._apply(rows, [_adjoint(f) for f in self.inner], flat=True)
        return x if b.ndim == 1 else x.mT

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        orders = [int(f.matrix.shape[-1]) for f in self.inner]
        sign, logabs = _determinant([f.slogdet() for f in self.inner], orders, math.prod(orders))
        return self.matrix._cast(sign), self.matrix._cast(logabs, real=True)


def _work(factor: Matrix) -> float:
    """About what one row costs: the numbers read and written."""
    stored = factor.numel_stored / max(1, math.prod(factor.batch_shape))
    return stored + int(factor.shape[-1]) + int(factor.shape[-2])


def _solver(factor: Matrix, options: Options) -> Callable[[torch.Tensor], torch.Tensor]:
    def solve(y: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = factor._solve_rows(y, options)[0]
        return x

    return solve


def _adjoint(factorisation: Factorisation) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: factorisation.adjoint_solve(rows.mT).mT


def _product(values: Sequence[torch.Tensor]) -> torch.Tensor:
    found = values[0]
    for value in values[1:]:
        found = found * value
    return found


def _determinant(
    each: Sequence[tuple[torch.Tensor, torch.Tensor]], orders: Sequence[int], n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det|`` of the product: each factor's as often as the order of the others says."""
    signs = [_power(sign, n // max(1, k)) for (sign, _), k in zip(each, orders, strict=True)]
    total = each[0][1] * (n // max(1, orders[0]))
    for (_, logabs), k in zip(each[1:], orders[1:], strict=True):
        total = total + logabs * (n // max(1, k))
    return _product(signs), total


def _power(sign: torch.Tensor, k: int) -> torch.Tensor:
    """sign^k of modulus one or zero."""
    if not sign.is_complex():
        return sign if k % 2 else sign * sign
    return torch.sgn(sign**k)


@dispatch.rule("matmul", Kronecker, Kronecker)
def _times(a: Kronecker, b: Kronecker) -> Matrix:
    """Kronecker: factor by factor, where these fit one to one; else lazy."""
    fit = len(a.factors) == len(b.factors) and all(
        f.shape[-1] == g.shape[-2] for f, g in zip(a.factors, b.factors, strict=False)
    )
    if not fit:
        lazy: Matrix = dispatch.lookup("matmul", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return Kronecker(tuple(matmul(f, g) for f, g in zip(a.factors, b.factors, strict=True)))
