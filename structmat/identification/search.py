"""``sm.identify``: the door, and the order in which structures are tried."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy
import torch

from structmat import backend
from structmat._shell import name_of
from structmat.errors import DtypeError, ShapeError
from structmat.identification import factored, linear, tensors
from structmat.identification.orthogonal import orthogonal
from structmat.identification.table import Candidate, Identification
from structmat.identification.work import Trial, Work, times_power, work_on
from structmat.matrix import Matrix
from structmat.types.dense import Dense
from structmat.types.tucker import Tucker

__all__ = ["identify"]

_DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex128,
    torch.complex64,
    torch.complex32,
)
Task = tuple[Trial, Callable[[], Any]]


def identify(M: Any, budget: int | float | None = None) -> Identification:
    """How near every structure is to a dense matrix, and with how many numbers: the best first.

    For each structure A that stores fewer numbers than M: the relative error ``||M - A||_F / ||M||_F`` of the nearest
    (or quasi-nearest, see ``nearest`` of its type) member. An error of rounding, up to ``eps + 8 sqrt(max(m, n)) eps``,
    counts as exact. Exact rows come first, the smallest before the others; the rest is ordered by ``error / (1 - p / (m
    n))``, generalised cross-validation: about the error at entries left out, by which no large structure is preferred
    for fitting noise. ``best(parameters=...)`` asks for the nearest instead.

    Args:
        M: a matrix (m, n), or a tensor of more axes (such as the weight of a convolution): a tensor, an array or a
            Matrix; real or complex, floating point. Nothing is differentiated. A tensor is tried in Tucker format,
            and its unfolding along mode 0 as a matrix.
        budget: the most numbers a structure may store: a whole number, or a fraction (a float up to 1) of M's. None:
            fewer than M's; and Dense itself is the last row.
    Returns: an ``Identification``: print it, or see ``rows``, ``best``, ``to_pandas``, ``plot``; ``row.build()`` gives
        the matrix.
    Cost: m = n: the singular values of M, of its displacement (with vectors) and of two to four rearrangements, some
        fifty passes over the entries, and two decompositions more near orthogonal matrices. On one core 3 s for n =
        1024, 10 s for n = 2048 in float32, 0.2 s for n = 256. At its peak the memory of 25 copies of M; one is kept.
    Raises: ShapeError for a vector, an empty tensor or a batch of matrices in a Matrix; DtypeError for integers;
        ValueError for entries that are not finite, and for a budget that is no such number or holds no structure.
    Example:
        >>> found = sm.identify(0.5 ** abs(torch.arange(16.0)[:, None] - torch.arange(16.0)))
        >>> found[0].structure, found[0].parameters, found[0].exact
        ('SymmetricToeplitz', 16, True)
    References: G. Golub, M. Heath, G. Wahba, Generalized cross-validation as a method for choosing a good ridge
        parameter, 1979, eq. 1.4.
    """
    given = _entries(M)
    most = _allowed(budget, given)
    matrix = given if given.ndim == 2 else given.flatten(1)
    with torch.no_grad():
        work = work_on(matrix, given.dtype, most)
        values = torch.linalg.svdvals(work.entries)
        displaced = _displacement(work)
        trials = [*_of_matrix(work, values, displaced)]
        if given.ndim > 2:
            shape = tuple(int(s) for s in matrix.shape)
            trials = [dataclasses.replace(t, settings=t.settings | {"unfolding": shape}) for t in trials]
        tasks: list[Task] = [(trial, partial(trial.make, matrix)) for trial in trials]
        if given.ndim > 2:
            whole = dataclasses.replace(work, entries=work.entries.reshape(given.shape))
            tasks += [(trial, partial(trial.make, given)) for trial in tensors.tucker_formats(whole)]
    if work.norm and all(trial.structure == "Zero" for trial, _ in tasks):
        raise ValueError(_too_small(budget, given))
    rows = _ranked(tasks, work)
    spectrum = None if displaced is None else times_power(displaced[1], -work.exponent)
    shape = tuple(int(s) for s in given.shape)
    return Identification(shape, given.dtype, most, rows, times_power(values, -work.exponent), spectrum)


def _entries(M: Any) -> torch.Tensor:
    """A copy of the numbers, checked."""
    if isinstance(M, (Matrix, Tucker)):
        if M.batch_shape:
            raise ShapeError(f"identify({M!r}): one matrix is needed, not a batch of {tuple(M.batch_shape)}; index it")
        M = M.to_dense()
    if isinstance(M, numpy.ndarray):
        M = _of_array(M)
    if not isinstance(M, torch.Tensor):
        raise TypeError(f"identify(M): expected a tensor, a numpy array or a Matrix, got {type(M).__name__}")
    place = f"identify(M of shape {tuple(M.shape)}, {name_of(M.dtype)})"
    if M.dtype not in _DTYPES:
        legal = ", ".join(name_of(d) for d in _DTYPES)
        raise DtypeError(f"{place}: legal dtypes are {legal}; convert it: M.to(torch.float64)")
    if M.ndim < 2:
        raise ShapeError(f"{place}: a matrix or a tensor of more axes is needed; M[:, None] is a matrix of one column")
    if M.numel() == 0:
        raise ShapeError(f"{place}: there are no entries")
    wide = M.detach().to(backend.compute_dtype(M.dtype))
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        raise ValueError(f"{place}: {bad} of {M.numel()} entries are not finite (NaN or infinite)")
    return M.detach().to_dense().clone() if M.layout != torch.strided else M.detach().resolve_conj().clone()


def _of_array(array: numpy.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor of native byte order; dtypes that torch lacks raise DtypeError."""
    native = numpy.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("="), copy=False)
    try:
        return torch.as_tensor(native)
    except TypeError as error:
        raise DtypeError(
            f"identify(M of shape {array.shape}, numpy {array.dtype}): torch has no such dtype; use float64"
        ) from error


