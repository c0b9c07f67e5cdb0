"""Sums over quotients of nodes, ``s_i = sum_j w_j / (x_i - y_j)^p``, and all that Cauchy-like matrices make of them.

The derivatives of such a sum are such sums:

    ds = sum_j dw_j / (x_i - y_j)^p - p dx_i sum_j w_j / (x_i - y_j)^(p+1) + p sum_j w_j dy_j / (x_i - y_j)^(p+1)

so one Function closes under differentiation of any order, in nodes and weights, real and complex. Entries are formed a
block of rows at a time: no array of ``m n`` numbers above the dense limit exists, in backward passes neither.

With generators, ``C_ij = g_i . h_j / (x_i - y_j)`` and ``C v = sum_r g_r * (K (h_r * v))``, K the Cauchy matrix of the
nodes. Source: I. Gohberg, T. Kailath, V. Olshevsky, Math. Comp. 64, 1995, section 1.
"""

import dataclasses
import math
from typing import Any

import torch

from structmat import backend
from structmat.functional.elimination import Factors, eliminate, solve_together, spread_order

__all__ = ["CauchySolver", "cauchy_entries", "cauchy_product", "quotient_sums", "smallest_gap"]


def quotient_sums(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, power: int = 1, skip: bool = False
) -> torch.Tensor:
    """``s_iq = sum_j w_jq / (x_i - y_j)^power`` for x ``(*b, m)``, y ``(*b, n)``, w ``(*b, n, q)``: ``(*b, m, q)``.

    ``skip`` leaves out the terms with i = j (for sums over the differences of one set of nodes). Cost: 2 m n q flops
    and m n divisions; memory of 65,536 entries at a time. Differentiable in x, y and w to any order.
    """
    common = torch.promote_types(torch.promote_types(x.dtype, y.dtype), w.dtype)
    x, y, w = x.to(common), y.to(common), w.to(common)
    if torch.compiler.is_compiling():
        with backend.full_precision(w.device):
            return _plain(x, y, w, power, skip)
    result: torch.Tensor = _Sums.apply(x, y, w, power, skip)
    return result


def _plain(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, power: int, skip: bool) -> torch.Tensor:
    m, n = x.shape[-1], y.shape[-1]
    size = n * math.prod(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]))
    block = max(1, backend.dense_limit(w.device) ** 2 // max(size, 1))
    if m <= block:
        return _quotients(x, y, power, 0 if skip else None) @ w
    return torch.cat(
        [_quotients(x[..., s : s + block], y, power, s if skip else None) @ w for s in range(0, m, block)], -2
    )


def _quotients(x: torch.Tensor, y: torch.Tensor, power: int, diagonal: int | None) -> torch.Tensor:
    gap = x[..., :, None] - y[..., None, :]
    if diagonal is None:
        return gap.reciprocal() ** power
    own = torch.arange(x.shape[-1], device=x.device)[:, None] + diagonal == torch.arange(y.shape[-1], device=x.device)
    quotients = torch.where(own, torch.ones_like(gap), gap).reciprocal() ** power
    return torch.where(own, torch.zeros_like(gap), quotients)


class _Sums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any, y: Any, w: Any, power: int, skip: bool) -> Any:
        with backend.full_precision(x.device):
            return _plain(x, y, w, power, skip)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, w, ctx.power, ctx.skip = inputs
        ctx.save_for_backward(x, y, w)
        ctx.save_for_forward(x, y, w)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y, w = ctx.saved_tensors
        p, skip, needs = ctx.power, ctx.skip, ctx.needs_input_grad
        gx = gy = gw = None
        if needs[0]:
            gx = -p * (grad * quotient_sums(x, y, w, p + 1, skip).conj()).sum(-1)
            gx = gx.sum_to_size(x.shape)
        back = (y.conj(), x.conj(), grad)
        if needs[1]:
            gy = p * (-1) ** (p + 1) * (w.conj() * quotient_sums(*back, p + 1, skip)).sum(-1)
            gy = gy.sum_to_size(y.shape)
        if needs[2]:
            gw = ((-1) ** p * quotient_sums(*back, p, skip)).sum_to_size(w.shape)
        return gx, gy, gw, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dy: Any, dw: Any, *_: Any) -> Any:
        x, y, w = ctx.saved_tensors
        p, skip = ctx.power, ctx.skip
        terms = []
        if dx is not None:
            terms.append(-p * dx[..., None] * quotient_sums(x, y, w, p + 1, skip))
        if dy is not None:
            terms.append(p * quotient_sums(x, y, w * dy[..., None], p + 1, skip))
        if dw is not None:
            terms.append(quotient_sums(x, y, dw, p, skip))
        return sum(terms[1:], terms[0])


