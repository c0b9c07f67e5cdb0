"""What must raise: operators that determine nothing, singular systems, corners given twice, digits and blocks that do
not fit, matrices that are not of the type, ranks that are too large: each in its class, with the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import Matrix

F64 = torch.float64


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


ONE = torch.ones(3, 1, dtype=F64)
TALL = torch.ones(3, 4), torch.ones(3, 2)
stein, butterfly, ldr = sm.LowDisplacementRank.from_stein, sm.OrthogonalButterfly, sm.LowDisplacementRank
REFUSED: list[tuple[str, type[Exception], Callable[[], Any], str]] = [
    ("e = f", ValueError, lambda: ldr(ONE, ONE, 1, 1), "must be nonzero and differ.*best conditioned"),
    ("e = 0", ValueError, lambda: ldr(ONE, ONE, 0, 1), "must be nonzero and differ"),
    ("e of a batch", ValueError, lambda: ldr(ONE, ONE, ONE, 1), "e must be a nonzero Python number"),
    ("f of a batch", ValueError, lambda: sm.Circulant(_numbers(2, 3), torch.ones(2)), "f must be a Python number"),
    ("operator", ValueError, lambda: ldr(ONE, ONE).with_operator(-1, -1), "must be nonzero and differ"),
    ("e f = 1", ValueError, lambda: stein(ONE, ONE, 2.0, 0.5), "legal are nonzero e and f with e f != 1"),
    ("corner", ValueError, lambda: sm.toeplitz([1.0, 2.0], [3.0, 4.0]), r"is given twice.*c\[0\] = 1, r\[0\] = 3"),
    ("digit", sm.ShapeError, lambda: sm.Butterfly((ONE[:, None],), (2, 0), ((0,),)), "digits must be positive"),
    ("blocks", sm.ShapeError, lambda: sm.Butterfly((torch.ones(3, 2, 2),), (2, 2), ((0,),)), r"blocks\[0\].*3, 2, 2"),
    ("n", sm.ShapeError, lambda: sm.Butterfly.identity(12, digits=(2, 2)), r"\(12, digits=\(2, 2\)\).*multiply to 4"),
    ("entries", sm.ShapeError, lambda: sm.Butterfly.nearest(torch.eye(12), (2, 2)), r"\(2, 2\).*12|12.*\(2, 2\)"),
    ("hadamard", ValueError, lambda: sm.hadamard(12), "power of two; the nearest are 8, 16"),
    ("block of d", sm.ShapeError, lambda: butterfly.sizes(30, 4, 1), "Nearest legal values: block = 3 or 5"),
    ("odd block", sm.ShapeError, lambda: butterfly.sizes(30, 5, 2), "be even.*values: factors up to 1 with block = 5"),
    ("n % (b 2^(m-1))", sm.ShapeError, lambda: butterfly.sizes(24, 4, 4), "factors up to 2 with block = 4"),
    ("d", sm.ShapeError, lambda: butterfly.sizes(25, 4, 2), "d = 24 or 32 with these"),
    ("skew", sm.ShapeError, lambda: butterfly(_numbers(3, 3, 6)), "is no legal butterfly"),
    ("triangle", sm.ShapeError, lambda: butterfly(_numbers(1, 2, 2)), r"b \(b - 1\) / 2"),
    ("rank", sm.ShapeError, lambda: sm.Tucker(torch.ones(4, 2), TALL), "rank 4 of mode 0 is above its size 3"),
    ("ranks", sm.ShapeError, lambda: sm.Tucker.decompose(torch.eye(3), (4, 2)), "rank 4 of mode 0 must be .* 1 to 2"),
    ("low rank", ValueError, lambda: sm.LowRank.nearest(torch.eye(3), -1), "legal ranks are 0, 1, 2"),
    ("ldr rank", ValueError, lambda: ldr.nearest(torch.eye(3), -1), "legal ranks are 0, 1, 2"),
    (
        "batches",
        sm.ShapeError,
        lambda: sm.LowRank(_numbers(2, 3, 1), _numbers(4, 3, 1)),
        r"shapes \(2,\), \(4,\) do not",
    ),
]


@pytest.mark.parametrize(("error", "act", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(error: type[Exception], act: Callable[[], Any], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        act()
    assert isinstance(caught.value, ValueError)


def test_a_rank_above_the_product_of_the_others_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="rank 3 of mode 0 is above 1, the product of the other ranks"):
        sm.Tucker(_numbers(3, 1), (_numbers(4, 3), _numbers(4, 1)))


@given(d=st.integers(1, 96), block=st.integers(1, 12), factors=st.integers(1, 5))
def test_a_butterfly_is_legal_or_the_error_names_legal_values(d: int, block: int, factors: int) -> None:
    """``d % (b 2^(m-1)) = 0``, b even for m > 1; what the message offers as the nearest values is itself accepted."""
    legal = d % (block * 2 ** (factors - 1)) == 0 and (factors == 1 or block % 2 == 0)
    if legal:
        assert sm.OrthogonalButterfly.random(d, block, factors).shape == (d, d)
        return
    with pytest.raises(sm.ShapeError, match="Nearest legal values") as caught:
        sm.OrthogonalButterfly.random(d, block, factors)
    text = str(caught.value).split("Nearest legal values: ")[1]
    for offered in re.findall(r"block = ([\d or]+) with factors", text):
        for size in re.findall(r"\d+", offered):
            assert sm.OrthogonalButterfly.sizes(d, int(size), factors) == (int(size), factors)
    for most in re.findall(r"factors up to (\d+)", text):
        assert sm.OrthogonalButterfly.sizes(d, block, int(most)) == (block, int(most))
    for offered in re.findall(r"d = ([\d or]+) with these", text):
        for size in re.findall(r"\d+", offered):
            assert sm.OrthogonalButterfly.sizes(int(size), block, factors) == (block, factors)


# -- singular systems ---------------------------------------------------------------------------------------------

ONES = torch.ones(4, dtype=F64)
ROW = torch.ones(4, 1, dtype=F64)
NODES = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=F64)
SINGULAR: dict[str, Callable[[], Matrix]] = {
    "Dense": lambda: sm.Dense(torch.ones(4, 4, dtype=F64)),
    "Diagonal": lambda: sm.Diagonal(torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=F64)),
    "Zero": lambda: sm.Zero(4, 4, F64),
    "BlockDiagonal": lambda: sm.BlockDiagonal(torch.ones(2, 2, 2, dtype=F64)),
    "LowRank": lambda: sm.LowRank(ROW, ROW),
    "Kronecker": lambda: sm.Kronecker((sm.Dense(torch.ones(2, 2, dtype=F64)), sm.Diagonal(torch.ones(2, dtype=F64)))),
    "KroneckerSum": lambda: sm.kron_sum([[1.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.0, 5.0]]),
    "Circulant": lambda: sm.Circulant(ONES),
    "skew Circulant": lambda: sm.Circulant(torch.tensor([1.0, 1.0, 0.0], dtype=F64), -1),
    "triangular Circulant": lambda: sm.Circulant(torch.tensor([0.0, 1.0, 2.0], dtype=F64), 0),
    "Toeplitz": lambda: sm.Toeplitz(torch.ones(7, dtype=F64), 4),
    "SymmetricToeplitz": lambda: sm.SymmetricToeplitz(ONES),
    "HermitianToeplitz": lambda: sm.HermitianToeplitz(torch.ones(4, dtype=torch.complex128)),
    "Hankel": lambda: sm.Hankel(torch.ones(7, dtype=F64), 4),
    "large Toeplitz": lambda: sm.SymmetricToeplitz(torch.zeros(300, dtype=F64)),
    "BlockCirculant": lambda: sm.BlockCirculant(torch.ones(2, 2, dtype=F64), 2),
    "BlockToeplitz": lambda: sm.BlockToeplitz(torch.ones(3, 3, dtype=F64), (2, 2)),
    "CosineDiagonal": lambda: sm.CosineDiagonal(torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=F64), 2),
    "LowDisplacementRank": lambda: sm.LowDisplacementRank(torch.zeros(4, 1, dtype=F64), ROW),
    "large LowDisplacementRank": lambda: sm.LowDisplacementRank(*(torch.zeros(300, 1, dtype=F64),) * 2),
    "CauchyLike": lambda: sm.CauchyLike(ROW, ROW, NODES, NODES + 0.5),
    "Vandermonde": lambda: sm.Vandermonde(NODES, 4),
    "Butterfly": lambda: sm.Butterfly((torch.ones(2, 2, 2, dtype=F64),), (2, 2), ((0,),)),
    "Submatrix": lambda: sm.Submatrix(sm.Toeplitz(torch.ones(7, dtype=F64), 4), torch.tensor([0, 2])),
    "Product": lambda: sm.Product((sm.Circulant(ONES), sm.Toeplitz(_numbers(7), 4))),
    "Sum": lambda: sm.Sum((sm.Toeplitz(torch.ones(7, dtype=F64), 4), sm.LowRank(ROW, ROW))),
    "Scaled": lambda: sm.Scaled(sm.HouseholderProduct(ROW.mT), 0.0),
    "TuckerMatrix": lambda: sm.Tucker(torch.ones(1, 1, dtype=F64), (ROW, ROW)).matricize((0,)),
    "Implicit": lambda: sm.Implicit((4, 4), lambda x: 0 * x, lambda x: 0 * x, F64),
}


@pytest.mark.parametrize("make", SINGULAR.values(), ids=SINGULAR)
def test_a_singular_system_raises_what_torch_and_numpy_raise(make: Callable[[], Matrix]) -> None:
    matrix = make()
    b = _numbers(int(matrix.shape[-1]))
    for expected in (sm.SolveError, torch.linalg.LinAlgError, numpy.linalg.LinAlgError):
        with pytest.raises(expected):
            matrix.solve(b)
    with pytest.raises(sm.SolveError) as caught:
        sm.linalg.solve(matrix, b)
    assert not caught.value.backward_error <= 100 * torch.finfo(F64).eps  # NaN, inf, or what was reached
    if max(matrix.shape) <= 256:  # the way out
        x = matrix.lstsq(b)
        best = torch.linalg.lstsq(matrix.to_dense(), b[:, None].to(matrix.dtype), driver="gelsd").solution[:, 0]
        gap = float((matrix.to_dense() @ (x - best)).norm())
        assert gap <= 1e4 * torch.finfo(F64).eps * float(b.norm())


# -- not of the type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [1e-3, 1e-9])
def test_a_matrix_that_is_not_orthogonal_is_refused_with_distance_and_tolerance(gap: float) -> None:
    dense = torch.linalg.qr(_numbers(6, 6))[0]
    dense[0] *= 1 + gap
    for kind in (sm.HouseholderProduct, sm.GivensProduct):
        with pytest.raises(sm.NotStructuredError, match=r"= \d\.\d+e-\d+ exceeds \d\.\d+e-\d+") as caught:
            kind.from_dense(dense)
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, sm.StructureError)
        assert gap / 8 <= caught.value.distance <= 8 * gap
    assert sm.HouseholderProduct.from_dense(dense, tol=10 * gap).shape == (6, 6)


NEAR: dict[str, tuple[Any, dict[str, Any]]] = {
    "Toeplitz": (sm.Toeplitz, {}),
    "SymmetricToeplitz": (sm.SymmetricToeplitz, {}),
    "HermitianToeplitz": (sm.HermitianToeplitz, {}),
    "Hankel": (sm.Hankel, {}),
    "Circulant": (sm.Circulant, {"f": -1}),
    "OrthogonalCirculant": (sm.OrthogonalCirculant, {}),
    "Diagonal": (sm.Diagonal, {}),
    "Zero": (sm.Zero, {}),
    "Permutation": (sm.Permutation, {}),
    "BlockDiagonal": (sm.BlockDiagonal, {"count": 2}),
    "BlockCirculant": (sm.BlockCirculant, {"sizes": (2, 3)}),
    "BlockToeplitz": (sm.BlockToeplitz, {"columns": (2, 3)}),
    "CosineDiagonal": (sm.CosineDiagonal, {"sizes": (2, 3)}),
    "Kronecker": (sm.Kronecker, {"shapes": ((2, 2), (3, 3))}),
    "LowRank": (sm.LowRank, {"rank": 2}),
    "LowDisplacementRank": (sm.LowDisplacementRank, {"rank": 2}),
    "Butterfly": (sm.Butterfly, {"digits": (2, 3)}),
    "Vandermonde": (sm.Vandermonde, {}),
}


@pytest.mark.parametrize(("kind", "options"), NEAR.values(), ids=NEAR)
def test_from_dense_refuses_another_matrix_with_its_distance(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(sm.NotStructuredError, match=rf"{kind.__name__}\.from_dense") as caught:
        kind.from_dense(_numbers(6, 6), **options)
    assert caught.value.distance > 1e-3


DRAWN = [
    sm.Circulant,
    sm.Toeplitz,
    sm.Diagonal,
    sm.LowRank,
    sm.Banded,
    sm.HouseholderProduct,
    sm.GivensProduct,
    sm.Butterfly,
]


@pytest.mark.parametrize("kind", DRAWN, ids=lambda t: t.__name__)
def test_random_integers_are_refused(kind: Any) -> None:
    with pytest.raises(sm.DtypeError, match=rf"{kind.__name__}.random\(dtype=torch.int64\)"):
        kind.random(4, dtype=torch.int64)


@pytest.mark.parametrize("given", [[1.0, 2.0], numpy.ones(2), 3.0, "ab"], ids=repr)
def test_fields_that_are_no_tensors_are_refused_when_made(given: Any) -> None:
    """A list once made a Diagonal that broke at its first use."""
    for make in (sm.Diagonal, sm.Circulant, sm.Dense, lambda v: sm.LowRank(v, v), lambda v: sm.Banded(v, 0)):
        with pytest.raises(TypeError, match=r"must be a tensor, got .*torch.as_tensor"):
            make(given)


def test_one_matrix_is_no_list_of_them() -> None:
    for joined in (sm.cat, sm.hstack, sm.vstack):
        with pytest.raises(TypeError, match="cat: a list of matrices is needed, got one Identity"):
            joined(sm.Identity(3))
    assert tuple(sm.hstack(sm.Identity(2) for _ in range(3)).shape) == (2, 6)
