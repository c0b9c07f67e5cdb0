"""Inputs at the edge, one section a rule: whole numbers, real beside complex, half precision, NaN and infinity, ranks
of 0 and above n, batches. What must raise is in test_edges_refused.py, what is empty in test_edges_empty.py."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import structmat as sm
from structmat import Matrix, backend
from structmat._value import nested
from structmat.testing.example import Example
from structmat.testing.examples import EXAMPLES
from structmat.testing.reference import magnitude_of

F32, F64, C128, BF16 = torch.float32, torch.float64, torch.complex128, torch.bfloat16
WHOLE = (torch.int64, torch.int32, torch.uint8, torch.bool)
TYPES = [kind for name in sm.__all__ if isinstance(kind := getattr(sm, name), type) and issubclass(kind, Matrix)]
EYE = torch.eye(4)
OPTIONS: dict[type, dict[str, Any]] = {
    sm.BlockCirculant: {"sizes": (2, 2)},
    sm.BlockDiagonal: {"count": 2},
    sm.BlockToeplitz: {"columns": (2, 2)},
    sm.CosineDiagonal: {"sizes": (2, 2)},
    sm.Kronecker: {"shapes": ((2, 2), (2, 2))},
    sm.CauchyLike: {"row_nodes": torch.arange(4.0), "column_nodes": torch.arange(4.0) + 0.5},
}


# -- integers and booleans ----------------------------------------------------------------------------------------


def _fields(matrix: Matrix) -> dict[str, Any]:
    """The fields by name, of a type whose constructor takes them by these names."""
    names = [n for n in inspect.signature(type(matrix)).parameters if hasattr(matrix, n)]
    return {n: getattr(matrix, n) for n in names}


HOLDING = {
    e.type: e for e in EXAMPLES if any(isinstance(v, (torch.Tensor, tuple)) for v in _fields(e.build()).values())
}


@pytest.mark.parametrize("example", HOLDING.values(), ids=lambda e: e.type.__name__)
def test_every_constructor_refuses_whole_numbers(example: Example) -> None:
    matrix = example.build()
    fields = _fields(matrix)
    tried = 0
    for name, value in fields.items():
        tensors = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(t, torch.Tensor) and t.is_floating_point() for t in tensors) or not tensors:
            continue
        for dtype in WHOLE:
            whole = tuple(t.to(dtype) for t in tensors)
            with pytest.raises(sm.DtypeError):
                example.type(**{**fields, name: whole if isinstance(value, tuple) else whole[0]})
            tried += 1
    without = (sm.Zero, sm.Permutation, sm.Implicit)  # what they hold is no number of the matrix
    assert tried or len(list(nested(matrix))) > 1 or example.type in without, "no tensor was tried"


MAKERS = [(kind, maker) for kind in TYPES for maker in ("from_dense", "nearest") if hasattr(kind, maker)]


@pytest.mark.parametrize(("kind", "maker"), MAKERS, ids=[f"{k.__name__}.{m}" for k, m in MAKERS])
def test_what_is_made_from_entries(kind: Any, maker: str) -> None:
    """Whole numbers, vectors and lists are refused by name; a numpy array is a tensor."""
    make, options = getattr(kind, maker), dict(OPTIONS.get(kind, {}))
    defaults = {"rank": 4, "lower": 1, "upper": 1}
    options |= {name: defaults[name] for name in inspect.signature(make).parameters if name in defaults}
    for dtype in WHOLE:
        with pytest.raises(sm.DtypeError, match=rf"{kind.__name__}\.{maker}: dense must be floating point or complex"):
            make(EYE.to(dtype), **options)
    with pytest.raises(sm.ShapeError, match=r"a matrix \(\*batch, m, n\) is needed, got shape \(4,\)"):
        make(torch.ones(4), **options)
    with pytest.raises(TypeError, match="a tensor or a numpy array, got list"):
        make(EYE.tolist(), **options)
    if kind in (sm.Zero, sm.Vandermonde) or (kind is sm.Hankel and maker == "from_dense"):
        return  # the identity is none of these
    assert torch.equal(make(EYE.numpy(), **options).to_dense(), make(dense=EYE, **options).to_dense())


I3, I33 = torch.ones(3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64)
OTHERS: dict[str, Callable[[], Any]] = {
    "from_kernel, zero": lambda: sm.BlockToeplitz.from_kernel(I3, (3,)),
    "from_kernel, periodic": lambda: sm.BlockCirculant.from_kernel(I3, (3,)),
    "from_kernel, reflect": lambda: sm.BlockToeplitz.from_kernel(I3, (3,), "reflect"),
    "from_blocks": lambda: sm.OrthogonalButterfly.from_blocks(torch.ones(1, 2, 2, 2, dtype=torch.int64)),
    "from_skew": lambda: sm.Butterfly.from_skew((torch.ones(2, 1, dtype=torch.int64),), (2, 2), ((1,),)),
    "from_lapack a": lambda: sm.HouseholderProduct.from_lapack(I33, torch.ones(2)),
    "from_lapack tau": lambda: sm.HouseholderProduct.from_lapack(torch.ones(3, 3), I3),
    "orthonormal": lambda: sm.HouseholderProduct.orthonormal(I33),
    "of_nodes": lambda: sm.CauchyLike.of_nodes(I3, torch.zeros(3)),
    "from_stein": lambda: sm.LowDisplacementRank.from_stein(I33, I33),
    "from_cp": lambda: sm.Tucker.from_cp((I33, I33)),
    "decompose": lambda: sm.Tucker.decompose(I33, ranks=1),
    "tucker core": lambda: sm.Tucker(I33, (torch.ones(3, 3), torch.ones(3, 3))),
    "toeplitz c": lambda: sm.toeplitz(I3),
    "toeplitz r": lambda: sm.toeplitz([1.0, 2.0], I3),
    "circulant": lambda: sm.circulant(I3),
    "hankel c": lambda: sm.hankel(I3),
    "hankel r": lambda: sm.hankel([1.0], I3),
    "kron": lambda: sm.kron(I33, I33),
    "kron_sum": lambda: sm.kron_sum(I33, I33),
    "block_diag": lambda: sm.block_diag(I33),
    "implicit": lambda: sm.Implicit((2, 2), lambda x: x, lambda x: x, torch.int64),
    "identity": lambda: sm.Circulant.identity(3, dtype=torch.int64),
    "Identity": lambda: sm.Identity(3, torch.int64),
    "Zero": lambda: sm.Zero(3, 3, torch.bool),
    "Permutation": lambda: sm.Permutation(torch.arange(3), torch.int64),
    "scaled": lambda: sm.Identity(3) * torch.tensor(2),
    "to": lambda: sm.Diagonal(torch.ones(3)).to(torch.int64),
    "solve_toeplitz": lambda: sm.linalg.solve_toeplitz(I3, torch.ones(3)),
    "solve_toeplitz b": lambda: sm.linalg.solve_toeplitz(torch.ones(3), I3),
    "solve_circulant": lambda: sm.linalg.solve_circulant(I3, torch.ones(3)),
    "matmul_toeplitz": lambda: sm.linalg.matmul_toeplitz(I3, torch.ones(3)),
    "levinson_durbin": lambda: sm.linalg.levinson_durbin(I3),
    "linalg.solve": lambda: sm.linalg.solve(I33, torch.ones(3)),
    "linalg.det": lambda: sm.linalg.det(I33),
    "linalg.inv": lambda: sm.linalg.inv(I33),
    "linalg.svdvals": lambda: sm.linalg.svdvals(I33),
}


@pytest.mark.parametrize("act", OTHERS.values(), ids=OTHERS)
def test_every_other_maker_refuses_integer_tensors(act: Callable[[], Any]) -> None:
    with pytest.raises(sm.DtypeError):
        act()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_products_and_solves_refuse_whole_numbers(example: Example) -> None:
    matrix = example.build()
    m, n = matrix.shape[-2:]
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(sm.DtypeError, match="x has integer dtype"):
            matrix @ torch.ones(n, dtype=dtype)
        with pytest.raises(sm.DtypeError, match="x has integer dtype"):
            torch.ones(2, m, dtype=dtype) @ matrix
        if m == n:
            with pytest.raises(sm.DtypeError, match="x has integer dtype"):
                matrix.solve(torch.ones(n, dtype=dtype))


def test_lists_and_numpy_integers_become_float64() -> None:
    whole = numpy.array([2, 1, 0])
    for made in (
        sm.toeplitz([2, 1, 0]),
        sm.toeplitz(whole, whole),
        sm.circulant(whole),
        sm.circulant((2, 1)),
        sm.hankel([1, 2], whole),
        sm.kron([[1, 2]], numpy.eye(2, dtype=int)),
        sm.block_diag([[1]], numpy.eye(1, dtype=numpy.int8)),
        sm.kron_sum([[1]], [[2]]),
    ):
        assert made.dtype == F64
    assert sm.toeplitz([1, 2], [1, 2j]).dtype == C128
    assert sm.toeplitz(numpy.float32([1, 2])).dtype == F32
    x = sm.linalg.solve_toeplitz([2, 1], [3, 3])
    assert isinstance(x, numpy.ndarray) and x.dtype == float and abs(x - 1).max() <= 100 * numpy.finfo(float).eps


# -- real beside complex ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_real_and_complex_promote(example: Example) -> None:
    """A real matrix takes complex rows and a complex matrix real ones; the result is complex, of the same precision."""
    for mine, theirs in ((F64, C128), (C128, F64), (F32, torch.complex64)):
        if mine not in example.dtypes:
            continue
        matrix = example.build(mine)
        n = int(matrix.shape[-1])
        x = torch.randn(2, n, dtype=theirs)
        y, whole = x @ matrix.mT, torch.promote_types(matrix.dtype or theirs, theirs)
        assert y.dtype == whole
        wanted = x.to(C128) @ example.dense(matrix).to(C128).mT
        gap = torch.linalg.vector_norm(y.to(C128) - wanted)
        assert float(gap) <= 64 * torch.finfo(whole).eps * max(1, n) * magnitude_of(matrix) * float(x.norm())


# -- half precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [e for e in EXAMPLES if BF16 in e.dtypes], ids=lambda e: e.name)
def test_half_precision_computes_in_float32(example: Example) -> None:
    """The product of bfloat16 entries is that of float32, rounded once: off by less than one unit in the last place,
    where a sum in bfloat16 would be off by many. The two plain matrix products of a LowRank round twice."""
    matrix = example.build(BF16)
    wide = matrix.to(F32)
    n = int(matrix.shape[-1])
    x = torch.randn(3, n).to(BF16)
    y = x @ matrix.mT
    exact = example.dense(wide) if wide.dtype else example.dense(matrix)
    wanted = x.double() @ exact.double().mT
    assert y.dtype == BF16
    size = magnitude_of(matrix) * float(x.double().norm())
    rounded = torch.finfo(BF16).eps * wanted.abs() + 64 * torch.finfo(F32).eps * max(1, n) * size
    if any(isinstance(part, sm.LowRank) for part in nested(matrix)):
        rounded = rounded + torch.finfo(BF16).eps * size
    assert bool(((y.double() - wanted).abs() <= rounded).all())


# -- NaN and infinity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_what_is_not_finite_passes_through_products(example: Example, poison: float) -> None:
    """No check and no error: in the row where it stands the result is not finite."""
    matrix = example.build()
    n = int(matrix.shape[-1])
    column = int(example.dense(matrix).abs().sum(-2).argmax())
    if not example.dense(matrix)[..., column].any():
        return  # the zero matrix may make 0 of it
    clean = torch.ones(2, n, dtype=matrix.dtype or F64)
    x = clean.clone()
    x[0, column] = poison
    if isinstance(matrix, sm.Inverse) and matrix.factorisation is None:
        with pytest.raises(sm.SolveError):  # this product is a solve, and checks what it solves
            matrix.linear(x)
        return
    assert not torch.isfinite(matrix.linear(x)[0]).all()


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.solvable], ids=lambda e: e.name)
def test_a_solve_with_nan_is_refused_only_where_it_is_checked(example: Example) -> None:
    matrix = example.build()
    b = torch.full((int(matrix.shape[-1]),), math.nan, dtype=matrix.dtype or F64)
    assert torch.isnan(matrix.solve(b, check=False)).any()


@pytest.mark.parametrize(
    "matrix",
    [
        sm.Toeplitz(torch.tensor([1.0, 4.0, math.nan]), 2),
        sm.Circulant(torch.tensor([4.0, math.nan])),
        sm.Dense(torch.tensor([[1.0, math.inf], [0.0, 1.0]])),
        sm.LowDisplacementRank(torch.tensor([[1.0], [math.nan]]), torch.ones(2, 1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_checked_solve_notices_entries_that_are_not_finite(matrix: Matrix) -> None:
    assert not torch.isfinite(matrix @ torch.ones(2)).all()
    with pytest.raises(sm.SolveError):
        matrix.solve(torch.ones(2))


# -- ranks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128, F32, BF16])
def test_no_columns_are_the_zero_matrix_and_no_reflections_the_identity(dtype: torch.dtype) -> None:
    none = torch.zeros(3, 0, dtype=dtype, requires_grad=True)
    for zero in (sm.LowDisplacementRank(none, none), sm.LowRank(none, none)):
        assert not zero.to_dense().any() and zero.rank_bound() == 0
        x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
        y = zero.linear(x)
        assert y.shape == (2, 3) and not y.any()
        y.abs().sum().backward()
    nodes = torch.arange(3).to(dtype)
    assert not sm.CauchyLike(none, none, nodes, nodes + 0.5).to_dense().any()
    unit = sm.HouseholderProduct(none.mT)
    assert torch.equal(unit.to_dense(), torch.eye(3, dtype=dtype)) and float(unit.det().abs()) == 1


def test_more_columns_than_the_order_are_accepted_and_recompressed() -> None:
    g, h = (torch.randn(4, 9, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    matrix = sm.LowDisplacementRank(g, h)
    short = matrix.recompress()
    assert short.left.shape[-1] <= 4
    size = float(g.norm() * h.norm())
    assert float((short.to_dense() - matrix.to_dense()).norm()) <= 100 * torch.finfo(F64).eps * size
    low = sm.LowRank(g, h)
    assert low.rank_bound() == 4 and torch.allclose(low.to_dense(), g @ h.mT, rtol=1e-13)
    assert sm.testing.assertions.orthogonality(sm.HouseholderProduct(g.mT).to_dense()) <= 64 * torch.finfo(F64).eps


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [e for e in EXAMPLES if (2,) in e.batches], ids=lambda e: e.name)
def test_batches_broadcast_as_in_matmul(example: Example) -> None:
    matrix = example.build(F64 if F64 in example.dtypes else C128, (2,))
    dense, n = example.dense(matrix), int(matrix.shape[-1])
    limit = 64 * torch.finfo(F64).eps * max(1, n) * magnitude_of(matrix)
    for lead in ((), (1,), (2,), (3, 1), (3, 2)):
        x = torch.randn(*lead, n, 4, dtype=matrix.dtype or F64)
        wanted = torch.matmul(dense.to(C128), x.to(C128))
        y = matrix @ x
        assert y.shape == wanted.shape
        assert float((y.to(C128) - wanted).norm()) <= limit * float(x.norm()) * 2
    with pytest.raises(sm.ShapeError, match=r"batch shapes \(2,\) and \(3,\) do not broadcast"):
        matrix @ torch.ones(3, n, 4, dtype=matrix.dtype or F64)
    assert backend.compute_dtype(matrix.dtype or F64) in (F64, C128)
