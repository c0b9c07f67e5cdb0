"""Lazy products and sums: what meets is closed where a rule closes it, and the rest prints as a tree."""

from __future__ import annotations

from typing import Any

import torch

import structmat as sm
from structmat import Matrix
from structmat.claims import Claim
from structmat.testing.reference import dense_of
from tests.test_algebra import F64
from tests.test_algebra import _check as check
from tests.test_algebra import _numbers as numbers

TREE = """\
Product(
  Sum(
    Scaled[2](
      Product(
        HouseholderProduct(shape=(4, 4), dtype=float64)
        Toeplitz(shape=(4, 4), dtype=float64)
      )
    )
    Scaled[0.3](
      Permutation(shape=(4, 4), dtype=float64)
    )
  )
  Inverse(
    Kronecker(
      Dense(shape=(2, 2), dtype=float64)
      Scaled[tensor](
        Permutation(shape=(2, 2), dtype=float64)
      )
    )
  )
)"""


def test_an_expression_prints_as_a_tree() -> None:
    q, t = sm.HouseholderProduct(numbers(2, 4)), sm.Toeplitz(numbers(7), 4)
    inner = torch.tensor(2.0, dtype=F64) * sm.Permutation([1, 0], F64)
    whole = (2 * (q @ t) + (0.1 + 0.2) * sm.Permutation([1, 2, 3, 0], F64)) @ sm.Inverse(sm.kron(numbers(2, 2), inner))
    assert repr(whole) == TREE
    assert repr(1j * sm.Identity(2)).startswith("Scaled[0+1j](")


def test_factors_and_terms_that_meet_are_closed() -> None:
    """(D C) E of two circulants holds one; P D P is one diagonal and one permutation; a sum holds one diagonal."""
    d, e = sm.Diagonal(numbers(5)), sm.Diagonal(numbers(5, seed=1))
    c, f = sm.Circulant(numbers(5)), sm.Circulant(numbers(5, seed=1))
    p = sm.Permutation([1, 2, 0, 4, 3])
    q, skew = sm.HouseholderProduct(numbers(2, 5)), sm.Circulant(numbers(5), -1)
    low = sm.LowRank(numbers(5, 1), numbers(5, 1))
    wanted: list[tuple[Matrix, torch.Tensor, list[type[Matrix]]]] = []

    def case(result: Any, dense: torch.Tensor, *kinds: type[Matrix]) -> None:
        wanted.append((result, dense, list(kinds)))

    x = {k: dense_of(m) for k, m in {"d": d, "e": e, "c": c, "f": f, "p": p, "q": q, "s": skew, "l": low}.items()}
    case((d @ c) @ f, x["d"] @ x["c"] @ x["f"], sm.Diagonal, sm.Circulant)
    case(d @ (e @ c), x["d"] @ x["e"] @ x["c"], sm.Diagonal, sm.Circulant)
    case((d @ c) @ (f @ e), x["d"] @ x["c"] @ x["f"] @ x["e"], sm.Diagonal, sm.Circulant, sm.Diagonal)
    case((p @ d) @ p, x["p"] @ x["d"] @ x["p"], sm.Diagonal, sm.Permutation)
    case((p @ d) @ (p @ e), x["p"] @ x["d"] @ x["p"] @ x["e"], sm.Diagonal, sm.Permutation)
    case((c @ p) @ d, x["c"] @ x["p"] @ x["d"], sm.Circulant, sm.Diagonal, sm.Permutation)
    case((2 * q) @ q, 2 * x["q"] @ x["q"], sm.HouseholderProduct)
    case(q + d + e, x["q"] + x["d"] + x["e"], sm.HouseholderProduct, sm.Diagonal)
    case(d + (q + e), x["d"] + x["q"] + x["e"], sm.Diagonal, sm.HouseholderProduct)
    case((q + low) + (d + low), x["q"] + 2 * x["l"] + x["d"], sm.HouseholderProduct, sm.LowRank, sm.Diagonal)
    case((q + c) + 2 * sm.Identity(5), x["q"] + x["c"] + 2 * torch.eye(5), sm.HouseholderProduct, sm.Circulant)
    case((d @ c) @ skew, x["d"] @ x["c"] @ x["s"], sm.Diagonal, sm.Circulant, sm.Circulant)
    for result, dense, kinds in wanted:
        parts = (
            result.factors
            if isinstance(result, sm.Product)
            else getattr(result, "terms", (result.matrix,) if isinstance(result, sm.Scaled) else ())
        )
        assert [type(part) for part in parts] == kinds, repr(result)
        check(result, dense, 50 * 5**2)
    kept = (q + c).assume(Claim.SYMMETRIC)
    assert [type(part) for part in (kept + f).terms] == [sm.Sum, sm.Circulant]  # what was vouched for stays whole


def test_what_is_prepared_inside_an_expression() -> None:
    a, b = sm.Circulant(numbers(6)), sm.Toeplitz(numbers(11, seed=1), 6)
    for whole in (sm.Product((a, b)), b * torch.tensor(2.0, dtype=F64), sm.Product((sm.Diagonal(numbers(6)), a))):
        ready = whole.prepare()
        assert "Prepared" in repr(ready) and ready.claims == whole.claims
        x = numbers(3, 6, seed=2)
        assert float((ready.linear(x) - x @ dense_of(whole).mT).abs().max()) <= 1e-13
        assert float((ready.mT.linear(x) - x @ dense_of(whole)).abs().max()) <= 1e-13
    plain = sm.Product((sm.Diagonal(numbers(6)), sm.Dense(numbers(6, 6))))
    assert plain.prepare() is plain
