"""Triton kernels: faster ways to the numbers that ``structmat.functional`` defines.

Only ``structmat.backend`` imports this part, and only when a kernel is chosen; nothing here knows a class of structmat.
``configs`` is the table of tile sizes, and ``stored`` what is known of them; these two import no triton. ``cayley``,
``blockdiag``, ``strided``, ``compose``, ``householder`` and ``toeplitz`` hold bare ``@triton.jit`` kernels, each with
the function that launches it. No kernel uses an atomic operation: sums over rows are kept in parts and added in a
fixed order, so a result depends on nothing but its arguments.
"""
