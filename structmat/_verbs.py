"""Verbs of one matrix, derived from its contract: solve, determinants, diagonal, trace, norm, spectra.

Everything here that needs n^2 numbers does so only up to ``backend.dense_limit``; above it a verb without a
structured form raises ``StructureError`` naming the way out.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from structmat import _iterative, _least_squares, backend, dispatch, solving
from structmat._shell import Place, as_operand, broadcast, check_pair, require_square
from structmat._value import Value
from structmat.errors import ShapeError, StructureError
from structmat.functional.transforms import nothing
from structmat.solving import DenseFactorisation, Factorisation, Options, SolveInfo

__all__ = ["Verbs"]

_CHUNK = 64  # columns per block where a verb walks through all columns
_SOME = "scipy.sparse.linalg.{}(structmat.linalg.as_linear_operator(A), k) finds k of them from products; "
_WAYS = {
    "slogdet": "structmat.linalg.logabsdet(A, method='lanczos') estimates log|det A| from products; ",
    "eigvals": _SOME.format("eigs"),
    "svdvals": _SOME.format("svds"),
}


class Verbs(Value):
    """The derived half of ``Matrix``; it uses ``shape``, ``linear``, ``transpose``, ``to_dense``, ``dtype``,
    ``device``."""

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense")  # those a type serves itself; the door adds Krylov's
    lstsq_methods: ClassVar[tuple[str, ...]] = ("auto", "dense")

    if TYPE_CHECKING:  # what Matrix provides; at run time an annotation here would become a field

        @property
        def shape(self) -> Any: ...
        @property
        def batch_shape(self) -> Any: ...
        @property
        def dtype(self) -> Any: ...
        @property
        def device(self) -> Any: ...
        @property
        def mH(self) -> Any: ...
        @property
        def claims(self) -> Any: ...
        def linear(self, x: torch.Tensor) -> Any: ...
        def transpose(self) -> Any: ...
        def to_dense(self) -> Any: ...
        def _eye(self, n: int) -> Any: ...

    # -- inverse and solve ----------------------------------------------------------------------------------------

    def inv(self) -> Any:
        """A^-1 as a matrix: closed where the type is, else lazy (it solves when applied)."""
        require_square(self, "inv")
        return dispatch.call("inverse", self)

    def solve(
        self,
        b: Any,
        *,
        method: str = "auto",
        tol: float | None = None,
        preconditioner: Any = None,
        start: torch.Tensor | None = None,
        max_steps: int | None = None,
        callback: Callable[[int, float], None] | None = None,
        check: bool = True,
    ) -> torch.Tensor:
        """x with ``A x = b``; b is a vector only if 1-D, else ``(..., n, k)``.

        ``method``: "auto", "dense" (n^2 memory), "cg" (positive definite), "minres" (Hermitian), "gmres", or one of
        the type's own. "auto" is the type's own; where it has none, dense LU up to the dense limit, above it cg, minres
        or gmres by the claims, and the next of them where one ends above ``tol``.
        ``tol``: the accepted backward error ``||b - A x|| / (sigma ||x|| + ||b||)``, by default 100 eps. With
        ``check`` the result is measured, and ``SolveError`` (with the error reached) raised in place of a wrong answer.
        Iterative methods take a ``preconditioner`` (a Matrix near A^-1, applied by products), a ``start``,
        ``max_steps`` (default 4 n + 100, 10,000 at most) and ``callback(step, worst backward error)``.
        """
        options = Options(method, tol, preconditioner, start, max_steps, callback, check)
        return self._solve_info(b, options)[0]

    def solve_rows(self, y: Any, **options: Any) -> torch.Tensor:
        """x with ``x A^T = y``: the inverse of ``linear``; rows ``(..., k, n)`` or one row. Options as ``solve``."""
        y = as_operand(y, self.dtype, self.device, Place(self, ".solve_rows"))
        return self.solve(y, **options) if y.ndim == 1 else self.solve(y.mT, **options).mT

    def _solve_info(self, b: Any, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """The checked door: any b, columns in, columns out."""
        place = Place(self, ".solve(b)")
        n = require_square(self, "solve")
        b = as_operand(b, self.dtype, self.device, place)
        if b.ndim == 0 or b.shape[-1 if b.ndim == 1 else -2] != n:
            raise ShapeError(f"{place}: b has shape {tuple(b.shape)}, the matrix has {n} rows")
        check_pair(self, b, place)
        own = options.method in self.solve_methods
        if not own and options.method not in _iterative.METHODS:
            legal = ", ".join(map(repr, dict.fromkeys((*self.solve_methods, *_iterative.METHODS))))
            raise ValueError(f"{place}: unknown method {options.method!r}; legal methods are {legal}")
        solving.check_options(options, place)
        if b.ndim > 2:
            broadcast(place, self.batch_shape, b.shape[:-2])
        out = torch.promote_types(b.dtype, self.dtype) if self.dtype is not None else b.dtype
        if 0 in b.shape or 0 in self.batch_shape:
            lead = torch.broadcast_shapes(self.batch_shape, b.shape[:-2])
            none = nothing((*lead, *b.shape[-2:]), out, b, *self.tensors())
            return none, SolveInfo("nothing", 0, None, ("there is no right-hand side",))
        rows = b[None, :] if b.ndim == 1 else b.mT
        x, info = self._solve_rows(rows, options) if own else _iterative.solve_rows(self, rows, options)
        x = x.to(out)
        return (x[..., 0, :] if b.ndim == 1 else x.mT), info

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """x with ``x A^T = y`` for rows ``(..., k, n)``; types override it with their structured solve."""
        if options.method == "auto" and not self._is_small():
            return _iterative.solve_rows(self, y, options)
        options.refuse_iterative(f"{self!r}.solve", "dense")
        x = solving.dense_solve_rows(self, y)
        return x, self._checked(x, y, "dense", 1, options, ("dense LU",))

    def _checked(
        self, x: torch.Tensor, y: torch.Tensor, method: str, steps: int, options: Options, reasons: Any
    ) -> SolveInfo:
        """Measure the backward error of rows x where values may be read, and judge it."""
        if not options.check or not backend.eager(x, y, *self.tensors()):
            return SolveInfo(method, steps, None, tuple(reasons))
        with torch.no_grad(), backend.full_precision(x.device):
            wide = backend.compute_dtype(x.dtype)
            eta = solving.backward_error(
                y.to(wide) - self.linear(x.to(wide)), x.to(wide), y.to(wide), self._norm_bound()
            )
        solving.judge(self, eta, method, solving.limit(x.dtype, options.tol))
        return SolveInfo(method, steps, eta, tuple(reasons))

    def _norm_bound(self) -> torch.Tensor:
        """An upper bound of ``||A||_2``, shape ``batch_shape``: Frobenius unless a type knows better. Above the dense
        limit, where a type has no norm of its own, the estimate from below of ``solving.norm_estimate``: a backward
        error is then overstated, never understated."""
        if self._is_small() or type(self).norm is not Verbs.norm:
            return self.norm()
        with torch.no_grad():
            return solving.norm_estimate(self)

    def factor(self, method: str = "auto") -> Factorisation:
        """What is worth keeping for several solves with this matrix; differentiable and picklable."""
        require_square(self, "factor")
        if method not in self.solve_methods:
            legal = ", ".join(map(repr, self.solve_methods))
            raise ValueError(f"{self!r}.factor: unknown method {method!r}; legal methods are {legal}")
        return self._factor(method)

    def _factor(self, method: str) -> Factorisation:
        if method == "auto" and not self._is_small():
            return Factorisation(self, _iterative.suited(self)[0][0])  # iterations keep nothing but the matrix
        return DenseFactorisation.of(self)

    def prepare(self) -> Any:
        """A matrix of the same entries whose products reuse what can be computed once; itself where nothing can."""
        return self

    def pinv(self) -> Any:
        """The Moore-Penrose inverse; singular values below ``max(m, n) eps sigma_1`` count as zero."""
        self._require_small("pinv")
        dense = self._wide_dense()
        cut = max(dense.shape[-2:]) * torch.finfo(dense.dtype).eps
        return dispatch.call("wrap", torch.linalg.pinv(dense, rtol=cut).to(self.dtype or dense.dtype))

    def lstsq(
        self,
        b: Any,
        *,
        method: str = "auto",
        tol: float | None = None,
        preconditioner: Any = None,
        start: torch.Tensor | None = None,
        max_steps: int | None = None,
        callback: Callable[[int, float], None] | None = None,
        check: bool = True,
    ) -> torch.Tensor:
        """The x of least norm that minimises ``||A x - b||_2``; b a vector ``(m,)`` or ``(..., m, k)``.

        ``method``: "auto", "dense", "lsmr", "cgls", or one of the type's own. "auto" applies ``pinv`` where the type
        has one and up to the dense limit (singular values below ``max(m, n) eps sigma_1`` count as zero), and is LSMR
        above it. The preconditioner is a Matrix of order ``min(m, n)`` near ``(A^H A)^-1``, or ``(A A^H)^-1`` for a
        wide A; the other options are those of ``solve``. Derivatives above the dense limit assume full rank.
        """
        options = Options(method, tol, preconditioner, start, max_steps, callback, check)
        return self._lstsq_info(b, options)[0]

    def _lstsq_info(self, b: Any, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """The checked door: any b, columns in, columns out."""
        place = f"{self!r}.lstsq(b)"
        m, n = (int(s) for s in self.shape[-2:])
        b = as_operand(b, self.dtype, self.device, place)
        if b.ndim == 0 or b.shape[-1 if b.ndim == 1 else -2] != m:
            raise ShapeError(f"{place}: b has shape {tuple(b.shape)}, the matrix has {m} rows")
        check_pair(self, b, place)
        own = options.method in self.lstsq_methods
        if not own and options.method not in _least_squares.METHODS:
            legal = ", ".join(map(repr, dict.fromkeys((*self.lstsq_methods, *_least_squares.METHODS))))
            raise ValueError(f"{place}: unknown method {options.method!r}; legal methods are {legal}")
        if b.ndim > 2:
            broadcast(place, self.batch_shape, b.shape[:-2])
        rows = b[None, :] if b.ndim == 1 else b.mT
        out = torch.promote_types(b.dtype, self.dtype) if self.dtype is not None else b.dtype
        if 0 in rows.shape or 0 in (m, n) or 0 in self.batch_shape:
            lead = torch.broadcast_shapes(self.batch_shape, rows.shape[:-2])
            x = nothing((*lead, rows.shape[-2], n), out, b, *self.tensors())
            info = SolveInfo("nothing", 0, None, ("there is nothing to fit",))
        else:
            x, info = self._lstsq_rows(rows, options) if own else _least_squares.lstsq_rows(self, rows, options)
        x = x.to(out)
        return (x[..., 0, :] if b.ndim == 1 else x.mT), info

    def _lstsq_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """Least squares for rows ``(..., k, m)``; types override it with their structured method."""
        if options.method == "auto" and not (self._is_small() or self._has_pinv()):
            return _least_squares.lstsq_rows(self, y, options)
        options.refuse_iterative(f"{self!r}.lstsq", "pinv")
        if options.method == "dense":
            wide = dispatch.call("wrap", self._wide_dense())
            return wide.pinv().linear(y.to(wide.dtype)), SolveInfo("dense", 1, None, ("SVD of the dense matrix",))
        return self.pinv().linear(y), SolveInfo("pinv", 1, None, ("the pseudo-inverse of the type",))

    def _has_pinv(self) -> bool:
        """Whether ``pinv`` has a structured form at any size."""
        return type(self).pinv is not Verbs.pinv

    # -- determinants ---------------------------------------------------------------------------------------------

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign (a phase for complex entries) and ``log|det A|``, each of shape ``batch_shape``."""
        require_square(self, "slogdet")
        self._require_small("slogdet")
        sign, logabs = torch.linalg.slogdet(self._wide_dense())
        return self._cast(sign), self._cast(logabs, real=True)

    def logabsdet(self) -> torch.Tensor:
        """``log|det A|``."""
        return self.slogdet()[1]

    def det(self) -> torch.Tensor:
        """The determinant, from ``slogdet``: it over- and underflows only where the determinant itself does."""
        require_square(self, "det")
        sign, logabs = self.slogdet()
        return sign * torch.exp(logabs)

    # -- entries and norms ----------------------------------------------------------------------------------------

    def diagonal(self) -> torch.Tensor:
        """The ``min(m, n)`` diagonal entries, ``(*batch, min(m, n))``; n products in blocks unless a type knows
        better."""
        size = min(self.shape[-2:])
        if size == 0:
            return torch.zeros(*self.batch_shape, 0, dtype=self.dtype, device=self.device)
        pieces = [torch.diagonal(c[..., s:, :], dim1=-2, dim2=-1) for s, c in self._columns(int(size))]
        return torch.cat(pieces, -1)

    def trace(self) -> torch.Tensor:
        """The sum of the diagonal entries of a square matrix."""
        require_square(self, "trace")
        return self.diagonal().sum(-1)

    def norm(self) -> torch.Tensor:
        """The Frobenius norm, real, of shape ``batch_shape``; n products in blocks unless a type knows better."""
        pieces = [torch.linalg.vector_norm(c, dim=(-2, -1)) for _, c in self._columns(int(self.shape[-1]))]
        if not pieces:
            return torch.zeros(self.batch_shape, dtype=backend.real_of(self.dtype or torch.get_default_dtype()))
        return torch.linalg.vector_norm(torch.stack(pieces), dim=0)

    def _columns(self, n: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The first n columns in blocks ``(*batch, m, <= 64)`` with their start: no array of n^2 entries exists."""
        dtype = self.dtype or torch.get_default_dtype()
        for start in range(0, n, _CHUNK):
            width = min(_CHUNK, n - start)
            units = torch.zeros(width, int(self.shape[-1]), dtype=dtype, device=self.device)
            units[:, start : start + width].fill_diagonal_(1)
            yield start, self.linear(units).mT

    # -- spectra --------------------------------------------------------------------------------------------------

    def eigvals(self) -> torch.Tensor:
        """The n eigenvalues, complex, in no promised order unless the type says so."""
        require_square(self, "eigvals")
        self._require_small("eigvals")
        return self._cast(torch.linalg.eigvals(self._wide_dense()), complex_=True)

    def svdvals(self) -> torch.Tensor:
        """The ``min(m, n)`` singular values, descending."""
        self._require_small("svdvals")
        return self._cast(torch.linalg.svdvals(self._wide_dense()), real=True)

    # -- helpers --------------------------------------------------------------------------------------------------

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        """How a verb would run on this many columns; read it through ``structmat.backend.explain``."""
        n = int(self.shape[-1])
        if verb == "linear":
            return backend.Plan("reference", f"{type(self).__name__} has one way to multiply")
        if verb == "solve":
            if not self._is_small():
                method, reason = _iterative.suited(self)
                return backend.Plan(method[0], f"{type(self).__name__} has no structured solve; {reason}")
            return backend.Plan(
                "dense", f"{type(self).__name__} has no structured solve", 2 / 3 * n**3 + 2.0 * n * n * columns
            )
        raise ValueError(f"explain({verb!r}, ...): legal verbs are 'linear' and 'solve'")

    def _is_small(self) -> bool:
        """Whether an array of all entries may be formed."""
        return max(self.shape[-2:]) <= backend.dense_limit(self.device or "cpu")

    def _require_small(self, verb: str) -> None:
        if not self._is_small():
            order, most = max(self.shape[-2:]), backend.dense_limit(self.device or "cpu")
            name, other = type(self).__name__, 'method="dense" or ' if verb in ("solve", "factor") else ""
            raise StructureError(
                f"{self!r}.{verb}: {name} has no structured form of it, and order {order} is above "
                f"the dense limit {most}; {_WAYS.get(verb, '')}"
                f"to spend n^2 memory on it, use {other}structmat.Dense(A.to_dense()).{verb}"
            )

    def _wide_dense(self) -> torch.Tensor:
        dense = self.to_dense()
        return dense.to(backend.compute_dtype(dense.dtype))

    def _cast(self, value: torch.Tensor, *, real: bool = False, complex_: bool = False) -> torch.Tensor:
        """Back to the precision of the entries (half results are rounded once, at the end)."""
        dtype = self.dtype or torch.get_default_dtype()
        if complex_:
            return value  # there is no complex bfloat16, and complex half is hardly served: keep what was computed in
        return value.to(backend.real_of(dtype) if real else dtype)
