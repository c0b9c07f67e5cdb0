"""Rule 8: at n = 4096 no array of n^2 entries exists, in torch or in numpy, forward or backward."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import structmat as sm
from structmat import Claim, backend

F64 = torch.float64
N = 4096
# Several vectors, spectra of length 2 N in complex numbers, 16 rows at a time, blocks of 128 reflectors: far below
# N^2 / 8.
MOST = N * N // 8


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned or took."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.where = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                # an expanded view has many entries and few numbers: what counts is memory
                held = (
                    leaf.untyped_storage().nbytes() // leaf.element_size()
                    if leaf.layout == torch.strided
                    else leaf.numel()
                )
                if held > self.numel:
                    self.numel, self.where = held, str(func)
        return result


@contextmanager
def no_dense_arrays() -> Iterator[Largest]:
    """Neither a torch tensor nor numpy's memory may reach N^2 / 8 numbers of 8 bytes within the block."""
    watch = Largest()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with watch:
            yield watch
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert watch.numel > 0, "nothing was recorded"
    assert watch.numel <= MOST, f"{watch.where} made a tensor of {watch.numel} numbers; n^2 is {N * N}"
    assert peak <= 8 * MOST, (
        f"numpy held {peak / 2**20:.0f} MiB at once; n^2 float64 numbers are {8 * N * N / 2**20:.0f} MiB"
    )


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _first(length: int, position: int) -> torch.Tensor:
    return 4.0 * torch.nn.functional.one_hot(torch.tensor(position), length).to(F64)


