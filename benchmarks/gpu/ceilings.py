"""What the device can do at best: copying, and a large matrix product."""

import torch

from benchmarks.gpu.row import Context, Result, Row

__all__ = ["ROWS"]


def copy(c: Context) -> list[Result]:
    """Bytes read plus bytes written a second, by ``copy_`` of two gigabytes."""
    numel = c.size(1 << 30, 1 << 12)
    a, b = c.randn(numel // 1024, 1024), torch.empty(numel // 1024, 1024, dtype=torch.bfloat16, device=c.device)
    seconds, errors = c.times({"copy": lambda k: b.copy_(a)})
    moved = 2.0 * a.nbytes
    if "copy" in seconds:
        c.copy_rate = moved / seconds["copy"]
    value = None if c.copy_rate is None else c.copy_rate / 1e12
    return [Result("copy rate", value, "TB/s", seconds=seconds, errors=errors, moved=moved)]


def gemm(c: Context) -> list[Result]:
    """Flops a second of a bfloat16 product of order 8192, on random numbers."""
    n = c.size(8192, 32)
    a, b = c.randn(n, n), c.randn(n, n, seed=1)
    seconds, errors = c.times({"matmul": lambda k: a @ b})
    if "matmul" in seconds:
        c.gemm_rate = 2.0 * n**3 / seconds["matmul"]
    value = None if c.gemm_rate is None else c.gemm_rate / 1e12
    return [Result("bf16 GEMM rate", value, "TFLOP/s", seconds=seconds, errors=errors)]


ROWS = (Row("copy rate", copy), Row("bf16 GEMM rate", gemm))
