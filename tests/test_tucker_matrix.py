"""Tucker tensors as matrices: every split, the path that rows take, nothing dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import structmat as sm
from structmat import backend
from structmat.functional import tucker_apply as fa
from tests.test_no_dense import no_dense_arrays
from tests.test_tucker import F32, F64, close, dense, make, numbers, shapes, size_of


@given(shapes(), st.integers(0, 1000), st.data())
def test_every_split_into_rows_and_columns(sizes: Any, seed: int, data: Any) -> None:
    t = make(*sizes, seed=seed)
    modes = data.draw(st.permutations(range(t.order)))
    rows = tuple(modes[: data.draw(st.integers(0, t.order))])
    a = t.matricize(rows)
    columns = tuple(k for k in range(t.order) if k not in rows)
    wanted = dense(t).permute(*rows, *columns).reshape(a.shape)
    close(a.to_dense(), wanted, size_of(t))
    x = numbers(4, a.shape[-1], seed=seed)
    close(a.linear(x), x @ wanted.mT, size_of(t) * float(x.norm()))
    close(a.norm(), wanted.norm(), size_of(t))
    close(a.svdvals(), torch.linalg.svdvals(wanted), size_of(t))
    assert int(torch.linalg.matrix_rank(wanted)) <= a.rank_bound()


def test_sums_and_entrywise_products_of_the_same_split_stay_structured() -> None:
    a = make((4, 3, 2), (2, 2, 2)).matricize((0, 2))
    b = make((4, 3, 2), (2, 3, 2), seed=7).matricize((0, 2))
    for got, wanted in ((a + b, a.to_dense() + b.to_dense()), (a * b, a.to_dense() * b.to_dense())):
        assert isinstance(got, sm.TuckerMatrix)
        assert torch.allclose(got.to_dense(), wanted, atol=1e-12)
    assert isinstance(3 * a, sm.TuckerMatrix) and isinstance(a.mT, sm.TuckerMatrix)
    other = make((2, 3, 4), (2, 2, 2)).matricize((2, 0))
    assert isinstance(a + other, sm.Sum)
    with pytest.raises(sm.StructureError, match="the modes differ"):
        _ = a * other


def test_few_rows_never_meet_the_dense_matrix_and_many_rows_may() -> None:
    t = make((16, 16, 16, 16), (8, 8, 8, 8), F32)
    a = t.matricize((0, 1))
    one, full = backend.explain(a, torch.zeros(1, 256)), make((16,) * 4, (16,) * 4).matricize((0, 1))
    assert one.path == "factored" and one.flops is not None and one.flops < 6e4
    assert backend.explain(full, torch.zeros(1, 256)).path == "factored"
    assert backend.explain(full, torch.zeros(1 << 16, 256)).path == "dense"
    huge = make((20,) * 4, (20,) * 4).matricize((0, 1))  # dense, but above the limit and above eight rows
    assert backend.explain(huge, torch.zeros(8, 400)).path == "factored"
    for k in (1, 5000):
        x = numbers(k, 256, dtype=F32)
        wanted = x.double() @ a.double().to_dense().mT
        assert float((a.linear(x) - wanted).norm()) <= 20 * torch.finfo(F32).eps * float(wanted.norm()) * 4
    plan = fa.path((4096, 4096), (16, 16), (0,), (1,), 256)
    assert not plan.forms_weight


def test_rank_zero_is_the_zero_tensor() -> None:
    t = sm.Tucker(torch.zeros(0, 0, 0, dtype=F64), tuple(torch.zeros(d, 0, dtype=F64) for d in (4, 3, 2)))
    assert torch.equal(t.to_dense(), torch.zeros(4, 3, 2, dtype=F64))
    a = t.matricize((0, 2))
    assert torch.equal(a.linear(torch.ones(5, 3, dtype=F64)), torch.zeros(5, 8, dtype=F64))
    assert a.rank_bound() == 0 and float(t.norm()) == 0
    assert (a.linear(torch.ones(0, 3, dtype=F64)).shape, a.mT.linear(torch.ones(8, dtype=F64)).shape) == ((0, 8), (3,))
    assert torch.equal((t + make((4, 3, 2), (2, 2, 2))).to_dense(), make((4, 3, 2), (2, 2, 2)).to_dense())


def test_no_dense_array_at_4096() -> None:
    leaves = [numbers(8, 8, 4), numbers(64, 8), numbers(64, 8), numbers(4096, 4)]
    leaves = [v.requires_grad_() for v in leaves]
    x = numbers(3, 4096).requires_grad_()
    with no_dense_arrays():
        t = sm.Tucker(leaves[0], tuple(leaves[1:]))
        a = t.matricize((0, 1))
        y = a.linear(x)
        torch.autograd.grad((y * y).sum() + t.norm() + t.distance(2 * t) + a.norm(), [x, *leaves])


def test_one_compiled_function_takes_tensors_of_many_sizes() -> None:
    torch._dynamo.reset()

    def products(t: sm.Tucker, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return t.matricize(0).linear(x), t.conv(image, padding=1), t.to_dense()

    compiled = torch.compile(products, fullgraph=True, backend="aot_eager")
    for d, k in ((8, 5), (12, 7), (16, 3)):
        t, x, image = make((d, d + 1, 3), (4, 4, 2)), numbers(k, 3 * (d + 1)), numbers(2, d + 1, k + 4)
        for got, wanted in zip(compiled(t, x, image), products(t, x, image), strict=True):
            close(got, wanted, size_of(t) * float(x.norm() + image.norm()))
