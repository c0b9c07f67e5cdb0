"""What it costs to find a rule and to wrap its result, at sizes where the arithmetic is nothing."""

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Figure, Problem, Tensors, speed
from structmat import dispatch

__all__ = ["CASES"]


def _operands() -> tuple[torch.Tensor, torch.Tensor, Tensors, tuple[float, ...]]:
    torch.manual_seed(6)
    left, right = torch.randn(2, 5, 5)
    product = left.double() @ right.double()
    size = float(torch.linalg.vector_norm(product))
    norms = float(torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right))
    return left, right, (product,), (5 * torch.finfo(torch.float32).eps * norms / size,)  # n eps ||A|| ||B||


def _dense() -> Problem:
    from cola.ops import Dense

    left, right, product, limits = _operands()
    a, b = sm.Dense(left), sm.Dense(right)
    c, d = Dense(left), Dense(right)
    contenders = {
        "ours": Contender(lambda: (a @ b,), read=lambda out: (out[0].to_dense(),)),
        "peer": Contender(lambda: (c @ d,), "cola", lambda out: (out[0].to_dense(),)),
        "torch": Contender(lambda: (left @ right,)),
    }
    return Problem(contenders, ("product",), lambda: product, limits)


def _wrapping() -> Problem:
    left, right, product, limits = _operands()
    a, b = sm.Dense(left), sm.Dense(right)
    ready = left @ right

    def bare() -> Tensors:
        dispatch.lookup("matmul", sm.Dense, sm.Dense)
        return (sm.Dense(ready),)

    contenders = {
        "ours": Contender(bare, read=lambda out: (out[0].to_dense(),)),
        "whole": Contender(lambda: (a @ b,), read=lambda out: (out[0].to_dense(),)),
        "torch": Contender(lambda: (left @ right,)),
    }
    return Problem(contenders, ("product",), lambda: product, limits)


CASES: tuple[Case, ...] = (
    Case(
        "dispatch/dense@dense 5x5",
        "Dense(5x5) @ Dense(5x5) against cola's",
        _dense,
        speed(must=20),
        peers=("cola",),
    ),
    Case(
        "dispatch/lookup and wrapping",
        "looking up the rule and wrapping its result, without the checks of the operands",
        _wrapping,
        Figure("us", lambda t: 1e6 * t["ours"], lambda t: 10.0, None, at_least=False),
        versus="torch",
    ),
    Case(
        "dispatch/all overhead 5x5",
        "all that A @ B adds to the product of the two tensors: checks, lookup, wrapping",
        _wrapping,
        Figure("us", lambda t: 1e6 * (t["whole"] - t["torch"]), None, lambda t: 10.0, at_least=False),
        versus="torch",
    ),
)
