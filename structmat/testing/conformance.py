"""The conformance suite: what every matrix type must do, also one written outside the library.

``check_matrix_type(MyType, cases)`` takes ``Example`` objects or pairs ``(matrix, dense)`` and raises AssertionError
naming the first fault. Each check below stands alone and says what it asks.
"""

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch
from torch.utils import _pytree as pytree

from structmat import backend
from structmat.matrix import Matrix
from structmat.testing.assertions import assert_claims, assert_close, assert_gradients, rounding
from structmat.testing.examples import Example
from structmat.testing.reference import as_wide, magnitude_of

__all__ = ["CHECKS", "Case", "check_matrix_type"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One matrix with its dense meaning; ``size`` is the norm that rounding errors are relative to."""

    matrix: Matrix
    dense: torch.Tensor
    size: float
    smooth: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of operands to try it with."""
        found = self.matrix.dtype
        if found is None:
            return torch.complex128 if self.dense.is_complex() else torch.float64
        return found

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dense.shape[-2]), int(self.dense.shape[-1])

    def rows(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """A random operand of the dtype of the matrix."""
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide)
        return drawn.to(dtype=self.dtype, device=self.matrix.device)

    def agree(self, got: Any, wanted: numpy.ndarray, x: torch.Tensor, what: str) -> None:
        """The product with x equals the dense one up to rounding."""
        size = self.size * float(numpy.linalg.norm(as_wide(x).ravel()))
        tol = rounding(self.dtype, sum(self.sizes), size, roundings=4)
        assert_close(got, torch.from_numpy(numpy.ascontiguousarray(wanted)), tol, what)


def check_matrix_type(cls: type[Matrix], examples: Iterable[Example | tuple[Matrix, torch.Tensor]]) -> None:
    """Run every check on every example of ``cls``; AssertionError on the first fault, naming the matrix and the fault.

    An ``Example`` stands for all its dtypes and batches; a pair is a matrix and its dense entries ``(*batch, m, n)``.
    """
    count = 0
    for case in _cases(examples):
        assert isinstance(case.matrix, cls), f"{case.matrix!r} is not a {cls.__name__}"
        for check in CHECKS:
            try:
                check(case)
            except AssertionError:
                raise
            except Exception as error:
                what = f"{check.__name__} ended in {type(error).__name__}: {error}"
                raise AssertionError(f"{case.matrix!r}: {what}") from error
        count += 1
    assert count, f"check_matrix_type({cls.__name__}): no examples, so nothing was checked"


def _cases(examples: Iterable[Example | tuple[Matrix, torch.Tensor]]) -> Iterator[Case]:
    for example in examples:
        if not isinstance(example, Example):
            matrix, dense = example
            yield Case(matrix, dense, float(torch.linalg.vector_norm(dense.detach(), dim=(-2, -1)).max()))
            continue
        for dtype in example.dtypes:
            for batch in example.batches:
                matrix = example.build(dtype, batch)
                yield Case(matrix, example.dense(matrix), magnitude_of(matrix), example.smooth)


def check_shape(case: Case) -> None:
    """``shape`` is a torch.Size that matches; ``batch_shape``, ``dtype`` and ``device`` follow from the fields."""
    a = case.matrix
    assert isinstance(a.shape, torch.Size), f"{a!r}: shape is {type(a.shape).__name__}, not torch.Size"
    assert a.shape == case.dense.shape, (
        f"{a!r}: shape {tuple(a.shape)}, the dense reference has {tuple(case.dense.shape)}"
    )
    assert tuple(a.batch_shape) == tuple(a.shape[:-2]), (
        f"{a!r}: batch_shape {tuple(a.batch_shape)}, shape {tuple(a.shape)}"
    )
    entries = a.to_dense()
    assert a.dtype is None or entries.dtype == a.dtype, f"{a!r}: dtype {a.dtype}, to_dense gives {entries.dtype}"
    assert type(a).__name__ in repr(a), f"the repr of a {type(a).__name__} does not name it: {a!r}"


def check_dense(case: Case) -> None:
    """``to_dense`` equals the reference."""
    m, n = case.sizes
    tol = rounding(case.dtype, m + n, case.size, roundings=4) * max(1, n) ** 0.5
    assert_close(case.matrix.to_dense(), case.dense, tol, f"{case.matrix!r}.to_dense()")


