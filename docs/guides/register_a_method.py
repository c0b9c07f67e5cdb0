"""A method of your own in twenty lines: scaled inputs after rotations of neighbours, attached, saved, loaded, merged.

Run: python register_a_method.py
"""

from __future__ import annotations

# begin-method
import dataclasses
import tempfile
from typing import ClassVar

import torch

import structmat as sm
from structmat import adapters


@adapters.register
@dataclasses.dataclass(frozen=True)
class Neighbours:
    """``W_new = W G D``: D scales the inputs, G turns each by an angle with one of its neighbours."""

    name: ClassVar[str] = "Neighbours"
    shift: int = 0  # 0: the pairs (0, 1), (2, 3), ...; 1: (1, 2), (3, 4), ...

    def init(self, target: adapters.Target, generator: torch.Generator | None) -> adapters.State:
        n, like = target.columns, {"dtype": target.dtype, "device": target.device}
        angles = torch.zeros((n - self.shift) // 2, **like)
        return adapters.State(trained={"angles": angles, "scales": torch.ones(n, **like)}, frozen={})

    def update(self, state, target, *, training=False, generator=None) -> adapters.Compose:
        planes = tuple((i, i + 1) for i in range(self.shift, target.columns - 1, 2))
        turned = sm.GivensProduct(state.trained["angles"], planes, target.columns)
        return adapters.Compose(right=turned @ sm.Diagonal(state.trained["scales"]))


# end-method
# begin-use
def network() -> torch.nn.Sequential:
    """Something pretrained."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Conv1d(1, 4, 5))


def main() -> None:
    """Attach, train, save, load, merge."""
    model, x, y = network(), torch.randn(16, 1, 12), torch.randn(16, 4, 4)
    before = model(x)
    print(adapters.attach(model, {"0": Neighbours(), "2": Neighbours(shift=1)}))
    torch.testing.assert_close(model(x), before)  # it starts as the identity
    optimizer = torch.optim.Adam(adapters.trainable_parameters(model), lr=1e-2)
    for step in range(201):
        loss = (model(x) - y).square().mean()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(adapters.inspect(model))
    with tempfile.TemporaryDirectory() as folder:
        adapters.save(model, folder)
        loaded = network()
        adapters.load(loaded, folder)
    assert torch.equal(loaded(x), model(x))
    adapters.merge(loaded)
    with torch.no_grad():
        print(f"merged: differs by {float((loaded(x) - model(x)).abs().max()):.0e}")


# end-use
if __name__ == "__main__":
    main()
