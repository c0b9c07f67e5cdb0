"""BlockToeplitz, BlockCirculant, CosineDiagonal, ReflectedConvolution: closed forms, agreement with one level and with
Kronecker products, and errors that say the way out."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

import structmat as sm
from structmat.lazy import Prepared, Scaled
from structmat.testing import assert_claims, assert_gradients
from structmat.testing.reference import dense_of

F64, F32, C128 = torch.float64, torch.float32, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).to(F64)


def _near(a: torch.Tensor, b: torch.Tensor, factor: float = 100.0) -> None:
    """Numbers of the size of b, through a few dozen operations each."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= factor * EPS * (1 + float(b.abs().max()))


# -- meaning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
def test_one_level_is_toeplitz_and_circulant(dtype: torch.dtype) -> None:
    t, x = _numbers(2, 7, dtype=dtype), _numbers(2, 3, 4, dtype=dtype, seed=1)
    one, plain = sm.BlockToeplitz(t, (4,)), sm.Toeplitz(t, 4)
    assert torch.equal(one.to_dense(), plain.to_dense()) and torch.equal(one.diagonal(), plain.diagonal())
    _near(one.linear(x), plain.linear(x))
    _near(one.norm(), plain.norm())
    for n in (5, 17):
        c = _numbers(n, dtype=dtype)
        block, flat = sm.BlockCirculant(c, 1), sm.Circulant(c)
        assert torch.equal(block.to_dense(), flat.to_dense()) and block.claims.displacement == flat.claims.displacement
        _near(block.eigvals(), flat.eigvals())
        _near(block.linear(_numbers(2, n, dtype=dtype)), flat.linear(_numbers(2, n, dtype=dtype)))


def test_separable_generators_are_kronecker_products() -> None:
    s, t, u = _numbers(5), _numbers(6, seed=1), _numbers(3, seed=2)
    a, b, c = sm.Toeplitz(s, 3), sm.Toeplitz(t, 2), sm.Toeplitz(u, 2)
    three = sm.BlockToeplitz(s[:, None, None] * t[:, None] * u, (3, 2, 2))
    wanted = torch.kron(torch.kron(a.to_dense(), b.to_dense()), c.to_dense())
    _near(three.to_dense(), wanted)
    x = _numbers(2, 12)
    _near(three.linear(x), x @ wanted.mT)
    v, w = sm.Circulant(_numbers(4)), sm.Circulant(_numbers(3, seed=1))
    both = sm.BlockCirculant(v.column[:, None] * w.column)
    _near(both.to_dense(), torch.kron(v.to_dense(), w.to_dense()))
    _near(both.inv().to_dense(), torch.kron(v.inv().to_dense(), w.inv().to_dense()), 1e4)


def test_kronecker_sums_are_block_toeplitz() -> None:
    """``A (x) I + I (x) B``, such as the Laplacian of a grid."""
    s, t = _numbers(5), _numbers(7, seed=1)
    unit = [torch.nn.functional.one_hot(torch.tensor(k), 2 * k + 1).to(F64) for k in (2, 3)]
    total = sm.BlockToeplitz(torch.outer(s, unit[1]), (3, 4)) + sm.BlockToeplitz(torch.outer(unit[0], t), (3, 4))
    a, b = sm.Toeplitz(s, 3).to_dense(), sm.Toeplitz(t, 4).to_dense()
    eye = [torch.eye(n, dtype=F64) for n in (3, 4)]
    assert isinstance(total, sm.BlockToeplitz)
    assert torch.equal(total.to_dense(), torch.kron(a, eye[1]) + torch.kron(eye[0], b))


@pytest.mark.parametrize("sizes", [(4,), (17,), (2, 3), (1, 5), (2, 3, 2)])
def test_products_of_integers_round_to_the_exact_ones(sizes: tuple[int, ...]) -> None:
    """An index slip would be off by whole units."""
    n = int(numpy.prod(sizes))
    x = _integers(3, n, seed=2)
    a, b = (sm.BlockCirculant(_integers(*sizes, seed=s), len(sizes)) for s in (0, 1))
    for m in (a, a.mT, a @ b, a + b, a * b, a.prepare()):
        assert torch.equal(m.linear(x).round(), x @ m.to_dense().round().mT)
    assert torch.equal((a @ b).to_dense().round(), dense_of(a) @ dense_of(b))
    assert torch.equal(a.mT.to_dense(), dense_of(a).mT)
    t = sm.BlockToeplitz(_integers(*(k + 2 for k in sizes)), sizes)
    for m in (t, t.mT, t.prepare(), t.mT.prepare(), t + t, t * t):
        rows = _integers(2, int(m.shape[-1]), seed=5)
        assert torch.equal(m.linear(rows).round(), rows @ m.to_dense().mT)
    assert torch.equal(t.mT.to_dense(), dense_of(t).mT)
    square = sm.BlockToeplitz(_integers(*(2 * k - 1 for k in sizes)), sizes)
    for total in (square + a, a + square):
        assert type(total) is sm.BlockToeplitz and torch.equal(total.to_dense(), dense_of(square) + dense_of(a))
    for total in (square * a, a * square):
        assert type(total) is sm.BlockToeplitz and torch.equal(total.to_dense(), dense_of(square) * dense_of(a))


