"""BOFT: every legal size, orthogonal at every scale and after training, equal to two independent constructions."""

from __future__ import annotations

import math

import pytest
import torch

import structmat as sm
from structmat import nn
from structmat.functional import orthogonal as fo
from structmat.functional.shifted_inverse import fast_inverse, is_fast
from structmat.testing import assert_orthogonal
from structmat.testing.assertions import orthogonality
from structmat.testing.reference import dense_of

F32, F64 = torch.float32, torch.float64
EPS = torch.finfo(F64).eps


def _skew(d: int, b: int, m: int, dtype: torch.dtype = F64, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else F64
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(m, d // b, b * (b - 1) // 2, generator=generator, dtype=wide)).to(dtype)


def _legal(most: int) -> list[tuple[int, int, int]]:
    found = []
    for d in range(1, most + 1):
        for b in range(1, d + 1):
            if d % b == 0:
                deep = 1 if b % 2 else 1 + (d // b & -(d // b)).bit_length() - 1
                found += [(d, b, m) for m in range(1, deep + 1)]
    return found


def test_every_legal_size_is_the_textbook_matrix() -> None:
    """Orthogonal, of determinant 1, zero outside blocks of span b 2^(m-1), and full inside."""
    for d, b, m in _legal(24):
        a = sm.OrthogonalButterfly(_skew(d, b, m))
        dense = a.to_dense()
        assert (a.block, a.layers, tuple(a.shape)) == (b, m, (d, d))
        assert float((dense - dense_of(a)).norm()) <= 40 * EPS * m * d**0.5, (d, b, m)
        assert_orthogonal(a)
        assert abs(float(torch.linalg.det(dense)) - 1) <= 1e3 * EPS * d
        span = b * 2 ** (m - 1)
        group = torch.arange(d) // span
        inside = group[:, None] == group
        assert bool((dense[~inside] == 0).all())
        if b > 1:
            assert bool((dense[inside] != 0).all()), (d, b, m)


ILLEGAL = [(12, 2, 3), (12, 4, 2), (12, 3, 2), (10, 2, 2), (24, 2, 4), (24, 4, 3), (8, 2, 4), (16, 4, 4), (16, 16, 2)]


@pytest.mark.parametrize(("d", "b", "m"), [*ILLEGAL, (6, 1, 2), (9, 3, 2), (10, 4, 1)])
def test_illegal_sizes_name_the_nearest_legal_ones(d: int, b: int, m: int) -> None:
    with pytest.raises(ValueError, match="Nearest legal values") as caught:
        sm.OrthogonalButterfly.identity(d, b, m)
    message = str(caught.value)
    assert f"d = {d}, block = {b}, factors = {m}" in message and "in mixed radix" in message
    if d % b == 0:
        with pytest.raises(sm.ShapeError, match="Nearest legal values"):
            sm.OrthogonalButterfly(_skew(d, b, m))


def test_other_illegal_parameters() -> None:
    with pytest.raises(sm.ShapeError, match="1, 3, 6"):
        sm.OrthogonalButterfly(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match='an int or "auto"'):
        sm.OrthogonalButterfly.identity(8, "big")
    with pytest.raises(sm.ShapeError, match="b, b"):
        sm.OrthogonalButterfly.from_blocks(torch.zeros(2, 2, 3, 4))
    with pytest.raises(ValueError, match="Nearest legal values"):
        sm.OrthogonalButterfly.identity(7, factors=2)


@pytest.mark.parametrize("d", [1, 2, 7, 12, 48, 320, 768, 1024, 11008])
def test_auto_is_legal(d: int) -> None:
    b, m = sm.OrthogonalButterfly.sizes(d)
    assert d % b == 0 and (m == 1 or (b % 2 == 0 and (d // b) % 2 ** (m - 1) == 0))
    assert sm.OrthogonalButterfly.sizes(d, factors=1)[1] == 1
    if d % 8 == 0:
        assert b == 8
    if d % 4 == 0:
        assert sm.OrthogonalButterfly.sizes(d, factors=2)[1] == 2


@pytest.mark.parametrize("scale", [1e-3, 1e-1, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64, torch.complex128])
def test_orthogonal_at_every_scale(dtype: torch.dtype, scale: float) -> None:
    """``8 eps (1 + sqrt(m))``; a truncated Neumann series is off by 1e4 at scale 1."""
    for d, b, m in [
        (64, 2, 6),
        (64, 8, 4),
        (64, 32, 2),
        (63, 63, 1),
        (96, 6, 5),
        *[(1024, 2, 10)] * (dtype == F32 and scale > 1),
    ]:
        a = sm.OrthogonalButterfly(_skew(d, b, m, dtype, scale))
        assert_orthogonal(a, ops=m)
        assert_orthogonal(a.to_butterfly(), ops=m)


@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("b", [2, 3, 8, 16, 33, 64])
def test_cayley_blocks_by_elimination_without_pivoting(b: int, scale: float, dtype: torch.dtype) -> None:
    """In large batches the inverse is found without pivoting; where that loses digits LAPACK's takes its place."""
    many = 2048 // b + 1
    k = fo.skew(_skew(many * b, b, 1, dtype, scale)[0], b)
    assert is_fast(k)
    r = fo.cayley(k.requires_grad_())
    assert orthogonality(r.detach()) <= 16 * torch.finfo(dtype).eps
    wide = k.detach().to(torch.complex128 if dtype.is_complex else F64).requires_grad_()
    eye = torch.eye(b, dtype=wide.dtype)
    exact = torch.linalg.solve(eye + wide, eye - wide)
    bound = 16 * torch.finfo(dtype).eps * b * (1 + scale * b**0.5)
    assert float((r - exact).detach().norm()) <= bound * many**0.5
    g = torch.ones_like(exact)
    (got,), (wanted,) = torch.autograd.grad(r, k, g.to(dtype)), torch.autograd.grad(exact, wide, g)
    assert float((got - wanted).norm()) <= bound * (float(wanted.norm()) + many**0.5 * b)


def test_the_two_eliminations_agree_with_lapack() -> None:
    for b in (2, 5, 16, 17, 40):
        k = fo.skew(_skew(4 * b, b, 1)[0], b)
        exact = torch.linalg.inv(torch.eye(b, dtype=F64) + k)
        assert float((fast_inverse(k) - exact).norm()) <= 100 * EPS * b * float(exact.norm())
    empty = fo.cayley(torch.zeros(0, 32, 32))
    assert empty.shape == (0, 32, 32) and not is_fast(empty)


@pytest.mark.parametrize(("d", "b", "m"), [(64, 2, 6), (48, 8, 2), (64, 32, 2)])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_orthogonal_after_training_with_weight_decay(dtype: torch.dtype, d: int, b: int, m: int) -> None:
    """AdamW, rate 1e-2, decay 0.1; bfloat16 entries are computed in float32 inside."""
    module = nn.Trainable(sm.OrthogonalButterfly(_skew(d, b, m, dtype, 0.5)))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    x = torch.randn(8, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    target = x.roll(1, -1)
    for _ in range(40):
        optimiser.zero_grad()
        (module(x) - target).float().square().mean().backward()
        optimiser.step()
    a = module.matrix.detach()
    assert bool(torch.isfinite(a.skew).all())
    assert_orthogonal(a, ops=m)


@pytest.mark.parametrize(
    ("n", "b", "m"), [(32, 4, 1), (32, 4, 2), (32, 4, 3), (32, 4, 4), (32, 2, 5), (32, 8, 3), (48, 6, 4)]
)
def test_equals_the_permutations_of_peft(n: int, b: int, m: int) -> None:
    """peft multiplies ``P_i diag(R_i) P_i^T``, with i = 0 first; without its extension it forces m = 1, so its own
    permutations are called here, and multiplied out in float64."""
    layer = pytest.importorskip("peft.tuners.boft.layer").BOFTLayer
    raw = torch.randn(m, n // b, b, b, generator=torch.Generator().manual_seed(3), dtype=F64)
    k = (raw - raw.mT) / 2
    eye = torch.eye(b, dtype=F64)
    rotations = torch.linalg.solve(eye + k, eye - k, left=False)
    product = torch.eye(n, dtype=F64)
    for i in range(m):
        indices = layer.block_butterfly_perm(None, n, (n // b) // 2**i, b // 2, m - 1)
        permutation = layer.perm2mat(None, indices).double()
        product = permutation @ torch.block_diag(*rotations[i]) @ permutation.mT @ product
    ours = sm.OrthogonalButterfly.from_blocks(raw).to_dense()
    assert float((ours - product).norm()) <= 64 * EPS * m * n**0.5


def test_from_blocks_and_the_number_of_parameters() -> None:
    raw = torch.randn(2, 4, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    a = sm.OrthogonalButterfly.from_blocks(raw)
    assert torch.equal(fo.skew(a.skew, 6), (raw - raw.mT) / 2)
    assert a.numel_stored == 2 * 24 * 5 // 2
    assert sum(sm.OrthogonalButterfly.identity(n, 8, 2).numel_stored for n in [768] * 5 + [3072]) * 12 == 82944 * 7


def test_transposes_inverses_and_conversions() -> None:
    for dtype in (F64, torch.complex128):
        a = sm.OrthogonalButterfly(_skew(16, 4, 3, dtype))
        dense = a.to_dense()
        assert float((a.mT.to_dense() - dense.mT).norm()) <= 1e-14
        assert float((a.inv().to_dense() - dense.mH).norm()) <= 1e-14
        assert type(a.mT) is type(a.inv()) is sm.OrthogonalButterfly
        assert torch.equal(a.mT.mT.to_dense(), dense)
        sign, logabs = a.slogdet()
        wanted = torch.linalg.slogdet(dense)
        assert float((sign - wanted[0]).abs()) <= 1e-12 and float(logabs) == 0
        same = a.to_butterfly()
        assert isinstance(same, sm.Butterfly) and sm.Claim.ORTHOGONAL in same.claims
        assert float((same.to_dense() - dense).norm()) <= 1e-14
        x = torch.randn(3, 16, dtype=dtype)
        assert float((a.solve_rows(a.linear(x)) - x).norm()) <= 1e-13


def test_the_identity_start_is_exact_and_trains() -> None:
    x = torch.randn(3, 32, dtype=F32)
    skew = torch.zeros(3, 8, 6, requires_grad=True)
    y = sm.OrthogonalButterfly(skew).linear(x)
    assert torch.equal(y, x)
    y.sin().sum().backward()
    assert bool((skew.grad != 0).all())


def test_factors_at_the_identity_leave_oft() -> None:
    skew = _skew(24, 6, 3)
    skew[1:] = 0
    blocks = fo.cayley(fo.skew(skew[0], 6))
    assert float((sm.OrthogonalButterfly(skew).to_dense() - torch.block_diag(*blocks)).norm()) <= 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_kaleidoscope_pairs_reach_every_rotation(seed: int) -> None:
    """Two pairs ``B_1 B_2^T`` of 2 x 2 rotation butterflies reach a random target of SO(8) to 1e-6."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=F64))[0]
    target[:, 0] *= torch.linalg.det(target)

    def formed(skews: torch.Tensor) -> torch.Tensor:
        b = [sm.OrthogonalButterfly(s) for s in skews]
        return b[0].linear(b[1].mT.linear(b[2].linear(b[3].mT.linear(torch.eye(8, dtype=F64))))).mT

    best = math.inf
    for _ in range(6):
        skews = (0.5 * torch.randn(4, 3, 4, 1, generator=generator, dtype=F64)).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [skews], max_iter=400, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
        )

        def closure(optimiser: torch.optim.LBFGS = optimiser, skews: torch.Tensor = skews) -> torch.Tensor:
            optimiser.zero_grad()
            loss = (formed(skews) - target).square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        best = min(best, float((formed(skews) - target).norm().detach()))
        if best <= 1e-6:
            break
    assert best <= 1e-6


@pytest.mark.parametrize("n", [10, 12, 21, 45, 131, 134, 768])
def test_other_sizes_are_orthogonal_in_mixed_radix(n: int) -> None:
    """Dense for numbers without large primes, and det 1; a prime above 64 leaves an identity tail."""
    for dtype in (F32, F64):
        a = sm.Butterfly.orthogonal(n, generator=torch.Generator().manual_seed(n), dtype=dtype)
        assert sm.Claim.ORTHOGONAL in a.claims and sm.Claim.ORTHOGONAL in a.mT.claims
        assert_orthogonal(a, ops=a.layers)
        dense = a.to_dense()
        assert bool((dense != 0).all()) == (a.tail == 0)
        assert orthogonality(dense[n - a.tail :, n - a.tail :]) == 0 if a.tail else True
        assert float(a.det()) == pytest.approx(1.0, abs=1e-4)
