"""Faults planted one at a time in small types: the conformance suite finds each, in one line that names it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from structmat import Claim, Claims, Matrix
from structmat.matrix import static
from structmat.testing import check_matrix_type
from structmat.types.dense import Dense

F64 = torch.float64


class Plain(Matrix):
    """A dense matrix written as a user writes a type: nothing is wrong with it."""

    core: ClassVar[Mapping[str, int]] = {"entries": 2}
    entries: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, self.entries.dtype)
        return torch.matmul(
            x[..., None, :].to(wide),
            self.entries.mT.to(wide)[..., None, :, :] if x.ndim > 1 else self.entries.mT.to(wide),
        )[..., 0, :]

    def transpose(self) -> Matrix:
        return type(self)(self.entries.mT)


def pairs(kind: type[Any]) -> list[tuple[Matrix, torch.Tensor]]:
    """Square, wide, complex with a batch; well conditioned where square."""
    g = torch.Generator().manual_seed(5)
    found = []
    for shape, dtype in (((3, 3), F64), ((2, 4), F64), ((2, 3, 3), torch.complex128)):
        entries = torch.randn(*shape, generator=g, dtype=dtype) + 2 * torch.eye(*shape[-2:], dtype=dtype)
        found.append((kind(entries), entries.clone()))
    return found


def test_the_type_without_a_fault_passes() -> None:
    check_matrix_type(Plain, pairs(Plain))


FAULTS: list[Any] = []


def fault(message: str) -> Any:
    """Enter a faulty type with the message it must be found by."""

    def enter(kind: type[Matrix]) -> type[Matrix]:
        FAULTS.append(pytest.param(kind, message, id=kind.__name__))
        return kind

    return enter


good = Plain.linear


# -- products -----------------------------------------------------------------------------------------------------


@fault(r"linear\(x\) for x of shape \(2, 2, 3\): differs")
class LosesTheBatch(Plain):
    """Every element of the batch is multiplied by the first matrix."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        first = self.entries if self.entries.ndim == 2 or x.ndim != 3 else self.entries[:1].expand_as(self.entries)
        return good(Plain(first), x)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(r"linear\(x\) for x of shape \(3, 2, 2, 3\)|for x of shape \(4, 3\)|check_linear ended in RuntimeError")
