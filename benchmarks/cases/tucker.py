"""Tucker tensors against tensorly (forming, decomposing) and against the arithmetic of FLoRA (linear, convolution)."""

import functools

import torch
import torch.nn.functional as nnf

import structmat as sm
from benchmarks.case import Case, Contender, Problem, Tensors, speed

__all__ = ["CASES"]

_EPS = torch.finfo(torch.float32).eps
Sizes = tuple[int, ...]


def _tensorly() -> tuple[object, object]:
    import tensorly
    from tensorly import decomposition, tucker_tensor

    tensorly.set_backend("pytorch")
    return decomposition.tucker, tucker_tensor.tucker_to_tensor


def _drawn(dims: Sizes, ranks: Sizes) -> tuple[torch.Tensor, list[torch.Tensor]]:
    core = torch.randn(*ranks) / len(dims)
    return core, [torch.randn(d, r) / r**0.5 for d, r in zip(dims, ranks, strict=True)]


def _formed(core: torch.Tensor, factors: list[torch.Tensor]) -> torch.Tensor:
    """FLoRA's delta: one tensordot a mode, each of which moves that mode to the end."""
    for u in factors:
        core = torch.tensordot(core, u, ([0], [1]))
    return core


def _reconstruct(dims: Sizes, ranks: Sizes) -> Problem:
    torch.manual_seed(21)
    core, factors = _drawn(dims, ranks)
    tucker = sm.Tucker(core, tuple(factors))
    _, form = _tensorly()
    contenders = {
        "ours": Contender(lambda: (tucker.to_dense(),)),
        "peer": Contender(lambda: (form((core, factors)),), "tensorly"),  # type: ignore[operator]
    }
    wide = [core.double(), [u.double() for u in factors]]
    return Problem(contenders, ("T",), lambda: (_formed(*wide),), (8 * _EPS * len(dims),))


def _decompose(dims: Sizes, ranks: Sizes, method: str) -> Problem:
    """A tensor of these ranks with 10 % of noise; what counts is the error, within 1 % of the least known."""
    torch.manual_seed(22)
    clean = _formed(*_drawn(dims, ranks))
    noise = torch.randn(dims)
    tensor = clean / clean.norm() + 0.1 * noise / noise.norm()
    tucker, _ = _tensorly()

    def ours() -> Tensors:
        found = sm.Tucker.decompose(tensor, ranks, method=method).tensor
        return found.core, *found.factors

    def peer() -> Tensors:
        core, factors = tucker(tensor, rank=list(ranks))  # type: ignore[operator]
        return core, *factors

    def error(found: Tensors) -> Tensors:
        core, *factors = (t.double() for t in found)
        return (torch.linalg.vector_norm(_formed(core, list(factors)) - tensor.double()).reshape(1),)

    def least() -> Tensors:
        return (sm.Tucker.decompose(tensor.double(), ranks, method="hooi", sweeps=100).error.reshape(1),)

    contenders = {"ours": Contender(ours, read=error), "peer": Contender(peer, "tensorly", read=error)}
    return Problem(contenders, ("error",), least, (0.01,))


def _linear(d: int, r: int, rows: int) -> Problem:
    """The path of the update alone, forward and backward: ``x (s B G^T A^T)^T``."""
    torch.manual_seed(23)
    core, factors = _drawn((d, d), (r, r))
    leaves = [t.requires_grad_() for t in (core, *factors)]
    x, g = torch.randn(rows, d).requires_grad_(), torch.randn(rows, d)

    def ours() -> Tensors:
        y = sm.Tucker(leaves[0], tuple(leaves[1:])).matricize(0).linear(x)
        return y, *torch.autograd.grad(y, (x, *leaves), g)

    def formed(v: torch.Tensor, c: torch.Tensor, *us: torch.Tensor) -> torch.Tensor:
        return nnf.linear(v, _formed(c, list(us)))

    def peer() -> Tensors:
        y = formed(x, *leaves)
        return y, *torch.autograd.grad(y, (x, *leaves), g)

    names = ("y", "grad x", "grad core", "grad U_1", "grad U_2")
    return Problem(
        {"ours": Contender(ours), "peer": Contender(peer)},
        names,
        functools.partial(_in_double, formed, x, leaves, g),
        (20 * _EPS,) * 5,
    )


