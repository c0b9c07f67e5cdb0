"""Functions as matrices: products, expressions, solves, derivatives with respect to tensors, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import Claim, backend
from structmat.solving import norm_estimate
from structmat.testing import assert_gradients, check_matrix_type

F64, C128 = torch.float64, torch.complex128


def numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``(4 + w_i) x_i - x_(i+1) - 2 x_(i-1)``."""
    pad = torch.nn.functional.pad
    return (4 + weight) * x - pad(x[..., 1:], (0, 1)) - 2 * pad(x[..., :-1], (1, 0))


def smooth_transposed(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    pad = torch.nn.functional.pad
    return (4 + weight) * y - pad(y[..., :-1], (1, 0)) - 2 * pad(y[..., 1:], (0, 1))


def entries(weight: torch.Tensor) -> torch.Tensor:
    n = len(weight)
    ones = torch.ones(n - 1, dtype=weight.dtype)
    return torch.diag(4 + weight) - torch.diag(ones, 1) - 2 * torch.diag(ones, -1)


def make(weight: torch.Tensor) -> sm.Implicit:
    n = len(weight)
    return sm.Implicit((n, n), smooth, smooth_transposed, tensors=(weight,))


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_conformance_suite_takes_a_function(dtype: torch.dtype) -> None:
    weight = numbers(6, dtype=dtype)
    check_matrix_type(sm.Implicit, [(make(weight), entries(weight))])


@pytest.mark.parametrize("dtype", [F64, C128])
def test_adjoints_are_derived(dtype: torch.dtype) -> None:
    weight = numbers(7, dtype=dtype)
    a, dense = make(weight), entries(weight)
    for got, wanted in ((a.mT, dense.mT), (a.mH, dense.mH), (a.conj(), dense.conj()), (a.mH.mH, dense)):
        assert torch.allclose(got.to_dense(), wanted, rtol=1e-14, atol=1e-14)


def test_expressions_hold_it() -> None:
    weight = numbers(6)
    a, dense, other = make(weight), entries(weight), sm.Circulant(numbers(6, seed=1))
    full = other.to_dense()
    for got, wanted in (
        (a @ other, dense @ full),
        (a + other, dense + full),
        (2 * a.mT, 2 * dense.mT),
        (a.inv(), torch.linalg.inv(dense)),
        (a[1:4, 2:], dense[1:4, 2:]),
        (sm.Submatrix(a, [4, 1]), dense[[4, 1]][:, [4, 1]]),
    ):
        assert torch.allclose(got.to_dense(), wanted, rtol=1e-12, atol=1e-12)
    assert torch.allclose(a.diagonal(), dense.diagonal()) and torch.allclose(a.norm(), dense.norm())
    assert torch.allclose(a.logabsdet(), torch.linalg.slogdet(dense)[1])


@pytest.mark.parametrize("dtype", [F64, C128])
def test_large_ones_are_solved_by_krylov_steps(dtype: torch.dtype) -> None:
    weight = numbers(500, dtype=dtype).abs().to(dtype)
    a, b = make(weight), numbers(500, 3, dtype=dtype)
    x, info = sm.linalg.solve(a, b, return_info=True)
    assert info.method == "gmres" and float((entries(weight) @ x - b).norm()) <= 1e-11
    assert float(norm_estimate(a)) <= float(torch.linalg.matrix_norm(entries(weight), 2)) * (1 + 1e-12)
    both = (a + a.mH).assume(Claim.POSITIVE_DEFINITE)
    assert sm.linalg.solve(both, b, return_info=True)[1].method == "cg"
    with pytest.raises(sm.StructureError, match="slogdet: Implicit has no structured form"):
        a.slogdet()
    assert float((a @ a.lstsq(b, method="lsmr") - b).norm()) <= 1e-9


@pytest.mark.parametrize("limit", [0, 256])
def test_derivatives_reach_the_tensors(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_DENSE_LIMIT", {"cpu": limit})
    weight, b = numbers(5), numbers(5, 2, seed=1)
    assert_gradients(lambda w, b: make(w) @ b, (weight, b))
    assert_gradients(lambda w, b: make(w).solve(b), (weight, b))
    module = sm.nn.Trainable(make(weight))
    assert [name for name, _ in module.named_parameters()] == ["held_0"]
    module.matrix.solve(b).sum().backward()
    wanted = torch.autograd.grad(torch.linalg.solve(entries(w := weight.clone().requires_grad_()), b).sum(), w)[0]
    assert module.held_0.grad is not None and torch.allclose(module.held_0.grad, wanted)


def test_closures_reach_products_and_are_refused_by_solves() -> None:
    weight = numbers(300).abs().requires_grad_()
    a = sm.Implicit((300, 300), lambda x: smooth(x, weight), lambda y: smooth_transposed(y, weight), F64)
    b = numbers(300)
    assert torch.autograd.grad((a @ b).sum(), weight)[0].shape == weight.shape
    for act in (lambda: a.solve(b), lambda: (a + sm.Identity(300)).solve(b), lambda: a.lstsq(b)):
        with pytest.raises(sm.StructureError, match=r"closes over a tensor that requires a gradient.*tensors="):
            act()
    with torch.no_grad():
        assert float((a @ a.solve(b) - b).norm()) <= 1e-11


def test_dtype_and_device_are_adopted_or_recorded() -> None:
    bare = sm.Implicit((3, 3), lambda x: 2 * x, lambda y: 2 * y)
    assert bare.dtype is None and bare.device is None
    for dtype in (torch.float32, F64, C128):
        assert (bare @ torch.ones(3, dtype=dtype)).dtype == dtype
        assert bare.solve(torch.ones(3, dtype=dtype)).dtype == dtype
    assert (bare + sm.Identity(3, F64)).dtype == F64
    held = make(numbers(4, dtype=C128))
    assert held.dtype == C128 and held.to(torch.float32).dtype == torch.complex64
    assert sm.Implicit((3, 3), smooth, smooth, C128).to(torch.float32).dtype == torch.complex64
    with pytest.raises(sm.DtypeError, match="differ in precision"):
        held @ torch.ones(4)
    batched = sm.Implicit((2, 3, 3), lambda x: x * torch.ones(2, 1, 3), lambda y: y * torch.ones(2, 1, 3))
    assert (batched @ torch.ones(3, 4)).shape == (2, 3, 4)


def short(x: torch.Tensor) -> torch.Tensor:
    return x[..., 1:]


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("rows lost", lambda: sm.Implicit((3, 3), short, short) @ torch.ones(3), sm.ShapeError, "short returned shape"),
    ("transpose", lambda: torch.ones(3) @ sm.Implicit((3, 3), abs, short), sm.ShapeError, "short returned shape"),
    ("no tensor", lambda: sm.Implicit((3, 3), lambda x: None, abs) @ torch.ones(3), TypeError, "returned NoneType"),
    ("no function", lambda: sm.Implicit((3, 3), 3, abs), TypeError, "linear must be a function of rows, got 3"),
    ("shape", lambda: sm.Implicit((3,), abs, abs), sm.ShapeError, r"shape must be \(\*batch, m, n\), got \(3,\)"),
    ("dtype", lambda: sm.Implicit((3, 3), abs, abs, torch.int64), sm.DtypeError, "got torch.int64"),
    ("tensors", lambda: sm.Implicit((3, 3), abs, abs, tensors=(1.0,)), TypeError, "tensors must be a tuple of tensors"),
    ("batch", lambda: sm.Implicit((2, 3, 3), abs, abs)[0], sm.StructureError, "a function has no batch elements"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_is_refused_names_the_function(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_it_pickles_shows_itself_and_explains() -> None:
    a = make(numbers(4))
    again = pickle.loads(pickle.dumps(a))
    assert torch.equal(again.to_dense(), a.to_dense())
    assert repr(a) == "Implicit(shape=(4, 4), linear=smooth, dtype=float64)"
    assert backend.explain(a, numbers(4)).path == "function" and "smooth" in backend.explain(a).reason
    assert backend.explain("solve", make(numbers(400))).path == "gmres"
