"""A product of reflections applied to rows, forward and backward, against the loop and LAPACK's ormqr."""

import math

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, Tensors, speed

__all__ = ["CASES"]


def _loop(vectors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for v in reversed(vectors.unbind()):
        x = x - 2 / (v @ v) * torch.outer(x @ v, v)
    return x


def _problem(d: int, rank: int, rows: int) -> Problem:
    torch.manual_seed(7)
    vectors = torch.randn(rank, d).requires_grad_()
    x = torch.randn(rows, d).requires_grad_()
    g = torch.randn(rows, d)

    def ours() -> Tensors:
        y = sm.HouseholderProduct(vectors).linear(x)
        return y, *torch.autograd.grad(y, (x, vectors), g)

    def loop() -> Tensors:
        y = _loop(vectors, x)
        return y, *torch.autograd.grad(y, (x, vectors), g)

    def reference() -> Tensors:
        u, z = vectors.detach().double().requires_grad_(), x.detach().double().requires_grad_()
        y = _loop(u, z)
        return y, *torch.autograd.grad(y, (z, u), g.double())

    eps = torch.finfo(torch.float32).eps
    turn = 8 * eps * (1 + math.sqrt(rank))
    limits = (turn, turn, math.sqrt(rank) * (turn + eps * math.sqrt(max(d, rows))))
    contenders = {"ours": Contender(ours), "peer": Contender(loop)}
    return Problem(contenders, ("y", "grad x", "grad vectors"), reference, limits)


def _forward(d: int, rank: int, rows: int) -> Problem:
    """ormqr applies reflections with leading zeros and ones only, so the vectors come from a QR factorisation."""
    torch.manual_seed(8)
    reflectors, tau = torch.geqrf(torch.randn(d, rank))
    vectors = torch.tril(reflectors, -1) + torch.eye(d, rank)
    a = sm.HouseholderProduct(vectors.mT.contiguous())
    x = torch.randn(rows, d)
    right = (_loop(vectors.mT.double(), x.double()),)
    contenders = {
        "ours": Contender(lambda: (a.linear(x),)),
        "peer": Contender(lambda: (torch.ormqr(reflectors, tau, x, left=False, transpose=True),)),
    }
    eps = torch.finfo(torch.float32).eps
    return Problem(contenders, ("y",), lambda: right, (8 * eps * (1 + math.sqrt(rank)),))


CASES: tuple[Case, ...] = (
    Case(
        "householder/loop d=1024 r=32 rows=256",
        "32 reflections of 256 rows, forward and backward, against one after the other in torch",
        lambda: _problem(1024, 32, 256),
        speed(aim=30),
    ),
    Case(
        "householder/ormqr d=1024 r=32 rows=256",
        "32 reflections of 256 rows, forward, against torch.ormqr",
        lambda: _forward(1024, 32, 256),
        speed(aim=1),
    ),
)
