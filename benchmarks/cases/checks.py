"""Claims of operators of order 10^6, measured from products with few Gaussian vectors."""

import math
from collections.abc import Callable, Mapping

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Figure, Problem, Tensors, constant

__all__ = ["CASES"]

_MILLION = 10**6
_ORTHOGONAL = 3  # orthogonal, orthonormal columns, orthonormal rows


def _reflections() -> sm.Matrix:
    return sm.HouseholderProduct(torch.randn(8, _MILLION))


def _circulant() -> sm.Matrix:
    return sm.Circulant(torch.randn(_MILLION) / math.sqrt(_MILLION))


def _product() -> sm.Matrix:
    return _reflections() @ sm.OrthogonalCirculant(torch.randn(_MILLION // 2 - 1), (1, 1))


def _butterfly() -> sm.Matrix:
    return sm.OrthogonalButterfly(0.1 * torch.randn(4, 2**19, 1))


def _problem(make: Callable[[], sm.Matrix], claims: int) -> Problem:
    """Right is: every claim measured, and none found false."""
    torch.manual_seed(5)
    matrix = make()

    def ours() -> Tensors:
        report = sm.checks.check_claims(matrix)
        return (torch.tensor([1.0 + report.value, len(report.details)]),)

    def facts() -> Mapping[str, float]:
        """The same matrix off by 1 in 10^4, with the same claims vouched for, is found out."""
        report = sm.checks.check_claims(matrix)
        known = {"failure probability": report.failure_probability}
        if sm.Claim.ORTHOGONAL not in matrix.claims:
            return known
        lie = (matrix * (1 + 1e-4)).assume(sm.Claim.ORTHOGONAL)
        return known | {"lies found of 3": sm.checks.check_claims(lie).value}

    right = (torch.tensor([1.0, claims], dtype=torch.float64),)
    return Problem({"ours": Contender(ours)}, ("verdict",), lambda: right, (1e-12,), facts)


def _case(name: str, what: str, make: Callable[[], sm.Matrix], claims: int) -> Case:
    figure = Figure("s", lambda t: t["ours"], constant(2.0), at_least=False)
    return Case(f"checks/claims {name}", f"check_claims of {what}, float32", lambda: _problem(make, claims), figure)


CASES: tuple[Case, ...] = (
    _case("householder r=8 n=1000000", "8 reflections of order 10^6", _reflections, _ORTHOGONAL),
    _case("circulant n=1000000", "a circulant of order 10^6 (two displacement ranks)", _circulant, 2),
    _case("product n=1000000", "8 reflections times an orthogonal circulant of order 10^6", _product, _ORTHOGONAL),
    _case("butterfly n=1048576", "an orthogonal butterfly of order 2^20, four factors", _butterfly, _ORTHOGONAL),
)
