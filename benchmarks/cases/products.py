"""Products with Toeplitz and circulant matrices through the FFT, forward and backward for entries and operand."""

import math

import numpy
import scipy.linalg
import torch

import structmat as sm
from benchmarks.case import Case, Contender, Figure, Problem, Tensors, constant, speed

__all__ = ["CASES"]

_N = 4096


def _limits(hat: torch.Tensor, x: torch.Tensor, g: torch.Tensor, right: Tensors, length: int) -> tuple[float, ...]:
    """DESIGN's normwise bound ``4 eps (1 + log2 N) max|t_hat| ||x||``, over the size of each result.

    x and g are rows. The gradient of the entries sums one such product a row, so its bounds add up.
    """
    eps = 4 * torch.finfo(torch.float32).eps * (1 + math.log2(length))
    norms = [float(torch.linalg.vector_norm(t)) for t in right]
    largest = float(hat.abs().max())
    spectra = torch.fft.rfft(x.double(), length).abs().amax(-1)
    of_entries = float((spectra * torch.linalg.vector_norm(g.double(), dim=-1)).sum())
    size_x, size_g = (float(torch.linalg.vector_norm(t.double())) for t in (x, g))
    # twice: a symmetric matrix reads each number on two diagonals
    return eps * largest * size_x / norms[0], 2 * eps * of_entries / norms[1], eps * largest * size_g / norms[2]


