"""Derivatives of estimates, by value against exact ones, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm

F64 = torch.float64
DEFINITE = sm.Claim.POSITIVE_DEFINITE
N = 40


def draw(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DECAY = 0.4 ** torch.arange(N, dtype=F64)
SHIFT = 1 + draw(N).abs()


def definite(column: torch.Tensor, entries: torch.Tensor) -> sm.Matrix:
    return (sm.SymmetricToeplitz(column) + sm.Diagonal(entries)).assume(DEFINITE)


def general(column: torch.Tensor, entries: torch.Tensor) -> sm.Matrix:
    return sm.Circulant(column) @ sm.Diagonal(entries) + sm.Diagonal(entries.flip(-1))


MAKERS: dict[str, Callable[..., sm.Matrix]] = {
    "definite": definite,
    "general": general,
    "inverse": lambda c, d: definite(c, d).inv(),
    "scaled": lambda c, d: sm.lazy.Scaled(general(c, d), d.sum()),
    "complex": lambda c, d: general(c + 0.1j * c.flip(-1), d * torch.exp(0.3j * d)),
}


def estimate(make: Callable[..., sm.Matrix], seed: int = 0, probes: int = 8) -> Callable[..., torch.Tensor]:
    def value(*parameters: torch.Tensor) -> torch.Tensor:
        found: Any = sm.linalg.logabsdet(make(*parameters), "lanczos", probes=probes, generator=seeded(seed))
        return found.value

    return value


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_the_same_probes(name: str) -> None:
    """``mean Re (A^-H g)^H dA g`` for each parameter, formed densely with the very probes; jvp and grad agree."""
    make, parameters = MAKERS[name], (DECAY.clone(), SHIFT.clone())
    gradients = torch.func.grad(estimate(make), argnums=(0, 1))(*parameters)
    g = sm.functional.stochastic.signs((8, N), make(*parameters).dtype, None, seeded())

    def surrogate(*moving: torch.Tensor) -> torch.Tensor:
        a, sign, extra = make(*moving), 1.0, 0.0
        if name == "inverse":
            a, sign = a.matrix, -1.0
        if name == "scaled":
            a, extra = a.matrix, N * torch.log(moving[1].sum())
        dense = a.to_dense()
        solved = torch.linalg.solve(dense.detach().mH, g.mT).mT
        return sign * torch.linalg.vecdot(solved, g @ dense.mT).real.mean() + extra

    wanted = torch.func.grad(surrogate, argnums=(0, 1))(*parameters)
    for found, right in zip(gradients, wanted, strict=True):
        assert float((found - right).norm()) <= 1e-9 * float(right.norm())
    tangents = (draw(N, seed=1), draw(N, seed=2))
    pushed = torch.func.jvp(estimate(make), parameters, tangents)[1]
    inner = sum((f * t).sum() for f, t in zip(gradients, tangents, strict=True))
    assert float((pushed - inner).abs()) <= 1e-9 * (1 + float(inner.abs()))


def test_derivatives_are_unbiased_to_second_order() -> None:
    """The means over many probes near the derivatives of ``log det``, in units of their own scatter."""
    direction = draw(N, seed=3)

    def along(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        d = SHIFT.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(d), d, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), d)
        return (first.detach() * direction).sum(), (second * direction).sum()

    exact = along(lambda d: torch.linalg.slogdet(definite(DECAY, d).to_dense())[1])
    found = [along(lambda d, s=s: estimate(definite, s, 20)(DECAY, d)) for s in range(20)]  # type: ignore[misc]
    for order in (0, 1):
        values = torch.stack([f[order] for f in found])
        assert float((values.mean() - exact[order]).abs()) <= 5 * float(values.std()) / 20**0.5
        assert float(values.std()) <= 0.5 * float(exact[order].abs()) + 1


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_traces_are_differentiated_through_products(method: str) -> None:
    """Linear in A: for the identity as direction the derivative is the trace of the identity, but for scatter."""

    def value(d: torch.Tensor, seed: int) -> torch.Tensor:
        found: Any = sm.linalg.trace(definite(DECAY, d), method, probes=12, generator=seeded(seed))
        assert not found.error.requires_grad
        return found.value

    means = torch.stack([torch.func.grad(value)(SHIFT, s) for s in range(60)])
    assert float((means.mean(0) - 1).abs().max()) <= 5 * float(means.std(0).max()) / 60**0.5 + 1e-12
    assert float((means[0].sum() - N).abs()) <= 0.3 * N


# -- what is refused ----------------------------------------------------------------------------------------------


def big(n: int = 300) -> sm.Matrix:
    return sm.SymmetricToeplitz(0.5 ** torch.arange(n, dtype=F64)) + sm.Diagonal(torch.ones(n, dtype=F64))


def test_above_the_dense_limit_the_estimate_is_named() -> None:
    with pytest.raises(sm.StructureError, match=r"linalg.logabsdet\(A, method='lanczos'\) estimates"):
        big().slogdet()
    with pytest.raises(sm.StructureError, match=r"sparse.linalg.svds\(structmat.linalg.as_linear_operator"):
        big().svdvals()
    with pytest.raises(sm.StructureError, match=r"sparse.linalg.eigs\(structmat.linalg.as_linear_operator"):
        big().eigvals()


def test_the_sign_of_what_is_not_definite_is_not_guessed() -> None:
    with pytest.raises(sm.StructureError, match=r"products alone tell no sign; structmat.linalg.logabsdet"):
        sm.linalg.slogdet(big(), "lanczos")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: sm.linalg.trace(a, "hutch"), ValueError, "legal methods are 'exact', 'hutch\\+\\+', 'hutchinson'"),
        (lambda a: sm.linalg.slogdet(a, "slq"), ValueError, "legal methods are 'exact', 'lanczos'"),
        (lambda a: sm.linalg.trace(a, "exact", probes=3), ValueError, "probes means nothing to method='exact'"),
        (lambda a: sm.linalg.trace(a, "hutch++", probes=5), ValueError, "an int of at least 6"),
        (lambda a: sm.linalg.trace(a, "hutchinson", probes=1), ValueError, "an int of at least 2"),
        (lambda a: sm.linalg.trace(a, "hutchinson", probes=True), ValueError, "an int of at least 2"),
        (lambda a: sm.linalg.logabsdet(a, "lanczos", confidence=1.0), ValueError, "between 0 and 1"),
        (lambda a: sm.linalg.logabsdet(a, "lanczos", steps=0), ValueError, "a positive int"),
        (lambda a: sm.linalg.trace(a[:3], "hutch++"), sm.ShapeError, "3 x 300"),
        (lambda a: sm.linalg.logabsdet(a[:, :2], "lanczos"), sm.ShapeError, "300 x 2"),
    ],
)
def test_bad_options(call: Callable[[sm.Matrix], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(big())


def test_false_claims_singular_matrices_and_numbers_that_are_not_finite() -> None:
    false = (big() - sm.Identity(300) * 1.5).assume(DEFINITE)
    with pytest.raises(sm.SolveError, match=r"claimed positive definite, but Lanczos found an eigenvalue -"):
        sm.linalg.slogdet(false, "lanczos")
    low = sm.lazy.Sum((sm.LowRank(draw(N, 3), draw(N, 3)),))
    with pytest.raises(sm.SolveError, match="singular to working precision"):
        sm.linalg.logabsdet(low, "lanczos")
    entries = torch.eye(3, dtype=F64)
    entries[0, 0] = float("nan")
    with pytest.raises(sm.SolveError, match="not finite"):
        sm.linalg.logabsdet(sm.Dense(entries), "lanczos")


def test_where_values_cannot_be_read_an_estimate_of_a_determinant_is_refused() -> None:
    with pytest.raises(sm.StructureError, match=r"torch.func.vmap: it reads values"):
        torch.func.vmap(estimate(definite), in_dims=(None, 0), randomness="same")(DECAY, SHIFT.expand(2, N))


def test_under_compile_an_estimate_of_a_determinant_is_refused() -> None:
    def value(d: torch.Tensor) -> Any:
        found: Any = sm.linalg.logabsdet(definite(DECAY, d), "lanczos")
        return found.value

    with pytest.raises(Exception, match=r"under torch.compile"):
        torch.compile(value, backend="eager", fullgraph=True)(SHIFT)


def test_a_gradient_that_would_be_lost_is_refused() -> None:
    w = SHIFT.clone().requires_grad_()
    hidden = sm.Implicit((N, N), lambda x: x * w, lambda y: y * w, F64)
    with pytest.raises(sm.StructureError, match="closes over a tensor that requires a gradient"):
        sm.linalg.logabsdet(hidden, "lanczos")
    seen = sm.Implicit((N, N), lambda x, v: x * v, lambda y, v: y * v, tensors=(w,))
    value: Any = sm.linalg.logabsdet(seen, "lanczos").value
    (gradient,) = torch.autograd.grad(value, w)
    assert float((gradient - 1 / w.detach()).abs().max()) <= 1e-9  # signs see the trace of a diagonal exactly
    e: Any = sm.linalg.trace(hidden, "hutchinson", probes=3)
    assert float((torch.autograd.grad(e.value, w)[0] - 1).abs().max()) <= 1e-12
