"""Butterflies and Cayley blocks, forward and backward, against plain torch: a pass a factor, and a solve a block."""

import math
from collections.abc import Callable

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, Tensors, speed
from structmat.functional import butterfly as fb
from structmat.functional import butterfly_apply as fa
from structmat.functional import orthogonal as fo

__all__ = ["CASES"]

_EPS = torch.finfo(torch.float32).eps


def _levels(twiddle: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The arithmetic of torch_butterfly without its extension: per level, with stride s, a multiply and a sum over
    ``(n / 2s, 2, 2, s)``; twiddle ``(levels, n / 2, 2, 2)``."""
    rows, n = x.shape
    for level, t in enumerate(twiddle.unbind()):
        stride = 1 << level
        t = t.view(n // (2 * stride), stride, 2, 2).permute(0, 2, 3, 1)
        x = (t * x.view(rows, n // (2 * stride), 1, 2, stride)).sum(3)
    return x.reshape(rows, n)


def _butterfly(n: int, rows: int) -> Problem:
    torch.manual_seed(11)
    levels = n.bit_length() - 1
    twiddle = (torch.randn(levels, n // 2, 2, 2) / math.sqrt(2)).requires_grad_()
    x, g = torch.randn(rows, n).requires_grad_(), torch.randn(rows, n)
    axes = tuple((k,) for k in range(levels - 1, -1, -1))

    def ours() -> Tensors:
        y = sm.Butterfly(twiddle.unbind(), (2,) * levels, axes).linear(x)
        return y, *torch.autograd.grad(y, (x, twiddle), g)

    def peer() -> Tensors:
        y = _levels(twiddle, x)
        return y, *torch.autograd.grad(y, (x, twiddle), g)

    def reference() -> Tensors:
        t, z = twiddle.detach().double().requires_grad_(), x.detach().double().requires_grad_()
        y = _levels(t, z)
        return y, *torch.autograd.grad(y, (z, t), g.double())

    turn = 4 * _EPS * math.sqrt(levels) * 2
    limits = (turn, turn, turn * math.sqrt(levels))
    contenders = {"ours": Contender(ours), "peer": Contender(peer)}
    return Problem(contenders, ("y", "grad x", "grad twiddle"), reference, limits)


def _cut(d: int, block: int, factors: int, rows: int) -> Problem:
    """The cut that the cost rule takes, against those of fixed rules: factor by factor, in two halves, in one pass."""
    torch.manual_seed(12)
    a = sm.OrthogonalButterfly.random(d, block, factors).to_butterfly()
    blocks = tuple(w.detach().requires_grad_() for w in a.tensors())
    digits, axes = a.digits, a.axes
    x, g = torch.randn(rows, d).requires_grad_(), torch.randn(rows, d)
    links = fb.chain(digits, axes, tuple(w.shape[-2] for w in blocks))

    def through(plan: fa.Program) -> Tensors:
        y = fa.kept_rows(x, fa.merged_blocks(blocks, plan), plan, None, torch.float32)
        return y, *torch.autograd.grad(y, (x, *blocks), g)

    ends = {"ours": None, "peer": tuple(range(1, factors + 1)), "halves": (factors // 2, factors), "whole": (factors,)}
    plans = {
        name: fa.program(digits, axes, tuple(w.shape[-2] for w in blocks), rows)
        if cut is None
        else fa.program_of(links, cut)
        for name, cut in ends.items()
    }
    names = ("y", "grad x", *(f"grad block {k}" for k in range(factors)))

    def reference() -> Tensors:
        ws = tuple(w.detach().double().requires_grad_() for w in blocks)
        z = x.detach().double().requires_grad_()
        y = fa.kept_rows(z, fa.merged_blocks(ws, plans["peer"]), plans["peer"], None, torch.float64)
        return y, *torch.autograd.grad(y, (z, *ws), g.double())

    limit = 16 * _EPS * (1 + math.sqrt(factors))
    contenders = {name: Contender(lambda plan=plan: through(plan)) for name, plan in plans.items()}
    return Problem(contenders, names, reference, (limit,) * len(names))


def _cayley(block: int, d: int) -> Problem:
    """All rotations of four factors at order d, from K: what both forms start from."""
    torch.manual_seed(13)
    many = 4 * d // block
    k = fo.skew(0.3 * torch.randn(many, block * (block - 1) // 2), block).requires_grad_()
    g = torch.randn(many, block, block)

    def with_map(form: Callable[[torch.Tensor], torch.Tensor], leaf: torch.Tensor, weight: torch.Tensor) -> Tensors:
        r = form(leaf)
        return r, *torch.autograd.grad(r, leaf, weight)

    def solve(k: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(block, dtype=k.dtype)
        return torch.linalg.solve(eye + k, eye - k, left=False)

    contenders = {
        "ours": Contender(lambda: with_map(fo.cayley, k, g)),
        "peer": Contender(lambda: with_map(solve, k, g)),
    }
    limits = (32 * _EPS * math.sqrt(block), 64 * _EPS * math.sqrt(block))
    wide = k.detach().double().requires_grad_()
    return Problem(contenders, ("R", "grad K"), lambda: with_map(solve, wide, g.double()), limits)


CASES: tuple[Case, ...] = (
    Case(
        "butterfly/apply n=1024 rows=256",
        "ten factors of 2 x 2 blocks, forward and backward, against torch_butterfly's arithmetic in torch",
        lambda: _butterfly(1024, 256),
        speed(must=6, aim=8),
    ),
    Case(
        "butterfly/apply n=1024 rows=2048",
        "ten factors of 2 x 2 blocks, forward and backward, against torch_butterfly's arithmetic in torch",
        lambda: _butterfly(1024, 2048),
        speed(must=9, aim=11),
        heavy=True,
    ),
    Case(
        "butterfly/apply n=1024 rows=16",
        "ten factors of 2 x 2 blocks, forward and backward, against torch_butterfly's arithmetic in torch",
        lambda: _butterfly(1024, 16),
        speed(aim=2.5),
    ),
    *(
        Case(
            f"butterfly/cut d={d} b={b} m={m} rows={rows}",
            "the cut of the cost rule, forward and backward, against factor by factor (halves and one pass beside it)",
            lambda d=d, b=b, m=m, rows=rows: _cut(d, b, m, rows),
            speed(aim=aim),
        )
        for d, b, m, rows, aim in ((1024, 2, 10, 1024, 2), (768, 8, 4, 1024, 1.5), (1024, 32, 2, 1024, 1.2))
    ),
    *(
        Case(
            f"cayley/solve b={b} d={d}",
            "the blocks of four factors from skew ones, forward and backward, polished, against torch.linalg.solve",
            lambda b=b, d=d: _cayley(b, d),
            speed(must=1.3 if d == 4096 else None, aim=1.3 if d == 1024 else 1.6),
        )
        for d in (1024, 4096)
        for b in (8, 16, 32, 64)
    ),
)
