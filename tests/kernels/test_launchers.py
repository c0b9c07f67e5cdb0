"""Every configuration of every kernel under Triton's interpreter, against float64: ragged sizes, any strides, NaN in
every output before. Bounds are those of a sum of k products in float32, plus one rounding of each result."""

from __future__ import annotations

import pytest
import torch

from structmat.kernels import blockdiag, cayley, householder, strided
from structmat.kernels.configs import TABLE, Config
from tests.kernels.lane import DEVICE

F64 = torch.float64
EPS = torch.finfo(torch.float32).eps
HALVES = {"half": (torch.bfloat16, torch.float16), "fp32": (torch.float32,)}


def cases(kernel: str) -> list[tuple[Config, torch.dtype]]:
    return [(c, dtype) for c in TABLE if c.kernel == kernel for dtype in HALVES[c.kind]]


def every(kernel: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("config", "dtype"), cases(kernel), ids=lambda v: v.name if isinstance(v, Config) else str(v)[6:]
    )


def numbers(*shape: int, dtype: torch.dtype, turned: bool = False) -> torch.Tensor:
    """Normal numbers; ``turned``: stored by columns."""
    order = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
    drawn = torch.randn(*order, generator=torch.Generator().manual_seed(sum(shape)), dtype=F64, device="cpu")
    found = drawn.to(device=DEVICE, dtype=dtype)
    return found.mT if turned else found


def eye_at_zero(r: int) -> torch.Tensor:
    """One at the first place of the diagonal."""
    return torch.nn.functional.pad(torch.ones(1, 1, dtype=F64), (0, r - 1, 0, r - 1))


def near(found: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor, k: int) -> None:
    """``size``: the sums of the moduli of what was added; k: how many were."""
    rounding = 0.0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps
    bound = (k + 4) * EPS * size + rounding * wanted.abs()
    error = (found.to(F64) - wanted).abs()
    assert bool((error <= bound).all()), float((error / bound.clamp_min(1e-300)).max())  # NaN fails too


@every("cayley_forward")
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cayley(config: Config, dtype: torch.dtype, scale: float) -> None:
    for n in {max(2, config.size - 1), config.size}:
        lower = scale * numbers(2, n, n, dtype=dtype, turned=True)
        k, eye = lower - lower.mT, torch.eye(n, dtype=F64)
        r, m = cayley.forward(k, config)
        exact = torch.linalg.inv(eye + k.to(F64))
        # The error of an inverse: eps n times its condition number and its norm (at most 1: I + K is at least I).
        bound = 4 * EPS * n * torch.linalg.matrix_norm(eye + k.to(F64), 2)[:, None, None]
        assert bool(((m.to(F64) - exact).abs() <= bound).all())
        assert bool(((r.to(F64) - 2 * exact + eye).abs() <= 2 * bound + 4 * EPS * n).all())
        if scale == 1:
            defect = torch.linalg.matrix_norm(r.to(F64).mT @ r.to(F64) - eye) / n**0.5
            assert float(defect.max()) <= 16 * EPS
        g = numbers(2, n, n, dtype=dtype, turned=True)
        turned = m.to(F64).mT
        size = 2 * turned.abs() @ g.to(F64).abs() @ turned.abs()
        backward = next(c for c in TABLE if c.kernel == "cayley_backward" and c.size == config.size)
        near(cayley.backward(m, g, backward), -2 * turned @ g.to(F64) @ turned, size, 2 * n)


@every("blockdiag_forward")
def test_blocks(config: Config, dtype: torch.dtype) -> None:
    q, p, k = config.size, max(1, config.size - 3), 3
    for rows, turned in ((1, False), (37, True)):
        x, w = numbers(rows, k * p, dtype=dtype, turned=turned), numbers(k, q, p, dtype=dtype, turned=turned)
        a, b = x.to(F64).reshape(rows, k, p), w.to(F64)
        wanted, size = (torch.einsum("rki,koi->rko", *v).reshape(rows, -1) for v in ((a, b), (a.abs(), b.abs())))
        near(blockdiag.forward(x, w, config), wanted, size, p)


@every("blockdiag_backward")
def test_gradients_of_blocks(config: Config, dtype: torch.dtype) -> None:
    q, p, k, rows = max(1, config.size - 5), config.size, 2, 2 * dict(config.tiles)["BM"] + 5
    x, w = numbers(rows, k * p, dtype=dtype, turned=True), numbers(k, q, p, dtype=dtype)
    g = numbers(rows, k * q, dtype=dtype)
    gx, gw = blockdiag.backward(x, g, w, config)
    a, b, c = x.to(F64).reshape(rows, k, p), w.to(F64), g.to(F64).reshape(rows, k, q)
    wanted, size = (torch.einsum("rko,koi->rki", *v).reshape(rows, -1) for v in ((c, b), (c.abs(), b.abs())))
    near(gx, wanted, size, q)
    wanted, size = (torch.einsum("rko,rki->koi", *v) for v in ((c, a), (c.abs(), a.abs())))
    near(gw, wanted, size, rows)
    again = blockdiag.backward(x, g, w, config)
    assert torch.equal(gx, again[0]) and torch.equal(gw, again[1])


@every("strided_forward")
def test_strided_blocks(config: Config, dtype: torch.dtype) -> None:
    q, p, outer, rows = config.size, max(1, config.size - 3), 2, dict(config.tiles)["BM"] + 3
    for lanes in (5, dict(config.tiles)["BL"] + 1):
        x, w = numbers(rows, outer * p * lanes, dtype=dtype), numbers(outer * lanes, q, p, dtype=dtype, turned=True)
        a, b = x.to(F64).reshape(rows, outer, p, lanes), w.to(F64).reshape(outer, lanes, q, p)
        wanted, size = (torch.einsum("rupl,ulop->ruol", *v).reshape(rows, -1) for v in ((a, b), (a.abs(), b.abs())))
        near(strided.forward(x, w, lanes, config), wanted, size, p)


