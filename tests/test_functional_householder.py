"""Compact WY: T against sequential reflections, every path of the rotation, chunks, and the closed-form gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from structmat.functional import householder as fh
from structmat.testing import assert_gradients

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _product(vectors: torch.Tensor, phases: torch.Tensor | None = None) -> torch.Tensor:
    """``H_1 ... H_r``, multiplied out."""
    n = vectors.shape[-1]
    q = torch.eye(n, dtype=vectors.dtype if phases is None else C128)
    for k, v in enumerate(vectors):
        if not v.any():
            continue
        weight = 2.0 if phases is None else 1 - torch.exp(1j * phases[k])
        v = v.to(q.dtype)
        q = q @ (torch.eye(n) - weight * torch.outer(v, v.conj()) / torch.vdot(v, v).real)
    return q


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("r", "n"), [(1, 1), (1, 4), (3, 4), (4, 4), (9, 4), (2, 7)])
def test_wy_factor(r: int, n: int, dtype: torch.dtype) -> None:
    """Upper triangular, ``|T_ij| <= 4`` for unit vectors, and ``I - V T V^H`` is the product."""
    v = torch.nn.functional.normalize(_numbers(r, n, dtype=dtype), dim=-1)
    t = fh.wy_factor(v)
    assert torch.equal(t, torch.triu(t)) and float(t.abs().max()) <= 4 * (1 + 64 * EPS)
    assert float((torch.eye(n) - v.mT @ t @ v.conj() - _product(v)).abs().max()) <= 64 * r * EPS
    phases = _numbers(r)
    t = fh.wy_factor(v.to(C128), phases)
    assert (
        float((torch.eye(n) - v.to(C128).mT @ t @ v.conj().to(C128) - _product(v, phases)).abs().max()) <= 64 * r * EPS
    )


def test_small_phases_are_accurate() -> None:
    """1 - exp(i phi) by sines: relative accuracy at phi = 1e-9, where the difference would keep seven digits."""
    v = _numbers(1, 3, dtype=C128)
    phi = torch.tensor([1e-9], dtype=F64)
    tau = complex(fh.wy_factor(v, phi)[0, 0]) * float((v.abs() ** 2).sum())
    assert abs(tau - complex(5e-19, -1e-9)) <= 8 * EPS * 1e-9


PATHS: dict[str, Any] = {
    "one real block": lambda: (_numbers(3, 5), None),
    "one block of r > n": lambda: (_numbers(12, 5), None),
    "blocks": lambda: (_numbers(130, 5), None),
    "batch": lambda: (_numbers(2, 3, 5), None),
    "complex": lambda: (_numbers(3, 5, dtype=C128), None),
    "phases": lambda: (_numbers(3, 5), _numbers(3, seed=1)),
    "complex phases": lambda: (_numbers(2, 3, 5, dtype=C128), _numbers(3, seed=1)),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 2, 4, 5), (0, 5)], ids=str)
def test_each_path_against_the_product(name: str, shape: tuple[int, ...]) -> None:
    vectors, phases = PATHS[name]()
    x = _numbers(*shape, seed=2)
    lead = vectors.shape[:-2]
    q = torch.stack([_product(v, phases) for v in vectors.reshape(-1, *vectors.shape[-2:])]).reshape(*lead, 5, 5)
    exact = (q @ x.to(q.dtype)[..., None])[..., 0] if x.ndim == 1 else x.to(q.dtype) @ q.mT
    found = fh.rotate_rows(x, vectors, phases)
    assert found.shape == exact.shape and found.dtype == exact.dtype
    r = vectors.shape[-2]
    assert float((found - exact).abs().max() if exact.numel() else 0) <= 32 * r * EPS * (1 + float(x.norm()))


@pytest.mark.parametrize("name", [n for n in PATHS if n != "blocks"])
def test_derivatives_of_each_path(name: str) -> None:
    vectors, phases = PATHS[name]()
    x = _numbers(2, 5, dtype=vectors.dtype, seed=3)
    inputs = (x, vectors) if phases is None else (x, vectors, phases)
    assert_gradients(fh.rotate_rows, inputs)


def test_derivatives_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fh, "block_size", lambda r: 2)
    assert_gradients(lambda x, v: fh.apply_blocks(x, fh.blocks(v, None)), (_numbers(3, 4), _numbers(5, 4)))


def test_only_what_is_needed_is_differentiated() -> None:
    x, v = _numbers(2, 4), _numbers(3, 4)
    for leaf, call in ((x, lambda t: fh.rotate_rows(t, v)), (v, lambda t: fh.rotate_rows(x, t))):
        assert_gradients(call, (leaf,))


def test_chunks_of_rows_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go through the rotation in pieces: 100 rows in one, and in pieces of 32."""
    x, v = _numbers(100, 6).requires_grad_(), _numbers(3, 6).requires_grad_()

    def run() -> list[torch.Tensor]:
        y = fh.rotate_rows(x, v)
        return [y, *torch.autograd.grad(y.sin().sum(), (x, v))]

    whole = run()
    monkeypatch.setattr(fh, "_CHUNK", 64)
    assert len(fh._row_chunks(100, 6, x.device)) == 4 and len(fh._row_chunks(100, 6, torch.device("cuda"))) == 1
    for a, b in zip(run(), whole, strict=True):
        assert float((a - b).abs().max()) <= 100 * EPS * (1 + float(b.abs().max()))


