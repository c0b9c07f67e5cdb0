"""Traces out of products with random vectors, each with the half-width of a confidence interval.

For random signs g, ``E g^H A g = tr A``. Hutch++ splits off the part of A that a sketch finds: with Q an orthonormal
basis of the range of ``A S``, ``tr A = tr(Q^H A Q) + tr((I - Q Q^H) A (I - Q Q^H))``, the first by products, the second
by samples whose variance is that of the part left over. Given Q the estimate is linear in A and unbiased, so that its
derivative is an unbiased estimate of the derivative.
Sources: M. F. Hutchinson, 1990; R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, Hutch++: optimal stochastic trace
estimation, 2021, algorithm 1.
"""

import math
from collections.abc import Callable, Sequence

import scipy.special
import torch

__all__ = ["METHODS", "half_width", "hutch_plus_plus", "hutchinson", "in_blocks", "quantile", "signs"]

Apply = Callable[[torch.Tensor], torch.Tensor]
_BLOCK = 2**23  # numbers multiplied at once: a product with n = 10^6 takes 8 rows at a time


def signs(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | None, generator: torch.Generator | None
) -> torch.Tensor:
    """Independent signs +-1, for a complex dtype 1, i, -1, -i; drawn where the generator lives, on the CPU without."""
    source = torch.device("cpu") if generator is None else generator.device
    drawn = torch.randint(
        0, 4 if dtype.is_complex else 2, tuple(shape), generator=generator, dtype=torch.int8, device=source
    )
    return phases(drawn.to(device=device), dtype)


def phases(drawn: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The signs numbered 0, 1 (or 0 to 3)."""
    values = [1, 1j, -1, -1j] if dtype.is_complex else [1, -1]
    return torch.tensor(values, dtype=dtype, device=drawn.device)[drawn.long()]


def quantile(confidence: float, degrees: int, *, plane: bool = False) -> float:
    """The c with ``P(|t| <= c) = confidence`` for Student's t; for points of a ``plane`` at least that of a normal one
    whose variances add up to 1."""
    found = float(scipy.special.stdtrit(degrees, (1 + confidence) / 2))
    return max(found, math.sqrt(-math.log1p(-confidence))) if plane else found


def half_width(samples: torch.Tensor, confidence: float) -> torch.Tensor:
    """Half the width of the confidence interval of the mean of samples ``(*batch, k)``, by Student's t."""
    k = int(samples.shape[-1])
    factor = quantile(confidence, k - 1, plane=samples.is_complex())
    return samples.std(-1) * (factor / math.sqrt(k))


def in_blocks(multiply: Apply, rows: torch.Tensor) -> torch.Tensor:
    """``multiply(rows)`` for rows ``(..., k, n)``, a few at a time where n is large."""
    width = max(1, _BLOCK // max(1, int(rows.shape[-1])))
    if rows.shape[-2] <= width:
        return multiply(rows)
    return torch.cat([multiply(part) for part in rows.split(width, -2)], -2)


def hutchinson(
    multiply: Apply,
    shape: Sequence[int],
    probes: int,
    confidence: float,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of ``g^H A g`` over ``probes`` random signs, and its half-width; ``shape`` is ``(*batch, n, n)``.

    Cost: ``probes`` products, three vectors a probe.
    """
    g = signs((*shape[:-2], probes, shape[-1]), dtype, device, generator)
    samples, rounding = _forms(multiply, g)
    return samples.mean(-1), half_width(samples.detach(), confidence) + rounding.mean(-1)


def hutch_plus_plus(
    multiply: Apply,
    shape: Sequence[int],
    probes: int,
    confidence: float,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hutch++ with ``probes`` products in all: a third for the sketch, a third for its part of the trace, the others
    for samples of the rest. ``3 n`` products, and more, give the trace itself.

    Cost: ``probes`` products, ``2 n probes^2 / 9`` flops for the basis, ``2 probes / 3`` vectors of memory.
    """
    *batch, _, n = shape
    third = probes // 3
    if third >= n:
        exact, rounding = _forms(multiply, torch.eye(int(n), dtype=dtype, device=device).expand(*batch, n, n))
        return exact.sum(-1), rounding.sum(-1)
    with torch.no_grad():
        sketch = in_blocks(multiply, signs((*batch, third, n), dtype, device, generator)).detach()
        basis = torch.linalg.qr(sketch.mT)[0].mT  # rows, orthonormal
        g = signs((*batch, probes - 2 * third, n), dtype, device, generator)
        for _ in range(2):  # the second time takes away what rounding left
            g = g - (g @ basis.mH) @ basis
    found, rounding = _forms(multiply, basis)
    samples, more = _forms(multiply, g)
    error = half_width(samples.detach(), confidence) + rounding.sum(-1) + more.mean(-1)
    return found.sum(-1) + samples.mean(-1), error


def _forms(multiply: Apply, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``g^H A g`` of each row g, and what rounding may have done to it."""
    product = in_blocks(multiply, rows)
    size = torch.linalg.vector_norm(product.detach(), dim=-1) * torch.linalg.vector_norm(rows, dim=-1)
    return torch.linalg.vecdot(rows, product), 4 * torch.finfo(product.dtype).eps * size


METHODS = {"hutch++": hutch_plus_plus, "hutchinson": hutchinson}
