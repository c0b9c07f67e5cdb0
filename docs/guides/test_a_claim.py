"""Is what somebody's torch module calls orthogonal, orthogonal? Three modules, the same questions.

Run: python docs/guides/test_a_claim.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import structmat as sm
from structmat.testing import strategies


# begin-modules
class NeumannCayley(nn.Module):
    """Somebody's fast Cayley transform: the inverse of I + K is replaced by five terms of its series."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        k = weight.tril(-1) - weight.tril(-1).mT
        eye = torch.eye(len(k), dtype=k.dtype)
        inverse, power = eye, eye
        for _ in range(4):
            power = -power @ k
            inverse = inverse + power
        return inverse @ (eye - k)


class Settled(nn.Linear):
    """Somebody's layer that starts orthogonal and is trained as it is."""

    def __init__(self, n: int) -> None:
        super().__init__(n, n, bias=False)
        nn.init.orthogonal_(self.weight)


def orthogonal_by_torch(n: int) -> nn.Linear:
    """What torch offers: a parametrization whose weight is orthogonal whatever its parameters are."""
    return parametrizations.orthogonal(nn.Linear(n, n, bias=False))


def orthogonal_by_series(n: int) -> nn.Linear:
    """The same place, filled by the series."""
    layer = nn.Linear(n, n, bias=False)
    nn.init.normal_(layer.weight, std=0.1 / n**0.5)
    parametrize.register_parametrization(layer, "weight", NeumannCayley(), unsafe=True)
    return layer


def trained(layer: nn.Linear, steps: int = 20) -> nn.Linear:
    """Some steps of SGD towards another rotation: a claim must survive training."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
    generator = torch.Generator().manual_seed(1)
    n = layer.in_features
    for _ in range(steps):
        x = torch.randn(64, n, generator=generator)
        optimizer.zero_grad()
        (layer(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
    return layer


# end-modules
# begin-entries
def by_entries(n: int = 64) -> None:
    """The weight as a matrix, measured in float64, at the start and after training."""
    makers = {"torch": orthogonal_by_torch, "series": orthogonal_by_series, "settled": Settled}
    for name, make in makers.items():
        torch.manual_seed(0)
        layer = make(n)
        for when in ("new", "trained"):
            layer = trained(layer) if when == "trained" else layer
            report = sm.checks.orthogonality_error(layer.weight)
            print(f"{name:8}{when:8}{report}")


# end-entries
# begin-products
def by_products(n: int = 64) -> None:
    """Only products with the module: nobody's weight is looked at, and a million rows would do as well."""
    torch.manual_seed(0)
    layer = orthogonal_by_series(n).double().requires_grad_(False)
    weight = layer.weight
    module = sm.Implicit((n, n), layer, lambda y: y @ weight, torch.float64)
    report = sm.checks.orthogonality_error(module, probes=10, generator=torch.Generator().manual_seed(0))
    print(report)
    assert not report


# end-products
# begin-property
ORDINARY = ("small", "integers", "normal", "equal", "some zeros", "parallel")


def weights(entries: object) -> st.SearchStrategy[torch.Tensor]:
    """Square parameters up to 5 x 5 of these kinds of numbers."""
    return st.integers(1, 5).flatmap(lambda n: strategies.tensors((n, n), entries=entries))


def cayley_of_torch(weight: torch.Tensor) -> torch.Tensor:
    """The weight that torch's parametrization makes of these parameters."""
    layer = nn.Linear(*weight.shape, bias=False).double()
    parametrizations.orthogonal(layer, orthogonal_map="cayley")
    layer.parametrizations.weight.original.data.copy_(weight)
    return layer.weight


def search(function: Callable[[torch.Tensor], torch.Tensor], entries: object) -> str:
    """Parameters for which the claim is false, shrunk; or that there were none among 200."""

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])
    @given(weight=weights(entries))
    def is_orthogonal(weight: torch.Tensor) -> None:
        report = sm.checks.orthogonality_error(function(weight))
        assert report, str(report)

    try:
        is_orthogonal()
    except AssertionError as error:
        notes = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
        return "\n".join([str(error), *notes])
    return "no parameters found that break the claim"


# end-property
def main() -> None:
    """Measure, then search for parameters that break the claim."""
    by_entries()
    print("\nby products alone:")
    by_products()
    for name, function, entries in (
        ("torch, ordinary parameters", cayley_of_torch, ORDINARY),
        ("torch, large parameters", cayley_of_torch, ("large",)),
        ("series, ordinary parameters", NeumannCayley(), ORDINARY),
    ):
        torch.manual_seed(0)  # torch's parametrization starts from random numbers
        print(f"\n{name}:\n{search(function, entries)}")


if __name__ == "__main__":
    main()