def test_views_and_many_leading_axes() -> None:
    """Transposed, expanded and sliced operands: the chunked kernels write into fresh memory only."""
    v = _numbers(3, 5)
    base = _numbers(5, 8)
    for x in (base.mT, base.mT[::2], base[:, :1].mT.expand(6, 5), _numbers(2, 3, 4, 5).transpose(0, 1)):
        kept = x.clone()
        assert float((fh.rotate_rows(x, v) - x @ _product(v).mT).abs().max()) <= 100 * EPS * (1 + float(x.norm()))
        assert torch.equal(x, kept)


def test_batched_cotangents() -> None:
    """Jacobians by one vectorised backward pass equal those row by row."""
    x, v = _numbers(2, 4), _numbers(3, 4)
    for vectorize in (False, True):
        found = torch.autograd.functional.jacobian(fh.rotate_rows, (x, v), vectorize=vectorize)
        exact = torch.autograd.functional.jacobian(lambda x, v: x @ _product(v).mT, (x, v))
        for a, b in zip(found, exact, strict=True):
            assert float((a - b).abs().max()) <= 200 * EPS * (1 + float(b.abs().max()))


def test_scaling_a_vector_changes_nothing() -> None:
    """Q depends on directions only, so v . dQ/dv = 0, also for tiny and huge vectors."""
    x = _numbers(2, 4)
    for scale in (1.0, 1e-120, 1e120, -3.0):
        v = (scale * _numbers(3, 4)).requires_grad_()
        y = fh.rotate_rows(x, v)
        assert float((y - fh.rotate_rows(x, _numbers(3, 4))).abs().max()) <= 64 * EPS * float(x.norm())
        (g,) = torch.autograd.grad(y.sin().sum(), v)
        assert bool(torch.isfinite(g).all()) and bool(((g * v).sum(-1).abs() <= 1e3 * EPS * float(x.norm())).all())


@pytest.mark.parametrize(("n", "r"), [(128, 128), (128, 64), (32, 32), (6, 6)])
def test_many_nearly_parallel_vectors_stay_orthogonal(n: int, r: int) -> None:
    """What one block of them leaves is 2.5 times the limit at n = r = 128; blocks are short where r is near n."""
    for dtype in (torch.float32, torch.complex64):
        for spread in (0.1, 1e-3, 0.0):
            vectors = _numbers(1, n, dtype=dtype) + spread * _numbers(r, n, dtype=dtype, seed=1)
            q = fh.rotate_rows(torch.eye(n, dtype=dtype), vectors).to(C128)
            error = float(torch.linalg.matrix_norm(q.mH @ q - torch.eye(n))) / n**0.5
            assert error <= 8 * torch.finfo(dtype).eps * (1 + r**0.5)
