"""Faults planted one at a time in small types, in products, copies and claims: the conformance suite finds each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from structmat import Claim, Claims, Matrix
from structmat.matrix import static
from structmat.testing import check_matrix_type
from structmat.types.dense import Dense
from tests.planted import F64, Plain, fault, found, good, pairs

FAULTS: list[Any] = []


def test_the_type_without_a_fault_passes() -> None:
    check_matrix_type(Plain, pairs(Plain))


# -- products -----------------------------------------------------------------------------------------------------


@fault(FAULTS, r"linear\(x\) for x of shape \(2, 2, 3\): differs")
class LosesTheBatch(Plain):
    """Every element of the batch is multiplied by the first matrix."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        first = self.entries if self.entries.ndim == 2 or x.ndim != 3 else self.entries[:1].expand_as(self.entries)
        return good(Plain(first), x)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(FAULTS, r"linear\(x\) for x of shape \(3, 2, 2, 3\)|for x of shape \(4, 3\)|check_linear ended in RuntimeError")
class NoBroadcasting(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.entries.ndim == 3 and x.ndim != 1:
            return torch.bmm(x.reshape(-1, *x.shape[-2:]), self.entries.mT)
        return good(self, x)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(FAULTS, r"linear\(x\) for x of shape \(3,\): differs from the dense reference by \S+e-0[678], allowed \S+e-1\d")
class ThroughSinglePrecision(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.complex64 if x.is_complex() else torch.float32
        return good(Plain(self.entries.to(low)), x.to(low)).to(x.dtype)

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(FAULTS, r"linear\(x\) for (strided|transposed) x: differs")
class AssumesContiguous(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.empty(x.shape).stride()
        return good(self, torch.as_strided(x, x.shape, steps) if x.dim() == 2 and not x.requires_grad else x)


@fault(FAULTS, r"linear\(x\) for x of shape \(0, 3\)|check_linear ended in (IndexError|RuntimeError)")
class NoZeroRows(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.detach().abs().max() * 0 + 1
        return good(self, x) * scale

    def to_dense(self) -> torch.Tensor:
        return self.entries


@fault(FAULTS, r"linear\(x\) for complex x")
class DropsTheImaginaryPart(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(self, x if self.entries.is_complex() or not x.is_complex() else x.real)


@fault(FAULTS, r"linear\(x\) for x of shape \(3,\) changes x")
class ChangesAndRestores(Plain):
    """The values are back, the version counter is not: autograd would refuse."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = good(self, x)
        return y if x.requires_grad else (x.neg_(), x.neg_(), y)[2]


@fault(FAULTS, r"called twice, it gives two results")
class Random(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = good(self, x)
        return y + 2**-45 * torch.randint(-2, 3, y.shape).to(y.dtype) if not y.requires_grad else y


_SHARED: dict[Any, torch.Tensor] = {}


@fault(FAULTS, r"another result after another CachesByShape has multiplied")
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


@fault(FAULTS, r"example 1: ToDenseWrongWhenWide.*to_dense\(\): differs")
class ToDenseWrongWhenWide(Plain):
    def to_dense(self) -> torch.Tensor:
        m, n = self.entries.shape[-2:]
        return self.entries if m >= n else self.entries.flip(-1)


# -- transposes ---------------------------------------------------------------------------------------------------


@fault(FAULTS, r"conj\(\): differs")
class NoConjugate(Plain):
    def conj(self) -> Matrix:
        return self


@fault(FAULTS, r"x @ ConjugatesTheTranspose.* differs")
class ConjugatesTheTranspose(Plain):
    def transpose(self) -> Matrix:
        return type(self)(self.entries.mH.resolve_conj())


@fault(FAULTS, r"mT: shape \(3, 2, 3\)|x @ TransposesTheBatch|ended in")
class TransposesTheBatch(Plain):
    def transpose(self) -> Matrix:
        return type(self)(self.entries.permute(*range(self.entries.ndim - 1, -1, -1)))


# -- values, copies, conversions ----------------------------------------------------------------------------------


@fault(FAULTS, r"the field table holds a tensor of shape \(1,\) that is no child")
class HidesATensor(Plain):
    table: Any = static(default=(torch.ones(1),))


@fault(FAULTS, r"the field parts holds a tensor .* that is no child")
class HoldsAList(Plain):
    parts: Any = static(default=None)

    def _validate(self) -> None:
        object.__setattr__(self, "parts", [self.entries * 1])


@fault(FAULTS, r"pickle gives other entries|pickle gives another transpose")
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


@fault(FAULTS, r"pickle loses claims")
class PickleLosesClaims(Plain):
    def __reduce__(self) -> Any:
        return type(self), (self.entries,)


@fault(FAULTS, r"deepcopy gives other entries")
class DeepcopyScales(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        return copy.copy(self)._map(lambda _, t: 2 * t)


@fault(FAULTS, r"clone\(\) shares memory")
class CloneIsItself(Plain):
    def clone(self) -> Any:
        return self


@fault(FAULTS, r"\.to\(torch.(float32|complex64)\) has dtype torch.(float64|complex128)")
class IgnoresTo(Plain):
    def to(self, *target: Any, **options: Any) -> Any:
        return self._map(lambda _, t: t)


@fault(FAULTS, r"linear\(x\): torch.bfloat16 in, torch.float32 out")
class HalfBecomesSingle(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(Plain(self.entries.float()), x.float()) if x.dtype == torch.bfloat16 else good(self, x)


@fault(FAULTS, r"linear\(x\): torch.float32 in, torch.float64 out")
class DoubleConstant(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(self, x) * torch.ones(1, dtype=F64)


# -- claims -------------------------------------------------------------------------------------------------------


@fault(FAULTS, r"-A: .*claims Claim.\w+|2 A: .*claims Claim.\w+")
class KeepsAClaimWhenScaled(Plain):
    """Triangular by name, until scaled: then it also says orthogonal."""

    scaled: bool = static(default=False)

    def _scale(self, factor: Any) -> Matrix:
        return type(self)(self.entries * factor, True)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHONORMAL_COLUMNS}) if self.scaled else frozenset())


@fault(FAULTS, r"claims Claim.SYMMETRIC|claims Claim.HERMITIAN")
class ClaimsByShape(Plain):
    def _properties(self) -> Claims:
        m, n = self.entries.shape[-2:]
        return Claims(frozenset({Claim.SYMMETRIC}) if m == n and self.entries.is_complex() else frozenset())


@fault(FAULTS, r"A.inv\(\): .*claims Claim.UPPER_TRIANGULAR")
class InverseClaims(Plain):
    def inv(self) -> Matrix:
        return Dense(torch.linalg.inv(self.entries)).assume(Claim.UPPER_TRIANGULAR)


@fault(FAULTS, r"rank_bound\(\) is 2, the rank is 3")
class WrongRankBound(Plain):
    def rank_bound(self) -> int:
        return min(self.entries.shape[-2:]) - 1


@pytest.mark.parametrize(("kind", "message"), FAULTS)
def test_each_planted_fault_is_found_and_named(kind: type[Matrix], message: str) -> None:
    found(kind, message)


def test_many_faults_are_planted() -> None:
    assert len(FAULTS) >= 20
