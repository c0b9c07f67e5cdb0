"""The Toeplitz kernels under the interpreter: every configuration against float64, then the operations they serve."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.functional import launched_toeplitz
from structmat.functional import toeplitz as ft
from structmat.kernels import toeplitz
from structmat.kernels.configs import TABLE, Config
from tests.kernels.test_launchers import EPS, F64, every, near, numbers


def entries(t: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """By the definition: ``A[i, j] = t[i - j + n - 1]``."""
    i, j = torch.arange(m)[:, None], torch.arange(n)[None, :]
    return t[..., i - j + n - 1]


def along(a: torch.Tensor) -> torch.Tensor:
    """The sums along the diagonals, one after the other."""
    m, n = a.shape[-2:]
    sums = [torch.diagonal(a, n - 1 - k, -2, -1).sum(-1) for k in range(m + n - 1)]
    return torch.stack(sums, -1)


def other(kernel: str, config: Config) -> Config:
    return next(c for c in TABLE if c.kernel == kernel and c.kind == config.kind)


@every("toeplitz_form")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 131), (70, 33)])
def test_entries(config: Config, dtype: torch.dtype, m: int, n: int) -> None:
    t = numbers(2, m + n - 1, dtype=dtype, turned=m != 5)
    assert torch.equal(toeplitz.form(t, n, config), entries(t, m, n))


@every("toeplitz_diagsum")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 140), (75, 40)])
def test_sums_along_diagonals(config: Config, dtype: torch.dtype, m: int, n: int) -> None:
    g = numbers(2, m, n, dtype=dtype, turned=n == 40)
    found = toeplitz.diagsum(g, config)
    assert found.dtype == torch.float32
    near(found, along(g.to(F64)), along(g.to(F64).abs()), min(m, n))
    assert torch.equal(found, toeplitz.diagsum(g, config))


@every("toeplitz_product")
@pytest.mark.parametrize(("rows", "m", "n"), [(1, 1, 1), (3, 150, 37), (66, 40, 300)])
def test_rows_on_the_fly(config: Config, dtype: torch.dtype, rows: int, m: int, n: int) -> None:
    """Both signs; 300 columns are two parts of the sum."""
    for turned in (False, True):
        t = numbers(2, m + n - 1, dtype=dtype, turned=turned)
        x, g = numbers(2, rows, n, dtype=dtype, turned=turned), numbers(2, rows, m, dtype=dtype, turned=turned)
        a, b, c = entries(t.to(F64), m, n), x.to(F64), g.to(F64)
        near(toeplitz.apply(x, t, n - 1, 1, m, config), b @ a.mT, b.abs() @ a.abs().mT, n)
        found = toeplitz.apply(g, t, n - 1, -1, n, config)
        near(found, c @ a, c.abs() @ a.abs(), m)
        assert torch.equal(found, toeplitz.apply(g, t, n - 1, -1, n, config))


@every("toeplitz_tiles")
@pytest.mark.parametrize(("rows", "m", "n"), [(1, 1, 1), (3, 150, 37), (2, 33, 700), (133, 70, 140)])
def test_gradient_of_diagonals(config: Config, dtype: torch.dtype, rows: int, m: int, n: int) -> None:
    x, g = numbers(2, rows, n, dtype=dtype, turned=True), numbers(2, rows, m, dtype=dtype, turned=rows == 3)
    sums = other("toeplitz_diagsum", Config(*config[:1], "fp32", *config[2:]))
    found = toeplitz.correlate(x, g, config, sums)
    a, b = x.to(F64), g.to(F64)
    near(found, along(b.mT @ a), along(b.abs().mT @ a.abs()), rows * min(m, n))
    assert torch.equal(found, toeplitz.correlate(x, g, config, sums))


def test_offsets_beyond_32_bits() -> None:
    """Rows 2^27 entries apart: the last begins past entry 2^31."""
    rows, n, apart = 17, 16, 1 << 27
    x = torch.empty(rows * apart + n, dtype=torch.float16).as_strided((1, rows, n), (0, apart, 1))
    x.copy_(numbers(1, rows, n, dtype=torch.float16))
    t = numbers(1, 2 * n - 1, dtype=torch.float16)
    near_by = x.contiguous()
    assert torch.equal(toeplitz.apply(x, t, n - 1, 1, n), toeplitz.apply(near_by, t, n - 1, 1, n))
    assert torch.equal(toeplitz.correlate(x, near_by), toeplitz.correlate(near_by, near_by))
    assert torch.equal(toeplitz.diagsum(x), toeplitz.diagsum(near_by))


# -- the operations ------------------------------------------------------------------------------------------------


SHAPES = {  # t, x, columns; one row; batches on either side and on both
    "rows": ((9,), (3, 4), 4),
    "one row": ((9,), (4,), 4),
    "more axes": ((6,), (2, 3, 5), 5),
    "batch": ((2, 9), (2, 3, 4), 4),
    "batch of weights": ((2, 9), (3, 4), 4),
    "outer batch of rows": ((2, 6), (3, 1, 2, 5), 5),
}


def given(name: str, grad: bool = True) -> tuple[torch.Tensor, torch.Tensor, int]:
    t, x, columns = SHAPES[name]
    generator = torch.Generator().manual_seed(7)
    one, two = (torch.randn(s, generator=generator, dtype=F64) for s in (t, x))
    return one.requires_grad_(grad), two.requires_grad_(grad), columns


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the launchers as they run."""
    seen: list[str] = []

    def noting(name: str) -> Any:
        run = getattr(toeplitz, name)

        def noted(*args: Any) -> Any:
            seen.append(name)
            return run(*args)

        return noted

    for name in ("apply", "correlate", "form", "diagsum"):
        monkeypatch.setattr(toeplitz, name, noting(name))
    return seen