def check_linear(case: Case) -> None:
    """``linear(x) = x A^T`` for one row, several, more leading axes, none; it changes neither x nor the matrix."""
    a, (_, n) = case.matrix, case.sizes
    lead = tuple(a.shape[:-2])
    dense = case.dense.resolve_conj().numpy()
    shapes: list[tuple[int, ...]] = [(n,), (4, n), (*lead, 2, n), (3, *lead, 2, n), (0, n)]
    before = [t.clone() for t in a.tensors()]
    for shape in shapes:
        x = case.rows(*shape)
        kept = x.clone()
        wide = as_wide(x)
        wanted = numpy.einsum("...mn,n->...m", dense, wide) if len(shape) == 1 else wide @ numpy.swapaxes(dense, -1, -2)
        got = a.linear(x)
        case.agree(got, wanted, x, f"{a!r}.linear(x) for x of shape {shape}")
        expected = torch.promote_types(x.dtype, a.dtype or x.dtype)
        assert got.dtype == expected, f"{a!r}.linear(x): {x.dtype} in, {got.dtype} out, {expected} expected"
        assert torch.equal(x, kept), f"{a!r}.linear(x) changes x"
    same = all(torch.equal(t, old) for t, old in zip(a.tensors(), before, strict=True))
    assert same, f"{a!r}.linear(x) changes the matrix"


def check_matmul(case: Case) -> None:
    """``A @ x`` and ``x @ A`` follow torch.matmul for vectors, matrices and batches."""
    a, (m, n) = case.matrix, case.sizes
    lead = tuple(a.shape[:-2])
    dense = case.dense.resolve_conj().numpy()
    for shape in [(n,), (n, 3), (*lead, n, 2), (2, *lead, n, 1)]:
        x = case.rows(*shape, seed=1)
        case.agree(a @ x, numpy.matmul(dense, as_wide(x)), x, f"{a!r} @ x for x of shape {shape}")
    for shape in [(m,), (3, m), (*lead, 2, m), (2, *lead, 1, m)]:
        x = case.rows(*shape, seed=2)
        case.agree(x @ a, numpy.matmul(as_wide(x), dense), x, f"x @ {a!r} for x of shape {shape}")


def check_transpose(case: Case) -> None:
    """``mT`` is plain, ``mH`` conjugates, twice is the same matrix."""
    a, (m, n) = case.matrix, case.sizes
    tol = rounding(case.dtype, m + n, case.size, roundings=6) * max(1, m, n) ** 0.5
    variants: list[tuple[str, Any, torch.Tensor]] = [
        ("mT", a.mT, case.dense.mT),
        ("conj()", a.conj(), case.dense.conj()),
        ("mH", a.mH, case.dense.mH),
        ("mT.mT", a.mT.mT, case.dense),
    ]
    for name, got, wanted in variants:
        assert isinstance(got, Matrix), f"{a!r}.{name} is a {type(got).__name__}, not a Matrix"
        assert got.shape == wanted.shape, f"{a!r}.{name}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        assert_close(got.to_dense(), wanted.resolve_conj(), tol, f"{a!r}.{name}")


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
    stream = io.BytesIO()
    torch.save(a.detach(), stream)
    stream.seek(0)
    copies = {
        "pickle": pickle.loads(pickle.dumps(a.detach())),
        "deepcopy": copy.deepcopy(a.detach()),
        "torch.save": torch.load(stream, weights_only=False),
        "clone()": a.clone(),
        'to("cpu")': a.to("cpu"),
    }
    for how, other in copies.items():
        assert type(other) is type(a), f"{a!r}: {how} gives a {type(other).__name__}"
        assert torch.equal(other.to_dense(), a.to_dense()), f"{a!r}: {how} gives other entries"
        assert other.claims == a.claims, f"{a!r}: {how} loses claims"
    lower = torch.complex64 if case.dtype.is_complex else torch.float32
    moved = a.to(lower)
    assert moved.dtype in (None, lower), f"{a!r}.to({lower}) has dtype {moved.dtype}"


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