def _in_double(call: object, x: torch.Tensor, leaves: list[torch.Tensor], g: torch.Tensor) -> Tensors:
    wide = [t.detach().double().requires_grad_() for t in (x, *leaves)]
    y = call(*wide)  # type: ignore[operator]
    return y.detach(), *torch.autograd.grad(y, wide, g.double())


def _conv(batch: int, base: bool) -> Problem:
    """256 to 256 channels, 3 x 3, 32 x 32 pixels, ranks (8, 8, 3, 3), forward and backward; ``base``: with the frozen
    convolution beside the update."""
    torch.manual_seed(24)
    core, factors = _drawn((256, 256, 3, 3), (8, 8, 3, 3))
    leaves = [t.requires_grad_() for t in (core, *factors)]
    x, g = torch.randn(batch, 256, 32, 32).requires_grad_(), torch.randn(batch, 256, 32, 32)
    frozen = torch.randn(256, 256, 3, 3) / 48

    def beside(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return y + nnf.conv2d(v, frozen.to(v.dtype), padding=1) if base else y

    def ours() -> Tensors:
        y = beside(sm.Tucker(leaves[0], tuple(leaves[1:])).conv(x, padding=1), x)
        return y, *torch.autograd.grad(y, (x, *leaves), g)

    def formed(v: torch.Tensor, c: torch.Tensor, *us: torch.Tensor) -> torch.Tensor:
        return beside(nnf.conv2d(v, _formed(c, list(us)), padding=1), v)

    def peer() -> Tensors:
        y = formed(x, *leaves)
        return y, *torch.autograd.grad(y, (x, *leaves), g)

    names = ("y", "grad x", "grad core", *(f"grad U_{k}" for k in range(1, 5)))
    contenders = {"ours": Contender(ours), "peer": Contender(peer)}
    return Problem(contenders, names, functools.partial(_in_double, formed, x, leaves, g), (40 * _EPS,) * 7)


CASES: tuple[Case, ...] = (
    *(
        Case(
            f"tucker/form {n}x{n}x3x3",
            "all entries of a tensor of ranks (8, 8, 3, 3), against tensorly",
            lambda n=n: _reconstruct((n, n, 3, 3), (8, 8, 3, 3)),
            speed(must=6, aim=8),
            ("tensorly",),
        )
        for n in (256, 512)
    ),
    Case(
        "tucker/form 64x64x64",
        "all entries of a tensor of ranks (8, 8, 8), against tensorly",
        lambda: _reconstruct((64, 64, 64), (8, 8, 8)),
        speed(aim=2),
        ("tensorly",),
    ),
    Case(
        "tucker/decompose 256x256x9 randomised",
        "to ranks (16, 16, 3), the error within 1 % of the least, against tensorly's default",
        lambda: _decompose((256, 256, 9), (16, 16, 3), "randomised"),
        speed(must=15, aim=35),
        ("tensorly",),
    ),
    Case(
        "tucker/decompose 256x256x9 st_hosvd",
        "to ranks (16, 16, 3), deterministic, against tensorly's default",
        lambda: _decompose((256, 256, 9), (16, 16, 3), "st_hosvd"),
        speed(aim=10),
        ("tensorly",),
    ),
    Case(
        "tucker/linear d=4096 r=16 rows=256",
        "the update of a linear layer alone, forward and backward, against FLoRA's arithmetic (it forms the update)",
        lambda: _linear(4096, 16, 256),
        speed(must=50, aim=70),
        heavy=True,
    ),
    Case(
        "tucker/conv layer 256 3x3 batch=8",
        "a frozen convolution and its update, forward and backward, against FLoRA's arithmetic (two convolutions)",
        lambda: _conv(8, base=True),
        speed(must=1.8, aim=2.1),
        heavy=True,
    ),
    Case(
        "tucker/conv update 256 3x3 batch=8",
        "the update of a convolution alone, forward and backward, against FLoRA's arithmetic",
        lambda: _conv(8, base=False),
        speed(aim=12),
        heavy=True,
    ),
)
