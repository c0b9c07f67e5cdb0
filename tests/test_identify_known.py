"""``sm.identify`` on matrices whose structure has a name, and what must not change its answer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage

import structmat as sm
from structmat.testing.example import numbers


def blur(mode: str, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The matrix of scipy's convolution of pictures of 6 x 8 pixels."""
    pictures = np.eye(48).reshape(48, 6, 8)
    return np.stack([ndimage.convolve(p, weights, mode=mode).ravel() for p in pictures], 1)


EVEN = np.array([[0.0, 0.1, 0.0], [0.2, 0.4, 0.2], [0.0, 0.1, 0.0]])
SHAKE = np.array([[0.0, 0.1, 0.3], [0.1, 0.4, 0.05], [0.05, 0.0, 0.0]])  # of rank 3
SECOND = {n: 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1) for n in (5, 7)}


@pytest.mark.parametrize(
    ("matrix", "label", "parameters"),
    [
        (scipy.linalg.hadamard(16).astype(float), "Kronecker shapes=2x2,2x2,2x2,2x2", 16),
        (scipy.linalg.dft(12), "Butterfly digits=2x2x3 digit_reversed", 84),
        (scipy.linalg.dft(16), "Butterfly digits=2^4 digit_reversed", 128),
        (np.kron(SECOND[5], np.eye(7)) + np.kron(np.eye(5), SECOND[7]), "KroneckerSum sizes=5x7", 74),
        (np.linalg.inv(scipy.linalg.toeplitz(1 / (1 + np.arange(20.0)) ** 2)), "LowDisplacementRank rank=2", 80),
        (blur("constant", SHAKE), "BlockToeplitz sizes=6x8", 165),
        (blur("wrap", SHAKE), "BlockCirculant sizes=6x8", 48),
        (blur("reflect", EVEN), "CosineDiagonal sizes=6x8", 48),
        (blur("reflect", SHAKE), "Kronecker shapes=6x6,8x8 terms=3", 300),
        (np.vander(np.linspace(-1, 1, 9), 6, increasing=True), "Vandermonde", 9),
        (np.vander(np.linspace(-1, 1, 9), 6, increasing=True).T, "Vandermonde transposed", 9),
        (1 / (1 + np.arange(9.0)[:, None] + np.arange(7.0)), "Hankel", 15),
        (3.0 * np.eye(5), "Scaled Identity", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_matrices(matrix: np.ndarray[Any, Any], label: str, parameters: int) -> None:
    found = sm.identify(matrix)
    exact = {row.label(): row for row in found if row.exact}
    assert label in exact, found.to_text(None)
    assert exact[label].parameters == parameters
    if "digits=" not in label:  # of butterflies one of several that are as small comes first
        assert found[0].label() == label
    built = exact[label].build().to_dense().numpy()
    assert np.linalg.norm(built - matrix) <= 1e-13 * np.linalg.norm(matrix)


def test_three_rectangular_factors(generator: torch.Generator) -> None:
    factors = [numbers(generator, torch.float64, *shape) for shape in ((2, 3), (3, 2), (4, 5))]
    found = sm.identify(torch.kron(torch.kron(factors[0], factors[1]), factors[2]))
    assert found[0].exact and found[0].parameters == 32
    assert len(found[0].settings["shapes"]) == 3


def test_near_orthogonal_matrices_are_compared_with_their_polar_factor(generator: torch.Generator) -> None:
    q = sm.HouseholderProduct.random(9, 2, generator=generator, dtype=torch.float64).to_dense()
    dense = q + 0.02 * numbers(generator, torch.float64, 9, 9)
    s = torch.linalg.svdvals(dense)
    wanted = float(torch.linalg.norm(s - 1) / torch.linalg.norm(dense))
    row = next(row for row in sm.identify(dense) if row.structure == "GivensProduct")
    assert row.error == pytest.approx(wanted, rel=1e-9)
    kinds = {row.structure for row in sm.identify(3 * dense)}  # far from every orthogonal matrix
    assert not kinds & {"GivensProduct", "HouseholderProduct", "Permutation", "OrthogonalCirculant"}


def test_the_nearest_permutation(generator: torch.Generator) -> None:
    p = torch.randperm(10, generator=generator)
    dense = torch.eye(10, dtype=torch.float64)[p] + 0.1 * numbers(generator, torch.float64, 10, 10)
    found = sm.identify(dense)
    row = next(row for row in found if row.structure == "Permutation")
    assert torch.equal(row.build().indices, p) and row.parameters == 10
    assert found[0] is row


def test_the_kernel_of_a_separable_convolution(generator: torch.Generator) -> None:
    """16 x 8 channels, one filter of 3 x 3 that is an outer product."""
    mixing = numbers(generator, torch.float64, 16, 8)
    one, two = (numbers(generator, torch.float64, 3) for _ in range(2))
    weight = torch.einsum("oi,h,w->oihw", mixing, one, two)
    row = next(row for row in sm.identify(weight) if row.structure == "Tucker" and row.exact)
    assert row.settings["ranks"][2:] == (1, 1)


def test_scaling_and_transposition_change_what_they_must(generator: torch.Generator) -> None:
    dense = sm.Toeplitz.random(9, 6, generator=generator, dtype=torch.complex128).to_dense()
    dense = dense + 0.1 * numbers(generator, torch.complex128, 9, 6)
    kinds = ("Toeplitz", "Hankel", "LowRank rank=1", "LowRank rank=2")

    def errors(matrix: torch.Tensor) -> list[float]:
        rows = {row.label(): row.error for row in sm.identify(matrix)}
        return [rows[kind] for kind in kinds]

    wanted = pytest.approx(errors(dense), rel=1e-9)
    assert errors(dense.mT) == wanted
    assert errors(dense.conj()) == wanted
    assert errors((0.3 - 2j) * dense) == wanted
    assert errors(dense * 2.0**-500) == wanted


def test_nothing_random_is_taken_or_left(generator: torch.Generator) -> None:
    """Sketches have their own seed: one answer, and the caller's random numbers go on as they would have."""
    dense = numbers(generator, torch.float64, 24, 24)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    first = sm.identify(dense).records()
    assert torch.equal(torch.rand(3), wanted)
    torch.manual_seed(2)
    assert sm.identify(dense).records() == first


def test_a_table_is_copied_and_pickled(generator: torch.Generator) -> None:
    found = sm.identify(numbers(generator, torch.float64, 8, 8))
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other.records() == found.records() and str(other) == str(found)
        assert torch.equal(other[0].build().to_dense(), found[0].build().to_dense())


def test_half_precision_is_judged_by_its_own_rounding(generator: torch.Generator) -> None:
    column = numbers(generator, torch.float64, 16)
    for dtype in (torch.float16, torch.bfloat16):
        found = sm.identify(sm.SymmetricToeplitz(column.to(dtype)).to_dense())
        assert found[0].label() == "SymmetricToeplitz" and found[0].exact
        rounded = sm.LowRank.random(16, rank=2, generator=generator, dtype=torch.float64).to_dense().to(dtype)
        row = next(row for row in sm.identify(rounded) if row.label() == "LowRank rank=2")
        assert row.exact and 0 < row.error < torch.finfo(dtype).eps
        assert row.build().dtype == dtype
        dense = numbers(generator, dtype, 16, 16)
        assert not any(r.exact for r in sm.identify(dense) if r.structure != "Dense")
