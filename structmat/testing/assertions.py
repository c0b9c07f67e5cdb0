"""Assertions about matrices, each with a tolerance that is derived, never guessed; all measure in float64 or
complex128."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.gradcheck import GradcheckError
from torch.utils import _pytree as pytree

from structmat import backend, checks
from structmat.checks.operands import Operator, from_entries
from structmat.checks.orthogonality import defect_report
from structmat.checks.rank import rank_at_most
from structmat.claims import Claim
from structmat.matrix import Matrix

__all__ = [
    "assert_claims",
    "assert_close",
    "assert_gradients",
    "assert_matches_dense",
    "assert_orthogonal",
    "assert_rank_at_most",
    "holds",
    "orthogonality",
    "rounding",
]


def rounding(dtype: torch.dtype, length: int, size: float, roundings: int = 1) -> float:
    """How far a vector computed through numbers of norm ``size`` may lie from the exact one.

    ``16 eps (1 + log2 N) sqrt(N) size``: transforms of length N lose ``4 eps (1 + log2 N)`` against the largest
    spectral value, which is at most ``sqrt(N)`` times the Frobenius norm, and inner products of N terms lose less;
    the remaining factor 4 covers up to four such steps in a row. Half and bfloat16 are computed in float32, and each
    of ``roundings`` results is rounded once.
    """
    wide = backend.compute_dtype(dtype)
    n = max(2, length)
    carried = 16 * torch.finfo(wide).eps * (1 + math.log2(n)) * n**0.5 * size
    stored = 2 * roundings * torch.finfo(dtype).eps * size if wide != dtype else 0.0
    return carried + stored


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest Frobenius distance of two batches of matrices (vectors count as one row); NaN if there is one."""
    common = torch.promote_types(_wide(a).dtype, _wide(b).dtype)
    gap = (_wide(a).to(common) - _wide(b).to(common)).resolve_conj()
    gap = gap.reshape(1, -1) if gap.ndim < 2 else gap
    return float(torch.linalg.vector_norm(gap, dim=(-2, -1)).max()) if gap.numel() else 0.0


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tol: float, what: str) -> None:
    """Shapes equal, and every matrix of the batch within ``tol`` in the Frobenius norm; AssertionError with the
    distance."""
    assert isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {type(got).__name__}"
    assert got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)}, the dense reference has {tuple(wanted.shape)}"
    gap = _distance(got, wanted)
    assert gap <= tol, f"{what}: differs from the dense reference by {gap:.3e}, allowed {tol:.1e}"


def assert_matches_dense(matrix: Matrix, dense: torch.Tensor, *, size: float | None = None, roundings: int = 4) -> None:
    """``to_dense()`` and products with random rows agree with ``dense`` up to rounding.

    ``size``: the Frobenius norm that errors are relative to, by default that of ``dense``; larger where terms cancel.
    """
    dtype = matrix.dtype or torch.get_default_dtype()
    m, n = (int(s) for s in matrix.shape[-2:])
    scale = size if size is not None else _distance(dense, torch.zeros_like(dense))
    assert matrix.shape == dense.shape, (
        f"{matrix!r}: shape {tuple(matrix.shape)}, the dense reference has {tuple(dense.shape)}"
    )
    assert_close(
        matrix.to_dense(), dense, rounding(dtype, m + n, scale, roundings) * max(1, n) ** 0.5, f"{matrix!r}.to_dense()"
    )
    generator = torch.Generator(device="cpu").manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = torch.randn(*matrix.shape[:-2], 3, n, generator=generator, dtype=wide).to(dtype=dtype, device=matrix.device)
    common = torch.promote_types(_wide(dense).dtype, wide)
    wanted = _wide(x).to(common) @ _wide(dense).to(device=x.device, dtype=common).mT
    allowed = rounding(dtype, m + n, scale * _distance(x, torch.zeros_like(x)), roundings)
    assert_close(matrix.linear(x), wanted, allowed, f"{matrix!r}.linear(x)")


def orthogonality(dense: torch.Tensor) -> float:
    """``||Q^H Q - I||_F / sqrt(n)``, the worst of the batch, measured in float64 (complex128)."""
    q = _wide(dense)
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return _distance(q.mH @ q, eye.expand(*q.shape[:-2], *eye.shape)) / max(1, q.shape[-1]) ** 0.5


