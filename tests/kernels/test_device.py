"""The operators as a device runs them, against float64 on that device: large and ragged on a GPU, small elsewhere.

Bounds: a sum of k products in float32 errs by at most ``(k + 4) eps`` of the sum of their moduli, and each rounding to
the dtype of the rows by eps of that dtype.
"""

from __future__ import annotations

import pytest
import torch

from structmat import backend
from structmat.functional import operators
from tests.kernels.lane import DEVICE
from tests.kernels.test_launchers import EPS, F64

LARGE = DEVICE.type == "cuda"
HALVES = (torch.bfloat16, torch.float16, torch.float32)
every_dtype = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d)[6:])


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)


def launches(op: str, like: torch.Tensor, *shapes: tuple[int, ...]) -> None:
    """On a GPU the kernels must serve what is tested here, not the formula."""
    if LARGE:
        assert backend.configurations(op, like, like.dtype, shapes) is not None


def within(found: torch.Tensor, wanted: torch.Tensor, moduli: torch.Tensor, terms: int, roundings: int = 1) -> None:
    eps = torch.finfo(found.dtype).eps if found.dtype != torch.float32 else 0.0
    error = (found.to(F64) - wanted).abs()
    bound = (terms + 4) * EPS * moduli + roundings * eps * wanted.abs()
    assert bool((error <= bound).all()), float((error / bound.clamp_min(1e-300)).max())


@pytest.mark.parametrize("b", [2, 3, 8, 16, 31])
def test_operators_on_the_device_cayley(b: int) -> None:
    count = 2048 if LARGE else 5
    lower = draw(count, b, b)
    k = lower - lower.mT
    launches("cayley", k, (count, b, b))
    r, m = operators.cayley(k)
    eye = torch.eye(b, dtype=F64, device=DEVICE)
    exact = torch.linalg.inv(eye + k.to(F64))
    bound = 4 * EPS * b * torch.linalg.matrix_norm(eye + k.to(F64), 2)[:, None, None]
    assert bool(((m.to(F64) - exact).abs() <= bound).all())
    assert bool(((r.to(F64) - (2 * exact - eye)).abs() <= 2 * bound + 4 * EPS * b).all())
    g = draw(count, b, b, seed=1)
    turned = m.to(F64).mT
    size = 2 * turned.abs() @ g.to(F64).abs() @ turned.abs()
    within(operators.cayley_gradient(k, m, g), -2 * turned @ g.to(F64) @ turned, size, 2 * b)


@every_dtype
@pytest.mark.parametrize(("p", "q", "lanes"), [(64, 64, 1), (16, 16, 1), (50, 33, 1), (32, 32, 4), (30, 17, 12)])
def test_operators_on_the_device_blocks(p: int, q: int, lanes: int, dtype: torch.dtype) -> None:
    rows, blocks = (4099, 5 * 12) if LARGE else (9, 12)
    x, w, g = draw(rows, blocks * p, dtype=dtype), draw(blocks, q, p), draw(rows, blocks * q, dtype=dtype, seed=1)
    launches("block_diagonal" if lanes == 1 else "block_diagonal_strided", x, x.shape, w.shape, (lanes,))
    a, b, c = x.to(F64), w.to(dtype).to(F64), g.to(F64)
    product = operators.block_product
    within(operators.block_diagonal(x, w, lanes), product(a, b, lanes), product(a.abs(), b.abs(), lanes), p)
    gx, gw = operators.block_diagonal_gradient(x, g, w, lanes)
    within(gx, product(c, b.mT, lanes), product(c.abs(), b.abs().mT, lanes), q)

    def outer(d: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        d, z = d.reshape(rows, -1, q, lanes), z.reshape(rows, -1, p, lanes)
        return torch.einsum("ruql,rupl->ulqp", d, z).reshape(w.shape)

    within(gw, outer(c, a), outer(c.abs(), a.abs()), rows)


@every_dtype
@pytest.mark.parametrize("r", [2, 16, 31, 64])
def test_operators_on_the_device_reflections(r: int, dtype: torch.dtype) -> None:
    rows, n = (4099, 1000) if LARGE else (9, 70)
    x, g, v = draw(rows, n, dtype=dtype), draw(rows, n, dtype=dtype, seed=1), draw(r, n)
    launches("householder_product", x, x.shape, v.shape)
    y, w, t = operators.householder(x, v)
    rounded = v.to(dtype).to(F64)
    exact = torch.linalg.inv(operators.wy_matrix(rounded))
    condition = exact.abs() @ torch.triu(rounded.abs() @ rounded.abs().mT) @ exact.abs()
    assert bool(((t.to(F64) - exact).abs() <= (n + r + 16) * EPS * condition).all())
    q = torch.eye(n, dtype=F64, device=DEVICE) - rounded.mT @ exact @ rounded
    eps = max(torch.finfo(dtype).eps, (n + 2 * r) * EPS)
    for found, given, turn in ((y, x, q.mT), (operators.householder_gradient(x, v, t, w, g, True)[0], g, q)):
        wanted = given.to(F64) @ turn
        lengths = given.to(F64).norm(dim=1, keepdim=True)  # a row keeps its length: W, T and V are rounded against it
        assert bool(((found.to(F64) - wanted).norm(dim=1, keepdim=True) <= 4 * eps * lengths).all())
    wide, vectors = x.to(F64).requires_grad_(), rounded.requires_grad_()
    turned = (
        wide - torch.linalg.solve_triangular(operators.wy_matrix(vectors), vectors @ wide.mT, upper=True).mT @ vectors
    )
    (wanted,) = torch.autograd.grad(turned, vectors, g.to(F64))
    found = operators.householder_gradient(x, v, t, w, g, True)[1].to(F64)
    # Sums over the rows, of terms as large as a row of x times one of g, through T twice.
    size = float(torch.linalg.matrix_norm(x.to(F64)) * torch.linalg.matrix_norm(g.to(F64)))
    size *= float(torch.linalg.matrix_norm(exact, 2) * torch.linalg.matrix_norm(rounded.detach(), 2))
    assert float((found - wanted).norm()) <= 8 * eps * size


@pytest.mark.parametrize("lanes", [1, 4])
def test_operators_on_the_device_twice_the_same_bits(lanes: int) -> None:
    rows = 20_000 if LARGE else 40
    x, g, w = (draw(*shape, dtype=torch.float16) for shape in ((rows, 256), (rows, 256), (8, 32, 32)))
    first, second = (operators.block_diagonal_gradient(x, g, w, lanes) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_operators_on_the_device_more_than_2_31_entries() -> None:
    """Offsets are 64-bit: the last rows of a tensor beyond 2^31 entries are those of the same rows alone."""
    if LARGE and torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs a GPU with 30 GiB free")
    rows, n = ((1 << 31) // 4096 + 77, 4096) if LARGE else (80, 64)
    x = torch.zeros(rows, n, dtype=torch.bfloat16, device=DEVICE)
    x[-60:] = draw(60, n, dtype=torch.bfloat16)
    w, v = draw(n // 64, 64, 64), draw(16, n)
    for run in (lambda x: operators.block_diagonal(x, w, 1), lambda x: operators.householder(x, v)[0]):
        found = run(x)
        torch.testing.assert_close(found[-60:], run(x[-60:].clone()), rtol=2e-2, atol=2e-2)
        assert float(found[:-60].float().abs().max()) == 0
