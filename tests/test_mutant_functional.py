"""What mutants of the functional layer showed to be untested: adjoints of factorisations, refinement that refines."""

from __future__ import annotations

import pytest
import torch

import structmat as sm
from structmat.functional import gko

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_the_determinant_of_the_adjoint_is_the_conjugate(n: int, dtype: torch.dtype) -> None:
    a = sm.LowDisplacementRank(drawn(n, 2, seed=1, dtype=dtype), drawn(n, 2, seed=2, dtype=dtype))
    sign, logabs = a.factor(method="gko").slogdet()
    want = torch.linalg.slogdet(a.to_dense())
    size = 100 * EPS * n * float(torch.linalg.cond(a.to_dense()))
    assert abs(complex(sign - want[0])) <= size and abs(float(logabs - want[1])) <= size
    adjoint, logs = gko.factor(a.left, a.right, a.e, a.f).adjoint().slogdet()
    assert abs(complex(adjoint.reshape(()) - want[0].conj())) <= size and abs(float(logs.reshape(()) - want[1])) <= size


def test_a_submatrix_of_an_ill_conditioned_matrix_is_solved_by_refinement() -> None:
    """The complement's formula divides by the whole matrix, of condition 1e7: without refinement errors are 1e7 eps."""
    n = 32
    lam = torch.ones(n, dtype=F64)
    lam[0] = 1e-7
    column = torch.fft.ifft(lam.to(C128)).real
    whole = sm.Circulant(column)
    keep = torch.cat((torch.arange(3, 17), torch.arange(20, 31)))
    a = sm.Submatrix(whole, keep)
    b = drawn(len(keep), 3, seed=6)
    x = a.solve(b)
    dense = whole.to_dense()[keep][:, keep]
    residual = (b - dense @ x).norm(dim=0)
    size = float(torch.linalg.matrix_norm(dense, 2)) * x.norm(dim=0) + b.norm(dim=0)
    assert bool((residual <= 40 * EPS * size).all())