class NoBroadcasting(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.entries.ndim == 3 and x.ndim != 1:
            return torch.bmm(x.reshape(-1, *x.shape[-2:]), self.entries.mT)
        return good(self, x)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(r"linear\(x\) for x of shape \(3,\): differs from the dense reference by \S+e-0[678], allowed \S+e-1\d")
class ThroughSinglePrecision(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.complex64 if x.is_complex() else torch.float32
        return good(Plain(self.entries.to(low)), x.to(low)).to(x.dtype)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(r"linear\(x\) for (strided|transposed) x: differs")
class AssumesContiguous(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.empty(x.shape).stride()
        return good(self, torch.as_strided(x, x.shape, steps) if x.dim() == 2 and not x.requires_grad else x)


@fault(r"linear\(x\) for x of shape \(0, 3\)|check_linear ended in (IndexError|RuntimeError)")
class NoZeroRows(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.detach().abs().max() * 0 + 1
        return good(self, x) * scale

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(r"linear\(x\) for complex x")
class DropsTheImaginaryPart(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(self, x if self.entries.is_complex() or not x.is_complex() else x.real)


@fault(r"linear\(x\) for x of shape \(3,\) changes x")
class ChangesAndRestores(Plain):
    """The values are back, the version counter is not: autograd would refuse."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = good(self, x)
        return y if x.requires_grad else (x.neg_(), x.neg_(), y)[2]


@fault(r"called twice, it gives two results")
class Random(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = good(self, x)
        return y + 2**-45 * torch.randint(-2, 3, y.shape).to(y.dtype) if not y.requires_grad else y


_SHARED: dict[Any, torch.Tensor] = {}


@fault(r"another result after another CachesByShape has multiplied")
class CachesByShape(Plain):
    """What it computed once for a shape serves the next matrix of that shape."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = good(self, x)
        seen = _SHARED.setdefault("last", self.entries)
        _SHARED["last"] = self.entries
        stale = seen.shape == self.entries.shape and seen.dtype == self.entries.dtype and not seen.requires_grad
        return good(Plain(seen), x) if stale and x.shape == (2, 3) else y

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(r"example 1: ToDenseWrongWhenWide.*to_dense\(\): differs")
class ToDenseWrongWhenWide(Plain):
    def to_dense(self) -> torch.Tensor:
        m, n = self.entries.shape[-2:]
        return self.entries if m >= n else self.entries.flip(-1)


# -- transposes ---------------------------------------------------------------------------------------------------


@fault(r"conj\(\): differs")
class NoConjugate(Plain):
    def conj(self) -> Matrix:
        return self


@fault(r"x @ ConjugatesTheTranspose.* differs")
class ConjugatesTheTranspose(Plain):
    def transpose(self) -> Matrix:
        return type(self)(self.entries.mH.resolve_conj())


@fault(r"mT: shape \(3, 2, 3\)|x @ TransposesTheBatch|ended in")
class TransposesTheBatch(Plain):
    def transpose(self) -> Matrix:
        return type(self)(self.entries.permute(*range(self.entries.ndim - 1, -1, -1)))


# -- values, copies, conversions ----------------------------------------------------------------------------------


@fault(r"the field table holds a tensor of shape \(1,\) that is no child")
class HidesATensor(Plain):
    table: Any = static(default=(torch.ones(1),))


@fault(r"the field parts holds a tensor .* that is no child")
class HoldsAList(Plain):
    parts: Any = static(default=None)

    def _validate(self) -> None:
        object.__setattr__(self, "parts", [self.entries * 1])


@fault(r"pickle gives other entries|pickle gives another transpose")
class PickleLosesAField(Plain):
    sign: int = static(default=-1)

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return -self.sign * good(self, x)

    def transpose(self) -> Matrix:
        return type(self)(self.entries.mT, self.sign)

    def __reduce__(self) -> Any:
        return type(self), (self.entries, 1)


@fault(r"pickle loses claims")
class PickleLosesClaims(Plain):
    def __reduce__(self) -> Any:
        return type(self), (self.entries,)


@fault(r"deepcopy gives other entries")
class DeepcopyScales(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        return copy.copy(self)._map(lambda _, t: 2 * t)


@fault(r"clone\(\) shares memory")
class CloneIsItself(Plain):
    def clone(self) -> Any:
        return self


@fault(r"\.to\(torch.(float32|complex64)\) has dtype torch.(float64|complex128)")
class IgnoresTo(Plain):
    def to(self, *target: Any, **options: Any) -> Any:
        return self._map(lambda _, t: t)


@fault(r"linear\(x\): torch.bfloat16 in, torch.float32 out")
class HalfBecomesSingle(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(Plain(self.entries.float()), x.float()) if x.dtype == torch.bfloat16 else good(self, x)


@fault(r"linear\(x\): torch.float32 in, torch.float64 out")
class DoubleConstant(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(self, x) * torch.ones(1, dtype=F64)


# -- claims -------------------------------------------------------------------------------------------------------


@fault(r"-A: .*claims Claim.\w+|2 A: .*claims Claim.\w+")
class KeepsAClaimWhenScaled(Plain):
    """Triangular by name, until scaled: then it also says orthogonal."""

    scaled: bool = static(default=False)

    def _scale(self, factor: Any) -> Matrix:
        return type(self)(self.entries * factor, True)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHONORMAL_COLUMNS}) if self.scaled else frozenset())


@fault(r"claims Claim.SYMMETRIC|claims Claim.HERMITIAN")
class ClaimsByShape(Plain):
    def _properties(self) -> Claims:
        m, n = self.entries.shape[-2:]
        return Claims(frozenset({Claim.SYMMETRIC}) if m == n and self.entries.is_complex() else frozenset())


@fault(r"A.inv\(\): .*claims Claim.UPPER_TRIANGULAR")
class InverseClaims(Plain):
    def inv(self) -> Matrix:
        return Dense(torch.linalg.inv(self.entries)).assume(Claim.UPPER_TRIANGULAR)


@fault(r"rank_bound\(\) is 2, the rank is 3")
class WrongRankBound(Plain):
    def rank_bound(self) -> int:
        return min(self.entries.shape[-2:]) - 1


# -- verbs --------------------------------------------------------------------------------------------------------


@fault(r"diagonal\(\): differs")
class OtherDiagonal(Plain):
    def diagonal(self) -> torch.Tensor:
        return torch.diagonal(self.entries.flip(-1), dim1=-2, dim2=-1)


@fault(r"trace\(\): differs|trace\(\): shape")
class TraceOfTheBatch(Plain):
    def trace(self) -> torch.Tensor:
        return torch.diagonal(self.entries, dim1=-2, dim2=-1).sum()


@fault(r"norm\(\): differs")
class SpectralNorm(Plain):
    def norm(self) -> torch.Tensor:
        return torch.linalg.matrix_norm(self.entries, 2)


@fault(r"svdvals\(\): differs")
class AscendingSingularValues(Plain):
    def svdvals(self) -> torch.Tensor:
        return torch.linalg.svdvals(self.entries).flip(-1)


@fault(r"eigvals\(\): the sum of their powers 2")
class DiagonalForEigenvalues(Plain):
    def eigvals(self) -> torch.Tensor:
        return torch.diagonal(self.entries, dim1=-2, dim2=-1).to(torch.complex128)


@fault(r"\.inv\(\): differs")
class InverseTransposed(Plain):
    def inv(self) -> Matrix:
        return Dense(torch.linalg.inv(self.entries).mT)


@fault(r"\.(inv|solve)\(.*differs|check_solves ended in SolveError")
class SolvesTheTransposed(Plain):
    """Seen first in the inverse, which solves."""

    def _solve_rows(self, y: torch.Tensor, options: Any) -> Any:
        x, info = Plain(self.entries.mT)._solve_rows(y, options)
        return x, info


@fault(r"slogdet\(\), the sign: differs")
class DeterminantWithoutPhase(Plain):
    def slogdet(self) -> Any:
        sign, logabs = torch.linalg.slogdet(self.entries)
        return sign.abs().to(sign.dtype), logabs


@fault(r"pinv\(\): differs")
class PseudoInverseWithoutConjugate(Plain):
    def pinv(self) -> Matrix:
        return Dense(torch.linalg.pinv(self.entries.conj().resolve_conj()))


@fault(r"\[\.\.\., 0:2, :\]: (differs|shape)|\[\.\.\., 0:1, :\]: (differs|shape)")
class SliceOffByOne(Plain):
    def _slice(self, rows: slice, columns: slice) -> Any:
        return Plain(self.entries.roll(1, -2)[..., rows, columns])


@fault(r"\(A \* s\)\.to_dense\(\) for s of shape \(\*batch, 1, 1\): differs|\(2 A\)\.to_dense\(\): differs|2 A: ")
class ScalesTwice(Plain):
    def _scale(self, factor: Any) -> Matrix:
        return Plain(self.entries * factor * factor)


# -- derivatives and transforms -----------------------------------------------------------------------------------


@fault(r"transpose: its derivative against that of the entries")
class CutsTheTranspose(Plain):
    def transpose(self) -> Matrix:
        return Plain(self.entries.detach().mT)


@fault(r"slogdet: its derivative|logabsdet: its derivative")
class CutsTheDeterminant(Plain):
    def slogdet(self) -> Any:
        return torch.linalg.slogdet(self.entries.detach())


class _Half(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Any) -> Any:
        return t.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad / 2


@fault(r"the derivative disagrees with finite differences")
class HalfTheGradientOfX(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(self, _Half.apply(x))


class _Swapped(torch.autograd.Function):
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
        return rate.clone()

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any) -> Any:
        return t.flip(in_dims[0] or 0), in_dims[0]


@fault(r"torch.func.vmap over matrices against the loop")
class VmapMixesElements(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(Plain(_Swapped.apply(self.entries)), x)


@fault(r"gradient of the compiled product against eager")
class CompiledWithoutGradient(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        entries = self.entries.detach() if torch.compiler.is_compiling() else self.entries
        return good(Plain(entries), x)


@pytest.mark.parametrize(("kind", "message"), FAULTS)
def test_each_planted_fault_is_found_and_named(kind: type[Matrix], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_matrix_type(kind, pairs(kind))
    text = str(caught.value)
    assert text.startswith(f"check_matrix_type({kind.__name__}), example ") and "\n" not in text


def test_many_faults_are_planted() -> None:
    assert len(FAULTS) >= 25