LEAVES: dict[str, tuple[Callable[..., sm.Matrix], Callable[[int], tuple[torch.Tensor, ...]]]] = {
    "diagonal": (sm.Diagonal, lambda n: (_numbers(n).abs() + 1,)),
    "circulant": (sm.Circulant, lambda n: (_numbers(n) / n + _first(n, 0),)),
    "skew": (lambda v: sm.Circulant(v, -1), lambda n: (_numbers(n) / n + _first(n, 0),)),
    "toeplitz": (
        lambda t: sm.Toeplitz(t, (t.shape[-1] + 1) // 2),
        lambda n: (_numbers(2 * n - 1) / n + _first(2 * n - 1, n - 1),),
    ),
    "symmetric-levinson": (sm.SymmetricToeplitz, lambda n: (0.9 ** torch.arange(n, dtype=F64),)),
    "symmetric-cg": (
        lambda c: sm.SymmetricToeplitz(c).assume(Claim.POSITIVE_DEFINITE),
        lambda n: (0.9 ** torch.arange(n, dtype=F64),),
    ),
    "triangular": (lambda v: sm.Circulant(v, 0), lambda n: (_numbers(n) / n + _first(n, 0),)),
    "f-circulant": (lambda v: sm.Circulant(v, 1e-3), lambda n: (_numbers(n) / n + _first(n, 0),)),
    "orthogonal-circulant": (lambda t: sm.OrthogonalCirculant(t, (1, -1)), lambda n: (_numbers((n - 2) // 2),)),
    "hankel": (
        lambda h: sm.Hankel(h, (h.shape[-1] + 1) // 2),
        lambda n: (_numbers(2 * n - 1) / n + _first(2 * n - 1, n - 1),),
    ),
    "hermitian": (sm.HermitianToeplitz, lambda n: (0.9 ** torch.arange(n, dtype=F64),)),
    "householder": (sm.HouseholderProduct, lambda n: (_numbers(64, n),)),
    "scaled": (lambda v: sm.Scaled(sm.HouseholderProduct(v), 2.0), lambda n: (_numbers(8, n),)),
    "product": (
        lambda v, c: sm.Product((sm.HouseholderProduct(v), sm.Circulant(c))),
        lambda n: (_numbers(8, n), _numbers(n) / n + _first(n, 0)),
    ),
}
VERBS: dict[str, Callable[[sm.Matrix, torch.Tensor], torch.Tensor]] = {
    "linear": lambda a, x: a.linear(x).square().sum(),
    "transposed": lambda a, x: a.mT.linear(x).square().sum(),
    "solve": lambda a, x: a.solve(x.mT).square().sum(),
    "inv": lambda a, x: a.inv().linear(x).square().sum(),
    "slogdet": lambda a, x: a.slogdet()[1] + 0 * x.sum(),
    "norm": lambda a, x: a.norm() + 0 * x.sum(),
    "diagonal": lambda a, x: a.diagonal().sum() + 0 * x.sum(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", LEAVES)
def test_forward_and_backward(name: str, verb: str) -> None:
    if verb == "norm" and name in ("product", "scaled"):
        name = "toeplitz"  # n products one block after the other, each as in "linear": slow, and nothing new
    make, leaves = LEAVES[name]

    def run(n: int) -> None:
        inputs = [t.requires_grad_() for t in leaves(n)]
        VERBS[verb](make(*inputs), _numbers(2, n, seed=5).requires_grad_()).backward()

    with Largest():
        run(8)  # what Python itself allocates once (imports, plans) is no array of ours
    with no_dense_arrays():
        run(N)


@pytest.mark.parametrize("name", ["toeplitz", "circulant", "householder"])
def test_transforms_form_nothing_dense_either(name: str) -> None:
    make, leaves = LEAVES[name]

    def run(n: int) -> None:
        tensors, x = leaves(n), _numbers(1, n)
        torch.func.grad(lambda t: make(t).linear(x).sum())(tensors[0])
        torch.func.jvp(lambda t: make(t).linear(x), tensors, (torch.ones_like(tensors[0]),))
        torch.func.vmap(lambda v: make(*tensors).linear(v))(x)

    with Largest():
        run(8)
    with no_dense_arrays():
        run(N)


def test_low_rank_and_rectangular_products() -> None:
    with no_dense_arrays():
        sm.LowRank(_numbers(N, 4), _numbers(2 * N, 4)).linear(_numbers(2, 2 * N)).sum()
        sm.Toeplitz(_numbers(3 * N - 1), N).linear(_numbers(1, N))
        sm.LowRank(_numbers(N, 4), _numbers(N, 4)).svdvals()
        sm.LowRank(_numbers(N, 4), _numbers(N, 4)).pinv()
        (sm.Circulant(_numbers(N)) @ sm.LowRank(_numbers(N, 4), _numbers(N, 4))).norm()
        (sm.Identity(N) - sm.HouseholderProduct(_numbers(8, N))).norm()


def test_measures_walk_in_blocks() -> None:
    """Norm and diagonal of a sum: n products, 64 columns at a time."""
    total = sm.Sum((sm.Circulant(_numbers(N)), sm.Diagonal(_numbers(N))))
    with no_dense_arrays():
        total.diagonal()
        total[torch.tensor([3, 7]), :]
        total[5]
        total[1:3, 4:8].to_dense()


def test_estimates_keep_a_few_vectors_a_probe() -> None:
    entries = _numbers(N).abs().add(1).requires_grad_()
    total = sm.Sum((sm.Circulant(_numbers(N) / N), sm.Diagonal(entries)))
    with no_dense_arrays():
        sm.linalg.trace(total, "hutch++").value.backward()
        sm.linalg.logabsdet(total, "lanczos", probes=3).value.backward()
        wide = sm.Diagonal(torch.logspace(-8, 0, N, dtype=F64)).assume(Claim.POSITIVE_DEFINITE)
        found = sm.linalg.logabsdet(sm.Product((wide,)).assume(Claim.POSITIVE_DEFINITE), "lanczos", probes=2)
    assert found.steps == 128


def test_the_watch_sees_dense_arrays() -> None:
    """The recorder itself: a dense product, an n^2 numpy array, an n^2 view of storage."""
    with pytest.raises(AssertionError, match="made a tensor of 16777216 numbers"), no_dense_arrays():
        torch.ones(N, N)
    with pytest.raises(AssertionError, match="numpy held"), no_dense_arrays():
        torch.ones(1).add(float(numpy.ones((N, N))[0, 0]))
    with pytest.raises(AssertionError, match="made a tensor"), no_dense_arrays():
        sm.Circulant(_numbers(N)).to_dense()


def test_the_dense_limit_is_256_on_the_cpu() -> None:
    assert backend.dense_limit("cpu") == 256 == backend.dense_limit()
    with no_dense_arrays(), pytest.raises(sm.StructureError):
        sm.Toeplitz(_numbers(2 * N - 1), N).svdvals()


def test_explain_names_the_path_and_its_work() -> None:
    a = sm.Toeplitz(_numbers(2 * N - 1), N)
    x = _numbers(2, N)
    plan = backend.explain(a, x)
    assert plan.path == "fft" and "length" in plan.reason and plan.flops and plan.flops < N * N and plan.bytes
    assert backend.explain("solve", a, x.mT).path == "levinson"
    assert backend.explain("solve", sm.SymmetricToeplitz(_numbers(N)).assume(Claim.POSITIVE_DEFINITE)).path == "cg"
    assert backend.explain("solve", sm.Toeplitz(_numbers(9), 5)).path == "dense"
    assert backend.explain(sm.Circulant(_numbers(N))).path == "cyclic"
    assert backend.explain(sm.Circulant(_numbers(17))).path == "folded"
    assert "reflectors" in str(backend.explain(sm.HouseholderProduct(_numbers(3, 8)), _numbers(2, 8)))
    with pytest.raises(TypeError, match="explain: expected a Matrix, got Tensor"):
        backend.explain(x)
