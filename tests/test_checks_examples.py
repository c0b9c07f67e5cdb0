"""Every check on every registered example: from its entries, from its products, and from the independent dense
reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import checks
from structmat.testing.example import WIDE
from structmat.testing.examples import EXAMPLES
from tests.cases import CI, settings

Check = Callable[..., checks.Report]


def _one(example: Any, position: int) -> Iterator[Any]:
    """One setting of each example in profile dev, rotating; all of single and double precision in ci."""
    found = list(settings(example, position, WIDE))
    yield from found if CI else found[position % len(found) : position % len(found) + 1]


CASES = [
    pytest.param(e, s, id=f"{e.name}-{str(s[0]).removeprefix('torch.')}{'-batch' * bool(s[1])}")
    for i, e in enumerate(EXAMPLES)
    for s in _one(e, i)
]


def _questions(m: int, n: int) -> dict[str, Check]:
    """Membership checks that make sense for this shape."""
    count = next((k for k in (2, 3, 5, 7) if m % k == 0 and n % k == 0), 1)
    p, q = (next((k for k in (2, 3, 5) if s % k == 0), s) for s in (m, n))
    shapes = [(m // p, n // q), (p, q)] if min(m, n) else [(m, n)]
    asked: dict[str, Check] = {
        "toeplitz": checks.is_toeplitz,
        "hankel": checks.is_hankel,
        "diagonal": checks.is_diagonal,
        "banded": lambda a, **o: checks.is_banded(a, 1, 1, **o),
        "lower": checks.is_triangular,
        "upper": lambda a, **o: checks.is_triangular(a, lower=False, **o),
        "blocks": lambda a, **o: checks.is_block_diagonal(a, count, **o),
        "kronecker": lambda a, **o: checks.is_kronecker(a, shapes, **o),
    }
    if m == n:
        asked |= {
            "circulant": checks.is_circulant,
            "skew": lambda a, **o: checks.is_circulant(a, -1, **o),
            "symmetric": checks.is_symmetric,
            "hermitian": checks.is_hermitian,
            "permutation": checks.is_permutation,
        }
    return asked


@pytest.mark.parametrize(("example", "setting"), CASES)
def test_membership_agrees_with_the_dense_reference(example: Any, setting: Any) -> None:
    """What lies within rounding is accepted, what is far is refused; nothing registered lies in between."""
    a = example.build(*setting)
    dense = example.dense(a)
    eps = checks.operands.eps_of(a)
    asked = _questions(*(int(s) for s in a.shape[-2:]))
    start = sum(map(ord, example.name)) % 2
    for name in list(asked) if CI else list(asked)[start::2]:
        ask = asked[name]
        true = float(ask(dense, tol=1.0))
        member = true <= 8 * eps
        if not member and true <= 1e-4:
            assert "f" in example.name and isinstance(a, sm.Circulant) and 0 < abs(a.f) < 1e-4, "almost triangular"
            continue
        slack = 40 * eps * (1 + math.log2(max(2, *a.shape[-2:]))) * max(a.shape[-2:])
        seen = ask(a, tol=slack)
        assert seen.ok is member, f"{a!r}, {name}, from the entries: {seen}, the reference says {true}"
        probed = ask(a, probes=10)
        assert probed.ok is member, f"{a!r}, {name}, from products: {probed}, the reference says {true}"
        assert probed.tolerance < 1e-2 or not a.numel_stored()


@pytest.mark.parametrize(("example", "setting"), CASES)
def test_orthogonality_and_ranks_agree_with_the_dense_reference(example: Any, setting: Any) -> None:
    a = example.build(*setting)
    dense = example.dense(a)
    m, n = (int(s) for s in a.shape[-2:])
    eps = checks.operands.eps_of(a)
    true = float(checks.orthogonality_error(dense))
    probed = checks.orthogonality_error(a, probes=10)
    assert float(probed) <= 4 * true + 100 * eps * (1 + true) and true <= probed.details["bound"] + 100 * eps
    assert probed.ok is checks.is_orthogonal(a).ok or true < 1e-2
    rank = checks.numerical_rank(dense, tol=max(m, n, 64) * eps)
    found = checks.numerical_rank(a, probes=10)
    if rank.details.get("ambiguous") is False:
        assert found == rank and found.details["at most"] == rank, f"{a!r}: {found}, the reference says {rank}"
        assert checks.is_low_rank(a, int(rank), probes=10).ok
        assert int(rank) == 0 or not checks.is_low_rank(a, int(rank) - 1, probes=10).ok
    if m == n > 0:
        moved = checks.displacement_rank(dense, tol=max(m, n, 64) * eps)
        implicit = checks.displacement_rank(a, probes=10)
        if moved.details["ambiguous"] is False:
            assert implicit == moved, f"{a!r}: {implicit}, the reference says {moved}"


@pytest.mark.parametrize(("example", "setting"), CASES)
def test_no_false_alarm_from_products(example: Any, setting: Any) -> None:
    report = checks.check_claims(example.build(*setting), probes=10)
    assert report.ok and float(report) == 0, str(report)
    claims = example.build(*setting).claims
    told = len(claims.properties) + (claims.rank is not None) + len(claims.displacement)
    assert len(report.details) == told, "every claim is measured"


def test_butterflies_are_recognised() -> None:
    for example in EXAMPLES:
        if example.type is sm.Butterfly and example.name.startswith("butterfly-random"):
            assert checks.is_butterfly(example.build()).ok
    b = sm.Butterfly.random(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert checks.is_butterfly(b) and checks.is_butterfly(b.to_dense(), b.digits)
    assert not checks.is_butterfly(torch.randn(12, 12, dtype=torch.float64))
