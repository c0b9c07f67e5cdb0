"""Toeplitz products, entries and sums along diagonals by Triton kernels; ``backend.kernel`` decides when.

Three vectors are tied by ``y_i = sum_j t[i - j + n - 1] x_j``, as in ``fourier``, and each is the gradient of the
others: one Function with a *role* (what it returns) closes under differentiation of any order, forward and reverse, and
under vmap. The entries of A and the sums along its diagonals are each other's gradients in the same way.

Rows are in the dtype of the result (bfloat16, float16, float32); t is rounded to it once, and what sums over rows, the
role "t", is returned in float32. Up to 256 rows nothing of A is stored. For more rows ("formed") the m x n entries are
written in the dtype of the rows and multiplied by ``torch.matmul``; the gradient of t stores a few tiles a diagonal.
"""

import dataclasses
import math
from typing import Any

import torch

from structmat import backend
from structmat.functional.rows import broadcast, flattened, restored

__all__ = ["FEW", "kernels_of", "operation_of", "toeplitz_diagonals", "toeplitz_entries", "toeplitz_rows"]

FEW = 256  # rows up to which A is not formed: there, reading and writing its entries would take most of the time


@dataclasses.dataclass(frozen=True)
class _Job:
    """The vector returned, the sizes m and n, whether A is formed, and the launchers; opaque to torch's pytrees."""

    role: str
    m: int
    n: int
    formed: bool
    kernels: Any


def operation_of(rows: int, n: int, diagonals: int) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """The name under which ``backend.choose`` knows a product with so many rows, and the sizes it looks at."""
    return "toeplitz_product" if rows <= FEW else "toeplitz_formed", ((rows, n), (diagonals,))


