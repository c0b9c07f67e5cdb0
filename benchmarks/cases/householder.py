"""A product of reflections applied to rows, forward and backward, against the loop and LAPACK's ormqr."""

import math

import torch
from torch.nn.utils.parametrizations import orthogonal

import structmat as sm
from benchmarks.case import Case, Contender, Figure, Problem, Tensors, constant, speed

__all__ = ["CASES"]


def _loop(vectors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for v in reversed(vectors.unbind()):
        x = x - 2 / (v @ v) * torch.outer(x @ v, v)
    return x


def _merged(vectors: torch.Tensor, x: torch.Tensor, block: int = 32) -> torch.Tensor:
    """The arithmetic of FastH++ (A. Mathiasen et al., What if neural networks had SVDs?, 2020): blocks of reflections
    become ``I - 2 W Y^T`` by merging neighbours, log2(block) times over all blocks at once, then act in turn."""
    y = (vectors / vectors.norm(dim=1, keepdim=True)).unflatten(0, (-1, 1))
    w = y
    while w.shape[1] < min(block, vectors.shape[0]):
        (w1, w2), (y1, y2) = ((t[0::2], t[1::2]) for t in (w, y))
        w = torch.cat((w1, w2 - 2 * (w2 @ y1.mT) @ w1), 1)
        y = torch.cat((y1, y2), 1)
    for k in range(w.shape[0] - 1, -1, -1):
        x = x - 2 * (x @ y[k].mT) @ w[k]
    return x


def _problem(d: int, rank: int, rows: int, peer: str = "loop") -> Problem:
    torch.manual_seed(7)
    vectors = torch.randn(rank, d).requires_grad_()
    x = torch.randn(rows, d).requires_grad_()
    g = torch.randn(rows, d)

    def ours() -> Tensors:
        y = sm.HouseholderProduct(vectors).linear(x)
        return y, *torch.autograd.grad(y, (x, vectors), g)

    def other() -> Tensors:
        y = _loop(vectors, x) if peer == "loop" else _merged(vectors, x)
        return y, *torch.autograd.grad(y, (x, vectors), g)

    square = torch.randn(_GEMM, _GEMM)

    def reference() -> Tensors:
        u, z = vectors.detach().double().requires_grad_(), x.detach().double().requires_grad_()
        y = _loop(u, z)
        return y, *torch.autograd.grad(y, (z, u), g.double())

    eps = torch.finfo(torch.float32).eps
    turn = 8 * eps * (1 + math.sqrt(rank))
    limits = (turn, turn, math.sqrt(rank) * (turn + eps * math.sqrt(max(d, rows))))
    contenders = {"ours": Contender(ours), "peer": Contender(other)}
    if peer == "floor":
        contenders["peer"] = Contender(lambda: (square @ square,), read=None)
    return Problem(contenders, ("y", "grad x", "grad vectors"), reference, limits)


_GEMM = 1024  # the order of the matrix product that tells the machine's flop rate


def _over_the_floor(d: int, rank: int, rows: int, must: float | None, aim: float | None) -> Figure:
    """Our time over what our flops (4 d r^2 + 12 d r rows) would take at the rate of a large matrix product."""
    share = (4 * d * rank**2 + 12 * d * rank * rows) / (2 * _GEMM**3)
    value = lambda t: t["ours"] / (t["peer"] * share)  # noqa: E731
    return Figure("x of the flop floor", value, constant(must), constant(aim), at_least=False)


def _map(d: int, rows: int, kind: str) -> Problem:
    """A square orthogonal weight as torch parametrises it, against d reflections; each is judged by its own product."""
    torch.manual_seed(9)
    vectors = torch.randn(d, d).requires_grad_()
    layer = orthogonal(torch.nn.Linear(d, d, bias=False), orthogonal_map=kind)
    x, g = torch.randn(rows, d), torch.randn(rows, d)

    def ours() -> Tensors:
        y = sm.HouseholderProduct(vectors).linear(x)
        return y, *torch.autograd.grad(y, (vectors,), g)

    def torchs() -> Tensors:
        return torch.autograd.grad(layer(x), list(layer.parameters()), g)

    def reference() -> Tensors:
        u = vectors.detach().double().requires_grad_()
        y = sm.HouseholderProduct(u).linear(x.double())
        return y, *torch.autograd.grad(y, (u,), g.double())

    eps = torch.finfo(torch.float32).eps
    turn = 8 * eps * (1 + math.sqrt(d))
    return Problem(
        {"ours": Contender(ours), "peer": Contender(torchs, read=None)},
        ("y", "grad vectors"),
        reference,
        (turn, math.sqrt(d) * turn),
    )


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
        speed(must=30, aim=36),
    ),
    Case(
        "householder/FastH++ d=1024 r=32 rows=256",
        "32 reflections of 256 rows, forward and backward, against the arithmetic of FastH++ in plain torch",
        lambda: _problem(1024, 32, 256, "merged"),
        speed(must=2.3, aim=2.7),
    ),
    *(
        Case(
            f"householder/flops d={d} r={r} rows={n}",
            f"{r} reflections of {n} rows, forward and backward, over what their flops take in a matrix product",
            lambda d=d, r=r, n=n: _problem(d, r, n, "floor"),
            _over_the_floor(d, r, n, must=2.5, aim=1.6),
        )
        for d, r, n in ((768, 32, 256), (1024, 32, 256), (1024, 32, 2048), (1024, 128, 256), (1024, 128, 2048))
    ),
    Case(
        "householder/square matrix_exp d=1024 rows=256",
        "1024 reflections, forward and backward, against torch's parametrisation by the matrix exponential",
        lambda: _map(1024, 256, "matrix_exp"),
        speed(must=40, aim=50),
        heavy=True,
    ),
    Case(
        "householder/square cayley d=1024 rows=256",
        "1024 reflections, forward and backward, against torch's parametrisation by Cayley's map",
        lambda: _map(1024, 256, "cayley"),
        speed(must=2, aim=2.4),
    ),
    Case(
        "householder/ormqr d=1024 r=32 rows=256",
        "32 reflections of 256 rows, forward, against torch.ormqr",
        lambda: _forward(1024, 32, 256),
        speed(aim=1),
    ),
)
