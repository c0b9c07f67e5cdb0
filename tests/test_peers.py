"""Defects of other libraries that concern these types, each as a test that ours does not have it.

Named as in the project's survey of peers (D1, D10 ...); what the peer does is quoted so that the test explains itself.
"""

from __future__ import annotations

import io
import pickle

import numpy
import pytest
import scipy.linalg
import torch

import structmat as sm
from structmat import nn
from structmat.testing import assert_orthogonal

F64 = torch.float64
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def test_d1_one_step_with_weight_decay_does_not_destroy_a_rotation() -> None:
    """torch's householder map keeps signs on the trained diagonal, reads them with int(), and becomes zero after one
    step."""
    module = nn.Trainable(sm.HouseholderProduct(_numbers(5, 8, dtype=torch.float32)))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        module(_numbers(4, 8, dtype=torch.float32)).square().sum().backward()
        optimiser.step()
    assert float(module.matrix.to_dense().norm()) == pytest.approx(8**0.5, rel=1e-6)
    assert_orthogonal(module.matrix, ops=5)


def test_d4_exact_rotations_at_every_scale_of_the_parameter() -> None:
    """PEFT's truncated Neumann series loses orthogonality with the size of the parameter: 5e-1 at 0.1, 4.7e7 at 1."""
    for scale in (1e-2, 1.0, 1e3):
        assert_orthogonal(sm.HouseholderProduct(scale * _numbers(16, 32, dtype=torch.float32)), ops=16)


def test_d5_equal_vectors_are_harmless() -> None:
    """HRA with Gram-Schmidt normalises rounding noise where vectors come in pairs: NaN at r = 8."""
    q = sm.HouseholderProduct.identity(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    assert float((q.to_dense() - torch.eye(32)).abs().max()) <= 64 * torch.finfo(torch.float32).eps
    leaf = q.vectors.clone().requires_grad_()
    sm.HouseholderProduct(leaf).linear(_numbers(2, 32, dtype=torch.float32)).square().sum().backward()
    assert bool(torch.isfinite(leaf.grad).all())


def test_d10_nonsymmetric_systems_are_solved() -> None:
    """linear_operator raises NotPSDError from torch.linalg.solve for any nonsymmetric operator."""
    for a in (
        sm.Dense(_numbers(5, 5)),
        sm.Toeplitz(_numbers(9), 5),
        sm.Circulant(_numbers(5)),
        sm.Diagonal(-_numbers(5).abs() - 1),
    ):
        b = _numbers(5, 2, seed=1)
        assert float((a @ sm.linalg.solve(a, b) - b).norm()) <= 1e5 * EPS * float(b.norm())


def test_d11_toeplitz_is_more_than_symmetric_and_positive() -> None:
    """linear_operator's Toeplitz: symmetric only, no half, no complex, no det, slogdet, inv, trace, norm, vmap,
    compile."""
    general = sm.Toeplitz(_numbers(11), 4)
    assert tuple(general.shape) == (8, 4)
    assert (
        sm.Toeplitz(_numbers(11, dtype=torch.bfloat16), 4).linear(_numbers(4, dtype=torch.bfloat16)).dtype
        == torch.bfloat16
    )
    square = sm.Toeplitz(torch.complex(_numbers(9), _numbers(9, seed=1)), 5)
    dense = square.to_dense()
    assert float((square.det() - torch.linalg.det(dense)).abs()) <= 1e4 * EPS * float(torch.linalg.det(dense).abs() + 1)
    assert float((square.trace() - dense.trace()).abs()) <= 16 * EPS * float(square.norm())
    assert float(square.norm() - torch.linalg.matrix_norm(dense)) == pytest.approx(
        0, abs=64 * EPS * float(square.norm())
    )
    assert sm.allclose(square.inv() @ square, torch.eye(5, dtype=torch.complex128), atol=1e-8)
    columns = torch.func.vmap(square.linear)(torch.eye(5, dtype=torch.complex128))
    assert float((columns.mT - dense).abs().max()) <= 64 * EPS * float(square.norm())
    rate = torch.func.jvp(
        lambda t: sm.Toeplitz(t, 4).linear(torch.ones(4, dtype=F64)), (general.diagonals,), (torch.ones(11, dtype=F64),)
    )[1]
    assert torch.allclose(rate, torch.full((8,), 4.0, dtype=F64), rtol=0, atol=1e-12)
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, x: a.linear(x), fullgraph=True, backend="aot_eager")
    x = _numbers(2, 4)
    assert float((compiled(general, x) - general.linear(x)).abs().max()) <= 64 * EPS * float(general.norm() * x.norm())


def test_d12_matrices_are_picklable_and_take_batches_of_right_hand_sides() -> None:
    """cola: operators cannot be pickled, take no batch of right-hand sides, no vmap, no fullgraph compile; 0 U stays
    unitary."""
    a = sm.Product((sm.Circulant(_numbers(4)), sm.Diagonal(_numbers(4, seed=1))))
    again = pickle.loads(pickle.dumps(a))
    x = _numbers(5, 4, 2, seed=2)
    assert torch.equal(again @ x, a @ x) and (a @ x).shape == (5, 4, 2)
    assert float((torch.func.vmap(lambda v: a @ v)(x) - a @ x).abs().max()) <= 64 * EPS * float(x.norm()) * 10
    assert sm.Claim.ORTHOGONAL not in (0 * sm.HouseholderProduct(_numbers(1, 3))).claims