def assert_orthogonal(matrix: Matrix | torch.Tensor, ops: float | None = None) -> None:
    """``||Q^H Q - I||_F / sqrt(n) <= 8 eps (1 + sqrt(ops))``: ``ops`` reflectors or factors, by default as
    ``checks.operations`` counts them, and for a tensor what a dense QR leaves, ``(log2 n)^2 / 4``.

    The entries of a Matrix are formed in the dtype computed in: rounding Q to half would hide what is measured. One of
    more than 2^20 entries is multiplied with ten Gaussian vectors (``checks.orthogonality_error``).
    """
    ops = checks.operations(matrix) if ops is None else ops
    if not from_entries(matrix, None):
        eps = torch.finfo(backend.compute_dtype(matrix.dtype or torch.get_default_dtype())).eps
        report = defect_report(Operator.of(matrix), "orthogonality error", 8 * eps * (1 + math.sqrt(max(0.0, ops))))
        assert report.ok, f"{matrix!r}: {report}"
        return
    if isinstance(matrix, Matrix):
        dtype = backend.compute_dtype(matrix.dtype or torch.get_default_dtype())
        entries = matrix.linear(torch.eye(int(matrix.shape[-1]), dtype=dtype, device=matrix.device)).mT
        shown = repr(matrix)
    else:
        dtype, entries, shown = matrix.dtype, matrix, f"tensor of shape {tuple(matrix.shape)}"
    error = orthogonality(entries)
    allowed = 8 * torch.finfo(dtype).eps * (1 + math.sqrt(max(0.0, ops)))
    assert error <= allowed, (
        f"{shown}: orthogonality error {error:.2e} exceeds 8 eps (1 + sqrt({ops:g})) = {allowed:.1e}"
    )


def assert_rank_at_most(
    matrix: Matrix | torch.Tensor, rank: int, noise: float | None = None, what: str | None = None
) -> None:
    """At most ``rank`` singular values exceed ``max(m, n, 64) eps sigma_1`` (64: small matrices are as noisy), or
    ``noise``; of a Matrix of more than 2^20 entries, by a sketch (``checks.is_low_rank``)."""
    if not from_entries(matrix, None):
        op = Operator.of(matrix)
        floor = 8 * op.noise if noise is None else torch.full_like(op.noise, noise)
        report = rank_at_most(op, rank, floor, "rank")
        assert report.ok, f"{what or repr(matrix)}: {report}"
        return
    dense = matrix.to_dense() if isinstance(matrix, Matrix) else matrix
    values = torch.linalg.svdvals(_wide(dense))
    if values.numel() == 0:
        return
    least = max(*dense.shape[-2:], 64) * torch.finfo(dense.dtype).eps * values[..., :1] if noise is None else noise
    found = int((values > least).sum(-1).max())
    what = what or (repr(matrix) if isinstance(matrix, Matrix) else f"tensor of shape {tuple(matrix.shape)}")
    assert found <= rank, f"{what}: {found} singular values lie above the noise, the rank was to be at most {rank}"


def holds(claim: Claim, dense: torch.Tensor, tol: float) -> bool:
    """Whether a dense matrix has a property within ``tol`` (an absolute Frobenius distance)."""
    a = _wide(dense)
    m, n = a.shape[-2:]
    if claim in (Claim.ORTHOGONAL, Claim.ORTHONORMAL_COLUMNS, Claim.ORTHONORMAL_ROWS):
        both = claim is Claim.ORTHOGONAL
        columns = _distance(a.mH @ a, torch.eye(n, dtype=a.dtype).expand(*a.shape[:-2], n, n)) <= tol
        rows = _distance(a @ a.mH, torch.eye(m, dtype=a.dtype).expand(*a.shape[:-2], m, m)) <= tol
        return columns and rows if both else columns if claim is Claim.ORTHONORMAL_COLUMNS else rows
    if claim is Claim.POSITIVE_DEFINITE:
        return m == n and _distance(a, a.mH) <= tol and bool((torch.linalg.eigvalsh(a) > -tol).all())
    mirror = {
        Claim.SYMMETRIC: lambda: a.mT,
        Claim.HERMITIAN: lambda: a.mH,
        Claim.UPPER_TRIANGULAR: lambda: torch.triu(a),
        Claim.LOWER_TRIANGULAR: lambda: torch.tril(a),
    }[claim]()
    return mirror.shape == a.shape and _distance(a, mirror) <= tol


def _shift(n: int, e: complex, dtype: torch.dtype) -> torch.Tensor:
    z = torch.diag(torch.ones(n - 1, dtype=dtype), -1)
    z[0, n - 1] += e
    return z


