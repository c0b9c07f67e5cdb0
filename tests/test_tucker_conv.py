"""Tucker convolutions against torch's with the formed kernel: every option, both paths, derivatives, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat.functional import tucker_conv as fc
from tests.test_tucker import C64, C128, F32, F64, make, numbers, size_of

CONV = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}
BACK = {1: nnf.conv_transpose1d, 2: nnf.conv_transpose2d, 3: nnf.conv_transpose3d}
MODULE = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


def kernel(
    out: int, inside: int, taps: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype = F64, seed: int = 0
) -> sm.Tucker:
    return make((out, inside, *taps), (*ranks, *(min(2, k) for k in taps)), dtype, seed=seed)


def agree(got: torch.Tensor, wanted: torch.Tensor, t: sm.Tucker, x: torch.Tensor) -> None:
    """Within ``20 eps N prod ||.||``."""
    assert got.shape == wanted.shape
    error = float((got - wanted).detach().norm())
    eps = torch.finfo(got.real.dtype if got.is_complex() else got.dtype).eps
    assert error <= 20 * eps * t.order * size_of(t) * float(x.norm()), error


@st.composite
def options(draw: Any) -> dict[str, Any]:
    """A convolution that torch accepts: spatial modes, sizes, groups, and all its options."""
    count = draw(st.integers(1, 3))
    many = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(count))  # noqa: E731
    return {
        "taps": many(1, 3),
        "sizes": many(5, 7),
        "stride": many(1, 3),
        "padding": many(0, 2),
        "dilation": many(1, 2),
        "groups": draw(st.sampled_from([1, 2, 3])),
        "width": draw(st.sampled_from([1, 4, 8])),  # channels of a group: one is depthwise, and the kernel is formed
        "ranks": draw(st.sampled_from([(1, 1), (2, 1), (3, 3)])),
        "lone": draw(st.booleans()),
        "extra": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def _build(o: dict[str, Any], dtype: torch.dtype = F64) -> sm.Tucker:
    few = tuple(min(r, o["width"]) for r in o["ranks"])
    few = (1, 1) if 1 in few else few
    return kernel(o["groups"] * o["width"], o["width"], o["taps"], few, dtype, o["seed"])


@pytest.mark.filterwarnings("ignore:Tucker. rank")
@given(options(), st.sampled_from([F64, F32, C128]))
def test_every_option_of_a_convolution(o: dict[str, Any], dtype: torch.dtype) -> None:
    t = _build(o, dtype)
    x = numbers(*(() if o["lone"] else (2,)), o["groups"] * o["width"], *o["sizes"], dtype=dtype, seed=1)
    given_ = {k: o[k] for k in ("stride", "padding", "dilation", "groups")}
    bias = numbers(t.dims[0], dtype=dtype, seed=2)
    wanted = CONV[len(o["taps"])](x, t.to_dense(), bias, **given_)
    agree(t.conv(x, bias, **given_), wanted, t, x)


@pytest.mark.filterwarnings("ignore:Tucker. rank")
@given(options(), st.sampled_from([F64, F32, C128]))
def test_every_option_of_a_transposed_convolution(o: dict[str, Any], dtype: torch.dtype) -> None:
    t = _build(o, dtype)
    x = numbers(*(() if o["lone"] else (2,)), t.dims[0], *o["sizes"], dtype=dtype, seed=1)
    given_ = {k: o[k] for k in ("stride", "dilation", "groups")}
    given_["padding"] = tuple(
        min(p, d * (k - 1)) for p, d, k in zip(o["padding"], o["dilation"], o["taps"], strict=True)
    )
    if o["extra"]:
        given_["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(o["stride"], o["dilation"], strict=True))
    bias = numbers(o["groups"] * t.dims[1], dtype=dtype, seed=2)
    wanted = BACK[len(o["taps"])](x, t.to_dense(), bias, **given_)
    agree(t.conv_transpose(x, bias, **given_), wanted, t, x)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mode", fc.PADDING_MODES)
@pytest.mark.parametrize("padding", [2, "same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_modes_are_those_of_the_modules(count: int, mode: str, padding: Any) -> None:
    taps = (3, 2, 3)[:count]
    t = kernel(8, 12, taps, (2, 3))
    module = MODULE[count](12, 8, taps, padding=padding, dilation=2, padding_mode=mode, bias=False, dtype=F64)
    module.weight.data = t.to_dense()
    x = numbers(2, 12, *(8, 7, 6)[:count], seed=1)
    agree(t.conv(x, padding=padding, dilation=2, padding_mode=mode), module(x), t, x)


def test_the_kernel_is_formed_only_where_that_takes_fewer_flops() -> None:
    wide = fc.conv_plan((256, 256, 3, 3), (8, 8, 3, 3), 1, 8, 1024, 1024)
    assert not wide.dense
    assert wide.dense_flops > 50 * wide.factored_flops
    depthwise = fc.conv_plan((96, 1, 7, 7), (16, 1, 2, 2), 96, 1, 1024, 1024)
    assert depthwise.dense
    assert not fc.conv_plan((96, 96, 7, 7), (16, 16, 2, 2), 1, 1, 1024, 1024).dense
    assert fc.output_sizes((9,), (3,), (2,), (2,), (1,)) == (5,)


@pytest.mark.parametrize("groups", [1, 4])
def test_both_paths_agree(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    t, x = kernel(16, 16 // groups, (3, 3), (2, 2)), numbers(2, 16, 6, 6, seed=1)
    got = []
    for dense in (False, True):
        monkeypatch.setattr(fc, "conv_plan", lambda *a, dense=dense: fc.ConvPlan(dense, 0.0, 0.0))
        got.append((t.conv(x, groups=groups, padding=1), t.conv_transpose(x, groups=groups, stride=2)))
    for one, two in zip(*got, strict=True):
        agree(one, two, t, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_carried_out_in_float32(dtype: torch.dtype) -> None:
    t, x = kernel(6, 6, (3,), (2, 2), dtype), numbers(2, 6, 8, dtype=dtype, seed=1)
    y = t.conv(x, padding=1)
    wanted = nnf.conv1d(x.float(), t.float().to_dense(), padding=1)
    assert y.dtype == dtype
    assert float((y.float() - wanted).norm()) <= 2 * torch.finfo(dtype).eps * float(wanted.norm())


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("transposed", [False, True])
def test_first_and_second_derivatives(dtype: torch.dtype, transposed: bool) -> None:
    t = make((2, 2, 2), (2, 2, 1), dtype)
    leaves = [v.requires_grad_() for v in t.tensors()]
    x = numbers(1, 2, 4, dtype=dtype, seed=1).requires_grad_()

    def apply(v: torch.Tensor, core: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        s = sm.Tucker(core, factors)
        return s.conv_transpose(v, stride=2) if transposed else s.conv(v, padding=1, padding_mode="circular")

    assert torch.autograd.gradcheck(apply, (x, *leaves))
    assert torch.autograd.gradgradcheck(apply, (x, *leaves))


def test_compiled_and_transformed_as_eager() -> None:
    t, x = kernel(8, 8, (3, 3), (2, 2)), numbers(3, 8, 6, 6, seed=1)
    wanted = t.conv(x, padding=1, stride=2)
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, v: s.conv(v, padding=1, stride=2), fullgraph=True, backend="aot_eager")
    agree(compiled(t, x), wanted, t, x)
    each = torch.func.vmap(lambda v: t.conv(v, padding=1, stride=2))(x)
    agree(each, wanted, t, x)

    def loss(s: sm.Tucker) -> torch.Tensor:
        return (s.conv(x) ** 2).sum()

    rate = torch.func.jvp(loss, (t,), (t,))[1]  # T is of degree four in core and factors, the loss of degree 10 in all
    assert torch.allclose(rate, 10 * loss(t), rtol=1e-10)
    assert torch.func.grad(loss)(t).core.shape == t.core.shape


def test_bad_input_is_named() -> None:
    t, x = kernel(8, 4, (3, 3), (2, 2)), numbers(1, 8, 6, 6)
    cases: list[tuple[type[Exception], str, Any]] = [
        (sm.ShapeError, r"must be \(batch, 4, ...\)", lambda: t.conv(x)),
        (sm.ShapeError, "3 groups do not divide 8 channels", lambda: t.conv(x[:, [0] * 12], groups=3)),
        (
            ValueError,
            "unknown padding_mode 'mirror'; legal are 'zeros'",
            lambda: t.conv(x, groups=2, padding_mode="mirror"),
        ),
        (ValueError, "needs stride 1, got 2", lambda: t.conv(x, groups=2, padding="same", stride=2)),
        (sm.DtypeError, "differ in precision", lambda: t.conv(x.float(), groups=2)),
        (sm.ShapeError, "2 modes of channels and 1 to 3 others", lambda: make((4, 3), (2, 2)).conv(x)),
        (sm.ShapeError, "not a batch", lambda: make((8, 8, 3, 3), (2, 2, 2, 2), batch=(2,)).conv(x)),
        (sm.ShapeError, r"must be \(batch, 8, ...\)", lambda: t.conv_transpose(x[:, :4])),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    assert t.conv(x.to(C128), groups=2).dtype == C128
    assert t.to(C64).conv(x.float(), groups=2).dtype == C64
