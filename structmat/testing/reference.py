"""What each type means, written a second time: entries by textbook loops in numpy, from the stored fields alone.

Nothing here calls a product, a transform or a gather of the library, so agreement with ``to_dense`` and ``linear``
is evidence.
"""

from collections.abc import Callable
from typing import Any

import numpy
import scipy.linalg
import torch

from structmat.lazy import Inverse, Prepared, Product, Scaled, Slice, Sum
from structmat.matrix import Matrix
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

__all__ = ["as_wide", "dense_of", "each", "entries_of", "largest", "magnitude", "magnitude_of", "reference"]

Array = Any  # a numpy array; its dtype is float64 or complex128


_REFERENCE: dict[type, Callable[[Any], Array]] = {}
_MAGNITUDE: dict[type, Callable[[Any], float]] = {}


def reference(kind: type[Matrix]) -> Callable[[Callable[[Any], Array]], Callable[[Any], Array]]:
    """Decorate the function that forms the entries ``(*batch, m, n)`` of a type, as a numpy array."""

    def enter(form: Callable[[Any], Array]) -> Callable[[Any], Array]:
        _REFERENCE[kind] = form
        return form

    return enter


def magnitude(kind: type[Matrix]) -> Callable[[Callable[[Any], float]], Callable[[Any], float]]:
    """Decorate the function that says how large numbers inside a product get, where that is not the Frobenius norm."""

    def enter(measure: Callable[[Any], float]) -> Callable[[Any], float]:
        _MAGNITUDE[kind] = measure
        return measure

    return enter


def as_wide(tensor: torch.Tensor) -> Array:
    """The tensor as a numpy array in float64 or complex128; exact for every dtype a matrix can hold."""
    wide = tensor.detach().cpu().resolve_conj().resolve_neg()
    return wide.to(torch.complex128 if wide.is_complex() else torch.float64).numpy()


def dense_of(matrix: Matrix) -> torch.Tensor:
    """The entries ``(*batch, m, n)`` in float64 or complex128 by the definition of the type; raises KeyError for an
    unknown type."""
    return torch.from_numpy(numpy.ascontiguousarray(entries_of(matrix)))


def magnitude_of(matrix: Matrix) -> float:
    """How large numbers inside a product with this matrix can get: the Frobenius norm, those of the parts multiplied
    or added.

    Rounding errors of a product are proportional to it times ``||x||``. An inverse counts its condition number once
    more.
    """
    if type(matrix) in _MAGNITUDE:
        return _MAGNITUDE[type(matrix)](matrix)
    if isinstance(matrix, Product):
        return float(numpy.prod([magnitude_of(f) for f in matrix.factors]))
    if isinstance(matrix, Sum):
        return sum(magnitude_of(t) for t in matrix.terms)
    if isinstance(matrix, LowRank):
        return largest(as_wide(matrix.left)) * largest(as_wide(matrix.right))
    if isinstance(matrix, (Slice, Prepared)):
        return magnitude_of(matrix.matrix)
    if isinstance(matrix, Scaled):
        return magnitude_of(matrix.matrix) * float(numpy.abs(_factor(matrix.scale)).max())
    if isinstance(matrix, Inverse):
        inner = entries_of(matrix.matrix)
        return largest(numpy.linalg.inv(inner)) * float(numpy.linalg.cond(inner).max())
    return largest(entries_of(matrix))


def largest(entries: Array) -> float:
    """The largest Frobenius norm of a batch of matrices; 0 for one without entries."""
    return float(numpy.linalg.norm(entries, axis=(-2, -1)).max()) if entries.size else 0.0


def entries_of(matrix: Matrix) -> Array:
    """``dense_of`` as a numpy array, for the references of matrices that hold matrices."""
    return _REFERENCE[type(matrix)](matrix)


