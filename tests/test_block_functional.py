"""Convolutions of several levels: index logic exactly over Z_p, values, adjoints, every derivative, the error bound."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy
import pytest
import scipy.fft
import torch

from structmat.functional import cosine as fc
from structmat.functional import level_indices as fi
from structmat.functional import multilevel as fm
from structmat.functional import multilevel_solve as fs
from structmat.testing import assert_gradients
from structmat.testing.reference_multilevel import reflected

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps
P = 10007


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _residues(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, P, shape, generator=torch.Generator().manual_seed(seed))


def _cyclic(a: numpy.ndarray, x: numpy.ndarray, g: fm.Geometry) -> numpy.ndarray:
    """The convolution of a geometry by its definition, over Z_p: a and x at 0, y read from its shift."""
    full = numpy.zeros(g.lengths, dtype=numpy.int64)
    for i in numpy.ndindex(a.shape):
        for j in numpy.ndindex(x.shape):
            place = tuple((p + q) % n for p, q, n in zip(i, j, g.lengths, strict=True))
            full[place] = (full[place] + int(a[i]) * int(x[j])) % P
    return full[tuple(slice(s, s + n) for s, n in zip(g.shift, g.y, strict=True))]


LEVELS = [((3,), (4,)), ((1, 3), (2, 2)), ((2, 3), (3, 1)), ((2, 1, 2), (1, 2, 2))]


@pytest.mark.parametrize(("rows", "columns"), LEVELS)
def test_the_toeplitz_embedding_is_exact_over_z_p(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    g = fm.toeplitz_geometry(rows, columns)
    t, x = _residues(*g.a), _residues(*columns, seed=1)
    dense = fi.entries(t, fi.toeplitz_index(rows, columns, t.device), len(rows))
    assert numpy.array_equal(_cyclic(t.numpy(), x.numpy(), g).ravel(), (dense @ x.flatten() % P).numpy())
    sums = fi.group_sums(dense, fi.toeplitz_index(rows, columns, t.device), g.a)
    assert torch.equal(sums, t * fi.counts(rows, columns, t.device).to(t.dtype))


@pytest.mark.parametrize("sizes", [(5,), (17,), (2, 3), (17, 2), (2, 1, 3)])
def test_the_circulant_embedding_is_exact_over_z_p(sizes: tuple[int, ...]) -> None:
    """Cyclic along smooth axes, folded along the axis of length 17."""
    c, x = _residues(*sizes), _residues(*sizes, seed=1)
    weights, g = fm.circulant_embedding(c, len(sizes))
    index = fi.circulant_index(sizes, c.device)
    dense = fi.entries(c, index, len(sizes))
    assert numpy.array_equal(_cyclic(weights.numpy(), x.numpy(), g).ravel(), (dense @ x.flatten() % P).numpy())
    assert torch.equal(fi.group_sums(dense, index, sizes), c * math.prod(sizes))
    assert any(n != size for n, size in zip(g.lengths, sizes, strict=True)) == (17 in sizes)


@pytest.mark.parametrize(("sizes", "kernel"), [((3,), (2,)), ((2,), (9,)), ((2, 3), (3, 4)), ((1, 2, 2), (2, 1, 3))])
def test_reflected_index_logic_is_exact_over_z_p(sizes: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Gathered entries, the diagonal and the padded convolution, against walking through one mirror after the other."""
    k = _residues(*kernel)
    places = list(numpy.ndindex(sizes))
    wanted = numpy.zeros((len(places), len(places)), dtype=numpy.int64)
    for i in places:
        for c in numpy.ndindex(kernel):
            seen = tuple(reflected(a - b + p // 2, n) for a, b, p, n in zip(i, c, kernel, sizes, strict=True))
            wanted[places.index(i), places.index(seen)] += int(k[c])
    assert numpy.array_equal(fc.reflected_entries(k, sizes).numpy(), wanted)
    assert numpy.array_equal(fc.reflected_diagonal(k, sizes).numpy(), wanted.diagonal())
    shortened = fi.shorten(k, sizes)
    assert all(p <= max(2 * n, q) for p, n, q in zip(shortened.shape, sizes, kernel, strict=True))
    assert numpy.array_equal(fc.reflected_entries(shortened, sizes).numpy(), wanted)
    x = _residues(*sizes, seed=1)
    image = x
    ends = tuple(shortened.shape)
    for axis, index in enumerate(fc._positions(ends, sizes, x.device)):
        image = image.index_select(axis, index)
    g = fc._padded_geometry(ends, sizes)
    assert numpy.array_equal(_cyclic(shortened.numpy(), image.numpy(), g).ravel(), wanted @ x.flatten().numpy() % P)


@pytest.mark.parametrize("position", range(-9, 10))
def test_reflections_are_those_of_numpy(position: int) -> None:
    for n in (1, 2, 3, 4):
        index = fi.reflected_index(n, position, 7, torch.device("cpu"))
        wide = numpy.pad(numpy.arange(n), 40, mode="symmetric")
        assert numpy.array_equal(index.numpy(), wide[40 + position : 47 + position])


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_three_roles_are_adjoint_to_each_other(dtype: torch.dtype) -> None:
    """``<y, a * x> = <A^H y, x> = <corr(x, y), a>``."""
    g = fm.toeplitz_geometry((2, 3), (4, 2))
    a, x, y = _numbers(*g.a, dtype=dtype), _numbers(*g.x, dtype=dtype, seed=1), _numbers(*g.y, dtype=dtype, seed=2)
    product = torch.vdot(y.flatten(), fm.convolve(a, x, g).flatten())
    back = torch.vdot(fm.adjoint_rows(a, y.flatten()[None], g)[0], x.flatten())
    weights = torch.vdot(fm.correlate(x, y, g, ()).flatten(), a.flatten())
    size = float(a.norm() * x.norm() * y.norm())
    assert abs(complex(product - back)) <= 64 * EPS * size and abs(complex(product - weights)) <= 64 * EPS * size


@pytest.mark.parametrize(
    ("sizes", "rows"), [((7, 13), (5, 3)), ((97, 2), (97, 2)), ((4, 5, 6), (3, 8, 2)), ((31,), (9,))]
)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64])
def test_spectral_bound(sizes: tuple[int, ...], rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """``||dy|| <= 4 eps (1 + log2 N) max|t_hat| ||x||``."""
    g = fm.toeplitz_geometry(rows, sizes)
    t, x = _numbers(*g.a, dtype=dtype), _numbers(2, math.prod(sizes), dtype=dtype, seed=1)
    wide = C128 if dtype.is_complex else F64
    dense = fi.entries(t.to(wide), fi.toeplitz_index(rows, sizes, t.device), len(sizes))
    exact = x.to(wide) @ dense.mT
    largest = float(fm.spectrum(t.to(wide), g).abs().max())
    error = torch.linalg.vector_norm(fm.product_rows(t, x, g).to(wide) - exact, dim=-1)
    bound = 4 * torch.finfo(dtype).eps * (1 + math.log2(math.prod(g.lengths))) * largest
    assert bool((error <= bound * torch.linalg.vector_norm(x.to(wide), dim=-1)).all())


# -- derivatives --------------------------------------------------------------------------------------------------

G = fm.toeplitz_geometry((2, 2), (2, 3))
OPS: dict[str, Any] = {
    "product": (lambda a, x: fm.product_rows(a, x, G), (G.a, (2, 6))),
    "adjoint": (lambda a, y: fm.adjoint_rows(a, y, G), (G.a, (2, 4))),
    "correlate": (lambda x, y: fm.correlate(x, y, G, ()), ((3, *G.x), (3, *G.y))),
    "reflected": (lambda k, x: fc.reflected_product(k, x, (2, 3)), ((2, 3), (2, 6))),
    "reflected adjoint": (lambda k, y: fc.reflected_adjoint(k, y, (2, 3)), ((2, 3), (2, 6))),
    "cosine": (lambda x, y: fc.cosine_transform(x, 2) * fc.inverse_cosine_transform(y, 2), ((2, 3), (2, 3))),
    "eigenvalues": (lambda k, x: fc.kernel_eigenvalues(k, (2, 3)) * x, ((3, 2), (2, 3))),
}


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("name", OPS)
def test_derivatives_to_second_order(name: str, dtype: torch.dtype) -> None:
    op, shapes = OPS[name]
    assert_gradients(op, tuple(_numbers(*s, dtype=dtype, seed=k) for k, s in enumerate(shapes)))


@pytest.mark.parametrize("name", OPS)
def test_derivatives_by_transforms_and_compiled(name: str) -> None:
    """grad, jvp, vmap, forward over reverse, and the compiled op, each by value against reverse mode."""
    op, shapes = OPS[name]
    inputs = tuple(_numbers(*s, seed=k) for k, s in enumerate(shapes))
    moved = tuple(_numbers(*s, seed=k + 7) for k, s in enumerate(shapes))

    def loss(*v: torch.Tensor) -> torch.Tensor:
        return op(*v).sin().sum()

    leaves = [v.clone().requires_grad_() for v in inputs]
    plain = torch.autograd.grad(loss(*leaves), leaves)
    by_func = torch.func.grad(loss, argnums=(0, 1))(*inputs)
    rate = torch.func.jvp(loss, inputs, moved)[1]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    size = 1e3 * EPS * (1 + max(float(p.norm()) for p in plain)) * (1 + max(float(m.norm()) for m in moved))
    for a, b in zip(plain, by_func, strict=True):
        assert float((a - b).norm()) <= size
    assert abs(float(rate - sum((p * m).sum() for p, m in zip(plain, moved, strict=True)))) <= size
    assert float((compiled(*inputs) - op(*inputs)).norm()) <= size
    stacked = tuple(torch.stack((v, 2 * v)) for v in inputs)
    looped = torch.stack([op(*inputs), op(*(2 * v for v in inputs))])
    assert float((torch.func.vmap(op)(*stacked) - looped).norm()) <= 4 * size
    hessian = torch.func.jvp(torch.func.grad(loss), inputs, moved)[1]
    again = torch.func.grad(lambda *v: torch.func.jvp(loss, v, moved)[1])(*inputs)
    assert float((hessian - again).norm()) <= 10 * size


def test_gradients_of_broadcast_batches_are_summed() -> None:
    a, x = _numbers(2, 1, *G.a), _numbers(3, 2, 6, seed=1)
    assert fm.product_rows(a, x, G).shape == (2, 3, 2, 4)
    assert_gradients(lambda a, x: fm.product_rows(a, x, G), (a, x))


def test_nothing_in_nothing_out() -> None:
    a = _numbers(*G.a)
    assert fm.product_rows(a, torch.zeros(0, 6, dtype=F64), G).shape == (0, 4)
    hat = fm.spectrum(a, G)
    assert fm.apply_spectrum(hat, torch.zeros(0, 2, 3, dtype=C128), G, True).shape == (0, 2, 2)


# -- cosine transforms and preconditioners ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1,), (5,), (8, 3), (2, 1, 7)])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_cosine_transform_is_scipys(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _numbers(2, *sizes, dtype=dtype)
    levels = len(sizes)
    parts = (x.real, x.imag) if dtype.is_complex else (x,)
    wanted = [scipy.fft.dctn(p.numpy(), axes=range(1, levels + 1), norm="ortho") for p in parts]
    exact = wanted[0] if len(parts) == 1 else wanted[0] + 1j * wanted[1]
    found = fc.cosine_transform(x, levels)
    tol = 8 * EPS * (1 + math.log2(2 * math.prod(sizes))) * float(x.norm())
    assert float(numpy.linalg.norm((found.numpy() - exact).ravel())) <= tol
    assert float((fc.inverse_cosine_transform(found, levels) - x).norm()) <= tol


def test_gram_eigenvalues_are_exact_for_even_kernels() -> None:
    kernel = _numbers(3, 5)
    for axis in (0, 1):
        kernel = (kernel + kernel.flip(axis)) / 2
    lam = fc.kernel_eigenvalues(kernel, (4, 6))
    found = fc.gram_eigenvalues(kernel, (4, 6))
    assert float((found - lam**2).abs().max()) <= 32 * EPS * float(kernel.abs().sum()) ** 2


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 2)])
def test_chans_circulant_is_the_nearest(sizes: tuple[int, ...]) -> None:
    """The mean over the product groups, computed level by level."""
    t = _numbers(*(2 * n - 1 for n in sizes))
    dense = fi.entries(t, fi.toeplitz_index(sizes, sizes, t.device), len(sizes))
    nearest = fi.group_sums(dense, fi.circulant_index(sizes, t.device), sizes) / math.prod(sizes)
    assert float((fs.block_circulant_of(t, len(sizes)) - nearest).abs().max()) <= 32 * EPS * float(t.abs().max())


def test_strangs_circulant_copies_the_central_diagonals() -> None:
    sizes = (4, 5)
    t = _numbers(7, 9)
    found = fs.block_circulant_of(t, 2, "strang")
    for i, j in itertools.product(range(4), range(5)):
        p, q = (i if i <= 2 else i - 4), (j if j <= 2 else j - 5)
        assert found[i, j] == t[p + sizes[0] - 1, q + sizes[1] - 1]
