"""Conformance: shape, entries and products, for every form an operand may have."""

from typing import Any

import numpy
import torch

from structmat.matrix import Matrix
from structmat.testing.assertions import assert_close
from structmat.testing.conformance_case import Case
from structmat.testing.reference import as_wide

__all__ = [
    "check_dense",
    "check_linear",
    "check_matmul",
    "check_operands",
    "check_shape",
    "check_state",
    "check_transpose",
]


def check_shape(case: Case) -> None:
    """``shape`` is a torch.Size that matches; ``batch_shape``, ``dtype`` and ``device`` follow from the fields."""
    a = case.matrix
    assert isinstance(a.shape, torch.Size), f"{a!r}: shape is {type(a.shape).__name__}, not torch.Size"
    assert a.shape == case.dense.shape, (
        f"{a!r}: shape {tuple(a.shape)}, the dense reference has {tuple(case.dense.shape)}"
    )
    assert tuple(a.batch_shape) == tuple(a.shape[:-2]), (
        f"{a!r}: batch_shape {tuple(a.batch_shape)}, shape {tuple(a.shape)}; does core count the dimensions right?"
    )
    entries = a.to_dense()
    assert a.dtype is None or entries.dtype == a.dtype, f"{a!r}: dtype {a.dtype}, to_dense gives {entries.dtype}"
    if case.dense.is_complex() and a.dtype is not None:
        assert a.dtype.is_complex, f"{a!r}: dtype {a.dtype}, the dense reference is complex"
    assert type(a).__name__ in repr(a), f"the repr of a {type(a).__name__} does not name it: {a!r}"


def check_dense(case: Case) -> None:
    """``to_dense`` equals the reference."""
    assert_close(case.matrix.to_dense(), case.dense, case.tol(), f"{case.matrix!r}.to_dense()")


def check_linear(case: Case) -> None:
    """``linear(x) = x A^T`` for one row, several, more leading axes, none; it changes neither x nor the matrix."""
    a, (_, n) = case.matrix, case.sizes
    shapes: list[tuple[int, ...]] = [(n,), (4, n), (*case.lead, 2, n), (3, *case.lead, 2, n), (0, n)]
    before = [t.clone() for t in a.tensors()]
    for shape in shapes:
        _product(case, case.rows(*shape), f"x of shape {shape}")
    same = all(torch.equal(t, old) for t, old in zip(a.tensors(), before, strict=True))
    assert same, f"{a!r}.linear(x) changes the matrix"


def _product(case: Case, x: torch.Tensor, of: str) -> None:
    a, kept, version = case.matrix, x.clone(), x._version
    got = a.linear(x)
    case.agree(got, case.product(kept), kept, f"{a!r}.linear(x) for {of}")
    expected = torch.promote_types(x.dtype, a.dtype or x.dtype)
    assert got.dtype == expected, f"{a!r}.linear(x) for {of}: {x.dtype} in, {got.dtype} out, {expected} expected"
    assert torch.equal(x, kept) and x._version == version, f"{a!r}.linear(x) for {of} changes x"


def check_operands(case: Case) -> None:
    """Rows that are no contiguous tensor of the dtype of the matrix: strided, transposed, expanded, conjugated lazily,
    complex where the matrix is real."""
    (_, n), lead = case.sizes, case.lead
    _product(case, case.rows(*lead, 3, 2 * n)[..., ::2], "strided x")
    _product(case, case.rows(*lead, n, 3).mT, "transposed x")
    _product(case, case.rows(n).expand(3, n), "expanded x")
    if case.dtype.is_complex:
        _product(case, case.rows(*lead, 3, n).conj(), "lazily conjugated x")
    elif case.matrix.dtype in (torch.float32, torch.float64):
        wide = torch.complex64 if case.dtype == torch.float32 else torch.complex128
        _product(case, case.rows(*lead, 3, n, dtype=wide), "complex x")
        _product(case, case.rows(n, dtype=wide), "one complex row")


def check_state(case: Case) -> None:
    """The same product again, also after another matrix of the type has multiplied, is the same to the last bit."""
    a = case.matrix
    x = case.rows(*case.lead, 2, case.sizes[1])
    first = a.linear(x)
    assert torch.equal(first, a.linear(x)), f"{a!r}.linear(x): called twice, it gives two results"
    other = a._map(lambda _, t: t * (1 + 2**-6) if t.is_floating_point() or t.is_complex() else t)
    other.linear(x)
    again = a.linear(x)
    assert torch.equal(first, again), f"{a!r}.linear(x): another result after another {type(a).__name__} has multiplied"


def check_matmul(case: Case) -> None:
    """``A @ x`` and ``x @ A`` follow torch.matmul for vectors, matrices and batches."""
    a, (m, n), lead = case.matrix, case.sizes, case.lead
    dense = case.dense.detach().resolve_conj().numpy()
    for shape in [(n,), (n, 3), (*lead, n, 2), (2, *lead, n, 1)]:
        x = case.rows(*shape, seed=1)
        case.agree(a @ x, numpy.matmul(dense, as_wide(x)), x, f"{a!r} @ x for x of shape {shape}")
    for shape in [(m,), (3, m), (*lead, 2, m), (2, *lead, 1, m)]:
        x = case.rows(*shape, seed=2)
        case.agree(x @ a, numpy.matmul(as_wide(x), dense), x, f"x @ {a!r} for x of shape {shape}")


def check_transpose(case: Case) -> None:
    """``mT`` is plain, ``mH`` conjugates, twice is the same matrix; their entries and their products."""
    a = case.matrix
    variants: list[tuple[str, Any, torch.Tensor]] = [
        ("mT", a.mT, case.dense.mT),
        ("conj()", a.conj(), case.dense.conj()),
        ("mH", a.mH, case.dense.mH),
        ("mT.mT", a.mT.mT, case.dense),
    ]
    for name, got, wanted in variants:
        assert isinstance(got, Matrix), f"{a!r}.{name} is a {type(got).__name__}, not a Matrix"
        assert got.shape == wanted.shape, f"{a!r}.{name}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        assert got.dtype == a.dtype, f"{a!r}.{name}: dtype {got.dtype}, not {a.dtype}"
        turned = Case(got, wanted.resolve_conj(), case.size, case.smooth)
        assert_close(got.to_dense(), turned.dense, case.tol(6), f"{a!r}.{name}")
        for shape in ((turned.sizes[1],), (*case.lead, 2, turned.sizes[1])):
            x = turned.rows(*shape, seed=3)
            turned.agree(got.linear(x), turned.product(x), x, f"{a!r}.{name}.linear(x) for x of shape {shape}")