def check_claims_true(case: Case) -> None:
    """Every claim holds for the dense reference, also after a transpose and a conjugation."""
    assert_claims(case.matrix, case.dense, size=case.size)
    assert_claims(case.matrix.mT, case.dense.mT, size=case.size)
    assert_claims(case.matrix.mH, case.dense.mH.resolve_conj(), size=case.size)


def check_gradients(case: Case) -> None:
    """First and second derivatives in entries and x agree with finite differences (double precision only)."""
    if case.smooth and case.dtype in (torch.float64, torch.complex128):
        try:
            assert_gradients(case.matrix)
        except AssertionError as error:
            raise AssertionError(f"{case.matrix!r}: {error}") from error


def check_transforms(case: Case) -> None:
    """``torch.func``: grad equals autograd, jvp the transposed derivative, vmap the loop; by value."""
    a, (_, n) = case.matrix, case.sizes
    leaves, spec = pytree.tree_flatten(a.detach())
    if case.dtype not in (torch.float64, torch.complex128) or not leaves or not case.smooth:
        return
    x = case.rows(*a.shape[:-2], 2, n, seed=3)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        y = pytree.tree_unflatten(tensors, spec).linear(x)
        return (torch.view_as_real(y) if y.is_complex() else y).sin().sum()

    chosen = tuple(k for k, t in enumerate(leaves) if (t.is_floating_point() or t.is_complex()) and t.numel())
    if not chosen:
        return
    plain = [t.clone().requires_grad_(k in chosen) for k, t in enumerate(leaves)]
    wanted = torch.autograd.grad(loss(*plain), [plain[k] for k in chosen], allow_unused=True, materialize_grads=True)
    got = torch.func.grad(loss, argnums=chosen)(*leaves)
    scale = 1.0 + max((float(torch.linalg.vector_norm(w)) for w in wanted), default=0.0) + case.size
    tol = rounding(case.dtype, sum(case.sizes), scale * float(torch.linalg.vector_norm(x)), 4)
    for w, g in zip(wanted, got, strict=True):
        assert_close(g, w, tol, f"{a!r}: torch.func.grad against autograd")

    def loss_of(*tensors: torch.Tensor) -> torch.Tensor:
        full = list(leaves)
        for k, tensor in zip(chosen, tensors, strict=True):
            full[k] = tensor
        return loss(*full)

    moved = tuple(torch.randn_like(leaves[k]) for k in chosen)
    rate = torch.func.jvp(loss_of, tuple(leaves[k] for k in chosen), moved)[1]
    by_grad = torch.stack(
        [(w.conj() * d).real.sum() if w.is_complex() else (w * d).sum() for w, d in zip(wanted, moved, strict=True)]
    )
    size = 1.0 + max(float(torch.linalg.vector_norm(t)) for t in moved)
    assert_close(rate, by_grad.sum(), tol * size * len(leaves), f"{a!r}: torch.func.jvp against the gradient")
    stacked = [torch.stack((t, t)) for t in leaves]
    both = torch.func.vmap(lambda *ts: pytree.tree_unflatten(ts, spec).linear(x))(*stacked)
    single = a.linear(x)
    assert_close(both, torch.stack((single, single)), tol, f"{a!r}: torch.func.vmap against the loop")


def check_compiled(case: Case) -> None:
    """``torch.compile(fullgraph=True)`` takes the matrix as an argument and agrees with eager by value."""
    a, (m, n) = case.matrix, case.sizes
    x = case.rows(*a.shape[:-2], 2, n, seed=4)
    torch._dynamo.reset()
    compiled = torch.compile(lambda matrix, v: matrix.linear(v), fullgraph=True, backend="aot_eager")
    size = case.size * float(torch.linalg.vector_norm(x.to(backend.compute_dtype(x.dtype))))
    try:
        got = compiled(a.detach(), x)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"{a!r}: linear does not trace under fullgraph: {error}") from error
    assert_close(got, a.linear(x), rounding(case.dtype, m + n, size, 4), f"{a!r}: compiled against eager")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_shape,
    check_dense,
    check_linear,
    check_matmul,
    check_transpose,
    check_value,
    check_pytree,
    check_claims_true,
    check_gradients,
    check_transforms,
    check_compiled,
)
