"""Products with matrices of low displacement rank, forward and backward, in memory that knows neither r nor the rows.

``Z_e A - A Z_f = G H^T`` with ``e != f`` means

    A = 1/(e - f) sum_j Z_e(g_j) Z_f(J h_j),

f-circulants with the first columns g_j and the reversed h_j. A product is ``u_j = Z_f(J h_j) x`` and
``y = sum_j Z_e(g_j) u_j / (e - f)``, the sum taken in the Fourier domain (``shift``): 2r + 2 transforms of length n a
row. Real rows go two by two as one complex row: a real matrix acts on both parts alike, and no transform is wasted.

Rows and terms go through in blocks of a size the cache holds; the backward pass computes the u_j again. So one Function
holds no more than its arguments, its result and one block, whatever r times the number of rows is.
Source: V. Y. Pan, Structured Matrices and Polynomials, 2001, Theorem 4.4.1; derivatives: the adjoint of each step.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from structmat import backend
from structmat.functional.rows import ALL, Collected, broadcast, conjugate_of, cut, flattened, packed, restored
from structmat.functional.shift import Shift
from structmat.functional.transforms import nothing

__all__ = ["prepared", "product", "product_kept", "spectra"]

_BLOCK = 1 << 17  # complex numbers of one block: one MiB in single precision, which the second-level cache holds
_LAUNCHED = 1 << 24  # the same on a GPU, where each block is launches of its own: bounds the memory only


@dataclasses.dataclass(frozen=True)
class _Job:
    """The operator, opaque to torch's pytrees."""

    e: complex
    f: complex


def product(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, e: complex, f: complex) -> torch.Tensor:
    """``x A^T`` for generators left, right ``(*b, n, r)``: x ``(..., k, n)`` or one row; nonzero numbers ``e != f``.

    Real or complex; half and bfloat16 are carried out in float32. Cost: 2r + 2 complex transforms of length n for two
    real rows or one complex row, and 4r + 4 in the backward pass; r + 2 for a lone real row, where terms go in pairs.
    """
    out, wide_left, wide_right, rows = _promoted(left, right, x, e, f)
    lone = rows.ndim == 1
    rows = rows[None] if lone else rows
    lead = broadcast(left.shape[:-2], right.shape[:-2])
    flat, shape = flattened(rows, lead)
    if left.shape[-1] == 0:  # the zero matrix: one column of zeros, so that all derivatives are there
        wide_left, wide_right = (torch.nn.functional.pad(t, (0, 1)) for t in (wide_left, wide_right))
    g, h = (t.expand(*lead, *t.shape[-2:]).reshape(math.prod(lead), *t.shape[-2:]) for t in (wide_left, wide_right))
    single = _single(flat, g.shape[-1])
    if single:
        g, h = _paired(g, -1), _paired(h, 1)
        flat = packed(flat)
    if 0 in flat.shape:
        y = flat + nothing((), flat.dtype, g, h)
    elif torch.compiler.is_compiling():
        y = _forward(g, h, flat, _Job(e, f), whole=True)
    else:
        backend.demand("displacement_product", left, x)
        if backend.transforming():
            y = _Product.apply(g, h, flat, _Job(e, f))
        elif torch.is_grad_enabled() and (g.requires_grad or h.requires_grad or flat.requires_grad):
            y = _KeepingSpectra.apply(g, h, flat, _Job(e, f))
        else:
            y = _forward(g, h, flat, _Job(e, f))
    y = restored(y.real.contiguous() if single else y, shape, lead)
    return (y[..., 0, :] if lone else y).to(out)


def _single(x: torch.Tensor, terms: int) -> bool:
    """Whether terms go two by two, where a lone real row has no other beside it."""
    return not x.is_complex() and x.shape[-2] == 1 and terms > 1


