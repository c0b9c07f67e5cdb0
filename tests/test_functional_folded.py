"""A weight plus a convolution, formed on the way: products and derivatives against entries written out."""

from __future__ import annotations

import pytest
import torch

from structmat.functional import folded, fourier
from structmat.functional import toeplitz as ft
from structmat.functional.fourier import Geometry

EPS = torch.finfo(torch.float64).eps


def cyclic(m: int, n: int) -> Geometry:
    size = max(m, n)
    return Geometry(size, 0, size, n, m)


CASES = {
    "toeplitz-tall": (ft.toeplitz_geometry(5, 3), lambda a, i, j: a[i - j + 2]),
    "toeplitz-wide": (ft.toeplitz_geometry(3, 5), lambda a, i, j: a[i - j + 4]),
    "one column": (ft.toeplitz_geometry(4, 1), lambda a, i, j: a[i]),
    "one row": (ft.toeplitz_geometry(1, 4), lambda a, i, j: a[3 - j]),
    "one entry": (ft.toeplitz_geometry(1, 1), lambda a, i, j: a[0]),
    "circulant": (cyclic(4, 4), lambda a, i, j: a[(i - j) % 4]),
    "circulant-tall": (cyclic(6, 4), lambda a, i, j: a[(i - j) % 6]),
    "circulant-wide": (cyclic(1, 6), lambda a, i, j: a[(i - j) % 6]),
    "symmetric": (ft.symmetric_geometry(5), lambda a, i, j: a[abs(i - j)]),
    "symmetric-one": (ft.symmetric_geometry(1), lambda a, i, j: a[0]),
}