def each(build: Callable[..., Array], *fields: tuple[Array, int]) -> Array:
    """Apply ``build`` to each element of the batch; ``fields`` holds arrays with their number of trailing
    dimensions."""
    lead = numpy.broadcast_shapes(*(a.shape[: a.ndim - core] for a, core in fields))
    full = [numpy.broadcast_to(a, lead + a.shape[a.ndim - core :]) for a, core in fields]
    built = [build(*(a[index] for a in full)) for index in numpy.ndindex(lead)]
    return numpy.stack(built).reshape(lead + built[0].shape)


def _circulant(v: Array, f: complex) -> Array:
    n = len(v)
    out = numpy.zeros(
        (n, n), dtype=numpy.result_type(v, numpy.asarray(f, dtype=complex if isinstance(f, complex) else float))
    )
    for i in range(n):
        for j in range(n):
            out[i, j] = v[i - j] if i >= j else f * v[n + i - j]
    return out


def _toeplitz(t: Array, columns: int) -> Array:
    return scipy.linalg.toeplitz(t[columns - 1 :], t[:columns][::-1])


def _low_rank(left: Array, right: Array) -> Array:
    out = numpy.zeros((left.shape[0], right.shape[0]), dtype=left.dtype)
    for k in range(left.shape[1]):
        out = out + numpy.outer(left[:, k], right[:, k])
    return out


def _reflections(vectors: Array, phases: Array | None) -> Array:
    """``H_1 H_2 ... H_r`` multiplied out one dense reflection at a time."""
    n = vectors.shape[1]
    q = numpy.eye(n, dtype=vectors.dtype if phases is None else complex)
    for k, v in enumerate(vectors):
        largest = numpy.abs(v).max(initial=0)
        if largest == 0:
            continue
        v = v / largest
        weight = 2.0 if phases is None else 1 - numpy.exp(1j * phases[k])
        q = q @ (numpy.eye(n) - weight * numpy.outer(v, v.conj()) / numpy.vdot(v, v).real)
    return q


def _householder(matrix: Any) -> Array:
    vectors = (as_wide(matrix.vectors), 2)
    if matrix.phases is None:
        return each(lambda v: _reflections(v, None), vectors)
    return each(_reflections, vectors, (as_wide(matrix.phases), 1))


def _factor(factor: Any) -> Array:
    return as_wide(factor) if isinstance(factor, torch.Tensor) else numpy.asarray(factor)


def _product(matrix: Any) -> Array:
    out = entries_of(matrix.factors[0])
    for factor in matrix.factors[1:]:
        out = out @ entries_of(factor)
    return out


def _sum(matrix: Any) -> Array:
    out = entries_of(matrix.terms[0])
    for term in matrix.terms[1:]:
        out = out + entries_of(term)
    return out


def _slice(matrix: Any) -> Array:
    rows, columns = list(range(*matrix.rows)), list(range(*matrix.columns))
    return entries_of(matrix.matrix)[..., rows, :][..., columns]


_REFERENCE.update(
    {
        Dense: lambda a: as_wide(a.entries),
        Diagonal: lambda a: each(numpy.diag, (as_wide(a.entries), 1)),
        Identity: lambda a: numpy.eye(a.n, dtype=complex if a.dtype is not None and a.dtype.is_complex else float),
        Circulant: lambda a: each(lambda v: _circulant(v, a.f), (as_wide(a.column), 1)),
        Toeplitz: lambda a: each(lambda t: _toeplitz(t, a.columns), (as_wide(a.diagonals), 1)),
        SymmetricToeplitz: lambda a: each(lambda c: scipy.linalg.toeplitz(c, c), (as_wide(a.column), 1)),
        LowRank: lambda a: each(_low_rank, (as_wide(a.left), 2), (as_wide(a.right), 2)),
        HouseholderProduct: _householder,
        Product: _product,
        Sum: _sum,
        Scaled: lambda a: _factor(a.scale) * entries_of(a.matrix),
        Inverse: lambda a: numpy.linalg.inv(entries_of(a.matrix)),
        Slice: _slice,
        Prepared: lambda a: entries_of(a.matrix),
    }
)