def _paired(t: torch.Tensor, sign: int) -> torch.Tensor:
    """Real columns ``(..., r)`` two by two as ``t_1 + sign i t_2``: the real part of
    ``Z_e(g_1 - i g_2) Z_f(h_1 + i h_2) x`` is the sum of both terms."""
    if t.shape[-1] % 2:
        t = torch.nn.functional.pad(t, (0, 1))
    return torch.complex(t[..., ::2], t[..., 1::2] * sign)


def _promoted(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, e: complex, f: complex
) -> tuple[torch.dtype, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The dtype of the result, and the operands in the precision computed in: complex rows wherever A is complex."""
    own = torch.promote_types(left.dtype, right.dtype)
    if isinstance(e, complex) or isinstance(f, complex):
        own = backend.complex_of(own)
    out = torch.promote_types(own, x.dtype)
    wide = backend.compute_dtype(out)
    part = wide if own.is_complex else backend.real_of(wide)
    return out, left.to(part), right.to(part), x.to(wide)


# -- the product, block by block ----------------------------------------------------------------------------------


Spectra = tuple[torch.Tensor, torch.Tensor, Shift, Shift]


def spectra(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> Spectra:
    """The spectra ``(B, r, N)`` of ``g_j / (e - f)`` and of ``J h_j``, with the two shifts they belong to."""
    n = int(left.shape[-2])
    to_e, to_f = (Shift.of(n, number, left.dtype, left.device) for number in (e, f))
    g, w = left.mT.contiguous(), right.mT.contiguous().flip(-1)  # of strided rows torch makes strided spectra
    return to_e.analyse(g * (1 / (e - f))), to_f.analyse(w), to_e, to_f


def prepared(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> tuple[torch.Tensor, ...]:
    """What products need of generators ``(B, n, r)``: their spectra, and for real ones those of terms in pairs."""
    kept = spectra(left, right, e, f)[:2]
    if left.is_complex() or isinstance(e, complex) or isinstance(f, complex):
        return kept
    return *kept, *spectra(_paired(left, -1), _paired(right, 1), e, f)[:2]


def product_kept(
    kept: tuple[torch.Tensor, ...],
    x: torch.Tensor,
    lead: torch.Size,
    own: torch.dtype,
    e: complex,
    f: complex,
) -> torch.Tensor:
    """``product`` with the spectra that ``prepared`` made; ``lead`` is the batch of A, ``own`` its dtype."""
    wide = backend.compute_dtype(torch.promote_types(own, x.dtype))
    lone = x.ndim == 1
    flat, shape = flattened((x[None] if lone else x).to(wide), lead)
    if 0 in flat.shape:
        y = flat + nothing((), flat.dtype, *kept)
    else:
        n = int(x.shape[-1])
        to_e, to_f = (Shift.of(n, number, wide, x.device) for number in (e, f))
        single = _single(flat, kept[0].shape[-2]) and len(kept) > 2
        ghat, what = kept[2:] if single else kept[:2]
        with backend.full_precision(x.device):
            rows = packed(flat) if single else flat
            y = _blocks_forward((ghat, what, to_e, to_f), rows, torch.compiler.is_compiling())
        y = y.real.contiguous() if single else y
    y = restored(y, shape, lead)
    return y[..., 0, :] if lone else y


def _forward(g: torch.Tensor, h: torch.Tensor, x: torch.Tensor, job: _Job, whole: bool = False) -> torch.Tensor:
    with backend.full_precision(x.device):
        return _blocks_forward(spectra(g, h, job.e, job.f), x, whole)


def _blocks_forward(
    known: Spectra, x: torch.Tensor, whole: bool = False, kept: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """``kept`` collects the transformed u of each block, where a backward pass is to find it."""
    ghat, what, to_e, to_f = known
    terms = int(ghat.shape[-2])
    result = Collected(x, not whole and backend.eager(x, ghat, what))
    for some, pieces, step in _blocks(x, terms, to_f.length, whole):
        for rows in pieces:
            xhat = to_f.analyse(packed(cut(x, some, rows)))
            total: torch.Tensor | None = None
            for j in range(0, terms, step):
                u = to_e.analyse(to_f.synthesise(_spread(cut(what, some), j, step) * _lift(xhat, step)))
                total = _added(total, _spread(cut(ghat, some), j, step), u, step)
                if kept is not None:
                    kept.append(u)
            assert total is not None
            result.put(to_e.synthesise(total), some, rows)
        result.next()
    return result.whole()


def _backward(
    g: torch.Tensor,
    h: torch.Tensor,
    x: torch.Tensor,
    grad: torch.Tensor,
    job: _Job,
    needed: tuple[bool, bool, bool],
    known: Spectra | None = None,
    kept: Iterator[torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The cotangents of g, h and x: the u_j are computed again, unless ``kept`` holds them. Without ``known``
    out-of-place throughout, so that it can be differentiated, and transformed by torch.func, as it stands."""
    with backend.full_precision(x.device):
        ghat, what, to_e, to_f = known or spectra(g, h, job.e, job.f)
        terms, by_g, by_h = int(g.shape[-1]), [], []
        result = Collected(x, known is not None and backend.eager(x, grad, ghat))
        for some, pieces, step in _blocks(x, terms, to_f.length, False):
            sums: list[list[torch.Tensor]] = [[], []]
            for rows in pieces:
                both = packed(cut(x, some, rows)), packed(cut(grad, some, rows))
                u = next(kept) if kept is not None else None
                parts = _block_backward(cut(ghat, some), cut(what, some), *both, to_e, to_f, step, needed, u)
                for held, part in zip(sums, parts[:2], strict=True):
                    if part is not None:
                        held[:] = [held[0] + part] if held else [part]
                if parts[2] is not None:
                    result.put(parts[2], some, rows)
            by_g += sums[0]
            by_h += sums[1]
            result.next()
        scale = 1 / (job.e - job.f)
        conjugate = scale.conjugate() if isinstance(scale, complex) else scale
        gl = _like(to_e.lower(_joined(by_g)).mT * conjugate, g) if needed[0] else None
        gr = _like(to_f.lower(_joined(by_h)).mT.flip(-2), h) if needed[1] else None
        return gl, gr, result.whole() if needed[2] else None


def _block_backward(
    ghat: torch.Tensor,
    what: torch.Tensor,
    x: torch.Tensor,
    grad: torch.Tensor,
    to_e: Shift,
    to_f: Shift,
    step: int,
    needed: tuple[bool, bool, bool],
    known: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The spectra of the cotangents of all terms, summed over the packed rows of one block, and the rows of x's."""
    xhat, yhat = to_f.analyse(x), to_e.lift(grad)
    xconj, yconj = conjugate_of(xhat), conjugate_of(yhat)
    of_g, of_w, total = [], [], None
    for j in range(0, int(ghat.shape[-2]), step):
        w, v = _spread(what, j, step), _spread(ghat, j, step)
        if needed[0]:
            u = to_e.analyse(to_f.synthesise(w * _lift(xhat, step))) if known is None else known
            of_g.append(conjugate_of((u * _lift(yconj, step)).sum(-2)))
        if needed[1] or needed[2]:
            back = to_f.lift(to_e.lower(conjugate_of(v) * _lift(yhat, step)))
            if needed[1]:
                of_w.append((back * _lift(xconj, step)).sum(-2))
            if needed[2]:
                total = _added(total, conjugate_of(w), back, step)
    gathered = (
        (torch.stack(s, -2) if step == 1 else torch.cat(s, -2)) if s else None for s in (of_g, of_w)
    )  # each (B, step, N) or, for single terms, (B, N)
    return *gathered, to_f.lower(total) if total is not None else None  # type: ignore[return-value]


def _blocks(x: torch.Tensor, terms: int, length: int, whole: bool) -> Iterator[tuple[slice, list[slice], int]]:
    """Matrices of the batch, their blocks of rows, and how many terms go at once."""
    matrices, rows = (int(s) for s in x.shape[:2])
    pack = 1 if x.is_complex() else 2
    if whole:
        yield ALL, [ALL], terms
        return
    many = max(1, (_BLOCK if x.device.type == "cpu" else _LAUNCHED) // length)  # packed rows that a block may hold
    each = max(1, min((rows + pack - 1) // pack, many))
    together = max(1, min(matrices, many // each))
    step = max(1, min(terms, many // (each * together)))
    pieces = [slice(k, k + each * pack) for k in range(0, rows, each * pack)]
    for b in range(0, matrices, together):
        some = slice(b, b + together) if together < matrices else ALL
        yield some, pieces if len(pieces) > 1 else [ALL], step


def _spread(hat: torch.Tensor, j: int, step: int) -> torch.Tensor:
    """Spectra of the terms j to j + step beside rows: ``(B, 1, N)`` for one term, else ``(B, step, 1, N)``."""
    return hat[:, j, None, :] if step == 1 else hat[:, j : j + step, None, :]


def _lift(rows: torch.Tensor, step: int) -> torch.Tensor:
    return rows if step == 1 else rows[:, None]


def _added(total: torch.Tensor | None, hat: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
    """``total + sum over the terms of hat * rows``."""
    if step == 1:
        return hat * rows if total is None else torch.addcmul(total, hat, rows)
    part = (hat * rows).sum(1)
    return part if total is None else total + part


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 0)


def _like(grad: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return grad if t.is_complex() else grad.real.contiguous()


class _Product(torch.autograd.Function):
    """The product in eager mode: saves its arguments only, and computes the rest again."""

    @staticmethod
    def forward(g: Any, h: Any, x: Any, job: _Job) -> Any:
        return _forward(g, h, x, job)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, h, x, ctx.job = inputs
        ctx.save_for_backward(g, h, x)
        ctx.save_for_forward(g, h, x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        g, h, x = ctx.saved_tensors
        return *_backward(g, h, x, grad, ctx.job, ctx.needs_input_grad[:3]), None

    @staticmethod
    def jvp(ctx: Any, dg: Any, dh: Any, dx: Any, _: Any) -> Any:
        g, h, x = ctx.saved_tensors
        moved = [(dg, h, x)] * (dg is not None) + [(g, dh, x)] * (dh is not None) + [(g, h, dx)] * (dx is not None)
        terms = [_forward(*operands, ctx.job) for operands in moved]
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Any, h: Any, x: Any, job: _Job) -> Any:
        size = info.batch_size
        if in_dims[0] is None and in_dims[1] is None:  # only the rows are a batch: more rows of the same matrices
            x = x.movedim(in_dims[2], 1)
            y = _Product.apply(g, h, x.reshape(x.shape[0], -1, x.shape[-1]), job)
            return y.reshape(x.shape), 1
        full = [
            t.expand(size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((g, h, x), in_dims[:3], strict=True)
        ]
        y = _Product.apply(*(t.reshape(-1, *t.shape[2:]) for t in full), job)
        return y.reshape(size, -1, *y.shape[1:]), 0


class _KeepingSpectra(torch.autograd.Function):
    """The form for plain reverse mode: keeps the spectra of the generators; of a single term, whose u is no larger than
    x, also that of u. Without ``setup_context``, whose signature torch inspects at every call."""

    @staticmethod
    def forward(ctx: Any, g: Any, h: Any, x: Any, job: _Job) -> Any:
        with backend.full_precision(x.device):
            known = spectra(g, h, job.e, job.f)
            kept: list[torch.Tensor] | None = [] if g.shape[-1] == 1 and ctx.needs_input_grad[0] else None
            y = _blocks_forward(known, x, kept=kept)
            ctx.job, ctx.shifts = job, known[2:]
            ctx.save_for_backward(g, h, x, *known[:2], *(kept or ()))
            return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        g, h, x, ghat, what, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a recorded graph starts from g and h
            return *_backward(g, h, x, grad, ctx.job, needed), None
        found = iter(kept) if kept else None
        return *_backward(g, h, x, grad, ctx.job, needed, (ghat, what, *ctx.shifts), found), None