def _served(*tensors: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or not backend.served(tensors[0]):
        return False
    return all(t.is_floating_point() and t.numel() > 0 for t in tensors)


def kernels_of(v: torch.Tensor, x: torch.Tensor, n: int, diagonals: int) -> Any:
    """The launchers that serve ``x A^T`` for an A of so many diagonals, built from v ``(*b, ...)``, or None."""
    if not _served(v, x):
        return None
    name, sizes = operation_of(_rows_of(x, v.shape[:-1]), n, diagonals)
    return backend.kernel(name, x, dtype=torch.promote_types(v.dtype, x.dtype), module="toeplitz", shapes=sizes)


def _rows_of(x: torch.Tensor, lead: torch.Size) -> int:
    """How many rows meet one matrix: what ``flattened`` will find."""
    if x.ndim == 1:
        return 1
    return math.prod(broadcast(x.shape[:-2], lead)) * int(x.shape[-2]) // math.prod(lead)


def toeplitz_rows(t: torch.Tensor, x: torch.Tensor, n: int, kernels: Any) -> torch.Tensor:
    """``x A^T`` as ``toeplitz.toeplitz_product`` has it: t ``(*b, m + n - 1)``, x ``(..., k, n)`` or one row."""
    out = torch.promote_types(t.dtype, x.dtype)
    lone = x.ndim == 1
    lead, m = t.shape[:-1], t.shape[-1] - n + 1
    wide = backend.compute_dtype(out)
    with backend.full_precision(x.device):
        flat, shape = flattened(x[None] if lone else x, lead)
        weights = t.to(wide).reshape(math.prod(lead), t.shape[-1])
        y = _Product.apply(weights, flat.to(out), _Job("y", m, n, flat.shape[-2] > FEW, kernels))
        y = restored(y, (*shape[:-1], m), lead)
    return y[..., 0, :] if lone else y


def toeplitz_entries(t: torch.Tensor, n: int) -> torch.Tensor | None:
    """The dense ``(*b, m, n)`` matrix, or None where no kernel serves."""
    if not _served(t):
        return None
    m = t.shape[-1] - n + 1
    kernels = backend.kernel("toeplitz_form", t, module="toeplitz", shapes=((m, n),))
    if kernels is None:
        return None
    entries = _Entries.apply(t.reshape(-1, t.shape[-1]), _Job("entries", m, n, True, kernels))
    return entries.reshape(*t.shape[:-1], m, n)


def toeplitz_diagonals(a: torch.Tensor) -> torch.Tensor | None:
    """The sums along the diagonals of ``(*b, m, n)``, or None where no kernel serves; in the dtype of a."""
    if not _served(a):
        return None
    m, n = a.shape[-2:]
    kernels = backend.kernel("toeplitz_form", a, module="toeplitz", shapes=((m, n),))
    if kernels is None:
        return None
    sums = _Diagonals.apply(a.reshape(-1, m, n), _Job("t", m, n, True, kernels))
    return sums.reshape(*a.shape[:-2], m + n - 1)


_INPUTS = {"y": ("t", "x"), "x": ("t", "y"), "t": ("x", "y")}  # in the order of the arguments


def _launched(u: torch.Tensor, v: torch.Tensor, job: _Job) -> torch.Tensor:
    """The role from its two inputs: t ``(batch or 1, m + n - 1)``, x ``(batch, rows, n)``, y ``(batch, rows, m)``."""
    m, n, kernels = job.m, job.n, job.kernels
    if _batched(u, v):
        return _formula(u, v, job)
    if job.role == "t":
        common = v.dtype if u.dtype == v.dtype else torch.promote_types(u.dtype, v.dtype)
        return kernels.correlate(u.to(common), v.to(common))  # type: ignore[no-any-return]
    t = u.to(v.dtype)
    if job.formed:
        entries = kernels.form(t, n)
        return torch.matmul(v, entries.mT if job.role == "y" else entries)
    t = t.expand(v.shape[0], -1)
    sign, outs = (1, m) if job.role == "y" else (-1, n)
    return kernels.apply(v, t, n - 1, sign, outs)  # type: ignore[no-any-return]


def _batched(*tensors: torch.Tensor) -> bool:
    """Whether ``autograd.grad(..., is_grads_batched=True)`` runs, whose tensors no vmap rule is asked about."""
    return any(torch._C._functorch.is_legacy_batchedtensor(w) for w in tensors)


def _places(m: int, n: int, device: torch.device) -> torch.Tensor:
    return torch.arange(m, device=device)[:, None] - torch.arange(n, device=device) + (n - 1)


def _formula(u: torch.Tensor, v: torch.Tensor, job: _Job) -> torch.Tensor:
    """``_launched`` in plain torch."""
    m, n = job.m, job.n
    if job.role == "t":
        wide = backend.compute_dtype(v.dtype)
        return _summed(v.to(wide).mT @ u.to(wide), m, n)
    entries = u[..., _places(m, n, u.device)].to(v.dtype)
    return v @ (entries.mT if job.role == "y" else entries)


def _summed(a: torch.Tensor, m: int, n: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(a.flip(-1), (0, m))  # row i holds its entries at (n - 1 - j); skew the rows by i
    skewed = padded.reshape(*a.shape[:-2], m * (n + m))[..., : m * (n + m - 1)]
    return skewed.reshape(*a.shape[:-2], m, n + m - 1).sum(-2)


class _Product(torch.autograd.Function):
    """Bilinear in its two tensors; saves them, and is its own derivative in another role."""

    @staticmethod
    def forward(u: Any, v: Any, job: _Job) -> Any:
        with backend.full_precision(v.device):
            return _launched(u, v, job)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        u, v, ctx.job = inputs
        ctx.save_for_backward(u, v)
        ctx.save_for_forward(u, v)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        given, job = dict(zip(_INPUTS[ctx.job.role], ctx.saved_tensors, strict=True)), ctx.job
        given[job.role] = grad
        found: list[Any] = [None, None]
        for place, name in enumerate(_INPUTS[job.role]):
            if ctx.needs_input_grad[place]:
                first, second = (given[other] for other in _INPUTS[name])
                back = _Product.apply(first, second, dataclasses.replace(job, role=name))
                like = given[name]
                found[place] = back.sum_to_size(like.shape).to(like.dtype)
        return *found, None

    @staticmethod
    def jvp(ctx: Any, du: Any, dv: Any, _: Any) -> Any:
        u, v = ctx.saved_tensors
        terms = [_Product.apply(a, b, ctx.job) for a, b in ((du, v), (u, dv)) if a is not None and b is not None]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, u: Any, v: Any, job: _Job) -> Any:
        size = info.batch_size
        first, second = (None if d is None else w.movedim(d, 0) for d, w in zip(in_dims, (u, v), strict=False))
        if first is None and job.role != "t" and u.shape[0] == 1 and second is not None:
            rows = second.reshape(1, -1, second.shape[-1])  # one matrix: more rows
            y = _Product.apply(u, rows, job)
            return y.reshape(*second.shape[:-1], y.shape[-1]), 0
        pair = []
        for w, moved in ((u, first), (v, second)):
            all_of = w.expand(size, *w.shape) if moved is None else moved
            pair.append(all_of)
        batch = max(pair[0].shape[1], pair[1].shape[1])  # t of one matrix meets a batch of rows
        flat = [w.expand(size, batch, *w.shape[2:]).reshape(size * batch, *w.shape[2:]) for w in pair]
        y = _Product.apply(*flat, job)
        return y.reshape(size, batch, *y.shape[1:]), 0


def _folded(run: Any, in_dims: Any, w: Any, job: _Job) -> Any:
    """A batch of batches is a batch."""
    moved = w.movedim(in_dims[0], 0)
    y = run.apply(moved.reshape(-1, *moved.shape[2:]), job)
    return y.reshape(*moved.shape[:2], *y.shape[1:]), 0


class _Entries(torch.autograd.Function):
    """t ``(batch, m + n - 1)`` to the entries ``(batch, m, n)``: linear, with ``_Diagonals`` as its transpose."""

    @staticmethod
    def forward(t: Any, job: _Job) -> Any:
        if _batched(t):
            return t[..., _places(job.m, job.n, t.device)]
        return job.kernels.form(t, job.n)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _Diagonals.apply(grad, ctx.job), None

    @staticmethod
    def jvp(ctx: Any, dt: Any, _: Any) -> Any:
        return _Entries.apply(dt, ctx.job)

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, job: _Job) -> Any:
        return _folded(_Entries, in_dims, t, job)


class _Diagonals(torch.autograd.Function):
    """``(batch, m, n)`` to the sums along its diagonals, kept in float32 and rounded once."""

    @staticmethod
    def forward(a: Any, job: _Job) -> Any:
        if _batched(a):
            return _summed(a.to(backend.compute_dtype(a.dtype)), job.m, job.n).to(a.dtype)
        return job.kernels.diagsum(a).to(a.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.job = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _Entries.apply(grad, ctx.job), None

    @staticmethod
    def jvp(ctx: Any, da: Any, _: Any) -> Any:
        return _Diagonals.apply(da, ctx.job)

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Any, job: _Job) -> Any:
        return _folded(_Diagonals, in_dims, a, job)
