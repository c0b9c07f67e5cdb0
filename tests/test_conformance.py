"""``check_matrix_type`` accepts a small good type written outside the library, and names the fault of each broken
one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from structmat import Claim, Claims, Matrix
from structmat.testing import Example, check_matrix_type
from structmat.types.diagonal import Diagonal


class Companion(Matrix):
    """``[[c_0 .. c_{n-1}], [I, 0]]``: written as the documentation tells a user to."""

    core: ClassVar[Mapping[str, int]] = {"top": 1}
    top: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.top.shape, self.top.shape[-1]))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        top = self.top if self.top.ndim == 1 or x.ndim == 1 else self.top[..., None, :]
        first = (x * top).sum(-1, keepdim=True)
        return torch.cat((first, x[..., :-1].expand(*first.shape[:-1], x.shape[-1] - 1)), -1)

    def transpose(self) -> Matrix:
        return CompanionT(self.top)


class CompanionT(Companion):
    """Its transpose."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        top = self.top if self.top.ndim == 1 or x.ndim == 1 else self.top[..., None, :]
        return x[..., :1] * top + torch.nn.functional.pad(x[..., 1:], (0, 1))

    def transpose(self) -> Matrix:
        return Companion(self.top)


def entries(matrix: Any) -> torch.Tensor:
    top = matrix.top.detach()
    n = top.shape[-1]
    below = torch.eye(n, dtype=top.dtype)[:-1].expand(*top.shape[:-1], n - 1, n)
    return torch.cat((top[..., None, :], below), -2)


def pairs(kind: type[Companion] = Companion, **options: Any) -> list[tuple[Matrix, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for shape in ((4,), (2, 3)):
        matrix = kind(torch.randn(*shape, generator=generator, dtype=torch.float64), **options)
        found.append((matrix, entries(matrix)))
    return found


def test_a_good_type_passes() -> None:
    check_matrix_type(Companion, pairs())
    check_matrix_type(CompanionT, [(m.mT, d.mT) for m, d in pairs()])


def test_examples_run_over_their_dtypes_and_batches() -> None:
    seen = []

    def make(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Matrix:
        seen.append((dtype, batch))
        return Diagonal(torch.ones(*batch, 2, dtype=dtype))

    check_matrix_type(Diagonal, [Example("ones", Diagonal, make, dtypes=(torch.float64, torch.float32))])
    assert seen == [(d, b) for d in (torch.float64, torch.float32) for b in ((), (2,))]


def test_no_examples_is_a_fault() -> None:
    with pytest.raises(AssertionError, match=r"check_matrix_type\(Companion\): no examples"):
        check_matrix_type(Companion, [])


def test_another_type_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="is not a Companion"):
        check_matrix_type(Companion, [(Diagonal(torch.ones(2)), torch.eye(2))])


# -- one broken type a fault --------------------------------------------------------------------------------------


class WrongShape(Companion):
    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.top.shape, self.top.shape[-1] + 1))

    def to_dense(self) -> torch.Tensor:
        return entries(self)


class TupleShape(Companion):
    @property
    def shape(self) -> Any:
        return (*self.top.shape, self.top.shape[-1])


class WrongBatch(Companion):
    core: ClassVar[Mapping[str, int]] = {"top": 2}

    def _validate(self) -> None:
        pass

    def _check_fields(self) -> None:
        pass

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size((7,))


class WrongEntries(Companion):
    def to_dense(self) -> torch.Tensor:
        return entries(self) + 1e-3


class WrongLinear(Companion):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return super().linear(x) + 1e-3 * x

    def to_dense(self) -> torch.Tensor:
        return entries(self)


class ColumnsNotRows(Companion):
    """linear(x) computes x A in place of x A^T: right on symmetric tests, wrong here."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return CompanionT(self.top).linear(x)

    def to_dense(self) -> torch.Tensor:
        return entries(self)


class NoSingleRow(Companion):
    """A batch is read as rows when x is one row."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return super().linear(x[None] if x.ndim == 1 and self.top.ndim > 1 else x)


