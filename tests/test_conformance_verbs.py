"""Faults planted one at a time in small types, in verbs and derivatives: the conformance suite finds each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from structmat import Matrix
from structmat.types.dense import Dense
from tests.planted import Plain, fault, found, good

FAULTS: list[Any] = []


# -- verbs --------------------------------------------------------------------------------------------------------


@fault(FAULTS, r"diagonal\(\): differs")
class OtherDiagonal(Plain):
    def diagonal(self) -> torch.Tensor:
        return torch.diagonal(self.entries.flip(-1), dim1=-2, dim2=-1)


@fault(FAULTS, r"trace\(\): differs|trace\(\): shape")
class TraceOfTheBatch(Plain):
    def trace(self) -> torch.Tensor:
        return torch.diagonal(self.entries, dim1=-2, dim2=-1).sum()


@fault(FAULTS, r"norm\(\): differs")
class SpectralNorm(Plain):
    def norm(self) -> torch.Tensor:
        return torch.linalg.matrix_norm(self.entries, 2)


@fault(FAULTS, r"svdvals\(\): differs")
class AscendingSingularValues(Plain):
    def svdvals(self) -> torch.Tensor:
        return torch.linalg.svdvals(self.entries).flip(-1)


@fault(FAULTS, r"eigvals\(\): the sum of their powers 2")
class DiagonalForEigenvalues(Plain):
    def eigvals(self) -> torch.Tensor:
        return torch.diagonal(self.entries, dim1=-2, dim2=-1).to(torch.complex128)


@fault(FAULTS, r"\.inv\(\): differs")
class InverseTransposed(Plain):
    def inv(self) -> Matrix:
        return Dense(torch.linalg.inv(self.entries).mT)


@fault(FAULTS, r"\.(inv|solve)\(.*differs|check_solves ended in SolveError")
class SolvesTheTransposed(Plain):
    """Seen first in the inverse, which solves."""

    def _solve_rows(self, y: torch.Tensor, options: Any) -> Any:
        x, info = Plain(self.entries.mT)._solve_rows(y, options)
        return x, info


@fault(FAULTS, r"slogdet\(\), the sign: differs")
class DeterminantWithoutPhase(Plain):
    def slogdet(self) -> Any:
        sign, logabs = torch.linalg.slogdet(self.entries)
        return sign.abs().to(sign.dtype), logabs


@fault(FAULTS, r"pinv\(\): differs")
class PseudoInverseWithoutConjugate(Plain):
    def pinv(self) -> Matrix:
        return Dense(torch.linalg.pinv(self.entries.conj().resolve_conj()))


@fault(FAULTS, r"\[\.\.\., 0:2, :\]: (differs|shape)|\[\.\.\., 0:1, :\]: (differs|shape)")
class SliceOffByOne(Plain):
    def _slice(self, rows: slice, columns: slice) -> Any:
        return Plain(self.entries.roll(1, -2)[..., rows, columns])


_TWICE = r"\(A \* s\)\.to_dense\(\) for s of shape \(\*batch, 1, 1\): differs|\(2 A\)\.to_dense\(\): differs|2 A: "


@fault(FAULTS, _TWICE)
class ScalesTwice(Plain):
    def _scale(self, factor: Any) -> Matrix:
        return Plain(self.entries * factor * factor)


# -- derivatives and transforms -----------------------------------------------------------------------------------


@fault(FAULTS, r"transpose: its derivative against that of the entries")
class CutsTheTranspose(Plain):
    def transpose(self) -> Matrix:
        return Plain(self.entries.detach().mT)


@fault(FAULTS, r"slogdet: its derivative|logabsdet: its derivative")
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


@fault(FAULTS, r"the derivative disagrees with finite differences")
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


@fault(FAULTS, r"torch.func.vmap over matrices against the loop")
class VmapMixesElements(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return good(Plain(_Swapped.apply(self.entries)), x)


@fault(FAULTS, r"gradient of the compiled product against eager")
class CompiledWithoutGradient(Plain):
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        entries = self.entries.detach() if torch.compiler.is_compiling() else self.entries
        return good(Plain(entries), x)


@pytest.mark.parametrize(("kind", "message"), FAULTS)
def test_each_planted_fault_is_found_and_named(kind: type[Matrix], message: str) -> None:
    found(kind, message)


def test_many_faults_are_planted() -> None:
    assert len(FAULTS) >= 15
