"""Determinants of square Toeplitz matrices from Levinson's pivots; their gradient from diagonal sums of the inverse.

The derivative of ``log|det T|`` in t_k is the conjugated sum of the diagonal ``-k`` of T^-1: O(n log n) from the
two-solve pair, after three solves.
"""

from typing import Any

import torch

from structmat import backend
from structmat.functional import fourier
from structmat.functional.toeplitz import toeplitz_geometry
from structmat.functional.toeplitz_solve import Record, right_sides, solve_rows, two_solve

__all__ = ["diagonal_sums_of_inverse", "slogdet"]


def slogdet(t: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign and ``log|det T|`` for t ``(*batch, 2n - 1)`` from Levinson's pivots; NaN where a leading minor is nearly
    singular."""
    wide = t.to(torch.promote_types(t.dtype, torch.float64))
    result: tuple[torch.Tensor, torch.Tensor] = _Slogdet.apply(wide, symmetric)
    return result


def diagonal_sums_of_inverse(t: torch.Tensor, symmetric: bool) -> torch.Tensor:
    """``s_k = sum_{i-j=k} (T^-1)_{ij}``, k from -(n-1) to n-1, in O(n log n) after three solves; differentiable.

    From the displacement ``Z_{-1} A - A Z_1 = G H^T`` of A = T^-1 with G = [-x, -z], H = [J (2 e_0 - z), J x]: along a
    diagonal ``A_{i,j+1} = A_{i-1,j} - (G H^T)_{ij}``, summed with weights.
    """
    n = (t.shape[-1] + 1) // 2
    record = Record(symmetric=symmetric)
    pair = solve_rows(t, right_sides(t), record)
    x, z = pair[..., 0, :], pair[..., 1, :]
    unit = torch.zeros_like(x)
    unit[..., 0] = 1
    row = solve_rows(t.flip(-1), unit[..., None, :], Record(symmetric=symmetric))[..., 0, :]  # first row of T^-1
    g = torch.stack((-x, -z), -2)
    h = torch.stack(((2 * unit - z).flip(-1), x.flip(-1)), -2)
    down = torch.arange(n, dtype=torch.float64, device=t.device)
    ones = torch.ones_like(down)
    inner_g, inner_h = ones.clone(), ones.clone()
    inner_g[0], inner_h[n - 1] = 0, 0  # i >= 1 and j <= n - 2
    geometry, batch = toeplitz_geometry(n, n), (*t.shape[:-1], 1)
    low = fourier.correlate((h * inner_h).conj(), g * inner_g * (n - down), geometry, batch)[..., 0, :]
    high = fourier.correlate((h * inner_h * (n - 1 - down)).conj(), g * inner_g, geometry, batch)[..., 0, :]
    nothing = torch.zeros_like(x[..., :1])
    lower = (n - down) * x - torch.cat((low[..., n:], nothing), -1)  # k = 0 .. n-1 takes i - j = k + 1
    upper = (n - down[1:]) * row[..., 1:] - high[..., 1:n].flip(-1)[..., : n - 1]  # s = 1 .. n-1 takes j - i = s - 1
    return torch.cat((upper.flip(-1), lower), -1)


class _Slogdet(torch.autograd.Function):
    @staticmethod
    def forward(t: Any, symmetric: bool) -> Any:
        _, sign, logabs, _ = two_solve(t, symmetric, determinant=True)
        return sign.to(t.dtype).clone(), logabs.to(backend.real_of(t.dtype)).clone()  # outputs must be no views

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.symmetric = inputs[1]
        ctx.save_for_backward(inputs[0], output[0])
        ctx.save_for_forward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, grad_sign: Any, grad_log: Any) -> Any:
        t, sign = ctx.saved_tensors
        sums = diagonal_sums_of_inverse(t, ctx.symmetric).flip(-1).conj()
        weight = grad_log.to(t.dtype)
        if t.is_complex():  # d sign = i Im(tr(T^-1 dT)) sign
            weight = weight - 1j * (grad_sign.conj() * sign).imag
        return weight[..., None] * sums, None

    @staticmethod
    def jvp(ctx: Any, dt: Any, _: Any) -> Any:
        t, sign = ctx.saved_tensors
        rate = (diagonal_sums_of_inverse(t, ctx.symmetric).flip(-1) * dt).sum(-1)
        if t.is_complex():
            return 1j * rate.imag * sign, rate.real.clone()
        return torch.zeros_like(sign), rate

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, symmetric: bool) -> Any:
        return _Slogdet.apply(t.movedim(in_dims[0], 0), symmetric), (0, 0)