def drawn(name: str, rows: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Geometry, list[torch.Tensor]]:
    """The geometry, and x, W, bias and the numbers of A."""
    g = CASES[name][0]
    source = torch.Generator().manual_seed(3)
    shapes = ((2, rows // 2, g.x), (g.y, g.x), (g.y,), (g.a,))
    return g, [torch.randn(s, generator=source, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def written_out(name: str, a: torch.Tensor) -> torch.Tensor:
    g, entry = CASES[name]
    return torch.stack([torch.stack([entry(a, i, j) for j in range(g.x)]) for i in range(g.y)])


def reference(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return x @ (weight + written_out(name, a)).mT + bias


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_sum_and_its_derivatives_to_second_order(name: str, transposed: bool) -> None:
    g, (x, weight, bias, a) = drawn(name)
    if transposed:  # as a layer stores it that keeps W^T
        weight = weight.detach().mT.contiguous().mT.requires_grad_()
    given = [x, weight, bias, a]
    found, wanted = folded.folded_linear(x, weight, bias, a, g), reference(name, *given)
    bound = 16 * EPS * (g.x + 1) * float(wanted.detach().abs().max() + 1)
    assert (found - wanted).abs().max() <= bound
    probe = torch.randn_like(wanted)
    first = torch.autograd.grad((found * probe).square().sum(), given, create_graph=True)
    other = torch.autograd.grad((wanted * probe).square().sum(), given, create_graph=True)
    for one, two in zip(first, other, strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12 * float(two.detach().abs().max()))
    second = torch.autograd.grad(sum(one.square().sum() for one in first), given)
    others = torch.autograd.grad(sum(two.square().sum() for two in other), given)
    for one, two in zip(second, others, strict=True):
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-11 * float(two.detach().abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_the_plain_form_is_the_same_matrix(name: str) -> None:
    g, (_, weight, _, a) = drawn(name)
    assert torch.equal(folded.plus_convolution(weight, a, g), weight + written_out(name, a))
    assert torch.equal(folded._formed(weight, a, g), weight + written_out(name, a))
    turned = weight.detach().mT.contiguous().mT
    assert torch.equal(folded._formed(turned, a, g), weight + written_out(name, a))
    assert folded._formed(turned, a, g).stride() == turned.stride() or 1 in turned.shape


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3)])
def test_only_what_is_asked_for_is_returned(needed: tuple[int, ...]) -> None:
    g, given = drawn("toeplitz-tall")
    for k, tensor in enumerate(given):
        tensor.requires_grad_(k in needed)
    found = folded.folded_linear(*given[:3], given[3], g)
    grads = torch.autograd.grad(found.sum(), [given[k] for k in needed])
    wanted = torch.autograd.grad(reference("toeplitz-tall", *given).sum(), [given[k] for k in needed])
    for one, two in zip(grads, wanted, strict=True):
        assert torch.allclose(one, two, rtol=1e-13, atol=1e-13)


def test_a_batch_of_gradients_at_once() -> None:
    g, given = drawn("circulant-tall")
    found = folded.folded_linear(*given[:3], given[3], g)
    probes = torch.randn(3, *found.shape, dtype=torch.float64)
    together = torch.autograd.grad(found, given, probes, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        alone = torch.autograd.grad(found, given, probes[k], retain_graph=True)
        for one, two in zip(together, alone, strict=True):
            assert torch.allclose(one[k], two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [1000, 384])
def test_many_rows_are_summed_part_by_part(m: int) -> None:
    """More rows than are correlated at a time, the last part smaller: against the product of the two matrices."""
    n, k = 512, 301
    source = torch.Generator().manual_seed(5)
    x, y = torch.randn(k, n, generator=source), torch.randn(k, m, generator=source)
    g = ft.toeplitz_geometry(m, n)
    assert k > fourier._AT_ONCE // g.length
    found = fourier.correlate_rows(x, y, g)
    wanted = ft.diagonal_sums(y.double().mT @ x.double())
    # each is the sum of k products of rows, transformed: eps log2 N times the norms of what goes in
    bound = 4 * torch.finfo(torch.float32).eps * 12 * float((x.norm(dim=1) * y.norm(dim=1)).sum())
    assert (found.double() - wanted).abs().max() <= bound
    both = fourier.correlate_rows(torch.complex(x, 2 * x), torch.complex(y, y), g)  # conj(x) y: (1 - 2i)(1 + i) = 3 - i
    assert (both.to(torch.complex128) - wanted * (3 - 1j)).abs().max() <= 4 * bound


def test_no_rows() -> None:
    g, (x, weight, bias, a) = drawn("toeplitz-tall", rows=0)
    y = folded.folded_linear(x, weight, bias, a, g)
    grads = torch.autograd.grad(y.sum(), [x, weight, bias, a])
    assert y.shape == (2, 0, 5)
    assert [tuple(grad.shape) for grad in grads] == [(2, 0, 3), (5, 3), (5,), (7,)]
    assert not any(grad.any() for grad in grads)


def test_nothing_of_the_size_of_the_weight_is_kept() -> None:
    g, (x, weight, bias, a) = drawn("toeplitz-tall")
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        folded.folded_linear(x, weight, bias, a, g)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), weight.data_ptr(), a.data_ptr()]


@pytest.mark.parametrize("name", CASES)
def test_what_is_given_may_still_be_freed(name: str) -> None:
    """FSDP frees the storage of a weight after its layer; a tensor that numpy has seen could not be."""
    g, (x, weight, bias, a) = drawn(name)
    folded.folded_linear(x, weight, bias, a, g).sum().backward()
    assert all(tensor.untyped_storage().resizable() for tensor in (x, weight, bias, a))


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    g, (x, weight, bias, a) = drawn("toeplitz-tall")
    y = folded.folded_linear(x, weight, bias, a, g)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_served() -> None:
    _, (x, weight, _, a) = drawn("toeplitz-tall")
    assert folded.serves(x, weight, a)
    assert not folded.serves(x.float(), weight, a)
    assert not folded.serves(*(t.bfloat16() for t in (x, weight, a)))
    assert not folded.serves(*(t.to("meta") for t in (x, weight, a)))
    assert not folded.serves(*(t.to(torch.complex128) for t in (x, weight, a)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not folded.serves(x, weight, a)

    def inside(t: torch.Tensor) -> torch.Tensor:
        assert not folded.serves(x, weight, t)
        return t.sum()

    torch.func.grad(inside)(a)
    torch.func.jvp(inside, (a,), (a,))