# -- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("sizes", [(6,), (2, 2), (3, 4), (2, 3, 2), (17, 1)])
def test_functions_of_block_circulants(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    n = int(numpy.prod(sizes))
    generators = _numbers(2, *sizes, dtype=dtype) / n**0.5
    generators[(..., *(0,) * len(sizes))] += 2
    a = sm.BlockCirculant(generators, len(sizes))
    dense = dense_of(a)
    _near(a.inv().to_dense(), torch.linalg.inv(dense), 1e4)
    _near(a.pinv().to_dense(), torch.linalg.pinv(dense), 1e4)
    _near(a.det(), torch.linalg.det(dense), 1e4)
    sign, logabs = a.slogdet()
    _near(sign, torch.linalg.slogdet(dense)[0], 1e4)
    _near(logabs, torch.linalg.slogdet(dense)[1], 1e4)
    _near(a.svdvals(), torch.linalg.svdvals(dense), 1e3)
    _near(a.eigvals().prod(-1), torch.linalg.det(dense).to(a.eigvals().dtype), 1e4)
    _near(a.norm(), torch.linalg.matrix_norm(dense))
    _near(a.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    b = _numbers(2, n, 3, dtype=dtype, seed=1)
    _near(a.solve(b), torch.linalg.solve(dense, b), 1e4)
    _near(a.factor().solve(b), torch.linalg.solve(dense, b), 1e4)
    root = (a @ a.mH).sqrt()
    _near((root @ root).to_dense(), dense @ dense.mH, 1e3)
    assert type(root) is sm.BlockCirculant and type(a @ a.mH) is sm.BlockCirculant


def test_real_square_roots_of_block_circulants() -> None:
    """Principal where it is real; a negative real eigenvalue is refused, and complex entries take it."""
    a = sm.BlockCirculant(torch.tensor([[2.0, 1.0], [0.5, 0.25]], dtype=F64))
    _near((a.sqrt() @ a.sqrt()).to_dense(), a.to_dense())
    assert_gradients(lambda m: m.sqrt().to_dense(), (a,))
    negative = sm.BlockCirculant(torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=F64))
    with pytest.raises(sm.StructureError, match=r"sqrt: a real eigenvalue is negative.*complex128"):
        negative.sqrt()
    whole = sm.BlockCirculant(negative.generators.to(C128)).sqrt()
    _near((whole @ whole).to_dense(), negative.to_dense().to(C128))


def test_functions_of_cosine_diagonals() -> None:
    a = sm.CosineDiagonal(_numbers(2, 3, 4).abs() + 0.5)
    dense = dense_of(a)
    for got, wanted in (
        (a.inv().to_dense(), torch.linalg.inv(dense)),
        (a.pinv().to_dense(), torch.linalg.pinv(dense)),
        ((a.sqrt() @ a.sqrt()).to_dense(), dense),
        ((a @ a + a - 3 * a).to_dense(), dense @ dense - 2 * dense),
        (a.svdvals(), torch.linalg.svdvals(dense)),
        (a.diagonal(), dense.diagonal(dim1=-2, dim2=-1)),
        (a.slogdet()[1], torch.linalg.slogdet(dense)[1]),
        (a.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1)),
        (a.norm(), torch.linalg.matrix_norm(dense)),
        (sm.CosineDiagonal.nearest(dense, (3, 4)).eigenvalues, a.eigenvalues),
    ):
        _near(got, wanted, 1e3)
    with pytest.raises(sm.StructureError, match=r"sqrt: an eigenvalue is negative"):
        (-a).sqrt()


MULTIPLES: list[Any] = [
    sm.BlockCirculant(_numbers(3, 4)),
    sm.BlockToeplitz(_numbers(5, 7), (3, 4)),
    sm.CosineDiagonal(_numbers(3, 4)),
]


