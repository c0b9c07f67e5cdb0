"""Toeplitz products, entries and sums along diagonals by Triton kernels; ``backend.kernel`` decides when.

Three vectors are tied by ``y_i = sum_j t[i - j + n - 1] x_j``, as in ``fourier``, and each is the gradient of the
others: one Function with a *role* (what it returns) closes under differentiation of any order, forward and reverse, and
under vmap. The entries of A and the sums along its diagonals are each other's gradients in the same way.

Rows are in the dtype of the result (bfloat16, float16, float32); t is rounded to it once, and what sums over rows, the
role "t", is returned in float32. Up to 256 rows nothing of A is stored. For more rows ("formed") the m x n entries are
written in the dtype of the rows and multiplied by ``torch.matmul``; the gradient of t stores a few tiles a diagonal.
"""

import math
from typing import Any

import torch

from structmat import backend
from structmat.errors import BackendError
from structmat.functional import operators as op
from structmat.functional.operators import batched, either
from structmat.functional.rows import broadcast, flattened, restored

__all__ = ["FEW", "operation_of", "rows_served", "toeplitz_diagonals", "toeplitz_entries", "toeplitz_rows"]

FEW = 256  # rows up to which A is not formed: there, reading and writing its entries would take most of the time


def operation_of(rows: int, n: int, diagonals: int) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """The name under which ``backend.choose`` knows a product with so many rows, and the sizes it looks at."""
    return "toeplitz_product" if rows <= FEW else "toeplitz_formed", ((rows, n), (diagonals,))


def _served(*tensors: torch.Tensor) -> bool:
    return backend.served(tensors[0]) and all(t.is_floating_point() and t.numel() > 0 for t in tensors)


def rows_served(v: torch.Tensor, x: torch.Tensor, n: int, diagonals: int) -> bool:
    """Whether a kernel serves ``x A^T`` for an A of so many diagonals, built from v ``(*b, ...)``."""
    if not _served(v, x):
        return False
    name, sizes = operation_of(_rows_of(x, v.shape[:-1]), n, diagonals)
    return bool(backend.kernel(name, x, dtype=torch.promote_types(v.dtype, x.dtype), shapes=sizes))


def _rows_of(x: torch.Tensor, lead: torch.Size) -> int:
    """How many rows meet one matrix: what ``flattened`` will find."""
    if x.ndim == 1:
        return 1
    return math.prod(broadcast(x.shape[:-2], lead)) * int(x.shape[-2]) // math.prod(lead)


def toeplitz_rows(t: torch.Tensor, x: torch.Tensor, n: int) -> torch.Tensor:
    """``x A^T`` as ``toeplitz.toeplitz_product`` has it: t ``(*b, m + n - 1)``, x ``(..., k, n)`` or one row."""
    out = torch.promote_types(t.dtype, x.dtype)
    lone = x.ndim == 1
    lead, m = t.shape[:-1], t.shape[-1] - n + 1
    wide = backend.compute_dtype(out)
    with backend.full_precision(x.device):
        flat, shape = flattened(x[None] if lone else x, lead)
        weights = t.to(wide).reshape(math.prod(lead), t.shape[-1])
        y = _product(weights, flat.to(out), "y", m, n, flat.shape[-2] > FEW)
        y = restored(y, (*shape[:-1], m), lead)
    return y[..., 0, :] if lone else y


def _form_served(t: torch.Tensor, m: int, n: int) -> bool:
    """Never a refusal: entries are copies, the same bits either way, and solvers and checks ask for them in any dtype
    also where kernels are demanded for products."""
    try:
        return _served(t) and bool(backend.kernel("toeplitz_form", t, shapes=((m, n),)))
    except BackendError:
        return False


def toeplitz_entries(t: torch.Tensor, n: int) -> torch.Tensor | None:
    """The dense ``(*b, m, n)`` matrix, or None where no kernel serves."""
    m = t.shape[-1] - n + 1
    if not _form_served(t, m, n):
        return None
    found: torch.Tensor = _entries(t.reshape(-1, t.shape[-1]), n).reshape(*t.shape[:-1], m, n)
    return found


def toeplitz_diagonals(a: torch.Tensor) -> torch.Tensor | None:
    """The sums along the diagonals of ``(*b, m, n)``, or None where no kernel serves; in the dtype of a."""
    m, n = a.shape[-2:]
    if not _form_served(a, m, n):
        return None
    found: torch.Tensor = _diagonals(a.reshape(-1, m, n)).reshape(*a.shape[:-2], m + n - 1)
    return found


