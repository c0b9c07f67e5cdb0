"""Matrices as scipy's ``LinearOperator``, and back: what scipy does from products alone, it does for every type."""

from typing import Any

import numpy
import torch
from scipy.sparse.linalg import LinearOperator

from structmat import backend
from structmat.errors import DtypeError, ShapeError
from structmat.lazy import Implicit
from structmat.matrix import Matrix

__all__ = ["as_linear_operator", "from_linear_operator"]


class MatrixOperator(LinearOperator):  # type: ignore[misc]
    """The products of a matrix on numpy arrays; nothing is differentiated."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix.detach()
        wide = backend.compute_dtype(matrix.dtype or torch.get_default_dtype())
        super().__init__(torch.zeros((), dtype=wide).numpy().dtype, tuple(int(s) for s in matrix.shape))

    def _apply(self, matrix: Matrix, x: Any) -> numpy.ndarray:
        """``matrix @ x`` for x of any number type, in the precision of the matrix."""
        given = numpy.asarray(x)
        kind = numpy.result_type(self.dtype, numpy.complex64) if numpy.iscomplexobj(given) else self.dtype
        tensor = torch.as_tensor(numpy.ascontiguousarray(given.astype(kind)), device=matrix.device)
        with torch.no_grad():
            y = matrix.linear(tensor) if tensor.ndim == 1 else matrix.linear(tensor.mT).mT
        found: numpy.ndarray = y.resolve_conj().cpu().numpy()
        return found

    def _matvec(self, x: Any) -> numpy.ndarray:
        return self._apply(self.matrix, x.reshape(-1))

    def _matmat(self, X: Any) -> numpy.ndarray:
        return self._apply(self.matrix, X)

    def _rmatvec(self, x: Any) -> numpy.ndarray:
        return self._apply(self.matrix.mH, x.reshape(-1))

    def _rmatmat(self, X: Any) -> numpy.ndarray:
        return self._apply(self.matrix.mH, X)

    def _adjoint(self) -> "MatrixOperator":
        return MatrixOperator(self.matrix.mH)

    def _transpose(self) -> "MatrixOperator":
        return MatrixOperator(self.matrix.transpose())


def as_linear_operator(A: Any) -> LinearOperator:
    """The matrix as a ``scipy.sparse.linalg.LinearOperator`` of its size: matvec, rmatvec, matmat, rmatmat, adjoint.

    Products run on the matrix's device, in its precision (half precision in float32), and return numpy arrays; nothing
    is differentiated. Raises ShapeError for a batch, which scipy has no word for; TypeError for what is no Matrix.

    >>> from scipy.sparse.linalg import svds
    >>> A = sm.Toeplitz(torch.arange(199.0, dtype=torch.float64), 100)
    >>> svds(sm.linalg.as_linear_operator(A), k=2, return_singular_vectors=False).shape
    (2,)
    """
    if not isinstance(A, Matrix):
        raise TypeError(f"as_linear_operator: a Matrix is needed, got {type(A).__name__}")
    if len(A.shape) > 2:
        raise ShapeError(f"as_linear_operator({A!r}): scipy has no batches; take one matrix of it, A[i]")
    return MatrixOperator(A)


class _Applied(torch.autograd.Function):
    """Rows times the transpose of an operator of numpy, ``x A^T`` (``turned``: ``x A``), differentiable in x."""

    @staticmethod
    def forward(operator: Any, turned: bool, x: torch.Tensor) -> torch.Tensor:
        rows = x.detach().reshape(-1, x.shape[-1]).cpu().resolve_conj().numpy()
        columns = operator.rmatmat(rows.conj().T).conj() if turned else operator.matmat(rows.T)
        y = torch.as_tensor(numpy.ascontiguousarray(columns.T), device=x.device)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.operator, ctx.turned, x = inputs
        ctx.real = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        found = _Applied.apply(ctx.operator, not ctx.turned, grad.conj().resolve_conj()).conj().resolve_conj()
        return None, None, found.real if ctx.real and found.is_complex() else found

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, tangent: Any) -> Any:
        return _Applied.apply(ctx.operator, ctx.turned, tangent)


def from_linear_operator(operator: LinearOperator) -> Implicit:
    """A ``scipy.sparse.linalg.LinearOperator`` (or what scipy makes one of) as an ``Implicit`` matrix on the CPU.

    It needs matmat and, for transposes, rmatmat. Differentiable in what it is applied to. Raises DtypeError for an
    operator of integers, whose products need a precision: give it ``dtype=float``.
    """
    dtype = torch.from_numpy(numpy.zeros(0, operator.dtype)).dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        raise DtypeError(f"from_linear_operator: the operator has dtype {operator.dtype}; a floating one is needed")

    def linear(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Applied.apply(operator, False, x)
        return found

    def transpose_linear(y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Applied.apply(operator, True, y)
        return found

    return Implicit(tuple(int(s) for s in operator.shape), linear, transpose_linear, dtype)
