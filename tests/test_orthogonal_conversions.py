"""Reflections, plane rotations and butterflies of rotations are one matrix in three forms, where the form exists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import structmat as sm
from structmat.nn.orthogonal import KINDS
from structmat.testing import assert_orthogonal
from structmat.testing.reference import dense_of

F64 = torch.float64
EPS = torch.finfo(F64).eps


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _close(a: torch.Tensor, b: torch.Tensor, ops: int) -> None:
    assert float((a - b).norm()) <= 8 * EPS * (1 + ops) * a.shape[-1] ** 0.5


@pytest.mark.parametrize(("d", "m"), [(2, 1), (6, 1), (12, 2), (16, 4), (24, 3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("reverse", [False, True])
def test_butterflies_of_two_by_two_rotations_are_plane_rotations(d: int, m: int, scale: float, reverse: bool) -> None:
    skew = scale * torch.randn(m, d // 2, 1, generator=_generator(), dtype=F64)
    q = sm.OrthogonalButterfly(skew, reverse)
    g = q.to_givens()
    assert isinstance(g, sm.GivensProduct)
    assert (len(g.planes), g.layers) == (m * d // 2, m)
    _close(dense_of(g), dense_of(q), 2 * m)
    again = g.to_butterfly()
    assert isinstance(again, sm.Butterfly)
    assert again.layers == m and sm.Claim.ORTHOGONAL in again.claims
    _close(again.to_dense(), dense_of(q), 2 * m)
    _close(g.to_householder().to_dense(), dense_of(q), 2 * d * m)
    assert_orthogonal(again, ops=m)


def test_conversions_keep_batches_gradients_and_half_precision() -> None:
    skew = torch.randn(3, 2, 4, 1, generator=_generator(), dtype=F64).requires_grad_()
    q = sm.OrthogonalButterfly(skew)
    g = q.to_givens()
    assert g.batch_shape == (3,) and g.to_butterfly().batch_shape == (3,)
    x = torch.randn(3, 5, 8, generator=_generator(1), dtype=F64)
    (wanted,) = torch.autograd.grad(q.linear(x).square().mul(x).sum(), skew, retain_graph=True)
    (found,) = torch.autograd.grad(g.to_butterfly().linear(x).square().mul(x).sum(), skew)
    assert float((found - wanted).norm()) <= 1e3 * EPS * float(wanted.norm())
    low = sm.OrthogonalButterfly(skew.detach().bfloat16())
    assert low.to_givens().dtype == torch.bfloat16 == low.to_givens().to_butterfly().dtype
    gap = low.to_givens().to_dense().double() - dense_of(low).double()
    assert float(gap.abs().max()) <= 16 * torch.finfo(torch.bfloat16).eps


def test_any_pairs_that_differ_in_one_binary_digit_are_a_butterfly() -> None:
    """Either order of a plane's indices, layers with some of the pairs, several digits in one layer, digits again."""
    planes = ((4, 0), (0, 1), (3, 1), (6, 7), (8, 9), (5, 7), (2, 3), (0, 4), (9, 11))
    angles = torch.randn(len(planes), generator=_generator(), dtype=F64)
    g = sm.GivensProduct(angles, planes, 24)
    _close(g.to_butterfly().to_dense(), dense_of(g), 2 * len(planes))
    none = sm.GivensProduct(torch.zeros(2, 0, dtype=F64), (), 5).to_butterfly()
    assert torch.equal(none.to_dense(), torch.eye(5, dtype=F64).expand(2, 5, 5))
    half_turns = sm.GivensProduct(torch.full((2,), torch.pi, dtype=F64), ((0, 1), (2, 3)), 4)
    _close(half_turns.to_butterfly().to_dense(), -torch.eye(4, dtype=F64), 2)  # which no Cayley block is


@pytest.mark.parametrize(("planes", "n"), [(((0, 3),), 4), (((0, 1), (1, 2)), 4), (((0, 2),), 6), (((0, 1),), 3)])
def test_other_planes_are_no_butterfly(planes: tuple[tuple[int, int], ...], n: int) -> None:
    with pytest.raises(sm.StructureError, match=r"a XOR 2\^l.*to_householder"):
        sm.GivensProduct(torch.ones(len(planes)), planes, n).to_butterfly()


