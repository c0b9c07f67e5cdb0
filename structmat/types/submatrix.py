"""A principal submatrix: rows and columns of a square matrix picked by one index, and its solves by the whole one's."""

import dataclasses
from typing import Any, ClassVar

import numpy
import torch

from structmat import _iterative, backend, dispatch, solving
from structmat.claims import Claim, Claims
from structmat.errors import DeviceError, ShapeError, SolveError
from structmat.functional.implicit import implicit_solve
from structmat.functional.schur import Complement, bordered, few
from structmat.lazy.expressions import tree
from structmat.lazy.woodbury import solves_itself
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["Submatrix", "SubmatrixFactorisation"]

_KEPT = frozenset({Claim.SYMMETRIC, Claim.HERMITIAN, Claim.POSITIVE_DEFINITE})


class Submatrix(Matrix):
    """``A[keep][:, keep]``, the principal submatrix of a square A at the indices ``keep``, in their order.

    Stores:   matrix, and keep (k,), an integer tensor (moves with ``to``, a buffer in ``nn.Trainable``); a boolean
              mask of length n, a list or a numpy array is turned into one.
    Shape:    (*batch, k, k).      Claims: symmetric, Hermitian, positive definite, and the rank, as of A.
    Cost:     linear that of A. With q = n - k missing indices, solve: dense LU up to the dense limit; while
              ``q^2 <= 16 n`` and A solves itself, by the Schur complement in the inverse, q + 2 solves with A a
              right-hand side, and q^2 numbers; else cg (of a Toeplitz A preconditioned by T. Chan's circulant), minres
              or gmres. slogdet: the first two of these.
              ``factor()`` keeps A's factorisation and the q x q LU: then 2 solves.
    Closed:   transpose, conj, s X, X + s Identity.
    Raises:   ShapeError for a matrix that is not square or a mask of another length; ValueError naming an index that is
              out of range or there twice; StructureError for slogdet above both limits (factor("schur") has it).
    Example:
        >>> A = Submatrix(sm.toeplitz([3.0, 1.0, 0.5]), torch.tensor([0, 2]))
        >>> A.to_dense()
        tensor([[3.0000, 0.5000],
                [0.5000, 3.0000]], dtype=torch.float64)
    References: R. A. Horn and C. R. Johnson, Matrix Analysis, 2nd ed., 2013, (0.7.3.1) and (0.8.4.1): with o the kept
    and M the missing indices ``A_oo^-1 = B_oo - B_oM B_MM^-1 B_Mo`` and ``det A_oo = det A det B_MM``, ``B = A^-1``.
    """

    solve_methods: ClassVar[tuple[str, ...]] = ("auto", "dense", "schur", "cg")
    matrix: Matrix
    keep: torch.Tensor

    def __post_init__(self) -> None:
        keep: Any = self.keep
        if isinstance(keep, (list, tuple, range, numpy.ndarray)):
            keep = torch.as_tensor(numpy.asarray(keep), device=self.matrix.device)
        if isinstance(keep, torch.Tensor) and keep.dtype == torch.bool:
            n = int(self.matrix.shape[-1])
            if tuple(keep.shape) != (n,):
                raise ShapeError(f"Submatrix: the mask keep has shape {tuple(keep.shape)}, the matrix has {n} rows")
            keep = keep.nonzero()[:, 0]
        object.__setattr__(self, "keep", keep)
        super().__post_init__()

    def _validate(self) -> None:
        if not isinstance(self.matrix, Matrix) or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise ShapeError(f"Submatrix: a square matrix is needed, got {self.matrix!r}")
        keep = self.keep
        if not isinstance(keep, torch.Tensor) or keep.is_floating_point() or keep.is_complex() or keep.ndim != 1:
            shown = f"{keep.dtype} of shape {tuple(keep.shape)}" if isinstance(keep, torch.Tensor) else repr(keep)
            raise ValueError(f"Submatrix: keep must be an integer tensor (k,) or a mask (n,), got {shown}")
        if keep.dtype != torch.int64:
            object.__setattr__(self, "keep", keep.to(torch.int64))
        if self.matrix.device is not None and keep.device != self.matrix.device:
            raise DeviceError(f"Submatrix: keep is on {keep.device}, {self.matrix!r} on {self.matrix.device}")
        if keep.device.type != "meta" and backend.eager(keep):
            self._check_indices(int(self.matrix.shape[-1]))

    def _check_indices(self, n: int) -> None:
        outside = self.keep[(self.keep < 0) | (self.keep >= n)]
        if len(outside):
            raise ValueError(f"Submatrix: keep holds {int(outside[0])}, legal indices are 0 to {n - 1}")
        values, counts = self.keep.unique(return_counts=True)
        if len(values) < len(self.keep):
            raise ValueError(f"Submatrix: keep holds {int(values[counts > 1][0])} more than once")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.matrix.batch_shape, self.keep.shape[-1], self.keep.shape[-1]))

    @property
    def batch_shape(self) -> torch.Size:
        return self.matrix.batch_shape

    @property
    def dtype(self) -> torch.dtype | None:
        return self.matrix.dtype

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(*x.shape[:-1], self.matrix.shape[-1]).index_copy(-1, self.keep, x)
        return self.matrix.linear(full)[..., self.keep]

    def transpose(self) -> Matrix:
        return Submatrix(self.matrix.transpose(), self.keep)

    def conj(self) -> Matrix:
        return Submatrix(self.matrix.conj(), self.keep)

    def _scale(self, factor: complex | torch.Tensor) -> Matrix:
        return Submatrix(self.matrix._scale(factor), self.keep)

    def diagonal(self) -> torch.Tensor:
        return self.matrix.diagonal()[..., self.keep]

    def _properties(self) -> Claims:
        known = self.matrix.claims
        return Claims(_KEPT & known.properties, known.rank, {})

    def _norm_bound(self) -> torch.Tensor:
        return self.matrix._norm_bound()

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        return Submatrix(self.matrix._picked(batch, lead), self.keep)

    def prepare(self) -> Matrix:
        return Submatrix(self.matrix.prepare(), self.keep)

    def __repr__(self) -> str:
        try:
            name = f"Submatrix[{self.keep.shape[-1]} of {self.matrix.shape[-1]}]"
        except (AttributeError, TypeError):  # fields replaced by placeholders inside a torch transform
            name = "Submatrix[...]"
        return tree(name, (self.matrix,))

    # -- solve ----------------------------------------------------------------------------------------------------

    def _by_complement(self) -> bool:
        """Whether the Schur complement in the inverse is the way: few indices are missing, and A solves itself."""
        n, k = int(self.matrix.shape[-1]), int(self.keep.shape[-1])
        return few(n, n - k) and solves_itself(self.matrix)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        given = (options.preconditioner, options.start, options.max_steps, options.callback)
        if options.method == "schur":
            options.refuse_iterative(f"{self!r}.solve", "schur")
            x = self._by_schur(y)
            return x, self._checked(x, y, "schur", 2, options, (self._reason(),))
        if options.method == "dense" or (options.method == "auto" and self._is_small()):
            return super()._solve_rows(y, options)
        if options.method == "cg" or not self._by_complement() or any(g is not None for g in given):
            return self._by_iteration(y, options)
        try:
            x = self._by_schur(y)
            info = self._checked(x, y, "schur", 2, options, (self._reason(),))
        except SolveError as error:  # A may be singular where its submatrix is not
            x, info = self._by_iteration(y, options)
            return x, dataclasses.replace(info, reasons=(f"schur: {error}", *info.reasons))
        return x, info

    def _by_iteration(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        """Krylov steps; a definite matrix whose whole has a circulant near it is preconditioned by the submatrix of
        that circulant's inverse, which is definite too."""
        near = dispatch.lookup("circulant_inverse", type(self.matrix))
        plain = near is None or Claim.POSITIVE_DEFINITE not in self.claims or not backend.eager(*self.tensors())
        if options.preconditioner is not None or near is None or plain:
            return _iterative.solve_rows(self, y, options)
        with torch.no_grad():
            inverse = Submatrix(near(self.matrix.detach()).prepare(), self.keep)
        x, info = _iterative.solve_rows(self, y, dataclasses.replace(options, preconditioner=inverse))
        return x, dataclasses.replace(info, method=info.method.replace("given", "T. Chan"))

    def _by_schur(self, y: torch.Tensor) -> torch.Tensor:
        return implicit_solve(self, y.to(backend.compute_dtype(_joint(y, self))), _solver)

    def _reason(self) -> str:
        n, k = int(self.matrix.shape[-1]), int(self.keep.shape[-1])
        return f"{n - k} of {n} indices are missing: Schur complement in the inverse"

    def _factor(self, method: str) -> Factorisation:
        if method == "cg":
            raise ValueError(f"{self!r}.factor: conjugate gradients keep nothing; legal are 'auto', 'dense', 'schur'")
        if method == "schur" or (method == "auto" and not self._is_small() and self._by_complement()):
            return SubmatrixFactorisation.of(self)
        return super()._factor(method)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``log det A_oo = log det A + log det (A^-1)_MM`` where ``factor()`` takes that way; dense up to the limit."""
        if self._is_small() or not self._by_complement():
            return super().slogdet()
        sign, logabs = SubmatrixFactorisation.of(self).slogdet()
        return self._cast(sign), self._cast(logabs, real=True)

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        n, k = int(self.matrix.shape[-1]), int(self.keep.shape[-1])
        if verb == "linear":
            inner = self.matrix.plan(verb, columns)
            return dataclasses.replace(inner, reason=f"zeros at {n - k} missing indices, then {inner.reason}")
        if verb != "solve" or self._is_small() or not self._by_complement():
            return super().plan(verb, columns)
        solves = n - k + 2 * columns
        inner = self.matrix.plan("solve", solves)
        reason = f"{self._reason()}, {solves} solves by the factorisation of A"
        return backend.Plan("schur", reason, inner.flops, inner.bytes)


class SubmatrixFactorisation(Factorisation):
    """A's factorisation and the LU of ``(A^-1)_MM``: two solves with A a right-hand side, both determinants."""

    inner: Factorisation | None = None
    lu: torch.Tensor | None = None
    pivots: torch.Tensor | None = None

    @classmethod
    def of(cls, matrix: Submatrix) -> "SubmatrixFactorisation":
        # inside torch.func a factorisation cannot read values: A's own solves stand in for it
        whole = matrix.matrix
        inner = whole.factor() if backend.eager(*whole.tensors()) else Factorisation(whole)
        block = bordered(inner, matrix.keep, matrix.matrix)
        with backend.full_precision(block.device):
            lu, pivots = torch.linalg.lu_factor(block)
        return cls(matrix, "schur", inner, lu, pivots)

    @property
    def backward_error(self) -> float | None:
        return None if self.inner is None else self.inner.backward_error

    def complement(self) -> Complement:
        """The solver, without gradients."""
        assert self.inner is not None and self.lu is not None and self.pivots is not None
        return Complement(self.matrix.detach(), self.inner.detach(), self.lu.detach(), self.pivots)

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        rows = y[None, :] if y.ndim == 1 else y
        out = _joint(y, self.matrix)
        known = self.complement() if backend.eager(*self.tensors()) else None
        x = implicit_solve(self.matrix, rows.to(backend.compute_dtype(out)), _solver, known).to(out)
        return x[..., 0, :] if y.ndim == 1 else x

    def adjoint_solve(self, b: torch.Tensor) -> torch.Tensor:
        rows = b[None, :] if b.ndim == 1 else b.mT
        out = _joint(b, self.matrix)
        known = self.complement().adjoint() if backend.eager(*self.tensors()) else None
        x = implicit_solve(self.matrix.mH, rows.to(backend.compute_dtype(out)), _solver, known).to(out)
        return x[..., 0, :] if b.ndim == 1 else x.mT

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.inner is not None and self.lu is not None and self.pivots is not None
        sign, logabs = self.inner.slogdet()
        sign_of_block, log_of_block = solving.slogdet_of_lu(self.lu, self.pivots)
        return sign * sign_of_block, logabs + log_of_block


def _solver(matrix: Submatrix) -> Complement:
    return SubmatrixFactorisation.of(matrix).complement()


def _joint(y: torch.Tensor, matrix: Matrix) -> torch.dtype:
    return y.dtype if matrix.dtype is None else torch.promote_types(y.dtype, matrix.dtype)
