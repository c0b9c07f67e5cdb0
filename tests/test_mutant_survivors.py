"""What surviving mutants showed to be untested: scales of random matrices, singular by ratio, batches, adjoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import structmat as sm
from structmat.functional import gko
from structmat.testing import assert_matches_dense

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", [sm.LowRank, sm.CauchyLike, sm.LowDisplacementRank])
def test_the_rank_of_a_random_matrix_does_not_change_its_size(kind: type[sm.Matrix]) -> None:
    def mean_square(rank: int) -> float:
        generator = torch.Generator().manual_seed(1)
        draws = [kind.random(24, rank=rank, generator=generator, dtype=F64) for _ in range(60)]  # type: ignore[attr-defined]
        return sum(float(a.norm()) ** 2 for a in draws) / len(draws)

    # 60 draws: the mean square of rank 1, products of two normals with variance 8 times its square, is good to 0.4.
    assert 1 / 3 < mean_square(12) / mean_square(1) < 3


def test_the_inverse_of_a_random_triangular_matrix_stays_small() -> None:
    for n in (1, 4, 32, 128):
        for upper in (False, True):
            a = sm.Triangular.random(n, upper, generator=torch.Generator().manual_seed(n), dtype=F64)
            # I + N with ||N||_2 about 2 / sqrt(n), less than 1 in the triangle from n = 4 on
            assert float(torch.linalg.matrix_norm(a.inv().to_dense(), 2)) < 10
            assert bool((a.diagonal() - 1).abs().max() <= 4 / n)


def closed_forms(lam: torch.Tensor) -> list[sm.Matrix]:
    """Matrices with these eigenvalues, of the types that divide by them."""
    return [sm.Diagonal(lam), sm.CosineDiagonal(lam, levels=1), sm.Circulant(torch.fft.ifft(lam.to(C128)))]


@pytest.mark.parametrize("number", [1, 2])  # a diagonal matrix is singular where an entry is zero, and only there
@pytest.mark.parametrize("scale", [1e-60, 1e-20, 1.0, 1e20, 1e60])
def test_a_matrix_is_singular_by_the_ratio_of_its_eigenvalues_not_by_their_size(number: int, scale: float) -> None:
    lam = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.25, 1.5, 0.75, 4.0], dtype=F64)
    b = drawn(8, seed=3)
    a = closed_forms(lam * scale)[number]
    x = a.solve(b.to(a.dtype))
    want = torch.linalg.solve(a.to_dense() / scale, b.to(a.dtype)) / scale
    assert float((x - want).abs().max() * scale) <= 100 * EPS * 16 * float(b.norm())
    lam[2] = 1e-20
    with pytest.raises(sm.SolveError):
        closed_forms(lam * scale)[number].solve(b.to(a.dtype))


@pytest.mark.parametrize("number", range(3))
def test_unchecked_solves_of_singular_matrices_do_not_raise(number: int) -> None:
    lam = torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=F64)
    a = closed_forms(lam)[number]
    x = a.solve(torch.ones(4, dtype=a.dtype), check=False)
    assert x.shape == (4,) and not bool(torch.isfinite(x).all())


def test_a_method_called_by_name_is_the_one_that_runs() -> None:
    a = sm.Butterfly.random(8, generator=torch.Generator().manual_seed(0), dtype=F64)
    b = drawn(8, 2, seed=1)
    x, info = sm.linalg.solve(a, b, method="dense", return_info=True)
    y, other = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "dense" != other.method
    size = float(torch.linalg.cond(a.to_dense()))
    assert float((x - y).norm()) <= 100 * EPS * size * float(y.norm())


@pytest.mark.parametrize("ordered", [False, True])
def test_batches_of_diagonal_matrices_go_into_butterflies(ordered: bool) -> None:
    whole = sm.Butterfly.random(12, generator=torch.Generator().manual_seed(2), dtype=F64)
    order = tuple(reversed(range(len(whole.digits)))) if ordered else None
    a = sm.Butterfly(whole.blocks, whole.digits, whole.axes, order)
    d = sm.Diagonal(drawn(2, 3, 12, seed=4))
    for product in (sm.Matrix.__matmul__(a, d), sm.Matrix.__matmul__(d, a)):
        assert isinstance(product, sm.Butterfly)
    assert_matches_dense(a @ d, a.to_dense() @ d.to_dense())
    assert_matches_dense(d @ a, d.to_dense() @ a.to_dense())


@pytest.mark.parametrize(("first", "second"), [((1, 2), (2, 0)), ((0, 3), (1, 1)), ((5, 0), (0, 6)), ((7, 7), (1, 7))])
def test_bandwidths_of_a_product_add_and_are_not_larger(first: tuple[int, int], second: tuple[int, int]) -> None:
    n = 8
    a, b = (
        sm.Banded.random(n, *widths, generator=torch.Generator().manual_seed(5), dtype=F64)
        for widths in (first, second)
    )
    product = a @ b
    assert isinstance(product, sm.Banded)
    assert product.lower == min(first[0] + second[0], n - 1) and product.upper == min(first[1] + second[1], n - 1)
    assert_matches_dense(product, a.to_dense() @ b.to_dense())


def wide_bands(*tensors: torch.Tensor) -> sm.Matrix:
    return sm.Banded(tensors[0], 1)


def vandermonde(*tensors: torch.Tensor) -> sm.Matrix:
    return sm.Vandermonde(tensors[0], 5)


def cauchy(*tensors: torch.Tensor) -> sm.Matrix:
    return sm.CauchyLike(*tensors)


@pytest.mark.parametrize(
    ("make", "shapes"), [(wide_bands, [(3, 6)]), (cauchy, [(6, 2), (6, 2), (6,), (6,)]), (vandermonde, [(5,)])]
)
def test_complex_gradients_of_adjoint_solves(make: Callable[..., sm.Matrix], shapes: list[tuple[int, ...]]) -> None:
    fields = [drawn(*shape, seed=k, dtype=C128) + (2 * k if len(shape) == 1 else 0) for k, shape in enumerate(shapes)]
    if make is wide_bands:
        fields[0][1] += 4
    fields = [t.requires_grad_() for t in fields]
    n = make(*fields).shape[-1]
    b, weights = drawn(n, 2, seed=8, dtype=C128), drawn(n, 2, seed=9, dtype=C128)
    ours = (make(*fields).factor().adjoint_solve(b) * weights).sum().real
    dense = (torch.linalg.solve(make(*fields).to_dense().mH, b) * weights).sum().real
    size = float(torch.linalg.cond(make(*fields).to_dense().detach()))
    for got, want in zip(torch.autograd.grad(ours, fields), torch.autograd.grad(dense, fields), strict=True):
        assert float((got - want).norm()) <= 1000 * EPS * size**2 * float(want.norm())


def test_small_least_squares_problems_are_solved_directly() -> None:
    """Up to the dense limit nothing iterates unless asked: singular values count as zero by the documented rule."""
    a = sm.Toeplitz(drawn(60 + 40 - 1, seed=11), 40)
    b = drawn(60, seed=12)
    x, info = sm.linalg.lstsq(a, b, return_info=True)
    y, asked = sm.linalg.lstsq(a, b, method="lsmr", return_info=True)
    assert "lsmr" not in info.method and asked.method == "lsmr"
    size = float(torch.linalg.cond(a.to_dense())) ** 2 * float(x.norm() + b.norm())
    want = torch.linalg.lstsq(a.to_dense(), b[:, None], driver="gelsd").solution[:, 0]
    assert float((x - want).norm()) <= 100 * EPS * size and float((y - want).norm()) <= 1e-10 * size


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_the_determinant_of_the_adjoint_is_the_conjugate(n: int, dtype: torch.dtype) -> None:
    a = sm.LowDisplacementRank(drawn(n, 2, seed=1, dtype=dtype), drawn(n, 2, seed=2, dtype=dtype))
    sign, logabs = a.factor(method="gko").slogdet()
    want = torch.linalg.slogdet(a.to_dense())
    size = 100 * EPS * n * float(torch.linalg.cond(a.to_dense()))
    assert abs(complex(sign - want[0])) <= size and abs(float(logabs - want[1])) <= size
    adjoint, logs = gko.factor(a.left, a.right, a.e, a.f).adjoint().slogdet()
    assert abs(complex(adjoint.reshape(()) - want[0].conj())) <= size and abs(float(logs.reshape(()) - want[1])) <= size


def test_a_submatrix_of_an_ill_conditioned_matrix_is_solved_by_refinement() -> None:
    """The complement's formula divides by the whole matrix, of condition 1e7: without refinement errors are 1e7 eps."""
    n = 32
    lam = torch.ones(n, dtype=F64)
    lam[0] = 1e-7
    column = torch.fft.ifft(lam.to(C128)).real
    whole = sm.Circulant(column)
    keep = torch.cat((torch.arange(3, 17), torch.arange(20, 31)))
    a = sm.Submatrix(whole, keep)
    b = drawn(len(keep), 3, seed=6)
    x = a.solve(b)
    dense = whole.to_dense()[keep][:, keep]
    residual = (b - dense @ x).norm(dim=0)
    size = float(torch.linalg.matrix_norm(dense, 2)) * x.norm(dim=0) + b.norm(dim=0)
    assert bool((residual <= 40 * EPS * size).all())
