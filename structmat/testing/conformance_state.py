"""Conformance: a matrix is an immutable value, a pytree node of tensors, and survives copies and conversions."""

import copy
import dataclasses
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat._value import Value
from structmat.claims import Claim
from structmat.matrix import Matrix
from structmat.testing.assertions import assert_close, rounding
from structmat.testing.conformance_case import DOUBLE, Case, wide_of

__all__ = ["check_fields", "check_precision", "check_pytree", "check_value"]


def check_fields(case: Case) -> None:
    """Every tensor the matrix holds is a child: a field, or in a tuple of tensors or matrices; nothing else holds
    one."""
    a = case.matrix
    known = {id(t) for t in a.tensors()}
    fields = {f.name for f in dataclasses.fields(a)}
    for name, held in a.__dict__.items():
        lost = [t for t in _tensors_in(held) if id(t) not in known]
        where = f"the field {name}" if name in fields else f"the attribute {name}"
        assert not lost, (
            f"{a!r}: {where} holds a tensor of shape {tuple(lost[0].shape)} that is no child, so to(), torch.func and "
            "nn.Trainable pass it by; hold it as a field, a tensor or a tuple of tensors, not marked static()"
        )


def _tensors_in(held: Any) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, Value):
        yield from held.tensors()
    elif isinstance(held, (tuple, list, set, frozenset)):
        for part in held:
            yield from _tensors_in(part)
    elif isinstance(held, dict):
        yield from _tensors_in(tuple(held.values()))


def _copies(a: Matrix) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(a, stream)
    stream.seek(0)
    return {
        "pickle": pickle.loads(pickle.dumps(a)),
        "deepcopy": copy.deepcopy(a),
        "copy": copy.copy(a),
        "torch.save": torch.load(stream, weights_only=False),
        "clone()": a.clone(),
        'to("cpu")': a.to("cpu"),
    }


def check_value(case: Case) -> None:
    """Immutable, holds no cache, and survives pickle, deepcopy and a round trip through another precision."""
    a = case.matrix
    held = dict(a.__dict__)
    a.linear(case.rows(2, case.sizes[1]))
    changed = sorted(k for k in {*a.__dict__, *held} if a.__dict__.get(k) is not held.get(k))
    assert not changed, f"{a!r}: a product changed the attributes {changed}; a matrix holds no cache"
    name = dataclasses.fields(a)[0].name
    try:
        setattr(a, name, held[name])
    except dataclasses.FrozenInstanceError:
        pass
    else:
        raise AssertionError(f"{a!r}: the field {name} can be assigned; a matrix is an immutable value")
    vouched = a.detach().assume(Claim.UPPER_TRIANGULAR)  # true or not: a copy keeps what was vouched for
    entries = a.to_dense()
    for how, other in _copies(vouched).items():
        assert type(other) is type(a), f"{a!r}: {how} gives a {type(other).__name__}"
        assert other.shape == a.shape, f"{a!r}: {how} gives the shape {tuple(other.shape)}"
        assert torch.equal(other.to_dense(), entries), f"{a!r}: {how} gives other entries"
        assert other.claims == vouched.claims, f"{a!r}: {how} loses claims"
        assert torch.equal(other.mT.to_dense(), a.mT.to_dense()), f"{a!r}: {how} gives another transpose"
    own, other = ({t.data_ptr() for t in m.tensors() if t.numel()} for m in (a, a.clone()))
    assert not own & other, f"{a!r}: clone() shares memory with the original"


def check_precision(case: Case) -> None:
    """In a lower precision the dtypes of matrix and product follow, and the values agree with the double ones; half and
    bfloat16 may be refused."""
    a = case.matrix
    if case.dtype not in DOUBLE or a.dtype is None:
        lower = torch.complex64 if case.dtype.is_complex else torch.float32
        assert a.to(lower).dtype in (None, lower), f"{a!r}.to({lower}) has dtype {a.to(lower).dtype}"
        return
    for dtype in (torch.complex64,) if case.dtype.is_complex else (torch.float32, torch.bfloat16):
        moved = a.detach().to(dtype)
        assert moved.dtype == dtype, f"{a!r}.to({dtype}) has dtype {moved.dtype}"
        x = case.rows(*case.lead, 2, case.sizes[1], dtype=dtype)
        try:
            got = moved.linear(x)
        except (TypeError, RuntimeError):
            if dtype is torch.bfloat16:
                continue  # torch has no such kernel, or the type says so
            raise
        assert got.dtype == dtype, f"{moved!r}.linear(x): {dtype} in, {got.dtype} out"
        whole = wide_of(moved.to(case.dtype).to_dense())
        wanted = wide_of(x) @ whole.mT
        size = case.size * float(torch.linalg.vector_norm(wide_of(x)))
        half = dtype != backend.compute_dtype(dtype)  # a type of the user's may add up in half
        extra = sum(case.sizes) * torch.finfo(dtype).eps * size if half else 0.0
        tol = 2 * rounding(dtype, sum(case.sizes), size, 4) + extra
        assert_close(got, wanted, tol, f"{moved!r}.linear(x) against double precision")


def check_pytree(case: Case) -> None:
    """A pytree node: leaves are the tensors, unflatten gives the same matrix, and takes placeholders without looking
    at them."""
    a = case.matrix
    leaves, spec = pytree.tree_flatten(a)
    for leaf in leaves:
        assert isinstance(leaf, torch.Tensor), f"{a!r}: the pytree leaf {leaf!r} is no tensor; mark the field static()"
    again = pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(a) and again.claims == a.claims, f"{a!r}: unflatten does not give the same matrix"
    assert torch.equal(again.to_dense(), a.to_dense()), f"{a!r}: unflatten gives other entries"
    repr(pytree.tree_unflatten(list(range(len(leaves))), spec))
