"""The Levinson-Durbin recursion: autoregressive models of every order out of autocovariances.

A stationary process ``x_t = sum_{k=1}^{p} a_k x_{t-k} + e_t`` with ``r_k = E[x_{t+k} conj(x_t)]`` obeys the
Yule-Walker equations ``sum_j a_j r_{k-j} = r_k``, k = 1..p, with ``r_{-k} = conj(r_k)``: a Hermitian Toeplitz system
whose right side is made of its own entries. One step of the recursion goes from the best predictor of order m - 1 to
that of order m:

    k_m = (r_m - sum_{j<m} a_j r_{m-j}) / E_{m-1},    a_m = k_m,
    a_j <- a_j - k_m conj(a_{m-j}),                   E_m = E_{m-1} (1 - |k_m|^2).

Source: J. Durbin, The fitting of time-series models, 1960; G. H. Golub and C. F. Van Loan, Matrix Computations, 4th
ed., 2013, Algorithm 4.7.1.
"""

import torch

from structmat import backend

__all__ = ["levinson_durbin"]


def levinson_durbin(r: torch.Tensor, order: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coefficients ``(*b, p)``, prediction-error variances of the orders 0 to p ``(*b, p + 1)``, reflections ``(*b,
    p)``.

    r: ``(*b, > p)``, real or complex, ``r[..., 0]`` read as real; half and bfloat16 in float32. Nothing is checked: a
    sequence that is not positive definite shows as a variance that is not positive, and what follows it has no meaning.
    Plain torch operations, differentiable in every mode and to any order; ``O(p^2)`` work, ``O(p)`` memory, and where
    a gradient is recorded the predictors of all orders, ``p^2 / 2`` numbers in pieces of at most p.
    """
    wide = r.to(backend.compute_dtype(r.dtype))
    error = wide[..., 0].real if wide.is_complex() else wide[..., 0]
    a = wide[..., :0]
    variances, reflections = [error], []
    for m in range(1, order + 1):
        behind = wide[..., 1:m].flip(-1)  # r_{m-1} .. r_1
        k = (wide[..., m] - (a * behind).sum(-1)) / error
        mirrored = a.flip(-1)
        mirrored = mirrored.conj() if mirrored.is_complex() else mirrored
        a = torch.cat((a - k[..., None] * mirrored, k[..., None]), -1)
        size = k.real.square() + k.imag.square() if k.is_complex() else k.square()
        error = error * (1 - size)
        variances.append(error)
        reflections.append(k)
    kept = torch.stack(reflections, -1) if reflections else wide[..., :0]
    return a, torch.stack(variances, -1), kept