# -- the formula in plain torch ---------------------------------------------------------------------------------------


def _gathered(t: torch.Tensor, m: int, n: int) -> torch.Tensor:
    device = t.device
    return t[..., torch.arange(m, device=device)[:, None] - torch.arange(n, device=device) + (n - 1)]


def _summed(a: torch.Tensor) -> torch.Tensor:
    m, n = a.shape[-2:]
    padded = torch.nn.functional.pad(a.flip(-1), (0, m))  # row i holds its entries at (n - 1 - j); skew the rows by i
    skewed = padded.reshape(*a.shape[:-2], m * (n + m))[..., : m * (n + m - 1)]
    return skewed.reshape(*a.shape[:-2], m, n + m - 1).sum(-2)


def _formula(u: torch.Tensor, v: torch.Tensor, role: str, m: int, n: int, formed: bool) -> torch.Tensor:
    """The role from its two inputs: t ``(batch or 1, m + n - 1)``, x ``(batch, rows, n)``, y ``(batch, rows, m)``."""
    if role == "t":
        wide = op.sums(v.dtype)
        return _summed(v.to(wide).mT @ u.to(wide))
    entries = _gathered(u, m, n).to(v.dtype)
    return v @ (entries.mT if role == "y" else entries)


# -- the operators ----------------------------------------------------------------------------------------------------


def _fake(u: torch.Tensor, v: torch.Tensor, role: str, m: int, n: int, formed: bool) -> torch.Tensor:
    if role == "t":
        return v.new_empty(v.shape[0], m + n - 1, dtype=op.sums(v.dtype))
    return v.new_empty(*v.shape[:2], m if role == "y" else n)


@op.define("toeplitz_product(Tensor u, Tensor v, str role, int m, int n, bool formed) -> Tensor", _fake)
def _operator(u: torch.Tensor, v: torch.Tensor, role: str, m: int, n: int, formed: bool) -> torch.Tensor:
    """``_formula``, in the dtype of the rows; sums over rows in float32."""
    name = "toeplitz_formed" if formed else "toeplitz_product"
    plan = backend.configurations(name, v, v.dtype, ((int(v.shape[1]), n), (m + n - 1,)))
    if not plan:
        return _formula(u, v, role, m, n, formed).contiguous()
    launch = backend.launchers("toeplitz")
    if role == "t":
        found = launch.correlate(u.to(v.dtype), v, plan["toeplitz_tiles"], plan["toeplitz_diagsum"])
    elif formed:
        entries = launch.form(u.to(v.dtype), n, plan["toeplitz_form"])
        found = torch.matmul(v, entries.mT if role == "y" else entries)
    else:
        t = u.to(v.dtype).expand(v.shape[0], -1)
        sign, outs = (1, m) if role == "y" else (-1, n)
        found = launch.apply(v, t, n - 1, sign, outs, plan["toeplitz_product"])
    return found


@op.define("toeplitz_entries(Tensor t, int n) -> Tensor", lambda t, n: t.new_empty(t.shape[0], t.shape[1] - n + 1, n))
def _entries_operator(t: torch.Tensor, n: int) -> torch.Tensor:
    """``(batch, m, n)`` from diagonals ``(batch, m + n - 1)``."""
    m = t.shape[1] - n + 1
    plan = backend.configurations("toeplitz_form", t, t.dtype, ((m, n),))
    if not plan:
        return _gathered(t, m, n)
    return backend.launchers("toeplitz").form(t, n, plan["toeplitz_form"])


@op.define("toeplitz_diagonals(Tensor a) -> Tensor", lambda a: a.new_empty(a.shape[0], a.shape[1] + a.shape[2] - 1))
def _diagonals_operator(a: torch.Tensor) -> torch.Tensor:
    """The sums along the diagonals of ``(batch, m, n)``, kept in float32 and rounded once."""
    plan = backend.configurations("toeplitz_form", a, a.dtype, (tuple(a.shape[1:]),))
    if not plan:
        return _summed(a.to(op.sums(a.dtype))).to(a.dtype)
    found: torch.Tensor = backend.launchers("toeplitz").diagsum(a, plan["toeplitz_diagsum"])
    return found.to(a.dtype)


