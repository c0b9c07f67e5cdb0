"""What two of the methods need in a training loop: HRA's regulariser and the constraint of COFT."""

from typing import Any

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters.peft.layer import StructmatLayer

__all__ = ["StructmatCallback", "after_step", "penalty"]


def penalty(model: nn.Module) -> torch.Tensor:
    """The sum of the methods' regularisers over the active adapters, to be added to the loss; zero without any."""
    terms = [
        layer.methods[name][0].penalty(layer.state(name))  # type: ignore[attr-defined]
        for layer in _layers(model)
        for name in layer.active_adapters
        if name in layer.methods and hasattr(layer.methods[name][0], "penalty")
    ]
    if terms:
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()
    return torch.zeros((), device=next(iter(model.parameters())).device)


def after_step(model: nn.Module) -> None:
    """Call after ``optimizer.step()``: projects the adapters that train onto their constraint (OFT's)."""
    with torch.no_grad():
        for layer in _layers(model):
            for name, (method, _) in layer.methods.items():
                state = layer.state(name)
                if hasattr(method, "project_") and any(tensor.requires_grad for tensor in state.trained.values()):
                    method.project_(state)


class StructmatCallback(need("transformers", "peft").TrainerCallback):  # type: ignore[misc]
    """For ``Trainer(callbacks=[StructmatCallback()])``: adds the gradient of ``penalty`` before each step of the
    optimiser (after gradient clipping, which does not see it), and calls ``after_step`` after it.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradient of the regulariser."""
        added = penalty(kwargs["model"])
        if added.requires_grad:
            added.backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The projection."""
        after_step(kwargs["model"])


def _layers(model: nn.Module) -> list[StructmatLayer]:
    return [module for module in model.modules() if isinstance(module, StructmatLayer)]