@every("strided_backward")
def test_gradients_of_strided_blocks(config: Config, dtype: torch.dtype) -> None:
    q, p, outer, lanes, rows = max(1, config.size - 3), config.size, 2, 5, 2 * dict(config.tiles)["BM"] + 3
    x, w = numbers(rows, outer * p * lanes, dtype=dtype, turned=True), numbers(outer * lanes, q, p, dtype=dtype)
    g = numbers(rows, outer * q * lanes, dtype=dtype)
    gx, gw = strided.backward(x, g, w, lanes, config)
    a, b = x.to(F64).reshape(rows, outer, p, lanes), w.to(F64).reshape(outer, lanes, q, p)
    c = g.to(F64).reshape(rows, outer, q, lanes)
    wanted, size = (torch.einsum("ruol,ulop->rupl", *v).reshape(rows, -1) for v in ((c, b), (c.abs(), b.abs())))
    near(gx, wanted, size, q)
    wanted, size = (
        torch.einsum("ruol,rupl->ulop", *v).reshape(-1, q, p) for v in ((c, a), (c.abs(), a.abs()))
    )  # fmt: skip
    near(gw, wanted, size, rows)


@every("wy_gram")
def test_factor_of_reflections(config: Config, dtype: torch.dtype) -> None:
    """I - V^T T V is orthogonal whatever the rounding of V, for a zero vector and for nearly parallel ones too."""
    r, n = max(2, config.size - 1), 530  # more than one part of the columns
    for v in (numbers(r, n, dtype=dtype, turned=True), (1 + numbers(r, n, dtype=F64) / 16).to(dtype)):
        v[0] = 0
        t = householder.factor(v, config)
        gram = v.to(F64) @ v.to(F64).mT
        m = torch.triu(gram, 1) + torch.diag(torch.diagonal(gram)) / 2
        m[0, 0] = 0.5  # tau = 2 of a vector that is zero
        exact = torch.linalg.inv(m)
        moduli = torch.triu(v.to(F64).abs() @ v.to(F64).abs().mT) + eye_at_zero(r)  # what the sums of m round against
        condition = exact.abs() @ moduli @ exact.abs()
        assert bool(((t.to(F64) - exact).abs() <= (r + 16) * EPS * condition).all())
        assert float(torch.tril(t, -1).abs().max()) == 0


@every("householder_apply")
def test_rows_through_reflections(config: Config, dtype: torch.dtype) -> None:
    r, n, rows = max(2, config.size - 3), 150, dict(config.tiles)["BM"] + 5
    x, v = numbers(rows, n, dtype=dtype, turned=True), numbers(r, n, dtype=dtype, turned=True) / 8
    t = numbers(r, r, dtype=torch.float32, turned=True) / 8
    y, w = householder.apply(x, v, t, config)
    a, b, c = x.to(F64), v.to(F64), t.to(F64)
    weights, moduli = a @ b.mT @ c.mT, a.abs() @ b.abs().mT @ c.abs().mT
    near(w, weights, moduli, n + r)
    rounding = torch.finfo(dtype).eps
    bound = rounding * (weights.abs() @ b.abs() + (a - weights @ b).abs()) + (n + 2 * r) * EPS * (moduli @ b.abs())
    assert bool(((y.to(F64) - (a - weights @ b)).abs() <= bound + 4 * EPS * a.abs()).all())


@every("householder_vectors")
def test_gradient_of_vectors(config: Config, dtype: torch.dtype) -> None:
    r, n, rows = max(2, config.size - 3), 70, 2 * dict(config.tiles)["BM"] + 5
    x, g = numbers(rows, n, dtype=dtype), numbers(rows, n, dtype=dtype, turned=True)
    w, s = numbers(rows, r, dtype=torch.float32), numbers(rows, r, dtype=torch.float32).neg()
    found = householder.vectors_gradient(x, g, w, s, config)
    a, b, c, d = (z.to(F64) for z in (x, g, w, s))
    size = d.abs().mT @ a.abs() + c.abs().mT @ b.abs()
    rounding = torch.finfo(dtype).eps  # w and s enter the product in the dtype of the rows
    bound = ((2 * rows + 4) * EPS + rounding) * size
    assert bool(((found.to(F64) + d.mT @ a + c.mT @ b).abs() <= bound).all())


def test_offsets_beyond_32_bits() -> None:
    """Rows 2^27 entries apart: the last begins past entry 2^31. Memory that is not touched is not taken."""
    rows, n, apart = 17, 32, 1 << 27
    store = torch.empty(rows * apart + n, dtype=torch.float16)
    x = store.as_strided((rows, n), (apart, 1))
    x.copy_(numbers(rows, n, dtype=torch.float16))
    w = numbers(2, 16, 16, dtype=torch.float16)
    assert torch.equal(blockdiag.forward(x, w), blockdiag.forward(x.contiguous(), w))
    v, t = numbers(4, n, dtype=torch.float16), torch.eye(4)
    assert torch.equal(householder.apply(x, v, t)[0], householder.apply(x.contiguous(), v, t)[0])
    turned = torch.empty(n * apart + rows, dtype=torch.float16).as_strided((rows, n), (1, apart))
    turned.copy_(x)
    assert torch.equal(blockdiag.forward(turned, w), blockdiag.forward(x.contiguous(), w))
    assert torch.equal(householder.apply(turned, v, t)[0], householder.apply(x.contiguous(), v, t)[0])