# -- the Functions ----------------------------------------------------------------------------------------------------

_INPUTS = {"y": ("t", "x"), "x": ("t", "y"), "t": ("x", "y")}  # in the order of the arguments


class ToeplitzProduct(torch.autograd.Function):
    """Bilinear in its two tensors; saves them, and is its own derivative in another role."""

    @staticmethod
    def forward(u: Any, v: Any, role: str, m: int, n: int, formed: bool) -> Any:
        return _operator(u, v, role, m, n, formed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        u, v, *ctx.constants = inputs
        ctx.save_for_backward(u, v)
        ctx.save_for_forward(u, v)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        role, *sizes = ctx.constants
        given = {**dict(zip(_INPUTS[role], ctx.saved_tensors, strict=True)), role: grad}
        run = _formula if backend.batched_by_autograd(grad) else _product
        found: list[Any] = [None, None]
        for place, name in enumerate(_INPUTS[role]):
            if ctx.needs_input_grad[place]:
                first, second = (given[other] for other in _INPUTS[name])
                like = given[name]
                found[place] = run(first, second, name, *sizes).sum_to_size(like.shape).to(like.dtype)
        return *found, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, du: Any, dv: Any, *_: Any) -> Any:
        u, v = ctx.saved_tensors
        terms = [_product(a, b, *ctx.constants) for a, b in ((du, v), (u, dv)) if a is not None and b is not None]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, u: Any, v: Any, role: str, *sizes: Any) -> Any:
        count = info.batch_size
        if in_dims[0] is None and role != "t" and u.shape[0] == 1:  # one matrix: the batch is more rows
            rows = v.movedim(in_dims[1], 0)
            y = _product(u, rows.reshape(1, -1, rows.shape[-1]), role, *sizes)
            return y.reshape(*rows.shape[:-1], y.shape[-1]), 0
        pair = [batched(w, d, count) for w, d in zip((u, v), in_dims[:2], strict=True)]
        most = max(w.shape[1] for w in pair)  # t of one matrix meets a batch of rows
        flat = [w.expand(count, most, *w.shape[2:]).reshape(count * most, *w.shape[2:]) for w in pair]
        y = _product(*flat, role, *sizes)
        return y.reshape(count, most, *y.shape[1:]), 0


def _folded(run: Any, dim: int, w: Any, *rest: Any) -> Any:
    """A batch of batches is a batch."""
    moved = w.movedim(dim, 0)
    y = run(moved.reshape(-1, *moved.shape[2:]), *rest)
    return y.reshape(*moved.shape[:2], *y.shape[1:]), 0


class ToeplitzEntries(torch.autograd.Function):
    """t ``(batch, m + n - 1)`` to the entries ``(batch, m, n)``: linear, with the sums as its transpose."""

    @staticmethod
    def forward(t: Any, n: int) -> Any:
        return _entries_operator(t, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if backend.batched_by_autograd(grad):
            return _summed(grad.to(op.sums(grad.dtype))).to(grad.dtype), None
        return _diagonals(grad), None

    @staticmethod
    def jvp(ctx: Any, dt: Any, _: Any) -> Any:
        return _entries(dt, ctx.n)

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Any, n: int) -> Any:
        return _folded(_entries, in_dims[0], t, n)


class ToeplitzDiagonals(torch.autograd.Function):
    """``(batch, m, n)`` to the sums along its diagonals: linear, with the entries as its transpose."""

    @staticmethod
    def forward(a: Any) -> Any:
        return _diagonals_operator(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.m, ctx.n = inputs[0].shape[-2:]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _gathered(grad, ctx.m, ctx.n) if backend.batched_by_autograd(grad) else _entries(grad, ctx.n)

    @staticmethod
    def jvp(ctx: Any, da: Any) -> Any:
        return _diagonals(da)

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Any) -> Any:
        return _folded(_diagonals, in_dims[0], a)


_product = either(ToeplitzProduct, _operator)
_entries = either(ToeplitzEntries, _entries_operator)
_diagonals = either(ToeplitzDiagonals, _diagonals_operator)
op.differentiable("toeplitz_product", ToeplitzProduct)
op.differentiable("toeplitz_entries", ToeplitzEntries)
op.differentiable("toeplitz_diagonals", ToeplitzDiagonals)
