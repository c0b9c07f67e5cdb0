"""What solves and factorisations refuse at the door: shapes, dtypes and options, by name and with the objects."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

import structmat as sm

N = 300  # above the dense limit: the structured paths
F64 = torch.float64


def _matrix(name: str) -> sm.Matrix:
    generator = torch.Generator().manual_seed(0)
    diagonals = torch.randn(2 * N - 1, generator=generator, dtype=F64)
    diagonals[N - 1] += 60
    toeplitz = sm.Toeplitz(diagonals, N)
    vectors = torch.randn(4, 4, generator=generator, dtype=F64) + 4 * torch.eye(4, dtype=F64)
    found: dict[str, sm.Matrix] = {
        "dense": sm.Dense(vectors),
        "toeplitz": toeplitz,
        "symmetric": sm.SymmetricToeplitz(0.5 ** torch.arange(N, dtype=F64)),
        "hankel": sm.Hankel(diagonals, N),
        "circulant": sm.Circulant(diagonals[N - 1 :]),
        "ldr": sm.LowDisplacementRank.from_toeplitz(toeplitz),
        "submatrix": sm.Submatrix(toeplitz, torch.arange(N - 3)),
        "vandermonde": sm.Vandermonde(torch.arange(4, dtype=F64), 4),
        "block toeplitz": sm.BlockToeplitz(diagonals[N - 8 : N + 7].reshape(3, 5), (2, 3)),
        "implicit": sm.Implicit((4, 4), lambda x: x @ vectors.mT, lambda x: x @ vectors, F64),
    }
    return found[name]


NAMES = ["dense", "toeplitz", "symmetric", "hankel", "circulant", "ldr", "submatrix", "vandermonde", "block toeplitz"]


@pytest.mark.parametrize("name", [*NAMES, "implicit"])
def test_a_factorisation_checks_its_right_hand_side(name: str) -> None:
    """As the solve of the matrix does: no bare error of torch from inside, and no silent change of precision."""
    a = _matrix(name)
    n, kept = a.shape[-1], a.factor()
    for verb in ("solve", "solve_rows", "adjoint_solve"):
        solve: Any = getattr(kept, verb)
        for wrong in (torch.ones((), dtype=F64), torch.ones(7, dtype=F64), torch.ones(n + 1, n + 2, dtype=F64)):
            with pytest.raises(sm.ShapeError, match=rf"{type(a).__name__}[\s\S]*{n}"):
                solve(wrong)
        with pytest.raises(sm.DtypeError, match="integer dtype int64"):
            solve(torch.ones(n, dtype=torch.int64))
        with pytest.raises(sm.DtypeError, match="differ in precision"):
            solve(torch.ones(n, dtype=torch.float32))
        with pytest.raises(TypeError, match="got list"):
            solve([1.0] * n)
        of_array, of_tensor = solve(numpy.ones(n)), solve(torch.ones(n, dtype=F64))
        assert isinstance(of_array, torch.Tensor) and torch.equal(of_array, of_tensor)


@pytest.mark.parametrize("a", [sm.Toeplitz(torch.ones(5), 3), sm.BlockToeplitz(torch.ones(3, 3), (2, 2))])
def test_factoring_a_singular_matrix_is_an_error_of_ours(a: sm.Matrix) -> None:
    with pytest.raises(sm.SolveError, match=rf"{type(a).__name__}.*factor.*singular.*lstsq"):
        a.factor()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factorisations_of_halves_take_halves_and_what_they_compute_in(dtype: torch.dtype) -> None:
    whole = sm.SymmetricToeplitz(0.5 ** torch.arange(N, dtype=torch.float32)).to(dtype)
    kept = sm.Submatrix(whole, torch.arange(N - 3)).factor()
    for given in (dtype, torch.float32):
        assert bool(kept.solve(torch.ones(N - 3, dtype=given)).isfinite().all())


def test_batches_of_a_factorisation_must_broadcast() -> None:
    a = sm.stack([_matrix("toeplitz"), _matrix("toeplitz")])
    with pytest.raises(sm.ShapeError, match="do not broadcast"):
        a.factor().solve(torch.ones(3, N, 1, dtype=F64))


@pytest.mark.parametrize("name", [*NAMES, "implicit"])
@pytest.mark.parametrize("options", [{"tol": 0.0}, {"tol": -1e-3}, {"tol": float("nan")}, {"max_steps": 0}])
def test_options_that_no_solve_can_meet_are_named(name: str, options: dict[str, Any]) -> None:
    """Not an error about a backward error of 1e-16 that exceeds -1, nor silence where the path takes no steps."""
    a = _matrix(name)
    (option,) = options
    with pytest.raises(ValueError, match=f"{option}.* must be a positive"):
        a.solve(torch.ones(a.shape[-1], dtype=F64), **options)


@pytest.mark.parametrize("name", ["toeplitz", "symmetric", "ldr", "submatrix"])
def test_a_start_that_does_not_fit_is_named(name: str) -> None:
    a = _matrix(name)
    b = torch.ones(a.shape[-1], 2, dtype=F64)
    for method in ("auto", "gmres"):
        with pytest.raises(sm.ShapeError, match=r"start has shape \(7,\)"):
            a.solve(b, method=method, start=torch.ones(7, dtype=F64))
        with pytest.raises(sm.ShapeError, match="start has 3 columns, b has 2"):
            a.solve(b, method=method, start=torch.ones(a.shape[-1], 3, dtype=F64))
        with pytest.raises(sm.DtypeError, match="the solution is real"):
            a.solve(b, method=method, start=torch.ones_like(b) * 1j)


@pytest.mark.parametrize("n", [1, 40, 300])
@pytest.mark.parametrize("condition", [1e3, 1e6])
def test_generators_that_cancel_are_solved_all_the_same(n: int, condition: float) -> None:
    """``A + B - B``: products carry noise of eps times the generator condition, which is no fault of the solution. The
    forward error is that of the entries, ``eps kg kappa``."""
    generator = torch.Generator().manual_seed(1)

    def drawn(size: float = 1.0) -> torch.Tensor:
        return size * torch.randn(n, 2, generator=generator, dtype=F64)

    a, p, q = sm.LowDisplacementRank(drawn(), drawn()), drawn(condition**0.5), drawn(condition**0.5)
    b = sm.LowDisplacementRank(torch.cat((a.left, p, p), -1), torch.cat((a.right, q, -q), -1))
    y = torch.randn(n, 2, generator=generator, dtype=F64)
    x, info = sm.linalg.solve(b, y, return_info=True)
    eps = torch.finfo(F64).eps
    assert info.method == ("gko" if n > 256 else "dense") and float(info.backward_error.max()) <= 100 * eps
    exact = torch.linalg.solve(a.to_dense(), y)
    noise = 100 * eps * condition * n * float(torch.linalg.cond(a.to_dense()))
    assert float((x - exact).norm()) <= noise * float(exact.norm())
    assert torch.allclose(b.factor().solve(y), x, rtol=0, atol=noise * float(exact.norm()))


@pytest.mark.parametrize("n", [64, 300])
def test_nodes_on_the_unit_circle_are_solved_to_the_last_digits(n: int) -> None:
    """The transposed discrete Fourier transform: condition number 1, yet divided differences lose digits; refined."""
    nodes = torch.exp(2j * torch.pi * torch.arange(n, dtype=F64) / n)
    y = torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=F64) + 0j
    x, info = sm.linalg.solve(sm.Vandermonde(nodes, n), y, return_info=True)
    assert info.method == "bjorck-pereyra" and float(info.backward_error.max()) <= 100 * torch.finfo(F64).eps
    assert float((x - torch.fft.fft(y, dim=0) / n).norm()) <= 1e-12 * float(x.norm())


@pytest.mark.parametrize(
    "kind", [sm.SymmetricToeplitz, sm.HermitianToeplitz, sm.Circulant, sm.OrthogonalCirculant], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (5, 3)])
def test_square_types_refuse_the_nearest_to_a_rectangle(kind: Any, shape: tuple[int, int]) -> None:
    """One row used to broadcast over the columns, and gave a matrix nearest to nothing."""
    for make in (kind.nearest, kind.from_dense):
        with pytest.raises(sm.ShapeError, match=f"{kind.__name__}.nearest: a square matrix is needed"):
            make(torch.ones(shape, dtype=F64))


def test_a_sequence_without_variance_is_told_so() -> None:
    with pytest.raises(sm.SolveError, match="at order 0 is 0; r_0, the variance of the sequence, must be positive"):
        sm.linalg.levinson_durbin([0.0, 0.0])


@pytest.mark.parametrize("cut", [slice(0, 280), slice(10, 290), slice(None, None, 2), slice(None, None, -1)])
def test_principal_slices_keep_what_is_known(cut: slice) -> None:
    """The type with its symmetry, and definiteness, so that a slice of a covariance is solved as the covariance is."""
    definite = sm.Claim.POSITIVE_DEFINITE
    k = torch.arange(2 * N, dtype=F64)
    even = sm.SymmetricToeplitz(0.5**k).assume(definite)
    turned = sm.HermitianToeplitz(0.5**k * torch.exp(1j * k)).assume(definite)
    general = sm.Toeplitz(torch.cat((0.5 ** k[1:].flip(-1), 0.5**k)), 2 * N).assume(definite, sm.Claim.SYMMETRIC)
    for a in (even, turned, general):
        block = a[cut, cut]
        assert type(block) is type(a) and numpy.array_equal(block.to_dense(), a.to_dense().numpy()[cut, cut])
        assert a.claims.properties == block.claims.properties
        x, info = sm.linalg.solve(block, torch.ones(block.shape[-1], dtype=F64), return_info=True)
        assert info.method.startswith("cg") and float((block @ x - 1).abs().max()) <= 1e-13
        assert definite not in a[:280, 10:290].claims.properties


@pytest.mark.parametrize("number", [float("nan"), float("inf"), complex(0, float("inf"))])
def test_numbers_of_an_operator_are_finite(number: complex) -> None:
    g = torch.ones(3, 1, dtype=F64)
    with pytest.raises(ValueError, match="Circulant: f must be finite"):
        sm.Circulant(g[:, 0], number)
    for pair in ((number, 1), (1, number)):
        with pytest.raises(ValueError, match=r"LowDisplacementRank: [ef] must be finite"):
            sm.LowDisplacementRank(g, g, *pair)


@pytest.mark.parametrize("tol", [-1.0, float("nan")])
def test_recompress_names_a_negative_tolerance(tol: float) -> None:
    with pytest.raises(ValueError, match="recompress: tol, a relative distance, must not be negative"):
        sm.LowDisplacementRank(torch.eye(5, 2, dtype=F64), torch.eye(5, 2, dtype=F64)).recompress(tol=tol)