def assert_claims(matrix: Matrix, dense: torch.Tensor | None = None, *, size: float | None = None) -> None:
    """Every claim of the matrix is true of its entries (``dense``, by default ``to_dense()``) up to rounding.

    ``size``: the size of the numbers the entries were computed from, where it is larger than the entries. A matrix of
    more than 2^20 entries, if they are not given, is measured from products (``checks.check_claims``).
    """
    if dense is None and not from_entries(matrix, None):
        report = checks.check_claims(matrix)
        assert report.ok, f"{matrix!r}: {report}"
        return
    entries = _wide(matrix.to_dense() if dense is None else dense).cpu()
    m, n = (int(s) for s in matrix.shape[-2:])
    scale = max(_distance(entries, torch.zeros_like(entries)), size or 0.0)
    dtype = matrix.dtype or torch.get_default_dtype()
    tol = rounding(dtype, m + n, scale, roundings=4) * max(1.0, scale) * max(1, n) ** 0.5
    claims = matrix.claims
    for claim in sorted(claims.properties, key=lambda c: c.name):
        assert holds(claim, entries, tol), (
            f"{matrix!r} claims {claim!r}, which its entries do not have (tolerance {tol:.1e})"
        )
    if claims.rank is not None:
        assert_rank_at_most(entries, claims.rank, noise=tol, what=repr(matrix))
    assert matrix.rank_bound() <= min(m, n), f"{matrix!r}: rank_bound() {matrix.rank_bound()} exceeds min{(m, n)}"
    for (e, f), bound in claims.displacement.items():
        wide = torch.promote_types(
            entries.dtype, torch.complex128 if isinstance(e, complex) or isinstance(f, complex) else entries.dtype
        )
        a = entries.to(wide)
        moved = _shift(m, e, wide) @ a - a @ _shift(n, f, wide)
        what = f"{matrix!r}, displaced by ({e}, {f})"
        assert_rank_at_most(moved, bound, noise=tol * (2 + abs(e) + abs(f)), what=what)


def assert_gradients(function: Callable[..., Any] | Matrix, inputs: Sequence[Any] = (), *, order: int = 2) -> None:
    """Derivatives agree with finite differences, up to ``order`` 2.

    ``function(*inputs)``, where inputs are tensors or matrices; or a matrix, for its product with a random x.
    Everything must be in float64 or complex128: finite differences are meaningless in less.
    """
    if isinstance(function, Matrix):
        matrix = function
        shape = (*matrix.batch_shape, 2, int(matrix.shape[-1]))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype or torch.float64)
        function, inputs = (lambda a, v: a.linear(v)), (matrix, x)
    leaves, spec = pytree.tree_flatten(tuple(inputs))
    chosen = [k for k, leaf in enumerate(leaves) if _differentiable(leaf)]
    low = [str(leaves[k].dtype) for k in chosen if leaves[k].dtype not in (torch.float64, torch.complex128)]
    if low:
        raise ValueError(f"assert_gradients: legal dtypes are torch.float64 and torch.complex128, got {', '.join(low)}")
    call = function

    def of_leaves(*tensors: torch.Tensor) -> Any:
        full = list(leaves)
        for k, tensor in zip(chosen, tensors, strict=True):
            full[k] = tensor
        result = call(*pytree.tree_unflatten(full, spec))
        found = tuple(t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor) and _differentiable(t))
        live = tuple(t for t in found if t.requires_grad)
        return live or found

    start = [leaves[k].detach().clone().requires_grad_() for k in chosen]
    if not start or not any(t.numel() for t in start):
        return
    if not _assert_constants(of_leaves, start):
        return
    try:
        torch.autograd.gradcheck(of_leaves, start, fast_mode=True)
        if order > 1:
            torch.autograd.gradgradcheck(of_leaves, start, fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(f"the derivative disagrees with finite differences: {error}") from error


def _assert_constants(function: Callable[..., Any], start: list[torch.Tensor]) -> bool:
    """Whether any output carries a gradient; if none does, it must not depend on the inputs either."""
    outputs = function(*start)
    if any(t.requires_grad for t in outputs):
        return True
    step = 1e-4  # a derivative of size 1 moves the output by 1e-4, rounding by far less
    moved = function(*(t.detach() + step * torch.randn_like(t) for t in start))
    for before, after in zip(outputs, moved, strict=True):
        size = 1.0 + (float(before.abs().max()) if before.numel() else 0.0)
        gap = float((after - before).abs().max()) if before.numel() else 0.0
        assert gap <= 1e-9 * size, f"the output carries no gradient, but moves by {gap:.1e} with its inputs"
    return False


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
