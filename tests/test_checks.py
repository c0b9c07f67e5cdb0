"""Reports, what may be checked, and each structure from entries and from products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import scipy.sparse.linalg
import torch

import structmat as sm
from structmat import Claim, checks
from structmat.testing import assert_claims, assert_orthogonal, assert_rank_at_most, check_matrix_type

F64 = torch.float64


def _numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _banded() -> torch.Tensor:
    return torch.tril(torch.triu(_numbers(7, 9), -1), 2)


MEMBERS: dict[str, tuple[Callable[..., checks.Report], Any]] = {
    "toeplitz": (checks.is_toeplitz, sm.Toeplitz(_numbers(12), 5)),
    "hankel": (checks.is_hankel, sm.Hankel(_numbers(12), 5)),
    "circulant": (checks.is_circulant, sm.Circulant(_numbers(9))),
    "skew": (lambda a, **o: checks.is_circulant(a, -1, **o), sm.Circulant(_numbers(9), -1)),
    "symmetric": (checks.is_symmetric, sm.SymmetricToeplitz(_numbers(9))),
    "hermitian": (checks.is_hermitian, sm.HermitianToeplitz(_numbers(9, dtype=torch.complex128))),
    "diagonal": (checks.is_diagonal, sm.Diagonal(_numbers(9))),
    "banded": (lambda a, **o: checks.is_banded(a, 1, 2, **o), sm.Dense(_banded())),
    "wide band": (lambda a, **o: checks.is_banded(a, 8, 9, **o), sm.Dense(_numbers(7, 9))),
    "lower": (checks.is_triangular, sm.Dense(torch.tril(_numbers(7, 9)))),
    "upper": (lambda a, **o: checks.is_triangular(a, False, **o), sm.Dense(torch.triu(_numbers(9, 7)))),
    "blocks": (lambda a, **o: checks.is_block_diagonal(a, 3, **o), sm.BlockDiagonal(_numbers(3, 2, 4))),
    "permutation": (
        checks.is_permutation,
        sm.Permutation(torch.randperm(300, generator=torch.Generator().manual_seed(0))),
    ),
    "kronecker": (
        lambda a, **o: checks.is_kronecker(a, [(2, 3), (4, 2), (1, 2)], **o),
        sm.kron(sm.Dense(_numbers(2, 3)), sm.Dense(_numbers(4, 2)), sm.Dense(_numbers(1, 2))),
    ),
    "low rank": (lambda a, **o: checks.is_low_rank(a, 2, **o), sm.LowRank(_numbers(9, 2), _numbers(8, 2))),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_are_accepted_and_others_refused(kind: str) -> None:
    """From entries, from products of a Matrix, of a tensor and of a function; a dense change of 1 in 10^3 is seen."""
    ask, a = MEMBERS[kind]
    dense = a.to_dense().to(torch.complex128 if kind == "hermitian" else F64)
    function = sm.Implicit(tuple(a.shape), a.linear, a.mT.linear, dense.dtype)
    for given in (a, dense, dense.numpy(), function):
        for options in ({}, {"probes": 10}):
            assert ask(given, **options).ok, ask(given, **options)
    if kind == "wide band":
        return  # every matrix of this shape is a member
    change = _numbers(*dense.shape, seed=1) * 1e-3 * (1j if kind == "hermitian" else 1)
    for options in ({}, {"probes": 10}):
        assert not ask(dense + change, **options) and not ask(sm.Dense(dense + change), **options)
    zero = torch.zeros_like(dense)
    for options in ({}, {"probes": 10}):
        assert ask(zero, **options).ok is (kind != "permutation")


@pytest.mark.parametrize("kind", sorted(set(MEMBERS) - {"low rank", "kronecker"}))
def test_tol_zero_compares_bit_by_bit(kind: str) -> None:
    ask, a = MEMBERS[kind]
    dense = a.to_dense()
    assert ask(dense, tol=0).ok and ask(dense, tol=0).method == "entries, bit by bit"
    if kind != "wide band":
        outside = {"lower": (0, -1), "symmetric": (0, -1), "hermitian": (0, -1)}
        inside = dict.fromkeys(("toeplitz", "hankel", "circulant", "skew"), (2, 2))
        moved = dense.to(torch.promote_types(dense.dtype, F64), copy=True)  # where 1 + 1e-14 is not 1
        moved[(outside | inside).get(kind, (-1, 0))] += 1e-14
        assert not ask(moved, tol=0)
    with pytest.raises(ValueError, match=r"tol=0 compares entries bit by bit; of .* only products are looked at"):
        ask(a, tol=0, probes=3)


def test_a_report_says_everything_in_one_line() -> None:
    q = sm.HouseholderProduct(_numbers(2, 40))
    exact, probed = checks.orthogonality_error(q), checks.orthogonality_error(q, probes=10)
    assert exact.failure_probability == 0 and exact.method == "from the entries"
    assert probed.method == "10 Gaussian products, seed 0" and probed.failure_probability < 1.5e-8
    for report in (exact, probed, checks.check_claims(q), checks.check_claims(q, probes=3)):
        assert "\n" not in str(report) and report.name in str(report) and "within" in str(report)
    assert "wrong with probability at most 1.4e-08" in str(probed)
    false = checks.check_claims(sm.Dense(_numbers(3, 3)).assume(Claim.SYMMETRIC))
    assert "OUTSIDE" in str(false) and "SYMMETRIC" in str(false) and false.value == 2, "real: Hermitian too"
    with pytest.raises(TypeError):
        hash(probed)


def test_reports_can_be_repeated() -> None:
    """One seed, one number; another seed, another; the tolerance does not move with the seed of an orthogonal one."""
    a = sm.Dense(_numbers(20, 20))
    once, again = checks.orthogonality_error(a, probes=3), checks.orthogonality_error(a, probes=3)
    assert once == again and once.details == again.details
    other = checks.orthogonality_error(a, probes=3, generator=torch.Generator().manual_seed(7))
    assert other.value != once.value and "seed 7" in other.method and other.tolerance == once.tolerance
    assert torch.equal(torch.randn(2), (torch.manual_seed(torch.initial_seed()), torch.randn(2))[1]), "global state"


def test_large_operators_are_never_formed() -> None:
    """An array of n^2 entries would take 20 GB."""
    n = 50_000
    c = sm.Circulant(_numbers(n) / math.sqrt(n))
    f = sm.Implicit((n, n), c.linear, c.mT.linear, F64)
    assert checks.is_circulant(f) and not checks.is_symmetric(f) and not checks.is_diagonal(f)
    assert checks.distance(f, c).ok and not checks.distance(f, 1.001 * c)
    assert checks.displacement_rank(f) == 1
    rotation = sm.HouseholderProduct(_numbers(3, n))
    assert checks.check_claims(rotation).ok and not checks.is_orthogonal((1 + 1e-9) * rotation)
    assert not checks.check_claims((rotation * (1 + 1e-9)).assume(Claim.ORTHOGONAL))
    low = sm.Product((c, sm.LowRank(_numbers(n, 3), _numbers(n, 3))))
    assert checks.check_claims(low).ok and checks.numerical_rank(low) == 3 and not checks.is_low_rank(low, 2)
    with pytest.raises(sm.StructureError, match=r"too large to be formed, and few products do not determine"):
        checks.is_butterfly(c)


@pytest.mark.parametrize(
    "lie",
    [
        Claim.SYMMETRIC,
        Claim.HERMITIAN,
        Claim.POSITIVE_DEFINITE,
        Claim.ORTHOGONAL,
        Claim.ORTHONORMAL_COLUMNS,
        Claim.ORTHONORMAL_ROWS,
        Claim.UPPER_TRIANGULAR,
        Claim.LOWER_TRIANGULAR,
    ],
)
@pytest.mark.parametrize("dtype", [F64, torch.complex64])
def test_lies_about_operators_are_found_from_products(lie: Claim, dtype: torch.dtype) -> None:
    a = sm.Dense(_numbers(30, 30, dtype=dtype) - 5 * torch.eye(30, dtype=dtype))
    report = checks.check_claims(a.assume(lie), probes=10)
    assert not report and not report.details[lie.name] and report.value >= 1
    if lie in (Claim.ORTHONORMAL_COLUMNS, Claim.ORTHONORMAL_ROWS):
        strip = _numbers(*((30, 10) if lie is Claim.ORTHONORMAL_COLUMNS else (10, 30)), dtype=dtype)
        assert not checks.check_claims(sm.Dense(strip).assume(lie), probes=10).details[lie.name]


def test_a_rank_and_a_displacement_bound_that_are_false_are_found() -> None:
    class Lying(sm.Dense):
        """Claims rank 2 and displacement rank 1."""

        def _properties(self) -> sm.Claims:
            return sm.Claims(rank=2, displacement={(1, -1): 1, (2, 1j): 3})

    report = checks.check_claims(Lying(_numbers(20, 20)), probes=10)
    assert report == 3 and {r.ok for r in report.details.values()} == {False}
    true = Lying(_numbers(20, 2) @ _numbers(2, 20, seed=1))
    assert checks.check_claims(true, probes=10).details["rank"].ok


def test_orthonormal_rows_of_a_wide_matrix() -> None:
    q = torch.linalg.qr(_numbers(30, 10))[0]
    wide, tall = sm.Dense(q.mT.contiguous()), sm.Dense(q)
    assert checks.orthogonality_error(wide, probes=5).ok and checks.orthogonality_error(tall, probes=5).ok
    assert checks.check_claims(wide.assume(Claim.ORTHONORMAL_ROWS), probes=5).ok
    assert not checks.check_claims((1.001 * wide).assume(Claim.ORTHONORMAL_ROWS), probes=5)
    assert checks.check_claims(tall.assume(Claim.ORTHONORMAL_COLUMNS), probes=5).ok


def test_scipy_operators_are_measured() -> None:
    """The orthonormal cosine transform; and a complex operator, whose adjoint is not its transpose."""
    n = 3000
    cosine = scipy.sparse.linalg.LinearOperator(
        (n, n),
        dtype=numpy.float64,
        matvec=lambda x: scipy.fft.dct(x, norm="ortho", axis=0),
        matmat=lambda x: scipy.fft.dct(x, norm="ortho", axis=0),
        rmatvec=lambda x: scipy.fft.idct(x, norm="ortho", axis=0),
        rmatmat=lambda x: scipy.fft.idct(x, norm="ortho", axis=0),
    )
    report = checks.orthogonality_error(cosine)
    assert report.ok and report.failure_probability > 0 and not checks.is_symmetric(cosine)
    entries = _numbers(5, 3, dtype=torch.complex128).numpy()
    operator = scipy.sparse.linalg.aslinearoperator(entries)
    assert checks.distance(operator, torch.from_numpy(entries)).ok
    assert checks.distance(operator, torch.from_numpy(entries), probes=5).ok
    hermitian = scipy.sparse.linalg.aslinearoperator(entries @ entries.conj().T)
    assert checks.is_hermitian(hermitian, probes=5) and not checks.is_symmetric(hermitian, probes=5)


def test_huge_and_tiny_entries_do_not_overflow() -> None:
    for scale in (1e-200, 1e200):
        t = scale * sm.Toeplitz(_numbers(9), 5)
        assert checks.is_toeplitz(t).ok and checks.is_toeplitz(t, probes=5).ok
        assert not checks.is_symmetric(t) and not checks.is_symmetric(t, probes=5)


def test_nothing_is_measured_of_nan_and_infinity() -> None:
    for bad, what in ((math.nan, "NaN"), (math.inf, "an infinite number")):
        a = torch.eye(3, dtype=F64)
        a[1, 2] = bad
        for given in (a, sm.Dense(a)):
            for options in ({}, {"probes": 4}):
                for check in (checks.orthogonality_error, checks.numerical_rank, checks.is_toeplitz):
                    with pytest.raises(ValueError, match=rf"holds (NaN|{what}): nothing can be measured"):
                        check(given, **options)


def test_empty_matrices() -> None:
    for shape in ((0, 0), (0, 3), (3, 0), (0, 4, 4)):
        a = torch.zeros(shape, dtype=F64)
        for options in ({}, {"probes": 2}):
            assert checks.is_toeplitz(a, **options).ok if 0 not in shape[-2:] else checks.is_diagonal(a).ok
        assert checks.orthogonality_error(a).value == 0 and checks.numerical_rank(a) == 0


def test_wrong_input_is_named() -> None:
    a = _numbers(4, 6)
    with pytest.raises(TypeError, match=r"expected a Matrix, .* got function; a function becomes a matrix by"):
        checks.is_toeplitz(lambda x: x)
    with pytest.raises(sm.ShapeError, match=r"a square matrix is needed, got shape \(4, 6\)"):
        checks.is_symmetric(a)
    with pytest.raises(sm.ShapeError, match=r"4 x 6 has no 4 blocks of one size"):
        checks.is_block_diagonal(a, 4)
    with pytest.raises(sm.ShapeError, match=r"factors of .* make 4 x 4, got \(4, 6\)"):
        checks.is_kronecker(a, [(2, 2), (2, 2)])
    with pytest.raises(ValueError, match=r"both are counts of diagonals"):
        checks.is_banded(a, -1, 0)
    with pytest.raises(sm.ShapeError, match=r"shapes \(4, 6\) and \(6, 4\) differ"):
        checks.distance(a, a.mT)
    with pytest.raises(ValueError, match=r"probes=0; legal are the whole numbers from 1"):
        checks.is_symmetric(a @ a.mT, probes=0)
    for probes in (2.5, True, "3"):
        with pytest.raises(ValueError, match=r"probes=.*; legal are the whole numbers from 1"):
            checks.orthogonality_error(a @ a.mT, probes=probes)  # type: ignore[arg-type]


def test_assertions_of_large_operators_look_at_products() -> None:
    n = 20_000
    rotation, low = sm.HouseholderProduct(_numbers(2, n)), sm.LowRank(_numbers(n, 2), _numbers(n, 2))
    assert_orthogonal(rotation)
    assert_claims(rotation)
    assert_rank_at_most(low, 2)
    assert_rank_at_most(low, 1, noise=1e9)
    with pytest.raises(AssertionError, match=r"(?s)HouseholderProduct.*orthogonality error: .*OUTSIDE.*products"):
        assert_orthogonal((1 + 1e-9) * rotation)
    with pytest.raises(AssertionError, match=r"(?s)LowRank.*rank: 2 \(OUTSIDE 1"):
        assert_rank_at_most(low, 1)
    with pytest.raises(AssertionError, match=r"false claims of \d: .*OUTSIDE"):
        assert_claims((2 * rotation).assume(Claim.ORTHOGONAL))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [2, 64, 256])
def test_drift_of_half_entries_is_seen(n: int, dtype: torch.dtype) -> None:
    """Rounding an orthogonal matrix to half is within; four roundings' worth of error is not, whatever n is."""
    q = torch.linalg.qr(_numbers(n, n))[0]
    eps = torch.finfo(dtype).eps
    assert checks.is_orthogonal(q.to(dtype)) and checks.is_orthogonal(sm.Dense(q.to(dtype)))
    assert not checks.is_orthogonal((q * (1 + 4 * eps)).to(dtype))
    product = sm.HouseholderProduct(_numbers(5, n, dtype=F64).to(dtype))
    assert checks.is_orthogonal(product) and checks.is_orthogonal(product, probes=4) and checks.check_claims(product)


def test_claims_of_what_claims_nothing() -> None:
    with pytest.raises(TypeError, match="check_claims: a Matrix is needed, got Tensor, which claims nothing"):
        checks.check_claims(torch.eye(3))


def test_an_example_without_its_entries_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"example 0 is a Diagonal; an Example or a pair \(matrix, its dense entries\)"):
        check_matrix_type(sm.Diagonal, [sm.Diagonal(_numbers(3))])  # type: ignore[list-item]
