"""First and second derivatives of every verb, against finite differences and against autograd of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm
from structmat import nn
from structmat.lazy import Prepared
from structmat.testing import assert_gradients, conformance
from structmat.testing.conformance import Case
from structmat.testing.examples import EXAMPLES, Example
from tests.cases import DOUBLE, build, over_examples, pairs


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


@over_examples(lambda e: e.smooth, DOUBLE)
def test_products(case: Case) -> None:
    """gradcheck and gradgradcheck of linear, in the entries and in x."""
    conformance.check_gradients(case)


# One example of each path that a verb can take; the verbs of lazies are compositions of these.
_SOLVABLE = [e for e in EXAMPLES if e.solvable and e.smooth and e.build().tensors()]
VERBS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "solve": lambda a, b: a.solve(b),
    "inv": lambda a, b: a.inv() @ b,
    "transpose-solve": lambda a, b: a.mH.solve(b),
    "slogdet": lambda a, b: a.slogdet()[1],
    "det": lambda a, b: a.det(),
    "factor": lambda a, b: a.factor().solve(b),
}


@pairs(VERBS, _SOLVABLE)
def test_square_verbs(example: Example, verb: str) -> None:
    """Real entries; complex ones for every third example, so that both meet every verb."""
    third = _SOLVABLE.index(example) % 3 == 1 and torch.complex128 in example.dtypes
    dtype = torch.complex128 if third else torch.float64
    matrix = example.build(dtype, seed=1)
    b = torch.randn(int(matrix.shape[-1]), 2, dtype=dtype if matrix.dtype is None else matrix.dtype)
    assert_gradients(VERBS[verb], (matrix, b))


MEASURES: dict[str, Callable[[Any], Any]] = {
    "diagonal": lambda a: a.diagonal(),
    "norm": lambda a: a.norm(),
    "to_dense": lambda a: a.to_dense(),
    "svdvals": lambda a: a.svdvals(),
    "pinv": lambda a: a.pinv().to_dense(),
    "scaled": lambda a: (2.5 * a).to_dense(),
    "plus": lambda a: (a + a.conj()).to_dense(),
    "gram": lambda a: (a @ a.mH).to_dense(),
}
# Singular values and pseudo-inverses are smooth where no two values meet and none is zero: rank-deficient examples
# are not, and the singular values of orthogonal matrices are all equal (their closed form is the constant 1).
_RANK_DEFICIENT = (
    "low-rank",
    "householder",
    "givens",
    "scaled",
    "slice",
    "product",
    "inverse",
    "prepared",
    "sum",
    "identity",
)


@pairs(MEASURES, [e for e in EXAMPLES if e.smooth and e.build().tensors()], every=3)
def test_measures(example: Example, verb: str) -> None:
    matrix = example.build(torch.float64, seed=2)
    if verb in ("svdvals", "pinv") and example.name.startswith(_RANK_DEFICIENT):
        matrix = EXAMPLES[3].build(torch.float64, seed=len(example.name))  # a full-rank dense matrix stands in
    assert_gradients(MEASURES[verb], (matrix,), order=1 if verb in ("svdvals", "pinv") else 2)


# A prepared matrix answers products from what it keeps and to_dense from its entries: two sets of leaves.
_DENSE_TOO = [
    e for e in EXAMPLES if e.smooth and e.type is not Prepared and any(t.numel() for t in e.build().tensors())
]


@pytest.mark.parametrize("example", _DENSE_TOO, ids=lambda e: e.name)
def test_gradient_equals_that_of_the_dense_matrix(example: Example) -> None:
    """d f(A x) by structure and by the dense matrix formed from the same leaves agree to rounding."""
    matrix = example.build(torch.float64, seed=3)
    tensors, rebuild = nn.split(matrix)
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    x = torch.randn(3, int(matrix.shape[-1]), dtype=matrix.dtype)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return (torch.view_as_real(y) if y.is_complex() else y).tanh().sum()

    by_structure = torch.autograd.grad(
        loss(rebuild(leaves).linear(x)), leaves, allow_unused=True, materialize_grads=True
    )
    again = rebuild(leaves)
    by_dense = torch.autograd.grad(loss(x @ again.to_dense().mT), leaves, allow_unused=True, materialize_grads=True)
    size = float(torch.linalg.vector_norm(x)) * (1 + max(float(torch.linalg.vector_norm(t)) for t in leaves))
    n = sum(int(s) for s in matrix.shape)
    for a, b in zip(by_structure, by_dense, strict=True):
        # n terms of size |x|; the transforms add log2(n); 16 as in testing.assertions.rounding
        assert float((a - b).abs().max()) <= 16 * torch.finfo(torch.float64).eps * n * size * (1 + float(b.abs().max()))


def test_zero_reflector_has_zero_gradient() -> None:
    vectors = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.ones(3, dtype=torch.float64)
    grad = torch.autograd.grad(sm.HouseholderProduct(vectors).linear(x).sum(), vectors)[0]
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("make", [sm.Circulant, sm.SymmetricToeplitz, lambda t: sm.Toeplitz(t, 3), sm.Diagonal])
def test_gradients_of_a_broadcast_batch_are_summed(make: Callable[[torch.Tensor], sm.Matrix]) -> None:
    """One matrix over many leading axes of x, and a batch of matrices over one x."""
    one = torch.randn(5, dtype=torch.float64)
    assert_gradients(
        lambda t, x: make(t).linear(x), (one, torch.randn(2, 1, 2, int(make(one).shape[-1]), dtype=torch.float64))
    )
    many = torch.randn(2, 1, 5, dtype=torch.float64)
    assert_gradients(
        lambda t, x: make(t).linear(x), (many, torch.randn(3, 2, int(make(one).shape[-1]), dtype=torch.float64))
    )


def test_forward_mode_of_forward_mode() -> None:
    """jacfwd of jacfwd through a Function with an explicit jvp is silently zero in torch 2.13; ours must not be.

    What is supported is forward over reverse and reverse over forward; where torch cannot, the value must still be
    right.
    """
    x = torch.randn(2, 5, dtype=torch.float64)

    def loss(column: torch.Tensor) -> torch.Tensor:
        return sm.Circulant(column).linear(x).pow(3).sum()

    column = torch.randn(5, dtype=torch.float64)
    exact = torch.autograd.functional.hessian(lambda c: (x @ _circulant(c).mT).pow(3).sum(), column)
    for outer, inner in (
        (torch.func.jacfwd, torch.func.jacrev),
        (torch.func.jacrev, torch.func.jacfwd),
        (torch.func.jacrev, torch.func.jacrev),
    ):
        found = outer(inner(loss))(column)
        # 5 x 5 sums of products of numbers of the size of the Hessian
        assert float((found - exact).abs().max()) <= 100 * torch.finfo(torch.float64).eps * float(exact.abs().max())


def _circulant(column: torch.Tensor) -> torch.Tensor:
    n = len(column)
    return torch.stack([torch.stack([column[(i - j) % n] for j in range(n)]) for i in range(n)])