@pytest.mark.parametrize(("name", "few"), [*((name, 256) for name in SHAPES), ("rows", 0), ("batch of weights", 0)])
def test_the_numbers_of_plain_torch(name: str, few: int, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and derivatives of first and second order, reverse and forward; formed and on the fly."""
    monkeypatch.setattr(launched_toeplitz, "FEW", few)
    t, x, columns = given(name)
    wanted = ft.toeplitz_product(t, x, columns)
    cotangent = torch.linspace(-1, 2, wanted.numel(), dtype=F64).reshape(wanted.shape)
    grads = torch.autograd.grad(wanted, (t, x), cotangent)
    assert not launched

    def run(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(t, x, columns)

    with backend.use_backend("triton"):
        found = run(t, x)
        assert launched == ["apply" if few else "form"]
        eager = torch.autograd.grad(found, (t, x), cotangent)
        assert "correlate" in launched
        assert torch.autograd.gradcheck(run, (t, x), fast_mode=True, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(run, (t, x), fast_mode=True)
    for a, b in zip((found, *eager), (wanted, *grads), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_transforms(axes: tuple[int | None, int | None], launched: list[str]) -> None:
    """vmap over either argument, jacobians both ways, by value."""
    t = numbers(4, 9, dtype=F64)
    x = numbers(4, 3, 5, dtype=F64)
    t = t[0] if axes[0] is None else t.movedim(0, axes[0])
    x = x[0] if axes[1] is None else x.movedim(0, axes[1])

    def one(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(t, x, 5)

    wanted = torch.func.vmap(one, axes)(t, x)
    weights = (torch.func.vmap(torch.func.grad(lambda *v: one(*v).square().sum(), (0, 1)), axes))(t, x)
    assert not launched
    with backend.use_backend("triton"):
        found = torch.func.vmap(one, axes)(t, x)
        assert launched == ["apply"]
        grads = torch.func.vmap(torch.func.grad(lambda *v: one(*v).square().sum(), (0, 1)), axes)(t, x)
    for a, b in zip((found, *grads), (wanted, *weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_jacobians(launched: list[str]) -> None:
    t, x = numbers(9, 1, dtype=F64)[:, 0], numbers(3, 5, dtype=F64)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(t, x, 5).pow(3).sum()

    wanted, value = torch.func.hessian(loss)(t), torch.func.jacfwd(loss)(t)
    with backend.use_backend("triton"):
        for found in (torch.func.hessian(loss)(t), torch.func.jacrev(torch.func.jacrev(loss))(t)):
            assert torch.allclose(found, wanted, rtol=1e-11)
        assert torch.allclose(torch.func.jacfwd(loss)(t), value, rtol=1e-12)
    assert launched


def test_entries_and_sums_are_each_others_derivative(launched: list[str]) -> None:
    t = numbers(2, 3, 9, dtype=F64).requires_grad_()
    a = numbers(2, 4, 6, dtype=F64).requires_grad_()
    wanted, sums = ft.toeplitz_entries(t, 5), ft.diagonal_sums(a)
    assert not launched
    with backend.use_backend("triton"):
        assert torch.equal(ft.toeplitz_entries(t, 5), wanted)
        assert torch.allclose(ft.diagonal_sums(a), sums, rtol=1e-12, atol=1e-12)
        assert set(launched) == {"form", "diagsum"}
        for run, v in ((lambda t: ft.toeplitz_entries(t, 5), t), (ft.diagonal_sums, a)):
            options = {"fast_mode": True, "check_forward_ad": True, "check_batched_grad": True}
            assert torch.autograd.gradcheck(run, v, **options) and torch.autograd.gradgradcheck(run, v, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("few", [256, 0])
def test_half_in_and_out(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result and both gradients in the dtypes of what went in, t in float32 or in that of the rows."""
    monkeypatch.setattr(launched_toeplitz, "FEW", few)
    x, g = numbers(7, 20, dtype=dtype).requires_grad_(), numbers(7, 30, dtype=dtype)
    eps = torch.finfo(dtype).eps
    t = numbers(49, 1, dtype=dtype)[:, 0].clone().requires_grad_()
    with backend.use_backend("triton"):
        y = ft.toeplitz_product(t, x, 20)
        gt, gx = torch.autograd.grad(y, (t, x), g)
    assert y.dtype == gt.dtype == gx.dtype == dtype
    a, b, c = entries(t.detach().to(F64), 30, 20), x.detach().to(F64), g.to(F64)
    pairs = (
        (y, b @ a.mT, b.abs() @ a.abs().mT), (gx, c @ a, c.abs() @ a.abs()),
        (gt, along(c.mT @ b), along(c.abs().mT @ b.abs())),
    )  # fmt: skip
    for found, wanted, size in pairs:  # one rounding of each result, and what a sum of up to 140 float32 numbers loses
        assert bool(((found.detach().to(F64) - wanted).abs() <= eps * wanted.abs() + 160 * EPS * size).all())


@pytest.mark.parametrize(
    "matrix",
    [
        lambda t: sm.Toeplitz(t, 5), lambda t: sm.SymmetricToeplitz(t), lambda t: sm.Circulant(t, 1),
        lambda t: sm.Circulant(t, -1), lambda t: sm.Circulant(t, 0.5), lambda t: sm.Hankel(t, 4),
    ],
    ids=["Toeplitz", "SymmetricToeplitz", "Circulant", "skew", "f = 0.5", "Hankel"],
)  # fmt: skip
def test_the_types_that_are_toeplitz(matrix: Any, launched: list[str]) -> None:
    """Products, transposed ones, and the dense matrix."""
    a = matrix(numbers(1, 8, dtype=F64)[0])
    m, n = a.shape
    x, g = numbers(3, n, dtype=F64), numbers(3, m, dtype=F64)
    wanted = a.linear(x), a.mT.linear(g), a.to_dense()
    assert not launched
    with backend.use_backend("triton"):
        found = a.linear(x), a.mT.linear(g), a.to_dense()
        assert "apply" in launched and ("form" in launched or isinstance(a, sm.Hankel))
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


def test_what_no_kernel_serves_is_refused() -> None:
    for t, columns, reason in (
        (1j * numbers(1, 9, dtype=F64)[0], 5, "complex128"),
        (torch.zeros((1 << 15) + 3, dtype=torch.float32), (1 << 15) + 1, "no configuration for size 32769"),
    ):
        x = torch.zeros(1, columns, dtype=t.dtype)
        with backend.use_backend("triton"), pytest.raises(sm.BackendError, match=reason):
            ft.toeplitz_product(t, x, columns)
        with backend.use_backend("reference"):
            assert ft.toeplitz_product(t, x, columns).shape == (1, t.shape[0] - columns + 1)


def test_compiled(launched: list[str]) -> None:
    """One graph that holds the operators, values and gradients."""
    t, x = numbers(1, 9, dtype=F64)[0].requires_grad_(), numbers(3, 5, dtype=F64).requires_grad_()
    a = numbers(2, 3, 4, dtype=F64).requires_grad_()

    def run(t: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return ft.toeplitz_product(t, x, 5).square().sum() + (ft.toeplitz_entries(ft.diagonal_sums(a), 4) * a).sum()

    wanted = run(t, x, a)
    grads = torch.autograd.grad(wanted, (t, x, a))
    with backend.use_backend("triton"):
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(t, x, a)
        assert {"apply", "form", "diagsum"} <= set(launched)
        eager = torch.autograd.grad(found, (t, x, a))
    for one, two in zip((found, *eager), (wanted, *grads), strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


def test_operators() -> None:
    """Schemas, fakes and registered derivatives; on the CPU without the interpreter they compute their formulas."""
    t, x, y = (numbers(2, *s, dtype=F64).requires_grad_() for s in ((8,), (3, 5), (3, 4)))
    ops = torch.ops.structmat
    for formed in (False, True):
        for u, v, role in ((t, x, "y"), (t[:1].detach().requires_grad_(), y, "x"), (x, y, "t")):
            torch.library.opcheck(ops.toeplitz_product.default, (u, v, role, 4, 5, formed))
            found = ops.toeplitz_product(u, v, role, 4, 5, formed)
            assert torch.allclose(found, launched_toeplitz._formula(u, v, role, 4, 5, formed), rtol=1e-12, atol=1e-12)
    torch.library.opcheck(ops.toeplitz_entries.default, (t, 5))
    torch.library.opcheck(ops.toeplitz_diagonals.default, (numbers(2, 3, 4, dtype=F64).requires_grad_(),))


def test_every_size_near_the_tiles() -> None:
    """Off by one at each edge: the tiles of the gradient, and the parts of the sums."""
    for m, n in itertools.product((1, 63, 64, 65, 128), (1, 64, 129)):
        t, x, g = numbers(1, m + n - 1, dtype=F64), numbers(1, 2, n, dtype=F64), numbers(1, 2, m, dtype=F64)
        a = entries(t, m, n)
        assert torch.allclose(toeplitz.apply(x, t, n - 1, 1, m), x @ a.mT, rtol=1e-12, atol=1e-12)
        assert torch.allclose(toeplitz.apply(g, t, n - 1, -1, n), g @ a, rtol=1e-12, atol=1e-12)
        assert torch.allclose(toeplitz.correlate(x, g), along(g.mT @ x), rtol=1e-12, atol=1e-12)
