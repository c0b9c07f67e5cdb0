"""Where the kernel tests run: under Triton's interpreter, or on a GPU (``make gpu`` sets STRUCTMAT_KERNEL_TESTS)."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_DEVICE = os.environ.get("STRUCTMAT_KERNEL_TESTS", "")  # "cuda"; "cpu" where make gpu rehearses without one
DEVICE = torch.device(ON_DEVICE or "cpu")


def share(count: int) -> slice:
    """Of ``count`` tests those of this process: STRUCTMAT_SHARD is ``k/n``."""
    k, n = (int(v) for v in os.environ.get("STRUCTMAT_SHARD", "0/1").split("/"))
    return slice(k, count, n)
