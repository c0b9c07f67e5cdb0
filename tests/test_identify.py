"""``sm.identify``: a structure that is there is found and comes first; errors and counts are those of what is built."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.identification import Candidate, Identification
from structmat.testing.example import numbers

Maker = Callable[[int, torch.Generator, torch.dtype], Any]


def limit(n: int, dtype: torch.dtype) -> float:
    """What the documentation calls exact."""
    return torch.finfo(dtype).eps * (1 + 8 * math.sqrt(n))


def split(n: int) -> tuple[int, int]:
    """The most balanced factors of n, the smaller first."""
    return next((a, n // a) for a in range(math.isqrt(n), 0, -1) if n % a == 0)


def drawn(kind: Any, *sizes: Callable[[int], Any]) -> Maker:
    """``kind.random`` of sizes that follow from n."""
    return lambda n, g, d: kind.random(*(size(n) for size in sizes), generator=g, dtype=d)


def n_of(n: int) -> int:
    return n


def unitary(n: int, g: torch.Generator, d: torch.dtype) -> Any:
    """Two reflections; with phases where they are complex."""
    phases = torch.randn(2, generator=g, dtype=torch.float64).to(torch.zeros(0, dtype=d).real.dtype)
    return sm.HouseholderProduct(numbers(g, d, 2, n), phases if d.is_complex else None)


def blocks(n: int, g: torch.Generator, d: torch.dtype) -> Any:
    p, q = split(n)
    return sm.BlockDiagonal(numbers(g, d, q, p, p + 1))


# Every type that is looked for, with a random member of it: orders are composite, from 8 on.
MAKERS: dict[str, Maker] = {
    "Zero": lambda n, g, d: sm.Zero(n, n + 1, d),
    "Identity": lambda n, g, d: sm.Identity(n, d),
    "Scaled Identity": lambda n, g, d: sm.Diagonal(numbers(g, d, 1).expand(n)),
    "Diagonal": lambda n, g, d: sm.Diagonal(numbers(g, d, n)),
    "BlockDiagonal": blocks,
    "Circulant f=1": lambda n, g, d: sm.Circulant(numbers(g, d, n)),
    "Circulant f=-1": lambda n, g, d: sm.Circulant(numbers(g, d, n), -1),
    "CosineDiagonal": lambda n, g, d: sm.CosineDiagonal(numbers(g, d, *split(n)), 2),
    "Toeplitz": lambda n, g, d: sm.Toeplitz(numbers(g, d, 2 * n + 2), n + 3),
    "SymmetricToeplitz": drawn(sm.SymmetricToeplitz, n_of),
    "Hankel": drawn(sm.Hankel, lambda n: n + 2, n_of),
    "BlockToeplitz": lambda n, g, d: sm.BlockToeplitz(numbers(g, d, *(2 * k - 1 for k in split(n))), split(n)),
    "BlockCirculant": lambda n, g, d: sm.BlockCirculant(numbers(g, d, *split(n)), 2),
    "LowRank": lambda n, g, d: sm.LowRank(numbers(g, d, n, 2), numbers(g, d, n + 5, 2)),
    "LowDisplacementRank": drawn(sm.LowDisplacementRank, n_of, lambda n: 2),
    "Kronecker": lambda n, g, d: sm.Kronecker.random([(split(n)[0], 3), (split(n)[1], 2)], generator=g, dtype=d),
    "KroneckerSum": lambda n, g, d: sm.kron_sum(*(numbers(g, d, k, k) for k in split(n))),
    "Butterfly": lambda n, g, d: sm.Butterfly.nearest(numbers(g, d, n, n)),
    "Vandermonde": lambda n, g, d: sm.Vandermonde.random(n, 6, generator=g, dtype=d),
    "HouseholderProduct": unitary,
    "Permutation": lambda n, g, d: sm.Permutation(torch.randperm(n, generator=g), d),
}
COMPLEX = {"HermitianToeplitz": drawn(sm.HermitianToeplitz, n_of)}
REAL = {
    "GivensProduct": lambda n, g, d: sm.GivensProduct(numbers(g, d, 3), ((0, 1), (1, 4), (2, 3)), n),
    "OrthogonalCirculant": drawn(sm.OrthogonalCirculant, n_of),
}


def cases() -> st.SearchStrategy[Any]:
    real = st.tuples(st.sampled_from([*MAKERS, *REAL]), st.sampled_from([torch.float64, torch.float32]))
    whole = st.tuples(st.sampled_from([*MAKERS, *COMPLEX]), st.sampled_from([torch.complex128, torch.complex64]))
    return st.tuples(real | whole, st.sampled_from([8, 9, 12, 16, 18]), st.integers(0, 2**31 - 1))


def check_found(name: str, n: int, dtype: torch.dtype, seed: int) -> None:
    """The structure is listed, exact, no larger than what was drawn, and before everything larger."""
    generator = torch.Generator().manual_seed(seed)
    matrix = {**MAKERS, **REAL, **COMPLEX}[name](n, generator, dtype)
    dense = matrix.to_dense()
    found = sm.identify(dense)
    rows = [row for row in found if row.label().startswith(name) and row.exact]
    assert rows, f"{name} is not among the exact rows\n{found.to_text(None)}"
    row = min(rows, key=lambda r: r.parameters)
    assert row.error <= limit(max(dense.shape), dtype)
    assert row.parameters <= max(matrix.numel_stored, name.startswith("Scaled"))
    larger = [r for r in found if r.parameters > row.parameters]
    assert all(found.rows.index(row) < found.rows.index(r) for r in larger)
    assert found[0].exact and found[0].parameters <= row.parameters
    gap = float(torch.linalg.norm(row.build().to_dense() - dense)) / max(1e-300, float(torch.linalg.norm(dense)))
    assert gap <= 4 * limit(max(dense.shape), dtype)


@given(cases())
def test_a_true_structure_is_found_and_precedes_all_that_is_larger(case: Any) -> None:
    (name, dtype), n, seed = case
    check_found(name, n, dtype, seed)


@pytest.mark.parametrize("name", [*MAKERS, *REAL, *COMPLEX])
def test_each_structure_is_found(name: str) -> None:
    check_found(name, 12, torch.complex128 if name in COMPLEX else torch.float64, 0)


def test_every_row_builds_what_it_says(generator: torch.Generator) -> None:
    """Count, error and dtype of each row against the matrix that it builds."""
    q = sm.HouseholderProduct.random(12, 3, generator=generator, dtype=torch.float64).to_dense()
    vander = sm.Vandermonde.random(8, 5, generator=generator, dtype=torch.float64).to_dense()
    noise = 1e-3 * numbers(generator, torch.float64, 12, 12)
    given_matrices = [
        q,
        q + noise,
        sm.Permutation.random(12, generator=generator, dtype=torch.float64).to_dense() + noise,
        vander,
        vander.mT.contiguous(),
        numbers(generator, torch.float64, 12, 12),
        numbers(generator, torch.complex64, 6, 10),
        numbers(generator, torch.float64, 6, 4, 3, 3),
        5 + numbers(generator, torch.bfloat16, 12, 12),
    ]
    for dense in given_matrices:
        wide = dense.to(torch.complex128)
        for row in sm.identify(dense):
            built = row.build()
            shape = tuple(dense.flatten(1).shape if "unfolding" in row.settings else dense.shape)
            assert tuple(built.shape) in (shape, tuple(dense.flatten(1).shape)) and built.dtype == dense.dtype
            if row.structure != "Scaled Identity":  # whose one number is no tensor
                assert built.numel_stored == row.parameters
            gap = torch.linalg.vector_norm(built.to_dense().to(wide).reshape(-1) - wide.reshape(-1))
            error = float(gap / torch.linalg.vector_norm(wide))
            rounding = 4 * limit(12, dense.dtype) * (4 if dense.dtype == torch.bfloat16 else 1)
            assert error == pytest.approx(row.error, rel=1e-6, abs=rounding), row.label()


def test_errors_are_the_textbook_ones(generator: torch.Generator) -> None:
    dense = numbers(generator, torch.float64, 10, 10)
    size = float(torch.linalg.norm(dense))
    rows = {row.label(): row for row in sm.identify(dense)}
    s = np.linalg.svd(dense.numpy(), compute_uv=False)
    for rank in (1, 2, 4):
        assert rows[f"LowRank rank={rank}"].error == pytest.approx(math.sqrt((s[rank:] ** 2).sum()) / size)
    means = sum(np.diag(np.full(10 - abs(k), np.diag(dense, k).mean()), k) for k in range(-9, 10))
    assert rows["Toeplitz"].error == pytest.approx(np.linalg.norm(dense.numpy() - means) / size)
    assert rows["Diagonal"].error == pytest.approx(np.linalg.norm(dense - torch.diag(dense.diagonal())) / size)
    factors = numbers(generator, torch.float64, 2, 2), numbers(generator, torch.float64, 5, 5)
    dense = torch.kron(*factors) + 0.1 * dense
    pieces = dense.reshape(2, 5, 2, 5).permute(0, 2, 1, 3).reshape(4, 25).numpy()
    kron = np.linalg.svd(pieces, compute_uv=False)
    row = next(row for row in sm.identify(dense) if row.label() == "Kronecker shapes=2x2,5x5")
    assert row.error == pytest.approx(math.sqrt((kron[1:] ** 2).sum()) / float(torch.linalg.norm(dense)))


def test_the_kronecker_sum_is_the_nearest(generator: torch.Generator) -> None:
    """Against least squares over all entries of both factors."""
    dense = numbers(generator, torch.complex128, 6, 6)
    row = next(r for r in sm.identify(dense) if r.label() == "KroneckerSum sizes=2x3")
    units = [np.kron(np.eye(4)[k].reshape(2, 2), np.eye(3)).ravel() for k in range(4)]
    units += [np.kron(np.eye(2), np.eye(9)[k].reshape(3, 3)).ravel() for k in range(9)]
    basis, target = np.stack(units, 1), dense.numpy().ravel()
    best = np.linalg.lstsq(basis, target, rcond=None)[0]
    wanted = np.linalg.norm(basis @ best - target) / np.linalg.norm(target)
    assert row.error == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_not_hide_a_small_structure(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    noise = 1e-2 * numbers(g, torch.float64, 24, 24) / 24**0.5
    toeplitz = sm.Toeplitz.random(24, generator=g, dtype=torch.float64).to_dense()
    found = sm.identify(toeplitz + noise)
    assert found[0].structure == "Toeplitz" and not found[0].exact
    low = sm.LowRank.random(24, rank=2, generator=g, dtype=torch.float64).to_dense()
    assert sm.identify(low + noise)[0].label() == "LowRank rank=2"


def test_order_and_front_by_their_definitions(generator: torch.Generator) -> None:
    dense = sm.kron_sum(*(numbers(generator, torch.float64, k, k) for k in (3, 4))).to_dense()
    found = sm.identify(dense + 1e-3 * numbers(generator, torch.float64, 12, 12))
    middle = [row for row in found if row.structure not in ("Zero", "Dense")]
    assert [row.adjusted for row in middle] == sorted(row.adjusted for row in middle)
    assert all(row.adjusted == pytest.approx(row.error / (1 - row.parameters / 144)) for row in middle)
    assert [row.structure for row in found][-2:] == ["Zero", "Dense"]
    for row in found:
        better = [r for r in found if r.parameters <= row.parameters and r.error <= row.error]
        strictly = [r for r in better if (r.parameters, r.error) != (row.parameters, row.error)]
        assert row.pareto == (not strictly)
    errors = [row.error for row in found.front]
    assert errors == sorted(errors, reverse=True)


def test_tensors_are_tried_in_tucker_format(generator: torch.Generator) -> None:
    tensor = sm.Tucker.random((12, 10, 3, 3), (3, 2, 3, 2), generator=generator, dtype=torch.float64)
    found = sm.identify(tensor)
    best = found.best(tol=1e-12)
    assert best.label() == "Tucker ranks=3x2x3x2" and best.exact
    assert isinstance(best.build(), sm.Tucker) and best.build().ranks == (3, 2, 3, 2)
    assert torch.allclose(best.build().to_dense(), tensor.to_dense())
    low = next(row for row in found if row.label() == "LowRank rank=3 unfolding=12x90")
    assert low.exact and low.build().shape == (12, 90)


def test_best(generator: torch.Generator) -> None:
    dense = sm.LowRank.random(20, rank=3, generator=generator, dtype=torch.float64).to_dense()
    found = sm.identify(dense, budget=200)
    assert found.budget == 200 and all(row.parameters <= 200 for row in found)
    assert found.best() is found[0] and found.best(tol=0).label() == "LowRank rank=3"
    assert found.best(parameters=90).parameters <= 90
    assert found.best(parameters=90).error == min(row.error for row in found if row.parameters <= 90)
    assert found.best(tol=0.9, parameters=100).parameters <= found.best(tol=0.5).parameters
    with pytest.raises(sm.NotStructuredError, match=r"nearest row, .* raise tol") as caught:
        found.best(tol=1e-12, parameters=100)
    assert 0 < caught.value.distance < 1
    with pytest.raises(ValueError, match=r"best\(tol=-1\)"):
        found.best(tol=-1)
    assert len(sm.identify(dense, budget=0.25)) <= len(sm.identify(dense)) and sm.identify(dense, 0.25).budget == 100
    assert sm.identify(dense, np.int64(150)).budget == 150


def test_what_may_be_given(generator: torch.Generator) -> None:
    matrix = sm.toeplitz(torch.arange(1.0, 9.0, dtype=torch.float64))
    dense = matrix.to_dense()
    array = dense.numpy()
    wanted = sm.identify(dense).records()
    backwards = array[::-1][::-1]
    swapped = array.astype(array.dtype.newbyteorder(">"))
    for same in (matrix, array, np.asfortranarray(array), backwards, swapped, dense.clone().requires_grad_()):
        assert sm.identify(same).records() == wanted
    tall = sm.identify(np.ascontiguousarray(array[:, :3])[::-1])  # of negative strides
    assert tall[0].structure in ("Hankel", "Toeplitz") and tall[0].exact


def test_what_is_given_stays_and_may_change_later() -> None:
    dense = torch.diag(torch.arange(1.0, 7.0))
    kept = dense.clone()
    found = sm.identify(dense)
    assert torch.equal(dense, kept)
    dense.zero_()
    assert torch.equal(found[0].build().to_dense(), kept)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_extreme_sizes(scale: float) -> None:
    """Squares of these entries overflow or vanish; the identity times such a number is no permutation."""
    column = torch.tensor([3.0, 1.0, -2.0, 0.5, 1.0, 0.25], dtype=torch.float64) * scale
    size = float(torch.fft.fft(column / scale).abs().amax())
    found = sm.identify(sm.Circulant(column).to_dense())
    assert found[0].label() == "Circulant f=1" and found[0].exact
    assert torch.allclose(found[0].build().column, column, rtol=1e-12, atol=0)
    assert found.singular_values[0] == pytest.approx(size * scale)
    scaled = {row.structure for row in sm.identify(scale * torch.eye(6, dtype=torch.float64)) if row.exact}
    assert "Scaled Identity" in scaled and not scaled & {"Identity", "Permutation", "HouseholderProduct"}


def test_singular_values_for_the_plot(generator: torch.Generator) -> None:
    dense = numbers(generator, torch.float64, 9, 9)
    found = sm.identify(dense)
    assert torch.allclose(found.singular_values, torch.linalg.svdvals(dense))
    shift = [torch.diag(torch.ones(8, dtype=torch.float64), -1) for _ in range(2)]
    shift[0][0, -1], shift[1][0, -1] = 1, -1
    assert found.displacement_singular_values is not None
    moved = torch.linalg.svdvals(shift[0] @ dense - dense @ shift[1])
    assert torch.allclose(found.displacement_singular_values, moved)
    assert sm.identify(dense[:, :5]).displacement_singular_values is None


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (torch.ones(3), None, sm.ShapeError, r"shape \(3,\).*M\[:, None\]"),
    (torch.ones(()), None, sm.ShapeError, "a matrix or a tensor of more axes"),
    (torch.ones(3, 0), None, sm.ShapeError, "no entries"),
    (sm.Diagonal(torch.ones(2, 3)), None, sm.ShapeError, r"not a batch of \(2,\)"),
    (torch.ones(3, 3, dtype=torch.int64), None, sm.DtypeError, r"int64.*M\.to\(torch\.float64\)"),
    (np.ones((3, 3), dtype=bool), None, sm.DtypeError, "bool"),
    (np.ones((3, 3), dtype=object), None, sm.DtypeError, "numpy object"),
    ([[1.0, 2.0]], None, TypeError, "got list"),
    (torch.tensor([[1.0, math.nan], [math.inf, 1.0]]), None, ValueError, "2 of 4 entries are not finite"),
    (torch.ones(4, 4), 0, ValueError, "budget=0.*legal are None"),
    (torch.ones(4, 4), -3, ValueError, "legal are None"),
    (torch.ones(4, 4), 1.5, ValueError, "legal are None"),
    (torch.ones(4, 4), math.nan, ValueError, "legal are None"),
    (torch.ones(4, 4), True, ValueError, "legal are None"),
    (torch.ones(4, 4), "all", ValueError, "budget='all'"),
    (torch.ones(4, 4), 0.01, ValueError, r"no structure of 4 x 4 stores so few.*rank 1 takes 8"),
    (torch.ones(5, 7), 3, ValueError, r"budget=3.*rank 1 takes 12"),
]


@pytest.mark.parametrize(("value", "budget", "error", "message"), BAD)
def test_bad_input_is_named(value: Any, budget: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sm.identify(value, budget)


def test_the_smallest_matrices() -> None:
    assert sm.identify(torch.zeros(3, 4))[0].structure == "Zero"
    assert [row.structure for row in sm.identify(torch.full((1, 1), 3.0))] == ["Zero", "Dense"]
    assert sm.identify(torch.eye(1))[0].structure == "Identity"
    for shape in ((1, 5), (5, 1), (2, 2), (1, 1, 1), (2, 1, 3)):
        assert sm.identify(torch.ones(shape)).shape == shape


def test_text_and_table(generator: torch.Generator) -> None:
    found = sm.identify(sm.toeplitz(torch.arange(1.0, 13.0)).to_dense())
    text = str(found).splitlines()
    assert text[0] == "12 x 12, float32, 144 entries: SymmetricToeplitz, exactly"
    assert text[3].split() == ["SymmetricToeplitz", "12", "8.33", "%", "exact", "*"]
    assert "rows more in .rows" in text[-1] and len(found.to_text(None).splitlines()) == len(found) + 4
    assert repr(found).startswith("Identification(shape=(12, 12), dtype=float32, rows=")
    noise = str(sm.identify(numbers(generator, torch.float64, 16, 16)))
    assert "no small structure is near; the nearest is" in noise
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.budget = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        found[0].settings["rank"] = 3  # type: ignore[index]
    assert isinstance(found, Identification) and isinstance(found[0], Candidate)


def test_pandas(generator: torch.Generator) -> None:
    pytest.importorskip("pandas", reason="needs the package 'pandas'")
    found = sm.identify(numbers(generator, torch.float64, 8, 8))
    table = found.to_pandas()
    assert list(table.columns) == ["structure", "settings", "parameters", "error", "exact", "adjusted", "pareto"]
    assert len(table) == len(found) and table.parameters[0] == found[0].parameters


@pytest.mark.parametrize("shape", [(8, 8), (8, 5), (4, 3, 3)])
def test_plot(shape: tuple[int, ...], tmp_path: Any, generator: torch.Generator) -> None:
    pytest.importorskip("matplotlib", reason="needs the package 'matplotlib'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = sm.identify(numbers(generator, torch.float64, *shape)).plot(tmp_path / "found.png")
        sm.identify(torch.zeros(shape)).plot()
    assert (tmp_path / "found.png").stat().st_size > 5000
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["Error against parameters", "singular values"]
    assert (titles[2:] == ["displacement singular values"]) == (shape == (8, 8))