@pytest.mark.parametrize("a", MULTIPLES, ids=lambda a: type(a).__name__)
def test_multiples_of_the_identity_stay_in_the_type(a: Any) -> None:
    eye = torch.eye(12, dtype=F64)
    tensor = torch.tensor([[[2.0]], [[3.0]]], dtype=F64)
    for total, wanted in (
        (a + sm.Identity(12), dense_of(a) + eye),
        (sm.Identity(12) + a, dense_of(a) + eye),
        (a - 0.25 * sm.Identity(12), dense_of(a) - 0.25 * eye),
        (2j * sm.Identity(12, dtype=C128) + a, dense_of(a) + 2j * eye),
        (a + Scaled(sm.Identity(12), tensor), dense_of(a) + tensor * eye),
        (3 * a, 3 * dense_of(a)),
        (a * tensor, dense_of(a) * tensor),
        (a @ sm.Identity(12), dense_of(a)),
    ):
        assert type(total) is type(a)
        _near(total.to_dense(), wanted)
    assert type(a + Scaled(sm.Circulant(_numbers(12)), 2.0)) is sm.Sum


def test_unequal_levels_stay_lazy() -> None:
    """Equal orders are not enough: 3 x 4 levels are not 4 x 3 levels, and the identity is no 2 x 3 by 3 x 2 matrix."""
    pairs: list[tuple[Any, Any]] = [
        (sm.BlockCirculant(_numbers(3, 4)), sm.BlockCirculant(_numbers(4, 3))),
        (sm.BlockToeplitz(_numbers(5, 7), (3, 4)), sm.BlockToeplitz(_numbers(7, 5), (4, 3))),
        (sm.BlockToeplitz(_numbers(5, 7), (3, 4)), sm.BlockCirculant(_numbers(4, 3))),
        (sm.CosineDiagonal(_numbers(3, 4)), sm.CosineDiagonal(_numbers(4, 3))),
        (sm.BlockToeplitz(_numbers(6, 6), (3, 4)), 2 * sm.Identity(12, F64)),
        (sm.ReflectedConvolution(_numbers(3, 3), (3, 4)), sm.ReflectedConvolution(_numbers(3, 1), (3, 4)).mT),
    ]
    for a, b in pairs:
        for x, y in ((a, b), (b, a)):
            assert type(x + y) is sm.Sum
            _near((x + y).to_dense(), x.to_dense() + y.to_dense())
            _near((x @ y).to_dense(), x.to_dense() @ y.to_dense())
    for a, b in pairs[:3]:
        with pytest.raises(sm.StructureError, match="levels differ"):
            a * b


def test_sums_of_reflected_convolutions() -> None:
    a, b = (sm.ReflectedConvolution(_numbers(3, 2, seed=s), (3, 4)) for s in (0, 1))
    for x, y in ((a, b), (a.mT, b.mT)):
        assert type(x + y) is sm.ReflectedConvolution
        _near((x + y).to_dense(), x.to_dense() + y.to_dense())
    assert_claims(a + b)


def test_nearest_is_the_orthogonal_projection() -> None:
    dense = _numbers(12, 12)
    for p in (
        sm.BlockCirculant.nearest(dense, (3, 4)),
        sm.BlockToeplitz.nearest(dense, (3, 4)),
        sm.BlockToeplitz.nearest(dense, (3, 4), (2, 6)),
        sm.CosineDiagonal.nearest(dense, (3, 4)),
    ):
        near = p.to_dense()
        assert float(near.norm() ** 2 + (dense - near).norm() ** 2) == pytest.approx(
            float(dense.norm() ** 2), rel=1e-12
        )
    again = sm.BlockToeplitz.from_dense(
        sm.BlockToeplitz.nearest(dense, (3, 4), (2, 6)).to_dense(), columns=(3, 4), rows=(2, 6)
    )
    _near(again.to_dense(), sm.BlockToeplitz.nearest(dense, (3, 4), (2, 6)).to_dense())
    with pytest.raises(sm.NotStructuredError, match="nearest BlockCirculant"):
        sm.BlockCirculant.from_dense(dense, sizes=(3, 4))
    assert sm.BlockToeplitz.nearest(dense.bfloat16(), (3, 4)).dtype == torch.bfloat16