def cauchy_product(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Rows ``v C^T``, v ``(*batch, k, n)`` or one row: ``2 m n r k`` flops, half precision computed in float32."""
    out = torch.promote_types(left.dtype, v.dtype)
    wide = backend.compute_dtype(out)
    left, right, x, y, rows = (t.to(wide) for t in (left, right, x, y, v[None] if v.ndim == 1 else v))
    k, r = rows.shape[-2], left.shape[-1]
    weights = (rows[..., :, None, :] * right.mT[..., None, :, :]).flatten(-3, -2).mT
    sums = quotient_sums(x, y, weights).unflatten(-1, (k, r))
    result = (sums * left[..., :, None, :]).sum(-1).mT.to(out)
    return result[..., 0, :] if v.ndim == 1 else result


def cauchy_entries(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``g_i . h_j / (x_i - y_j)``, all of them: ``(*b, m, n)``."""
    with backend.full_precision(left.device):
        return (left @ right.mT) / (x[..., :, None] - y[..., None, :])


def smallest_gap(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``min |x_i - y_j|`` over all i, j and the batch; a block of rows at a time. Infinite where there are none."""
    least = torch.full((), torch.inf, dtype=backend.real_of(x.dtype), device=x.device)
    with torch.no_grad():
        block = max(1, backend.dense_limit(x.device) ** 2 // max(1, y.numel()))
        for s in range(0, x.shape[-1], block):
            gaps = (x[..., s : s + block, None] - y[..., None, :]).abs()
            least = torch.minimum(least, gaps.min()) if gaps.numel() else least
    return least


@dataclasses.dataclass(frozen=True, eq=False)
class _Nodes:
    """The quotients of given nodes ``(B, n)`` (``elimination.Entries``)."""

    x: torch.Tensor
    y: torch.Tensor

    def block(
        self, left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | int
    ) -> torch.Tensor:
        x = torch.gather(self.x, 1, rows)
        if isinstance(columns, torch.Tensor):
            y = torch.gather(self.y, 1, columns)
        else:
            y = self.y[:, columns : columns + right.shape[1]]
        return cauchy_entries(left, right, x, y)


@dataclasses.dataclass(frozen=True, eq=False)
class CauchySolver:
    """C^-1 (or C^-H) by elimination with pivoting, one step of refinement a solve; n^2 storage, no gradients."""

    fields: tuple[torch.Tensor, ...]
    factors: Factors
    order: torch.Tensor
    batch: torch.Size
    adjointed: bool = False

    @classmethod
    def of(cls, left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> "CauchySolver":
        """The factorisation of a square C, in float64 (complex128)."""
        wide = torch.promote_types(left.dtype, torch.float64)
        fields = tuple(t.detach().to(wide) for t in (left, right, x, y))
        n = x.shape[-1]
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2], x.shape[:-1], y.shape[:-1])
        order = spread_order(n) * torch.arange(n, device=x.device) % max(n, 1)
        count, rank = math.prod(batch), left.shape[-1]
        g, h = (t.expand(*batch, n, rank).reshape(count, n, rank)[:, order] for t in fields[:2])
        if rank == 0:
            g = h = g.new_zeros(count, n, 1)  # the zero matrix
        nodes = _Nodes(*(t.expand(*batch, n).reshape(count, n)[:, order] for t in fields[2:]))
        with backend.full_precision(x.device):
            return cls(fields, eliminate(g, h, nodes), order, batch)

    @property
    def device(self) -> torch.device:
        return self.order.device

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``C x = y`` for each row ``(*batch, k, n)``."""
        if y.is_complex() and not self.fields[0].is_complex():
            return torch.complex(self.solve_rows(y.real), self.solve_rows(y.imag))
        rows = y.detach().to(self.fields[0].dtype)
        x = self._direct(rows)
        residual = rows - self._product(x)
        new = x + self._direct(residual)
        left = rows - self._product(new)
        gained = torch.linalg.vector_norm(left, dim=-1) < torch.linalg.vector_norm(residual, dim=-1)
        return torch.where(gained[..., None], new, x).to(torch.promote_types(y.dtype, x.dtype))

    def _direct(self, rows: torch.Tensor) -> torch.Tensor:
        return solve_together(self.factors, self.order, rows, self.batch, self.adjointed)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        left, right, rows, columns = self.fields
        if self.adjointed:
            return cauchy_product(-right.conj(), left.conj(), columns.conj(), rows.conj(), x)
        return cauchy_product(left, right, rows, columns, x)

    def adjoint(self) -> "CauchySolver":
        """The same factors, solving with C^H."""
        return dataclasses.replace(self, adjointed=not self.adjointed)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign and ``log|det C|``, each of the batch shape."""
        sign, logabs = self.factors.slogdet()
        sign = sign.conj().resolve_conj() if self.adjointed else sign
        return sign.reshape(self.batch), logabs.reshape(self.batch)