def _dense_results(index: torch.Tensor, entries: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> Tensors:
    """``y = A x`` and gradients with ``A = entries[index]`` formed in float64; x, g ``(n, k)``."""
    a = entries.double()[index]
    x, g = x.double(), g.double()
    of_a = g @ x.mT
    gradient = torch.zeros(entries.shape[0], dtype=torch.float64).index_add_(0, index.flatten(), of_a.flatten())
    return a @ x, gradient, a.mT @ g


def _symmetric(columns: int) -> Problem:
    from linear_operator.operators import ToeplitzLinearOperator

    torch.manual_seed(1)
    column = (torch.randn(_N) / math.sqrt(_N)).requires_grad_()
    x = torch.randn(_N, columns).requires_grad_()
    g = torch.randn(_N, columns)

    def ours() -> Tensors:
        y = sm.SymmetricToeplitz(column) @ x
        return y, *torch.autograd.grad(y, (column, x), g)

    def peer() -> Tensors:
        y = ToeplitzLinearOperator(column) @ x
        return y, *torch.autograd.grad(y, (column, x), g)

    i = torch.arange(_N)
    right = _dense_results((i[:, None] - i).abs(), column.detach(), x.detach(), g)
    even = torch.cat((column.detach(), column.detach()[1:].flip(0))).double()
    limits = _limits(torch.fft.fft(even), x.detach().mT, g.mT, right, 2 * _N)
    contenders = {"ours": Contender(ours), "peer": Contender(peer, "linear_operator")}
    return Problem(contenders, ("y", "grad column", "grad x"), lambda: right, limits)


def _circulant(rows: int) -> Problem:
    from peft.tuners.c3a.utils import BlockCircularConvolution

    torch.manual_seed(2)
    column = (torch.randn(_N) / math.sqrt(_N)).requires_grad_()
    x = torch.randn(rows, _N).requires_grad_()
    g = torch.randn(rows, _N)
    i = torch.arange(_N)
    kernel = column.detach()[-i % _N].requires_grad_()  # the peer correlates: its parameter is read backwards

    def ours() -> Tensors:
        y = sm.Circulant(column).linear(x)
        return y, *torch.autograd.grad(y, (column, x), g)

    def peer() -> Tensors:
        y = BlockCircularConvolution.apply(x, kernel[None, None])
        return y, *torch.autograd.grad(y, (kernel, x), g)

    y, by_column, by_x = _dense_results((i[:, None] - i) % _N, column.detach(), x.detach().mT, g.mT)
    right = (y.mT, by_column, by_x.mT)
    limits = _limits(torch.fft.fft(column.detach().double()), x.detach(), g, right, _N)
    # peft 0.21.2 returns sum_k g_k w_{k + j} where the gradient of its own forward pass in x is sum_k g_k w_{j - k}
    # (the same work): that output is not compared, and its distance from the gradient is reported as a fact.
    contenders = {
        "ours": Contender(ours),
        "peer": Contender(peer, "peft", lambda out: (out[0], out[1][-i % _N], None)),
    }

    def facts() -> dict[str, float]:
        return {"peer's grad x is off by": float((peer()[2] - right[2]).norm() / right[2].norm())}

    return Problem(contenders, ("y", "grad column", "grad x"), lambda: right, limits, facts)


def _forward(columns: int) -> Problem:
    torch.manual_seed(3)
    diagonals = torch.randn(2 * _N - 1) / math.sqrt(_N)
    x = torch.randn(_N, columns)
    a = sm.Toeplitz(diagonals, _N)
    host = diagonals.numpy()
    pair, rows = (host[_N - 1 :], host[:_N][::-1].copy()), x.numpy()
    i = torch.arange(_N)
    right = (diagonals.double()[i[:, None] - i + _N - 1] @ x.double(),)
    hat = torch.fft.fft(diagonals.double())
    limits = _limits(hat, x.mT, x.mT, right * 3, 2 * _N)[:1]
    contenders = {
        "ours": Contender(lambda: (a @ x,)),
        "peer": Contender(
            lambda: (torch.from_numpy(numpy.asarray(scipy.linalg.matmul_toeplitz(pair, rows))),),
            "scipy",
        ),
    }
    return Problem(contenders, ("y",), lambda: right, limits)


_MILLION = 10**6


def _million(kind: str) -> Problem:
    torch.manual_seed(4)
    entries = torch.randn(_MILLION if kind == "circulant" else 2 * _MILLION - 1) / math.sqrt(_MILLION)
    a = sm.Circulant(entries) if kind == "circulant" else sm.Toeplitz(entries, _MILLION)
    x = torch.randn(_MILLION)

    def right() -> Tensors:
        """By transforms of the padded vectors in float64, at a length of its own."""
        length = 3 * 2**20
        hat = numpy.fft.rfft(entries.double().numpy(), length) * numpy.fft.rfft(x.double().numpy(), length)
        full = numpy.fft.irfft(hat, length)
        if kind == "circulant":
            full[: _MILLION - 1] += full[_MILLION : 2 * _MILLION - 1]
            return (torch.from_numpy(full[:_MILLION].copy()),)
        return (torch.from_numpy(full[_MILLION - 1 : 2 * _MILLION - 1].copy()),)

    exact = right()
    hat = torch.fft.fft(entries.double())
    limits = _limits(hat, x[None], x[None], exact * 3, 2 * _MILLION)[:1]
    return Problem({"ours": Contender(lambda: (a @ x,))}, ("y",), lambda: exact, limits)


CASES: tuple[Case, ...] = (
    Case(
        f"toeplitz/symmetric n={_N} columns=64",
        "symmetric Toeplitz times 64 columns, forward and backward, against linear_operator",
        lambda: _symmetric(64),
        speed(must=7, aim=10),
        peers=("linear_operator",),
    ),
    Case(
        f"toeplitz/symmetric n={_N} columns=1",
        "symmetric Toeplitz times one column, forward and backward, against linear_operator",
        lambda: _symmetric(1),
        speed(must=5, aim=9),
        peers=("linear_operator",),
    ),
    Case(
        f"toeplitz/forward n={_N} columns=64",
        "Toeplitz times 64 columns, forward, against scipy.linalg.matmul_toeplitz (which computes in float64)",
        lambda: _forward(64),
        speed(aim=8),
    ),
    Case(
        f"circulant n={_N} rows=64",
        "rows times a circulant, forward and backward, against the convolution of peft's C3A",
        lambda: _circulant(64),
        speed(must=1.6, aim=2.3),
        peers=("peft",),
    ),
    Case(
        f"circulant n={_N} rows=1",
        "one row times a circulant, forward and backward, against the convolution of peft's C3A",
        lambda: _circulant(1),
        speed(must=3, aim=4),
        peers=("peft",),
    ),
    Case(
        "circulant n=1000000",
        "one product with a circulant of order 10^6 in float32",
        lambda: _million("circulant"),
        Figure("s", lambda t: t["ours"], constant(1.0), at_least=False),
    ),
    Case(
        "toeplitz n=1000000",
        "one product with a Toeplitz matrix of order 10^6 in float32",
        lambda: _million("toeplitz"),
        Figure("s", lambda t: t["ours"], constant(1.0), at_least=False),
    ),
)
