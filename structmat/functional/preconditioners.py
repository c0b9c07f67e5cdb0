"""Circulant preconditioners of Toeplitz matrices, as first columns; t ``(*batch, 2 n - 1)`` -> ``(*batch, n)``."""

import torch

__all__ = ["chan", "normal_equations", "safely_definite", "strang"]


def strang(t: torch.Tensor) -> torch.Tensor:
    """First column of Strang's circulant, which copies the central diagonals: ``t_k`` for ``k <= n/2``, else
    ``t_{k-n}``.

    Source: G. Strang, A proposal for Toeplitz matrix calculations, 1986.
    """
    n = (t.shape[-1] + 1) // 2
    half = n // 2
    lower, upper = t[..., n - 1 :], t[..., : n - 1]  # t_0 .. t_{n-1} and t_{-(n-1)} .. t_{-1}
    return torch.cat((lower[..., : half + 1], upper[..., half:]), -1)


def chan(t: torch.Tensor) -> torch.Tensor:
    """First column of T. Chan's circulant, nearest in the Frobenius norm: ``((n - k) t_k + k t_{k-n}) / n``.

    Source: T. F. Chan, An optimal circulant preconditioner for Toeplitz systems, 1988.
    """
    n = (t.shape[-1] + 1) // 2
    k = torch.arange(n, dtype=torch.float64, device=t.device)
    upper = torch.cat((torch.zeros_like(t[..., :1]), t[..., : n - 1]), -1)
    return ((n - k) * t[..., n - 1 :] + k * upper) / n


def safely_definite(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Whether the smallest of real eigenvalues ``(*batch, n)`` exceeds ``sqrt(eps)`` times the largest."""
    least, most = torch.aminmax(eigenvalues, dim=-1)
    return least > torch.finfo(eigenvalues.dtype).eps ** 0.5 * most


def normal_equations(t: torch.Tensor, columns: int) -> torch.Tensor:
    """Eigenvalues ``(*batch, n)`` of a circulant near ``T^H T`` for a tall T ``(m, n)``, t ``(*batch, m + n - 1)``.

    T is cut into n x n blocks (the last filled up with zeros), and the squared moduli of the eigenvalues of T. Chan's
    circulants of the blocks add up.

    Source: R. H. Chan, J. G. Nagy, R. J. Plemmons, Circulant preconditioned Toeplitz least squares iterations, 1994.
    """
    n = columns
    blocks = -(-(t.shape[-1] - n + 1) // n)
    padded = torch.nn.functional.pad(t, (0, blocks * n + n - 1 - t.shape[-1]))
    windows = padded.unfold(-1, 2 * n - 1, n)  # block p holds the diagonals from p n - (n - 1) to p n + n - 1
    return torch.fft.fft(chan(windows)).abs().square().sum(-2)
