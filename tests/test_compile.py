"""``torch.compile(fullgraph=True)`` against eager, by value: products, verbs, gradients and jvps.

aot_eager traces exactly what inductor would compile and takes a fraction of the time; inductor itself runs for the
few graphs that it has been seen to get wrong (column-sliced reflector loops, FFTs of views).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import matrix, nn
from structmat.functional import circulant as fc
from structmat.functional import fourier
from structmat.functional import householder as fh
from structmat.functional import toeplitz as ft
from structmat.testing import conformance
from structmat.testing.conformance import Case
from structmat.testing.examples import EXAMPLES, Example
from tests.cases import CI, build

EPS = torch.finfo(torch.float64).eps
# One example a code path; all of them in profile ci.
_PATHS = [
    "dense-5x3",
    "diagonal-5",
    "identity-7-any-dtype",
    "low-rank-5x3-r2",
    "low-rank-3x7-r0",
    "circulant-8",
    "circulant-17-folded",
    "skew-circulant-6",
    "f-circulant-5-complex-f",
    "toeplitz-5x3",
    "symmetric-toeplitz-13",
    "householder-5-r2",
    "householder-5-r3-phases",
    "householder-5-r0",
    "householder-4-r9",
    "product-3x5",
    "sum-5",
    "scaled-by-tensor",
    "inverse-toeplitz",
    "slice-3x2",
    "prepared-circulant",
    "prepared-reflections",
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


def _settings() -> list[Any]:
    found = []
    for position, e in enumerate(EXAMPLES):
        every = [(d, b) for d in e.dtypes for b in e.batches]
        chosen = every if CI else [every[position % len(every)]] if e.name in _PATHS else []
        found += [pytest.param((e, s), id=f"{e.name}-{s[0]}-{s[1]}") for s in chosen]
    return found


@pytest.mark.parametrize("case", _settings(), indirect=True)
def test_products(case: Case) -> None:
    conformance.check_compiled(case)


def test_every_named_path_exists() -> None:
    assert set(_PATHS) <= {e.name for e in EXAMPLES}


def compiled(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)


def close(a: torch.Tensor, b: torch.Tensor, factor: float = 200.0) -> None:
    """Two evaluations of one expression of a few dozen operations each."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert float((a - b).abs().max()) <= factor * torch.finfo(a.dtype).eps * (1 + float(b.abs().max()))


# -- each functional op: value, grad and jvp, eager and compiled -------------------------------------------------