class ChangesOperand(Companion):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = super().linear(x)
        if not x.requires_grad:
            x.mul_(2)
        return y


class ChangesItself(Companion):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = super().linear(x)
        if not self.top.requires_grad:
            self.top.add_(1e-3)
        return y

    def to_dense(self) -> torch.Tensor:
        return entries(self)


class Promotes(Companion):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return super().linear(x).to(torch.complex128)

    def to_dense(self) -> torch.Tensor:
        return entries(self)


class WrongTranspose(Companion):
    def transpose(self) -> Matrix:
        return Companion(self.top)


class TensorTranspose(Companion):
    def transpose(self) -> Any:
        return entries(self).mT

    def __rmatmul__(self, other: Any) -> torch.Tensor:
        return other @ entries(self)


class Caches(Companion):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        self.__dict__["_kept"] = x
        return super().linear(x)


class Mutable(Companion):
    """Gets around the frozen dataclass."""


Mutable.__setattr__ = object.__setattr__  # type: ignore[method-assign]


class LosesItself(Companion):
    """Copies become another matrix."""

    def __reduce__(self) -> Any:
        return LosesItself, (self.top + 1,)


class WrongClaim(Companion):
    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.SYMMETRIC}))


class WrongRank(Companion):
    def _properties(self) -> Claims:
        return Claims(rank=1)


class WrongDisplacement(Companion):
    def _properties(self) -> Claims:
        return Claims(displacement={(1, -1): 1})


class NoGradient(Companion):
    """Values right, derivatives cut off."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return Companion(self.top.detach()).linear(x)


class _Wrong(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Any) -> Any:
        return t.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad

    @staticmethod
    def jvp(ctx: Any, rate: Any) -> Any:
        return 2 * rate


class WrongJvp(Companion):
    """The forward-mode rule disagrees with the backward one."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return Companion(_Wrong.apply(self.top)).linear(x)


class NoVmap(Companion):
    """Reads a value, which no transform can batch."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = super().linear(x)
        return y if float(self.top.detach().sum()) < 1e9 else -y


class NoTrace(Companion):
    """Breaks the graph."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().linear(x)


class Miscompiled(Companion):
    """Computes something else under torch.compile."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = super().linear(x)
        return y + 1 if torch.compiler.is_compiling() else y


BROKEN = [
    (WrongShape, r"shape \(4, 5\), the dense reference has \(4, 4\)"),
    (TupleShape, "shape is tuple, not torch.Size"),
    (WrongBatch, "batch_shape"),
    (WrongEntries, r"to_dense\(\): differs from the dense reference by"),
    (WrongLinear, r"linear\(x\) for x of shape \(4,\): differs"),
    (ColumnsNotRows, r"linear\(x\) for x of shape \(4,\): differs"),
    (NoSingleRow, r"linear\(x\) for x of shape \(3,\): shape \(1, 2, 3\)|linear\(x\) for x of shape"),
    (ChangesOperand, "changes x"),
    (ChangesItself, "changes the matrix|differs"),
    (Promotes, "complex128 out, torch.float64 expected"),
    (WrongTranspose, r"x @ WrongTranspose.* differs"),
    (TensorTranspose, "mT is a Tensor, not a Matrix"),
    (Caches, r"a product changed the attributes \['_kept'\]"),
    (Mutable, "the field top can be assigned; a matrix is an immutable value"),
    (LosesItself, "pickle gives other entries"),
    (WrongClaim, "claims Claim.(SYMMETRIC|HERMITIAN), which its entries do not have"),
    (WrongRank, "the rank was to be at most 1"),
    (WrongDisplacement, "singular values lie above the noise"),
    (NoGradient, "the derivative disagrees with finite differences"),
    (WrongJvp, "torch.func.jvp against the gradient"),
    (NoVmap, "vmap"),
    (NoTrace, "linear does not trace under fullgraph"),
    (Miscompiled, "compiled against eager: differs"),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN, ids=[kind.__name__ for kind, _ in BROKEN])
def test_a_broken_type_is_caught_and_named(kind: type[Companion], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_matrix_type(kind, pairs(kind))
    assert kind.__name__ in str(caught.value)
