"""How far one step of an optimiser moves an adapted layer, and the scales that make it equal for all methods.

A step of Adam or sign descent at rate e changes each trained number by about e, with the sign of its gradient. For
rows x with entries of size 1, a weight with rows of length 1, and a gradient g at the output, the step moves the output
along g, and with ``E |z| = 0.8`` for a standard normal z its size for each output follows from the method alone:

* LoRA of rank r, right factor uniform in ``+- 1 / sqrt(n)``: r terms of size 0.8 / sqrt(3), ``0.46 r e``.
* HRA, r / 2 pairs of vectors of length v: a pair turned apart by d moves x by ``4 (d (v.x) - v (d.x)) / v^2``, in all
  ``2.1 r e / v``. (The authors' start has v = sqrt(2 n / (3 r)): it grows with n, and so does the rate it needs.)
* OFT and BOFT with m factors of block b, ``K = s (L - L^T)``, ``R - I = -2 K + ...``: b coherent terms a factor, ``0.95
  s b m e``.
* FLoRA with core r x r and factors of deviation sqrt(1 / (2 r)), scale s: ``0.32 s r e``.
* A circulant or Toeplitz D scaled by s / sqrt(n): each number stands in every row once, ``0.8 s e``.
* A Kronecker product ``s B (x) A`` with B of r columns: ``0.46 s sqrt(r) e``.

LoRA at rank 8 starts at ``3.7 e``, and soon moves as fast again: its other factor is trained too. So do FLoRA and the
other products of trained factors, which get 3.7 as well; a rotation and a matrix whose own numbers are trained get
``PACE e``, twice as much. Then one default rate serves all (``step="even"``); ``step="paper"`` keeps what the authors
have. To first order, with constants that ``python -m benchmarks.pace`` measures. These numbers are part of version 1 of
the file format: another PACE would change what a saved rotation means, and the golden files would fail.
"""

import math

__all__ = ["PACE", "STEPS", "check_step", "flora_scale", "reflection_bound", "rotation_scale"]

PACE = 7.4
STEPS = ("even", "paper")


def check_step(owner: str, step: object) -> None:
    """ValueError for anything but the two rules."""
    if step not in STEPS:
        raise ValueError(f"{owner}: step must be 'even' or 'paper', got {step!r}")


def reflection_bound(rank: int, columns: int, step: str) -> float:
    """Entries of HRA's vectors are uniform in plus or minus this: length ``2.1 r / PACE``, or the authors' start."""
    if step == "paper":
        return 1 / math.sqrt(max(rank // 2, 1))
    return 2.1 * rank / PACE * math.sqrt(3 / columns)


def rotation_scale(block: int, factors: int, step: str) -> float:
    """s of ``K = s (L - L^T)``."""
    return 1.0 if step == "paper" else PACE / (0.95 * block * factors)


def flora_scale(rank: float) -> float:
    """s of FLoRA's addition, for a core with this rank in the channel modes (their geometric mean)."""
    return 0.5 * PACE / (0.32 * rank)