def test_other_blocks_are_no_plane_rotations() -> None:
    with pytest.raises(sm.StructureError, match=r"of size 4.*GivensProduct\.from_dense"):
        sm.OrthogonalButterfly.random(8, 4).to_givens()
    with pytest.raises(sm.StructureError, match="complex64"):
        sm.OrthogonalButterfly.random(8, 2, dtype=torch.complex64).to_givens()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, torch.complex128])
def test_from_dense_takes_what_our_own_products_leave(n: int, dtype: torch.dtype) -> None:
    """The default tolerance once was below the limit of a product of 2 n reflectors of order 2."""
    for seed in range(20):
        vectors = torch.randn(2 * n + 1, n, generator=_generator(seed), dtype=dtype)
        q = sm.HouseholderProduct(vectors).to_dense()
        found = sm.HouseholderProduct.from_dense(q)
        assert found.vectors.shape[-2] <= n
        assert float((found.to_dense() - q).norm()) <= 64 * torch.finfo(dtype).eps * (1 + (2 * n) ** 0.5) * n**0.5


def test_the_determinant_keeps_the_digits_of_large_phases() -> None:
    """Their sum in float32 is off by 1e-3 where the phases are near 1e3."""
    phases = 1e3 * torch.randn(63, generator=_generator(), dtype=torch.float32)
    vectors = torch.randn(63, 31, generator=_generator(1), dtype=torch.complex64)
    exact = torch.polar(torch.ones((), dtype=F64), phases.double().sum())
    sign, logabs = sm.HouseholderProduct(vectors, phases).slogdet()
    assert abs(complex(sign) - complex(exact)) <= 63 * torch.finfo(torch.float32).eps
    assert float(logabs) == 0


def _compiled_is_eager(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], t: torch.Tensor) -> None:
    torch._dynamo.reset()
    x = torch.randn(3, 8, generator=_generator(1), dtype=F64)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for _ in range(2)]
    outs = [f(leaf, x) for f, leaf in zip((function, compiled), leaves, strict=True)]
    grads = [torch.autograd.grad(out.pow(3).sum(), leaf)[0] for out, leaf in zip(outs, leaves, strict=True)]
    for a, b in (outs, grads):
        assert float((a - b).detach().norm()) <= 1e3 * EPS * (1 + float(a.detach().norm()))
    vmapped = torch.func.vmap(function, in_dims=(0, None))(torch.stack([t, 2 * t]), x)
    assert float((vmapped[1] - function(2 * t, x)).norm()) <= 1e3 * EPS * float(x.norm())
    rate = torch.func.jvp(lambda t: function(t, x), (t,), (t,))[1]
    step = 1e-6
    difference = (function((1 + step) * t, x) - function((1 - step) * t, x)) / (2 * step)
    assert float((rate - difference).norm()) <= 1e-7 * (1 + float(rate.norm()))


@pytest.mark.parametrize(
    "function",
    [
        lambda t, x: sm.OrthogonalButterfly(t).transpose().linear(x),
        lambda t, x: sm.OrthogonalButterfly(t).to_givens().linear(x),
        lambda t, x: sm.OrthogonalButterfly(t).to_givens().to_butterfly().linear(x),
        lambda t, x: sm.OrthogonalButterfly(t).to_givens().to_householder().linear(x),
        lambda t, x: sm.Butterfly.from_skew((t[0], t[1]), (2, 4), ((0,), (0,))).linear(x),
    ],
    ids=["butterfly", "givens", "back", "householder", "from_skew"],
)
def test_conversions_under_every_transform(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """``from_skew`` once did not trace."""
    _compiled_is_eager(function, torch.randn(3, 4, 1, generator=_generator(), dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal_weights_under_every_transform(kind: str) -> None:
    """A butterfly's weight once did not trace."""
    torch.manual_seed(0)
    layer = sm.nn.orthogonal(torch.nn.Linear(8, 6, bias=False, dtype=F64), kind=kind)
    (name,) = dict(layer.named_parameters()) if kind != "butterfly" else ("weight_frame.skew_0",)

    def function(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(layer, {name: t}, (x,))
        return found

    _compiled_is_eager(function, torch.randn_like(dict(layer.named_parameters())[name]))
