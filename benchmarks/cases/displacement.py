"""Products of low displacement rank against the per-term loop of SURM, and inverses of Toeplitz matrices applied."""

import math

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, Tensors, overhead, speed

__all__ = ["CASES"]

_EPS = torch.finfo(torch.float32).eps


def _term_by_term(c: torch.Tensor, s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``x A^T`` for ``A = sum_i C(c_i) S(s_i)``, circulant times skew-circulant, term by term, with complex FFTs
    for each skew-circulant and real ones for each circulant: the way of SURM's published code, with exact roots.

    Source: A. Sehanobish et al., Structured Unrestricted-Rank Matrices for Parameter Efficient Fine-tuning, 2024.
    """
    n = x.shape[-1]
    angles = math.pi * torch.arange(n, dtype=torch.float64) / n
    root = torch.polar(torch.ones_like(angles), angles).to(
        torch.complex128 if x.dtype == torch.float64 else torch.complex64
    )
    total = torch.zeros_like(x)
    for c_i, s_i in zip(c, s, strict=True):
        u = (torch.fft.ifft(torch.fft.fft(s_i * root) * torch.fft.fft(x * root)) * root.conj()).real
        total = total + torch.fft.irfft(torch.fft.rfft(c_i) * torch.fft.rfft(u), n)
    return total


def _against_surm(n: int, r: int, rows: int) -> Problem:
    torch.manual_seed(7)
    c, s = ((torch.randn(r, n) / (n * r**0.5) ** 0.5).requires_grad_() for _ in range(2))
    x, g = torch.randn(rows, n).requires_grad_(), torch.randn(rows, n)
    left, right = (t.detach().mT.contiguous().requires_grad_() for t in (2 * c, s.flip(-1)))

    def ours() -> Tensors:
        y = sm.LowDisplacementRank(left, right).linear(x)
        return y, *torch.autograd.grad(y, (left, right, x), g)

    def peer() -> Tensors:
        y = _term_by_term(c, s, x)
        return y, *torch.autograd.grad(y, (c, s, x), g)

    def read(found: Tensors) -> Tensors:
        y, of_left, of_right, of_x = found  # A = sum Z_1(g) Z_-1(J h) / 2: c = g / 2, s = J h
        return y, 2 * of_left.mT, of_right.mT.flip(-1), of_x

    def right_ones() -> Tensors:
        wide = [t.detach().double().requires_grad_() for t in (c, s, x)]
        y = _term_by_term(*wide)
        return y.detach(), *torch.autograd.grad(y, wide, g.double())

    # two transforms and their sum over the terms, each within 4 eps (1 + log2 n) of spectra that are flat on average
    limit = 4 * _EPS * (1 + math.log2(n)) * 2
    contenders = {"ours": Contender(ours, read=read), "peer": Contender(peer)}
    return Problem(contenders, ("y", "grad c", "grad s", "grad x"), right_ones, (limit,) * 4)


def _inverse(n: int, rows: int) -> Problem:
    """``inv`` once, then products with what ``prepare`` keeps, against products with the prepared Toeplitz matrix."""
    torch.manual_seed(8)
    diagonals = torch.randn(2 * n - 1, dtype=torch.float64) / n**0.5
    diagonals[n - 1] += 4
    matrix = sm.Toeplitz(diagonals, n)
    x = torch.randn(rows, n, dtype=torch.float64)
    inverse, prepared = matrix.inv().prepare(), matrix.prepare()
    kappa = 10.0  # the symbol stays within 4 +- 3, roughly
    contenders = {
        "ours": Contender(lambda: (inverse.linear(x),)),
        "base": Contender(lambda: (prepared.linear(x),), read=None),
    }
    limit = 50 * torch.finfo(torch.float64).eps * kappa * n / 3
    return Problem(contenders, ("x",), lambda: (torch.linalg.solve(matrix.to_dense(), x.mT).mT,), (limit,))


CASES: tuple[Case, ...] = (
    Case(
        "displacement n=1024 r=16 rows=256",
        "low displacement rank times rows, forward and backward, against SURM's loop over circulants times skew ones",
        lambda: _against_surm(1024, 16, 256),
        speed(must=2, aim=2.7),
    ),
    Case(
        "displacement n=4096 r=1 rows=2048",
        "low displacement rank times rows, forward and backward, against SURM's loop; the allocator left alone",
        lambda: _against_surm(4096, 1, 2048),
        speed(must=2.8, aim=3.7),
        heavy=True,
        plain_malloc=True,
    ),
    Case(
        "displacement n=4096 r=1 rows=2048 pages kept",
        "the same where freed memory is kept and reused, so that SURM's temporaries cost it no page faults",
        lambda: _against_surm(4096, 1, 2048),
        speed(),
        heavy=True,
    ),
    *(
        Case(
            f"toeplitz/inverse applied n=4096 rows={rows}",
            "a product with the inverse of a Toeplitz matrix over one with the matrix, both prepared",
            lambda rows=rows: _inverse(4096, rows),  # type: ignore[misc]
            overhead(must=3),
            versus="base",
        )
        for rows in (1, 64)
    ),
)
