"""Which transforms of torch act at the moment: compilers, torch.func, forward mode, batched backward passes."""

from typing import Any

import torch

__all__ = ["batched_by_autograd", "carried", "carry", "eager", "nested_jvp", "transforming"]


def eager(*tensors: torch.Tensor) -> bool:
    """Whether these are plain tensors outside torch.compile and torch.func, so that values may be read."""
    if torch.compiler.is_compiling():
        return False
    wrapped, batched = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor
    return not any(wrapped(t) or batched(t) for t in tensors)  # the second: autograd.grad(..., is_grads_batched=True)


def batched_by_autograd(g: torch.Tensor) -> bool:
    """Whether a backward pass is given many cotangents at once (``autograd.grad(..., is_grads_batched=True)``)."""
    return torch._C._functorch.is_legacy_batchedtensor(g)


def nested_jvp() -> bool:
    """Whether one jvp of torch.func runs inside another, where torch loses the outer tangent of a Function."""
    stack = torch._C._functorch.get_interpreter_stack() if torch._C._are_functorch_transforms_active() else None
    return sum([level.key() == torch._C._functorch.TransformType.Jvp for level in stack or ()]) > 1


def transforming() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active: then an operation needs its jvp."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def carry(name: str, value: Any) -> None:
    """Leave a value where autograd's own threads find it: they run the backward pass of CUDA tensors, and with it what
    ``torch.utils.checkpoint`` computes again, and inherit no context variable."""
    torch._C._stash_obj_in_tls(name, value)


def carried(name: str) -> Any:
    """What was left in this thread, or in the one that asked for the backward pass; else None."""
    return torch._C._get_obj_in_tls(name) if torch._C._is_key_in_tls(name) else None