def _t(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _dominant(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return _t(n, dtype=dtype) / n + 3 * torch.nn.functional.one_hot(torch.tensor(0), n).to(dtype)


def _reflect_all(x: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    for v in vectors.flip(0):
        x = x - 2 * (x @ v.conj())[:, None] * v / (v @ v.conj())
    return x


def _toeplitz_dense(t: torch.Tensor, n: int) -> torch.Tensor:
    m = len(t) - n + 1
    return torch.stack([torch.stack([t[i - j + n - 1] for j in range(n)]) for i in range(m)])


def _circulant_dense(v: torch.Tensor, f: complex) -> torch.Tensor:
    n = len(v)
    return torch.stack([torch.stack([v[i - j] if i >= j else f * v[n + i - j] for j in range(n)]) for i in range(n)])


C = torch.complex128
# name: (the op, the same in plain torch without any FFT or block, the inputs)
OPS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "toeplitz_product": (
        lambda t, x: ft.toeplitz_product(t, x, 3),
        lambda t, x: x @ _toeplitz_dense(t, 3).mT,
        (_t(7), _t(2, 3)),
    ),
    "toeplitz_product-complex": (
        lambda t, x: ft.toeplitz_product(t, x, 3),
        lambda t, x: x @ _toeplitz_dense(t, 3).mT,
        (_t(7, dtype=C), _t(2, 3, dtype=C)),
    ),
    "circulant_product": (
        lambda v, x: ft.circulant_product(v, x),
        lambda v, x: x @ _circulant_dense(v, 1).mT,
        (_t(6), _t(2, 6)),
    ),
    "circulant_product-folded": (
        lambda v, x: ft.circulant_product(v, x, -1),
        lambda v, x: x @ _circulant_dense(v, -1).mT,
        (_t(6), _t(2, 6)),
    ),
    "correlate": (
        lambda x, y: fourier.correlate(x, y, ft.toeplitz_geometry(4, 3), (1,))[0],
        lambda x, y: torch.stack(
            [sum(y[:, j + k - 2] @ x[:, j] for j in range(3) if 0 <= j + k - 2 < 4) for k in range(6)]
        ),
        (_t(2, 3), _t(2, 4, seed=1)),
    ),
    "circulant.divide_rows": (
        lambda v, y: fc.divide_rows(v, y, 1),
        lambda v, y: torch.linalg.solve(_circulant_dense(v, 1), y.mT).mT,
        (_dominant(5), _t(2, 5)),
    ),
    "circulant.divide_rows-twisted": (
        lambda v, y: fc.divide_rows(v, y, -0.5),
        lambda v, y: torch.linalg.solve(_circulant_dense(v, -0.5), y.mT).mT,
        (_dominant(5), _t(2, 5)),
    ),
    "circulant.slogdet": (
        lambda v: fc.slogdet(v, -1)[1],
        lambda v: torch.linalg.slogdet(_circulant_dense(v, -1))[1],
        (_dominant(6),),
    ),
    "rotate_rows": (fh.rotate_rows, _reflect_all, (_t(3, 5), _t(4, 5, seed=1))),
    "rotate_rows-complex": (fh.rotate_rows, _reflect_all, (_t(3, 5, dtype=C), _t(2, 5, seed=1, dtype=C))),
    "rotate_rows-blocks": (fh.rotate_rows, _reflect_all, (_t(2, 3), _t(130, 3, seed=1))),
}


def _loss(op: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        y = op(*inputs)
        return (torch.view_as_real(y) if y.is_complex() else y).sin().sum()

    return loss


# 130 reflections in three dimensions, each rounding once
_FACTORS = {"rotate_rows-blocks": 5000.0}


@pytest.mark.parametrize("name", OPS)
def test_value_grad_and_jvp_of_each_op(name: str) -> None:
    """Eager and compiled, reverse and forward, against a plain torch formula that shares no code."""
    op, plain, inputs = OPS[name]
    factor = _FACTORS.get(name, 500.0)
    argnums = tuple(range(len(inputs)))
    moved = tuple(_t(*v.shape, seed=9, dtype=v.dtype) for v in inputs)
    close(op(*inputs), plain(*inputs), factor)
    close(compiled(op)(*inputs), plain(*inputs), factor)
    wanted = torch.func.grad(_loss(plain), argnums=argnums)(*inputs)
    rate = torch.func.jvp(plain, inputs, moved)[1]
    assert float(rate.abs().max()) > 1e-3, "the jvp must not vanish, or zero would pass"
    grad = torch.func.grad(_loss(op), argnums=argnums)
    for found in (
        grad(*inputs),
        compiled(grad)(*inputs),
        _by_backward(_loss(op), inputs),
        _by_backward(compiled(_loss(op)), inputs),
    ):
        for a, b in zip(found, wanted, strict=True):
            close(a, b, 4 * factor)

    def forward(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(op, values[: len(inputs)], values[len(inputs) :])[1]

    close(forward(*inputs, *moved), rate, 4 * factor)
    close(compiled(forward)(*inputs, *moved), rate, 4 * factor)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(v, d) for v, d in zip(inputs, moved, strict=True)]
        close(torch.autograd.forward_ad.unpack_dual(op(*duals)).tangent, rate, 4 * factor)


def _by_backward(loss: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    leaves = [v.clone().requires_grad_() for v in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


# -- matrices -----------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "A @ x": lambda a, x: a @ x.mT,
    "x @ A": lambda a, x: x @ a,
    "mT": lambda a, x: a.mT.linear(x),
    "matmul": lambda a, x: sm.linalg.matmul(a, a.mH).linear(x),
    "solve": lambda a, x: a.solve(x.mT),
    "slogdet": lambda a, x: a.slogdet()[1],
    "inv": lambda a, x: a.inv().linear(x),
    "scaled": lambda a, x: ((2.5 * a) / 2).linear(x),
    "negative": lambda a, x: (-a).conj().linear(x),
    "sum": lambda a, x: matrix.add(a, a.mT).linear(x),
    "diagonal": lambda a, x: a.diagonal() + a.norm(),
    "dense": lambda a, x: a.to_dense(),
}
_TYPES = [
    "dense-6x6",
    "diagonal-5",
    "circulant-8",
    "skew-circulant-6",
    "toeplitz-7x7",
    "symmetric-toeplitz-13",
    "householder-5-r2",
]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", _TYPES if CI else _TYPES[2::2])
def test_verbs(name: str, verb: str) -> None:
    """Two matrices added by the operator do not trace under fullgraph; the functions of structmat.matrix and linalg
    do."""
    a = _example(name).build()
    x = _t(2, int(a.shape[-1]))
    close(compiled(VERBS[verb])(a, x), VERBS[verb](a, x), 1e4)  # solves: condition numbers below 100


def _train(module: torch.nn.Module, x: torch.Tensor, run: Callable[..., Any]) -> list[torch.Tensor]:
    run(module, x).square().sum().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


INDUCTOR = [
    pytest.param(lambda: sm.HouseholderProduct(_t(8, 16).float()), id="householder"),
    pytest.param(lambda: sm.HouseholderProduct(_t(5, 16).float()), id="householder-blocks"),
    pytest.param(lambda: sm.Circulant(_t(17).float()), id="circulant-folded"),
    pytest.param(lambda: sm.Toeplitz(_t(23).float(), 16), id="toeplitz"),
]


@pytest.mark.inductor
@pytest.mark.parametrize("make", INDUCTOR if CI else INDUCTOR[1:3])
def test_inductor_forward_and_backward(
    make: Callable[[], sm.Matrix], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and parameter gradients of a trainable module, compiled for real, in float32; also reflectors in
    slices."""
    if "blocks" in request.node.name:
        monkeypatch.setattr(fh, "block_size", lambda r: 3)
    eager, fast = nn.Trainable(make()), nn.Trainable(make())
    x = _t(5, int(eager.matrix.shape[-1])).float()
    run = compiled(lambda module, v: module(v), "inductor")
    close(run(fast, x), eager(x), 5000.0)
    for a, b in zip(_train(fast, x, run), _train(eager, x, lambda m, v: m(v)), strict=True):
        # sums over 5 rows of 16 entries through up to 140 reflections
        close(a, b, 2e4)


def test_a_second_size_and_a_second_matrix_compile_too() -> None:
    """Sizes and entries are not baked into the first graph."""
    product = compiled(lambda a, v: a.linear(v))
    for n in (6, 7, 16):
        for seed in (0, 1):
            a = sm.Circulant(_t(n, seed=seed))
            x = _t(2, n)
            close(product(a, x), a.linear(x))


def test_static_fields_are_part_of_the_graph() -> None:
    """f = 1 and f = -1 must not share a compiled graph."""
    product = compiled(lambda a, v: a.linear(v))
    v, x = _t(6), _t(2, 6)
    for f in (1, -1, 2.0):
        close(product(sm.Circulant(v, f), x), sm.Circulant(v, f).linear(x))


def _example(name: str) -> Example:
    return next(e for e in EXAMPLES if e.name == name)


def test_claims_travel_through_the_compiler() -> None:
    kms = _example("kms-9").build()
    assert sm.Claim.POSITIVE_DEFINITE in kms.claims
    found = compiled(lambda a, v: a.linear(v) * (2 if sm.Claim.POSITIVE_DEFINITE in a.claims else 1))(kms, _t(2, 9))
    close(found, 2 * kms.linear(_t(2, 9)))
