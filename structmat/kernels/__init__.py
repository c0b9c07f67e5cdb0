"""Triton kernels: faster ways to the numbers that ``structmat.functional`` defines.

Only ``structmat.backend`` imports this part, and only when a kernel is chosen; nothing here knows a class of structmat.
``configs`` is the table of tile sizes, one line a kernel, dtype and size, and imports no triton; ``cayley``,
``blockdiag``, ``strided`` and ``householder`` hold bare ``@triton.jit`` kernels, each with the function that launches
it. No kernel uses an atomic operation: sums over rows are kept in parts and added in a fixed order, so a result depends
on nothing but its arguments.
"""