def test_d13_a_zero_leading_minor_is_no_singular_matrix() -> None:
    """scipy.linalg.solve_toeplitz: LinAlgError for c = [0, 1, 2], r = [0, 3, 4], which is well conditioned."""
    c, r, b = [0.0, 1.0, 2.0], [0.0, 3.0, 4.0], numpy.ones(3)
    with pytest.raises(numpy.linalg.LinAlgError):
        scipy.linalg.solve_toeplitz((c, r), b)
    found = sm.linalg.solve_toeplitz((c, r), b)
    assert numpy.abs(scipy.linalg.toeplitz(c, r) @ found - b).max() <= 100 * EPS
    n = 301  # the same above the dense limit
    t = _numbers(2 * n - 1)
    t[n - 1] = 0
    a = sm.Toeplitz(t, n)
    x = a.solve(b := _numbers(n, seed=1))
    assert float((a.to_dense() @ x - b).norm()) <= 100 * EPS * float(
        torch.linalg.matrix_norm(a.to_dense(), 2) * x.norm() + b.norm()
    )


def test_d13_residuals_are_those_of_a_dense_solve() -> None:
    """scipy's residuals for random systems of order 256: median 5.9e-12, largest 1.4e-9; ours stay at 100 eps."""
    n = 300
    for seed in range(5):
        a = sm.Toeplitz(_numbers(2 * n - 1, seed=seed), n)
        b = _numbers(n, seed=seed + 10)
        x, info = sm.linalg.solve(a, b, return_info=True)
        eta = float((a.to_dense() @ x - b).norm() / (torch.linalg.matrix_norm(a.to_dense(), 2) * x.norm() + b.norm()))
        assert eta <= 100 * EPS and info.method == "levinson"


def test_d13_single_precision_stays_single() -> None:
    """scipy: float32 in, float64 out."""
    assert sm.toeplitz(torch.tensor([2.0, 1.0])).solve(torch.ones(2)).dtype == torch.float32


def test_d14_triangular_and_symmetric_systems_do_not_return_nan() -> None:
    """ToeplitzMatrices.jl returns NaN for nonsingular symmetric and triangular Toeplitz systems."""
    n = 300
    lower = torch.zeros(2 * n - 1, dtype=F64)
    lower[n - 1 :] = 0.5 ** torch.arange(n, dtype=F64)
    zero_corner = torch.cat((torch.zeros(1, dtype=F64), _numbers(n - 1)))
    for a in (sm.Toeplitz(lower, n), sm.Toeplitz(lower.flip(0), n), sm.SymmetricToeplitz(zero_corner)):
        x = a.solve(torch.ones(n, dtype=F64))
        assert bool(torch.isfinite(x).all())


def test_d15_half_precision_whole_modules_and_saving() -> None:
    """torch's and geotorch's orthogonal maps: no half precision, and modules that cannot be pickled or saved whole."""
    module = nn.Linear(sm.HouseholderProduct(_numbers(3, 6, dtype=torch.bfloat16)), bias=False)
    y = module(_numbers(2, 6, dtype=torch.bfloat16))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert y.dtype == torch.bfloat16 and torch.equal(again(_numbers(2, 6, dtype=torch.bfloat16)), y)
    assert sum(p.numel() for p in module.parameters()) == 18, "r n parameters, not n^2"


def test_d16_every_function_works_under_functorch() -> None:
    """PEFT's LoHa and C3A: autograd Functions without functorch support fail under vmap."""
    for make, size in ((sm.Circulant, (7,)), (sm.HouseholderProduct, (3, 7)), (sm.SymmetricToeplitz, (7,))):
        many = _numbers(4, *size)
        x = _numbers(2, 7, seed=1)
        found = torch.func.vmap(torch.func.grad(lambda t, make=make, x=x: make(t).linear(x).sin().sum()))(many)
        for one, t in zip(found, many, strict=True):
            leaf = t.clone().requires_grad_()
            make(leaf).linear(x).sin().sum().backward()
            assert float((one - leaf.grad).abs().max()) <= 1e3 * EPS * (1 + float(leaf.grad.abs().max()))


def test_inductor_hazard_a_column_sliced_reflector_loop() -> None:
    """The pattern that inductor has been seen to miscompile is not in our graphs: blocks are slices of rows."""
    torch._dynamo.reset()
    v = _numbers(140, 6)
    x = _numbers(2, 6, seed=1)
    found = torch.compile(lambda v, x: sm.HouseholderProduct(v).linear(x), fullgraph=True, backend="aot_eager")(v, x)
    assert float((found - sm.HouseholderProduct(v).linear(x)).abs().max()) <= 140 * 16 * EPS * float(x.norm())