def test_makers_and_values() -> None:
    for made in (
        sm.BlockCirculant.identity((2, 3), dtype=F64),
        sm.BlockToeplitz.identity((2, 3), dtype=F64),
        sm.CosineDiagonal.identity((2, 3), dtype=F64),
    ):
        _near(made.to_dense(), torch.eye(6, dtype=F64))
    g = torch.Generator().manual_seed(0)
    for made in (
        sm.BlockCirculant.random((2, 3), generator=g),
        sm.BlockToeplitz.random((2, 3), (4, 1), generator=g),
        sm.CosineDiagonal.random((2, 3), generator=g),
        sm.ReflectedConvolution.random((2, 3), (3, 3), generator=g),
    ):
        assert made.shape[-1] == 6 and made.dtype == F32
    stacked = sm.stack([sm.BlockCirculant(_numbers(2, 3, seed=s)) for s in (0, 1)])
    assert stacked.shape == (2, 6, 6) and torch.equal(stacked[1].generators, _numbers(2, 3, seed=1))
    kept = sm.BlockToeplitz(_numbers(2, 3, 5), (2, 3)).prepare()
    assert type(kept) is Prepared and kept.kept[0].shape == (2, 4, 4)
    assert (
        repr(sm.BlockToeplitz(_numbers(6, 3), (3, 2)))
        == "BlockToeplitz(shape=(8, 6), levels=4x2 by 3x2, dtype=float64)"
    )
    assert "transposed" in repr(sm.ReflectedConvolution(_numbers(2, 2), (3, 3)).mT)
    assert sm.backend.explain(sm.BlockCirculant(_numbers(17, 2))).path == "folded"
    assert sm.backend.explain(sm.BlockCirculant(_numbers(16, 2))).path == "cyclic"
    assert sm.backend.explain(kept.matrix).path == "fft"
    assert sm.backend.explain("solve", sm.BlockToeplitz.random((32, 32))).path == "gmres"


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sm.BlockCirculant(torch.ones(3)), sm.ShapeError, "levels must be an integer from 1 to 1.*got 2"),
        (lambda: sm.BlockCirculant(torch.ones(3, 3), 0), sm.ShapeError, "levels must be an integer from 1 to 2"),
        (lambda: sm.BlockCirculant(torch.ones(3, 0)), sm.ShapeError, "a level has no entry"),
        (lambda: sm.BlockCirculant(torch.ones(3, 3, dtype=torch.int64)), sm.DtypeError, "floating point or complex"),
        (lambda: sm.BlockToeplitz(torch.ones(3, 3), (2, 4)), sm.ShapeError, r"do not allow columns=\(2, 4\)"),
        (lambda: sm.BlockToeplitz(torch.ones(3, 3), 2), sm.ShapeError, "must be a tuple of integers"),
        (lambda: sm.BlockToeplitz(torch.ones(3), (2, 2)), sm.ShapeError, "BlockToeplitz"),
        (lambda: sm.ReflectedConvolution(torch.ones(3, 3), (2, 0)), sm.ShapeError, "positive integers"),
        (lambda: sm.BlockToeplitz.from_kernel(torch.ones(3), (4, 4)), sm.ShapeError, "has not 2 non-empty axes"),
        (
            lambda: sm.BlockToeplitz.from_kernel(torch.ones(3), (4,), "mirror"),
            ValueError,
            "'zero', 'periodic', 'reflect'",
        ),
        (
            lambda: sm.BlockToeplitz.from_kernel(torch.tensor([1.0, 2.0]), (4,), "reflect", symmetric=True),
            sm.StructureError,
            "differs from its mirror image about the centre.*ReflectedConvolution",
        ),
        (
            lambda: sm.BlockToeplitz.from_kernel(torch.ones(3, dtype=torch.int64), (4,)),
            sm.DtypeError,
            "convert it first",
        ),
        (lambda: sm.BlockCirculant(torch.ones(3, 4)).apply(torch.ones(4, 3)), sm.ShapeError, r"must be \(3, 4\)"),
        (lambda: sm.BlockCirculant(torch.ones(3, 4)).apply(torch.ones(3, 4).double()), sm.DtypeError, "precision"),
        (
            lambda: sm.BlockCirculant.nearest(torch.ones(6, 6), (2, 2)),
            sm.ShapeError,
            "have 4 entries, the matrix has 6",
        ),
        (
            lambda: sm.BlockCirculant(torch.ones(3, 4)).solve(torch.ones(12)),
            sm.SolveError,
            "singular to working precision",
        ),
        (
            lambda: sm.CosineDiagonal(torch.zeros(3, 4)).solve(torch.ones(12)),
            sm.SolveError,
            "singular to working precision",
        ),
        (lambda: sm.BlockToeplitz.random((20, 20)).slogdet(), sm.StructureError, "above the dense limit"),
    ],
)
def test_errors_name_the_way_out(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