def _allowed(budget: Any, given: torch.Tensor) -> int:
    """The most numbers a structure may store."""
    count = int(given.numel())
    if budget is None:
        return count
    if isinstance(budget, (int, numpy.integer)) and not isinstance(budget, bool) and budget >= 1:
        return int(budget)
    if isinstance(budget, (float, numpy.floating)) and 0 < budget <= 1:
        if math.floor(budget * count) < 1:
            raise ValueError(_too_small(budget, given))
        return math.floor(budget * count)
    raise ValueError(
        f"identify(budget={budget!r}): legal are None, a number of parameters (an int of 1 or more), and a fraction of "
        f"the {count} entries (a float above 0, up to 1)"
    )


def _too_small(budget: Any, given: torch.Tensor) -> str:
    shown = " x ".join(str(int(s)) for s in given.shape)
    return (
        f"identify(budget={budget!r}): no structure of {shown} stores so few numbers"
        f"{'' if given.numel() < 16 else f' (rank 1 takes {sum(given.flatten(1).shape)})'}; raise it, or leave it out"
    )


def _displacement(work: Work) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The singular value decomposition of ``Z_1 M - M Z_-1`` of a square M; its vectors only where they are of use."""
    if not work.is_square:
        return None
    moved = factored.displaced(work.entries)
    if work.fits(2 * work.sizes[0]):
        u, s, vh = torch.linalg.svd(moved)
        return u, s, vh
    s = torch.linalg.svdvals(moved)
    return moved[:, :0], s, moved[:0]


def _of_matrix(
    work: Work, values: torch.Tensor, displaced: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
) -> Iterator[Trial]:
    """Every structure of a matrix, and the dense one where the budget lets it in."""
    for search in (linear.trivial, linear.diagonals, linear.powers, linear.shift_invariant, linear.two_levels):
        yield from search(work)
    yield from factored.low_rank(work, values)
    if displaced is not None:
        yield from factored.low_displacement(work, displaced)
    yield from factored.kronecker_products(work)
    yield from factored.butterflies(work)
    yield from orthogonal(work, values)
    count = int(work.entries.numel())
    if work.most >= count:
        yield Trial("Dense", {}, count, 0.0, Dense.nearest)


def _ranked(tasks: list[Task], work: Work) -> tuple[Candidate, ...]:
    """Rows in their order. What is no nearer than zero is left out."""
    kept = [(t, make) for t, make in tasks if t.structure == "Zero" or t.error < 1]
    sizes = [(t.parameters, 0.0 if t.error <= work.limit else t.error) for t, _ in kept]
    rows = []
    for (trial, make), (p, e) in zip(kept, sizes, strict=True):
        saved = 1 - p / int(work.entries.numel())
        adjusted = trial.error / saved if saved > 0 else 0.0
        dominated = any((q <= p and d < e) or (q < p and d <= e) for q, d in sizes)
        settings = MappingProxyType(dict(trial.settings))
        exact = trial.error <= work.limit
        rows.append(Candidate(trial.structure, settings, p, trial.error, exact, adjusted, not dominated, make))

    def order(row: Candidate) -> tuple[int, float, float]:
        if row.structure == "Dense" or (row.structure == "Zero" and not row.exact):
            return 2, row.parameters, 0.0
        return (0, row.parameters, row.error) if row.exact else (1, row.adjusted, row.parameters)

    return tuple(sorted(rows, key=order))
